//! The PROXY protocol in the whole program: who the client is, and who may say so.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use crate::harness::{Answer, Backend, Gateway, connect, exchange, read_answer, route, text, until};

const ON: &[&str] = &["--proxy-protocol", "http,https", "--trusted-proxies", "127.0.0.0/8,::1"];
const CLIENT: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn gateway(backend: &Backend, arguments: &[&str]) -> Gateway {
    let spec = "{hostnames: [a.test], rules: [
        {name: all, backendRefs: [{kind: GatewayBackend, name: one}]},
        {name: inside, matches: [{path: {value: /inside}}], policy: {ipAccess: {allow: [192.0.2.0/24]}}, respond: {status: 200}}]}";
    Gateway::with(&[("backend.yaml", &backend.manifest("one")), ("route.yaml", &route("a", spec))], arguments)
}

fn after(address: SocketAddr, header: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(header).expect("sent");
    stream
}

fn ask(gateway: &Gateway, header: &[u8], path: &str) -> Answer {
    exchange(after(gateway.http, header), "GET", "a.test", path, &["X-Forwarded-For: 203.0.113.9"], "")
}

#[test]
fn the_header_tells_who_the_client_is_and_nobody_else_does() {
    let backend = Backend::start("one");
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let arguments = [ON, &["--access-log", log.to_str().expect("UTF-8")]].concat();
    let gateway = gateway(&backend, &arguments);
    let v6 = [
        SIGNATURE,
        &[0x21, 0x21, 0, 39],
        &[0x20, 1, 0xd, 0xb8],
        &[0; 12],
        &[9; 16],
        &[0, 1, 0, 2],
        &[4, 0, 0],
    ]
    .concat();
    let local = [SIGNATURE, &[0x20, 0, 0, 0]].concat();
    for (header, client) in [
        (CLIENT, "192.0.2.7"),
        (&v6, "2001:db8::"),
        (&local, "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    ] {
        let answer = ask(&gateway, header, "/");
        let seen = answer.json();
        assert_eq!((answer.status, &seen["headers"]["x-forwarded-for"]), (200, &client.into()), "{seen}");
        assert_eq!(seen["headers"]["x-real-ip"], client);
    }
    assert_eq!(ask(&gateway, CLIENT, "/inside").status, 200);
    assert_eq!(ask(&gateway, &local, "/inside").json()["reason"], "IpNotAllowed");
    until("the access log", || {
        std::fs::read_to_string(&log)
            .ok()
            .filter(|log| log.contains("192.0.2.7") && log.contains("2001:db8::"))
    });
    // Byte by byte, and the request at once behind it.
    let mut slow = connect(gateway.http);
    slow.set_nodelay(true).expect("set");
    for byte in CLIENT {
        slow.write_all(&[*byte]).expect("sent");
    }
    let answer = exchange(slow, "GET", "a.test", "/", &[], "");
    assert_eq!(answer.json()["headers"]["x-forwarded-for"], "192.0.2.7");
    let request = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let mut at_once = after(gateway.http, &[CLIENT, request].concat());
    let answer = read_answer(&mut at_once).expect("an answer");
    assert_eq!(answer.json()["headers"]["x-forwarded-for"], "192.0.2.7");
}

#[test]
fn a_connection_without_a_header_or_of_a_stranger_is_closed() {
    let backend = Backend::start("one");
    let on = gateway(&backend, ON);
    let strangers = gateway(&backend, &["--proxy-protocol", "http", "--trusted-proxies", "10.0.0.0/8"]);
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let whole = [CLIENT, request.as_bytes()].concat();
    let told = |address, bytes: &[u8]| {
        let mut stream = connect(address);
        // Who is refused may be gone before all is sent.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        text(&answer)
    };
    for (gateway, bytes, cause) in [
        (&on, request.as_bytes(), "missing"),
        (&on, b"PROXY TCP4 1.2.3.4\r\n\r\n", "malformed"),
        (&on, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "malformed"),
        (&strangers, &whole, "untrusted"),
    ] {
        assert_eq!(told(gateway.http, bytes), "", "{cause}");
        let counted = format!("portcullis_proxy_headers_refused_total{{cause=\"{cause}\"}}");
        let metrics = gateway.ask_admin("/metrics").body;
        let line = metrics.lines().find(|line| line.starts_with(&counted)).expect("a metric");
        assert!(!line.ends_with(" 0"), "{line}");
    }
    // The control: the same bytes where they are welcome.
    assert!(told(on.http, &whole).starts_with("HTTP/1.1 200"));
    // Only where it was asked for.
    assert!(told(strangers.https, b"").is_empty());
    let off = gateway(&backend, &[]);
    assert!(told(off.http, request.as_bytes()).starts_with("HTTP/1.1 200"));
    assert!(told(off.http, &whole).starts_with("HTTP/1.1 400"), "no header is looked for");
}

#[test]
fn the_header_comes_before_tls() {
    let folder = tempfile::tempdir().expect("a folder");
    let (secret, _) = crate::harness::certificate(folder.path(), "server", "tls.test");
    let spec = "{hostnames: [tls.test], tls: {certificateRefs: [{name: server}]}, rules: [
        {name: all, policy: {ipAccess: {allow: [192.0.2.7]}}, respond: {status: 200, text: inside}}]}";
    let gateway = Gateway::with(&[("server.yaml", &secret), ("route.yaml", &route("tls", spec))], ON);
    let config = Arc::new(crate::proxy_tls::trusting_anything().with_no_client_auth());
    let shake = |header: &[u8]| {
        let name = "tls.test".try_into().expect("a name");
        let connection = rustls::ClientConnection::new(config.clone(), name).expect("a configuration");
        rustls::StreamOwned::new(connection, after(gateway.https, header))
    };
    assert_eq!(exchange(shake(CLIENT), "GET", "tls.test", "/", &[], "").body, "inside");
    let other = b"PROXY TCP4 192.0.2.8 10.0.0.1 8080 80\r\n";
    assert_eq!(exchange(shake(other), "GET", "tls.test", "/", &[], "").status, 403);
    assert!(shake(b"").write_all(b"GET").is_err(), "no header");
}

