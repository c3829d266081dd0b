//! Both ends over a pipe: what one sends arrives at the other, at its pace and to its end.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const WINDOW: u32 = 64 << 10;
const SEND_BUFFER: usize = 64 << 10;

/// A request under way: what the client sends and gets, and what the server does.
struct Pair {
    to_server: SendStream<Bytes>,
    at_server: RecvStream,
    to_client: SendStream<Bytes>,
    at_client: RecvStream,
}

/// `length`: as the request tells it.
async fn pair(length: Option<&'static str>) -> Pair {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let serving = tokio::spawn(async move {
        let mut connection = server::Builder::new()
            .initial_window_size(WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .handshake::<_, Bytes>(theirs)
            .await
            .expect("a client");
        let (request, mut respond) = connection.accept().await.expect("a request").expect("a good one");
        let to_client = respond.send_response(Response::new(()), false).expect("answered");
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        (request, to_client)
    });
    let (mut sender, connection) = client::Builder::new()
        .initial_window_size(WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(ours)
        .await
        .expect("a server");
    tokio::spawn(connection);
    let mut request = Request::post("http://a.example/").body(()).expect("a request");
    if let Some(length) = length {
        request.headers_mut().insert("content-length", HeaderValue::from_static(length));
    }
    let (answer, to_server) = sender.send_request(request, false).expect("sent");
    let (request, to_client) = serving.await.expect("served");
    let at_client = answer.await.expect("answered").into_body();
    Pair { to_server, at_server: request.into_body(), to_client, at_client }
}

fn received(stream: RecvStream) -> Received {
    Received::new(stream, &HeaderMap::new())
}

fn pieces(
    pieces: Vec<Result<Frame<Bytes>, h2::Error>>,
) -> impl Body<Data = Bytes, Error = h2::Error> + Unpin {
    StreamBody::new(stream::iter(pieces))
}

#[tokio::test]
async fn a_body_and_its_trailers_arrive_as_they_were() {
    let Pair { to_client, at_client, .. } = pair(None).await;
    let mut fields = HeaderMap::new();
    fields.insert("x-sum", HeaderValue::from_static("7"));
    let large = Bytes::from(vec![b'x'; 3 * WINDOW as usize]);
    let frames = vec![
        Ok(Frame::data(Bytes::from_static(b"begin"))),
        Ok(Frame::data(Bytes::new())),
        Ok(Frame::data(large.clone())),
        Ok(Frame::trailers(fields.clone())),
    ];
    let (sent, got) = tokio::join!(Sending::new(pieces(frames), to_client), received(at_client).collect());
    sent.expect("sent");
    let got = got.expect("received");
    assert_eq!(got.trailers(), Some(&fields));
    assert!(got.to_bytes() == [b"begin", &large[..]].concat());
}

#[tokio::test]
async fn a_body_without_anything_ends_the_stream() {
    let Pair { to_client, at_client, .. } = pair(None).await;
    Sending::new(Full::<Bytes>::default(), to_client).await.expect("sent");
    let mut body = received(at_client);
    assert!(
        body.frame().await.is_none_or(|frame| frame.expect("a frame").into_data().expect("data").is_empty())
    );
    assert!(body.is_end_stream() && body.frame().await.is_none());
}

#[tokio::test]
async fn what_is_left_of_a_told_length_is_known() {
    let Pair { mut to_server, at_server, .. } = pair(Some("6")).await;
    let mut headers = HeaderMap::new();
    headers.insert("content-length", HeaderValue::from_static("6"));
    let mut body = Received::new(at_server, &headers);
    let mut left = vec![body.size_hint().exact()];
    for (piece, is_last) in [("ab", false), ("cdef", true)] {
        to_server.send_data(piece.into(), is_last).expect("sent");
        let data = body.frame().await.expect("more").expect("good").into_data().expect("data");
        assert_eq!(data, piece);
        left.push(body.size_hint().exact());
    }
    assert_eq!((left, body.is_end_stream()), (vec![Some(6), Some(4), Some(0)], true));
}

