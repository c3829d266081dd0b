//! Graphs of calls over a way to backends that answers as it is told, at the time that it is told.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use super::*;
use crate::expression::{Expression, Kind, KnownCalls, MethodTemplate, PathTemplate, REQUEST, Template};
use crate::filters::{HeaderEdits, TimeoutsPlan};
use crate::message::{
    Body, BodyError, Client, Labels, LocalFuture, Outbound, Protocol, RawJson, RequestId, Scheme,
};
use crate::route_map::{AnswerPlan, BodyPlan};
use crate::values::{BackendId, ObjectName};

pub(super) struct NoKeep;

impl Keep for NoKeep {
    fn state(
        &self,
        _: &str,
        make: &mut dyn FnMut() -> Arc<dyn std::any::Any + Send + Sync>,
    ) -> Arc<dyn std::any::Any + Send + Sync> {
        make()
    }
}

/// What a backend answers, and after how long.
#[derive(Clone)]
struct Says {
    after: Duration,
    status: u16,
    body: Bytes,
}

/// Backends by the first segment of the path.
#[derive(Default)]
struct Backends {
    says: RefCell<BTreeMap<String, Says>>,
    /// Targets, with the milliseconds at which they were asked.
    asked: RefCell<Vec<(String, u128)>>,
    methods: RefCell<Vec<String>>,
    bodies: RefCell<Vec<String>>,
    under_way: Rc<Cell<usize>>,
    since: Cell<Option<Instant>>,
}

struct UnderWay(Rc<Cell<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

struct Nowhere;

impl Outbound for Nowhere {
    fn call<'a>(&'a self, _: &'a BackendId, _: Request) -> LocalFuture<'a, Result<Response, ProxyError>> {
        Box::pin(async { Err(ErrorKind::ConnectFailure.into()) })
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        Err(work)
    }
}

impl super::Backends for Backends {
    fn ask<'a>(
        &'a self,
        _: &'a BackendId,
        request: Request,
        _: Limits<'a>,
    ) -> LocalFuture<'a, Result<Response, ProxyError>> {
        let since = self.since.get().unwrap_or_else(Instant::now);
        self.since.set(Some(since));
        let target = request.uri().to_string();
        self.asked.borrow_mut().push((target.clone(), since.elapsed().as_millis()));
        self.methods.borrow_mut().push(request.method().to_string());
        if let Body::Full(body) = request.body() {
            self.bodies.borrow_mut().push(String::from_utf8_lossy(body).into_owned());
        }
        let name = target.split(['/', '?']).nth(1).unwrap_or_default().to_owned();
        let says = self.says.borrow().get(&name).cloned();
        self.under_way.set(self.under_way.get() + 1);
        let under_way = UnderWay(self.under_way.clone());
        Box::pin(async move {
            let _under_way = under_way;
            let Some(says) = says else { return Err(ErrorKind::ConnectFailure.into()) };
            tokio::time::sleep(says.after).await;
            let mut response = Response::new(Body::Full(says.body));
            *response.status_mut() = StatusCode::from_u16(says.status).expect("a status");
            response.headers_mut().insert("x-secret", HeaderValue::from_static("of the backend"));
            Ok(response)
        })
    }
}

/// A plan with its backends.
struct Case {
    plan: AggregatePlan,
    backends: Rc<Backends>,
}

/// One call: its name, needs, path, and what its failure means.
type Written<'w> = (&'w str, &'w [usize], &'w str, OnError);

