//! External authorization in the whole program: what an authorizer sees is what the backend gets, and nothing but its
//! whole yes lets a request through.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Gateway, raw, route, until};

/// A server that keeps the heads that it gets and answers by script.
struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    script: Arc<Mutex<Script>>,
}

#[derive(Clone)]
enum Script {
    /// These bytes, then the end.
    Says(String),
    Hangs,
    /// A byte now and then.
    Drips(String),
    /// A head, and a body without end.
    Floods(&'static str),
}

const YES: &str = "HTTP/1.1 200 OK\r\nx-user: alice\r\ncontent-length: 0\r\n\r\n";
const NO: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";

impl Server {
    fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Self {
            address: listener.local_addr().expect("bound"),
            heard: Arc::default(),
            script: Arc::new(Mutex::new(script)),
        };
        let (heard, script) = (Arc::clone(&server.heard), Arc::clone(&server.script));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (heard, script) = (Arc::clone(&heard), Arc::clone(&script));
                std::thread::spawn(move || serve(stream, &heard, &script));
            }
        });
        server
    }

    fn says(&self, answer: &str) {
        self.plays(Script::Says(answer.to_owned()));
    }

    fn plays(&self, script: Script) {
        *self.script.lock().expect("no panic") = script;
    }

    fn count(&self) -> usize {
        self.heard.lock().expect("no panic").len()
    }

    fn last(&self) -> String {
        self.heard.lock().expect("no panic").last().cloned().unwrap_or_default()
    }

    fn manifest(&self, name: &str) -> String {
        format!(
            "---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}]}}\n",
            self.address.port()
        )
    }
}

/// One request a connection.
fn serve(mut stream: TcpStream, heard: &Mutex<Vec<String>>, script: &Mutex<Script>) {
    stream.set_read_timeout(Some(crate::harness::PATIENCE)).expect("a time-out");
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    while !read.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => read.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    heard.lock().expect("no panic").push(String::from_utf8_lossy(&read).into_owned());
    let script = script.lock().expect("no panic").clone();
    let closing = |answer: &str| answer.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    match script {
        Script::Says(answer) => drop(stream.write_all(closing(&answer).as_bytes())),
        // Until the other side has had enough.
        Script::Hangs => drop(stream.read(&mut buffer)),
        Script::Drips(answer) => {
            for byte in answer.bytes() {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
        Script::Floods(head) => {
            let mut sent = stream.write_all(closing(head).as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(&[b'x'; 4096]);
            }
        }
    }
}

fn lines<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    let wanted = format!("{name}: ");
    let is = |line: &&str| line.get(..wanted.len()).is_some_and(|start| start.eq_ignore_ascii_case(&wanted));
    head.split("\r\n").skip(1).filter(is).map(|line| &line[wanted.len()..]).collect()
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {{name: {name}, namespace: test}}\nspec: {spec}\n"
    )
}

/// A route of one rule for everything.
fn shop(policy: &str) -> String {
    route(
        "shop",
        &format!(
            "{{hostnames: [shop.example], rules: [{{name: all, policy: {policy}, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
        ),
    )
}

