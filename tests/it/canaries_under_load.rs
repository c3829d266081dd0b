//! The Secrets of `canaries` while much happens at once: clients over HTTP/1.1 and HTTP/2, backends over HTTP/1.1 and
//! HTTP/2, Secrets that change and break, key sets and issuers that are gone or speak nonsense, purges with the token that
//! replicas show each other.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

use super::canaries::{CANARIES, HOSTS, Planted, around, sung, world};
use crate::harness::{Backend, Gateway, connect, exchange, responds, route, run, text, until};

const TOKEN: &str = "--admin-token-file";

/// Hosts beside those of the other world.
const MORE: [&str; 5] = ["paid-h2", "lent-h2", "gone", "nonsense", "issuer"];

fn more(backend: &Backend, nobody: u16) -> String {
    let echo = backend.address.port();
    let server = |name: &str, credentials: &str| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: {name}}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {echo}}}], protocol: H2C, credentials: {credentials}}}\n---\n"
        )
    };
    let to = |name: &str, backend: &str, policy: &str| {
        let spec = format!(
            "{{hostnames: [{name}.example], rules: [{{name: all, policy: {policy}, backendRefs: [{{kind: GatewayBackend, name: {backend}}}]}}]}}"
        );
        route(name, &spec)
    };
    let tokens = |issuer: &str, keys: &str| {
        format!(
            "{{authentication: {{failures: {{requests: 0}}, anyOf: [{{name: entry, jwt: {{issuer: '{issuer}', audiences: [shop]{keys}}}}}]}}}}"
        )
    };
    [
        server("paid-h2", "{header: X-Pay, prefix: 'Bearer ', secretKeyRef: {key: token, name: of-ours}}"),
        server("lent-h2", "{basic: {secretRef: {name: login-of-ours}}}"),
        to("paid-h2", "paid-h2", "{}"),
        to("lent-h2", "lent-h2", "{}"),
        to("gone", "one", &tokens(ISSUER, &format!(", jwks: {{uri: 'http://127.0.0.1:{nobody}/keys'}}"))),
        to("nonsense", "one", &tokens(ISSUER, &format!(", jwks: {{uri: 'http://127.0.0.1:{echo}/keys'}}"))),
        to("issuer", "one", &tokens(&format!("http://127.0.0.1:{nobody}"), "")),
    ]
    .concat()
}

const ISSUER: &str = "https://login.example";

/// A token in form, that ends in `key`.
fn token(issuer: &str, key: &str) -> String {
    let payload = format!("{{\"iss\":\"{issuer}\",\"aud\":\"shop\",\"exp\":4102444800}}");
    let encode = |part: &str| URL_SAFE_NO_PAD.encode(part);
    format!("{}.{}.{key}", encode("{\"alg\":\"ES256\",\"kid\":\"1\"}"), encode(&payload))
}

/// What clients show: each key in each place.
fn shown(keys: &[String], nobody: u16) -> Vec<(&'static str, String)> {
    let mut shown = Vec::new();
    for key in keys {
        shown.push(("x-api-key", key.clone()));
        shown.push(("authorization", format!("Bearer {key}")));
        shown.push(("authorization", format!("Bearer {}", token(ISSUER, key))));
        shown
            .push(("authorization", format!("Bearer {}", token(&format!("http://127.0.0.1:{nobody}"), key))));
        shown.push(("authorization", format!("Basic {}", STANDARD.encode(format!("alice:{key}")))));
    }
    shown
}

/// What the gateway itself answered, and how often anybody did.
#[derive(Default)]
struct Heard {
    said: Mutex<String>,
    answers: AtomicUsize,
    served: AtomicUsize,
}

impl Heard {
    fn answer(&self, status: u16, of_backend: bool, text: &str) {
        self.answers.fetch_add(1, Ordering::SeqCst);
        if status < 400 || of_backend {
            self.served.fetch_add(1, Ordering::SeqCst);
            return;
        }
        self.said.lock().expect("no panic holds it").push_str(text);
    }

    fn said(&self) -> String {
        self.said.lock().expect("no panic holds it").clone()
    }
}

fn over_http1(
    gateway: SocketAddr,
    hosts: &[&str],
    shown: &[(&str, String)],
    stop: &AtomicBool,
    heard: &Heard,
) {
    for (name, value) in shown.iter().cycle() {
        for host in hosts {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let field = format!("{name}: {value}");
            let answer = exchange(connect(gateway), "GET", &format!("{host}.example"), "/x", &[&field], "");
            let text = format!("{} {:?} {}\n", answer.status, answer.fields, answer.body);
            heard.answer(answer.status, answer.field("x-echo").is_some(), &text);
        }
    }
}

