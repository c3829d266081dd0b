//! What third parties are shown of ours, in the whole program.

use serde_json::Value;

use crate::harness::{Backend, Gateway, route, text, until};

const SECRETS: &str = "\
apiVersion: v1\nkind: Secret\nmetadata: {name: pay, namespace: test}\nstringData: {token: \"canary/1 +\\n\"}\n---\n\
apiVersion: v1\nkind: Secret\nmetadata: {name: login, namespace: test}\ntype: kubernetes.io/basic-auth\nstringData: {username: shop, password: \"canary:1\"}\n---\n";

/// A backend of this name that is shown this, and a route under its name.
fn third_party(backend: &Backend, name: &str, credentials: &str) -> String {
    let manifest = backend.manifest(name).replace("}]}", &format!("}}], credentials: {credentials}}}"));
    let rules = format!("[{{name: all, backendRefs: [{{kind: GatewayBackend, name: {name}}}]}}]");
    manifest + &route(name, &format!("{{hostnames: [{name}.example], rules: {rules}}}"))
}

fn shown(gateway: &Gateway, host: &str, path: &str, fields: &[&str]) -> Value {
    let answer = gateway.request("GET", host, path, fields, "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[test]
fn a_backend_is_shown_ours_and_never_what_the_client_sent_there() {
    let backend = Backend::start("pay");
    let key = |rest: &str| format!("{{{rest}, secretKeyRef: {{name: pay, key: token}}}}");
    let files = [
        third_party(&backend, "bearer", &key("header: Authorization, prefix: 'Bearer '")),
        third_party(&backend, "header", &key("header: X-Api-Key")),
        third_party(&backend, "query", &key("query: api key")),
        third_party(&backend, "basic", "{basic: {secretRef: {name: login}}}"),
        third_party(&backend, "plain", "{header: X-One, secretKeyRef: {name: pay}}"),
        SECRETS.into(),
    ];
    let gateway = Gateway::with(&[("all.yaml", &files.join(""))], &["--access-log", "stdout"]);
    let theirs = ["Authorization: Bearer theirs", "X-Api-Key: theirs", "X_Api_Key: theirs"];
    let path = "/v1?api%20key=theirs&page=2&api+key=theirs";

    let told = shown(&gateway, "bearer.example", path, &theirs);
    assert_eq!(told["headers"]["authorization"], "Bearer canary/1 +");
    assert_eq!(told["headers"]["x-api-key"], "theirs", "the control: another place is the client's");
    let told = shown(&gateway, "header.example", path, &theirs);
    assert_eq!(told["headers"]["x-api-key"], "canary/1 +");
    assert_eq!(told["headers"].get("x_api_key"), None);
    let told = shown(&gateway, "query.example", path, &theirs);
    assert_eq!(told["query"], "page=2&api%20key=canary%2F1%20%2B");
    let told = shown(&gateway, "plain.example", path, &theirs);
    assert_eq!(told["headers"]["x-one"], "canary/1 +", "a Secret of one key needs no name of it");
    let told = shown(&gateway, "basic.example", path, &theirs);
    assert_eq!(told["headers"]["authorization"], "Basic c2hvcDpjYW5hcnk6MQ==");

    // A new secret is shown from the moment that it is there.
    gateway.write("all.yaml", &files.join("").replace("canary/1 +", "second"));
    until("the new secret", || {
        let told = shown(&gateway, "bearer.example", "/", &[]);
        (told["headers"]["authorization"] == "Bearer second").then_some(())
    });
    let told = [gateway.status().to_string(), gateway.ask_admin("/metrics").body, gateway.process.log()];
    assert!(told.iter().all(|text| !text.contains("canary") && !text.contains("Y2FuYXJ5")), "{told:?}");
}

#[test]
fn without_its_credential_a_backend_is_not_asked() {
    let backend = Backend::start("pay");
    let key =
        |name: &str, key: &str| format!("{{header: X-Key, secretKeyRef: {{name: {name}, key: {key}}}}}");
    let cases = [
        ("absent", key("absent", "token"), "SecretNotFound"),
        ("keyless", key("pay", "absent"), "SecretNotFound"),
        (
            "elsewhere",
            "{header: X-Key, secretKeyRef: {name: pay, namespace: other, key: token}}".into(),
            "RefNotPermitted",
        ),
        ("misspelt", "{header: X-Key, secretKeyRef: {name: pay}, prefx: a}".into(), "UnknownField"),
        ("double", "{header: X-Key, query: key, secretKeyRef: {name: pay}}".into(), "Invalid"),
        ("host", "{header: Host, secretKeyRef: {name: pay}}".into(), "Invalid"),
    ];
    let mut files: String = cases.iter().map(|(name, given, _)| third_party(&backend, name, given)).collect();
    files += &third_party(&backend, "outside", &key("pay", "token"))
        .replace(&format!("address: {}", backend.address.ip()), "address: api.payments.example");
    files += &third_party(&backend, "well", &key("pay", "token"));
    files += SECRETS;
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    for (name, ..) in &cases {
        let answer = gateway.get(&format!("{name}.example"), "/");
        assert_eq!((answer.status, answer.json()["reason"].as_str()), (503, Some("PolicyInvalid")), "{name}");
    }
    assert_eq!(gateway.get("outside.example", "/").status, 503, "in the clear");
    assert_eq!(shown(&gateway, "well.example", "/", &[])["headers"]["x-key"], "canary/1 +", "the control");
    let output = crate::harness::run(&["check", gateway.path("all.yaml").to_str().expect("UTF-8")]);
    let told = text(&output.stdout) + &text(&output.stderr);
    for (name, _, reason) in &cases {
        assert!(told.contains(name) && told.contains(reason), "{name}, {reason}: {told}");
    }
    assert!(told.contains("set spec.tls") && !told.contains("canary"), "{told}");
}

#[test]
fn each_host_of_a_backend_has_a_limit_of_its_own() {
    let (one, other) = (Backend::start("one"), Backend::start("other"));
    let host = |backend: &Backend| {
        format!("{{address: {}, port: {}}}", backend.address.ip(), backend.address.port())
    };
    let hosts = format!("{}, {}], rateLimit: {{requests: 2, per: 744h}}}}", host(&one), host(&other));
    let pay = one.manifest("pay").replace(&format!("{}]}}", host(&one)), &hosts);
    let rules = "[{name: all, backendRefs: [{kind: GatewayBackend, name: pay}]}]";
    let files = pay + &route("pay", &format!("{{hostnames: [pay.example], rules: {rules}}}"));
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let mut asked: Vec<_> = (0..4)
        .map(|_| {
            let answer = gateway.get("pay.example", "/");
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.json()["name"].as_str().expect("a name").to_owned()
        })
        .collect();
    asked.sort();
    assert_eq!(asked, ["one", "one", "other", "other"]);
    let refused = gateway.get("pay.example", "/");
    assert_eq!((refused.status, refused.json()["reason"].as_str()), (503, Some("Overloaded")));
    assert!(refused.field("retry-after").is_some());
    let metrics = gateway.ask_admin("/metrics").body;
    let count = |name: &str, more: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name) && line.contains(more));
        line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
    };
    assert_eq!(count("portcullis_upstream_errors_total{", "RateLimited").as_deref(), Some("1"), "{metrics}");
    assert_eq!(count("portcullis_upstream_requests_total{", "test/pay").as_deref(), Some("4"), "{metrics}");
}

