//! Fail closed: policies and what they refer to are removed, broken and turned around while requests run, and no
//! request ever reaches the backend that authentication did not let through.
//!
//! The backend judges: behind each policy here stands a field that the gateway alone sets, to what the Secret says.
//! Clients show no key, a wrong one, one that authorization must refuse, and that field with a value of their own. `FAIL_CLOSED` says how many
//! steps by chance follow those of the list, `FAIL_CLOSED_SEED` which.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::harness::{Gateway, PATIENCE, connect, read_answer, responds, until};

pub const KEY: &str = "6d0f7c1e5b9a4d3f8e2c1b0a9f8e7d6c";
pub const WRONG: &str = "1f2e3d4c5b6a79880716253443526170";
/// Valid, of somebody who may do nothing.
const RIVAL: &str = "a41f09c2d7e83b5614f2c9d0e7b8a635";
const HOSTS: [&str; 4] = ["by-rule.example", "by-route.example", "by-ref.example", "imposed.example"];

/// Counts what it gets, and what of it nobody vouches for.
#[derive(Clone, Default)]
pub struct Counts {
    all: Arc<AtomicUsize>,
    strangers: Arc<AtomicUsize>,
}

impl Counts {
    pub fn backend(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let counts = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counts = counts.clone();
                std::thread::spawn(move || counts.serve(stream));
            }
        });
        address
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut read = Vec::new();
        loop {
            while let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..end + 4]).to_ascii_lowercase();
                read.drain(..end + 4);
                self.all.fetch_add(1, Ordering::SeqCst);
                let said: Vec<_> =
                    head.split("\r\n").filter(|line| line.starts_with("x-consumer:")).collect();
                if said != ["x-consumer: acme-inc"] || head.contains("x-body: bad") {
                    self.strangers.fetch_add(1, Ordering::SeqCst);
                }
                if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                    return;
                }
            }
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(count @ 1..) => read.extend_from_slice(&buffer[..count]),
                _ => return,
            }
        }
    }
}

pub type Files = BTreeMap<&'static str, String>;

pub fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: {kind}\nmetadata: {{namespace: test, name: {name}}}\nspec: {spec}\n"
    )
}

