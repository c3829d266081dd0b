//! How many connections each client has, and how fast connections come. Both bounds are settings that are off by default;
//! then nothing is counted.
//!
//! Invariant: the table has an entry only for who has a connection, so it is never larger than their number.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;

/// Tables with a lock each, so that workers seldom meet at one.
const SHARDS: usize = 64;

/// The connections of each client.
#[derive(Debug)]
pub struct Crowd {
    most: u32,
    random: RandomState,
    shards: Box<[Mutex<HashMap<u128, u32, RandomState>>]>,
}

/// A counted connection; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    crowd: Arc<Crowd>,
    who: u128,
}

impl Crowd {
    pub fn new(most: u32) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { most, random: RandomState::default(), shards }
    }

    /// `None`: this client has as many as it may.
    pub fn seat(self: &Arc<Self>, client: IpAddr) -> Option<Seat> {
        let who = who(client);
        let mut table = self.table(who).lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(who).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        drop(table);
        Some(Seat { crowd: Arc::clone(self), who })
    }

    fn table(&self, who: u128) -> &Mutex<HashMap<u128, u32, RandomState>> {
        let at = usize::try_from(self.random.hash_one(who) % SHARDS as u64).unwrap_or(0);
        &self.shards[at]
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.crowd.table(self.who).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.who);
            }
        }
    }
}

/// Whoever has an IPv6 address has the other 2⁶⁴ of its network too.
fn who(client: IpAddr) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address) >> 64 | 1 << 127,
    }
}

/// How fast connections are accepted by all workers together (GCRA): so many in a second, of which a tenth may come at
/// once.
#[derive(Debug)]
pub struct Pace {
    began: Instant,
    /// Nanoseconds that one connection weighs, and that may be used up ahead of time.
    weight: u64,
    room: u64,
    /// When all that was accepted is paid for, in nanoseconds since `began`.
    paid: AtomicU64,
}

impl Pace {
    pub fn new(per_second: u32) -> Self {
        let per_second = u64::from(per_second.max(1));
        let weight = 1_000_000_000 / per_second;
        let room = weight * (per_second / 10).max(1);
        Self { began: Instant::now(), weight, room, paid: AtomicU64::new(0) }
    }

    /// Takes a place for one connection now.
    ///
    /// # Errors
    /// After how long there will be one, if nobody else takes it.
    pub fn take(&self) -> Result<(), Duration> {
        self.take_at(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn take_at(&self, now: u64) -> Result<(), Duration> {
        let mut paid = self.paid.load(Ordering::Relaxed);
        loop {
            let after = paid.max(now) + self.weight;
            if after - now > self.room {
                return Err(Duration::from_nanos(after - now - self.room));
            }
            match self.paid.compare_exchange_weak(paid, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(newer) => paid = newer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_client_has_its_own_number_and_gets_back_what_it_gives_up() {
        let crowd = Arc::new(Crowd::new(2));
        let (first, _second) = (crowd.seat(ip("192.0.2.1")), crowd.seat(ip("192.0.2.1")));
        assert!(crowd.seat(ip("192.0.2.1")).is_none() && crowd.seat(ip("::ffff:192.0.2.1")).is_none());
        assert!(crowd.seat(ip("192.0.2.2")).is_some(), "another one has all of its own");
        drop(first);
        let again = crowd.seat(ip("192.0.2.1"));
        assert!(again.is_some() && crowd.seat(ip("192.0.2.1")).is_none());
    }

    #[test]
    fn a_network_of_version_six_is_one_client() {
        let crowd = Arc::new(Crowd::new(1));
        let _one = crowd.seat(ip("2001:db8::1")).expect("the first");
        assert!(crowd.seat(ip("2001:db8::ffff:2")).is_none());
        assert!(crowd.seat(ip("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn nothing_is_remembered_of_who_has_left() {
        let crowd = Arc::new(Crowd::new(1));
        for client in 0..1000_u32 {
            let seat = crowd.seat(IpAddr::from(client.to_be_bytes()));
            assert!(seat.is_some());
        }
        assert!(crowd.shards.iter().all(|table| table.lock().expect("no panic").is_empty()));
    }

    #[test]
    fn threads_together_never_have_more_than_allowed() {
        let crowd = Arc::new(Crowd::new(3));
        let open = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if let Some(_seat) = crowd.seat(ip("192.0.2.1")) {
                            assert!(open.fetch_add(1, Ordering::SeqCst) < 3);
                            open.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(crowd.shards.iter().all(|table| table.lock().expect("no panic").is_empty()));
    }

    #[test]
    fn a_tenth_may_come_at_once_and_then_one_at_a_time() {
        let pace = Pace::new(100);
        let taken = (0..50).filter(|_| pace.take_at(7).is_ok()).count();
        assert_eq!(taken, 10);
        let wait = pace.take_at(7).expect_err("it is too early");
        assert_eq!(wait, Duration::from_millis(10));
        assert!(pace.take_at(7 + 9_999_999).is_err());
        assert!(pace.take_at(7 + 10_000_000).is_ok());
        assert!(pace.take_at(7 + 10_000_000).is_err());
    }

    #[test]
    fn in_no_second_come_more_than_the_rate_and_its_tenth() {
        for rate in [1_u32, 7, 10, 1000] {
            let pace = Pace::new(rate);
            let taken = (0..1_000_000_u64).filter(|step| pace.take_at(step * 1000).is_ok()).count();
            let most = (rate + (rate / 10).max(1)) as usize;
            assert!((rate as usize..=most).contains(&taken), "{rate}: {taken}");
        }
    }
}
