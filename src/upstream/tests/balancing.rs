//! How requests are spread over endpoints, and which are left alone.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::scripted::{
    OK, Scripted, Step, backend_with, get, kind, local, local_paused, pools, set, settle, whole,
};
use crate::message::ErrorKind;
use crate::route_map::{Balance, EjectionPlan, HostHeader, TrafficPlan};
use crate::upstream::{Backend, Guard, Loopback, Pools, SendLimits};

const ERROR: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";

fn balanced(balance: Balance) -> TrafficPlan {
    TrafficPlan { balance, ..TrafficPlan::default() }
}

fn ejecting(max_percent: u8) -> TrafficPlan {
    let plan = EjectionPlan {
        consecutive_errors: 3,
        least_success: None,
        eject_for: Duration::from_secs(30),
        max_percent,
    };
    TrafficPlan { ejection: Some(plan), ..TrafficPlan::default() }
}

async fn servers(count: usize, script: super::scripted::Script) -> Vec<Scripted> {
    futures_util::future::join_all((0..count).map(|_| Scripted::start(script))).await
}

fn before(servers: &[&Scripted], traffic: TrafficPlan) -> Arc<Backend> {
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    backend_with(&addresses, HostHeader::Preserve, traffic)
}

/// So many requests, one after the other; how many went wrong.
async fn ask(pools: &Pools, backend: &Arc<Backend>, count: usize) -> usize {
    let mut errors = 0;
    for _ in 0..count {
        let answer = pools.send(backend, get(), None, SendLimits::default()).await.expect("an answer");
        errors += usize::from(answer.response.status() != 200);
        answer.response.into_body().read(100).await.expect("whole");
    }
    errors
}

#[test]
fn sixteen_workers_that_take_turns_or_chances_spread_requests_evenly() {
    local(async {
        for (balance, most_off) in
            [(Balance::RoundRobin, 5), (Balance::Random, 15), (Balance::LeastRequest, 15)]
        {
            let servers = servers(5, |_| vec![Step::Answer(OK)]).await;
            let backend = before(&servers.iter().collect::<Vec<_>>(), balanced(balance));
            for worker in 0..16 {
                let pools = Pools::new(0, 1000 + worker, Guard::new(Loopback::Allowed));
                ask(&pools, &backend, 100).await;
            }
            let (mean, all) = (1600 / 5, servers.iter().map(Scripted::requests).collect::<Vec<_>>());
            let worst = all.iter().map(|count| count.abs_diff(mean) * 100 / mean).max();
            assert!(worst <= Some(most_off), "{balance:?}: {all:?}");
        }
    });
}

#[test]
fn an_endpoint_that_is_slow_gets_fewer_requests() {
    local_paused(async {
        for (balance, fewer) in
            [(Balance::RoundRobin, false), (Balance::LeastRequest, true), (Balance::PeakEwma, true)]
        {
            let (quick, slow) =
                (lagging(Duration::from_millis(1)).await, lagging(Duration::from_millis(100)).await);
            let addresses = [quick.0, slow.0];
            let backend = backend_with(&addresses, HostHeader::Preserve, balanced(balance));
            let pools = pools();
            let client = async {
                for _ in 0..50 {
                    whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
                }
            };
            futures_util::future::join4(
                client,
                ask_more(&pools, &backend),
                ask_more(&pools, &backend),
                ask_more(&pools, &backend),
            )
            .await;
            let (quick, slow) = (*quick.1.borrow(), *slow.1.borrow());
            assert_eq!(quick + slow, 200);
            assert_eq!(slow < 60, fewer, "{balance:?}: {quick} and {slow}");
        }
    });
}

async fn ask_more(pools: &Pools, backend: &Arc<Backend>) {
    assert_eq!(ask(pools, backend, 50).await, 0);
}

/// A backend that answers after this time; its address, and how many it answered.
async fn lagging(time: Duration) -> (std::net::SocketAddr, Rc<RefCell<usize>>) {
    use tokio::io::AsyncWriteExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let (address, count) = (listener.local_addr().expect("bound"), Rc::<RefCell<usize>>::default());
    let answered = count.clone();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answered = answered.clone();
            tokio::task::spawn_local(async move {
                while super::scripted::head(&mut stream).await.is_some() {
                    sleep(time).await;
                    *answered.borrow_mut() += 1;
                    stream.write_all(OK.as_bytes()).await.unwrap_or_default();
                }
            });
        }
    });
    (address, count)
}