/// Everything whole.
fn world(backend: SocketAddr, authorizer: SocketAddr) -> Files {
    let to = "backendRefs: [{kind: GatewayBackend, name: one}]";
    let entry = |name: &str, secrets: &str| {
        format!(
            "{{name: {name}, apiKey: {{{secrets}, claimsToHeaders: [{{claim: id, header: X-Consumer}}]}}}}"
        )
    };
    let jwt = "{name: users, jwt: {issuer: 'https://login.example', audiences: [shop], jwks: {configMapRef: {name: jwks, key: keys}}, claimsToHeaders: [{claim: sub, header: X-Consumer}]}}";
    let by_name = entry("named", "secretRef: {name: acme}");
    let by_label = entry("labelled", "secretSelector: {matchLabels: {keys: shop}}");
    let rules = "authorization: {rules: [{name: nobody, action: Deny, when: \"identity.id == ''\"}, {name: known, action: Allow, when: \"identity.id == 'acme-inc'\"}]}";
    let asks = "extAuth: {backendRef: {kind: GatewayBackend, name: authz}, path: /verify}";
    let checks = "validation: {queryParams: [{name: page, schema: {type: integer}}]}, ipAccess: {allow: [127.0.0.0/8]}";
    let server = |name: &str, address: SocketAddr| {
        object(
            "GatewayBackend",
            name,
            &format!("{{hosts: [{{address: 127.0.0.1, port: {}}}]}}", address.port()),
        )
    };
    Files::from([
        ("one.yaml", server("one", backend)),
        ("authz.yaml", server("authz", authorizer)),
        (
            "by-rule.yaml",
            object("GatewayRoute", "by-rule", &format!("{{hostnames: [by-rule.example], policy: {{authentication: {{anyOf: [{by_label}]}}}}, rules: [{{name: all, policy: {{authentication: {{anyOf: [{jwt}, {by_name}]}}, {rules}, {asks}}}, {to}}}]}}")),
        ),
        (
            "by-route.yaml",
            object("GatewayRoute", "by-route", &format!("{{hostnames: [by-route.example], policyRefs: [{{name: team}}], policy: {{authentication: {{mode: Required, anyOf: [{by_label}]}}, {rules}, {checks}}}, rules: [{{name: all, {to}}}]}}")),
        ),
        (
            "by-ref.yaml",
            object("GatewayRoute", "by-ref", &format!("{{hostnames: [by-ref.example], policyRefs: [{{name: limits}}, {{name: team}}], rules: [{{name: all, policyRefs: [{{name: more}}], {to}}}]}}")),
        ),
        (
            "imposed.yaml",
            object("GatewayRoute", "imposed", &format!("{{hostnames: [imposed.example], policy: {{authentication: {{mode: Required, anyOf: [{by_label}]}}, {rules}}}, rules: [{{name: all, {to}}}]}}")),
        ),
        ("team.yaml", object("GatewayPolicy", "team", &format!("{{policy: {{authentication: {{anyOf: [{by_name}, {jwt}]}}, {rules}}}}}"))),
        ("limits.yaml", object("GatewayPolicy", "limits", &format!("{{policy: {{{checks}}}}}"))),
        ("more.yaml", object("GatewayPolicy", "more", &format!("{{policy: {{{asks}}}}}"))),
        (
            "imposing.yaml",
            object("GatewayPolicy", "imposing", &format!("{{precedence: Override, targetRefs: [{{kind: GatewayRoute, name: imposed}}], policy: {{authentication: {{anyOf: [{by_label}]}}, {rules}}}}}")),
        ),
        (
            "rival.yaml",
            format!("apiVersion: v1\nkind: Secret\nmetadata: {{namespace: test, name: rival, labels: {{keys: shop}}, annotations: {{portcullis.dev/consumer: rival-co}}}}\nstringData: {{key: {RIVAL}}}\n"),
        ),
        (
            "acme.yaml",
            format!("apiVersion: v1\nkind: Secret\nmetadata: {{namespace: test, name: acme, labels: {{keys: shop}}, annotations: {{portcullis.dev/consumer: acme-inc}}}}\nstringData: {{key: {KEY}}}\n"),
        ),
        (
            "jwks.yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: test, name: jwks}\ndata: {keys: '{\"keys\": [{\"kty\": \"EC\", \"crv\": \"P-256\", \"kid\": \"1\", \"alg\": \"ES256\", \"x\": \"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4\", \"y\": \"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM\"}]}'}\n".to_owned(),
        ),
    ])
}

/// What happens to a file.
pub type Change = fn(&str) -> Option<String>;

