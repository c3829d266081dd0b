//! Retries in the whole program.

use crate::harness::{Backend, Gateway, route, until};

#[test]
fn a_backend_that_is_busy_once_is_asked_again_where_the_rule_says_so() {
    let backend = Backend::start("one");
    let spec = "{hostnames: [shop.example], rules: [
        {name: patient, policy: {retry: {attempts: 2, codes: [503], backoff: 5ms}}, backendRefs: [{kind: GatewayBackend, name: one}]},
        {name: once, matches: [{path: {value: /once}}], backendRefs: [{kind: GatewayBackend, name: one}]}]}";
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let gateway = Gateway::with(
        &[("backend.yaml", &backend.manifest("one")), ("route.yaml", &route("shop", spec))],
        &["--access-log", log.to_str().expect("UTF-8")],
    );
    let ask = |method: &str, path: &str, body: &str| {
        let length = format!("Content-Length: {}", body.len());
        gateway.request(method, "shop.example", path, &[&length], body)
    };
    assert_eq!(ask("GET", "/a/fails/2", "").status, 200);
    // The control: nothing is tried again that the rule does not name.
    assert_eq!(ask("GET", "/once/fails/1", "").status, 503);
    assert_eq!(ask("GET", "/b/fails/3", "").status, 503, "three tries are all");
    assert_eq!(ask("POST", "/c/fails/1", "x").status, 503);
    let put = ask("PUT", "/d/fails/1", "with a body");
    assert_eq!((put.status, put.json()["body"].as_str()), (200, Some("with a body")));
    until("the log to count them", || {
        let log = std::fs::read_to_string(&log).ok()?;
        let of = |path: &str| {
            log.lines().find(|line| line.contains(path)).map(|line| line.contains("\"retries\":2"))
        };
        (of("/a/fails/2")? && !of("/once/fails/1")?).then_some(())
    });
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(
        metrics.contains(
            "portcullis_upstream_retries_total{backend=\"GatewayBackend/test/one\",result=\"sent\"} 5"
        ),
        "{metrics}"
    );
}
