//! TLS: certificates by server name, misdirected requests, redirects to HTTPS, certificates that change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portcullis::route_map::{CertificatePlan, Host, HostTls, PrivateKey};
use portcullis::values::{ObjectName, Redacted, TlsVersion};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::proxy_rig::*;

/// A certificate of a Secret for these names.
pub fn certificate(secret: &str, names: &[&str]) -> Arc<CertificatePlan> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made =
        rcgen::CertificateParams::new(names.clone()).expect("names").self_signed(&key).expect("signed");
    Arc::new(CertificatePlan {
        secret: ObjectName::new("ns", secret),
        chain: vec![made.der().to_vec()],
        key: Redacted::new(PrivateKey::Pkcs8(key.serialize_der())),
        names: names.iter().map(|name| name.as_str().into()).collect(),
        not_before: 0,
        not_after: i64::MAX,
    })
}

pub fn tls(certificates: &[&Arc<CertificatePlan>]) -> Option<HostTls> {
    let certificates = certificates.iter().map(|certificate| Arc::clone(certificate)).collect();
    Some(HostTls { certificates, redirect: true, ..HostTls::default() })
}

/// Takes any certificate: what is checked is which one came.
#[derive(Debug)]
struct Anything(CryptoProvider);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The beginning of a client's configuration.
pub fn trusting_anything() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let provider = aws_lc_rs::default_provider();
    ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(provider)))
}

/// A client that offers these protocols.
pub fn client(alpn: &[&str]) -> Arc<ClientConfig> {
    let mut config = trusting_anything().with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config.enable_early_data = true;
    Arc::new(config)
}

/// Shakes hands as a client that asks for `name`; an address as the name sends none.
pub async fn shake(gateway: SocketAddr, name: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    shake_as(client(alpn), gateway, name).await
}

async fn shake_as(
    client: Arc<ClientConfig>,
    gateway: SocketAddr,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(gateway).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(client).connect(name, socket).await
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().expect("certificates")[0].to_vec()
}

async fn get(stream: &mut TlsStream<TcpStream>, host: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    answer(stream).await
}

fn install(gateway: &Gateway, hosts: Vec<Arc<Host>>) {
    let (map, endpoints) = route_map(hosts, &[]);
    gateway.plane.install(map, endpoints);
}

#[tokio::test]
async fn each_name_gets_its_own_certificate_and_an_unknown_one_gets_none() {
    let gateway = Gateway::start();
    let (a, wild, rest) = (
        certificate("a", &["a.test"]),
        certificate("wild", &["*.w.test"]),
        certificate("rest", &["rest.test"]),
    );
    let hosts = || {
        vec![
            host("a.test", tls(&[&a]), respond("a")),
            host("*.w.test", tls(&[&wild]), respond("w")),
            host("plain.test", None, respond("p")),
        ]
    };
    install(&gateway, hosts());
    for (name, wanted) in [("a.test", &a), ("A.TEST", &a), ("x.w.test", &wild)] {
        let mut stream = shake(gateway.https(), name, &[]).await.expect(name);
        assert_eq!(shown(&stream), wanted.chain[0], "{name}");
        assert_eq!(status(&get(&mut stream, name).await), 200, "{name}");
    }
    for name in ["b.test", "plain.test", "127.0.0.1"] {
        let error = shake(gateway.https(), name, &[]).await.expect_err(name);
        assert!(format!("{error:?}").contains("UnrecognisedName"), "{name}: {error:?}");
    }
    // A catch-all's certificate: for its own names, and for clients that send none.
    install(&gateway, [hosts(), vec![host("", tls(&[&rest]), respond("r"))]].concat());
    for name in ["rest.test", "127.0.0.1"] {
        assert_eq!(shown(&shake(gateway.https(), name, &[]).await.expect(name)), rest.chain[0], "{name}");
    }
    assert!(shake(gateway.https(), "b.test", &[]).await.is_err());
}

#[tokio::test]
async fn a_request_for_another_certificate_s_host_is_misdirected() {
    let gateway = Gateway::start();
    let (a, shared) = (certificate("a", &["a.test"]), certificate("shared", &["b.test", "c.test"]));
    install(
        &gateway,
        vec![
            host("a.test", tls(&[&a]), respond("a")),
            host("b.test", tls(&[&shared]), respond("b")),
            host("c.test", tls(&[&shared]), respond("c")),
            host("plain.test", None, respond("p")),
        ],
    );
    let ask = async |server_name: &str, host: &str| {
        let mut stream = shake(gateway.https(), server_name, &[]).await.expect(server_name);
        status(&get(&mut stream, host).await)
    };
    assert_eq!(ask("a.test", "a.test").await, 200);
    assert_eq!(ask("b.test", "c.test").await, 200, "one certificate, two hosts");
    for host in ["b.test", "plain.test", "nobody.test"] {
        assert_eq!(ask("a.test", host).await, 421, "{host}");
    }
}

