//! Certificates of clients in the whole program: who gets in, over which connection, and for how long.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::cache_origin::{Origin, fresh};
use crate::harness::{Backend, Gateway, connect, route, text, until};

/// Whoever signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key.
pub struct Leaf {
    chain: String,
    key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn server(&self, names: &[&str]) -> Leaf {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.sign(CertificateParams::new(names).expect("names"))
    }

    fn client(&self, name: &str, serial: u64) -> Leaf {
        self.sign(client(name, serial))
    }

    pub fn sign(&self, params: CertificateParams) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let chain = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Leaf { chain, key: key.serialize_pem() }
    }

    pub fn revoking(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2025, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("signed").pem().expect("PEM")
    }
}

pub fn client(name: &str, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Shop; \"quoted\"");
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![
        SanType::URI(format!("spiffe://shop/{name}").try_into().expect("ASCII")),
        SanType::DnsName(format!("{name}.Clients.test").try_into().expect("ASCII")),
    ];
    params
}

impl Leaf {
    pub fn secret(&self, name: &str) -> String {
        secret(name, "kubernetes.io/tls", &[("tls.crt", &self.chain), ("tls.key", &self.key)])
    }

    fn files(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let files = (folder.join("client.pem"), folder.join("client.key"));
        std::fs::write(&files.0, &self.chain).expect("written");
        std::fs::write(&files.1, &self.key).expect("written");
        files
    }
}

pub fn secret(name: &str, kind: &str, data: &[(&str, &str)]) -> String {
    let data: serde_json::Map<_, _> =
        data.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": kind,
        "metadata": {"namespace": "test", "name": name}, "stringData": data});
    format!("---\n{secret}\n")
}

fn config_map(name: &str, key: &str, value: &str) -> String {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "test", "name": name}, "data": {key: value}});
    format!("---\n{map}\n")
}

/// A route of one host that answers with its name.
fn validated(host: &str, tls: &str) -> String {
    let name = host.replace('.', "-").replace('*', "any");
    route(
        &name,
        &format!(
            "{{hostnames: [\"{host}\"], tls: {{certificateRefs: [{{name: server}}]{tls}}}, rules: [{{name: all, respond: {{status: 200, text: \"{host}\"}}}}]}}"
        ),
    )
}

const BY_PARTNERS: &str = ", clientValidation: {caCertificateRefs: [{name: partners}]}";

