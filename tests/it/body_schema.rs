//! `bodySchema` seen from outside: what a backend hears of bodies that are right, wrong, slow and packed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;

use super::harness::*;
use super::proxy_rig::http2_client;

/// A backend that keeps what it hears, byte for byte, and answers once a request is whole.
struct Heard {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<u8>>>,
}

impl Heard {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, requests) =
            (listener.local_addr().expect("an address"), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || hear(stream, &kept));
            }
        });
        Self { address, requests }
    }

    fn text(&self) -> String {
        text(&self.requests.lock().expect("no panic holds it"))
    }

    fn manifest(&self) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: heard, namespace: test}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}]}}\n---\n",
            self.address.port()
        )
    }
}

/// The tests' bodies end so.
const END: &str = "\"end\"}";

fn hear(mut stream: TcpStream, kept: &Mutex<Vec<u8>>) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut bytes) {
        kept.lock().expect("no panic holds it").extend_from_slice(&bytes[..read]);
        let heard = text(&kept.lock().expect("no panic holds it"));
        if heard.trim_end().trim_end_matches("\r\n0").ends_with(END)
            && stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err()
        {
            return;
        }
    }
}

const SCHEMA: &str = r#"{"type": "object", "required": ["sku"], "properties": {"qty": {"type": "integer"}}}"#;

fn manifests(heard: &Heard) -> String {
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: schemas, namespace: test}}\ndata: {{order.json: '{SCHEMA}'}}\n---\n"
    );
    let rule = |name: &str, validation: &str| {
        format!(
            "{{name: {name}, matches: [{{path: {{value: /{name}}}}}], policy: {{validation: {validation}}}, backendRefs: [{{kind: GatewayBackend, name: heard}}]}}"
        )
    };
    let whole =
        rule("whole", "{maxBodySize: 1Ki, bodySchema: {configMapRef: {name: schemas, key: order.json}}}");
    let stream = rule("stream", "{maxBodySize: 1Ki, contentTypes: [application/json]}");
    let spec = format!("{{hostnames: [orders.test], rules: [{whole}, {stream}]}}");
    format!("{map}{}{}", heard.manifest(), route("orders", &spec))
}

const JSON: &str = "Content-Type: application/json";

