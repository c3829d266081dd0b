//! `sessionAffinity` in the whole program: who stays where, and what brings a client elsewhere.

use std::collections::BTreeSet;

use crate::harness::{Answer, Backend, Gateway, route};

/// Servers, each a backend of its own and one of the first backend's endpoints.
fn servers(count: usize) -> Vec<Backend> {
    (0..count).map(|at| Backend::start(&format!("server-{at}"))).collect()
}

fn backend(name: &str, servers: &[&Backend]) -> String {
    let hosts: Vec<_> =
        servers.iter().map(|one| format!("{{address: 127.0.0.1, port: {}}}", one.address.port())).collect();
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: {name}}}\nspec: {{hosts: [{}]}}\n---\n",
        hosts.join(", ")
    )
}

const SECRET: &str = "apiVersion: v1\nkind: Secret\nmetadata: {namespace: test, name: sessions}\nstringData: {key: 0123456789abcdef0123456789abcdef}\n---\n";
const SIGNED: &str = "secretKeyRef: {name: sessions, key: key}";

/// A route with this policy to all of the backends, alike.
fn to(policy: &str, backends: &[(&str, u32)]) -> String {
    let refs: Vec<_> = backends
        .iter()
        .map(|(name, weight)| format!("{{kind: GatewayBackend, name: {name}, weight: {weight}}}"))
        .collect();
    route(
        "shop",
        &format!(
            "{{hostnames: [shop.example], rules: [{{name: all, policy: {{{policy}}}, backendRefs: [{}]}}]}}",
            refs.join(", ")
        ),
    )
}

