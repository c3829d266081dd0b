//! The way to the store in which replicas count together: one question a request, which all buckets of the request are
//! in; where the store keeps them in several places, one to each place, all at once. What the store is, and how it is
//! reached, is the background's to know.
//!
//! Invariants: nobody waits for the store longer than its deadline; one that fails is asked once a second; when a bucket
//! refuses, what was taken from the others in other places is given back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// It keeps the buckets of different objects in different places.
    apart: AtomicBool,
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

/// What the store says to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Charged {
    /// Microseconds until each bucket is empty; `None`: it is full, and refuses nobody.
    All(Vec<Option<u64>>),
    /// Nothing was charged: the bucket of this place refuses for so many microseconds, or for ever.
    Full { place: usize, wait: Option<u64> },
    /// Nothing was charged: these are not all in one place.
    Apart(Vec<Count>),
}

/// What a request hears of its buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    All(Vec<Told>),
    /// Nothing was charged, or it is given back: the bucket of this place refuses for so many microseconds, or for ever.
    Full {
        place: usize,
        wait: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Charged: it will be empty in so many microseconds.
    Empty(u64),
    /// It is full, and refuses nobody.
    Full,
    /// Who counts it does not answer.
    Away,
}

/// Buckets that were asked for together.
struct Asked {
    count: usize,
    /// To give them back; none where no others were asked for.
    counts: Vec<Count>,
    /// `None`: there was no room for the question.
    reply: Option<oneshot::Receiver<Option<Charged>>>,
}

