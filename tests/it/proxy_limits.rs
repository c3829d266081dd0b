//! Slow, silent and greedy clients: all are gone in time, and others are served meanwhile.

use std::time::Duration;

use portcullis::filters::TimeoutsPlan;
use portcullis::proxy::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::proxy_rig::*;

pub const SHORT: Duration = Duration::from_millis(100);
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn gateway(change: impl FnOnce(&mut Limits)) -> Gateway {
    let gateway = Gateway::with(|settings| change(&mut settings.limits));
    gateway.serve(&[("", respond("ok"))], &[]);
    gateway
}

/// Reads until the connection is closed; it must be, in time.
pub async fn closed(socket: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut read)).await.expect("closed in time");
    read
}

#[tokio::test]
async fn silent_connections_and_slow_heads_are_cut_and_others_served() {
    let gateway = gateway(|limits| {
        limits.tls_handshake = SHORT;
        limits.request_head = SHORT;
    });
    let mut slow = Vec::new();
    for sent in ["", "G", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost: a\r\nx: "] {
        let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
        socket.write_all(sent.as_bytes()).await.expect("sent");
        slow.push(socket);
    }
    assert_eq!(status(&exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await), 200);
    for mut socket in slow {
        assert_eq!(closed(&mut socket).await, b"");
    }
}

#[tokio::test]
async fn a_head_that_drips_is_cut_whatever_it_brings() {
    let gateway = gateway(|limits| limits.request_head = SHORT);
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    let drip = async {
        for byte in b"GET / HTTP/1.1\r\nhost: a\r\nx: ".iter().chain(std::iter::repeat(&b'a')) {
            if socket.write_all(&[*byte]).await.is_err() {
                return;
            }
            // Its pace; and others are served meanwhile.
            assert_eq!(status(&exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await), 200);
        }
    };
    tokio::time::timeout(PATIENCE, drip).await.expect("cut in time");
}

#[tokio::test]
async fn an_idle_kept_connection_is_closed_but_not_as_soon_as_a_slow_head() {
    let gateway = gateway(|limits| {
        limits.request_head = SHORT;
        limits.keep_alive_idle = SHORT * 20;
    });
    let mut idle = TcpStream::connect(gateway.http()).await.expect("connects");
    idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    assert_eq!(status(&answer(&mut idle).await), 200);
    // The clock: a slow head is cut; and one behind a whole request is one too.
    for start in ["", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut slow = TcpStream::connect(gateway.http()).await.expect("connects");
        slow.write_all(format!("{start}GET / HT").as_bytes()).await.expect("sent");
        let before = closed(&mut slow).await;
        assert_eq!(status(&String::from_utf8_lossy(&before)), if start.is_empty() { 0 } else { 200 });
    }
    idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    assert_eq!(status(&answer(&mut idle).await), 200, "longer than a slow head");
    assert_eq!(closed(&mut idle).await, b"");
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_a_place() {
    let gateway = Gateway::with(|settings| settings.limits.connections = 4);
    gateway.serve(&[("", respond("ok"))], &[]);
    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut served = Vec::new();
    for _ in 0..4 {
        let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
        socket.write_all(GET).await.expect("sent");
        assert_eq!(status(&answer(&mut socket).await), 200);
        served.push(socket);
    }
    let mut fifth = TcpStream::connect(gateway.http()).await.expect("the kernel takes it");
    fifth.write_all(GET).await.expect("sent");
    for turn in 0..100 {
        let socket = &mut served[turn % 4];
        socket.write_all(GET).await.expect("those that have a place are served");
        assert_eq!(status(&answer(socket).await), 200);
    }
    assert_eq!(gateway.plane.connections().iter().sum::<usize>(), 4);
    assert!(fifth.try_read(&mut [0; 1]).is_err(), "nothing came");
    served.pop();
    assert_eq!(status(&answer(&mut fifth).await), 200);
}

/// A connection from this address.
async fn from(address: &str, gateway: &Gateway) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{address}:0").parse().expect("an address")).expect("loopback is ours");
    socket.connect(gateway.http()).await.expect("connects")
}

