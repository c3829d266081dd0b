//! Opaque tokens in the whole program, from a server on loopback that answers, hangs, lies and goes away.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::harness::{Answer, Backend, Gateway, route, until};

const CLIENT_SECRET: &str = "canary-6d0f7c1e5b9a/+=";
const TOKEN: &str = "canary-token-1f2e3d4c";

#[derive(Clone)]
enum Says {
    /// Which tokens are active.
    Tokens(BTreeSet<&'static str>),
    /// These bytes.
    Bytes(String),
}

/// The authorization server. A connection is one question.
struct Server {
    address: SocketAddr,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
    /// Whether it answers; until then it hangs.
    answers: Arc<(Mutex<bool>, Condvar)>,
    closed: Arc<AtomicBool>,
    questions: Arc<Mutex<String>>,
}

impl Server {
    fn start(active: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Self {
            address: listener.local_addr().expect("an address"),
            says: Arc::new(Mutex::new(Says::Tokens(active.iter().copied().collect()))),
            asked: Arc::default(),
            answers: Arc::new((Mutex::new(true), Condvar::new())),
            closed: Arc::default(),
            questions: Arc::default(),
        };
        let (says, asked, answers) =
            (Arc::clone(&server.says), Arc::clone(&server.asked), Arc::clone(&server.answers));
        let (closed, questions) = (Arc::clone(&server.closed), Arc::clone(&server.questions));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { return };
                let (says, asked, answers) = (Arc::clone(&says), Arc::clone(&asked), Arc::clone(&answers));
                let questions = Arc::clone(&questions);
                std::thread::spawn(move || answer(stream, &says, &asked, &answers, &questions));
            }
        });
        server
    }

    fn say(&self, says: Says) {
        *self.says.lock().expect("not poisoned") = says;
    }

    fn hang(&self) {
        *self.answers.0.lock().expect("not poisoned") = false;
    }

    fn go_on(&self) {
        *self.answers.0.lock().expect("not poisoned") = true;
        self.answers.1.notify_all();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Closes its port.
    fn die(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        until("its port to be closed", || TcpStream::connect(self.address).is_err().then_some(()));
    }
}

fn answer(
    mut stream: TcpStream,
    says: &Mutex<Says>,
    asked: &AtomicUsize,
    answers: &(Mutex<bool>, Condvar),
    questions: &Mutex<String>,
) {
    let mut question = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&question).contains("token_type_hint=access_token") {
        match stream.read(&mut piece) {
            Ok(read) if read > 0 => question.extend_from_slice(&piece[..read]),
            _ => return,
        }
    }
    asked.fetch_add(1, Ordering::SeqCst);
    let question = String::from_utf8_lossy(&question).into_owned();
    questions.lock().expect("not poisoned").push_str(&question);
    let may = answers.0.lock().expect("not poisoned");
    drop(answers.1.wait_while(may, |may| !*may).expect("not poisoned"));
    let says = says.lock().expect("not poisoned").clone();
    let bytes = match says {
        Says::Bytes(bytes) => bytes,
        Says::Tokens(active) => match active
            .iter()
            .find(|token| question.contains(&format!("token={token}&")))
        {
            Some(token) => json(&format!("{{\"active\": true, \"sub\": \"{token}\", \"scope\": \"read\"}}")),
            None => json("{\"active\": false}"),
        },
    };
    let _ = stream.write_all(bytes.as_bytes());
}