/// A body that always has more, and counts what was asked of it.
struct Endless(usize);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 += 1 << 10;
        assert!(self.0 < 100 << 20, "no bound");
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; 1 << 10])))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_is_sent_no_more_than_the_windows_have_room_for() {
    let Pair { to_client, mut at_client, .. } = pair(None).await;
    let mut sending = Sending::new(Endless(0), to_client);
    for (taken, room) in [(false, WINDOW as usize), (true, 2 * WINDOW as usize)] {
        if taken {
            let reading = async {
                let mut left = WINDOW as usize;
                while left > 0 {
                    let data = at_client.data().await.expect("more").expect("good");
                    at_client.flow_control().release_capacity(data.len()).expect("counted");
                    left -= data.len();
                }
            };
            tokio::select! {
                () = reading => {}
                _ = &mut sending => panic!("it never ends"),
            }
        }
        // The time passes only when nobody has anything to do.
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut sending).await.is_err(), "it never ends");
        let asked = sending.body.0;
        assert!(asked >= room && asked <= room + (2 << 10), "{asked} of {room}");
    }
}

#[tokio::test]
async fn a_body_that_fails_resets_with_its_reason() {
    #[derive(Debug, thiserror::Error)]
    #[error("odd")]
    struct Odd;

    let Pair { to_client, at_client, to_server, at_server } = pair(None).await;
    let failing = StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from_static(b"x"))), Err(Odd)]));
    assert!(matches!(Sending::new(failing, to_client).await, Err(Unsent::Body(Odd))));
    let error = received(at_client).collect().await.expect_err("cut");
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    drop((to_server, at_server));

    let Pair { to_client, at_client, .. } = pair(None).await;
    let failing = pieces(vec![Err(Reason::ENHANCE_YOUR_CALM.into())]);
    assert!(Sending::new(failing, to_client).await.is_err());
    let error = received(at_client).collect().await.expect_err("cut");
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    // What has begun is neither well nor undone.
    for reason in [Reason::NO_ERROR, Reason::REFUSED_STREAM, Reason::HTTP_1_1_REQUIRED] {
        let Pair { to_client, at_client, .. } = pair(None).await;
        assert!(Sending::new(pieces(vec![Err(reason.into())]), to_client).await.is_err());
        let error = received(at_client).collect().await.expect_err("cut");
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{reason:?}");
    }
}

#[tokio::test]
async fn a_reset_by_the_peer_ends_the_sending_while_the_body_has_nothing() {
    let Pair { to_client, mut to_server, at_client, at_server } = pair(None).await;
    let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let sending = tokio::spawn(Sending::new(silent, to_client));
    to_server.send_reset(Reason::CANCEL);
    let Err(Unsent::Stream(error)) = sending.await.expect("ended") else { panic!("it was reset") };
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    let error = received(at_server).collect().await.expect_err("cut");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    drop(at_client);
}

