//! What a person types, and what comes back.

use std::io::BufRead as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{
    Backend, PATIENCE, Process, connect, exchange, program, responds, route, run, text, until,
};

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    folder
}

/// Exit code and stdout of `check`.
fn check(folder: &tempfile::TempDir, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(&[&["check", folder.path().to_str().expect("UTF-8")], arguments].concat());
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    (output.status.code(), text(&output.stdout))
}

const BROKEN: &str = "\
# A comment.
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayRoute
metadata: {name: broken, namespace: test}
spec:
  hostnames: [broken.example]
  rules:
  - name: slow
    policy:
      timeouts:
        request: soon
    backendRefs: [{kind: GatewayBackend, name: b}]
---
apiVersion: portcullis.dev/v1alpha1
kind: GatewayBackend
metadata: {name: b, namespace: test}
spec: {hosts: [{address: 127.0.0.1, port: 1}]}
";

#[test]
fn check_is_content_with_what_is_right() {
    let (code, said) = check(&folder(&[("a.yaml", &responds("a", "a.example", "a"))]), &[]);
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "0 errors, 0 warnings in 1 GatewayRoutes, 0 GatewayBackends and 0 GatewayPolicies\n")
    );
}

#[test]
fn check_shows_the_line_and_names_the_code() {
    let (code, said) = check(&folder(&[("broken.yaml", BROKEN)]), &[]);
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "error[PolicyInvalid]",
        "GatewayRoute test/broken",
        "broken.yaml:12",
        "12 |         request: soon",
        "^^^^",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
}

