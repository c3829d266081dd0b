//! `limits` in the whole program: as many requests under way as may be, until all of each is over.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use crate::harness::{Gateway, connect, route, until};

/// Answers when the test does.
struct Backend(TcpListener);

impl Backend {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("ours");
        Self(listener)
    }

    /// A request that has come, its head read.
    fn asked(&self) -> Option<TcpStream> {
        let (mut stream, _) = self.0.accept().ok()?;
        stream.set_nonblocking(false).expect("ours");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        Some(stream)
    }
}

fn start(backend: &Backend, policy: &str) -> Gateway {
    let port = backend.0.local_addr().expect("bound").port();
    let server = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: one}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {port}}}]}}\n"
    );
    let to = "backendRefs: [{kind: GatewayBackend, name: one}]";
    let rules = format!(
        "rules: [{{name: a, matches: [{{path: {{value: /a}}}}], {to}}}, {{name: b, matches: [{{path: {{value: /b}}}}], {to}}}, {{name: free, policy: {{disable: [limits]}}, respond: {{status: 200}}}}]"
    );
    let spec = format!("{{hostnames: [shop.example], policy: {policy}, {rules}}}");
    Gateway::start(&[("backend.yaml", &server), ("route.yaml", &route("shop", &spec))])
}

/// A request whose answer nobody reads yet.
fn ask(gateway: &Gateway, path: &str) -> TcpStream {
    let mut stream = connect(gateway.http);
    let head = format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    stream
}

#[test]
fn a_place_is_free_again_when_all_of_its_request_is_over() {
    let backend = Backend::start();
    let gateway = start(&backend, "{limits: {concurrentRequests: 2}}");
    let (mut first, second) = (ask(&gateway, "/a"), ask(&gateway, "/b"));
    let mut under_way = Vec::new();
    until("both to be under way", || {
        under_way.extend(backend.asked());
        (under_way.len() == 2).then_some(())
    });
    let refused = || {
        for path in ["/a", "/b"] {
            let answer = gateway.get("shop.example", path);
            assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{path}");
            assert_eq!(answer.json()["reason"], "Overloaded");
        }
        assert!(backend.asked().is_none(), "nobody reaches the backend");
    };
    refused();
    assert_eq!(gateway.get("shop.example", "/free").status, 200, "what asks no backend goes on");
    // Both heads are there, and half of the bodies.
    for stream in &mut under_way {
        let half = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 10\r\n\r\nhalf-";
        stream.write_all(half.as_bytes()).expect("sent");
    }
    let mut start = [0; 12];
    first.read_exact(&mut start).expect("an answer");
    assert_eq!(&start, b"HTTP/1.1 200");
    refused();
    for mut stream in under_way {
        let _ = stream.write_all(b"whole");
    }
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).expect("the rest");
    assert!(rest.ends_with(b"half-whole"));
    drop((first, second));
    // Clients that leave give their places back, too.
    for _ in 0..3 {
        let mut asked = Vec::new();
        let streams = until("another one to be under way", || {
            asked.push(ask(&gateway, "/a"));
            let mut taken: Vec<TcpStream> = Vec::new();
            until("an answer or the backend", || {
                taken.extend(backend.asked());
                let mut byte = [0];
                let last = asked.last().expect("there is one");
                last.set_nonblocking(true).expect("ours");
                (!taken.is_empty() || last.peek(&mut byte).is_ok()).then_some(())
            });
            taken.pop()
        });
        drop((streams, asked));
    }
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(metrics.contains("reason=\"Overloaded\""), "{metrics}");
}

#[test]
fn large_heads_and_long_targets_are_refused_and_imposed_bounds_add_up() {
    let backend = Backend::start();
    let gateway = start(&backend, "{limits: {uri: '40', requestHeaders: 1Ki}}");
    let long = format!("/a/{}", "x".repeat(40));
    let refused = gateway.get("shop.example", &long);
    assert_eq!((refused.status, refused.json()["reason"].as_str()), (414, Some("UriTooLong")));
    let large = format!("X-Large: {}", "x".repeat(1024));
    let refused = gateway.request("GET", "shop.example", "/a", &[&large], "");
    assert_eq!((refused.status, refused.json()["reason"].as_str()), (431, Some("HeadersTooLarge")));
    let answer = gateway.request("GET", "shop.example", &long.replace("/a", "/f"), &[&large], "");
    assert_eq!(answer.status, 200, "a rule may drop what it inherits");
    gateway.write(
        "policy.yaml",
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {name: all, namespace: test}\nspec: {precedence: Override, targetRefs: [{kind: Namespace}], policy: {limits: {uri: '20'}}}\n",
    );
    gateway.until_answer("shop.example", "/fxxxxxxxxxxxxxxxxxxx", 414, "UriTooLong");
    assert_eq!(gateway.get("shop.example", "/f").status, 200);
    assert_eq!(gateway.request("GET", "shop.example", "/a", &[&large], "").status, 431, "both hold");
}
