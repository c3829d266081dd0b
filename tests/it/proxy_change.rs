//! Change under load: new maps and endpoints, and drain. Nothing is lost, nothing is closed without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use portcullis::lifecycle::Phase;
use portcullis::route_map::{Endpoint, EndpointSet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::proxy_rig::*;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";

/// Clients on kept connections; each ends with an error when its connection is closed without `Connection: close`.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Result<(), String>>>,
}

impl Load {
    fn start(gateway: std::net::SocketAddr, clients: usize) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let client = |_| {
            let (stop, answered) = (stop.clone(), answered.clone());
            tokio::spawn(async move {
                let mut socket =
                    TcpStream::connect(gateway).await.map_err(|error| format!("refused: {error}"))?;
                let mut rest = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    socket.write_all(GET).await.map_err(|error| format!("closed unannounced: {error}"))?;
                    let answer = read_message(&mut socket, &mut rest).await.ok_or("no answer")?;
                    if status(&answer) != 200 {
                        return Err(answer);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                    if field(&answer, "connection") == Some("close") {
                        return Ok(());
                    }
                }
                Ok(())
            })
        };
        Self { clients: (0..clients).map(client).collect(), stop, answered }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            assert_eq!(client.await.expect("a client"), Ok(()));
        }
        self.answered.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_thousand_maps_under_load_lose_no_request_and_close_no_connection() {
    let (one, two) = (Backend::ok().await, Backend::ok().await);
    let gateway = Gateway::start();
    let backends = [("one", one.address), ("two", two.address)];
    gateway.serve(&[("a.test", forward("one"))], &backends);
    let load = Load::start(gateway.http(), 8);
    for change in 0..1_000 {
        let target = if change % 2 == 0 { "two" } else { "one" };
        gateway.serve(&[("a.test", forward(target)), ("b.test", respond("b"))], &backends);
        tokio::task::yield_now().await;
    }
    until("requests after the last change", || load.answered() > 100).await;
    load.end().await;
    assert!(!one.heard().is_empty() && !two.heard().is_empty());
}

#[tokio::test]
async fn the_next_request_meets_the_new_map() {
    let gateway = Gateway::start();
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    for body in ["one", "two", "three"] {
        gateway.serve(&[("a.test", respond(body))], &[]);
        socket.write_all(GET).await.expect("sent");
        assert!(answer(&mut socket).await.ends_with(body));
    }
}

#[tokio::test]
async fn endpoints_change_without_a_map_and_an_empty_set_is_503() {
    let (one, two) = (Backend::ok().await, Backend::ok().await);
    let gateway = Gateway::before(one.address);
    let ask = async || exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(status(&ask().await), 200);
    let set = |endpoints: Vec<Endpoint>| EndpointSet { endpoints, known: true, ..EndpointSet::default() };
    gateway.plane.set_endpoints(&backend_id("b"), set(vec![Endpoint::from(two.address)]));
    assert_eq!(status(&ask().await), 200);
    assert_eq!((one.heard().len(), two.heard().len()), (1, 1));
    gateway.plane.set_endpoints(&backend_id("b"), set(vec![]));
    let answer = ask().await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (503, "NoHealthyEndpoints"));
    assert_eq!(field(&answer, "retry-after"), Some("1"));
    gateway.plane.set_endpoints(&backend_id("nobody"), set(vec![]));
}