#[tokio::test]
async fn plain_http_goes_to_https_but_for_acme_challenges_that_a_rule_takes() {
    let gateway = Gateway::start();
    let a = certificate("a", &["a.test"]);
    let challenge = ("/.well-known/acme-challenge", respond("token"));
    install(
        &gateway,
        vec![
            host_with("a.test", tls(&[&a]), vec![("/", respond("a")), challenge]),
            // The Secret is missing: never plain all the same.
            host_with("b.test", tls(&[]), vec![("/only", respond("b"))]),
        ],
    );
    let ask = async |host: &str, path: &str| {
        exchange(gateway.http(), &format!("GET {path} HTTP/1.1\r\nhost: {host}:8080\r\n\r\n")).await
    };
    let answer = ask("a.test", "/x?y=1").await;
    assert_eq!((status(&answer), field(&answer, "location")), (308, Some("https://a.test/x?y=1")));
    assert_eq!(status(&ask("a.test", "/.well-known/acme-challenge/1").await), 200);
    assert_eq!(status(&ask("b.test", "/only").await), 308);
    assert_eq!(status(&ask("b.test", "/.well-known/acme-challenge/1").await), 308, "no rule takes it");
}

#[tokio::test]
async fn a_trusted_hop_s_word_on_the_scheme_counts_and_a_client_s_does_not() {
    let a = certificate("a", &["a.test"]);
    for (hops, expected) in [(0, 308), (1, 200)] {
        let gateway = Gateway::with(|settings| settings.trusted_hops = hops);
        install(&gateway, vec![host("a.test", tls(&[&a]), respond("a"))]);
        let request = "GET / HTTP/1.1\r\nhost: a.test\r\nx-forwarded-proto: https\r\n\r\n";
        assert_eq!(status(&exchange(gateway.http(), request).await), expected, "{hops}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_served_at_once_a_bad_secret_keeps_the_old_one_and_a_gone_one_ends_it() {
    let gateway = Gateway::start();
    let (old, new) = (certificate("a", &["a.test"]), certificate("a", &["a.test"]));
    install(&gateway, vec![host("a.test", tls(&[&old]), respond("a"))]);
    let mut kept = shake(gateway.https(), "a.test", &[]).await.expect("old");
    assert_eq!(shown(&kept), old.chain[0]);
    install(&gateway, vec![host("a.test", tls(&[&new]), respond("a"))]);
    assert_eq!(shown(&shake(gateway.https(), "a.test", &[]).await.expect("new")), new.chain[0]);
    assert_eq!(status(&get(&mut kept, "a.test").await), 200, "old connections stay");

    let unusable =
        HostTls { unusable: vec![ObjectName::new("ns", "a")], redirect: true, ..HostTls::default() };
    install(&gateway, vec![host("a.test", Some(unusable), respond("a"))]);
    assert_eq!(shown(&shake(gateway.https(), "a.test", &[]).await.expect("kept")), new.chain[0]);
    install(&gateway, vec![host("a.test", tls(&[]), respond("a"))]);
    assert!(shake(gateway.https(), "a.test", &[]).await.is_err());
}

#[tokio::test]
async fn a_hello_without_end_is_cut_before_it_costs_memory() {
    // Time is not what ends it.
    let gateway = Gateway::with(|settings| settings.limits.tls_handshake = Duration::from_secs(3600));
    let mut socket = TcpStream::connect(gateway.https()).await.expect("connects");
    // A ClientHello of 16 MiB, in records of 16 KiB.
    let mut record = vec![0x16, 3, 1, 0x40, 0];
    record.extend([1, 0xff, 0xff, 0xff]);
    record.resize(5 + (16 << 10), 0);
    for _ in 0..64 {
        // Until the other side does not take it any more.
        let wrote = tokio::time::timeout(PATIENCE, socket.write_all(&record)).await;
        if wrote.expect("taken or refused").is_err() {
            break;
        }
        record[5..9].fill(0);
    }
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("an end");
    // An alert, or the connection's end.
    assert!(read.is_err() || rest.is_empty() || rest[0] == 0x15, "{rest:?}");
}

#[tokio::test]
async fn handshakes_are_modern_and_end_without_a_common_protocol() {
    let gateway = Gateway::start();
    let a = certificate("a", &["a.test"]);
    install(&gateway, vec![host("a.test", tls(&[&a]), respond("a"))]);
    let stream = shake(gateway.https(), "a.test", &["h2", "http/1.1"]).await.expect("shakes");
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(
        session.negotiated_key_exchange_group().map(|g| g.name()),
        Some(rustls::NamedGroup::X25519MLKEM768)
    );
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    let stream = shake(gateway.https(), "a.test", &["http/1.1"]).await.expect("shakes");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(shake(gateway.https(), "a.test", &["spdy/3"]).await.is_err(), "no common protocol");
}

/// The same, for clients that speak TLS 1.3.
fn tls13(certificates: &[&Arc<CertificatePlan>]) -> Option<HostTls> {
    tls(certificates).map(|tls| HostTls { min_version: TlsVersion::Tls13, ..tls })
}

fn speaking(version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let provider = aws_lc_rs::default_provider();
    let config = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_protocol_versions(&[version])
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(provider)))
        .with_no_client_auth();
    Arc::new(config)
}

