//! Failures in the whole program: backends that fail in every way, what clients are told, and what the log knows of it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::proxy_rig::{PATIENCE, answer, field, read_message, reason, status};
use crate::harness::{Gateway, route, until};

/// What a backend does with a request.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nobody listens.
    Refuses,
    /// Takes the request and says nothing.
    Hangs,
    /// Ends the connection instead of an answer.
    Closes,
    /// Says something that is not HTTP.
    Garbage,
    /// Sends a head without end.
    HugeHead,
    /// A head, one byte at a time, for ever.
    DripsHead,
    /// Part of a body, and then a reset.
    CutBody,
    /// Less than the head says.
    ShortBody,
    /// An answer of its own, with a stack trace.
    Says500,
}

async fn failing(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    if matches!(fault, Fault::Refuses) {
        return address;
    }
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(fail(fault, socket));
        }
    });
    address
}

async fn fail(fault: Fault, mut socket: TcpStream) {
    if read_message(&mut socket, &mut Vec::new()).await.is_none() {
        return;
    }
    let mut say = async |bytes: &[u8]| socket.write_all(bytes).await;
    // The gateway may leave at any time.
    let _ = match fault {
        Fault::Refuses | Fault::Closes => Ok(()),
        Fault::Hangs => return std::future::pending().await,
        Fault::Garbage => say(b"\x16\x03\x01 what is this\r\n\r\n").await,
        Fault::HugeHead => {
            async {
                say(b"HTTP/1.1 200 OK\r\n").await?;
                for number in 0..2_000_000 {
                    say(format!("x-{number}: {}\r\n", "y".repeat(1_000)).as_bytes()).await?;
                }
                Ok(())
            }
            .await
        }
        Fault::DripsHead => {
            async {
                say(b"HTTP/1.1 200 OK\r\nx-slow: ").await?;
                let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
                loop {
                    ticks.tick().await;
                    say(b"y").await?;
                }
            }
            .await
        }
        Fault::CutBody => say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await,
        Fault::ShortBody => say(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nfirst").await,
        Fault::Says500 => {
            let body = "Traceback: db-1.internal:5432 refused user root";
            let head =
                format!("HTTP/1.1 500 Oops\r\nserver: own/1.2\r\ncontent-length: {}\r\n\r\n", body.len());
            say((head + body).as_bytes()).await
        }
    };
}

fn gateway(backend: SocketAddr, policy: &str) -> Gateway {
    let backend = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: one, namespace: test}}\nspec: {{hosts: [{{address: {}, port: {}}}]}}\n",
        backend.ip(),
        backend.port()
    );
    let rule = "{name: all, backendRefs: [{kind: GatewayBackend, name: one}]}";
    let route = route("web", &format!("{{hostnames: [a.example], policy: {policy}, rules: [{rule}]}}"));
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("backend.yaml"), backend).expect("written");
    std::fs::write(folder.path().join("route.yaml"), route).expect("written");
    let log = folder.path().join("access.log");
    let log = log.to_str().expect("UTF-8").to_owned();
    Gateway::over(folder, &["--access-log", &log])
}

async fn ask(gateway: &Gateway, fields: &str) -> String {
    let mut socket = TcpStream::connect(gateway.http).await.expect("connects");
    let request = format!("GET /orders HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n{fields}\r\n");
    socket.write_all(request.as_bytes()).await.expect("sent");
    answer(&mut socket).await
}

/// The lines of the access log, once there are so many.
fn logged(gateway: &Gateway, lines: usize) -> Vec<serde_json::Value> {
    until("the access log", || {
        let text = std::fs::read_to_string(gateway.path("access.log")).ok()?;
        let all: Vec<_> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (all.len() >= lines).then_some(all)
    })
}

const BEFORE_THE_HEAD: [(Fault, u16, &[&str]); 7] = [
    (Fault::Refuses, 503, &["ConnectFailure"]),
    (Fault::Hangs, 504, &["BackendTimeout"]),
    (Fault::Closes, 502, &["Reset"]),
    (Fault::Garbage, 502, &["InvalidResponse"]),
    (Fault::HugeHead, 502, &["InvalidResponse", "Reset"]),
    (Fault::DripsHead, 504, &["BackendTimeout"]),
    (Fault::Says500, 500, &[""]),
];