#[tokio::test]
async fn a_backend_s_endpoints_outlive_maps_that_do_not_change_it() {
    let backend = Backend::ok().await;
    let gateway = Gateway::before(backend.address);
    let (map, _) = route_map(vec![host("x.test", None, forward("b"))], &[("b", backend.address)]);
    gateway.plane.install(map, Default::default());
    assert_eq!(status(&exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: x.test\r\n\r\n").await), 200);
}

#[tokio::test]
async fn a_drain_loses_no_request_and_ends() {
    let backend = Backend::ok().await;
    let gateway = Gateway::before(backend.address);
    let load = Load::start(gateway.http(), 8);
    until("load", || load.answered() > 50).await;
    gateway.drain.advance(Phase::Leaving);
    // New connections are still welcome, and told to come back elsewhere.
    let answer = exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
    assert_eq!((status(&answer), field(&answer, "connection")), (200, Some("close")));
    load.end().await;
    gateway.drain.advance(Phase::Draining);
    gateway.ended().await;
    assert!(TcpStream::connect(gateway.http()).await.is_err(), "the sockets are closed");
}

#[tokio::test]
async fn requests_under_way_and_idle_connections_end_well_in_a_drain() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gateway = Gateway::with(|settings| settings.limits.drain_idle = Duration::from_millis(200));
    gateway.serve(
        &[("", forward("slow")), ("quick.test", respond("ok"))],
        &[("slow", listener.local_addr().expect("bound"))],
    );
    let mut idle = TcpStream::connect(gateway.http()).await.expect("connects");
    idle.write_all(b"GET / HTTP/1.1\r\nhost: quick.test\r\n\r\n").await.expect("sent");
    assert_eq!(status(&answer(&mut idle).await), 200);
    let mut busy = TcpStream::connect(gateway.http()).await.expect("connects");
    busy.write_all(b"GET / HTTP/1.1\r\nhost: slow.test\r\n\r\n").await.expect("sent");
    let (mut backend, _) = listener.accept().await.expect("asked");
    let mut rest = Vec::new();
    read_message(&mut backend, &mut rest).await.expect("a request");

    gateway.drain.advance(Phase::Draining);
    // A request that crosses the drain on a kept connection is answered.
    idle.write_all(b"GET / HTTP/1.1\r\nhost: quick.test\r\n\r\n").await.expect("sent");
    let last = answer(&mut idle).await;
    assert_eq!((status(&last), field(&last, "connection")), (200, Some("close")));
    let mut nothing = Vec::new();
    tokio::time::timeout(PATIENCE, idle.read_to_end(&mut nothing))
        .await
        .expect("closed in time")
        .expect("politely");
    backend.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").await.expect("sent");
    assert!(answer(&mut busy).await.ends_with("slow"));
    gateway.ended().await;
}

#[tokio::test]
async fn http2_is_told_goodbye_and_finishes_what_it_began() {
    use http_body_util::{BodyExt, Empty};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gateway = Gateway::before(listener.local_addr().expect("bound"));
    let (mut sender, connection) = http2_client(gateway.http()).await;
    let request =
        http::Request::builder().uri("http://a.test/").body(Empty::<bytes::Bytes>::new()).expect("request");
    let answering = tokio::spawn(sender.send_request(request));
    let (mut backend, _) = listener.accept().await.expect("asked");
    read_message(&mut backend, &mut Vec::new()).await.expect("a request");
    gateway.drain.advance(Phase::Draining);
    backend.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").await.expect("sent");
    let answer = answering.await.expect("ran").expect("answered");
    assert_eq!(answer.into_body().collect().await.expect("whole").to_bytes(), "slow");
    let ended = tokio::time::timeout(PATIENCE, connection).await.expect("ended in time");
    assert!(ended.expect("ran").is_ok(), "by GOAWAY, not by a cut");
}

#[tokio::test]
async fn the_end_of_patience_cuts_what_is_left() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gateway = Gateway::before(silent.local_addr().expect("bound"));
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    socket.write_all(GET).await.expect("sent");
    let _asked = silent.accept().await.expect("asked");
    gateway.drain.advance(Phase::Closing);
    gateway.ended().await;
}

#[tokio::test]
async fn a_busy_worker_hands_connections_over() {
    let gateway = Gateway::with(|settings| settings.workers = 4);
    gateway.serve(&[("", respond("ok"))], &[]);
    let mut sockets = Vec::new();
    for _ in 0..64 {
        let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
        socket.write_all(GET).await.expect("sent");
        assert_eq!(status(&answer(&mut socket).await), 200);
        sockets.push(socket);
    }
    let counts = gateway.plane.connections();
    let (most, fewest) = (counts.iter().max().expect("some"), counts.iter().min().expect("some"));
    assert!(counts.iter().sum::<usize>() == 64 && most - fewest <= 3, "{counts:?}");
}

