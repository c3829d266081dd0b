//! All series of the process, and the handles that the data path counts with. Handles are resolved when a map is
//! installed, never per request.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::render;
use super::table::Scrape;
use super::{BackendStats, ControlStats, PassageStats, RuleStats, WorkerStats};

/// All series of the process. A series goes when its last handle does.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Series>);

#[derive(Debug)]
struct Series {
    control: Arc<ControlStats>,
    workers: Vec<Arc<WorkerStats>>,
    log_dropped: Arc<AtomicU64>,
    cache: OnceLock<CacheSize>,
    rules: Mutex<Known<RuleName, RuleStats>>,
    passages: Mutex<Known<RuleName, PassageStats>>,
    backends: Mutex<Known<Arc<str>, BackendStats>>,
}

/// Tells how many bytes are kept, and how many are on their way.
struct CacheSize(Box<dyn Fn() -> [u64; 2] + Send + Sync>);

type RuleName = (Arc<str>, Arc<str>, Arc<str>);

/// The series that somebody may still hold, by name.
#[derive(Debug)]
struct Known<K, V> {
    by_name: HashMap<K, Weak<V>, foldhash::fast::RandomState>,
    /// When so many are known, those that nobody holds are forgotten.
    tidy_at: usize,
}

impl Telemetry {
    /// Workers are numbered from 0; each counts on its own thread.
    pub fn new(workers: usize) -> Self {
        let workers = workers.max(1);
        Self(Arc::new(Series {
            control: Arc::default(),
            workers: (0..workers).map(|_| Arc::default()).collect(),
            log_dropped: Arc::default(),
            cache: OnceLock::new(),
            rules: Mutex::default(),
            passages: Mutex::default(),
            backends: Mutex::default(),
        }))
    }

    /// The series of a rule; the same ones while anybody holds them. Requests that matched no rule are counted under
    /// three empty names.
    pub fn rule(&self, namespace: &Arc<str>, route: &Arc<str>, rule: &Arc<str>) -> Arc<RuleStats> {
        let workers = self.0.workers.len();
        lock(&self.0.rules).handle(
            (namespace.clone(), route.clone(), rule.clone()),
            |(namespace, route, rule)| {
                RuleStats::new(namespace.clone(), route.clone(), rule.clone(), workers)
            },
        )
    }

    /// The series of a rule that passes TLS through; the same ones while anybody holds them.
    pub fn passage(&self, namespace: &Arc<str>, route: &Arc<str>, rule: &Arc<str>) -> Arc<PassageStats> {
        let workers = self.0.workers.len();
        lock(&self.0.passages).handle(
            (namespace.clone(), route.clone(), rule.clone()),
            |(namespace, route, rule)| {
                PassageStats::new([namespace.clone(), route.clone(), rule.clone()], workers)
            },
        )
    }

    /// The series of a backend, under its name as `BackendId` prints it.
    pub fn backend(&self, backend: &str) -> Arc<BackendStats> {
        let workers = self.0.workers.len();
        lock(&self.0.backends).handle(Arc::from(backend), |name| BackendStats::new(name.clone(), workers))
    }

    /// # Panics
    /// There is no such worker.
    pub fn worker(&self, index: usize) -> Arc<WorkerStats> {
        self.0.workers[index].clone()
    }

    pub fn control(&self) -> &Arc<ControlStats> {
        &self.0.control
    }

    /// Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        let mut rules: Vec<_> =
            lock(&self.0.rules).held().into_iter().filter_map(|rule| Some((rule.totals()?, rule))).collect();
        rules.sort_unstable_by(|(_, one), (_, other)| one.name().cmp(&other.name()));
        let mut passages: Vec<_> =
            lock(&self.0.passages).held().into_iter().filter_map(|one| Some((one.totals()?, one))).collect();
        passages.sort_unstable_by(|(_, one), (_, other)| one.name().cmp(&other.name()));
        let mut backends: Vec<_> =
            lock(&self.0.backends).held().into_iter().filter_map(|one| Some((one.totals()?, one))).collect();
        backends.sort_unstable_by(|(_, one), (_, other)| one.name.cmp(&other.name));
        render::text(&Scrape {
            rules,
            passages,
            backends,
            workers: self.0.workers.clone(),
            control: self.0.control.totals(),
            log_dropped: self.0.log_dropped.load(Ordering::Relaxed),
            cache: self.0.cache.get().map(|size| size.0()),
        })
    }

    /// `size` is asked at each scrape: bytes that are kept, and those of answers on their way.
    pub fn measures_cache(&self, size: impl Fn() -> [u64; 2] + Send + Sync + 'static) {
        // Of two data planes of a test the first.
        let _ = self.0.cache.set(CacheSize(Box::new(size)));
    }

    pub(super) fn workers(&self) -> usize {
        self.0.workers.len()
    }

    /// Where the access log counts what it drops.
    pub(super) fn log_dropped(&self) -> Arc<AtomicU64> {
        self.0.log_dropped.clone()
    }
}

impl fmt::Debug for CacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheSize({:?})", self.0())
    }
}

impl<K: std::hash::Hash + Eq, V> Known<K, V> {
    fn handle(&mut self, name: K, make: impl FnOnce(&K) -> V) -> Arc<V> {
        if let Some(known) = self.by_name.get(&name).and_then(Weak::upgrade) {
            return known;
        }
        if self.by_name.len() >= self.tidy_at {
            self.by_name.retain(|_, handle| handle.strong_count() > 0);
            self.tidy_at = (2 * self.by_name.len()).max(1024);
        }
        let made = Arc::new(make(&name));
        self.by_name.insert(name, Arc::downgrade(&made));
        made
    }

    fn held(&self) -> Vec<Arc<V>> {
        self.by_name.values().filter_map(Weak::upgrade).collect()
    }
}

impl<K, V> Default for Known<K, V> {
    fn default() -> Self {
        Self { by_name: HashMap::default(), tidy_at: 1024 }
    }
}

/// Nothing here is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
