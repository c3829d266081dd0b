//! `request` and `response` seen from outside: what a backend hears, and what a client gets of its answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use super::harness::*;

/// A backend that gives one answer to each connection, byte for byte, once it has heard a whole request.
struct Backend {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Backend {
    fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, heard) = (listener.local_addr().expect("an address"), Arc::new(Mutex::new(Vec::new())));
        let (kept, answer) = (Arc::clone(&heard), Arc::new(answer));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
                    while !is_whole(&text(&request)) {
                        match stream.read(&mut bytes) {
                            Ok(read @ 1..) => request.extend_from_slice(&bytes[..read]),
                            _ => return,
                        }
                    }
                    let answer = answer(&text(&request));
                    kept.lock().expect("no panic holds it").extend_from_slice(&request);
                    let _ = stream.write_all(&answer);
                });
            }
        });
        Self { address, heard }
    }

    fn heard(&self) -> String {
        text(&std::mem::take(&mut *self.heard.lock().expect("no panic holds it")))
    }

    fn manifests(&self, policy: &str) -> String {
        let backend = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: pay, namespace: test}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}]}}\n---\n",
            self.address.port()
        );
        let spec = format!(
            "{{hostnames: [pay.test], rules: [{{name: all, policy: {policy}, backendRefs: [{{kind: GatewayBackend, name: pay}}]}}]}}"
        );
        format!("{backend}{}", route("pay", &spec))
    }
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    match length {
        Some(length) => body.len() >= length,
        None => !head.contains("transfer-encoding") || body.ends_with("0\r\n\r\n"),
    }
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

const JSON: &str = "Content-Type: application/json";

