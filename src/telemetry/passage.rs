//! The series of a route whose TLS is passed through: connections and bytes.

use std::sync::Arc;

use super::cells::{Count, PerWorker};

/// What came of a connection; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassageEnd {
    /// Both sides are done.
    Ended,
    /// One side broke off.
    Reset,
    /// Nothing moved for too long.
    Idle,
    /// The gateway ended.
    Closing,
    /// Its address may not connect.
    Refused,
    /// No backend could be connected to.
    Failed,
    /// The route cannot be served.
    Unserved,
}

impl PassageEnd {
    pub(super) const ALL: [&str; 7] = ["ended", "reset", "idle", "closing", "refused", "failed", "unserved"];

    pub const fn as_str(self) -> &'static str {
        Self::ALL[self as usize]
    }
}

/// Series of one rule.
#[derive(Debug)]
pub struct PassageStats {
    name: [Arc<str>; 3],
    cells: PerWorker<Arc<Cells>>,
}

/// What one worker counted.
#[derive(Debug, Default)]
struct Cells {
    open: Count,
    received: Count,
    sent: Count,
    ends: [Count; PassageEnd::ALL.len()],
}

/// The sums over all workers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PassageTotals {
    pub open: u64,
    pub received: u64,
    pub sent: u64,
    pub ends: [u64; PassageEnd::ALL.len()],
}

/// A connection that is counted as open until it is dropped.
#[derive(Debug)]
pub struct OpenPassage(Arc<Cells>);

impl PassageStats {
    pub(super) fn new(name: [Arc<str>; 3], workers: usize) -> Self {
        Self { name, cells: PerWorker::new(workers) }
    }

    /// Only the worker's own thread calls this, and uses and drops what it gives.
    pub fn open(&self, worker: usize) -> OpenPassage {
        let cells = self.cells.of(worker, Arc::default);
        cells.open.add(1);
        OpenPassage(Arc::clone(cells))
    }

    /// Namespace, route, rule.
    pub(super) fn name(&self) -> [&str; 3] {
        self.name.each_ref().map(|part| &**part)
    }

    /// None: nobody came yet.
    pub(super) fn totals(&self) -> Option<PassageTotals> {
        let mut totals = None::<PassageTotals>;
        for cells in self.cells.iter() {
            let totals = totals.get_or_insert_default();
            totals.open = totals.open.wrapping_add(cells.open.value());
            totals.received += cells.received.value();
            totals.sent += cells.sent.value();
            totals.ends.iter_mut().zip(&cells.ends).for_each(|(total, cell)| *total += cell.value());
        }
        totals
    }
}

impl OpenPassage {
    /// Bytes from the client.
    pub fn received(&self, bytes: u64) {
        self.0.received.add(bytes);
    }

    /// Bytes to the client.
    pub fn sent(&self, bytes: u64) {
        self.0.sent.add(bytes);
    }

    pub fn ends(&self, end: PassageEnd) {
        self.0.ends[end as usize].add(1);
    }
}

impl Drop for OpenPassage {
    fn drop(&mut self) {
        self.0.open.subtract(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_count_is_one_series() {
        let stats = PassageStats::new(["ns", "route", "rule"].map(Arc::from), 2);
        assert_eq!(stats.totals(), None);
        let (one, two) = (stats.open(0), stats.open(1));
        one.received(5);
        two.received(7);
        two.sent(1);
        two.ends(PassageEnd::Idle);
        drop(two);
        let totals = stats.totals().expect("counted");
        assert_eq!((totals.open, totals.received, totals.sent), (1, 12, 1));
        assert_eq!(totals.ends, [0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(PassageEnd::ALL[PassageEnd::Unserved as usize], "unserved");
    }
}
