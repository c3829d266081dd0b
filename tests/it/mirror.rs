//! Copies of requests, in the whole program.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Backend, Gateway, route, until};

/// What copies go to: it keeps what it is sent, and answers or not.
struct Shadow {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Shadow {
    fn answering(answer: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let (address, heard) = (listener.local_addr().expect("bound"), Arc::<Mutex<Vec<String>>>::default());
        let told = Arc::clone(&heard);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let told = Arc::clone(&told);
                std::thread::spawn(move || converse(socket, answer, &told));
            }
        });
        Self { address, heard }
    }

    fn manifest(&self, name: &str) -> String {
        manifest(name, self.address)
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("unpoisoned").clone()
    }
}

fn converse(mut socket: TcpStream, answer: Option<&str>, told: &Mutex<Vec<String>>) {
    let mut read = String::new();
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        read += &String::from_utf8_lossy(&buffer[..count]);
        while let Some(length) = whole(&read) {
            let rest = read.split_off(length);
            told.lock().expect("unpoisoned").push(std::mem::replace(&mut read, rest));
            match answer {
                Some(answer) if socket.write_all(answer.as_bytes()).is_ok() => {}
                Some(_) => return,
                None => {}
            }
        }
    }
}

/// The length of the first request, once it is there.
fn whole(read: &str) -> Option<usize> {
    let head = read.find("\r\n\r\n")? + 4;
    let of_body =
        |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok();
    let length = head + read[..head].lines().find_map(of_body).unwrap_or(0);
    (read.len() >= length).then_some(length)
}

fn manifest(name: &str, address: SocketAddr) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\n\
         spec: {{hosts: [{{address: {}, port: {}}}]}}\n---\n",
        address.ip(),
        address.port()
    )
}

/// A gateway whose requests go to `main`, and copies of them to `shadow`.
fn mirrored(main: &str, shadow: &str, percent: u32) -> Gateway {
    let spec = format!(
        "{{hostnames: [shop.example], rules: [{{name: all, policy: {{
            mirror: {{backendRef: {{kind: GatewayBackend, name: shadow}}, percent: {percent}}},
            request: {{headers: {{set: [{{name: X-Set, value: ours}}]}}}}}},
            backendRefs: [{{kind: GatewayBackend, name: main}}]}}]}}"
    );
    Gateway::start(&[("backends.yaml", &format!("{main}{shadow}")), ("route.yaml", &route("shop", &spec))])
}

/// What was counted of copies.
fn counted(gateway: &Gateway, outcome: &str, reason: &str) -> u64 {
    let metrics = gateway.ask_admin("/metrics").body;
    let series = format!(
        "portcullis_mirror_requests_total{{namespace=\"test\",route=\"shop\",rule=\"all\",outcome=\"{outcome}\",reason=\"{reason}\"}} "
    );
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
    value.map_or(0, |value| value.parse().expect("a number"))
}

fn until_counted(gateway: &Gateway, outcome: &str, reason: &str, count: u64) {
    until(&format!("{count} copies {outcome} {reason}"), || {
        (counted(gateway, outcome, reason) == count).then_some(())
    });
}

const OK: Option<&str> = Some("HTTP/1.1 500 Oops\r\ncontent-length: 6\r\nx-shadow: 1\r\n\r\nshadow");

#[test]
fn exactly_so_many_requests_are_copied_as_they_are_and_marked() {
    let (main, shadow) = (Backend::start("main"), Shadow::answering(OK));
    let gateway = mirrored(&main.manifest("main"), &shadow.manifest("shadow"), 30);
    for number in 0..100 {
        let answer = gateway.request(
            "PUT",
            "shop.example",
            &format!("/orders/{number}?x=1"),
            &["Authorization: Bearer secret", "X-Portcullis-Mirror: true"],
            &format!("body {number}"),
        );
        assert_eq!((answer.status, answer.field("x-shadow")), (200, None));
        let told = answer.json();
        assert_eq!(told["name"], "main");
        assert_eq!(told["headers"].get("x-portcullis-mirror"), None, "nobody marks a request but us");
    }
    until_counted(&gateway, "sent", "", 30);
    let heard = shadow.heard();
    assert_eq!(heard.len(), 30);
    let mut numbers = Vec::new();
    for copy in heard {
        let number: u32 = copy
            .strip_prefix("PUT /orders/")
            .and_then(|rest| rest.split('?').next())
            .expect("its path")
            .parse()
            .expect("a number");
        let lower = copy.to_ascii_lowercase();
        for field in [
            "host: shop.example",
            "authorization: bearer secret",
            "x-set: ours",
            "x-portcullis-mirror: true",
            "x-forwarded-for: 127.0.0.1",
            "x-request-id: ",
            "content-length: ",
        ] {
            assert_eq!(lower.matches(&format!("\r\n{field}")).count(), 1, "{field} in {copy}");
        }
        assert!(copy.ends_with(&format!("\r\n\r\nbody {number}")), "{copy}");
        numbers.push(number);
    }
    // Mixed in, not in one go; copies may pass each other on their way.
    numbers.sort_unstable();
    let all = [vec![0], numbers, vec![99]].concat();
    assert!(all.windows(2).all(|pair| pair[1] - pair[0] <= 6), "{all:?}");
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(
        metrics.contains("code=\"200\"") && !metrics.contains("code=\"500\""),
        "its answers are no results: {metrics}"
    );
}