fn ask(gateway: &Gateway, path: &str, fields: &[&str]) -> (String, Option<String>) {
    let answer = gateway.request("GET", "shop.example", path, fields, "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    (answer.json()["name"].as_str().expect("a name").to_owned(), told(&answer))
}

/// The cookie, as it is shown again.
fn told(answer: &Answer) -> Option<String> {
    let cookies: Vec<_> = answer.fields.iter().filter(|(name, _)| name == "set-cookie").collect();
    assert!(cookies.len() <= 1, "{cookies:?}");
    let value = &cookies.first()?.1;
    assert!(value.contains("; HttpOnly; SameSite=Lax"), "{value}");
    value.split(';').next().map(|pair| format!("Cookie: other=1; {pair}"))
}

/// A new client: where it is, and its cookie.
fn new(gateway: &Gateway) -> (String, String) {
    let (at, cookie) = ask(gateway, "/", &[]);
    (at, cookie.expect("a session begins"))
}

#[test]
fn a_client_stays_where_it_is_and_is_told_once() {
    for key in [SIGNED, "type: Cookie"] {
        let servers = servers(3);
        let all: Vec<_> = servers.iter().collect();
        let policy = format!("sessionAffinity: {{{key}}}");
        let manifests = [backend("three", &all), SECRET.to_owned(), to(&policy, &[("three", 1)])].concat();
        let gateway = Gateway::start(&[("all.yaml", &manifests)]);
        let clients: Vec<_> = (0..48).map(|_| new(&gateway)).collect();
        let places: BTreeSet<_> = clients.iter().map(|(at, _)| at).collect();
        assert_eq!(places.len(), 3, "clients are spread");
        for (at, cookie) in &clients {
            for _ in 0..4 {
                assert_eq!(ask(&gateway, "/", &[cookie]), (at.clone(), None), "{key}");
            }
            for secret in all.iter().map(|one| one.address.port().to_string()) {
                assert!(!cookie.contains(&secret));
            }
        }
        let metrics = gateway.ask_admin("/metrics").body;
        for (result, count) in [("began", 48), ("kept", 192)] {
            let line = format!(
                "portcullis_upstream_sessions_total{{backend=\"GatewayBackend/test/three\",result=\"{result}\"}} {count}\n"
            );
            assert!(metrics.contains(&line), "{line}{metrics}");
        }
    }
}

#[test]
fn the_control_without_sessions_clients_go_everywhere_and_are_told_nothing() {
    let servers = servers(3);
    let manifests = [backend("three", &servers.iter().collect::<Vec<_>>()), to("", &[("three", 1)])].concat();
    let gateway = Gateway::start(&[("all.yaml", &manifests)]);
    let asked: Vec<_> = (0..12).map(|_| ask(&gateway, "/", &["Cookie: a=b"])).collect();
    assert!(asked.iter().all(|(_, cookie)| cookie.is_none()));
    assert_eq!(asked.iter().map(|(at, _)| at).collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn who_loses_its_endpoint_gets_another_and_nobody_else_moves() {
    for key in [SIGNED, "type: Cookie"] {
        let mut servers = servers(3);
        let policy = format!("sessionAffinity: {{{key}}}");
        let manifests = [
            backend("three", &servers.iter().collect::<Vec<_>>()),
            SECRET.to_owned(),
            to(&policy, &[("three", 1)]),
        ];
        let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
        let clients: Vec<_> = (0..24).map(|_| new(&gateway)).collect();
        drop(servers.remove(0));
        for (at, cookie) in &clients {
            let (now, told) = ask(&gateway, "/", &[cookie]);
            if at != "server-0" {
                assert_eq!((&now, told), (at, None));
                continue;
            }
            assert_ne!(now, "server-0");
            let cookie = told.unwrap_or_else(|| cookie.clone());
            assert_eq!(ask(&gateway, "/", &[&cookie]), (now, None), "and stays there");
        }
    }
}

#[test]
fn what_was_forged_or_signed_by_another_key_begins_anew() {
    let servers = servers(2);
    let backends = backend("two", &servers.iter().collect::<Vec<_>>());
    let policy = format!("sessionAffinity: {{sessionName: s, {SIGNED}}}");
    let gateway =
        Gateway::start(&[("all.yaml", &(backends + &to(&policy, &[("two", 1)]))), ("secret.yaml", SECRET)]);
    let (_, cookie) = new(&gateway);
    assert_eq!(ask(&gateway, "/", &[&cookie]).1, None);
    let mut forged = cookie.clone().into_bytes();
    let last = forged.len() - 5;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("text");
    for wrong in [&*forged, "Cookie: s=", "Cookie: s=AAAA", "Cookie: s=AAAAAAAAAAAAAAAAAAAAAAA", "Cookie: s"]
    {
        assert!(ask(&gateway, "/", &[wrong]).1.is_some(), "{wrong} is no session");
    }
    gateway.write("secret.yaml", &SECRET.replace("0123", "3210"));
    crate::harness::until("the new key", || ask(&gateway, "/", &[&cookie]).1);
}

#[test]
fn weights_choose_once_and_a_backend_that_has_none_any_more_loses_its_clients() {
    for key in [SIGNED, "type: Cookie"] {
        let servers = servers(2);
        let backends = backend("stable", &[&servers[0]]) + &backend("canary", &[&servers[1]]);
        let with = |stable, canary| {
            let told = format!("response: {{headers: {{set: [{{name: X-Stable, value: \"{stable}\"}}]}}}}");
            let policy = format!("sessionAffinity: {{sessionName: s, {key}}}, {told}");
            to(&policy, &[("stable", stable), ("canary", canary)])
        };
        let gateway =
            Gateway::start(&[("backends.yaml", &(backends + SECRET)), ("route.yaml", &with(50, 50))]);
        let clients: Vec<_> = (0..80).map(|_| new(&gateway)).collect();
        let on = |name: &str| clients.iter().filter(|(at, _)| at == name).count();
        assert!(on("server-1") >= 16 && on("server-0") >= 16);
        for (at, cookie) in &clients {
            assert_eq!(ask(&gateway, "/", &[cookie]), (at.clone(), None));
        }
        gateway.write("route.yaml", &with(100, 0));
        let is_over = || gateway.get("shop.example", "/").field("x-stable") == Some("100");
        crate::harness::until("the canary to be over", || is_over().then_some(()));
        let mut moved = 0;
        for (at, cookie) in &clients {
            let (now, told) = ask(&gateway, "/", &[cookie]);
            assert_eq!(now, "server-0");
            moved += usize::from(told.is_some());
            assert!(told.is_none() || at == "server-1");
        }
        let expected = if key == SIGNED { on("server-1") } else { 0 };
        assert_eq!(moved, expected, "a number needs no other token");
    }
}

#[test]
fn a_field_carries_it_as_well_and_https_makes_cookies_secure() {
    let servers = servers(3);
    let policy = format!("sessionAffinity: {{type: Header, sessionName: X-Session, {SIGNED}}}");
    let manifests = [
        backend("three", &servers.iter().collect::<Vec<_>>()),
        SECRET.to_owned(),
        to(&policy, &[("three", 1)]),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    for _ in 0..6 {
        let first = gateway.get("shop.example", "/");
        let token = first.field("x-session").expect("a token").to_owned();
        assert_eq!(first.field("set-cookie"), None);
        for _ in 0..4 {
            let again = gateway.request("GET", "shop.example", "/", &[&format!("X-Session: {token}")], "");
            assert_eq!(again.json()["name"], first.json()["name"]);
            assert_eq!(again.field("x-session"), None);
        }
    }

    let folder = tempfile::tempdir().expect("a folder");
    let (secret, ca) = crate::harness::certificate(folder.path(), "ours", "shop.example");
    let both = "tls: {certificateRefs: [{name: ours}], redirect: false}, rules:";
    let by_cookie = to(&format!("sessionAffinity: {{{SIGNED}}}"), &[("three", 1)]).replace("rules:", both);
    gateway.write("all.yaml", &[&*manifests[0], SECRET, &secret, &by_cookie].concat());
    gateway.until_status("TLS", |_| gateway.get_tls(&ca, "shop.example", "/").is_ok());
    let secured = gateway.get_tls(&ca, "shop.example", "/").expect("an answer");
    for (answer, is_secure) in [(secured, true), (gateway.get("shop.example", "/"), false)] {
        let cookie = answer.field("set-cookie").expect("a session begins");
        assert_eq!(cookie.ends_with("; Secure"), is_secure, "{cookie}");
    }
}

#[test]
fn no_token_is_kept_by_a_cache() {
    let servers = servers(2);
    let policy = format!("sessionAffinity: {{{SIGNED}}}, cache: {{defaultTtl: 60s, allowSetCookie: true}}");
    let manifests =
        [backend("two", &servers.iter().collect::<Vec<_>>()), SECRET.to_owned(), to(&policy, &[("two", 1)])];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let (at, cookie) = ask(&gateway, "/kept", &[]);
    assert!(cookie.is_some(), "who asked the backend has a session");
    for _ in 0..4 {
        assert_eq!(ask(&gateway, "/kept", &[]), (at.clone(), None), "whom the cache answers has none");
    }
}