/// Each takes away, breaks or turns around one thing; where it takes a protection away cleanly, another one stands
/// behind it. `None`: the file is gone.
const CHANGES: &[(&str, &str, Change)] = &[
    // Secrets and ConfigMaps.
    ("acme.yaml", "gone", |_| None),
    ("acme.yaml", "empty", |_| Some(String::new())),
    ("acme.yaml", "no key in it", |text| Some(text.replace("key:", "token:"))),
    ("acme.yaml", "another key", |text| Some(text.replace(KEY, "00112233445566778899aabbccddeeff"))),
    ("acme.yaml", "an empty key", |text| Some(text.replace(KEY, "''"))),
    ("acme.yaml", "another label", |text| Some(text.replace("keys: shop", "keys: other"))),
    ("acme.yaml", "another namespace", |text| Some(text.replace("namespace: test", "namespace: other"))),
    ("acme.yaml", "expired", |text| {
        Some(text.replace("annotations: {", "annotations: {portcullis.dev/expires: '2020-01-01T00:00:00Z', "))
    }),
    ("acme.yaml", "an expiry that is none", |text| {
        Some(text.replace("annotations: {", "annotations: {portcullis.dev/expires: soon, "))
    }),
    ("acme.yaml", "no YAML", |text| Some(format!("{text}]: {{"))),
    ("acme.yaml", "no base64", |text| Some(text.replace("stringData", "data"))),
    ("jwks.yaml", "gone", |_| None),
    ("jwks.yaml", "no keys", |text| Some(text.replace("P-256", "P-1"))),
    ("jwks.yaml", "no JSON", |text| Some(text.replace("{keys: '{", "{keys: '["))),
    ("jwks.yaml", "another key", |text| Some(text.replace("{keys:", "{other:"))),
    // Members of a rule; the route's own authentication stands behind.
    ("by-rule.yaml", "authentication gone", |text| {
        remove(text, "authentication: {anyOf: [{name: users", "]}, ")
    }),
    ("by-rule.yaml", "authentication misspelled", |text| {
        Some(text.replacen(
            "rules: [{name: all, policy: {authentication",
            "rules: [{name: all, policy: {authenticaton",
            1,
        ))
    }),
    ("by-rule.yaml", "a field misspelled", |text| Some(text.replacen("jwks: {", "jkws: {", 1))),
    ("by-rule.yaml", "no authentication of any kind that can be read", |text| {
        Some(text.replace("authentication:", "authentification:"))
    }),
    ("by-rule.yaml", "an entry gone", |text| remove(text, "{name: users", "X-Consumer}]}}, ")),
    ("by-rule.yaml", "entries turned around", |text| {
        Some(text.replacen(
            "[{name: users",
            "[{name: other, apiKey: {secretSelector: {matchLabels: {keys: none}}}}, {name: users",
            1,
        ))
    }),
    ("by-rule.yaml", "an entry of no kind", |text| {
        Some(text.replacen("apiKey: {secretRef", "apiKeys: {secretRef", 1))
    }),
    ("by-rule.yaml", "no entries", |text| Some(text.replace("anyOf:", "anyOff:"))),
    ("by-rule.yaml", "entries in nothing", |text| Some(text.replace("anyOf: [", "anyOf: [[], "))),
    ("by-rule.yaml", "a mode that is none", |text| Some(text.replace("{anyOf:", "{mode: Sometimes, anyOf:"))),
    ("by-rule.yaml", "a broken expression", |text| {
        Some(text.replace("identity.id == 'acme-inc'", "identity.id =="))
    }),
    ("by-rule.yaml", "an unknown name in an expression", |text| {
        Some(text.replace("identity.id == 'acme-inc'", "identity.ids == 'acme-inc'"))
    }),
    ("by-rule.yaml", "authorization gone", |text| remove(text, "authorization: {rules: [", "]}, ")),
    ("by-rule.yaml", "rules turned around", turned),
    ("by-rule.yaml", "the authorizer's name", |text| Some(text.replace("name: authz", "name: nobody"))),
    ("by-rule.yaml", "no YAML", |text| Some(format!("{text}]: {{"))),
    ("by-rule.yaml", "gone", |_| None),
    ("authz.yaml", "gone", |_| None),
    ("authz.yaml", "no hosts", |text| Some(text.replace("hosts", "host"))),
    // A route's; the policy that it names stands behind.
    ("by-route.yaml", "authentication gone", |text| remove(text, "authentication: {mode: Required", "]}, ")),
    ("by-route.yaml", "a member more", |text| {
        Some(text.replacen("policy: {auth", "policy: {nosuch: {}, auth", 1))
    }),
    ("by-route.yaml", "a member with another type", |text| {
        Some(text.replacen("authentication: {mode", "authentication: [{mode", 1).replacen(
            "]}, authorization",
            "]}], authorization",
            1,
        ))
    }),
    ("by-route.yaml", "Optional", |text| Some(text.replace("mode: Required", "mode: Optional"))),
    ("by-route.yaml", "a network that is none", |text| Some(text.replace("127.0.0.0/8", "127.0.0.0/33"))),
    ("by-route.yaml", "rules turned around", turned),
    ("by-route.yaml", "another type of a parameter", |text| {
        Some(text.replace("type: integer", "type: whole"))
    }),
    ("by-route.yaml", "empty", |_| Some(String::new())),
    // Policies by name.
    ("by-ref.yaml", "references turned around", |text| {
        Some(text.replace("[{name: limits}, {name: team}]", "[{name: team}, {name: limits}]"))
    }),
    ("by-ref.yaml", "a reference to nothing", |text| Some(text.replace("{name: team}", "{name: tema}"))),
    ("team.yaml", "gone", |_| None),
    ("team.yaml", "empty", |_| Some(String::new())),
    ("team.yaml", "renamed", |text| Some(text.replace("name: team", "name: teams"))),
    ("team.yaml", "another namespace", |text| Some(text.replace("namespace: test", "namespace: other"))),
    ("team.yaml", "authentication misspelled", |text| Some(text.replace("authentication", "authentcation"))),
    ("team.yaml", "entries turned around", |text| {
        Some(text.replacen(
            "[{name: named",
            "[{name: other, apiKey: {secretSelector: {matchLabels: {keys: none}}}}, {name: named",
            1,
        ))
    }),
    ("team.yaml", "a missing Secret", |text| Some(text.replace("name: acme", "name: nosuch"))),
    ("team.yaml", "rules turned around", turned),
    ("team.yaml", "no policy", |text| Some(text.replace("{policy: {", "{polcy: {"))),
    ("team.yaml", "no YAML", |text| Some(format!("{text}]: {{"))),
    ("team.yaml", "another kind", |text| Some(text.replace("GatewayPolicy", "GatewayPolice"))),
    ("limits.yaml", "gone", |_| None),
    ("limits.yaml", "misspelled", |text| Some(text.replace("validation", "validations"))),
    ("more.yaml", "gone", |_| None),
    ("more.yaml", "asks nobody", |text| Some(text.replace("name: authz", "name: nobody"))),
    // Imposed; the route's own stands behind.
    ("imposing.yaml", "gone", |_| None),
    ("imposing.yaml", "misspelled", |text| Some(text.replace("anyOf", "anyof"))),
    ("imposing.yaml", "a precedence that is none", |text| Some(text.replace("Override", "Overrule"))),
    ("imposing.yaml", "a target that is none", |text| {
        Some(text.replace("kind: GatewayRoute, name: imposed", "kind: GatewayRoutes, name: imposed"))
    }),
    ("imposing.yaml", "another target", |text| Some(text.replace("name: imposed}", "name: nosuch}"))),
    ("imposing.yaml", "a default", |text| Some(text.replace("Override", "Default"))),
    ("imposing.yaml", "no YAML", |text| Some(format!("{text}]: {{"))),
    ("imposed.yaml", "its own misspelled", |text| Some(text.replace("anyOf", "anyof"))),
    ("imposed.yaml", "its own gone", |text| remove(text, "policy: {authentication", "]}}, ")),
    // Somebody else's key is known there: what is left must refuse it.
    ("imposed.yaml", "its own authorization gone", |text| remove(text, ", authorization: {rules: [", "]}")),
    ("imposing.yaml", "authorization gone", |text| remove(text, ", authorization: {rules: [", "]}")),
    ("imposing.yaml", "rules turned around", turned),
    ("by-route.yaml", "a condition that is null", |text| {
        Some(text.replace("when: \"identity.id == 'acme-inc'\"", "when: null"))
    }),
    ("by-route.yaml", "an authorization that is null", |text| {
        remove(text, "authorization: {rules: [", "]}")
            .map(|text| text.replace(", , validation", ", authorization: null, validation"))
    }),
    ("by-route.yaml", "authorization gone", |text| remove(text, ", authorization: {rules: [", "]}")),
    ("rival.yaml", "no consumer", |text| Some(text.replace("rival-co", "''"))),
    ("rival.yaml", "the key of another", |text| Some(text.replace(RIVAL, KEY))),
    ("imposed.yaml", "gone", |_| None),
];

