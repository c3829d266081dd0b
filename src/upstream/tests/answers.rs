//! What may come back: nonsense, floods, interim answers, tunnels.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;

use super::http2::{self, Multiplexing};
use super::scripted::{
    OK, Script, Scripted, Step, backend, flood, get, kind, local, local_paused, pools, request, whole,
};
use crate::message::{Body, BodyError, ErrorKind};
use crate::route_map::HostHeader;
use crate::upstream::SendLimits;

#[test]
fn a_body_that_is_cut_ends_in_an_error() {
    local(async {
        let scripts: [Script; 2] = [
            |_| vec![Step::Last("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nstart\r\n")],
            |_| vec![Step::Last("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nstart")],
        ];
        for script in scripts {
            let server = Scripted::start(script).await;
            let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
            let answer = pools.send(&backend, get(), None, SendLimits::default()).await.expect("a head");
            assert!(answer.response.into_body().read(1 << 20).await.is_err());
        }
    });
}

#[test]
fn what_is_no_http_answer_is_invalid() {
    local(async {
        let scripts: [Script; 4] = [
            |_| vec![Step::Answer("SSH-2.0-OpenSSH_9.2\r\n\r\n")],
            |_| vec![Step::Last("HTTP/1.1 200 OK\r\nbroken")],
            |_| vec![Step::Answer("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx")],
            |_| vec![Step::Answer("HTTP/1.1 999999 OK\r\n\r\n")],
        ];
        for script in scripts {
            let server = Scripted::start(script).await;
            let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
            let outcome = pools.send(&backend, get(), None, SendLimits::default()).await;
            assert_eq!(kind(outcome), ErrorKind::InvalidResponse);
        }
    });
}

#[test]
fn answers_without_end_are_cut() {
    local(async {
        let long: &'static str =
            format!("HTTP/1.1 103 Early Hints\r\nx-long: {}\r\n\r\n", "a".repeat(60 << 10)).leak();
        for (start, more) in [
            ("HTTP/1.1 200 OK\r\n", "x-more: of the same, and then some\r\n"),
            (
                "HTTP/1.1 200 OK\r\nx-long: ",
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ),
            ("", "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"),
            ("", long),
        ] {
            let address = flood(start, more).await;
            let (pools, backend) = (pools(), backend(&[address], HostHeader::Preserve));
            let outcome = pools.send(&backend, get(), None, SendLimits::default()).await;
            assert_eq!(kind(outcome), ErrorKind::InvalidResponse, "{more}");
        }
    });
}

#[test]
fn as_many_interim_answers_as_may_come_are_passed_over_and_one_more_is_no_answer() {
    local(async {
        let scripts: [(Script, bool); 2] = [(|_| vec![interim(32)], true), (|_| vec![interim(33)], false)];
        for (script, good) in scripts {
            let server = Scripted::start(script).await;
            let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
            if good {
                // Each request has its own.
                for _ in 0..2 {
                    let outcome = pools.send(&backend, get(), None, SendLimits::default()).await;
                    assert_eq!(whole(outcome).await, "ok");
                }
                assert_eq!(server.connections(), 1);
            } else {
                let outcome = pools.send(&backend, get(), None, SendLimits::default()).await;
                assert_eq!(kind(outcome), ErrorKind::InvalidResponse);
            }
        }
    });
}

#[test]
fn over_http2_it_is_as_many_and_one_more_costs_the_request_alone() {
    local(async {
        let steps = [32, 33, 32].map(http2::Step::Interim).to_vec();
        let server = Multiplexing::start(100, steps).await;
        let (pools, backend) = (pools(), server.backend());
        for expected in [None, Some(ErrorKind::InvalidResponse), None] {
            let outcome = pools.send(&backend, get(), None, SendLimits::default()).await;
            match expected {
                None => assert_eq!(whole(outcome).await, "ok"),
                Some(expected) => assert_eq!(kind(outcome), expected),
            }
        }
        assert_eq!(server.connections.get(), 1);
    });
}

fn interim(count: usize) -> Step {
    let row = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n".repeat(count);
    Step::Answer(format!("{row}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").leak())
}

#[test]
fn an_interim_answer_is_passed_over() {
    local(async {
        let server = Scripted::start(|_| {
            vec![Step::Answer(
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            )]
        })
        .await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        assert_eq!(whole(pools.send(&backend, get(), None, SendLimits::default()).await).await, "ok");
    });
}

#[test]
fn a_tunnel_carries_bytes_both_ways_and_never_returns_to_the_pool() {
    local(async {
        let server = Scripted::start(|_| {
            vec![Step::Answer(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello",
            )]
        })
        .await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let mut upgrade = get();
        upgrade.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        upgrade.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
        let answer = pools.send(&backend, upgrade, None, SendLimits::default()).await.expect("an answer");
        assert_eq!(answer.response.status(), 101);
        let mut tunnel = answer.tunnel.expect("upgraded");
        let mut hello = [0; 5];
        tunnel.read_exact(&mut hello).await.expect("bytes");
        assert_eq!(&hello, b"hello");
        let counted = || backend.stats.totals().map(|totals| (totals.active, totals.idle));
        assert_eq!(counted(), Some((1, 0)), "as long as its place is held");
        drop(answer.place);
        assert_eq!(counted(), Some((0, 0)));
        drop(tunnel);
        server.has_open(0).await;
    });
}

#[test]
fn an_answer_before_the_request_was_read_ends_the_upload() {
    local_paused(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK), Step::Silence]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let endless = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, BodyError>>());
        let post = request(Method::POST, Body::stream(endless));
        assert_eq!(whole(pools.send(&backend, post, None, SendLimits::default()).await).await, "ok");
        whole(pools.send(&backend, get(), None, SendLimits::default()).await).await;
        assert_eq!(server.connections(), 2, "the busy connection is not used again");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(*server.open.borrow(), 1);
    });
}
