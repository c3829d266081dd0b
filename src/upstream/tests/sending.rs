//! The way of a request to an endpoint: turns, fail-over, what is sent again and what is not.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::super::balance::BackendPool;
use super::super::eyeballs::Begin;
use super::scripted::{
    OK, Scripted, Step, backend, backend_with, get, kind, local, local_paused, pools, refused, request,
    settle, whole,
};
use crate::message::{Body, BodyError, ErrorKind, FixedHost};
use crate::route_map::{
    Address, BackendTarget, EjectionPlan, Endpoint, EndpointSet, HostHeader, TrafficPlan,
};
use crate::telemetry::Connect;
use crate::upstream::{Aim, Guard, Loopback, Pools, SendLimits};

#[test]
fn one_connection_serves_request_after_request() {
    local(async {
        let server = Scripted::answering().await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        for _ in 0..5 {
            let outcome = pools.send(&backend, get(), None, SendLimits::default()).await;
            assert_eq!(outcome.as_ref().expect("an answer").endpoint, server.address);
            assert_eq!(whole(outcome).await, "ok");
        }
        assert_eq!((server.connections(), server.requests()), (1, 5));
        assert_eq!(server.seen.borrow()[0][0], "GET /orders?page=2 HTTP/1.1\r\nhost: shop.test\r\n\r\n");
    });
}

#[test]
fn the_backends_name_replaces_host_unless_a_rule_set_it() {
    local(async {
        let server = Scripted::answering().await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Name("api.test".into())));
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        let mut fixed = get();
        fixed.extensions_mut().insert(FixedHost);
        whole(pools.send(&backend, fixed, None, SendLimits::default()).await).await;
        let hosts: Vec<_> =
            server.seen.borrow()[0].iter().map(|head| head.contains("host: api.test\r\n")).collect();
        assert_eq!(hosts, [true, false]);
    });
}

#[test]
fn each_endpoint_is_asked_under_its_own_name_and_one_without_under_the_clients() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK); 2]).await;
        let (pools, backend) = (pools(), backend(&[], HostHeader::Own));
        let named = |name: Option<&str>| Endpoint { address: server.address, name: name.map(Into::into) };
        // One server, three times: connections are not shared among names.
        let endpoints = vec![named(None), named(Some("one.test")), named(Some("two.test"))];
        backend.set_endpoints(EndpointSet { endpoints, known: true, ..EndpointSet::default() });
        for _ in 0..3 {
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        }
        for _ in 0..3 {
            let mut fixed = get();
            fixed.extensions_mut().insert(FixedHost);
            whole(pools.send(&backend, fixed, None, SendLimits::default()).await).await;
        }
        let mut hosts: Vec<_> = server.seen.borrow().iter().flatten().map(|head| host(head)).collect();
        hosts.sort();
        let own = |name: &str| format!("{name}:{}", server.address.port());
        let mut expected = vec!["shop.test".to_owned(); 4];
        expected.extend([own("one.test"), own("two.test")]);
        expected.sort();
        assert_eq!(hosts, expected);
    });
}

fn host(head: &str) -> String {
    let line = head.lines().find_map(|line| line.strip_prefix("host: "));
    line.expect("a request has a host").to_owned()
}

#[test]
fn a_kept_connection_that_closes_as_we_write_never_shows() {
    local(async {
        // The race: every first connection takes a second request and closes on it without a word.
        let server = Scripted::start(|number| match number {
            0 => vec![Step::Answer(OK), Step::Close],
            _ => vec![Step::Answer(OK)],
        })
        .await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        assert_eq!(whole(pools.send(&backend, get(), None, SendLimits::default()).await).await, "ok");
        assert_eq!(server.requests(), 3, "the second request was sent twice");
    });
}

#[test]
fn a_request_that_must_not_be_repeated_is_not() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK), Step::Close]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        let post = request(Method::POST, Body::Empty);
        assert_eq!(kind(pools.send(&backend, post, None, SendLimits::default()).await), ErrorKind::Reset);
        assert_eq!(server.requests(), 2);
    });
}

#[test]
fn a_streamed_body_that_was_begun_is_not_sent_twice() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK), Step::Close]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        let frames = [Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"part")))];
        let put = request(Method::PUT, Body::stream(StreamBody::new(futures_util::stream::iter(frames))));
        assert_eq!(kind(pools.send(&backend, put, None, SendLimits::default()).await), ErrorKind::Reset);
        assert_eq!(server.requests(), 2);
    });
}

