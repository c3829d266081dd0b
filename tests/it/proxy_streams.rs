//! What streams: HTTP/2, trailers, `Expect: 100-continue`, WebSocket and other upgrades.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::proxy_rig::*;
use super::proxy_tls::{certificate, shake, tls};

async fn http2(
    socket: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> http2::SendRequest<Full<Bytes>> {
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    sender
}

fn request(uri: &str) -> http::Request<Full<Bytes>> {
    http::Request::builder().uri(uri).body(Full::default()).expect("a request")
}

#[tokio::test]
async fn http2_over_tls_and_by_its_preface_on_plain_ports() {
    let backend = Backend::ok().await;
    let gateway = Gateway::start();
    let a = certificate("a", &["a.test"]);
    let (map, endpoints) = route_map(
        vec![host("a.test", tls(&[&a]), forward("b")), host("p.test", None, forward("b"))],
        &[("b", backend.address)],
    );
    gateway.plane.install(map, endpoints);

    let mut over_tls = http2(shake(gateway.https(), "a.test", &["h2"]).await.expect("shakes")).await;
    let mut plain = http2(TcpStream::connect(gateway.http()).await.expect("connects")).await;
    for (sender, uri, host, proto) in [
        (&mut over_tls, "https://a.test/x?y=1", "a.test", "https"),
        (&mut plain, "http://p.test/x?y=1", "p.test", "http"),
    ] {
        let answers =
            futures_util::future::join_all((0..20).map(|_| sender.send_request(request(uri)))).await;
        for answer in answers {
            let answer = answer.expect("answered");
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.into_body().collect().await.expect("whole").to_bytes(), "ok");
        }
        let heard = backend.last();
        assert!(heard.starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{heard}");
        assert_eq!((field(&heard, "host"), field(&heard, "x-forwarded-proto")), (Some(host), Some(proto)));
    }
    let answer = over_tls.send_request(request("https://b.test/")).await.expect("answered");
    assert_eq!(answer.status(), 421);
    let mut two_hosts = request("https://a.test/");
    two_hosts.headers_mut().insert("host", http::HeaderValue::from_static("b.test"));
    assert_eq!(over_tls.send_request(two_hosts).await.expect("answered").status(), 400);
}

#[tokio::test]
async fn cookie_crumbs_count_as_fields() {
    let gateway = Gateway::start();
    gateway.serve(&[("", respond("ok"))], &[]);
    let mut sender = http2(TcpStream::connect(gateway.http()).await.expect("connects")).await;
    let with = |crumbs: usize| {
        let mut request = request("http://a.test/");
        for _ in 0..crumbs {
            request.headers_mut().append("cookie", http::HeaderValue::from_static("a=b"));
        }
        request
    };
    assert_eq!(sender.send_request(with(90)).await.expect("answered").status(), 200);
    assert_eq!(sender.send_request(with(110)).await.expect("answered").status(), 431);
}

#[tokio::test]
async fn trailers_pass_both_ways_for_who_asks_for_them() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let gateway = Gateway::before(backend.address);
    let ask = async |te: &str| {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\n{te}trailer: x-own\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\nx-own: 1\r\n\r\n"
        );
        exchange(gateway.http(), &request).await
    };
    let answer = ask("te: trailers\r\nconnection: te\r\n").await;
    assert!(answer.contains("\r\n0\r\nx-sum: 7\r\n"), "{answer}");
    let heard = backend.last();
    assert_eq!(field(&heard, "te"), Some("trailers"));
    assert!(heard.contains("\r\n0\r\nx-own: 1\r\n"), "{heard}");
    let answer = ask("").await;
    assert!(!answer.contains("x-sum") && answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    assert_eq!(field(&backend.last(), "te"), None);
}

#[tokio::test]
async fn a_body_is_asked_for_only_when_somebody_will_read_it() {
    let backend = Backend::ok().await;
    let gateway = Gateway::before(backend.address);
    let head = |length: &str| {
        format!("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n")
    };
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    socket.write_all(head("3").as_bytes()).await.expect("sent");
    let mut interim = [0; 25];
    socket.read_exact(&mut interim).await.expect("interim");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"abc").await.expect("sent");
    assert_eq!(status(&answer(&mut socket).await), 200);
    assert!(backend.last().ends_with("\r\n\r\nabc"));

    let refused = exchange(gateway.http(), &head("99999999")).await;
    assert_eq!((status(&refused), reason(&refused).as_str()), (413, "BodyTooLarge"));
    assert!(!refused.contains("100 Continue") && field(&refused, "connection") == Some("close"), "{refused}");
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_cut_from_the_backend_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gateway = Gateway::with(|settings| settings.limits.max_body = 100_000);
    let address = listener.local_addr().expect("bound");
    gateway.serve(&[("", forward("b"))], &[("b", address)]);
    let backend = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("asked");
        let mut read = Vec::new();
        let _ = socket.read_to_end(&mut read).await;
        String::from_utf8_lossy(&read).into_owned()
    });
    let chunk = format!("2710\r\n{}\r\n", "x".repeat(10_000));
    let request = format!(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(12)
    );
    let answer = exchange(gateway.http(), &request).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (413, "BodyTooLarge"));
    let seen = tokio::time::timeout(PATIENCE, backend).await.expect("cut").expect("backend");
    assert!(!seen.contains("\r\n0\r\n") && seen.len() < 110_000, "{}", seen.len());
}

