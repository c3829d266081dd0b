//! `errors` and `compression` beside what else can make an answer or a failure: aggregations, retries, authorizers, limits.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};

use super::compression::{unchunked, unpacked};
use crate::harness::{Backend, Gateway, connect, route, until};

const RULES: &str = r#"
- name: whole
  matches: [{path: {value: /whole}}]
  aggregate: {calls: [{name: a, backendRef: {kind: GatewayBackend, name: one}, path: /a}, {name: b, backendRef: {kind: GatewayBackend, name: one}, path: /b}]}
- name: decided
  matches: [{path: {value: /decided}}]
  aggregate: {calls: [{name: a, backendRef: {kind: GatewayBackend, name: one}, path: /status/404}]}
- name: timed
  matches: [{path: {value: /timed}}]
  aggregate: {calls: [{name: a, backendRef: {kind: GatewayBackend, name: gone}, path: /a}]}
- name: partial
  matches: [{path: {value: /partial}}]
  aggregate: {calls: [{name: a, backendRef: {kind: GatewayBackend, name: one}, path: /a}, {name: b, backendRef: {kind: GatewayBackend, name: one}, path: /status/500, onError: {omit: true}}]}
- name: retried
  matches: [{path: {value: /retried}}]
  policy: {retry: {attempts: 2, codes: [503], backoff: 1ms}}
  backendRefs: [{kind: GatewayBackend, name: one}]
- name: denied
  matches: [{path: {value: /denied}}]
  policy: {extAuth: {backendRef: {kind: GatewayBackend, name: one}, path: /status/403}}
  backendRefs: [{kind: GatewayBackend, name: one}]
- name: long
  matches: [{path: {value: /long}}]
  policy: {limits: {uri: "10"}}
  backendRefs: [{kind: GatewayBackend, name: one}]
- name: limited
  matches: [{path: {value: /limited}}]
  policy: {rateLimits: [{name: one, requests: 1, per: 1h}]}
  backendRefs: [{kind: GatewayBackend, name: one}]
"#;

const POLICY: &str = r#"
compression: {minSize: "64"}
errors:
- {on: [ConnectFailure], status: 500, contentType: text/plain, text: "no ${error.reason}"}
- on: [4xx, 5xx]
  headers: {set: [{name: X-Failed, value: "${error.status} of ${error.origin}"}]}
  body: "{'code': error.status, 'reason': error.reason, 'path': request.path, 'pad': 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'}"
"#;

/// Status, head and what its body is once unpacked.
fn ask(gateway: &Gateway, path: &str) -> (u16, String, String) {
    let mut stream = connect(gateway.http);
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\naccept-encoding: gzip\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("an answer");
    let at = all.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(all[..at].to_vec()).expect("ASCII").to_lowercase();
    let body = if head.contains("transfer-encoding: chunked") {
        unchunked(&all[at..]).0
    } else {
        all[at..].to_vec()
    };
    let body = if head.contains("content-encoding: gzip") { unpacked("gzip", &body) } else { body };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head, String::from_utf8(body).expect("UTF-8"))
}