fn start(authorizer: &Server, backend: &Server, policy: &str) -> Gateway {
    let manifests = authorizer.manifest("authz") + &backend.manifest("one");
    Gateway::start(&[("backends.yaml", &manifests), ("route.yaml", &shop(policy))])
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn what_the_authorizer_sees_is_byte_for_byte_what_the_backend_gets() {
    let (authorizer, backend) =
        (Server::start(Script::Says(YES.into())), Server::start(Script::Says(OK.into())));
    let gateway = start(
        &authorizer,
        &backend,
        "{extAuth: {backendRef: {kind: GatewayBackend, name: authz}, path: /verify, requestHeaders: ['*'], backendHeaders: [X-User]}}",
    );
    let (mut passed, mut refused) = (0, 0);
    for (line, fields) in [
        ("GET / HTTP/1.1", ""),
        ("GET /a//b HTTP/1.1", ""),
        ("GET //a HTTP/1.1", ""),
        ("GET /a%2Fb?x=%2f HTTP/1.1", ""),
        ("GET /a%2fb HTTP/1.1", ""),
        ("GET /%61bc HTTP/1.1", ""),
        ("GET /a/./b/../c HTTP/1.1", ""),
        ("GET /a/%2e%2e/c HTTP/1.1", ""),
        ("GET /a;b=c/d HTTP/1.1", ""),
        ("GET /a\\b HTTP/1.1", ""),
        ("GET /A?Q=1&q=2&&=x?y HTTP/1.1", ""),
        ("GET /?a=%00&b=+ HTTP/1.1", ""),
        ("GET /ä HTTP/1.1", ""),
        ("GET http://shop.example/abs?x=1 HTTP/1.1", ""),
        ("GET http://SHOP.example:80/abs HTTP/1.1", ""),
        ("DELETE /x HTTP/1.1", "X-Twice: 1\r\nx-twice: 2\r\nX-TWICE: 1, 2\r\n"),
        ("GET /x HTTP/1.1", "X_User: root\r\nx-user: root\r\nX.User: root\r\nX-Mine: 1\r\n"),
        (
            "GET /x HTTP/1.1",
            "Connection: close, X-Drop\r\nX-Drop: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: a\r\nTE: trailers\r\n",
        ),
        (
            "GET /x HTTP/1.1",
            "X-Forwarded-Uri: /public\r\nX-Forwarded-Method: HEAD\r\nX-Forwarded-For: 10.0.0.1\r\nX-Original-URL: /public\r\nX-Forwarded-Host: evil.example\r\nForwarded: for=10.0.0.1\r\n",
        ),
        (
            "GET /x HTTP/1.1",
            "Authorization: Bearer a\r\nCookie: a=b; c=d\r\nCookie: e=f\r\nX-Latin: caf\u{e9}\r\n",
        ),
        ("OPTIONS /x HTTP/1.1", "Content-Type: text/x\r\n"),
    ] {
        let (asked, got) = (authorizer.count(), backend.count());
        let answer =
            raw(gateway.http, &format!("{line}\r\nHost: Shop.example\r\nConnection: close\r\n{fields}\r\n"));
        if answer.status != 200 {
            assert_eq!((answer.status, authorizer.count(), backend.count()), (400, asked, got), "{line}");
            refused += 1;
            continue;
        }
        passed += 1;
        let (question, request) = (authorizer.last(), backend.last());
        assert_eq!((authorizer.count(), backend.count()), (asked + 1, got + 1), "{line}");
        assert!(question.starts_with("GET /verify HTTP/1.1\r\n"), "{question}");
        let mut target = request.split(' ');
        assert_eq!(lines(&question, "x-forwarded-method"), [target.next().expect("a method")], "{line}");
        assert_eq!(lines(&question, "x-forwarded-uri"), [target.next().expect("a target")], "{line}");
        assert_eq!(lines(&question, "x-forwarded-host"), lines(&request, "host"), "{line}");
        for name in ["x-forwarded-for", "x-forwarded-port", "x-forwarded-proto", "x-real-ip", "x-request-id"]
        {
            assert_eq!(lines(&question, name), lines(&request, name), "{line} {name}");
        }
        for name in [
            "x-twice",
            "x-mine",
            "authorization",
            "cookie",
            "x-latin",
            "x_user",
            "x.user",
            "x-drop",
            "keep-alive",
            "proxy-authorization",
            "te",
        ] {
            let said = lines(&request, name);
            // What a connection is told of trailers is this hop's own.
            if name != "te" {
                assert_eq!(lines(&question, name), said, "{line} {name}");
            }
            assert!(
                said.is_empty()
                    || ["x-twice", "x-mine", "authorization", "cookie", "x-latin", "te"].contains(&name),
                "{name}"
            );
        }
        assert_eq!(
            (lines(&question, "x-user"), lines(&request, "x-user")),
            (vec![], vec!["alice"]),
            "{line}"
        );
    }
    assert!(passed >= 15 && refused >= 2, "{passed} passed, {refused} refused");
}

#[test]
fn behind_trusted_hops_it_is_told_of_the_client_what_the_backend_is_told() {
    let (authorizer, backend) =
        (Server::start(Script::Says(YES.into())), Server::start(Script::Says(OK.into())));
    let manifests = authorizer.manifest("authz") + &backend.manifest("one");
    let policy = "{extAuth: {backendRef: {kind: GatewayBackend, name: authz}, requestHeaders: ['*']}}";
    let files = [("backends.yaml", &*manifests), ("route.yaml", &*shop(policy))];
    let gateway = Gateway::with(&files, &["--trusted-hops", "2"]);
    for (fields, chain, host, port) in [
        (
            "X-Forwarded-For: 10.9.9.9, 198.51.100.9, 10.0.0.1\r\nX-Forwarded-Host: public.example\r\nX-Forwarded-Port: 444\r\nX-Forwarded-Proto: https\r\n",
            "198.51.100.9, 10.0.0.1, 127.0.0.1",
            "public.example",
            "444",
        ),
        ("X-Forwarded-For: 198.51.100.9:4711\r\n", "198.51.100.9, 127.0.0.1", "shop.example:8443", "8443"),
        ("", "127.0.0.1", "shop.example:8443", "8443"),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: shop.example:8443\r\nConnection: close\r\n{fields}\r\n");
        assert_eq!(raw(gateway.http, &head).status, 200);
        let (question, request) = (authorizer.last(), backend.last());
        for name in ["for", "host", "port", "proto"].map(|end| format!("x-forwarded-{end}")) {
            assert_eq!(lines(&question, &name), lines(&request, &name), "{name}");
        }
        assert_eq!(lines(&question, "x-real-ip"), lines(&request, "x-real-ip"));
        assert_eq!(lines(&question, "x-forwarded-for"), [chain]);
        assert_eq!(lines(&question, "x-forwarded-host"), [host]);
        assert_eq!(lines(&question, "x-forwarded-port"), [port]);
        let scheme = lines(&request, "x-forwarded-proto")[0];
        assert_eq!(lines(&question, "x-original-url"), [format!("{scheme}://shop.example:8443/")]);
    }
}

#[test]
fn in_the_style_of_envoy_too() {
    let (authorizer, backend) =
        (Server::start(Script::Says(YES.into())), Server::start(Script::Says(OK.into())));
    let gateway = start(
        &authorizer,
        &backend,
        "{extAuth: {backendRef: {kind: GatewayBackend, name: authz}, path: /verify, style: ExtAuthz, body: {maxSize: '16'}}}",
    );
    let post = |length: usize| {
        let body = "x".repeat(length);
        raw(
            gateway.http,
            &format!(
                "PUT /a%20b?c HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nContent-Type: text/x\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
        )
    };
    assert_eq!(post(16).status, 200);
    let (question, request) = (authorizer.last(), backend.last());
    assert!(
        question.starts_with("PUT /verify/a%20b?c HTTP/1.1\r\n")
            && request.starts_with("PUT /a%20b?c HTTP/1.1\r\n")
    );
    for name in ["content-length", "content-type", "host"] {
        assert_eq!(lines(&question, name), lines(&request, name), "{name}");
    }
    assert_eq!(lines(&request, "content-length"), ["16"]);
    let (asked, got) = (authorizer.count(), backend.count());
    assert_eq!(post(17).status, 413);
    assert_eq!((authorizer.count(), backend.count()), (asked, got));
}

#[test]
fn nothing_but_a_whole_yes_lets_a_request_through() {
    let (authorizer, backend) =
        (Server::start(Script::Says(YES.into())), Server::start(Script::Says(OK.into())));
    let with = |more: &str| {
        format!(
            "{{extAuth: {{backendRef: {{kind: GatewayBackend, name: authz}}, timeout: 500ms, backendHeaders: [X-User]{more}}}}}"
        )
    };
    let gateway = start(&authorizer, &backend, &with(""));
    let ask = || gateway.get("shop.example", "/");
    assert_eq!((ask().status, backend.count()), (200, 1), "the control");
    let faults = [
        ("it hangs", Script::Hangs),
        ("it is slow", Script::Drips(YES.into())),
        ("it says nothing", Script::Says(String::new())),
        ("it speaks something else", Script::Says("SSH-2.0-x\r\n\r\n".into())),
        ("it breaks", Script::Says("HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n".into())),
        ("it is overloaded", Script::Says("HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n".into())),
        ("its length lies", Script::Says("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".into())),
        (
            "its chunks break off",
            Script::Says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal".into()),
        ),
        ("its head is cut", Script::Says("HTTP/1.1 200 OK\r\nx-user: al".into())),
        ("its head is huge", Script::Floods("HTTP/1.1 200 OK\r\nx-user: ")),
        (
            "it switches protocols",
            Script::Says("HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n".into()),
        ),
    ];
    for (what, script) in &faults {
        authorizer.plays(script.clone());
        let began = Instant::now();
        let answer = ask();
        assert_eq!(answer.status, 503, "{what}");
        assert_eq!(
            (answer.status, answer.json()["reason"].as_str()),
            (503, Some("AuthorizerUnavailable")),
            "{what}"
        );
        assert_eq!(backend.count(), 1, "{what}");
        assert!(began.elapsed() < Duration::from_secs(10), "{what} took {:?}", began.elapsed());
    }
    let refusals = [
        (
            "HTTP/1.1 401 x\r\nwww-authenticate: Bearer realm=\"x\"\r\nx-inside: 1\r\ncontent-type: text/x\r\ncontent-length: 3\r\n\r\nwho",
            401,
            Some("who"),
        ),
        (
            "HTTP/1.1 302 x\r\nlocation: https://login.example/?rd=x\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n",
            302,
            Some(""),
        ),
        (NO, 403, Some("no")),
        ("HTTP/1.1 403 x\r\ncontent-length: 0\r\n\r\n", 403, None),
        ("HTTP/1.1 404 x\r\ncontent-length: 2\r\n\r\nno", 403, None),
    ];
    for (script, status, body) in refusals {
        authorizer.says(script);
        let answer = ask();
        assert_eq!((answer.status, backend.count()), (status, 1), "{script}");
        match body {
            Some(body) => assert_eq!(answer.body, body),
            None => assert_eq!(answer.json()["reason"], "ExternallyDenied"),
        }
        assert_eq!(answer.field("x-inside"), None);
        if status == 401 {
            assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"x\""));
        }
        if status == 302 {
            assert_eq!(
                (answer.field("location"), answer.field("set-cookie")),
                (Some("https://login.example/?rd=x"), Some("a=b"))
            );
        }
    }
    // A refusal with a body without end is one all the same, without the body.
    authorizer.plays(Script::Floods("HTTP/1.1 401 x\r\ntransfer-encoding: identity\r\n\r\n"));
    let answer = ask();
    assert!([401, 503].contains(&answer.status) && answer.body.len() < 1000, "{answer:?}");
    assert_eq!(backend.count(), 1);

    authorizer.says(YES);
    assert_eq!((ask().status, backend.count()), (200, 2), "it is back");
    let metrics = gateway.ask_admin("/metrics").body;
    let counted = |decision: &str| {
        let start = format!(
            "portcullis_ext_auth_decisions_total{{namespace=\"test\",route=\"shop\",rule=\"all\",decision=\"{decision}\"}} "
        );
        metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u32>().ok())
    };
    assert_eq!((counted("allow"), counted("allow_on_failure")), (Some(2), Some(0)), "{metrics}");
    assert!(counted("failure") >= Some(11) && counted("deny") >= Some(5));

    // Where the policy says so, failures let pass, refusals never, and nothing that the client says of itself.
    gateway.write("route.yaml", &shop(&with(", onFailure: Allow")));
    authorizer.plays(Script::Hangs);
    until("failures to let pass", || (ask().status == 200).then_some(()));
    let before = backend.count();
    let spoofing = gateway.request("GET", "shop.example", "/", &["X-User: root"], "");
    assert_eq!(
        (spoofing.status, backend.count(), lines(&backend.last(), "x-user").len()),
        (200, before + 1, 0)
    );
    authorizer.says(NO);
    assert_eq!((ask().status, backend.count()), (403, before + 1));
}

