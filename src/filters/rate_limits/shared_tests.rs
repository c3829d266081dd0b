//! Tests of limits that the store counts: what is asked there, and what is known without.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;

use super::tests::{KeepAll, ask, by, linked};
use crate::filters::contract::Filter;
use crate::filters::store::{Charged, Charges};

/// A store that the test answers for.
struct Answering {
    keep: KeepAll,
    questions: mpsc::Receiver<Charges>,
}

impl Answering {
    fn new() -> Self {
        let keep = KeepAll::default();
        let questions = keep.store.questions(Duration::from_millis(20)).expect("once");
        Self { keep, questions }
    }

    fn limit(&self, requests: u32) -> Vec<Arc<dyn Filter>> {
        let cost = "int(request.headers['x-cost'])";
        let limit =
            json!([{"name": "fleet", "requests": requests, "per": "10h", "scope": "Global", "cost": cost}]);
        linked(limit, &self.keep)
    }

    /// What a request of this cost is answered: its status, and when to come back. `said`: by the store; `None`: it must
    /// not be asked.
    async fn asks(
        &mut self,
        filters: &[Arc<dyn Filter>],
        cost: u32,
        said: Option<Charged>,
    ) -> (u16, Option<String>) {
        let (cost, mut said) = (cost.to_string(), said);
        let fields = [("x-cost", cost.as_str())];
        let mut asking = std::pin::pin!(ask(filters, by("a", &fields)));
        let (answer, _) = loop {
            tokio::select! {
                biased;
                answer = &mut asking => break answer,
                Some(question) = self.questions.recv() => {
                    let said = said.take().expect("a question that nobody expected");
                    question.reply.expect("it waits").send(Some(said)).expect("it waits");
                }
            }
        };
        assert_eq!(said, None, "cost {cost}: it was not asked");
        let back = answer.headers().get("retry-after").map(|value| value.to_str().expect("text").to_owned());
        (answer.status().as_u16(), back)
    }
}

const HOUR: u64 = 3_600_000_000;
const PASSED: (u16, Option<String>) = (200, None);

fn full(hours: u64) -> Option<Charged> {
    Some(Charged::Full { place: 0, wait: Some(hours * HOUR) })
}

fn passes() -> Option<Charged> {
    Some(Charged::All(vec![Some(HOUR)]))
}

fn refused(seconds: u32) -> (u16, Option<String>) {
    (503, Some(seconds.to_string()))
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_believed_for_ten_seconds_and_told_in_full() {
    let mut store = Answering::new();
    let ten = store.limit(10);
    assert_eq!(store.asks(&ten, 1, full(1)).await, refused(3_600));
    assert_eq!(store.asks(&ten, 1, None).await, refused(3_600));
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(store.asks(&ten, 1, None).await, refused(3_591));
    tokio::time::advance(Duration::from_secs(2)).await;
    // Somebody has deleted the bucket: what was known is forgotten with it.
    assert_eq!(store.asks(&ten, 1, passes()).await, PASSED);
    assert_eq!(store.asks(&ten, 1, passes()).await, PASSED);
    assert_eq!(store.asks(&ten, 1, full(1)).await, refused(3_600));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_lasts_no_longer_than_a_changed_limit_lets_it() {
    let mut store = Answering::new();
    let (ten, thousand) = (store.limit(10), store.limit(1_000));
    assert_eq!(store.asks(&ten, 1, full(1)).await, refused(3_600));
    // As the store would say: full, under the new numbers.
    assert_eq!(store.asks(&thousand, 1, None).await, refused(36));
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(store.asks(&thousand, 1, passes()).await, PASSED);
    // The control: who is refused under numbers that stay.
    assert_eq!(store.asks(&thousand, 1, full(1)).await, refused(3_600));
    assert_eq!(store.asks(&thousand, 1, None).await, refused(36));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_a_bucket_answers_requests_of_every_cost() {
    let mut store = Answering::new();
    let ten = store.limit(10);
    assert_eq!(store.asks(&ten, 11, None).await, (503, None), "more than it ever grants");
    assert_eq!(store.asks(&ten, 3, full(1)).await, refused(3_600), "two are left");
    assert_eq!(store.asks(&ten, 3, None).await, refused(3_600));
    assert_eq!(store.asks(&ten, 5, None).await, refused(10_800));
    assert_eq!(store.asks(&ten, 2, passes()).await, PASSED);
    assert_eq!(store.asks(&ten, 0, passes()).await, PASSED);
}
