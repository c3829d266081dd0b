//! PROXY headers towards backends in the whole program: read by hand, and by our own listener.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::backend_tls::Authority;
use crate::harness::{Backend, Gateway, connect, exchange, read_answer, responds, route, until};

/// A backend that reads headers by hand and answers with what they said, and the number of the connection.
struct Told {
    address: SocketAddr,
    /// What each connection began with.
    headers: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
}

impl Told {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let (address, headers) =
            (listener.local_addr().expect("bound"), Arc::<Mutex<Vec<String>>>::default());
        let (known, count) = (Arc::clone(&headers), AtomicUsize::new(0));
        let open = Arc::<AtomicUsize>::default();
        let opened = Arc::clone(&open);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (known, number) = (Arc::clone(&known), count.fetch_add(1, Ordering::Relaxed));
                let open = Arc::clone(&opened);
                open.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    converse(&socket, number, &known);
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, headers, open }
    }

    fn headers(&self) -> Vec<String> {
        self.headers.lock().expect("unpoisoned").clone()
    }
}

/// The header as text: `PROXY TCP4 …` as it came, version 2 in the same words.
fn read_header(reader: &mut impl std::io::BufRead) -> Option<String> {
    let mut first = [0; 12];
    reader.read_exact(&mut first).ok()?;
    if &first == b"\r\n\r\n\0\r\nQUIT\n" {
        let mut head = [0; 4];
        reader.read_exact(&mut head).ok()?;
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
        reader.read_exact(&mut rest).ok()?;
        return match (head[0], head[1], rest.as_slice()) {
            (0x20, 0, []) => Some("LOCAL".into()),
            (0x21, 0x11, [a, b, c, d, e, f, g, h, i, j, k, l]) => {
                let ports = [u16::from_be_bytes([*i, *j]), u16::from_be_bytes([*k, *l])];
                let (from, to) = (Ipv4Addr::new(*a, *b, *c, *d), Ipv4Addr::new(*e, *f, *g, *h));
                Some(format!("PROXY TCP4 {from} {to} {} {}", ports[0], ports[1]))
            }
            other => panic!("no header of TCP over IPv4: {other:?}"),
        };
    }
    let mut line = first.to_vec();
    reader.read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8(line).expect("text");
    Some(line.strip_suffix("\r\n").expect("a line").to_owned())
}

fn converse(socket: &TcpStream, number: usize, known: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(socket);
    let Some(header) = read_header(&mut reader) else { return };
    known.lock().expect("unpoisoned").push(header.clone());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let body = format!("{number} {header}");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if (&mut &*socket).write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn manifest(name: &str, address: SocketAddr, more: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\n\
         spec: {{hosts: [{{address: {}, port: {}}}], {more}}}\n---\n",
        address.ip(),
        address.port()
    )
}

const TO_ONE: &str =
    "{hostnames: [a.test], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: one}]}]}";

/// The number of the backend's connection, and what its header said, of one more request on a client's connection.
fn ask(client: &mut TcpStream) -> (usize, String) {
    ask_saying(client, "")
}

fn ask_saying(client: &mut TcpStream, fields: &str) -> (usize, String) {
    client.write_all(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n").as_bytes()).expect("sent");
    let mut reader = BufReader::new(&*client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("an answer") > 0, "{head}");
    }
    let length = head.to_ascii_lowercase();
    let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.expect("a length")];
    reader.read_exact(&mut body).expect("a body");
    let text = String::from_utf8(body).expect("text");
    let (number, header) = text.split_once(' ').expect("both");
    (number.parse().expect("a number"), header.to_owned())
}

#[test]
fn each_connection_is_one_clients_and_says_so() {
    for version in ["V1", "V2"] {
        let backend = Told::start();
        let one = manifest("one", backend.address, &format!("proxyProtocol: {version}"));
        let gateway = Gateway::start(&[("backend.yaml", &one), ("route.yaml", &route("a", TO_ONE))]);
        let mut clients: Vec<_> = (0..4).map(|_| connect(gateway.http)).collect();
        let mut carried_by: Vec<Vec<usize>> = vec![Vec::new(); clients.len()];
        for _ in 0..5 {
            for (client, carried) in clients.iter_mut().zip(&mut carried_by) {
                let (number, header) = ask(client);
                let (from, to) = (client.local_addr().expect("ours"), gateway.http);
                let expected = format!("PROXY TCP4 {} {} {} {}", from.ip(), to.ip(), from.port(), to.port());
                assert_eq!(header, expected, "{version}");
                carried.push(number);
            }
        }
        for (at, one) in carried_by.iter().enumerate() {
            for other in &carried_by[at + 1..] {
                assert!(one.iter().all(|number| !other.contains(number)), "shared: {carried_by:?}");
            }
        }
        assert!(
            carried_by.iter().any(|numbers| numbers.windows(2).any(|pair| pair[0] == pair[1])),
            "a client's own is used again: {carried_by:?}"
        );
    }
}