#[tokio::test]
async fn one_client_has_so_many_connections_and_another_all_of_its_own() {
    let gateway = Gateway::with(|settings| settings.limits.connections_per_client = Some(2));
    gateway.serve(&[("", respond("ok"))], &[]);
    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut served = Vec::new();
    for address in ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"] {
        let mut socket = from(address, &gateway).await;
        socket.write_all(GET).await.expect("sent");
        assert_eq!(status(&answer(&mut socket).await), 200, "{address}");
        served.push(socket);
    }
    for _ in 0..3 {
        let mut third = from("127.0.0.1", &gateway).await;
        let _ = third.write_all(GET).await;
        let mut read = Vec::new();
        let _ = third.read_to_end(&mut read).await;
        assert!(read.is_empty(), "it is closed without an answer");
    }
    let metrics = gateway.telemetry.render();
    assert!(metrics.contains("portcullis_connections_refused_total 3\n"), "{metrics}");
    for socket in &mut served {
        socket.write_all(GET).await.expect("those that have a place are served");
        assert_eq!(status(&answer(socket).await), 200);
    }
    served.remove(0);
    until_served(async || {
        let mut again = from("127.0.0.1", &gateway).await;
        let _ = again.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let mut read = Vec::new();
        let _ = again.read_to_end(&mut read).await;
        read.starts_with(b"HTTP/1.1 200")
    })
    .await;
}

/// Asks until it pleases.
async fn until_served(ask: impl AsyncFn() -> bool) {
    let asking = async { while !ask().await {} };
    tokio::time::timeout(PATIENCE, asking).await.expect("served in time");
}

#[tokio::test]
async fn connections_are_accepted_at_the_pace_that_is_set_and_all_are_served() {
    let gateway = Gateway::with(|settings| settings.limits.accepts_per_second = Some(50));
    gateway.serve(&[("", respond("ok"))], &[]);
    let began = std::time::Instant::now();
    let ask = || exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let answers = futures_util::future::join_all((0..30).map(|_| ask())).await;
    assert!(answers.iter().all(|answer| status(answer) == 200));
    // Five may come at once; the others come every 20 ms. Nothing makes that faster.
    assert!(began.elapsed() >= std::time::Duration::from_millis(480), "{:?}", began.elapsed());
    let metrics = gateway.telemetry.render();
    let delayed = metrics.lines().find_map(|line| line.strip_prefix("portcullis_accepts_delayed_total "));
    assert!(delayed.is_some_and(|count| count.parse::<f64>().expect("a number") >= 1.0), "{delayed:?}");
}

#[tokio::test]
async fn a_body_that_stalls_is_408_and_the_backend_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gateway = Gateway::with(|settings| settings.limits.progress = SHORT);
    gateway.serve(&[("", forward("b"))], &[("b", listener.local_addr().expect("bound"))]);
    let backend = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("asked");
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let answer =
        exchange(gateway.http(), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc").await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (408, "RequestTimeout"));
    assert_eq!(field(&answer, "connection"), Some("close"));
    tokio::time::timeout(PATIENCE, backend).await.expect("left in time").expect("backend");
}

#[tokio::test]
async fn a_backend_that_stalls_is_504_before_the_head_and_a_cut_after_it() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let stalling = Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
    let gateway = Gateway::with(|settings| settings.limits.progress = SHORT);
    let timeouts = TimeoutsPlan { request: Some(SHORT), idle: Some(SHORT), ..TimeoutsPlan::default() };
    gateway.serve(
        &[("silent.test", forward_within("s", timeouts.clone())), ("", forward_within("b", timeouts))],
        &[("s", silent.local_addr().expect("bound")), ("b", stalling.address)],
    );
    let answer = exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: silent.test\r\n\r\n").await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (504, "BackendTimeout"));
    let answer = exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(status(&answer) == 200 && answer.ends_with("abc"), "{answer}");
}

