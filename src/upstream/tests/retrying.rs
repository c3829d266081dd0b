//! What is tried again, what is not, and what a backend gets to see of it.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::scripted::{
    OK, Scripted, Step, backend, backend_with, get, head, kind, local, pools, refused, request, settle,
};
use crate::message::{Body, BodyError, ErrorKind, ProxyError, Request};
use crate::route_map::{EjectionPlan, HostHeader, RetryPlan, TrafficPlan};
use crate::upstream::repeatable::Repeatable;
use crate::upstream::{Answer, Pools, SendLimits, Tries};

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";
const LATER: &str = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n";
/// Reads the request and closes.
const CLOSE: &str = "";
/// Reads the request and says nothing.
const SILENCE: &str = "silence";

type Whole = (String, Vec<u8>);

/// A backend that reads requests whole and gives the first this answer, the second that, and all others the last.
struct Reader {
    address: SocketAddr,
    /// Head and body as they came.
    seen: Rc<RefCell<Vec<Whole>>>,
    connections: Rc<RefCell<usize>>,
}

impl Reader {
    async fn start(answers: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let (seen, connections) = (Rc::<RefCell<Vec<_>>>::default(), Rc::<RefCell<usize>>::default());
        let (requests, count) = (seen.clone(), connections.clone());
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                *count.borrow_mut() += 1;
                let requests = requests.clone();
                tokio::task::spawn_local(async move {
                    while let Some((head, body)) = read(&mut stream).await {
                        let number = requests.borrow().len();
                        requests.borrow_mut().push((head, body));
                        match answers[number.min(answers.len() - 1)] {
                            CLOSE => return,
                            SILENCE => {}
                            text => stream.write_all(text.as_bytes()).await.unwrap_or_default(),
                        }
                    }
                });
            }
        });
        Self { address, seen, connections }
    }

    fn requests(&self) -> usize {
        self.seen.borrow().len()
    }
}

/// A whole request: by its length, or up to the last chunk and its trailers.
async fn read(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let head = head(stream).await?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
    stream.read_exact(&mut body).await.ok()?;
    while head.contains("chunked")
        && !(body.ends_with(b"\r\n\r\n") && body.windows(3).any(|part| part == b"0\r\n"))
    {
        body.push(stream.read_u8().await.ok()?);
    }
    Some((head, body))
}

fn plan(attempts: u8, codes: &[u16]) -> RetryPlan {
    RetryPlan {
        attempts,
        codes: codes.into(),
        grpc_codes: Box::default(),
        backoff: Duration::ZERO,
        budget_percent: 20,
        non_idempotent: false,
    }
}

struct Sent {
    outcome: Result<Answer, ProxyError>,
    retries: u8,
}

impl Sent {
    async fn text(self) -> (StatusCode, Bytes) {
        let response = self.outcome.expect("an answer").response;
        let status = response.status();
        (status, response.into_body().read(1 << 20).await.expect("a whole body").0)
    }
}

async fn send(pools: &Pools, server: &[SocketAddr], request: Request, plan: &RetryPlan) -> Sent {
    within(pools, server, request, plan, SendLimits::default()).await
}

async fn within(
    pools: &Pools,
    server: &[SocketAddr],
    request: Request,
    plan: &RetryPlan,
    limits: SendLimits<'_>,
) -> Sent {
    let (backend, count) = (backend(server, HostHeader::Preserve), Cell::default());
    let tries = Tries::counted_in(&count);
    let outcome = pools.send_retrying(&backend, request, None, limits, plan, &tries).await;
    Sent { outcome, retries: count.get() }
}

fn post(body: Body) -> Request {
    let mut request = request(Method::POST, body);
    request.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    request
}

/// Chunks of these sizes, then trailers.
fn chunks(sizes: &[usize]) -> Body {
    let mut frames: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(number, size)| Ok::<_, BodyError>(Frame::data(Bytes::from(vec![b'a' + number as u8; *size]))))
        .collect();
    let fields =
        HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
    frames.push(Ok(Frame::trailers(fields)));
    Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
}

#[test]
fn a_status_that_is_listed_is_tried_again_at_another_endpoint() {
    local(async {
        let (busy, good) = (Reader::start(&[BUSY]).await, Reader::start(&[OK]).await);
        let (pools, plan) = (pools(), plan(1, &[503]));
        let both = backend(&[busy.address, good.address], HostHeader::Preserve);
        for _ in 0..4 {
            let count = Cell::default();
            let tries = Tries::counted_in(&count);
            let sent = pools.send_retrying(&both, get(), None, SendLimits::default(), &plan, &tries);
            assert_eq!(super::scripted::whole(sent.await).await, "ok");
        }
        assert_eq!(good.requests(), 4);
        assert!(busy.requests() > 0, "the control: some went there first");
    });
}

