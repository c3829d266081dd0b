//! What a replica knows of one endpoint, shared by its workers: how its last requests went, how long its answers take,
//! how many are under way. Written at the end of a request, with plain atomics; errors that two workers count at once
//! may be counted one off, ejections are not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::tally::Tally;
use crate::route_map::{CheckPlan, EjectionPlan};

/// An endpoint is ejected for so many times the first time at most.
const MAX_TIMES: u32 = 10;
/// After an ejection the share of an endpoint grows to its full size within this time.
pub(super) const RAMP: Duration = Duration::from_secs(10);
/// And begins at so many hundredths.
const FIRST_SHARE: u64 = 10;
/// Answers of so long ago weigh about a third of those of now.
const DECAY: Duration = Duration::from_secs(10);
/// e to the power of -1.
const LEAST_LEFT: f64 = 0.368;
/// What an endpoint of which nothing is known yet would take, while it is asked: the others go first until it answers.
const UNKNOWN: f64 = 1e9;

#[derive(Debug)]
pub(super) struct Health {
    pub address: SocketAddr,
    born: Instant,
    /// In a row.
    errors: AtomicU32,
    /// Of late, in a row or not.
    tally: Tally,
    /// Ejections that a good stretch has not made forgotten.
    ejections: AtomicU32,
    /// Milliseconds after `born`; 0: never ejected, or long ago.
    ejected_until: AtomicU64,
    /// It came, or came back, then, in milliseconds after `born`, and warms up for so many; 0: it is warm.
    warms: (AtomicU64, AtomicU64),
    active: AtomicU32,
    /// Active checks found it unfit.
    unhealthy: AtomicBool,
    /// Checks in a row that say else.
    contrary: AtomicU32,
    /// The bits of an `f64`: microseconds until the head of an answer, newer ones weigh more.
    latency: AtomicU64,
    /// When that was written: microseconds after `born`.
    measured: AtomicU64,
}

/// Whether an endpoint may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    Ejected,
    /// By active checks.
    Unhealthy,
    /// It comes back: so many of a hundred of its requests.
    Recovering(u64),
}