/// A backend that sends without end until it is left.
pub async fn endless() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("asked");
        let _ = read_message(&mut socket, &mut Vec::new()).await;
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await;
        while socket.write_all(&[b'x'; 65_536]).await.is_ok() {}
    });
    (address, task)
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_and_its_backend_left() {
    let (address, backend) = endless().await;
    let gateway = Gateway::with(|settings| settings.limits.progress = SHORT);
    gateway.serve(&[("", forward("b"))], &[("b", address)]);
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    tokio::time::timeout(PATIENCE, backend).await.expect("left in time").expect("backend");
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// GET / of host "a" in HPACK: indexed method, scheme and path, a literal authority.
pub const HEAD: &[u8] = &[0x82, 0x86, 0x84, 0x01, 0x01, b'a'];

/// All that a client hears that asks once over HTTP/2, with such SETTINGS, and then says nothing more.
async fn silent_after(settings: &[u8]) -> Vec<u8> {
    let gateway = gateway(|limits| {
        limits.progress = SHORT;
        limits.keep_alive_idle = SHORT;
    });
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    let begin = [PREFACE, &frame(4, 0, 0, settings), &frame(1, 5, 1, HEAD)].concat();
    socket.write_all(&begin).await.expect("sent");
    closed(&mut socket).await
}

#[tokio::test]
async fn an_answer_of_which_a_byte_has_no_room_is_reset_and_its_connection_ends() {
    // SETTINGS_INITIAL_WINDOW_SIZE = 1
    let read = silent_after(&[0, 4, 0, 0, 0, 1]).await;
    let (data, reset) = ([0, 0, 1, 0, 0, 0, 0, 0, 1, b'o'], [0, 0, 4, 3, 0, 0, 0, 0, 1]);
    assert!(read.windows(10).any(|part| part == data), "the control: a byte has room: {read:?}");
    assert!(read.windows(9).any(|part| part == reset), "{read:?}");
}

#[tokio::test]
async fn an_idle_client_of_http2_that_does_not_heed_the_goodbye_is_cut() {
    // It acknowledges no PING, so h2 never says the last goodbye.
    let read = silent_after(&[]).await;
    let goodbye = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff];
    assert!(read.windows(13).any(|frame| frame == goodbye), "{read:?}");
}

#[tokio::test]
async fn a_stream_whose_window_never_opens_is_reset_and_its_backend_left() {
    let (address, backend) = endless().await;
    let gateway = Gateway::with(|settings| settings.limits.progress = SHORT);
    gateway.serve(&[("", forward("b"))], &[("b", address)]);
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    // SETTINGS_INITIAL_WINDOW_SIZE = 0
    let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    socket.write_all(&[PREFACE, &settings, &frame(1, 5, 1, HEAD)].concat()).await.expect("sent");
    tokio::time::timeout(PATIENCE, backend).await.expect("left in time").expect("backend");
    let reset = async {
        let mut read = Vec::new();
        // RST_STREAM of stream 1
        while !read.windows(9).any(|head| head[..5] == [0, 0, 4, 3, 0] && head[5..] == [0, 0, 0, 1]) {
            assert_ne!(socket.read_buf(&mut read).await.expect("open"), 0, "the connection stays");
        }
    };
    tokio::time::timeout(PATIENCE, reset).await.expect("reset in time");
}

#[tokio::test]
async fn floods_of_control_frames_end_the_connection() {
    let gateway = gateway(|_| {});
    for (kind, payload) in
        [(6, &[0; 8][..]), (4, &[]), (2, &[0, 0, 0, 0, 1]), (8, &[0, 0, 0, 1]), (0xbe, &[0; 8])]
    {
        let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
        socket.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.expect("sent");
        let stream = if kind == 2 { 3 } else { 0 };
        let flood = frame(kind, 0, stream, payload).repeat(200);
        let (mut read, mut write) = socket.split();
        let (mut sink, mut sent) = (tokio::io::sink(), 0);
        let flooding = async {
            while sent < 1_000_000 && write.write_all(&flood).await.is_ok() {
                sent += 200;
            }
        };
        let over = async {
            tokio::select! {
                () = flooding => {}
                _ = tokio::io::copy(&mut read, &mut sink) => {}
            }
        };
        tokio::time::timeout(PATIENCE, over).await.expect("cut in time");
        assert!(sent < 1_000_000, "{kind}: {sent}");
    }
    assert_eq!(status(&exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await), 200);
}

#[tokio::test]
async fn an_old_connection_is_asked_to_come_back() {
    let gateway = gateway(|limits| {
        limits.connection_age = SHORT;
        limits.progress = SHORT;
    });
    let mut socket = TcpStream::connect(gateway.http()).await.expect("connects");
    let mut answers = 0;
    let last = loop {
        socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("never closed unannounced");
        let answer = answer(&mut socket).await;
        assert_eq!(status(&answer), 200);
        answers += 1;
        if field(&answer, "connection").is_some() {
            break answer;
        }
    };
    assert!(answers > 1);
    assert_eq!(field(&last, "connection"), Some("close"));
    assert_eq!(closed(&mut socket).await, b"");
}
