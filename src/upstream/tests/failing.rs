//! One of ten endpoints becomes slow, or dies, under a thousand requests a second: what clients see of it, and how soon
//! it gets no more requests.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep, sleep_until};

use super::scripted::{OK, backend_with, get, head, local_paused};
use crate::route_map::{Balance, EjectionPlan, HostHeader, RetryPlan, TrafficPlan};
use crate::upstream::balance::mix;
use crate::upstream::{Backend, Guard, Loopback, Pools, SendLimits, Tries};

const ENDPOINTS: usize = 10;
const RATE: u64 = 1000;
/// It goes wrong at this second.
const FAULT: u64 = 4;
const END: u64 = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Answers take 300 ms more.
    Slow,
    /// What is sent to it is never answered.
    Dead,
    /// Nothing listens there any longer, and what was open is closed.
    Gone,
}

/// An endpoint that answers within 5 to 15 ms until it is told else.
struct Endpoint {
    address: SocketAddr,
    fault: Rc<Cell<Fault>>,
    asked: Rc<RefCell<Vec<Instant>>>,
}

impl Endpoint {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let (fault, asked) = (Rc::new(Cell::new(Fault::None)), Rc::<RefCell<Vec<Instant>>>::default());
        let endpoint = Self { address, fault: Rc::clone(&fault), asked: Rc::clone(&asked) };
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (fault, asked) = (Rc::clone(&fault), Rc::clone(&asked));
                if fault.get() == Fault::Gone {
                    continue;
                }
                tokio::task::spawn_local(async move {
                    while head(&mut stream).await.is_some() {
                        asked.borrow_mut().push(Instant::now());
                        let number = asked.borrow().len() as u64;
                        sleep(Duration::from_millis(5 + mix(number) % 11)).await;
                        match fault.get() {
                            Fault::None => {}
                            Fault::Slow => sleep(Duration::from_millis(300)).await,
                            Fault::Dead => std::future::pending().await,
                            Fault::Gone => return,
                        }
                        if stream.write_all(OK.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        endpoint
    }
}

#[derive(Default)]
struct Seen {
    /// Milliseconds, before the fault and after.
    took: [Vec<u128>; 2],
    failed: usize,
}

impl Seen {
    fn p99(&self, when: usize) -> u128 {
        let mut took = self.took[when].clone();
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }
}

async fn one(pools: &Pools, backend: &Arc<Backend>) -> bool {
    let plan = RetryPlan {
        attempts: 2,
        codes: Box::new([]),
        grpc_codes: Box::new([]),
        backoff: Duration::from_millis(5),
        budget_percent: 20,
        non_idempotent: false,
    };
    let count = Cell::default();
    let tries = Tries::counted_in(&count);
    let limits = SendLimits { one_try: Some(Duration::from_millis(500)), ..SendLimits::default() };
    match pools.send_retrying(backend, get(), None, limits, &plan, &tries).await {
        Ok(answer) => answer.response.into_body().read(100).await.is_ok(),
        Err(_) => false,
    }
}

/// What clients saw, and how many requests the endpoint got later than two seconds after it went wrong.
async fn run(balance: Balance, fault: Fault) -> (Seen, usize) {
    let endpoints = futures_util::future::join_all((0..ENDPOINTS).map(|_| Endpoint::start())).await;
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    let plan = EjectionPlan {
        consecutive_errors: 5,
        least_success: None,
        eject_for: Duration::from_secs(30),
        max_percent: 50,
    };
    let traffic = TrafficPlan { balance, ejection: Some(plan), ..TrafficPlan::default() };
    let backend = backend_with(&addresses, HostHeader::Preserve, traffic);
    let workers: Vec<_> =
        (0..16).map(|seed| Pools::new(0, 1000 + seed, Guard::new(Loopback::Allowed))).collect();
    let (begun, seen) = (Instant::now(), Rc::<RefCell<Seen>>::default());
    let at = begun + Duration::from_secs(FAULT);
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..END * RATE {
        let due = begun + Duration::from_micros(number * 1_000_000 / RATE);
        sleep_until(due).await;
        if due >= at {
            endpoints[0].fault.set(fault);
        }
        let pools = Rc::clone(&workers[(mix(number) % 16) as usize]);
        let (backend, seen) = (Arc::clone(&backend), Rc::clone(&seen));
        requests.spawn_local(async move {
            let is_answered = one(&pools, &backend).await;
            let mut seen = seen.borrow_mut();
            seen.failed += usize::from(!is_answered);
            // The first second opens connections.
            if due >= begun + Duration::from_secs(1) {
                seen.took[usize::from(due >= at)].push(due.elapsed().as_millis());
            }
        });
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
    let late =
        endpoints[0].asked.borrow().iter().filter(|asked| **asked > at + Duration::from_secs(2)).count();
    (seen.take(), late)
}

#[test]
fn one_of_ten_that_fails_is_left_alone_within_two_seconds_and_hardly_noticed() {
    local_paused(async {
        for (balance, fault) in [
            // Who answers late is told apart from others by those policies alone that look.
            (Balance::PeakEwma, Fault::Slow),
            (Balance::PeakEwma, Fault::Dead),
            (Balance::LeastRequest, Fault::Dead),
            (Balance::RoundRobin, Fault::Dead),
            (Balance::RoundRobin, Fault::Gone),
        ] {
            let (seen, late) = run(balance, fault).await;
            let (before, after) = (seen.p99(0), seen.p99(1));
            println!(
                "{balance:?} {fault:?}: p99 {before} ms, then {after} ms; {late} requests after 2 s; {} failed",
                seen.failed
            );
            assert!(after * 100 < before * 120, "{balance:?} {fault:?}: p99 {before} ms, then {after} ms");
            // To find out whether it is back, now and then.
            let share = (END - FAULT - 2) * RATE / ENDPOINTS as u64;
            assert!((late as u64) * 100 <= share, "{balance:?} {fault:?}: {late} of a share of {share}");
            assert_eq!(seen.failed, 0, "{balance:?} {fault:?}");
        }
    });
}

/// The control: without anything that looks, the slow one has its tenth and p99 is its time.
#[test]
fn turns_alone_notice_nothing() {
    local_paused(async {
        let (seen, late) = run(Balance::RoundRobin, Fault::Slow).await;
        assert!(seen.p99(1) > 300 && late > 500, "{} ms, {late} requests", seen.p99(1));
    });
}