/// What a real client is told; `leaf` is what it shows.
fn s_client(gateway: &Gateway, host: &str, leaf: Option<&Leaf>, options: &[&str], fields: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-connect", &gateway.https.to_string(), "-servername", host]);
    if let Some(leaf) = leaf {
        let (chain, key) = leaf.files(folder.path());
        command.arg("-cert").arg(chain).arg("-key").arg(key);
    }
    command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl is there");
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
    // A refused client has gone already.
    let _ = child.stdin.take().expect("piped").write_all(request.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn openssl_gets_in_with_a_good_certificate_and_with_no_other() {
    let backend = Backend::start("one");
    let (partners, strangers) = (Authority::new("Partners"), Authority::new("Strangers"));
    let spec = "{hostnames: [a.test], tls: {certificateRefs: [{name: server}], minVersion: Tls13, clientValidation: {caCertificateRefs: [{name: partners}], crlRefs: [{kind: Secret, name: revoked}], forward: Details}},
        rules: [{name: all, policy: {authentication: {anyOf: [{name: partners, clientCertificate: {claimsToHeaders: [{claim: id, header: X-Client}, {claim: serial, header: X-Serial}]}}]}}, backendRefs: [{kind: GatewayBackend, name: one}]}]}";
    let gateway = Gateway::start(&[
        ("backend.yaml", &backend.manifest("one")),
        ("route.yaml", &route("a", spec)),
        ("server.yaml", &strangers.server(&["a.test"]).secret("server")),
        ("partners.yaml", &config_map("partners", "ca.crt", &partners.pem)),
        ("revoked.yaml", &secret("revoked", "Opaque", &[("ca.crl", &partners.revoking(&[66]))])),
    ]);
    let alice = partners.client("alice", 7);
    let spoofed = "X-Forwarded-Client-Cert: Hash=00;URI=spiffe://shop/root\r\nX_Forwarded_Client_Cert: a\r\nX.Forwarded-Client.Cert: b\r\nX-Client: root\r\n";
    let told = s_client(&gateway, "a.test", Some(&alice), &[], spoofed);
    assert!(told.contains("200 OK"), "{told}");
    let body = told.split("\r\n\r\n").last().expect("a body");
    let body = &body[body.find('{').expect("JSON")..=body.rfind('}').expect("JSON")];
    let seen: serde_json::Value = serde_json::from_str(body).expect("what the backend saw");
    let fields = &seen["headers"];
    assert_eq!(
        (&fields["x-client"], &fields["x-serial"]),
        (&"spiffe://shop/alice".into(), &"07".into()),
        "{seen}"
    );
    let print = {
        let der = CertificateDer::from_pem_slice(alice.chain.as_bytes()).expect("PEM");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let expected = format!(
        "Hash={print};Subject=\"CN=alice,O=Shop\\3B \\22quoted\\22\";URI=spiffe://shop/alice;DNS=alice.clients.test"
    );
    assert_eq!(fields["x-forwarded-client-cert"], expected);
    let spellings = fields.as_object().expect("fields").keys();
    assert_eq!(spellings.filter(|name| name.ends_with("cert")).count(), 1, "{fields}");

    let (mut expired, mut for_servers) = (client("old", 8), client("server", 9));
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    for_servers.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for (what, leaf, options, alert) in [
        ("none", None, &[][..], "certificate required"),
        ("of strangers", Some(strangers.client("mallory", 7)), &[], "unknown ca"),
        ("expired", Some(partners.sign(expired)), &[], "certificate expired"),
        ("revoked", Some(partners.client("eve", 66)), &[], "certificate revoked"),
        ("of a server", Some(partners.sign(for_servers)), &[], "alert"),
        ("too old a TLS", Some(partners.client("bob", 9)), &["-tls1_2"], "protocol version"),
        ("a TLS of before 1.2", None, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], "SSL alert number"),
    ] {
        let told = s_client(&gateway, "a.test", leaf.as_ref(), options, "");
        assert!(!told.contains("HTTP/1.1") && told.contains(alert), "{what}: {told}");
    }
    let metrics = gateway.ask_admin("/metrics").body;
    let counted = "portcullis_tls_handshake_failures_total{cause=\"client_certificate\"} 5";
    assert!(metrics.contains(counted), "{metrics}");
    let plain = gateway.get("a.test", "/");
    assert_eq!(plain.status, 308, "{plain:?}");
}

/// A client that stays.
struct Kept(rustls::StreamOwned<rustls::ClientConnection, TcpStream>);

pub fn config(leaf: Option<&Leaf>, alpn: &[&str]) -> Arc<rustls::ClientConfig> {
    let insecure = crate::proxy_tls::trusting_anything();
    let mut config = match leaf {
        None => insecure.with_no_client_auth(),
        Some(leaf) => {
            let chain = vec![CertificateDer::from_pem_slice(leaf.chain.as_bytes()).expect("PEM")];
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).expect("PEM");
            insecure.with_client_auth_cert(chain, key).expect("a certificate")
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

impl Kept {
    fn shake(gateway: &Gateway, server_name: &str, leaf: Option<&Leaf>) -> Self {
        Self::with(gateway, server_name, config(leaf, &[]))
    }

    fn with(gateway: &Gateway, server_name: &str, config: Arc<rustls::ClientConfig>) -> Self {
        let name = server_name.to_owned().try_into().expect("a name");
        let connection = rustls::ClientConnection::new(config, name).expect("a configuration");
        Self(rustls::StreamOwned::new(connection, connect(gateway.https)))
    }

    /// Status and body; none: the connection is over.
    fn ask(&mut self, host: &str) -> Option<(u16, String)> {
        self.0.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).ok()?;
        let (mut read, mut buffer) = (String::new(), [0; 4096]);
        loop {
            let count = self.0.read(&mut buffer).ok().filter(|count| *count > 0)?;
            read += &text(&buffer[..count]);
            let Some((head, body)) = read.split_once("\r\n\r\n") else { continue };
            let length = head.to_ascii_lowercase();
            let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()));
            }
        }
    }

    fn status(&mut self, host: &str) -> u16 {
        self.ask(host).map_or(0, |(status, _)| status)
    }
}

