//! Shares requests out by weight: exactly, evenly mixed, without a lock and the same for all workers.
//!
//! The n-th request takes place `n * stride mod total` on a line on which every target has as much room as its weight.
//! The stride has no divisor in common with the total, so each run of `total` requests meets every place once; it is
//! near the golden section of the total, so neighbours in time are far apart on the line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub struct Spread<T> {
    /// Ends of the targets' room on the line.
    shares: Box<[(u64, T)]>,
    total: u64,
    stride: u64,
    next: Arc<AtomicU64>,
}

impl<T> Spread<T> {
    /// Targets of weight 0 get nothing. `next` counts on while maps come and go.
    pub fn new(weighted: impl IntoIterator<Item = (u32, T)>, next: Arc<AtomicU64>) -> Self {
        let weighted: Vec<_> = weighted.into_iter().filter(|(weight, _)| *weight > 0).collect();
        // 95 to 5 is 19 to 1: it holds in each twenty requests.
        let common = weighted.iter().fold(0, |common, (weight, _)| divisor(common, u64::from(*weight)));
        let mut total = 0;
        // Most rules have one: a vector would keep room for four.
        let shares = weighted
            .into_iter()
            .map(|(weight, target)| {
                total += u64::from(weight) / common;
                (total, target)
            })
            .collect();
        Self { shares, total, stride: stride(total), next }
    }

    /// Asks for what [`Self::choose`] reads.
    pub fn touch(&self) -> u64 {
        self.shares.first().map_or(0, |(end, _)| *end)
    }

    /// All targets that get anything, with their weights.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let starts = std::iter::once(0).chain(self.shares.iter().map(|(end, _)| *end));
        self.shares.iter().zip(starts).map(|((end, target), start)| ((end - start) as u32, target))
    }

    pub fn at(&self, index: usize) -> Option<&T> {
        self.shares.get(index).map(|(_, target)| target)
    }

    /// The next request's target; none when there is none at all.
    pub fn choose(&self) -> Option<&T> {
        if self.shares.len() <= 1 {
            return self.shares.first().map(|(_, target)| target);
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.total;
        let place = u64::try_from(u128::from(turn) * u128::from(self.stride) % u128::from(self.total))
            .expect("a remainder of a u64");
        let index = self.shares.partition_point(|(end, _)| *end <= place);
        self.shares.get(index).map(|(_, target)| target)
    }
}

fn stride(total: u64) -> u64 {
    let golden = total / 1000 * 618 + total % 1000 * 618 / 1000;
    (golden.max(1)..=total.max(1)).find(|candidate| divisor(*candidate, total) == 1).unwrap_or(1)
}

fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(start: u64) -> Arc<AtomicU64> {
        Arc::new(AtomicU64::new(start))
    }

    #[test]
    fn each_round_holds_every_weight_exactly() {
        for weights in [vec![1, 1], vec![95, 5], vec![1, 2, 3, 0, 7], vec![1_000_000, 1]] {
            let total: u32 = weights.iter().sum();
            let spread = Spread::new(weights.iter().copied().zip(0..), from(12_345));
            let mut counts = vec![0; weights.len()];
            for _ in 0..total {
                counts[*spread.choose().expect("some")] += 1;
            }
            assert_eq!(counts, weights);
        }
    }

    #[test]
    fn a_thousand_requests_of_95_to_5_are_950_and_50_wherever_they_begin() {
        for start in [0, 1, 7, u64::from(u32::MAX)] {
            let spread = Spread::new([(95, 'a'), (5, 'b')], from(start));
            let canaries = |count| (0..count).filter(|_| spread.choose() == Some(&'b')).count();
            assert_eq!(canaries(1000), 50);
            for _ in 0..10 {
                canaries(13);
                assert_eq!(canaries(20), 1);
            }
        }
    }

    #[test]
    fn a_small_share_is_mixed_in_and_not_sent_in_one_go() {
        let spread = Spread::new([(50, 'a'), (50, 'b')], from(0));
        let runs: String = (0..100).filter_map(|_| spread.choose().copied()).collect();
        assert!(!runs.contains("aaa") && !runs.contains("bbb"), "{runs}");
        let spread = Spread::new([(95, 'a'), (5, 'b')], from(0));
        let tens: String = (0..100).filter_map(|_| spread.choose().copied()).collect();
        assert!(!tens.contains("bb") && tens[..50].contains('b') && tens[50..].contains('b'), "{tens}");
    }

    #[test]
    fn nothing_to_choose_from_is_none() {
        assert_eq!(Spread::<u8>::new([], from(3)).choose(), None);
        assert_eq!(Spread::new([(0, 'a')], from(3)).choose(), None);
        assert_eq!(Spread::new([(0, 'a'), (7, 'b')], from(3)).choose(), Some(&'b'));
    }
}
