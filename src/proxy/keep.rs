//! State that outlives route maps: limits, caches, whatever a filter keeps by a name.
//!
//! Invariant: the same key gives the same state while any linked map holds it, and for 60 s after.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::offload;
use crate::cache::{Forwarders, Memory, Partition};
use crate::filters::{FetchPlan, Fetched, Inquiry, Keep, Offload, Store, Taken, Wanted};

type State = Arc<dyn Any + Send + Sync>;

const FORGET_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Kept {
    states: Mutex<HashMap<String, Entry>>,
    /// Where replicas count together.
    store: Arc<Store>,
    /// What is wanted, told once to who fetches.
    wanted: mpsc::UnboundedSender<Wanted>,
    /// What is to be told when the map that wants it is served: who gives it may be new in it.
    waiting: Mutex<Vec<Wanted>>,
    /// Until who fetches takes it.
    fetches: Mutex<Option<Fetches>>,
    /// What all rules' caches may keep, and who in front of us is believed.
    memory: Arc<Memory>,
    forwarders: Forwarders,
    /// From the first filter on that wants it.
    offload: OnceLock<Offload>,
    hashing: OnceLock<Offload>,
}

/// What filters want fetched or asked, as they begin to want it: as many as route maps name, for what nobody wants any more is
/// not asked for again.
pub type Fetches = mpsc::UnboundedReceiver<Wanted>;

impl Default for Kept {
    fn default() -> Self {
        Self::new(0, Forwarders::Nobody)
    }
}

impl Kept {
    /// `cache`: bytes that all answers together may have which are kept.
    pub fn new(cache: u64, forwarders: Forwarders) -> Self {
        let (wanted, fetches) = mpsc::unbounded_channel();
        Self {
            states: Mutex::default(),
            store: Arc::default(),
            memory: Memory::new(cache),
            forwarders,
            wanted,
            waiting: Mutex::default(),
            fetches: Mutex::new(Some(fetches)),
            offload: OnceLock::new(),
            hashing: OnceLock::new(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// Since when nobody but us holds it.
    lonely_since: Option<Instant>,
}

impl Kept {
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn shared_memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    pub fn forwarders(&self) -> Forwarders {
        self.forwarders
    }

    /// What a route keeps of answers.
    pub fn partition(&self, namespace: &str, route: &str) -> Arc<Partition> {
        let made = self
            .state(&format!("cache {namespace}/{route}"), &mut || self.memory.partition(namespace, route));
        made.downcast().expect("only partitions are kept under this name")
    }

    /// What new maps want is fetched from now on: they are served.
    pub fn begin(&self) {
        for wanted in self.waiting().drain(..) {
            // Without a listener, as in a test of something else, it is never fetched.
            let _ = self.wanted.send(wanted);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Wanted>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For who fetches; once.
    pub fn fetches(&self) -> Option<Fetches> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Forgets what nobody has held for a minute. Called with each install and now and then between.
    pub fn sweep(&self, now: Instant) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, entry| {
            if Arc::strong_count(&entry.state) > 1 {
                entry.lonely_since = None;
                return true;
            }
            now.duration_since(*entry.lonely_since.get_or_insert(now)) < FORGET_AFTER
        });
    }
}

impl Keep for Kept {
    fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    fn state(&self, key: &str, make: &mut dyn FnMut() -> State) -> State {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = states.get(key) {
            return known.state.clone();
        }
        let state = make();
        states.insert(key.to_owned(), Entry { state: state.clone(), lonely_since: None });
        state
    }

    fn fetched(&self, plan: &FetchPlan) -> Arc<Fetched> {
        let mut is_new = false;
        let made = self.state(&format!("fetched {}", plan.name()), &mut || {
            is_new = true;
            Arc::new(Fetched::new(plan.clone()))
        });
        let fetched: Arc<Fetched> = made.downcast().expect("only what is fetched is kept under this name");
        if is_new {
            self.waiting().push(Wanted::Fetched(fetched.weak()));
        }
        fetched
    }

    fn asks(&self, inquiry: Inquiry) {
        let _ = self.wanted.send(Wanted::Asked(inquiry));
    }

    fn offload(&self) -> Offload {
        self.offload.get_or_init(threads).clone()
    }

    fn hashing(&self) -> Offload {
        self.hashing.get_or_init(threads).clone()
    }
}

fn threads() -> Offload {
    offload::start().unwrap_or_else(|error| {
        tracing::error!(%error, "no threads for slow work: what needs them is refused");
        Offload::new(|_| Taken::Full)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_while_held_and_a_minute_longer() {
        let (kept, start) = (Kept::default(), Instant::now());
        let held = kept.state("a", &mut || Arc::new(1_u32));
        kept.sweep(start + Duration::from_secs(1_000));
        assert!(Arc::ptr_eq(&held, &kept.state("a", &mut || Arc::new(2_u32))));
        drop(held);
        kept.sweep(start + Duration::from_secs(1_000));
        kept.sweep(start + Duration::from_secs(1_059));
        let again = kept.state("a", &mut || Arc::new(3_u32));
        assert_eq!(again.downcast_ref::<u32>(), Some(&1), "still there after 59 s");
        drop(again);
        kept.sweep(start + Duration::from_secs(1_060));
        kept.sweep(start + Duration::from_secs(1_121));
        let anew = kept.state("a", &mut || Arc::new(4_u32));
        assert_eq!(anew.downcast_ref::<u32>(), Some(&4));
    }
}
