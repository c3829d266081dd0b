//! Tokens in the whole program, from an issuer on loopback that rotates its keys, fails and comes back.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::{Backend, Gateway, route, until};

/// What the issuer says now: `None` is 500.
type Said = Arc<Mutex<Option<String>>>;

struct Issuer {
    address: SocketAddr,
    said: Said,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (said, asked) = (Said::default(), Arc::<AtomicUsize>::default());
        let (says, count) = (Arc::clone(&said), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                let is_metadata = String::from_utf8_lossy(&head[..read]).contains("openid-configuration");
                let body = match (is_metadata, says.lock().expect("not poisoned").clone()) {
                    (_, None) => None,
                    (true, _) => Some(
                        json!({"issuer": format!("http://{address}"), "jwks_uri": format!("http://{address}/keys")})
                            .to_string(),
                    ),
                    (false, keys) => {
                        count.fetch_add(1, Ordering::SeqCst);
                        keys
                    }
                };
                let answer = match body {
                    Some(body) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                    None => "HTTP/1.1 500 Down\r\nContent-Length: 0\r\n\r\n".to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { address, said, asked }
    }

    fn say(&self, keys: &[&Key]) {
        let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
        *self.said.lock().expect("not poisoned") = Some(json!({"keys": keys}).to_string());
    }

    fn fail(&self) {
        *self.said.lock().expect("not poisoned") = None;
    }

    fn token(&self, key: &Key) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_secs();
        let header = json!({"alg": "ES256", "kid": key.name, "typ": "at+jwt"});
        let claims = json!({"iss": format!("http://{}", self.address), "aud": "shop", "sub": "alice", "exp": now + 600, "n": self.asked.load(Ordering::SeqCst)});
        key.sign(&header, &claims)
    }
}

pub struct Key {
    name: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    pub fn new(name: &'static str) -> Self {
        Self { name, pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key") }
    }

    pub fn jwk(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        json!({"kty": "EC", "crv": "P-256", "kid": self.name, "x": encode(x), "y": encode(y)})
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
        format!("{signed}.{}", encode(signature))
    }
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn answer(gateway: &Gateway, token: &str) -> (u16, Value) {
    let answer =
        gateway.request("GET", "shop.example", "/", &[&format!("Authorization: Bearer {token}")], "");
    (answer.status, answer.json())
}

fn gateway(backend: &Backend, issuer: &Issuer, jwks: &str) -> Gateway {
    let authentication = format!(
        "{{failures: {{requests: 0}}, anyOf: [{{name: users, jwt: {{issuer: 'http://{}', audiences: [shop]{jwks}, claimsToHeaders: [{{claim: sub, header: X-User-Id}}]}}}}]}}",
        issuer.address
    );
    let spec = format!(
        "{{hostnames: [shop.example], policy: {{authentication: {authentication}}}, rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
    );
    Gateway::start(&[("backend.yaml", &backend.manifest("one")), ("route.yaml", &route("shop", &spec))])
}

#[test]
fn keys_are_fetched_followed_and_kept_while_their_issuer_is_down() {
    let (backend, issuer) = (Backend::start("one"), Issuer::start());
    let (old, new, strange) = (Key::new("old"), Key::new("new"), Key::new("strange"));
    let uri = format!(", jwks: {{uri: 'http://{}/keys'}}", issuer.address);
    let gateway = gateway(&backend, &issuer, &uri);
    let (status, body) = answer(&gateway, &issuer.token(&old));
    assert_eq!((status, &body["reason"]), (503, &"KeysUnavailable".into()), "before they were ever there");
    issuer.say(&[&old]);
    until("the keys to be there", || (answer(&gateway, &issuer.token(&old)).0 == 200).then_some(()));
    let (_, seen) = answer(&gateway, &issuer.token(&old));
    assert_eq!(
        (&seen["headers"]["x-user-id"], seen["headers"].get("authorization")),
        (&"alice".into(), None)
    );

    // Rotated: the first token of the new key makes the gateway look.
    issuer.say(&[&old, &new]);
    assert_eq!(answer(&gateway, &issuer.token(&new)).0, 200);
    // Whoever shows unknown keys does not make it look again and again.
    let asked = issuer.asked.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(answer(&gateway, &issuer.token(&strange)).1["reason"], "TokenInvalid");
    }
    assert_eq!(issuer.asked.load(Ordering::SeqCst), asked);

    issuer.fail();
    assert_eq!(
        (answer(&gateway, &issuer.token(&old)).0, answer(&gateway, &issuer.token(&new)).0),
        (200, 200)
    );
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(metrics.contains("portcullis_fetches_total{host=\"127.0.0.1\",result=\"good\"}"), "{metrics}");
}

#[test]
fn keys_are_discovered_from_the_issuer() {
    let (backend, issuer, key) = (Backend::start("one"), Issuer::start(), Key::new("k"));
    issuer.say(&[&key]);
    let gateway = gateway(&backend, &issuer, "");
    until("the keys to be there", || (answer(&gateway, &issuer.token(&key)).0 == 200).then_some(()));
    assert_eq!(answer(&gateway, &issuer.token(&Key::new("k"))).1["reason"], "TokenInvalid");
}

#[test]
fn keys_may_be_at_a_backend() {
    let (backend, issuer, key) = (Backend::start("one"), Issuer::start(), Key::new("k"));
    issuer.say(&[&key]);
    let at = ", jwks: {backendRef: {kind: GatewayBackend, name: login}, path: /keys}";
    let gateway = gateway(&backend, &issuer, at);
    assert_eq!(answer(&gateway, &issuer.token(&key)).1["reason"], "PolicyInvalid", "it is not there yet");
    let (host, port) = (issuer.address.ip(), issuer.address.port());
    gateway.write(
        "login.yaml",
        &format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: login}}\nspec: {{hosts: [{{address: {host}, port: {port}}}]}}\n"
        ),
    );
    until("the keys to be there", || (answer(&gateway, &issuer.token(&key)).0 == 200).then_some(()));
    assert_eq!(answer(&gateway, &issuer.token(&Key::new("k"))).1["reason"], "TokenInvalid");
}
