//! Fail closed, where nothing stands behind: each host here is protected by one gate alone, so that nobody else refuses
//! its visitors in the gate's place. Everybody who must be refused says so in a field: the backend counts them.
//!
//! Unlike in `fail_closed`, a gate that is taken away cleanly is an open door here, and meant to be; it is never taken
//! away, but broken, misspelled, and robbed of what it refers to. That visitors would pass without it, the control shows.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::client_certificates::{Authority, secret};
use super::fail_closed::{Change, Counts, Files, KEY, Scene, object};
use super::fail_closed_gates::{
    Gate, Visitor, authorized, by_certificates, by_credentials, by_jwt, by_requests, introspected, says,
};
use super::fail_closed_kinds::HASHES;
use super::tokens::Key;
use crate::harness::until;

struct World {
    gates: Vec<Gate>,
    files: Files,
    counts: Counts,
}

impl World {
    fn new() -> Self {
        let counts = Counts::default();
        let (key, partners) = (Key::new("1"), Authority::new("Partners"));
        let asked = says("token_type_hint=access_token", introspected);
        let mut gates = by_credentials(asked);
        gates.push(by_jwt(&key));
        gates.extend(by_requests());
        gates.extend(by_certificates(&partners));
        let server = |name: &str, address: SocketAddr| {
            let spec = format!("{{hosts: [{{address: 127.0.0.1, port: {}}}]}}", address.port());
            object("GatewayBackend", name, &spec)
        };
        let opaque = |name, data: &[(&str, &str)]| secret(name, "Opaque", data);
        let keys = json!({"keys": [key.jwk()]}).to_string();
        let keys = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "test", "name": "jwks"}, "data": {"keys": keys}});
        let mut key = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "test", "name": "acme"}, "stringData": {"key": KEY}});
        key["metadata"]["annotations"] = json!({"portcullis.dev/consumer": "acme-inc"});
        let schema = r#"{"type": "object", "properties": {"n": {"type": "integer"}}}"#;
        let hosts = ["by-handshake.example", "by-certificate.example"];
        let mut files = Files::from([
            ("one.yaml", server("one", counts.backend())),
            ("authz.yaml", server("authz", says("\r\n\r\n", authorized))),
            ("acme.yaml", format!("{key}\n")),
            ("jwks.yaml", format!("{keys}\n")),
            ("people.yaml", opaque("people", &[("users", &format!("acme-inc:{}\n", HASHES[0]))])),
            ("asker.yaml", opaque("asker", &[("clientId", "gateway"), ("clientSecret", "4f1c9b0a7d6e")])),
            ("schema.yaml", opaque("schema", &[("order.json", schema)])),
            ("served.yaml", partners.server(&hosts).secret("served")),
            ("partners.yaml", opaque("partners", &[("ca.crt", partners.pem())])),
            ("revoked.yaml", opaque("revoked", &[("ca.crl", &partners.revoking(&[66]))])),
        ]);
        files.extend(gates.iter().map(|gate| (gate.file, gate.route())));
        Self { gates, files, counts }
    }

    fn start(self) -> (Vec<Gate>, Scene) {
        let scene = Scene::over(self.files, self.counts);
        self.gates.iter().for_each(|gate| passes(gate, &scene));
        (self.gates, scene)
    }
}

fn passes(gate: &Gate, scene: &Scene) {
    let places = (scene.gateway.http, scene.gateway.https);
    until(&format!("{} to pass {}", gate.friend.what, gate.host), || {
        (gate.friend.ask(places) == 200).then_some(())
    });
}

