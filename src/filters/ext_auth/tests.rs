//! What an authorizer is asked, which of its answers count, and what becomes of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::*;
use crate::filters::contract::Decision;
use crate::filters::contract_tests::{NoScope, exchange};
use crate::message::{
    AnswerBy, Body, BodyError, ErrorKind, Exchange, Identity, IdentityKind, KnownIdentity, LocalFuture,
    Outbound, ProxyError, Request, Response,
};
use crate::telemetry::Consulted;

/// An authorizer that keeps what it was asked and answers by script.
struct Authorizer {
    asked: RefCell<Vec<(BackendId, Request)>>,
    answer: Box<dyn Fn() -> Option<Result<Response, ErrorKind>>>,
}

impl Authorizer {
    fn answering(
        status: u16,
        fields: &'static [(&'static str, &'static str)],
        body: &'static str,
    ) -> Rc<Self> {
        Self::by(move || {
            let mut response = Response::new(if body.is_empty() { Body::Empty } else { body.into() });
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
            for (name, value) in fields {
                let name = HeaderName::try_from(*name).expect("a name");
                response.headers_mut().append(name, HeaderValue::from_static(value));
            }
            Some(Ok(response))
        })
    }

    /// `None`: it hangs.
    fn by(answer: impl Fn() -> Option<Result<Response, ErrorKind>> + 'static) -> Rc<Self> {
        Rc::new(Self { asked: RefCell::default(), answer: Box::new(answer) })
    }

    fn last(&self) -> (BackendId, Request) {
        self.asked.borrow_mut().pop().expect("it was asked")
    }
}

impl Outbound for Authorizer {
    fn call<'a>(
        &'a self,
        backend: &'a BackendId,
        request: Request,
    ) -> LocalFuture<'a, Result<Response, ProxyError>> {
        self.asked.borrow_mut().push((backend.clone(), request));
        let answer = (self.answer)();
        Box::pin(async move {
            match answer {
                Some(answer) => answer.map_err(ProxyError::from),
                None => std::future::pending().await,
            }
        })
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        Err(work)
    }
}

fn compiled(spec: Value) -> Result<Plan, Vec<String>> {
    let spec = serde_json::from_value(spec).map_err(|error| vec![error.to_string()])?;
    ExtAuth::compile(spec, &mut NoScope)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// With an authorizer at a Service.
fn plan(more: Value) -> Plan {
    let mut spec = json!({"backendRef": {"name": "authz", "port": 80}, "path": "/verify"});
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    compiled(spec).expect("valid")
}

fn asking(authorizer: &Rc<Authorizer>, fields: &[(&'static str, &'static str)]) -> Exchange {
    let mut exchange = exchange("/a%20b//c?x=1&x=%2F", 0, authorizer.clone());
    for (name, value) in [("host", "Shop.example:8443")].iter().chain(fields) {
        let name = HeaderName::from_static(name);
        exchange.request.headers_mut().append(name, HeaderValue::from_static(value));
    }
    exchange
}

async fn decided(plan: &Plan, exchange: &mut Exchange) -> Decision<'static> {
    let held = Arc::default();
    match (ask::Consulting { plan: plan.clone(), held }).request(exchange) {
        Decision::Wait(waiting) => match waiting.await {
            Decision::Continue => Decision::Continue,
            Decision::Answer(answer) => Decision::Answer(answer),
            Decision::Fail(error) => Decision::Fail(error),
            Decision::Wait(_) => panic!("it waits once"),
        },
        _ => panic!("it asks"),
    }
}

fn all<'m>(headers: &'m HeaderMap, name: &str) -> Vec<&'m str> {
    headers.get_all(name).iter().map(|value| value.to_str().expect("ASCII")).collect()
}

/// The status of an answer of its own, or the kind of a failure.
fn outcome(decision: &Decision<'_>) -> String {
    match decision {
        Decision::Continue => "continue".into(),
        Decision::Answer(response) => response.status().as_u16().to_string(),
        Decision::Fail(error) => error.kind.as_str().into(),
        Decision::Wait(_) => "wait".into(),
    }
}

