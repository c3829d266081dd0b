//! The cache behind the gates: nobody is shown what was made for others, whatever they were let in by, and what is kept is
//! no way around a gate.

use std::io::{Read as _, Write as _};

use crate::cache_origin::{Door, Origin, fresh, kept, status};
use crate::harness::{Answer, Gateway, connect, read_answer, route, text, until};

const PATH: &str = "/x";

/// A gateway with an authorizer that lets in who has a cookie, under this policy.
fn asking(origin: &Origin, authorizer: &Origin, cache: &str, more: &str) -> Gateway {
    let rule = "{name: all, backendRefs: [{kind: GatewayBackend, name: origin}]}";
    let gate = format!("extAuth: {{backendRef: {{kind: GatewayBackend, name: authorizer}}{more}}}");
    let spec = format!("{{hostnames: [shop.example], policy: {{{gate}, cache: {cache}}}, rules: [{rule}]}}");
    Gateway::start(&[
        ("origin.yaml", &origin.manifest()),
        ("authorizer.yaml", &authorizer.named("authorizer", "")),
        ("route.yaml", &route("shop", &spec)),
    ])
}

fn authorizer() -> Origin {
    Origin::new(|asked| match asked.field("cookie").and_then(|cookie| cookie.strip_prefix("session=")) {
        Some(who) => (format!("X-Who: {who}\r\nX-Plan: {who}\r\nConnection: close"), String::new()),
        None => ("HTTP/1.1 403 Forbidden\r\nConnection: close".into(), "no".into()),
    })
}

fn with_session(gateway: &Gateway, who: &str) -> Answer {
    gateway.request("GET", "shop.example", PATH, &[&format!("Cookie: session={who}")], "")
}

#[test]
fn who_another_server_let_in_shares_nothing() {
    let (origin, authorizer) = (Origin::new(fresh), authorizer());
    let gateway = asking(&origin, &authorizer, "{}", "");
    for _ in 0..2 {
        for who in ["ann", "bob"] {
            let answer = with_session(&gateway, who);
            assert!(status(&answer).ends_with("detail=authorized"), "{answer:?}");
        }
    }
    assert_eq!(origin.count(), 4);
    drop(gateway);
    // The control: without the authorizer the same is kept, for all.
    let gateway = origin.behind("{}");
    let body = kept(|| with_session(&gateway, "ann")).body;
    assert_eq!(with_session(&gateway, "bob").body, body);
    drop(gateway);
    // An identity in the key that nobody told is none.
    let gateway = asking(&origin, &authorizer, "{key: {identity: true}}", "");
    assert_ne!(with_session(&gateway, "ann").body, with_session(&gateway, "ann").body);
}

#[test]
fn what_is_kept_is_behind_the_authorizer() {
    let (origin, authorizer) = (Origin::new(fresh), authorizer());
    let told = ", identity: {idHeader: X-Who}";
    let gateway = asking(&origin, &authorizer, "{key: {identity: true}}", told);
    let ann = kept(|| with_session(&gateway, "ann")).body;
    let bob = kept(|| with_session(&gateway, "bob")).body;
    assert_ne!(ann, bob);
    assert_eq!(with_session(&gateway, "ann").body, ann);
    let (asked, before) = (authorizer.count(), origin.count());
    assert_eq!(gateway.get("shop.example", PATH).status, 403);
    assert_eq!(with_session(&gateway, "ann").body, ann);
    assert_eq!((authorizer.count(), origin.count()), (asked + 2, before), "it is asked for hits, too");
}