#[test]
fn no_field_of_a_client_gives_the_request_another_target_or_method() {
    let (authorizer, backend) =
        (Server::start(Script::Says(YES.into())), Server::start(Script::Says(OK.into())));
    let all = "{extAuth: {backendRef: {kind: GatewayBackend, name: authz}, requestHeaders: ['*']}}";
    let gateway = start(&authorizer, &backend, all);
    for (name, is_taken) in [
        ("X-Plain", false),
        ("X-Original-URL", true),
        ("X-Original-URI", true),
        ("X-Original-Method", true),
        ("X-Original-Host", true),
        ("X-Rewrite-URL", true),
        ("X-Rewrite-URI", true),
        ("X-Envoy-Original-Path", true),
        ("X-Forwarded-Uri", true),
        ("X-Forwarded-Url", true),
        ("X-Forwarded-Path", true),
        ("X-Forwarded-Prefix", true),
        ("X-Forwarded-Method", true),
        ("X-Forwarded-Host", true),
        ("X-Forwarded-For", true),
        ("X-Real-IP", true),
        ("X-HTTP-Method-Override", true),
        ("X-HTTP-Method", true),
        ("X-Method-Override", true),
        ("X_Original_URL", true),
        ("X_Forwarded_Uri", true),
        ("x-oRIGINAL-uRL", true),
    ] {
        let before = (authorizer.count(), backend.count());
        let word = format!("{name}: deceived");
        let answer = gateway.request("GET", "shop.example", "/private", &[&word, &word], "");
        assert_eq!(
            (answer.status, authorizer.count(), backend.count()),
            (200, before.0 + 1, before.1 + 1),
            "{name}"
        );
        for heard in [authorizer.last(), backend.last()] {
            assert_eq!(heard.matches("deceived").count(), if is_taken { 0 } else { 2 }, "{name}: {heard}");
        }
        assert_eq!(lines(&authorizer.last(), "x-forwarded-uri"), ["/private"], "{name}");
        assert_eq!(lines(&authorizer.last(), "x-forwarded-method"), ["GET"], "{name}");
    }
}

