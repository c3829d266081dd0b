//! What HTTP/2 itself may keep when our side is done with a request: of what an endpoint leaves unread nothing stays, no
//! place on its connection, and no connection.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http2::{ByHand, END_HEADERS, END_STREAM, HEADERS, SETTINGS, STATUS_200, backend, frame, listen};
use super::scripted::{get, local, local_paused, pools, request, set, settle, whole};
use crate::message::{Body, BodyError, Request};
use crate::upstream::SendLimits;

const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;

/// A body of one piece.
fn post(bytes: usize) -> Request {
    request(Method::POST, Body::from(Bytes::from(vec![b'x'; bytes])))
}

/// Answers a stream without a body.
fn answer(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, STATUS_200)
}

#[test]
fn what_an_endpoint_answers_unread_takes_up_no_place() {
    local(async {
        let (listener, address) = listen().await;
        let server = async {
            let mut server = ByHand::accept(&listener).await;
            // SETTINGS_MAX_CONCURRENT_STREAMS: one.
            server.say(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1])).await;
            for expected in [1, 3, 5] {
                assert_eq!(server.request().await, expected);
                server.say(&answer(expected)).await;
                // The window of the whole connection, so that the next has some.
                server.say(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0xff, 0xff])).await;
            }
            while server.frame().await != Some((RST_STREAM, 5)) {}
        };
        let (pools, backend) = (pools(), backend(address));
        let client = async {
            // A byte more than the windows, which stay shut.
            for _ in 0..3 {
                whole(pools.send(&backend, post(64 << 10), None, SendLimits::default()).await).await;
            }
        };
        tokio::join!(client, server);
    });
}

#[test]
fn a_connection_that_nobody_holds_ends_whatever_its_endpoint_holds_up() {
    local_paused(async {
        let (listener, address) = listen().await;
        let (pools, backend) = (pools(), backend(address));
        let (source, at) = listen().await;
        let (feed, accepted) = tokio::join!(TcpStream::connect(at), source.accept());
        let (mut feed, (mut fed, _)) = (feed.expect("connected"), accepted.expect("accepted"));
        let body = async move {
            let mut piece = BytesMut::new();
            fed.read_buf(&mut piece).await.expect("fed");
            Ok::<_, BodyError>(Frame::data(piece.freeze()))
        };
        let server = async {
            let mut server = ByHand::accept(&listener).await;
            assert_eq!(server.request().await, 1);
            // SETTINGS_INITIAL_WINDOW_SIZE 0 comes with the piece: it has room when it is handed to h2, and none when h2
            // gets to write it.
            feed.write_all(b"a piece").await.expect("fed");
            server.say(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
            settle().await;
            server.say(&answer(1)).await;
            let ends = async { while server.frame().await.is_some() {} };
            timeout(Duration::from_secs(3600), ends).await.expect("it ends");
        };
        let client = async {
            let body = Body::stream(StreamBody::new(Box::pin(futures_util::stream::once(body))));
            let request = request(Method::POST, body);
            whole(pools.send(&backend, request, None, SendLimits::default()).await).await;
            backend.set_endpoints(set(&[]));
            assert!(
                pools.send(&backend, get(), None, SendLimits::default()).await.is_err(),
                "nobody is left"
            );
        };
        tokio::join!(server, client);
    });
}