impl Health {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            born: Instant::now(),
            errors: AtomicU32::new(0),
            tally: Tally::default(),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            warms: Default::default(),
            active: AtomicU32::new(0),
            unhealthy: AtomicBool::new(false),
            contrary: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            measured: AtomicU64::new(0),
        }
    }

    pub fn standing(&self) -> Standing {
        if self.unhealthy.load(Ordering::Relaxed) {
            return Standing::Unhealthy;
        }
        match self.standing_of_requests() {
            Standing::Good => self.warmth(),
            other => other,
        }
    }

    /// From now on it gets more by and by, until it has all of its share after this time.
    pub fn returns(&self, time: Duration) {
        self.warms.1.store((time.as_millis() as u64).max(1), Ordering::Relaxed);
        self.warms.0.store(self.millis().max(1), Ordering::Relaxed);
    }

    fn warmth(&self) -> Standing {
        let (since, time) = (self.warms.0.load(Ordering::Relaxed), self.warms.1.load(Ordering::Relaxed));
        if since == 0 {
            return Standing::Good;
        }
        let passed = self.millis().saturating_sub(since);
        if passed < time {
            return Standing::Recovering(share(passed, time));
        }
        // Unless it came back at this moment.
        let _ = self.warms.0.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
        Standing::Good
    }

    /// By how requests went alone.
    pub fn standing_of_requests(&self) -> Standing {
        match self.ejected_until.load(Ordering::Relaxed) {
            0 => Standing::Good,
            until => self.standing_at(until, self.millis()),
        }
    }

    fn standing_at(&self, until: u64, now: u64) -> Standing {
        let (ramp, since) = (RAMP.as_millis() as u64, now.saturating_sub(until));
        if now < until {
            return Standing::Ejected;
        }
        if since < ramp {
            return Standing::Recovering(share(since, ramp));
        }
        // A good stretch as long again: what was is forgotten, unless somebody ejects it at this moment.
        if since > 2 * ramp
            && self.ejected_until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.ejections.store(0, Ordering::Relaxed);
            self.errors.store(0, Ordering::Relaxed);
        }
        Standing::Good
    }

    /// An answer that is none of the server's failures.
    pub fn went_well(&self, plan: Option<&EjectionPlan>) {
        if let Some(least) = plan.and_then(|plan| plan.least_success) {
            self.tally.counts(false, self.millis(), least);
        }
        if self.errors.load(Ordering::Relaxed) != 0 {
            self.errors.store(0, Ordering::Relaxed);
        }
    }

    /// Whether this was the error that makes it unfit; then [`Health::eject`] it if the others allow.
    pub fn failed(&self, plan: &EjectionPlan) -> bool {
        let errors = self.errors.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let is_often = plan.least_success.is_some_and(|least| self.tally.counts(true, self.millis(), least));
        (errors >= plan.consecutive_errors || is_often) && self.standing_of_requests() != Standing::Ejected
    }

    /// A check found it well, or not. Some: that made it fit or unfit.
    pub fn checked(&self, is_well: bool, plan: &CheckPlan) -> Option<bool> {
        if is_well != self.unhealthy.load(Ordering::Relaxed) {
            self.contrary.store(0, Ordering::Relaxed);
            return None;
        }
        let enough = if is_well { plan.healthy_after } else { plan.unhealthy_after };
        let contrary = self.contrary.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if contrary < enough {
            return None;
        }
        self.contrary.store(0, Ordering::Relaxed);
        self.unhealthy.store(!is_well, Ordering::Relaxed);
        Some(is_well)
    }

    /// Nobody checks it any more.
    pub fn unchecked(&self) {
        self.unhealthy.store(false, Ordering::Relaxed);
    }

    pub fn is_unhealthy(&self) -> bool {
        self.unhealthy.load(Ordering::Relaxed)
    }

    /// For how long it is left alone from now on. One at a time may say so.
    pub fn eject(&self, plan: &EjectionPlan) -> Duration {
        let times = self.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1).min(MAX_TIMES);
        let time = plan.eject_for.saturating_mul(times);
        let until = self.millis().saturating_add(time.as_millis() as u64).max(1);
        self.ejected_until.store(until, Ordering::Relaxed);
        self.errors.store(0, Ordering::Relaxed);
        self.tally.clear();
        time
    }

    pub fn begins(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    pub fn ends(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// The head of an answer took so long. A slower one counts at once, a faster one by and by.
    pub fn measure(&self, took: Duration) {
        let (took, before) = (took.as_micros() as f64, f64::from_bits(self.latency.load(Ordering::Relaxed)));
        let now = self.born.elapsed().as_micros() as u64;
        let since = now.saturating_sub(self.measured.swap(now, Ordering::Relaxed));
        let kept = fading(since).unwrap_or_default();
        let after = if took > before { took } else { before * kept + took * (1.0 - kept) };
        self.latency.store(after.to_bits(), Ordering::Relaxed);
    }

    /// What one more request would have to wait for, in microseconds, more or less. Who is not asked because of a slow
    /// answer gives no other: it fades by itself, too, and in the end one request finds out.
    pub fn cost(&self) -> f64 {
        let (active, latency) =
            (f64::from(self.active()), f64::from_bits(self.latency.load(Ordering::Relaxed)));
        if latency == 0.0 {
            return active * UNKNOWN;
        }
        let now = self.born.elapsed().as_micros() as u64;
        match fading(now.saturating_sub(self.measured.load(Ordering::Relaxed))) {
            None if active == 0.0 => 0.0,
            left => latency * left.unwrap_or(LEAST_LEFT) * (active + 1.0),
        }
    }

    /// How long its answers took of late, in microseconds. None: that is not known, or no longer.
    pub fn pace(&self) -> Option<f64> {
        let latency = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let now = self.born.elapsed().as_micros() as u64;
        let left = fading(now.saturating_sub(self.measured.load(Ordering::Relaxed)))?;
        (latency > 0.0).then_some(latency * left)
    }

    fn millis(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}

/// Of a hundred requests, once so much of the time has passed.
fn share(passed: u64, time: u64) -> u64 {
    FIRST_SHARE + (100 - FIRST_SHARE) * passed / time
}

/// What is left of a time that was measured so many microseconds ago. None: too long ago to say anything.
fn fading(since: u64) -> Option<f64> {
    let decay = DECAY.as_micros() as u64;
    (since < decay).then(|| (-(since as f64) / decay as f64).exp())
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::route_map::Question;

    const PLAN: EjectionPlan = EjectionPlan {
        consecutive_errors: 3,
        least_success: None,
        eject_for: Duration::from_secs(30),
        max_percent: 50,
    };

    fn health() -> Health {
        Health::new(([127, 0, 0, 1], 80).into())
    }

    #[tokio::test(start_paused = true)]
    async fn errors_count_in_a_row() {
        let health = health();
        for _ in 0..10 {
            assert!(!health.failed(&PLAN) && !health.failed(&PLAN));
            health.went_well(Some(&PLAN));
        }
        assert!(!health.failed(&PLAN) && !health.failed(&PLAN) && health.failed(&PLAN));
    }

    #[tokio::test(start_paused = true)]
    async fn errors_that_are_too_many_count_though_never_in_a_row() {
        for (least, expected) in [(None, false), (Some(50), false), (Some(51), true)] {
            let (health, plan) = (health(), EjectionPlan { least_success: least, ..PLAN });
            advance(Duration::from_secs(5)).await;
            let mut is_found = false;
            for _ in 0..50 {
                health.went_well(Some(&plan));
                is_found |= health.failed(&plan);
            }
            assert_eq!(is_found, expected, "{least:?}");
            health.eject(&plan);
            assert!(!health.failed(&plan), "it is left alone already");
            advance(Duration::from_secs(30)).await;
            assert!(!health.failed(&plan), "and begins anew");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_comes_back_in_steps_and_as_many_errors_send_it_off_for_longer() {
        let health = health();
        let secs = |secs| advance(Duration::from_secs(secs));
        assert_eq!(health.eject(&PLAN), Duration::from_secs(30));
        secs(29).await;
        assert_eq!(health.standing(), Standing::Ejected);
        secs(1).await;
        assert_eq!(health.standing(), Standing::Recovering(10));
        secs(5).await;
        assert_eq!(health.standing(), Standing::Recovering(55));
        assert!(!health.failed(&PLAN) && !health.failed(&PLAN), "one error in a while is nothing new");
        health.went_well(Some(&PLAN));
        assert!(!health.failed(&PLAN) && !health.failed(&PLAN) && health.failed(&PLAN));
        assert_eq!(health.eject(&PLAN), Duration::from_secs(60));
        secs(60 + 10).await;
        assert_eq!(health.standing(), Standing::Good);
        secs(11).await;
        assert_eq!(health.standing(), Standing::Good);
        assert_eq!(health.eject(&PLAN), Duration::from_secs(30), "all is forgotten");
        for _ in 0..20 {
            health.eject(&PLAN);
        }
        assert_eq!(health.eject(&PLAN), Duration::from_secs(300), "and there is a bound");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_gets_its_share_by_and_by() {
        let health = health();
        advance(Duration::from_secs(5)).await;
        assert_eq!(health.standing(), Standing::Good);
        health.returns(Duration::from_secs(30));
        for (secs, expected) in [(0, 10), (10, 40), (10, 70), (9, 97)] {
            advance(Duration::from_secs(secs)).await;
            assert_eq!(health.standing(), Standing::Recovering(expected));
        }
        advance(Duration::from_secs(1)).await;
        assert_eq!(health.standing(), Standing::Good);
        health.returns(Duration::from_secs(30));
        health.eject(&PLAN);
        assert_eq!(health.standing(), Standing::Ejected, "what is worse counts");
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_checks_in_a_row_as_the_plan_says_change_it() {
        let seconds = Duration::from_secs;
        let (interval, timeout) = (seconds(5), seconds(1));
        let plan = CheckPlan {
            question: Question::Connect,
            interval,
            timeout,
            healthy_after: 2,
            unhealthy_after: 3,
        };
        let health = health();
        for _ in 0..5 {
            assert_eq!([false, false, true].map(|is_well| health.checked(is_well, &plan)), [None; 3]);
        }
        assert_eq!([(); 3].map(|()| health.checked(false, &plan)), [None, None, Some(false)]);
        assert_eq!(health.standing(), Standing::Unhealthy);
        assert_eq!([true, false, true].map(|is_well| health.checked(is_well, &plan)), [None; 3]);
        assert_eq!(health.checked(true, &plan), Some(true));
        assert_eq!(health.standing(), Standing::Good);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peak_counts_at_once_and_fades() {
        let health = health();
        advance(Duration::from_secs(1)).await;
        assert_eq!(health.cost(), 0.0);
        health.begins();
        assert!(health.cost() >= UNKNOWN, "asked and silent");
        health.measure(Duration::from_millis(1));
        assert_eq!(health.cost(), 2000.0);
        health.ends();
        health.measure(Duration::from_millis(100));
        assert_eq!(health.cost(), 100_000.0);
        advance(DECAY / 2).await;
        assert!((60_000.0..62_000.0).contains(&health.cost()), "asked or not: {}", health.cost());
        health.measure(Duration::from_millis(1));
        assert!((60_000.0..62_000.0).contains(&health.cost()), "{}", health.cost());
        advance(DECAY).await;
        assert_eq!(health.cost(), 0.0, "one request finds out");
        health.begins();
        assert!(health.cost() > 40_000.0, "and no other meanwhile: {}", health.cost());
        health.measure(Duration::from_millis(1));
        assert_eq!(health.cost(), 2000.0);
    }
}
