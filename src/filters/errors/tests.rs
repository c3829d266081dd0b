//! The filter as a whole.

use std::cell::RefCell;
use std::rc::Rc;

use http::HeaderName;
use serde_json::{Value, json};

use super::*;
use crate::filters::contract_tests::{FakeOutbound, exchange};
use crate::filters::{NoScope, run};
use crate::message::{Body, ProxyError};

fn compile(spec: Value) -> Result<Plan, Vec<Problem>> {
    Errors::compile(serde_json::from_value(spec).expect("a spec"), &mut NoScope)
}

/// As the proxy makes it.
fn failure(error: &ProxyError) -> Response {
    let mut response = Response::new(Body::from("{\"reason\":\"as it was\"}"));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response.headers_mut().insert("x-told", HeaderValue::from_static("by the gateway"));
    response.extensions_mut().insert(error.kind);
    response
}

/// A backend's answer with things of its own in it.
fn answer(status: u16) -> Response {
    let mut response = Response::new(Body::from("java.lang.NullPointerException at 10.0.0.7"));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    for (name, value) in [
        ("content-type", "text/plain"),
        ("x-powered-by", "own"),
        ("retry-after", "7"),
        ("content-encoding", "gzip"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Status, fields, body.
async fn told(spec: Value, accept: &'static str, failed: Response) -> (u16, Vec<String>, String) {
    let filters: [Arc<dyn Filter>; 1] = [Arc::new(compile(spec).expect("valid"))];
    let mut exchange = exchange("/a%3Cb%3E?q=1", 0, Rc::new(FakeOutbound::default()));
    exchange.request.headers_mut().insert("accept", HeaderValue::from_static(accept));
    let failed = RefCell::new(Some(failed));
    let action = async |exchange: &mut Exchange| {
        exchange.request = Default::default();
        failed.take().expect("asked once")
    };
    let response = run(&filters, &mut exchange, failure, action).await;
    let mut fields: Vec<_> = response.headers().keys().map(HeaderName::to_string).collect();
    fields.sort();
    let status = response.status().as_u16();
    let (bytes, _) = response.into_body().read(1 << 20).await.expect("small");
    (status, fields, String::from_utf8(bytes.into()).expect("text"))
}

fn of(kind: ErrorKind) -> Response {
    failure(&kind.into())
}

#[tokio::test]
async fn any_failure_is_one_answer_in_two_lines() {
    let plain = json!([{"status": 500, "contentType": "text/plain", "text": "Internal Server Error"}]);
    for failed in [of(ErrorKind::ConnectFailure), answer(500), answer(503)] {
        let (status, _, body) = told(plain.clone(), "*/*", failed).await;
        assert_eq!((status, body.as_str()), (500, "Internal Server Error"));
    }
    for fine in [200, 304, 404] {
        let (status, _, body) = told(plain.clone(), "*/*", answer(fine)).await;
        assert!(status == fine && body.contains("java"), "{fine}");
    }
}

#[tokio::test]
async fn nothing_of_a_backends_answer_is_in_the_one_in_its_place() {
    let spec = json!([{"on": ["5xx"], "text": "sorry"}]);
    let (status, fields, body) = told(spec, "text/plain", answer(503)).await;
    assert_eq!((status, body.as_str()), (503, "sorry"));
    assert_eq!(fields, ["cache-control", "content-type", "retry-after"]);
}

#[tokio::test]
async fn without_a_type_each_client_gets_its_own() {
    let spec = json!([{"on": ["Reset"], "status": 503, "text": "a <b> \"c\""}]);
    let (_, _, problem) = told(spec.clone(), "application/json", of(ErrorKind::Reset)).await;
    let problem: Value = serde_json::from_str(&problem).expect("JSON");
    assert_eq!(
        problem,
        json!({
            "type": "about:blank", "title": "a <b> \"c\"", "status": 503, "reason": "Reset",
            "request_id": "00000000000000000000000000000000",
        })
    );
    let (_, _, page) = told(spec.clone(), "text/html", of(ErrorKind::Reset)).await;
    assert!(page.contains("<h1>503 a &lt;b&gt; &quot;c&quot;</h1>"), "{page}");
    let (_, _, text) = told(spec, "text/plain", of(ErrorKind::Reset)).await;
    assert_eq!(text, "a <b> \"c\"");
}

#[tokio::test]
async fn values_are_escaped_for_where_they_stand() {
    let text = "${error.origin} ${error.status} ${error.reason} ${request.method} ${path.x} ${request.id}";
    for (media, expected) in [
        ("text/html; charset=utf-8", "&lt;i&gt;&quot;"),
        ("application/json", "<i>\\\""),
        ("application/problem+json", "<i>\\\""),
        ("text/plain", "<i>\""),
    ] {
        let spec = json!([{"on": ["Reset"], "contentType": media, "text": text}]);
        let filters: [Arc<dyn Filter>; 1] = [Arc::new(compile(spec).expect("valid"))];
        let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
        exchange.captures.0.push(("x".into(), "%3Ci%3E%22%00".into()));
        let response =
            run(&filters, &mut exchange, failure, async |_: &mut Exchange| of(ErrorKind::Reset)).await;
        let (bytes, _) = response.into_body().read(1 << 20).await.expect("small");
        let told = String::from_utf8(bytes.into()).expect("text");
        // A control character is one in JSON's own words, and nothing elsewhere.
        let control = if media.contains("json") { "\\u0000" } else { "" };
        let id = "00000000000000000000000000000000";
        assert_eq!(told, format!("Gateway 502 Reset GET {expected}{control} {id}"), "{media}");
    }
}

#[tokio::test]
async fn what_cannot_be_filled_in_is_a_problem_document() {
    let spec =
        json!([{"on": ["Reset"], "status": 500, "contentType": "text/plain", "text": "${path.nothing}"}]);
    let (status, _, body) = told(spec, "*/*", of(ErrorKind::Reset)).await;
    let problem: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (status, &problem["title"], &problem["reason"]),
        (500, &json!("Internal Server Error"), &json!("Reset"))
    );
}

#[tokio::test]
async fn a_body_is_what_its_expression_gives() {
    let body = "{'code': error.status, 'what': error.reason, 'from': request.path, 'ids': [request.id, 1.5]}";
    for (given, media) in
        [(None, "application/json"), (Some("application/vnd.x+json"), "application/vnd.x+json")]
    {
        let mut spec = json!([{"on": ["Reset"], "status": 503, "body": body}]);
        if let Some(given) = given {
            spec[0]["contentType"] = given.into();
        }
        let filters: [Arc<dyn Filter>; 1] = [Arc::new(compile(spec).expect("valid"))];
        let mut exchange = exchange("/a\"b", 0, Rc::new(FakeOutbound::default()));
        let response =
            run(&filters, &mut exchange, failure, async |_: &mut Exchange| of(ErrorKind::Reset)).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (503, &media.parse().expect("a value"))
        );
        let (bytes, _) = response.into_body().read(1 << 20).await.expect("small");
        let told: Value = serde_json::from_slice(&bytes).expect("JSON");
        let id = "00000000000000000000000000000000";
        assert_eq!(told, json!({"code": 502, "what": "Reset", "from": "/a\"b", "ids": [id, 1.5]}));
    }
    let (status, _, told) =
        told(json!([{"body": "{'a': identity.claims.nothing}"}]), "*/*", answer(503)).await;
    let problem: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((status, &problem["title"]), (503, &json!("Service Unavailable")));
}

#[tokio::test]
async fn fields_tell_of_the_failure_and_one_without_a_value_is_left_out() {
    let spec = json!([{"headers": {
        "set": [{"name": "x-was", "value": "${error.status} ${error.origin}"}, {"name": "x-powered-by", "value": "${path.nothing}"}],
        "add": [{"name": "x-id", "value": "${request.id}"}],
    }}]);
    let filters: [Arc<dyn Filter>; 1] = [Arc::new(compile(spec).expect("valid"))];
    let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
    let response = run(&filters, &mut exchange, failure, async |_: &mut Exchange| answer(503)).await;
    let field = |name: &str| response.headers().get(name).map(|value| value.to_str().expect("ASCII"));
    assert_eq!(field("x-was"), Some("503 Backend"));
    assert_eq!(field("x-id"), Some("00000000000000000000000000000000"));
    assert_eq!(field("x-powered-by"), None);
}

#[tokio::test]
async fn the_first_entry_that_fits_decides() {
    let spec = json!([
        {"on": ["503"], "origin": "Backend", "contentType": "text/plain", "text": "theirs"},
        {"on": ["Timeout", "Reset"], "contentType": "text/plain", "text": "ours"},
        {"on": ["4xx", "502-504"], "contentType": "text/plain", "text": "rest"},
    ]);
    for (failed, text) in [
        (answer(503), "theirs"),
        (of(ErrorKind::Reset), "ours"),
        (of(ErrorKind::ConnectFailure), "rest"),
        (answer(404), "rest"),
    ] {
        assert_eq!(told(spec.clone(), "*/*", failed).await.2, text);
    }
    assert!(told(spec, "*/*", answer(500)).await.2.contains("java"), "nothing fits");
    let ours = json!([{"origin": "Gateway", "contentType": "text/plain", "text": "ours"}]);
    assert_eq!(told(ours.clone(), "*/*", of(ErrorKind::ConnectFailure)).await.2, "ours");
    assert!(told(ours, "*/*", answer(503)).await.2.contains("java"), "the backend's own goes on");
}

#[tokio::test]
async fn another_status_alone_keeps_the_reason_and_fields_alone_the_body() {
    let (status, fields, body) =
        told(json!([{"on": ["Reset"], "status": 503}]), "*/*", of(ErrorKind::Reset)).await;
    let problem: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &problem["status"], &problem["reason"]), (503, &json!(503), &json!("Reset")));
    assert!(fields.contains(&"x-told".to_owned()));
    let edits = json!([{"headers": {"set": [{"name": "x-own", "value": "1"}], "remove": ["x-powered-by"]}}]);
    let (status, fields, body) = told(edits, "*/*", answer(500)).await;
    assert!(status == 500 && body.contains("java"));
    assert_eq!(fields, ["content-encoding", "content-type", "retry-after", "x-own"]);
}

