//! Hosts that may be asked only so often: others are asked in their place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::RETRY_AFTER;

use super::scripted::{Scripted, backend, get, local, local_paused, pools, refused, whole};
use crate::expression::{Expression, Kind, REQUEST};
use crate::message::ErrorKind;
use crate::route_map::{
    Address, BackendTarget, Balance, Endpoint, EndpointSet, HostHeader, RatePlan, TrafficPlan,
};
use crate::telemetry::Telemetry;
use crate::upstream::balance::BackendPool;
use crate::upstream::throttle::Charges;
use crate::upstream::{Aim, Backend, Bucket, Counted, Guard, Loopback, SendLimits, Together};
use crate::values::Rate;

const HOUR: Duration = Duration::from_secs(3600);
/// So many requests an hour a host.
const SHARE: u64 = 2;
const HALF: Duration = Duration::from_secs(1800);

fn traffic(balance: Balance) -> TrafficPlan {
    let rate = Rate::new(SHARE, HOUR, SHARE).expect("in range");
    let rate = RatePlan { rate, requests: SHARE, per: HOUR, burst: SHARE, shared: false };
    let key = (balance == Balance::ConsistentHash)
        .then(|| Expression::parse("request.path", &REQUEST, Kind::ANY).expect("a key"));
    TrafficPlan { balance, key, rate: Some(rate), ..TrafficPlan::default() }
}

type By = (Arc<Bucket>, Option<Arc<dyn Together>>);

/// A backend of these hosts at these endpoints.
fn limited(
    hosts: Vec<(Address, u16)>,
    endpoints: Vec<Endpoint>,
    balance: Balance,
    by: impl FnMut(Option<&str>) -> By,
) -> Arc<Backend> {
    let mut plan = (*backend(&[], HostHeader::Preserve).plan).clone();
    (plan.target, plan.traffic) = (BackendTarget::Hosts(hosts), traffic(balance));
    let backend = Backend::new(Arc::new(plan), 0, Telemetry::new(1).backend("pay")).counted(by);
    backend.set_endpoints(EndpointSet { endpoints, known: true, ..EndpointSet::default() });
    Arc::new(backend)
}

fn alone(_: Option<&str>) -> By {
    (Arc::default(), None)
}

/// A host an address.
fn at(addresses: &[SocketAddr], balance: Balance) -> Arc<Backend> {
    let hosts = addresses.iter().map(|address| (Address::Ip(address.ip()), address.port())).collect();
    limited(hosts, addresses.iter().map(|address| Endpoint::from(*address)).collect(), balance, alone)
}

fn three() -> Vec<SocketAddr> {
    (1..=3).map(|at| SocketAddr::from(([127, 0, 4, at], 80))).collect()
}

fn worker(backend: &Arc<Backend>) -> Rc<BackendPool> {
    BackendPool::new(backend, (0, None), 7, &Guard::new(Loopback::Allowed))
}

/// What one request does: where it is charged, or how long it would have to wait.
async fn ask(pool: &BackendPool, aim: Aim) -> Result<SocketAddr, Duration> {
    let charges = Charges::default();
    let endpoint = pool.choose(&[], &[], aim, &charges)?.expect("an endpoint");
    assert!(charges.pay(endpoint.counter.as_ref().expect("it is counted")).await);
    Ok(endpoint.address)
}

#[test]
fn by_every_policy_a_host_that_had_its_share_is_passed_over_while_others_have_theirs() {
    local_paused(async {
        let policies = [
            (Balance::RoundRobin, Aim::Anywhere),
            (Balance::Random, Aim::Anywhere),
            (Balance::LeastRequest, Aim::Anywhere),
            (Balance::PeakEwma, Aim::Anywhere),
            (Balance::ConsistentHash, Aim::Key(7)),
        ];
        for (balance, aim) in policies {
            let (all, mut asked) = (three(), BTreeMap::<_, u64>::new());
            let backend = at(&all, balance);
            let pool = worker(&backend);
            for _ in 0..3 * SHARE {
                *asked.entry(ask(&pool, aim).await.expect("room")).or_default() += 1;
            }
            assert_eq!(asked, all.iter().map(|host| (*host, SHARE)).collect(), "{balance:?}");
            assert_eq!(ask(&pool, aim).await, Err(HALF), "{balance:?}");
            tokio::time::advance(HALF).await;
            assert!(ask(&pool, aim).await.is_ok(), "{balance:?}");
        }
    });
}

#[test]
fn the_wait_is_that_of_who_has_room_first_and_a_session_waits_for_its_own() {
    local_paused(async {
        let backend = at(&three(), Balance::RoundRobin);
        let pool = worker(&backend);
        let mark = |pool: &BackendPool, of: SocketAddr| {
            let others: Vec<_> = three().into_iter().filter(|other| *other != of).collect();
            pool.next(&others, &[], Aim::Anywhere).expect("it is there").mark
        };
        let session = Aim::Endpoint(mark(&pool, three()[1]));
        let seated = pool.next(&[], &[], Aim::Seat(5)).expect("one").address;
        for _ in 0..SHARE {
            assert_eq!(ask(&pool, session).await, Ok(three()[1]));
        }
        assert_eq!(ask(&pool, session).await, Err(HALF), "it does not move");
        tokio::time::advance(HALF / 3).await;
        while ask(&pool, Aim::Seat(5)).await == Ok(seated) {}
        assert!(ask(&pool, Aim::Seat(5)).await.is_err(), "nor does one by its number");
        while ask(&pool, Aim::Anywhere).await.is_ok() {}
        assert_eq!(ask(&pool, Aim::Anywhere).await, Err(HALF * 2 / 3), "the session's host was asked first");
        // One whose endpoint has gone goes anywhere.
        let backend = at(&three()[..1], Balance::RoundRobin);
        assert_eq!(ask(&worker(&backend), session).await, Ok(three()[0]));
    });
}