#[tokio::test]
async fn the_authorizer_sees_what_the_backend_gets_and_no_word_of_a_client_about_itself() {
    let authorizer = Authorizer::answering(200, &[], "");
    let fields = [
        ("authorization", "Bearer a"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-tenant", "acme"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-uri", "/public"),
        ("x-forwarded-prefix", "/x"),
        ("x-original-url", "/public"),
        ("x-original-uri", "/public"),
        ("x-rewrite-url", "/public"),
        ("x-forwarded-method", "GET"),
        ("x-http-method-override", "GET"),
        ("x-http-method", "GET"),
        ("x-method-override", "GET"),
        ("x-real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x-portcullis-passes", "edge=1"),
        ("content-type", "text/plain"),
        ("te", "trailers"),
    ];
    for (spec, shown) in [
        (json!({}), vec!["authorization", "cookie"]),
        (json!({"requestHeaders": ["X-Tenant"]}), vec!["x-tenant"]),
        (json!({"requestHeaders": []}), vec![]),
        (json!({"requestHeaders": ["*"]}), vec!["authorization", "cookie", "x-tenant"]),
    ] {
        let mut exchange = asking(&authorizer, &fields);
        *exchange.request.method_mut() = Method::DELETE;
        let decision = decided(&plan(spec.clone()), &mut exchange).await;
        assert_eq!((outcome(&decision), exchange.consulted), ("continue".into(), Some(Consulted::Allowed)));
        let (backend, question) = authorizer.last();
        assert_eq!(backend.to_string(), "Service/shop/authz:80");
        assert_eq!((question.method(), question.uri().to_string()), (&Method::GET, "/verify".into()));
        let headers = question.headers();
        let mut expected = std::collections::BTreeSet::from([
            "host",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-method",
            "x-forwarded-port",
            "x-forwarded-proto",
            "x-forwarded-uri",
            "x-original-method",
            "x-original-url",
            "x-portcullis-passes",
            "x-real-ip",
            "x-request-id",
        ]);
        expected.extend(shown);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<std::collections::BTreeSet<_>>(),
            expected,
            "{spec}"
        );
        assert_eq!(all(headers, "host"), ["Shop.example:8443"]);
        assert_eq!(all(headers, "x-forwarded-host"), ["Shop.example:8443"]);
        assert_eq!(all(headers, "x-forwarded-port"), ["8443"]);
        assert_eq!(all(headers, "x-forwarded-uri"), ["/a%20b//c?x=1&x=%2F"]);
        assert_eq!(all(headers, "x-forwarded-method"), ["DELETE"]);
        assert_eq!(all(headers, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(all(headers, "x-original-url"), ["https://Shop.example:8443/a%20b//c?x=1&x=%2F"]);
        if expected.contains("cookie") {
            assert_eq!(all(headers, "cookie"), ["a=1", "b=2"]);
        }
    }
}

#[tokio::test]
async fn another_method_reaches_the_backend_only_where_the_authorizer_is_shown_it() {
    let authorizer = Authorizer::answering(200, &[], "");
    let field = "x-http-method-override";
    for (shown, expected) in
        [(json!(["X-HTTP-Method-Override"]), vec!["DELETE"]), (json!(["*"]), vec![]), (json!([]), vec![])]
    {
        let mut exchange = asking(&authorizer, &[(field, "DELETE")]);
        decided(&plan(json!({"requestHeaders": shown})), &mut exchange).await;
        assert_eq!(all(authorizer.last().1.headers(), field), expected, "{shown}");
        assert_eq!(all(exchange.request.headers(), field), expected, "{shown}");
    }
}

#[tokio::test]
async fn in_the_style_of_envoy_method_and_target_are_the_client_s_behind_the_path() {
    let authorizer = Authorizer::answering(200, &[], "");
    for (path, method, target) in
        [("/verify/", Method::POST, "/verify/a%20b//c?x=1&x=%2F"), ("/", Method::GET, "/a%20b//c?x=1&x=%2F")]
    {
        let mut exchange = asking(&authorizer, &[]);
        *exchange.request.method_mut() = method.clone();
        decided(&plan(json!({"style": "ExtAuthz", "path": path})), &mut exchange).await;
        let question = authorizer.last().1;
        assert_eq!((question.method(), question.uri().to_string().as_str()), (&method, target));
    }
}

#[tokio::test]
async fn a_url_is_asked_under_its_own_name() {
    let authorizer = Authorizer::answering(200, &[], "");
    let plan = compiled(json!({"url": "https://Authz.example:444/v?a=b"})).expect("valid");
    decided(&plan, &mut asking(&authorizer, &[])).await;
    let (backend, question) = authorizer.last();
    assert_eq!(backend.to_string(), "Origin/https://authz.example:444");
    assert_eq!(question.uri().to_string(), "/v?a=b");
    assert_eq!(all(question.headers(), "host"), ["authz.example:444"]);
    assert_eq!(all(question.headers(), "x-forwarded-host"), ["Shop.example:8443"]);
}

fn chunks(parts: &'static [&'static str]) -> Body {
    let frames = parts
        .iter()
        .map(|part| Ok::<_, BodyError>(hyper::body::Frame::data(Bytes::from_static(part.as_bytes()))));
    Body::stream(http_body_util::StreamBody::new(futures_util::stream::iter(frames)))
}

