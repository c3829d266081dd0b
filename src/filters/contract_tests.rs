//! The contract, proven: filters and an action that do everything that later ones will need, on a fake way to backends.

use std::any::Any;
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use super::chain::run;
use super::contract::{Decision, Derive, Filter, Keep, Outcome, Scope, Selection};
use crate::expression::{Environment, Expression, Kind, Template};
use crate::message::{
    Body, Client, ErrorKind, Exchange, Labels, LocalFuture, Outbound, Protocol, ProxyError, Request,
    RequestId, Response, Scheme,
};
use crate::values::{
    AskedBackendRef, BackendId, ConfigMapKeyRef, FieldPath, LabelSelector, ObjectName, Origin, Problem,
    Redacted, SecretData, SecretKeyRef, SecretRef,
};

/// For members that ask for nothing.
pub struct NoScope;

impl Scope for NoScope {
    fn secret(&mut self, _: FieldPath, _: &SecretRef) -> Option<Arc<SecretData>> {
        None
    }

    fn secret_key(&mut self, _: FieldPath, _: &SecretKeyRef) -> Option<Redacted<Vec<u8>>> {
        None
    }

    fn secrets(&mut self, _: FieldPath, _: &LabelSelector) -> Selection {
        Selection::default()
    }

    fn config_map(&mut self, _: FieldPath, _: &ConfigMapKeyRef) -> Option<Arc<str>> {
        None
    }

    fn derived(&mut self, _: &str, _: &Selection, make: Derive<'_>) -> Arc<dyn Any + Send + Sync> {
        make(None)
    }

    fn expression(
        &mut self,
        _: FieldPath,
        source: &str,
        environment: &'static Environment,
        wanted: Kind,
    ) -> Option<Expression> {
        Expression::parse(source, environment, wanted).ok()
    }

    fn template(
        &mut self,
        _: FieldPath,
        source: &str,
        environment: &'static Environment,
    ) -> Option<Template> {
        Template::parse(source, environment).ok()
    }

    fn backend(&mut self, _: FieldPath, backend: &AskedBackendRef) -> Option<BackendId> {
        let service = ObjectName::new("shop", backend.name.as_str());
        Some(BackendId::Service { service, port: backend.port? })
    }

    fn origin(&mut self, origin: &Origin) -> BackendId {
        BackendId::Origin(origin.clone())
    }

    fn warn(&mut self, _: Problem) {}
}

/// For filters without state.
pub struct NoKeep;

impl Keep for NoKeep {
    fn state(
        &self,
        _: &str,
        make: &mut dyn FnMut() -> Arc<dyn std::any::Any + Send + Sync>,
    ) -> Arc<dyn std::any::Any + Send + Sync> {
        make()
    }
}

/// A request on its way, as a rule with a prefix of `matched` bytes sees it.
pub fn exchange(uri: &str, matched: usize, outbound: Rc<dyn Outbound>) -> Exchange {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut request = Request::default();
    *request.uri_mut() = uri.parse().expect("a URI");
    Exchange {
        matched_prefix: matched,
        ..Exchange::new(
            request,
            Client {
                peer: SocketAddr::new(ip, 1),
                ip,
                scheme: Scheme::Https,
                protocol: Protocol::Http11,
                server_name: None,
                certificate: None,
                vouched: None,
            },
            "shop.example".into(),
            Arc::new(Labels { namespace: "shop".into(), route: "shop".into(), rule: "a".into() }),
            RequestId([0; 16]),
            Instant::now(),
            outbound,
        )
    }
}

/// Answers every call with the path that it was asked for, keeps detached work for the test to run, and takes at most
/// `room` of it.
#[derive(Default)]
pub struct FakeOutbound {
    room: usize,
    detached: RefCell<Vec<LocalFuture<'static, ()>>>,
}

impl Outbound for FakeOutbound {
    fn call<'a>(
        &'a self,
        backend: &'a BackendId,
        request: Request,
    ) -> LocalFuture<'a, Result<Response, ProxyError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            match backend {
                BackendId::GatewayBackend(name) if &*name.name == "down" => {
                    Err(ErrorKind::ConnectFailure.into())
                }
                _ => Ok(Response::new(request.uri().path().to_owned().into())),
            }
        })
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        let mut detached = self.detached.borrow_mut();
        if detached.len() == self.room {
            return Err(work);
        }
        detached.push(work);
        Ok(())
    }
}

