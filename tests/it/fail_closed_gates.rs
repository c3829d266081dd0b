//! Hosts that one gate alone protects, and their visitors: whom it knows, and everybody else, each with one thing wrong.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::SanType;
use serde_json::json;

use super::client_certificates::{Authority, Leaf, client, config};
use super::fail_closed::{KEY, WRONG, object};
use super::tokens::{Key, encode};
use crate::harness::{PATIENCE, connect, read_answer};

const BAD: &str = "X-Body: bad";
const TELL: &str = "claimsToHeaders: [{claim: id, header: X-Consumer}]";
/// What the backend is told where the gate itself knows nobody.
const TELLS_ALL: &str = "request: {headers: {set: [{name: X-Consumer, value: acme-inc}]}}";

/// Who asks, and how.
pub struct Visitor {
    pub what: String,
    pub host: String,
    target: &'static str,
    kind: &'static str,
    fields: Vec<String>,
    body: &'static str,
    /// Which address of ours it has.
    from: [u8; 4],
    /// Over TLS: with which certificate.
    pub shows: Option<Option<Arc<Leaf>>>,
}

impl Visitor {
    pub fn new(what: &str, fields: &[String]) -> Self {
        Self {
            what: what.into(),
            host: String::new(),
            target: "/x",
            kind: "application/json",
            fields: fields.to_vec(),
            body: "{\"n\": 1}",
            from: [127, 0, 0, 1],
            shows: None,
        }
    }

    pub fn at(self, host: &str) -> Self {
        Self { host: host.into(), ..self }
    }

    pub fn with_body(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    fn target(self, target: &'static str) -> Self {
        Self { target, ..self }
    }

    pub fn showing(self, leaf: Option<&Arc<Leaf>>) -> Self {
        Self { shows: Some(leaf.cloned()), ..self }
    }

    /// The status; 0 where there is no answer.
    pub fn ask(&self, scene: (SocketAddr, SocketAddr)) -> u16 {
        let (http, https) = scene;
        let Some(leaf) = &self.shows else {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.expect("a socket");
            socket.bind(&SocketAddr::from((self.from, 0)).into()).expect("loopback is ours");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            socket.connect(&http.into()).expect("it listens");
            return self.over(std::net::TcpStream::from(socket));
        };
        let name = self.host.clone().try_into().expect("a name");
        let connection = rustls::ClientConnection::new(config(leaf.as_deref(), &[]), name).expect("a client");
        self.over(rustls::StreamOwned::new(connection, connect(https)))
    }

    fn over(&self, mut stream: impl Read + Write) -> u16 {
        let Self { host, target, kind, body, .. } = self;
        let fields: String = self.fields.iter().map(|field| format!("{field}\r\n")).collect();
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{fields}\r\n{body}",
            body.len()
        );
        match stream.write_all(head.as_bytes()).and_then(|()| read_answer(&mut stream)) {
            Ok(answer) => answer.status,
            Err(_) => 0,
        }
    }
}

/// A host, and the one thing that protects it.
pub struct Gate {
    pub file: &'static str,
    pub host: String,
    /// A member of `policy`, or of `tls`.
    pub member: &'static str,
    /// As it is written.
    pub text: String,
    /// The route's `tls`, if it has one.
    tls: String,
    pub friend: Visitor,
    /// What it must refuse, each alone.
    pub others: Vec<Visitor>,
}

impl Gate {
    fn new(
        file: &'static str,
        member: &'static str,
        spec: &str,
        friend: Visitor,
        others: Vec<Visitor>,
    ) -> Self {
        let host = file.replace(".yaml", ".example");
        let at = |visitor: Visitor| visitor.at(&host);
        let bad = |mut visitor: Visitor| {
            visitor.fields.push(BAD.into());
            at(visitor)
        };
        let (friend, others) = (at(friend), others.into_iter().map(bad).collect());
        Self { file, member, text: format!("{member}: {spec}"), tls: String::new(), friend, others, host }
    }

    /// By who clients are; with those who are nobody.
    fn of(file: &'static str, entry: &str, friend: Visitor, others: Vec<Visitor>) -> Self {
        let spec = format!("{{failures: {{requests: 0}}, anyOf: [{{name: one, {entry}}}]}}");
        let names = ["X_Consumer: acme-inc".into(), "x.consumer: acme-inc".into()];
        let mut visitors = vec![
            Visitor::new("nobody", &[]),
            Visitor::new("a name", &["X-Consumer: acme-inc".into()]),
            Visitor::new("a name in other signs", &names),
        ];
        if friend.shows.is_some() {
            visitors = visitors.into_iter().map(|visitor| visitor.showing(None)).collect();
        }
        visitors.extend(others);
        Self::new(file, "authentication", &spec, friend, visitors)
    }