#[test]
fn a_status_that_is_not_listed_goes_to_the_client() {
    local(async {
        let busy = Reader::start(&[BUSY, OK]).await;
        let sent = send(&pools(), &[busy.address], get(), &plan(3, &[500, 502])).await;
        assert_eq!((sent.retries, sent.text().await.1), (0, Bytes::from("busy")));
        assert_eq!(busy.requests(), 1);
    });
}

#[test]
fn the_last_answer_is_the_clients_and_connections_are_kept_meanwhile() {
    local(async {
        let busy = Reader::start(&[BUSY]).await;
        let sent = send(&pools(), &[busy.address], get(), &plan(3, &[503])).await;
        assert_eq!((sent.retries, sent.text().await.1), (3, Bytes::from("busy")));
        assert_eq!((busy.requests(), *busy.connections.borrow()), (4, 1));
    });
}

#[test]
fn what_may_have_been_done_is_repeated_only_where_that_does_no_harm() {
    local(async {
        for (method, non_idempotent, tries) in [
            (Method::GET, false, 2),
            (Method::PUT, false, 2),
            (Method::DELETE, false, 2),
            (Method::POST, false, 1),
            (Method::PATCH, false, 1),
            (Method::POST, true, 2),
        ] {
            for first in [BUSY, CLOSE] {
                let answers: &'static [&'static str] = Vec::leak(vec![first, OK]);
                let server = Reader::start(answers).await;
                let plan = RetryPlan { non_idempotent, ..plan(1, &[503]) };
                let sent =
                    send(&pools(), &[server.address], request(method.clone(), Body::Empty), &plan).await;
                assert_eq!(server.requests(), tries, "{method} after {first:?}");
                assert_eq!(sent.outcome.is_ok_and(|a| a.response.status() == 200), tries == 2, "{method}");
            }
        }
    });
}

#[test]
fn nothing_was_sent_to_an_endpoint_that_cannot_be_reached() {
    local(async {
        let (nowhere, plan) = (refused().await, plan(2, &[]));
        let (pools, count) = (pools(), Cell::default());
        let tries = Tries::counted_in(&count);
        let backend = backend(&[nowhere], HostHeader::Preserve);
        let limits = SendLimits::default();
        let sent = pools.send_retrying(&backend, post(chunks(&[5])), None, limits, &plan, &tries);
        assert_eq!(kind(sent.await), ErrorKind::ConnectFailure);
        let connects: u64 = backend.stats.totals().expect("counted").connects.iter().sum();
        assert_eq!((connects, count.get()), (3, 2));
    });
}

#[test]
fn a_body_is_sent_again_byte_for_byte() {
    local(async {
        let server = Reader::start(&[BUSY, CLOSE, OK]).await;
        let plan = RetryPlan { non_idempotent: true, ..plan(2, &[503]) };
        let sent = send(&pools(), &[server.address], post(chunks(&[10, 2000, 1])), &plan).await;
        assert_eq!(sent.text().await.0, StatusCode::OK);
        let seen = server.seen.borrow();
        assert_eq!(seen.len(), 3);
        // Sizes of chunks are written with capitals.
        let content = |(_, body): &Whole| {
            String::from_iter(body.iter().map(|byte| *byte as char)).replace(|c: char| !c.is_lowercase(), "")
        };
        for one in seen.iter() {
            assert_eq!(one.0, seen[0].0);
            assert_eq!(content(one), "a".repeat(10) + &"b".repeat(2000) + "cxsum");
            assert!(one.1.ends_with(b"0\r\nx-sum: 7\r\n\r\n"), "the trailers, too");
        }
    });
}

#[test]
fn a_body_over_the_bound_is_sent_once() {
    local(async {
        for (size, tries) in [(64 << 10, 2), ((64 << 10) + 1, 1)] {
            let server = Reader::start(&[BUSY, OK]).await;
            let plan = RetryPlan { non_idempotent: true, ..plan(1, &[503]) };
            let sent = send(&pools(), &[server.address], post(chunks(&[size - 10, 10])), &plan).await;
            assert_eq!((server.requests(), sent.retries), (tries, tries as u8 - 1), "{size}");
        }
    });
}