#[test]
fn a_new_connection_that_closes_is_no_reason_to_ask_again() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Close]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        assert_eq!(kind(pools.send(&backend, get(), None, SendLimits::default()).await), ErrorKind::Reset);
        assert_eq!(server.requests(), 1);
    });
}

#[test]
fn a_connection_closed_while_idle_is_not_used_again() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Last(OK)]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        for _ in 0..3 {
            whole(
                pools.send(&backend, request(Method::POST, Body::Empty), None, SendLimits::default()).await,
            )
            .await;
            settle().await;
        }
        assert_eq!((server.connections(), server.requests()), (3, 3));
    });
}

#[test]
fn endpoints_take_turns() {
    local(async {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(Scripted::answering().await);
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let (pools, backend) = (pools(), backend(&addresses, HostHeader::Preserve));
        for _ in 0..30 {
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        }
        assert_eq!(servers.iter().map(Scripted::requests).collect::<Vec<_>>(), [10, 10, 10]);
    });
}

#[test]
fn the_first_turn_differs_from_worker_to_worker() {
    local(async {
        let mut servers = Vec::new();
        for _ in 0..4 {
            servers.push(Scripted::answering().await);
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let backend = backend(&addresses, HostHeader::Preserve);
        for seed in 0..64 {
            let pools = Pools::new(0, seed, Guard::new(Loopback::Allowed));
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        }
        assert!(servers.iter().all(|server| (6..=26).contains(&server.requests())));
    });
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_passed_over_and_then_left_alone() {
    local(async {
        let server = Scripted::answering().await;
        let dead = refused().await;
        let (pools, backend) = (pools(), backend(&[dead, server.address], HostHeader::Preserve));
        for _ in 0..10 {
            let body = Body::from("not to be lost");
            whole(pools.send(&backend, request(Method::POST, body), None, SendLimits::default()).await).await;
        }
        assert_eq!(server.requests(), 10);
        let metrics = backend.stats.totals().expect("counted");
        assert_eq!(metrics.connects[1], 1, "it was tried once and left alone for a while");
    });
}

#[test]
fn all_endpoints_dead_is_a_connect_failure_after_three() {
    local(async {
        let mut dead = Vec::new();
        for _ in 0..5 {
            dead.push(refused().await);
        }
        let (pools, backend) = (pools(), backend(&dead, HostHeader::Preserve));
        assert_eq!(
            kind(pools.send(&backend, get(), None, SendLimits::default()).await),
            ErrorKind::ConnectFailure
        );
        assert_eq!(backend.stats.totals().expect("counted").connects[1], 3);
    });
}

#[test]
fn an_endpoint_that_swallows_packets_leaves_time_for_the_next() {
    local(async {
        let (silent, _held) = swallowing().await;
        let limits = SendLimits { connect: Some(Duration::from_millis(300)), ..SendLimits::default() };
        let (pools, alone) = (pools(), backend(&[silent], HostHeader::Preserve));
        assert_eq!(kind(pools.send(&alone, get(), None, limits).await), ErrorKind::ConnectTimeout);

        let server = Scripted::answering().await;
        let both = backend(&[silent, server.address], HostHeader::Preserve);
        for _ in 0..2 {
            assert_eq!(whole(pools.send(&both, get(), None, limits).await).await, "ok");
        }
    });
}

/// An address whose backlog of one is filled: the kernel drops further SYNs without an answer.
pub(super) async fn swallowing() -> (SocketAddr, (tokio::net::TcpListener, Vec<TcpStream>)) {
    swallowing_at((Ipv4Addr::LOCALHOST, 0).into()).await
}

async fn swallowing_at(address: SocketAddr) -> (SocketAddr, (tokio::net::TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(address).expect("bind");
    let full = socket.listen(1).expect("listen");
    let silent = full.local_addr().expect("bound");
    let mut fillers = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(50), TcpStream::connect(silent)).await {
        fillers.push(stream);
    }
    (silent, (full, fillers))
}

#[test]
fn an_endpoint_that_swallows_packets_rests_however_little_time_a_try_has() {
    local(async {
        let (silent, _held) = swallowing().await;
        let server = Scripted::answering().await;
        let both = backend(&[silent, server.address], HostHeader::Preserve);
        let limits = SendLimits { one_try: Some(Duration::from_millis(100)), ..SendLimits::default() };
        let pools = pools();
        for _ in 0..6 {
            assert_eq!(whole(pools.send(&both, get(), None, limits).await).await, "ok");
        }
        let connects = both.stats.totals().expect("counted").connects;
        assert_eq!(connects.iter().sum::<u64>(), 2, "it was tried once: {connects:?}");
        let alone = backend(&[silent], HostHeader::Preserve);
        assert_eq!(kind(pools.send(&alone, get(), None, limits).await), ErrorKind::ConnectTimeout);
    });
}

#[test]
fn after_a_rest_one_request_finds_out_for_all() {
    local(async {
        let (silent, _held) = swallowing().await;
        let server = Scripted::answering().await;
        let both = backend(&[silent, server.address], HostHeader::Preserve);
        let limits = SendLimits { connect: Some(Duration::from_millis(200)), ..SendLimits::default() };
        let pools = pools();
        let failed = || both.stats.totals().map_or(0, |totals| totals.connects[2]);
        while failed() == 0 {
            whole(pools.send(&both, get(), None, limits).await).await;
        }
        let began = Instant::now();
        while failed() == 1 {
            assert!(began.elapsed() < Duration::from_secs(10), "its rest ends");
            let many = (0..20).map(|_| pools.send(&both, get(), None, limits));
            for outcome in futures_util::future::join_all(many).await {
                whole(outcome).await;
            }
        }
        assert_eq!(failed(), 2);
    });
}

#[test]
fn none_is_no_limit_of_the_time_to_connect() {
    local_paused(async {
        let (silent, _held) = swallowing().await;
        let alone = backend(&[silent], HostHeader::Preserve);
        let pools = pools();
        let limits = SendLimits { connect: None, ..SendLimits::default() };
        let mut sent = Box::pin(pools.send(&alone, get(), None, limits));
        let an_hour = Duration::from_secs(3600);
        assert!(timeout(an_hour, &mut sent).await.is_err(), "it waits");
    });
}

#[test]
fn no_endpoints_and_refused_ones_are_told_apart() {
    local(async {
        let server = Scripted::answering().await;
        let empty = backend(&[], HostHeader::Preserve);
        assert_eq!(
            kind(pools().send(&empty, get(), None, SendLimits::default()).await),
            ErrorKind::NoHealthyEndpoints
        );
        let strict = Pools::new(0, 7, Guard::new(Loopback::Refused));
        let loopback = backend(&[server.address], HostHeader::Preserve);
        let outcome = strict.send(&loopback, get(), None, SendLimits::default()).await;
        assert_eq!(kind(outcome), ErrorKind::AddressNotPermitted);
        assert_eq!(server.connections(), 0);
    });
}

#[test]
fn a_silent_backend_times_out_and_its_connection_is_closed() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Silence]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let deadline = Some(Instant::now() + Duration::from_millis(50));
        let limits = SendLimits { deadline, ..SendLimits::default() };
        assert_eq!(kind(pools.send(&backend, get(), None, limits).await), ErrorKind::BackendTimeout);
        server.has_open(0).await;
    });
}

