//! Policies of a GatewayPolicy at work: imposed, shared, broken; and the filters that browsers and addresses meet.

use std::io::Write as _;

use crate::harness::{Backend, Gateway, connect, read_answer, route};

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}

#[test]
fn what_is_imposed_is_in_force_and_denies_when_it_breaks() {
    let shop = route(
        "shop",
        "{hostnames: [shop.example], rules: [{name: all, policy: {disable: [securityHeaders]}, respond: {status: 200, text: served}}]}",
    );
    let imposed = |members: &str| {
        policy(
            "default",
            "imposed",
            &format!("{{precedence: Override, targetRefs: [{{kind: Installation}}], policy: {{{members}}}}}"),
        )
    };
    let gateway = Gateway::start(&[("shop.yaml", &shop), ("policy.yaml", &imposed("securityHeaders: {}"))]);
    let answer = gateway.get("shop.example", "/");
    assert_eq!((answer.status, answer.field("x-frame-options")), (200, Some("DENY")), "{answer:?}");
    let nowhere = gateway.get("nowhere.example", "/");
    assert_eq!((nowhere.status, nowhere.field("x-frame-options")), (404, Some("DENY")), "{nowhere:?}");

    gateway.write("policy.yaml", &imposed("securityHeader: {}"));
    gateway.until_answer("shop.example", "/", 503, "PolicyInvalid");
    gateway.write("policy.yaml", &imposed("ipAccess: {deny: [127.0.0.0/8]}"));
    gateway.until_answer("shop.example", "/", 403, "IpNotAllowed");
    gateway.until_answer("nowhere.example", "/", 403, "IpNotAllowed");
    std::fs::remove_file(gateway.path("policy.yaml")).expect("removed");
    gateway.until_answer("shop.example", "/", 200, "served");
    assert_eq!(gateway.get("nowhere.example", "/").status, 404);
}

#[test]
fn a_preflight_finds_the_rule_of_the_request_after_it() {
    let backend = Backend::start("api");
    let shop = route(
        "shop",
        "{hostnames: [shop.example], rules: [
          {name: write, matches: [{path: {value: /api}, method: PUT, headers: [{name: x-tenant, value: a}]}], policy: {cors: {allowOrigins: ['https://a.example'], allowMethods: [PUT]}}, backendRefs: [{kind: GatewayBackend, name: api}]},
          {name: read, matches: [{path: {value: /api}, method: GET}], policy: {cors: {allowOrigins: ['*']}}, backendRefs: [{kind: GatewayBackend, name: api}]},
          {name: rest, policy: {response: {headers: {set: [{name: x-rule, value: rest}]}}}, backendRefs: [{kind: GatewayBackend, name: api}]}]}",
    );
    let gateway = Gateway::start(&[("backend.yaml", &backend.manifest("api")), ("shop.yaml", &shop)]);
    let preflight = |path: &str, method: &str| {
        let fields = ["Origin: https://a.example", &format!("Access-Control-Request-Method: {method}")];
        gateway.request("OPTIONS", "shop.example", path, &fields, "")
    };
    let write = preflight("/api/x", "PUT");
    assert_eq!((write.status, write.field("access-control-allow-origin")), (204, Some("https://a.example")));
    let read = preflight("/api/x", "GET");
    assert_eq!((read.status, read.field("access-control-allow-origin")), (204, Some("*")));
    for (path, method) in [("/other", "GET"), ("/api", "DELETE")] {
        let ordinary = preflight(path, method);
        assert_eq!((ordinary.status, ordinary.field("x-rule")), (200, Some("rest")), "{path} {method}");
        assert_eq!(ordinary.json()["method"], "OPTIONS");
    }
    // An answer that the gateway makes of a failure can be read as well.
    drop(backend);
    let failed = gateway.request("GET", "shop.example", "/api", &["Origin: https://b.example"], "");
    assert_eq!((failed.status, failed.field("access-control-allow-origin")), (503, Some("*")), "{failed:?}");
}

