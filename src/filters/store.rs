//! The way to the store in which replicas count together: one question a request, which all buckets of the request are
//! in. What the store is, and how it is reached, is the background's to know.
//!
//! Invariants: nobody waits for the store longer than its deadline; one that fails is asked once a second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// What the store runs.
pub const SCRIPT: &str = include_str!("charge.lua");

/// So many questions may wait to be sent.
const WAITING: usize = 16_384;
/// A store that failed is tried this seldom.
const TRIED_EVERY: u64 = 1_000;

/// The end of the way that filters hold.
#[derive(Debug)]
pub struct Store {
    questions: mpsc::Sender<Charges>,
    began: Instant,
    /// Milliseconds until it is tried again; 0: it is well.
    rests: AtomicU64,
    patience: AtomicU64,
    asked: Mutex<Option<mpsc::Receiver<Charges>>>,
}

/// A question: buckets that are charged together.
#[derive(Debug)]
pub struct Charges {
    pub counts: Vec<Count>,
    /// Gone where nobody wants to know. It is told nothing if whoever counts this is away and others are not.
    pub reply: Option<oneshot::Sender<Option<Charged>>>,
}

/// A bucket in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    pub key: String,
    /// Microseconds that one unit of cost weighs.
    pub interval: f64,
    /// So many units at once.
    pub burst: u64,
    /// Negative: it is given back.
    pub cost: i64,
    pub enforced: bool,
}

/// What the store says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Charged {
    /// Microseconds until each bucket is empty; `None`: it is full, and refuses nobody.
    All(Vec<Option<u64>>),
    /// Nothing was charged: the bucket of this place refuses for so many microseconds, or for ever.
    Full { place: usize, wait: Option<u64> },
}

impl Default for Store {
    fn default() -> Self {
        let (questions, asked) = mpsc::channel(WAITING);
        Self {
            questions,
            began: Instant::now(),
            rests: AtomicU64::new(0),
            patience: AtomicU64::new(0),
            asked: Mutex::new(Some(asked)),
        }
    }
}

impl Store {
    /// For who answers, once. Nobody waits longer than `patience` for an answer. Until somebody has taken this there is
    /// no store.
    pub fn questions(&self, patience: Duration) -> Option<mpsc::Receiver<Charges>> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.patience
            .store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1), Ordering::Release);
        Some(asked)
    }

    /// Asks. `None`, at once or in the end: the store cannot be asked, or does not answer.
    pub fn charge(&self, counts: Vec<Count>) -> Option<impl Future<Output = Option<Charged>>> {
        let patience = Duration::from_millis(self.patience.load(Ordering::Acquire));
        if patience.is_zero() || !self.may_ask() {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        self.questions.try_send(Charges { counts, reply: Some(reply) }).ok()?;
        Some(async move {
            let answer = tokio::time::timeout(patience, answer).await.ok().and_then(Result::ok);
            let rests = if answer.is_some() { 0 } else { self.now() + TRIED_EVERY };
            if rests > 0 || self.rests.load(Ordering::Relaxed) > 0 {
                self.rests.store(rests, Ordering::Relaxed);
            }
            answer.flatten()
        })
    }

    /// Gives back what was charged; best effort.
    pub fn refund(&self, mut counts: Vec<Count>) {
        counts.iter_mut().for_each(|count| count.cost = -count.cost);
        let _ = self.questions.try_send(Charges { counts, reply: None });
    }

    /// While it fails, one in a second may.
    fn may_ask(&self) -> bool {
        let (rests, now) = (self.rests.load(Ordering::Relaxed), self.now());
        let next = now + TRIED_EVERY;
        rests == 0
            || rests <= now
                && self.rests.compare_exchange(rests, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count() -> Vec<Count> {
        vec![Count { key: "a".into(), interval: 1.0, burst: 1, cost: 1, enforced: true }]
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_asked_once_a_second_and_nobody_waits_longer() {
        let store = Store::default();
        assert!(store.charge(count()).is_none(), "there is none yet");
        let mut questions = store.questions(Duration::from_millis(20)).expect("once");
        let began = Instant::now();
        assert_eq!(store.charge(count()).expect("asked").await, None);
        assert_eq!(began.elapsed(), Duration::from_millis(20));
        let mut asked = 0;
        while began.elapsed() < Duration::from_secs(10) {
            if let Some(waiting) = store.charge(count()) {
                asked += 1;
                assert_eq!(waiting.await, None);
            }
            tokio::time::advance(Duration::from_millis(5)).await;
        }
        assert!((9..=10).contains(&asked), "{asked} in ten seconds");
        tokio::time::advance(Duration::from_secs(1)).await;
        while questions.try_recv().is_ok() {}
        // Well again: everybody asks.
        let waiting = store.charge(count()).expect("asked");
        let reply = questions.recv().await.expect("a question").reply.expect("somebody waits");
        reply.send(Some(Charged::All(vec![Some(1)]))).expect("waited for");
        assert_eq!(waiting.await, Some(Charged::All(vec![Some(1)])));
        assert!(store.charge(count()).is_some() && store.charge(count()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_is_away_keeps_nobody_from_asking_the_others() {
        let store = Store::default();
        let mut questions = store.questions(Duration::from_millis(20)).expect("once");
        for _ in 0..3 {
            let waiting = store.charge(count()).expect("asked");
            let reply = questions.recv().await.expect("a question").reply.expect("somebody waits");
            reply.send(None).expect("waited for");
            assert_eq!(waiting.await, None);
        }
        // The control: nothing said at all.
        let waiting = store.charge(count()).expect("asked");
        drop(questions.recv().await);
        assert_eq!(waiting.await, None);
        assert!(store.charge(count()).is_none());
    }
}
