//! Which key exchange the program offers a backend over TLS, and which it agrees on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{HandshakeKind, NamedGroup, ServerConfig, ServerConnection, StreamOwned};

use super::backend_tls::Authority;
use crate::harness::{Gateway, route};

/// Shows a certificate and remembers what was offered.
#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    offered: Mutex<Vec<NamedGroup>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        *self.offered.lock().expect("not poisoned") = hello.named_groups().unwrap_or_default().to_vec();
        Some(self.key.clone())
    }
}

/// Answers one request a connection with what was agreed on; it takes these groups alone.
fn server(shown: &Arc<Shown>, groups: &[NamedGroup]) -> SocketAddr {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| groups.contains(&group.name()));
    let config = ServerConfig::builder_with_provider(provider.into()).with_protocol_versions(&[&TLS13]);
    let config = config.expect("a version").with_no_client_auth().with_cert_resolver(shown.clone());
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).expect("a configuration");
            let mut stream = StreamOwned::new(connection, socket);
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let group = stream.conn.negotiated_key_exchange_group().map(|group| group.name());
            let is_at_once = stream.conn.handshake_kind() == Some(HandshakeKind::Full);
            let body = format!("{group:?} {}", if is_at_once { "at once" } else { "asked again" });
            let head = "HTTP/1.1 200 OK\r\nConnection: close";
            let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    address
}

#[test]
fn the_hybrid_key_exchange_is_offered_to_backends_first_and_agreed_on_at_once() {
    let ours = Authority::new("ours");
    let key = ours.certify(&["db.example"]).certified();
    let shown = Arc::new(Shown { key, offered: Mutex::default() });
    let to = |name: &str, groups: &[NamedGroup]| {
        let address = server(&shown, groups);
        let spec = format!(
            "{{hostnames: [{name}.example], rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: {name}}}]}}]}}"
        );
        let tls = "{serverName: db.example, caCertificateRefs: [{kind: ConfigMap, name: ca}]}";
        route(name, &spec)
            + &format!(
                "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}], tls: {tls}}}\n---\n",
                address.port()
            )
    };
    // In the order in which the server prefers them itself.
    let both = [NamedGroup::X25519MLKEM768, NamedGroup::X25519];
    let manifests = [ours.config_map("ca"), to("both", &both), to("old", &[NamedGroup::secp256r1])];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let answer = gateway.get("both.example", "/");
    assert_eq!((answer.status, answer.body.as_str()), (200, "Some(X25519MLKEM768) at once"));
    let offered = shown.offered.lock().expect("not poisoned").clone();
    assert_eq!(offered.first(), Some(&NamedGroup::X25519MLKEM768), "{offered:?}");
    // Backends that do not know it are served as ever.
    let answer = gateway.get("old.example", "/");
    assert_eq!((answer.status, answer.body.as_str()), (200, "Some(secp256r1) asked again"));
}
