//! Rate limits in the whole program: two workers share one count, which outlives a change of routes.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::harness::{Backend, Gateway, route, until};
use crate::tokens::Key;

fn shop(limits: &str, rules: &str) -> String {
    route(
        "shop",
        &format!("{{hostnames: [shop.example], policy: {{rateLimits: [{limits}]}}, rules: [{rules}]}}"),
    )
}

const RULE: &str = "{name: all, backendRefs: [{kind: GatewayBackend, name: one}]}";

#[test]
fn what_is_too_much_never_reaches_the_backend_and_a_change_of_routes_forgives_nothing() {
    let backend = Backend::start("one");
    let limit = "{name: fair, requests: 20, per: 744h}";
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let gateway = Gateway::with(
        &[("backend.yaml", &backend.manifest("one")), ("route.yaml", &shop(limit, RULE))],
        &["--access-log", log.to_str().expect("UTF-8")],
    );
    // Each request is a connection of its own, so that every worker has some.
    let statuses = || (0..30).map(|_| gateway.get("shop.example", "/").status).collect::<Vec<_>>();
    let first = statuses();
    assert_eq!(first.iter().filter(|status| **status == 200).count(), 20, "{first:?}");
    assert_eq!(&first[20..], [429; 10]);
    let refused = gateway.get("shop.example", "/");
    assert_eq!(refused.json()["reason"], "RateLimited");
    // 744 h by 20: 37.2 h.
    let wait: u64 = refused.field("retry-after").expect("told").parse().expect("seconds");
    assert!((133_000..=133_920).contains(&wait), "{wait}");
    assert!(refused.field("ratelimit").is_some_and(|told| told.starts_with("\"fair\";r=0;t=")));
    assert_eq!(refused.field("ratelimit-policy"), Some("\"fair\";q=20;w=2678400"));

    // Another map, and another rule under the same limit.
    let more = format!(
        "{RULE}, {{name: new, matches: [{{path: {{type: Exact, value: /new}}}}], respond: {{status: 204}}}}"
    );
    gateway.write("route.yaml", &shop(limit, &more));
    gateway.until_answer("shop.example", "/new", 429, "RateLimited");
    assert_eq!(gateway.get("shop.example", "/").status, 429);
    // The control: without the limit both pass.
    gateway.write("route.yaml", &shop("{name: other, requests: 20, per: 744h}", &more));
    until("the limit to be gone", || (gateway.get("shop.example", "/new").status == 204).then_some(()));
    assert_eq!(gateway.get("shop.example", "/").status, 200);
    until("the log to name the limit", || {
        std::fs::read_to_string(&log).ok()?.contains("\"rate_limit\":\"fair\"").then_some(())
    });
}

#[test]
fn attempts_are_counted_before_anybody_is_known() {
    let limits =
        "{name: attempts, requests: 3, per: 1h, before: Authentication}, {name: fair, requests: 2, per: 1h}";
    let policy = "policy: {authentication: {failures: {requests: 0}, anyOf: [{name: keys, apiKey: {secretRef: {name: acme}}}]}}";
    let rule = format!("{{name: all, {policy}, respond: {{status: 204}}}}");
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {namespace: test, name: acme}\nstringData: {key: 6d0f7c1e5b9a4d3f8e2c1b0a9f8e7d6c}\n";
    let gateway = Gateway::start(&[("route.yaml", &shop(limits, &rule)), ("acme.yaml", secret)]);
    let ask =
        |key: &str| gateway.request("GET", "shop.example", "/", &[&format!("X-Api-Key: {key}")], "").status;
    let good = "6d0f7c1e5b9a4d3f8e2c1b0a9f8e7d6c";
    assert_eq!(["wrong", good, "wrong", good].map(ask), [401, 204, 401, 429]);
}

/// Of one address, two users and two tenants; who has none of the claim shares a bucket with all such.
#[test]
fn a_claim_of_a_token_says_who_is_counted() {
    let key = Key::new("k");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_secs();
    let token = |user: &str, tenant: Option<&str>| {
        let mut claims =
            json!({"iss": "https://login.example", "aud": "shop", "sub": user, "exp": now + 600});
        if let Some(tenant) = tenant {
            claims["tenant"] = tenant.into();
        }
        key.sign(&json!({"alg": "ES256", "kid": "k", "typ": "at+jwt"}), &claims)
    };
    let keys = json!({"keys": [key.jwk()]});
    let users = format!("{{issuer: 'https://login.example', audiences: [shop], jwks: {{inline: '{keys}'}}}}");
    let authentication = format!("{{failures: {{requests: 0}}, anyOf: [{{name: users, jwt: {users}}}]}}");
    // A host a key, so that each has buckets of its own.
    let host = |name: &str, key: &str| {
        route(
            name,
            &format!(
                "{{hostnames: [{name}.example], policy: {{authentication: {authentication}, rateLimits: [{{name: fair, requests: 2, per: 744h{key}}}]}}, rules: [{{name: all, respond: {{status: 204}}}}]}}"
            ),
        )
    };
    let routes = [
        host("claim", ", key: identity.claims.tenant"),
        host("user", ""),
        host("place", ", key: client.address"),
    ];
    let gateway = Gateway::start(&[("routes.yaml", &routes.concat())]);
    let asks = [
        ("alice", Some("red")),
        ("bob", Some("red")),
        ("alice", Some("red")),
        ("alice", Some("blue")),
        ("alice", Some("blue")),
        ("bob", Some("blue")),
        ("bob", None),
        ("carol", None),
        ("bob", None),
    ];
    let statuses = |host: &str| {
        asks.map(|(user, tenant)| {
            let field = format!("Authorization: Bearer {}", token(user, tenant));
            gateway.request("GET", host, "/", &[&field], "").status
        })
    };
    assert_eq!(statuses("claim.example"), [204, 204, 429, 204, 204, 429, 204, 204, 429]);
    // The controls: the same tokens, counted by what else is known of who shows them.
    assert_eq!(statuses("user.example"), [204, 204, 204, 429, 429, 204, 429, 204, 429]);
    assert_eq!(statuses("place.example"), [204, 204, 429, 429, 429, 429, 429, 429, 429]);
}
