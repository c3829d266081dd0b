//! TLS that is passed through by server name, in the whole program.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portcullis::lifecycle::Phase;
use portcullis::route_map::{Host, MatchTable};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use crate::harness::{Gateway, PATIENCE, connect, responds, route, text, tls, until};
use crate::proxy_rig;

/// A server with a certificate of its own, which sends back what it gets, under its name.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Where its certificate's authority stands.
    ca: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(name: &'static str, host: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = rcgen::KeyPair::generate().expect("a key");
        let made = rcgen::CertificateParams::new(vec![host.to_owned()]).expect("a name");
        let made = made.self_signed(&key).expect("signed");
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, made.pem()).expect("written");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("known versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(made.pem().as_bytes()).expect("PEM")],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("they belong together");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let (address, config) = (listener.local_addr().expect("bound"), Arc::new(config));
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
                std::thread::spawn(move || echo(StreamOwned::new(session, socket), name));
            }
        });
        Self { address, connections, ca, _folder: folder }
    }

    fn manifest(&self, name: &str) -> String {
        manifest(name, self.address, "")
    }
}

/// Sends back what comes, up to the other side's end; then says its name, and ends.
fn echo(mut stream: StreamOwned<ServerConnection, TcpStream>, name: &str) {
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) if stream.write_all(&buffer[..read]).is_ok() => {}
            _ => return,
        }
    }
    let _ = stream.write_all(name.as_bytes());
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

fn manifest(name: &str, address: SocketAddr, more: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\n\
         spec: {{hosts: [{{address: {}, port: {}}}]{more}}}\n---\n",
        address.ip(),
        address.port()
    )
}

fn passed(name: &str, host: &str, backends: &str, more: &str) -> String {
    let rule = format!("{{name: all, backendRefs: [{backends}]{more}}}");
    route(name, &format!("{{hostnames: ['{host}'], tls: {{mode: Passthrough}}, rules: [{rule}]}}"))
}

fn to(name: &str) -> String {
    format!("{{kind: GatewayBackend, name: {name}}}")
}

/// What comes back when this is said and nothing more.
fn say(mut stream: StreamOwned<ClientConnection, TcpStream>, what: &[u8]) -> std::io::Result<String> {
    stream.write_all(what)?;
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.sock.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(text(&answer))
}

/// Over a handshake with this server's certificate, and no other.
fn ask(gateway: &Gateway, server: &Server, host: &str, what: &str) -> String {
    let (stream, _) = tls(gateway.https, &server.ca, host).expect("its own certificate");
    say(stream, what.as_bytes()).expect("an answer")
}

