//! A bounded number of connections, over all workers, and who waits for them.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use futures_util::poll;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep};

use super::scripted::{
    OK, Scripted, Step, asked_by, get, head, is_so, kind, local, local_paused, refused, set, settle, whole,
};
use crate::message::{ErrorKind, Request};
use crate::route_map::{BackendProtocol, ConnectionBounds, HostHeader, RetryPlan, TrafficPlan};
use crate::upstream::{Aim, Backend, ClientConnection, Guard, Loopback, Pools, SendLimits, Tries};

const ANSWER: Duration = Duration::from_millis(10);
/// Less than it takes until who waits looks by itself.
pub(super) const SOON: Duration = Duration::from_millis(90);
pub(super) const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

pub(super) fn bounded(connections: u32, pending: u32) -> TrafficPlan {
    TrafficPlan { connections: Some(ConnectionBounds { connections, pending }), ..TrafficPlan::default() }
}

pub(super) fn workers(count: usize) -> Vec<Rc<Pools>> {
    (0..count).map(|worker| Pools::new(worker, 1000 + worker as u64, Guard::new(Loopback::Allowed))).collect()
}

pub(super) fn backend(workers: usize, addresses: &[SocketAddr], traffic: TrafficPlan) -> Arc<Backend> {
    asked_by(workers, addresses, HostHeader::Preserve, traffic, BackendProtocol::Http1)
}

/// A server that answers after a while, and counts.
#[derive(Default)]
pub(super) struct Counting {
    pub open: Cell<usize>,
    pub most: Cell<usize>,
    pub connections: Cell<usize>,
    pub answered: Cell<usize>,
}

impl Counting {
    pub async fn start() -> (SocketAddr, Rc<Self>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let (address, counts) = (listener.local_addr().expect("bound"), Rc::<Self>::default());
        let counting = Rc::clone(&counts);
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // What was closed before is seen to be.
                settle().await;
                let counts = Rc::clone(&counting);
                counts.connections.set(counts.connections.get() + 1);
                counts.open.set(counts.open.get() + 1);
                counts.most.set(counts.most.get().max(counts.open.get()));
                tokio::task::spawn_local(async move {
                    while head(&mut stream).await.is_some() {
                        sleep(ANSWER).await;
                        counts.answered.set(counts.answered.get() + 1);
                        stream.write_all(OK.as_bytes()).await.unwrap_or_default();
                    }
                    counts.open.set(counts.open.get() - 1);
                });
            }
        });
        (address, counts)
    }
}

pub(super) async fn ask(pools: &Pools, backend: &Arc<Backend>, count: usize) {
    for _ in 0..count {
        whole(pools.send(backend, get(), None, SendLimits::default()).await).await;
    }
}

pub(super) fn pending(backend: &Backend) -> u64 {
    backend.stats.totals().map_or(0, |totals| totals.pending)
}

/// What is counted comes to nothing once nothing is open and nobody waits.
pub(super) async fn all_is_given_back(backend: &Arc<Backend>) {
    backend.set_endpoints(set(&[]));
    let (bounds, workers) = (backend.bounds.as_ref().expect("bounded"), backend.stats.workers());
    let most = backend.plan.traffic.connections.expect("bounded").connections as usize;
    let rest = most.max(workers) - (workers - 1);
    is_so("nobody waits, and no right is lost", || (pending(backend), bounds.free(0)) == (0, rest)).await;
    let permits: Vec<_> = std::iter::from_fn(|| bounds.permit(0)).collect();
    assert_eq!(permits.len(), rest);
}

#[test]
fn no_more_connections_are_open_than_may_be_and_every_worker_is_served() {
    local_paused(async {
        // The control: without a bound there are as many as requests.
        for (traffic, most) in [(bounded(6, 1000), 6), (bounded(1, 1000), 4), (TrafficPlan::default(), 40)] {
            let (address, counts) = Counting::start().await;
            let backend = backend(4, &[address], traffic.clone());
            let workers = workers(4);
            let clients = workers.iter().flat_map(|worker| (0..10).map(|_| ask(worker, &backend, 10)));
            join_all(clients).await;
            assert_eq!((counts.answered.get(), counts.most.get()), (400, most));
            if traffic.connections.is_some() {
                all_is_given_back(&backend).await;
            }
        }
    });
}

