//! WebSockets at the end of a drain: a Close frame of the gateway's own where the backend's frames leave room for it.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::lifecycle::Phase;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::harness::{self, route};
use super::proxy_rig::{Gateway, PATIENCE, forward, read_message};

const TEXT: &[u8] = b"\x81\x05hello";
const GOING_AWAY: &[u8] = &[0x88, 2, 0x03, 0xe9];
/// What a client says to that: the same, masked with zeros.
const ECHOED: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

/// Reads just this.
async fn reads(from: &mut (impl AsyncRead + Unpin), expected: &[u8], what: &str) {
    let mut read = vec![0; expected.len()];
    let whole = timeout(PATIENCE, from.read_exact(&mut read)).await;
    whole.expect(what).expect(what);
    assert_eq!(read, expected, "{what}");
}

/// Reads nothing more; the connection ends or is cut.
async fn ends(from: &mut (impl AsyncRead + Unpin), what: &str) {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, from.read_to_end(&mut rest)).await.expect(what);
    assert_eq!(rest, b"", "{what}");
}

/// A backend that switches whatever is asked, and a gateway before it.
struct Sockets {
    gateway: Gateway,
    backend: TcpListener,
}

impl Sockets {
    async fn start() -> Self {
        let backend = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let gateway = Gateway::before(backend.local_addr().expect("bound"));
        Self { gateway, backend }
    }

    /// The backend's end of the next tunnel.
    async fn switched(&self) -> TcpStream {
        let (mut backend, _) = self.backend.accept().await.expect("asked");
        let request = read_message(&mut backend, &mut Vec::new()).await.expect("a request");
        let field = |name: &str| {
            let mut lines = request.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
        };
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(
            field("sec-websocket-key").as_bytes(),
        );
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {}\r\nsec-websocket-accept: {accept}\r\n\r\n",
            field("upgrade")
        );
        backend.write_all(head.as_bytes()).await.expect("sent");
        backend
    }

    /// Both ends of a tunnel of this protocol, through which the backend has sent this.
    async fn upgraded(&self, protocol: &str, sent: &[u8]) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(self.gateway.http()).await.expect("connects");
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n");
        client.write_all(head.as_bytes()).await.expect("sent");
        let (mut backend, head) = tokio::join!(self.switched(), head_of(&mut client));
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        backend.write_all(sent).await.expect("sent");
        reads(&mut client, sent, protocol).await;
        (client, backend)
    }
}

async fn head_of(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, client.read_u8()).await.expect("in time").expect("a head"));
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A WebSocket by a stream of HTTP/2.
async fn by_http2(gateway: SocketAddr, host: &str) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
    let socket = TcpStream::connect(gateway).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    // What the server permits is known by its first answer.
    let first = Request::get("http://nobody.test/").body(Empty::<Bytes>::new()).expect("a request");
    let _ = timeout(PATIENCE, sender.send_request(first)).await.expect("in time").expect("answered");
    let request = Request::connect(format!("http://{host}/"))
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"))
        .body(Empty::new())
        .expect("a request");
    let answer = timeout(PATIENCE, sender.send_request(request)).await.expect("in time").expect("answered");
    assert_eq!(answer.status(), 200);
    TokioIo::new(hyper::upgrade::on(answer).await.expect("a tunnel"))
}

/// The way of a goodbye, from the backend's last frame to both ends' end.
async fn parts(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut backend: TcpStream,
    parting: impl FnOnce(),
) {
    client.write_all(TEXT).await.expect("sent");
    reads(&mut backend, TEXT, "to the backend, in the drain").await;
    backend.write_all(TEXT).await.expect("sent");
    reads(&mut client, TEXT, "to the client, in the drain").await;
    parting();
    reads(&mut client, GOING_AWAY, "the goodbye").await;
    // Nothing may follow it; what the client sends before it answers still has a reader.
    backend.write_all(TEXT).await.expect("sent");
    client.write_all(&[TEXT, ECHOED].concat()).await.expect("sent");
    reads(&mut backend, TEXT, "to the backend, after the goodbye").await;
    reads(&mut backend, ECHOED, "the client's Close frame").await;
    backend.write_all(GOING_AWAY).await.expect("sent");
    drop(backend);
    ends(&mut client, "after the goodbye").await;
}

