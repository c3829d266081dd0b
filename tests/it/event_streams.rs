//! Server-sent events: each reaches the client as it comes, whatever either side speaks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::filters::TimeoutsPlan;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::proxy_rig::*;

/// A backend that sends one event for each that the test lets it send, without an end.
async fn backend(allowed: Arc<Semaphore>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let allowed = Arc::clone(&allowed);
            tokio::spawn(async move {
                let _ = read_message(&mut socket, &mut Vec::new()).await;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                socket.write_all(head.as_bytes()).await.expect("open");
                for number in 0.. {
                    allowed.acquire().await.expect("open").forget();
                    let event = format!("data: {number}\n\n");
                    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                    if socket.write_all(chunk.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn each_event_reaches_the_client_before_the_next_is_sent() {
    let allowed = Arc::new(Semaphore::new(0));
    let gateway = Gateway::before(backend(Arc::clone(&allowed)).await);
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n").await.expect("sent");
    let mut read = String::new();
    for number in 0..5 {
        allowed.add_permits(1);
        let event = format!("data: {number}\n\n");
        let reading = async {
            while !read.contains(&event) {
                let mut buffer = [0; 1024];
                let count = socket.read(&mut buffer).await.expect("open");
                assert!(count > 0, "{read}");
                read += &String::from_utf8_lossy(&buffer[..count]);
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("it is not held back");
    }
    drop(socket);

    let allowed = Arc::new(Semaphore::new(0));
    let gateway = Gateway::before(backend(Arc::clone(&allowed)).await);
    let socket = TcpStream::connect(gateway.http()).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("speaks HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::get("http://a.example/").body(Full::default()).expect("a request");
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("in time");
    let mut body = answer.expect("answered").into_body();
    for number in 0..5 {
        allowed.add_permits(1);
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("it is not held back");
        let data = frame.expect("more").expect("open").into_data().expect("data");
        assert_eq!(data, format!("data: {number}\n\n"));
    }
}

#[tokio::test]
async fn no_limit_of_a_request_cuts_a_stream_or_a_tunnel_that_has_begun() {
    let allowed = Arc::new(Semaphore::new(0));
    let streaming = backend(Arc::clone(&allowed)).await;
    let tunnels = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let limit = Duration::from_millis(100);
    let timeouts =
        TimeoutsPlan { request: Some(limit), backend_request: Some(limit), ..TimeoutsPlan::default() };
    let gateway = Gateway::start();
    gateway.serve(
        &[
            ("", forward_within("stream", timeouts.clone())),
            ("tunnel.test", forward_within("tunnel", timeouts)),
        ],
        &[("stream", streaming), ("tunnel", tunnels.local_addr().expect("bound"))],
    );
    let mut stream = TcpStream::connect(gateway.http()).await.expect("connects");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    let mut tunnel = TcpStream::connect(gateway.http()).await.expect("connects");
    let upgrade = b"GET / HTTP/1.1\r\nhost: tunnel.test\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n";
    tunnel.write_all(upgrade).await.expect("sent");
    let (mut other, _) = tunnels.accept().await.expect("asked");
    read_message(&mut other, &mut Vec::new()).await.expect("a request");
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n";
    other.write_all(switch).await.expect("sent");
    // The heads.
    for socket in [&mut stream, &mut tunnel] {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.expect("a head in time"));
        }
    }
    for number in 0..3 {
        for socket in [&mut stream, &mut tunnel] {
            let more = tokio::time::timeout(limit, socket.read_u8()).await;
            assert!(more.is_err(), "nothing comes, and it is open");
        }
        allowed.add_permits(1);
        let event = format!("data: {number}\n\n");
        let mut read = String::new();
        while !read.contains(&event) {
            read.push(char::from(stream.read_u8().await.expect("open")));
        }
        // The end of its chunk.
        assert_eq!((stream.read_u8().await.ok(), stream.read_u8().await.ok()), (Some(b'\r'), Some(b'\n')));
        for (from, to) in [(true, b"up"), (false, b"dn")] {
            let (from, into) = if from { (&mut tunnel, &mut other) } else { (&mut other, &mut tunnel) };
            from.write_all(to).await.expect("open");
            let mut there = [0; 2];
            into.read_exact(&mut there).await.expect("open");
            assert_eq!(&there, to);
        }
    }
    // The control: before its head an answer has that time and no more.
    let late = exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: tunnel.test\r\n\r\n").await;
    assert_eq!((status(&late), reason(&late).as_str()), (504, "BackendTimeout"));
}
