//! Authentication in the whole program: who gets in, and what the backend sees of it.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::Instant;

use crate::harness::{Backend, Gateway, connect, route, until};

const ACME: &str = "6d0f7c1e5b9a4d3f8e2c1b0a9f8e7d6c";
const OTHER: &str = "1f2e3d4c5b6a79880716253443526170";

fn secret(name: &str, key: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{namespace: test, name: {name}, labels: {{keys: shop}}, annotations: {{{annotations}}}}}\nstringData: {{key: {key}}}\n"
    )
}

/// The answer's status with a key.
fn status(gateway: &Gateway, key: &str) -> u16 {
    gateway.request("GET", "shop.example", "/", &[&format!("X-Api-Key: {key}")], "").status
}

fn shop(authentication: &str) -> String {
    route(
        "shop",
        &format!(
            "{{hostnames: [shop.example], policy: {{authentication: {authentication}}}, rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
        ),
    )
}

const KEYS: &str = "{anyOf: [{name: partners, apiKey: {secretSelector: {matchLabels: {keys: shop}}, claimsToHeaders: [{claim: id, header: X-Consumer}]}}]}";

#[test]
fn a_key_gets_in_while_its_secret_is_there_and_the_backend_never_sees_it() {
    let backend = Backend::start("one");
    let gateway = Gateway::start(&[
        ("backend.yaml", &backend.manifest("one")),
        ("route.yaml", &shop(KEYS)),
        ("acme.yaml", &secret("acme", ACME, "portcullis.dev/consumer: acme-inc")),
    ]);
    let missing = gateway.get("shop.example", "/");
    assert_eq!((missing.status, missing.field("www-authenticate")), (401, Some("ApiKey realm=\"api\"")));
    assert_eq!(missing.json()["reason"], "ApiKeyMissing");
    assert_eq!(status(&gateway, OTHER), 401);
    let answer = gateway.request(
        "GET",
        "shop.example",
        "/",
        &[&format!("X-Api-Key: {ACME}"), "X-CONSUMER: root", "X_Consumer: root", "X-Mine: 1"],
        "",
    );
    let seen = answer.json();
    assert_eq!((answer.status, &seen["headers"]["x-consumer"]), (200, &"acme-inc".into()), "{seen}");
    let fields = seen["headers"].as_object().expect("headers");
    assert_eq!(
        (fields.get("x-api-key"), fields.get("x_consumer"), &fields["x-mine"]),
        (None, None, &"1".into())
    );

    let began = Instant::now();
    gateway.write("other.yaml", &secret("other", OTHER, ""));
    until("the new key to be valid", || (status(&gateway, OTHER) == 200).then_some(()));
    std::fs::remove_file(gateway.path("acme.yaml")).expect("removed");
    until("the old key to be revoked", || (status(&gateway, ACME) == 401).then_some(()));
    println!("added and revoked in {:?}", began.elapsed());
    assert_eq!(status(&gateway, OTHER), 200);
    let log = gateway.process.log();
    assert!(!log.contains(ACME) && !log.contains(OTHER), "{log}");
}

#[test]
fn the_access_log_tells_who_asked_and_no_credential() {
    let backend = Backend::start("one");
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let keys = KEYS.replace("{anyOf", "{mode: Optional, anyOf");
    let rules = "authorization: {rules: [{name: known, action: Allow, when: \"identity.id != ''\"}]}";
    let gateway = Gateway::with(
        &[
            ("backend.yaml", &backend.manifest("one")),
            ("route.yaml", &shop(&format!("{keys}, {rules}"))),
            ("acme.yaml", &secret("acme", ACME, "portcullis.dev/consumer: \"a\\u001b[31m\\\"\\n}{\\u202e\"")),
        ],
        &["--access-log", log.to_str().expect("UTF-8")],
    );
    assert_eq!((status(&gateway, ACME), status(&gateway, OTHER)), (200, 401));
    assert_eq!(gateway.get("shop.example", &format!("/?key={ACME}")).status, 403);
    let lines = until("three lines", || {
        let text = std::fs::read_to_string(&log).ok()?;
        (text.lines().count() == 3).then_some(text)
    });
    let mut said: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    // Each worker writes its own.
    said.sort_by_key(|line| line["status"].as_u64());
    assert_eq!(said[0]["identity"], "a\u{1b}[31m\"\n}{\u{202e}", "{lines}");
    assert_eq!(
        (&said[0]["identity_kind"], &said[0]["identity_entry"]),
        (&"ApiKey".into(), &"partners".into())
    );
    assert_eq!((&said[0]["authorization"], &said[0]["reason"]), (&"known".into(), &serde_json::Value::Null));
    assert_eq!(
        (&said[1]["reason"], &said[1]["identity"]),
        (&"ApiKeyInvalid".into(), &serde_json::Value::Null)
    );
    assert_eq!((&said[2]["reason"], &said[2]["authorization"]), (&"Forbidden".into(), &"(none)".into()));
    assert!(
        !lines.contains(['\u{1b}', '\u{202e}']) && !lines.contains(ACME) && !lines.contains(OTHER),
        "{lines}"
    );
}