#[test]
fn connections_serve_who_waits_and_are_not_made_anew() {
    local_paused(async {
        for endpoints in [1, 3] {
            let mut servers = Vec::new();
            for _ in 0..endpoints {
                servers.push(Counting::start().await);
            }
            let addresses: Vec<_> = servers.iter().map(|(address, _)| *address).collect();
            let backend = backend(1, &addresses, bounded(6, 1000));
            let workers = workers(1);
            join_all((0..20).map(|_| ask(&workers[0], &backend, 30))).await;
            let made: usize = servers.iter().map(|(_, counts)| counts.connections.get()).sum();
            // One in sixteen requests may close one for an endpoint that has none free.
            assert!(made <= if endpoints == 1 { 6 } else { 6 + 600 / 16 }, "{made}");
            let answered: Vec<_> = servers.iter().map(|(_, counts)| counts.answered.get()).collect();
            assert_eq!(answered.iter().sum::<usize>(), 600);
            assert!(answered.iter().all(|count| *count * endpoints >= 300), "{answered:?}");
            all_is_given_back(&backend).await;
        }
    });
}

#[test]
fn with_keys_connections_follow_and_are_few() {
    local_paused(async {
        let mut servers = Vec::new();
        for _ in 0..4 {
            servers.push(Counting::start().await);
        }
        let addresses: Vec<_> = servers.iter().map(|(address, _)| *address).collect();
        let backend = backend(1, &addresses, bounded(50, 1000));
        let workers = workers(1);
        let client = async |mark: u64| {
            for _ in 0..20 {
                let limits = SendLimits { aim: Aim::Seat(mark), ..SendLimits::default() };
                whole(workers[0].send(&backend, get(), None, limits).await).await;
            }
        };
        join_all((0..100).map(client)).await;
        let made: usize = servers.iter().map(|(_, counts)| counts.connections.get()).sum();
        let answered: usize = servers.iter().map(|(_, counts)| counts.answered.get()).sum();
        assert_eq!(answered, 2000);
        assert!(made < 300, "{made}");
    });
}

#[test]
fn a_worker_with_many_requests_leaves_one_with_few_its_turn() {
    local_paused(async {
        let (address, counts) = Counting::start().await;
        let backend = backend(2, &[address], bounded(8, 1000));
        let workers = workers(2);
        // Seven connections of eight.
        let busy = join_all((0..20).map(|_| ask(&workers[0], &backend, 100)));
        let few = async {
            is_so("the others have what they may", || counts.open.get() == 7).await;
            let begun = Instant::now();
            join_all((0..4).map(|_| ask(&workers[1], &backend, 20))).await;
            begun.elapsed()
        };
        let (_, took) = join(busy, few).await;
        // By one connection alone it would be 80 times as long as an answer takes.
        assert!(took < ANSWER * 50, "{took:?}");
        assert_eq!((counts.most.get(), counts.answered.get()), (8, 2080));
        all_is_given_back(&backend).await;
    });
}

#[test]
fn what_one_worker_keeps_idle_is_closed_for_another_that_waits() {
    local_paused(async {
        // Also where nobody may wait for what is in use.
        for pending in [10, 0] {
            let (address, counts) = Counting::start().await;
            let backend = backend(2, &[address], bounded(4, pending));
            let workers = workers(2);
            join_all((0..3).map(|_| ask(&workers[0], &backend, 1))).await;
            let begun = Instant::now();
            join_all((0..3).map(|_| ask(&workers[1], &backend, 1))).await;
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
            assert_eq!((counts.most.get(), counts.connections.get()), (4, 3 + 3), "no more than were wanted");
            all_is_given_back(&backend).await;
        }
    });
}

#[test]
fn what_is_given_back_while_others_wait_is_closed() {
    local_paused(async {
        let (address, counts) = Counting::start().await;
        let backend = backend(2, &[address], bounded(3, 10));
        let workers = workers(2);
        let first = join_all((0..2).map(|_| ask(&workers[0], &backend, 1)));
        let begun = Instant::now();
        let second = async {
            // Its own one is in use for longer.
            sleep(ANSWER / 2).await;
            join_all((0..2).map(|_| ask(&workers[1], &backend, 1))).await;
            begun.elapsed()
        };
        let (_, took) = join(first, second).await;
        assert!(took < SOON, "{took:?}");
        assert_eq!((counts.most.get(), counts.connections.get()), (3, 4));
    });
}

