//! Tokens that the gateway fetches for itself and shows to third parties, with a provider on loopback that gives them,
//! fails, lies and goes away.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::harness::{Backend, Gateway, route, until};

const SECRETS: &str = "\
apiVersion: v1\nkind: Secret\nmetadata: {name: client, namespace: test}\nstringData: {clientId: shop gateway, clientSecret: \"canary/+=\"}\n---\n\
apiVersion: v1\nkind: Secret\nmetadata: {name: key, namespace: test}\nstringData: {key: canary-key}\n---\n";

/// A server that keeps what it is asked; a request a connection.
struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `says` is handed the request and how many came before it.
    fn start(at: &str, says: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(at).expect("a port");
        let address = listener.local_addr().expect("an address");
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let (kept, says) = (Arc::clone(&heard), Arc::new(says));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (kept, says) = (Arc::clone(&kept), Arc::clone(&says));
                std::thread::spawn(move || answer(stream, &kept, &*says));
            }
        });
        Self { address, heard }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("not poisoned").clone()
    }

    fn asked(&self) -> usize {
        self.heard.lock().expect("not poisoned").len()
    }
}

fn answer(mut stream: TcpStream, heard: &Mutex<Vec<String>>, says: &dyn Fn(&str, usize) -> String) {
    let mut request = String::new();
    let mut piece = [0; 4096];
    loop {
        let whole = request.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ").and_then(|n| n.parse().ok())
            });
            body.len() >= length.unwrap_or(0)
        });
        if whole {
            break;
        }
        match stream.read(&mut piece) {
            Ok(read) if read > 0 => request += &String::from_utf8_lossy(&piece[..read]),
            _ => return,
        }
    }
    let before = {
        let mut heard = heard.lock().expect("not poisoned");
        heard.push(request.clone());
        heard.len() - 1
    };
    let _ = stream.write_all(says(&request, before).as_bytes());
}

fn with_status(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn token(number: usize, lives: u32) -> String {
    let body = format!(
        r#"{{"access_token": "canary-token-{number}", "token_type": "Bearer", "expires_in": {lives}}}"#
    );
    with_status("200 OK", &body)
}

/// A GatewayBackend there, with these fields besides.
fn backend(name: &str, address: SocketAddr, more: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: {}, port: {}}}]{more}}}\n---\n",
        address.ip(),
        address.port()
    )
}

/// The same, and a route under its name.
fn third_party(name: &str, address: SocketAddr, token: &str) -> String {
    let more =
        format!(", credentials: {{oauth2ClientCredentials: {{clientSecretRef: {{name: client}}, {token}}}}}");
    let rules = format!("[{{name: all, backendRefs: [{{kind: GatewayBackend, name: {name}}}]}}]");
    backend(name, address, &more) + &route(name, &format!("{{hostnames: [{name}.example], rules: {rules}}}"))
}

fn at(provider: &Server) -> String {
    format!("tokenEndpoint: 'http://{}/token'", provider.address)
}

/// What the backend was shown, once there is a token.
fn shown(gateway: &Gateway, host: &str) -> String {
    let answer = until("a token", || {
        Some(gateway.request("GET", host, "/", &["Authorization: Bearer theirs", "authorization_: x"], ""))
            .filter(|answer| answer.status != 503)
    });
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["headers"]["authorization"].as_str().unwrap_or_default().to_owned()
}

