//! A bounded number of connections that requests share.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::poll;
use h2::Reason;
use tokio::time::Instant;

use super::bounding::{bounded, workers};
use super::http2::{
    ByHand, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Multiplexing, STATUS_200, Step, frame, listen,
};
use super::scripted::{asked_by, get, is_so, kind, local, settle, whole};
use crate::message::ErrorKind;
use crate::route_map::{BackendProtocol, HostHeader, TrafficPlan};
use crate::upstream::{Backend, Pools, SendLimits};

// Not with a paused clock: what the system holds back for an instant would seem to take for ever.

fn backend(workers: usize, addresses: &[SocketAddr], traffic: TrafficPlan) -> Arc<Backend> {
    asked_by(workers, addresses, HostHeader::Preserve, traffic, BackendProtocol::Http2)
}

pub(super) fn patient() -> SendLimits<'static> {
    SendLimits { connect: Some(Duration::from_secs(15)), ..SendLimits::default() }
}

async fn ask(pools: &Pools, backend: &Arc<Backend>, count: usize) {
    for _ in 0..count {
        whole(pools.send(backend, get(), None, patient()).await).await;
    }
}

#[test]
fn each_worker_has_a_connection_and_streams_serve_who_waits() {
    local(async {
        let server = Multiplexing::start(2, vec![Step::Ok]).await;
        let backend = backend(3, &[server.address], bounded(1, 1000));
        let workers = workers(3);
        // More than it carries at once, on each of them.
        let clients = workers.iter().flat_map(|worker| (0..8).map(|_| ask(worker, &backend, 6)));
        join_all(clients).await;
        assert_eq!((server.requests(), server.connections.get()), (144, 3));
        let totals = backend.stats.totals().expect("counted");
        assert_eq!((totals.pending, totals.shared), (0, 3));
    });
}

#[test]
fn those_that_come_together_open_one() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::When(50)]).await;
        let backend = backend(1, &[server.address], bounded(10, 1000));
        let workers = workers(1);
        join_all((0..50).map(|_| ask(&workers[0], &backend, 1))).await;
        assert_eq!((server.requests(), server.connections.get()), (50, 1));
        assert_eq!(backend.bounds.as_ref().expect("bounded").free(0), 9);
    });
}

#[test]
fn another_is_opened_for_what_the_first_does_not_carry() {
    local(async {
        let server = Multiplexing::start(10, vec![Step::When(30)]).await;
        let backend = backend(1, &[server.address], bounded(3, 1000));
        let workers = workers(1);
        join_all((0..30).map(|_| ask(&workers[0], &backend, 1))).await;
        assert_eq!((server.requests(), server.connections.get()), (30, 3));
    });
}

#[test]
fn long_streams_on_all_connections_leave_another_worker_its_own() {
    local(async {
        let server =
            Multiplexing::start(2, vec![Step::Never, Step::Never, Step::Never, Step::Never, Step::Ok]).await;
        let backend = backend(2, &[server.address], bounded(3, 100));
        let workers = workers(2);
        let mut watches: Vec<_> =
            (0..4).map(|_| Box::pin(workers[0].send(&backend, get(), None, patient()))).collect();
        for watch in &mut watches {
            assert!(poll!(watch).is_pending());
        }
        // They are polled on while the rest happens.
        let watches = join_all(watches);
        tokio::select! {
            _ = watches => panic!("they never end"),
            () = async {
                is_so("all are there", || server.requests() == 4).await;
                join_all((0..10).map(|_| ask(&workers[1], &backend, 2))).await;
                let short = SendLimits { connect: Some(Duration::from_millis(50)), ..SendLimits::default() };
                let more = workers[0].send(&backend, get(), None, short).await;
                assert_eq!(kind(more), ErrorKind::Overloaded);
            } => {}
        }
        assert_eq!(server.connections.get(), 3);
    });
}

#[test]
fn one_without_requests_is_closed_for_another_worker() {
    local(async {
        // One stream each, so that three requests at once need three.
        let server =
            Multiplexing::start(1, vec![Step::When(3), Step::When(3), Step::When(3), Step::When(6)]).await;
        let backend = backend(2, &[server.address], bounded(4, 10));
        let workers = workers(2);
        join_all((0..3).map(|_| ask(&workers[0], &backend, 1))).await;
        assert_eq!(server.connections.get(), 3);
        join_all((0..3).map(|_| ask(&workers[1], &backend, 1))).await;
        assert_eq!((server.connections.get(), server.requests()), (6, 6));
        assert_eq!(backend.stats.totals().expect("counted").shared, 4);
    });
}

#[test]
fn one_that_goes_away_leaves_its_place_at_once() {
    local(async {
        let (listener, address) = listen().await;
        let backend = backend(1, &[address], bounded(1, 10));
        let workers = workers(1);
        let server = async {
            let mut first = ByHand::accept(&listener).await;
            assert_eq!(first.request().await, 1);
            // It takes this one, and no other.
            first.say(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await;
            let mut second = ByHand::accept(&listener).await;
            let stream = second.request().await;
            second.say(&frame(HEADERS, END_STREAM | END_HEADERS, stream, STATUS_200)).await;
            first.say(&frame(HEADERS, END_HEADERS, 1, STATUS_200)).await;
            first.say(&frame(DATA, END_STREAM, 1, b"first")).await;
            while first.frame().await.is_some() {}
            second
        };
        let short = SendLimits { connect: Some(Duration::from_secs(5)), ..SendLimits::default() };
        let (one, other, _second) = tokio::join!(
            async { whole(workers[0].send(&backend, get(), None, short).await).await },
            async {
                settle().await;
                // While the first is under way.
                whole(workers[0].send(&backend, get(), None, short).await).await
            },
            server
        );
        assert_eq!((&one[..], &other[..]), (&b"first"[..], &b""[..]));
        is_so("what it had is not given back twice", || {
            let bounds = backend.bounds.as_ref().expect("bounded");
            bounds.free(0) == 0 && bounds.permit(0).is_none()
        })
        .await;
    });
}

#[test]
fn what_the_only_connection_refuses_goes_over_it_again() {
    local(async {
        let steps = vec![Step::Never, Step::Reset(Reason::REFUSED_STREAM), Step::Ok];
        let server = Multiplexing::start(100, steps).await;
        let backend = backend(1, &[server.address], bounded(1, 0));
        let workers = workers(1);
        tokio::select! {
            _ = workers[0].send(&backend, get(), None, patient()) => panic!("it is never answered"),
            () = async {
                is_so("the first is there", || server.requests() == 1).await;
                ask(&workers[0], &backend, 1).await;
            } => {}
        }
        assert_eq!((server.requests(), server.connections.get()), (3, 1));
    });
}

#[test]
fn who_waits_for_one_that_cannot_be_opened_is_not_left_waiting() {
    local(async {
        let address = super::scripted::refused().await;
        let backend = backend(1, &[address], bounded(1, 100));
        let workers = workers(1);
        let begun = Instant::now();
        let client = async |worker: &Rc<Pools>| kind(worker.send(&backend, get(), None, patient()).await);
        let kinds = join_all((0..20).map(|_| client(&workers[0]))).await;
        assert!(kinds.iter().all(|kind| *kind == ErrorKind::ConnectFailure), "{kinds:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(backend.bounds.as_ref().expect("bounded").free(0), 1);
    });
}