#[test]
fn check_tells_machines_too() {
    let files = [("broken.yaml", BROKEN), ("worse.yaml", "kind: [\n")];
    let (code, said) = check(&folder(&files), &["--output", "json"]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(code, Some(1));
    assert_eq!(said["summary"]["errors"], 2, "{said}");
    let findings = said["findings"].as_array().expect("a list");
    let finding = findings.iter().find(|finding| finding["code"] == "PolicyInvalid").expect("found");
    assert_eq!(
        (&finding["line"], &finding["column"], &finding["severity"], &finding["object"]["name"]),
        (&12.into(), &18.into(), &"error".into(), &"broken".into()),
        "{finding}"
    );
    let finding = findings.iter().find(|finding| finding["code"] == "Unreadable").expect("found");
    assert!(finding["file"].as_str().is_some_and(|file| file.ends_with("worse.yaml")), "{finding}");
    assert_eq!((&finding["line"], &finding["column"]), (&1.into(), &7.into()), "{finding}");
}

#[test]
fn what_is_not_yaml_is_shown_at_its_one_place() {
    let text = "# One.\n---\na: 1\nbut: [\n";
    let (code, said) = check(&folder(&[("bad.yaml", text)]), &[]);
    assert_eq!(code, Some(1), "{said}");
    for part in
        ["error[Unreadable]: not YAML: unclosed bracket '['\n", "bad.yaml:4:6\n", "4 | but: [\n  |      ^\n"]
    {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
}

#[test]
fn a_line_that_may_hold_a_secret_is_not_shown() {
    let yaml = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  key: *k4711\n";
    let kind = "{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {key: [k4711]}}\n";
    let twice = "{apiVersion: v1, kind: Secret, metadata: {name: t}, stringData: {key: k4711}}\n";
    let files = [("a.yaml", yaml), ("b.yaml", kind), ("c.yaml", twice), ("d.yaml", twice)];
    for output in ["text", "json"] {
        let (code, said) = check(&folder(&files), &["--output", output]);
        assert_eq!(code, Some(1), "{said}");
        assert!(!said.contains("4711"), "{said}");
        if output == "text" {
            assert!(said.contains("a.yaml:5:8\n"), "{said}");
        }
    }
}

#[test]
fn check_of_nothing_is_an_error_of_its_own() {
    let output = run(&["check", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("portcullis: cannot read /nowhere/at/all"), "{output:?}");
}

#[test]
fn check_reads_what_the_gateway_reads_and_nothing_is_an_error() {
    let folder = folder(&[("README.md", "none"), (".hidden.yaml", BROKEN)]);
    std::fs::create_dir(folder.path().join("sub")).expect("a folder");
    std::fs::write(folder.path().join("sub/broken.yaml"), BROKEN).expect("written");
    let path = folder.path().to_str().expect("UTF-8");
    let output = run(&["check", path]);
    let said = text(&output.stderr);
    assert_eq!(
        (output.status.code(), said.as_str()),
        (
            Some(1),
            &*format!(
                "portcullis: {path} has no manifests (*.yaml, *.yml, *.json); folders in it are not read\n"
            )
        )
    );
    std::fs::write(folder.path().join("a.yaml"), responds("a", "a.example", "a")).expect("written");
    let (code, said) = check(&folder, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 GatewayRoutes, 0 GatewayBackends"), "{said}");
}

#[test]
fn check_judges_as_a_cluster_would_where_it_is_asked_to() {
    let loopback = "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {name: b, namespace: test}\nspec: {hosts: [{address: 127.0.0.1, port: 1}]}\n---\n";
    let limited = route(
        "a",
        "{hostnames: [a.example], policy: {rateLimits: [{name: all, requests: 9, per: 1m, scope: Global}]}, rules: [{name: all, respond: {status: 200}}]}",
    );
    let (loopback, limited) = (folder(&[("a.yaml", loopback)]), folder(&[("a.yaml", &limited)]));
    assert_eq!(check(&loopback, &[]).0, Some(0));
    let (code, said) = check(&loopback, &["--cluster"]);
    assert!(code == Some(1) && said.contains("127.0.0.1"), "{said}");
    for mode in [&[][..], &["--cluster", "--egress-allow", "127.0.0.1"]] {
        assert_eq!(check(&loopback, mode).0, Some(0), "the control: {mode:?}");
        let (code, said) = check(&loopback, &[mode, &["--egress-deny", "127.0.0.0/24"]].concat());
        let told = said.contains("spec.hosts[0].address")
            && said.contains("--egress-deny, in the chart egress.deny");
        assert!(code == Some(1) && told, "{mode:?}: {said}");
    }
    assert_eq!(check(&limited, &[]).0, Some(0));
    assert_eq!(check(&limited, &["--cluster", "--redis"]).0, Some(0));
    let (_, said) = check(&limited, &["--cluster"]);
    assert!(said.contains("no store is given"), "{said}");
    assert_eq!(
        run(&["check", "--redis", "."]).status.code(),
        Some(2),
        "says something about a cluster alone"
    );
}

#[test]
fn bound_addresses_are_printed_whatever_the_log_leaves_out() {
    let folder = folder(&[("a.yaml", &responds("a", "a.example", "a"))]);
    for (log, lines_on_stdout) in [("off", true), ("stdout", false)] {
        let mut command = program();
        command.env("PORTCULLIS_LOG", "warn").stdout(Stdio::piped());
        command.arg("run").arg("--manifests").arg(folder.path()).args(["--access-log", log]);
        command.args(["--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let mut process = Process::start(command);
        let said = if lines_on_stdout {
            let mut lines = String::new();
            let mut stdout = process.stdout();
            (0..3).for_each(|_| assert!(stdout.read_line(&mut lines).expect("a line") > 0));
            lines
        } else {
            until("three lines", || Some(process.log()).filter(|log| log.lines().count() >= 3))
        };
        let addresses: Vec<_> = said.lines().filter_map(|line| line.split_once(' ')).collect();
        assert_eq!(addresses.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["http", "https", "admin"]);
        let http: std::net::SocketAddr = addresses[0].1.parse().expect("an address");
        until("an answer", || {
            let answer = exchange(connect(http), "GET", "a.example", "/", &[], "");
            (answer.body == "a").then_some(())
        });
    }
}

#[test]
fn the_version_is_the_crates() {
    assert_eq!(text(&run(&["--version"]).stdout), concat!("portcullis ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// How a command ends whose stdout, or stderr, nobody reads.
fn unread(arguments: &[&str], which: fn(&mut Command, Stdio) -> &mut Command) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = program();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = which(&mut command, writer.into()).spawn().expect("the program starts");
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), text(&output.stderr))
}

#[test]
fn a_command_that_nobody_reads_ends_without_a_word() {
    let folder = folder(&[("broken.yaml", BROKEN), ("a.yaml", &responds("a", "a.example", "a"))]);
    let path = folder.path().to_str().expect("UTF-8");
    let backend = Backend::start("e");
    let url = format!("http://{}/", backend.address);
    for arguments in [
        &["check", path][..],
        &["check", path, "--output", "json"],
        &["explain", "GET", "http://a.example/", "--manifests", path],
        &["crds"],
        &["certificate", "a.example"],
        &["load", "--url", &url, "--rate", "100", "--duration", "50ms"],
        &["echo", "--listen", "127.0.0.1:0"],
    ] {
        assert_eq!(unread(arguments, Command::stdout), (Some(141), String::new()), "{arguments:?}");
    }
    // Nor is it a reason to panic that nobody hears of an error; other errors of writing are told.
    assert_eq!(unread(&["check", "/nowhere"], Command::stderr).0, Some(1));
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let output = program().arg("crds").stdout(full).output().expect("the program starts");
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("cannot write to stdout"), "{said}");
}

#[test]
fn crds_are_printed_and_written() {
    let printed = text(&run(&["crds"]).stdout);
    for kind in ["kind: GatewayRoute", "kind: GatewayBackend"] {
        assert!(printed.contains(kind), "{printed}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    assert!(run(&["crds", "--output", folder.path().to_str().expect("UTF-8")]).status.success());
    let mut written: Vec<_> = std::fs::read_dir(folder.path())
        .expect("listed")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
        .collect();
    written.sort();
    assert_eq!(written, ["gatewaybackends.yaml", "gatewaypolicies.yaml", "gatewayroutes.yaml"]);
}

#[test]
fn echo_does_what_its_paths_say() {
    let backend = Backend::start("e");
    let get = |path: &str| exchange(connect(backend.address), "GET", "echo", path, &[], "");
    assert_eq!(get("/a/status/418").status, 418);
    assert_eq!(get("/bytes/100000").body.len(), 100_000);
    assert_eq!(get("/healthz").body, "ok\n");
    assert_eq!(get("/status/99").status, 400);
    assert_eq!(get("/delay/soon").status, 400);
    let began = std::time::Instant::now();
    assert_eq!(get("/delay/50ms").json()["name"], "e");
    assert!(began.elapsed().as_millis() >= 50);
    let trailers = exchange(connect(backend.address), "GET", "echo", "/trailers", &["TE: trailers"], "");
    assert_eq!(trailers.body, "one\ntwo\n");
}

#[test]
fn a_drained_echo_ends_well() {
    let mut backend = Backend::start("e");
    backend.process.signal(rustix::process::Signal::TERM);
    assert_eq!(backend.process.ended().code(), Some(0));
}

#[test]
fn load_counts_each_loss_in_its_place() {
    let backend = Backend::start("e");
    let load = |url: String, arguments: &[&str]| -> Value {
        let output =
            run(&[&["load", "--url", &url, "--rate", "100", "--duration", "200ms"], arguments].concat());
        serde_json::from_str(&text(&output.stdout)).expect("a report")
    };
    let report = load(format!("http://{}/", backend.address), &[]);
    assert!(report["ok"].as_u64().is_some_and(|ok| ok > 5) && report["ok"] == report["sent"], "{report}");
    let report = load(format!("http://{}/status/500", backend.address), &["--fresh"]);
    assert_eq!((&report["ok"], &report["lost"]["status"]), (&0.into(), &report["sent"]), "{report}");
    // A port that was free a moment ago.
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let report = load(format!("http://{closed}/"), &[]);
    assert_eq!((&report["ok"], &report["lost"]["refused"]), (&0.into(), &report["sent"]), "{report}");
}

#[test]
fn load_sees_an_unannounced_close_and_a_body_that_was_cut() {
    use std::io::{Read as _, Write as _};

    for (answer, place) in [("", "closed"), ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "cut")] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let output =
            run(&["load", "--url", &format!("http://{address}/"), "--rate", "50", "--duration", "100ms"]);
        let report: Value = serde_json::from_str(&text(&output.stdout)).expect("a report");
        assert_eq!(
            (&report["ok"], &report["lost"][place]),
            (&0.into(), &report["sent"]),
            "{place}: {report}"
        );
    }
}

#[test]
fn explain_shows_the_policy_in_force_as_it_was_written() {
    let spec = "{hostnames: [a.example], policy: {cors: {allowOrigins: ['https://b.example'], allowCredentials: true}}, rules: [{name: the-rule, policy: {authentication: {anyOf: [{name: keys, apiKey: {secretSelector: {matchLabels: {keys: shop}}}}]}}, respond: {status: 200}}]}";
    let policy = "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {name: safe, namespace: test}\nspec:\n  targetRefs: [{kind: Namespace}]\n  policy: {securityHeaders: {frameOptions: Deny}}\n---\n";
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: k, namespace: test, labels: {keys: shop}}\nstringData: {key: a-canary-of-a-key}\n";
    let folder = folder(&[("a.yaml", &(policy.to_owned() + &route("a", spec) + secret))]);
    let output =
        run(&["explain", "GET", "http://a.example/", "--manifests", folder.path().to_str().expect("UTF-8")]);
    let told = text(&output.stdout);
    let expected = "policy    authentication (from the rule)
            anyOf: [{apiKey: {secretSelector: {matchLabels: {keys: shop}}}, name: keys}]
          cors (from the route)
            allowCredentials: true
            allowOrigins: [https://b.example]
          securityHeaders (from GatewayPolicy test/safe, default for the namespace)
            frameOptions: Deny
";
    assert!(told.contains(expected), "{told}");
    assert!(!told.contains("canary") && !told.contains("Plan"), "{told}");
}

#[test]
fn explain_judges_where_backends_are_as_the_installation_does() {
    let backend = "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {namespace: test, name: b}\nspec: {hosts: [{address: 192.0.2.7, port: 80}]}\n---\n";
    let spec =
        "{hostnames: [a.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: b}]}]}";
    let folder = folder(&[("a.yaml", &(backend.to_owned() + &route("a", spec)))]);
    let manifests = folder.path().to_str().expect("UTF-8");
    let told = |flags: &[&str], denied: &str| {
        let mut command = program();
        command.args(["explain", "GET", "http://a.example/", "--manifests", manifests]).args(flags);
        let output = command.env("PORTCULLIS_EGRESS_DENY", denied).output().expect("it runs");
        let said = text(&output.stdout);
        assert!(said.contains("all of test/a"), "the rule is named: {said}");
        let is_refused = said.contains("BackendNotFound");
        assert_eq!(output.status.success(), !is_refused, "{said}");
        is_refused
    };
    let (deny, cluster) = (["--egress-deny", "192.0.2.0/24"], ["--egress-cluster", "192.0.2.0/24"]);
    let allow = ["--egress-allow", "192.0.2.7"];
    for (flags, is_refused) in [
        (vec![], false),
        (vec!["--egress-deny", "192.0.3.0/24"], false),
        (deny.to_vec(), true),
        (cluster.to_vec(), true),
        ([cluster, allow].concat(), false),
        ([deny, allow].concat(), true),
    ] {
        assert_eq!(told(&flags, "198.51.100.0/24"), is_refused, "{flags:?}");
    }
    assert!(told(&[], "192.0.2.0/24"), "as in a Pod of the chart");
}

#[test]
fn explain_names_the_rule() {
    let files = [(
        "a.yaml",
        route(
            "a",
            "{hostnames: [a.example], rules: [{name: the-rule, matches: [{path: {value: /x}}], respond: {status: 200}}]}",
        ),
    )];
    let folder = folder(&[(files[0].0, files[0].1.as_str())]);
    let output = run(&[
        "explain",
        "GET",
        "http://a.example/x/y",
        "--manifests",
        folder.path().to_str().expect("UTF-8"),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("the-rule"), "{}", text(&output.stdout));
}
