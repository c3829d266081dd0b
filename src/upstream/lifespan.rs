//! How long, and for how many requests, a connection to an endpoint is used. Then another one takes its place: a balancer
//! in front of the endpoints gets to choose anew.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use super::balance::mix;

/// A tenth more or less, by chance: or all that were opened at once would be opened anew at once, again and again.
const MAX_AGE: Duration = Duration::from_secs(3600);
const MAX_REQUESTS: u32 = if cfg!(test) { 1_000 } else { 1_000_000 };

#[derive(Debug)]
pub(super) struct Lifespan {
    until: Instant,
    /// How many requests it may still take.
    left: Cell<u32>,
}

impl Lifespan {
    /// Of a connection that is opened now. `chance` is another one for each.
    pub fn new(now: Instant, chance: u64) -> Self {
        let permille = 900 + (mix(chance) % 201) as u32;
        Self { until: now + MAX_AGE / 1000 * permille, left: Cell::new(MAX_REQUESTS) }
    }

    /// One more request goes over it.
    pub fn counts(&self) {
        self.left.set(self.left.get().saturating_sub(1));
    }

    /// Whether it takes no more.
    pub fn is_over(&self, now: Instant) -> bool {
        self.left.get() == 0 || now >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_after_an_hour_give_or_take_a_tenth_and_not_for_all_at_once() {
        let now = Instant::now();
        let minutes = |count: u64| now + Duration::from_secs(60 * count);
        let all: Vec<_> = (0..1000).map(|chance| Lifespan::new(now, chance)).collect();
        let over = |at| all.iter().filter(|one| one.is_over(at)).count();
        assert_eq!((over(now), over(minutes(54) - Duration::from_secs(1)), over(minutes(66))), (0, 0, 1000));
        assert!((400..=600).contains(&over(minutes(60))), "{} of 1000 in an hour", over(minutes(60)));
        let most = (54 * 60..66 * 60).map(|second| {
            let at = now + Duration::from_secs(second);
            over(at + Duration::from_secs(1)) - over(at)
        });
        let most = most.max().unwrap_or(0);
        assert!(most <= 20, "{most} of 1000 end in one second");
    }

    #[test]
    fn it_ends_with_the_last_request_and_not_before() {
        let now = Instant::now();
        let one = Lifespan::new(now, 7);
        (1..MAX_REQUESTS).for_each(|_| one.counts());
        assert!(!one.is_over(now));
        one.counts();
        assert!(one.is_over(now));
        // A request that was let through all the same, as those are that are sent again.
        one.counts();
        assert!(one.is_over(now));
    }
}
