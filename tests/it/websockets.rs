//! WebSockets over a stream of HTTP/2 through the whole program, to a backend of HTTP/1.1 that knows nothing of that.

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::harness::{Backend, Gateway, PATIENCE, responds, route};

type Sender = http2::SendRequest<Empty<Bytes>>;

async fn client(gateway: &Gateway) -> Sender {
    let socket = TcpStream::connect(gateway.http).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    // What the server permits is known by its first answer.
    let first = Request::get("http://plain.test/").body(Empty::new()).expect("a request");
    sender.send_request(first).await.expect("answered").into_body().collect().await.expect("whole");
    sender
}

async fn connect(sender: &mut Sender, host: &str, protocol: &'static str) -> Response<Incoming> {
    let request = Request::connect(format!("http://{host}/chat?x=1"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .extension(Protocol::from_static(protocol))
        .body(Empty::new())
        .expect("a request");
    timeout(PATIENCE, sender.send_request(request)).await.expect("in time").expect("answered")
}

fn reason(fields: &HeaderMap) -> &str {
    fields.get("content-type").map_or("", |kind| kind.to_str().expect("text"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_is_a_stream_beside_others() {
    let backend = Backend::start("sockets");
    let all = |name: &str, more: &str| {
        let rule = format!("{{name: all{more}, backendRefs: [{{kind: GatewayBackend, name: sockets}}]}}");
        route(name, &format!("{{hostnames: [{name}.test], rules: [{rule}]}}"))
    };
    let manifests = [
        backend.manifest("sockets"),
        all("ws", ""),
        all("plain", ""),
        all("denied", ", policy: {ipAccess: {deny: [127.0.0.0/8]}}"),
        responds("fixed", "fixed.test", "hello"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let mut sender = client(&gateway).await;

    let mut sockets = Vec::new();
    for _ in 0..2 {
        let answer = connect(&mut sender, "ws.test", "websocket").await;
        assert_eq!(answer.status(), 200);
        for name in ["sec-websocket-accept", "upgrade", "connection", "content-length"] {
            assert!(!answer.headers().contains_key(name), "{name}");
        }
        let stream = hyper::upgrade::on(answer).await.expect("a tunnel");
        sockets.push(WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Client, None).await);
    }
    for round in 0..3 {
        for (number, socket) in sockets.iter_mut().enumerate() {
            let sent = Message::text(format!("{number} {}", "x".repeat(round * 60_000)));
            socket.send(sent.clone()).await.expect("sent");
            let echoed = timeout(PATIENCE, socket.next()).await.expect("in time");
            assert_eq!(echoed.expect("open").expect("a message"), sent);
        }
        // Ordinary requests go on beside them.
        let request = Request::get("http://plain.test/").body(Empty::new()).expect("a request");
        assert_eq!(sender.send_request(request).await.expect("answered").status(), 200);
    }
    for socket in &mut sockets {
        socket.close(None).await.expect("closed");
        while let Some(Ok(_)) = timeout(PATIENCE, socket.next()).await.expect("in time") {}
    }
    // The backend has closed; a tunnel ends when both sides have.
    drop(sockets);
    let series = r#"portcullis_upstream_connections{backend="GatewayBackend/test/sockets",state="active"} 0"#;
    super::harness::until("the tunnels to be over", || {
        gateway.ask_admin("/metrics").body.contains(series).then_some(())
    });

    // What is none is told as ever, and never by a success.
    for (host, protocol, status) in [
        ("denied.test", "websocket", 403),
        ("nowhere.test", "websocket", 404),
        ("fixed.test", "websocket", 502),
        ("ws.test", "connect-udp", 405),
    ] {
        let answer = connect(&mut sender, host, protocol).await;
        assert_eq!(
            (answer.status().as_u16(), reason(answer.headers())),
            (status, "application/problem+json")
        );
    }
}