#[test]
fn listeners_that_trust_nobody_do_not_start() {
    for arguments in [&["--proxy-protocol", "http"][..], &["--trusted-proxies", "10.0.0.0/8"]] {
        let output = crate::harness::run(&[&["run", "--manifests", "/nowhere"], arguments].concat());
        assert!(!output.status.success(), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(told.contains("--trusted-proxies") && told.contains("--proxy-protocol"), "{told}");
    }
}

#[tokio::test]
async fn a_header_that_never_ends_is_cut() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use crate::proxy_rig;

    let gateway = proxy_rig::Gateway::with(|settings| {
        settings.limits.tls_handshake = std::time::Duration::from_millis(200);
        settings.proxy_protocol.listeners = vec![portcullis::message::Scheme::Http];
        settings.proxy_protocol.trusted = vec!["127.0.0.1/32".parse().expect("a network")];
    });
    for part in [&b""[..], b"PROXY TCP4 192.0.2.7", SIGNATURE] {
        let mut socket = tokio::net::TcpStream::connect(gateway.http()).await.expect("connects");
        socket.write_all(part).await.expect("sent");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(proxy_rig::PATIENCE, socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty(), "{part:?}");
    }
}

#[test]
fn connections_are_counted_by_whom_the_header_names() {
    let backend = Backend::start("one");
    let gateway = gateway(&backend, &[ON, &["--max-connections-per-client", "1"]].concat());
    let keep = |client: &str| {
        let header = format!("PROXY TCP4 {client} 10.0.0.1 8080 80\r\n");
        let mut stream = after(gateway.http, header.as_bytes());
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").expect("sent");
        let mut start = [0; 12];
        let is_served = stream.read_exact(&mut start).is_ok();
        (stream, is_served)
    };
    let (one, other) = (keep("192.0.2.7"), keep("192.0.2.8"));
    assert!(one.1 && other.1, "all of them come from one load balancer");
    assert!(!keep("192.0.2.7").1);
    drop(one);
    until("its place to be free", || keep("192.0.2.7").1.then_some(()));
}