#[test]
fn a_token_that_the_authorizer_knows_has_answers_of_its_own() {
    let authorizer = Origin::new(|asked| match asked.field("authorization") {
        Some("Bearer ann-1" | "Bearer ann-2") => ("X-Who: ann\r\nConnection: close".into(), String::new()),
        Some("Bearer bob") => ("X-Who: bob\r\nConnection: close".into(), String::new()),
        Some("Bearer nameless") => ("Connection: close".into(), String::new()),
        _ => ("HTTP/1.1 403 Forbidden\r\nConnection: close".into(), "no".into()),
    });
    let origin = Origin::new(fresh);
    let told = ", identity: {idHeader: X-Who}";
    let gateway = asking(&origin, &authorizer, "{key: {identity: true}}", told);
    let ask = |token: &str| {
        gateway.request("GET", "shop.example", PATH, &[&format!("Authorization: Bearer {token}")], "")
    };
    let all = ["ann-1", "ann-2", "bob"].map(|token| kept(|| ask(token)).body);
    assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "each token: {all:?}");
    assert_eq!(ask("ann-1").body, all[0]);
    assert_eq!(ask("gone").status, 403, "a token is asked for each time");
    for _ in 0..2 {
        assert!(status(&ask("nameless")).ends_with("detail=authorized"), "nobody says whose it is");
    }
}

#[test]
fn what_is_kept_is_charged_for() {
    let origin = Origin::new(fresh);
    let gateway = origin.under("{cache: {}, rateLimits: [{name: few, requests: 3, per: 1h}]}");
    let statuses: Vec<_> =
        (0..4).map(|_| gateway.get("shop.example", PATH)).map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 429]);
    assert_eq!(origin.count(), 1);
    // What one client has left is not told to others.
    let gateway = origin.under("{cache: {}, rateLimits: [{name: few, requests: 30, per: 1h}]}");
    kept(|| gateway.get("shop.example", "/quota"));
    let left = || gateway.get("shop.example", "/quota").field("ratelimit").map(str::to_owned);
    assert_ne!(left().expect("told"), left().expect("told"));
}

#[test]
fn a_miss_is_tried_again_and_then_kept() {
    let origin = Origin::new(|asked| match asked.number {
        0 => ("HTTP/1.1 503 Service Unavailable\r\nConnection: close".into(), String::new()),
        _ => fresh(asked),
    });
    let gateway = origin.under("{cache: {}, retry: {attempts: 1, codes: [503], backoff: 1ms}}");
    let first = gateway.get("shop.example", PATH);
    assert_eq!((first.status, first.body.as_str(), origin.count()), (200, "answer 1", 2));
    assert_eq!(kept(|| gateway.get("shop.example", PATH)).body, "answer 1");
    assert_eq!(origin.count(), 2);
}

#[test]
fn what_is_kept_takes_no_place_at_the_backend() {
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::new(move |asked| {
        if asked.target() == "/slow" {
            held.wait();
        }
        fresh(asked)
    });
    let rule = "{name: all, policy: {cache: {}}, backendRefs: [{kind: GatewayBackend, name: origin}]}";
    let spec = format!("{{hostnames: [shop.example], rules: [{rule}]}}");
    let gateway = Gateway::start(&[
        ("origin.yaml", &origin.named("origin", ", limits: {requests: 1}")),
        ("route.yaml", &route("shop", &spec)),
    ]);
    let body = kept(|| gateway.get("shop.example", PATH)).body;
    let mut slow = connect(gateway.http);
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
        .expect("written");
    until("the backend to be full", || (origin.last().target() == "/slow").then_some(()));
    assert_eq!(gateway.get("shop.example", PATH).body, body);
    let refused = gateway.get("shop.example", "/other");
    assert_eq!(refused.status, 503, "the control: {refused:?}");
    door.open();
    assert_eq!(read_answer(&mut slow).expect("an answer").status, 200);
    // The refusal was not kept.
    until("there to be room", || (gateway.get("shop.example", "/other").status == 200).then_some(()));
}