#[test]
fn without_it_clients_share_connections() {
    // The control: the same requests over a backend that is told nothing.
    let backend = Backend::start("one");
    let gateway =
        Gateway::start(&[("backend.yaml", &backend.manifest("one")), ("route.yaml", &route("a", TO_ONE))]);
    for _ in 0..20 {
        assert_eq!(gateway.get("a.test", "/").status, 200);
    }
    let metrics = gateway.ask_admin("/metrics").body;
    let connects =
        "portcullis_upstream_connects_total{backend=\"GatewayBackend/test/one\",result=\"connected\"} ";
    let connects = metrics.lines().find_map(|line| line.strip_prefix(connects)?.parse::<u32>().ok());
    assert!(connects.is_some_and(|connects| connects <= 4), "{metrics}");
}

#[test]
fn a_client_behind_a_trusted_hop_is_told_without_a_port() {
    let backend = Told::start();
    let one = manifest("one", backend.address, "proxyProtocol: V1");
    let gateway = Gateway::with(
        &[("backend.yaml", &one), ("route.yaml", &route("a", TO_ONE))],
        &["--trusted-hops", "1"],
    );
    let fields = ["X-Forwarded-For: 192.0.2.7"];
    let answer = exchange(connect(gateway.http), "GET", "a.test", "/", &fields, "");
    let port = gateway.http.port();
    assert!(answer.body.ends_with(&format!("PROXY TCP4 192.0.2.7 127.0.0.1 0 {port}")), "{}", answer.body);
}

#[test]
fn two_connections_of_one_address_share_nothing() {
    let backend = Told::start();
    let one = manifest("one", backend.address, "proxyProtocol: V2");
    let gateway = Gateway::with(
        &[("backend.yaml", &one), ("route.yaml", &route("a", TO_ONE))],
        &["--trusted-hops", "1"],
    );
    // More than there are workers: some share one.
    let mut clients: Vec<_> = (0..4).map(|_| connect(gateway.http)).collect();
    let mut carried_by: Vec<Vec<usize>> = vec![Vec::new(); clients.len()];
    let mut headers = Vec::new();
    for _ in 0..4 {
        for (client, carried) in clients.iter_mut().zip(&mut carried_by) {
            let (number, header) = ask_saying(client, "X-Forwarded-For: 192.0.2.7\r\n");
            carried.push(number);
            headers.push(header);
        }
    }
    assert!(headers.windows(2).all(|pair| pair[0] == pair[1]), "as one client: {headers:?}");
    for (at, one) in carried_by.iter().enumerate() {
        for other in &carried_by[at + 1..] {
            assert!(one.iter().all(|number| !other.contains(number)), "shared: {carried_by:?}");
        }
    }
}

#[test]
fn what_is_kept_for_a_client_is_closed_when_it_goes() {
    let backend = Told::start();
    let one = manifest("one", backend.address, "proxyProtocol: V2");
    let gateway = Gateway::start(&[("backend.yaml", &one), ("route.yaml", &route("a", TO_ONE))]);
    let mut client = connect(gateway.http);
    let first = ask(&mut client).0;
    assert_eq!(ask(&mut client).0, first, "it is kept");
    let went = Instant::now();
    drop(client);
    until("its end", || (backend.open.load(Ordering::Relaxed) == 0).then_some(()));
    // What was in use within the last 10 s would be kept as long for anybody who may use it.
    assert!(went.elapsed() < Duration::from_secs(8), "{:?}", went.elapsed());
}

#[test]
fn a_connection_older_than_the_first_such_backend_names_the_client_alone() {
    let backend = Told::start();
    let gateway = Gateway::start(&[("route.yaml", &responds("a", "a.test", "0 nobody"))]);
    let mut client = connect(gateway.http);
    assert_eq!(ask(&mut client), (0, "nobody".into()));
    gateway.write("backend.yaml", &manifest("one", backend.address, "proxyProtocol: V1"));
    gateway.write("route.yaml", &route("a", TO_ONE));
    let port = client.local_addr().expect("ours").port();
    until("the new map", || {
        let (_, header) = ask(&mut client);
        if header == "nobody" {
            return None;
        }
        assert_eq!(header, format!("PROXY TCP4 127.0.0.1 0.0.0.0 {port} 0"));
        Some(())
    });
}