#[test]
fn several_gates_must_all_say_yes_and_a_broken_one_denies() {
    let (first, second) = (Server::start(Script::Says(YES.into())), Server::start(Script::Says(YES.into())));
    let backend = Server::start(Script::Says(OK.into()));
    let gateway = start(&first, &backend, "{extAuth: {backendRef: {kind: GatewayBackend, name: authz}}}");
    let imposed = |name: &str| {
        policy(
            "imposed",
            &format!(
                "{{precedence: Override, targetRefs: [{{kind: Namespace}}], policy: {{extAuth: {{backendRef: {{kind: GatewayBackend, name: {name}}}}}}}}}"
            ),
        )
    };
    let asks_both = || {
        let before = (first.count(), second.count());
        let status = gateway.get("shop.example", "/").status;
        (status == 200 && (first.count(), second.count()) == (before.0 + 1, before.1 + 1)).then_some(())
    };
    gateway.write("second.yaml", &second.manifest("second"));
    gateway.write("policy.yaml", &imposed("second"));
    until("both to be asked", asks_both);
    for (one, other) in [(YES, NO), (NO, YES)] {
        first.says(one);
        second.says(other);
        assert_eq!(gateway.get("shop.example", "/").status, 403);
    }
    first.says(YES);
    gateway.write("policy.yaml", &imposed("nosuch"));
    gateway.until_answer("shop.example", "/", 503, "PolicyInvalid");
    let before = backend.count();
    assert_eq!((gateway.get("shop.example", "/").status, backend.count()), (503, before));
    let status = gateway.status().to_string();
    assert!(
        status.contains("there is no GatewayBackend test/nosuch; create it or correct the name"),
        "{status}"
    );
    gateway.write("policy.yaml", &imposed("second"));
    until("both to be asked again", asks_both);
}

