//! Tests of `request` and `response` on an exchange, from their specs to what goes to the backend.

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};

use super::contract::{Filter, Ring, Row};
use super::contract_tests::{FakeOutbound, NoKeep, NoScope, exchange, fail};
use super::{REGISTRY, run};
use crate::message::{ErrorKind, Exchange, Response};
use crate::values::Problem;

fn row(name: &str) -> &'static Row {
    REGISTRY.iter().find(|row| row.name == name).expect("a row")
}

fn linked(name: &str, spec: &Value) -> Result<Arc<dyn Filter>, Vec<Problem>> {
    let row = row(name);
    let plan = (row.compile)(spec, &mut NoScope)?;
    Ok(row.link.expect("a filter")(&plan, &NoKeep))
}

/// What the backend is asked, and under which host.
async fn asked(spec: Value, uri: &str, matched: usize) -> (String, Option<String>) {
    let filters = [linked("request", &spec).expect("valid")];
    let mut exchange = exchange(uri, matched, Rc::new(FakeOutbound::default()));
    run(&filters, &mut exchange, fail, async |_: &mut Exchange| Response::default()).await;
    let host = exchange.host_override.map(|host| host.to_str().expect("ASCII").to_owned());
    (exchange.request.uri().to_string(), host)
}

#[test]
fn transforms_work_in_the_innermost_ring() {
    assert_eq!((row("request").ring, row("response").ring), (Some(Ring::Transform), Some(Ring::Transform)));
}

#[tokio::test]
async fn a_prefix_is_replaced_and_the_rest_stays() {
    for (uri, matched, replacement, expected) in [
        ("/pay/a?x=1", 4, "/v1/charges", "/v1/charges/a?x=1"),
        ("/pay?x=%2f", 4, "/v1", "/v1?x=%2f"),
        ("/pay/", 4, "/", "/"),
        ("/pay//a", 4, "/", "/a"),
        ("/a", 0, "/v1", "/v1/a"),
        ("/a%20b/%C3%A4", 6, "/v1", "/v1/%C3%A4"),
        ("https://shop.example/pay/a", 4, "/v1", "https://shop.example/v1/a"),
    ] {
        let spec = json!({"path": {"replacePrefix": replacement}});
        assert_eq!(asked(spec, uri, matched).await.0, expected, "{uri}");
    }
}

#[tokio::test]
async fn path_query_and_host_are_changed_together() {
    let spec = json!({
        "path": {"replaceFull": "/new"}, "host": "a.example",
        "query": {"set": [{"name": "a", "value": "ä"}], "remove": ["b"]},
    });
    let (uri, host) = asked(spec, "/old?b=1&c=2", 0).await;
    assert_eq!((uri.as_str(), host.as_deref()), ("/new?c=2&a=%C3%A4", Some("a.example")));
}

#[tokio::test]
async fn a_query_that_loses_everything_is_gone() {
    assert_eq!(asked(json!({"query": {"remove": ["a"]}}), "/x?a=1", 0).await.0, "/x");
}

#[test]
fn what_cannot_be_done_is_policy_invalid_where_it_stands() {
    for (member, spec, path) in [
        ("request", json!({"path": {}}), "path"),
        ("request", json!({"path": {"replacePrefix": "/a", "replaceFull": "/b"}}), "path"),
        ("request", json!({"path": {"replaceFull": "/a/../b"}}), "path"),
        ("request", json!({"host": "a b"}), "host"),
        ("request", json!({"host": "*.a.example"}), "host"),
        ("request", json!({"headers": {"set": [{"name": "Host", "value": "a"}]}}), "headers.set[0].name"),
        ("response", json!({"headers": {"remove": ["connection"]}}), "headers.remove[0]"),
        ("response", json!({"status": 304}), "status"),
        ("response", json!({"status": 199}), "status"),
        ("response", json!({"bodyPatch": {}}), "bodyPatch"),
        ("request", json!({"bodyPatch": {"remove": ["a"]}}), "bodyPatch.remove[0]"),
        ("request", json!({"body": "1", "bodyPatch": {"remove": ["/a"]}}), "body"),
        ("response", json!({"body": "1", "bodyPatch": {"remove": ["/a"]}}), "body"),
        ("request", json!({"headers": {"rename": [{"from": "Host", "to": "x"}]}}), "headers.rename[0].from"),
        (
            "response",
            json!({"headers": {"rename": [{"from": "x", "to": "content-length"}]}}),
            "headers.rename[0].to",
        ),
        (
            "request",
            json!({"headers": {"rename": [{"from": "a", "to": "b"}], "set": [{"name": "B", "value": "1"}]}}),
            "headers.set[0].name",
        ),
    ] {
        let problems = linked(member, &spec).err().expect("refused");
        assert_eq!(problems[0].path.as_str(), path, "{spec}");
    }
}

