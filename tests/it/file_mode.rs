//! The gateway in file mode, as a user runs it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    Backend, Gateway, Process, certificate, program, raw, responds, route, text, tls, until,
};
use crate::long_lived::LongLived;

#[test]
fn routes_lead_to_their_backends_and_a_change_is_served() {
    let (one, two) = (Backend::start("one"), Backend::start("two"));
    let backends = one.manifest("one") + &two.manifest("two");
    let to = |backend: &str| {
        route(
            "shop",
            &format!(
                "{{hostnames: [shop.example], rules: [{{name: all, matches: [{{path: {{value: /api}}}}], backendRefs: [{{kind: GatewayBackend, name: {backend}}}]}}]}}"
            ),
        )
    };
    let gateway = Gateway::start(&[("backends.yaml", &backends), ("route.yaml", &to("one"))]);
    let answer = gateway.request("POST", "shop.example", "/api/x?y=1", &["X-Mine: 1"], "hello");
    let seen = answer.json();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        (&seen["name"], &seen["method"], &seen["path"], &seen["query"], &seen["body"]),
        (&"one".into(), &"POST".into(), &"/api/x".into(), &"y=1".into(), &"hello".into())
    );
    assert_eq!(seen["headers"]["x-mine"], "1");
    assert_eq!(gateway.get("shop.example", "/other").status, 404);
    assert_eq!(gateway.get("other.example", "/api").json()["reason"], "NoRouteMatch");
    gateway.write("route.yaml", &to("two"));
    gateway.until_answer("shop.example", "/api", 200, "\"two\"");
    std::fs::remove_file(gateway.path("route.yaml")).expect("removed");
    gateway.until_answer("shop.example", "/api", 404, "NoRouteMatch");
}

#[test]
fn a_bad_file_costs_only_itself_and_is_told() {
    let gateway = Gateway::start(&[
        ("good.yaml", &responds("good", "good.example", "good")),
        ("bad.yaml", "kind: [\n"),
    ]);
    assert_eq!(gateway.get("good.example", "/").body, "good");
    let status = gateway.status();
    assert_eq!(status["failures"].as_array().map(Vec::len), Some(1), "{status}");
    let place = status["failures"][0]["place"].as_str().expect("a place").to_owned();
    assert!(place.contains("bad.yaml:"), "{place}");
    assert!(gateway.process.log().contains("bad.yaml:"), "{}", gateway.process.log());

    // It gets well, is served, breaks again: what was served stays.
    gateway.write("bad.yaml", &responds("bad", "bad.example", "fine"));
    gateway.until_answer("bad.example", "/", 200, "fine");
    gateway.write("bad.yaml", "kind: [\n");
    let status = gateway.until_status("the failure", |status| status["failures"] != Value::Array(Vec::new()));
    assert_eq!(gateway.get("bad.example", "/").body, "fine");
    // And that it stays is told.
    let stays = "this stays of what the file said before: GatewayRoute test/bad";
    let failure = &status["failures"][0];
    assert!(failure["message"].as_str().is_some_and(|message| message.ends_with(stays)), "{status}");
    assert!(failure["place"].as_str().is_some_and(|place| place.ends_with("bad.yaml:1:7")), "{status}");
    until("the same in the log", || gateway.process.log().contains(stays).then_some(()));
    std::fs::remove_file(gateway.path("bad.yaml")).expect("removed");
    gateway.until_answer("bad.example", "/", 404, "");
    assert_eq!(gateway.get("good.example", "/").body, "good");
}

