//! The brake on addresses whose credentials keep failing, and the credentials that pass all the same because they were
//! found good not long ago.
//!
//! Both are tables of a fixed size without locks, one of each for all policies. A full set forgets the address that failed
//! least; a credential that is forgotten is judged like any other. What takes long to judge is charged before it is asked,
//! so that guesses at the same time do not pass together, and refunded when it was good.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use tokio::time::Instant;

use super::entry::Fingerprint;
use crate::message::Labels;

/// Sets of places; 1 MiB in all.
const SETS: usize = 1 << 14;
const WAYS: usize = 4;
const RECENT: usize = 1 << 13;
/// A credential counts as known for so long after it was last found good.
const REMEMBERED: u64 = 600_000;
/// A place is not written again for a credential within this time.
const NOTED: u64 = 10_000;
/// Of so many credentials it is known that they are just being judged; of more, each is charged.
const MOST_UNDERWAY: usize = 1 << 14;

/// What all brakes know.
pub struct Failures {
    random: RandomState,
    began: Instant,
    sets: Box<[[Place; WAYS]]>,
    recent: Recent,
    /// Credentials that are charged and not judged yet, by address: equal ones are charged once. Locked around questions
    /// that take milliseconds, not around requests.
    underway: Mutex<HashSet<(u64, Fingerprint)>>,
}

impl Default for Failures {
    fn default() -> Self {
        Self {
            random: RandomState::default(),
            began: Instant::now(),
            sets: (0..SETS).map(|_| Default::default()).collect(),
            recent: Recent::default(),
            underway: Mutex::default(),
        }
    }
}

/// An address by its hash, and when all its failures are forgiven.
#[derive(Default)]
struct Place {
    who: AtomicU64,
    until: AtomicU64,
}

impl Failures {
    fn set(&self, who: u64) -> &[Place; WAYS] {
        &self.sets[usize::try_from(who >> 32).unwrap_or_default() % SETS]
    }

    fn find(&self, who: u64) -> Option<&Place> {
        self.set(who).iter().find(|place| place.who.load(Ordering::Relaxed) == who)
    }

    fn find_or_take(&self, who: u64) -> &Place {
        self.find(who).unwrap_or_else(|| {
            let least = self.set(who).iter().min_by_key(|place| place.until.load(Ordering::Relaxed));
            let place = least.expect("a set has places");
            // Two that come at once may count into one place: no more is lost than a failure or two.
            place.until.store(0, Ordering::Relaxed);
            place.who.store(who, Ordering::Relaxed);
            place
        })
    }

    fn underway(&self) -> MutexGuard<'_, HashSet<(u64, Fingerprint)>> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many failures a policy allows; each address has a bucket that leaks (GCRA).
pub struct Brake {
    failures: Arc<Failures>,
    /// Milliseconds that one failure weighs.
    weight: u64,
    /// Milliseconds that all failures together may weigh.
    room: u64,
}

/// Whose credential it is, and where it is shown.
#[derive(Clone, Copy)]
pub struct Shown {
    /// Names the address at this route.
    who: u64,
    /// Names the rule: what is good there says nothing of another policy.
    rule: u64,
    /// Milliseconds since failures are counted.
    now: u64,
}

impl Brake {
    /// Stops an address after `failures` within about `per`.
    pub fn new(table: Arc<Failures>, failures: u32, per: Duration) -> Self {
        let failures = u64::from(failures.max(1));
        let weight = (millis(per) / failures).max(1);
        Self { failures: table, weight, room: weight.saturating_mul(failures) }
    }

    /// Whoever has an IPv6 address has the other 2⁶⁴ of its network too.
    pub fn shown(&self, labels: &Labels, address: IpAddr, now: Instant) -> Shown {
        let table = &*self.failures;
        let address = match address.to_canonical() {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address) >> 64 | 1 << 127,
        };
        let (namespace, route) = (&*labels.namespace, &*labels.route);
        let who = table.random.hash_one((self.weight, self.room, namespace, route, address));
        Shown {
            // 0 is nobody.
            who: who.max(1),
            rule: table.random.hash_one((namespace, route, &*labels.rule)),
            now: millis(now.saturating_duration_since(table.began)),
        }
    }

    /// Whether the address may have this credential judged.
    pub fn admits(&self, shown: Shown, credential: &Fingerprint) -> bool {
        let place = self.failures.find(shown.who);
        place.is_none_or(|place| self.with_one_more(place.until.load(Ordering::Relaxed), shown.now).is_some())
            || self.failures.recent.knows(credential, shown)
    }

