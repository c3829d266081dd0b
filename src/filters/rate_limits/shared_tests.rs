//! Tests of limits that the store counts: what is asked there, and what is known without.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::tests::{KeepAll, ask, by, joined, linked};
use crate::filters::contract::Filter;
use crate::filters::store::{Charged, Charges};
use crate::message::{ErrorKind, Exchange, Response};

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
        let exchange = by("a", &[("x-cost", cost.as_str())]);
        let say = |_: Charges| said.take();
        let (answer, _) = self.answers(filters, exchange, say).await;
        assert_eq!(said, None, "cost {cost}: it was not asked");
        let back = answer.headers().get("retry-after").map(|value| value.to_str().expect("text").to_owned());
        (answer.status().as_u16(), back)
    }

    /// What a request is answered; `say` tells what the store says to each of its questions.
    async fn answers(
        &mut self,
        filters: &[Arc<dyn Filter>],
        exchange: Exchange,
        mut say: impl FnMut(Charges) -> Option<Charged>,
    ) -> (Response, Exchange) {
        let mut asking = std::pin::pin!(ask(filters, exchange));
        loop {
            tokio::select! {
                biased;
                answer = &mut asking => return answer,
                Some(mut question) = self.questions.recv() => {
                    let reply = question.reply.take().expect("it waits");
                    reply.send(say(question)).expect("it waits");
                }
            }
        }
    }

    /// What was given back meanwhile: the limits' names, and for how many requests.
    fn given_back(&mut self) -> Vec<(String, i64)> {
        let questions = std::iter::from_fn(|| self.questions.try_recv().ok());
        let counts = questions.flat_map(|question| {
            assert!(question.reply.is_none(), "nobody waits for that");
            question.counts
        });
        counts.map(|count| (name_in(&count.key), count.cost)).collect()
    }
}

/// The name of the limit that a bucket belongs to.
fn name_in(key: &str) -> String {
    key.split(':').nth(3).expect("a name").to_owned()
}

fn names_in(question: &Charges) -> Vec<String> {
    question.counts.iter().map(|count| name_in(&count.key)).collect()
}

fn fleet(name: &str, on_failure: &str) -> Value {
    json!({"name": name, "requests": 10, "per": "10h", "scope": "Global", "onStoreFailure": on_failure})
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

#[tokio::test(start_paused = true)]
async fn what_several_objects_give_is_one_question() {
    let mut store = Answering::new();
    let tried = json!({"name": "tried", "requests": 1, "per": "1h", "scope": "Global", "dryRun": true});
    let (imposed, own) = (json!([fleet("imposed", "Deny")]), json!([fleet("own", "Deny"), tried]));
    let given = [("policy", imposed.clone()), ("route", own.clone())];
    let filters = joined(&given, &store.keep);
    let mut asked = Vec::new();
    let say = |question: Charges| {
        asked.push(names_in(&question));
        Some(Charged::All(vec![Some(HOUR), Some(2 * HOUR), None]))
    };
    let (answer, exchange) = store.answers(&filters, by("a", &[]), say).await;
    assert_eq!(asked, [["imposed", "own", "tried"]]);
    assert_eq!(answer.extensions().get::<ErrorKind>(), None);
    assert_eq!(answer.headers()["ratelimit"], "\"own\";r=8;t=3600", "of all the one that has least left");
    assert_eq!(answer.headers()["ratelimit-policy"], "\"imposed\";q=10;w=36000, \"own\";q=10;w=36000");
    let limited = exchange.limited.expect("told");
    assert_eq!((&*limited.limit, limited.dry_run), ("tried", true));

    let say = |_: Charges| Some(Charged::Full { place: 1, wait: Some(HOUR) });
    let (answer, exchange) = store.answers(&filters, by("b", &[]), say).await;
    assert_eq!(answer.extensions().get(), Some(&ErrorKind::RateLimited));
    assert_eq!(&*exchange.limited.expect("told").limit, "own");
    assert!(store.given_back().is_empty(), "nothing was charged");
    // It is believed.
    let (answer, _) = store.answers(&filters, by("b", &[]), |_| unreachable!("not asked")).await;
    assert_eq!(answer.headers()["retry-after"], "3600");

    // The control: as filters of their own they ask twice.
    let apart: Vec<_> = [imposed, own].into_iter().flat_map(|limits| linked(limits, &store.keep)).collect();
    let mut asked = 0;
    let say = |question: Charges| {
        asked += 1;
        Some(Charged::All(vec![Some(HOUR); question.counts.len()]))
    };
    store.answers(&apart, by("c", &[]), say).await;
    assert_eq!(asked, 2);
}

#[tokio::test(start_paused = true)]
async fn where_objects_are_counted_in_different_places_each_limit_hears_of_its_own() {
    let mut store = Answering::new();
    let own = json!([fleet("own", "Deny"), {"name": "here", "requests": 10, "per": "10h"}]);
    let given = [("policy", json!([fleet("imposed", "Local")])), ("route", own)];
    let filters = joined(&given, &store.keep);
    let mut asked = Vec::new();
    let say = |question: Charges| {
        asked.push(names_in(&question));
        match question.counts.len() {
            2 => Some(Charged::Apart(question.counts)),
            _ => Some(Charged::All(vec![Some(HOUR)])),
        }
    };
    let (answer, _) = store.answers(&filters, by("a", &[]), say).await;
    assert_eq!(asked, [vec!["imposed", "own"], vec!["imposed"], vec!["own"]], "once, that it hears");
    assert_eq!(answer.extensions().get::<ErrorKind>(), None);

    // One refuses: the other has its own back.
    let full = |which: &'static str| {
        move |question: Charges| match names_in(&question) == [which] {
            true => Some(Charged::Full { place: 0, wait: Some(2 * HOUR) }),
            false => Some(Charged::All(vec![Some(HOUR)])),
        }
    };
    for (which, other, client) in [("imposed", "own", "b"), ("own", "imposed", "c")] {
        let (answer, exchange) = store.answers(&filters, by(client, &[]), full(which)).await;
        assert_eq!(answer.headers()["retry-after"], "7200");
        assert_eq!(&*exchange.limited.expect("told").limit, which);
        assert_eq!(store.given_back(), [(other.to_owned(), -1)]);
    }

    // Who counts one is away: that one does what it says, the other is counted.
    let away = |which: &'static str| {
        move |question: Charges| match names_in(&question) == [which] {
            true => None,
            false => Some(Charged::All(vec![Some(HOUR)])),
        }
    };
    let (answer, exchange) = store.answers(&filters, by("d", &[]), away("imposed")).await;
    assert_eq!(answer.extensions().get::<ErrorKind>(), None);
    assert_eq!(exchange.quotas.fallbacks.iter().map(|name| &**name).collect::<Vec<_>>(), ["imposed"]);
    let (answer, exchange) = store.answers(&filters, by("d", &[]), away("own")).await;
    assert_eq!(answer.extensions().get(), Some(&ErrorKind::StoreUnavailable));
    assert_eq!(exchange.quotas.fallbacks.iter().map(|name| &**name).collect::<Vec<_>>(), ["own"]);
    assert_eq!(store.given_back(), [("imposed".to_owned(), -1)]);
}