#[test]
fn a_changed_request_arrives_whole_however_it_came() {
    let backend = Backend::start(|_| b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".to_vec());
    let policy = "{request: {method: PUT, bodyPatch: {remove: [/admin], set: [{pointer: /by, value: [1]}]}}}";
    let gateway = Gateway::start(&[("route.yaml", &backend.manifests(policy))]);
    let expected = r#"{"id":1.10,"by":[1]}"#;
    let body = r#"{"id": 1.10, "admin": true}"#;
    let chunked = format!("5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &body[..5], body.len() - 5, &body[5..]);
    for (framing, body) in [
        (format!("Content-Length: {}", body.len()), body.to_owned()),
        ("Transfer-Encoding: chunked".into(), chunked),
    ] {
        let mut stream = connect(gateway.http);
        let head = format!(
            "POST /x HTTP/1.1\r\nHost: pay.test\r\n{JSON}\r\nContent-MD5: x\r\n{framing}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("sent");
        assert_eq!(read_answer(&mut stream).expect("an answer").status, 204);
        let heard = backend.heard();
        let (head, body) = heard.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("PUT /x HTTP/1.1"), "{head}");
        assert_eq!(body, expected);
        assert_eq!(field(head, "content-length"), Some(&*expected.len().to_string()));
        assert_eq!((field(head, "transfer-encoding"), field(head, "content-md5")), (None, None));
    }
    for (fields, body, status, reason) in [
        (&[JSON][..], r#"{"admin":1,"\u0061dmin":2}"#, 400, "ExpressionFailed"),
        (&[JSON, "Content-Encoding: gzip"], "x", 400, "ExpressionFailed"),
        (&[JSON, "Content-Encoding: deflate"], "x", 415, "UnsupportedMediaType"),
        (&["Content-Type: text/plain"], r#"{"admin":1}"#, 415, "UnsupportedMediaType"),
    ] {
        let refused = gateway.request("POST", "pay.test", "/x", fields, body);
        assert_eq!((refused.status, refused.json()["reason"].as_str()), (status, Some(reason)), "{body}");
    }
    assert_eq!(backend.heard(), "", "nothing of it went on");
}

/// The answer that the path asks for.
fn answer(request: &str) -> Vec<u8> {
    let path = request.split(' ').nth(1).unwrap_or_default();
    let whole = |more: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nConnection: close\r\n{more}\r\n\r\n{body}").into_bytes()
    };
    match path {
        "/json" => whole("Content-Type: application/json\r\nContent-Length: 24", r#"{"id":1e2,"secret":"s3"}"#),
        "/unannounced" => whole(JSON, r#"{"id":1e2,"secret":"s3"}"#),
        "/head" => whole("Content-Type: application/json\r\nContent-Length: 24", ""),
        "/text" => whole("Content-Type: text/plain\r\nContent-Length: 2", "ok"),
        "/packed" => whole("Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2", "{}"),
        "/garbage" => whole("Content-Type: application/json\r\nContent-Length: 10", "{\"secret\":"),
        "/short" => whole("Content-Type: application/json\r\nContent-Length: 99", "{\"secret\":1}"),
        "/large" => whole("Content-Type: application/json\r\nContent-Length: 9999999", "{\"secret\":"),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"secret\":404}".to_vec(),
    }
}

#[test]
fn a_changed_answer_arrives_whole_however_it_came() {
    let backend = Backend::start(answer);
    let policy = "{response: {bodyPatch: {remove: [/secret]}}}";
    let gateway = Gateway::start(&[("route.yaml", &backend.manifests(policy))]);
    let ask = |method: &str, path: &str| {
        gateway.request(method, "pay.test", path, &["Accept-Encoding: gzip", "Range: bytes=0-3"], "")
    };
    for path in ["/json", "/unannounced"] {
        let answer = ask("GET", path);
        assert_eq!((answer.status, &*answer.body), (200, r#"{"id":1e2}"#), "{path}");
        assert_eq!((answer.field("content-length"), answer.field("etag")), (Some("10"), None));
        let heard = backend.heard();
        assert_eq!((field(&heard, "accept-encoding"), field(&heard, "range")), (Some("identity"), None));
    }
    let head = ask("HEAD", "/head");
    assert_eq!((head.status, head.field("content-length"), head.field("etag")), (200, None, None));
    let plain = ask("GET", "/text");
    assert_eq!((plain.status, &*plain.body, plain.field("etag")), (200, "ok", Some("\"a\"")));
    let other = ask("GET", "/nosuch");
    assert_eq!((other.status, &*other.body), (404, r#"{"secret":404}"#));
    for (path, reason) in [
        ("/packed", "TransformFailed"),
        ("/garbage", "TransformFailed"),
        ("/large", "TransformFailed"),
        ("/short", "Reset"),
    ] {
        let refused = ask("GET", path);
        assert_eq!((refused.status, refused.json()["reason"].as_str()), (502, Some(reason)), "{path}");
        assert!(!refused.body.contains("secret"));
    }
}

#[test]
fn what_needs_no_body_is_streamed_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (heard, hears) = std::sync::mpsc::channel();
    let (allow, allowed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("asked");
        let mut request = String::new();
        let mut read_to = |part: &str, stream: &mut std::net::TcpStream| {
            let mut bytes = [0; 4096];
            while !request.contains(part) {
                let read = stream.read(&mut bytes).expect("more comes");
                assert!(read > 0, "{request}");
                request += &text(&bytes[..read]);
            }
            request.clone()
        };
        heard.send(read_to("first", &mut stream)).expect("the test listens");
        heard.send(read_to("last\r\n0\r\n\r\n", &mut stream)).expect("the test listens");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}5\r\nbegun\r\n").as_bytes()).expect("taken");
        allowed.recv().expect("the test has read that");
        stream.write_all(b"5\r\nended\r\n0\r\n\r\n").expect("taken");
    });
    let backend = Backend { address, heard: Arc::default() };
    let policy = "{request: {path: {replacePrefix: /b}, headers: {set: [{name: X-By, value: '${request.method}'}]}}, response: {status: 203, headers: {set: [{name: X-Was, value: '${response.status}'}]}, bodyPatch: {remove: [/a]}}}";
    let gateway = Gateway::start(&[("route.yaml", &backend.manifests(policy))]);
    let mut client = connect(gateway.http);
    let head =
        "POST /x HTTP/1.1\r\nHost: pay.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write_all(format!("{head}5\r\nfirst\r\n").as_bytes()).expect("sent");
    let begun = hears.recv_timeout(PATIENCE).expect("what was sent arrives before the rest is");
    assert!(begun.starts_with("POST /b/x ") && field(&begun, "x-by") == Some("POST"), "{begun}");
    client.write_all(b"4\r\nlast\r\n0\r\n\r\n").expect("sent");
    hears.recv_timeout(PATIENCE).expect("the rest arrives");
    let (mut told, mut bytes) = (String::new(), [0; 4096]);
    while !told.contains("begun") {
        let read = client.read(&mut bytes).expect("what was said arrives before the rest is");
        assert!(read > 0, "{told}");
        told += &text(&bytes[..read]);
    }
    assert!(told.starts_with("HTTP/1.1 203 ") && field(&told, "x-was") == Some("200"), "{told}");
    allow.send(()).expect("it waits");
    client.read_to_string(&mut told).expect("the end");
    assert!(told.contains("ended"), "{told}");
}

#[test]
fn a_condition_changes_status_and_fields_of_what_it_holds_for() {
    let backend = Backend::start(answer);
    let policy = "{response: {when: \"response.status == 404 && request.path == '/nosuch'\", status: 200, bodyPatch: {set: [{pointer: /items, value: []}]}, headers: {set: [{name: X-Was, value: '${response.status}'}]}}}";
    let gateway = Gateway::start(&[("route.yaml", &backend.manifests(policy))]);
    let ask = |path: &str| gateway.request("GET", "pay.test", path, &[], "");
    let changed = ask("/nosuch");
    assert_eq!((changed.status, &*changed.body), (200, r#"{"secret":404,"items":[]}"#));
    assert_eq!(changed.field("x-was"), Some("404"));
    for (path, status) in [("/json", 200), ("/other", 404)] {
        let answer = ask(path);
        assert_eq!((answer.status, answer.field("x-was")), (status, None), "{path}");
    }
}

/// Packed by gzip.
fn packed(plain: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(plain).expect("memory takes it");
    writer.finish().expect("memory takes it")
}

/// A third party: it fails with 200, packs what nobody asked to be packed, and sends bombs.
fn third_party(request: &str) -> Vec<u8> {
    let path = request.split(' ').nth(1).unwrap_or_default();
    let whole = |fields: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\n{JSON}\r\nETag: \"a\"\r\n{fields}Connection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let paid =
        br#"{"id": 12345678901234567890, "status": "succeeded", "amount": 1.10, "internal": "hunter2"}"#;
    match path {
        "/paid" => whole("", paid),
        "/packed" => whole("Content-Encoding: gzip\r\n", &packed(paid)),
        "/bomb" => whole("Content-Encoding: gzip\r\n", &packed(&vec![b' '; 64 << 20])),
        "/cut" => whole("Content-Encoding: gzip\r\n", &packed(paid)[..30]),
        _ => whole("", br#"{"error": {"code": 17, "internal": "hunter2"}}"#),
    }
}

#[test]
fn a_third_party_looks_like_one_of_ours() {
    let backend = Backend::start(third_party);
    let policy = r#"{
        request: {method: PUT, headers: {rename: [{from: X-Team, to: X-Group}]}, body: "{'charge': request.body.price, 'path': request.path}"},
        response: {body: "{'id': response.body.id, 'amount': response.body.amount, 'paid': response.body.status == 'succeeded'}"}}"#;
    let gateway = Gateway::start(&[("route.yaml", &backend.manifests(policy))]);
    let body = r#"{"price": 10.50, "admin": true}"#;
    for path in ["/paid", "/packed"] {
        let answer = gateway.request("POST", "pay.test", path, &[JSON, "X-Team: a"], body);
        let expected = r#"{"id":12345678901234567890,"amount":1.10,"paid":true}"#;
        assert_eq!((answer.status, &*answer.body), (200, expected), "{path}");
        let length = expected.len().to_string();
        let fields = ["content-length", "content-encoding", "etag"].map(|name| answer.field(name));
        assert_eq!(fields, [Some(&*length), None, None]);
        let heard = backend.heard();
        let (head, sent) = heard.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with(&format!("PUT {path} ")), "{head}");
        assert_eq!((field(head, "x-group"), field(head, "x-team")), (Some("a"), None));
        assert_eq!(sent, format!(r#"{{"charge":10.50,"path":"{path}"}}"#));
    }
    for path in ["/bomb", "/cut", "/error"] {
        let answer = gateway.request("POST", "pay.test", path, &[JSON], body);
        assert_eq!(
            (answer.status, answer.json()["reason"].as_str()),
            (502, Some("TransformFailed")),
            "{path}"
        );
        assert!(!answer.body.contains("hunter2"), "{}", answer.body);
    }
}

#[test]
fn a_failure_that_says_200_is_one() {
    let backend = Backend::start(third_party);
    let policy = r#"{
        errors: [{on: ["502"], headers: {set: [{name: X-Seen, value: "${error.origin}"}]}}],
        response: {when: "has(response.body.error)", status: 502, body: "{'code': response.body.error.code}"}}"#;
    let gateway = Gateway::start(&[("route.yaml", &backend.manifests(policy))]);
    let failed = gateway.get("pay.test", "/error");
    assert_eq!((failed.status, &*failed.body), (502, r#"{"code":17}"#));
    assert_eq!((failed.field("x-seen"), failed.field("etag")), (Some("Backend"), None));
    let fine = gateway.get("pay.test", "/paid");
    assert_eq!((fine.status, fine.field("etag"), fine.field("x-seen")), (200, Some("\"a\""), None));
    assert!(fine.body.contains("\"amount\": 1.10"), "as it came: {}", fine.body);
    let head = gateway.request("HEAD", "pay.test", "/error", &[], "");
    assert_eq!((head.status, head.field("content-length")), (200, None), "nobody knows what GET would bring");
}

#[test]
fn an_aggregated_answer_is_changed_as_any_other() {
    let backend = Backend::start(third_party);
    let spec = backend.manifests("{}").replace(
        "backendRefs: [{kind: GatewayBackend, name: pay}]",
        "aggregate: {calls: [{name: a, backendRef: {kind: GatewayBackend, name: pay}, path: /paid}, {name: b, backendRef: {kind: GatewayBackend, name: pay}, path: /error}]}",
    );
    let policy = r#"policy: {response: {headers: {set: [{name: X-Status, value: "${response.status}"}]}, body: "{'ids': [response.body.a.id], 'code': response.body.b.error.code}"}}"#;
    let gateway = Gateway::start(&[("route.yaml", &spec.replace("policy: {}", policy))]);
    let answer = gateway.get("pay.test", "/");
    assert_eq!((answer.status, &*answer.body), (200, r#"{"ids":[12345678901234567890],"code":17}"#));
    assert_eq!((answer.field("x-status"), answer.field("content-length")), (Some("200"), Some("40")));
}

#[test]
fn what_cannot_be_changed_is_logged_once_with_its_cause() {
    let backend = Backend::start(|_| {
        let body = r#"{"id":1,"\u0069d":2}"#;
        format!(
            "HTTP/1.1 200 OK\r\n{JSON}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    });
    let doubled = r#"{"admin":1,"\u0061dmin":2}"#;
    for (policy, body, status, reason, cause) in [
        ("{response: {bodyPatch: {remove: [/id]}}}", "", 502, "TransformFailed", "a member stands twice"),
        ("{response: {body: response.body.absent}}", "", 502, "TransformFailed", "no such key"),
        (
            "{request: {bodyPatch: {remove: [/admin]}}}",
            doubled,
            400,
            "ExpressionFailed",
            "a member stands twice",
        ),
        (
            "{request: {headers: {set: [{name: X-A, value: '${request.query.absent}'}]}}}",
            "",
            400,
            "ExpressionFailed",
            "no such key",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("route.yaml"), backend.manifests(policy)).expect("written");
        let log = folder.path().join("access.log");
        let gateway = Gateway::over(folder, &["--access-log", log.to_str().expect("UTF-8")]);
        let told = gateway.request("POST", "pay.test", "/x", &[JSON], body);
        assert_eq!((told.status, told.json()["reason"].as_str()), (status, Some(reason)), "{policy}");
        // A second request, so that whatever is written of the first is there.
        gateway.get("nobody.test", "/second");
        let lines: Vec<serde_json::Value> = until("the access log", || {
            let text = std::fs::read_to_string(&log).ok()?;
            let lines: Vec<_> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            (lines.len() >= 2).then_some(lines)
        });
        let of_it: Vec<_> = lines.iter().filter(|line| line["path"] == "/x").collect();
        let [line] = of_it[..] else { panic!("{policy}: {lines:?}") };
        assert_eq!(line["reason"], reason);
        assert!(line["cause"].as_str().is_some_and(|told| told.contains(cause)), "{policy}: {line}");
        assert!(!told.body.contains(cause), "{policy}: {}", told.body);
        let own = gateway.process.log();
        assert!(!own.contains("\"level\":\"WARN\"") && !own.contains("\"level\":\"ERROR\""), "{own}");
    }
}