fn backend(name: &str) -> BackendId {
    BackendId::GatewayBackend(ObjectName::new("shop", name))
}

async fn text(response: Response) -> String {
    let (bytes, _) = response.into_body().read(1 << 10).await.expect("small");
    String::from_utf8(bytes.into()).expect("text")
}

fn trace(response: &Response) -> Vec<&str> {
    response.headers().get_all("trace").iter().map(|value| value.to_str().expect("ASCII")).collect()
}

/// Leaves its name on the way in and out.
struct Mark(&'static str);

impl Filter for Mark {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        exchange.request.headers_mut().append("trace", HeaderValue::from_static(self.0));
        Decision::Continue
    }

    fn response<'a>(&'a self, _: &'a mut Exchange, mut response: Response) -> Outcome<'a> {
        response.headers_mut().append("trace", HeaderValue::from_static(self.0));
        Outcome::Ready(response)
    }
}

/// Answers early where the request asks for it.
struct Gate;

impl Filter for Gate {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        if !exchange.request.headers().contains_key("stop") {
            return Decision::Continue;
        }
        let mut response = Response::default();
        *response.status_mut() = StatusCode::FORBIDDEN;
        Decision::Answer(Box::new(response))
    }

    fn response<'a>(&'a self, _: &'a mut Exchange, mut response: Response) -> Outcome<'a> {
        response.headers_mut().append("trace", HeaderValue::from_static("gate"));
        Outcome::Ready(response)
    }
}

/// Asks another backend first, as external authorization will.
struct AskFirst(BackendId);

impl Filter for AskFirst {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        Decision::Wait(Box::pin(async move {
            let mut question = Request::default();
            *question.uri_mut() = exchange.request.uri().clone();
            let outbound = Rc::clone(&exchange.outbound);
            match outbound.call(&self.0, question).await {
                Ok(answer) => {
                    let value = HeaderValue::from_str(&text(answer).await).expect("a path");
                    exchange.request.headers_mut().insert("asked", value);
                    Decision::Continue
                }
                Err(error) => error.into(),
            }
        }))
    }
}

/// Reads the body within a bound, hands it on whole, and changes the answer.
struct Upper {
    limit: usize,
}

impl Filter for Upper {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        Decision::Wait(Box::pin(async move {
            let body = std::mem::take(exchange.request.body_mut());
            match body.read(self.limit).await {
                Ok((bytes, _)) => {
                    *exchange.request.body_mut() = bytes.into();
                    Decision::Continue
                }
                Err(_) => {
                    let mut response = Response::default();
                    *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                    Decision::Answer(Box::new(response))
                }
            }
        }))
    }

    fn response<'a>(&'a self, _: &'a mut Exchange, response: Response) -> Outcome<'a> {
        Outcome::Wait(Box::pin(async move {
            let (parts, body) = response.into_parts();
            let (bytes, _) = body.read(self.limit).await.expect("small");
            let bytes = Bytes::from(bytes.to_ascii_uppercase());
            Outcome::Ready(Response::from_parts(parts, Body::Full(bytes)))
        }))
    }
}

/// What the proxy makes of a failure, in short.
pub fn fail(error: &ProxyError) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.extensions_mut().insert(error.kind);
    response.headers_mut().extend(error.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    response
}

/// An action that hands the request's body back.
async fn echo(exchange: &mut Exchange) -> Response {
    let mut response = Response::new(std::mem::take(exchange.request.body_mut()));
    *response.headers_mut() = exchange.request.headers().clone();
    response
}

#[tokio::test]
async fn requests_go_inwards_and_answers_outwards() {
    let filters: [Arc<dyn Filter>; 3] = [Arc::new(Mark("outer")), Arc::new(Gate), Arc::new(Mark("inner"))];
    let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
    let response = run(&filters, &mut exchange, fail, echo).await;
    assert_eq!(trace(&response), ["outer", "inner", "inner", "gate", "outer"]);
}