#[test]
fn a_body_that_its_sender_breaks_off_is_nobodys_retry() {
    local(async {
        let server = Reader::start(&[OK]).await;
        let plan = RetryPlan { non_idempotent: true, ..plan(2, &[503]) };
        let frames = [Ok(Frame::data(Bytes::from("half"))), Err(BodyError::Stalled(Duration::from_secs(1)))];
        let body = Body::stream(StreamBody::new(futures_util::stream::iter(frames)));
        let sent = send(&pools(), &[server.address], post(body), &plan).await;
        assert_eq!((sent.retries, kind(sent.outcome)), (0, ErrorKind::RequestTimeout));
    });
}

#[test]
fn what_has_begun_is_never_repeated() {
    local(async {
        // Half of an answer, and the end; whoever came again would get the same.
        let server =
            Scripted::start(|_| vec![Step::Last("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf")]);
        let server = server.await;
        let plan = RetryPlan { non_idempotent: true, ..plan(2, &[500, 502, 503]) };
        let sent = send(&pools(), &[server.address], get(), &plan).await;
        let answer = sent.outcome.expect("a head").response;
        assert_eq!((answer.status(), sent.retries), (StatusCode::OK, 0));
        assert!(answer.into_body().read(100).await.is_err(), "it is cut");
        assert_eq!(server.requests(), 1);
    });
}

#[test]
fn a_try_that_takes_too_long_leaves_time_for_the_next() {
    local(async {
        let server = Reader::start(&[SILENCE, OK]).await;
        let limits = SendLimits { one_try: Some(Duration::from_millis(50)), ..SendLimits::default() };
        let sent = within(&pools(), &[server.address], get(), &plan(1, &[]), limits).await;
        assert_eq!((sent.retries, sent.text().await.0), (1, StatusCode::OK));
    });
}

#[test]
fn no_try_begins_past_the_deadline() {
    local(async {
        let server = Reader::start(&[BUSY]).await;
        let limits =
            SendLimits { deadline: Some(Instant::now() + Duration::from_secs(2)), ..SendLimits::default() };
        let patient = RetryPlan { backoff: Duration::from_secs(3600), ..plan(9, &[503]) };
        // As random as the pools' seed, which is fixed: longer than the deadline.
        let sent = within(&pools(), &[server.address], get(), &patient, limits).await;
        assert_eq!(sent.retries, 0);
        assert_eq!(sent.text().await.1, "busy", "not a time-out of our own");
    });
}

