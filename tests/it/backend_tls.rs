//! TLS to backends in the whole program: what is proven before anything is sent, and what becomes of a backend that
//! cannot prove it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use crate::harness::{Answer, Gateway, PATIENCE, connect, program, responds, route, until};

pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct Leaf {
    chain: String,
    key: KeyPair,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn certify(&self, names: &[&str]) -> Arc<Leaf> {
        self.certify_with(names, |_| {})
    }

    fn certify_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Arc<Leaf> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let chain = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Arc::new(Leaf { chain, key })
    }

    pub fn config_map(&self, name: &str) -> String {
        config_map(name, &self.pem)
    }
}

fn config_map(name: &str, pem: &str) -> String {
    let data = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "test"}, "data": {"ca.crt": pem}});
    format!("{data}\n---\n")
}

impl Leaf {
    pub fn certified(&self) -> Arc<CertifiedKey> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key");
        let made = CertifiedKey::from_der(chain.expect("PEM"), key, &aws_lc_rs::default_provider());
        Arc::new(made.expect("they belong together"))
    }

    pub fn secret(&self, name: &str) -> String {
        let data = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": name, "namespace": "test"},
            "stringData": {"tls.crt": self.chain, "tls.key": self.key.serialize_pem()}});
        format!("{data}\n---\n")
    }
}

/// Shows what the test says now, under the name that the test gave it.
#[derive(Debug)]
struct Shown(Mutex<(&'static str, Arc<CertifiedKey>)>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().expect("not poisoned").1.clone())
    }
}

/// A backend that answers over TLS with the name of the certificate that it showed and the server name it was asked for.
struct Server {
    address: SocketAddr,
    shown: Arc<Shown>,
    /// Requests that it read.
    asked: Arc<AtomicUsize>,
    /// Handshakes that it made whole, and those of them that resumed a session.
    handshakes: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
}

impl Server {
    fn start(leaf: &Leaf) -> Self {
        Self::with(leaf, &[&TLS13, &TLS12], None)
    }

    fn with(
        leaf: &Leaf,
        versions: &[&'static rustls::SupportedProtocolVersion],
        clients: Option<&Authority>,
    ) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let shown = Arc::new(Shown(Mutex::new(("one", leaf.certified()))));
        let config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .expect("versions");
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(authority) => {
                let roots = Arc::new(roots(&authority.pem));
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                config.with_client_cert_verifier(verifier.expect("a verifier"))
            }
        };
        let config = Arc::new(config.with_cert_resolver(shown.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Self {
            address,
            shown,
            asked: Arc::default(),
            handshakes: Arc::default(),
            resumed: Arc::default(),
        };
        let (shown, asked) = (server.shown.clone(), server.asked.clone());
        let (handshakes, resumed) = (server.handshakes.clone(), server.resumed.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let config = config.clone();
                let (shown, asked) = (shown.clone(), asked.clone());
                let (handshakes, resumed) = (handshakes.clone(), resumed.clone());
                std::thread::spawn(move || {
                    serve(stream, config, &shown, &asked, &handshakes, &resumed);
                });
            }
        });
        server
    }

    fn show(&self, name: &'static str, leaf: &Leaf) {
        *self.shown.0.lock().expect("not poisoned") = (name, leaf.certified());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// A route to it under `<name>.example` by a backend with these settings of `tls`.
    fn routed(&self, name: &str, tls: &str) -> String {
        routed(name, self.address, "127.0.0.1", tls)
    }
}

fn routed(name: &str, address: SocketAddr, host: &str, tls: &str) -> String {
    let spec = format!(
        "{{hostnames: [{name}.example], policy: {{timeouts: {{connect: 1s}}}}, rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: {name}}}]}}]}}"
    );
    route(name, &spec)
        + &format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: {host}, port: {}}}], tls: {tls}}}\n---\n",
            address.port()
        )
}

fn roots(pem: &str) -> RootCertStore {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("an authority");
    roots
}

