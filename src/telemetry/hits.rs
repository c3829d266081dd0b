//! A count that any worker adds to, seldom read: each thread has a line of memory for it, so that none waits for another.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const LINES: usize = 16;

/// How often something was known already.
#[derive(Debug, Default)]
pub struct HitCount([Line; LINES]);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(AtomicU64);

thread_local! {
    static LINE: Cell<usize> = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % LINES)
    };
}

impl HitCount {
    pub fn add_one(&self) {
        self.0[LINE.get()].0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.iter().map(|line| line.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_thread_adds_is_counted() {
        let hits = HitCount::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..100).for_each(|_| hits.add_one()));
            }
        });
        assert_eq!(hits.value(), 2_000);
    }
}