    fn with_tls(self, tls: &str) -> Self {
        Self { tls: format!("tls: {{certificateRefs: [{{name: served}}], {tls}}}, "), ..self }
    }

    pub fn route(&self) -> String {
        let Self { host, tls, text, .. } = self;
        let tells = match self.member {
            "authentication" | "extAuth" => "timeouts: {}",
            _ => TELLS_ALL,
        };
        let policy = if tls.contains(text) { tells.to_owned() } else { format!("{text}, {tells}") };
        let spec = format!(
            "{{hostnames: [{host}], {tls}rules: [{{name: all, matches: [{{path: {{type: PathTemplate, value: '/{{id}}'}}}}], policy: {{{policy}}}, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
        );
        object("GatewayRoute", self.file.trim_end_matches(".yaml"), &spec)
    }

    /// What can become of it, all of which must cost its visitors the way in.
    pub fn changes(&self, whole: &str) -> Vec<(&'static str, Option<String>)> {
        let Self { member, text, .. } = self;
        let spec = &text[member.len() + 2..];
        let with = |other: &str| Some(whole.replacen(text, other, 1));
        let before = |more: &str| Some(whole.replacen("policy: {", more, 1));
        let mut changes = vec![
            ("gone", None),
            ("no YAML", Some(format!("{whole}]: {{"))),
            ("misspelled", with(&format!("{member}s: {spec}"))),
            ("null", with(&format!("{member}: null"))),
            ("a number", with(&format!("{member}: 7"))),
            ("in a list", with(&format!("{member}: [{spec}]"))),
            ("a member more", before("policy: {nosuch: {}, ")),
            ("a policy that is not there", before("policyRefs: [{name: nosuch}], policy: {")),
        ];
        // Nothing that is asked for asks nothing.
        if *member != "validation" {
            changes.push(("empty", with(&format!("{member}: {{}}"))));
        }
        changes
    }
}

fn bearer(token: &str) -> Vec<String> {
    vec![format!("Authorization: Bearer {token}")]
}

const ISSUER: &str = "https://login.example";

pub fn by_jwt(key: &Key) -> Gate {
    let foreign = Key::new("1");
    let header = json!({"alg": "ES256", "kid": "1"});
    let claims = |change: serde_json::Value| {
        let mut claims = json!({"iss": ISSUER, "aud": "shop", "sub": "acme-inc", "exp": 4_102_444_800_u64});
        claims.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        claims
    };
    let signed = |change| bearer(&key.sign(&header, &claims(change)));
    let good = key.sign(&header, &claims(json!({})));
    let none = json!({"alg": "none"});
    let unsigned = format!("{}.{}.", encode(none.to_string()), encode(claims(json!({})).to_string()));
    let rival = key.sign(&header, &claims(json!({"sub": "rival-co"})));
    let (head, signature) =
        (&good[..good.find('.').expect("a head")], &rival[rival.rfind('.').expect("parts")..]);
    let swapped = format!("{head}.{}{signature}", encode(claims(json!({})).to_string()));
    let entry = format!(
        "jwt: {{issuer: '{ISSUER}', audiences: [shop], jwks: {{configMapRef: {{name: jwks, key: keys}}}}, {TELL}}}"
    );
    let others = vec![
        Visitor::new(
            "a foreign key under the same name",
            &bearer(&foreign.sign(&header, &claims(json!({})))),
        ),
        Visitor::new("another token's signature", &bearer(&swapped)),
        Visitor::new("no signature", &bearer(&unsigned)),
        Visitor::new("no algorithm, a signature", &bearer(&key.sign(&none, &claims(json!({}))))),
        Visitor::new("another audience", &signed(json!({"aud": "bank"}))),
        Visitor::new("another issuer", &signed(json!({"iss": "https://evil.example"}))),
        Visitor::new("yesterday's", &signed(json!({"exp": 1_700_000_000}))),
        Visitor::new("tomorrow's", &signed(json!({"nbf": 4_000_000_000_u64}))),
    ];
    Gate::of("by-jwt.yaml", &entry, Visitor::new("the token", &bearer(&good)), others)
}