#[tokio::test]
async fn what_stands_in_the_route_is_no_failure() {
    let filters: [Arc<dyn Filter>; 1] = [Arc::new(compile(json!([{"text": "x"}])).expect("valid"))];
    let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
    let action = async |exchange: &mut Exchange| {
        exchange.fixed_answer = true;
        answer(503)
    };
    let response = run(&filters, &mut exchange, failure, action).await;
    assert!(response.headers().contains_key("x-powered-by"));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (entry, path) in [
        (json!({"on": ["Everything"], "text": "x"}), "[0].on[0]"),
        (json!({"on": ["2xx"], "text": "x"}), "[0].on[0]"),
        (json!({"status": 199, "text": "x"}), "[0].status"),
        (json!({"status": 600, "text": "x"}), "[0].status"),
        (json!({"contentType": "text/plain"}), "[0].contentType"),
        (json!({"text": "x".repeat(MAX_TEXT + 1)}), "[0].text"),
        (json!({"text": "x", "body": "'x'"}), "[0].body"),
        (json!({"contentType": "text/html", "body": "'x'"}), "[0].contentType"),
        (
            json!({"headers": {"set": [{"name": "x-a", "value": "${request.id}\n"}]}}),
            "[0].headers.set[0].value",
        ),
        (json!({"headers": {"set": [{"name": "content-length", "value": "1"}]}}), "[0].headers.set[0].name"),
    ] {
        let problems = compile(json!([entry.clone()])).expect_err("refused");
        assert!(problems.iter().any(|problem| problem.to_string().contains(path)), "{entry}: {problems:?}");
    }
    assert!(compile(json!([])).is_err());
}