fn json(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn gateway(backend: &Backend, server: &Server, more: &str) -> Gateway {
    let place = format!("endpoint: \"http://{}/introspect\"", server.address);
    gateway_at(backend, &place, more, "")
}

fn gateway_at(backend: &Backend, place: &str, more: &str, objects: &str) -> Gateway {
    let entry = format!(
        "{{{place}, clientSecretRef: {{name: client}}, claimsToHeaders: [{{claim: id, header: X-Id}}]{more}}}"
    );
    let spec = format!(
        "{{hostnames: [shop.example], policy: {{authentication: {{failures: {{requests: 0}}, anyOf: [{{name: opaque, introspection: {entry}}}]}}}}, rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
    );
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{namespace: test, name: client}}\nstringData: {{clientId: shop, clientSecret: \"{CLIENT_SECRET}\"}}\n"
    );
    Gateway::start(&[
        ("backend.yaml", &backend.manifest("one")),
        ("route.yaml", &route("shop", &spec)),
        ("secret.yaml", &secret),
        ("objects.yaml", objects),
    ])
}

fn shows(gateway: &Gateway, token: &str) -> Answer {
    gateway.request(
        "GET",
        "shop.example",
        "/",
        &[&format!("Authorization: Bearer {token}"), "X-Id: root"],
        "",
    )
}

fn verdict(gateway: &Gateway, token: &str) -> String {
    let answer = shows(gateway, token);
    match answer.status {
        200 => answer.json()["headers"]["x-id"].as_str().expect("told").to_owned(),
        status => format!("{status} {}", answer.json()["reason"].as_str().expect("a reason")),
    }
}

#[test]
fn a_hundred_requests_with_one_token_are_one_question() {
    let (backend, server) = (Backend::start("one"), Server::start(&[TOKEN, "other"]));
    let gateway = gateway(&backend, &server, ", timeout: 30s");
    server.hang();
    let verdicts: Vec<String> = std::thread::scope(|scope| {
        let (gateway, server) = (&gateway, &server);
        let all: Vec<_> = (0..100).map(|_| scope.spawn(move || verdict(gateway, TOKEN))).collect();
        // Somebody who leaves takes nothing from the others.
        let mut gone = TcpStream::connect(gateway.http).expect("connected");
        write!(gone, "GET / HTTP/1.1\r\nHost: shop.example\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")
            .expect("sent");
        drop(gone);
        until("the question", || (server.asked() == 1).then_some(()));
        let another = scope.spawn(move || verdict(gateway, "other"));
        until("the question about another token", || (server.asked() == 2).then_some(()));
        until("all to wait", || {
            let metrics = gateway.ask_admin("/metrics").body;
            let line = metrics.lines().find(|line| line.starts_with("portcullis_requests_in_flight{"))?;
            (line.rsplit(' ').next()?.parse::<f64>().ok()? >= 101.0).then_some(())
        });
        server.go_on();
        assert_eq!(another.join().expect("answered"), "other");
        all.into_iter().map(|one| one.join().expect("answered")).collect()
    });
    assert!(verdicts.iter().all(|verdict| verdict == TOKEN), "{verdicts:?}");
    assert_eq!(server.asked(), 2, "one question a token");
    assert_eq!(verdict(&gateway, TOKEN), TOKEN);
    assert_eq!(server.asked(), 2, "known");
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(
        metrics.contains("portcullis_introspections_total{host=\"127.0.0.1\",result=\"active\"} 2"),
        "{metrics}"
    );
    assert!(metrics.contains("portcullis_introspection_cache_hits_total{host=\"127.0.0.1\"}"), "{metrics}");
}

#[test]
fn the_client_is_authenticated_as_the_rfc_has_it_and_no_secret_is_told_to_anybody() {
    let (backend, server) = (Backend::start("one"), Server::start(&[TOKEN]));
    let gateway = gateway(&backend, &server, "");
    let answer = shows(&gateway, TOKEN);
    let seen = answer.json();
    assert_eq!((answer.status, &seen["headers"]["x-id"]), (200, &TOKEN.into()), "{seen}");
    assert!(seen["headers"].get("authorization").is_none(), "{seen}");
    assert_eq!(verdict(&gateway, "made-up"), "401 TokenInvalid");
    let question = server.questions.lock().expect("not poisoned").to_ascii_lowercase();
    // shop:canary-6d0f7c1e5b9a%2F%2B%3D
    let credentials = "authorization: basic c2hvcdpjyw5hcnktnmqwzjdjmwu1yjlhjtjgjtjcjtne";
    for part in [
        "post /introspect http/1.1\r\n",
        credentials,
        "content-type: application/x-www-form-urlencoded",
        "accept: application/json",
    ] {
        assert!(question.contains(part), "{part} in {question}");
    }
    server.say(Says::Bytes("HTTP/1.1 401 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".into()));
    assert_eq!(verdict(&gateway, "canary-token-2"), "503 IntrospectionFailed");
    let refused = gateway.get("shop.example", "/");
    assert_eq!((refused.status, refused.field("www-authenticate")), (401, Some("Bearer realm=\"api\"")));
    let said = [
        gateway.process.log(),
        gateway.ask_admin("/metrics").body,
        gateway.ask_admin("/status").body,
        shows(&gateway, "canary-token-2").body,
    ]
    .concat();
    for canary in ["canary", "Y2FuYXJ5", "DpjYW5hcnkt"] {
        assert!(!said.contains(canary), "{canary} in {said}");
    }
    assert!(gateway.process.log().contains("does it know this client's id and secret?"));
}

#[test]
fn a_revoked_token_is_refused_when_the_cache_ends() {
    let (backend, server) = (Backend::start("one"), Server::start(&[TOKEN]));
    let gateway = gateway(&backend, &server, ", cacheDuration: 1s");
    assert_eq!(verdict(&gateway, TOKEN), TOKEN);
    server.say(Says::Tokens(BTreeSet::new()));
    let began = Instant::now();
    until("the token to be refused", || (verdict(&gateway, TOKEN) == "401 TokenInvalid").then_some(()));
    println!("refused after {:?}", began.elapsed());
    server.say(Says::Tokens([TOKEN].into()));
    until("the token to be taken again", || (verdict(&gateway, TOKEN) == TOKEN).then_some(()));
}

#[test]
fn whatever_the_server_does_nobody_passes_whom_it_does_not_call_active() {
    let (backend, server) = (Backend::start("one"), Server::start(&[]));
    let gateway = gateway(&backend, &server, ", timeout: 500ms");
    let large = json(&format!("{{\"active\": true, \"x\": \"{}\"}}", "y".repeat(70_000)));
    let html = json("{\"active\": true}").replace("application/json", "text/html");
    let redirect = "HTTP/1.1 307 No\r\nLocation: http://127.0.0.1/\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 16\r\n\r\n{\"active\": true}";
    let cut = json("{\"active\": true}").replace("Content-Length: 16", "Content-Length: 17");
    let twice = json("{\"active\": false, \"active\": true}");
    for (number, said) in [
        large.as_str(),
        &html,
        redirect,
        &cut,
        &twice,
        "",
        "HTTP/1.1 200 OK\r\n",
        "nonsense\r\n\r\n",
        &json("{\"active\": \"true\"}"),
        &json("{\"active\": true, \"exp\": \"x\"}"),
        &json("[true]"),
    ]
    .into_iter()
    .enumerate()
    {
        server.say(Says::Bytes(said.to_owned()));
        assert_eq!(verdict(&gateway, &format!("t{number}")), "503 IntrospectionFailed", "{said:.60}");
        // In between it is well, so that it is asked again.
        server.say(Says::Tokens(["good"].into()));
        assert_eq!(verdict(&gateway, &format!("good&x={number}").replace('&', ".")), "401 TokenInvalid");
    }
    server.hang();
    let began = Instant::now();
    assert_eq!(verdict(&gateway, "hanging"), "503 IntrospectionFailed");
    println!("given up after {:?}", began.elapsed());
    server.go_on();
    assert_eq!(verdict(&gateway, "good"), "good");
    server.die();
    assert_eq!(verdict(&gateway, "somebody"), "503 IntrospectionFailed");
    assert_eq!(verdict(&gateway, "good"), "good", "known");
    let none = gateway.get("shop.example", "/").json();
    assert_eq!(none["reason"], "TokenMissing");
}

#[test]
fn a_service_and_a_gateway_backend_are_asked_as_an_endpoint_is() {
    let (backend, server) = (Backend::start("one"), Server::start(&[TOKEN]));
    let port = server.address.port();
    let objects = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: test, name: login}}\nspec: {{ports: [{{name: http, port: 8080}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: test, name: login-1, labels: {{kubernetes.io/service-name: login}}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: {port}}}]\nendpoints: [{{addresses: [127.0.0.1], conditions: {{ready: true}}}}]\n---\n\
         apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: idp}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {port}}}], host: login.example}}\n"
    );
    for (reference, host) in [
        ("{name: login, port: 8080}", "host: login.test.svc:8080"),
        ("{kind: GatewayBackend, name: idp}", "host: login.example"),
    ] {
        let place = format!("backendRef: {reference}, path: /oauth2/introspect");
        let gateway = gateway_at(&backend, &place, "", &objects);
        assert_eq!(verdict(&gateway, TOKEN), TOKEN, "{reference}");
        assert_eq!(verdict(&gateway, "made-up"), "401 TokenInvalid", "{reference}");
        let question = std::mem::take(&mut *server.questions.lock().expect("not poisoned"));
        assert!(
            question.contains("POST /oauth2/introspect HTTP/1.1\r\n") && question.contains(host),
            "{question}"
        );
    }
    let missing = gateway_at(&backend, "backendRef: {name: nowhere, port: 80}, path: /", "", "");
    missing.until_answer("shop.example", "/", 503, "PolicyInvalid");
}
