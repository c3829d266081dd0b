//! What mobile clients and their servers say beside the message itself: priorities pass both ways; interim answers of a
//! backend end here, and harm nobody.

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::proxy_rig::*;

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n\
    HTTP/1.1 103 Early Hints\r\nlink: </b.css>; rel=preload\r\n\r\n\
    HTTP/1.1 200 OK\r\npriority: u=1, i\r\nlink: </a.css>; rel=preload\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn priorities_pass_both_ways_and_early_hints_end_here() {
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
