//! Clients that mean harm, one row of docs/hardening.md each: what they send ends, others are served all the while.

use std::net::SocketAddr;

use bytes::Bytes;
use http::StatusCode;
use portcullis::filters::TimeoutsPlan;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::proxy_limits::{HEAD, PREFACE, SHORT, closed, frame, gateway};
use super::proxy_rig::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
/// More frames than any bound of ours.
const FLOOD: u32 = 500_000;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// POST / of host "a" in HPACK.
const POST: &[u8] = &[0x83, 0x86, 0x84, 0x01, 0x01, b'a'];

async fn http2(gateway: SocketAddr, settings: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(gateway).await.expect("connects");
    socket.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await.expect("sent");
    socket
}

/// Sends `first`, then what `next` makes of 1, 2, 3 …, until the gateway ends the connection, and gives how many it took.
async fn flood(gateway: SocketAddr, first: &[u8], next: impl Fn(u32) -> Vec<u8>) -> u32 {
    let mut socket = http2(gateway, &[]).await;
    socket.write_all(first).await.expect("sent");
    let (mut read, mut write) = socket.split();
    let (mut sink, mut sent) = (tokio::io::sink(), 0);
    let flooding = async {
        while sent < FLOOD {
            let some: Vec<u8> = (sent + 1..=sent + 100).flat_map(&next).collect();
            if write.write_all(&some).await.is_err() {
                return;
            }
            sent += 100;
        }
    };
    let over = async {
        tokio::select! {
            () = flooding => {}
            _ = tokio::io::copy(&mut read, &mut sink) => {}
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("ended in time");
    sent
}

/// The n-th frames of a flood.
type Frames = Box<dyn Fn(u32) -> Vec<u8>>;

/// A backend that takes connections and never answers.
async fn silent() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    (listener.local_addr().expect("bound"), listener)
}

#[tokio::test]
async fn http2_floods_of_resets_continuations_and_tiny_data_end_the_connection() {
    let (address, _listener) = silent().await;
    let gateway = Gateway::before(address);
    let stream = |n: u32| 2 * n + 1;
    let open = frame(HEADERS, END_HEADERS, 1, POST);
    let begun = frame(HEADERS, 0, 1, POST);
    let floods: [(&str, &[u8], Frames); 5] = [
        (
            "rapid reset",
            &[],
            Box::new(move |n| {
                let begin = frame(HEADERS, END_HEADERS | END_STREAM, stream(n), HEAD);
                [begin, frame(RESET, 0, stream(n), &[0, 0, 0, 8])].concat()
            }),
        ),
        ("continuation", &begun, Box::new(|_| frame(CONTINUATION, 0, 1, &[0x0f; 64]))),
        ("empty continuation", &begun, Box::new(|_| frame(CONTINUATION, 0, 1, &[]))),
        ("empty data", &open, Box::new(|_| frame(DATA, 0, 1, &[]))),
        ("tiny data", &open, Box::new(|_| frame(DATA, 0, 1, b"x"))),
    ];
    for (name, first, next) in floods {
        let taken = flood(gateway.http(), first, next).await;
        assert!(taken < FLOOD, "{name}: never cut");
        let mut other = http2(gateway.http(), &[]).await;
        let mut first = [0; 9];
        other.read_exact(&mut first).await.expect("others are served");
        assert_eq!(first[3], SETTINGS, "{name}");
    }
}

#[tokio::test]
async fn a_small_block_that_unpacks_to_a_large_head_is_refused_and_nobody_is_asked() {
    let (address, listener) = silent().await;
    let gateway = Gateway::before(address);
    // A literal of 4,000 bytes into the table, then two thousand references to it: 8 MB from 6 KB.
    let mut bomb = HEAD.to_vec();
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend([b'v'; 4000]);
    bomb.extend([0xbe; 2000]);
    let mut socket = http2(gateway.http(), &[]).await;
    socket.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await.expect("sent");
    // The stream is reset or answered 431, or the connection ends.
    let refused = async {
        while let Some((kind, stream, payload)) = read_frame(&mut socket).await {
            match (kind, stream) {
                (GOAWAY, _) | (RESET, 1) => return,
                (HEADERS, 1) => return assert!(says_431(&payload), "{payload:?}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("in time");
    let nobody = tokio::time::timeout(std::time::Duration::ZERO, listener.accept()).await;
    assert!(nobody.is_err(), "a backend was asked");
}

/// As text, or in HPACK's code.
fn says_431(block: &[u8]) -> bool {
    block.windows(3).any(|part| part == b"431") || block.starts_with(&[0x48, 0x82, 0x68, 0x21])
}

/// Kind, stream and payload; none when the connection has ended.
async fn read_frame(socket: &mut TcpStream) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    socket.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).expect("small")];
    socket.read_exact(&mut payload).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_one_by_one() {
    let (address, _listener) = silent().await;
    let gateway = Gateway::before(address);
    let mut socket = http2(gateway.http(), &[]).await;
    let streams = (0..101).flat_map(|n| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, HEAD));
    socket.write_all(&streams.collect::<Vec<_>>()).await.expect("sent");
    let refused = async {
        loop {
            let (kind, stream, payload) = read_frame(&mut socket).await.expect("open");
            assert_ne!(kind, GOAWAY);
            if kind == RESET {
                return (stream, payload);
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.expect("in time");
    assert_eq!(refused, (201, vec![0, 0, 0, 7]), "REFUSED_STREAM");
}

#[tokio::test]
async fn a_hundred_streams_that_take_nothing_are_reset_and_their_backends_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let gateway = Gateway::with(|settings| settings.limits.progress = SHORT);
    gateway.serve(&[("", forward("b"))], &[("b", address)]);
    let backend = tokio::spawn(async move {
        let mut ends = Vec::new();
        for _ in 0..100 {
            let (mut socket, _) = listener.accept().await.expect("asked");
            ends.push(tokio::spawn(async move {
                read_message(&mut socket, &mut Vec::new()).await;
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await;
                while socket.write_all(&[b'x'; 65_536]).await.is_ok() {}
            }));
        }
        futures_util::future::join_all(ends).await;
    });
    // SETTINGS_INITIAL_WINDOW_SIZE = 0
    let mut socket = http2(gateway.http(), &[0, 4, 0, 0, 0, 0]).await;
    let streams = (0..100).flat_map(|n| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, HEAD));
    socket.write_all(&streams.collect::<Vec<_>>()).await.expect("sent");
    let reset = async {
        let mut reset = std::collections::BTreeSet::new();
        while reset.len() < 100 {
            let (kind, stream, _) = read_frame(&mut socket).await.expect("the connection stays");
            if kind == RESET {
                reset.insert(stream);
            }
        }
    };
    tokio::time::timeout(PATIENCE, reset).await.expect("reset in time");
    tokio::time::timeout(PATIENCE, backend).await.expect("left in time").expect("backend");
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_cut() {
    let gateway = gateway(|limits| {
        limits.ping = SHORT;
        limits.pong = SHORT;
    });
    let mut socket = http2(gateway.http(), &[]).await;
    // An open stream: only then is the client asked whether it is still there.
    socket.write_all(&frame(HEADERS, END_HEADERS, 1, POST)).await.expect("sent");
    closed(&mut socket).await;
}

#[tokio::test]
async fn a_client_that_gives_most_of_its_streams_up_is_told_to_leave() {
    let (address, listener) = silent().await;
    let gateway = Gateway::before(address);
    let (mut sender, connection) = http2_client(gateway.http()).await;
    let request = || {
        let body = http_body_util::Empty::<Bytes>::new();
        http::Request::builder().uri("http://a/").body(body).expect("a request")
    };
    let (mut given_up, mut asked_sockets) = (0, Vec::new());
    while given_up < 2_000 {
        if sender.ready().await.is_err() {
            break;
        }
        let answering = sender.send_request(request());
        // Given up only once its backend was asked: h2 itself counts those that come too fast.
        tokio::select! {
            _ = answering => break,
            asked = listener.accept() => asked_sockets.push(asked),
        }
        given_up += 1;
    }
    assert!((500..600).contains(&given_up), "{given_up}");
    let ended = tokio::time::timeout(PATIENCE, connection).await.expect("ended in time").expect("ran");
    assert!(ended.is_ok(), "by GOAWAY, not by a cut: {ended:?}");
}

#[tokio::test]
async fn a_client_that_waits_for_its_answers_is_never_told_to_leave() {
    let gateway = gateway(|_| {});
    let (mut sender, _connection) = http2_client(gateway.http()).await;
    for _ in 0..1_200 {
        let body = http_body_util::Empty::<Bytes>::new();
        let request = http::Request::builder().uri("http://a/").body(body).expect("a request");
        assert_eq!(sender.send_request(request).await.expect("answered").status(), StatusCode::OK);
    }
}

/// What the parser cannot read at all, each with the reason that its answer gives.
const UNREADABLE: &[(&str, &str, u16, &str)] = &[
    ("no head", "what?\r\n\r\n", 400, "BadRequest"),
    ("control byte", "GET / HTTP/1.1\r\nhost: a\r\nx\u{1}: b\r\n\r\n", 400, "BadRequest"),
    ("version", "GET / HTTP/2.0\r\nhost: a\r\n\r\n", 400, "BadRequest"),
    (
        "lengths",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        400,
        "BadRequest",
    ),
];

#[tokio::test]
async fn a_head_that_cannot_be_read_is_answered_as_any_failure_and_counted() {
    let gateway = gateway(|_| {});
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(120));
    let too_large =
        [("a large head", &*large), ("many fields", &many)].map(|(n, r)| (n, r, 431, "HeadersTooLarge"));
    let cases: Vec<_> = UNREADABLE.iter().copied().chain(too_large).collect();
    for (name, request, expected, why) in &cases {
        // Alone, and behind a request that was fine.
        for start in ["", GET] {
            let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
            let _ = socket.write_all(format!("{start}{request}").as_bytes()).await;
            let mut rest = Vec::new();
            if !start.is_empty() {
                let fine = read_message(&mut socket, &mut rest).await.expect("an answer");
                assert_eq!(status(&fine), 200, "{name}");
            }
            let refused = read_message(&mut socket, &mut rest).await.expect(name);
            assert_eq!((status(&refused), reason(&refused).as_str()), (*expected, *why), "{name}: {refused}");
            assert_eq!(field(&refused, "content-type"), Some("application/problem+json"), "{name}");
            assert_eq!(field(&refused, "connection"), Some("close"), "{name}");
            assert_eq!(closed(&mut socket).await, b"", "{name}");
        }
    }
    let counted = |reason: &str, wanted: usize| {
        let metrics = gateway.telemetry.render();
        let lines = metrics.lines().filter(|line| {
            line.starts_with("portcullis_requests_total{") && line.contains(&format!("reason=\"{reason}\""))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum::<usize>() == wanted
    };
    until("the count of the unreadable", || counted("BadRequest", 2 * UNREADABLE.len())).await;
    until("the count of the large", || counted("HeadersTooLarge", 4)).await;
}

#[tokio::test]
async fn a_backend_s_own_empty_400_is_passed_on_as_it_is() {
    let backend = Backend::answering("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let gateway = Gateway::before(backend.address);
    let last = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    for request in [GET, GET, last] {
        socket.write_all(request.as_bytes()).await.expect("sent");
        let answer = answer(&mut socket).await;
        assert!(status(&answer) == 400 && field(&answer, "content-length") == Some("0"), "{answer}");
    }
    assert_eq!(closed(&mut socket).await, b"");
}

#[tokio::test]
async fn a_tunnel_is_counted_with_its_bytes_when_it_ends_and_ends_when_nothing_moves() {
    let (address, listener) = silent().await;
    let gateway = Gateway::start();
    let timeouts = TimeoutsPlan { tunnel_idle: Some(SHORT * 5), ..TimeoutsPlan::default() };
    gateway.serve(&[("", forward_within("b", timeouts))], &[("b", address)]);
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    let upgrade = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).await.expect("sent");
    let (mut backend, _) = listener.accept().await.expect("asked");
    read_message(&mut backend, &mut Vec::new()).await.expect("a request");
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n";
    backend.write_all(switch).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("the 101"));
    }
    socket.write_all(&[b'u'; 300]).await.expect("sent");
    backend.read_exact(&mut [0; 300]).await.expect("through");
    backend.write_all(&[b'd'; 70_000]).await.expect("sent");
    socket.read_exact(&mut vec![0; 70_000]).await.expect("through");
    let number = |name: &str| {
        let metrics = gateway.telemetry.render();
        let of_route =
            metrics.lines().filter(|line| line.starts_with(name) && line.contains("namespace=\"ns\""));
        of_route.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    assert_eq!(number("portcullis_requests_total"), 0.0, "it is open");
    assert_eq!(number("portcullis_requests_in_flight"), 1.0);
    assert_eq!(closed(&mut socket).await, b"", "nothing moved for too long");
    until("its count", || number("portcullis_requests_total") == 1.0).await;
    assert_eq!(number("portcullis_requests_in_flight"), 0.0);
    assert_eq!(number("portcullis_request_size_bytes_sum"), 300.0);
    assert_eq!(number("portcullis_response_size_bytes_sum"), 70_000.0);
}