#[tokio::test]
async fn a_websocket_is_told_before_the_drain_ends() {
    let sockets = Sockets::start().await;
    let (client, backend) = sockets.upgraded("websocket", b"").await;
    sockets.gateway.drain.advance(Phase::Draining);
    parts(client, backend, || sockets.gateway.drain.advance(Phase::Parting)).await;
    sockets.gateway.ended().await;
}

#[tokio::test]
async fn a_websocket_of_http2_is_told_before_the_drain_ends() {
    let backend = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gateway = Gateway::start();
    let address = backend.local_addr().expect("bound");
    gateway.serve(&[("a.test", forward("b"))], &[("b", address)]);
    let sockets = Sockets { gateway, backend };
    let (client, backend) = tokio::join!(by_http2(sockets.gateway.http(), "a.test"), sockets.switched());
    sockets.gateway.drain.advance(Phase::Draining);
    parts(client, backend, || sockets.gateway.drain.advance(Phase::Parting)).await;
    sockets.gateway.ended().await;
}

#[tokio::test]
async fn no_goodbye_is_put_where_no_frame_may_be() {
    let sockets = Sockets::start().await;
    let long: &[u8] = &[0x82, 126, 0x02, 0x00, 1, 2, 3];
    let mut late = sockets.upgraded("WebSocket", long).await;
    let mut never = sockets.upgraded("websocket", &[TEXT, long].concat()).await;
    let mut in_header = sockets.upgraded("websocket", &[TEXT, &long[..3]].concat()).await;
    let mut said = sockets.upgraded("websocket", &[TEXT, GOING_AWAY].concat()).await;
    let mut other = sockets.upgraded("own/1", TEXT).await;
    sockets.gateway.drain.advance(Phase::Draining);
    sockets.gateway.drain.advance(Phase::Parting);
    // Its frame comes to its end, the next one is the goodbye.
    late.1.write_all(&[&[7; 509], TEXT].concat()).await.expect("sent");
    reads(&mut late.0, &[7; 509], "the rest of the frame").await;
    reads(&mut late.0, GOING_AWAY, "the goodbye between frames").await;
    for (what, (client, backend), more) in [
        ("a frame that does not end", &mut never, &[7; 300][..]),
        ("a header that does not end", &mut in_header, b""),
        ("the backend's own goodbye", &mut said, b"noise"),
        ("another protocol", &mut other, TEXT),
    ] {
        backend.write_all(more).await.expect("sent");
        reads(client, more, what).await;
        client.write_all(TEXT).await.expect("sent");
        reads(backend, TEXT, what).await;
    }
    sockets.gateway.drain.advance(Phase::Closing);
    for (what, (mut client, _backend)) in
        [("late", late), ("never", never), ("in its header", in_header), ("said", said), ("other", other)]
    {
        ends(&mut client, what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_says_goodbye_within_its_drain() {
    let backend = harness::Backend::start("sockets");
    let rule = "{name: all, backendRefs: [{kind: GatewayBackend, name: sockets}]}";
    let manifests =
        backend.manifest("sockets") + &route("ws", &format!("{{hostnames: [ws.test], rules: [{rule}]}}"));
    let mut gateway = harness::Gateway::with(&[("all.yaml", &manifests)], &["--drain-timeout", "2s"]);
    let stream = TcpStream::connect(gateway.http).await.expect("connects");
    let (first, _) = tokio_tungstenite::client_async("ws://ws.test/", stream).await.expect("upgraded");
    let second = by_http2(gateway.http, "ws.test").await;
    let second = WebSocketStream::from_raw_socket(second, Role::Client, None).await;
    gateway.process.signal(rustix::process::Signal::TERM);
    closed(first).await;
    closed(second).await;
    assert_eq!(gateway.process.ended().code(), Some(0));
}

async fn closed(mut socket: WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>) {
    let last = timeout(harness::PATIENCE, socket.next()).await.expect("in time");
    let Some(Ok(Message::Close(Some(frame)))) = last else { panic!("no goodbye: {last:?}") };
    assert_eq!((frame.code, frame.reason.as_str()), (CloseCode::Away, ""));
    let more = timeout(harness::PATIENCE, socket.next()).await.expect("in time");
    assert!(!matches!(more, Some(Ok(_))), "after the goodbye: {more:?}");
}