#[test]
fn an_endpoint_that_fails_again_and_again_is_left_alone_and_comes_back_in_steps() {
    local_paused(async {
        // Mended by the time of the second connection.
        let bad = Scripted::start(|number| vec![Step::Answer(if number == 0 { ERROR } else { OK })]).await;
        let good = Scripted::answering().await;
        let (pools, backend) = (pools(), before(&[&bad, &good], ejecting(50)));
        assert_eq!(ask(&pools, &backend, 20).await, 3, "three errors, then no more");
        assert_eq!(bad.requests(), 3);
        sleep(Duration::from_secs(29)).await;
        assert_eq!(backend.stats.totals().expect("counted").ejected, 1);
        assert_eq!(ask(&pools, &backend, 20).await, 0);
        assert_eq!(bad.requests(), 3);
        sleep(Duration::from_secs(2)).await;
        ask(&pools, &backend, 100).await;
        let first = bad.requests() - 3;
        assert!((1..40).contains(&first), "a share of its share: {first}");
        sleep(Duration::from_secs(12)).await;
        ask(&pools, &backend, 100).await;
        assert_eq!(bad.requests() - 3 - first, 50);
        let totals = backend.stats.totals().expect("counted");
        assert_eq!((totals.ejected, totals.ejections), (0, 1));
    });
}

#[test]
fn an_endpoint_that_fails_often_and_never_in_a_row_is_left_alone_where_the_plan_looks_at_that() {
    local_paused(async {
        for (least, is_ejected) in [(None, false), (Some(50), false), (Some(70), true)] {
            let good = Scripted::answering().await;
            let third = Scripted::start(|_| {
                let step = |number| Step::Answer(if number % 3 == 2 { ERROR } else { OK });
                (0..600).map(step).collect()
            });
            let third = third.await;
            let mut traffic = ejecting(50);
            traffic.ejection.as_mut().expect("given").least_success = least;
            let backend = before(&[&good, &third], traffic);
            let pools = pools();
            let errors = ask(&pools, &backend, 200).await;
            assert_eq!(third.requests() < 40, is_ejected, "{least:?}: {}", third.requests());
            assert_eq!(good.requests() + third.requests(), 200);
            assert_eq!(errors, third.requests() / 3, "{least:?}");
            let totals = backend.stats.totals().expect("counted");
            assert_eq!(totals.ejections, u64::from(is_ejected));
        }
    });
}

#[test]
fn without_a_word_about_it_nothing_is_ejected() {
    local(async {
        let bad = Scripted::start(|_| vec![Step::Answer(ERROR)]).await;
        let good = Scripted::answering().await;
        let backend = before(&[&bad, &good], TrafficPlan::default());
        assert_eq!(ask(&pools(), &backend, 20).await, 10);
    });
}

#[test]
fn a_share_of_the_endpoints_stays_whatever_they_answer() {
    local(async {
        for (percent, ejections) in [(0, 0), (50, 2), (75, 3), (100, 4)] {
            let bad = servers(4, |_| vec![Step::Answer(ERROR)]).await;
            let backend = before(&bad.iter().collect::<Vec<_>>(), ejecting(percent));
            assert_eq!(ask(&pools(), &backend, 100).await, 100, "somebody is asked");
            assert_eq!(backend.stats.totals().expect("counted").ejections, ejections, "{percent}%");
        }
    });
}

#[test]
fn silence_and_closed_doors_count_as_failures() {
    local(async {
        for step in [Step::Close, Step::Silence] {
            let script: super::scripted::Script = match step {
                Step::Close => |_| vec![Step::Close],
                _ => |_| vec![Step::Silence],
            };
            let bad = Scripted::start(script).await;
            let good = Scripted::answering().await;
            let (pools, backend) = (pools(), before(&[&bad, &good], ejecting(50)));
            let limits = SendLimits { one_try: Some(Duration::from_secs(1)), ..SendLimits::default() };
            let mut errors = 0;
            for _ in 0..12 {
                let post = super::scripted::request(http::Method::POST, crate::message::Body::Empty);
                errors += usize::from(pools.send(&backend, post, None, limits).await.is_err());
            }
            assert_eq!(errors, 3);
            assert_eq!(backend.stats.totals().expect("counted").ejections, 1);
        }
    });
}

#[test]
fn who_closes_at_once_is_not_the_quickest() {
    local(async {
        let bad = Scripted::start(|_| vec![Step::Close]).await;
        let good = Scripted::answering().await;
        let (pools, backend) = (pools(), before(&[&bad, &good], balanced(Balance::PeakEwma)));
        let mut errors = 0;
        for _ in 0..100 {
            let post = super::scripted::request(http::Method::POST, crate::message::Body::Empty);
            match pools.send(&backend, post, None, SendLimits::default()).await {
                Ok(answer) => drop(answer.response.into_body().read(10).await.expect("whole")),
                Err(_) => errors += 1,
            }
        }
        assert!((1..5).contains(&errors), "{errors}");
    });
}

#[test]
fn requests_over_the_bound_are_told_at_once() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Silence]).await;
        let traffic = TrafficPlan { max_requests: Some(3), ..TrafficPlan::default() };
        let (pools, backend) = (pools(), before(&[&server], traffic));
        let mut waiting: Vec<_> =
            (0..3).map(|_| Box::pin(pools.send(&backend, get(), None, SendLimits::default()))).collect();
        for request in &mut waiting {
            assert!(futures_util::poll!(request).is_pending());
        }
        settle().await;
        let fourth = pools.send(&backend, get(), None, SendLimits::default()).await;
        assert_eq!(kind(fourth), ErrorKind::Overloaded);
        drop(waiting.pop());
        let mut next = Box::pin(pools.send(&backend, get(), None, SendLimits::default()));
        assert!(futures_util::poll!(&mut next).is_pending(), "there is room again");
    });
}

