//! The series of one backend: requests, errors, connects, connections.

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
}

/// Series of one backend.
#[derive(Debug)]
pub struct BackendStats {
    pub(super) name: Arc<str>,
    cells: PerWorker<BackendCells>,
}

#[derive(Debug, Default)]
struct BackendCells {
    requests: Count,
    active: Count,
    idle: Count,
    connects: [Count; 4],
    errors: OnceLock<Box<Errors>>,
}

/// One kind of error after the other; kinds are a closed set, so the list is short.
#[derive(Debug)]
struct Errors {
    kind: &'static str,
    count: Count,
    next: OnceLock<Box<Errors>>,
}

#[derive(Debug, Default)]
pub(crate) struct BackendTotals {
    pub requests: u64,
    pub active: u64,
    pub idle: u64,
    pub connects: [u64; 4],
    pub errors: std::collections::BTreeMap<&'static str, u64>,
}

impl Connect {
    pub(super) const ALL: [&'static str; 4] = ["connected", "failed", "timed_out", "refused"];
}

/// Every method is called on the thread of the worker that it names only.
impl BackendStats {
    pub(super) fn new(name: Arc<str>, workers: usize) -> Self {
        Self { name, cells: PerWorker::new(workers) }
    }

    pub fn request(&self, worker: usize) {
        self.cells(worker).requests.add(1);
    }

    pub fn connect(&self, worker: usize, result: Connect) {
        self.cells(worker).connects[result as usize].add(1);
    }

    /// `kind` is the stable reason of a failure.
    pub fn error(&self, worker: usize, kind: &'static str) {
        let mut next = &self.cells(worker).errors;
        loop {
            let errors = next
                .get_or_init(|| Box::new(Errors { kind, count: Count::default(), next: OnceLock::new() }));
            if errors.kind == kind {
                return errors.count.add(1);
            }
            next = &errors.next;
        }
    }

    /// A connection began to carry a request (`by` 1), or ended doing so (-1).
    pub fn active(&self, worker: usize, by: i64) {
        self.cells(worker).active.add(by as u64);
    }

    /// A connection began to wait for a request (1), or ended doing so (-1).
    pub fn idle(&self, worker: usize, by: i64) {
        self.cells(worker).idle.add(by as u64);
    }

    pub(crate) fn totals(&self) -> Option<BackendTotals> {
        let mut totals = None::<BackendTotals>;
        for cells in self.cells.iter() {
            let totals = totals.get_or_insert_default();
            totals.requests += cells.requests.value();
            totals.active = totals.active.wrapping_add(cells.active.value());
            totals.idle = totals.idle.wrapping_add(cells.idle.value());
            for (sum, cell) in totals.connects.iter_mut().zip(&cells.connects) {
                *sum += cell.value();
            }
            let mut next = &cells.errors;
            while let Some(errors) = next.get() {
                *totals.errors.entry(errors.kind).or_default() += errors.count.value();
                next = &errors.next;
            }
        }
        totals
    }

    fn cells(&self, worker: usize) -> &BackendCells {
        self.cells.of(worker, BackendCells::default)
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
        let totals = stats.totals().expect("counted");
        assert_eq!((totals.active, totals.idle, totals.connects), (1, 1, [0, 0, 1, 0]));
        assert_eq!(totals.errors.into_iter().collect::<Vec<_>>(), [("BackendTimeout", 1), ("Reset", 2)]);
    }
}
