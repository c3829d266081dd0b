//! All buckets of the process: one table without locks, in bounded memory.
//!
//! A bucket is found by a keyed hash of its limit and key, which nobody outside can aim at. A place whose bucket has run
//! empty is free. The table grows by levels, of which each is four times the one before, in pieces of 64 KiB; when the
//! last is full as well, the bucket that would be empty first gives way, so that a fresh bucket for a key costs
//! about as many others as the table holds.

use std::hash::{BuildHasher as _, Hash, Hasher as _, RandomState};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::values::{Full, Rate};

/// Buckets of a set: a line of the cache.
const WAYS: usize = 4;
/// Sets of a piece.
const PIECE: usize = 1 << 10;
/// 4,096 buckets in the first level, 5.6 millions in all, 85 MiB.
const LEVELS: u32 = 6;
/// So often a bucket is looked for while others take the places.
const TRIES: usize = 8;

pub struct Buckets {
    began: Instant,
    random: RandomState,
    levels: Box<[Level]>,
}

/// Its pieces, as they come to be needed.
type Level = Box<[OnceLock<Box<Piece>>]>;
type Piece = [Set; PIECE];

#[derive(Default)]
#[repr(align(64))]
struct Set([Place; WAYS]);

#[derive(Default)]
struct Place {
    /// Hash of limit and key; 0: nobody yet.
    who: AtomicU64,
    /// Nanoseconds since the table's beginning.
    until: AtomicU64,
}

/// How the names of a limit's buckets begin.
#[derive(Clone, Copy)]
pub struct Named(u64);

/// The name of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who(u64);

impl Who {
    /// The name of what is known of a bucket in the store: when it will be empty.
    pub fn full(self) -> Self {
        Self((!self.0).max(1))
    }

    /// The name of how long that is believed.
    pub fn heard(self) -> Self {
        Self((!self.0).rotate_left(29).max(1))
    }
}

impl Default for Buckets {
    fn default() -> Self {
        let level = |level: u32| (0..4_usize.pow(level)).map(|_| OnceLock::new()).collect();
        Self {
            began: Instant::now(),
            random: RandomState::default(),
            levels: (0..LEVELS).map(level).collect(),
        }
    }
}

impl Buckets {
    /// Of a limit, once: what all names of its buckets have in common is not hashed with each request.
    pub fn named(&self, limit: impl Hash) -> Named {
        Named(self.random.hash_one(limit))
    }

    /// Of whom a key tells.
    pub fn who(&self, Named(named): Named, key: impl Hash) -> Who {
        Who(self.random.hash_one((named, key)).max(1))
    }

    /// Of those in a network who say nothing of themselves. In one piece, which takes a third of the time. A known client's
    /// name ends with 0xff, as texts do, and none of these does.
    pub fn of_network(&self, Named(named): Named, network: IpAddr) -> Who {
        let mut name = [0; 25];
        let (begin, address) = name.split_at_mut(8);
        begin.copy_from_slice(&named.to_ne_bytes());
        match network {
            IpAddr::V4(ip) => address[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => {
                address[..16].copy_from_slice(&ip.octets());
                address[16] = 6;
            }
        }
        let mut hasher = self.random.build_hasher();
        hasher.write(&name);
        Who(hasher.finish().max(1))
    }

    /// The table's clock.
    pub fn nanos_at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    /// What charging would say.
    pub fn ask(&self, who: Who, rate: &Rate, cost: u64, now: u64) -> Result<(), Full> {
        let until = self.find(who).map_or(0, |place| place.until(rate, now));
        rate.charged(until, now, cost).map(drop)
    }

    /// Charges a bucket; gives when it will be empty.
    pub fn charge(&self, who: Who, rate: &Rate, cost: u64, now: u64) -> Result<u64, Full> {
        for _ in 0..TRIES {
            if let Some(place) = self.find(who) {
                if let Some(charged) = place.charge(who, rate, cost, now) {
                    return charged;
                }
                continue;
            }
            // A bucket that refuses when it is empty needs no place.
            rate.charged(0, now, cost)?;
            self.settle(who, now);
        }
        // Others took every place that it got, in a table of millions.
        rate.charged(0, now, cost)
    }

    /// When a bucket will be empty, as far as it is known.
    pub fn until(&self, who: Who) -> Option<u64> {
        self.find(who).map(|place| place.until.load(Ordering::Relaxed))
    }

    /// Notes when a bucket will be empty, which somebody else counts: it may be sooner than was known.
    pub fn note(&self, who: Who, until: u64, now: u64) {
        if self.find(who).is_none() {
            self.settle(who, now);
        }
        if let Some(place) = self.find(who) {
            place.until.store(until, Ordering::Relaxed);
        }
    }

    pub fn refund(&self, who: Who, rate: &Rate, cost: u64) {
        if let Some(place) = self.find(who) {
            let _ = place
                .until
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| Some(rate.refunded(until, cost)));
        }
    }

