//! Who may do what, seen from outside: answers, access log, metrics, `explain`.

use serde_json::Value;

use super::harness::*;

const RULES: &str = "
  policy:
    authorization:
      rules:
      - {name: no-debug, action: Deny, when: \"request.headers['x-debug'] == '1'\"}
      - {name: read, action: Allow, methods: [GET], when: \"request.path != '/secret'\"}
      - {name: write, action: Allow, scopes: ['orders:write']}
";

fn manifests() -> String {
    let rule = "  rules:\n  - {name: all, respond: {status: 200, text: here}}\n";
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{name: orders, namespace: test}}\nspec:\n  hostnames: [orders.test]{RULES}{rule}"
    )
}

#[test]
fn only_what_a_rule_allows_passes_and_the_log_says_which() {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let gateway = Gateway::with(
        &[("route.yaml", &manifests())],
        &["--access-log", log.path().to_str().expect("UTF-8")],
    );
    let ask =
        |method: &str, path: &str, fields: &[&str]| gateway.request(method, "orders.test", path, fields, "");

    let read = ask("GET", "/orders", &["x-debug: 0"]);
    assert_eq!((read.status, read.body.as_str()), (200, "here"));
    for (method, path, fields) in [
        ("POST", "/orders", &["x-debug: 0"][..]),
        ("GET", "/secret", &["x-debug: 0"]),
        ("GET", "/./secret", &["x-debug: 0"]),
        ("GET", "/%73ecret", &["x-debug: 0"]),
        ("GET", "/orders", &["x-debug: 1"]),
        // No value, or two of them, of what the Deny looks at: it cannot be told, so it matches.
        ("GET", "/orders", &[]),
        ("GET", "/orders", &["x-debug: 0", "x-debug: 1"]),
        ("DELETE", "/orders", &["x-debug: 0"]),
    ] {
        let denied = ask(method, path, fields);
        assert_eq!(denied.status, 403, "{method} {path} {fields:?}");
        assert_eq!(denied.field("www-authenticate"), None);
        assert_eq!(denied.field("content-type"), Some("application/problem+json"));
        assert_eq!(denied.json()["reason"], "Forbidden", "{}", denied.body);
        assert!(!denied.body.contains("debug") && !denied.body.contains("write"), "{}", denied.body);
    }

    let lines = until("nine lines", || {
        let text = std::fs::read_to_string(log.path()).expect("readable");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        (lines.len() == 9).then_some(lines)
    });
    // Each worker writes its own: lines come in any order.
    let mut deciding: Vec<_> =
        lines.iter().map(|line| line["authorization"].as_str().unwrap_or("-")).collect();
    deciding.sort_unstable();
    let (none, debug) = ("(none)", "no-debug");
    assert_eq!(deciding, [none, none, none, none, none, debug, debug, debug, "read"]);
    let denied = lines.iter().filter(|line| line["status"] == 403 && line["reason"] == "Forbidden");
    assert!(denied.clone().count() == 8 && denied.clone().all(|line| line["authorization"] != "read"));

    let metrics = gateway.ask_admin("/metrics").body;
    let counted = |rule: &str, decision: &str| {
        let start = format!(
            "portcullis_authorization_decisions_total{{namespace=\"test\",route=\"orders\",rule=\"all\",authorization_rule=\"{rule}\",decision=\"{decision}\"}} "
        );
        metrics.lines().find_map(|line| line.strip_prefix(&start)).map(str::to_owned)
    };
    assert_eq!(counted("read", "allow").as_deref(), Some("1"), "{metrics}");
    assert_eq!(counted("no-debug", "deny").as_deref(), Some("3"));
    assert_eq!(counted("(none)", "deny").as_deref(), Some("5"));
}

#[test]
fn a_policy_that_cannot_be_compiled_denies_on_its_own_rule_and_says_why() {
    let broken = manifests().replace("request.path !=", "request.pth !=");
    let gateway =
        Gateway::start(&[("route.yaml", &broken), ("other.yaml", &responds("other", "other.test", "fine"))]);
    let answer = gateway.get("orders.test", "/orders");
    assert_eq!((answer.status, answer.json()["reason"].as_str()), (503, Some("PolicyInvalid")));
    assert_eq!(gateway.get("other.test", "/").status, 200);
    let status = gateway.ask_admin("/status").body;
    let told = "request has no field \\\"pth\\\"; did you mean \\\"path\\\"? (line 1, column 9)";
    assert!(status.contains(told) && status.contains("authorization.rules[1].when"), "{status}");
}