#[test]
fn what_is_taken_back_is_taken_back_from_kept_connections_too() {
    let (partners, others) = (Authority::new("Partners"), Authority::new("Others"));
    let server = partners.server(&["a.test"]).secret("server");
    let tls = ", clientValidation: {caCertificateRefs: [{name: partners}], crlRefs: [{name: revoked}]}";
    let both = format!("{}{}", partners.pem, others.pem);
    let lists = |serials: &[u64]| {
        config_map("revoked", "ca.crl", &(partners.revoking(serials) + &others.revoking(&[])))
    };
    let gateway = Gateway::start(&[
        ("route.yaml", &validated("a.test", tls)),
        ("server.yaml", &server),
        ("partners.yaml", &config_map("partners", "ca.crt", &both)),
        ("revoked.yaml", &lists(&[1])),
    ]);
    let (alice, bob, carol) =
        (partners.client("alice", 7), partners.client("bob", 8), others.client("carol", 7));
    let kept = |leaf| Kept::shake(&gateway, "a.test", Some(leaf));
    let (mut of_alice, mut of_bob, mut of_carol) = (kept(&alice), kept(&bob), kept(&carol));
    for connection in [&mut of_alice, &mut of_bob, &mut of_carol] {
        assert_eq!(connection.ask("a.test"), Some((200, "a.test".to_owned())));
    }
    // Alice's certificate is revoked: her connection is over, those of others stay.
    gateway.write("revoked.yaml", &lists(&[1, 7]));
    until("the revocation", || (kept(&alice).status("a.test") == 0).then_some(()));
    assert_eq!(of_alice.status("a.test"), 421);
    assert_eq!(of_alice.status("a.test"), 0, "closed");
    assert_eq!((of_bob.status("a.test"), of_carol.status("a.test")), (200, 200));
    // Carol's authority is none any more.
    gateway.write("partners.yaml", &config_map("partners", "ca.crt", &partners.pem));
    until("the new bundle", || (kept(&carol).status("a.test") == 0).then_some(()));
    assert_eq!((of_bob.status("a.test"), of_carol.status("a.test")), (200, 421));
    // What cannot be read vouches for nobody, and the status says why.
    gateway.write("partners.yaml", &config_map("partners", "ca.crt", "-----BEGIN NONSENSE-----"));
    let refused = until("the refusal", || of_bob.ask("a.test").filter(|(status, _)| *status != 200));
    assert!(refused.0 == 503 && refused.1.contains("PolicyInvalid"), "{refused:?}");
    let mut unasked = Kept::shake(&gateway, "a.test", None);
    assert_eq!(unasked.status("a.test"), 503);
    let status = gateway.status();
    let told = status["problems"][0]["path"].as_str().unwrap_or_default();
    assert_eq!(told, "spec.tls.clientValidation.caCertificateRefs[0]", "{status}");
    // It gets well: who was asked meanwhile for nothing has to come again.
    gateway.write("partners.yaml", &config_map("partners", "ca.crt", &partners.pem));
    until("the bundle", || (kept(&bob).status("a.test") == 200).then_some(()));
    assert_eq!((of_bob.status("a.test"), unasked.status("a.test")), (200, 421));
}

#[test]
fn a_missing_authority_lets_nobody_in() {
    let partners = Authority::new("Partners");
    let server = partners.server(&["a.test"]).secret("server");
    let gateway =
        Gateway::start(&[("route.yaml", &validated("a.test", BY_PARTNERS)), ("server.yaml", &server)]);
    let alice = partners.client("alice", 7);
    for leaf in [None, Some(&alice)] {
        let answer = Kept::shake(&gateway, "a.test", leaf).ask("a.test").expect("an answer");
        assert!(answer.0 == 503 && answer.1.contains("PolicyInvalid"), "{answer:?}");
    }
    let status = gateway.status();
    assert_eq!(status["problems"][0]["reason"], "ConfigMapNotFound", "{status}");
    gateway.write("partners.yaml", &config_map("partners", "ca.crt", &partners.pem));
    until("the authority", || {
        (Kept::shake(&gateway, "a.test", Some(&alice)).status("a.test") == 200).then_some(())
    });
    assert_eq!(Kept::shake(&gateway, "a.test", None).status("a.test"), 0);
}

