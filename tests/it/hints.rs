//! What mobile clients and their servers say beside the message itself: priorities pass both ways, early hints to clients
//! that have time for them; other interim answers of a backend end here, and harm nobody.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::proxy_rig::*;
use super::proxy_tls::{certificate, shake, tls};
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

    let mut client = in_the_clear(gateway.http()).await;
    let request = http::Request::get("http://a.example/").header("priority", "u=0, i").body(());
    let (mut answer, _) = client.send_request(request.expect("a request"), true).expect("sent");
    assert_eq!(interim(&mut answer).await, None, "the answer is there already");
    let answer = answer.await.expect("answered");
    assert_eq!((answer.status().as_u16(), text(&answer, "priority")), (200, "u=1, i"));
    assert_eq!(text(&answer, "link"), "</a.css>; rel=preload");
    assert_eq!(field(&backend.last(), "priority"), Some("u=0, i"));
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(stream).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    client
}

pub async fn in_the_clear(gateway: std::net::SocketAddr) -> SendRequest<Bytes> {
    speak(TcpStream::connect(gateway).await.expect("connects")).await
}

pub fn get(client: &mut SendRequest<Bytes>, uri: &str) -> ResponseFuture {
    let request = http::Request::get(uri).body(()).expect("a request");
    client.send_request(request, true).expect("sent").0
}

fn text<'a, B>(answer: &'a http::Response<B>, name: &str) -> &'a str {
    answer.headers()[name].to_str().expect("text")
}

/// All that the next interim answer says. None: the answer itself is there.
pub async fn interim(answer: &mut ResponseFuture) -> Option<String> {
    let next = poll_fn(|context| answer.poll_informational(context));
    let head = tokio::time::timeout(PATIENCE, next).await.expect("in time")?.expect("a head");
    let fields =
        head.headers().iter().map(|(name, value)| format!(" {name}: {}", value.to_str().expect("text")));
    Some(format!("{}{}", head.status().as_u16(), fields.collect::<String>()))
}

async fn is_ok(answer: ResponseFuture) {
    let (head, mut body) = answer.await.expect("answered").into_parts();
    assert_eq!(head.status, 200);
    assert!(!head.headers.contains_key("link") && head.headers.contains_key("date"), "{head:?}");
    assert_eq!(body.data().await.expect("a body").expect("whole"), "ok");
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
pub fn head(stream: &mut std::net::TcpStream) -> String {
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

#[tokio::test]
async fn clients_of_http2_get_the_same_hints_in_the_clear_and_over_tls() {
    for encrypted in [false, true] {
        let door = Door::default();
        let (origin, _) = hinting(&door);
        let gateway = Gateway::start();
        let identity = certificate("a", &["a.test"]);
        let identity = if encrypted { tls(&[&identity]) } else { None };
        let (map, endpoints) =
            route_map(vec![host("a.test", identity, forward("b"))], &[("b", origin.address)]);
        gateway.plane.install(map, endpoints);
        let (mut client, scheme) = if encrypted {
            let stream = shake(gateway.https(), "a.test", &["h2"]).await.expect("shakes");
            (speak(stream).await, "https")
        } else {
            (in_the_clear(gateway.http()).await, "http")
        };
        let mut first = get(&mut client, &format!("{scheme}://a.test/x"));
        for link in ["</a.css>", "</b.css>"] {
            assert_eq!(interim(&mut first).await, Some(format!("103 link: {link}; rel=preload")));
        }
        assert!(!door.is_open(), "the answer is still held back");
        // Another stream of the connection gets none of them.
        let mut other = get(&mut client, &format!("{scheme}://a.test/late"));
        assert_eq!(interim(&mut other).await, None);
        is_ok(other).await;
        door.open();
        assert_eq!(interim(&mut first).await, None);
        is_ok(first).await;
    }
}

#[tokio::test]
async fn over_http2_kept_and_changed_answers_have_no_hints() {
    for (policy, hinted) in
        [("{cache: {defaultTtl: 60s}}", true), ("{response: {headers: {remove: [Link]}}}", false)]
    {
        let door = Door::default();
        let (origin, said) = hinting(&door);
        let gateway = origin.under(policy);
        let mut client = in_the_clear(gateway.http).await;
        let mut first = get(&mut client, "http://shop.example/x");
        if hinted {
            assert_eq!(interim(&mut first).await.as_deref(), Some("103 link: </a.css>; rel=preload"));
        }
        until("the hints", || said.load(Ordering::SeqCst)).await;
        door.open();
        while interim(&mut first).await.is_some() {
            assert!(hinted, "{policy}");
        }
        is_ok(first).await;
        // From the cache, if there is one.
        let mut second = get(&mut client, "http://shop.example/x");
        assert_eq!(interim(&mut second).await, None, "{policy}");
        is_ok(second).await;
        assert_eq!(origin.count(), if hinted { 1 } else { 2 }, "{policy}");
    }
}

#[tokio::test]
async fn no_more_hints_go_on_than_a_client_can_use() {
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::raw(move |_, stream| {
        for number in 0..20 {
            let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: </{number}>\r\n\r\n");
            let _ = stream.write_all(hint.as_bytes());
        }
        held.wait();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    });
    let gateway = Gateway::before(origin.address);
    let mut client = in_the_clear(gateway.http()).await;
    let mut answer = get(&mut client, "http://a.test/");
    for number in 0..8 {
        assert_eq!(interim(&mut answer).await, Some(format!("103 link: </{number}>")));
    }
    door.open();
    assert_eq!(interim(&mut answer).await, None);
    is_ok(answer).await;
}

#[tokio::test]
async fn answers_made_of_several_have_no_hints() {
    let (door, said) = (Door::default(), Arc::new(AtomicBool::new(false)));
    let (held, has_said) = (door.clone(), Arc::clone(&said));
    let origin = Origin::raw(move |_, stream| {
        let _ = stream.write_all(EARLY.as_bytes());
        has_said.store(true, Ordering::SeqCst);
        held.wait();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1";
        let _ = stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n7").as_bytes());
    });
    let call = "{name: one, backendRef: {kind: GatewayBackend, name: origin}, path: /x}";
    let gateway = origin.rules(&format!("[{{name: home, aggregate: {{calls: [{call}]}}}}]"));
    let mut client = in_the_clear(gateway.http).await;
    let mut answer = get(&mut client, "http://shop.example/");
    until("the hints", || said.load(Ordering::SeqCst)).await;
    door.open();
    assert_eq!(interim(&mut answer).await, None);
    assert_eq!(answer.await.expect("answered").status(), 200);
}
