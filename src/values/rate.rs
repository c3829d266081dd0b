//! The generic cell rate algorithm (ITU-T I.371): a bucket is one number, the time at which it will be empty again.

use std::time::Duration;

/// How fast a bucket empties, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that one unit of cost weighs.
    interval: u64,
    /// Nanoseconds that all of it together may weigh.
    room: u64,
}

/// A full bucket.
/// Ordered by how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Full {
    /// There is room after so many nanoseconds.
    For(u64),
    /// The cost is more than the bucket holds.
    Forever,
}

/// A bucket may take so long to empty: times stay far from the end of their range.
const MAX_ROOM: u64 = 100 * 366 * 24 * 3_600 * 1_000_000_000;

impl Rate {
    /// `requests` in each `per`, `burst` of them at once. `None`: emptying would take a hundred years.
    pub fn new(requests: u64, per: Duration, burst: u64) -> Option<Self> {
        let per = u64::try_from(per.as_nanos()).ok()?;
        // Rounded up: never more than is granted.
        let interval = per.div_ceil(requests.max(1)).max(1);
        let room = interval.checked_mul(burst.max(1)).filter(|room| *room <= MAX_ROOM)?;
        Some(Self { interval, room })
    }

    /// When a bucket that is empty at `until` will be empty after `cost` more; all times in nanoseconds of one clock.
    pub fn charged(&self, until: u64, now: u64, cost: u64) -> Result<u64, Full> {
        let weight = self.interval.saturating_mul(cost);
        if weight > self.room {
            return Err(Full::Forever);
        }
        let after = until.max(now).saturating_add(weight);
        match (after - now).checked_sub(self.room) {
            None | Some(0) => Ok(after),
            Some(wait) => Err(Full::For(wait)),
        }
    }

    /// When a bucket that is just full will be empty. Nothing is fuller than that: whoever finds a later time, from when
    /// the limit had other numbers, writes this one.
    pub fn latest(&self, now: u64) -> u64 {
        now.saturating_add(self.room)
    }

    /// When a bucket will be empty that has no room for `cost` before `wait` is over.
    pub fn refused(&self, now: u64, wait: u64, cost: u64) -> u64 {
        let room = self.latest(now).saturating_add(wait);
        room.saturating_sub(self.interval.saturating_mul(cost))
    }

    /// As if `cost` had not been charged.
    pub fn refunded(&self, until: u64, cost: u64) -> u64 {
        until.saturating_sub(self.interval.saturating_mul(cost))
    }

    /// Interval in microseconds, and burst, for the store.
    pub fn micros(&self) -> (f64, u64) {
        (self.interval as f64 / 1e3, self.room / self.interval)
    }