#[test]
fn a_connection_goes_to_the_backend_whose_name_it_asks_for_with_its_own_certificate() {
    let (db, mail) = (Server::start("db", "db.shop.example"), Server::start("mail", "a.mail.shop.example"));
    let folder = tempfile::tempdir().expect("a folder");
    let (secret, ca) = crate::harness::certificate(folder.path(), "ours", "web.shop.example");
    let ours = "{hostnames: [web.shop.example], tls: {certificateRefs: [{name: ours}]}, rules: [{name: all, respond: {status: 200, text: ours}}]}";
    let log = folder.path().join("access.log");
    let gateway = Gateway::with(
        &[
            ("backends.yaml", &format!("{}{}", db.manifest("db"), mail.manifest("mail"))),
            ("db.yaml", &passed("db", "db.shop.example", &to("db"), "")),
            ("mail.yaml", &passed("mail", "*.mail.shop.example", &to("mail"), "")),
            ("ours.yaml", &(secret + &route("ours", ours))),
        ],
        &["--access-log", log.to_str().expect("UTF-8")],
    );
    assert_eq!(ask(&gateway, &db, "db.shop.example", "one "), "one db");
    assert_eq!(ask(&gateway, &mail, "a.mail.shop.example", "two "), "two mail");
    // The control: the gateway's own names on the same listener.
    assert_eq!(gateway.get_tls(&ca, "web.shop.example", "/").expect("ours").body, "ours");
    assert!(tls(gateway.https, &db.ca, "other.shop.example").is_err(), "a name that nobody serves");
    // Much, in both directions at once.
    let large = "x".repeat(1 << 20);
    let (stream, _) = tls(gateway.https, &db.ca, "db.shop.example").expect("its own certificate");
    let answer = both_ways(stream, large.as_bytes());
    assert_eq!((answer.len(), answer.ends_with("db")), (large.len() + 2, true));

    let metrics = until("three ends", || {
        let metrics = gateway.ask_admin("/metrics").body;
        let series = "portcullis_passthrough_connections_total{namespace=\"test\",route=\"db\",rule=\"all\",outcome=\"ended\"} 2";
        metrics.contains(series).then_some(metrics)
    });
    for series in [
        "portcullis_passthrough_connections{namespace=\"test\",route=\"db\",rule=\"all\"} 0",
        "portcullis_passthrough_connections_total{namespace=\"test\",route=\"mail\",rule=\"all\",outcome=\"ended\"} 1",
        "portcullis_upstream_connects_total{backend=\"GatewayBackend/test/db\",result=\"connected\"} 2",
        "portcullis_upstream_connections{backend=\"GatewayBackend/test/db\",state=\"active\"} 0",
    ] {
        assert!(metrics.contains(series), "{series} in {metrics}");
    }
    until("a line of the log", || {
        let log = std::fs::read_to_string(&log).ok()?;
        let line = log.lines().find(|line| line.contains("a.mail.shop.example"))?;
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(
            (&line["protocol"], &line["reason"], &line["status"]),
            (&"TLS".into(), &"ended".into(), &0.into())
        );
        assert_eq!((&line["route"], &line["backend"]), (&"mail".into(), &"GatewayBackend/test/mail".into()));
        assert!(line["request_bytes"].as_u64() > Some(200) && line["client"] == "127.0.0.1", "{line}");
        Some(())
    });
}

