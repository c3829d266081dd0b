//! Raw bytes against the running gateway: what a proxy must refuse, and what it must hand on in exactly one form.
//!
//! Each case is one connection: bytes in, the statuses that come back, and what the backend saw. A case says all three,
//! so that a gateway that answers 200 to everything, or forwards nothing, fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::Gateway;

/// What must come of one case.
struct Case {
    name: &'static str,
    send: Vec<u8>,
    /// Status of each answer, in order. An empty list: the connection ends without an answer.
    answers: Answers,
    /// How many requests the backend gets, and what their heads must and must not hold (lower case).
    backend: Vec<Head>,
}

enum Answers {
    Exactly(&'static [u16]),
    /// One answer, any of these; or the connection ends without one.
    Refused(&'static [u16]),
}

#[derive(Default)]
struct Head {
    has: &'static [&'static str],
    lacks: &'static [&'static str],
}

fn case(name: &'static str, send: &str, answers: Answers, backend: Vec<Head>) -> Case {
    Case { name, send: send.replace('\n', "\r\n").into_bytes(), answers, backend }
}

fn refused(name: &'static str, send: &str, statuses: &'static [u16]) -> Case {
    case(name, send, Answers::Refused(statuses), Vec::new())
}

fn passed(
    name: &'static str,
    send: &str,
    has: &'static [&'static str],
    lacks: &'static [&'static str],
) -> Case {
    case(name, send, Answers::Exactly(&[200]), vec![Head { has, lacks }])
}

const END: &str = "Connection: close\n\n";

