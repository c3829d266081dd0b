//! The cells that are counted in. Each has one writer (a worker), so that counting is a load and a store: no locked
//! instruction, no cache line that two workers write. Whoever scrapes reads what is there.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    pub fn subtract(&self, less: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(less), Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram over fixed bounds: what is at most `BOUNDS[i]` and above the bound before counts in cell `i`.
#[derive(Debug)]
#[repr(C)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    sum: Count,
    cells: [Count; N],
    above: Count,
}

impl<const N: usize> Histogram<N> {
    pub fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            cells: std::array::from_fn(|_| Count::default()),
            above: Count::default(),
            sum: Count::default(),
        }
    }

    pub fn observe(&self, value: u64) {
        let cell = self.bounds.partition_point(|bound| *bound < value);
        self.cells.get(cell).unwrap_or(&self.above).add(1);
        self.sum.add(value);
    }

    /// Reads where the usual values count: beside the sum.
    pub fn touch(&self) -> u64 {
        self.sum.value()
    }

    /// Adds what is in here to a sum over all workers.
    pub fn add_to(&self, total: &mut Total) {
        total.cells.resize(N + 1, 0);
        for (sum, cell) in total.cells.iter_mut().zip(self.cells.iter().chain([&self.above])) {
            *sum += cell.value();
        }
        total.sum = total.sum.wrapping_add(self.sum.value());
    }
}

/// The sum of one histogram over all workers; the last cell is what lies above all bounds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub cells: Vec<u64>,
    pub sum: u64,
}

/// One value a worker, made when that worker first counts. A worker's values lie in memory that it allocated itself.
#[derive(Debug)]
pub struct PerWorker<T> {
    workers: usize,
    table: std::sync::OnceLock<Box<[std::sync::OnceLock<T>]>>,
}

impl<T> PerWorker<T> {
    pub fn new(workers: usize) -> Self {
        Self { workers: workers.max(1), table: std::sync::OnceLock::new() }
    }

    /// The value of `worker`, which must be less than the number of workers that telemetry was made for.
    pub fn of(&self, worker: usize, make: impl FnOnce() -> T) -> &T {
        let table =
            self.table.get_or_init(|| (0..self.workers).map(|_| std::sync::OnceLock::new()).collect());
        debug_assert!(worker < table.len(), "worker {worker} of {}", table.len());
        table[worker % table.len()].get_or_init(make)
    }

    pub fn workers(&self) -> usize {
        self.workers
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.table.get().into_iter().flatten().filter_map(std::sync::OnceLock::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: [u64; 3] = [1, 10, 100];

    #[test]
    fn a_value_on_a_bound_counts_below_it_and_one_past_all_bounds_above() {
        let histogram = Histogram::new(&BOUNDS);
        [0, 1, 2, 10, 11, 100, 101].into_iter().for_each(|value| histogram.observe(value));
        let mut total = Total::default();
        histogram.add_to(&mut total);
        assert_eq!(total, Total { cells: vec![2, 2, 2, 1], sum: 225 });
    }

    #[test]
    fn a_worker_that_never_counted_has_no_cells() {
        let cells = PerWorker::<Count>::new(8);
        assert_eq!(cells.iter().count(), 0);
        cells.of(3, Count::default).add(5);
        cells.of(3, Count::default).add(5);
        assert_eq!(cells.iter().map(Count::value).collect::<Vec<_>>(), [10]);
    }
}