#[test]
fn by_url_with_an_identity_that_rules_decide_on_and_no_circle() {
    let authorizer = Server::start(Script::Says(YES.into()));
    let backend = Server::start(Script::Says(OK.into()));
    let by = |address: SocketAddr| {
        format!(
            "{{extAuth: {{url: 'http://{address}/v?from=gateway', identity: {{idHeader: X-User}}}}, authorization: {{rules: [{{name: alice, action: Allow, when: \"identity.id == 'alice' && identity.kind == 'External'\"}}]}}, cors: {{allowOrigins: ['https://a.example']}}}}"
        )
    };
    let gateway = start(&authorizer, &backend, &by(authorizer.address));
    until("its address to be known", || (gateway.get("shop.example", "/").status == 200).then_some(()));
    let question = authorizer.last();
    assert!(question.starts_with("GET /v?from=gateway HTTP/1.1\r\n"), "{question}");
    assert_eq!(lines(&question, "host"), [authorizer.address.to_string()]);
    authorizer.says(&YES.replace("alice", "mallory"));
    let answer = gateway.get("shop.example", "/");
    assert_eq!((answer.status, answer.json()["reason"].as_str()), (403, Some("Forbidden")));
    // Browsers ask whether they may ask without credentials.
    let asked = authorizer.count();
    let preflight = gateway.request(
        "OPTIONS",
        "shop.example",
        "/",
        &["Origin: https://a.example", "Access-Control-Request-Method: GET"],
        "",
    );
    assert_eq!((preflight.status, authorizer.count()), (204, asked));
    // An authorizer that stands behind this very gate.
    let itself = by(gateway.http)
        .replace("/v?from=gateway", "/")
        .replace("extAuth: {", "extAuth: {style: ExtAuthz, onFailure: Allow, ");
    let rule = "backendRefs: [{kind: GatewayBackend, name: one}]";
    let all = route("shop", &format!("{{rules: [{{name: all, policy: {itself}, {rule}}}]}}"));
    let before = backend.count();
    gateway.write("route.yaml", &all);
    let answer =
        until("the circle", || Some(gateway.get("shop.example", "/")).filter(|answer| answer.status != 403));
    assert_eq!((answer.status, answer.json()["reason"].as_str()), (508, Some("LoopDetected")), "{answer:?}");
    assert_eq!(backend.count(), before);
}