#[test]
fn a_route_whose_secret_is_missing_or_broken_is_never_served_without_it() {
    let backend = Backend::start("one");
    let by_name = "{anyOf: [{name: partners, apiKey: {secretRef: {name: acme}}}]}";
    let gateway =
        Gateway::start(&[("backend.yaml", &backend.manifest("one")), ("route.yaml", &shop(by_name))]);
    for (what, secret) in [
        ("none", None),
        (
            "another namespace's",
            Some(secret("acme", ACME, "").replace("namespace: test", "namespace: other")),
        ),
        ("one without a key", Some(secret("acme", ACME, "").replace("key:", "token:"))),
        ("one that cannot be read", Some(secret("acme", ACME, "portcullis.dev/expires: soon"))),
    ] {
        if let Some(secret) = &secret {
            gateway.write("acme.yaml", secret);
        }
        gateway.until_answer("shop.example", "/", 503, "PolicyInvalid");
        assert_eq!(status(&gateway, ACME), 503, "{what}");
        // It gets well, so that the next is seen to take effect.
        gateway.write("acme.yaml", &self::secret("acme", ACME, ""));
        until("the key to be valid", || (status(&gateway, ACME) == 200).then_some(()));
        std::fs::remove_file(gateway.path("acme.yaml")).expect("removed");
        gateway.until_answer("shop.example", "/", 503, "PolicyInvalid");
    }
}

/// What a backend gets at a path of clients that show everything that they have, by the names of its fields.
fn shown(gateway: &Gateway, path: &str) -> Vec<String> {
    let mine = format!("X-Api-Key: {ACME}");
    let fields = [
        &*mine,
        "X_API_KEY: alias",
        "x.api.key: alias",
        "X-Partner: alias",
        "x_partner: alias",
        "Authorization: Bearer e30.e30.e30",
        "Cookie: key=alias; a=b",
        "X-Mine: 1",
    ];
    let answer = gateway.request("GET", "shop.example", &format!("{path}?api_key=alias&b=1"), &fields, "");
    let seen = answer.json();
    assert_eq!((answer.status, &seen["headers"]["x-mine"]), (200, &"1".into()), "{path}: {seen}");
    assert!(seen["headers"]["cookie"].as_str().expect("cookies").contains("a=b"), "{path}: {seen}");
    let mut told: Vec<_> = seen["headers"].as_object().expect("headers").keys().cloned().collect();
    told.retain(|name| ["api", "partner", "authorization"].iter().any(|part| name.contains(part)));
    told.extend(
        seen["headers"]["cookie"].as_str().filter(|text| text.contains("key=")).map(|_| "a cookie".into()),
    );
    told.extend(seen["query"].as_str().filter(|text| text.contains("api_key")).map(|_| "a parameter".into()));
    told.sort();
    told
}

