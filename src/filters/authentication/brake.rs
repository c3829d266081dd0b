//! The brake on addresses whose credentials keep failing, and the credentials that pass all the same because they were
//! found good not long ago.
//!
//! Both are tables of a fixed size without locks. A full set forgets the address that failed least; a credential that is
//! forgotten is judged like any other.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use tokio::time::Instant;

use super::entry::Fingerprint;

/// Sets of places; 1 MiB in all.
const SETS: usize = 1 << 14;
const WAYS: usize = 4;
const RECENT: usize = 1 << 13;
/// A credential counts as known for so long after it was last found good.
const REMEMBERED: u64 = 600_000;
/// A place is not written again for a credential within this time.
const NOTED: u64 = 10_000;

/// Failures of addresses, each a bucket that leaks (GCRA).
pub struct Brake {
    /// Milliseconds that one failure weighs.
    weight: u64,
    /// Milliseconds that all failures together may weigh.
    room: u64,
    random: RandomState,
    began: Instant,
    sets: Box<[[Place; WAYS]]>,
}

/// An address by its hash, and when all its failures are forgiven.
#[derive(Default)]
struct Place {
    who: AtomicU64,
    until: AtomicU64,
}

impl Brake {
    /// Stops an address after `failures` within about `per`.
    pub fn new(failures: u32, per: Duration) -> Self {
        let failures = u64::from(failures.max(1));
        let weight = (millis(per) / failures).max(1);
        Self {
            weight,
            room: weight.saturating_mul(failures),
            random: RandomState::default(),
            began: Instant::now(),
            sets: (0..SETS).map(|_| Default::default()).collect(),
        }
    }

    pub fn millis_at(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.began))
    }

    /// The name of an address at a route. Whoever has an IPv6 address has the other 2⁶⁴ of its network too.
    pub fn who(&self, namespace: &str, route: &str, address: IpAddr) -> u64 {
        use std::hash::BuildHasher as _;
        let address = match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address) >> 64 | 1 << 127,
        };
        // 0 is nobody.
        self.random.hash_one((namespace, route, address)).max(1)
    }

    pub fn stops(&self, who: u64, now: u64) -> bool {
        let set = self.set(who);
        let known = set.iter().find(|place| place.who.load(Ordering::Relaxed) == who);
        known.is_some_and(|place| self.is_full(place.until.load(Ordering::Relaxed), now))
    }

    /// Notes a failure.
    pub fn failed(&self, who: u64, now: u64) {
        let set = self.set(who);
        let place = set.iter().find(|place| place.who.load(Ordering::Relaxed) == who).unwrap_or_else(|| {
            let least = set.iter().min_by_key(|place| place.until.load(Ordering::Relaxed));
            let place = least.expect("a set has places");
            // Two that come at once may count into one place: no more is lost than a failure or two.
            place.until.store(0, Ordering::Relaxed);
            place.who.store(who, Ordering::Relaxed);
            place
        });
        let _ = place.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
            Some((until.max(now) + self.weight).min(now + self.room))
        });
    }

    fn is_full(&self, until: u64, now: u64) -> bool {
        until.saturating_add(self.weight) > now.saturating_add(self.room)
    }

    fn set(&self, who: u64) -> &[Place; WAYS] {
        &self.sets[usize::try_from(who >> 32).unwrap_or_default() % SETS]
    }
}

/// Credentials that were found good not long ago: one place for each of many, which the newest takes.
pub struct Recent(Box<[AtomicU64]>);

impl Default for Recent {
    fn default() -> Self {
        Self((0..RECENT).map(|_| AtomicU64::new(0)).collect())
    }
}

/// The upper bits name the credential, the lower ones are the time in seconds.
const TIME_BITS: u32 = 28;
const TIME: u64 = (1 << TIME_BITS) - 1;

impl Recent {
    pub fn knows(&self, credential: &Fingerprint, now: u64) -> bool {
        let (place, name) = self.place(credential);
        let noted = place.load(Ordering::Relaxed);
        noted != 0 && noted & !TIME == name && age(noted, now) < REMEMBERED
    }

    pub fn note(&self, credential: &Fingerprint, now: u64) {
        let (place, name) = self.place(credential);
        let noted = place.load(Ordering::Relaxed);
        if noted == 0 || noted & !TIME != name || age(noted, now) >= NOTED {
            place.store(name | (now / 1_000 + 1) & TIME, Ordering::Relaxed);
        }
    }

    fn place(&self, credential: &Fingerprint) -> (&AtomicU64, u64) {
        let part = |from: usize| {
            u64::from_le_bytes(credential[from..from + 8].try_into().expect("8 of 32 bytes are 8 bytes"))
        };
        (&self.0[usize::try_from(part(0) % RECENT as u64).unwrap_or_default()], part(8) & !TIME)
    }
}

fn age(noted: u64, now: u64) -> u64 {
    (now / 1_000 + 1).saturating_sub(noted & TIME).saturating_mul(1_000)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brake() -> Brake {
        Brake::new(3, Duration::from_secs(30))
    }

    fn who(brake: &Brake, address: &str) -> u64 {
        brake.who("shop", "orders", address.parse().expect("an address"))
    }

    #[test]
    fn an_address_is_stopped_after_its_failures_and_forgiven_with_time() {
        let brake = brake();
        let (one, other) = (who(&brake, "10.0.0.1"), who(&brake, "10.0.0.2"));
        for _ in 0..3 {
            assert!(!brake.stops(one, 5_000));
            brake.failed(one, 5_000);
        }
        assert!(brake.stops(one, 5_000) && !brake.stops(other, 5_000));
        assert!(brake.stops(one, 14_999) && !brake.stops(one, 15_000), "one failure is forgiven each 10 s");
        brake.failed(one, 15_000);
        assert!(brake.stops(one, 15_000));
        assert!(!brake.stops(one, 45_000));
    }

    #[test]
    fn going_on_does_not_make_it_longer_than_the_time_that_was_given() {
        let brake = brake();
        let one = who(&brake, "10.0.0.1");
        for _ in 0..1_000 {
            brake.failed(one, 0);
        }
        assert!(brake.stops(one, 9_999) && !brake.stops(one, 10_000));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_routes_are_apart() {
        let brake = brake();
        assert_eq!(who(&brake, "2001:db8::1"), who(&brake, "2001:db8::ffff:2"));
        assert_ne!(who(&brake, "2001:db8::1"), who(&brake, "2001:db8:0:1::1"));
        let address = "10.0.0.1".parse().expect("an address");
        assert_ne!(brake.who("shop", "orders", address), brake.who("shop", "basket", address));
    }

    #[test]
    fn very_many_addresses_do_not_push_out_one_that_fails_on() {
        let brake = brake();
        let one = who(&brake, "10.0.0.1");
        for _ in 0..3 {
            brake.failed(one, 0);
        }
        for other in 0..100_000_u32 {
            brake.failed(brake.who("shop", "orders", IpAddr::V4((other | 1 << 31).into())), 0);
        }
        assert!(brake.stops(one, 0), "those that failed once go first");
    }

    #[test]
    fn a_good_credential_is_remembered_for_a_while() {
        let recent = Recent::default();
        let (one, other) = ([1; 32], [2; 32]);
        assert!(!recent.knows(&one, 0));
        recent.note(&one, 0);
        assert!(recent.knows(&one, 0) && recent.knows(&one, REMEMBERED - 1_000) && !recent.knows(&other, 0));
        assert!(!recent.knows(&one, REMEMBERED + 1_000));
        recent.note(&one, REMEMBERED);
        assert!(recent.knows(&one, REMEMBERED + 1_000));
    }
}
