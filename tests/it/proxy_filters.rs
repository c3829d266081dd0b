//! The contract of filters on the whole proxy: a filter of the test's own answers early, asks a backend, reads a body,
//! changes an answer, panics, and leaves work behind that runs detached from the client.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use portcullis::filters::{
    AnyPlan, Decision, Filter, FilterKind, Keep, Member, Outcome, Ring, Row, Scope, filter,
};
use portcullis::lifecycle::Phase;
use portcullis::message::{Body, Exchange, LocalFuture, Request, Response};
use portcullis::route_map::Action;
use portcullis::values::Problem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::proxy_rig::*;

static MEMBERS: &[Row] = &[filter::<Probe>()];

/// What the test's filter does with a request.
#[derive(Clone, Debug)]
enum Probe {
    AnswerEarly,
    /// Asks this backend first and hands on what it says; without an answer nobody gets further.
    AskFirst(&'static str),
    /// Reads the body within this bound, and makes the answer large letters.
    Shout(usize),
    Panic,
    /// Tells this backend when the gate lets it, whether the client is still there or not.
    TellLater(&'static str, Gate),
    PanicLater,
}

/// Lets as much work through as it has permits.
#[derive(Clone, Debug)]
struct Gate(Arc<Semaphore>);

impl PartialEq for Probe {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Member for Probe {
    const NAME: &'static str = "probe";
    type Spec = serde_json::Value;
    type Plan = Self;

    fn compile(_: Self::Spec, _: &mut dyn Scope) -> Result<Self, Vec<Problem>> {
        panic!("the tests make plans by hand")
    }
}

impl FilterKind for Probe {
    const RING: Ring = Ring::Transform;

    fn link(plan: &Self, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(plan.clone())
    }
}

impl Filter for Probe {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        match self {
            Self::AnswerEarly => Decision::Answer(answer_with(StatusCode::FORBIDDEN)),
            Self::AskFirst(name) => Decision::Wait(Box::pin(ask_first(name, exchange))),
            Self::Shout(bound) => Decision::Wait(Box::pin(take_body(*bound, exchange))),
            Self::Panic => panic!("for the test"),
            Self::TellLater(name, gate) => {
                let (outbound, gate) = (exchange.outbound.clone(), gate.clone());
                let name = *name;
                let worker = outbound.clone();
                let work: LocalFuture<'static, ()> = Box::pin(async move {
                    gate.0.acquire().await.expect("open").forget();
                    let _ = worker.call(&backend_id(name), question("/told")).await;
                });
                match outbound.detach(work) {
                    Ok(()) => Decision::Continue,
                    Err(_) => Decision::Answer(answer_with(StatusCode::INSUFFICIENT_STORAGE)),
                }
            }
            Self::PanicLater => {
                let work: LocalFuture<'static, ()> = Box::pin(async { panic!("for the test") });
                assert!(exchange.outbound.detach(work).is_ok());
                Decision::Continue
            }
        }
    }

    fn response<'a>(&'a self, _: &'a mut Exchange, response: Response) -> Outcome<'a> {
        if !matches!(self, Self::Shout(_)) {
            return Outcome::Ready(response);
        }
        Outcome::Wait(Box::pin(async move {
            let (mut parts, body) = response.into_parts();
            let (bytes, _) = body.read(1 << 10).await.expect("small");
            parts.headers.insert("x-shouted", HeaderValue::from_static("1"));
            Outcome::Ready(Response::from_parts(parts, Body::Full(bytes.to_ascii_uppercase().into())))
        }))
    }
}

fn answer_with(status: StatusCode) -> Box<Response> {
    let mut response = Response::default();
    *response.status_mut() = status;
    Box::new(response)
}

fn question(path: &str) -> Request {
    let mut request = Request::default();
    *request.uri_mut() = path.parse().expect("a path");
    request.headers_mut().insert("host", HeaderValue::from_static("question.test"));
    request
}

