//! WebSockets over a stream of HTTP/2 through the whole program: from clients to backends of HTTP/1.1 that know nothing
//! of that, and to backends of HTTP/2 from clients of both.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::backend_tls::{Authority, Leaf};
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

/// A GatewayBackend of this protocol.
fn speaking(name: &str, address: SocketAddr, more: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: {}, port: {}}}]{more}}}\n---\n",
        address.ip(),
        address.port()
    )
}

fn to(name: &str) -> String {
    let rule = format!("{{name: all, backendRefs: [{{kind: GatewayBackend, name: {name}}}]}}");
    route(name, &format!("{{hostnames: [{name}.test], rules: [{rule}]}}"))
}

/// Messages of several sizes, there and back; then both sides close.
async fn talks(mut socket: WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>) {
    for size in [0, 1, 125, 126, 65_536, 300_000] {
        let sent = Message::binary(vec![7; size]);
        socket.send(sent.clone()).await.expect("sent");
        let echoed = timeout(PATIENCE, socket.next()).await.expect("in time");
        assert_eq!(echoed.expect("open").expect("a message"), sent);
    }
    socket.close(None).await.expect("closed");
    while let Some(Ok(_)) = timeout(PATIENCE, socket.next()).await.expect("in time") {}
}

async fn by_http1(gateway: &Gateway, host: &str) -> Result<WebSocketStream<TcpStream>, u16> {
    let stream = TcpStream::connect(gateway.http).await.expect("connects");
    match tokio_tungstenite::client_async(format!("ws://{host}/chat?x=1"), stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{host}: {error}"),
    }
}

/// A server over TLS of what is agreed on. By HTTP/2 it takes WebSockets where it is said to, by HTTP/1.1 always;
/// what it takes it sends back byte by byte.
async fn over_tls(leaf: &Leaf, offers: &[&str], takes: bool) -> SocketAddr {
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(leaf.certified())));
    config.alpn_protocols = offers.iter().map(|offer| offer.as_bytes().to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    let serving = hyper::server::conn::http1::Builder::new();
                    let serving = serving.serve_connection(TokioIo::new(stream), service_fn(switch));
                    return drop(serving.with_upgrades().await);
                }
                let mut serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                if takes {
                    serving.enable_connect_protocol();
                }
                drop(serving.serve_connection(TokioIo::new(stream), service_fn(switch)).await);
            });
        }
    });
    address
}

