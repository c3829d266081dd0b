//! Faults that are wanted, in the whole program.

use std::time::{Duration, Instant};

use crate::harness::{Backend, Gateway, route};

#[test]
fn as_many_requests_fail_or_wait_as_the_rule_says_and_no_others() {
    let backend = Backend::start("one");
    let to = "backendRefs: [{kind: GatewayBackend, name: one}]";
    let spec = format!(
        "{{hostnames: [shop.example], rules: [
        {{name: some, matches: [{{path: {{value: /some}}}}], policy: {{faultInjection: {{abort: {{status: 418, percent: 20}}}}}}, {to}}},
        {{name: asked, matches: [{{path: {{value: /asked}}}}], policy: {{faultInjection: {{when: \"request.headers['x-chaos'] == 'yes'\", abort: {{}}}}}}, {to}}},
        {{name: slow, matches: [{{path: {{value: /slow}}}}], policy: {{faultInjection: {{delay: {{duration: 300ms}}}}}}, {to}}},
        {{name: late, matches: [{{path: {{value: /late}}}}], policy: {{timeouts: {{request: 100ms}}, faultInjection: {{delay: {{duration: 30s}}}}}}, {to}}},
        {{name: closed, matches: [{{path: {{value: /closed}}}}], policy: {{authorization: {{rules: [{{name: nobody, action: Deny, methods: [GET]}}]}}, faultInjection: {{abort: {{}}}}}}, {to}}}]}}"
    );
    let gateway =
        Gateway::start(&[("backend.yaml", &backend.manifest("one")), ("route.yaml", &route("shop", &spec))]);
    let statuses: Vec<_> = (0..100).map(|_| gateway.get("shop.example", "/some").status).collect();
    let count = |status| statuses.iter().filter(|one| **one == status).count();
    assert_eq!((count(418), count(200)), (20, 80));
    let wanted = gateway.request("GET", "shop.example", "/asked", &["X-Chaos: yes"], "");
    assert_eq!((wanted.status, wanted.json()["reason"].as_str()), (503, Some("FaultInjected")));
    assert_eq!(gateway.get("shop.example", "/asked").status, 200, "the control: nobody asked for it");
    let began = Instant::now();
    assert_eq!(gateway.get("shop.example", "/slow").status, 200);
    assert!(began.elapsed() >= Duration::from_millis(300));
    let late = gateway.get("shop.example", "/late");
    assert_eq!((late.status, late.json()["reason"].as_str()), (504, Some("BackendTimeout")));
    assert_eq!(gateway.get("shop.example", "/closed").status, 403, "gates come first");
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(metrics.contains("reason=\"FaultInjected\""), "{metrics}");
}