    /// How much more there is room for, and nanoseconds until it is one more.
    pub fn left(&self, until: u64, now: u64) -> (u64, u64) {
        let used = until.saturating_sub(now).min(self.room);
        let left = (self.room - used) / self.interval;
        let more = (used + (left + 1) * self.interval).saturating_sub(self.room);
        (left, more.min(used))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(requests: u64, seconds: u64, burst: u64) -> Rate {
        Rate::new(requests, Duration::from_secs(seconds), burst).expect("in range")
    }

    #[test]
    fn a_burst_passes_and_then_one_in_each_interval() {
        let rate = rate(2, 1, 3);
        let mut until = 0;
        for left in [2, 1, 0] {
            until = rate.charged(until, 0, 1).expect("room");
            assert_eq!(rate.left(until, 0), (left, SECOND / 2));
        }
        assert_eq!(rate.charged(until, 0, 1), Err(Full::For(SECOND / 2)));
        assert_eq!(rate.charged(until, 0, 3), Err(Full::For(SECOND * 3 / 2)));
        assert_eq!(
            (rate.refused(0, SECOND / 2, 1), rate.refused(0, SECOND * 3 / 2, 3)),
            (until, until),
            "a refusal tells how full it is, whatever was asked"
        );
        assert_eq!(rate.charged(until, SECOND / 2 - 1, 1), Err(Full::For(1)));
        until = rate.charged(until, SECOND / 2, 1).expect("room again");
        assert_eq!(rate.charged(until, SECOND / 2, 1), Err(Full::For(SECOND / 2)));
        assert_eq!(
            rate.charged(until, 100 * SECOND, 3).map(|until| rate.left(until, 100 * SECOND)),
            Ok((0, SECOND / 2))
        );
        assert_eq!(rate.charged(0, 0, 4), Err(Full::Forever));
    }

    #[test]
    fn nothing_is_fuller_than_full() {
        let (before, after) = (rate(1, 744 * 3_600, 10), rate(10, 1, 10));
        let until = before.charged(0, 0, 10).expect("room");
        assert_eq!(after.left(until, 0), (0, SECOND / 10));
        let until = until.min(after.latest(0));
        assert_eq!(after.charged(until, 0, 1), Err(Full::For(SECOND / 10)));
        assert!(after.charged(until, 0, 0).is_ok(), "what costs nothing always passes");
        assert_eq!(after.left(0, SECOND), (10, 0), "nothing is missing");
        assert_eq!(after.left(SECOND + SECOND / 20, SECOND), (9, SECOND / 20));
    }

    #[test]
    fn a_bucket_that_nobody_lives_to_see_empty_is_refused() {
        let month = Duration::from_secs(744 * 3_600);
        assert_eq!(Rate::new(1, month, 1_000_000), None);
        assert!(Rate::new(1_000_000_000, Duration::from_secs(1), 1_000_000_000).is_some());
        assert!(Rate::new(1, month, 12).is_some());
    }

    proptest! {
        /// Over any window, no more passes than the burst and what the rate gives in it.
        #[test]
        fn no_more_passes_than_is_granted(
            requests in 1_u64..1_000, seconds in 1_u64..100, burst in 1_u64..50,
            steps in proptest::collection::vec((0_u64..3 * SECOND, 0_u64..5), 1..200),
        ) {
            let rate = rate(requests, seconds, burst);
            let (mut until, mut now, mut passed) = (0, SECOND, Vec::new());
            for (step, cost) in steps {
                now += step;
                if let Ok(after) = rate.charged(until, now, cost) {
                    prop_assert!(after >= until.max(now));
                    prop_assert_eq!(rate.refunded(after, cost), until.max(now));
                    until = after;
                    passed.push((now, cost));
                }
            }
            for (first, (start, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                for (end, cost) in &passed[first..] {
                    sum += cost;
                    let granted = burst + (end - start) / rate.interval + 1;
                    prop_assert!(sum <= granted, "{} in {} ns", sum, end - start);
                }
            }
        }

        /// The same as the crate `governor`, which is used widely.
        #[test]
        fn others_decide_the_same(
            requests in 1_u32..500, burst in 1_u32..50,
            steps in proptest::collection::vec(0_u64..SECOND, 1..200),
        ) {
            use governor::clock::FakeRelativeClock;
            use governor::{Quota, RateLimiter};
            let interval = SECOND.div_ceil(u64::from(requests));
            let quota = Quota::with_period(Duration::from_nanos(interval)).expect("not zero");
            let quota = quota.allow_burst(burst.try_into().expect("not zero"));
            let clock = FakeRelativeClock::default();
            let other = RateLimiter::direct_with_clock(quota, clock.clone());
            let own = Rate::new(u64::from(requests), Duration::from_secs(1), u64::from(burst)).expect("in range");
            let (mut until, mut now) = (0, 0);
            for step in steps {
                now += step;
                clock.advance(Duration::from_nanos(step));
                let charged = own.charged(until, now, 1);
                prop_assert_eq!(charged.is_ok(), other.check().is_ok());
                until = charged.unwrap_or(until);
            }
        }
    }
}