fn serve(
    mut socket: TcpStream,
    config: Arc<rustls::ServerConfig>,
    shown: &Shown,
    asked: &AtomicUsize,
    handshakes: &AtomicUsize,
    resumed: &AtomicUsize,
) {
    let mut connection = rustls::ServerConnection::new(config).expect("a configuration");
    // What it shows now is what this connection is made under.
    let under = shown.0.lock().expect("not poisoned").0;
    while connection.is_handshaking() {
        if connection.complete_io(&mut socket).is_err() {
            return;
        }
    }
    handshakes.fetch_add(1, Ordering::SeqCst);
    if connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
        resumed.fetch_add(1, Ordering::SeqCst);
    }
    let name = connection.server_name().unwrap_or("nobody").to_owned();
    let mut stream = rustls::StreamOwned::new(connection, socket);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        asked.fetch_add(1, Ordering::SeqCst);
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let answer = if text.contains("\r\nupgrade: websocket") {
            "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned()
        } else {
            let host = text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
            let body = format!("{under} as {name} for {host}");
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        if stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()).is_err() {
            return;
        }
        if answer.starts_with("HTTP/1.1 101") {
            while stream.read(&mut byte).is_ok_and(|read| read == 1) {
                if stream.write_all(&byte).and_then(|()| stream.flush()).is_err() {
                    return;
                }
            }
            return;
        }
        head.clear();
    }
}

fn is_refused(gateway: &Gateway, host: &str, reason: &str, backend: &str) {
    let answer = gateway.get(host, "/");
    assert_eq!((answer.status, &answer.json()["reason"]), (502, &"TlsFailure".into()), "{host} {answer:?}");
    for word in ["certificate", "issuer", "127.0.0.1", "expired", "alert"] {
        assert!(!answer.body.contains(word), "nothing of the inside: {}", answer.body);
    }
    let series = format!(
        "portcullis_upstream_tls_failures_total{{backend=\"GatewayBackend/test/{backend}\",reason=\"{reason}\"}}"
    );
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(metrics.contains(&series), "{series} in {metrics}");
    let told = format!("\"reason\":\"{reason}\"");
    until("the log to name the cause", || {
        let log = gateway.process.log();
        let mut lines = log.lines().filter(|line| line.contains("no TLS connection"));
        lines
            .any(|line| line.contains(&format!("GatewayBackend/test/{backend}\"")) && line.contains(&told))
            .then_some(())
    });
}