#[test]
fn one_place_tells_of_all_failures_and_packs_all_answers() {
    let backend = Backend::start("one");
    let gone = "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {name: gone, namespace: test}\nspec: {hosts: [{address: 127.0.0.1, port: 1}]}\n---\n";
    let indented = |text: &str| text.replace('\n', "\n  ");
    let spec = format!(
        "\n  hostnames: [a.example]\n  policy:\n  {}\n  rules:{}",
        indented(&indented(POLICY)),
        indented(RULES)
    );
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.yaml"), backend.manifest("one") + gone + &route("web", &spec))
        .expect("written");
    let log = folder.path().join("access.log");
    let gateway = Gateway::over(folder, &["--access-log", log.to_str().expect("UTF-8")]);
    let json =
        |body: &str| serde_json::from_str::<Value>(body).unwrap_or_else(|error| panic!("{error} in {body}"));

    let (status, head, body) = ask(&gateway, "/whole");
    assert_eq!((status, head.contains("content-encoding: gzip")), (200, true), "{head}");
    assert_eq!((&json(&body)["a"]["path"], &json(&body)["b"]["path"]), (&json!("/a"), &json!("/b")));

    let (status, head, body) = ask(&gateway, "/partial");
    assert_eq!((status, head.contains("content-encoding: gzip")), (200, true), "{head}");
    assert!(head.contains("portcullis-partial: b\r\n") && !head.contains("x-failed"), "{head}");
    assert_eq!(json(&body)["a"]["path"], "/a");

    let (status, _, body) = ask(&gateway, "/timed");
    assert_eq!((status, body.as_str()), (500, "no ConnectFailure"));

    // The last try is what counts; those before are nobody's business.
    let (status, head, body) = ask(&gateway, "/retried/a/fails/2");
    assert!(status == 200 && !head.contains("x-failed"), "{head}");
    assert_eq!(json(&body)["path"], "/retried/a/fails/2");

    assert_eq!(ask(&gateway, "/limited").0, 200);
    for (path, status, reason, failed) in [
        ("/decided", 404, "CallFailed", "404 of gateway"),
        ("/retried/b/fails/9", 503, "", "503 of backend"),
        ("/denied", 403, "ExternallyDenied", "403 of gateway"),
        ("/long/and/longer", 414, "UriTooLong", "414 of gateway"),
        ("/limited", 429, "RateLimited", "429 of gateway"),
    ] {
        let (answered, head, body) = ask(&gateway, path);
        assert_eq!(answered, status, "{path}: {head}");
        assert!(head.contains(&format!("x-failed: {failed}\r\n")), "{path}: {head}");
        assert!(
            head.contains("content-encoding: gzip") && head.contains("content-type: application/json\r\n"),
            "{path}: {head}"
        );
        let pad = "x".repeat(40);
        assert_eq!(json(&body), json!({"code": status, "reason": reason, "path": path, "pad": pad}));
    }
    let lines = until("the log", || {
        let text = std::fs::read_to_string(&log).ok()?;
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() >= 10).then_some(lines)
    });
    assert_eq!(lines.len(), 10, "one a request");
    let of = |path: &str| lines.iter().find(|line| line["path"] == path).expect("a line");
    for (path, reason, cause) in [
        ("/decided", "CallFailed", "the call was answered with status 404 Not Found"),
        ("/timed", "ConnectFailure", "127.0.0.1:1"),
    ] {
        let line = of(path);
        assert_eq!(line["reason"], reason);
        assert!(line["cause"].as_str().is_some_and(|told| told.contains(cause)), "{line}");
    }
    assert_eq!(
        of("/partial")["failed_calls"],
        "b=CallFailed (the call was answered with status 500 Internal Server Error)"
    );
}

/// What a failure to reach a backend is told as, to the client and in the log.
#[test]
fn what_cannot_be_reached_says_why_in_the_log_alone() {
    let plain = Backend::start("plain");
    let backend = |name: &str, spec: &str| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {spec}\n---\n"
        )
    };
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: test}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: inside, namespace: test, labels: {kubernetes.io/service-name: inside}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [169.254.169.254]}]\n---\n";
    let port = plain.address.port();
    let to = |name: &str, backend: &str| {
        format!("{{name: {name}, matches: [{{path: {{value: /{name}}}}}], backendRefs: [{backend}]}}")
    };
    let of = |name: &str| format!("{{kind: GatewayBackend, name: {name}}}");
    let rules = [
        to("unknown", &of("unknown")),
        to("tls", &of("tls")),
        to("empty", "{name: empty, port: 80}"),
        to("inside", "{name: inside, port: 80}"),
    ];
    let spec = format!(
        "{{hostnames: [a.example], policy: {{timeouts: {{connect: 5s}}}}, rules: [{}]}}",
        rules.join(", ")
    );
    let files = [
        backend("unknown", "{hosts: [{address: pay.internal.test, port: 80}]}"),
        backend("tls", &format!("{{hosts: [{{address: 127.0.0.1, port: {port}}}], tls: {{}}}}")),
        service("empty"),
        service("inside"),
        slice.to_owned(),
        route("web", &spec),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.yaml"), files.concat()).expect("written");
    let log = folder.path().join("access.log");
    let target = log.to_str().expect("UTF-8");
    let gateway = Gateway::over(folder, &["--access-log", target, "--resolver", "127.0.0.1:9"]);
    for (path, status, reason, cause) in [
        ("/unknown", 502, "NameResolution", "pay.internal.test"),
        ("/tls", 502, "TlsFailure", "127.0.0.1"),
        ("/empty", 503, "NoHealthyEndpoints", "test/empty"),
        ("/inside", 502, "AddressNotPermitted", "169.254.169.254:80"),
    ] {
        let told = gateway.get("a.example", path);
        assert_eq!((told.status, told.json()["reason"].as_str()), (status, Some(reason)), "{path}");
        assert!(!told.body.contains(cause), "{}", told.body);
        let line = until("its line", || {
            let text = std::fs::read_to_string(&log).ok()?;
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["path"] == path)
        });
        assert_eq!(line["reason"], reason);
        assert!(line["cause"].as_str().is_some_and(|told| told.contains(cause)), "{line}");
    }
}