    fn find(&self, who: Who) -> Option<&Place> {
        let sets = (0..LEVELS as usize).filter_map(|level| self.set(level, who));
        sets.flat_map(|set| &set.0).find(|place| place.who.load(Ordering::Relaxed) == who.0)
    }

    /// Gives a bucket a place: the first that is free. A free place holds a time that is over, which is as good as none:
    /// so nothing is lost when two come at once.
    fn settle(&self, who: Who, now: u64) {
        for level in 0..LEVELS as usize {
            for place in &self.set_made(level, who).0 {
                let known = place.who.load(Ordering::Relaxed);
                let is_free = known == 0 || place.until.load(Ordering::Relaxed) <= now;
                if known == who.0 || is_free && place.give(known, who) {
                    return;
                }
            }
        }
        let last = &self.set_made(LEVELS as usize - 1, who).0;
        let until = |place: &&Place| place.until.load(Ordering::Relaxed);
        if let Some(first) = last.iter().min_by_key(until)
            && first.give(first.who.load(Ordering::Relaxed), who)
        {
            first.until.store(now, Ordering::Relaxed);
        }
    }

    fn set(&self, level: usize, who: Who) -> Option<&Set> {
        let (piece, set) = spot(level, who);
        self.levels[level][piece].get().map(|piece| &piece[set])
    }

    fn set_made(&self, level: usize, who: Who) -> &Set {
        let (piece, set) = spot(level, who);
        &self.levels[level][piece].get_or_init(new_piece)[set]
    }

    /// Bytes of all pieces.
    #[cfg(test)]
    fn size(&self) -> usize {
        self.levels.iter().flatten().filter(|piece| piece.get().is_some()).count() * size_of::<Piece>()
    }
}

impl Place {
    /// `None`: somebody else has taken the place in between.
    fn charge(&self, who: Who, rate: &Rate, cost: u64, now: u64) -> Option<Result<u64, Full>> {
        let mut until = self.until(rate, now);
        loop {
            let charged = rate.charged(until, now, cost);
            if self.who.load(Ordering::Acquire) != who.0 {
                return None;
            }
            let Ok(after) = charged else { return Some(charged) };
            match self.until.compare_exchange_weak(until, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if self.who.load(Ordering::Acquire) == who.0 => return Some(charged),
                Ok(_) => {
                    self.refund(rate, cost);
                    return None;
                }
                Err(newer) => until = newer,
            }
        }
    }

    fn until(&self, rate: &Rate, now: u64) -> u64 {
        let (until, latest) = (self.until.load(Ordering::Acquire), rate.latest(now));
        if until > latest {
            self.until.fetch_min(latest, Ordering::AcqRel);
        }
        until.min(latest)
    }

