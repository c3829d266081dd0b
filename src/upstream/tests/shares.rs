//! Endpoints that get less than others: new ones, and those of other zones.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::scripted::{backend_with, local_paused, set};
use crate::route_map::{Balance, EjectionPlan, EndpointSet, HostHeader, TrafficPlan};
use crate::upstream::balance::BackendPool;
use crate::upstream::{Aim, Backend, Guard, Loopback};

const ASKED: usize = 20_000;
const POLICIES: [Balance; 4] =
    [Balance::RoundRobin, Balance::Random, Balance::LeastRequest, Balance::PeakEwma];

fn addresses(count: u8) -> Vec<SocketAddr> {
    (1..=count).map(|at| SocketAddr::from(([127, 0, 3, at], 80))).collect()
}

fn plan(balance: Balance) -> TrafficPlan {
    let plan = EjectionPlan {
        consecutive_errors: 1,
        least_success: None,
        eject_for: Duration::from_secs(30),
        max_percent: 100,
    };
    TrafficPlan { balance, ejection: Some(plan), ..TrafficPlan::default() }
}

fn worker(backend: &Arc<Backend>) -> Rc<BackendPool> {
    BackendPool::new(backend, (0, None), 7, &Guard::new(Loopback::Allowed))
}

/// How many of a hundred each gets.
fn shares(pool: &BackendPool) -> BTreeMap<SocketAddr, f64> {
    let mut shares = BTreeMap::<_, f64>::new();
    for _ in 0..ASKED {
        let endpoint = pool.next(&[], &[], Aim::Anywhere).expect("an endpoint");
        *shares.entry(endpoint.address).or_default() += 100.0 / ASKED as f64;
    }
    shares
}

fn eject(backend: &Backend, address: SocketAddr) {
    let health = backend.endpoints().healths.iter().find(|health| health.address == address).cloned();
    backend.failed(&health.expect("known"));
}

fn is_about(share: f64, expected: f64) -> bool {
    (share - expected).abs() < expected * 0.15 + 0.2
}

#[test]
fn a_new_endpoint_gets_its_share_by_and_by_and_all_others_the_rest_alike() {
    local_paused(async {
        for balance in POLICIES {
            let all = addresses(5);
            let traffic = TrafficPlan { slow_start: Some(Duration::from_secs(30)), ..plan(balance) };
            let backend = backend_with(&all[..4], HostHeader::Preserve, traffic);
            let pool = worker(&backend);
            assert!(shares(&pool).values().all(|share| is_about(*share, 25.0)), "who was there is not new");
            backend.set_endpoints(set(&all));
            pool.refresh(&backend);
            // In hundredths of a full share, less than a chance to be met twice.
            for (seconds, least, most) in [(0, 1.0, 3.5), (15, 9.0, 15.0), (16, 18.0, 22.0)] {
                tokio::time::advance(Duration::from_secs(seconds)).await;
                let shares = shares(&pool);
                let new = shares[&all[4]];
                assert!((least..most).contains(&new), "{balance:?} after {seconds} s more: {new}");
                let rest = (100.0 - new) / 4.0;
                assert!(all[..4].iter().all(|one| is_about(shares[one], rest)), "{balance:?}: {shares:?}");
            }
        }
    });
}

#[test]
fn who_leaves_and_comes_back_warms_up_again_and_a_changed_plan_warms_nobody() {
    local_paused(async {
        let all = addresses(4);
        let traffic =
            TrafficPlan { slow_start: Some(Duration::from_secs(30)), ..plan(Balance::LeastRequest) };
        let backend = backend_with(&all, HostHeader::Preserve, traffic);
        let pool = worker(&backend);
        backend.set_endpoints(set(&all[1..]));
        backend.set_endpoints(set(&all));
        pool.refresh(&backend);
        assert!(shares(&pool)[&all[0]] < 4.0);
        tokio::time::advance(Duration::from_secs(31)).await;
        let mut changed = (*backend.plan).clone();
        changed.traffic.max_requests = Some(10);
        let after = Arc::new(Backend::after(&backend, Arc::new(changed)));
        after.set_endpoints(set(&all));
        assert!(shares(&worker(&after)).values().all(|share| is_about(*share, 25.0)));
    });
}