#[tokio::test]
async fn a_body_is_shown_whole_or_refused_and_goes_on_to_the_backend() {
    let authorizer = Authorizer::answering(200, &[], "");
    let plan = plan(json!({"body": {"maxSize": "8"}}));
    let mut exchange = asking(&authorizer, &[("content-type", "text/x"), ("trailer", "x-sum")]);
    *exchange.request.body_mut() = chunks(&["abc", "de"]);
    assert_eq!(outcome(&decided(&plan, &mut exchange).await), "continue");
    let question = authorizer.last().1;
    assert_eq!((question.method(), all(question.headers(), "content-length")), (&Method::POST, vec!["5"]));
    assert_eq!(all(question.headers(), "content-type"), ["text/x"]);
    assert_eq!(&question.into_body().read(9).await.expect("small").0[..], b"abcde");
    let request = exchange.request;
    assert!(!request.headers().contains_key("trailer"));
    assert_eq!(&request.into_body().read(9).await.expect("small").0[..], b"abcde");

    let mut large = asking(&authorizer, &[]);
    *large.request.body_mut() = chunks(&["abc", "defghi"]);
    assert_eq!(outcome(&decided(&plan, &mut large).await), "BodyTooLarge");
    assert!(authorizer.asked.borrow().is_empty(), "nobody is asked about half a body");
}