/// Without what is between.
fn remove(text: &str, from: &str, to: &str) -> Option<String> {
    let start = text.find(from).unwrap_or_else(|| panic!("no {from} in {text}"));
    let end = start + text[start..].find(to).unwrap_or_else(|| panic!("no {to} in {text}")) + to.len();
    Some([&text[..start], &text[end..]].concat())
}

/// The rules of authorization the other way round.
fn turned(text: &str) -> Option<String> {
    const NOBODY: &str = "{name: nobody, action: Deny, when: \"identity.id == ''\"}";
    const KNOWN: &str = "{name: known, action: Allow, when: \"identity.id == 'acme-inc'\"}";
    let turned = text.replace(&format!("{NOBODY}, {KNOWN}"), &format!("{KNOWN}, {NOBODY}"));
    assert_ne!(turned, text);
    Some(turned)
}

pub struct Scene {
    pub gateway: Gateway,
    pub files: Files,
    counts: Counts,
    marks: usize,
}

impl Scene {
    fn start() -> Self {
        let counts = Counts::default();
        let yes = Counts::default();
        let scene = Self::over(world(counts.backend(), yes.backend()), counts);
        scene.passes();
        scene
    }

    pub fn over(files: Files, counts: Counts) -> Self {
        let given: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        Self { gateway: Gateway::start(&given), files, counts, marks: 0 }
    }