#[test]
fn no_credential_that_a_policy_names_goes_on_in_any_spelling_whichever_rule_it_meets() {
    // Fields with `_` in their names never go on.
    const ALL: [&str; 6] =
        ["a cookie", "a parameter", "authorization", "x-api-key", "x-partner", "x.api.key"];
    let backend = Backend::start("one");
    let places = "from: [{header: X-Api-Key}, {header: X-Partner}, {query: api_key}, {cookie: key}]";
    let jwks = r#"jwks: {inline: '{"keys": [{"kty": "EC", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}'}"#;
    let keys = format!("{{name: keys, apiKey: {{secretRef: {{name: acme}}, {places}}}}}");
    let users =
        format!("{{name: users, jwt: {{issuer: 'https://login.example', audiences: [shop], {jwks}}}}}");
    let rule = |name: &str, policy: &str| {
        format!(
            "{{name: {name}, matches: [{{path: {{type: PathPrefix, value: /{name}}}}}], policy: {policy}, backendRefs: [{{kind: GatewayBackend, name: one}}]}}"
        )
    };
    let forwarding =
        "{authentication: {anyOf: [{name: keys, apiKey: {secretRef: {name: acme}, forward: true}}]}}";
    let rules = [
        rule("guarded", "{}"),
        rule("open", "{authentication: {mode: Disabled}}"),
        rule("other", forwarding),
        // Its own affair, and the backend's.
        rule("own", "{disable: [authentication]}"),
    ];
    let spec = format!(
        "{{hostnames: [shop.example], policy: {{authentication: {{anyOf: [{keys}, {users}]}}}}, rules: [{}]}}",
        rules.join(", ")
    );
    let gateway = Gateway::start(&[
        ("backend.yaml", &backend.manifest("one")),
        ("route.yaml", &route("shop", &spec)),
        ("acme.yaml", &secret("acme", ACME, "")),
    ]);
    gateway.until_answer("shop.example", "/open", 200, "one");
    assert_eq!(shown(&gateway, "/own"), ALL, "the control");
    assert_eq!(shown(&gateway, "/guarded"), [""; 0]);
    assert_eq!(shown(&gateway, "/open"), [""; 0]);
    assert_eq!(shown(&gateway, "/other"), ["x-api-key"]);
    // Also while what is named cannot be used.
    std::fs::remove_file(gateway.path("acme.yaml")).expect("removed");
    gateway.until_answer("shop.example", "/guarded", 503, "PolicyInvalid");
    assert_eq!(shown(&gateway, "/open"), [""; 0]);
    // Imposed, it takes the place of what the route says, not its effect on what goes on.
    gateway.write("acme.yaml", &secret("acme", ACME, ""));
    gateway.write(
        "imposed.yaml",
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {namespace: test, name: imposed}\nspec: {precedence: Override, targetRefs: [{kind: Namespace}], policy: {authentication: {mode: Disabled}}}\n",
    );
    until("everything to be open", || (gateway.get("shop.example", "/guarded").status == 200).then_some(()));
    assert_eq!(shown(&gateway, "/guarded"), [""; 0]);
}

/// A route with a rule that reserves X-Consumer, as far as it can be read, and one that is open.
fn beside(guarded: &str) -> String {
    let open = "{name: open, matches: [{path: {type: PathPrefix, value: /open}}], backendRefs: [{kind: GatewayBackend, name: one}]}";
    route("shop", &format!("{{hostnames: [shop.example], rules: [{open}{guarded}]}}"))
}

#[test]
fn what_a_rule_reserves_stays_reserved_while_the_rule_is_broken() {
    let backend = Backend::start("one");
    let gateway = Gateway::start(&[
        ("backend.yaml", &backend.manifest("one")),
        ("route.yaml", &beside("")),
        ("acme.yaml", &secret("acme", ACME, "")),
    ]);
    let seen = || {
        let fields = ["X-Consumer: root", "x_consumer: root", "X-Mine: 1"];
        let answer = gateway.request("GET", "shop.example", "/open", &fields, "");
        let headers = answer.json()["headers"].clone();
        assert_eq!((answer.status, &headers["x-mine"]), (200, &"1".into()), "{headers}");
        headers.get("x-consumer").is_some() || headers.get("x_consumer").is_some()
    };
    let guarded = |policy: &str| {
        format!(
            ", {{name: guarded, matches: [{{path: {{type: PathPrefix, value: /guarded}}}}], policy: {policy}, backendRefs: [{{kind: GatewayBackend, name: one}}]}}"
        )
    };
    let by = |secret: &str, more: &str| {
        format!(
            "{{authentication: {{anyOf: [{{name: partners, apiKey: {{secretRef: {{name: {secret}}}, claimsToHeaders: [{{claim: id, header: X-Consumer}}]}}}}]}}{more}}}"
        )
    };
    for (what, rule) in [
        ("it works", guarded(&by("acme", ""))),
        ("its Secret is missing", guarded(&by("nobody", ""))),
        ("it has an unknown member", guarded(&by("acme", ", nothing: {}"))),
        ("another member is wrong", guarded(&by("acme", ", timeouts: {request: soon}"))),
        ("an entry is wrong", guarded(&by("acme", "").replace("{name: acme}", "{name: acme}, surprise: 1"))),
        (
            "a policy is missing",
            guarded(&by("acme", "")).replace("name: guarded,", "name: guarded, policyRefs: [{name: none}],"),
        ),
        (
            "its match is wrong",
            guarded(&by("acme", "")).replace("PathPrefix", "RegularExpression").replace("/guarded", "'('"),
        ),
        ("it has no action", guarded(&by("acme", "")).replace("backendRefs", "unknown")),
    ] {
        gateway.write("route.yaml", &beside(""));
        until("nothing to be reserved", || seen().then_some(()));
        gateway.write("route.yaml", &beside(&rule));
        until(&format!("the field to be the gateway's where {what}"), || (!seen()).then_some(()));
    }
}