#[test]
fn an_idle_connection_to_one_endpoint_makes_room_for_one_to_another() {
    local_paused(async {
        let ((one, first), (other, second)) = (Counting::start().await, Counting::start().await);
        // Nobody may wait, and each wants its own endpoint.
        let backend = backend(1, &[one, other], bounded(1, 0));
        let workers = workers(1);
        for mark in 0..20 {
            let limits = SendLimits { aim: Aim::Seat(mark), ..SendLimits::default() };
            whole(workers[0].send(&backend, get(), None, limits).await).await;
        }
        assert!(first.answered.get() > 0 && second.answered.get() > 0);
        assert_eq!((first.most.get(), second.most.get()), (1, 1));
        // In turn: one in sixteen goes to the endpoint that has no connection.
        ask(&workers[0], &backend, 100).await;
        assert!(first.answered.get() > 30 && second.answered.get() > 30);
        assert!(first.connections.get() + second.connections.get() < 40);
        all_is_given_back(&backend).await;
    });
}

#[test]
fn as_many_requests_wait_as_may_and_others_are_told_at_once() {
    local_paused(async {
        let server = Scripted::start(|_| vec![Step::Silence]).await;
        let backend = backend(2, &[server.address], bounded(2, 2));
        let workers = workers(2);
        let mut under_way: Vec<_> = [0, 1, 0, 1]
            .map(|worker: usize| Box::pin(workers[worker].send(&backend, get(), None, SendLimits::default())))
            .into();
        for request in &mut under_way {
            assert!(poll!(request).is_pending());
        }
        settle().await;
        assert_eq!(pending(&backend), 2);
        for worker in &workers {
            let begun = Instant::now();
            let more = worker.send(&backend, get(), None, SendLimits::default()).await;
            assert_eq!((kind(more), begun.elapsed()), (ErrorKind::Overloaded, Duration::ZERO));
        }
        drop(under_way.pop());
        let mut next = Box::pin(workers[0].send(&backend, get(), None, SendLimits::default()));
        assert!(poll!(&mut next).is_pending(), "there is room again");
        let totals = backend.stats.totals().expect("counted");
        assert_eq!(totals.errors.into_iter().collect::<Vec<_>>(), [("Overloaded", 2)]);
        assert_eq!((totals.pending, totals.active), (2, 2), "who waits takes up nothing");
        drop((under_way, next));
        all_is_given_back(&backend).await;
    });
}

#[test]
fn nobody_waits_for_longer_than_a_connect_may_take_or_the_request_has() {
    local_paused(async {
        for (connect, deadline, expected) in
            [(300, None, 300), (2000, Some(50), 50), (60_000, Some(9000), 9000)]
        {
            let server = Scripted::start(|_| vec![Step::Silence]).await;
            let backend = backend(1, &[server.address], bounded(1, 10));
            let workers = workers(1);
            let mut first = Box::pin(workers[0].send(&backend, get(), None, SendLimits::default()));
            assert!(poll!(&mut first).is_pending());
            let (begun, millis) = (Instant::now(), Duration::from_millis);
            let limits = SendLimits {
                connect: Some(millis(connect)),
                deadline: deadline.map(|deadline| begun + millis(deadline)),
                ..SendLimits::default()
            };
            let second = workers[0].send(&backend, get(), None, limits).await;
            assert_eq!(kind(second), ErrorKind::Overloaded);
            let took = begun.elapsed();
            assert!((millis(expected)..millis(expected + 5)).contains(&took), "{took:?}");
            assert_eq!(pending(&backend), 0);
        }
    });
}