    pub fn put(&mut self, name: &str, text: Option<&str>) {
        match text {
            Some(text) => self.gateway.write(name, text),
            None => std::fs::remove_file(self.gateway.path(name)).expect("removed"),
        }
        // What was written before this is served when this is.
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        // In a namespace that no policy can deny.
        let route = responds("mark", "mark.example", &mark).replace("namespace: test", "namespace: marks");
        self.gateway.write("mark.yaml", &route);
        self.gateway.until_answer("mark.example", "/", 200, &mark);
    }

    /// Good credentials pass everywhere.
    fn passes(&self) {
        for host in HOSTS {
            until(&format!("the key to pass {host}"), || {
                (ask(self.gateway.http, host, &[&format!("X-Api-Key: {KEY}")]) == 200).then_some(())
            });
        }
    }

    pub fn strangers(&self) -> usize {
        self.counts.strangers.load(Ordering::SeqCst)
    }
}

fn ask(gateway: SocketAddr, host: &str, fields: &[&str]) -> u16 {
    ask_over(connect(gateway), host, fields)
}

/// From another address each time: who guesses from one is stopped before anybody looks at the credential.
fn ask_from(place: usize, gateway: SocketAddr, host: &str, fields: &[&str]) -> u16 {
    let [.., high, low] = place.to_be_bytes();
    let own = SocketAddr::from(([127, 1, high, low], 0));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&own.into()).expect("loopback is ours");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket.connect(&gateway.into()).expect("it listens");
    ask_over(socket.into(), host, fields)
}

/// The status; 0 where there is no answer.
fn ask_over(mut stream: TcpStream, host: &str, fields: &[&str]) -> u16 {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    let head = format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
    match stream.write_all(head.as_bytes()).and_then(|()| read_answer(&mut stream)) {
        Ok(answer) => answer.status,
        Err(_) => 0,
    }
}

/// Asks without a key, with a wrong one, with one that authorization refuses, and under a name of its own, until told to stop. How often.
fn knock(gateway: SocketAddr, stop: &AtomicBool) -> usize {
    let (wrong, rival) = (format!("X-Api-Key: {WRONG}"), format!("X-Api-Key: {RIVAL}"));
    let tries: [&[&str]; 6] = [
        &[],
        &[&wrong],
        &[&rival],
        &["X-Consumer: acme-inc"],
        &["X_Consumer: acme-inc", "X-Consumer: root"],
        &["Authorization: Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2xvZ2luLmV4YW1wbGUifQ."],
    ];
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        for host in HOSTS {
            let status = ask_from(count, gateway, host, tries[count / HOSTS.len() % tries.len()]);
            assert_ne!(status, 200, "{host} let {:?} in", tries[count / HOSTS.len() % tries.len()]);
            count += 1;
        }
    }
    count
}