/// What gates stand on, and what can become of it.
const CHANGES: &[(&str, &str, Change)] = &[
    ("by-key.yaml", "acme.yaml", |_| None),
    ("by-key.yaml", "acme.yaml", |text| Some(text.replace("\"key\"", "\"token\""))),
    ("by-key.yaml", "acme.yaml", |text| Some(text.replace(KEY, ""))),
    ("by-key.yaml", "acme.yaml", |text| Some(text.replace("stringData", "data"))),
    ("by-key.yaml", "acme.yaml", |text| Some(text.replace("\"test\"", "\"other\""))),
    ("by-jwt.yaml", "jwks.yaml", |_| None),
    ("by-jwt.yaml", "jwks.yaml", |text| Some(text.replace("P-256", "P-1"))),
    ("by-jwt.yaml", "jwks.yaml", |text| Some(text.replace("[{", "[["))),
    ("by-jwt.yaml", "jwks.yaml", |text| Some(text.replace("{\"keys\":\"", "{\"others\":\""))),
    ("by-jwt.yaml", "jwks.yaml", |text| Some(text.replace("\"test\"", "\"other\""))),
    ("by-password.yaml", "people.yaml", |_| None),
    ("by-password.yaml", "people.yaml", |text| Some(text.replace("$6$", "$0$"))),
    ("by-password.yaml", "people.yaml", |text| Some(text.replace("acme-inc:", ":"))),
    ("by-token.yaml", "asker.yaml", |_| None),
    ("by-token.yaml", "asker.yaml", |text| Some(text.replace("clientSecret", "clientsecret"))),
    ("by-schema.yaml", "schema.yaml", |_| None),
    ("by-schema.yaml", "schema.yaml", |text| Some(text.replace("integer", "whole"))),
    ("by-schema.yaml", "schema.yaml", |text| Some(text.replace("order.json", "orders.json"))),
    ("by-server.yaml", "authz.yaml", |_| None),
    ("by-server.yaml", "authz.yaml", |text| Some(text.replace("hosts", "host"))),
    ("by-handshake.yaml", "partners.yaml", |_| None),
    ("by-handshake.yaml", "partners.yaml", |text| Some(text.replace("-----END", "-----"))),
    ("by-handshake.yaml", "revoked.yaml", |_| None),
    ("by-handshake.yaml", "revoked.yaml", |text| Some(text.replace("ca.crl", "ca.crt"))),
    ("by-certificate.yaml", "partners.yaml", |_| None),
    ("by-certificate.yaml", "revoked.yaml", |text| Some(text.replace("-----END", "-----"))),
    ("by-certificate.yaml", "served.yaml", |_| None),
    ("by-rules.yaml", "by-rules.yaml", |text| Some(text.replace("endsWith", "endsWidth"))),
    ("by-rules.yaml", "by-rules.yaml", |text| Some(text.replace("['x-pass']", "."))),
    ("by-rules.yaml", "by-rules.yaml", turned),
    ("by-address.yaml", "by-address.yaml", |text| Some(text.replace("127.0.0.0/16", "127.0.0.0/33"))),
    ("by-address.yaml", "by-address.yaml", |text| Some(text.replace("allow: [127.0.0.0/16]", "allow: []"))),
    ("by-query.yaml", "by-query.yaml", |text| Some(text.replace("integer", "whole"))),
    ("by-field.yaml", "by-field.yaml", |text| Some(text.replace("'^[a-z]+$'", "'^[a-z+$'"))),
    ("by-size.yaml", "by-size.yaml", |text| Some(text.replace("'16'", "'16 bytes'"))),
    ("by-type.yaml", "by-type.yaml", |text| Some(text.replace("application/json", "application"))),
    ("by-jwt.yaml", "by-jwt.yaml", |text| Some(text.replace("audiences: [shop]", "audiences: []"))),
    ("by-jwt.yaml", "by-jwt.yaml", |text| Some(text.replace("audiences: [shop], ", ""))),
    ("by-certificate.yaml", "by-certificate.yaml", |text| Some(text.replace("Optional", "Sometimes"))),
];

/// The rules of authorization the other way round.
fn turned(text: &str) -> Option<String> {
    let start = text.find("{name: not").expect("the first rule");
    let (end, after) =
        (text.find(", {name: pass").expect("the second"), text.find("}]}, ").expect("the end") + 1);
    Some([&text[..start], &text[end + 2..after], ", ", &text[start..end], &text[after..]].concat())
}

#[test]
fn whatever_becomes_of_a_gate_that_stands_alone_nobody_passes_whom_it_would_refuse() {
    let (gates, mut scene) = World::new().start();
    let places = (scene.gateway.http, scene.gateway.https);
    let stop = AtomicBool::new(false);
    let refused = |gate: &Gate, what: &str| {
        for other in &gate.others {
            assert_ne!(other.ask(places), 200, "{} let {} in: {what}", gate.host, other.what);
        }
    };
    let knocks = std::thread::scope(|scope| {
        let knocking = scope.spawn(|| {
            let mut knocks = 0;
            while !stop.load(Ordering::SeqCst) {
                for gate in &gates {
                    refused(gate, "at any time");
                    knocks += gate.others.len();
                }
            }
            knocks
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for gate in &gates {
                refused(gate, "whole");
                let whole = scene.files[gate.file].clone();
                let own = gate.changes(&whole).into_iter().map(|(what, text)| (gate.file, what, text));
                let others = CHANGES.iter().filter(|(of, ..)| *of == gate.file);
                let others = others.map(|(_, file, change)| (*file, "broken", change(&scene.files[file])));
                for (file, what, text) in own.chain(others).collect::<Vec<_>>() {
                    let whole = scene.files[file].clone();
                    assert_ne!(text.as_ref(), Some(&whole), "{file}: {what} changes nothing");
                    scene.put(file, text.as_deref());
                    refused(gate, &format!("{file} {what}: {text:?}"));
                    assert_eq!(scene.strangers(), 0, "{file}: {what}");
                    scene.put(file, Some(&whole));
                }
                passes(gate, &scene);
            }
        }));
        stop.store(true, Ordering::SeqCst);
        let knocks = knocking.join().expect("nobody got in");
        worked.map(|()| knocks).unwrap_or_else(|why| std::panic::resume_unwind(why))
    });
    assert_eq!(scene.strangers(), 0);
    assert!(knocks > gates.len(), "they asked {knocks} times only");
}

#[test]
fn the_control_without_its_gate_each_host_lets_its_visitors_in() {
    let mut world = World::new();
    for gate in &world.gates {
        let file = world.files.get_mut(gate.file).expect("it is there");
        let open =
            file.replacen(&format!("{}, ", gate.text), "", 1).replacen(&format!(", {}", gate.text), "", 1);
        assert_ne!(&open, file, "{}", gate.file);
        *file = open;
    }
    let (gates, scene) = world.start();
    let places = (scene.gateway.http, scene.gateway.https);
    let (mut count, before) = (0, scene.strangers());
    for gate in &gates {
        // There the handshake is a gate as well.
        let is_behind =
            |visitor: &&Visitor| gate.file != "by-certificate.yaml" || matches!(visitor.shows, Some(None));
        for other in gate.others.iter().filter(is_behind) {
            assert_eq!(other.ask(places), 200, "{} refused {}", gate.host, other.what);
            count += 1;
        }
    }
    assert_eq!(scene.strangers() - before, count, "the backend knows none of them");
}