#[tokio::test]
async fn only_a_whole_answer_of_2xx_lets_pass() {
    for (status, fields, body, expected) in [
        (200, &[][..], "", "continue"),
        (204, &[], "", "continue"),
        (299, &[], "text", "continue"),
        (401, &[("www-authenticate", "Bearer")], "who", "401"),
        (403, &[], "no", "403"),
        (403, &[], "", "ExternallyDenied"),
        (429, &[("retry-after", "1")], "", "429"),
        (302, &[("location", "https://login.example/")], "", "302"),
        (302, &[], "", "ExternallyDenied"),
        (304, &[("location", "/")], "", "ExternallyDenied"),
        (300, &[("location", "/")], "", "ExternallyDenied"),
        (400, &[], "no", "ExternallyDenied"),
        (404, &[], "no", "ExternallyDenied"),
        (500, &[], "", "AuthorizerUnavailable"),
        (503, &[], "", "AuthorizerUnavailable"),
        (101, &[], "", "AuthorizerUnavailable"),
    ] {
        let authorizer = Authorizer::answering(status, fields, body);
        let decision = decided(&plan(json!({})), &mut asking(&authorizer, &[])).await;
        assert_eq!(outcome(&decision), expected, "{status} {fields:?}");
        // What is a refusal stays one where failures are let pass.
        let lenient = decided(&plan(json!({"onFailure": "Allow"})), &mut asking(&authorizer, &[])).await;
        let expected = if expected == "AuthorizerUnavailable" { "continue" } else { expected };
        assert_eq!(outcome(&lenient), expected, "{status} {fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_nobody_passes_unless_the_policy_says_so() {
    type Script = fn() -> Option<Result<Response, ErrorKind>>;
    let scripts: [(&str, Script); 4] = [
        ("hung", || None),
        ("refused", || Some(Err(ErrorKind::ConnectFailure))),
        ("cut", || {
            let cut =
                [Ok(hyper::body::Frame::data(Bytes::from_static(b"half"))), Err(BodyError::Other("cut"))];
            let body = http_body_util::StreamBody::new(futures_util::stream::iter(cut));
            Some(Ok(Response::new(Body::stream(body))))
        }),
        ("hung in its body", || {
            let body =
                http_body_util::StreamBody::new(futures_util::stream::pending::<Result<_, BodyError>>());
            Some(Ok(Response::new(Body::stream(body))))
        }),
    ];
    for (what, script) in scripts {
        let authorizer = Authorizer::by(script);
        let mut denied = asking(&authorizer, &[]);
        let decision = decided(&plan(json!({"timeout": "1s"})), &mut denied).await;
        assert_eq!(
            (outcome(&decision).as_str(), denied.consulted),
            ("AuthorizerUnavailable", Some(Consulted::Failed)),
            "{what}"
        );
        let mut allowed = asking(&authorizer, &[("x-user", "me"), ("authorization", "mine")]);
        let lenient = plan(json!({"onFailure": "Allow", "backendHeaders": ["X-User", "Authorization"]}));
        let began = tokio::time::Instant::now();
        assert_eq!(outcome(&decided(&lenient, &mut allowed).await), "continue", "{what}");
        assert!(began.elapsed() <= Duration::from_secs(2));
        assert_eq!(allowed.consulted, Some(Consulted::AllowedOnFailure));
        let headers = allowed.request.headers();
        assert!(
            !headers.contains_key("x-user") && !headers.contains_key("authorization"),
            "no word but its own"
        );
    }
    for (kind, expected) in [
        (ErrorKind::LoopDetected, "LoopDetected"),
        (ErrorKind::BackendNotFound, "AuthorizerUnavailable"),
        (ErrorKind::ConnectFailure, "continue"),
    ] {
        let authorizer = Authorizer::by(move || Some(Err(kind)));
        let decision = decided(&plan(json!({"onFailure": "Allow"})), &mut asking(&authorizer, &[])).await;
        assert_eq!(outcome(&decision), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_request_s_own_deadline_holds_for_the_question_too() {
    let authorizer = Authorizer::by(|| None);
    let mut exchange = asking(&authorizer, &[]);
    let began = tokio::time::Instant::now();
    exchange.deadline = Some(began + Duration::from_millis(300));
    assert_eq!(outcome(&decided(&plan(json!({})), &mut exchange).await), "AuthorizerUnavailable");
    assert_eq!(began.elapsed(), Duration::from_millis(300));
    let question = authorizer.last().1;
    let by = question.extensions().get::<AnswerBy>();
    assert_eq!(by, Some(&AnswerBy(began + Duration::from_millis(300))), "its endpoint is held to it");
}

#[tokio::test(start_paused = true)]
async fn a_body_without_end_is_waited_for_as_long_as_its_request_may_take() {
    let authorizer = Authorizer::answering(200, &[], "");
    for (deadline, expected) in [(Some(Duration::from_secs(3)), 3), (None, 30)] {
        let drops = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            Some((Ok::<_, BodyError>(hyper::body::Frame::data(Bytes::from_static(b"x"))), ()))
        });
        let mut exchange = asking(&authorizer, &[]);
        let began = tokio::time::Instant::now();
        exchange.deadline = deadline.map(|deadline| began + deadline);
        *exchange.request.body_mut() = Body::stream(http_body_util::StreamBody::new(drops));
        let decision = decided(&plan(json!({"body": {}})), &mut exchange).await;
        assert_eq!(outcome(&decision), "RequestTimeout");
        assert_eq!(began.elapsed().as_secs(), expected);
        assert!(authorizer.asked.borrow().is_empty(), "nobody is asked about half a body");
    }
}

#[tokio::test]
async fn of_its_answer_goes_on_what_is_named() {
    let fields =
        &[("x-user", "alice"), ("x-role", "a"), ("x-role", "b"), ("x-other", "x"), ("set-cookie", "a=b")];
    let authorizer = Authorizer::answering(200, fields, "");
    let plan = plan(json!({"backendHeaders": ["X-User", "X-Role", "X-Absent", "Authorization"]}));
    let mut exchange =
        asking(&authorizer, &[("x-user", "root"), ("x-absent", "root"), ("authorization", "Basic mine")]);
    decided(&plan, &mut exchange).await;
    let headers = exchange.request.headers();
    assert_eq!((all(headers, "x-user"), all(headers, "x-role")), (vec!["alice"], vec!["a", "b"]));
    for name in ["x-absent", "x-other", "authorization", "set-cookie"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    assert_eq!(
        all(authorizer.last().1.headers(), "authorization"),
        ["Basic mine"],
        "it was shown the client's"
    );

    let denying = Authorizer::answering(
        401,
        &[
            ("www-authenticate", "Bearer"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            ("x-secret", "inside"),
            ("content-type", "text/x"),
            ("content-length", "999"),
            ("connection", "x"),
        ],
        "who?",
    );
    let Decision::Answer(answer) = decided(&plan, &mut asking(&denying, &[])).await else {
        panic!("refused")
    };
    assert_eq!(answer.extensions().get(), Some(&ErrorKind::ExternallyDenied));
    let headers = answer.headers();
    assert_eq!(all(headers, "set-cookie"), ["a=b", "c=d"]);
    assert_eq!(
        (all(headers, "www-authenticate"), all(headers, "content-type")),
        (vec!["Bearer"], vec!["text/x"])
    );
    assert_eq!(all(headers, "cache-control"), ["no-store"]);
    assert_eq!(headers.len(), 5, "{headers:?}");
    let body = answer.into_body().read(99).await.expect("small").0;
    assert_eq!(&body[..], b"who?");
}

#[tokio::test]
async fn more_than_a_refusal_needs_is_not_taken() {
    let authorizer = Authorizer::by(|| {
        let mut response = Response::new(Body::Full(vec![b'x'; 65 << 10].into()));
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
        Some(Ok(response))
    });
    let Decision::Answer(answer) = decided(&plan(json!({})), &mut asking(&authorizer, &[])).await else {
        panic!("refused")
    };
    assert_eq!(answer.status(), 401);
    assert!(http_body::Body::is_end_stream(answer.body()));
    // Of a yes, nobody could say whether it is whole.
    let long = Authorizer::by(|| Some(Ok(Response::new(Body::Full(vec![b'x'; 65 << 10].into())))));
    let decision = decided(&plan(json!({})), &mut asking(&long, &[])).await;
    assert_eq!(outcome(&decision), "AuthorizerUnavailable");
    let wide = Authorizer::by(|| {
        let mut response = Response::default();
        for _ in 0..3 {
            response
                .headers_mut()
                .append("x-user", HeaderValue::try_from("x".repeat(6 << 10)).expect("ASCII"));
        }
        Some(Ok(response))
    });
    let decision = decided(&plan(json!({"backendHeaders": ["x-user"]})), &mut asking(&wide, &[])).await;
    assert_eq!(outcome(&decision), "AuthorizerUnavailable");
}

const LONG: &str = match std::str::from_utf8(&[b'a'; 257]) {
    Ok(text) => text,
    Err(_) => "",
};

#[tokio::test]
async fn it_names_those_whom_nobody_knows() {
    let named = plan(json!({"identity": {"idHeader": "X-User", "scopesHeader": "X-Scopes"}}));
    let authorizer =
        Authorizer::answering(200, &[("x-user", "alice"), ("x-scopes", "a:read, a:write b")], "");
    let mut exchange = asking(&authorizer, &[]);
    decided(&named, &mut exchange).await;
    let known = exchange.identity.known().expect("somebody").clone();
    assert_eq!((known.kind, &*known.id, &*known.entry), (IdentityKind::External, "alice", "extAuth"));
    assert_eq!(known.scopes.iter().map(|scope| &**scope).collect::<Vec<_>>(), ["a:read", "a:write", "b"]);
    assert_eq!(&*known.issuer, "Service/shop/authz:80");

    let bob = KnownIdentity { kind: IdentityKind::Jwt, id: "bob".into(), ..(*known).clone() };
    exchange.identity = Identity::new(Arc::new(bob));
    decided(&named, &mut exchange).await;
    assert_eq!(exchange.identity.id(), "bob", "whom authentication found stays");

    for fields in [
        &[("x-user", "")][..],
        &[("x-user", "a"), ("x-user", "b")],
        &[("x-user", "a\tb")],
        &[("x-user", LONG)],
    ] {
        let fields: &'static [(&str, &str)] = fields;
        let authorizer = Authorizer::answering(200, fields, "");
        let decision = decided(&named, &mut asking(&authorizer, &[])).await;
        assert_eq!(outcome(&decision), "AuthorizerUnavailable", "{fields:?}");
    }
    let silent = Authorizer::answering(200, &[], "");
    let mut exchange = asking(&silent, &[]);
    assert_eq!(outcome(&decided(&named, &mut exchange).await), "continue");
    assert!(exchange.identity.known().is_none());
}

#[test]
fn mistakes_name_their_field() {
    let at = json!({"backendRef": {"name": "authz", "port": 80}});
    for (more, expected) in [
        (json!({"url": "https://a.example/"}), "url: give either url or backendRef"),
        (
            json!({"backendRef": {"name": "authz"}}),
            "backendRef.port: port is required for a Service, and not for a GatewayBackend",
        ),
        (
            json!({"backendRef": {"name": "authz", "port": 80, "group": "apps"}}),
            "backendRef.group: group is \"\" for a Service and portcullis.dev for a GatewayBackend; leave it out",
        ),
        (json!({"path": "verify"}), "path: found \"verify\", expected a path like /verify"),
        (json!({"path": "/a b"}), "path: found \"/a b\", expected a path like /verify"),
        (
            json!({"path": "/a?b", "style": "ExtAuthz"}),
            "path: the client's path and query come behind it; leave the query out",
        ),
        (json!({"timeout": "31s"}), "timeout: found 31s, expected more than 0s and at most 30s"),
        (json!({"timeout": "0s"}), "timeout: found 0ns, expected more than 0s and at most 30s"),
        (
            json!({"body": {"maxSize": "2Mi"}}),
            "body.maxSize: found 2097152 bytes, expected 1 to 1Mi: it is held in memory",
        ),
        (json!({"requestHeaders": ["Host"]}), "requestHeaders: Host belongs to the connection; leave it out"),
        (json!({"requestHeaders": ["*", "A"]}), "requestHeaders: * stands alone where all fields are meant"),
        (
            json!({"requestHeaders": ["X-Forwarded-For"]}),
            "requestHeaders: X-Forwarded-For is always told, as the gateway sees it; leave it out",
        ),
        (json!({"backendHeaders": ["a", "A"]}), "backendHeaders: A is named twice; leave one out"),
        (
            json!({"backendHeaders": ["X-Real_IP"]}),
            "backendHeaders: X-Real_IP is the gateway's own word to backends; leave it out",
        ),
        (
            json!({"backendHeaders": ["content_length"]}),
            "backendHeaders: content_length belongs to the connection; leave it out",
        ),
        (
            json!({"backendHeaders": ["X-Forwarded-Client-Cert"]}),
            "backendHeaders: X-Forwarded-Client-Cert is the gateway's own word to backends; leave it out",
        ),
        (
            json!({"backendHeaders": ["Accept"]}),
            "backendHeaders: Accept is what clients say of their requests, under every route of the hostname; take another name",
        ),
        (
            json!({"clientHeaders": ["Content-Type"]}),
            "clientHeaders: Content-Type goes along with the body; leave it out",
        ),
        (json!({"clientHeaders": ["a b"]}), "clientHeaders: a b is no name of a field"),
        (json!({"identity": {"idHeader": "a b"}}), "identity.idHeader: a b is no name of a field"),
    ] {
        let mut spec = at.clone();
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        assert_eq!(compiled(spec).map(|_| ()), Err(vec![expected.to_owned()]), "{more}");
    }
    assert!(compiled(json!({})).is_err());
    for url in ["http://authz.example/", "https://localhost/", "https://u@a.example/", "ftp://a.example/"] {
        assert!(compiled(json!({"url": url})).is_err(), "{url}");
    }
}

#[test]
fn what_it_tells_backends_is_taken_from_clients_also_when_it_does_not_compile() {
    let written = json!({"url": 7, "backendHeaders": ["X-User", "Authorization", "Host", "x_real_ip", "a b", 3, "X-Forwarded-User"]});
    assert_eq!(ExtAuth::own_headers(&written), ["x-user", "x-forwarded-user"]);
}

#[test]
fn what_clients_say_of_their_requests_is_not_taken_from_every_route_of_a_hostname() {
    let credentials = ["Authorization", "Cookie", "X-Api-Key"];
    let others = [
        "Accept",
        "accept_language",
        "Access-Control-Request-Method",
        "Cache-Control",
        "Content-Type",
        "Date",
        "If-Match",
        "Origin",
        "Range",
        "Referer",
        "Sec-WebSocket-Key",
        "User-Agent",
        "traceparent",
        "X-HTTP-Method-Override",
        "X-Forwarded-Client-Cert",
        "X-Request-Id",
        "x_api_key",
    ];
    for name in credentials.into_iter().chain(others) {
        let written = json!({"backendRef": {"name": "authz", "port": 80}, "backendHeaders": [name]});
        assert_eq!(ExtAuth::own_headers(&written), [""; 0], "{name}");
        assert_eq!(compiled(written).is_ok(), credentials.contains(&name), "{name}");
    }
}