fn known(names: &[Written<'_>], over: impl IntoIterator<Item = usize>) -> KnownCalls {
    KnownCalls::new(names.iter().map(|call| Arc::from(call.0)).collect(), over)
}

fn method(source: &str, calls: Option<&KnownCalls>) -> MethodTemplate {
    let template = Template::parse_among(source, &REQUEST, calls).expect("a template");
    MethodTemplate::new(template).expect("a method")
}

impl Case {
    fn new(calls: &[Written<'_>]) -> Self {
        let plan = |(name, needs, path, on_error): &Written<'_>| {
            let template = Template::parse_among(path, &REQUEST, Some(&known(calls, needs.iter().copied())));
            let (path, query) = template.expect("a template").cut_at_query();
            CallPlan {
                name: Arc::from(*name),
                target: WeightedTarget::Backend(BackendId::Service {
                    service: ObjectName::new("ns", *name),
                    port: 80,
                }),
                needs: (*needs).into(),
                when: None,
                method: method("GET", None),
                path: PathTemplate::new(path).expect("a path"),
                query,
                params: [].into(),
                pass: [].into(),
                headers: HeaderEdits::default(),
                body: None,
                timeout: None,
                retry: None,
                on_error: on_error.clone(),
            }
        };
        let plan = AggregatePlan {
            calls: calls.iter().map(plan).collect(),
            timeouts: TimeoutsPlan::default(),
            timeout: None,
            answer: AnswerPlan::default(),
        };
        Self { plan, backends: Rc::default() }
    }

    fn says(self, name: &str, after: u64, status: u16, body: &str) -> Self {
        let says = Says { after: Duration::from_millis(after), status, body: body.to_owned().into() };
        self.backends.says.borrow_mut().insert(name.into(), says);
        self
    }

    fn expression(&self, source: &str, wanted: Kind) -> Expression {
        let names: Arc<[Arc<str>]> = self.plan.calls.iter().map(|call| call.name.clone()).collect();
        let all = KnownCalls::new(names, 0..self.plan.calls.len());
        Expression::parse_among(source, &REQUEST, Some(&all), wanted).expect(source)
    }

    fn exchange(&self) -> Exchange {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut request = Request::default();
        *request.uri_mut() = "/home?q=a%2Fb".parse().expect("a URI");
        let headers = request.headers_mut();
        for (name, value) in [
            ("host", "shop.example"),
            ("authorization", "Bearer secret"),
            ("cookie", "session=secret"),
            ("accept-language", "de"),
            ("traceparent", "00-1-2-01"),
            ("x-tenant", "acme"),
            ("x-forwarded-for", "203.0.113.9"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Exchange::new(
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
            Arc::new(Labels { namespace: "shop".into(), route: "shop".into(), rule: "home".into() }),
            RequestId([7; 16]),
            Instant::now(),
            Rc::new(Nowhere),
        )
    }

    /// The answer as status, the calls that are missing, and body; or the status and reason of the failure.
    async fn run(&self) -> Result<(u16, String, String), (Option<u16>, &'static str)> {
        self.run_with(&mut self.exchange()).await
    }

    async fn run_with(
        &self,
        exchange: &mut Exchange,
    ) -> Result<(u16, String, String), (Option<u16>, &'static str)> {
        let response = answer(&self.plan, exchange, &*self.backends, &NoKeep)
            .await
            .map_err(|error| (error.status.map(|status| status.as_u16()), error.kind.as_str()))?;
        let partial = response.headers().get("portcullis-partial");
        let partial = partial.map_or("", |value| value.to_str().expect("names")).to_owned();
        let uncached = response.headers().get("cache-control").is_some_and(|value| value == "no-store");
        assert_eq!(uncached, !partial.is_empty(), "what is partial, and only that, is not kept");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(!response.headers().contains_key("x-secret"));
        let status = response.status().as_u16();
        let (body, _) = response.into_body().read(1 << 24).await.expect("a body");
        Ok((status, partial, String::from_utf8(body.to_vec()).expect("text")))
    }

    fn asked(&self) -> Vec<(String, u128)> {
        self.backends.asked.borrow().clone()
    }
}

fn value(text: &str) -> OnError {
    OnError::Value(Arc::new(RawJson::new(text.to_owned()).expect(text)))
}

#[tokio::test(start_paused = true)]
async fn calls_run_together_and_stand_in_the_order_of_the_plan() {
    let case = Case::new(&[
        ("slow", &[], "/slow", OnError::Fail),
        ("quick", &[], "/quick?q=${request.query.q}", OnError::Fail),
        ("middle", &[], "/middle", OnError::Fail),
    ]);
    let case = case.says("slow", 300, 200, " {\"id\": 12345678901234567890123, \"x\": 1.10} ");
    let case = case.says("quick", 10, 200, "[1e400,-0]\n").says("middle", 200, 201, "\"\\u00e4\"");
    let began = Instant::now();
    let expected = "{\"slow\":{\"id\": 12345678901234567890123, \"x\": 1.10},\"quick\":[1e400,-0],\"middle\":\"\\u00e4\"}";
    assert_eq!(case.run().await, Ok((200, String::new(), expected.to_owned())));
    assert_eq!(began.elapsed(), Duration::from_millis(300), "as long as the slowest");
    let expected = ["/slow", "/quick?q=a%2Fb", "/middle"].map(|target| (target.to_owned(), 0));
    assert_eq!(case.asked(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_call_begins_when_the_last_that_it_needs_is_over() {
    let case = Case::new(&[
        ("last", &[1, 2], "/last/${user.body.id}/${shop.body}", OnError::Fail),
        ("user", &[], "/user", OnError::Fail),
        ("shop", &[1], "/shop/${user.body.id}", OnError::Fail),
        ("other", &[], "/other", OnError::Fail),
    ]);
    let case = case.says("user", 20, 200, "{\"id\":\"a/b\"}").says("shop", 30, 200, "18446744073709551616");
    let case = case.says("last", 5, 200, "{}").says("other", 40, 200, "null");
    let began = Instant::now();
    let (_, _, body) = case.run().await.expect("an answer");
    assert_eq!(body, "{\"last\":{},\"user\":{\"id\":\"a/b\"},\"shop\":18446744073709551616,\"other\":null}");
    assert_eq!(began.elapsed(), Duration::from_millis(55), "the slowest path, and nothing else");
    let expected =
        [("/user", 0), ("/other", 0), ("/shop/a%2Fb", 20), ("/last/a%2Fb/18446744073709551616", 50)];
    assert_eq!(case.asked(), expected.map(|(target, at)| (target.to_owned(), at)));
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_a_required_call_is_the_answer_and_ends_the_others() {
    for (status, expected) in [
        (404, 404),
        (403, 403),
        (429, 429),
        (401, 502),
        (405, 502),
        (302, 502),
        (500, 502),
        (503, 503),
        (304, 502),
    ] {
        let case = Case::new(&[("user", &[], "/user", OnError::Fail), ("slow", &[], "/slow", OnError::Omit)]);
        let case = case.says("user", 5, status, "{\"stack\":\"secret\"}").says("slow", 60_000, 200, "1");
        let began = Instant::now();
        let mut exchange = case.exchange();
        assert_eq!(case.run_with(&mut exchange).await, Err((Some(expected), "CallFailed")), "{status}");
        assert_eq!(began.elapsed(), Duration::from_millis(5));
        assert_eq!(case.backends.under_way.get(), 0, "nothing runs on");
        let told: Vec<_> =
            outcomes(&case.plan, &exchange).map(|(name, outcome, _)| (&**name, outcome)).collect();
        assert_eq!(told, [("user", "CallFailed"), ("slow", CANCELLED)]);
    }
    let gone = Case::new(&[("gone", &[], "/gone", OnError::Fail)]);
    assert_eq!(gone.run().await, Err((None, "ConnectFailure")));
    let chosen = Case::new(&[("gone", &[], "/gone", OnError::Status(418))]);
    assert_eq!(chosen.run().await, Err((Some(418), "ConnectFailure")));
}

#[tokio::test(start_paused = true)]
async fn a_partial_answer_says_what_is_missing() {
    let mut case = Case::new(&[
        ("user", &[], "/user", OnError::Fail),
        ("orders", &[], "/orders", value("{\"items\":[]}")),
        ("ads", &[], "/ads", OnError::Omit),
    ])
    .says("user", 0, 200, "7")
    .says("orders", 0, 500, "oops");
    let expected = (200, "orders, ads".to_owned(), "{\"user\":7,\"orders\":{\"items\":[]}}".to_owned());
    assert_eq!(case.run().await, Ok(expected));
    case.plan.answer.body = BodyPlan::MembersAndErrors;
    let (_, _, body) = case.run().await.expect("an answer");
    assert_eq!(
        body,
        "{\"user\":7,\"orders\":{\"items\":[]},\"_errors\":[{\"call\":\"orders\",\"reason\":\"CallFailed\",\"status\":500},{\"call\":\"ads\",\"reason\":\"ConnectFailure\"}]}"
    );
    let case = case.says("orders", 0, 200, "[]").says("ads", 0, 200, "1");
    assert_eq!(case.run().await, Ok((200, String::new(), "{\"user\":7,\"orders\":[],\"ads\":1}".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_no_json_fail_the_call_and_empty_ones_are_null() {
    for (body, expected) in [
        ("", "{\"a\":null}"),
        (" \n", "{}"),
        ("<html>", "{}"),
        ("{\"a\":1}{", "{}"),
        ("1}, \"admin\": {", "{}"),
        ("\u{feff}1", "{}"),
        ("[1,[]]", "{\"a\":[1,[]]}"),
        ("{\"x\":1,\"x\":2}", "{\"a\":{\"x\":1,\"x\":2}}"),
        ("NaN", "{}"),
    ] {
        let case = Case::new(&[("a", &[], "/a", OnError::Omit)]).says("a", 0, 200, body);
        let (_, partial, answer) = case.run().await.expect("an answer");
        assert_eq!((answer.as_str(), partial.is_empty()), (expected, expected != "{}"), "{body:?}");
    }
    let case = Case::new(&[("a", &[], "/a", OnError::Fail)]).says("a", 0, 200, "nonsense");
    assert_eq!(case.run().await, Err((None, "InvalidResponse")));
    case.backends.says.borrow_mut().get_mut("a").expect("it is there").body = Bytes::from_static(b"\"\xff\"");
    assert_eq!(case.run().await, Err((None, "InvalidResponse")));
}

#[tokio::test(start_paused = true)]
async fn all_answers_together_are_bounded() {
    let half = format!("\"{}\"", "x".repeat(600 << 10));
    let case = Case::new(&[("a", &[], "/a", OnError::Fail), ("b", &[], "/b", OnError::Omit)]);
    let case = case.says("a", 0, 200, &half).says("b", 5, 200, "1");
    assert_eq!(case.run().await.expect("it fits").1, "", "the control");
    let case = case.says("b", 5, 200, &half);
    assert_eq!(case.run().await.expect("an answer").1, "b");
    let greedy = case.says("a", 0, 200, &"1".repeat(2 << 20)).says("b", 5, 200, "1");
    let Case { mut plan, backends } = greedy;
    plan.calls[0].on_error = OnError::Omit;
    let case = Case { plan, backends };
    assert_eq!(
        case.run().await,
        Ok((200, "a".to_owned(), "{\"b\":1}".to_owned())),
        "one that is too large alone"
    );
    let mut case = case.says("a", 0, 200, &"1".repeat((1 << 20) + 1));
    case.plan.calls[0].on_error = OnError::Fail;
    assert_eq!(case.run().await, Err((None, "InvalidResponse")));
}

#[tokio::test(start_paused = true)]
async fn a_call_has_its_own_time_and_all_have_one_end() {
    let mut case = Case::new(&[
        ("user", &[], "/user", OnError::Fail),
        ("orders", &[], "/orders", value("[]")),
        ("late", &[1], "/late", OnError::Omit),
    ])
    .says("user", 50, 200, "1")
    .says("orders", 60_000, 200, "1")
    .says("late", 60_000, 200, "1");
    case.plan.calls[1].timeout = Some(Duration::from_millis(300));
    let began = Instant::now();
    let mut exchange = case.exchange();
    exchange.deadline = Some(Instant::now() + Duration::from_millis(500));
    assert_eq!(
        case.run_with(&mut exchange).await,
        Ok((200, "orders, late".to_owned(), "{\"user\":1,\"orders\":[]}".to_owned()))
    );
    assert_eq!(began.elapsed(), Duration::from_millis(500));
    let told: Vec<_> = outcomes(&case.plan, &exchange).map(|(_, outcome, _)| outcome).collect();
    assert_eq!(told, ["ok", "BackendTimeout", "BackendTimeout"]);
    let case = case.says("user", 60_000, 200, "1");
    let mut exchange = case.exchange();
    exchange.deadline = Some(Instant::now() + Duration::from_millis(100));
    assert_eq!(case.run_with(&mut exchange).await, Err((None, "BackendTimeout")));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_all_calls_along() {
    let case = Case::new(&[("a", &[], "/a", OnError::Fail), ("b", &[], "/b", OnError::Omit)]);
    let case = case.says("a", 60_000, 200, "1").says("b", 60_000, 200, "1");
    let left = tokio::time::timeout(Duration::from_millis(1), case.run()).await;
    assert!(left.is_err() && case.asked().len() == 2, "the control: both were asked");
    assert_eq!(case.backends.under_way.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_condition_skips_a_call_without_making_the_answer_partial() {
    let mut case = Case::new(&[
        ("user", &[], "/user", OnError::Fail),
        ("address", &[0], "/address/${user.body.at}", OnError::Fail),
        ("ads", &[1], "/ads", OnError::Omit),
    ])
    .says("user", 0, 200, "{}")
    .says("address", 0, 200, "1");
    case.plan.calls[1].when = Some(case.expression("has(user.body.at)", Kind::BOOL));
    // Nothing came of what it reads: it fails.
    case.plan.calls[2].when = Some(case.expression("address.status == 200", Kind::BOOL));
    assert_eq!(case.run().await, Ok((200, "ads".to_owned(), "{\"user\":{}}".to_owned())));
    let case = case.says("user", 0, 200, "{\"at\":5}").says("ads", 0, 200, "2");
    assert_eq!(case.run().await.expect("an answer").2, "{\"user\":{\"at\":5},\"address\":1,\"ads\":2}");
    assert_eq!(case.asked().last().map(|asked| asked.0.as_str()), Some("/ads"));
}

#[tokio::test(start_paused = true)]
async fn values_never_change_the_form_of_a_target() {
    for (id, expected) in [
        ("\"a/b?c#d\"", Ok("/user/a%2Fb%3Fc%23d")),
        ("\"..\"", Err((None, "CallFailed"))),
        ("\"../admin\"", Err((None, "CallFailed"))),
        ("\"\"", Err((None, "CallFailed"))),
        ("\"a\\r\\nb\"", Err((None, "CallFailed"))),
        ("[1]", Err((None, "CallFailed"))),
        ("9223372036854775808", Ok("/user/9223372036854775808")),
        ("1.10", Ok("/user/1.10")),
        ("\"\\ud800\"", Err((None, "CallFailed"))),
    ] {
        let case = Case::new(&[
            ("who", &[], "/who", OnError::Fail),
            ("user", &[0], "/user/${who.body}", OnError::Fail),
        ]);
        let case = case.says("who", 0, 200, id).says("user", 0, 200, "1");
        let outcome = case.run().await;
        match expected {
            Ok(target) => assert_eq!(case.asked()[1].0, target, "{id}"),
            Err(failure) => assert_eq!(outcome, Err(failure), "{id}"),
        }
    }
    let case = Case::new(&[("user", &[], "/user/${request.query.nothing}", OnError::Fail)]);
    assert_eq!(case.run().await, Err((None, "ExpressionFailed")), "of the client's request alone");
}

#[tokio::test(start_paused = true)]
async fn a_body_is_sent_as_json_of_what_came_before() {
    let mut case =
        Case::new(&[("user", &[], "/user", OnError::Fail), ("save", &[0], "/save", OnError::Fail)]);
    case = case.says("user", 0, 200, "{\"id\":1.10}").says("save", 0, 204, "");
    case.plan.calls[1].method = method("POST", None);
    case.plan.calls[1].body = Some(case.expression("{'of': user.body.id, 'by': request.host}", Kind::ANY));
    assert_eq!(case.run().await.expect("an answer").2, "{\"user\":{\"id\":1.10},\"save\":null}");
    assert_eq!(*case.backends.bodies.borrow(), ["{\"of\":1.10,\"by\":\"shop.example\"}"]);
}

#[tokio::test(start_paused = true)]
async fn a_method_is_what_came_before_says_or_costs_its_call() {
    let body = "{\"x\":1}";
    for (said, expected) in [
        ("\"POST\"", Some(("POST", Some(body)))),
        ("\"DELETE\"", Some(("DELETE", Some(body)))),
        ("\"BASELINE-CONTROL\"", Some(("BASELINE-CONTROL", Some(body)))),
        // A body of these means nothing.
        ("\"GET\"", Some(("GET", None))),
        ("\"HEAD\"", Some(("HEAD", None))),
        ("\"TRACE\"", None),
        ("\"CONNECT\"", None),
        ("\"\"", None),
        ("\"GET /admin\"", None),
        ("\"GET\\r\\n\"", None),
        ("{}", None),
    ] {
        let mut case =
            Case::new(&[("how", &[], "/how", OnError::Fail), ("save", &[0], "/save", value("\"kept\""))]);
        case = case.says("how", 0, 200, said).says("save", 0, 200, "1");
        let known = KnownCalls::new(["how".into(), "save".into()].into(), [0]);
        case.plan.calls[1].method = method("${how.body}", Some(&known));
        case.plan.calls[1].body = Some(case.expression("{'x': 1}", Kind::ANY));
        let mut exchange = case.exchange();
        let (_, partial, answer) = case.run_with(&mut exchange).await.expect("an answer");
        let failed = outcomes(&case.plan, &exchange).map(|(_, outcome, _)| outcome).nth(1);
        let (methods, bodies) = (case.backends.methods.borrow(), case.backends.bodies.borrow());
        assert_eq!(
            methods.get(1).map(|method| (method.as_str(), bodies.first().map(String::as_str))),
            expected,
            "{said}"
        );
        let outcome = match expected {
            Some(_) => ("ok", "", format!("{{\"how\":{said},\"save\":1}}")),
            None => ("CallFailed", "save", format!("{{\"how\":{said},\"save\":\"kept\"}}")),
        };
        assert_eq!((failed, partial.as_str(), answer), (Some(outcome.0), outcome.1, outcome.2), "{said}");
    }
    let mut case = Case::new(&[("user", &[], "/user", OnError::Fail)]).says("user", 0, 200, "1");
    case.plan.calls[0].method = method("${request.query.nothing}", None);
    assert_eq!(case.run().await, Err((None, "ExpressionFailed")), "of the client's request alone");
}

#[tokio::test(start_paused = true)]
async fn the_answer_is_what_its_expressions_say() {
    let mut case = Case::new(&[
        ("user", &[], "/user", OnError::Fail),
        ("orders", &[], "/orders", value("{\"items\":[]}")),
    ])
    .says("user", 0, 200, "{\"n\":1.50,\"secret\":1}");
    case.plan.answer.body = BodyPlan::Expression(
        case.expression("{'total': user.body.n, 'recent': orders.body.items, 'whole': orders.ok}", Kind::ANY),
    );
    case.plan.answer.status = Some(case.expression("orders.ok ? 200 : 206", Kind::INT));
    let body = "{\"total\":1.50,\"recent\":[],\"whole\":false}";
    assert_eq!(case.run().await, Ok((206, "orders".to_owned(), body.to_owned())));
    for (status, body) in
        [("99", "1"), ("600", "1"), ("user.body.n > 0 ? 200 : 201", "1"), ("200", "user.body.gone")]
    {
        case.plan.answer.status = Some(case.expression(status, Kind::INT));
        case.plan.answer.body = BodyPlan::Expression(case.expression(body, Kind::ANY));
        assert_eq!(case.run().await, Err((None, "TransformFailed")), "{status} {body}");
    }
}

#[tokio::test]
async fn fields_pass_only_where_it_is_said() {
    let mut case = Case::new(&[("user", &[], "/user", OnError::Fail)]);
    let names = |case: &Case| {
        let Begun::Request(request) = ask::begin(&case.plan.calls[0], &case.exchange()).expect("a request")
        else {
            panic!("skipped")
        };
        let told = request.headers().iter();
        let mut told: Vec<_> =
            told.map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        told.sort();
        told
    };
    let usual = [
        "accept-language: de",
        "accept: application/json",
        "host: shop.example",
        "traceparent: 00-1-2-01",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: shop.example",
        "x-forwarded-proto: https",
        "x-request-id: 07070707070707070707070707070707",
    ];
    assert_eq!(names(&case), usual);
    case.plan.calls[0].pass = [http::header::AUTHORIZATION, http::HeaderName::from_static("x-tenant")].into();
    let passed = names(&case);
    assert!(
        passed.contains(&"authorization: Bearer secret".into()) && passed.contains(&"x-tenant: acme".into())
    );
    assert!(!passed.iter().any(|field| field.starts_with("cookie")));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_none() {
    let frames =
        [Ok(http_body::Frame::data(Bytes::from_static(b"[1]"))), Err(BodyError::Other("for the test"))];
    let body = Body::stream(http_body_util::StreamBody::new(futures_util::stream::iter(frames)));
    let room = Room::new(&NoKeep, 1);
    let failure = hear::hear(Response::new(body), &room).await.expect_err("it broke off");
    assert_eq!(failure.error.kind, ErrorKind::InvalidResponse);
    let whole = [Ok::<_, BodyError>(http_body::Frame::data(Bytes::from_static(b"[1")))]
        .into_iter()
        .chain([Ok(http_body::Frame::data(Bytes::from_static(b"]")))]);
    let body = Body::stream(http_body_util::StreamBody::new(futures_util::stream::iter(whole)));
    let heard = hear::hear(Response::new(body), &room).await.expect("the control: whole");
    assert_eq!(heard.body.as_str(), "[1]");
}