#[test]
fn a_broken_route_is_told_with_its_place_and_the_others_are_served() {
    let broken = route(
        "broken",
        "\n  hostnames: [broken.example]\n  rules:\n  - name: r\n    policy: {timeouts: {request: soon}}\n    respond: {status: 200}",
    );
    let gateway =
        Gateway::start(&[("good.yaml", &responds("good", "good.example", "good")), ("broken.yaml", &broken)]);
    assert_eq!(gateway.get("good.example", "/").body, "good");
    assert_eq!(gateway.get("broken.example", "/").status, 503);
    let status = gateway.status();
    let problem = &status["problems"][0];
    assert_eq!((&problem["name"], &problem["severity"]), (&"broken".into(), &"Error".into()), "{status}");
    assert!(problem["path"].as_str().is_some_and(|path| path.starts_with("spec.rules[0].policy.timeouts")));
    // Of the field, not of its object.
    until("its line in the log", || gateway.process.log().contains("broken.yaml:8:34\"").then_some(()));
}

#[test]
fn a_config_map_mount_is_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let version = |name: &str, answer: &str| {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
        std::fs::write(folder.path().join(name).join("route.yaml"), responds("a", "a.example", answer))
            .expect("written");
    };
    version("..1", "first");
    symlink("..1", folder.path().join("..data")).expect("linked");
    symlink("..data/route.yaml", folder.path().join("route.yaml")).expect("linked");
    let gateway = Gateway::over(folder, &[]);
    assert_eq!(gateway.get("a.example", "/").body, "first");
    std::fs::create_dir(gateway.path("..2")).expect("a folder");
    std::fs::write(gateway.path("..2/route.yaml"), responds("a", "a.example", "second")).expect("written");
    symlink("..2", gateway.path("..data_tmp")).expect("linked");
    std::fs::rename(gateway.path("..data_tmp"), gateway.path("..data")).expect("swapped");
    std::fs::remove_dir_all(gateway.path("..1")).expect("removed");
    gateway.until_answer("a.example", "/", 200, "second");
}

#[test]
fn the_admin_port_says_how_it_is() {
    let gateway = Gateway::start(&[("a.yaml", &responds("a", "a.example", "a"))]);
    gateway.get("a.example", "/");
    assert_eq!((gateway.ask_admin("/livez").status, gateway.ask_admin("/readyz").status), (200, 200));
    assert_eq!(gateway.ask_admin("/nothing").status, 404);
    let refused = crate::harness::exchange(
        crate::harness::connect(gateway.admin),
        "POST",
        "admin",
        "/status",
        &[],
        "x",
    );
    assert_eq!((refused.status, refused.field("allow")), (405, Some("GET, HEAD")));
    let status = gateway.status();
    assert_eq!(status["addresses"]["http"][0], gateway.http.to_string());
    assert_eq!((&status["ready"], &status["routeMap"]["hostnames"]), (&true.into(), &1.into()), "{status}");
    let metrics = until("the request in the metrics", || {
        let metrics = gateway.ask_admin("/metrics");
        metrics
            .body
            .lines()
            .any(|line| line.starts_with("portcullis_requests_total") && line.contains("route=\"a\""))
            .then_some(metrics)
    });
    assert!(metrics.field("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")));
    // What clients write is never a label.
    gateway.get("secret-host.example", "/secret-path");
    assert!(!gateway.ask_admin("/metrics").body.contains("secret"));
}