#[tokio::test]
async fn a_connection_that_comes_with_the_drain_is_served_or_refused_but_never_reset() {
    let gateway = Gateway::with(|settings| settings.workers = 1);
    gateway.serve(&[("", respond("ok"))], &[]);
    // The sockets are in the accept queue or just out of it when the drain begins.
    let mut sockets = Vec::new();
    for _ in 0..50 {
        let socket = std::net::TcpStream::connect(gateway.http()).expect("connects");
        socket.set_nonblocking(true).expect("set");
        sockets.push(TcpStream::from_std(socket).expect("watched"));
    }
    gateway.drain.advance(Phase::Draining);
    for mut socket in sockets {
        socket.write_all(GET).await.expect("sent");
        let answer = answer(&mut socket).await;
        assert_eq!((status(&answer), field(&answer, "connection")), (200, Some("close")));
    }
    gateway.ended().await;
}

/// The next frame: kind, flags, stream, payload. None: the connection's end.
async fn next_frame(socket: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    socket.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    socket.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

#[tokio::test]
async fn http2_hears_goaway_twice_and_what_crosses_the_first_is_answered() {
    use super::proxy_limits::{HEAD, PREFACE, frame};
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const END_STREAM: u8 = 1;
    let gateway = Gateway::start();
    gateway.serve(&[("", respond("ok"))], &[]);
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    let begin = [PREFACE, &frame(4, 0, 0, &[]), &frame(HEADERS, 5, 1, HEAD)].concat();
    socket.write_all(&begin).await.expect("sent");
    let (mut named, mut answered) = (Vec::new(), Vec::new());
    let conversation = async {
        while let Some((kind, flags, stream, payload)) = next_frame(&mut socket).await {
            match kind {
                DATA | HEADERS if flags & END_STREAM != 0 => {
                    answered.push(stream);
                    if stream == 1 {
                        gateway.drain.advance(Phase::Draining);
                    }
                }
                GOAWAY => {
                    named.push(u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]));
                    if named.len() == 1 {
                        // It was on its way.
                        socket.write_all(&frame(HEADERS, 5, 3, HEAD)).await.expect("open");
                    }
                }
                PING if flags & 1 == 0 => socket.write_all(&frame(PING, 1, 0, &payload)).await.expect("open"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, conversation).await.expect("an end in time");
    assert_eq!((&named[..], &answered[..]), (&[i32::MAX as u32, 3][..], &[1, 3][..]));
    gateway.ended().await;
}

#[tokio::test]
async fn a_websocket_lasts_while_the_gateway_drains_and_ends_when_it_closes() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gateway = Gateway::before(listener.local_addr().expect("bound"));
    let mut client = TcpStream::connect(gateway.http()).await.expect("connects");
    let upgrade = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(upgrade).await.expect("sent");
    let (mut backend, _) = listener.accept().await.expect("asked");
    read_message(&mut backend, &mut Vec::new()).await.expect("a request");
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    backend.write_all(switch).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("the 101"));
    }
    for phase in [Phase::Leaving, Phase::Draining] {
        gateway.drain.advance(phase);
        let (mut there, mut back) = ([0; 4], [0; 4]);
        client.write_all(b"more").await.expect("open");
        backend.read_exact(&mut there).await.expect("open");
        backend.write_all(&there).await.expect("open");
        client.read_exact(&mut back).await.expect("open");
        assert_eq!(&back, b"more", "while it is {phase:?}");
    }
    gateway.drain.advance(Phase::Closing);
    for side in [&mut client, &mut backend] {
        let end = tokio::time::timeout(PATIENCE, side.read(&mut [0; 1])).await.expect("an end in time");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    gateway.ended().await;
}
