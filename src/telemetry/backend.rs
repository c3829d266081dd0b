//! The series of one backend: requests, errors, connects, connections.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::cells::{Count, PerWorker};

/// How an attempt to connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    Connected,
    Failed,
    TimedOut,
    /// An address that the egress guard refuses.
    Refused,
    /// No TLS connection: what is wrong is counted beside.
    Tls,
}

/// What became of a wish to try a request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    Sent,
    /// The backend has to bear enough retries already.
    OverBudget,
}

/// What became of a client's session in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    Began,
    Kept,
    /// Its endpoint was not to be had.
    Moved,
}

/// Series of one backend.
#[derive(Debug)]
pub struct BackendStats {
    pub(super) name: Arc<str>,
    cells: PerWorker<BackendCells>,
    /// Rare, and of no worker.
    ejections: AtomicU64,
    ejected: AtomicU64,
    /// Of endpoints, by whether they were found well.
    checks: [AtomicU64; 2],
    unhealthy: AtomicU64,
}

#[derive(Debug, Default)]
struct BackendCells {
    requests: Count,
    active: Count,
    idle: Count,
    shared: Count,
    pending: Count,
    connects: [Count; 5],
    retries: [Count; 2],
    sessions: [Count; 3],
    errors: Errors,
    tls_failures: Errors,
}

/// One kind after the other; kinds are a closed set, so the list is short.
#[derive(Debug, Default)]
struct Errors(OnceLock<Box<Error>>);

#[derive(Debug)]
struct Error {
    kind: &'static str,
    count: Count,
    next: Errors,
}

#[derive(Debug, Default)]
pub(crate) struct BackendTotals {
    pub requests: u64,
    pub active: u64,
    pub idle: u64,
    pub shared: u64,
    pub pending: u64,
    pub connects: [u64; 5],
    pub retries: [u64; 2],
    pub sessions: [u64; 3],
    pub ejections: u64,
    pub ejected: u64,
    pub checks: [u64; 2],
    pub unhealthy: u64,
    pub errors: BTreeMap<&'static str, u64>,
    pub tls_failures: BTreeMap<&'static str, u64>,
}

impl Connect {
    pub(super) const ALL: [&'static str; 5] = ["connected", "failed", "timed_out", "refused", "tls"];
}

impl Retry {
    pub(super) const ALL: [&'static str; 2] = ["sent", "over_budget"];
}

impl Session {
    pub(super) const ALL: [&'static str; 3] = ["began", "kept", "moved"];
}

/// Every method is called on the thread of the worker that it names only.
impl BackendStats {
    pub(super) fn new(name: Arc<str>, workers: usize) -> Self {
        Self {
            name,
            cells: PerWorker::new(workers),
            ejections: AtomicU64::new(0),
            ejected: AtomicU64::new(0),
            checks: Default::default(),
            unhealthy: AtomicU64::new(0),
        }
    }

    pub fn request(&self, worker: usize) {
        self.cells(worker).requests.add(1);
    }

    pub fn connect(&self, worker: usize, result: Connect) {
        self.cells(worker).connects[result as usize].add(1);
    }

    pub fn retry(&self, worker: usize, what: Retry) {
        self.cells(worker).retries[what as usize].add(1);
    }

    pub fn session(&self, worker: usize, what: Session) {
        self.cells(worker).sessions[what as usize].add(1);
    }

    /// All that were ever sent, by all workers.
    pub fn requests(&self) -> u64 {
        self.cells.iter().map(|cells| cells.requests.value()).sum()
    }

    /// Requests under way, over all workers.
    pub fn active_now(&self) -> u64 {
        self.cells.iter().fold(0, |sum, cells| sum.wrapping_add(cells.active.value()))
    }