#[test]
fn a_slow_answer_is_forgiven_without_another() {
    local_paused(async {
        let once =
            Scripted::start(|number| vec![if number == 0 { Step::Close } else { Step::Answer(OK) }]).await;
        let good = Scripted::answering().await;
        let (pools, backend) = (pools(), before(&[&once, &good], balanced(Balance::PeakEwma)));
        while once.requests() == 0 {
            let post = super::scripted::request(http::Method::POST, crate::message::Body::Empty);
            if let Ok(answer) = pools.send(&backend, post, None, SendLimits::default()).await {
                answer.response.into_body().read(10).await.expect("whole");
            }
        }
        ask(&pools, &backend, 50).await;
        assert_eq!(once.requests(), 1, "the control: it is left alone at first");
        sleep(Duration::from_secs(11)).await;
        ask(&pools, &backend, 50).await;
        assert!(once.requests() > 1, "{}", once.requests());
    });
}

#[test]
fn who_fails_at_once_is_not_the_quickest() {
    local_paused(async {
        let bad = Scripted::start(|_| vec![Step::Answer(ERROR)]).await;
        let (good, _) = lagging(Duration::from_millis(100)).await;
        let backend = backend_with(&[bad.address, good], HostHeader::Preserve, balanced(Balance::PeakEwma));
        let errors = ask(&pools(), &backend, 100).await;
        assert!((1..10).contains(&errors), "{errors}");
    });
}

#[test]
fn an_ejected_endpoint_stays_ejected_while_its_address_and_its_plan_change() {
    local_paused(async {
        let bad = Scripted::start(|_| vec![Step::Answer(ERROR)]).await;
        let good = Scripted::answering().await;
        let (pools, backend) = (pools(), before(&[&bad, &good], ejecting(50)));
        assert_eq!(ask(&pools, &backend, 20).await, 3);
        // A name's addresses come and go.
        backend.set_endpoints(set(&[good.address]));
        assert_eq!(ask(&pools, &backend, 4).await, 0);
        backend.set_endpoints(set(&[bad.address, good.address]));
        assert_eq!(ask(&pools, &backend, 20).await, 0);
        let mut plan = (*backend.plan).clone();
        plan.traffic.max_requests = Some(10);
        let after = Arc::new(Backend::after(&backend, Arc::new(plan)));
        after.set_endpoints(set(&[bad.address, good.address]));
        assert_eq!(ask(&pools, &after, 20).await, 0);
        // A request of the map before does not take the pool away.
        assert_eq!(ask(&pools, &backend, 1).await, 0);
        let connections = good.connections();
        assert_eq!(ask(&pools, &after, 20).await, 0);
        assert_eq!((good.connections(), bad.requests()), (connections, 3));
        sleep(Duration::from_secs(31)).await;
        assert!(ask(&pools, &after, 100).await > 0, "the control: it is asked again in its time");
    });
}

#[test]
fn what_is_left_is_spread_evenly() {
    local(async {
        for balance in [Balance::Random, Balance::LeastRequest] {
            let servers = servers(10, |_| vec![Step::Answer(OK)]).await;
            let all: Vec<_> = servers.iter().collect();
            let backend = before(&all, TrafficPlan { balance, ..ejecting(50) });
            let plan = backend.plan.traffic.ejection.clone().expect("given");
            for health in &backend.endpoints().healths[..5] {
                health.eject(&plan);
            }
            ask(&pools(), &backend, 1000).await;
            let counts: Vec<_> = servers.iter().map(Scripted::requests).collect();
            assert!(counts[..5].iter().all(|count| *count == 0), "{counts:?}");
            assert!(counts[5..].iter().all(|count| (130..270).contains(count)), "{balance:?}: {counts:?}");
        }
    });
}

#[test]
fn who_had_no_time_is_not_to_blame() {
    local_paused(async {
        for (asked_for, ejected) in [(Duration::from_millis(50), 0), (Duration::from_secs(5), 1)] {
            let server = Scripted::start(|_| vec![Step::Silence]).await;
            let other = Scripted::start(|_| vec![Step::Silence]).await;
            let (pools, backend) = (pools(), before(&[&server, &other], ejecting(50)));
            for _ in 0..10 {
                let limits = SendLimits {
                    deadline: Some(tokio::time::Instant::now() + asked_for),
                    whole: Some(Duration::from_secs(30)),
                    ..SendLimits::default()
                };
                let post = super::scripted::request(http::Method::POST, crate::message::Body::Empty);
                assert_eq!(kind(pools.send(&backend, post, None, limits).await), ErrorKind::BackendTimeout);
            }
            assert_eq!(backend.stats.totals().expect("counted").ejections, ejected, "{asked_for:?}");
        }
    });
}