fn both_ways(mut stream: StreamOwned<ClientConnection, TcpStream>, what: &[u8]) -> String {
    // One thread does both: it reads whenever the other side would have to wait.
    stream.sock.set_nonblocking(true).expect("a socket");
    let (mut sent, mut answer, began) = (0, Vec::new(), Instant::now());
    let mut buffer = [0; 16 << 10];
    loop {
        assert!(began.elapsed() < PATIENCE, "{sent} sent, {} came", answer.len());
        let end = (sent + buffer.len()).min(what.len());
        match stream.write(&what[sent..end]) {
            Ok(written) => sent += written,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        if sent == what.len() && !stream.conn.wants_write() {
            break;
        }
        match stream.read(&mut buffer) {
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    stream.sock.set_nonblocking(false).expect("a socket");
    let rest = say(stream, b"").expect("the rest");
    text(&answer) + &rest
}

#[test]
fn over_plain_http_it_is_redirected_or_nothing_and_no_other_connection_asks_for_it() {
    let db = Server::start("db", "db.shop.example");
    let folder = tempfile::tempdir().expect("a folder");
    let (secret, ca) = crate::harness::certificate(folder.path(), "ours", "*.shop.example");
    let ours = "{hostnames: ['*.shop.example'], tls: {certificateRefs: [{name: ours}]}, rules: [{name: all, respond: {status: 200, text: ours}}]}";
    let closed = passed("closed", "closed.shop.example", &to("db"), "");
    let closed = closed.replace("mode: Passthrough", "mode: Passthrough, redirect: false");
    let gateway = Gateway::start(&[
        ("backends.yaml", &db.manifest("db")),
        ("db.yaml", &passed("db", "db.shop.example", &to("db"), "")),
        ("closed.yaml", &closed),
        ("ours.yaml", &(secret + &route("ours", ours))),
    ]);
    let plain = gateway.get("db.shop.example", "/a?b");
    assert_eq!(plain.status, 308);
    assert!(plain.field("location").is_some_and(|to| to.starts_with("https://db.shop.example")), "{plain:?}");
    let plain = gateway.get("closed.shop.example", "/");
    assert_eq!((plain.status, plain.json()["reason"].as_str()), (421, Some("MisdirectedRequest")));
    // A certificate for all names below is ours: it is not shown for the one that is passed through.
    assert_eq!(gateway.get_tls(&ca, "x.shop.example", "/").expect("ours").body, "ours");
    assert!(tls(gateway.https, &ca, "db.shop.example").is_err());
    assert_eq!(ask(&gateway, &db, "db.shop.example", ""), "db");
    // And a request for it over a connection of another name is refused.
    let (mut stream, _) = tls(gateway.https, &ca, "x.shop.example").expect("ours");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: db.shop.example\r\nConnection: close\r\n\r\n").expect("sent");
    assert_eq!(crate::harness::read_answer(&mut stream).expect("an answer").status, 421);
}

#[test]
fn a_hello_may_come_in_any_pieces_but_not_for_ever() {
    let db = Server::start("db", "db.shop.example");
    let gateway = Gateway::start(&[
        ("backends.yaml", &db.manifest("db")),
        ("db.yaml", &passed("db", "db.shop.example", &to("db"), "")),
    ]);
    // Byte by byte.
    let roots = {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&db.ca).expect("PEM")).expect("an authority");
        roots
    };
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "db.shop.example".try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("written");
    let mut socket = connect(gateway.https);
    socket.set_nodelay(true).expect("a socket");
    for byte in &hello {
        socket.write_all(&[*byte]).expect("sent");
    }
    assert_eq!(say(StreamOwned::new(client, socket), b"slowly ").expect("an answer"), "slowly db");
    // What is none.
    let mut socket = connect(gateway.https);
    socket.write_all(b"GET / HTTP/1.1\r\nHost: db.shop.example\r\n\r\n").expect("sent");
    let mut told = Vec::new();
    let _ = socket.read_to_end(&mut told);
    assert_eq!(told.first(), Some(&21), "an alert, not an answer: {told:?}");
    // What never becomes whole: the largest record, which begins a message of 16 MiB, again and again.
    let mut socket = connect(gateway.https);
    let record = [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &vec![0; (1 << 14) - 4]].concat();
    let mut sent = 0;
    while sent < 8 << 20 && socket.write_all(&record).is_ok() {
        sent += record.len();
    }
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    assert!(sent < 8 << 20, "it was closed before");
    assert_eq!(db.connections.load(Ordering::Relaxed), 1, "the backend saw one client");
}

#[test]
fn who_may_not_connect_and_what_is_broken_is_closed_before_a_handshake() {
    let db = Server::start("db", "db.shop.example");
    let dead = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
    let gate = ", policy: {ipAccess: {deny: [127.0.0.1]}}";
    let login = ", policy: {authentication: {mode: Required, anyOf: []}}";
    let gateway = Gateway::start(&[
        (
            "backends.yaml",
            &(db.manifest("db")
                + &manifest("dead", dead, "")
                + &manifest("tls", db.address, ", tls: {serverName: a.example}")),
        ),
        ("open.yaml", &passed("open", "open.shop.example", &to("db"), "")),
        ("denied.yaml", &passed("denied", "denied.shop.example", &to("db"), gate)),
        ("broken.yaml", &passed("broken", "broken.shop.example", &to("db"), login)),
        ("dead.yaml", &passed("dead", "dead.shop.example", &to("dead"), "")),
        ("twice.yaml", &passed("twice", "twice.shop.example", &to("tls"), "")),
    ]);
    let counted = |route: &str, outcome: &str| {
        let series = format!(
            "portcullis_passthrough_connections_total{{namespace=\"test\",route=\"{route}\",rule=\"all\",outcome=\"{outcome}\"}} 1"
        );
        until(&series, || gateway.ask_admin("/metrics").body.contains(&series).then_some(()));
    };
    for (route, outcome) in
        [("denied", "refused"), ("broken", "unserved"), ("dead", "failed"), ("twice", "failed")]
    {
        let error =
            tls(gateway.https, &db.ca, &format!("{route}.shop.example")).map(|_| ()).expect_err(route);
        assert!(error.to_string().contains("alert"), "{route}: {error}");
        counted(route, outcome);
    }
    assert_eq!(db.connections.load(Ordering::Relaxed), 0);
    // The control. Its certificate is another name's, which only proves that the backend's own was shown.
    let error = tls(gateway.https, &db.ca, "open.shop.example").map(|_| ()).expect_err("another name");
    assert!(error.to_string().contains("not valid for name"), "{error}");
    assert_eq!(db.connections.load(Ordering::Relaxed), 1);
}

#[test]
fn weights_hold_and_what_is_dead_is_passed_over() {
    let (one, two) = (Server::start("one", "db.shop.example"), Server::start("two", "db.shop.example"));
    let dead = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
    let both = format!("{{kind: GatewayBackend, name: one, weight: 3}}, {}", to("two"));
    let hosts = format!(
        "{{address: {}, port: {}}}, {{address: {}, port: {}}}",
        dead.ip(),
        dead.port(),
        one.address.ip(),
        one.address.port()
    );
    let half = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: half, namespace: test}}\nspec: {{hosts: [{hosts}]}}\n---\n"
    );
    let gateway = Gateway::start(&[
        ("backends.yaml", &(one.manifest("one") + &two.manifest("two") + &half)),
        ("db.yaml", &passed("db", "db.shop.example", &both, "")),
        ("half.yaml", &passed("half", "half.shop.example", &to("half"), "")),
    ]);
    for _ in 0..8 {
        let mut socket = connect(gateway.https);
        // Whose certificate it is does not matter here: who is connected to is counted.
        let hello = hello("db.shop.example");
        socket.write_all(&hello).expect("sent");
        let mut first = [0; 1];
        socket.read_exact(&mut first).expect("a handshake begins");
        assert_eq!(first, [22]);
    }
    let counts = [&one, &two].map(|server| server.connections.load(Ordering::Relaxed));
    assert_eq!(counts, [6, 2]);
    for _ in 0..6 {
        let mut socket = connect(gateway.https);
        socket.write_all(&hello("half.shop.example")).expect("sent");
        let mut first = [0; 1];
        socket.read_exact(&mut first).expect("the endpoint that lives");
        assert_eq!(first, [22]);
    }
}

