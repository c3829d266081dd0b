//! Fail closed, where `fail_closed` does not look: passwords, tokens that a server is asked about, certificates with their
//! authority and revocations, a body's schema in a Secret. Besides strangers, somebody whom all of them know asks, and is
//! for authorization alone to refuse.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::SanType;

use super::client_certificates::{Authority, Leaf, client, secret};
use super::fail_closed::{Change, Counts, Files, KEY, Scene, WRONG, object};
use super::fail_closed_gates::Visitor;
use crate::harness::until;

/// Known, and nobody who may do anything.
const RIVAL: &str = "a41f09c2d7e83b5614f2c9d0e7b8a635";
/// SHA-512 in 1,000 rounds of KEY and RIVAL.
pub const HASHES: [&str; 2] = [
    "$6$rounds=1000$acmeacme$2NYx0rJFR2jVr0k5d8L/NTjq2yrHey6Je5CCoHM3BhrtjgQfQpw4Q0PxH4V01a4YiciqCkp3Si1lKiziEgIZx.",
    "$6$rounds=1000$rivalrival$UHp0MstG/HyW6KmyDOHrlF3UNSVLm1t15GpzQKMdcN8G2wC0eEiV/Li.OFgenv0TTj65fuOcIDhIm8GTjVYlC/",
];
const BAD_BODY: &str = "{\"n\": \"one\"}";

fn visitor(what: &str, host: &str, fields: &[String]) -> Visitor {
    Visitor::new(what, fields).at(host)
}

/// Who vouches for whom.
struct Certificates {
    partners: Authority,
    acme: Arc<Leaf>,
    rival: Arc<Leaf>,
    revoked: Arc<Leaf>,
    foreign: Arc<Leaf>,
}

impl Certificates {
    fn new() -> Self {
        let (partners, strangers) = (Authority::new("Partners"), Authority::new("Strangers"));
        let named = |name: &str, serial| {
            let mut params = client(name, serial);
            params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("ASCII"))];
            params
        };
        Self {
            acme: Arc::new(partners.sign(named("acme-inc", 7))),
            rival: Arc::new(partners.sign(named("rival-co", 8))),
            revoked: Arc::new(partners.sign(named("acme-inc", 66))),
            foreign: Arc::new(strangers.sign(named("acme-inc", 7))),
            partners,
        }
    }
}

fn basic(name: &str, password: &str) -> String {
    format!("Authorization: Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

const PASSWORD: &str = "by-password.example";
const TOKEN: &str = "by-token.example";
const SCHEMA: &str = "by-schema.example";
const CERTIFICATE: &str = "by-certificate.example";

fn friends(certificates: &Certificates) -> Vec<Visitor> {
    vec![
        visitor("the password", PASSWORD, &[basic("acme-inc", KEY)]),
        visitor("the token", TOKEN, &[format!("Authorization: Bearer {KEY}")]),
        visitor("the key with a good body", SCHEMA, &[format!("X-Api-Key: {KEY}")]),
        visitor("the certificate", CERTIFICATE, &[]).showing(Some(&certificates.acme)),
    ]
}

fn others(certificates: &Certificates) -> Vec<Visitor> {
    let pretends = ["X-Consumer: acme-inc".to_owned()];
    let mut visitors = vec![
        visitor("a wrong password", PASSWORD, &[basic("acme-inc", WRONG)]),
        visitor("another's password", PASSWORD, &[basic("acme-inc", RIVAL)]),
        visitor("the rival's password", PASSWORD, &[basic("rival-co", RIVAL)]),
        visitor("a wrong token", TOKEN, &[format!("Authorization: Bearer {WRONG}")]),
        visitor("the rival's token", TOKEN, &[format!("Authorization: Bearer {RIVAL}")]),
        visitor("the rival's key", SCHEMA, &[format!("X-Api-Key: {RIVAL}")]),
        visitor("the key with a bad body", SCHEMA, &[format!("X-Api-Key: {KEY}"), "X-Body: bad".into()])
            .with_body(BAD_BODY),
        visitor("no certificate", CERTIFICATE, &pretends).showing(None),
        visitor("the rival's certificate", CERTIFICATE, &[]).showing(Some(&certificates.rival)),
        visitor("a revoked certificate", CERTIFICATE, &[]).showing(Some(&certificates.revoked)),
        visitor("a stranger's certificate", CERTIFICATE, &[]).showing(Some(&certificates.foreign)),
    ];
    visitors.extend([PASSWORD, TOKEN, SCHEMA, CERTIFICATE].map(|host| visitor("a name", host, &pretends)));
    visitors
}

/// Says who a token is of.
fn authorization_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut question, mut piece) = (String::new(), [0; 4096]);
                while !question.contains("token_type_hint=access_token") {
                    match stream.read(&mut piece) {
                        Ok(count @ 1..) => question += &String::from_utf8_lossy(&piece[..count]),
                        _ => return,
                    }
                }
                let whose = [(KEY, "acme-inc"), (RIVAL, "rival-co")];
                let whose = whose.iter().find(|(token, _)| question.contains(&format!("token={token}&")));
                let said = whose.map_or("{\"active\": false}".to_owned(), |(_, name)| {
                    format!("{{\"active\": true, \"sub\": \"{name}\"}}")
                });
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
                let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{said}", said.len());
            });
        }
    });
    address
}

