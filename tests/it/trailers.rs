//! Trailers on the whole proxy: what would count in a head does not come in behind a body, from either side, over
//! HTTP/1.1 and HTTP/2; what trailers are for does.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{harness, proxy_rig::*};

fn gateway(backend: &Backend, has_own: bool) -> Gateway {
    let gateway = Gateway::start();
    let mut host = Arc::into_inner(host("", None, forward("b"))).expect("nobody else has it");
    host.own_headers = has_own.then_some("x-user-id").into_iter().collect();
    let (map, endpoints) = route_map(vec![Arc::new(host)], &[("b", backend.address)]);
    gateway.plane.install(map, endpoints);
    gateway
}

/// What a backend or client might take for a field of the head, in the spellings that some do.
const SPOOFED: &[&str] = &[
    "x-user-id",
    "x.user.id",
    "x_user_id",
    "X-USER-ID",
    "authorization",
    "x-api-key",
    "x-http-method-override",
    "x.method.override",
    "cookie",
    "host",
    "content-length",
    "transfer-encoding",
    "x-forwarded-for",
    "x-forwarded-user",
    "x-real-ip",
    "x-request-id",
    "forwarded",
    "set-cookie",
    "www-authenticate",
    "access-control-allow-origin",
    "strict-transport-security",
];

fn announced() -> String {
    format!("trailer: x-sum, {}\r\n", SPOOFED.join(", "))
}

fn sent() -> String {
    let spoofed: String = SPOOFED.iter().map(|name| format!("{name}: spoofed\r\n")).collect();
    format!("x-sum: 7\r\n{spoofed}\r\n")
}

/// The part behind the last chunk.
fn behind(message: &str) -> &str {
    message.split_once("\r\n0\r\n").unwrap_or_else(|| panic!("no chunks: {message}")).1
}

#[tokio::test]
async fn a_request_s_trailers_name_nothing_that_counts_in_its_head() {
    let backend = Backend::ok().await;
    let gateway = gateway(&backend, true);
    let request = format!(
        "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n{}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n{}",
        announced(),
        sent()
    );
    assert_eq!(status(&exchange(gateway.http(), &request).await), 200);
    let heard = backend.last();
    assert_eq!(behind(&heard), "x-sum: 7\r\n\r\n", "{heard}");
}

/// Of the whole program, since the names come from policies.
async fn behind_the_body(policy: &str) -> String {
    let backend = Backend::ok().await;
    let manifests = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: one, namespace: test}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}]}}\n---\n",
        backend.address.port()
    ) + &harness::route(
        "a",
        &format!(
            "{{hostnames: [a], rules: [{{name: other, matches: [{{path: {{value: /other}}}}], policy: {policy}, backendRefs: [{{kind: GatewayBackend, name: one}}]}}, {{name: one, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
        ),
    );
    let gateway = harness::Gateway::start(&[("all.yaml", &manifests)]);
    let names = ["X-Partner-Key", "x_partner_key", "x.partner.key", "X-Role", "x.role", "x-api-key"];
    let fields: String = names.iter().map(|name| format!("{name}: mine\r\n")).collect();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntrailer: x-sum, {}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n{fields}\r\n",
        names.join(", ")
    );
    assert_eq!(status(&exchange(gateway.http, &request).await), 200);
    let heard = backend.last();
    behind(&heard).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_an_authorizer_s_word_do_not_come_behind_a_body_whatever_rule_it_meets() {
    let key = "{authentication: {anyOf: [{name: k, apiKey: {from: [{header: X-Partner-Key}, {query: key}], secretSelector: {matchLabels: {none: such}}, forward: true}}]}}";
    let role = "x-role: mine\r\nx.role: mine\r\n";
    assert_eq!(behind_the_body(key).await, format!("x-sum: 7\r\n{role}\r\n"));
    let authorizer =
        "{extAuth: {backendRef: {kind: GatewayBackend, name: one}, backendHeaders: [X-Role, X-Api-Key]}}";
    let partner = "x-partner-key: mine\r\nx.partner.key: mine\r\n";
    assert_eq!(behind_the_body(authorizer).await, format!("x-sum: 7\r\n{partner}\r\n"));
}

#[tokio::test]
async fn the_control_without_a_field_of_its_own_the_gateway_lets_that_name_through() {
    let backend = Backend::ok().await;
    let gateway = gateway(&backend, false);
    let request = "POST / HTTP/1.1\r\nhost: a\r\ntrailer: x-user-id\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-user-id: me\r\n\r\n";
    assert_eq!(status(&exchange(gateway.http(), request).await), 200);
    assert_eq!(behind(&backend.last()), "x-user-id: me\r\n\r\n");
}

#[tokio::test]
async fn nor_do_those_of_a_stream_of_http2_and_of_its_answer() {
    let answer = format!(
        "HTTP/1.1 200 OK\r\n{}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{}",
        announced(),
        sent()
    );
    let backend = Backend::answering(&answer).await;
    let gateway = gateway(&backend, true);
    let socket = TcpStream::connect(gateway.http()).await.expect("connects");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    // h2 itself refuses those of a connection.
    for name in SPOOFED.iter().filter(|name| **name != "transfer-encoding") {
        trailers.append(HeaderName::try_from(*name).expect("a name"), HeaderValue::from_static("spoofed"));
    }
    let frames = [Frame::data(Bytes::from_static(b"abc")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, std::convert::Infallible>)));
    let request = http::Request::post("http://a.test/")
        .header("te", "trailers")
        .header("trailer", format!("x-sum, {}", SPOOFED.join(", ")))
        .body(body)
        .expect("a request");
    let answer = sender.send_request(request).await.expect("answered");
    assert_eq!(answer.status(), 200);
    let heard = backend.last();
    assert_eq!(behind(&heard), "x-sum: 7\r\n\r\n", "{heard}");
    let whole = answer.into_body().collect().await.expect("whole");
    let trailers = whole.trailers().expect("there are some");
    let left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
    // Who the client is concerns backends alone: an answer may name it.
    assert!(trailers["x-sum"] == "7" && !trailers.contains_key("set-cookie"), "{left:?}");
    for name in left {
        assert!(["x-sum", "x-user-id", "x.user.id"].contains(&name), "{name} came through");
    }
}

#[tokio::test]
async fn an_answer_s_trailers_name_nothing_that_counts_in_its_head() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\ntrailer: x-sum, set-cookie, strict-transport-security, access-control-allow-origin\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\
         x-sum: 7\r\nset-cookie: a=b\r\nstrict-transport-security: max-age=0\r\naccess-control-allow-origin: *\r\n\r\n",
    )
    .await;
    let gateway = gateway(&backend, false);
    let request = "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n";
    let answer = exchange(gateway.http(), request).await;
    assert_eq!(behind(&answer), "x-sum: 7\r\n\r\n", "{answer}");
}