    /// Admits a credential that takes long to judge. `None`: the address is stopped.
    pub fn charge(&self, shown: Shown, credential: &Fingerprint) -> Option<Admission> {
        let Shown { who, now, .. } = shown;
        if self.failures.recent.knows(credential, shown) {
            return Some(Admission::Free);
        }
        let mut underway = self.failures.underway();
        if underway.contains(&(who, *credential)) {
            return Some(Admission::Beside);
        }
        let place = self.failures.find_or_take(who);
        let charged = place
            .until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| self.with_one_more(until, now));
        charged.ok()?;
        if underway.len() < MOST_UNDERWAY {
            underway.insert((who, *credential));
        }
        let failures = Arc::clone(&self.failures);
        Some(Admission::Charged(Charge { failures, who, credential: *credential, weight: self.weight }))
    }

    /// Notes a failure that was not charged.
    pub fn failed(&self, shown: Shown) {
        let Shown { who, now, .. } = shown;
        let place = self.failures.find_or_take(who);
        let _ = place.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
            Some((until.max(now) + self.weight).min(now + self.room))
        });
    }

    /// Notes that a credential was good.
    pub fn succeeded(&self, shown: Shown, credential: &Fingerprint) {
        self.failures.recent.note(credential, shown);
    }

    /// `None`: it would be one too many.
    fn with_one_more(&self, until: u64, now: u64) -> Option<u64> {
        let next = until.max(now).saturating_add(self.weight);
        (next <= now.saturating_add(self.room)).then_some(next)
    }
}

/// That a credential may be judged, and whether it counts as a failure until then.
pub enum Admission {
    /// It counts once it has failed.
    Free,
    /// An equal one of the same address is being judged and counts for it.
    Beside,
    Charged(Charge),
}

impl Admission {
    /// It did not fail. Without this, as when nobody waits for the verdict, it counts as if it had.
    pub fn refund(self) {
        if let Self::Charged(charge) = self
            && let Some(place) = charge.failures.find(charge.who)
        {
            let _ = place.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
                Some(until.saturating_sub(charge.weight))
            });
        }
    }
}

/// A failure that is counted before it is known to be one.
pub struct Charge {
    failures: Arc<Failures>,
    who: u64,
    credential: Fingerprint,
    weight: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.failures.underway().remove(&(self.who, self.credential));
    }
}

/// Credentials that were found good not long ago: one place for each of many, which the newest takes.
struct Recent(Box<[AtomicU64]>);

impl Default for Recent {
    fn default() -> Self {
        Self((0..RECENT).map(|_| AtomicU64::new(0)).collect())
    }
}

/// The upper bits name the credential, the lower ones are the time in seconds.
const TIME_BITS: u32 = 28;
const TIME: u64 = (1 << TIME_BITS) - 1;

impl Recent {
    fn knows(&self, credential: &Fingerprint, shown: Shown) -> bool {
        let (place, name) = self.place(credential, shown.rule);
        let noted = place.load(Ordering::Relaxed);
        noted != 0 && noted & !TIME == name && age(noted, shown.now) < REMEMBERED
    }

    fn note(&self, credential: &Fingerprint, shown: Shown) {
        let (place, name) = self.place(credential, shown.rule);
        let noted = place.load(Ordering::Relaxed);
        if noted == 0 || noted & !TIME != name || age(noted, shown.now) >= NOTED {
            place.store(name | (shown.now / 1_000 + 1) & TIME, Ordering::Relaxed);
        }
    }

    /// Nobody can find a credential for one rule that takes the name of another's: what is mixed in is random.
    fn place(&self, credential: &Fingerprint, rule: u64) -> (&AtomicU64, u64) {
        let part = |from: usize| {
            u64::from_le_bytes(credential[from..from + 8].try_into().expect("8 of 32 bytes are 8 bytes"))
        };
        let place = usize::try_from((part(0) ^ rule) % RECENT as u64).unwrap_or_default();
        (&self.0[place], (part(8) ^ rule.rotate_left(32)) & !TIME)
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
        Brake::new(Arc::default(), 3, Duration::from_secs(30))
    }

    fn shown_at(brake: &Brake, route: &str, rule: &str, address: &str) -> Shown {
        let labels = Labels { namespace: "shop".into(), route: route.into(), rule: rule.into() };
        let shown = brake.shown(&labels, address.parse().expect("an address"), brake.failures.began);
        assert_eq!(shown.now, 0);
        shown
    }

    fn shown(brake: &Brake, address: &str) -> Shown {
        shown_at(brake, "orders", "0", address)
    }

    const UNKNOWN: Fingerprint = [9; 32];

    impl Shown {
        fn at(self, now: u64) -> Self {
            Self { now, ..self }
        }
    }

    impl Brake {
        fn stops(&self, shown: Shown) -> bool {
            !self.admits(shown, &UNKNOWN)
        }
    }