#[test]
fn what_is_our_own_says_that_it_is_nobodys() {
    for (version, expected) in [("V1", "PROXY UNKNOWN"), ("V2", "LOCAL")] {
        let backend = Told::start();
        let more = format!(
            "proxyProtocol: {version}, healthCheck: {{active: {{path: /healthz, interval: 100ms, timeout: 100ms}}}}"
        );
        let one = manifest("one", backend.address, &more);
        let gateway = Gateway::start(&[("backend.yaml", &one), ("route.yaml", &route("a", TO_ONE))]);
        until("checks", || backend.headers().iter().filter(|header| *header == expected).nth(1).map(|_| ()));
        until("good ones", || {
            let metrics = gateway.ask_admin("/metrics").body;
            let passed = "portcullis_upstream_health_checks_total{backend=\"GatewayBackend/test/one\",result=\"passed\"} ";
            let passed = metrics.lines().find_map(|line| line.strip_prefix(passed)?.parse::<u32>().ok());
            passed.filter(|passed| *passed > 1).map(|_| ())
        });
        assert!(backend.headers().iter().all(|header| header == expected), "nobody asked yet");
    }
}

/// From another address of loopback than 127.0.0.1.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("loopback is a /8");
    socket.connect(&to.into()).expect("it listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(crate::harness::PATIENCE)).expect("a time-out");
    stream
}

#[test]
fn our_own_listener_believes_it_plain_and_before_tls() {
    let echo = Backend::start("echo");
    let authority = Authority::new("inside");
    let inner_route = "{hostnames: [a.test], tls: {certificateRefs: [{name: a}], redirect: false}, rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: one}]}]}";
    let inner = Gateway::with(
        &[
            ("backend.yaml", &echo.manifest("one")),
            ("route.yaml", &route("a", inner_route)),
            ("secret.yaml", &authority.certify(&["a.test"]).secret("a")),
        ],
        &["--proxy-protocol", "http,https", "--trusted-proxies", "127.0.0.1"],
    );
    let tls = "tls: {serverName: a.test, caCertificateRefs: [{kind: ConfigMap, name: authority}]}";
    for version in ["V1", "V2"] {
        let plain = manifest("plain", inner.http, &format!("proxyProtocol: {version}"));
        let secured = manifest("secured", inner.https, &format!("proxyProtocol: {version}, {tls}"));
        let spec = "{hostnames: [a.test], rules: [
            {name: plain, backendRefs: [{kind: GatewayBackend, name: plain}]},
            {name: secured, matches: [{path: {value: /secured}}], backendRefs: [{kind: GatewayBackend, name: secured}]}]}";
        let outer = Gateway::start(&[
            ("backends.yaml", &format!("{plain}{secured}{}", authority.config_map("authority"))),
            ("route.yaml", &route("a", spec)),
        ]);
        for path in ["/plain", "/secured"] {
            for last in [5, 6, 5] {
                let client = connect_from(Ipv4Addr::new(127, 0, 0, last), outer.http);
                let answer = exchange(client, "GET", "a.test", path, &[], "");
                assert_eq!(answer.status, 200, "{version} {path}: {}", answer.body);
                let seen = &answer.json()["headers"]["x-real-ip"];
                assert_eq!(seen, &format!("127.0.0.{last}"), "{version} {path}");
            }
        }
    }
    let control = Gateway::start(&[
        ("backends.yaml", &manifest("one", inner.http, "")),
        ("route.yaml", &route("a", TO_ONE)),
    ]);
    let mut client = connect(control.http);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").expect("sent");
    assert_eq!(read_answer(&mut client).expect("an answer").status, 502, "without a header nobody is heard");
}

#[test]
fn calls_of_an_aggregation_are_the_clients_too() {
    let backend = Told::start();
    let one = manifest("one", backend.address, "proxyProtocol: V1");
    let spec = "{hostnames: [a.test], rules: [{name: all, aggregate: {calls: [
        {name: one, backendRef: {kind: GatewayBackend, name: one}, path: /, onError: {value: {}}}]}}]}";
    let gateway = Gateway::start(&[
        ("backend.yaml", &one),
        ("route.yaml", &(route("a", spec) + &responds("b", "b.test", "b"))),
    ]);
    let client = connect(gateway.http);
    let from = client.local_addr().expect("ours");
    assert_eq!(exchange(client, "GET", "a.test", "/", &[], "").status, 200);
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}", from.port(), gateway.http.port());
    assert_eq!(backend.headers(), [expected]);
}