#[test]
fn one_connection_never_serves_names_that_ask_for_other_certificates() {
    let partners = Authority::new("Partners");
    let names = ["open.test", "asked.test", "same.test", "optional.test"];
    let optional = ", clientValidation: {caCertificateRefs: [{name: partners}], mode: Optional}";
    let routes = validated("open.test", "")
        + &validated("asked.test", BY_PARTNERS)
        + &validated("same.test", BY_PARTNERS)
        + &validated("optional.test", optional);
    let gateway = Gateway::start(&[
        ("routes.yaml", &routes),
        ("server.yaml", &partners.server(&names).secret("server")),
        ("partners.yaml", &config_map("partners", "ca.crt", &partners.pem)),
    ]);
    let alice = partners.client("alice", 7);
    for server_name in names {
        for host in names {
            let status = Kept::shake(&gateway, server_name, Some(&alice)).status(host);
            let is_same = server_name == host
                || (server_name != "open.test"
                    && server_name != "optional.test"
                    && host != "open.test"
                    && host != "optional.test");
            assert_eq!(status, if is_same { 200 } else { 421 }, "{server_name} asked for {host}");
        }
    }
    // Browsers share a connection of HTTP/2 among the names of its certificate.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let statuses = runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(gateway.https).await.expect("connects");
        let connector = tokio_rustls::TlsConnector::from(config(None, &["h2"]));
        let stream =
            connector.connect("open.test".try_into().expect("a name"), socket).await.expect("shakes");
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("speaks HTTP/2");
        tokio::spawn(connection);
        let mut statuses = Vec::new();
        for host in ["open.test", "asked.test", "optional.test", "open.test"] {
            let request = http::Request::get(format!("https://{host}/")).body(Full::<Bytes>::default());
            let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
            statuses.push(answer.status().as_u16());
            answer.into_body().collect().await.expect("a body");
        }
        statuses
    });
    assert_eq!(statuses, [200, 421, 421, 200]);
    // An optional one may be left out, and a wrong one is none the better for it.
    assert_eq!(Kept::shake(&gateway, "optional.test", None).status("optional.test"), 200);
    let mallory = Authority::new("Strangers").client("mallory", 7);
    assert_eq!(Kept::shake(&gateway, "optional.test", Some(&mallory)).status("optional.test"), 0);
}

#[test]
fn sessions_of_clients_with_certificates_are_not_resumed() {
    let partners = Authority::new("Partners");
    let routes = validated("open.test", "") + &validated("asked.test", BY_PARTNERS);
    let gateway = Gateway::start(&[
        ("routes.yaml", &routes),
        ("server.yaml", &partners.server(&["open.test", "asked.test"]).secret("server")),
        ("partners.yaml", &config_map("partners", "ca.crt", &partners.pem)),
    ]);
    let alice = partners.client("alice", 7);
    for (name, expected) in
        [("open.test", rustls::HandshakeKind::Resumed), ("asked.test", rustls::HandshakeKind::Full)]
    {
        let config = config(Some(&alice), &[]);
        for _ in 0..2 {
            let mut connection = Kept::with(&gateway, name, config.clone());
            assert_eq!(connection.status(name), 200, "{name}");
            let kind = connection.0.conn.handshake_kind();
            assert!(kind == Some(rustls::HandshakeKind::Full) || kind == Some(expected), "{name}: {kind:?}");
        }
        let mut last = Kept::with(&gateway, name, config);
        assert_eq!((last.status(name), last.0.conn.handshake_kind()), (200, Some(expected)), "{name}");
    }
}