#[test]
fn guessing_is_stopped_and_a_known_key_goes_on() {
    let backend = Backend::start("one");
    let brake = KEYS.replace("{anyOf", "{failures: {requests: 5, per: 1h}, anyOf");
    let gateway = Gateway::start(&[
        ("backend.yaml", &backend.manifest("one")),
        ("route.yaml", &shop(&brake)),
        ("acme.yaml", &secret("acme", ACME, "")),
        ("other.yaml", &secret("other", OTHER, "")),
    ]);
    assert_eq!(status(&gateway, ACME), 200);
    let guesses: Vec<_> = (0..8).map(|guess| status(&gateway, &guess.to_string())).collect();
    assert_eq!(guesses, [401, 401, 401, 401, 401, 429, 429, 429]);
    assert_eq!((status(&gateway, OTHER), status(&gateway, ACME)), (429, 200));
}

/// A backend that takes every upgrade and sends back what comes then.
fn tunnels() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                head_of(&mut stream);
                let answer =
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n";
                stream.write_all(answer.as_bytes()).expect("sent");
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..count]).expect("sent");
                }
            });
        }
    });
    address
}

fn head_of(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    crate::harness::text(&head)
}

#[test]
fn a_tunnel_goes_on_without_its_key_and_is_logged_with_who_began_it() {
    let backend = tunnels();
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let server = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: one}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}]}}\n",
        backend.port()
    );
    let gateway = Gateway::with(
        &[
            ("backend.yaml", &server),
            ("route.yaml", &shop(KEYS)),
            ("acme.yaml", &secret("acme", ACME, "portcullis.dev/consumer: acme-inc")),
        ],
        &["--access-log", log.to_str().expect("UTF-8")],
    );
    let ask = || {
        let mut tunnel = connect(gateway.http);
        let head = format!(
            "GET /t HTTP/1.1\r\nHost: shop.example\r\nX-Api-Key: {ACME}\r\nConnection: upgrade\r\nUpgrade: own/1\r\n\r\n"
        );
        tunnel.write_all(head.as_bytes()).expect("sent");
        let head = head_of(&mut tunnel);
        (tunnel, head)
    };
    let (mut tunnel, head) = ask();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    std::fs::remove_file(gateway.path("acme.yaml")).expect("removed");
    until("the key to be revoked", || ask().1.starts_with("HTTP/1.1 401").then_some(()));
    tunnel.write_all(b"still here").expect("sent");
    let mut echoed = [0; 10];
    tunnel.read_exact(&mut echoed).expect("it goes on");
    assert_eq!(&echoed, b"still here");
    drop(tunnel);
    let line = until("its line", || {
        let lines = std::fs::read_to_string(&log).ok()?;
        lines
            .lines()
            .find(|line| line.contains("\"status\":101") && line.contains("\"request_bytes\":10"))
            .map(str::to_owned)
    });
    for part in
        ["\"identity\":\"acme-inc\"", "\"identity_kind\":\"ApiKey\"", "\"identity_entry\":\"partners\""]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains(ACME));
}