async fn switch(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, std::convert::Infallible> {
    let version = format!("{:?}", request.version());
    let mut answer = Response::new(Empty::new());
    answer.headers_mut().insert("x-spoken", version.parse().expect("a value"));
    let is_connect = request.method() == http::Method::CONNECT;
    if let Some(key) = request.headers().get("sec-websocket-key").filter(|_| !is_connect) {
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        *answer.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().insert("sec-websocket-accept", accept.parse().expect("a value"));
        answer.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        answer.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    } else if !is_connect {
        return Ok(answer);
    }
    tokio::spawn(async move {
        let Ok(stream) = hyper::upgrade::on(&mut request).await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await;
        let (to, from) = socket.split();
        let _ = from.try_filter(|message| std::future::ready(!message.is_close())).forward(to).await;
    });
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_of_http2_takes_websockets_by_extended_connect() {
    let (echo, authority) = (Backend::start("sockets"), Authority::new("ours"));
    let leaf = authority.certify(&["db.example"]);
    let tls = ", tls: {serverName: db.example, caCertificateRefs: [{name: ca}]}";
    let (takes, both) =
        (over_tls(&leaf, &["h2"], true).await, over_tls(&leaf, &["h2", "http/1.1"], true).await);
    let old = over_tls(&leaf, &["h2", "http/1.1"], false).await;
    let never = over_tls(&leaf, &["h2"], false).await;
    let manifests = [
        authority.config_map("ca"),
        speaking("h2c", echo.address, ", protocol: H2C"),
        speaking("takes", takes, tls),
        speaking("both", both, tls),
        speaking("old", old, tls),
        speaking("never", never, tls),
        speaking("never-two", never, &format!("{tls}, protocol: HTTP2")),
        ["h2c", "takes", "both", "old", "never", "never-two"].map(to).concat(),
        responds("plain", "plain.test", "hello"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let mut sender = client(&gateway).await;
    // Twice: what is known of an endpoint by then changes nothing.
    for _ in 0..2 {
        for name in ["h2c", "takes", "both", "old"] {
            let host = format!("{name}.test");
            talks(by_http1(&gateway, &host).await.expect(name)).await;
            let answer = connect(&mut sender, &host, "websocket").await;
            assert_eq!(answer.status(), 200, "{name}");
            let spoken = if name == "old" { "HTTP/1.1" } else { "HTTP/2.0" };
            assert!(name == "h2c" || answer.headers()["x-spoken"] == spoken, "{name}: {answer:?}");
            let stream = hyper::upgrade::on(answer).await.expect("a tunnel");
            talks(WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Client, None).await).await;
        }
        for name in ["never", "never-two"] {
            let host = format!("{name}.test");
            assert_eq!(by_http1(&gateway, &host).await.err(), Some(502), "{name}");
            let answer = connect(&mut sender, &host, "websocket").await;
            assert_eq!(answer.status(), 502, "{name}");
            let body = answer.into_body().collect().await.expect("whole").to_bytes();
            assert!(String::from_utf8_lossy(&body).contains("NoWebSockets"), "{name}: {body:?}");
            assert_eq!(gateway.get(&host, "/").status, 200, "{name}: it is asked as ever");
        }
    }
    let metrics = gateway.ask_admin("/metrics").body;
    let shared = |name: &str| {
        let series = format!(
            "portcullis_upstream_connections{{backend=\"GatewayBackend/test/{name}\",state=\"shared\"}} "
        );
        let line = metrics.lines().find_map(|line| line.strip_prefix(&series)).unwrap_or("0");
        line.parse::<u64>().expect("a number")
    };
    // Two workers: one connection each, however many were refused.
    assert!(shared("never-two") <= 2 && shared("takes") <= 2, "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_of_http2_hears_what_its_client_asked_for() {
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let told = heads.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let told = told.clone();
                    async move {
                        let (head, _) = request.into_parts();
                        let mut answer = Response::new(Empty::<Bytes>::new());
                        *answer.status_mut() = match head.uri.path() {
                            "/no" => http::StatusCode::FORBIDDEN,
                            _ => http::StatusCode::NO_CONTENT,
                        };
                        told.lock().expect("not poisoned").push(head);
                        Ok::<_, std::convert::Infallible>(answer)
                    }
                });
                let mut serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                serving.enable_connect_protocol();
                drop(serving.serve_connection(TokioIo::new(socket), service).await);
            });
        }
    });
    let manifests = [speaking("two", address, ", protocol: H2C"), to("two")].concat();
    let gateway = Gateway::start(&[("all.yaml", &manifests)]);
    let ask = |path: &str, more: &[&str]| {
        let mut fields = vec!["Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
        fields.extend(more);
        gateway.request("GET", "two.test", path, &fields, "")
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    // What it refuses, it refuses; another success than 200 is none.
    assert_eq!(ask("/no?x=1", &[key, "Sec-WebSocket-Protocol: chat"]).status, 403);
    assert_eq!(ask("/other", &[key]).status, 502);
    {
        let heads = heads.lock().expect("not poisoned");
        let head = &heads[0];
        assert_eq!(
            (head.method.as_str(), head.uri.to_string().as_str()),
            ("CONNECT", "http://two.test/no?x=1")
        );
        assert_eq!(head.extensions.get::<Protocol>().map(Protocol::as_str), Some("websocket"));
        assert_eq!(head.headers["sec-websocket-protocol"], "chat");
        assert_eq!(head.headers["sec-websocket-version"], "13");
        for name in ["sec-websocket-key", "upgrade", "connection"] {
            assert!(!head.headers.contains_key(name), "{name}");
        }
    }
    // Without a key it is no WebSocket's handshake, and the wish to upgrade does not go on.
    ask("/plain", &[]);
    assert_eq!(heads.lock().expect("not poisoned").last().expect("one more").method, "GET");
}
