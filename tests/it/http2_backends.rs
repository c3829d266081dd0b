//! HTTP/2 to backends in the whole program: who says that it is spoken, and every pair of protocols.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::aws_lc_rs;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::backend_tls::{Authority, Leaf};
use super::harness::{Answer, Backend, Gateway, connect, exchange, read_answer, route};
use super::proxy_rig::http2_client;

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// A body of one part with trailers behind it.
fn body(trailers: &[(&'static str, &'static str)]) -> Frames {
    let mut fields = HeaderMap::new();
    for (name, value) in trailers {
        fields.append(*name, HeaderValue::from_static(value));
    }
    let frames = vec![Ok(Frame::data(Bytes::from_static(b"abc"))), Ok(Frame::trailers(fields))];
    StreamBody::new(stream::iter(frames))
}

fn service(name: &str, backend: &Backend, app_protocol: Value) -> String {
    let port = backend.address.port();
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "test"},
        "spec": {"ports": [{"port": 80, "appProtocol": app_protocol}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "test", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"port": port}],
        "endpoints": [{"addresses": [backend.address.ip()], "conditions": {"ready": true}}]});
    format!("{service}\n---\n{slice}\n---\n")
}

pub fn gateway_backend(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {spec}\n---\n"
    )
}

pub fn to(name: &str, reference: &str) -> String {
    let spec =
        format!("{{hostnames: [{name}.test], rules: [{{name: all, backendRefs: [{{{reference}}}]}}]}}");
    route(name, &spec)
}

fn spoken(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["protocol"].as_str().expect("told").to_owned()
}

#[test]
fn a_service_s_port_or_a_backend_says_what_is_spoken_without_tls() {
    let backend = Backend::start("b");
    let hosts = format!("hosts: [{{address: {}, port: {}}}]", backend.address.ip(), backend.address.port());
    let manifests = [
        service("plain", &backend, Value::Null),
        service("h2c", &backend, json!("kubernetes.io/h2c")),
        service("grpc", &backend, json!("grpc")),
        service("ws", &backend, json!("kubernetes.io/ws")),
        to("plain", "name: plain, port: 80"),
        to("h2c", "name: h2c, port: 80"),
        to("grpc", "name: grpc, port: 80"),
        to("ws", "name: ws, port: 80"),
        gateway_backend("as-the-port", "{service: {name: h2c, port: 80}}"),
        gateway_backend("not-as-the-port", "{service: {name: h2c, port: 80}, protocol: HTTP1}"),
        gateway_backend("hosts", &format!("{{{hosts}}}")),
        gateway_backend("h2c-hosts", &format!("{{{hosts}, protocol: H2C}}")),
        to("as-the-port", "kind: GatewayBackend, name: as-the-port"),
        to("not-as-the-port", "kind: GatewayBackend, name: not-as-the-port"),
        to("hosts", "kind: GatewayBackend, name: hosts"),
        to("h2c-hosts", "kind: GatewayBackend, name: h2c-hosts"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    for (name, protocol) in [
        ("plain", "HTTP/1.1"),
        ("h2c", "HTTP/2.0"),
        ("grpc", "HTTP/2.0"),
        ("ws", "HTTP/1.1"),
        ("as-the-port", "HTTP/2.0"),
        ("not-as-the-port", "HTTP/1.1"),
        ("hosts", "HTTP/1.1"),
        ("h2c-hosts", "HTTP/2.0"),
    ] {
        let host = format!("{name}.test");
        let answer = gateway.request("POST", &host, "/a?b=c", &["X-Own: 1"], "hello");
        assert_eq!(spoken(&answer), protocol, "{name}");
        let seen = answer.json();
        assert_eq!(
            (&seen["host"], &seen["path"], &seen["body"]),
            (&json!(host), &json!("/a"), &json!("hello"))
        );
        assert_eq!((&seen["query"], &seen["headers"]["x-own"]), (&json!("b=c"), &json!("1")));
        assert_eq!(seen["headers"]["x-forwarded-host"], json!(host));
    }
    let metrics = gateway.ask_admin("/metrics").body;
    let series = "portcullis_upstream_connections{backend=\"Service/test/h2c:80\",state=\"shared\"} ";
    assert!(metrics.contains(&format!("{series}1")) || metrics.contains(&format!("{series}2")), "{metrics}");
}

#[tokio::test]
async fn trailers_pass_between_each_pair_of_protocols() {
    let backend = Backend::start("b");
    let manifests = [
        service("one", &backend, Value::Null),
        service("two", &backend, json!("kubernetes.io/h2c")),
        to("one", "name: one, port: 80"),
        to("two", "name: two, port: 80"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    for host in ["one.test", "two.test"] {
        // From HTTP/2.
        let (mut sender, _connection) = http2_client::<Frames>(gateway.http).await;
        let ask = |path: &str| {
            Request::post(format!("http://{host}{path}"))
                .header("te", "trailers")
                .header("trailer", "x-sum, x-forwarded-for")
                .body(body(&[("x-sum", "7"), ("x-forwarded-for", "spoofed")]))
                .expect("a request")
        };
        let answer = sender.send_request(ask("/")).await.expect("answered").into_body().collect().await;
        let seen: Value = serde_json::from_slice(&answer.expect("whole").to_bytes()).expect("JSON");
        assert_eq!(seen["trailers"], json!({"x-sum": "7"}), "{host}");
        assert_eq!(seen["headers"]["te"], "trailers", "{host}");
        let answer = sender.send_request(ask("/trailers")).await.expect("answered");
        let whole = answer.into_body().collect().await.expect("whole");
        assert_eq!(whole.trailers().expect("there are some")["x-echo-trailer"], "at the end", "{host}");

        // From HTTP/1.1.
        let ask = |path: &str, te: &str| {
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close, te\r\n{te}trailer: x-sum\r\n\
                 transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\nx-forwarded-for: spoofed\r\n\r\n"
            );
            let mut stream = connect(gateway.http);
            stream.write_all(request.as_bytes()).expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("text");
            answer
        };
        let answer = ask("/trailers", "te: trailers\r\n");
        assert!(answer.contains("\r\n0\r\nx-echo-trailer: at the end\r\n\r\n"), "{host}: {answer}");
        let answer = ask("/", "te: trailers\r\n");
        assert!(answer.contains("\"trailers\": {\n    \"x-sum\": \"7\"\n  }"), "{host}: {answer}");
        let answer = ask("/trailers", "");
        assert!(answer.ends_with("\r\n0\r\n\r\n") && !answer.contains("at the end"), "{host}: {answer}");
    }
}

/// What agrees on one of these.
pub fn acceptor(leaf: &Leaf, offers: &[&str]) -> TlsAcceptor {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(leaf.certified())));
    config.alpn_protocols = offers.iter().map(|offer| offer.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A server over TLS that speaks what is agreed on, and tells what that was.
async fn over_tls(leaf: &Leaf, offers: &[&str]) -> SocketAddr {
    let acceptor = acceptor(leaf, offers);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = service_fn(tell);
                if is_http2 {
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = serving.serve_connection(TokioIo::new(stream), service).await;
                } else {
                    let serving = hyper::server::conn::http1::Builder::new();
                    let _ = serving.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                }
            });
        }
    });
    address
}