#[test]
fn each_request_is_one_line_of_the_access_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let gateway = Gateway::with(
        &[("a.yaml", &responds("a", "a.example", "a"))],
        &["--access-log", log.to_str().expect("UTF-8"), "--trusted-hops", "1"],
    );
    gateway.get("a.example", "/x?token=secret");
    gateway.get("b.example", "/\"quoted\"");
    // Refused before any host is looked for.
    let early = [
        ("GET /a%2Fb HTTP/1.1\r\nhost: c.example", 400, "c.example"),
        ("GET / HTTP/1.1\r\nhost: d example", 400, "d example"),
        ("GET / HTTP/1.1\r\nhost: e.example\r\ntransfer-encoding: gzip, chunked", 501, "e.example"),
        ("TRACE / HTTP/1.1\r\nhost: f.example", 405, "f.example"),
        ("OPTIONS * HTTP/1.1\r\nhost: g.example", 204, "g.example"),
        ("GET / HTTP/1.1\r\nhost: h.example\r\nx-forwarded-for: nobody", 400, "h.example"),
        ("GET / HTTP/1.1\r\nbad field: 1\r\nhost: i.example", 400, ""),
    ];
    for (head, status, _) in early {
        let answer = raw(gateway.http, &format!("{head}\r\nconnection: close\r\n\r\n"));
        assert_eq!(answer.status, status, "{head}: {answer:?}");
    }
    let lines = until("a line each", || {
        let lines: Vec<String> =
            std::fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect();
        (lines.len() == 2 + early.len()).then_some(lines)
    });
    let entries: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect();
    assert!(
        entries.iter().any(|entry| entry["status"] == 200 && entry["path"] == "/x" && entry["route"] == "a"),
        "{lines:?}"
    );
    assert!(
        entries.iter().any(|entry| entry["status"] == 404 && entry["reason"] == "NoRouteMatch"),
        "{lines:?}"
    );
    for (head, status, host) in early {
        let is_told = |entry: &&Value| {
            entry["status"] == status
                && entry["host"] == host
                && entry["client"] == "127.0.0.1"
                && (status == 204 || entry["reason"].is_string())
        };
        assert_eq!(entries.iter().filter(is_told).count(), 1, "{head}: {lines:?}");
    }
    assert!(!lines.concat().contains("secret"), "{lines:?}");
}

/// Shown all the same: clients have clocks of their own.
#[test]
fn a_certificate_whose_time_is_over_is_told() {
    let secret = |name: &str, from, until| {
        let mut params = rcgen::CertificateParams::new([format!("{name}.example")]).expect("a name");
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(until, 1, 1));
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        let data = serde_json::json!({"tls.crt": pem, "tls.key": key.serialize_pem()});
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "stringData": data,
            "metadata": {"name": name, "namespace": "test"},
        });
        let spec = format!(
            "{{hostnames: [{name}.example], tls: {{certificateRefs: [{{name: {name}}}]}}, rules: [{{name: all, respond: {{status: 204}}}}]}}"
        );
        format!("{secret}\n---\n{}", route(name, &spec))
    };
    let files = [
        ("old.yaml", &*secret("old", 2001, 2002)),
        ("new.yaml", &secret("new", 3001, 3002)),
        ("good.yaml", &secret("good", 2001, 3002)),
    ];
    let gateway = Gateway::start(&files);
    let told = [
        ("Secret test/new", "the certificate is valid from 3001-01-01T00:00:00Z on only; look at the clocks"),
        ("Secret test/old", "the certificate expired at 2002-01-01T00:00:00Z; renew it"),
    ];
    let failing = gateway.status()["failing"].clone();
    let failing: Vec<_> = failing
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| (entry["place"].as_str().expect("text"), entry["error"].as_str().expect("text")))
        .collect();
    assert_eq!(failing, told);
    until("the same in the log", || {
        let log = gateway.process.log();
        told.iter().all(|(_, message)| log.contains(message)).then_some(())
    });
    let folder = gateway.path("");
    let checked = program().args(["check", folder.to_str().expect("UTF-8")]).output().expect("it runs");
    let findings = text(&checked.stdout);
    assert!(checked.status.success(), "warnings are no errors: {findings}");
    for (secret, message) in told {
        assert!(
            findings.contains(&format!("warning[CertificateOutOfTime]: {secret}: {message}")),
            "{findings}"
        );
    }
    assert!(!findings.contains("test/good"), "{findings}");
}

