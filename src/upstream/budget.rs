//! How many requests to a backend may be retries: a share of those of the last ten seconds, over all workers and rules,
//! so that a backend that fails is not asked many times as often as before. A few are always possible, or a backend
//! that is rarely asked would never be asked again.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// Seconds that are looked back on.
const LOOK_BACK: usize = 10;
/// So many retries in that time need no share.
const ALWAYS: u64 = 10;

/// One backend's retries, shared by all workers. What two of them do at once may count one too many or too few.
#[derive(Debug)]
pub(super) struct RetryBudget {
    born: Instant,
    retries: AtomicU64,
    /// The last second of which a beginning was noted.
    second: AtomicU64,
    beginnings: [Beginning; LOOK_BACK],
}

/// What had been sent when a second began.
#[derive(Debug)]
struct Beginning {
    requests: AtomicU64,
    retries: AtomicU64,
}

impl RetryBudget {
    /// `requests` were sent to the backend before, by what is no longer there.
    pub fn new(requests: u64) -> Self {
        Self {
            born: Instant::now(),
            retries: AtomicU64::new(0),
            second: AtomicU64::new(0),
            beginnings: std::array::from_fn(|_| Beginning {
                requests: AtomicU64::new(requests),
                retries: AtomicU64::new(0),
            }),
        }
    }

    /// To be called about once a second, by any worker; `requests` are all that were ever sent, retries included.
    pub fn tick(&self, now: Instant, requests: impl Fn() -> u64) {
        let second = now.saturating_duration_since(self.born).as_secs();
        if self.second.swap(second, Ordering::Relaxed) == second {
            return;
        }
        let retries = self.retries.load(Ordering::Relaxed);
        let beginning = self.beginning(second);
        beginning.requests.store(requests().saturating_sub(retries), Ordering::Relaxed);
        beginning.retries.store(retries, Ordering::Relaxed);
    }

    /// Whether one more retry fits; then it is counted.
    pub fn spend(&self, percent: u8, requests: u64) -> bool {
        let retries = self.retries.load(Ordering::Relaxed);
        // The one that is overwritten next is the oldest.
        let oldest = self.beginning(self.second.load(Ordering::Relaxed) + 1);
        let lately = retries.saturating_sub(oldest.retries.load(Ordering::Relaxed));
        let first_tries = requests.saturating_sub(retries + oldest.requests.load(Ordering::Relaxed));
        let fits = lately < ALWAYS.max(first_tries * u64::from(percent) / 100);
        if fits {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    fn beginning(&self, second: u64) -> &Beginning {
        &self.beginnings[second as usize % LOOK_BACK]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Sends so many requests of which each fails and would be tried again once; how many were.
    fn storm(budget: &RetryBudget, sent: &mut u64, count: u64) -> u64 {
        let retried = (0..count).filter(|_| {
            *sent += 1;
            let again = budget.spend(20, *sent);
            *sent += u64::from(again);
            again
        });
        retried.count() as u64
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_raises_the_load_by_the_share() {
        let (budget, mut sent) = (RetryBudget::new(0), 0);
        assert_eq!(storm(&budget, &mut sent, 10_000), 2000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_is_described_anew_begins_at_what_it_was_sent_before() {
        let (budget, mut sent) = (RetryBudget::new(1_000_000), 1_000_000);
        assert_eq!(storm(&budget, &mut sent, 1000), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_are_always_possible_and_what_is_long_past_no_longer_counts() {
        let (budget, mut sent) = (RetryBudget::new(0), 0);
        assert_eq!(storm(&budget, &mut sent, 40), ALWAYS);
        for _ in 0..LOOK_BACK {
            assert_eq!(storm(&budget, &mut sent, 1), 0);
            tokio::time::advance(Duration::from_secs(1)).await;
            budget.tick(Instant::now(), || sent);
        }
        assert_eq!(storm(&budget, &mut sent, 40), ALWAYS);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_went_well_make_room_for_ten_seconds() {
        let (budget, mut sent) = (RetryBudget::new(0), 0);
        for _ in 0..3 {
            sent += 1000;
            tokio::time::advance(Duration::from_secs(1)).await;
            budget.tick(Instant::now(), || sent);
        }
        assert_eq!(storm(&budget, &mut sent, 600), 600);
        for _ in 0..LOOK_BACK + 1 {
            tokio::time::advance(Duration::from_secs(1)).await;
            budget.tick(Instant::now(), || sent);
        }
        assert_eq!(storm(&budget, &mut sent, 40), ALWAYS);
    }
}