/// Sixteen streams at a time on one connection.
async fn over_http2(
    gateway: SocketAddr,
    hosts: &[&str],
    shown: &[(&'static str, String)],
    stop: &AtomicBool,
    heard: &Heard,
) {
    let socket = tokio::net::TcpStream::connect(gateway).await.expect("connects");
    let (sender, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("speaks HTTP/2");
    tokio::spawn(connection);
    let wanted: Vec<_> = shown.iter().flat_map(|field| hosts.iter().map(move |host| (host, field))).collect();
    for some in wanted.chunks(16).cycle() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let asked = some.iter().map(|(host, (name, value))| {
            let mut sender = sender.clone();
            let request = http::Request::get(format!("http://{host}.example/x"))
                .header(*name, value)
                .body(Empty::new())
                .expect("a request");
            async move {
                let answer = sender.send_request(request).await.expect("answered");
                let (head, body) = answer.into_parts();
                let body = body.collect().await.expect("whole").to_bytes();
                let of_backend = head.headers.contains_key("x-echo");
                let text = format!("{} {:?} {}\n", head.status, head.headers, text(&body));
                heard.answer(head.status.as_u16(), of_backend, &text);
            }
        });
        futures_util::future::join_all(asked).await;
    }
}

#[test]
fn no_secret_is_in_anything_that_is_said_under_load() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut planted: Vec<_> = CANARIES.iter().map(|canary| canary.plant(folder.path())).collect();
    let told = Planted::told(TOKEN);
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, &told.canaries[0]).expect("written");
    let backend = Backend::start("one");
    // Nobody is there.
    let nobody =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").port();
    let secrets = |broken: &str| -> String {
        let pick = |one: &Planted| {
            if one.name == broken || broken == "all" { one.broken.clone() } else { one.manifest.clone() }
        };
        planted.iter().map(pick).collect()
    };
    let world_folder = tempfile::tempdir().expect("a folder");
    let manifests = world(&backend, nobody) + &more(&backend, nobody);
    std::fs::write(world_folder.path().join("routes.yaml"), manifests).expect("written");
    std::fs::write(world_folder.path().join("secrets.yaml"), secrets("")).expect("written");
    let log = folder.path().join("access.log");
    let mut command = crate::harness::program();
    command.env("PORTCULLIS_LOG", "trace");
    let paths = [&log, &token_file].map(|path| path.to_str().expect("UTF-8"));
    let gateway = Gateway::launched(command, world_folder, &["--access-log", paths[0], TOKEN, paths[1]]);

    let texts = planted.iter().flat_map(|one| &one.canaries);
    let mut keys: Vec<String> = texts.filter_map(|canary| String::from_utf8(canary.clone()).ok()).collect();
    keys.push("wrong".into());
    let shown = shown(&keys, nobody);
    let hosts: Vec<&str> = HOSTS.into_iter().chain(MORE).collect();
    let paid = gateway.get("paid-h2.example", "/");
    assert_eq!(paid.json()["protocol"], "HTTP/2.0", "the control: that backend speaks HTTP/2");
    assert_eq!(sung(&paid.body, &planted), BTreeSet::from(["of-ours"]), "the control: and is shown ours");

    let (stop, by_one, by_two) = (AtomicBool::new(false), Heard::default(), Heard::default());
    let mut said = String::new();
    std::thread::scope(|scope| {
        /// Also when this thread fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let _stop = Stop(&stop);
        let http = gateway.http;
        for client in 0..3 {
            let from = client * shown.len() / 3;
            let (hosts, stop, by_one) = (&hosts, &stop, &by_one);
            let turned: Vec<_> = shown[from..].iter().chain(&shown[..from]).cloned().collect();
            scope.spawn(move || over_http1(http, hosts, &turned, stop, by_one));
        }
        let (shown, hosts, stop, by_two) = (&shown, &hosts, &stop, &by_two);
        scope.spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(over_http2(http, hosts, shown, stop, by_two));
        });
        for (round, broken) in ["all", "", "named-keys", "key-set", "of-ours", ""].into_iter().enumerate() {
            gateway.write("secrets.yaml", &secrets(broken));
            // What was written before it is read when this is served.
            let mark = format!("mark-{round}");
            gateway.write("mark.yaml", &responds("mark", "mark.example", &mark));
            gateway.until_answer("mark.example", "/", 200, &mark);
            for heard in [&by_one, by_two] {
                let seen = heard.answers.load(Ordering::SeqCst);
                until("more answers under it", || {
                    (heard.answers.load(Ordering::SeqCst) > seen + 50).then_some(())
                });
            }
            said += &gateway.ask_admin("/status").body;
            let admin = gateway.admin.to_string();
            for (file, done) in [(paths[1], true), ("/dev/null", false)] {
                let output = run(&["purge", "--admin", &admin, "--token-file", file, "--tag", "shoes"]);
                assert_eq!(output.status.success(), done, "the control: {}", text(&output.stderr));
                said += &(text(&output.stdout) + &text(&output.stderr));
            }
        }
    });
    for heard in [&by_one, &by_two] {
        assert!(heard.served.load(Ordering::SeqCst) > 0, "the control: some were served");
        let own = heard.said();
        assert!(
            own.contains("TokenInvalid") && own.contains("KeysUnavailable"),
            "the control: some were refused: {own}"
        );
        said += &own;
    }
    for page in ["/status", "/metrics", "/readyz", "/purge"] {
        said += &gateway.ask_admin(page).body;
    }
    said += &gateway.process.log();
    for line in std::fs::read_to_string(&log).expect("the access log").lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        said += &line.to_string();
    }
    assert!(said.len() > 100_000, "the control: there is something to search in ({} bytes)", said.len());
    planted.push(told);
    assert_eq!(sung(&said, &planted), BTreeSet::new(), "{}", around(&said, &planted));
}