fn hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("written");
    bytes
}

#[test]
fn silence_ends_it_and_nothing_else_in_between_does() {
    let db = Server::start("db", "db.shop.example");
    let gateway = Gateway::start(&[
        ("backends.yaml", &db.manifest("db")),
        ("short.yaml", &passed("short", "db.shop.example", &to("db"), ", policy: {timeouts: {idle: 3s}}")),
    ]);
    let (mut stream, _) = tls(gateway.https, &db.ca, "db.shop.example").expect("its own certificate");
    // As long as something moves it stays.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(4500) {
        stream.write_all(b"x").expect("open");
        let mut back = [0; 1];
        stream.read_exact(&mut back).expect("open");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    let series = "portcullis_passthrough_connections_total{namespace=\"test\",route=\"short\",rule=\"all\",outcome=\"idle\"} 1";
    until(series, || gateway.ask_admin("/metrics").body.contains(series).then_some(()));
}

#[test]
fn a_name_is_passed_through_or_ours_and_never_both() {
    let db = Server::start("db", "db.shop.example");
    let first = passed("a-first", "db.shop.example", &to("db"), "");
    let gateway = Gateway::start(&[
        ("backends.yaml", &db.manifest("db")),
        ("first.yaml", &first),
        ("second.yaml", &responds("b-second", "db.shop.example", "second")),
        ("third.yaml", &passed("c-third", "db.shop.example", &to("db"), "")),
        ("web.yaml", &responds("d-web", "web.shop.example", "web")),
        ("late.yaml", &passed("e-late", "web.shop.example", &to("db"), "")),
    ]);
    assert_eq!(gateway.get("db.shop.example", "/").status, 308);
    assert_eq!(gateway.get("web.shop.example", "/").body, "web");
    assert_eq!(ask(&gateway, &db, "db.shop.example", ""), "db");
    assert!(tls(gateway.https, &db.ca, "web.shop.example").is_err());
    let status = gateway.status();
    let problems = status["problems"].as_array().expect("a list");
    let conflicts =
        |name: &str| problems.iter().any(|one| one["name"] == name && one["reason"] == "TlsConflict");
    let told = ["a-first", "b-second", "c-third", "d-web", "e-late"].map(conflicts);
    assert_eq!(told, [false, true, true, false, true], "{status}");
    // Connections that are open stay when the name becomes ours.
    let (mut stream, _) = tls(gateway.https, &db.ca, "db.shop.example").expect("its own certificate");
    gateway.write("first.yaml", &passed("a-first", "else.shop.example", &to("db"), ""));
    gateway.until_answer("db.shop.example", "/", 200, "second");
    stream.write_all(b"still here").expect("open");
    let mut back = [0; 10];
    stream.read_exact(&mut back).expect("open");
    assert_eq!(&back, b"still here");
}

