//! Compression in the whole program: over HTTP/1.1 and HTTP/2, streams that must not be delayed, readers that are slow or
//! leave, conditions, and the metrics that tell of it.

use std::io::Read;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::proxy_rig::{Backend, PATIENCE, field, read_message, status};
use crate::harness::{Gateway, route, until};

/// A gateway that compresses what comes from `backend`.
fn gateway(backend: SocketAddr, compression: &str) -> Gateway {
    let backend = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: one, namespace: test}}\nspec: {{hosts: [{{address: {}, port: {}}}]}}\n",
        backend.ip(),
        backend.port()
    );
    let rule = "{name: all, backendRefs: [{kind: GatewayBackend, name: one}]}";
    let route = route("web", &format!("{{policy: {{compression: {compression}}}, rules: [{rule}]}}"));
    Gateway::start(&[("backend.yaml", &backend), ("route.yaml", &route)])
}

fn text(bytes: usize) -> String {
    let mut text = String::new();
    for n in 0_u64.. {
        if text.len() >= bytes {
            break;
        }
        text += &format!("line {} of {}\n", n, n * n % 1009);
    }
    text.truncate(bytes);
    text
}

fn answer(fields: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {length}\r\n{fields}\r\n{body}")
}

/// Head, and body without its chunks.
async fn ask(gateway: &Gateway, method: &str, fields: &str) -> (String, Vec<u8>) {
    let mut socket = TcpStream::connect(gateway.http).await.expect("connects");
    let request = format!("{method} / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n{fields}\r\n");
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut all)).await.expect("in time").expect("read");
    let at = all.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(all[..at].to_vec()).expect("ASCII");
    let body = &all[at..];
    let is_chunked = field(&head, "transfer-encoding") == Some("chunked");
    (head, if is_chunked { unchunked(body).0 } else { body.to_vec() })
}

/// The data of all whole chunks, and whether the last one is there.
pub(super) fn unchunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else { return (data, false) };
        let size = std::str::from_utf8(&rest[..end]).expect("ASCII");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return (data, true);
        }
        let Some(chunk) = rest.get(end + 2..end + 2 + size) else { return (data, false) };
        data.extend_from_slice(chunk);
        let Some(after) = rest.get(end + 4 + size..) else { return (data, false) };
        rest = after;
    }
}

/// As much as can be unpacked of it.
pub(super) fn unpacked(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let read = match coding {
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain),
        "br" => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain),
        "zstd" => {
            zstd::stream::read::Decoder::new(bytes).and_then(|mut reader| reader.read_to_end(&mut plain))
        }
        other => panic!("{other}"),
    };
    // Cut short, it gives what it has.
    drop(read);
    plain
}

#[tokio::test]
async fn every_coding_arrives_whole_and_is_counted() {
    let body = text(300_000);
    let backend =
        Backend::answering(&answer("etag: \"v1\"\r\naccept-ranges: bytes\r\nconnection: close\r\n", &body))
            .await;
    let gateway = gateway(backend.address, "{}");
    for coding in ["gzip", "br", "zstd"] {
        let (head, packed) = ask(&gateway, "GET", &format!("accept-encoding: {coding}\r\n")).await;
        assert_eq!(status(&head), 200);
        assert_eq!(field(&head, "content-encoding"), Some(coding));
        assert_eq!(field(&head, "vary"), Some("Accept-Encoding"));
        assert_eq!(field(&head, "etag"), Some("W/\"v1\""));
        assert_eq!((field(&head, "content-length"), field(&head, "accept-ranges")), (None, None));
        assert!(packed.len() < body.len() / 3, "{coding}: {}", packed.len());
        assert!(unpacked(coding, &packed) == body.as_bytes(), "{coding}");
        let (of_head, nothing) = ask(&gateway, "HEAD", &format!("accept-encoding: {coding}\r\n")).await;
        assert!(nothing.is_empty());
        for name in ["content-encoding", "vary", "etag", "content-length", "content-type"] {
            assert_eq!(field(&of_head, name), field(&head, name), "{name}");
        }
    }
    let (head, plain) = ask(&gateway, "GET", "").await;
    assert!(plain == body.as_bytes());
    assert_eq!((field(&head, "vary"), field(&head, "etag")), (Some("Accept-Encoding"), Some("\"v1\"")));
    until("the metrics", || {
        let metrics = gateway.ask_admin("/metrics").body;
        let told = |line: String| metrics.lines().any(|known| known == line).then_some(());
        for coding in ["gzip", "br", "zstd"] {
            let labels = format!("namespace=\"test\",route=\"web\",rule=\"all\",coding=\"{coding}\"");
            told(format!("portcullis_compressed_answers_total{{{labels}}} 1"))?;
            told(format!("portcullis_compression_bytes_total{{{labels},side=\"before\"}} 300000"))?;
        }
        Some(())
    });
}

#[tokio::test]
async fn what_is_not_ours_to_change_stays_as_it_is() {
    for fields in [
        "content-encoding: br\r\n",
        "cache-control: no-transform\r\n",
        "content-range: bytes 0-4999/9000\r\n",
    ] {
        let body = text(5_000);
        let backend = Backend::answering(&answer(&format!("{fields}etag: \"v1\"\r\n"), &body)).await;
        let gateway = gateway(backend.address, "{algorithms: [Gzip]}");
        let (head, same) = ask(&gateway, "GET", "accept-encoding: gzip\r\n").await;
        assert!(same == body.as_bytes(), "{fields}");
        assert_eq!((field(&head, "content-length"), field(&head, "etag")), (Some("5000"), Some("\"v1\"")));
        assert_eq!(field(&head, "vary"), None, "{fields}");
    }
}