#[tokio::test]
async fn each_name_has_its_own_least_version() {
    let gateway = Gateway::start();
    let both = certificate("both", &["old.test", "new.test"]);
    let hosts = || {
        vec![
            host("old.test", tls(&[&both]), respond("old")),
            host("new.test", tls13(&[&both]), respond("new")),
        ]
    };
    install(&gateway, hosts());
    let (old, new) = (speaking(&rustls::version::TLS12), speaking(&rustls::version::TLS13));
    let ask = async |client: &Arc<ClientConfig>, name: &str, host: &str| {
        let mut stream = shake_as(client.clone(), gateway.https(), name).await?;
        std::io::Result::Ok(status(&get(&mut stream, host).await))
    };
    let refused = ask(&old, "new.test", "new.test").await.expect_err("too old").to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
    assert_eq!(ask(&new, "new.test", "new.test").await.expect("speaks it"), 200);
    assert_eq!(ask(&old, "old.test", "old.test").await.expect("speaks it"), 200);
    // The shared certificate is no way around it.
    assert_eq!(ask(&old, "old.test", "new.test").await.expect("shakes"), 421);
    assert_eq!(ask(&new, "old.test", "new.test").await.expect("shakes"), 200);
    // The hybrid group is agreed on whatever the least version is.
    for name in ["old.test", "new.test"] {
        let stream = shake_as(new.clone(), gateway.https(), name).await.expect("shakes");
        let group = stream.get_ref().1.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768), "{name}");
    }
}

#[tokio::test]
async fn a_kept_connection_does_not_outlive_a_raised_least_version() {
    let gateway = Gateway::start();
    let a = certificate("a", &["a.test"]);
    install(&gateway, vec![host("a.test", tls(&[&a]), respond("a"))]);
    let mut kept =
        shake_as(speaking(&rustls::version::TLS12), gateway.https(), "a.test").await.expect("shakes");
    assert_eq!(status(&get(&mut kept, "a.test").await), 200);
    install(&gateway, vec![host("a.test", tls13(&[&a]), respond("a"))]);
    let answer = get(&mut kept, "a.test").await;
    assert_eq!((status(&answer), field(&answer, "connection")), (421, Some("close")));
}

#[tokio::test]
async fn sessions_resume_and_carry_no_early_data() {
    let gateway = Gateway::start();
    let a = certificate("a", &["a.test"]);
    install(&gateway, vec![host("a.test", tls(&[&a]), respond("a"))]);
    let client = client(&[]);
    let mut first = shake_as(client.clone(), gateway.https(), "a.test").await.expect("shakes");
    // The tickets come with the answer.
    assert_eq!(status(&get(&mut first, "a.test").await), 200);
    assert_eq!(first.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    let mut again = shake_as(client, gateway.https(), "a.test").await.expect("shakes");
    assert_eq!(status(&get(&mut again, "a.test").await), 200);
    let session = again.get_ref().1;
    assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    assert!(!session.is_early_data_accepted());
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_cut() {
    use tokio::io::AsyncReadExt;
    let gateway =
        Gateway::with(|settings| settings.limits.tls_handshake = std::time::Duration::from_millis(100));
    for half in [&b""[..], &[22, 3, 1, 2, 0, 1]] {
        let mut socket = TcpStream::connect(gateway.https()).await.expect("connects");
        socket.write_all(half).await.expect("sent");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{half:?}");
    }
}