#[test]
fn what_a_backend_must_prove_is_proven_before_it_is_asked() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let good = ours.certify(&["db.example", "127.0.0.1", "localhost"]);
    let past = ours.certify_with(&["db.example"], |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let early = ours.certify_with(&["db.example"], |params| {
        params.not_before = rcgen::date_time_ymd(3001, 1, 1);
        params.not_after = rcgen::date_time_ymd(3002, 1, 1);
    });
    let identity = ours.certify_with(&["else.example"], |params| {
        let uri = "spiffe://cluster.local/ns/shop/sa/db".to_owned().try_into().expect("ASCII");
        params.subject_alt_names.push(SanType::URI(uri));
    });
    let (valid, expired, future) = (Server::start(&good), Server::start(&past), Server::start(&early));
    let old = Server::with(&good, &[&TLS12], None);
    let spiffe = Server::start(&identity);
    let foreign = Server::start(&theirs.certify(&["db.example"]));
    let trust = "serverName: db.example, caCertificateRefs: [{kind: ConfigMap, name: ca}]";
    let pin = |names: &str| format!("{{{trust}, subjectAltNames: [{names}]}}");
    let manifests = [
        ours.config_map("ca"),
        valid.routed("valid", &format!("{{{trust}}}")),
        old.routed("old", &format!("{{{trust}}}")),
        valid.routed("address", "{caCertificateRefs: [{kind: ConfigMap, name: ca}]}"),
        routed("named", valid.address, "localhost", "{caCertificateRefs: [{kind: ConfigMap, name: ca}]}"),
        expired.routed("expired", &format!("{{{trust}}}")),
        future.routed("future", &format!("{{{trust}}}")),
        foreign.routed("foreign", &format!("{{{trust}}}")),
        valid.routed("misnamed", "{serverName: other.example, caCertificateRefs: [{name: ca}]}"),
        spiffe.routed("unpinned", &format!("{{{trust}}}")),
        spiffe.routed("pinned", &pin("{uri: 'spiffe://cluster.local/ns/shop/sa/db'}")),
        spiffe.routed("either", &pin("{hostname: no.example}, {hostname: else.example}")),
        spiffe.routed("mismatched", &pin("{uri: 'spiffe://cluster.local/ns/shop/sa/other'}")),
        // The server name is not what is looked for once there are pins.
        valid.routed("repinned", &pin("{hostname: no.example}")),
        // Pins do not replace the authority.
        foreign.routed("stranger", &pin("{hostname: db.example}")),
        valid.routed("system", "{serverName: db.example}"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    for (host, told) in [
        ("valid.example", "one as db.example for valid.example"),
        ("old.example", "one as db.example for old.example"),
        ("address.example", "one as nobody for address.example"),
        ("pinned.example", "one as db.example for pinned.example"),
        ("either.example", "one as db.example for either.example"),
    ] {
        let answer = gateway.get(host, "/");
        assert_eq!((answer.status, answer.body.as_str()), (200, told), "{host}");
    }
    // A name is looked up first.
    let own = format!("one as localhost for localhost:{}", valid.address.port());
    gateway.until_answer("named.example", "/", 200, &own);
    let asked: usize = [&expired, &future, &foreign].iter().map(|server| server.asked()).sum();
    assert_eq!(asked, 0);
    let before = (valid.asked(), spiffe.asked());
    for (host, reason) in [
        ("expired", "expired"),
        ("future", "not_yet_valid"),
        ("foreign", "unknown_issuer"),
        ("misnamed", "name_mismatch"),
        ("unpinned", "name_mismatch"),
        ("mismatched", "name_mismatch"),
        ("repinned", "name_mismatch"),
        ("stranger", "unknown_issuer"),
        ("system", "unknown_issuer"),
    ] {
        is_refused(&gateway, &format!("{host}.example"), reason, host);
    }
    assert_eq!((valid.asked(), spiffe.asked()), before, "nothing was sent to those that proved nothing");
    assert_eq!(expired.asked() + future.asked() + foreign.asked(), 0);
}

#[test]
fn a_client_certificate_is_shown_to_who_demands_it() {
    let (servers, clients, others) =
        (Authority::new("servers"), Authority::new("clients"), Authority::new("others"));
    let server = servers.certify(&["db.example"]);
    let for_clients = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let (right, wrong) =
        (clients.certify_with(&["gateway"], for_clients), others.certify_with(&["gateway"], for_clients));
    let demanding = Server::with(&server, &[&TLS13], Some(&clients));
    let older = Server::with(&server, &[&TLS12], Some(&clients));
    let tls = |secret: &str| {
        let trust = "serverName: db.example, caCertificateRefs: [{kind: Secret, name: ca}]";
        if secret.is_empty() {
            return format!("{{{trust}}}");
        }
        format!("{{{trust}, clientCertificateRef: {{name: {secret}}}}}")
    };
    let ca = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca", "namespace": "test"},
        "stringData": {"ca.crt": servers.pem}});
    let manifests = [
        format!("{ca}\n---\n"),
        right.secret("right"),
        wrong.secret("wrong"),
        demanding.routed("right", &tls("right")),
        demanding.routed("wrong", &tls("wrong")),
        demanding.routed("none", &tls("")),
        older.routed("older", &tls("right")),
        older.routed("older-none", &tls("")),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    for host in ["right.example", "older.example"] {
        assert_eq!(gateway.get(host, "/").status, 200, "{host}");
    }
    let asked = (demanding.asked(), older.asked());
    // In TLS 1.3 the server says so only after the handshake.
    is_refused(&gateway, "none.example", "client_certificate", "none");
    is_refused(&gateway, "wrong.example", "client_certificate", "wrong");
    let answer = gateway.get("older-none.example", "/");
    assert_eq!((answer.status, &answer.json()["reason"]), (502, &"TlsFailure".into()));
    assert_eq!((demanding.asked(), older.asked()), asked);
    let metrics = gateway.ask_admin("/metrics").body;
    let ends = "portcullis_certificate_not_after_seconds{namespace=\"test\",secret=\"right\"}";
    assert!(metrics.contains(ends), "{metrics}");
}

#[test]
fn a_backend_that_is_no_tls_server_or_says_nothing_costs_a_bounded_time() {
    let ours = Authority::new("ours");
    let plain = crate::harness::Backend::start("plain");
    // It accepts and keeps silent.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    let tls = "{serverName: db.example, caCertificateRefs: [{name: ca}]}";
    let manifests = [
        ours.config_map("ca"),
        routed("plain", plain.address, "127.0.0.1", tls),
        routed("silent", address, "127.0.0.1", tls),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    is_refused(&gateway, "plain.example", "not_tls", "plain");
    let began = Instant::now();
    let answer = gateway.get("silent.example", "/");
    assert_eq!((answer.status, &answer.json()["reason"]), (504, &"ConnectTimeout".into()));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900) && took < PATIENCE, "the connect deadline is 1 s: {took:?}");
}

