//! Where requests with a key go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::scripted::{backend_with, local_paused, set};
use crate::expression::{Expression, Kind, REQUEST};
use crate::route_map::{Balance, EjectionPlan, HostHeader, TrafficPlan};
use crate::upstream::balance::{BackendPool, mix};
use crate::upstream::{Aim, Backend, Guard, Loopback};

const KEYS: u64 = 20_000;

fn hashed(addresses: &[SocketAddr]) -> Arc<Backend> {
    let plan = EjectionPlan {
        consecutive_errors: 3,
        least_success: None,
        eject_for: Duration::from_secs(30),
        max_percent: 100,
    };
    let traffic = TrafficPlan {
        balance: Balance::ConsistentHash,
        key: Some(Expression::parse("request.path", &REQUEST, Kind::ANY).expect("a key")),
        ejection: Some(plan),
        ..TrafficPlan::default()
    };
    backend_with(addresses, HostHeader::Preserve, traffic)
}

fn addresses(count: u8) -> Vec<SocketAddr> {
    (0..count).map(|at| SocketAddr::from(([127, 0, 1, at], 8080))).collect()
}

fn worker(backend: &Arc<Backend>, seed: u64) -> Rc<BackendPool> {
    BackendPool::new(backend, (0, None), seed, &Guard::new(Loopback::Allowed))
}

fn all_keys(pool: &BackendPool) -> BTreeMap<u64, SocketAddr> {
    let of = |key: u64| pool.next(&[], &[], Aim::Key(mix(key))).expect("an endpoint").address;
    (0..KEYS).map(|key| (key, of(key))).collect()
}

fn eject(backend: &Backend, address: SocketAddr) {
    let plan = backend.plan.traffic.ejection.as_ref().expect("given");
    let all = backend.endpoints();
    all.healths.iter().find(|health| health.address == address).expect("known").eject(plan);
}

#[test]
fn a_key_has_one_endpoint_on_all_workers_and_keys_are_spread_evenly() {
    local_paused(async {
        let backend = hashed(&addresses(10));
        let first = all_keys(&worker(&backend, 1));
        for seed in 2..16 {
            assert_eq!(all_keys(&worker(&backend, seed)), first);
        }
        let counts = first.values().fold(BTreeMap::<_, u64>::new(), |mut counts, address| {
            *counts.entry(*address).or_default() += 1;
            counts
        });
        let fair = KEYS / 10;
        assert!(
            counts.len() == 10 && counts.values().all(|count| count.abs_diff(fair) * 100 <= fair * 10),
            "{counts:?}"
        );
    });
}

#[test]
fn the_keys_of_an_ejected_endpoint_go_to_all_others_come_back_in_steps_and_no_other_key_moves() {
    local_paused(async {
        let all = addresses(10);
        let backend = hashed(&all);
        let pool = worker(&backend, 1);
        let before = all_keys(&pool);
        eject(&backend, all[3]);
        let during = all_keys(&pool);
        let moved: BTreeMap<_, _> = during.iter().filter(|(key, at)| before[key] != **at).collect();
        assert!(moved.keys().all(|key| before[key] == all[3]), "only its own keys move");
        assert_eq!(moved.len(), before.values().filter(|at| **at == all[3]).count(), "and all of them");
        assert_eq!(moved.values().collect::<BTreeSet<_>>().len(), 9, "to all others");
        tokio::time::advance(Duration::from_secs(35)).await;
        let back = all_keys(&pool);
        let (own, still) = (moved.len(), back.iter().filter(|(key, at)| before[key] != **at).count());
        assert!((own / 4..own * 3 / 4).contains(&still), "half way: {still} of {own}");
        assert!(back.iter().all(|(key, at)| *at == before[key] || *at == during[key]));
        assert_eq!(all_keys(&pool), back, "a key that is back stays");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(all_keys(&pool), before);
    });
}

#[test]
fn an_endpoint_that_leaves_or_comes_moves_about_its_own_share() {
    local_paused(async {
        let all = addresses(20);
        let backend = hashed(&all);
        let pool = worker(&backend, 1);
        let before = all_keys(&pool);
        backend.set_endpoints(set(&all[1..]));
        pool.refresh(&backend);
        let after = all_keys(&pool);
        let moved = after.iter().filter(|(key, at)| before[key] != **at).count() as u64;
        assert!((KEYS / 22..KEYS / 20 * 3 / 2).contains(&moved), "{moved} of {KEYS}");
        backend.set_endpoints(set(&all));
        pool.refresh(&backend);
        assert_eq!(all_keys(&pool), before, "what it was before is told by the endpoints alone");
    });
}

#[test]
fn who_was_tried_is_passed_over_always_for_the_same_next_one() {
    local_paused(async {
        let all = addresses(5);
        let backend = hashed(&all);
        let (one, two) = (worker(&backend, 1), worker(&backend, 2));
        let mut heirs = BTreeSet::new();
        for key in 0..200 {
            let aim = Aim::Key(mix(key));
            let first = one.next(&[], &[], aim).expect("an endpoint").address;
            let next = |pool: &BackendPool| pool.next(&[first], &[], aim).expect("another").address;
            assert_ne!(next(&one), first);
            assert_eq!(next(&one), next(&two));
            heirs.insert((first, next(&one)));
        }
        assert_eq!(heirs.len(), 20, "each endpoint's keys have all others for heirs");
    });
}

#[test]
fn without_a_key_requests_take_turns_and_an_unfit_rest_is_asked_all_the_same() {
    local_paused(async {
        let all = addresses(4);
        let backend = hashed(&all);
        let pool = worker(&backend, 1);
        let mut turns: Vec<_> =
            (0..8).map(|_| pool.next(&[], &[], Aim::Anywhere).expect("one").address).collect();
        assert_eq!(turns[..4], turns[4..]);
        turns.sort_unstable();
        turns.dedup();
        assert_eq!(turns, all);
        all.iter().for_each(|address| eject(&backend, *address));
        assert!(pool.next(&[], &[], Aim::Key(7)).is_some());
        assert!(pool.next(&all, &[], Aim::Key(7)).is_none(), "but none that was tried");
    });
}