#[tokio::test]
async fn a_client_finds_its_version_again() {
    let backend =
        Backend::answering("HTTP/1.1 304 Not Modified\r\netag: \"v1\"\r\ncontent-length: 0\r\n\r\n").await;
    let gateway = gateway(backend.address, "{}");
    let fields = "accept-encoding: gzip\r\nif-none-match: W/\"v1\"\r\n";
    let (head, body) = ask(&gateway, "GET", fields).await;
    assert_eq!((status(&head), field(&head, "etag"), body.len()), (304, Some("W/\"v1\""), 0));
    assert_eq!(field(&head, "vary"), Some("Accept-Encoding"));
    assert_eq!(field(&backend.last(), "if-none-match"), Some("W/\"v1\", \"v1\""));
    ask(&gateway, "PUT", "accept-encoding: gzip\r\nif-match: W/\"v1\"\r\ncontent-length: 0\r\n").await;
    assert_eq!(field(&backend.last(), "if-match"), Some("W/\"v1\", \"v1\""));
}

/// A backend that sends an event each time that it is told to.
async fn eventful() -> (SocketAddr, tokio::sync::mpsc::UnboundedSender<&'static str>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("asked");
        read_message(&mut socket, &mut Vec::new()).await.expect("a request");
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        socket.write_all(head.as_bytes()).await.expect("sent");
        while let Some(event) = events.recv().await {
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            socket.write_all(chunk.as_bytes()).await.expect("sent");
        }
    });
    (address, sender)
}

#[tokio::test]
async fn each_event_arrives_before_the_next_one_is_sent() {
    for coding in ["gzip", "br", "zstd"] {
        let (address, events) = eventful().await;
        let gateway = gateway(address, "{}");
        let mut socket = TcpStream::connect(gateway.http).await.expect("connects");
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\naccept-encoding: {coding}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let (mut all, mut expected) = (Vec::new(), String::new());
        for event in ["data: one\n\n", "data: two\n\n", "data: three\n\n"] {
            events.send(event).expect("it listens");
            expected += event;
            let arriving = async {
                loop {
                    let body =
                        all.windows(4).position(|window| window == b"\r\n\r\n").map(|at| &all[at + 4..]);
                    if body.is_some_and(|body| unpacked(coding, &unchunked(body).0) == expected.as_bytes()) {
                        return;
                    }
                    assert!(socket.read_buf(&mut all).await.expect("open") > 0, "closed");
                }
            };
            tokio::time::timeout(PATIENCE, arriving).await.unwrap_or_else(|_| panic!("{coding}: {event}"));
        }
    }
}

#[tokio::test]
async fn over_http2_too_and_many_at_once() {
    let body = text(200_000);
    let backend = Backend::answering(&answer("", &body)).await;
    let gateway = gateway(backend.address, "{}");
    let socket = TcpStream::connect(gateway.http).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("speaks HTTP/2");
    tokio::spawn(connection);
    let codings = ["gzip", "br", "zstd"].into_iter().cycle().take(30);
    let asked = codings.map(|coding| {
        let request = http::Request::builder().uri("http://a.example/").header("accept-encoding", coding);
        let answer = sender.send_request(request.body(Full::default()).expect("a request"));
        async move {
            let answer = answer.await.expect("answered");
            assert_eq!(answer.headers()["content-encoding"], coding);
            (coding, answer.into_body().collect().await.expect("whole").to_bytes())
        }
    });
    let answers = futures_util::future::join_all(asked);
    let answers = tokio::time::timeout(PATIENCE, answers).await.expect("in time");
    assert!(answers.iter().all(|(coding, packed)| unpacked(coding, packed) == body.as_bytes()));
}

/// A backend whose answer has no end; what it could send so far.
async fn endless() -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let sent = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let count = sent.clone();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("asked");
        read_message(&mut socket, &mut Vec::new()).await.expect("a request");
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n").await.expect("sent");
        // Hard to compress, so that what waits for the client is as large as what came.
        let mut seed = 1_u64;
        loop {
            let noise: Vec<u8> = std::iter::repeat_with(|| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .take(64 << 10)
            .collect();
            if socket.write_all(&noise).await.is_err() {
                count.store(usize::MAX, std::sync::atomic::Ordering::SeqCst);
                return;
            }
            count.fetch_add(noise.len(), std::sync::atomic::Ordering::SeqCst);
        }
    });
    (address, sent)
}

#[tokio::test]
async fn who_does_not_read_makes_the_backend_wait_and_who_leaves_ends_it() {
    let (address, sent) = endless().await;
    let gateway = gateway(address, "{}");
    let mut socket = TcpStream::connect(gateway.http).await.expect("connects");
    socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\naccept-encoding: zstd\r\n\r\n").await.expect("sent");
    let so_far = || sent.load(std::sync::atomic::Ordering::SeqCst);
    let standing = async {
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(200));
        let (mut before, mut same) = (0, 0);
        while same < 5 {
            looks.tick().await;
            same = if before == so_far() && before > 0 { same + 1 } else { 0 };
            before = so_far();
        }
    };
    tokio::time::timeout(PATIENCE, standing).await.expect("it comes to a stand");
    // What sockets of both sides and the proxy hold.
    assert!(so_far() < 40 << 20, "{}", so_far());
    drop(socket);
    let ending = async {
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(5));
        while so_far() != usize::MAX {
            looks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, ending).await.expect("the backend is told");
}
