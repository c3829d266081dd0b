//! A simulation: sixteen workers, ten endpoints that are alike, requests that stay open for a while. How far from equal
//! their shares are, of all requests and of those that are open at an instant.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::scripted::{backend_with, local_paused};
use crate::expression::{Expression, Kind, REQUEST};
use crate::route_map::{Balance, HostHeader, TrafficPlan};
use crate::upstream::backend::Verdict;
use crate::upstream::balance::{BackendPool, mix};
use crate::upstream::endpoint::Lease;
use crate::upstream::{Aim, Backend, Guard, Loopback};

const WORKERS: u64 = 16;
const ENDPOINTS: u8 = 10;
/// Of a thousand requests a second; a millisecond each.
const ARRIVALS: u64 = 100_000;
/// So often, in milliseconds, those that are open are counted.
const LOOK: u64 = 10;

struct Outcome {
    /// Hundredths that the farthest share of all requests is from equal.
    of_all: f64,
    /// The same of open requests, summed over all instants.
    of_open: f64,
}

/// Numbers that look random and are the same each time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Exponential, as a queue's times are, with this mean and at most ten times it.
    fn millis(&mut self, mean: f64) -> u64 {
        let unit = ((self.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        (-unit.ln() * mean).min(mean * 10.0) as u64 + 1
    }
}

fn backend(balance: Balance) -> Arc<Backend> {
    let key = || Expression::parse("request.path", &REQUEST, Kind::ANY).expect("a key");
    let key = (balance == Balance::ConsistentHash).then(key);
    let addresses: Vec<_> = (0..ENDPOINTS).map(|at| SocketAddr::from(([127, 0, 2, at], 80))).collect();
    backend_with(&addresses, HostHeader::Preserve, TrafficPlan { balance, key, ..TrafficPlan::default() })
}

async fn simulate(balance: Balance, mean: f64) -> Outcome {
    let backend = backend(balance);
    let pool = |seed| BackendPool::new(&backend, (0, None), seed, &Guard::new(Loopback::Allowed));
    let pools: Vec<Rc<BackendPool>> = (0..WORKERS).map(|worker| pool(1000 + worker)).collect();
    let mut chance = Chance(7);
    let mut open: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut leases: BTreeMap<u64, (Lease, tokio::time::Instant)> = BTreeMap::new();
    let mut counts: BTreeMap<SocketAddr, (u64, u64)> = BTreeMap::new();
    for now in 0..ARRIVALS {
        tokio::time::advance(Duration::from_millis(1)).await;
        while let Some(Reverse((until, number))) = open.peek().copied().filter(|next| next.0.0 <= now) {
            assert!(until <= now);
            open.pop();
            let (lease, since) = leases.remove(&number).expect("it is open");
            backend.answered(&lease.endpoint.health, Verdict::Well, Some(since));
        }
        // Connections are spread by chance, and some workers have twice as many as others.
        let worker = (chance.next() % (WORKERS + WORKERS / 2) % WORKERS) as usize;
        let aim = if balance == Balance::ConsistentHash { Aim::Key(chance.next()) } else { Aim::Anywhere };
        let endpoint = pools[worker].next(&[], &[], aim).expect("an endpoint");
        counts.entry(endpoint.address).or_default().0 += 1;
        leases.insert(now, (endpoint.lease(), tokio::time::Instant::now()));
        open.push(Reverse((now + chance.millis(mean), now)));
        if !now.is_multiple_of(LOOK) {
            continue;
        }
        for endpoint in leases.values().map(|(lease, _)| lease.endpoint.address) {
            counts.entry(endpoint).or_default().1 += 1;
        }
    }
    assert_eq!(counts.len(), usize::from(ENDPOINTS));
    let worst = |of: fn(&(u64, u64)) -> u64| {
        let all: Vec<f64> = counts.values().map(|count| of(count) as f64).collect();
        let fair = all.iter().sum::<f64>() / all.len() as f64;
        all.iter().map(|count| (count - fair).abs() / fair * 100.0).fold(0.0, f64::max)
    };
    Outcome { of_all: worst(|count| count.0), of_open: worst(|count| count.1) }
}

#[test]
fn sixteen_workers_spread_requests_within_five_percent_by_every_policy() {
    local_paused(async {
        for balance in [
            Balance::RoundRobin,
            Balance::Random,
            Balance::LeastRequest,
            Balance::PeakEwma,
            Balance::ConsistentHash,
        ] {
            // Few requests open on a worker, and many.
            for mean in [5.0, 100.0] {
                let Outcome { of_all, of_open } = simulate(balance, mean).await;
                println!("{balance:?} {mean} ms: {of_all:.2} % of all, {of_open:.2} % of open ones");
                assert!(of_all < 5.0, "{balance:?} {mean} ms: {of_all:.2} %");
                assert!(of_open < 5.0, "{balance:?} {mean} ms, open: {of_open:.2} %");
            }
        }
    });
}

/// What sixteen workers that know nothing of each other would make of it.
#[test]
fn requests_under_way_are_counted_over_all_workers() {
    local_paused(async {
        let backend = backend(Balance::LeastRequest);
        let pool = |seed| BackendPool::new(&backend, (0, None), seed, &Guard::new(Loopback::Allowed));
        let pools: Vec<Rc<BackendPool>> = (0..WORKERS).map(|worker| pool(1000 + worker)).collect();
        // One after the other, all stay open, each on another worker.
        let leases: Vec<_> = (0..800)
            .map(|number| pools[number % 16].next(&[], &[], Aim::Anywhere).expect("an endpoint").lease())
            .collect();
        let active: Vec<_> = backend.endpoints().healths.iter().map(|health| health.active()).collect();
        assert_eq!(active.iter().sum::<u32>(), 800);
        assert!(active.iter().all(|count| (76..=84).contains(count)), "80 each: {active:?}");
        drop(leases);
    });
}
