//! HTTP/2 to backends: how requests share connections, what is sent again, what a hostile endpoint can do.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use h2::Reason;
use http::{HeaderValue, Method, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout};

use super::http2::{
    ByHand, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Multiplexing, PING, STATUS_200, Step, backend,
    backend_of, frame, listen, trailers,
};
use super::scripted::{get, kind, local, local_paused, pools, request, set, settle, speaking, whole};
use crate::message::{Body, BodyError, ErrorKind, Request};
use crate::route_map::{BackendProtocol, EjectionPlan, HostHeader, TrafficPlan};
use crate::upstream::{HeadLines, SendLimits, SharedLines};

fn post(body: &'static str) -> Request {
    request(Method::POST, Body::from(body))
}

fn limits(until: Duration) -> SendLimits<'static> {
    SendLimits { deadline: Some(Instant::now() + until), ..SendLimits::default() }
}

#[test]
fn requests_share_one_connection_and_carry_nothing_that_concerns_one() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::When(50)]).await;
        let (pools, backend) = (pools(), server.backend());
        let all = (0..50).map(|_| {
            let mut request = get();
            for (name, value) in
                [("connection", "te"), ("te", "trailers"), ("keep-alive", "1"), ("x-own", "1")]
            {
                request.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            let lines = HeadLines::new(SharedLines::default().freeze(), "x-request-id", b"7");
            pools.send(&backend, request, Some(lines), SendLimits::default())
        });
        for outcome in join_all(all).await {
            assert_eq!(whole(outcome).await, "ok");
        }
        assert_eq!((server.connections.get(), server.requests()), (1, 50));
        assert_eq!(backend.stats.totals().expect("counted").shared, 1);
        let seen = server.seen.borrow();
        assert_eq!(seen[0].uri(), "http://shop.test/orders?page=2");
        let mut fields: Vec<_> = seen[0].headers().keys().map(header::HeaderName::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["te", "x-own", "x-request-id"]);
    });
}

#[test]
fn more_requests_than_a_connection_may_have_open_another() {
    local(async {
        let server = Multiplexing::start(2, vec![Step::When(5)]).await;
        let (pools, backend) = (pools(), server.backend());
        let all = (0..5).map(|_| pools.send(&backend, get(), None, SendLimits::default()));
        for outcome in join_all(all).await {
            whole(outcome).await;
        }
        assert_eq!((server.connections.get(), server.requests()), (3, 5));
        for _ in 0..5 {
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        }
        assert_eq!(server.connections.get(), 3, "those that are there are used");
    });
}

#[test]
fn no_connection_carries_more_than_a_hundred_at_once_whatever_the_endpoint_permits() {
    local(async {
        for (requests, connections) in [(100, 1), (101, 2), (201, 3)] {
            let server = Multiplexing::start(1000, vec![Step::When(requests)]).await;
            let (pools, backend) = (pools(), server.backend());
            let all = (0..requests).map(|_| pools.send(&backend, get(), None, SendLimits::default()));
            for outcome in join_all(all).await {
                whole(outcome).await;
            }
            assert_eq!(server.connections.get(), connections, "{requests}");
        }
    });
}

#[test]
fn a_refused_request_is_sent_again_whatever_it_is_and_one_that_was_given_up_is_not() {
    local(async {
        let refused = vec![Step::Reset(Reason::REFUSED_STREAM), Step::Ok];
        let server = Multiplexing::start(100, refused).await;
        let (pools, backend) = (pools(), server.backend());
        whole(pools.send(&backend, post("a body"), None, SendLimits::default()).await).await;
        assert_eq!((server.connections.get(), server.requests()), (2, 2), "on another connection");

        for step in [Step::Reset(Reason::INTERNAL_ERROR), Step::Reset(Reason::CANCEL)] {
            let server = Multiplexing::start(100, vec![Step::Ok, step, Step::Ok]).await;
            let backend = server.backend();
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
            let outcome = pools.send(&backend, get(), None, SendLimits::default()).await;
            assert_eq!((kind(outcome), server.requests()), (ErrorKind::Reset, 2));
        }
    });
}