#[test]
fn what_fails_or_is_given_up_gives_its_right_back() {
    local_paused(async {
        let server = Scripted::start(|_| vec![Step::Silence]).await;
        let backend = backend(1, &[refused().await], bounded(2, 0));
        let workers = workers(1);
        for _ in 0..5 {
            let outcome = workers[0].send(&backend, get(), None, SendLimits::default()).await;
            assert_eq!(kind(outcome), ErrorKind::ConnectFailure);
        }
        backend.set_endpoints(set(&[server.address]));
        for _ in 0..5 {
            let limits = SendLimits { deadline: Some(Instant::now() + ANSWER), ..SendLimits::default() };
            assert_eq!(kind(workers[0].send(&backend, get(), None, limits).await), ErrorKind::BackendTimeout);
            let mut given_up = Box::pin(workers[0].send(&backend, get(), None, SendLimits::default()));
            assert!(poll!(&mut given_up).is_pending());
            settle().await;
            drop(given_up);
            settle().await;
        }
        assert_eq!(server.connections(), 10);
        all_is_given_back(&backend).await;
    });
}

#[test]
fn who_goes_while_it_connects_gives_its_right_back() {
    local(async {
        let (silent, _held) = super::sending::swallowing().await;
        let server = Scripted::answering().await;
        let backend = backend(1, &[silent], bounded(1, 1));
        let workers = workers(1);
        let mut connecting = Box::pin(workers[0].send(&backend, get(), None, SendLimits::default()));
        assert!(poll!(&mut connecting).is_pending());
        let mut waiting = Box::pin(workers[0].send(&backend, get(), None, SendLimits::default()));
        assert!(poll!(&mut waiting).is_pending());
        assert_eq!(pending(&backend), 1);
        backend.set_endpoints(set(&[server.address]));
        drop(connecting);
        // It chooses anew: the endpoint that it waited for has left.
        whole(waiting.await).await;
        all_is_given_back(&backend).await;
    });
}

#[test]
fn a_connection_that_closes_while_idle_costs_nobody_a_wait() {
    local_paused(async {
        // Each answers once and closes; the client finds out when the next request comes.
        let server = Scripted::start(|_| vec![Step::Last(OK)]).await;
        let backend = backend(1, &[server.address], bounded(1, 0));
        let workers = workers(1);
        ask(&workers[0], &backend, 5).await;
        for _ in 0..5 {
            settle().await;
            ask(&workers[0], &backend, 1).await;
        }
        all_is_given_back(&backend).await;
    });
}

#[test]
fn a_retry_needs_no_second_connection() {
    local_paused(async {
        const ERROR: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";
        let server = Scripted::start(|_| vec![Step::Answer(ERROR), Step::Answer(OK)]).await;
        let backend = backend(1, &[server.address], bounded(1, 0));
        let workers = workers(1);
        let plan = RetryPlan {
            attempts: 2,
            codes: [503].into(),
            grpc_codes: [].into(),
            backoff: ANSWER,
            budget_percent: 20,
            non_idempotent: false,
        };
        let retries = Cell::new(0);
        let tries = Tries::counted_in(&retries);
        let outcome =
            workers[0].send_retrying(&backend, get(), None, SendLimits::default(), &plan, &tries).await;
        whole(outcome).await;
        assert_eq!((retries.get(), server.connections()), (1, 1));
    });
}

pub(super) fn upgrade() -> Request {
    let mut request = get();
    request.headers_mut().insert("connection", http::HeaderValue::from_static("upgrade"));
    request.headers_mut().insert("upgrade", http::HeaderValue::from_static("websocket"));
    request
}

#[test]
fn a_tunnel_is_a_connection_until_it_ends_and_its_worker_alone_waits() {
    local_paused(async {
        let server =
            Scripted::start(|number| vec![Step::Answer(if number == 0 { SWITCH } else { OK })]).await;
        let backend = backend(2, &[server.address], bounded(1, 10));
        let workers = workers(2);
        let outcome = workers[0].send(&backend, upgrade(), None, SendLimits::default()).await;
        let mut tunnel = outcome.expect("an answer");
        assert_eq!(tunnel.response.status(), 101);
        let upgraded = tunnel.tunnel.take().expect("a tunnel");
        settle().await;
        let second = workers[0].send(&backend, get(), None, SendLimits::default()).await;
        assert_eq!(kind(second), ErrorKind::Overloaded);
        ask(&workers[1], &backend, 1).await;
        // The socket counts, whatever else is held.
        let place = tunnel.place.take();
        drop((tunnel, upgraded));
        ask(&workers[0], &backend, 1).await;
        drop(place);
        all_is_given_back(&backend).await;
    });
}