impl Default for Store {
    fn default() -> Self {
        let (questions, asked) = mpsc::channel(WAITING);
        Self {
            questions,
            began: Instant::now(),
            rests: AtomicU64::new(0),
            patience: AtomicU64::new(0),
            apart: AtomicBool::new(false),
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

    /// Asks. `None`: the store cannot be asked now.
    pub fn charge(&self, counts: Vec<Count>) -> Option<impl Future<Output = Verdict>> {
        let patience = Duration::from_millis(self.patience.load(Ordering::Acquire));
        if patience.is_zero() || !self.may_ask() {
            return None;
        }
        let until = Instant::now() + patience;
        let mut asked = self.ask(counts);
        if asked.iter().all(|asked| asked.reply.is_none()) {
            return None;
        }
        Some(async move {
            let mut said = hear(&mut asked, until).await;
            if let [Some(Some(Charged::Apart(counts)))] = &mut *said {
                self.apart.store(true, Ordering::Relaxed);
                asked = self.ask(std::mem::take(counts));
                said = hear(&mut asked, until).await;
            }
            let rests = if said.iter().all(Option::is_some) { 0 } else { self.now() + TRIED_EVERY };
            if rests > 0 || self.rests.load(Ordering::Relaxed) > 0 {
                self.rests.store(rests, Ordering::Relaxed);
            }
            self.together(asked, said.into_iter().map(Option::flatten))
        })
    }

    /// Gives back what was charged; best effort.
    pub fn refund(&self, mut counts: Vec<Count>) {
        counts.iter_mut().for_each(|count| count.cost = -count.cost);
        for counts in self.places(counts) {
            let _ = self.questions.try_send(Charges { counts, reply: None });
        }
    }

    fn ask(&self, counts: Vec<Count>) -> Vec<Asked> {
        let places = self.places(counts);
        let is_one = places.len() == 1;
        let ask = |counts: Vec<Count>| {
            let (reply, answer) = oneshot::channel();
            let (count, kept) = (counts.len(), if is_one { Vec::new() } else { counts.clone() });
            let is_asked = self.questions.try_send(Charges { counts, reply: Some(reply) }).is_ok();
            Asked { count, counts: kept, reply: is_asked.then_some(answer) }
        };
        places.into_iter().map(ask).collect()
    }

    /// The questions that these are. What has one tag in braces is in one place.
    fn places(&self, counts: Vec<Count>) -> Vec<Vec<Count>> {
        fn tag(count: &Count) -> Option<&str> {
            Some(count.key.split_once('{')?.1.split_once('}')?.0)
        }
        match self.apart.load(Ordering::Relaxed) {
            true => counts.chunk_by(|one, other| tag(one) == tag(other)).map(<[_]>::to_vec).collect(),
            false => vec![counts],
        }
    }

    /// Of several buckets that are full the one that refuses longest is told.
    fn together(&self, asked: Vec<Asked>, said: impl Iterator<Item = Option<Charged>>) -> Verdict {
        let (mut told, mut full) = (Vec::new(), None);
        let mut charged = Vec::new();
        for (asked, said) in asked.into_iter().zip(said) {
            let first = told.len();
            match said {
                Some(Charged::All(empty)) if empty.len() == asked.count => {
                    let was_charged = |(count, empty): (_, &Option<u64>)| empty.is_some().then_some(count);
                    charged.extend(asked.counts.into_iter().zip(&empty).filter_map(was_charged));
                    told.extend(empty.into_iter().map(|empty| empty.map_or(Told::Full, Told::Empty)));
                    continue;
                }
                Some(Charged::Full { place, wait }) => {
                    let wait = wait.unwrap_or(u64::MAX);
                    full = full.max(Some((wait, first + place)));
                }
                _ => {}
            }
            told.extend(std::iter::repeat_n(Told::Away, asked.count));
        }
        let Some((wait, place)) = full else { return Verdict::All(told) };
        if !charged.is_empty() {
            self.refund(charged);
        }
        Verdict::Full { place, wait: Some(wait).filter(|wait| *wait < u64::MAX) }
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

/// What is said to each question. `None`: nothing in time; `Some(None)`: who counts this is away.
async fn hear(asked: &mut [Asked], until: Instant) -> Vec<Option<Option<Charged>>> {
    let mut said = Vec::with_capacity(asked.len());
    for asked in asked {
        said.push(match asked.reply.take() {
            Some(reply) => tokio::time::timeout_at(until, reply).await.ok().and_then(Result::ok),
            None => Some(None),
        });
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count() -> Vec<Count> {
        vec![count_of("a")]
    }

    fn count_of(key: &str) -> Count {
        Count { key: key.into(), interval: 1.0, burst: 1, cost: 1, enforced: true }
    }

    fn away() -> Verdict {
        Verdict::All(vec![Told::Away])
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_asked_once_a_second_and_nobody_waits_longer() {
        let store = Store::default();
        assert!(store.charge(count()).is_none(), "there is none yet");
        let mut questions = store.questions(Duration::from_millis(20)).expect("once");
        let began = Instant::now();
        assert_eq!(store.charge(count()).expect("asked").await, away());
        assert_eq!(began.elapsed(), Duration::from_millis(20));
        let mut asked = 0;
        while began.elapsed() < Duration::from_secs(10) {
            if let Some(waiting) = store.charge(count()) {
                asked += 1;
                assert_eq!(waiting.await, away());
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
        assert_eq!(waiting.await, Verdict::All(vec![Told::Empty(1)]));
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
            assert_eq!(waiting.await, away());
        }
        // The control: nothing said at all.
        let waiting = store.charge(count()).expect("asked");
        drop(questions.recv().await);
        assert_eq!(waiting.await, away());
        assert!(store.charge(count()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_places_all_are_asked_at_once_and_one_that_hangs_costs_no_more() {
        let store = Store::default();
        let mut questions = store.questions(Duration::from_millis(20)).expect("once");
        let counts = || ["l{a}1", "l{a}2", "l{b}1", "l{c}1"].map(count_of).to_vec();
        let say =
            |question: Charges, said| question.reply.expect("it waits").send(Some(said)).expect("it waits");
        let answer = async {
            let began = Instant::now();
            (store.charge(counts()).expect("asked").await, began.elapsed())
        };
        // The first time it hears that they are apart.
        let said = async {
            let whole = questions.recv().await.expect("a question");
            assert_eq!(whole.counts.len(), 4, "the control: one question");
            let counts = whole.counts.clone();
            say(whole, Charged::Apart(counts));
            // None of them waits for another.
            let mut all = Vec::new();
            for expected in [2, 1, 1] {
                all.push(questions.recv().await.expect("a question"));
                assert_eq!(all.last().expect("one").counts.len(), expected);
            }
            let hangs = all.pop();
            say(all.pop().expect("the second"), Charged::All(vec![Some(3)]));
            say(all.pop().expect("the first"), Charged::All(vec![Some(1), None]));
            hangs
        };
        let ((answer, took), _hangs) = tokio::join!(answer, said);
        let told = vec![Told::Empty(1), Told::Full, Told::Empty(3), Told::Away];
        assert_eq!((answer, took), (Verdict::All(told), Duration::from_millis(20)));
        assert!(store.charge(counts()).is_none(), "it rests");
    }
}