#[test]
fn an_endpoint_that_refuses_for_ever_is_not_asked_for_ever() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Reset(Reason::REFUSED_STREAM)]).await;
        let (pools, backend) = (pools(), server.backend());
        let outcome = pools.send(&backend, post("x"), None, SendLimits::default()).await;
        assert_eq!((kind(outcome), server.requests()), (ErrorKind::Reset, 4));
        assert!(server.connections.get() <= 4, "{} connections", server.connections.get());
    });
}

#[test]
fn what_one_endpoint_refuses_another_one_gets() {
    local(async {
        let busy = Multiplexing::start(100, vec![Step::Reset(Reason::REFUSED_STREAM)]).await;
        let free = Multiplexing::start(100, vec![Step::Ok]).await;
        let (pools, backend) = (pools(), backend_of(&[busy.address, free.address], TrafficPlan::default()));
        for _ in 0..8 {
            whole(pools.send(&backend, post("x"), None, SendLimits::default()).await).await;
        }
        assert_eq!((free.requests(), busy.connections.get()), (8, 1));
        assert!(busy.requests() >= 3, "the control: it was asked, too");
    });
}

#[test]
fn refused_requests_are_sent_again_within_the_budget_alone() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Reset(Reason::REFUSED_STREAM)]).await;
        let (pools, backend) = (pools(), server.backend());
        for _ in 0..40 {
            let outcome = pools.send(&backend, post("x"), None, SendLimits::default()).await;
            assert_eq!(kind(outcome), ErrorKind::Reset);
        }
        // Ten are always possible.
        assert_eq!(server.requests(), 40 + 10);
        let totals = backend.stats.totals().expect("counted");
        assert_eq!(totals.retries.iter().sum::<u64>(), 10 + 37, "sent, and over budget: {totals:?}");
    });
}

#[test]
fn what_a_goaway_leaves_out_is_sent_again_and_what_it_takes_is_answered() {
    local(async {
        let (listener, address) = listen().await;
        let server = async {
            let mut first = ByHand::accept(&listener).await;
            assert_eq!((first.request().await, first.request().await), (1, 3));
            first.say(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await;
            let mut second = ByHand::accept(&listener).await;
            let again = second.request().await;
            second.say(&frame(HEADERS, END_STREAM | END_HEADERS, again, STATUS_200)).await;
            first.say(&frame(HEADERS, END_HEADERS, 1, STATUS_200)).await;
            first.say(&frame(DATA, END_STREAM, 1, b"first")).await;
            // It is closed when its last request is over.
            while first.frame().await.is_some() {}
            second
        };
        let (pools, backend) = (pools(), backend(address));
        let send = |body| pools.send(&backend, post(body), None, SendLimits::default());
        let (one, other, mut second) = tokio::join!(
            async { whole(send("one").await).await },
            async { whole(send("other").await).await },
            server
        );
        assert_eq!((&one[..], &other[..]), (&b"first"[..], &b""[..]));
        let (outcome, ()) = tokio::join!(send("third"), async {
            let stream = second.request().await;
            second.say(&frame(HEADERS, END_STREAM | END_HEADERS, stream, STATUS_200)).await;
        });
        whole(outcome).await;
    });
}

#[test]
fn a_kept_connection_that_ends_as_we_write_shows_only_for_what_may_not_be_repeated() {
    local(async {
        for (method, seen) in [(Method::GET, true), (Method::POST, false)] {
            let (listener, address) = listen().await;
            let server = async {
                let mut first = ByHand::accept(&listener).await;
                let stream = first.request().await;
                first.say(&frame(HEADERS, END_STREAM | END_HEADERS, stream, STATUS_200)).await;
                first.request().await;
                drop(first);
                if seen {
                    let mut second = ByHand::accept(&listener).await;
                    let stream = second.request().await;
                    second.say(&frame(HEADERS, END_STREAM | END_HEADERS, stream, STATUS_200)).await;
                    settle().await;
                }
            };
            let (pools, backend) = (pools(), backend(address));
            let client = async {
                whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
                pools.send(&backend, request(method, Body::Empty), None, SendLimits::default()).await
            };
            let (outcome, ()) = tokio::join!(client, server);
            if seen {
                whole(outcome).await;
            } else {
                assert_eq!(kind(outcome), ErrorKind::Reset);
            }
        }
    });
}

#[test]
fn a_request_that_is_given_up_is_reset_and_the_others_go_on() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Never, Step::Ok]).await;
        let (pools, backend) = (pools(), server.backend());
        let upload = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, BodyError>>());
        let mut given_up = Box::pin(pools.send(
            &backend,
            request(Method::POST, Body::stream(upload)),
            None,
            SendLimits::default(),
        ));
        while server.requests() == 0 {
            assert!(timeout(Duration::from_millis(1), &mut given_up).await.is_err());
        }
        drop(given_up);
        while server.reset.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(*server.reset.borrow(), [Reason::CANCEL]);
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        assert_eq!(server.connections.get(), 1);
    });
}