#[test]
fn a_mirror_that_is_silent_or_dead_costs_clients_nothing() {
    let main = Backend::start("main");
    let silent = Shadow::answering(None);
    let gateway = mirrored(&main.manifest("main"), &silent.manifest("shadow"), 100);
    let began = Instant::now();
    for _ in 0..200 {
        assert_eq!(gateway.get("shop.example", "/").status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(15), "nobody waits for it: {:?}", began.elapsed());
    // The bound of a namespace on a worker: 128 at once. Two workers take at most 256, of which some may be busy earlier.
    until("copies on their way", || (silent.heard().len() >= 100).then_some(()));
    let dead = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
    gateway.write("backends.yaml", &format!("{}{}", main.manifest("main"), manifest("shadow", dead)));
    until("copies that fail", || {
        assert_eq!(gateway.get("shop.example", "/").status, 200);
        (counted(&gateway, "failed", "ConnectFailure") > 0).then_some(())
    });
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(
        !metrics.contains("portcullis_upstream_errors_total{backend=\"GatewayBackend/test/main\""),
        "{metrics}"
    );
}

#[test]
fn what_is_too_large_unfinished_or_a_tunnel_is_not_copied_and_counted() {
    let (main, shadow) = (Backend::start("main"), Shadow::answering(OK));
    let gateway = mirrored(&main.manifest("main"), &shadow.manifest("shadow"), 100);
    let large = "x".repeat((64 << 10) + 1);
    assert_eq!(gateway.request("PUT", "shop.example", "/announced", &[], &large).status, 200);
    until_counted(&gateway, "dropped", "body_too_large", 1);
    // In chunks nobody knows before.
    let chunk = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let mut socket = crate::harness::connect(gateway.http);
    let head = "PUT /chunked HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    socket.write_all(format!("{head}{chunk}").as_bytes()).expect("sent");
    assert_eq!(crate::harness::read_answer(&mut socket).expect("an answer").status, 200);
    until_counted(&gateway, "dropped", "body_too_large", 2);
    // The largest that fits, in chunks: whole and with a length.
    let fits = "y".repeat(64 << 10);
    let chunk = format!("{:x}\r\n{fits}\r\n0\r\n\r\n", fits.len());
    let mut socket = crate::harness::connect(gateway.http);
    socket.write_all(format!("{head}{chunk}").as_bytes()).expect("sent");
    assert_eq!(crate::harness::read_answer(&mut socket).expect("an answer").status, 200);
    until_counted(&gateway, "sent", "", 1);
    let copy = shadow.heard().pop().expect("it came");
    assert!(copy.ends_with(&format!("\r\n\r\n{fits}")));
    let lower = copy[..copy.len() - fits.len()].to_ascii_lowercase();
    assert!(lower.contains("content-length: 65536") && !lower.contains("transfer-encoding"), "{lower}");
    // A client that goes.
    let mut socket = crate::harness::connect(gateway.http);
    let head = "PUT /half HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 10\r\n\r\nhalf";
    socket.write_all(head.as_bytes()).expect("sent");
    drop(socket);
    until_counted(&gateway, "dropped", "body_unfinished", 1);
    let upgrade = [
        "Connection: upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: BwcHBwcHBwcHBwcHBwcHBw==",
    ];
    let mut socket = crate::harness::connect(gateway.http);
    socket
        .write_all(
            format!("GET /ws HTTP/1.1\r\nHost: shop.example\r\n{}\r\n\r\n", upgrade.join("\r\n")).as_bytes(),
        )
        .expect("sent");
    let mut start = [0; 12];
    socket.read_exact(&mut start).expect("an answer");
    assert_eq!(&start, b"HTTP/1.1 101");
    until_counted(&gateway, "dropped", "upgrade", 1);
    assert_eq!(shadow.heard().len(), 1, "and nothing else came");
}

#[test]
fn a_mirror_without_a_backend_is_told_and_costs_only_the_copies() {
    let main = Backend::start("main");
    let gateway = mirrored(&main.manifest("main"), "", 100);
    assert_eq!(gateway.get("shop.example", "/").status, 200);
    until_counted(&gateway, "dropped", "no_backend", 1);
    let status = gateway.status().to_string();
    assert!(status.contains("BackendNotFound") && status.contains("policy.mirror.backendRef"), "{status}");
}

#[test]
fn at_most_128_copies_of_a_namespace_are_under_way_on_a_worker() {
    let (main, silent) = (Backend::start("main"), Shadow::answering(None));
    let gateway = mirrored(&main.manifest("main"), &silent.manifest("shadow"), 100);
    // Over one connection, and so on one worker; their answers take 15 s.
    let mut requests = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n".repeat(149);
    requests += "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
    let mut socket = crate::harness::connect(gateway.http);
    socket.write_all(requests.as_bytes()).expect("sent");
    let mut answers = String::new();
    socket.read_to_string(&mut answers).expect("answers");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 150);
    until_counted(&gateway, "dropped", "busy", 150 - 128);
    until("the copies", || (silent.heard().len() == 128).then_some(()));
}