fn steps() -> usize {
    std::env::var("FAIL_CLOSED").ok().map_or(20, |text| text.parse().expect("a number"))
}

/// Runs `work` while strangers knock.
fn besieged<T>(gateway: SocketAddr, work: impl FnOnce() -> T) -> (T, usize) {
    let stop = AtomicBool::new(false);
    /// Also when the work fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let knocking = scope.spawn(|| knock(gateway, &stop));
        let done = {
            let _stop = Stop(&stop);
            work()
        };
        (done, knocking.join().expect("nobody got in"))
    })
}

#[test]
fn whatever_becomes_of_a_policy_nobody_unknown_reaches_the_backend() {
    let mut scene = Scene::start();
    let gateway = scene.gateway.http;
    let ((), knocks) = besieged(gateway, || {
        for (file, what, change) in CHANGES {
            let whole = scene.files[file].clone();
            let changed = change(&whole);
            assert_ne!(changed.as_ref(), Some(&whole), "{file}: {what} changes nothing");
            scene.put(file, changed.as_deref());
            assert_eq!(scene.strangers(), 0, "{file}: {what}");
            // Restored, it takes effect before the next change.
            scene.put(file, Some(&whole));
        }
        scene.passes();
        // Several at once, by chance: those that take a protection away cleanly stand alone.
        let seed = std::env::var("FAIL_CLOSED_SEED").ok().map(|text| text.parse::<u64>().expect("a number"));
        let mut random = seed.unwrap_or(0x9e37_79b9_7f4a_7c15).max(1);
        println!("FAIL_CLOSED={} FAIL_CLOSED_SEED={random}", steps());
        for _ in 0..steps() {
            let mut touched = Vec::new();
            for _ in 0..3 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = usize::try_from(random % CHANGES.len() as u64).expect("small");
                let (file, what, change) = CHANGES[at];
                let clean = ["gone", "another target", "a default", "Optional", "empty"];
                if touched.contains(&file) || clean.iter().any(|word| what.ends_with(word)) {
                    continue;
                }
                touched.push(file);
                scene.put(file, change(&scene.files[file].clone()).as_deref());
            }
            assert_eq!(scene.strangers(), 0, "{touched:?}");
            for file in touched {
                let whole = scene.files[file].clone();
                scene.put(file, Some(&whole));
            }
            scene.passes();
        }
    });
    assert_eq!(scene.strangers(), 0);
    assert!(knocks > CHANGES.len(), "the strangers asked {knocks} times only");
    assert!(scene.counts.all.load(Ordering::SeqCst) >= HOSTS.len(), "the control: some got through");
}

#[test]
fn the_control_a_policy_without_authentication_is_seen() {
    let mut scene = Scene::start();
    assert_eq!(scene.strangers(), 0);
    let open = scene.files["by-ref.yaml"].replace("policyRefs: [{name: limits}, {name: team}], ", "");
    scene.put("by-ref.yaml", Some(&open));
    assert_eq!(ask(scene.gateway.http, "by-ref.example", &[]), 200);
    assert_eq!(scene.strangers(), 1);
    // What clients say of themselves is judged too: nothing takes it away here.
    assert_eq!(ask(scene.gateway.http, "by-ref.example", &["X-Consumer: root"]), 200);
    assert_eq!(scene.strangers(), 2);
}

#[test]
fn the_control_a_policy_without_authorization_is_seen() {
    let mut scene = Scene::start();
    let rival = format!("X-Api-Key: {RIVAL}");
    assert_eq!(ask(scene.gateway.http, "imposed.example", &[&rival]), 403);
    for file in ["imposed.yaml", "imposing.yaml"] {
        let open = remove(&scene.files[file].clone(), ", authorization: {rules: [", "]}");
        scene.put(file, open.as_deref());
    }
    assert_eq!(scene.strangers(), 0);
    assert_eq!(ask(scene.gateway.http, "imposed.example", &[&rival]), 200);
    assert_eq!(scene.strangers(), 1);
}