#[tokio::test]
async fn a_large_body_streams_through_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let whole: String = (0..1_000_000_u32).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let sent = whole.clone();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("asked");
        let request = read_message(&mut socket, &mut Vec::new()).await.expect("a request");
        let body = request.split_once("\r\n\r\n").expect("a body").1;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).await.expect("sent");
        socket.write_all(body.as_bytes()).await.expect("sent");
    });
    let gateway = Gateway::before(address);
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", sent.len());
    let answer = exchange(gateway.http(), &(head + &sent)).await;
    assert_eq!(status(&answer), 200);
    assert!(answer.split_once("\r\n\r\n").expect("a body").1 == whole);
}

#[tokio::test]
async fn websockets_pass_in_both_directions() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(socket).await.expect("a handshake");
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() {
                        socket.send(message).await.expect("echoed");
                    }
                }
            });
        }
    });
    let gateway = Gateway::before(address);
    let url = format!("ws://{}/chat", gateway.http());
    let (mut socket, answer) = tokio_tungstenite::connect_async(url).await.expect("upgraded");
    assert_eq!(answer.status(), 101);
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.expect("sent");
        let echoed = tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time");
        assert_eq!(echoed.expect("open").expect("a message"), Message::text(text));
    }
    socket.close(None).await.expect("closed");
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n";

/// A backend that gives `head` to an upgrade and echoes what follows until the other side ends.
async fn upgrading(head: &'static str) -> (std::net::SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("asked");
        let mut rest = Vec::new();
        let request = read_message(&mut socket, &mut rest).await.expect("a request");
        let early = String::from_utf8_lossy(&rest).into_owned();
        socket.write_all(head.as_bytes()).await.expect("sent");
        let mut read = Vec::new();
        let _ = socket.read_to_end(&mut read).await;
        let _ = socket.write_all(&read).await;
        format!("{request}|{early}|{}", String::from_utf8_lossy(&read))
    });
    (address, task)
}

#[tokio::test]
async fn an_upgrade_s_early_bytes_wait_for_the_101_and_half_closed_tunnels_still_answer() {
    let (address, backend) =
        upgrading("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: own/1\r\n\r\n").await;
    let gateway = Gateway::before(address);
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    socket.write_all(format!("{UPGRADE}early").as_bytes()).await.expect("sent");
    let mut head = vec![0; 0];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("the 101"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    socket.write_all(b" late").await.expect("sent");
    socket.shutdown().await.expect("half closed");
    let mut echoed = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut echoed)).await.expect("in time").expect("text");
    assert_eq!(echoed, "early late");
    let seen = backend.await.expect("backend");
    let (request, rest) = seen.split_once('|').expect("parts");
    assert_eq!((field(request, "upgrade"), field(request, "connection")), (Some("own/1"), Some("upgrade")));
    assert_eq!(rest, "|early late", "nothing before the 101");
}

#[tokio::test]
async fn a_101_to_another_protocol_or_to_nobody_s_wish_is_502() {
    for (request, head) in [
        (UPGRADE, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n"),
        (UPGRADE, "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n",
        ),
        (
            // A body and an upgrade at once: the wish is ignored, so a 101 is nobody's wish.
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: own/1\r\ncontent-length: 1\r\n\r\nx",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n",
        ),
    ] {
        let (address, _backend) = upgrading(head).await;
        let gateway = Gateway::before(address);
        let answer = exchange(gateway.http(), request).await;
        assert_eq!((status(&answer), reason(&answer).as_str()), (502, "InvalidResponse"), "{request} {head}");
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let backend = Backend::answering("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno").await;
    let gateway = Gateway::before(backend.address);
    let answer = exchange(gateway.http(), UPGRADE).await;
    assert!(status(&answer) == 426 && answer.ends_with("no"), "{answer}");
}