#[test]
fn a_wrong_body_is_told_and_nobody_else_hears_of_it() {
    let heard = Heard::start();
    let gateway = Gateway::start(&[("route.yaml", &manifests(&heard))]);
    let ask = |method: &str, fields: &[&str], body: &str| {
        gateway.request(method, "orders.test", "/whole", fields, body)
    };

    let wrong = ask("POST", &[JSON], r#"{"qty": "hunter2"}"#);
    assert_eq!(wrong.status, 422);
    assert_eq!(wrong.field("content-type"), Some("application/problem+json"));
    let problem = wrong.json();
    assert_eq!(problem["reason"], "BodyInvalid");
    assert_eq!(
        problem["violations"],
        serde_json::json!([
            {"pointer": "/sku", "message": "is required"}, {"pointer": "/qty", "message": "is not an integer"}
        ])
    );
    assert!(!wrong.body.contains("hunter2"));
    for (fields, body, status, reason) in [
        (&[JSON][..], r#"{"sku":1,"sku":2}"#, 400, "ValidationFailed"),
        (&[JSON], "{", 400, "ValidationFailed"),
        (&[JSON], "", 400, "ValidationFailed"),
        (&[JSON, "Content-Encoding: gzip"], "{}", 415, "UnsupportedMediaType"),
        (&["Content-Type: text/plain"], "{}", 415, "UnsupportedMediaType"),
        (&[], "{}", 415, "UnsupportedMediaType"),
        (&[JSON], &format!("{{\"sku\":\"{}\"}}", "x".repeat(1024)), 413, "BodyTooLarge"),
    ] {
        let refused = ask("POST", fields, body);
        assert_eq!(
            (refused.status, refused.json()["reason"].as_str()),
            (status, Some(reason)),
            "{fields:?} {body}"
        );
    }
    assert_eq!(heard.text(), "", "nothing of it went on");

    let body = format!("\n{{ \"sku\" : 1e2,\t\"qty\":-0, \"z\":{END}\r\n");
    assert_eq!(ask("PUT", &[JSON], &body).status, 200);
    assert!(heard.text().ends_with(&format!("\r\n\r\n{body}")), "byte for byte: {:?}", heard.text());
}

/// The control is the rule without a schema: there the first half goes on before the second has come.
#[test]
fn a_body_is_held_only_where_a_schema_is_asked() {
    for (method, path, is_held) in
        [("POST", "/stream", false), ("POST", "/whole", true), ("GET", "/whole", true)]
    {
        let heard = Heard::start();
        let gateway = Gateway::start(&[("route.yaml", &manifests(&heard))]);
        let mut stream = connect(gateway.http);
        let (first, second) = (r#"{"sku": 1, "#, format!("\"z\":{END}"));
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: orders.test\r\n{JSON}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(format!("{head}{}", chunk(first)).as_bytes()).expect("sent");
        if is_held {
            // Another request passes the same worker or the other; neither has sent on what it holds.
            assert_eq!(gateway.request("POST", "orders.test", "/whole", &[JSON], "{}").status, 422);
            assert_eq!(heard.text(), "");
        } else {
            until("the first half", || heard.text().contains(first).then_some(()));
        }
        stream.write_all(format!("{}0\r\n\r\n", chunk(&second)).as_bytes()).expect("sent");
        let answer = read_answer(&mut stream).expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{method} {path}");
        if is_held {
            assert!(heard.text().ends_with(&format!("\r\n\r\n{first}{second}")), "{:?}", heard.text());
        }
    }
}

#[test]
fn who_asks_whether_to_send_is_told_first() {
    let heard = Heard::start();
    let gateway = Gateway::start(&[("route.yaml", &manifests(&heard))]);
    let head = |length: usize| {
        format!(
            "POST /whole HTTP/1.1\r\nHost: orders.test\r\n{JSON}\r\nExpect: 100-continue\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        )
    };
    for (body, status) in [(format!("{{\"sku\":1,\"z\":{END}"), 200), ("[]".to_owned(), 422)] {
        let mut stream = connect(gateway.http);
        stream.write_all(head(body.len()).as_bytes()).expect("sent");
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).expect("an interim answer");
        assert_eq!(text(&interim), "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(body.as_bytes()).expect("sent");
        assert_eq!(read_answer(&mut stream).expect("an answer").status, status);
    }
    let mut stream = connect(gateway.http);
    stream.write_all(head(4096).as_bytes()).expect("sent");
    assert_eq!(read_answer(&mut stream).expect("an answer").status, 413, "before a byte of it was sent");
}

#[test]
fn an_imposed_schema_is_added_to_the_rules_own() {
    let imposed = "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {name: imposed, namespace: test}\nspec:\n  targetRefs: [{kind: Namespace}]\n  precedence: Override\n  policy: {validation: {bodySchema: {inline: {required: [a]}}}}\n---\n";
    let own = route(
        "own",
        "{hostnames: [own.test], policy: {validation: {bodySchema: {inline: {required: [b]}}}}, rules: [{name: all, respond: {status: 204}}]}",
    );
    let gateway = Gateway::start(&[("all.yaml", &format!("{imposed}{own}"))]);
    for (body, missing) in
        [(r#"{"a":1,"b":1}"#, None), (r#"{"a":1}"#, Some("/b")), (r#"{"b":1}"#, Some("/a"))]
    {
        let answer = gateway.request("POST", "own.test", "/", &[JSON], body);
        match missing {
            None => assert_eq!(answer.status, 204),
            Some(pointer) => {
                assert_eq!(answer.json()["violations"][0]["pointer"], pointer, "{}", answer.body)
            }
        }
    }
    // Without the imposed one, the rule's own alone.
    gateway.write("all.yaml", &own);
    until("the imposed one to go", || {
        let answer = gateway.request("POST", "own.test", "/", &[JSON], r#"{"b":1}"#);
        (answer.status == 204).then_some(())
    });
}

/// The schema changes with its ConfigMap, and is never left out: without it the rule answers 503.
#[test]
fn a_schema_follows_its_config_map() {
    let heard = Heard::start();
    let manifests = manifests(&heard);
    let gateway = Gateway::start(&[("route.yaml", &manifests)]);
    let ask = || gateway.request("POST", "orders.test", "/whole", &[JSON], "{}").status;
    assert_eq!(ask(), 422);
    gateway.write("route.yaml", &manifests.replace("order.json: ", "other.json: "));
    until("503", || (ask() == 503).then_some(()));
    gateway.write("route.yaml", &manifests.replace(r#""type": "object""#, r#""type": "objekt""#));
    until("status to say so", || gateway.status().to_string().contains("bodySchema").then_some(()));
    assert_eq!(ask(), 503);
    gateway.write("route.yaml", &manifests);
    until("422", || (ask() == 422).then_some(()));
    assert_eq!(heard.text(), "");
}

/// Over HTTP/2 a length need not be said, and a stream ends without its connection.
#[tokio::test]
async fn the_same_holds_over_http2() {
    let heard = Heard::start();
    let gateway = Gateway::start(&[("route.yaml", &manifests(&heard))]);
    let (mut sender, _connection) = http2_client(gateway.http).await;
    let mut ask = async |fields: &[(&str, &str)], chunks: Vec<String>, ends: bool| {
        let frames = chunks
            .into_iter()
            .map(|chunk| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(chunk))));
        let rest = if ends {
            futures_util::stream::empty().left_stream()
        } else {
            futures_util::stream::pending().right_stream()
        };
        let body = StreamBody::new(futures_util::stream::iter(frames).chain(rest));
        let mut request =
            http::Request::post("http://orders.test/whole").header("content-type", "application/json");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let sent = sender.send_request(request.body(body).expect("a request"));
        tokio::time::timeout(PATIENCE, sent).await.expect("in time").expect("an answer").status().as_u16()
    };
    let large = || vec!["{\"sku\":\"".to_owned(), "x".repeat(700), "x".repeat(700)];
    assert_eq!(ask(&[], vec!["{\"sk".into(), "u\":\"\", \"qty\":\"\"}".into()], true).await, 422);
    assert_eq!(ask(&[], vec!["{\"sku\":".into()], true).await, 400, "cut");
    assert_eq!(ask(&[], large(), false).await, 413, "as soon as too much has come");
    assert_eq!(
        ask(&[("content-length", "4096")], Vec::new(), false).await,
        413,
        "before a byte of it was sent"
    );
    assert_eq!(
        ask(&[("content-encoding", "gzip")], Vec::new(), false).await,
        415,
        "before a byte of it was sent"
    );
    assert_eq!(heard.text(), "", "nothing of it went on");
    let body = format!("{{\"sku\":1,\"z\":{END}");
    assert_eq!(ask(&[], vec![body.clone()], true).await, 200);
    assert!(heard.text().ends_with(&format!("\r\n\r\n{body}")), "{:?}", heard.text());
}