    /// An endpoint was ejected. Any thread may say so.
    pub fn ejection(&self) {
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// So many endpoints are left alone now.
    pub fn set_ejected(&self, count: usize) {
        self.ejected.store(count as u64, Ordering::Relaxed);
    }

    /// An endpoint was asked how it is. Any thread may say so.
    pub fn check(&self, is_well: bool) {
        self.checks[usize::from(!is_well)].fetch_add(1, Ordering::Relaxed);
    }

    /// So many endpoints were found unhealthy.
    pub fn set_unhealthy(&self, count: usize) {
        self.unhealthy.store(count as u64, Ordering::Relaxed);
    }

    /// `kind` is the stable reason of a failure.
    pub fn error(&self, worker: usize, kind: &'static str) {
        self.cells(worker).errors.add(kind);
    }

    /// `reason`: why there is no TLS connection to an endpoint.
    pub fn tls_failure(&self, worker: usize, reason: &'static str) {
        self.cells(worker).tls_failures.add(reason);
    }

    /// A connection began to carry a request (`by` 1), or ended doing so (-1); a shared one carries many.
    pub fn active(&self, worker: usize, by: i64) {
        self.cells(worker).active.add(by as u64);
    }

    /// A connection began to wait for a request (1), or ended doing so (-1).
    pub fn idle(&self, worker: usize, by: i64) {
        self.cells(worker).idle.add(by as u64);
    }

    /// A connection that many requests share (HTTP/2) was opened (1), or closed (-1).
    pub fn shared(&self, worker: usize, by: i64) {
        self.cells(worker).shared.add(by as u64);
    }

    /// A request began to wait for a connection (1), or ended doing so (-1).
    pub fn pending(&self, worker: usize, by: i64) {
        self.cells(worker).pending.add(by as u64);
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.cells.workers()
    }

    pub(crate) fn totals(&self) -> Option<BackendTotals> {
        let mut totals = None::<BackendTotals>;
        for cells in self.cells.iter() {
            let totals = totals.get_or_insert_default();
            totals.requests += cells.requests.value();
            totals.active = totals.active.wrapping_add(cells.active.value());
            totals.idle = totals.idle.wrapping_add(cells.idle.value());
            totals.shared = totals.shared.wrapping_add(cells.shared.value());
            totals.pending = totals.pending.wrapping_add(cells.pending.value());
            for (sum, cell) in totals.connects.iter_mut().zip(&cells.connects) {
                *sum += cell.value();
            }
            for (sum, cell) in totals.retries.iter_mut().zip(&cells.retries) {
                *sum += cell.value();
            }
            for (sum, cell) in totals.sessions.iter_mut().zip(&cells.sessions) {
                *sum += cell.value();
            }
            cells.errors.add_to(&mut totals.errors);
            cells.tls_failures.add_to(&mut totals.tls_failures);
        }
        let checks = [0, 1].map(|at| self.checks[at].load(Ordering::Relaxed));
        if checks != [0, 0] {
            totals.get_or_insert_default();
        }
        if let Some(totals) = &mut totals {
            totals.checks = checks;
            totals.unhealthy = self.unhealthy.load(Ordering::Relaxed);
            totals.ejections = self.ejections.load(Ordering::Relaxed);
            totals.ejected = self.ejected.load(Ordering::Relaxed);
        }
        totals
    }

    fn cells(&self, worker: usize) -> &BackendCells {
        self.cells.of(worker, BackendCells::default)
    }
}

impl Errors {
    fn add(&self, kind: &'static str) {
        let mut next = self;
        loop {
            let error = next
                .0
                .get_or_init(|| Box::new(Error { kind, count: Count::default(), next: Self::default() }));
            if error.kind == kind {
                return error.count.add(1);
            }
            next = &error.next;
        }
    }

    fn add_to(&self, totals: &mut BTreeMap<&'static str, u64>) {
        let mut next = self;
        while let Some(error) = next.0.get() {
            *totals.entry(error.kind).or_default() += error.count.value();
            next = &error.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_go_up_and_down_over_all_workers() {
        let stats = BackendStats::new("Service/shop/orders:80".into(), 2);
        stats.active(0, 1);
        stats.active(1, 1);
        stats.active(0, -1);
        stats.idle(0, 1);
        stats.connect(1, Connect::TimedOut);
        stats.error(0, "Reset");
        stats.error(1, "Reset");
        stats.error(1, "BackendTimeout");
        stats.tls_failure(1, "expired");
        let totals = stats.totals().expect("counted");
        assert_eq!(totals.tls_failures.into_iter().collect::<Vec<_>>(), [("expired", 1)]);
        assert_eq!((totals.active, totals.idle, totals.connects), (1, 1, [0, 0, 1, 0, 0]));
        assert_eq!(totals.errors.into_iter().collect::<Vec<_>>(), [("BackendTimeout", 1), ("Reset", 2)]);
    }
}
