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
        ("response", json!({"status": 200}), ""),
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