#[test]
fn passed_through_connections_count_until_they_end() {
    local_paused(async {
        let server = Scripted::answering().await;
        let backend = backend(1, &[server.address], bounded(1, 10));
        let workers = workers(1);
        let address = "127.0.0.1:1".parse().expect("an address");
        let client = ClientConnection { source: address, destination: address, presence: Rc::default() };
        let connect = Some(Duration::from_millis(500));
        let first = workers[0].pass(&backend, connect, &client).await.expect("a connection");
        let begun = Instant::now();
        let second = workers[0].pass(&backend, connect, &client).await;
        assert_eq!(second.map(drop).expect_err("no second").kind, ErrorKind::Overloaded);
        assert!(begun.elapsed() >= Duration::from_millis(500));
        let waiting = async { ask(&workers[0], &backend, 1).await };
        let ends = async {
            settle().await;
            assert_eq!(pending(&backend), 1);
            drop(first);
        };
        join(waiting, ends).await;
        // And an idle connection is closed for one that is passed through.
        workers[0].pass(&backend, connect, &client).await.expect("a connection");
        all_is_given_back(&backend).await;
    });
}

#[test]
fn a_changed_bound_holds_at_once_and_closes_nothing_in_use() {
    local_paused(async {
        let server = Scripted::start(|_| vec![Step::Answer(SWITCH)]).await;
        let before = backend(1, &[server.address], bounded(3, 0));
        let workers = workers(1);
        let changed = |before: &Backend, traffic: TrafficPlan| {
            let mut plan = (*before.plan).clone();
            plan.traffic = traffic;
            let after = Arc::new(Backend::after(before, Arc::new(plan)));
            after.set_endpoints(set(&[server.address]));
            after
        };
        let tunnel = async |backend: &Arc<Backend>| {
            workers[0].send(backend, upgrade(), None, SendLimits::default()).await
        };
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(tunnel(&before).await.expect("one of three"));
        }
        let lower = changed(&before, bounded(2, 0));
        for _ in 0..2 {
            assert_eq!(tunnel(&lower).await.map(drop).expect_err("full").kind, ErrorKind::Overloaded);
            assert_eq!(*server.open.borrow(), open.len(), "none is closed");
            open.pop();
            settle().await;
        }
        open.push(tunnel(&lower).await.expect("one of two"));
        let patient = changed(&lower, bounded(2, 1));
        let begun = Instant::now();
        let mut waiting = Box::pin(tunnel(&patient));
        assert!(poll!(&mut waiting).is_pending());
        let _higher = changed(&patient, bounded(3, 1));
        open.push(waiting.await.expect("one of three"));
        assert!(begun.elapsed() < SOON, "who waits hears of it: {:?}", begun.elapsed());
        assert_eq!(*server.open.borrow(), 3);
    });
}

#[test]
fn a_change_or_an_endpoint_that_leaves_refuses_nobody_for_what_was_idle() {
    local_paused(async {
        let (one, other) = (Scripted::answering().await, Scripted::answering().await);
        let mut backend = backend(1, &[one.address], bounded(1, 0));
        let workers = workers(1);
        for most in 2..7 {
            ask(&workers[0], &backend, 1).await;
            let mut plan = (*backend.plan).clone();
            plan.traffic.max_requests = Some(most);
            let address = if most % 2 == 0 { other.address } else { one.address };
            backend = Arc::new(Backend::after(&backend, Arc::new(plan)));
            backend.set_endpoints(set(&[address]));
            ask(&workers[0], &backend, 1).await;
            backend.set_endpoints(set(&[one.address]));
            ask(&workers[0], &backend, 1).await;
        }
        all_is_given_back(&backend).await;
    });
}

#[test]
fn a_thousand_that_wait_cost_few_looks() {
    local_paused(async {
        let (address, counts) = Counting::start().await;
        let backend = backend(2, &[address], bounded(10, 2000));
        let workers = workers(2);
        let patient = SendLimits { connect: Some(Duration::from_secs(30)), ..SendLimits::default() };
        let client = async |worker: usize| {
            whole(workers[worker].send(&backend, get(), None, patient).await).await;
        };
        join_all((0..1000).map(|number| client(number % 2))).await;
        assert_eq!((counts.answered.get(), counts.most.get()), (1000, 10));
        all_is_given_back(&backend).await;
    });
}