    fn refund(&self, rate: &Rate, cost: u64) {
        let refunded = |until| Some(rate.refunded(until, cost));
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, refunded);
    }

    fn give(&self, known: u64, who: Who) -> bool {
        self.who.compare_exchange(known, who.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Piece and set of a bucket in a level. Other levels take other bits of the hash.
fn spot(level: usize, who: Who) -> (usize, usize) {
    let sets = PIECE * 4_usize.pow(level as u32);
    let bits = who.0.rotate_left(7 * level as u32) as usize;
    let set = bits & (sets - 1);
    (set / PIECE, set % PIECE)
}

fn new_piece() -> Box<Piece> {
    let sets: Box<[Set]> = (0..PIECE).map(|_| Set::default()).collect();
    sets.try_into().unwrap_or_else(|_| unreachable!("as many as a piece has"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use super::*;

    fn rate(burst: u64) -> Rate {
        Rate::new(1, Duration::from_secs(3_600), burst).expect("in range")
    }

    #[test]
    fn of_many_at_once_exactly_the_burst_passes() {
        let (buckets, passed, rate) = (Buckets::default(), AtomicU64::new(0), rate(1_000));
        let limit = buckets.named("limit");
        let keys: Vec<_> = (0..7).map(|key| buckets.who(limit, key)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for turn in 0..14_000 {
                        if buckets.charge(keys[turn % keys.len()], &rate, 1, 5).is_ok() {
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 7_000);
    }

    #[test]
    fn a_million_keys_are_told_apart_in_less_than_100_mib() {
        let (buckets, rate) = (Buckets::default(), rate(1));
        let limit = buckets.named("limit");
        for key in 0..1_000_000 {
            assert!(buckets.charge(buckets.who(limit, key), &rate, 1, 5).is_ok(), "{key} is new");
        }
        let forgotten =
            (0..1_000_000).filter(|key| buckets.ask(buckets.who(limit, key), &rate, 1, 5).is_ok()).count();
        assert_eq!(forgotten, 0);
        assert!(buckets.size() < 100 << 20, "{}", buckets.size());
    }

    #[test]
    fn places_are_taken_again_when_their_buckets_are_empty() {
        let (buckets, rate) = (Buckets::default(), rate(1));
        let limit = buckets.named("limit");
        for round in 0..50_u64 {
            let now = round * 3_600 * 1_000_000_000;
            for key in 0..2_000 {
                assert!(buckets.charge(buckets.who(limit, (round, key)), &rate, 1, now).is_ok());
            }
        }
        let small = size_of::<Piece>() * 5;
        assert!(buckets.size() <= small, "{} bytes for 2,000 keys at a time", buckets.size());
    }

    #[test]
    fn networks_limits_and_keys_are_told_apart() {
        let buckets = Buckets::default();
        let (one, two) = (buckets.named(("shop", "a")), buckets.named(("shop", "b")));
        let networks =
            ["192.0.2.1", "192.0.2.2", "0.0.0.0", "::", "c000:201::", "2001:db8::", "2001:db8:0:1::"];
        let networks = networks.map(|text| text.parse::<IpAddr>().expect("an address"));
        let mut names: Vec<_> =
            networks.iter().flat_map(|ip| [one, two].map(|limit| buckets.of_network(limit, *ip).0)).collect();
        names.extend(networks.iter().map(|ip| buckets.who(one, ip).0));
        assert_eq!(buckets.of_network(one, networks[0]), buckets.of_network(one, networks[0]));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_is_refunded_was_never_charged() {
        let (buckets, rate) = (Buckets::default(), rate(3));
        let limit = buckets.named("limit");
        let who = buckets.who(limit, "a");
        let before = buckets.charge(who, &rate, 1, 5);
        buckets.charge(who, &rate, 2, 5).expect("room");
        assert!(buckets.ask(who, &rate, 1, 5).is_err());
        buckets.refund(who, &rate, 2);
        buckets.refund(buckets.who(limit, "unknown"), &rate, 2);
        buckets.refund(who, &rate, 1);
        assert_eq!(buckets.charge(who, &rate, 1, 5), before);
    }

    #[test]
    fn a_full_table_lets_those_go_that_would_be_empty_first() {
        // One set of each level, as if all others were full.
        let (buckets, rate) = (Buckets::default(), rate(100));
        let places = WAYS * LEVELS as usize;
        let same: Vec<_> = (1..=places as u64 + 4).map(|bits| Who(bits << 10)).collect();
        let alike = |who: &Who| (0..LEVELS as usize).all(|level| spot(level, *who) == spot(level, same[0]));
        assert!(same.iter().all(alike));
        for (turn, who) in same.iter().enumerate() {
            buckets.charge(*who, &rate, 50 - turn as u64, 5).expect("room");
        }
        let known = same.iter().filter(|who| buckets.find(**who).is_some()).count();
        assert_eq!(known, places);
        assert!(buckets.find(same[0]).is_some(), "the fullest stays");
    }
}