#[test]
fn a_client_that_leaves_takes_its_connection_with_it() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Silence]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let mut sent = Box::pin(pools.send(&backend, get(), None, SendLimits::default()));
        while server.requests() == 0 {
            assert!(timeout(Duration::from_millis(1), &mut sent).await.is_err());
        }
        drop(sent);
        server.has_open(0).await;
    });
}

#[test]
fn a_body_left_unread_closes_its_connection_and_one_read_gives_it_back() {
    local(async {
        let server =
            Scripted::start(|_| vec![Step::Answer("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nstart")])
                .await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let answer = pools.send(&backend, get(), None, SendLimits::default()).await.expect("an answer");
        server.has_open(1).await;
        drop(answer);
        server.has_open(0).await;
        assert_eq!(backend.stats.totals().expect("counted").active, 0);
    });
}

#[test]
fn of_a_name_s_addresses_the_one_that_answers_is_not_waited_for() {
    local(async {
        let server = Scripted::answering().await;
        let (silent, _held) =
            swallowing_at((Ipv4Addr::new(127, 0, 0, 9), server.address.port()).into()).await;
        let named = |address| Endpoint { address, name: Some("pay.test".into()) };
        let backend = backend(&[], HostHeader::Own);
        backend.set_endpoints(EndpointSet {
            endpoints: vec![named(silent), named(server.address)],
            known: true,
            ..EndpointSet::default()
        });
        let pools = pools();
        for _ in 0..6 {
            let began = Instant::now();
            assert_eq!(whole(pools.send(&backend, get(), None, SendLimits::default()).await).await, "ok");
            // Alone, the first would be waited for a second: its half of the time to connect.
            assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        }
        let connects = backend.stats.totals().expect("counted").connects;
        // One to the server for whoever came first, one lost and one won for who came second.
        assert!(connects.iter().sum::<u64>() <= 3, "who lost rests: {connects:?}");
    });
}