#[test]
fn bodies_and_trailers_go_both_ways_at_once() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Echo]).await;
        let (pools, backend) = (pools(), server.backend());
        let (sender, receiver) = tokio::sync::mpsc::channel::<Frame<Bytes>>(1);
        let upload = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|frame| (Ok::<_, BodyError>(frame), receiver))
        });
        let request = request(Method::POST, Body::stream(StreamBody::new(Box::pin(upload))));
        let answer = pools.send(&backend, request, None, SendLimits::default()).await.expect("a head");
        let mut body = answer.response.into_body();
        for part in ["one", "two"] {
            sender.send(Frame::data(part.into())).await.expect("taken");
            let frame = body.frame().await.expect("a frame").expect("read");
            assert_eq!(frame.into_data().expect("data"), part);
        }
        sender.send(Frame::trailers(trailers("x-sum"))).await.expect("taken");
        let last = body.frame().await.expect("a frame").expect("read").into_trailers().expect("trailers");
        assert!(last.contains_key("x-sum") && last.contains_key("x-echoed"), "{last:?}");
        assert!(body.frame().await.is_none());
    });
}

#[test]
fn an_answer_that_is_cut_is_never_whole() {
    local(async {
        for reason in [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR] {
            let server = Multiplexing::start(100, vec![Step::Half(reason)]).await;
            let (pools, backend) = (pools(), server.backend());
            let answer =
                pools.send(&backend, get(), None, SendLimits::default()).await.expect("a head").response;
            let read = answer.into_body().collect().await;
            assert!(read.is_err(), "{reason}: {read:?}");
        }
    });
}

#[test]
fn an_endpoint_that_left_answers_what_it_has_and_is_asked_no_more() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Echo]).await;
        let other = Multiplexing::start(100, vec![Step::Ok]).await;
        let (pools, backend) = (pools(), server.backend());
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let upload = receiver.map(|_| Ok::<_, BodyError>(Frame::data(Bytes::from("late")))).into_stream();
        let request = request(Method::POST, Body::stream(StreamBody::new(Box::pin(upload))));
        let answer = pools.send(&backend, request, None, SendLimits::default()).await.expect("a head");
        backend.set_endpoints(set(&[other.address]));
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        settle().await;
        assert_eq!((server.open.get(), server.requests(), other.requests()), (1, 1, 1));
        sender.send(()).expect("waited for");
        assert_eq!(whole(Ok(answer)).await, "late");
        while server.open.get() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_head_that_is_too_large_is_no_answer() {
    local(async {
        for (step, good) in [
            (Step::Large(60 << 10), true),
            (Step::Large(70 << 10), false),
            (Step::Fields(200), true),
            (Step::Fields(201), false),
        ] {
            let server = Multiplexing::start(100, vec![step]).await;
            let (pools, backend) = (pools(), server.backend());
            let outcome = pools.send(&backend, get(), None, SendLimits::default()).await;
            if good {
                whole(outcome).await;
            } else {
                assert_eq!((kind(outcome), server.requests()), (ErrorKind::InvalidResponse, 1));
            }
        }
    });
}