#[tokio::test]
async fn an_early_answer_passes_only_what_is_outside_of_it() {
    let filters: [Arc<dyn Filter>; 3] = [Arc::new(Mark("outer")), Arc::new(Gate), Arc::new(Mark("inner"))];
    let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
    exchange.request.headers_mut().insert("stop", HeaderValue::from_static("1"));
    let response =
        run(&filters, &mut exchange, fail, async |_: &mut Exchange| panic!("the action ran")).await;
    assert_eq!((response.status(), trace(&response)), (StatusCode::FORBIDDEN, vec!["outer"]));
}

#[test]
fn filters_that_do_not_wait_are_done_in_one_poll() {
    let filters: [Arc<dyn Filter>; 2] = [Arc::new(Mark("a")), Arc::new(Gate)];
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let _guard = runtime.enter();
    let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
    assert!(run(&filters, &mut exchange, fail, echo).now_or_never().is_some());
}

#[tokio::test]
async fn a_filter_may_ask_a_backend_and_await_the_answer() {
    let filters: [Arc<dyn Filter>; 1] = [Arc::new(AskFirst(backend("login")))];
    let mut exchange = exchange("/a", 0, Rc::new(FakeOutbound::default()));
    let response = run(&filters, &mut exchange, fail, echo).await;
    assert_eq!(response.headers()["asked"], "/a");
}

#[tokio::test]
async fn a_filter_that_cannot_ask_denies() {
    let filters: [Arc<dyn Filter>; 2] = [Arc::new(Mark("outer")), Arc::new(AskFirst(backend("down")))];
    let mut exchange = exchange("/a", 0, Rc::new(FakeOutbound::default()));
    let response =
        run(&filters, &mut exchange, fail, async |_: &mut Exchange| panic!("the action ran")).await;
    assert_eq!(response.extensions().get(), Some(&ErrorKind::ConnectFailure));
    assert_eq!(trace(&response), ["outer"]);
}

#[tokio::test]
async fn a_filter_may_read_a_bounded_body_and_change_the_answer() {
    let filters: [Arc<dyn Filter>; 1] = [Arc::new(Upper { limit: 4 })];
    let mut small = exchange("/", 0, Rc::new(FakeOutbound::default()));
    *small.request.body_mut() = "abcd".into();
    assert_eq!(text(run(&filters, &mut small, fail, echo).await).await, "ABCD");
    let mut large = exchange("/", 0, Rc::new(FakeOutbound::default()));
    *large.request.body_mut() = "abcde".into();
    let response = run(&filters, &mut large, fail, async |_: &mut Exchange| panic!("the action ran")).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

/// An action whose work goes on when the client leaves, as a cache's fill will.
async fn refresh(exchange: &mut Exchange, done: Rc<RefCell<Option<String>>>) -> Response {
    let outbound = Rc::clone(&exchange.outbound);
    let request = std::mem::take(&mut exchange.request);
    let worker = Rc::clone(&outbound);
    let work: LocalFuture<'static, ()> = Box::pin(async move {
        let answer = worker.call(&backend("catalog"), request).await.expect("an answer");
        *done.borrow_mut() = Some(text(answer).await);
    });
    // Without room it is done here, and ends with the client.
    if let Err(work) = outbound.detach(work) {
        work.await;
    }
    Response::default()
}

#[tokio::test]
async fn detached_work_outlives_the_client() {
    let outbound = Rc::new(FakeOutbound { room: 1, ..FakeOutbound::default() });
    let done = Rc::new(RefCell::new(None));
    {
        let mut exchange = exchange("/a", 0, Rc::clone(&outbound) as Rc<dyn Outbound>);
        run(&[], &mut exchange, fail, async |e: &mut Exchange| refresh(e, Rc::clone(&done)).await).await;
    }
    assert_eq!(*done.borrow(), None);
    let work = outbound.detached.borrow_mut().pop().expect("detached");
    work.await;
    assert_eq!(done.borrow().as_deref(), Some("/a"));
}

#[tokio::test]
async fn detached_work_without_room_comes_back() {
    let done = Rc::new(RefCell::new(None));
    let mut exchange = exchange("/a", 0, Rc::new(FakeOutbound::default()));
    run(&[], &mut exchange, fail, async |e: &mut Exchange| refresh(e, Rc::clone(&done)).await).await;
    assert_eq!(done.borrow().as_deref(), Some("/a"));
}
