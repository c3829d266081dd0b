//! Aggregations in the whole program, from backends that answer, fail in every way, and are left hanging.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Answer, Gateway, route, run, text, until};

/// What a backend does with a request, by the path that was asked for.
type Script = fn(&str, &mut TcpStream);

/// A backend of raw bytes. A connection is one request.
struct Scripted {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    /// Connections on which the other side went away while it was left hanging.
    left: Arc<AtomicUsize>,
}

/// Set by a script that wants its connection to be watched until the other side leaves.
const HANG: &str = "/hang";

impl Scripted {
    fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (heads, left) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let (told, gone) = (Arc::clone(&heads), Arc::clone(&left));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (heads, left) = (Arc::clone(&told), Arc::clone(&gone));
                std::thread::spawn(move || {
                    let Some(head) = read_head(&mut stream) else { return };
                    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    heads.lock().expect("no panic").push(head);
                    script(&target, &mut stream);
                    if target.contains(HANG) {
                        let _ = stream.read(&mut [0; 64]);
                        left.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self { address, heads, left }
    }

    fn manifest(&self, name: &str) -> String {
        manifest(name, self.address)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }
}

fn manifest(name: &str, address: SocketAddr) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: {}, port: {}}}]}}\n---\n",
        address.ip(),
        address.port()
    )
}

/// The head and what came with it.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut piece) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(read) if read > 0 => head.extend_from_slice(&piece[..read]),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn say(stream: &mut TcpStream, status: &str, body: &str) {
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
}