#[test]
fn what_a_transform_behind_the_cache_writes_stands_once() {
    let origin = Origin::new(fresh);
    let set = "request: {headers: {set: [{name: X-Real-IP, value: 192.0.2.9}, {name: X-Mode, value: one}]}}";
    let gateway = origin.under(&format!("{{cache: {{}}, {set}}}"));
    gateway.get("shop.example", PATH);
    let asked = origin.last();
    assert_eq!(asked.field("x-mode"), Some("one"), "the control");
    assert_eq!(asked.fields("x-real-ip"), ["127.0.0.1"], "what the gateway knows, and nothing else");
}

#[test]
fn what_is_kept_is_packed_for_each_who_asks() {
    let origin = Origin::new(|_| {
        let fields = "Content-Type: text/plain\r\nCache-Control: max-age=600\r\nConnection: close";
        (fields.into(), "all the same ".repeat(500))
    });
    let gateway = origin.under("{cache: {}, compression: {algorithms: [Gzip]}}");
    // A head: what is packed is no text.
    let ask = |coding: &str| {
        let mut stream = connect(gateway.http);
        let request = format!(
            "GET {PATH} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nAccept-Encoding: {coding}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("written");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("an answer");
        text(&bytes).split("\r\n\r\n").next().expect("a head").to_ascii_lowercase()
    };
    // Who asks first does not decide in which form it is kept.
    let first = ask("gzip");
    assert!(first.contains("content-encoding: gzip") && first.contains("; stored"), "{first}");
    let plain = until("it to be kept", || Some(ask("identity")).filter(|head| head.contains("; hit")));
    assert!(!plain.contains("content-encoding") && plain.contains("content-length: 6500"), "{plain}");
    let packed = ask("gzip");
    assert!(packed.contains("content-encoding: gzip") && packed.contains("; hit"), "{packed}");
    assert_eq!(origin.count(), 1);
}

#[test]
fn what_one_site_may_read_is_not_told_to_another() {
    // Whom it lets read is said with the body and with what holds, and never that it varies by it.
    let origin = Origin::new(|asked| {
        let site = asked.field("origin").map(|site| format!("Access-Control-Allow-Origin: {site}\r\n"));
        let fields = format!(
            "{}ETag: \"a\"\r\nCache-Control: max-age=0\r\nConnection: close",
            site.unwrap_or_default()
        );
        match asked.field("if-none-match") {
            Some(_) => (format!("HTTP/1.1 304 Not Modified\r\n{fields}"), String::new()),
            None => (fields, "all".into()),
        }
    });
    let gateway = origin.behind("{}");
    let ask = |site: Option<&str>| {
        let fields: Vec<_> = site.iter().map(|site| format!("Origin: {site}")).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        gateway.request("GET", "shop.example", PATH, &fields, "")
    };
    // The control: what holds is used again.
    until("it to be kept", || status(&ask(None)).contains("fwd-status=304").then_some(()));
    for _ in 0..2 {
        for site in [Some("https://evil.example"), None, Some("https://good.example")] {
            let answer = ask(site);
            assert_eq!(answer.field("access-control-allow-origin"), site, "{answer:?}");
            assert_eq!(answer.body, "all");
        }
    }
    drop(gateway);
    // Where the rule has cors, that alone says it, on what is kept as well.
    let sites = "cors: {allowOrigins: [\"https://good.example\"]}";
    let gateway = origin.under(&format!("{{cache: {{}}, {sites}}}"));
    let ask = |site: &str| gateway.request("GET", "shop.example", PATH, &[&format!("Origin: {site}")], "");
    for _ in 0..3 {
        assert_eq!(ask("https://evil.example").field("access-control-allow-origin"), None);
        let good = ask("https://good.example");
        assert_eq!(good.field("access-control-allow-origin"), Some("https://good.example"));
    }
}

#[test]
fn a_changed_route_never_serves_what_another_made() {
    let origin = Origin::new(|asked| {
        let told = format!("{} {}", asked.field("x-mode").unwrap_or("-"), asked.field("host").unwrap_or("-"));
        ("Cache-Control: max-age=600\r\nConnection: close".into(), told)
    });
    let manifest = |policy: &str| {
        let rule = "{name: all, backendRefs: [{kind: GatewayBackend, name: origin}]}";
        route("shop", &format!("{{hostnames: [shop.example], policy: {policy}, rules: [{rule}]}}"))
    };
    let mode = |mode: &str, cache: &str| {
        format!("{{cache: {cache}, request: {{headers: {{set: [{{name: X-Mode, value: {mode}}}]}}}}}}")
    };
    let gateway =
        Gateway::start(&[("origin.yaml", &origin.manifest()), ("route.yaml", &manifest(&mode("one", "{}")))]);
    let ask = || gateway.get("shop.example", PATH);
    assert_eq!(kept(ask).body, "one shop.example");
    let before = origin.count();
    // The control: what changes no answer changes nothing.
    let limited = mode("one", "{}").replacen('{', "{rateLimits: [{name: few, requests: 9000, per: 1h}], ", 1);
    gateway.write("route.yaml", &manifest(&limited));
    until("the limit", || ask().field("ratelimit").is_some().then_some(()));
    assert_eq!((ask().body.as_str(), origin.count()), ("one shop.example", before));
    // What the backend is told.
    gateway.write("route.yaml", &manifest(&mode("two", "{}")));
    until("the other one", || (ask().body == "two shop.example").then_some(()));
    kept(ask);
    // What the cache itself is to do.
    let before = origin.count();
    gateway.write("route.yaml", &manifest(&mode("two", "{maxTtl: 5m}")));
    until("it to be asked for anew", || {
        ask();
        (origin.count() > before).then_some(())
    });
    kept(ask);
    // How the backend is asked: its own object, and no route has changed.
    gateway.write("origin.yaml", &origin.named("origin", ", host: inner.example"));
    until("the backend's other name", || (ask().body == "two inner.example").then_some(()));
    assert_eq!(kept(ask).body, "two inner.example");
}

#[test]
fn nothing_outside_of_the_key_decides_what_others_get() {
    // It tells what it was asked with, as a page that can be poisoned does.
    let origin = Origin::new(|asked| {
        let seen = [
            "host",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-http-method-override",
            "x-original-url",
            "x-forwarded-prefix",
            "x-reflected",
        ];
        let told: Vec<_> = seen.iter().map(|name| asked.field(name).unwrap_or("-")).collect();
        (
            "Cache-Control: max-age=600\r\nConnection: close".into(),
            format!("{} {}", asked.target(), told.join(" ")),
        )
    });
    let gateway = origin.behind("{key: {queryParams: {include: [q]}}}");
    let ask = |host: &str, path: &str, fields: &[&str]| gateway.request("GET", host, path, fields, "");
    let evil = "evil.example";
    for (index, field) in [
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: evil.example",
        "X-Forwarded-Prefix: evil.example",
        "X-Forwarded-Scheme: evil.example",
        "Forwarded: host=evil.example",
        "X-HTTP-Method-Override: evil.example",
        "X-Original-URL: /evil.example",
        "X-Host: evil.example",
    ]
    .iter()
    .enumerate()
    {
        let path = format!("/poison/{index}");
        let poisoned = ask("shop.example", &path, &[field]);
        for _ in 0..2 {
            let victim = ask("shop.example", &path, &[]);
            assert!(!victim.body.contains(evil), "{field}: {} after {}", victim.body, poisoned.body);
        }
    }
    // The control: a field that nobody knows does it, so such an origin would be found out.
    ask("shop.example", "/poison", &["X-Reflected: evil.example"]);
    assert!(kept(|| ask("shop.example", "/poison", &[])).body.contains(evil));
    // Another host, or the same under another port, is another key.
    let hosts = ["shop.example", "other.example", "shop.example:81"];
    for host in hosts {
        for _ in 0..2 {
            assert!(ask(host, "/hosts", &[]).body.contains(&format!(" {host} ")), "{host}");
        }
    }
    // A parameter that does not count does not reach the origin.
    ask("shop.example", "/query?q=1&evil=2", &[]);
    assert!(ask("shop.example", "/query?q=1", &[]).body.starts_with("/query?q=1 "));
    // Paths that a backend may take for one are not one to us.
    let paths = [
        "/account/a.css",
        "/account/%2e%2e%2fa.css",
        "/account;a.css",
        "/account%3Ba.css",
        "/account%3Fa.css",
        "/Account/a.css",
    ];
    for path in paths {
        let answer = ask("shop.example", path, &[]);
        if answer.status == 200 {
            let again = ask("shop.example", path, &[]);
            assert_eq!(answer.body, again.body, "{path}");
        }
    }
    let bodies: Vec<_> = paths
        .iter()
        .map(|path| ask("shop.example", path, &[]))
        .filter(|answer| answer.status == 200)
        .map(|answer| answer.body)
        .collect();
    let mut different = bodies.clone();
    different.sort();
    different.dedup();
    assert_eq!(bodies.len(), different.len(), "{bodies:?}");
}

#[test]
fn a_request_with_an_upgrade_goes_past() {
    let origin = Origin::new(fresh);
    let gateway = origin.behind("{}");
    let upgrade = ["Connection: upgrade", "Upgrade: websocket"];
    let ask = |path: &str, fields: &[&str]| gateway.request("GET", "shop.example", path, fields, "");
    let past = ask(PATH, &upgrade);
    assert!(status(&past).ends_with("detail=upgrade"), "{past:?}");
    let body = kept(|| ask(PATH, &[])).body;
    assert_ne!(body, past.body, "its answer was not kept");
    assert_ne!(ask(PATH, &upgrade).body, body, "what is kept is not for it");
    assert_eq!(ask(PATH, &[]).body, body, "what is kept stays");
}

#[test]
fn each_client_has_answers_of_its_own_where_the_key_has_the_identity() {
    let origin = Origin::new(fresh);
    let key = |name: &str, value: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{namespace: test, name: {name}, annotations: {{portcullis.dev/consumer: {name}}}, labels: {{keys: shop}}}}\nstringData: {{key: {value}}}\n---\n"
        )
    };
    let (ann, bob) = ("6d0f7c1e5b9a4d3f8e2c1b0a9f8e7d6c", "0a1b2c3d4e5f60718293a4b5c6d7e8f9");
    let keys = key("ann", ann) + &key("bob", bob);
    let authentication =
        "authentication: {anyOf: [{name: keys, apiKey: {secretSelector: {matchLabels: {keys: shop}}}}]}";
    let gateway = |cache: &str| {
        let rule = "{name: all, backendRefs: [{kind: GatewayBackend, name: origin}]}";
        let spec = format!(
            "{{hostnames: [shop.example], policy: {{{authentication}, cache: {cache}}}, rules: [{rule}]}}"
        );
        Gateway::start(&[
            ("origin.yaml", &origin.manifest()),
            ("route.yaml", &route("shop", &spec)),
            ("keys.yaml", &keys),
        ])
    };
    let ask = |gateway: &Gateway, key: &str| {
        gateway.request("GET", "shop.example", PATH, &[&format!("X-Api-Key: {key}")], "")
    };
    // An accepted key counts as Authorization: nothing is kept.
    let shared = gateway("{}");
    let bodies: Vec<_> = (0..3).map(|_| ask(&shared, ann).body).collect();
    assert!(bodies[0] != bodies[1] && bodies[1] != bodies[2], "{bodies:?}");
    drop(shared);
    let own = gateway("{key: {identity: true}}");
    let own_of = |key: &str| kept(|| ask(&own, key)).body;
    assert_ne!(own_of(ann), own_of(bob));
    assert_eq!(own_of(ann), own_of(ann));
    assert_eq!(ask(&own, "wrong").status, 401, "what is kept is behind authentication");
}
