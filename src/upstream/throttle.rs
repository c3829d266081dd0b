//! How often each host of a backend is asked: beyond its limit others are asked, and where there are none requests are
//! refused here, so that it does not refuse us.
//!
//! Invariants: every try counts, once at each host that it is sent to; what was counted stays when the plan changes;
//! while the store does not answer each replica counts for itself.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
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

/// What one host of a backend is asked, for all workers.
#[derive(Debug)]
pub(super) struct Counter {
    plan: RatePlan,
    bucket: Arc<Bucket>,
    together: Option<Arc<dyn Together>>,
    /// Until when it is not asked whoever counts for all, who has refused; nanoseconds since `bucket` began.
    refused_until: AtomicU64,
}

/// What one try has been charged for, and who refused it.
#[derive(Debug, Default)]
pub(super) struct Charges {
    paid: RefCell<Vec<Arc<Counter>>>,
    refused: RefCell<Vec<(Arc<Counter>, Duration)>>,
    /// Whether it is one of the backend's requests by now, and not one that was kept from it.
    pub is_request: Cell<bool>,
}

/// Others may have been let go meanwhile, or the limit was raised.
const REMEMBERED: Duration = Duration::from_secs(1);

impl Counter {
    pub fn new(plan: RatePlan, bucket: Arc<Bucket>, together: Option<Arc<dyn Together>>) -> Self {
        Self { plan, bucket, together, refused_until: AtomicU64::new(0) }
    }

    /// How long there is no room, as far as that is known without asking.
    fn wait(&self) -> Option<Duration> {
        if self.together.is_none() {
            return self.bucket.wait(&self.plan);
        }
        let wait = self.refused_until.load(Ordering::Relaxed).checked_sub(self.bucket.now())?;
        (wait > 0).then(|| Duration::from_nanos(wait))
    }

    async fn charge(&self) -> Counted {
        let Some(together) = &self.together else { return self.bucket.charge(&self.plan) };
        let told = match together.charge() {
            Some(answer) => answer.await,
            None => None,
        };
        told.unwrap_or_else(|| self.bucket.charge(&self.plan)).inspect_err(|wait| {
            let nanos = u64::try_from(REMEMBERED.min(*wait).as_nanos()).unwrap_or(0);
            self.refused_until.store(self.bucket.now().saturating_add(nanos), Ordering::Relaxed);
        })
    }
}

impl Charges {
    /// How long the host is to be passed over. None: it may be asked.
    pub fn wait(&self, counter: Option<&Arc<Counter>>) -> Option<Duration> {
        let counter = counter.filter(|counter| !self.has_paid(counter))?;
        let refused = self.refused.borrow();
        let refused = refused.iter().find(|(other, _)| Arc::ptr_eq(counter, other));
        refused.map(|(_, wait)| *wait).or_else(|| counter.wait())
    }

    /// Charges a try that is about to be sent there. False: it must not be asked more often.
    pub async fn pay(&self, counter: &Arc<Counter>) -> bool {
        if self.has_paid(counter) {
            return true;
        }
        let charged = counter.charge().await;
        let counter = Arc::clone(counter);
        match charged {
            Ok(()) => self.paid.borrow_mut().push(counter),
            Err(wait) => self.refused.borrow_mut().push((counter, wait)),
        }
        charged.is_ok()
    }

    fn has_paid(&self, counter: &Arc<Counter>) -> bool {
        self.paid.borrow().iter().any(|other| Arc::ptr_eq(counter, other))
    }
}

impl Default for Bucket {
    fn default() -> Self {
        Self { began: Instant::now(), until: AtomicU64::new(0) }
    }
}

impl Bucket {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long there is no room.
    fn wait(&self, plan: &RatePlan) -> Option<Duration> {
        let now = self.now();
        let known = self.until.load(Ordering::Relaxed).min(plan.rate.latest(now));
        match plan.rate.charged(known, now, 1) {
            Ok(_) => None,
            Err(Full::For(nanos)) => Some(Duration::from_nanos(nanos)),
            Err(Full::Forever) => Some(plan.per),
        }
    }

    fn charge(&self, plan: &RatePlan) -> Counted {
        let now = self.now();
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

/// Whether that is why: other overloads say nothing of when to come again.
pub(super) fn is_refusal(error: &ProxyError) -> bool {
    error.kind == ErrorKind::Overloaded && error.headers.iter().any(|(name, _)| *name == RETRY_AFTER)
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

    /// Lets so many pass, and counts who asks.
    #[derive(Debug)]
    struct Fleet {
        left: AtomicU64,
        asked: AtomicU64,
    }

    impl Together for Fleet {
        fn charge(&self) -> Option<Pin<Box<dyn Future<Output = Option<Counted>>>>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let one =
                self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            Some(Box::pin(async move { Some(one.map(drop).map_err(|_| Duration::from_secs(3600))) }))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_is_charged_once_a_host_and_asks_the_fleet_no_more_than_that() {
        let fleet = Arc::new(Fleet { left: AtomicU64::new(1), asked: AtomicU64::new(0) });
        let together: Arc<dyn Together> = fleet.clone();
        let counter = Arc::new(Counter::new(plan(9, 1, 9), Arc::default(), Some(together)));
        let asked = || fleet.asked.load(Ordering::Relaxed);
        let first = Charges::default();
        assert_eq!((first.wait(Some(&counter)), first.wait(None)), (None, None));
        assert!(first.pay(&counter).await && first.pay(&counter).await);
        assert_eq!(asked(), 1);
        let second = Charges::default();
        assert!(!second.pay(&counter).await);
        assert_eq!(asked(), 2);
        assert_eq!(second.wait(Some(&counter)), Some(Duration::from_secs(3600)), "as it was told");
        assert_eq!(first.wait(Some(&counter)), None, "who has paid may send");
        // Others pass it over for a while, and find out then.
        assert_eq!(Charges::default().wait(Some(&counter)), Some(REMEMBERED));
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(Charges::default().wait(Some(&counter)), None);
        assert!(second.wait(Some(&counter)).is_some(), "but not the same try");
    }

    #[test]
    fn who_is_refused_hears_when_to_come_again() {
        for (wait, seconds) in [(1, "1"), (1000, "1"), (1001, "2"), (90_000, "90")] {
            let refusal = refusal(Duration::from_millis(wait));
            assert!(refusal.kind == ErrorKind::Overloaded && is_refusal(&refusal));
            assert_eq!(refusal.headers, [(RETRY_AFTER, HeaderValue::from_static(seconds))]);
        }
    }
}