#[test]
fn only_who_would_be_asked_is_tried_beside_another_the_other_family_first() {
    local(async {
        let ejection = EjectionPlan {
            consecutive_errors: 1,
            least_success: None,
            eject_for: Duration::from_secs(30),
            max_percent: 50,
        };
        let traffic = TrafficPlan { ejection: Some(ejection), ..TrafficPlan::default() };
        let backend = backend_with(&[], HostHeader::Own, traffic);
        let addresses = ["127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1", "[::1]:1"];
        let addresses = addresses.map(|text| text.parse::<SocketAddr>().expect("an address"));
        let named = |address| Endpoint { address, name: Some("pay.test".into()) };
        backend.set_endpoints(EndpointSet {
            endpoints: addresses.map(named).into(),
            known: true,
            ..EndpointSet::default()
        });
        let pool = BackendPool::new(&backend, (0, None), 7, &Guard::new(Loopback::Allowed));
        let [one, two, three, other_family] = addresses;
        let endpoint = |wanted: SocketAddr| {
            let others: Vec<_> = addresses.into_iter().filter(|address| *address != wanted).collect();
            pool.next(&others, &[], Aim::Anywhere).expect("it is there")
        };
        let first = endpoint(one);
        let rivals = |asked: &[SocketAddr]| match pool.begin(&first, &[one], asked, Aim::Anywhere) {
            Begin::Against(rivals) => rivals,
            other => panic!("{other:?}"),
        };
        assert_eq!(rivals(&[]), [other_family, two]);
        assert_eq!(rivals(&[other_family]), [two, three]);
        let keyed = pool.begin(&first, &[one], &[], Aim::Key(7));
        assert!(matches!(keyed, Begin::Alone), "who wants this one gets no other");
        // Two others are not well: one gave errors, one could not be connected to.
        backend.failed(&endpoint(two).health);
        assert_eq!(rivals(&[]), [other_family, three]);
        endpoint(other_family).not_connected(Connect::TimedOut);
        assert_eq!(rivals(&[]), [three]);
    });
}

#[test]
fn the_first_request_waits_for_the_first_answer() {
    local(async {
        let server = Scripted::answering().await;
        let (unresolved, pools) = (hosted(), pools());
        let tells = async {
            settle().await;
            unresolved.set_endpoints(EndpointSet {
                endpoints: vec![server.address.into()],
                known: true,
                ..EndpointSet::default()
            });
        };
        let (outcome, ()) = tokio::join!(pools.send(&unresolved, get(), None, SendLimits::default()), tells);
        assert_eq!(whole(outcome).await, "ok");
    });
}

#[test]
fn a_name_without_an_answer_is_waited_for_as_long_as_for_a_connection_and_known_absence_not_at_all() {
    local_paused(async {
        let (unresolved, pools) = (hosted(), pools());
        for (known, waits) in [(false, Duration::from_secs(2)), (true, Duration::ZERO)] {
            unresolved.set_endpoints(EndpointSet { known, ..EndpointSet::default() });
            let began = Instant::now();
            let outcome = pools.send(&unresolved, get(), None, SendLimits::default()).await;
            assert_eq!(kind(outcome), ErrorKind::NameResolution);
            assert!(
                (waits..=waits + Duration::from_millis(5)).contains(&began.elapsed()),
                "{:?}",
                began.elapsed()
            );
        }
    });
}

/// A backend of a name that nobody looked up yet.
fn hosted() -> std::sync::Arc<crate::upstream::Backend> {
    let host = [(Address::Name("pay.test".into()), 80)];
    let mut plan = (*backend(&[], HostHeader::Own).plan).clone();
    plan.target = BackendTarget::Hosts(host.into());
    let stats = crate::telemetry::Telemetry::new(1).backend("pay");
    std::sync::Arc::new(crate::upstream::Backend::new(std::sync::Arc::new(plan), 0, stats))
}