#[test]
fn floods_of_frames_end_the_connection() {
    local(async {
        // `:status: 103`, as a literal that is not indexed.
        let early = frame(HEADERS, END_HEADERS, 1, &[0x08, 0x03, b'1', b'0', b'3']);
        let (early, pings) =
            ((early, ErrorKind::InvalidResponse), (frame(PING, 0, 0, &[0; 8]), ErrorKind::Reset));
        for (flood, expected) in [early, pings] {
            let (listener, address) = listen().await;
            let server = async {
                let mut server = ByHand::accept(&listener).await;
                server.request().await;
                while server.0.write_all(&flood.repeat(100)).await.is_ok() {}
            };
            let (pools, backend) = (pools(), backend(address));
            let (outcome, ()) =
                tokio::join!(pools.send(&backend, get(), None, SendLimits::default()), server);
            assert_eq!(kind(outcome), expected);
        }
    });
}

#[test]
fn whoever_does_not_speak_http2_is_not_asked() {
    local(async {
        let (listener, address) = listen().await;
        let (pools, backend) = (pools(), backend(address));
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("sent");
            stream
        };
        let (outcome, _stream) =
            tokio::join!(pools.send(&backend, get(), None, SendLimits::default()), server);
        assert_eq!(kind(outcome), ErrorKind::ConnectFailure);
    });
}

#[test]
fn an_endpoint_that_accepts_and_says_nothing_is_not_connected() {
    local_paused(async {
        let (_listener, address) = listen().await;
        let (pools, backend) = (pools(), backend(address));
        let all = (0..3).map(|_| pools.send(&backend, get(), None, SendLimits::default()));
        for outcome in join_all(all).await {
            assert!(matches!(kind(outcome), ErrorKind::ConnectTimeout | ErrorKind::ConnectFailure));
        }
    });
}

#[test]
fn a_connection_that_became_silent_gets_no_new_requests() {
    local_paused(async {
        let (listener, address) = listen().await;
        let (pools, backend) = (pools(), backend(address));
        let server = async {
            let mut first = ByHand::accept(&listener).await;
            first.request().await;
            let mut second = ByHand::accept(&listener).await;
            let stream = second.request().await;
            second.say(&frame(HEADERS, END_STREAM | END_HEADERS, stream, STATUS_200)).await;
            settle().await;
        };
        let client = async {
            let outcome = pools.send(&backend, get(), None, limits(Duration::from_secs(2))).await;
            assert_eq!(kind(outcome), ErrorKind::BackendTimeout);
            whole(pools.send(&backend, get(), None, limits(Duration::from_secs(2))).await).await;
        };
        tokio::join!(client, server);
    });
}

#[test]
fn one_slow_answer_does_not_make_a_connection_dead() {
    local_paused(async {
        let server = Multiplexing::start(100, vec![Step::Never, Step::Ok]).await;
        let (pools, backend) = (pools(), server.backend());
        let slow = pools.send(&backend, get(), None, limits(Duration::from_secs(2)));
        let others = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
            }
        };
        let (slow, ()) = tokio::join!(slow, others);
        assert_eq!(kind(slow), ErrorKind::BackendTimeout);
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        assert_eq!(server.connections.get(), 1);
    });
}

#[test]
fn an_endpoint_that_does_not_answer_a_ping_is_dead() {
    local_paused(async {
        let (listener, address) = listen().await;
        let (pools, backend) = (pools(), backend(address));
        let server = async {
            let mut first = ByHand::accept(&listener).await;
            first.request().await;
            // It reads on, and says nothing.
            while first.frame().await.is_some() {}
        };
        let began = Instant::now();
        let (outcome, ()) = tokio::join!(pools.send(&backend, get(), None, SendLimits::default()), server);
        assert_eq!(kind(outcome), ErrorKind::Reset);
        assert!((Duration::from_secs(320)..Duration::from_secs(340)).contains(&began.elapsed()));
    });
}