#[test]
fn what_is_missing_or_broken_is_never_asked_in_another_way() {
    let ours = Authority::new("ours");
    let leaf = ours.certify(&["db.example", "127.0.0.1"]);
    let server = Server::start(&leaf);
    let plain = crate::harness::Backend::start("plain");
    let to = |name: &str, tls: &str| {
        // On the port of a plain backend: whoever forgot TLS would be answered.
        routed(name, plain.address, "127.0.0.1", tls)
    };
    let secret = leaf.secret("half").replace("BEGIN PRIVATE KEY", "BEGIN NOTHING");
    let manifests = [
        ours.config_map("ca"),
        config_map("broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        config_map("empty", "nothing"),
        secret,
        to("no-map", "{serverName: db.example, caCertificateRefs: [{name: absent}]}"),
        to("no-secret", "{serverName: db.example, caCertificateRefs: [{kind: Secret, name: absent}]}"),
        to("one-of-two", "{serverName: db.example, caCertificateRefs: [{name: ca}, {name: absent}]}"),
        to("broken", "{serverName: db.example, caCertificateRefs: [{name: broken}]}"),
        to("empty", "{serverName: db.example, caCertificateRefs: [{name: empty}]}"),
        to("elsewhere", "{serverName: db.example, caCertificateRefs: [{name: ca, namespace: other}]}"),
        to("no-client", "{serverName: db.example, clientCertificateRef: {name: absent}}"),
        to("half", "{serverName: db.example, clientCertificateRef: {name: half}}"),
        to("skip", "{serverName: db.example, insecureSkipVerify: true}"),
        to("typo", "{serverName: db.example, subjectAltName: [{hostname: x.example}]}"),
        to("no-refs", "{serverName: db.example, caCertificateRefs: []}"),
        server.routed("good", "{serverName: db.example, caCertificateRefs: [{name: ca}]}"),
        responds("other", "other.example", "fine"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    assert_eq!(gateway.get("good.example", "/").status, 200);
    assert_eq!(gateway.get("other.example", "/").status, 200);
    let status = gateway.status();
    let problems = status["problems"].as_array().expect("a list");
    for (name, reason, path) in [
        ("no-map", "ConfigMapNotFound", "spec.tls.caCertificateRefs[0]"),
        ("no-secret", "SecretNotFound", "spec.tls.caCertificateRefs[0]"),
        ("one-of-two", "ConfigMapNotFound", "spec.tls.caCertificateRefs[1]"),
        ("broken", "InvalidCertificate", "spec.tls.caCertificateRefs[0]"),
        ("empty", "InvalidCertificate", "spec.tls.caCertificateRefs[0]"),
        ("elsewhere", "RefNotPermitted", "spec.tls.caCertificateRefs[0]"),
        ("no-client", "SecretNotFound", "spec.tls.clientCertificateRef"),
        ("half", "InvalidCertificate", "spec.tls.clientCertificateRef"),
        ("skip", "UnknownField", "spec.tls.insecureSkipVerify"),
        ("typo", "UnknownField", "spec.tls.subjectAltName"),
        ("no-refs", "Invalid", "spec.tls.caCertificateRefs"),
    ] {
        let answer = gateway.get(&format!("{name}.example"), "/");
        assert_eq!((answer.status, &answer.json()["reason"]), (503, &"PolicyInvalid".into()), "{name}");
        let told = problems.iter().any(|problem| {
            problem["kind"] == "GatewayBackend"
                && problem["name"] == name
                && problem["reason"] == reason
                && problem["path"] == path
                && problem["severity"] == "Error"
        });
        assert!(told, "{name} {reason} in {status:#}");
    }
    assert!(!status.to_string().contains("PRIVATE"), "{status:#}");
    // What was missing comes: it is served.
    gateway.write("more.yaml", &ours.config_map("absent"));
    let answer = gateway.until_answer("no-map.example", "/", 502, "TlsFailure");
    assert_eq!(answer.status, 502, "the plain port is spoken to by TLS now");
}

#[test]
fn authorities_change_while_requests_run_and_nothing_goes_over_the_old_trust() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let first = old.certify(&["db.example"]);
    let server = Server::start(&first);
    let both = format!("{}{}", old.pem, new.pem);
    let route = server.routed("db", "{serverName: db.example, caCertificateRefs: [{name: ca}]}");
    let gateway = Gateway::start(&[("ca.yaml", &old.config_map("ca")), ("route.yaml", &route)]);
    assert_eq!(gateway.get("db.example", "/").body, "one as db.example for db.example");
    let (http, over) = (gateway.http, Arc::new(AtomicBool::new(false)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let over = over.clone();
            std::thread::spawn(move || keep_asking(http, &over))
        })
        .collect();
    let installs = |gateway: &Gateway| gateway.status()["routeMap"]["sequence"].as_u64().expect("a count");
    let change = |text: &str| {
        let before = installs(&gateway);
        gateway.write("ca.yaml", text);
        until("the change to be served", || (installs(&gateway) > before).then_some(()));
        Instant::now()
    };
    let enough = |answers: usize| {
        let wanted = server.asked() + answers;
        until("requests to be answered", || (server.asked() >= wanted).then_some(()));
    };
    enough(100);
    change(&config_map("ca", &both));
    enough(100);
    server.show("two", &new.certify(&["db.example"]));
    enough(100);
    let changed = change(&config_map("ca", &new.pem));
    enough(100);
    over.store(true, Ordering::SeqCst);
    let mut after = 0;
    for (began, answer) in load.into_iter().flat_map(|thread| thread.join().expect("no panic")) {
        assert_eq!(answer.status, 200, "lost: {answer:?}");
        if began > changed {
            after += 1;
            assert_eq!(answer.body, "two as db.example for db.example", "over a connection of the old trust");
        }
    }
    assert!(after >= 20, "{after} requests after the change");
}

fn keep_asking(gateway: SocketAddr, over: &AtomicBool) -> Vec<(Instant, Answer)> {
    let mut seen = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let began = Instant::now();
        seen.push((began, crate::harness::exchange(connect(gateway), "GET", "db.example", "/", &[], "")));
    }
    seen
}

#[test]
fn sessions_are_resumed_and_never_under_another_plan() {
    let ours = Authority::new("ours");
    let server = Server::start(&ours.certify(&["db.example"]));
    let tls = "{serverName: db.example, caCertificateRefs: [{name: ca}]}";
    let gateway =
        Gateway::start(&[("ca.yaml", &ours.config_map("ca")), ("route.yaml", &server.routed("db", tls))]);
    // A WebSocket takes its connection with it, so that each needs a new one.
    let upgrade = || {
        let mut stream = connect(gateway.http);
        stream
            .write_all(
                b"GET / HTTP/1.1\r\nHost: db.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            )
            .expect("sent");
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        for sign in b"through the tunnel" {
            stream.write_all(&[*sign]).expect("sent");
            stream.read_exact(&mut byte).expect("sent back");
            assert_eq!(byte[0], *sign);
        }
    };
    let counts = || (server.handshakes.load(Ordering::SeqCst), server.resumed.load(Ordering::SeqCst));
    for _ in 0..4 {
        upgrade();
    }
    let (handshakes, resumed) = counts();
    assert_eq!(handshakes, 4, "a connection each");
    assert!(resumed >= 2, "{resumed} of {handshakes} were resumed");
    let other = Authority::new("other");
    let before = gateway.status()["routeMap"]["sequence"].as_u64();
    gateway.write("ca.yaml", &config_map("ca", &format!("{}{}", ours.pem, other.pem)));
    until("the change to be served", || {
        (gateway.status()["routeMap"]["sequence"].as_u64() > before).then_some(())
    });
    upgrade();
    assert_eq!(counts(), (handshakes + 1, resumed), "the session of another plan is not resumed");
}

#[test]
fn the_authorities_of_the_system_are_those_that_the_environment_names() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let good = Server::start(&ours.certify(&["db.example", "localhost"]));
    let foreign = Server::start(&theirs.certify(&["db.example"]));
    let folder = tempfile::tempdir().expect("a folder");
    let bundle = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(bundle.path(), &ours.pem).expect("written");
    let jwt = format!(
        "{{anyOf: [{{name: users, jwt: {{issuer: 'https://login.example', audiences: [a], jwks: {{uri: 'https://localhost:{}/keys'}}}}}}]}}",
        good.address.port()
    );
    let protected = route(
        "users",
        &format!(
            "{{hostnames: [users.example], policy: {{authentication: {jwt}}}, rules: [{{name: all, respond: {{status: 200}}}}]}}"
        ),
    );
    let tls = "{serverName: db.example}";
    let manifests = good.routed("good", tls) + &foreign.routed("foreign", tls) + &protected;
    std::fs::write(folder.path().join("all.yaml"), manifests).expect("written");
    let mut command = program();
    command.env("SSL_CERT_FILE", bundle.path());
    let gateway = Gateway::launched(command, folder, &[]);
    assert_eq!(gateway.get("good.example", "/").status, 200);
    is_refused(&gateway, "foreign.example", "unknown_issuer", "foreign");
    // What is fetched trusts the same: the answer is no set of keys, but it came.
    until("the keys to be fetched", || gateway.process.log().contains("localhost").then_some(()));
    let log = gateway.process.log();
    let told = log.lines().find(|line| line.contains("cannot be fetched")).unwrap_or_default();
    assert!(!told.contains("TLS") && told.contains("keys"), "{told}");
}