#[test]
fn sigterm_lets_open_requests_finish() {
    let backend = Backend::start("slow");
    let all = route(
        "slow",
        "{hostnames: [slow.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: slow}]}]}",
    );
    let mut gateway = Gateway::start(&[("a.yaml", &(backend.manifest("slow") + &all))]);
    let address = gateway.http;
    let open = std::thread::spawn(move || {
        crate::harness::exchange(
            crate::harness::connect(address),
            "GET",
            "slow.example",
            "/delay/1s",
            &[],
            "",
        )
    });
    until("the request to be in flight", || {
        let metrics = gateway.ask_admin("/metrics").body;
        metrics
            .lines()
            .any(|line| line.starts_with("portcullis_requests_in_flight") && line.ends_with(" 1"))
            .then_some(())
    });
    gateway.process.signal(Signal::TERM);
    until("the drain to be told", || gateway.process.log().contains("draining").then_some(()));
    let answer = open.join().expect("no panic");
    assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some("slow")));
    assert_eq!(gateway.process.ended().code(), Some(0));
}

#[test]
fn while_it_drains_it_says_so_and_a_second_signal_ends_it_at_once() {
    let mut gateway =
        Gateway::with(&[("a.yaml", &responds("a", "a.example", "a"))], &["--drain-delay", "1h"]);
    gateway.process.signal(Signal::TERM);
    let answer =
        until("readiness to go", || Some(gateway.ask_admin("/readyz")).filter(|answer| answer.status == 503));
    assert_eq!(answer.body, "draining\n");
    // Who has not heard of it yet is still served, and asked to leave.
    let answer = gateway.get("a.example", "/");
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    gateway.process.signal(Signal::TERM);
    assert_eq!(gateway.process.ended().code(), Some(1));
}

#[test]
fn the_certificate_follows_the_server_name_and_its_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, one_ca) = certificate(folder.path(), "one", "one.example");
    let (two, two_ca) = certificate(folder.path(), "two", "two.example");
    let secure = |name: &str| {
        route(
            name,
            &format!(
                "{{hostnames: [{name}.example], tls: {{certificateRefs: [{{name: {name}}}]}}, rules: [{{name: all, respond: {{status: 200, text: {name}}}}}]}}"
            ),
        )
    };
    let gateway = Gateway::start(&[
        ("one.yaml", &(one + &secure("one"))),
        ("two.yaml", &(two + &secure("two"))),
        ("plain.yaml", &responds("plain", "plain.example", "plain")),
    ]);
    let get = |ca: &Path, host: &str| gateway.get_tls(ca, host, "/");
    assert_eq!(get(&one_ca, "one.example").expect("served").body, "one");
    assert_eq!(get(&two_ca, "two.example").expect("served").body, "two");
    // No certificate for a name that has none.
    for host in ["plain.example", "unknown.example"] {
        let refused = tls(gateway.https, &one_ca, host).map(|_| ()).expect_err("refused");
        assert!(refused.to_string().contains("UnrecognisedName"), "{refused}");
    }
    // Plain HTTP goes to HTTPS.
    let redirect = gateway.get("one.example", "/path?query");
    assert_eq!(redirect.status, 308);
    let there = format!("https://one.example:{}/path?query", gateway.https.port());
    assert_eq!(redirect.field("location"), Some(&*there));
    for (port, there) in [("444", "https://one.example:444/"), ("443", "https://one.example/")] {
        let files = [("one.yaml", &*secure("one"))];
        let other = Gateway::with(&files, &["--public-https-port", port]);
        assert_eq!(other.get("one.example", "/").field("location"), Some(there));
    }

    // Open connections stay, new ones get the new certificate.
    let (mut open, _) = tls(gateway.https, &one_ca, "one.example").expect("open");
    let old = get(&one_ca, "one.example").expect("served").serial;
    let (renewed, new_ca) = certificate(folder.path(), "one", "one.example");
    gateway.write("one.yaml", &(renewed + &secure("one")));
    let answer = until("the new certificate", || get(&new_ca, "one.example").ok());
    assert_ne!(answer.serial, old);
    let answer = crate::harness::exchange(&mut open, "GET", "one.example", "/", &[], "");
    assert_eq!(answer.body, "one");
    // A Secret that cannot be used keeps the certificate that was served.
    let garbage = "{apiVersion: v1, kind: Secret, type: kubernetes.io/tls, metadata: {name: one, namespace: test}, stringData: {tls.crt: garbage, tls.key: garbage}}\n---\n";
    gateway.write("one.yaml", &(garbage.to_owned() + &secure("one")));
    gateway.until_status("the problem", |status| status["problems"] != Value::Array(Vec::new()));
    assert_eq!(get(&new_ca, "one.example").expect("still served").body, "one");
}