fn metric(gateway: &Gateway, start: &str, part: &str) -> f64 {
    let page = gateway.ask_admin("/metrics").body;
    let line = page.lines().find(|line| line.starts_with(start) && line.contains(part));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

#[test]
fn a_token_is_fetched_once_and_shown_in_place_of_the_clients() {
    let provider = Server::start("127.0.0.1:0", |_, before| token(before, 3600));
    let backend = Backend::start("pay");
    let asks = at(&provider) + ", scopes: [read, 'a:write'], audience: 'https://api.example'";
    let files = [
        third_party("one", backend.address, &asks),
        third_party("two", backend.address, &asks),
        third_party("other", backend.address, &(at(&provider) + ", authentication: Post")),
        SECRETS.into(),
    ];
    let gateway = Gateway::with(&[("all.yaml", &files.concat())], &["--access-log", "stdout"]);
    let one = shown(&gateway, "one.example");
    assert!(one.starts_with("Bearer canary-token-"), "{one}");
    assert_eq!(shown(&gateway, "two.example"), one, "who asks for the same gets the same");
    let other = shown(&gateway, "other.example");
    assert!(other.starts_with("Bearer canary-token-") && other != one, "{other}");
    assert_eq!(provider.asked(), 2, "one flight each");
    let mut heard = provider.heard();
    heard.sort_by_key(|request| request.contains("client_id"));
    let [basic, post] = &heard[..] else { panic!("{heard:?}") };
    assert!(basic.starts_with("POST /token HTTP/1.1\r\n"), "{basic}");
    assert!(basic.contains("authorization: Basic c2hvcCtnYXRld2F5OmNhbmFyeSUyRiUyQiUzRA==\r\n"), "{basic}");
    assert!(basic.contains("content-type: application/x-www-form-urlencoded\r\n"), "{basic}");
    let form = "grant_type=client_credentials&scope=read+a%3Awrite&audience=https%3A%2F%2Fapi.example";
    assert!(basic.ends_with(&format!("\r\n\r\n{form}")), "{basic}");
    let form = "grant_type=client_credentials&client_id=shop+gateway&client_secret=canary%2F%2B%3D";
    assert!(post.ends_with(&format!("\r\n\r\n{form}")) && !post.contains("authorization:"), "{post}");
    // A change elsewhere costs no token.
    gateway.write(
        "more.yaml",
        &route("more", "{hostnames: [more.example], rules: [{name: all, respond: {status: 200}}]}"),
    );
    gateway.until_answer("more.example", "/", 200, "");
    assert_eq!((shown(&gateway, "one.example"), provider.asked()), (one, 2));
    assert_eq!(metric(&gateway, "portcullis_fetches_total", "result=\"good\""), 2.0);
    let left = metric(&gateway, "portcullis_fetched_expires_seconds", "127.0.0.1");
    assert!((1.0..=3600.0).contains(&left), "{left}");
    assert!(metric(&gateway, "portcullis_fetched_age_seconds", "127.0.0.1") > 0.0);
    let said = [gateway.status().to_string(), gateway.ask_admin("/metrics").body, gateway.process.log()];
    assert!(said.iter().all(|text| !text.contains("canary") && !text.contains("Y2FuYXJ5")), "{said:?}");
}

#[test]
fn it_is_refreshed_before_it_expires_and_kept_until_then_when_that_fails() {
    let well = Arc::new(Mutex::new(true));
    let is_well = Arc::clone(&well);
    let provider =
        Server::start("127.0.0.1:0", move |_, before| match *is_well.lock().expect("not poisoned") {
            true => token(before, 8),
            false => with_status("500 Down", r#"{"error": "canary-error"}"#),
        });
    let backend = Backend::start("pay");
    let files = third_party("pay", backend.address, &at(&provider)) + SECRETS;
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let first = shown(&gateway, "pay.example");
    // From the first to the third token nobody ever waits or fails.
    until("two refreshes", || {
        let answer = gateway.get("pay.example", "/");
        assert_eq!(answer.status, 200, "{}", answer.body);
        (provider.asked() >= 3).then_some(())
    });
    assert_ne!(shown(&gateway, "pay.example"), first);
    *well.lock().expect("not poisoned") = false;
    let asked = provider.asked();
    until("a refresh that fails", || (provider.asked() > asked).then_some(()));
    assert_eq!(gateway.get("pay.example", "/").status, 200, "the last good one is good still");
    let answer = gateway.until_answer("pay.example", "/", 503, "CredentialsUnavailable");
    assert_eq!(answer.field("retry-after"), Some("1"));
    let status = gateway.until_status("what fails", |status| status["failing"][0]["place"].is_string());
    let failing = &status["failing"][0];
    assert_eq!(failing["place"], format!("http://{}/token", provider.address));
    assert!(failing["error"].as_str().is_some_and(|error| error.contains("500")), "{failing}");
    let asked = provider.asked();
    assert!(asked < 30, "it is left alone between tries: {asked}");
    assert!(metric(&gateway, "portcullis_fetches_total", "result=\"failed\"") >= 1.0);
    assert!(metric(&gateway, "portcullis_upstream_errors_total", "CredentialsUnavailable") >= 1.0);
    *well.lock().expect("not poisoned") = true;
    gateway.until_answer("pay.example", "/", 200, "");
    gateway.until_status("all well again", |status| status["failing"].as_array().is_some_and(Vec::is_empty));
    assert!(!gateway.process.log().contains("canary"));
}

#[test]
fn before_the_first_token_nothing_is_sent() {
    let backend = Server::start("127.0.0.1:0", |_, _| with_status("200 OK", "{}"));
    for (status, body, told) in [
        ("401 No", r#"{"error": "invalid_client", "error_description": "canary"}"#, "invalid_client"),
        ("200 OK", r#"{"access_token": "canary", "token_type": "mac"}"#, "not of the type Bearer"),
        ("302 Found", "", "redirects are not followed"),
        ("200 OK", r#"{"access_token": "canary"#, "no JSON object"),
    ] {
        let provider = Server::start("127.0.0.1:0", move |_, _| with_status(status, body));
        let files = third_party("pay", backend.address, &at(&provider)) + SECRETS;
        let gateway = Gateway::start(&[("all.yaml", &files)]);
        until("it was asked", || (provider.asked() > 0).then_some(()));
        let answer = gateway.get("pay.example", "/");
        assert_eq!((answer.status, answer.json()["reason"].as_str()), (503, Some("CredentialsUnavailable")));
        until(told, || gateway.process.log().contains(told).then_some(()));
        assert!(!gateway.process.log().contains("canary") && !answer.body.contains("canary"));
    }
    assert_eq!(backend.asked(), 0);
}

#[test]
fn the_first_requests_wait_for_the_first_token() {
    let provider = Server::start("127.0.0.1:0", |_, before| {
        std::thread::park_timeout(std::time::Duration::from_millis(500));
        token(before, 3600)
    });
    let backend = Backend::start("pay");
    // As long as a busy machine may need.
    let files = third_party("pay", backend.address, &at(&provider))
        .replace("rules: [", "policy: {timeouts: {connect: 30s}}, rules: [");
    let gateway = Gateway::start(&[("all.yaml", &(files + SECRETS))]);
    std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..20).map(|_| scope.spawn(|| gateway.get("pay.example", "/").status)).collect();
        for one in asking {
            assert_eq!(one.join().expect("no panic"), 200);
        }
    });
    assert_eq!(provider.asked(), 1, "one flight");
}

#[test]
fn a_new_secret_takes_the_token_before_it_away_only_when_there_is_another() {
    const NEW: &str = "authorization: Basic c2hvcCtnYXRld2F5OnNlY29uZA==";
    let knows = Arc::new(Mutex::new(false));
    let is_known = Arc::clone(&knows);
    let provider = Server::start("127.0.0.1:0", move |request, before| {
        match request.contains(NEW) && !*is_known.lock().expect("not poisoned") {
            true => with_status("401 No", r#"{"error": "invalid_client"}"#),
            false => token(before, 3600),
        }
    });
    let backend = Backend::start("pay");
    let files = third_party("pay", backend.address, &at(&provider))
        + &third_party("wrong", backend.address, &at(&provider)).replace("name: client}", "name: guess}")
        + "apiVersion: v1\nkind: Secret\nmetadata: {name: guess, namespace: test}\nstringData: {clientId: shop gateway, clientSecret: second}\n---\n"
        + SECRETS;
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let first = shown(&gateway, "pay.example");
    assert!(first.starts_with("Bearer canary-token-"), "{first}");
    let is_asked = || provider.heard().iter().filter(|request| request.contains(NEW)).count();
    until("the one who guesses to be refused", || (is_asked() > 0).then_some(()));
    gateway.write("all.yaml", &files.replace("canary/+=", "second"));
    let asked = is_asked();
    until("the new secret to be tried again", || {
        assert_eq!(shown_now(&gateway).as_ref(), Some(&first), "it is good still");
        (is_asked() > asked).then_some(())
    });
    let wrong = gateway.get("wrong.example", "/");
    assert_eq!(wrong.status, 503, "naming another's client gives nobody its token");
    *knows.lock().expect("not poisoned") = true;
    until("a token by the new secret", || {
        let shown = shown_now(&gateway).expect("no request fails");
        (shown != first).then_some(())
    });
}

/// What the backend was shown, if it was asked.
fn shown_now(gateway: &Gateway) -> Option<String> {
    let answer = gateway.get("pay.example", "/");
    let shown = || answer.json()["headers"]["authorization"].as_str().map(str::to_owned);
    if answer.status == 200 { shown() } else { None }
}

#[test]
fn a_giver_that_is_pointed_elsewhere_gives_another_token_at_once() {
    let sandbox = Server::start("127.0.0.1:0", |_, _| token(1, 3600));
    let production = Server::start("127.0.0.1:0", |_, _| token(2, 3600));
    let pay = Backend::start("pay");
    let token = "backendRef: {kind: GatewayBackend, name: login}, path: /token";
    let files = |login: SocketAddr| {
        let files = [backend("login", login, ""), third_party("pay", pay.address, token), SECRETS.to_owned()];
        files.concat().replace("rules: [", "policy: {timeouts: {connect: 30s}}, rules: [")
    };
    let gateway = Gateway::start(&[("all.yaml", &files(sandbox.address))]);
    assert_eq!(shown_now(&gateway).as_deref(), Some("Bearer canary-token-1"), "the first waits");
    gateway.write("all.yaml", &files(production.address));
    until("the other token", || {
        let shown = shown_now(&gateway).expect("no request fails");
        (shown == "Bearer canary-token-2").then_some(())
    });
    assert_eq!((sandbox.asked(), production.asked()), (1, 1));
}

#[test]
fn a_backend_that_refuses_a_token_causes_one_refetch_and_no_more() {
    let provider = Server::start("127.0.0.1:0", |_, before| token(before, 3600));
    let backend = Server::start("127.0.0.1:0", |request, _| match request.contains("canary-token-1") {
        true => with_status("200 OK", "{}"),
        false => with_status("401 Unauthorized", "{}"),
    });
    let files = third_party("pay", backend.address, &at(&provider)) + SECRETS;
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    until("the first token", || (gateway.get("pay.example", "/").status == 401).then_some(()));
    until("the second", || (gateway.get("pay.example", "/").status == 200).then_some(()));
    assert_eq!(provider.asked(), 2);
    // One that is never content.
    let never = Server::start("127.0.0.1:0", |_, _| with_status("401 Unauthorized", "{}"));
    gateway.write(
        "all.yaml",
        &files.replace(&backend.address.port().to_string(), &never.address.port().to_string()),
    );
    until("the other backend", || {
        gateway.get("pay.example", "/");
        (never.asked() > 0).then_some(())
    });
    for _ in 0..50 {
        assert_eq!(gateway.get("pay.example", "/").status, 401, "what it says goes to the client");
    }
    assert!(provider.asked() <= 3, "{}", provider.asked());
}

#[test]
fn a_token_endpoint_may_be_a_backend_and_the_guard_is_asked_about_it() {
    let provider = Server::start("127.0.0.1:0", |_, before| token(before, 3600));
    let elsewhere = Server::start("127.0.0.2:0", |_, before| token(before, 3600));
    let pay = Backend::start("pay");
    let by = |name: &str| {
        format!("backendRef: {{kind: GatewayBackend, name: {name}}}, path: '/realms/shop/token?x=1'")
    };
    let key = ", credentials: {header: X-Api-Key, secretKeyRef: {name: key}}";
    let files = [
        backend("login", provider.address, key),
        backend("written", elsewhere.address, ""),
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: test, name: forbidden}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: test, name: forbidden, labels: {{kubernetes.io/service-name: forbidden}}}}\naddressType: IPv4\nports: [{{port: {}}}]\nendpoints: [{{addresses: [{}]}}]\n---\n\
             apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: forbidden}}\nspec: {{service: {{name: forbidden, port: 80}}}}\n---\n",
            elsewhere.address.port(),
            elsewhere.address.ip()
        ),
        third_party("pay", pay.address, &by("login")),
        third_party("behind", pay.address, &by("forbidden")),
        third_party("told", pay.address, &by("written")),
        third_party("url", pay.address, &at(&elsewhere)),
        third_party("itself", pay.address, &by("itself")),
        third_party("nobody", pay.address, &by("absent")),
        SECRETS.into(),
    ];
    let gateway = Gateway::with(&[("all.yaml", &files.concat())], &["--egress-deny", "127.0.0.2/32"]);
    assert_eq!(shown(&gateway, "pay.example"), "Bearer canary-token-0");
    let heard = provider.heard();
    assert!(heard[0].starts_with("POST /realms/shop/token?x=1 HTTP/1.1\r\n"), "{heard:?}");
    assert!(heard[0].contains("x-api-key: canary-key\r\n"), "its own credential is shown, too: {heard:?}");
    gateway.until_answer("behind.example", "/", 503, "CredentialsUnavailable");
    until("the guard's word", || gateway.process.log().contains("the egress guard refuses").then_some(()));
    assert_eq!(elsewhere.asked(), 0);
    // What is written as an address is told without a question.
    for host in ["itself.example", "nobody.example", "told.example", "url.example"] {
        assert_eq!(gateway.get(host, "/").json()["reason"], "PolicyInvalid", "{host}");
    }
    assert!(gateway.status().to_string().contains("of its own gives no tokens"));
}