fn cases() -> Vec<Case> {
    let get = |rest: &str| format!("GET / HTTP/1.1\nHost: gw.test\n{rest}{END}");
    let post =
        |rest: &str, body: &str| format!("POST / HTTP/1.1\nHost: gw.test\n{rest}Connection: close\n\n{body}");
    let chunked = "5\nhello\n0\n\n";
    let mut cases = vec![
        passed("control.get", &get(""), &["get / http/1.1", "host: gw.test"], &[]),
        passed(
            "control.post-length",
            &post("Content-Length: 5\n", "hello"),
            &["content-length: 5"],
            &["transfer-encoding"],
        ),
        passed(
            "control.post-chunked",
            &post("Transfer-Encoding: chunked\n", chunked),
            &["transfer-encoding: chunked"],
            &["content-length"],
        ),
        passed(
            "te.upper-case",
            &post("Transfer-Encoding: CHUNKED\n", chunked),
            &["transfer-encoding: chunked"],
            &["content-length"],
        ),
        // Two pipelined requests are two requests, in order.
        case(
            "control.pipeline",
            &format!(
                "GET /one HTTP/1.1\nHost: gw.test\n\n{}",
                "GET /two HTTP/1.1\nHost: gw.test\nConnection: close\n\n"
            ),
            Answers::Exactly(&[200, 200]),
            vec![Head { has: &["get /one "], lacks: &[] }, Head { has: &["get /two "], lacks: &[] }],
        ),
    ];
    // A bare LF ends a line for the parser below us (RFC 9112 section 2.2 lets it); no backend ever sees one.
    let bare = "GET /bare HTTP/1.1\nHost: gw.test\nX-Own: 1\nConnection: close\n\n";
    let heads = vec![Head { has: &["get /bare http/1.1\r\n", "x-own: 1\r\n"], lacks: &["1\n"] }];
    cases.push(Case {
        name: "line.bare-lf",
        send: bare.into(),
        answers: Answers::Exactly(&[200]),
        backend: heads,
    });
    for (name, te) in [
        ("te.leading-comma", ",chunked"),
        ("te.trailing-comma", "chunked,"),
        ("te.gzip-chunked", "gzip, chunked"),
        ("te.identity-chunked", "identity, chunked"),
        ("te.chunked-chunked", "chunked, chunked"),
        ("te.chunked-gzip", "chunked, gzip"),
        ("te.gzip", "gzip"),
        ("te.identity", "identity"),
        ("te.unknown", "xchunked"),
        ("te.quoted", "\"chunked\""),
        ("te.parameter", "chunked;q=1"),
        ("te.vertical-tab", "\u{b}chunked"),
        ("te.empty", ""),
    ] {
        cases.push(refused(name, &post(&format!("Transfer-Encoding: {te}\n"), chunked), &[400, 501]));
    }
    cases.extend([
        refused("te.two-fields", &post("Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n", chunked), &[400, 501]),
        refused("te.two-fields-differ", &post("Transfer-Encoding: chunked\nTransfer-Encoding: identity\n", chunked), &[400, 501]),
        // RFC 9112 section 6.3 allows this where the length is taken off and the connection ends; the parser below
        // us does it before anybody could refuse.
        passed("te.and-length", &post("Content-Length: 5\nTransfer-Encoding: chunked\n", chunked), &["transfer-encoding: chunked"], &["content-length"]),
        passed("te.and-length-reversed", &post("Transfer-Encoding: chunked\nContent-Length: 5\n", chunked), &["transfer-encoding: chunked"], &["content-length"]),
        refused("te.http10", "POST / HTTP/1.0\nHost: gw.test\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n", &[400, 501, 505]),
        refused("te.space-before-colon", &post("Transfer-Encoding : chunked\n", chunked), &[400]),
        refused("te.folded", &post("Transfer-Encoding:\n chunked\n", chunked), &[400, 501]),
        refused("cl.two-differ", &post("Content-Length: 5\nContent-Length: 6\n", "hello!"), &[400]),
        refused("cl.list-differs", &post("Content-Length: 5, 6\n", "hello!"), &[400]),
        refused("cl.negative", &post("Content-Length: -5\n", "hello"), &[400]),
        refused("cl.plus", &post("Content-Length: +5\n", "hello"), &[400]),
        refused("cl.hex", &post("Content-Length: 0x5\n", "hello"), &[400]),
        refused("cl.text", &post("Content-Length: five\n", "hello"), &[400]),
        refused("cl.empty", &post("Content-Length: \n", "hello"), &[400]),
        refused("cl.overflow", &post("Content-Length: 18446744073709551621\n", "hello"), &[400, 413]),
        refused("cl.space-inside", &post("Content-Length: 5 5\n", "hello"), &[400]),
        refused("cl.over-the-bound", &post("Content-Length: 99999999999\n", "hello"), &[413]),
        refused("chunk.no-size", &post("Transfer-Encoding: chunked\n", "\nhello\n0\n\n"), &[400]),
        refused("chunk.bad-size", &post("Transfer-Encoding: chunked\n", "0x5\nhello\n0\n\n"), &[400]),
        refused("chunk.negative", &post("Transfer-Encoding: chunked\n", "-5\nhello\n0\n\n"), &[400]),
        refused("chunk.overflow", &post("Transfer-Encoding: chunked\n", "10000000000000005\nhello\n0\n\n"), &[400]),
        refused("chunk.extension-too-long", &post("Transfer-Encoding: chunked\n", &format!("5;x={}\nhello\n0\n\n", "a".repeat(20 << 10))), &[400]),
        refused("chunk.trailers-too-large", &post("Transfer-Encoding: chunked\n", &format!("5\nhello\n0\nX: {}\n\n", "a".repeat(40 << 10))), &[400, 431]),
        refused("host.none", "GET / HTTP/1.1\nConnection: close\n\n", &[400]),
        refused("host.two", "GET / HTTP/1.1\nHost: gw.test\nHost: gw.test\nConnection: close\n\n", &[400]),
        refused("host.two-differ", "GET / HTTP/1.1\nHost: gw.test\nHost: evil.test\nConnection: close\n\n", &[400]),
        refused("host.empty", "GET / HTTP/1.1\nHost:\nConnection: close\n\n", &[400]),
        refused("host.port-too-large", "GET / HTTP/1.1\nHost: gw.test:99999\nConnection: close\n\n", &[400]),
        refused("host.port-text", "GET / HTTP/1.1\nHost: gw.test:http\nConnection: close\n\n", &[400]),
        refused("host.userinfo", "GET / HTTP/1.1\nHost: a@gw.test\nConnection: close\n\n", &[400]),
        refused("host.list", "GET / HTTP/1.1\nHost: gw.test, evil.test\nConnection: close\n\n", &[400]),
        refused("host.space", "GET / HTTP/1.1\nHost: gw.test evil.test\nConnection: close\n\n", &[400]),
        refused("host.slash", "GET / HTTP/1.1\nHost: gw.test/x\nConnection: close\n\n", &[400]),
        refused("host.unknown", "GET / HTTP/1.1\nHost: other.test\nConnection: close\n\n", &[404, 421]),
        // RFC 9112 section 3.2.2: the authority of an absolute-form target replaces Host.
        passed("host.absolute-form", "GET http://gw.test/abs HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &["get /abs http/1.1", "host: gw.test"], &[]),
        passed("host.absolute-form-of-the-root", "GET http://gw.test?q=1 HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &["get /?q=1 http/1.1", "host: gw.test"], &[]),
        passed("host.absolute-form-with-fragment", "GET http://gw.test#f HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &["get / http/1.1", "host: gw.test"], &[]),
        refused("host.absolute-userinfo", "GET http://a@gw.test/ HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &[400]),
        refused("method.connect", "CONNECT gw.test:443 HTTP/1.1\nHost: gw.test:443\nConnection: close\n\n", &[400, 405, 501]),
        refused("method.connect-path", "CONNECT / HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &[400, 405, 501]),
        refused("method.not-a-token", "GE(T / HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &[400]),
        refused("method.too-long", &format!("{} / HTTP/1.1\nHost: gw.test\nConnection: close\n\n", "A".repeat(40)), &[400, 405, 501]),
        refused("line.http2-version", "GET / HTTP/2.0\nHost: gw.test\n\n", &[400, 505]),
        refused("line.bad-version", "GET / HTTP/1.9x\nHost: gw.test\n\n", &[400, 505]),
        refused("line.no-version", "GET /\n\n", &[400, 505]),
        refused("line.two-spaces", "GET  / HTTP/1.1\nHost: gw.test\n\n", &[400]),
        // The parser below us drops a fragment; what must not happen is that the backend sees it.
        passed("line.fragment", "GET /a#b HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &["get /a http/1.1"], &["#b"]),
        refused("line.target-too-long", &format!("GET /{} HTTP/1.1\nHost: gw.test\nConnection: close\n\n", "a".repeat(9_000)), &[414, 431]),
        refused("field.name-space", &get("X Y: 1\n"), &[400]),
        refused("field.name-empty", &get(": 1\n"), &[400]),
        refused("field.no-colon", &get("X-Y\n"), &[400]),
        refused("field.too-long", &get(&format!("X-Long: {}\n", "a".repeat(17 << 10))), &[400, 431]),
        refused("field.too-many", &get(&"X-Many: 1\n".repeat(150)), &[400, 431]),
        refused("field.head-too-large", &get(&format!("X-A: {0}\nX-B: {0}\nX-C: {0}\n", "a".repeat(15 << 10))), &[400, 431]),
        refused("path.dot-dot", "GET /../../etc HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &[400, 404]),
        refused("path.encoded-slash", "GET /pub%2f..%2fadmin HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &[400, 404]),
        refused("path.encoded-backslash", "GET /pub%5c..%5cadmin HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &[400, 404]),
        refused("path.nul", "GET /a%00b HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &[400, 404]),
        refused("path.bad-percent", "GET /a%zz HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &[400, 404]),
        // What the backend gets is what was matched.
        passed("path.dots-are-resolved", "GET /a/./b/../c HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &["get /a/c http/1.1"], &[]),
        passed("path.unreserved-is-decoded", "GET /%61%2d%7e HTTP/1.1\nHost: gw.test\nConnection: close\n\n", &["get /a-~ http/1.1"], &[]),
        passed("hop.keep-alive", &get("Keep-Alive: timeout=5\n"), &[], &["keep-alive: timeout"]),
        passed("hop.proxy-connection", &get("Proxy-Connection: keep-alive\n"), &[], &["proxy-connection"]),
        passed("hop.proxy-authorization", &get("Proxy-Authorization: Basic eA==\n"), &[], &["proxy-authorization"]),
        passed("hop.te-gzip", &get("TE: gzip\n"), &[], &["te: gzip"]),
        passed("hop.http2-settings", &get("HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\n"), &[], &["http2-settings"]),
        passed("hop.upgrade-h2c", "GET / HTTP/1.1\nHost: gw.test\nConnection: Upgrade, HTTP2-Settings, close\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\n\n", &[], &["http2-settings", "upgrade: h2c"]),
        passed("hop.connection-listed", "GET / HTTP/1.1\nHost: gw.test\nX-Secret: 1\nX-Kept: 1\nConnection: X-Secret, close\n\n", &["x-kept: 1"], &["x-secret"]),
        // A client cannot strip what the gateway adds, nor pretend to be somebody else.
        passed("ident.connection-strips-forwarded", "GET / HTTP/1.1\nHost: gw.test\nConnection: X-Forwarded-For, X-Forwarded-Proto, close\n\n", &["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"], &[]),
        passed("ident.spoofed-forwarded-for", &get("X-Forwarded-For: 10.9.8.7\n"), &["x-forwarded-for: 127.0.0.1"], &["10.9.8.7"]),
        passed("ident.spoofed-proto", &get("X-Forwarded-Proto: https\n"), &["x-forwarded-proto: http\r"], &["x-forwarded-proto: https"]),
        passed("ident.spoofed-forwarded", &get("Forwarded: for=10.9.8.7;proto=https\n"), &[], &["10.9.8.7"]),
        passed("ident.spoofed-real-ip", &get("X-Real-IP: 10.9.8.7\n"), &[], &["10.9.8.7"]),
        passed("ident.spoofed-host", &get("X-Forwarded-Host: evil.test\n"), &[], &["evil.test"]),
    ]);
    cases
}

/// The bytes of every case; those of requests that pass some times, since most cases do not.
pub fn requests() -> impl Iterator<Item = Vec<u8>> {
    cases().into_iter().flat_map(|case| {
        let times = if case.backend.is_empty() { 1 } else { 6 };
        std::iter::repeat_n(case.send, times)
    })
}

#[test]
fn raw_requests_are_refused_or_passed_in_one_form() {
    let backend = Backend::start();
    let manifests = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: be}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}]}}\n---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{name: all}}\nspec:\n  hostnames: [gw.test]\n  rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: be}}]}}]\n",
        backend.address.port()
    );
    let gateway = Gateway::start(&[("route.yaml", &manifests)]);
    let mut failures = Vec::new();
    let cases = cases();
    for case in &cases {
        backend.heads();
        let answer = send(gateway.http, &case.send);
        let statuses = statuses(&answer);
        let fits = match case.answers {
            Answers::Exactly(expected) => statuses == expected,
            Answers::Refused(any) => {
                statuses.is_empty() || (statuses.len() == 1 && any.contains(&statuses[0]))
            }
        };
        if !fits {
            failures.push(format!("{}: answered {statuses:?}", case.name));
        }
        let heads = backend.heads();
        if heads.len() != case.backend.len() {
            failures.push(format!("{}: the backend got {} requests: {heads:?}", case.name, heads.len()));
            continue;
        }
        for (head, expected) in heads.iter().zip(&case.backend) {
            for part in expected.has.iter().filter(|part| !head.contains(**part)) {
                failures.push(format!("{}: the backend did not see {part:?}: {head:?}", case.name));
            }
            for part in expected.lacks.iter().filter(|part| head.contains(**part)) {
                failures.push(format!("{}: the backend saw {part:?}: {head:?}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// Sends the bytes and reads until the gateway closes; what it leaves open for long is a failure of its own.
fn send(gateway: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(gateway).expect("the gateway listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out can be set");
    // A refusal may close while we still write.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..read]);
        // A refused request need not close the connection: one answer is enough then.
        if !complete(&answer) {
            continue;
        }
        let more_expected = bytes.windows(4).filter(|window| window == b"\r\n\r\n").count() > 1
            && bytes.starts_with(b"GET /one");
        if !more_expected || statuses(&answer).len() > 1 {
            break;
        }
    }
    answer
}

fn complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    length.is_none_or(|length| body.len() >= length)
}

fn statuses(answer: &[u8]) -> Vec<u16> {
    String::from_utf8_lossy(answer)
        .match_indices("HTTP/1.")
        .filter_map(|(at, _)| String::from_utf8_lossy(answer).get(at + 9..at + 12)?.parse().ok())
        .filter(|status| *status != 100)
        .collect()
}

/// A backend that remembers every head it got, reads the body as framed, and answers 200.
struct Backend {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        let address = listener.local_addr().expect("bound");
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = seen.clone();
                std::thread::spawn(move || serve(stream, &seen));
            }
        });
        Self { address, heads }
    }

    /// The heads since the last call.
    fn heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().expect("no panic while it is held"))
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<String>>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end + 4]).to_ascii_lowercase();
            let mut rest = bytes.split_off(end + 4);
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
            let done = |rest: &[u8]| match length {
                Some(length) => rest.len() >= length,
                None => !head.contains("transfer-encoding: chunked") || rest.ends_with(b"0\r\n\r\n"),
            };
            while !done(&rest) {
                match stream.read(&mut buffer) {
                    Ok(read @ 1..) => rest.extend_from_slice(&buffer[..read]),
                    _ => return,
                }
            }
            bytes = if head.contains("transfer-encoding: chunked") {
                Vec::new()
            } else {
                rest.split_off(length.unwrap_or(0))
            };
            seen.lock().expect("no panic while it is held").push(head);
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => bytes.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
}