#[test]
fn what_is_filled_in_goes_to_the_backend_or_nothing_does() {
    let backend = Backend::start("one");
    let request = "{path: {template: \"/v1/${path.id}\"}, headers: {set: [{name: X-Tier, value: \"${request.headers['x-tier']}\"}]}, query: {add: [{name: q, value: \"${request.headers['x-tier']}\"}]}}";
    let spec = format!(
        "{{hostnames: [a.example], rules: [{{name: filled, matches: [{{path: {{type: PathTemplate, value: '/u/{{id}}'}}}}], policy: {{request: {request}}}, backendRefs: [{{kind: GatewayBackend, name: one}}]}}, {{name: moved, matches: [{{path: {{type: PathTemplate, value: '/old/{{id}}'}}}}], redirect: {{path: {{template: \"/new/${{path.id}}\"}}}}}}]}}"
    );
    let manifests = backend.manifest("one") + &route("a", &spec);
    let gateway = Gateway::start(&[("all.yaml", &manifests)]);
    let ask = |path: &str, fields: &[&str]| gateway.request("GET", "a.example", path, fields, "");
    let answer = ask("/u/a%26b?x=1", &["X-Tier: gold & more"]);
    let seen = answer.json();
    assert_eq!(
        (answer.status, &seen["path"], &seen["query"], &seen["headers"]["x-tier"]),
        (200, &"/v1/a%26b".into(), &"x=1&q=gold%20%26%20more".into(), &"gold & more".into()),
        "{seen}"
    );
    for fields in [&[][..], &["X-Tier: a", "X-Tier: b"]] {
        let answer = ask("/u/1", fields);
        assert_eq!(
            (answer.status, &answer.json()["reason"]),
            (400, &"ExpressionFailed".into()),
            "{fields:?}"
        );
    }
    let moved = ask("/old/a%20b", &[]);
    let location = moved.field("location").unwrap_or_default();
    assert!(moved.status == 302 && location.ends_with("/new/a%20b"), "{moved:?}");
}

#[test]
fn behind_a_trusted_hop_no_client_takes_the_hop_s_address() {
    let shop = route(
        "shop",
        "{hostnames: [shop.example], rules: [{name: all, policy: {ipAccess: {allow: [127.0.0.1, 198.51.100.9, '2001:db8::/32']}}, respond: {status: 200, text: served}}]}",
    );
    for (hops, value, status) in [
        ("1", &b"198.51.100.9"[..], 200),
        ("1", b"198.51.100.9:4711", 200),
        ("1", b"[2001:db8::1]:4711", 200),
        ("1", b"203.0.113.5", 403),
        ("1", b"203.0.113.5:4711", 403),
        // Found in an audit: what could not be read was dropped, and the hop stood in for its client.
        ("1", "\u{e9}, 203.0.113.5".as_bytes(), 403),
        ("1", "\u{e9}".as_bytes(), 400),
        ("1", b"203.0.113.5, unknown", 400),
        ("2", "\u{e9}, 203.0.113.5, 10.0.0.1".as_bytes(), 403),
        ("2", "198.51.100.9, \u{e9}, 10.0.0.1".as_bytes(), 400),
    ] {
        let gateway = Gateway::with(&[("shop.yaml", &shop)], &["--trusted-hops", hops]);
        let mut stream = connect(gateway.http);
        let head = b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nX-Forwarded-For: ";
        stream.write_all(&[head, value, b"\r\n\r\n"].concat()).expect("sent");
        let answer = read_answer(&mut stream).expect("an answer");
        assert_eq!(answer.status, status, "{hops} {:?}", value.escape_ascii().to_string());
    }
}

#[test]
fn two_imposed_gates_whose_namespaces_overlap_both_hold() {
    let imposed = |name: &str, deny: &str| {
        policy(
            "default",
            name,
            &format!(
                "{{precedence: Override, targetRefs: [{{kind: Namespace, selector: {{matchLabels: {{{name}: 'yes'}}}}}}], policy: {{ipAccess: {{deny: [{deny}]}}}}}}"
            ),
        )
    };
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: test, labels: {older: 'yes', other: 'yes'}}\n";
    let shop = route(
        "shop",
        "{hostnames: [shop.example], rules: [{name: all, respond: {status: 200, text: served}}]}",
    );
    let both = imposed("older", "192.0.2.0/24") + &imposed("other", "203.0.113.0/24") + namespace;
    let gateway = Gateway::with(&[("shop.yaml", &shop), ("policies.yaml", &both)], &["--trusted-hops", "1"]);
    for (client, status) in [("192.0.2.1", 403), ("203.0.113.1", 403), ("198.51.100.1", 200)] {
        let field = format!("X-Forwarded-For: {client}");
        assert_eq!(gateway.request("GET", "shop.example", "/", &[&field], "").status, status, "{client}");
    }
}