#[test]
fn retries_are_a_share_of_the_requests() {
    local(async {
        let server = Reader::start(&[BUSY]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        for _ in 0..500 {
            let count = Cell::default();
            let tries = Tries::counted_in(&count);
            let sent = pools
                .send_retrying(&backend, get(), None, SendLimits::default(), &plan(2, &[503]), &tries)
                .await;
            sent.expect("an answer").response.into_body().read(10).await.expect("whole");
        }
        settle().await;
        assert_eq!(server.requests(), 500 + 100);
        assert_eq!(backend.stats.totals().expect("counted").retries[0], 100);
    });
}

#[test]
fn many_small_pieces_of_a_body_cost_what_they_are() {
    let (request, again) = Repeatable::of(post(pieces(60_000)), true);
    let mut read = request.into_body();
    let mut count = 0;
    while let Some(Some(frame)) = read.frame().now_or_never() {
        count += frame.expect("a piece").into_data().map_or(0, |data| data.len());
    }
    assert_eq!(count, 60_000);
    let again = again.expect("no upgrade");
    let Some(Some(Ok(frame))) = again.again().expect("kept").into_body().frame().now_or_never() else {
        panic!("at hand")
    };
    assert_eq!(frame.into_data().map(|data| data.len()).ok(), Some(60_000), "one piece, copied");
}

/// So many pieces of one byte, each in a buffer of 8 KiB.
fn pieces(count: usize) -> Body {
    let pieces =
        (0..count).map(|_| Ok::<_, BodyError>(Frame::data(Bytes::from(vec![b'x'; 8192]).slice(..1))));
    Body::stream(StreamBody::new(futures_util::stream::iter(pieces)))
}

#[test]
fn of_a_body_that_may_not_be_read_twice_nothing_is_kept() {
    let (request, again) = Repeatable::of(post(pieces(3)), false);
    let again = again.expect("no upgrade");
    drop(request);
    let mut read = again.again().expect("nothing was read").into_body();
    assert!(read.frame().now_or_never().is_some());
    assert!(again.again().is_none());
}

#[test]
fn silence_while_the_client_still_sends_is_nobodys_fault() {
    local(async {
        let server = Reader::start(&[OK]).await;
        for (uploaded, retries) in [(false, 0), (true, 1)] {
            let never = Body::stream(StreamBody::new(futures_util::stream::pending()));
            let mut put = post(never);
            *put.method_mut() = Method::PUT;
            let uploaded = Cell::new(uploaded.then(Instant::now));
            let limits = SendLimits {
                one_try: Some(Duration::from_millis(30)),
                uploaded: Some(&uploaded),
                ..SendLimits::default()
            };
            let sent = within(&pools(), &[server.address], put, &plan(1, &[]), limits).await;
            assert_eq!((sent.retries, kind(sent.outcome)), (retries, ErrorKind::BackendTimeout));
        }
    });
}

#[test]
fn over_budget_an_answer_that_comes_early_comes_whole() {
    local(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let (go_on, told) = tokio::sync::oneshot::channel();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 6\r\n\r\nab").await.expect("written");
            told.await.expect("told");
            stream.write_all(b"cdef").await.expect("written");
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let (pools, backend) = (pools(), backend(&[address], HostHeader::Preserve));
        while backend.may_retry(0) {}
        let (sender, pieces) = a_channel();
        let mut put = post(pieces);
        *put.method_mut() = Method::PUT;
        let (count, uploaded) = (Cell::default(), Cell::new(None));
        let tries = Tries::counted_in(&count);
        let limits = SendLimits { uploaded: Some(&uploaded), ..SendLimits::default() };
        let plan = RetryPlan { budget_percent: 0, ..plan(2, &[503]) };
        let answer =
            pools.send_retrying(&backend, put, None, limits, &plan, &tries).await.expect("an answer");
        sender.send(Bytes::from_static(b"more")).expect("somebody reads");
        settle().await;
        go_on.send(()).expect("it waits");
        let (body, _) = answer.response.into_body().read(100).await.expect("whole");
        assert_eq!((&body[..], count.get()), (&b"abcdef"[..], 0));
    });
}

/// A body of the pieces that are sent.
fn a_channel() -> (tokio::sync::mpsc::UnboundedSender<Bytes>, Body) {
    let (sender, mut pieces) = tokio::sync::mpsc::unbounded_channel();
    let stream = futures_util::stream::poll_fn(move |context| {
        pieces.poll_recv(context).map(|piece| piece.map(|piece| Ok::<_, BodyError>(Frame::data(piece))))
    });
    (sender, Body::stream(StreamBody::new(stream)))
}

#[test]
fn what_nobody_asks_for_again_is_not_kept() {
    let (request, again) = Repeatable::of(post(pieces(10)), true);
    let mut read = request.into_body();
    assert!(read.frame().now_or_never().is_some());
    let again = again.expect("no upgrade");
    assert_eq!(again.kept(), 1);
    assert_eq!(again.kept_after_its_end(), 0);
}

#[test]
fn retries_go_where_it_is_better_and_not_to_one_that_is_left_alone() {
    local(async {
        let (flaky, dead) = (Reader::start(&[LATER, LATER, OK]).await, Reader::start(&[CLOSE]).await);
        let ejection = EjectionPlan {
            consecutive_errors: 1,
            least_success: None,
            eject_for: Duration::from_secs(30),
            max_percent: 50,
        };
        let traffic = TrafficPlan { ejection: Some(ejection), ..TrafficPlan::default() };
        let backend = backend_with(&[dead.address, flaky.address], HostHeader::Preserve, traffic);
        let pools = pools();
        // Until the dead one is ejected.
        while dead.requests() == 0 {
            let post = request(Method::POST, Body::Empty);
            let _ = pools.send(&backend, post, None, SendLimits::default()).await;
        }
        let before = flaky.requests();
        let count = Cell::default();
        let tries = Tries::counted_in(&count);
        let limits = SendLimits::default();
        let sent = pools.send_retrying(&backend, get(), None, limits, &plan(2, &[429]), &tries).await;
        assert_eq!(sent.expect("an answer").response.status(), 200);
        assert_eq!(dead.requests(), 1, "left alone");
        assert!(flaky.requests() > before);
    });
}
