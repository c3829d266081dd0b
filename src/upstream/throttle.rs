//! How often a backend is asked: beyond its limit requests are refused here, so that it does not refuse us.
//!
//! Invariants: every try counts; what was counted stays when the plan changes; while the store does not answer each replica
//! counts for itself.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use http::header::RETRY_AFTER;
use tokio::time::Instant;

use crate::message::{ErrorKind, ProxyError};
use crate::route_map::RatePlan;
use crate::values::Full;

/// What was asked of late, for all workers.
#[derive(Debug)]
pub struct Bucket {
    began: Instant,
    /// Nanoseconds since then at which it is empty.
    until: AtomicU64,
}

/// How long to wait until there is room.
pub type Counted = Result<(), Duration>;

/// Whoever counts for all replicas.
pub trait Together: fmt::Debug + Send + Sync {
    /// `None`, at once or in the end: nobody answers.
    fn charge(&self) -> Option<Pin<Box<dyn Future<Output = Option<Counted>>>>>;
}

impl Default for Bucket {
    fn default() -> Self {
        Self { began: Instant::now(), until: AtomicU64::new(0) }
    }
}

impl Bucket {
    pub(super) fn charge(&self, plan: &RatePlan) -> Counted {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Nothing is fuller than full, whatever the plan was before.
        let latest = plan.rate.latest(now);
        let mut known = self.until.fetch_min(latest, Ordering::Relaxed).min(latest);
        loop {
            let after = match plan.rate.charged(known, now, 1) {
                Ok(after) => after,
                Err(Full::For(nanos)) => return Err(Duration::from_nanos(nanos)),
                Err(Full::Forever) => return Err(plan.per),
            };
            match self.until.compare_exchange_weak(known, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(newer) => known = newer,
            }
        }
    }
}

/// What is answered in the backend's place.
pub(super) fn refusal(wait: Duration) -> ProxyError {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let detail = "the backend must not be asked more often";
    ProxyError::with_detail(ErrorKind::Overloaded, detail)
        .with_header(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::Rate;

    fn plan(requests: u64, per: u64, burst: u64) -> RatePlan {
        let per = Duration::from_secs(per);
        let rate = Rate::new(requests, per, burst).expect("in range");
        RatePlan { rate, requests, per, burst, shared: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_then_as_many_as_are_granted() {
        let (bucket, plan) = (Bucket::default(), plan(2, 1, 3));
        for _ in 0..3 {
            assert_eq!(bucket.charge(&plan), Ok(()));
        }
        assert_eq!(bucket.charge(&plan), Err(Duration::from_millis(500)));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(bucket.charge(&plan), Ok(()));
        assert_eq!(bucket.charge(&plan), Err(Duration::from_millis(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_counted_under_another_plan_refuses_no_longer_than_a_full_bucket() {
        let (bucket, slow) = (Bucket::default(), plan(1, 3600, 1));
        assert_eq!(bucket.charge(&slow), Ok(()));
        assert_eq!(bucket.charge(&plan(10, 1, 10)), Err(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(bucket.charge(&plan(10, 1, 10)), Ok(()));
    }

    #[test]
    fn who_is_refused_hears_when_to_come_again() {
        for (wait, seconds) in [(1, "1"), (1000, "1"), (1001, "2"), (90_000, "90")] {
            let refusal = refusal(Duration::from_millis(wait));
            assert_eq!(refusal.kind, ErrorKind::Overloaded);
            assert_eq!(refusal.headers, [(RETRY_AFTER, HeaderValue::from_static(seconds))]);
        }
    }
}