async fn tell(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.headers().contains_key("upgrade") {
        let mut response = Response::new(Full::default());
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        return Ok(response);
    }
    let told = json!({"protocol": format!("{:?}", request.version()), "uri": request.uri().to_string()});
    Ok(Response::new(Full::from(told.to_string())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_what_is_spoken_is_agreed_on() {
    let authority = Authority::new("ours");
    let leaf = authority.certify(&["db.example"]);
    let both = over_tls(&leaf, &["h2", "http/1.1"]).await;
    let old = over_tls(&leaf, &["http/1.1"]).await;
    let mute = over_tls(&leaf, &[]).await;
    let backend = |name: &str, address: SocketAddr, protocol: &str| {
        let hosts = format!("hosts: [{{address: {}, port: {}}}]", address.ip(), address.port());
        let tls = "tls: {serverName: db.example, caCertificateRefs: [{name: ca}]}";
        gateway_backend(name, &format!("{{{hosts}, {tls}{protocol}}}"))
            + &to(name, &format!("kind: GatewayBackend, name: {name}"))
    };
    let manifests = [
        authority.config_map("ca"),
        backend("auto", both, ""),
        backend("auto-old", old, ", protocol: Auto"),
        backend("auto-mute", mute, ""),
        backend("one", both, ", protocol: HTTP1"),
        backend("two", both, ", protocol: HTTP2"),
        backend("two-old", old, ", protocol: HTTP2"),
        backend("two-mute", mute, ", protocol: HTTP2"),
    ];
    let files = manifests.concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    for (name, protocol) in [
        ("auto", "HTTP/2.0"),
        ("auto-old", "HTTP/1.1"),
        ("auto-mute", "HTTP/1.1"),
        ("one", "HTTP/1.1"),
        ("two", "HTTP/2.0"),
    ] {
        for _ in 0..3 {
            let answer = gateway.get(&format!("{name}.test"), "/x");
            assert_eq!(spoken(&answer), protocol, "{name}");
            if protocol == "HTTP/2.0" {
                assert_eq!(answer.json()["uri"], format!("https://{name}.test/x"));
            }
        }
    }
    for name in ["two-old", "two-mute"] {
        let answer = gateway.get(&format!("{name}.test"), "/");
        assert_eq!((answer.status, &answer.json()["reason"]), (502, &json!("TlsFailure")), "{name}");
        let series = format!(
            "portcullis_upstream_tls_failures_total{{backend=\"GatewayBackend/test/{name}\",reason=\"nothing_in_common\"}}"
        );
        assert!(gateway.ask_admin("/metrics").body.contains(&series), "{name}");
    }
    // What only HTTP/1.1 can do is done by it, beside what is spoken else.
    for name in ["auto", "auto-old"] {
        let mut stream = connect(gateway.http);
        let head = format!(
            "GET / HTTP/1.1\r\nhost: {name}.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let answer = read_answer(&mut stream).expect("answered");
        assert_eq!(answer.status, 101, "{name}: {answer:?}");
    }
    let answer = exchange(connect(gateway.http), "GET", "auto.test", "/", &[], "");
    assert_eq!(spoken(&answer), "HTTP/2.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_checked_by_what_is_spoken_to_them() {
    let authority = Authority::new("ours");
    let leaf = authority.certify(&["db.example"]);
    let two = over_tls(&leaf, &["h2"]).await;
    let h2c = Backend::start("h2c");
    let check = "healthCheck: {active: {path: /healthz, interval: 100ms, unhealthyAfter: 1, timeout: 100ms}}";
    let tls = "tls: {serverName: db.example, caCertificateRefs: [{name: ca}]}";
    let hosts = format!("hosts: [{{address: {}, port: {}}}]", two.ip(), two.port());
    let manifests = [
        authority.config_map("ca"),
        gateway_backend("agreed", &format!("{{{hosts}, {tls}, {check}}}")),
        gateway_backend("not-agreed", &format!("{{{hosts}, {tls}, protocol: HTTP1, {check}}}")),
        service("h2c", &h2c, json!("kubernetes.io/h2c")),
        gateway_backend("by-port", &format!("{{service: {{name: h2c, port: 80}}, {check}}}")),
        to("agreed", "kind: GatewayBackend, name: agreed"),
        to("not-agreed", "kind: GatewayBackend, name: not-agreed"),
        to("by-port", "kind: GatewayBackend, name: by-port"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    for (name, result, other) in
        [("agreed", "passed", "failed"), ("by-port", "passed", "failed"), ("not-agreed", "failed", "passed")]
    {
        let count = |result: &str| {
            let series = format!(
                "portcullis_upstream_health_checks_total{{backend=\"GatewayBackend/test/{name}\",result=\"{result}\"}} "
            );
            let metrics = gateway.ask_admin("/metrics").body;
            let found = metrics.lines().find_map(|line| line.strip_prefix(&series));
            found.map_or(0, |count| count.parse::<u64>().expect("a number"))
        };
        super::harness::until("checks", || (count(result) > 2).then_some(()));
        assert_eq!(count(other), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_takes_its_request_along() {
    let backend = Backend::start("b");
    let manifests =
        [service("two", &backend, json!("kubernetes.io/h2c")), to("two", "name: two, port: 80")].concat();
    let gateway = Gateway::start(&[("all.yaml", &manifests)]);
    let active = || {
        let metrics = gateway.ask_admin("/metrics").body;
        let series = "portcullis_upstream_connections{backend=\"Service/test/two:80\",state=\"active\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap_or("0");
        line.parse::<u64>().expect("a number")
    };
    let (mut sender, _connection) = http2_client::<Frames>(gateway.http).await;
    let request = Request::get("http://two.test/delay/30s").body(body(&[])).expect("a request");
    let slow = tokio::spawn(sender.send_request(request));
    super::harness::until("the request to be under way", || (active() == 1).then_some(()));
    slow.abort();
    super::harness::until("the request to be gone", || (active() == 0).then_some(()));
    let answer = gateway.get("two.test", "/");
    assert_eq!(spoken(&answer), "HTTP/2.0");
    let _ = tokio::time::timeout(Duration::from_secs(1), slow).await;
}
