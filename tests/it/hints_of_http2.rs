//! Early hints of backends that speak HTTP/2, in the clear and over TLS: as those of HTTP/1.1.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::backend_tls::Authority;
use super::harness::{Gateway, connect, raw, read_answer};
use super::hints::{get, head, in_the_clear, interim};
use super::http2_backends::{acceptor, gateway_backend, to};

/// Says hints before the answer; to `/32` and `/33` so many.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, door: Arc<Notify>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut answer))) = connection.accept().await {
        let door = Arc::clone(&door);
        tokio::spawn(async move {
            let many = request.uri().path()[1..].parse().ok();
            let said = [(103, "</a.css>; rel=preload"), (102, "</no>"), (103, "</b.css>; rel=preload")];
            for (status, link) in said.into_iter().cycle().take(many.unwrap_or(3)) {
                let mut interim = Response::new(());
                *interim.status_mut() = StatusCode::from_u16(status).expect("a status");
                interim.headers_mut().insert("link", HeaderValue::from_static(link));
                interim.headers_mut().insert("set-cookie", HeaderValue::from_static("a=b"));
                // Who had enough of them has reset the stream.
                let _ = answer.send_informational(interim);
            }
            if many.is_none() {
                door.notified().await;
            }
            let mut head = Response::new(());
            head.headers_mut().insert("link", HeaderValue::from_static("</c.css>"));
            if let Ok(mut body) = answer.send_response(head, false) {
                let _ = body.send_data(Bytes::from_static(b"ok"), true);
            }
        });
    }
}

async fn start(tls: Option<TlsAcceptor>, door: &Arc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let door = Arc::clone(door);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (door, tls) = (Arc::clone(&door), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => serve(socket, door).await,
                    Some(tls) => match tls.accept(socket).await {
                        Ok(stream) => serve(stream, door).await,
                        Err(error) => panic!("{error}"),
                    },
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_arrive_before_the_answer_and_only_their_links_and_not_without_end() {
    let authority = Authority::new("ours");
    let leaf = authority.certify(&["db.example"]);
    let door = Arc::<Notify>::default();
    let clear = start(None, &door).await;
    let sealed = start(Some(acceptor(&leaf, &["h2"])), &door).await;
    let hosts =
        |address: SocketAddr| format!("hosts: [{{address: {}, port: {}}}]", address.ip(), address.port());
    let tls = "tls: {serverName: db.example, caCertificateRefs: [{name: ca}]}, protocol: HTTP2";
    let manifests = [
        authority.config_map("ca"),
        gateway_backend("clear", &format!("{{{}, protocol: H2C}}", hosts(clear))),
        gateway_backend("sealed", &format!("{{{}, {tls}}}", hosts(sealed))),
        to("clear", "kind: GatewayBackend, name: clear"),
        to("sealed", "kind: GatewayBackend, name: sealed"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    for name in ["clear", "sealed"] {
        let mut stream = connect(gateway.http);
        let ask = |stream: &mut std::net::TcpStream, path: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nhost: {name}.test\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("written");
        };
        ask(&mut stream, "/x");
        for link in ["</a.css>", "</b.css>"] {
            let told = format!("HTTP/1.1 103 Early Hints\r\nlink: {link}; rel=preload\r\n\r\n");
            assert_eq!(head(&mut stream), told, "{name}");
        }
        // The answer is held back until now.
        door.notify_one();
        let answer = read_answer(&mut stream).expect("answered");
        assert_eq!(
            (answer.status, answer.field("link"), answer.body.as_str()),
            (200, Some("</c.css>"), "ok")
        );

        let mut client = in_the_clear(gateway.http).await;
        let mut answer = get(&mut client, &format!("http://{name}.test/x"));
        for link in ["</a.css>", "</b.css>"] {
            assert_eq!(interim(&mut answer).await, Some(format!("103 link: {link}; rel=preload")), "{name}");
        }
        door.notify_one();
        assert_eq!(interim(&mut answer).await, None, "{name}");
        assert_eq!(answer.await.expect("answered").headers()["link"], "</c.css>", "{name}");

        // A client of HTTP/1.0 is told of none.
        for (path, status) in [("/32", 200), ("/33", 502)] {
            let answer = raw(gateway.http, &format!("GET {path} HTTP/1.0\r\nhost: {name}.test\r\n\r\n"));
            assert_eq!(answer.status, status, "{name} {path}: {answer:?}");
            if status == 502 {
                assert_eq!(answer.json()["reason"], "InvalidResponse", "{name}");
            }
        }
    }
}