/// Says what `judge` makes of a question, which ends with `end`.
pub fn says(end: &'static str, judge: fn(&str) -> String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut question, mut piece) = (String::new(), [0; 4096]);
                while !question.contains(end) {
                    match stream.read(&mut piece) {
                        Ok(count @ 1..) => question += &String::from_utf8_lossy(&piece[..count]),
                        _ => return,
                    }
                }
                let _ = stream.write_all(judge(&question).as_bytes());
            });
        }
    });
    address
}

/// Active for whom the token says, unless it says why not.
pub fn introspected(question: &str) -> String {
    let has = |token: &str| question.contains(&format!("token={token}&"));
    let said = if has(KEY) {
        json!({"active": true, "sub": "acme-inc", "aud": "shop"})
    } else if has("for-the-bank") {
        json!({"active": true, "sub": "acme-inc", "aud": "bank"})
    } else if has("of-yesterday") {
        json!({"active": true, "sub": "acme-inc", "aud": "shop", "exp": 1_700_000_000})
    } else {
        json!({"active": false, "sub": "acme-inc", "aud": "shop"})
    };
    let (said, head) =
        (said.to_string(), "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close");
    format!("{head}\r\ncontent-length: {}\r\n\r\n{said}", said.len())
}

pub fn authorized(question: &str) -> String {
    let knows = question.contains(&format!("Bearer {KEY}"));
    let said = if knows { "200 OK\r\nx-consumer: acme-inc" } else { "403 Forbidden" };
    format!("HTTP/1.1 {said}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
}

pub fn by_credentials(asked: SocketAddr) -> Vec<Gate> {
    let key = |key: &str| vec![format!("X-Api-Key: {key}")];
    let password = |name: &str, password: &str| {
        vec![format!("Authorization: Basic {}", STANDARD.encode(format!("{name}:{password}")))]
    };
    let known = Visitor::new("the key", &key(KEY));
    let keys = vec![
        Visitor::new("a wrong key", &key(WRONG)),
        Visitor::new("an empty key", &key("")),
        Visitor::new("half of the key", &key(&KEY[..16])),
        Visitor::new("the key in other signs", &[format!("X_Api_Key: {KEY}")]),
        Visitor::new("the key twice", &[key(KEY), key(KEY)].concat()),
    ];
    let passwords = vec![
        Visitor::new("a wrong password", &password("acme-inc", WRONG)),
        Visitor::new("no password", &password("acme-inc", "")),
        Visitor::new("a name that nobody has", &password("nobody", KEY)),
    ];
    let tokens = ["inactive", "for-the-bank", "of-yesterday"];
    let tokens = tokens.map(|token| Visitor::new(token, &bearer(token))).into();
    let introspection = format!(
        "introspection: {{endpoint: 'http://{asked}/introspect', audiences: [shop], clientSecretRef: {{name: asker}}, cacheDuration: 0s, {TELL}}}"
    );
    vec![
        Gate::of("by-key.yaml", &format!("apiKey: {{secretRef: {{name: acme}}, {TELL}}}"), known, keys),
        Gate::of(
            "by-password.yaml",
            &format!("basicAuth: {{secretRef: {{name: people}}, {TELL}}}"),
            Visitor::new("the password", &password("acme-inc", KEY)),
            passwords,
        ),
        Gate::of("by-token.yaml", &introspection, Visitor::new("the token", &bearer(KEY)), tokens),
    ]
}

/// By what a request is like.
pub fn by_requests() -> Vec<Gate> {
    let pass = |pass: &str| [format!("X-Pass: {pass}")];
    let tenant = |tenant: &str| [format!("X-Tenant: {tenant}")];
    let plain = |what: &str| Visitor::new(what, &[]);
    let validated = |file, spec: &str, friend, others| Gate::new(file, "validation", spec, friend, others);
    vec![
        Gate::new(
            "by-rules.yaml",
            "authorization",
            "{rules: [{name: not, action: Deny, when: \"request.headers['x-pass'].endsWith('!')\"}, {name: pass, action: Allow, methods: [POST], when: \"request.headers['x-pass'].startsWith('open')\"}]}",
            Visitor::new("the word", &pass("open")),
            vec![
                plain("no word"),
                Visitor::new("another word", &pass("shut")),
                Visitor::new("a word that is denied", &pass("open!")),
                Visitor::new("two words", &[pass("open"), pass("open")].concat()),
            ],
        ),
        Gate::new(
            "by-address.yaml",
            "ipAccess",
            "{allow: [127.0.0.0/16], deny: [127.0.9.0/24]}",
            plain("from inside"),
            vec![
                Visitor { from: [127, 1, 0, 1], ..plain("from outside") },
                Visitor { from: [127, 0, 9, 7], ..plain("from where it is denied") },
                Visitor {
                    from: [127, 1, 0, 1],
                    ..Visitor::new("who says that it is inside", &["X-Forwarded-For: 127.0.0.1".into()])
                },
            ],
        ),
        validated(
            "by-query.yaml",
            "{queryParams: [{name: page, required: true, schema: {type: integer}}]}",
            plain("a page").target("/x?page=1"),
            vec![
                plain("no page"),
                plain("a word for a page").target("/x?page=one"),
                plain("two pages").target("/x?page=1&pag%65=one"),
            ],
        ),
        validated(
            "by-field.yaml",
            "{headers: [{name: X-Tenant, required: true, schema: {pattern: '^[a-z]+$'}}]}",
            Visitor::new("a tenant", &tenant("shop")),
            vec![
                plain("no tenant"),
                Visitor::new("a tenant that is none", &tenant("SHOP")),
                Visitor::new("two tenants", &[tenant("shop"), tenant("0")].concat()),
            ],
        ),
        validated(
            "by-path.yaml",
            "{pathParams: [{name: id, schema: {pattern: '^x$'}}]}",
            plain("the path"),
            vec![plain("another path").target("/y"), plain("a longer path").target("/xx")],
        ),
        validated(
            "by-type.yaml",
            "{contentTypes: [application/json]}",
            plain("the type"),
            vec![
                Visitor { kind: "text/xml", ..plain("another type") },
                Visitor { kind: "application/json, text/xml", ..plain("two types") },
            ],
        ),
        validated(
            "by-size.yaml",
            "{maxBodySize: '16'}",
            plain("a small body"),
            vec![plain("a large body").with_body("{\"n\": 1000000000000}")],
        ),
        validated(
            "by-schema.yaml",
            "{bodySchema: {secretRef: {name: schema, key: order.json}}}",
            plain("a good body"),
            vec![
                plain("a bad body").with_body("{\"n\": \"one\"}"),
                plain("no body").with_body(""),
                plain("two bodies in one").with_body("{\"n\": 1, \"n\": \"one\"}"),
                Visitor { kind: "text/plain", ..plain("a body of another type") },
            ],
        ),
        Gate::new(
            "by-server.yaml",
            "extAuth",
            "{backendRef: {kind: GatewayBackend, name: authz}, path: /verify, backendHeaders: [X-Consumer]}",
            Visitor::new("whom it knows", &bearer(KEY)),
            vec![
                plain("whom it does not know"),
                Visitor::new("a wrong token", &bearer(WRONG)),
                Visitor::new("a name", &["X-Consumer: acme-inc".into()]),
            ],
        ),
    ]
}

/// By the handshake, and by who showed what in it.
pub fn by_certificates(partners: &Authority) -> Vec<Gate> {
    let strangers = Authority::new("Strangers");
    let leaf = |authority: &Authority, serial| {
        let mut params = client("acme-inc", serial);
        params.subject_alt_names = vec![SanType::DnsName("acme-inc".try_into().expect("ASCII"))];
        Arc::new(authority.sign(params))
    };
    let (acme, revoked, foreign) = (leaf(partners, 7), leaf(partners, 66), leaf(&strangers, 7));
    let friend = || Visitor::new("the certificate", &[]).showing(Some(&acme));
    let others = || {
        vec![
            Visitor::new("a revoked certificate", &[]).showing(Some(&revoked)),
            Visitor::new("a stranger's certificate", &[]).showing(Some(&foreign)),
        ]
    };
    let trusts =
        "caCertificateRefs: [{kind: Secret, name: partners}], crlRefs: [{kind: Secret, name: revoked}]";
    let mut of_all = others();
    of_all.push(Visitor::new("no certificate", &[]).showing(None));
    let spec = format!("{{{trusts}}}");
    let handshake = Gate::new("by-handshake.yaml", "clientValidation", &spec, friend(), of_all);
    let tls = handshake.text.clone();
    let entry = format!("clientCertificate: {{id: [DNS], {TELL}}}");
    vec![
        handshake.with_tls(&tls),
        // Whoever has none is let into the connection, and no further.
        Gate::of("by-certificate.yaml", &entry, friend(), others())
            .with_tls(&format!("clientValidation: {{mode: Optional, {trusts}}}")),
    ]
}