const RULES: &str =
    "authorization: {rules: [{name: acme, action: Allow, when: \"identity.id == 'acme-inc'\"}]}";

/// Everything whole. Authorization is asked for twice: by each rule, and imposed.
fn world(backend: SocketAddr, certificates: &Certificates) -> Files {
    let asked = authorization_server();
    let tell = "claimsToHeaders: [{claim: id, header: X-Consumer}]";
    let by = |entry: &str| {
        format!("authentication: {{failures: {{requests: 0}}, anyOf: [{{name: one, {entry}}}]}}, {RULES}")
    };
    let route = |name: &str, more: &str, policy: &str| {
        let spec = format!(
            "{{hostnames: [{name}.example], {more}rules: [{{name: all, policy: {{{policy}}}, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
        );
        object("GatewayRoute", name, &spec)
    };
    let opaque = |name, data: &[(&str, &str)]| secret(name, "Opaque", data);
    let schema = "validation: {bodySchema: {secretRef: {name: schema, key: order.json}}}";
    let tls = "tls: {certificateRefs: [{name: served}], clientValidation: {caCertificateRefs: [{kind: Secret, name: partners}], crlRefs: [{kind: Secret, name: revoked}]}}, ";
    let keys = |name: &str, consumer: &str, key: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{namespace: test, name: {name}, labels: {{keys: shop}}, annotations: {{portcullis.dev/consumer: {consumer}}}}}\nstringData: {{key: {key}}}\n"
        )
    };
    let Certificates { partners, .. } = certificates;
    Files::from([
        (
            "one.yaml",
            object(
                "GatewayBackend",
                "one",
                &format!("{{hosts: [{{address: 127.0.0.1, port: {}}}]}}", backend.port()),
            ),
        ),
        (
            "by-password.yaml",
            route("by-password", "", &by(&format!("basicAuth: {{secretRef: {{name: people}}, {tell}}}"))),
        ),
        (
            "by-token.yaml",
            route(
                "by-token",
                "",
                &by(&format!(
                    "introspection: {{endpoint: 'http://{asked}/introspect', clientSecretRef: {{name: asker}}, cacheDuration: 0s, {tell}}}"
                )),
            ),
        ),
        (
            "by-schema.yaml",
            route(
                "by-schema",
                "",
                &(by(&format!("apiKey: {{secretSelector: {{matchLabels: {{keys: shop}}}}, {tell}}}"))
                    + ", "
                    + schema),
            ),
        ),
        (
            "by-certificate.yaml",
            route("by-certificate", tls, &by(&format!("clientCertificate: {{id: [DNS], {tell}}}"))),
        ),
        (
            "imposing.yaml",
            object(
                "GatewayPolicy",
                "imposing",
                &format!("{{precedence: Override, targetRefs: [{{kind: Namespace}}], policy: {{{RULES}}}}}"),
            ),
        ),
        (
            "people.yaml",
            opaque("people", &[("users", &format!("acme-inc:{}\nrival-co:{}\n", HASHES[0], HASHES[1]))]),
        ),
        ("asker.yaml", opaque("asker", &[("clientId", "gateway"), ("clientSecret", "4f1c9b0a7d6e")])),
        ("acme.yaml", keys("acme", "acme-inc", KEY)),
        ("rival.yaml", keys("rival", "rival-co", RIVAL)),
        (
            "schema.yaml",
            opaque(
                "schema",
                &[("order.json", r#"{"type": "object", "properties": {"n": {"type": "integer"}}}"#)],
            ),
        ),
        ("served.yaml", partners.server(&[CERTIFICATE]).secret("served")),
        ("partners.yaml", opaque("partners", &[("ca.crt", partners.pem())])),
        ("revoked.yaml", opaque("revoked", &[("ca.crl", &partners.revoking(&[66]))])),
    ])
}

/// As those of `fail_closed`.
const CHANGES: &[(&str, &str, Change)] = &[
    ("people.yaml", "gone", |_| None),
    ("people.yaml", "empty", |_| Some(String::new())),
    ("people.yaml", "no file in it", |text| Some(text.replace("\"users\"", "\"nobody\""))),
    ("people.yaml", "no hashes", |text| Some(text.replace("$6$", "$0$"))),
    ("people.yaml", "one hash that is none", |text| Some(text.replacen("$6$", "", 1))),
    ("people.yaml", "no names", |text| Some(text.replace("acme-inc:", ":"))),
    ("people.yaml", "two hashes for a name", |text| Some(text.replace("rival-co:", "acme-inc:"))),
    ("people.yaml", "another namespace", |text| Some(text.replace("\"test\"", "\"other\""))),
    ("people.yaml", "no YAML", |text| Some(format!("{text}]: {{"))),
    ("people.yaml", "no base64", |text| Some(text.replace("stringData", "data"))),
    ("by-password.yaml", "misspelled", |text| Some(text.replace("basicAuth", "basicauth"))),
    ("by-password.yaml", "a reference to nothing", |text| Some(text.replace("people", "peoples"))),
    ("by-password.yaml", "Optional", |text| {
        Some(text.replace("authentication: {", "authentication: {mode: Optional, "))
    }),
    ("by-password.yaml", "authorization gone", |text| Some(text.replace(&format!(", {RULES}"), ""))),
    ("by-password.yaml", "authorization misspelled", |text| {
        Some(text.replace("authorization", "authorisation"))
    }),
    ("asker.yaml", "gone", |_| None),
    ("asker.yaml", "no secret in it", |text| Some(text.replace("clientSecret", "clientsecret"))),
    ("asker.yaml", "another namespace", |text| Some(text.replace("\"test\"", "\"other\""))),
    ("asker.yaml", "no base64", |text| Some(text.replace("stringData", "data"))),
    ("by-token.yaml", "no server", |text| {
        Some(text.replace("/introspect'", "'").replace("127.0.0.1:", "127.0.0.1:1"))
    }),
    ("by-token.yaml", "misspelled", |text| Some(text.replace("introspection:", "introspect:"))),
    ("by-token.yaml", "another path", |text| Some(text.replace("/introspect'", "/introspect#'"))),
    ("by-token.yaml", "authorization gone", |text| Some(text.replace(&format!(", {RULES}"), ""))),
    ("schema.yaml", "gone", |_| None),
    ("schema.yaml", "no JSON", |text| {
        Some(text.replace("{\\\"type\\\": \\\"object\\\"", "{\\\"type\\\": object"))
    }),
    ("schema.yaml", "no schema", |text| Some(text.replace("integer", "whole"))),
    ("schema.yaml", "another key", |text| Some(text.replace("order.json", "orders.json"))),
    ("schema.yaml", "another namespace", |text| Some(text.replace("\"test\"", "\"other\""))),
    ("by-schema.yaml", "misspelled", |text| Some(text.replace("validation", "validations"))),
    ("by-schema.yaml", "a reference to nothing", |text| Some(text.replace("name: schema", "name: schemas"))),
    ("by-schema.yaml", "authorization gone", |text| Some(text.replace(&format!("{RULES}, "), ""))),
    ("rival.yaml", "its consumer", |text| Some(text.replace("rival-co", "''"))),
    ("rival.yaml", "the same key as another's", |text| Some(text.replace(RIVAL, KEY))),
    ("partners.yaml", "gone", |_| None),
    ("partners.yaml", "another key", |text| Some(text.replace("ca.crt", "ca.pem"))),
    ("partners.yaml", "torn", |text| Some(text.replace("-----END", "-----"))),
    ("partners.yaml", "another namespace", |text| Some(text.replace("\"test\"", "\"other\""))),
    ("revoked.yaml", "gone", |_| None),
    ("revoked.yaml", "another key", |text| Some(text.replace("ca.crl", "ca.crt"))),
    ("revoked.yaml", "torn", |text| Some(text.replace("-----END", "-----"))),
    ("revoked.yaml", "empty", |_| Some(String::new())),
    ("served.yaml", "gone", |_| None),
    ("by-certificate.yaml", "validation misspelled", |text| {
        Some(text.replace("clientValidation", "clientValidations"))
    }),
    ("by-certificate.yaml", "a mode that is none", |text| {
        Some(text.replace("clientValidation: {", "clientValidation: {mode: Sometimes, "))
    }),
    ("by-certificate.yaml", "Optional", |text| {
        Some(text.replace("clientValidation: {", "clientValidation: {mode: Optional, "))
    }),
    ("by-certificate.yaml", "authorization gone", |text| Some(text.replace(&format!(", {RULES}"), ""))),
    ("imposing.yaml", "gone", |_| None),
    ("imposing.yaml", "misspelled", |text| Some(text.replace("when:", "where:"))),
];

fn passes(scene: &Scene, certificates: &Certificates) {
    for friend in friends(certificates) {
        let (http, https) = (scene.gateway.http, scene.gateway.https);
        until(&format!("{} to pass", friend.what), || (friend.ask((http, https)) == 200).then_some(()));
    }
}

#[test]
fn whatever_becomes_of_them_nobody_passes_whom_authorization_would_refuse() {
    let certificates = Certificates::new();
    let counts = Counts::default();
    let mut scene = Scene::over(world(counts.backend(), &certificates), counts);
    passes(&scene, &certificates);
    let (http, https) = (scene.gateway.http, scene.gateway.https);
    let others = others(&certificates);
    let stop = AtomicBool::new(false);
    let knocks = std::thread::scope(|scope| {
        let knocking = scope.spawn(|| {
            let mut knocks = 0;
            while !stop.load(Ordering::SeqCst) {
                for other in &others {
                    assert_ne!(other.ask((http, https)), 200, "{} of {}", other.what, other.host);
                    knocks += 1;
                }
            }
            knocks
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (file, what, change) in CHANGES {
                let whole = scene.files[file].clone();
                let changed = change(&whole);
                assert_ne!(changed.as_ref(), Some(&whole), "{file}: {what} changes nothing");
                scene.put(file, changed.as_deref());
                for other in &others {
                    assert_ne!(other.ask((http, https)), 200, "{file}: {what}: {}", other.what);
                }
                assert_eq!(scene.strangers(), 0, "{file}: {what}");
                scene.put(file, Some(&whole));
            }
            passes(&scene, &certificates);
        }));
        stop.store(true, Ordering::SeqCst);
        let knocks = knocking.join().expect("nobody got in");
        worked.map(|()| knocks).unwrap_or_else(|why| std::panic::resume_unwind(why))
    });
    assert_eq!(scene.strangers(), 0);
    assert!(knocks >= others.len(), "they asked {knocks} times only");
}

#[test]
fn the_control_without_authorization_the_rival_passes_everywhere() {
    let certificates = Certificates::new();
    let counts = Counts::default();
    let mut files = world(counts.backend(), &certificates);
    for text in files.values_mut() {
        *text = text.replace(&format!(", {RULES}"), "").replace(RULES, "timeouts: {}");
    }
    let scene = Scene::over(files, counts);
    let (http, https) = (scene.gateway.http, scene.gateway.https);
    let others = others(&certificates);
    let rivals: Vec<_> = others.iter().filter(|other| other.what.starts_with("the rival's")).collect();
    for rival in &rivals {
        assert_eq!(rival.ask((http, https)), 200, "{}", rival.what);
    }
    assert_eq!((rivals.len(), scene.strangers()), (4, 4));
}