#[tokio::test]
async fn only_a_backends_answer_is_changed() {
    let spec = json!({"headers": {"remove": ["Server"], "set": [{"name": "X-A", "value": "1"}]}});
    let filters = [linked("response", &spec).expect("valid")];
    for (ours, expected) in [(None, (true, false)), (Some(ErrorKind::ConnectFailure), (false, true))] {
        let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
        let response = run(&filters, &mut exchange, fail, async |_: &mut Exchange| {
            let mut response = Response::default();
            response.headers_mut().insert("server", http::HeaderValue::from_static("b"));
            response.extensions_mut().extend(
                ours.map(|kind| {
                    let mut extensions = http::Extensions::new();
                    extensions.insert(kind);
                    extensions
                })
                .unwrap_or_default(),
            );
            response
        })
        .await;
        let headers = response.headers();
        assert_eq!((headers.contains_key("x-a"), headers.contains_key("server")), expected);
    }
}

/// What becomes of a request with these header fields; `Err` is what is answered in the backend's place.
async fn changed(
    spec: Value,
    uri: &str,
    fields: &[(&'static str, &'static str)],
) -> Result<Exchange, ErrorKind> {
    let filters = [linked("request", &spec).expect("valid")];
    let mut exchange = exchange(uri, 0, Rc::new(FakeOutbound::default()));
    for (name, value) in fields {
        exchange.request.headers_mut().append(*name, http::HeaderValue::from_static(value));
    }
    let mut was_sent = false;
    let response = run(&filters, &mut exchange, fail, async |_: &mut Exchange| {
        was_sent = true;
        Response::default()
    })
    .await;
    match response.extensions().get::<ErrorKind>() {
        Some(kind) if !was_sent => Err(*kind),
        _ => Ok(exchange),
    }
}

#[tokio::test]
async fn expressions_see_the_request_as_it_came() {
    let spec = json!({
        "headers": {"set": [{"name": "X-Path", "value": "${request.path}"}, {"name": "X-B", "value": "${request.headers['x-a']}"}],
            "add": [{"name": "X-C", "value": "costs $${5}"}], "remove": ["X-A"]},
        "path": {"template": "/t/${request.headers['x-a']}"},
        "query": {"set": [{"name": "a", "value": "${request.query['a']}&${request.path}"}], "add": [{"name": "b", "value": "1"}]},
    });
    let asked = changed(spec, "/old?a=1%202&c=3", &[("x-a", "x y")]).await.expect("it is sent");
    assert_eq!(asked.request.uri().to_string(), "/t/x%20y?c=3&a=1%202%26%2Fold&b=1");
    let field =
        |name: &str| asked.request.headers().get(name).map(|value| value.to_str().expect("ASCII").to_owned());
    assert_eq!(
        ["x-path", "x-a", "x-b", "x-c"].map(field),
        [Some("/old".into()), None, Some("x y".into()), Some("costs ${5}".into())]
    );
}

#[tokio::test]
async fn what_cannot_be_filled_in_is_400_and_nothing_is_sent() {
    for spec in [
        json!({"headers": {"set": [{"name": "X-B", "value": "${request.headers['nosuch']}"}]}}),
        json!({"headers": {"add": [{"name": "X-B", "value": "${request.query['a']}"}]}}),
        json!({"path": {"template": "/${request.headers['nosuch']}"}}),
        json!({"path": {"template": "/a/${request.headers['x-a']}"}}),
        json!({"query": {"set": [{"name": "a", "value": "${request.headers['nosuch']}"}]}}),
    ] {
        let failed = changed(spec.clone(), "/?a=b%0d%0aSet-Cookie:c", &[("x-a", "..")]).await;
        assert_eq!(
            failed.map(|asked| asked.request.uri().to_string()),
            Err(ErrorKind::ExpressionFailed),
            "{spec}"
        );
    }
}

#[test]
fn templates_are_checked_where_they_stand() {
    for (member, spec, path) in [
        ("request", json!({"path": {"template": "/a", "replaceFull": "/b"}}), "path"),
        ("request", json!({"path": {"template": "/a/../${path.id}"}}), "path.template"),
        ("request", json!({"host": "${request.host}"}), "host"),
        (
            "response",
            json!({"headers": {"set": [{"name": "a", "value": "${identity.id}\n"}]}}),
            "headers.set[0].value",
        ),
    ] {
        let problems = linked(member, &spec).err().expect("refused");
        assert_eq!(problems[0].path.as_str(), path, "{spec}");
    }
    for value in ["$${x}", "${response.status} for ${identity.id} at ${request.path}"] {
        assert!(linked("response", &json!({"headers": {"set": [{"name": "a", "value": value}]}})).is_ok());
    }
}