#[test]
fn the_first_such_route_closes_nothing_and_takes_no_connection_from_before() {
    let db = Server::start("db", "db.shop.example");
    let folder = tempfile::tempdir().expect("a folder");
    let (secret, ca) = crate::harness::certificate(folder.path(), "ours", "web.shop.example");
    let ours = "{hostnames: [web.shop.example], tls: {certificateRefs: [{name: ours}]}, rules: [{name: all, respond: {status: 200, text: ours}}]}";
    let gateway = Gateway::start(&[("ours.yaml", &(secret + &route("ours", ours)))]);
    let kept = || tls(gateway.https, &ca, "web.shop.example").expect("ours").0;
    let mut kept = [kept(), kept()];
    let asks_again = |stream: &mut StreamOwned<ClientConnection, TcpStream>| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.shop.example\r\n\r\n").expect("open");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nours") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("open");
            answer.push(byte[0]);
        }
    };
    kept.iter_mut().for_each(asks_again);
    // Clients that take their time before the first message.
    let [slow, other] = [connect(gateway.https), connect(gateway.https)];
    kept.iter_mut().for_each(asks_again);
    for _ in 0..8 {
        // On both workers, behind what was accepted before.
        assert_eq!(gateway.get_tls(&ca, "web.shop.example", "/").expect("ours").body, "ours");
    }

    let first = passed("db", "db.shop.example", &to("db"), "") + &db.manifest("db");
    gateway.write("db.yaml", &first);
    until("it to be passed through", || tls(gateway.https, &db.ca, "db.shop.example").ok());
    let connections = db.connections.load(Ordering::Relaxed);
    let begin = |socket: TcpStream, ca: &std::path::Path, host: &str| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).expect("PEM")).expect("an authority");
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("known versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = host.to_owned().try_into().expect("a name");
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("a client"), socket)
    };
    let refused =
        say(begin(slow, &db.ca, "db.shop.example"), b"x").expect_err("it is ours, and not its name");
    assert!(refused.to_string().contains("alert"), "{refused}");
    assert_eq!(db.connections.load(Ordering::Relaxed), connections, "nobody else saw it");
    asks_again(&mut begin(other, &ca, "web.shop.example"));
    kept.iter_mut().for_each(asks_again);
    // The control: a new one is passed through.
    assert_eq!(ask(&gateway, &db, "db.shop.example", ""), "db");
}

#[test]
fn a_backend_is_told_whose_connection_it_is() {
    // A gateway that ends TLS, behind one that passes it through.
    let folder = tempfile::tempdir().expect("a folder");
    let (secret, ca) = crate::harness::certificate(folder.path(), "ours", "web.shop.example");
    let spec = "{hostnames: [web.shop.example], tls: {certificateRefs: [{name: ours}]}, rules: [
        {name: inside, policy: {ipAccess: {allow: [127.0.0.7]}}, respond: {status: 200, text: inside}}]}";
    let inner = Gateway::with(
        &[("web.yaml", &(secret + &route("web", spec)))],
        &["--proxy-protocol", "https", "--trusted-proxies", "127.0.0.1"],
    );
    let outer = Gateway::start(&[
        ("backends.yaml", &manifest("web", inner.https, ", proxyProtocol: V2")),
        ("web.yaml", &passed("web", "web.shop.example", &to("web"), "")),
    ]);
    assert_eq!(outer.get_tls(&ca, "web.shop.example", "/").expect("TLS").status, 403, "the control");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 7], 0)).into()).expect("loopback is a /8");
    socket.connect(&outer.https.into()).expect("it listens");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&ca).expect("PEM")).expect("an authority");
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "web.shop.example".try_into().expect("a name");
    let client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let stream = StreamOwned::new(client, TcpStream::from(socket));
    let answer = crate::harness::exchange(stream, "GET", "web.shop.example", "/", &[], "");
    assert_eq!((answer.status, answer.body.as_str()), (200, "inside"));
}