#[test]
fn what_a_backend_is_shown_the_gateways_own_questions_show_too() {
    let wants_key = |request: &str, body: &str| match request.contains("x-api-key: canary-key\r\n") {
        true => with_status("200 OK", body),
        false => with_status("401 Unauthorized", ""),
    };
    let login = Server::start("127.0.0.1:0", move |request, _| match request.starts_with("POST") {
        true => wants_key(request, r#"{"active": true, "sub": "alice"}"#),
        false => wants_key(request, r#"{"keys": []}"#),
    });
    let checked = Server::start("127.0.0.1:0", move |request, _| wants_key(request, "{}"));
    let key = ", credentials: {header: X-Api-Key, secretKeyRef: {name: key}}";
    let check = ", healthCheck: {active: {path: /healthz, interval: 300ms, timeout: 300ms}}";
    let rules = "[{name: all, backendRefs: [{kind: GatewayBackend, name: checked}]}]";
    let by = |entry: &str| {
        format!("policy: {{authentication: {{anyOf: [{{name: users, {entry}}}]}}}}, rules: {rules}")
    };
    let asked = "backendRef: {kind: GatewayBackend, name: login}";
    let files = [
        backend("login", login.address, key),
        backend("checked", checked.address, &format!("{key}{check}")),
        route("open", &format!("{{hostnames: [open.example], rules: {rules}}}")),
        route(
            "opaque",
            &format!(
                "{{hostnames: [opaque.example], {}}}",
                by(&format!(
                    "introspection: {{{asked}, path: /introspect, clientSecretRef: {{name: client}}}}"
                ))
            ),
        ),
        route(
            "jwt",
            &format!(
                "{{hostnames: [jwt.example], {}}}",
                by(&format!(
                    "jwt: {{issuer: 'https://login.example', audiences: [shop], jwks: {{{asked}, path: /keys}}}}"
                ))
            ),
        ),
        SECRETS.into(),
    ];
    let gateway = Gateway::start(&[("all.yaml", &files.concat())]);
    let answer = gateway.request("GET", "opaque.example", "/", &["Authorization: Bearer opaque"], "");
    assert_eq!(answer.status, 200, "{} {:?}", answer.body, login.heard());
    let question = login.heard().into_iter().find(|request| request.starts_with("POST")).expect("asked");
    assert!(question.contains("authorization: Basic "), "its own stays: {question}");
    until("the keys", || {
        let found = login.heard().into_iter().find(|request| request.starts_with("GET /keys"));
        found.map(|request| assert!(request.contains("x-api-key: canary-key\r\n"), "{request}"))
    });
    let checks = until("some checks", || {
        let heard = checked.heard();
        let checks: Vec<_> =
            heard.into_iter().filter(|request| request.starts_with("GET /healthz")).collect();
        (checks.len() >= 3).then_some(checks)
    });
    assert!(checks.iter().all(|request| request.contains("x-api-key: canary-key\r\n")), "{checks:?}");
    assert_eq!(gateway.get("open.example", "/").status, 200);
}