#[test]
fn all_addresses_of_a_name_are_one_host_and_what_was_counted_is_kept_by_it() {
    local_paused(async {
        let all = three();
        let endpoint = |at: usize, name: &str| Endpoint { address: all[at], name: Some(name.into()) };
        let hosts = vec![(Address::Name("a.test.".into()), 80), (Address::Name("b.test".into()), 80)];
        let endpoints = || vec![endpoint(0, "a.test"), endpoint(1, "a.test"), endpoint(2, "b.test")];
        let mut kept = BTreeMap::<String, Arc<Bucket>>::new();
        let mut by = |host: Option<&str>| {
            (Arc::clone(kept.entry(host.expect("a host").to_owned()).or_default()), None)
        };
        let backend = limited(hosts.clone(), endpoints(), Balance::RoundRobin, &mut by);
        let pool = worker(&backend);
        let mut asked = BTreeMap::<_, u64>::new();
        while let Ok(address) = ask(&pool, Aim::Anywhere).await {
            *asked.entry(address).or_default() += 1;
        }
        let of = |at: usize| asked.get(&all[at]).copied().unwrap_or(0);
        assert_eq!((of(0) + of(1), of(2)), (SHARE, SHARE));
        // Another plan of the same hosts, and one more.
        let more = [hosts, vec![(Address::Ip(all[0].ip()), 80)]].concat();
        let endpoints = [endpoints(), vec![Endpoint::from(all[0])]].concat();
        let backend = limited(more, endpoints, Balance::RoundRobin, &mut by);
        let pool = worker(&backend);
        let mut asked = 0;
        while let Ok(address) = ask(&pool, Aim::Anywhere).await {
            assert_eq!(address, all[0]);
            asked += 1;
        }
        assert_eq!(asked, SHARE);
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["127.0.4.1:80", "a.test.:80", "b.test:80"]);
    });
}

#[test]
fn a_request_is_charged_to_the_host_that_it_is_sent_to() {
    local(async {
        let (one, other) = (Scripted::answering().await, Scripted::answering().await);
        let dead = refused().await;
        let backend = at(&[one.address, other.address, dead], Balance::RoundRobin);
        let pools = pools();
        for _ in 0..2 * SHARE {
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        }
        assert_eq!((one.requests() as u64, other.requests() as u64), (SHARE, SHARE));
        // What cannot be connected to has a share still, and is no use.
        let refusal = pools.send(&backend, get(), None, SendLimits::default()).await.expect_err("no room");
        assert_eq!(refusal.kind, ErrorKind::Overloaded);
        let (name, seconds) = &refusal.headers[0];
        let seconds: u64 = seconds.to_str().expect("text").parse().expect("a number");
        assert!(*name == RETRY_AFTER && (1700..=1800).contains(&seconds), "{seconds}");
        assert_eq!(backend.stats.requests(), 2 * SHARE, "it was not sent");
        assert_eq!((one.requests() as u64, other.requests() as u64), (SHARE, SHARE));
    });
}

/// Counts who asks, and has nothing left for anybody.
#[derive(Debug, Default)]
struct Empty(AtomicU64);

impl Together for Empty {
    fn charge(&self) -> Option<std::pin::Pin<Box<dyn Future<Output = Option<Counted>>>>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Some(Box::pin(std::future::ready(Some(Err(HOUR)))))
    }
}

#[test]
fn who_is_refused_by_all_replicas_together_goes_elsewhere_by_the_same_try() {
    local(async {
        let (one, other) = (Scripted::answering().await, Scripted::answering().await);
        let hosts: Vec<_> =
            [&one, &other].map(|host| (Address::Ip(host.address.ip()), host.address.port())).into();
        let (empty, full) = (Arc::new(Empty::default()), format!("127.0.0.1:{}", one.address.port()));
        let by = |host: Option<&str>| -> By {
            let together = (host == Some(&full)).then(|| -> Arc<dyn Together> { empty.clone() });
            (Arc::default(), together)
        };
        let endpoints = vec![one.address.into(), other.address.into()];
        let backend = limited(hosts, endpoints, Balance::RoundRobin, by);
        let pools = pools();
        for _ in 0..SHARE {
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        }
        assert_eq!((one.requests() as u64, other.requests() as u64), (0, SHARE));
        assert!(pools.send(&backend, get(), None, SendLimits::default()).await.is_err());
        assert_eq!(empty.0.load(Ordering::Relaxed), 1, "what it said is remembered");
    });
}