#[test]
fn an_imposed_authorization_is_asked_besides_the_routes_own() {
    let imposed = "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {name: platform, namespace: test}\nspec:\n  targetRefs: [{kind: Namespace}]\n  precedence: Override\n  policy:\n    authorization: {rules: [{name: no-orders-of-bob, action: Deny, when: \"request.path == '/orders/bob'\"}, {name: rest, action: Allow}]}\n";
    let gateway = Gateway::start(&[("route.yaml", &manifests()), ("policy.yaml", imposed)]);
    let status =
        |method: &str, path: &str| gateway.request(method, "orders.test", path, &["x-debug: 0"], "").status;
    assert_eq!(status("GET", "/orders"), 200);
    assert_eq!(status("GET", "/orders/bob"), 403, "the route's own would allow it");
    assert_eq!(status("POST", "/orders"), 403, "the imposed one would allow it");
}

#[test]
fn explain_says_which_rule_decides() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("route.yaml"), manifests()).expect("written");
    let manifests = folder.path().to_str().expect("UTF-8");
    let explain = |method: &str, somebody: &str| {
        let url = "http://orders.test/orders";
        run(&["explain", method, url, "-H", "x-debug: 0", "--as", somebody, "--manifests", manifests])
    };
    let allowed = explain("POST", r#"{"id": "alice", "scopes": ["orders:write"]}"#);
    let told = text(&allowed.stdout);
    assert!(allowed.status.success(), "{told}");
    assert!(
        told.contains(
            "as        alice (Jwt)
authorize no  Deny no-debug (its when is false)
authorize no  Allow read (the method differs)
authorize yes Allow write (matches)
"
        ),
        "{told}"
    );
    let denied = explain("POST", r#"{"id": "bob", "kind": "ApiKey"}"#);
    let told = text(&denied.stdout);
    assert!(!denied.status.success());
    assert!(
        told.contains(
            "authorize no  Allow write (a scope is missing)\nanswer    403 Forbidden: no rule allows it\n"
        ),
        "{told}"
    );
}

/// Clients of a backend that is told the method by a field, and the field that it got of each.
fn overriding(policy: &str, matches: &str, field: &str) -> (u16, Option<String>) {
    let backend = Backend::start("one");
    let spec = format!(
        "{{hostnames: [a.test], rules: [{{name: one, {matches} policy: {policy}, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
    );
    let gateway = Gateway::start(&[("all.yaml", &(backend.manifest("one") + &route("a", &spec)))]);
    let answer = gateway.request("GET", "a.test", "/", &[&format!("{field}: DELETE")], "");
    let got = || answer.json()["headers"][field.to_ascii_lowercase()].as_str().map(str::to_owned);
    (answer.status, if answer.status == 200 { got() } else { None })
}

#[test]
fn no_field_gives_the_backend_another_method_than_the_one_that_was_judged() {
    let by_method = "{authorization: {rules: [{name: read, action: Allow, methods: [GET]}]}}";
    let reads = "{authorization: {rules: [{name: read, action: Allow, when: \"request.headers['x-http-method-override'] in ['PATCH', 'DELETE']\"}]}}";
    let denies = "{authorization: {rules: [{name: read, action: Allow}, {name: no, action: Deny, when: \"'x-http-method-override' in request.headers\"}]}}";
    let get = "matches: [{path: {value: /}, method: GET}],";
    let whole = Some("DELETE".to_owned());
    for (policy, matches, field, expected) in [
        ("{}", "", "X-HTTP-Method-Override", (200, whole.clone())),
        (by_method, "", "X-HTTP-Method-Override", (200, None)),
        (by_method, "", "X-HTTP-Method", (200, None)),
        (by_method, "", "X-Method-Override", (200, None)),
        (by_method, "", "X.HTTP.Method", (200, None)),
        ("{}", get, "X-HTTP-Method-Override", (200, None)),
        ("{}", get, "X-Method-Override", (200, None)),
        (reads, "", "X-HTTP-Method-Override", (200, whole.clone())),
        (reads, get, "X-HTTP-Method-Override", (200, whole)),
        (denies, "", "X-HTTP-Method-Override", (403, None)),
        (denies, "", "X-Method-Override", (200, None)),
    ] {
        assert_eq!(overriding(policy, matches, field), expected, "{policy} {matches} {field}");
    }
}

#[test]
fn a_sibling_that_matches_by_method_is_enough() {
    let backend = Backend::start("one");
    let spec = "{hostnames: [a.test], rules: [
      {name: remove, matches: [{path: {value: /}, method: DELETE}], policy: {authentication: {anyOf: [{name: k, apiKey: {secretSelector: {matchLabels: {none: such}}}}]}}, backendRefs: [{kind: GatewayBackend, name: one}]},
      {name: open, backendRefs: [{kind: GatewayBackend, name: one}]}]}";
    let gateway = Gateway::start(&[("all.yaml", &(backend.manifest("one") + &route("a", spec)))]);
    assert_eq!(gateway.request("DELETE", "a.test", "/", &[], "").status, 401);
    let answer = gateway.request("POST", "a.test", "/", &["X-HTTP-Method-Override: DELETE"], "");
    assert_eq!((answer.status, answer.json()["headers"]["x-http-method-override"].as_str()), (200, None));
}
