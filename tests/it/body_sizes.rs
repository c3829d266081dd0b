//! How large a request's body may be: the installation's bound, and what a rule says in its place.

use std::io::{Read, Write};
use std::net::TcpListener;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;

use super::harness::*;
use super::proxy_rig::http2_client;

const KI: usize = 1 << 10;
const TO: &str = "backendRefs: [{kind: GatewayBackend, name: one}]";

/// `/more` takes 256Ki and `/less` 1Ki, where the installation has a bound of its own; `/cors` has a filter and says
/// nothing of bodies.
fn routes(backend: &Backend) -> String {
    let rule = |name: &str, policy: &str| {
        format!("{{name: {name}, matches: [{{path: {{value: /{name}}}}}], policy: {{{policy}}}, {TO}}}")
    };
    let rules = [
        rule("more", "validation: {maxBodySize: 256Ki}"),
        rule("less", "validation: {maxBodySize: 1Ki}"),
        rule("cors", "cors: {allowOrigins: ['https://a.example']}"),
        format!("{{name: all, {TO}}}"),
    ];
    let spec = format!("{{hostnames: [shop.example], rules: [{}]}}", rules.join(", "));
    backend.manifest("one") + &route("shop", &spec)
}

fn post(gateway: &Gateway, path: &str, fields: &[&str], bytes: usize) -> Answer {
    gateway.request("POST", "shop.example", path, fields, &"x".repeat(bytes))
}

/// The same without a word on its size.
fn post_chunked(gateway: &Gateway, path: &str, bytes: usize) -> u16 {
    let mut stream = connect(gateway.http);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let body = format!("{bytes:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(bytes));
    // Whoever is refused in the middle cannot send the rest.
    let _ = stream.write_all((head + &body).as_bytes());
    read_answer(&mut stream).expect("an answer").status
}

/// The answer to a head that announces so much and waits to be asked for it.
fn announce(gateway: &Gateway, path: &str, fields: &[&str], bytes: usize) -> String {
    let mut stream = connect(gateway.http);
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: shop.example\r\n{fields}Expect: 100-continue\r\nContent-Length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("refused, and the connection's end");
    text(&answer)
}

#[test]
fn a_rule_raises_and_lowers_the_installation_s_bound() {
    let backend = Backend::start("one");
    let gateway = Gateway::with(&[("a.yaml", &routes(&backend))], &["--max-body-size", "64Ki"]);
    for (path, bytes, status) in [
        ("/", 64 * KI, 200),
        ("/", 64 * KI + 1, 413),
        ("/cors", 64 * KI, 200),
        ("/cors", 64 * KI + 1, 413),
        ("/more", 256 * KI, 200),
        ("/more", 256 * KI + 1, 413),
        ("/less", KI, 200),
        ("/less", KI + 1, 413),
    ] {
        assert_eq!(post_chunked(&gateway, path, bytes), status, "{path} {bytes}, chunked");
        if status == 200 {
            assert_eq!(post(&gateway, path, &[], bytes).status, status, "{path} {bytes}");
            continue;
        }
        let refused = announce(&gateway, path, &[], bytes);
        assert!(
            refused.starts_with("HTTP/1.1 413 ") && refused.contains("BodyTooLarge"),
            "{path}: {refused}"
        );
    }
    // The refusal passes the rule's other filters on its way out.
    let refused = announce(&gateway, "/cors", &["Origin: https://a.example"], 99 * KI);
    assert!(refused.contains("access-control-allow-origin: https://a.example\r\n"), "{refused}");
}

#[test]
fn an_imposed_bound_holds_beside_the_rule_s_own() {
    let backend = Backend::start("one");
    let imposed = "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {name: most, namespace: default}\nspec: {targetRefs: [{kind: Installation}], precedence: Override, policy: {validation: {maxBodySize: 128Ki}}}\n";
    let files = [("a.yaml", &*routes(&backend)), ("most.yaml", imposed)];
    let gateway = Gateway::with(&files, &["--max-body-size", "64Ki"]);
    for (path, bytes, status) in [
        ("/more", 128 * KI, 200),
        ("/more", 128 * KI + 1, 413),
        ("/less", KI + 1, 413),
        ("/", 128 * KI, 200),
        ("/", 128 * KI + 1, 413),
    ] {
        assert_eq!(post_chunked(&gateway, path, bytes), status, "{path} {bytes}");
    }
}

#[tokio::test]
async fn the_same_bounds_hold_over_http2() {
    let backend = Backend::start("one");
    let gateway = Gateway::with(&[("a.yaml", &routes(&backend))], &["--max-body-size", "64Ki"]);
    let (mut sender, _connection) = http2_client(gateway.http).await;
    let mut ask = async |path: &str, announced: bool, sent: usize, bytes: usize| {
        let chunk = Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("x".repeat(sent))));
        let ends = sent == bytes;
        let rest = match ends {
            true => futures_util::stream::empty().left_stream(),
            false => futures_util::stream::pending().right_stream(),
        };
        let body = StreamBody::new(futures_util::stream::iter([chunk]).chain(rest));
        let mut request = http::Request::post(format!("http://shop.example{path}"));
        if announced {
            request = request.header("content-length", bytes);
        }
        let answer = sender.send_request(request.body(body).expect("a request"));
        tokio::time::timeout(PATIENCE, answer).await.expect("in time").expect("an answer").status().as_u16()
    };
    for announced in [true, false] {
        for (path, bytes) in [("/", 64 * KI), ("/cors", 64 * KI), ("/more", 256 * KI), ("/less", KI)] {
            assert_eq!(ask(path, announced, bytes, bytes).await, 200, "{path} {announced}");
            assert_eq!(ask(path, announced, bytes + 1, bytes + 1).await, 413, "{path} {announced}");
        }
    }
    for path in ["/", "/cors", "/more", "/less"] {
        assert_eq!(ask(path, true, 1, 999 * KI).await, 413, "{path}: as soon as it is announced");
    }
}

/// Answers with how many bytes came.
fn counting() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let head = text(&head).to_ascii_lowercase();
            let length =
                head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            let body = &mut (&mut stream).take(length.unwrap_or(0));
            let counted = std::io::copy(body, &mut std::io::sink()).unwrap_or(0).to_string();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{counted}", counted.len());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn eleven_mebibytes_pass_where_a_rule_says_so_and_nowhere_else_by_default() {
    let address = counting();
    let backend = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: one, namespace: test}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}]}}\n---\n",
        address.port()
    );
    let large = format!(
        "{{name: large, matches: [{{path: {{value: /large}}}}], policy: {{validation: {{maxBodySize: 100Mi}}}}, {TO}}}"
    );
    let spec = format!("{{hostnames: [shop.example], rules: [{large}, {{name: all, {TO}}}]}}");
    let gateway = Gateway::start(&[("a.yaml", &(backend + &route("shop", &spec)))]);
    let answer = post(&gateway, "/large", &[], 11 << 20);
    assert_eq!((answer.status, &*answer.body), (200, "11534336"));
    let refused = announce(&gateway, "/", &[], 11 << 20);
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    assert_eq!(post(&gateway, "/", &[], 10 << 20).body, "10485760");
}