#[test]
fn a_websocket_passes_and_outlives_a_change() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;

    let backend = Backend::start("ws");
    let all = route(
        "ws",
        "{hostnames: [ws.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: ws}]}]}",
    );
    let gateway = Gateway::start(&[("a.yaml", &(backend.manifest("ws") + &all))]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.http).await.expect("it listens");
        let (mut socket, _) =
            tokio_tungstenite::client_async("ws://ws.example/chat", stream).await.expect("a handshake");
        for round in 0..3 {
            let message = Message::text(format!("round {round}"));
            socket.send(message.clone()).await.expect("sent");
            assert_eq!(socket.next().await.expect("open").expect("answered"), message);
            gateway.write("other.yaml", &responds("other", "other.example", &format!("v{round}")));
            gateway.until_answer("other.example", "/", 200, &format!("v{round}"));
        }
    });
}

/// Runs the loss counter against a gateway while something happens to it.
fn under_load(gateway: &Gateway, arguments: &[&str], meanwhile: impl FnOnce()) -> Value {
    let mut command = program();
    command
        .args(["load", "--url", "http://load.example/", "--connect", &gateway.http.to_string()])
        .args(["--rate", "200", "--connections", "8", "--until-signal"])
        .args(arguments)
        .stdout(Stdio::piped());
    let load = Load(Process::start(command));
    meanwhile();
    load.report()
}

struct Load(Process);

impl Load {
    fn report(mut self) -> Value {
        self.0.signal(Signal::INT);
        let output = self.0.output();
        serde_json::from_str(&text(&output)).expect("a report")
    }
}

fn lost(report: &Value) -> u64 {
    report["lost"].as_object().expect("losses").values().filter_map(Value::as_u64).sum()
}

#[test]
fn a_thousand_changes_under_load_lose_nothing() {
    let backend = Backend::start("load");
    let all = route(
        "load",
        "{hostnames: [load.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: load}]}]}",
    );
    let streams = LongLived::backend();
    let manifests = backend.manifest("load") + &all + &LongLived::manifests(&backend, streams);
    let gateway = Gateway::start(&[("a.yaml", &manifests)]);
    let mut held = LongLived::open(gateway.http, 1_000);
    for arguments in [&[][..], &["--fresh"]] {
        let report = under_load(&gateway, arguments, || {
            for change in 0..500 {
                gateway.write("churn.yaml", &responds("churn", "churn.example", &format!("change-{change}")));
                // Every change is served before the next is made: a thousand installs, not one of the last.
                gateway.until_answer("churn.example", "/", 200, &format!("change-{change}"));
                held.step().expect("what was open before the first change stays open");
            }
        });
        assert!(report["ok"].as_u64().is_some_and(|ok| ok > 100), "{report}");
        assert_eq!(lost(&report), 0, "{report}");
    }
    held.finish().expect("whole, byte by byte");
}

#[test]
fn the_loss_counter_sees_a_gateway_that_is_killed() {
    let gateway = Gateway::start(&[("a.yaml", &responds("a", "load.example", "a"))]);
    let report = under_load(&gateway, &[], || {
        until("some load", || {
            let metrics = gateway.ask_admin("/metrics").body;
            metrics
                .lines()
                .any(|line| line.starts_with("portcullis_requests_total") && line.contains("route=\"a\""))
                .then_some(())
        });
        gateway.process.signal(Signal::KILL);
        until("its port to be closed", || std::net::TcpStream::connect(gateway.http).is_err().then_some(()));
        // So long that requests come due.
        std::thread::park_timeout(std::time::Duration::from_millis(300));
    });
    assert!(lost(&report) > 0, "{report}");
}