#[tokio::test]
async fn every_failure_before_the_head_is_told_as_the_route_says_and_logged_once() {
    for (fault, plain_status, reasons) in BEFORE_THE_HEAD {
        let backend = failing(fault).await;
        // The control: without `errors` each is told for itself.
        let plain = gateway(backend, "{timeouts: {request: 1s}}");
        let told = ask(&plain, "").await;
        assert_eq!(status(&told), plain_status, "{fault:?}: {told}");
        assert!(reasons.contains(&reason(&told).as_str()), "{fault:?}: {told}");

        let policy = "{timeouts: {request: 1s}, errors: [{status: 500, contentType: text/plain, text: Internal Server Error}]}";
        let gateway = gateway(backend, policy);
        let told = ask(&gateway, "").await;
        assert_eq!(status(&told), 500, "{fault:?}");
        assert!(told.ends_with("\r\n\r\nInternal Server Error"), "{fault:?}: {told}");
        assert_eq!(field(&told, "content-type"), Some("text/plain"));
        for secret in ["127.0.0.1", "internal:5432", "own/1.2", "Traceback"] {
            assert!(!told.contains(secret), "{fault:?}: {told}");
        }
        let lines = logged(&gateway, 1);
        assert_eq!(lines.len(), 1, "{fault:?}");
        let line = &lines[0];
        assert!(reasons.contains(&line["reason"].as_str().unwrap_or("")), "{fault:?}: {line}");
        let has_cause = line["cause"].as_str().is_some_and(|cause| !cause.is_empty());
        // The cause of a 500 the backend alone knows.
        assert_eq!(has_cause, !matches!(fault, Fault::Says500), "{fault:?}: {line}");
        let own = gateway.process.log();
        assert!(!own.contains("\"level\":\"WARN\"") && !own.contains("\"level\":\"ERROR\""), "{own}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_cut_and_never_ended() {
    for fault in [Fault::CutBody, Fault::ShortBody] {
        let gateway = gateway(failing(fault).await, "{errors: [{text: sorry}]}");
        let mut socket = TcpStream::connect(gateway.http).await.expect("connects");
        socket.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.expect("sent");
        let mut told = Vec::new();
        let reading = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut told));
        // Closed or reset.
        let _ = reading.await.expect("it ends");
        let told = String::from_utf8(told).expect("ASCII");
        assert!(status(&told) == 200 && told.contains("first"), "{fault:?}: {told}");
        assert!(!told.ends_with("0\r\n\r\n") && !told.contains("sorry"), "{fault:?}: {told}");
        let lines = logged(&gateway, 1);
        assert_eq!((&lines[0]["reason"], lines.len()), (&serde_json::json!("Reset"), 1), "{fault:?}");
        assert!(lines[0]["cause"].as_str().is_some_and(|cause| !cause.is_empty()), "{fault:?}: {}", lines[0]);
    }
}

#[tokio::test]
async fn each_client_gets_its_form_and_no_tag_comes_through() {
    let gateway = gateway(
        failing(Fault::Closes).await,
        "{errors: [{on: [Reset], status: 503, headers: {set: [{name: Retry-After, value: '5'}]}, text: 'gone: ${request.path}'}]}",
    );
    let html = ask(&gateway, "accept: text/html\r\n").await;
    assert!(html.contains("<h1>503 gone: /orders</h1>"), "{html}");
    assert_eq!((field(&html, "retry-after"), field(&html, "cache-control")), (Some("5"), Some("no-store")));
    let json = ask(&gateway, "accept: application/json\r\n").await;
    let body: serde_json::Value =
        serde_json::from_str(json.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
    assert_eq!(
        (&body["title"], &body["status"]),
        (&serde_json::json!("gone: /orders"), &serde_json::json!(503))
    );
    // Lines are one list, in which the heaviest is taken.
    for fields in [
        "accept: text/plain\r\n",
        "accept: application/json;q=0.5, text/plain;q=0.6\r\n",
        "accept: application/json;q=0.5\r\naccept: text/html;q=0.1\r\naccept: text/plain\r\n",
    ] {
        let told = ask(&gateway, fields).await;
        assert!(told.ends_with("\r\n\r\ngone: /orders"), "{fields}: {told}");
    }
}

#[test]
fn the_installation_answers_where_no_route_does() {
    let policy = "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {name: all, namespace: default}\nspec: {targetRefs: [{kind: Installation}], policy: {errors: [{on: ['404', '401'], contentType: text/plain, text: 'ours ${error.reason}'}]}}\n";
    let route = route(
        "web",
        "{hostnames: [a.example], rules: [{name: all, matches: [{path: {value: /in}}], policy: {authentication: {anyOf: [{name: keys, apiKey: {secretRef: {name: none}}}]}}, respond: {status: 204}}, {name: fixed, matches: [{path: {value: /fixed}}], respond: {status: 404, text: mine}}]}",
    );
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {namespace: test, name: none}\nstringData: {key: 6d0f7c1e5b9a4d3f8e2c1b0a9f8e7d6c}\n";
    let gateway = Gateway::start(&[("policy.yaml", policy), ("route.yaml", &route), ("secret.yaml", secret)]);
    for (host, path, status, body) in [
        ("b.example", "/", 404, "ours NoRouteMatch"),
        ("a.example", "/nowhere", 404, "ours NoRouteMatch"),
        ("a.example", "/in", 401, "ours ApiKeyMissing"),
        // It stands in the route: nothing failed.
        ("a.example", "/fixed", 404, "mine"),
    ] {
        let told = gateway.get(host, path);
        assert_eq!((told.status, told.body.as_str()), (status, body), "{host}{path}");
    }
}