#[tokio::test]
async fn a_body_is_whole_only_with_its_end_whatever_a_reset_says() {
    for (ends, expected) in [(true, None), (false, Some(Reason::NO_ERROR))] {
        let Pair { mut to_server, at_server, .. } = pair(None).await;
        to_server.send_data("x".into(), ends).expect("sent");
        let mut body = received(at_server);
        assert_eq!(body.frame().await.expect("more").expect("good").into_data().expect("data"), "x");
        to_server.send_reset(Reason::NO_ERROR);
        let next = body.frame().await.map(|frame| frame.expect_err("no frame").reason());
        assert_eq!(next, expected.map(Some), "{ends}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_room_when_the_peer_has_ended_is_given_up_with_the_stream() {
    let Pair { to_server, mut at_server, mut to_client, at_client } = pair(None).await;
    let large = Bytes::from(vec![b'x'; WINDOW as usize + 1]);
    let mut sending = Sending::new(Full::new(large), to_server);
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut sending).await.is_err(), "some has no room");
    assert!(sending.sent() > 0, "the control: some has");
    to_client.send_data(Bytes::new(), true).expect("sent");
    received(at_client).collect().await.expect("whole");
    drop(sending);
    // Nothing of it is read.
    let error = loop {
        let next = tokio::time::timeout(Duration::from_secs(10), at_server.data()).await;
        if let Err(error) = next.expect("it is told").expect("no end") {
            break error;
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_tunnel_carries_both_directions_to_their_ends() {
    let Pair { to_server, at_server, to_client, at_client } = pair(None).await;
    let (mut client, mut server) = (Tunnel::new(to_server, at_client), Tunnel::new(to_client, at_server));
    let large = vec![b'y'; 4 * WINDOW as usize];
    let (_, got) = tokio::join!(
        async {
            client.write_all(&large).await.expect("written");
            client.shutdown().await.expect("ended");
        },
        async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.expect("read");
            got
        }
    );
    assert!(got == large);
    assert!(client.write_all(b"late").await.is_err(), "it said that it was over");
    // The other direction goes on, and ends with its end.
    server.write_all(b"still here").await.expect("written");
    drop(server);
    let mut got = String::new();
    client.read_to_string(&mut got).await.expect("read");
    assert_eq!(got, "still here");
}

#[tokio::test]
async fn a_tunnel_that_the_peer_gives_up_is_over_and_another_failure_is_told() {
    for (reason, is_end) in
        [(Reason::CANCEL, true), (Reason::NO_ERROR, true), (Reason::PROTOCOL_ERROR, false)]
    {
        let Pair { mut to_server, at_server, to_client, at_client } = pair(None).await;
        let mut server = Tunnel::new(to_client, at_server);
        to_server.send_reset(reason);
        assert_eq!(server.read(&mut [0; 8]).await.is_ok_and(|read| read == 0), is_end, "{reason:?}");
        assert!(server.write_all(b"x").await.is_err(), "{reason:?}");
        drop(at_client);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_waits_for_who_does_not_read() {
    let Pair { to_server, at_server, to_client, at_client } = pair(None).await;
    let (_client, mut server) = (Tunnel::new(to_server, at_client), Tunnel::new(to_client, at_server));
    let (piece, mut written) = (vec![0; 1 << 10], 0);
    while tokio::time::timeout(Duration::from_secs(1), server.write_all(&piece)).await.is_ok() {
        written += piece.len();
        // Of the last piece, some finds no room.
        assert!(written < WINDOW as usize, "no bound");
    }
    assert!(written + piece.len() >= WINDOW as usize, "the control: it took something");
}

const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);

/// What became of a client that is silent, by a paused clock; `answers`: its side of the connection is polled. How long
/// it took.
async fn silence(
    answers: bool,
    used: bool,
    reads_after: Option<Duration>,
    patience: Duration,
) -> Option<Duration> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (opened, served) = tokio::join!(
        client::Builder::new().handshake::<_, Bytes>(ours),
        server::Builder::new().handshake::<_, Bytes>(theirs)
    );
    let ((_sender, mut client), mut served) = (opened.expect("a server"), served.expect("a client"));
    let mut keep_alive = KeepAlive::new(served.ping_pong().expect("the first"), INTERVAL, TIMEOUT);
    let begun = tokio::time::Instant::now();
    let mut reading = std::pin::pin!(tokio::time::sleep(reads_after.unwrap_or(patience * 2)));
    let mut reads = 0;
    let silent = std::future::poll_fn(|context| {
        if reads == 0 && reading.as_mut().poll(context).is_ready() {
            reads = 1;
        }
        let found = keep_alive.poll(context, reads, used);
        let _ = served.poll_accept(context);
        if answers {
            let _ = Pin::new(&mut client).poll(context);
        }
        found
    });
    tokio::time::timeout(patience, silent).await.is_ok().then(|| begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_in_time_is_found_out_and_nobody_else() {
    let long = Duration::from_secs(1000);
    assert_eq!(silence(false, true, None, long).await, Some(INTERVAL + TIMEOUT));
    assert_eq!(silence(true, true, None, long).await, None, "it answers");
    assert_eq!(silence(false, false, None, long).await, None, "nobody asks");
    let read = Duration::from_secs(4);
    assert_eq!(silence(false, true, Some(read), long).await, Some(read + INTERVAL + TIMEOUT));
}