#[test]
fn a_way_that_leads_back_to_the_gateway_ends() {
    let echo = Server::start("echo", "loop.shop.example");
    let gateway = Gateway::start(&[
        ("backends.yaml", &echo.manifest("back")),
        ("loop.yaml", &passed("loop", "loop.shop.example", &to("back"), "")),
    ]);
    assert_eq!(ask(&gateway, &echo, "loop.shop.example", ""), "echo", "the control");
    gateway.write("backends.yaml", &manifest("back", gateway.https, ""));
    let series = "portcullis_passthrough_connections_total{namespace=\"test\",route=\"loop\",rule=\"all\",outcome=\"failed\"} ";
    until("the end of the first lap", || {
        // Until the change is seen, it is served.
        drop(tls(gateway.https, &echo.ca, "loop.shop.example"));
        gateway.ask_admin("/metrics").body.contains(series).then_some(())
    });
    let open = "portcullis_passthrough_connections{namespace=\"test\",route=\"loop\",rule=\"all\"} 0";
    until("nothing is left open", || gateway.ask_admin("/metrics").body.contains(open).then_some(()));
}

#[test]
fn a_guest_passes_nothing_through_of_a_name_it_does_not_own() {
    let (ours, theirs) = (tempfile::tempdir().expect("a folder"), Server::start("theirs", "db.shop.example"));
    let (secret, ca) = crate::harness::certificate(ours.path(), "ours", "*.shop.example");
    let owner = "{hostnames: ['*.shop.example'], tls: {certificateRefs: [{name: ours}]}, allowedRoutes: {namespaces: {from: All}},
        rules: [{name: all, respond: {status: 200, text: ours}}]}";
    let guest = passed("guest", "db.shop.example", &to("theirs"), "") + &theirs.manifest("theirs");
    let gateway = Gateway::start(&[
        ("owner.yaml", &(secret + &route("owner", owner))),
        ("guest.yaml", &guest.replace("namespace: test", "namespace: visitors")),
    ]);
    assert_eq!(gateway.get_tls(&ca, "x.shop.example", "/").expect("ours").body, "ours");
    let (_, serial) = tls(gateway.https, &ca, "db.shop.example").expect("the owner's certificate");
    assert!(!serial.is_empty());
    assert!(tls(gateway.https, &theirs.ca, "db.shop.example").is_err());
    let answered = gateway.get_tls(&ca, "db.shop.example", "/").expect("the owner's wildcard");
    assert_eq!(answered.body, "ours", "a guest that is refused takes nothing away");
    assert_eq!(theirs.connections.load(Ordering::Relaxed), 0);
    assert!(gateway.status().to_string().contains("TlsConflict"));
}

#[tokio::test]
async fn it_lasts_while_the_gateway_drains_and_ends_when_it_closes() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let backend = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gateway = proxy_rig::Gateway::start();
    let served = proxy_rig::host("db.test", None, proxy_rig::forward("db"));
    let mut host = Host::new(served.hostname.clone(), None, MatchTable::new(vec![]));
    host.passage = served.rules().next().cloned();
    let address = backend.local_addr().expect("bound");
    let (map, endpoints) = proxy_rig::route_map(vec![Arc::new(host)], &[("db", address)]);
    gateway.plane.install(map, endpoints);
    let hello = hello("db.test");
    let mut client = tokio::net::TcpStream::connect(gateway.https()).await.expect("connects");
    client.write_all(&hello).await.expect("sent");
    let (mut passed, _) = backend.accept().await.expect("a connection");
    let mut read = vec![0; hello.len()];
    passed.read_exact(&mut read).await.expect("the first message");
    assert_eq!(read, hello);
    for phase in [Phase::Leaving, Phase::Draining] {
        gateway.drain.advance(phase);
        let (mut there, mut back) = ([0; 4], [0; 4]);
        client.write_all(b"more").await.expect("open");
        passed.read_exact(&mut there).await.expect("open");
        passed.write_all(&there).await.expect("open");
        client.read_exact(&mut back).await.expect("open");
        assert_eq!(&back, b"more", "while it is {phase:?}");
    }
    gateway.drain.advance(Phase::Closing);
    for side in [&mut client, &mut passed] {
        let end = tokio::time::timeout(PATIENCE, side.read(&mut [0; 1])).await.expect("an end in time");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    gateway.ended().await;
}