#[test]
fn without_a_word_about_it_a_new_endpoint_has_all_of_its_share_at_once() {
    local_paused(async {
        let all = addresses(4);
        let backend = backend_with(&all[..2], HostHeader::Preserve, plan(Balance::RoundRobin));
        backend.set_endpoints(set(&all));
        assert!(shares(&worker(&backend)).values().all(|share| is_about(*share, 25.0)));
    });
}

fn zoned(all: &[SocketAddr], near: usize) -> EndpointSet {
    EndpointSet { near: all[..near].to_vec(), ..set(all) }
}

#[test]
fn requests_stay_near_and_go_elsewhere_as_far_as_what_is_near_is_too_little() {
    local_paused(async {
        for balance in POLICIES {
            let all = addresses(10);
            let backend = backend_with(&[], HostHeader::Preserve, plan(balance));
            backend.set_endpoints(zoned(&all, 4));
            let pool = worker(&backend);
            let near = |shares: &BTreeMap<SocketAddr, f64>| {
                all[..4].iter().filter_map(|one| shares.get(one)).sum::<f64>()
            };
            let first = shares(&pool);
            assert!(first.len() == 4 && first.values().all(|share| is_about(*share, 25.0)), "{first:?}");
            // Three of four bear it all.
            eject(&backend, all[0]);
            let second = shares(&pool);
            assert!(second.len() == 3 && is_about(near(&second), 100.0), "{balance:?}: {second:?}");
            // Two of four bear 50 of 70.
            eject(&backend, all[1]);
            let third = shares(&pool);
            assert!(is_about(near(&third), 71.0), "{balance:?}: {third:?}");
            assert!(all[4..].iter().all(|one| is_about(third[one], 29.0 / 6.0)), "{balance:?}: {third:?}");
            eject(&backend, all[2]);
            eject(&backend, all[3]);
            let last = shares(&pool);
            assert!(last.len() == 6 && near(&last) == 0.0, "{balance:?}: {last:?}");
        }
    });
}

#[test]
fn without_anything_near_zones_are_all_the_same_and_nothing_is_lost_if_all_is_near() {
    local_paused(async {
        let all = addresses(4);
        for near in [0, 4] {
            let backend = backend_with(&[], HostHeader::Preserve, plan(Balance::RoundRobin));
            backend.set_endpoints(zoned(&all, near));
            let pool = worker(&backend);
            assert!(shares(&pool).values().all(|share| is_about(*share, 25.0)));
            all.iter().for_each(|one| eject(&backend, *one));
            assert!(pool.next(&[], &[], Aim::Anywhere).is_some(), "one of them may be back");
        }
    });
}

#[test]
fn with_fewer_fit_endpoints_than_the_plan_says_all_are_asked() {
    local_paused(async {
        for (panic_percent, asked) in [(50, 10), (40, 4), (0, 4)] {
            let all = addresses(10);
            let traffic = TrafficPlan { panic_percent, ..plan(Balance::RoundRobin) };
            let backend = backend_with(&all, HostHeader::Preserve, traffic);
            let pool = worker(&backend);
            all[..5].iter().for_each(|one| eject(&backend, *one));
            assert_eq!(shares(&pool).len(), 5, "half of them is not less than half");
            eject(&backend, all[5]);
            let shares = shares(&pool);
            assert_eq!((shares.len(), backend.is_in_panic()), (asked, asked == 10), "{panic_percent}");
            assert!(shares.values().all(|share| is_about(*share, 100.0 / asked as f64)), "{shares:?}");
        }
    });
}