#[test]
fn a_backend_is_asked_no_more_often_than_it_may_be_whichever_rule_asks() {
    let backend = Backend::start("pay");
    let limited = backend.manifest("pay").replace("}]}", "}], rateLimit: {requests: 3, per: 744h}}");
    let free = backend.manifest("free");
    let to = |host: &str, name: &str| {
        let rules = format!("[{{name: all, backendRefs: [{{kind: GatewayBackend, name: {name}}}]}}]");
        route(
            host,
            &format!(
                "{{hostnames: [{host}.example], policy: {{retry: {{attempts: 2, codes: [503]}}}}, rules: {rules}}}"
            ),
        )
    };
    let files = [limited, free, to("one", "pay"), to("two", "pay"), to("free", "free")].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let hosts = ["one.example", "two.example"];
    for host in [hosts[0], hosts[1], hosts[0]] {
        assert_eq!(gateway.get(host, "/").status, 200);
    }
    for host in hosts {
        let refused = gateway.get(host, "/");
        assert_eq!((refused.status, refused.json()["reason"].as_str()), (503, Some("Overloaded")));
        assert_eq!(refused.json()["detail"], "the backend must not be asked more often");
        let fields: Vec<_> = refused.fields.iter().filter(|(name, _)| name == "retry-after").collect();
        let [(_, seconds)] = fields[..] else { panic!("{refused:?}") };
        // A third of 744 hours.
        let seconds: u64 = seconds.parse().expect("seconds");
        assert!((800_000..=892_800).contains(&seconds), "{seconds}");
    }
    // What was counted outlives a change of the object.
    gateway.write("all.yaml", &files.replace("requests: 3", "requests: 2"));
    gateway.write("more.yaml", &to("three", "pay"));
    gateway.until_answer("three.example", "/", 503, "Overloaded");
    assert_eq!(
        gateway.get("free.example", "/").status,
        200,
        "the control: another backend of the same address"
    );
    let metrics = gateway.ask_admin("/metrics").body;
    let line =
        metrics.lines().find(|line| line.contains("upstream_errors_total") && line.contains("RateLimited"));
    assert!(line.is_some_and(|line| line.contains("pay")), "{metrics}");
}