    #[test]
    fn an_address_is_stopped_after_its_failures_and_forgiven_with_time() {
        let brake = brake();
        let (one, other) = (shown(&brake, "10.0.0.1"), shown(&brake, "10.0.0.2"));
        for _ in 0..3 {
            assert!(!brake.stops(one.at(5_000)));
            brake.failed(one.at(5_000));
        }
        assert!(brake.stops(one.at(5_000)) && !brake.stops(other.at(5_000)));
        assert!(
            brake.stops(one.at(14_999)) && !brake.stops(one.at(15_000)),
            "one failure is forgiven each 10 s"
        );
        brake.failed(one.at(15_000));
        assert!(brake.stops(one.at(15_000)));
        assert!(!brake.stops(one.at(45_000)));
    }

    #[test]
    fn going_on_does_not_make_it_longer_than_the_time_that_was_given() {
        let brake = brake();
        let one = shown(&brake, "10.0.0.1");
        for _ in 0..1_000 {
            brake.failed(one);
        }
        assert!(brake.stops(one.at(9_999)) && !brake.stops(one.at(10_000)));
    }

    #[test]
    fn what_takes_long_is_charged_before_and_refunded_when_it_was_good() {
        let brake = brake();
        let one = shown(&brake, "10.0.0.1");
        let charge = |number: u8| brake.charge(one, &[number; 32]);
        let admitted: Vec<_> = (1..=3).map(|number| charge(number).expect("admitted")).collect();
        assert!(charge(4).is_none(), "three are on their way");
        assert!(matches!(charge(1), Some(Admission::Beside)), "it is on its way already");
        assert!(brake.stops(one));
        admitted.into_iter().for_each(Admission::refund);
        assert!(!brake.stops(one));
        let again: Vec<_> = (1..=3).map(|number| charge(number).expect("admitted")).collect();
        drop(again);
        assert!(brake.stops(one) && charge(1).is_none(), "who does not wait for a verdict failed");
        brake.succeeded(one, &[1; 32]);
        assert!(matches!(charge(1), Some(Admission::Free)), "known to be good");
        assert!(brake.failures.underway().is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_routes_are_apart() {
        let brake = brake();
        let who = |address: &str| shown(&brake, address).who;
        assert_eq!(who("2001:db8::1"), who("2001:db8::ffff:2"));
        assert_ne!(who("2001:db8::1"), who("2001:db8:0:1::1"));
        assert_ne!(who("10.0.0.1"), shown_at(&brake, "basket", "0", "10.0.0.1").who);
    }

    #[test]
    fn an_ipv4_address_is_the_same_in_the_clothes_of_ipv6() {
        let brake = brake();
        let who = |address: &str| shown(&brake, address).who;
        assert_eq!(who("10.0.0.1"), who("::ffff:10.0.0.1"));
        assert_ne!(who("::ffff:10.0.0.1"), who("::ffff:10.0.0.2"), "not one network");
    }

    #[test]
    fn brakes_of_one_table_count_apart() {
        let table = Arc::<Failures>::default();
        let [one, other] = [30, 60].map(|per| Brake::new(Arc::clone(&table), 3, Duration::from_secs(per)));
        (0..3).for_each(|_| one.failed(shown(&one, "10.0.0.1")));
        assert!(one.stops(shown(&one, "10.0.0.1")) && !other.stops(shown(&other, "10.0.0.1")));
    }

    #[test]
    fn very_many_addresses_do_not_push_out_one_that_fails_on() {
        let brake = brake();
        let one = shown(&brake, "10.0.0.1");
        for _ in 0..3 {
            brake.failed(one);
        }
        let labels = Labels { namespace: "shop".into(), route: "orders".into(), rule: "0".into() };
        for other in 0..100_000_u32 {
            let address = IpAddr::V4((other | 1 << 31).into());
            brake.failed(brake.shown(&labels, address, brake.failures.began));
        }
        assert!(brake.stops(one), "those that failed once go first");
    }

    #[test]
    fn a_good_credential_is_remembered_for_a_while_where_it_was_good() {
        let brake = brake();
        let (shown, elsewhere) = (shown(&brake, "10.0.0.1"), shown_at(&brake, "orders", "1", "10.0.0.1"));
        let recent = &brake.failures.recent;
        let (one, other) = ([1; 32], [2; 32]);
        assert!(!recent.knows(&one, shown));
        recent.note(&one, shown);
        assert!(recent.knows(&one, shown) && recent.knows(&one, shown.at(REMEMBERED - 1_000)));
        assert!(!recent.knows(&other, shown) && !recent.knows(&one, elsewhere), "another rule's policy");
        assert!(!recent.knows(&one, shown.at(REMEMBERED + 1_000)));
        recent.note(&one, shown.at(REMEMBERED));
        assert!(recent.knows(&one, shown.at(REMEMBERED + 1_000)));
    }
}
