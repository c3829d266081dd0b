//! What was found out about passwords, and what is just being found out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::super::entry::Fingerprint;
use super::super::verdicts::{Verdict, Verdicts};
use crate::message::{ErrorKind, Identity};

/// A good password counts for so long after it was last shown, a bad one after it was hashed.
const GOOD: Duration = Duration::from_secs(600);
const BAD: Duration = Duration::from_secs(60);
/// So many wait for one hash.
const MOST_WAITERS: usize = 1024;
/// The threads are everybody's: of one file so many hashes are with them at once, so that slow ones leave the others' a turn.
pub const AT_ONCE: usize = 2;
/// Of one file so many passwords are being judged or wait for it.
pub const MOST_UNDERWAY: usize = 64;

/// Name and password by a keyed digest, and the line of the file that they are judged by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question {
    pub print: Fingerprint,
    pub line: [u8; 32],
}

/// Passwords that were hashed, and those that are.
pub struct Known {
    began: Instant,
    good: Verdicts<Good>,
    /// Apart, so that guesses push out none that are good.
    bad: Verdicts<()>,
    /// Who waits for a hash that somebody has begun. Locked around hashes, which take milliseconds each.
    underway: Mutex<Underway>,
    /// Of [`AT_ONCE`].
    places: Arc<Semaphore>,
}

type Underway = HashMap<Question, Vec<oneshot::Sender<bool>>>;

#[derive(Clone)]
struct Good {
    identity: Identity,
    until: i64,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            good: Verdicts::default(),
            bad: Verdicts::default(),
            underway: Mutex::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

/// Who finds it out.
pub enum Turn {
    /// Whoever asks.
    Work(Working),
    /// Somebody has begun.
    Wait(oneshot::Receiver<bool>),
    /// Too many wait for it, or too many others are being found out.
    Full,
}

impl Known {
    pub fn millis_at(&self, now: Instant) -> i64 {
        millis(now.saturating_duration_since(self.began))
    }

    /// Whoever goes on showing it is not asked to wait for a hash again.
    pub fn good(&self, question: &Question, now: i64) -> Option<Identity> {
        let Good { identity, until } = self.good.find(&question.print, &question.line, now)?;
        if until - now < millis(GOOD) / 2 {
            self.note(question, now, Some(&identity));
        }
        Some(identity)
    }

    pub fn is_bad(&self, question: &Question, now: i64) -> bool {
        self.bad.find(&question.print, &question.line, now).is_some()
    }

    fn note(&self, question: &Question, now: i64, found: Option<&Identity>) {
        let (credential, by) = (question.print, question.line);
        match found {
            Some(identity) => {
                let until = now + millis(GOOD);
                let found = Good { identity: identity.clone(), until };
                self.good.insert(Verdict { credential, by, until, found });
            }
            None => self.bad.insert(Verdict { credential, by, until: now + millis(BAD), found: () }),
        }
    }

    pub fn turn(self: &Arc<Self>, question: Question) -> Turn {
        let mut underway = self.underway();
        let is_full = underway.len() >= MOST_UNDERWAY;
        match underway.get_mut(&question) {
            Some(waiters) if waiters.len() >= MOST_WAITERS => Turn::Full,
            Some(waiters) => {
                let (teller, verdict) = oneshot::channel();
                waiters.push(teller);
                Turn::Wait(verdict)
            }
            None if is_full => Turn::Full,
            None => {
                underway.insert(question, Vec::new());
                Turn::Work(Working { known: Arc::clone(self), question, verdict: None })
            }
        }
    }

    /// A place at the threads, held until the hash is done, whoever leaves.
    ///
    /// # Errors
    /// Never: nobody closes them.
    pub async fn place(&self) -> Result<OwnedSemaphorePermit, ErrorKind> {
        Arc::clone(&self.places).acquire_owned().await.map_err(|_| ErrorKind::Internal)
    }

    fn underway(&self) -> MutexGuard<'_, Underway> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work of finding out. Dropped undone, one of those who wait takes it up.
pub struct Working {
    known: Arc<Known>,
    question: Question,
    verdict: Option<bool>,
}

impl Working {
    /// Finds out whose password it is, unless somebody did since it was looked up, and tells those who wait.
    pub fn settle<'i>(mut self, find_out: impl FnOnce() -> Option<&'i Identity>) -> bool {
        let (known, question) = (&self.known, &self.question);
        let now = known.millis_at(Instant::now());
        let is_good = if known.good(question, now).is_some() {
            true
        } else if known.is_bad(question, now) {
            false
        } else {
            let found = find_out();
            known.note(question, known.millis_at(Instant::now()), found);
            found.is_some()
        };
        self.verdict = Some(is_good);
        is_good
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let waiters = self.known.underway().remove(&self.question).unwrap_or_default();
        for (waiter, is_good) in waiters.into_iter().zip(std::iter::repeat(self.verdict)) {
            // Who has gone needs no answer; who hears none takes it up.
            let _ = is_good.map(|is_good| waiter.send(is_good));
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