#[test]
fn plain_http_is_no_way_around_the_certificate() {
    let partners = Authority::new("Partners");
    let challenges = |name: &str, path: &str| {
        format!(
            "{{name: {name}, matches: [{{path: {{type: PathPrefix, value: {path}}}}}], respond: {{status: 200, text: {name}}}}}"
        )
    };
    let spec = |rules: &str| {
        format!(
            "{{hostnames: [a.test], tls: {{certificateRefs: [{{name: server}}]{BY_PARTNERS}}}, rules: [{rules}]}}"
        )
    };
    let gateway = Gateway::with(
        &[
            ("route.yaml", &route("a", &spec(&challenges("all", "/")))),
            ("server.yaml", &partners.server(&["a.test"]).secret("server")),
            ("partners.yaml", &config_map("partners", "ca.crt", &partners.pem)),
        ],
        &["--trusted-hops", "1"],
    );
    let told = |path: &str, proto: &str| {
        gateway
            .request(
                "GET",
                "a.test",
                path,
                &[&format!("X-Forwarded-Proto: {proto}"), "X-Forwarded-For: 10.0.0.1"],
                "",
            )
            .status
    };
    let challenge = "/.well-known/acme-challenge/token";
    assert_eq!((told("/", "http"), told("/", "https")), (308, 421));
    assert_eq!((told(challenge, "http"), told(challenge, "https")), (308, 421), "the rule is for everything");
    let rules = challenges("all", "/") + ", " + &challenges("acme", "/.well-known/acme-challenge");
    gateway.write("route.yaml", &route("a", &spec(&rules)));
    until("the rule for challenges", || (told(challenge, "http") == 200).then_some(()));
    assert_eq!(told("/.well-known/acme-challenge/../admin", "http"), 308);
    assert_eq!(told("/.well-known/acme-challenge/%2e%2e%2fadmin", "http"), 400);
    assert_eq!((told("/", "http"), told(challenge, "https")), (308, 421));
    // Written in a file, where no API server refuses it.
    let both = spec(&rules).replace("clientValidation", "redirect: false, clientValidation");
    gateway.write("route.yaml", &route("a", &both));
    gateway
        .until_status("the refusal", |status| status["problems"][0]["path"] == "spec.tls.clientValidation");
    assert_eq!(told("/", "http"), 308);
}

#[test]
fn what_a_client_with_a_certificate_was_shown_is_kept_for_nobody_else() {
    let origin = Origin::new(fresh);
    let (partners, strangers) = (Authority::new("Partners"), Authority::new("Strangers"));
    let cached = |name: &str, validation: &str, cache: &str| {
        let tls = format!("tls: {{certificateRefs: [{{name: server}}]{validation}}}");
        let rule = format!(
            "{{name: all, policy: {{cache: {cache}}}, backendRefs: [{{kind: GatewayBackend, name: origin}}]}}"
        );
        route(name, &format!("{{hostnames: [{name}.test], {tls}, rules: [{rule}]}}"))
    };
    let gateway = Gateway::start(&[
        ("origin.yaml", &origin.manifest()),
        ("shared.yaml", &cached("shared", BY_PARTNERS, "{}")),
        ("own.yaml", &cached("own", BY_PARTNERS, "{key: {identity: true}}")),
        ("open.yaml", &cached("open", "", "{}")),
        ("server.yaml", &strangers.server(&["shared.test", "own.test", "open.test"]).secret("server")),
        ("partners.yaml", &config_map("partners", "ca.crt", &partners.pem)),
    ]);
    let (alice, bob) = (partners.client("alice", 7), partners.client("bob", 8));
    let ask = |host: &str, leaf: Option<&Leaf>| {
        let (status, body) = Kept::shake(&gateway, host, leaf).ask(host).expect("an answer");
        assert_eq!(status, 200, "{body}");
        body
    };
    let twice = |host: &str, leaf: Option<&Leaf>| {
        until("it to be kept", || Some(ask(host, leaf)).filter(|body| *body == ask(host, leaf)))
    };
    let bodies: Vec<_> = [&alice, &alice, &bob, &bob].map(|leaf| ask("shared.test", Some(leaf))).into();
    let different: std::collections::BTreeSet<_> = bodies.iter().collect();
    assert_eq!(different.len(), bodies.len(), "{bodies:?}");
    // The control: where nobody is asked for one, the same is kept.
    twice("open.test", None);
    assert_ne!(twice("own.test", Some(&alice)), twice("own.test", Some(&bob)));
}