#[test]
fn an_idle_connection_is_closed_below_a_minute_and_an_old_one_gets_no_new_requests() {
    local_paused(async {
        let server = Multiplexing::start(100, vec![Step::Ok]).await;
        let (pools, backend) = (pools(), server.backend());
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(server.open.get(), 1);
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert_eq!(server.open.get(), 0);
        // Never idle for long.
        for _ in 0..90 {
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
            tokio::time::sleep(Duration::from_secs(50)).await;
        }
        assert_eq!((server.connections.get(), server.open.get()), (3, 1));
    });
}

#[test]
fn a_connection_that_had_as_many_requests_as_it_may_finishes_them_and_gets_no_more() {
    local(async {
        // The first is under way until all are there that one connection takes in a test.
        let server = Multiplexing::start(100, [&[Step::When(1001)][..], &[Step::Ok]].concat()).await;
        let (pools, backend) = (pools(), server.backend());
        let long = async { whole(pools.send(&backend, get(), None, SendLimits::default()).await).await };
        let others = async {
            while server.requests() == 0 {
                tokio::task::yield_now().await;
            }
            for _ in 0..999 {
                whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
            }
            assert_eq!((server.connections.get(), server.requests()), (1, 1000));
            whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
            assert_eq!(server.connections.get(), 2);
        };
        let (first, ()) = tokio::join!(long, others);
        assert_eq!(first, "ok");
        while server.open.get() > 1 {
            tokio::task::yield_now().await;
        }
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        assert_eq!(server.connections.get(), 2);
    });
}

#[test]
fn what_slow_readers_leave_does_not_hold_up_the_others() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Echo]).await;
        let (pools, backend) = (pools(), server.backend());
        let large = "x".repeat(1 << 20);
        let mut unread = Vec::new();
        for _ in 0..20 {
            let body = Body::from(large.clone());
            unread.push(
                pools
                    .send(&backend, request(Method::POST, body), None, SendLimits::default())
                    .await
                    .expect("a head"),
            );
        }
        let one = pools.send(&backend, post("small"), None, SendLimits::default()).await;
        assert_eq!(whole(one).await, "small");
        assert_eq!(server.connections.get(), 1, "the control: on the same connection");
        drop(unread);
    });
}

#[test]
fn a_client_s_broken_body_costs_neither_the_endpoint_nor_the_connection() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Ok]).await;
        let ejection = EjectionPlan {
            consecutive_errors: 1,
            least_success: None,
            eject_for: Duration::from_secs(30),
            max_percent: 100,
        };
        let traffic = TrafficPlan { ejection: Some(ejection), ..TrafficPlan::default() };
        let backend = speaking(&[server.address], HostHeader::Preserve, traffic, BackendProtocol::Http2);
        let pools = pools();
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        for _ in 0..3 {
            let broken = futures_util::stream::iter([
                Ok(Frame::data(Bytes::from_static(b"a"))),
                Err(BodyError::Stalled(Duration::from_secs(30))),
            ]);
            let broken = Body::stream(StreamBody::new(broken));
            let outcome =
                pools.send(&backend, request(Method::POST, broken), None, SendLimits::default()).await;
            assert_eq!(kind(outcome), ErrorKind::RequestTimeout);
        }
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        let totals = backend.stats.totals().expect("counted");
        assert_eq!((totals.ejections, server.connections.get()), (0, 1));
    });
}

#[test]
fn an_upload_ends_with_its_answer() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Echo]).await;
        let (pools, backend) = (pools(), server.backend());
        let (sender, mut pieces) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let endless = futures_util::stream::poll_fn(move |context| {
            pieces.poll_recv(context).map(|piece| piece.map(|piece| Ok::<_, BodyError>(Frame::data(piece))))
        });
        let endless = Body::stream(StreamBody::new(endless));
        let answer = pools.send(&backend, request(Method::POST, endless), None, SendLimits::default()).await;
        let answer = answer.expect("an answer");
        assert!(!sender.is_closed(), "the control: it is read as long as the answer is");
        drop(answer);
        tokio::time::timeout(Duration::from_secs(10), sender.closed())
            .await
            .expect("nobody reads it any more");
    });
}