/// Answers in the usual way, and fails in the way that the path names.
fn shop(target: &str, stream: &mut TcpStream) {
    match target.split(['/', '?']).nth(1).unwrap_or_default() {
        "users" => say(stream, "200 OK", r#"{"id": 12345678901234567890123, "city": "a/b", "rate": 1.10}"#),
        "orders" => say(stream, "200 OK", "[{\"n\":1e2}]"),
        "status" => {
            let status = format!("{} Said", target.rsplit('/').next().unwrap_or_default());
            say(stream, &status, r#"{"stack":"hunter2 at 10.0.0.7"}"#);
        }
        "reset" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"a\":");
        }
        "lies" => {
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n[1]x");
        }
        "garbage" => {
            let _ = stream.write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n");
        }
        "html" => say(stream, "200 OK", "<html>hunter2</html>"),
        "moved" => say(stream, "302 Found\r\nLocation: /users/elsewhere", "{}"),
        "breakout" => say(stream, "200 OK", r#"1}, "admin": {"is": true"#),
        "utf8" => {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n\"\xff\"");
        }
        "long-head" => {
            let line = [b"X-Long: ".as_slice(), &vec![b'x'; 8000], b"\r\n"].concat();
            let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n").is_ok();
            for _ in 0..12_500 {
                sent = sent && stream.write_all(&line).is_ok();
            }
        }
        "endless" => {
            let chunk = [b"10000\r\n\"".as_slice(), &vec![b'x'; 65_535], b"\r\n"].concat();
            let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_ok();
            while sent {
                sent = stream.write_all(&chunk).is_ok();
            }
        }
        "drip" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
            while stream.write_all(b" ").is_ok() {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
        _ => {}
    }
}

fn aggregate(calls: &str, more: &str) -> String {
    route(
        "home",
        &format!(
            "{{hostnames: [shop.example], rules: [{{name: home, matches: [{{path: {{type: PathTemplate, value: '/users/{{id}}/home'}}}}], aggregate: {{calls: [{calls}]{more}}}}}]}}"
        ),
    )
}

fn call(name: &str, path: &str, more: &str) -> String {
    format!("{{name: {name}, backendRef: {{kind: GatewayBackend, name: one}}, path: \"{path}\"{more}}}")
}

fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[test]
fn one_answer_is_made_of_several() {
    let backend = Scripted::start(shop);
    let calls = [
        call("user", "/users/${path.id}?lang=${request.headers['accept-language']}", ""),
        call(
            "orders",
            "/orders?user=${path.id}&limit=5",
            ", headers: {pass: [X-Tenant], set: [{name: X-By, value: \"${identity.kind}\"}]}",
        ),
        call("address", "/address/${user.body.city}", ", dependsOn: [user], when: \"has(user.body.zip)\""),
        call(
            "near",
            "/orders/${user.body.city}/${user.body.id}",
            ", dependsOn: [user], method: POST, body: \"{'rate': user.body.rate}\"",
        ),
    ]
    .join(", ");
    let gateway = Gateway::start(&[("a.yaml", &(backend.manifest("one") + &aggregate(&calls, "")))]);
    let fields =
        ["Accept-Language: de", "X-Tenant: acme", "Authorization: Bearer hunter2", "Cookie: a=hunter2"];
    let answer = gateway.request("GET", "shop.example", "/users/a%20b/home", &fields, "");
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (
            200,
            r#"{"user":{"id": 12345678901234567890123, "city": "a/b", "rate": 1.10},"orders":[{"n":1e2}],"near":[{"n":1e2}]}"#
        )
    );
    assert_eq!((field(&answer, "portcullis-partial"), field(&answer, "cache-control")), (None, None));
    assert_eq!(field(&answer, "content-type"), Some("application/json"));
    let heads = backend.heads();
    let head = |start: &str| {
        let found = heads.iter().find(|head| head.starts_with(start));
        found.unwrap_or_else(|| panic!("no {start} in {heads:?}")).to_lowercase()
    };
    let user = head("GET /users/a%20b?lang=de HTTP/1.1");
    assert!(user.contains("accept-language: de") && user.contains("x-forwarded-for: 127.0.0.1"), "{user}");
    assert!(!heads.iter().any(|head| head.contains("hunter2")), "credentials passed: {heads:?}");
    assert!(!user.contains("x-tenant"));
    let orders = head("GET /orders?user=a%20b&limit=5 HTTP/1.1");
    assert!(orders.contains("x-tenant: acme") && orders.contains("x-by: anonymous"), "{orders}");
    let near = head("POST /orders/a%2Fb/12345678901234567890123 HTTP/1.1");
    assert!(near.contains("content-type: application/json") && near.ends_with("{\"rate\":1.10}"), "{near}");
    assert_eq!(heads.len(), 3, "the address is not asked for");

    let head = gateway.request("HEAD", "shop.example", "/users/1/home", &fields, "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let failed = gateway.get("shop.example", "/users/1/home");
    assert_eq!(failed.status, 400, "nothing says which language: {failed:?}");
}

#[test]
fn a_backend_that_fails_in_any_way_costs_its_part_only() {
    let backend = Scripted::start(shop);
    let dead = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let calls = [
        call("user", "/users/1", ""),
        call("broken", "/${request.query.how}/500", ", timeout: 2s, onError: {value: {items: [], total: 0}}"),
        "{name: gone, backendRef: {kind: GatewayBackend, name: dead}, path: /, onError: {omit: true}}"
            .to_owned(),
    ]
    .join(", ");
    let files =
        backend.manifest("one") + &manifest("dead", dead) + &aggregate(&calls, ", errorsMember: true");
    let gateway = Gateway::start(&[("a.yaml", &files)]);
    for (how, reason) in [
        ("status", "CallFailed"),
        ("reset", "InvalidResponse"),
        ("lies", "InvalidResponse"),
        ("garbage", "InvalidResponse"),
        ("html", "InvalidResponse"),
        ("breakout", "InvalidResponse"),
        ("utf8", "InvalidResponse"),
        ("long-head", "InvalidResponse"),
        ("endless", "InvalidResponse"),
        ("closed", "Reset"),
        ("drip", "BackendTimeout"),
        ("hang", "BackendTimeout"),
    ] {
        let answer = gateway.get("shop.example", &format!("/users/1/home?how={how}"));
        assert_eq!(
            (answer.status, field(&answer, "portcullis-partial")),
            (200, Some("broken, gone")),
            "{how}: {answer:?}"
        );
        assert_eq!(field(&answer, "cache-control"), Some("no-store"), "{how}");
        let start = r#"{"user":{"id": 12345678901234567890123, "city": "a/b", "rate": 1.10},"broken":{"items":[],"total":0},"_errors":[{"call":"broken","reason":""#;
        assert!(answer.body.starts_with(&format!("{start}{reason}\"")), "{how}: {}", answer.body);
        assert!(
            answer.body.ends_with(r#"{"call":"gone","reason":"ConnectFailure"}]}"#),
            "{how}: {}",
            answer.body
        );
        assert!(!answer.body.contains("hunter2"), "{how}");
    }
    let metrics = gateway.ask_admin("/metrics").body;
    for (call, outcome, count) in
        [("user", "ok", 12), ("broken", "BackendTimeout", 2), ("gone", "ConnectFailure", 12)]
    {
        let line = format!(
            "portcullis_aggregate_calls_total{{namespace=\"test\",route=\"home\",rule=\"home\",call=\"{call}\",outcome=\"{outcome}\"}} {count}"
        );
        assert!(metrics.contains(&line), "no {line} in\n{metrics}");
    }
}

#[test]
fn a_required_call_that_fails_decides_and_shows_nothing() {
    let backend = Scripted::start(shop);
    let gateway = Gateway::start(&[("b.yaml", &backend.manifest("one"))]);
    for (path, more, status, reason) in [
        ("/status/404", "", 404, "CallFailed"),
        ("/status/500", "", 502, "CallFailed"),
        ("/status/401", "", 502, "CallFailed"),
        ("/html", "", 502, "InvalidResponse"),
        ("/moved", "", 502, "CallFailed"),
        ("/status/503", ", onError: {status: 424}", 424, "CallFailed"),
        ("/hang", ", timeout: 100ms", 504, "BackendTimeout"),
        ("/users/${request.headers['x-none']}", "", 400, "ExpressionFailed"),
    ] {
        let files = aggregate(&(call("user", path, more) + ", " + &call("other", "/orders", "")), "");
        gateway.write("a.yaml", &files);
        let answer = gateway.until_answer(
            "shop.example",
            "/users/1/home",
            status,
            &format!("\"reason\":\"{reason}\""),
        );
        assert_eq!(field(&answer, "content-type"), Some("application/problem+json"), "{path}");
        assert!(answer.body.contains(&format!("\"status\":{status}")), "{}", answer.body);
        assert!(!answer.body.contains("hunter2") && !answer.body.contains("10.0.0.7"), "{}", answer.body);
    }
    let heads = backend.heads();
    assert!(heads.iter().any(|head| head.starts_with("GET /moved ")), "the control: {heads:?}");
    assert!(!heads.iter().any(|head| head.contains("elsewhere")), "redirects are not followed: {heads:?}");
}

#[test]
fn calls_go_to_services_and_third_parties_as_requests_do() {
    let backend = Scripted::start(shop);
    let port = backend.address.port();
    let files = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: users, namespace: test}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: users, namespace: test, labels: {{kubernetes.io/service-name: users}}}}\naddressType: IPv4\nports: [{{port: {port}}}]\nendpoints: [{{addresses: [127.0.0.1]}}]\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: key, namespace: test}}\nstringData: {{key: ours}}\n---\n"
    );
    let limits = "}], credentials: {header: X-Api-Key, secretKeyRef: {name: key}}, host: api.example, rateLimit: {requests: 1, per: 744h}}";
    let third_party = backend.manifest("one").replace("}]}", limits);
    let calls = [
        "{name: user, backendRef: {name: users, port: 80}, path: /users/1}".to_owned(),
        call("orders", "/orders", ", headers: {pass: [X-Api-Key]}, onError: {omit: true}"),
    ];
    let files = files + &third_party + &aggregate(&calls.join(", "), ", errorsMember: true");
    let gateway = Gateway::start(&[("a.yaml", &files)]);
    let ask = || gateway.request("GET", "shop.example", "/users/1/home", &["X-Api-Key: theirs"], "");
    let whole = ask();
    assert!(whole.status == 200 && whole.body.ends_with(r#""orders":[{"n":1e2}]}"#), "{whole:?}");
    let heads = backend.heads();
    let orders = heads.iter().find(|head| head.starts_with("GET /orders ")).expect("asked").to_lowercase();
    assert!(orders.contains("x-api-key: ours") && orders.contains("host: api.example"), "{orders}");
    assert!(!heads.iter().any(|head| head.contains("theirs")), "{heads:?}");
    // The third party has had its one request; the Service has no limit.
    let partial = ask();
    assert_eq!(field(&partial, "portcullis-partial"), Some("orders"));
    assert!(
        partial.body.ends_with(r#""_errors":[{"call":"orders","reason":"Overloaded"}]}"#),
        "{}",
        partial.body
    );
    assert_eq!(backend.heads().len(), 3);
}

#[test]
fn each_call_has_its_own_tries_and_all_have_one_end() {
    static FLAKY: AtomicUsize = AtomicUsize::new(0);
    let backend = Scripted::start(|target, stream| match target {
        "/flaky" if FLAKY.fetch_add(1, Ordering::SeqCst) > 0 => say(stream, "200 OK", "1"),
        "/hang" => {}
        _ => say(stream, "503 Busy", "{}"),
    });
    let calls = [
        call("flaky", "/flaky", ", retry: {attempts: 3, codes: [503], backoff: 1ms}"),
        call("once", "/once", ", onError: {omit: true}"),
        call("slow", "/hang", ", onError: {value: []}"),
        call("late", "/late", ", dependsOn: [slow], timeout: 20s, onError: {omit: true}"),
    ];
    let files = backend.manifest("one") + &aggregate(&calls.join(", "), ", timeout: 3s, errorsMember: true");
    let gateway = Gateway::start(&[("a.yaml", &files)]);
    let began = Instant::now();
    let answer = gateway.get("shop.example", "/users/1/home");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!((answer.status, field(&answer, "portcullis-partial")), (200, Some("once, slow, late")));
    assert!(answer.body.starts_with(r#"{"flaky":1,"slow":[],"_errors":["#), "{}", answer.body);
    for told in [
        r#"{"call":"once","reason":"CallFailed","status":503}"#,
        r#"{"call":"slow","reason":"BackendTimeout"}"#,
        r#"{"call":"late","reason":"BackendTimeout"}"#,
    ] {
        assert!(answer.body.contains(told), "no {told} in {}", answer.body);
    }
    until("the slow one to be given up", || (backend.left.load(Ordering::SeqCst) == 1).then_some(()));
    let heads = backend.heads();
    let asked = |path: &str| heads.iter().filter(|head| head.starts_with(&format!("GET {path} "))).count();
    assert_eq!((asked("/flaky"), asked("/once")), (2, 1));
}

#[test]
fn a_call_is_sent_and_repeated_by_the_method_that_its_expression_gives() {
    let backend = Scripted::start(|target, stream| {
        let status = if target == "/busy" { "503 Busy" } else { "200 OK" };
        let length = if target == "/busy" { 0 } else { 2 << 20 };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    });
    let method = ", method: \"${request.query.how}\", body: \"{'a': 1}\", onError: {omit: true}";
    let calls = [
        call("length", "/length", method),
        call("busy", "/busy", &format!("{method}, retry: {{attempts: 1, codes: [503], backoff: 1ms}}")),
        call("plain", "/busy?plain", ", onError: {value: {}}"),
    ];
    let files = backend.manifest("one") + &aggregate(&calls.join(", "), ", errorsMember: true");
    let gateway = Gateway::start(&[("a.yaml", &files)]);
    for (how, tries, has_body, partial) in [
        ("GET", 2, false, "length, busy, plain"),
        // Nothing comes of what a HEAD is told the length of.
        ("HEAD", 2, false, "busy, plain"),
        ("PUT", 2, true, "length, busy, plain"),
        ("DELETE", 2, true, "length, busy, plain"),
        ("OPTIONS", 2, true, "length, busy, plain"),
        ("POST", 1, true, "length, busy, plain"),
        ("PATCH", 1, true, "length, busy, plain"),
        ("PURGE", 1, true, "length, busy, plain"),
        ("TRACE", 0, false, "length, busy, plain"),
        ("CONNECT", 0, false, "length, busy, plain"),
        ("GET%20/admin", 0, false, "length, busy, plain"),
        ("", 0, false, "length, busy, plain"),
    ] {
        let before = backend.heads().len();
        let answer = gateway.get("shop.example", &format!("/users/1/home?how={how}"));
        assert_eq!((answer.status, field(&answer, "portcullis-partial")), (200, Some(partial)), "{how}");
        assert_eq!(answer.body.contains(r#""length":null"#), how == "HEAD", "{how}: {}", answer.body);
        let reason = if tries == 0 { "ExpressionFailed\"}" } else { "CallFailed\",\"status\":503}" };
        assert!(
            answer.body.contains(&format!("{{\"call\":\"busy\",\"reason\":\"{reason}")),
            "{how}: {}",
            answer.body
        );
        let heads = backend.heads().split_off(before);
        let start = format!("{how} /busy HTTP/1.1\r\n");
        let busy: Vec<_> = heads.iter().filter(|head| head.starts_with(&start)).collect();
        assert_eq!(busy.len(), tries, "{how}: {heads:?}");
        for head in busy {
            let told = (head.ends_with("{\"a\":1}"), head.to_lowercase().contains("content-type"));
            assert_eq!(told, (has_body, has_body), "{how}: {head}");
        }
        let length = usize::from(tries > 0);
        assert_eq!(heads.len(), tries + length + 1, "the plain call is always made: {how}: {heads:?}");
    }
}

#[test]
fn a_partial_answer_stays_uncached_whatever_a_transform_says() {
    let backend = Scripted::start(shop);
    let calls = [
        call("user", "/users/1", ""),
        call("orders", "/${request.query.how}/503", ", onError: {omit: true}"),
    ];
    let policy = "policy: {response: {headers: {set: [{name: Cache-Control, value: max-age=60}, {name: CDN-Cache-Control, value: max-age=60}]}}}, ";
    let files = aggregate(&calls.join(", "), "").replace("aggregate:", &format!("{policy}aggregate:"));
    let gateway = Gateway::start(&[("a.yaml", &(backend.manifest("one") + &files))]);
    let told = |how: &str| {
        let answer = gateway.get("shop.example", &format!("/users/1/home?how={how}"));
        let fields = ["portcullis-partial", "cache-control", "cdn-cache-control"];
        fields.map(|name| field(&answer, name).map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(told("orders"), [None, some("max-age=60"), some("max-age=60")], "the control: it is whole");
    assert_eq!(told("status"), [some("orders"), some("no-store"), None]);
}

#[test]
fn the_answer_can_be_anything_that_expressions_say() {
    let backend = Scripted::start(shop);
    let calls =
        [call("user", "/users/1", ""), call("orders", "/${request.query.how}/503", ", onError: {value: []}")]
            .join(", ");
    let response = r#", response: {status: "orders.ok ? 200 : 206", headers: [{name: X-User, value: "${user.body.id}"}], body: "{'id': user.body.id, 'first': orders.body.filter(o, o.n != null), 'why': orders.error}"}"#;
    let gateway = Gateway::start(&[("a.yaml", &(backend.manifest("one") + &aggregate(&calls, response)))]);
    let answer = gateway.get("shop.example", "/users/1/home?how=orders");
    let body = r#"{"id":12345678901234567890123,"first":[{"n":1e2}],"why":""}"#;
    assert_eq!((answer.status, answer.body.as_str()), (200, body));
    assert_eq!(field(&answer, "x-user"), Some("12345678901234567890123"));
    let answer = gateway.get("shop.example", "/users/1/home?how=status");
    let body = r#"{"id":12345678901234567890123,"first":[],"why":"CallFailed"}"#;
    assert_eq!((answer.status, answer.body.as_str()), (206, body));
    assert_eq!(field(&answer, "portcullis-partial"), Some("orders"));
}

#[test]
fn who_leaves_takes_every_call_along() {
    let backend = Scripted::start(|_, _| {});
    let calls =
        [call("one", "/hang/one", ""), call("two", "/hang/two", ", onError: {omit: true}")].join(", ");
    let gateway = Gateway::start(&[("a.yaml", &(backend.manifest("one") + &aggregate(&calls, "")))]);
    let mut client = TcpStream::connect(gateway.http).expect("connected");
    client.write_all(b"GET /users/1/home HTTP/1.1\r\nHost: shop.example\r\n\r\n").expect("sent");
    until("both calls", || (backend.heads().len() == 2).then_some(()));
    assert_eq!(backend.left.load(Ordering::SeqCst), 0, "the control: nobody has left");
    let left = Instant::now();
    drop(client);
    until("both calls to be given up", || (backend.left.load(Ordering::SeqCst) == 2).then_some(()));
    assert!(left.elapsed() < Duration::from_secs(10), "sooner than any time-out: {:?}", left.elapsed());
}

#[test]
fn a_graph_is_shown_and_a_wrong_one_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.yaml");
    let backend = manifest("one", ([127, 0, 0, 1], 9).into());
    let calls = [
        call("user", "/users/${path.id}", ""),
        call(
            "orders",
            "/orders?user=${user.body.id}",
            ", dependsOn: [user], timeout: 300ms, onError: {omit: true}",
        ),
    ]
    .join(", ");
    std::fs::write(&file, backend.clone() + &aggregate(&calls, ", timeout: 2s")).expect("written");
    let arguments =
        ["explain", "GET", "http://shop.example/users/7/home", "--manifests", file.to_str().expect("UTF-8")];
    let told = text(&run(&arguments).stdout);
    for line in [
        "user at once: GET /users/${path.id} -> GatewayBackend/test/one, required",
        "orders after user: GET /orders?user=${user.body.id} -> GatewayBackend/test/one, within 300ms, else left out",
        "200, a member each call",
        "all calls within 2s",
    ] {
        assert!(told.contains(line), "no {line} in\n{told}");
    }
    for (calls, expected) in [
        (
            [
                call("a", "/", ", dependsOn: [b]"),
                call("b", "/", ", dependsOn: [c]"),
                call("c", "/", ", dependsOn: [b]"),
            ]
            .join(", "),
            "calls[1].dependsOn: the calls wait for each other in a circle: b needs c needs b",
        ),
        (call("a", "/", ", dependsOn: [user]"), "calls[0].dependsOn[0]: there is no call \"user\""),
        (
            [call("a", "/${b.body.id}", ""), call("b", "/", "")].join(", "),
            "calls[0].path: the call \"b\" may not be over by then; add it to dependsOn",
        ),
        (call("path", "/", ""), "calls[0].name: the name means something else in expressions"),
        (
            call("a", "/", ", onError: {omit: true, status: 500}"),
            "calls[0].onError: onError has exactly one of value, omit and status",
        ),
        (
            call("a", "/", ", headers: {pass: [Connection]}"),
            "calls[0].headers.pass[0]: connection belongs to one connection",
        ),
        (call("a", "/a/../b", ""), "calls[0].path: around its expressions"),
        (call("a", "/", ", method: TRACE"), "calls[0].method: a call's method is GET, POST, PUT"),
        (
            call("a", "/", ", method: \"${request.method}/\""),
            "calls[0].method: around its expressions \"${request.method}/\" is no name of a method",
        ),
        (call("a", "/", ", when: \"1 + 1\""), "calls[0].when: the expression gives int, expected bool"),
    ] {
        std::fs::write(&file, backend.clone() + &aggregate(&calls, "")).expect("written");
        let output = run(&["check", file.to_str().expect("UTF-8")]);
        let told = text(&output.stdout);
        let (place, message) = expected.split_once(": ").expect("a place and a message");
        assert!(!output.status.success() && told.contains(message), "no {message} in\n{told}");
        assert!(told.contains(&format!(".{place}\n")), "no {place} in\n{told}");
    }
}

#[test]
fn the_access_log_names_the_calls_that_failed() {
    let backend = Scripted::start(shop);
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let calls = [call("user", "/users/1", ""), call("orders", "/html", ", onError: {omit: true}")].join(", ");
    let files = backend.manifest("one") + &aggregate(&calls, "");
    let target = log.to_str().expect("UTF-8");
    let gateway = Gateway::with(&[("a.yaml", &files)], &["--access-log", target]);
    assert_eq!(gateway.get("shop.example", "/users/1/home").status, 200);
    until("the line", || {
        let lines = std::fs::read_to_string(&log).unwrap_or_default();
        lines.contains("\"failed_calls\":\"orders=InvalidResponse (the answer is ").then_some(())
    });
}