async fn ask_first(name: &str, exchange: &mut Exchange) -> Decision<'static> {
    let outbound = exchange.outbound.clone();
    match outbound.call(&backend_id(name), question("/ask")).await {
        Ok(answer) => {
            let (bytes, _) = answer.into_body().read(1 << 10).await.expect("small");
            let value = HeaderValue::from_bytes(&bytes).expect("a value");
            exchange.request.headers_mut().insert(HeaderName::from_static("x-said"), value);
            Decision::Continue
        }
        Err(error) => {
            let mut response = answer_with(StatusCode::SERVICE_UNAVAILABLE);
            response.headers_mut().insert("x-why", HeaderValue::from_static(error.kind.as_str()));
            Decision::Answer(response)
        }
    }
}

async fn take_body(bound: usize, exchange: &mut Exchange) -> Decision<'static> {
    let body = std::mem::take(exchange.request.body_mut());
    match body.read(bound).await {
        Ok((bytes, _)) => {
            *exchange.request.body_mut() = bytes.into();
            Decision::Continue
        }
        Err(_) => Decision::Answer(answer_with(StatusCode::PAYLOAD_TOO_LARGE)),
    }
}

/// A gateway of one worker with one rule: this filter before this action.
fn gateway(probe: Probe, action: Action, backends: &[(&str, std::net::SocketAddr)]) -> Gateway {
    let gateway = Gateway::with_members(MEMBERS, |settings| settings.workers = 1);
    let rules = vec![("/free", vec![], respond("free")), ("/", vec![(0, AnyPlan::new(probe))], action)];
    let (map, endpoints) = route_map(vec![host_filtered("", None, rules)], backends);
    gateway.plane.install(map, endpoints);
    gateway
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const FREE: &str = "GET /free HTTP/1.1\r\nhost: a\r\n\r\n";

fn panics(gateway: &Gateway) -> f64 {
    let metrics = gateway.telemetry.render();
    let counts = metrics.lines().filter(|line| line.starts_with("portcullis_panics_total"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn a_filter_answers_before_any_backend_hears_of_it() {
    let backend = Backend::ok().await;
    let gateway = gateway(Probe::AnswerEarly, forward("b"), &[("b", backend.address)]);
    assert_eq!(status(&exchange(gateway.http(), GET).await), 403);
    assert!(backend.heard().is_empty());
    assert_eq!(status(&exchange(gateway.http(), FREE).await), 200);
}

#[tokio::test]
async fn a_filter_asks_another_backend_and_hands_on_what_it_said() {
    let backend = Backend::ok().await;
    let login = Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nalice").await;
    let backends = [("b", backend.address), ("login", login.address)];
    let gateway = gateway(Probe::AskFirst("login"), forward("b"), &backends);
    for _ in 0..3 {
        assert_eq!(status(&exchange(gateway.http(), GET).await), 200);
    }
    assert_eq!(field(&backend.last(), "x-said"), Some("alice"));
    let asked = login.heard();
    assert!(
        asked.len() == 3 && asked.iter().all(|one| one.starts_with("GET /ask HTTP/1.1\r\n")),
        "{asked:?}"
    );
    assert_eq!(field(&asked[0], "host"), Some("question.test"));
    assert_eq!(field(&asked[0], "x-forwarded-for"), None, "nothing of the client's that was not asked for");
}

#[tokio::test]
async fn a_filter_that_gets_no_answer_lets_nobody_through() {
    let backend = Backend::ok().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("bound");
    for (name, why) in [("gone", "ConnectFailure"), ("nobody", "BackendNotFound")] {
        let backends = [("b", backend.address), ("gone", gone)];
        let gateway = gateway(Probe::AskFirst(name), forward("b"), &backends);
        let answer = exchange(gateway.http(), GET).await;
        assert_eq!((status(&answer), field(&answer, "x-why")), (503, Some(why)));
    }
    assert!(backend.heard().is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_question_with_it() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let backends = [("login", silent.local_addr().expect("bound"))];
    let gateway = gateway(Probe::AskFirst("login"), respond("ok"), &backends);
    let mut client = TcpStream::connect(gateway.http()).await.expect("connects");
    client.write_all(GET.as_bytes()).await.expect("sent");
    let (mut asked, _) = silent.accept().await.expect("asked");
    read_message(&mut asked, &mut Vec::new()).await.expect("the question");
    drop(client);
    let ended = tokio::time::timeout(PATIENCE, asked.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "the question is given up");
}

#[tokio::test]
async fn a_filter_reads_a_bounded_body_and_changes_the_answer() {
    let backend = Backend::ok().await;
    let gateway = gateway(Probe::Shout(5), forward("b"), &[("b", backend.address)]);
    let post = |body: &str| {
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
    };
    let answer = exchange(gateway.http(), &post("hello")).await;
    assert!(status(&answer) == 200 && answer.ends_with("\r\n\r\nOK"), "{answer}");
    assert_eq!(field(&answer, "x-shouted"), Some("1"));
    let heard = backend.last();
    assert!(field(&heard, "content-length") == Some("5") && heard.ends_with("\r\n\r\nhello"), "{heard}");
    assert_eq!(status(&exchange(gateway.http(), &post("hello!")).await), 413);
    assert_eq!(backend.heard().len(), 1);
}

#[tokio::test]
async fn a_panic_in_a_filter_costs_its_own_request_only_and_is_counted() {
    let backend = Backend::ok().await;
    let gateway = gateway(Probe::Panic, forward("b"), &[("b", backend.address)]);
    let mut other = TcpStream::connect(gateway.http()).await.expect("connects");
    for round in 1..=3 {
        other.write_all(FREE.as_bytes()).await.expect("a kept connection stays");
        assert_eq!(status(&answer(&mut other).await), 200);
        let failed = exchange(gateway.http(), GET).await;
        assert_eq!((status(&failed), reason(&failed).as_str()), (500, "Internal"));
        assert_eq!(field(&failed, "connection"), Some("close"));
        until("the count", || panics(&gateway) == f64::from(round)).await;
    }
    assert!(backend.heard().is_empty());
}

#[tokio::test]
async fn detached_work_goes_on_when_the_client_has_left() {
    let told = Backend::ok().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gate = Gate(Arc::new(Semaphore::new(0)));
    let backends = [("told", told.address), ("silent", silent.local_addr().expect("bound"))];
    let gateway = gateway(Probe::TellLater("told", gate.clone()), forward("silent"), &backends);
    let mut client = TcpStream::connect(gateway.http()).await.expect("connects");
    client.write_all(GET.as_bytes()).await.expect("sent");
    let (mut asked, _) = silent.accept().await.expect("the action runs beside the work");
    read_message(&mut asked, &mut Vec::new()).await.expect("the request");
    drop(client);
    let ended = tokio::time::timeout(PATIENCE, asked.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "the request itself is given up");
    assert!(told.heard().is_empty(), "the control: the gate is shut");
    gate.0.add_permits(1);
    until("the detached work", || told.last().starts_with("GET /told ")).await;
}

#[tokio::test]
async fn detached_work_is_bounded_and_its_place_is_free_when_it_is_done() {
    let told = Backend::ok().await;
    let gate = Gate(Arc::new(Semaphore::new(0)));
    let gateway = gateway(Probe::TellLater("told", gate.clone()), respond("ok"), &[("told", told.address)]);
    let mut client = TcpStream::connect(gateway.http()).await.expect("connects");
    let mut ask = async || {
        client.write_all(GET.as_bytes()).await.expect("sent");
        status(&answer(&mut client).await)
    };
    for _ in 0..1024 {
        assert_eq!(ask().await, 200);
    }
    assert_eq!(ask().await, 507, "no room");
    gate.0.add_permits(1);
    until("a place", || !told.heard().is_empty()).await;
    let room = async {
        while ask().await != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, room).await.expect("room again");
    // What is left ends with the drain.
    gateway.drain.advance(Phase::Draining);
    drop(client);
    gateway.ended().await;
    assert_eq!(told.heard().len(), 1);
}

#[tokio::test]
async fn a_panic_in_detached_work_is_counted_and_costs_nothing_else() {
    let gateway = gateway(Probe::PanicLater, respond("ok"), &[]);
    assert_eq!(status(&exchange(gateway.http(), GET).await), 200);
    until("the count", || panics(&gateway) == 1.0).await;
    let served = tokio::time::timeout(Duration::from_secs(5), exchange(gateway.http(), FREE)).await;
    assert_eq!(status(&served.expect("served")), 200);
}
