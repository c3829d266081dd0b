//! What mobile clients and their servers say beside the message itself: priorities pass both ways, early hints to clients of
//! HTTP/1.1 that have time for them; other interim answers of a backend end here, and harm nobody.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::proxy_rig::*;
use crate::cache_origin::{Door, Origin};
use crate::harness;

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n\
    HTTP/1.1 103 Early Hints\r\nlink: </b.css>; rel=preload\r\n\r\n\
    HTTP/1.1 200 OK\r\npriority: u=1, i\r\nlink: </a.css>; rel=preload\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn priorities_pass_both_ways_and_hints_with_the_answer_are_none() {
    let backend = Backend::answering(HINTS).await;
    let gateway = Gateway::before(backend.address);
    for _ in 0..2 {
        let told = exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\npriority: u=5\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 200 ") && told.ends_with("\r\n\r\nok"), "{told}");
        assert_eq!(field(&told, "priority"), Some("u=1, i"));
        assert_eq!(field(&told, "link"), Some("</a.css>; rel=preload"));
        assert_eq!(field(&backend.last(), "priority"), Some("u=5"));
    }

    let socket = TcpStream::connect(gateway.http()).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("speaks HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::builder().uri("http://a.example/").header("priority", "u=0, i");
    let answer = sender.send_request(request.body(Full::default()).expect("a request"));
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("in time").expect("answered");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["priority"]),
        (200, &"u=1, i".parse().expect("a value"))
    );
    assert_eq!(field(&backend.last(), "priority"), Some("u=0, i"));
}

const EARLY: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nSet-Cookie: a=b\r\n\r\n\
    HTTP/1.1 102 Processing\r\nLink: </no>\r\n\r\n\
    HTTP/1.1 103 Early Hints\r\nLink: </b.css>; rel=preload\r\n\r\n";

/// An origin that says hints, to `/late` none, and answers when the door opens.
fn hinting(door: &Door) -> (Origin, Arc<AtomicBool>) {
    let (door, said) = (door.clone(), Arc::new(AtomicBool::new(false)));
    let has_said = Arc::clone(&said);
    let origin = Origin::raw(move |asked, stream| {
        if asked.target() != "/late" {
            let _ = stream.write_all(EARLY.as_bytes());
            has_said.store(true, Ordering::SeqCst);
            door.wait();
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    });
    (origin, said)
}

/// One head, and nothing behind it.
fn head(stream: &mut std::net::TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("more of a head");
        bytes.extend(byte);
    }
    String::from_utf8(bytes).expect("text")
}

fn ask(stream: &mut std::net::TcpStream, path: &str, version: &str) {
    let text = format!("GET {path} HTTP/{version}\r\nHost: shop.example\r\n\r\n");
    stream.write_all(text.as_bytes()).expect("written");
}

fn ok(stream: &mut std::net::TcpStream) {
    assert_eq!(head(stream).split(' ').nth(1), Some("200"));
    let mut body = [0; 2];
    stream.read_exact(&mut body).expect("a body");
    assert_eq!(&body, b"ok");
}

#[test]
fn early_hints_arrive_before_the_answer_and_only_their_links() {
    for cached in ["{}", "{cache: {defaultTtl: 60s}}"] {
        let door = Door::default();
        let (origin, _) = hinting(&door);
        let gateway = origin.under(cached);
        let mut stream = harness::connect(gateway.http);
        ask(&mut stream, "/x", "1.1");
        for link in ["</a.css>", "</b.css>"] {
            let told = format!("HTTP/1.1 103 Early Hints\r\nlink: {link}; rel=preload\r\n\r\n");
            assert_eq!(head(&mut stream), told, "{cached}");
        }
        assert!(!door.is_open(), "the answer is still held back");
        // Who comes behind waits for its turn, and gets none of them.
        ask(&mut stream, "/late", "1.1");
        door.open();
        ok(&mut stream);
        ok(&mut stream);
    }
}

#[test]
fn who_could_not_read_hints_or_changes_answers_gets_none() {
    for (policy, version) in [("{}", "1.0"), ("{response: {headers: {remove: [Link]}}}", "1.1")] {
        let door = Door::default();
        let (origin, said) = hinting(&door);
        let gateway = origin.under(policy);
        let mut stream = harness::connect(gateway.http);
        ask(&mut stream, "/x", version);
        harness::until("the hints", || said.load(Ordering::SeqCst).then_some(()));
        door.open();
        ok(&mut stream);
    }
}
