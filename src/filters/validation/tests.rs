//! Tests of `validation`, on a filter by itself.

use std::rc::Rc;

use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};

use super::*;
use crate::filters::NoScope;
use crate::filters::contract_tests::{FakeOutbound, NoKeep, exchange};

fn compile(spec: Value) -> Result<Plan, Vec<Problem>> {
    Validation::compile(serde_json::from_value(spec).expect("a spec"), &mut NoScope)
}

fn asked(uri: &str, fields: &[(&str, &str)], body: Body) -> Exchange {
    let mut exchange = exchange(uri, 1, Rc::new(FakeOutbound::default()));
    for (name, value) in fields {
        let name: HeaderName = name.parse().expect("a name");
        exchange.request.headers_mut().append(name, value.parse().expect("a value"));
    }
    *exchange.request.body_mut() = body;
    exchange
}

fn chunks(chunks: &[&'static str]) -> Body {
    let frames: Vec<_> = chunks
        .iter()
        .map(|chunk| Ok::<_, BodyError>(Frame::data(Bytes::from_static(chunk.as_bytes()))))
        .collect();
    Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
}

/// `Ok`: it may go on.
fn judged(plan: &Plan, exchange: &mut Exchange) -> Result<(), ProxyError> {
    match Validation::link(plan, &NoKeep).request(exchange) {
        Decision::Continue => Ok(()),
        Decision::Fail(error) => Err(*error),
        _ => panic!("it neither answers nor waits"),
    }
}

fn violations(spec: Value, uri: &str, fields: &[(&str, &str)]) -> Vec<String> {
    let plan = compile(spec).expect("valid");
    let Err(error) = judged(&plan, &mut asked(uri, fields, Body::Empty)) else { return Vec::new() };
    assert_eq!(error.kind, ErrorKind::ValidationFailed);
    error.violations.iter().map(|one| format!("{} {}", one.pointer, one.message)).collect()
}

#[tokio::test]
async fn a_body_is_counted_as_it_passes_and_never_held() {
    let plan = compile(json!({"maxBodySize": "5"})).expect("valid");
    let announced = judged(&plan, &mut asked("/", &[], Body::from("123456"))).expect_err("too large");
    assert_eq!(announced.kind, ErrorKind::BodyTooLarge);

    let mut fits = asked("/", &[], chunks(&["123", "45"]));
    judged(&plan, &mut fits).expect("it may go on");
    let body = std::mem::take(fits.request.body_mut());
    assert_eq!(&body.collect().await.expect("whole").to_bytes()[..], b"12345");
    assert_eq!(fits.body_failure.expect("counted").get(), None);

    let mut large = asked("/", &[], chunks(&["123", "456", "789"]));
    judged(&plan, &mut large).expect("nobody knows yet");
    let mut body = std::mem::take(large.request.body_mut());
    assert!(body.frame().await.expect("a frame").is_ok(), "what fits goes on at once");
    assert!(matches!(body.frame().await, Some(Err(BodyError::TooLarge { limit: 5 }))));
    assert_eq!(large.body_failure.expect("counted").get(), Some(ErrorKind::BodyTooLarge));
}

#[test]
fn without_a_body_nothing_is_asked_of_it() {
    let plan = compile(json!({"maxBodySize": "0", "contentTypes": ["application/json"]})).expect("valid");
    let mut exchange = asked("/", &[], Body::Empty);
    judged(&plan, &mut exchange).expect("it may go on");
    assert!(exchange.body_failure.is_none(), "nothing is counted");
}

#[test]
fn media_types_are_said_once_and_compared_without_their_parameters() {
    let plan = compile(json!({"contentTypes": ["application/json", "image/*"]})).expect("valid");
    for (fields, passes) in [
        (&[("content-type", "application/json")][..], true),
        (&[("content-type", "Application/JSON; charset=utf-8")], true),
        (&[("content-type", "image/png")], true),
        (&[("content-type", "application/jsonx")], false),
        (&[("content-type", "text/plain")], false),
        (&[("content-type", "imagepng")], false),
        (&[("content-type", "text/plain, application/json")], false),
        (&[("content-type", "application/json"), ("content-type", "text/plain")], false),
        (&[], false),
    ] {
        let result = judged(&plan, &mut asked("/", fields, Body::from("{}")));
        assert_eq!(result.is_ok(), passes, "{fields:?}");
        if let Err(error) = result {
            assert_eq!(error.kind, ErrorKind::UnsupportedMediaType);
            assert_eq!(error.headers, [(ACCEPT, HeaderValue::from_static("application/json, image/*"))]);
        }
    }
}

#[test]
fn each_occurrence_of_a_parameter_counts_in_any_spelling() {
    let page =
        json!({"queryParams": [{"name": "page", "schema": {"type": "integer", "minimum": 1, "maximum": 9}}]});
    for (query, expected) in [
        ("", None),
        ("?page=1", None),
        ("?page=9&other=x", None),
        ("?page=0", Some("/query/page is less than 1")),
        ("?page=10", Some("/query/page is greater than 9")),
        ("?page=1&page=x", Some("/query/page is not an integer")),
        ("?p%61ge=x", Some("/query/page is not an integer")),
        ("?page=%31", None),
        ("?page=+1", Some("/query/page is not an integer")),
        ("?page=01", Some("/query/page is not an integer")),
        ("?page=1.0", Some("/query/page is not an integer")),
        ("?page", Some("/query/page is not an integer")),
        ("?page=%ff", Some("/query/page is not UTF-8")),
    ] {
        let found = violations(page.clone(), &format!("/{query}"), &[]);
        assert_eq!(found, Vec::from_iter(expected.map(str::to_owned)), "{query}");
    }
}

#[test]
fn every_word_of_a_schema_is_checked() {
    let of = |schema: Value, value: &str| {
        let spec = json!({"headers": [{"name": "X-A", "schema": schema}]});
        violations(spec, "/", &[("x-a", value)]).first().map(|one| one.replace("/headers/X-A ", ""))
    };
    for (schema, good, bad, message) in [
        (json!({"type": "boolean"}), "true", "True", "is not true or false"),
        (json!({"type": "number", "minimum": -1}), "-0.5", "-1.5", "is less than -1"),
        (json!({"type": "number", "maximum": 2}), "1e0", "2.1", "is greater than 2"),
        (json!({"type": "number"}), "1.5", "1e999", "is not a number"),
        (json!({"type": "integer"}), "170141183460469231", "1e3", "is not an integer"),
        (json!({"enum": ["a", "b"]}), "b", "c", "is not one of the values that are allowed"),
        (json!({"minLength": 2}), "äö", "ä", "has fewer than 2 characters"),
        (json!({"maxLength": 2}), "äö", "äöü", "has more than 2 characters"),
        (json!({"pattern": "^[a-z]+$"}), "ab", "a1", "does not match the pattern"),
        (
            json!({"type": "integer", "enum": ["1", "2"]}),
            "2",
            "3",
            "is not one of the values that are allowed",
        ),
    ] {
        assert_eq!(of(schema.clone(), good), None, "{schema} {good}");
        assert_eq!(of(schema.clone(), bad).as_deref(), Some(message), "{schema} {bad}");
    }
}

#[test]
fn numbers_are_bounded_exactly() {
    let of = |schema: Value, value: &str| {
        let spec = json!({"queryParams": [{"name": "n", "schema": schema}]});
        violations(spec, &format!("/?n={value}"), &[]).first().map(|one| one.replace("/query/n ", ""))
    };
    for (schema, good, bad, message) in [
        (json!({"type": "number", "minimum": 0.5}), "0.5", "0.4999999999999999999999", "is less than 0.5"),
        (
            json!({"type": "number", "maximum": 0.1}),
            "1e-1",
            "0.1000000000000000000001",
            "is greater than 0.1",
        ),
        (json!({"type": "number", "exclusiveMinimum": 0}), "1e-300", "-0.0", "is not greater than 0"),
        (json!({"type": "integer", "exclusiveMaximum": 10}), "9", "10", "is not less than 10"),
        (json!({"type": "number", "multipleOf": 0.01}), "19.99", "19.999", "is not a multiple of 0.01"),
        (json!({"type": "integer", "multipleOf": 5}), "-15", "16", "is not a multiple of 5"),
        (json!({"type": "integer", "minimum": 1.5}), "2", "1", "is less than 1.5"),
        (
            json!({"type": "integer", "maximum": 9_007_199_254_740_992_i64}),
            "9007199254740992",
            "9007199254740993",
            "is greater than 9007199254740992",
        ),
    ] {
        assert_eq!(of(schema.clone(), good), None, "{schema} {good}");
        assert_eq!(of(schema.clone(), bad).as_deref(), Some(message), "{schema} {bad}");
    }
}

#[test]
fn each_occurrence_is_an_item_unless_commas_are_to_part_them() {
    let schema = json!({"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 3, "uniqueItems": true});
    let of = |explode: Value, query: &str| {
        let spec = json!({"queryParams": [{"name": "id", "explode": explode, "schema": schema}]});
        violations(spec, &format!("/?{query}"), &[])
    };
    for (query, expected) in [
        ("", None),
        ("id=1&id=2", None),
        ("id=1&other=x&%69d=2&id=3", None),
        ("id=1", Some("/query/id has fewer than 2 items")),
        ("id=1&id=2&id=3&id=4", Some("/query/id has more than 3 items")),
        ("id=1&id=0", Some("/query/id/1 is less than 1")),
        ("id=1&id=2&id=1", Some("/query/id/2 stands there twice")),
        ("id=1,2", Some("/query/id/0 is not an integer")),
        ("id=1&id=%FF", Some("/query/id/1 is not UTF-8")),
    ] {
        for explode in [json!(null), json!(true)] {
            assert_eq!(of(explode, query).first().map(String::as_str), expected, "{query}");
        }
    }
    for (query, expected) in [
        ("id=1,2", None),
        ("id=1&id=2,3", None),
        ("id=1", Some("/query/id has fewer than 2 items")),
        ("id=1,2,3,4", Some("/query/id has more than 3 items")),
        ("id=1,,2", Some("/query/id/1 is not an integer")),
        ("id=1,2,", Some("/query/id/2 is not an integer")),
        ("id=1&id=2,1", Some("/query/id/2 stands there twice")),
        ("id=1%2C2", Some("/query/id/0 holds an encoded comma")),
        ("id=1,%FF", Some("/query/id/1 is not UTF-8")),
    ] {
        assert_eq!(of(json!(false), query).first().map(String::as_str), expected, "{query}");
    }
}

#[test]
fn lists_in_headers_and_paths_stand_between_commas() {
    let numbers = json!({"type": "array", "uniqueItems": true, "items": {"type": "number"}});
    let header = |lines: &[&str]| {
        let fields: Vec<_> = lines.iter().map(|line| ("x-n", *line)).collect();
        violations(json!({"headers": [{"name": "X-N", "schema": numbers}]}), "/", &fields)
    };
    assert_eq!(header(&["1, 2.5", "3e0 ,\t4"]), [""; 0]);
    assert_eq!(
        header(&["1, 2.50", "2.5"]),
        ["/headers/X-N/2 stands there twice"],
        "however they are written"
    );
    assert_eq!(header(&["1", "a"]), ["/headers/X-N/1 is not a number"]);

    let words = json!({"pathParams": [{"name": "tags", "schema": {"type": "array", "items": {"enum": ["a b", "c+"]}}}]});
    let path = |captured: &str| {
        let plan = compile(words.clone()).expect("valid");
        let mut exchange = asked("/", &[], Body::Empty);
        exchange.captures = crate::message::Captures(vec![("tags".into(), captured.into())]);
        judged(&plan, &mut exchange).err().map(|error| error.violations[0].pointer.clone())
    };
    assert_eq!(path("a%20b,c+,c%2B"), None);
    assert_eq!(path("a%20b,b").as_deref(), Some("/path/tags/1"));
    assert_eq!(path("a%20b%2Cc+").as_deref(), Some("/path/tags/0"));
}

#[test]
fn what_is_required_must_be_there_and_at_most_twenty_violations_are_told() {
    let required = |count: usize| -> Vec<Value> {
        (0..count).map(|i| json!({"name": format!("a/{i}"), "required": true})).collect()
    };
    let all = violations(
        json!({"queryParams": required(16), "headers": [{"name": "x-tenant", "required": true}], "pathParams": [{"name": "id", "required": true}]}),
        "/",
        &[],
    );
    assert_eq!(all.len(), 18);
    assert_eq!((all[0].as_str(), all[1].as_str()), ("/path/id is required", "/query/a~10 is required"));
    let many = violations(json!({"queryParams": required(16), "pathParams": required(16)}), "/", &[]);
    assert_eq!(many.len(), TOLD);
    assert_eq!(
        violations(json!({"headers": [{"name": "X-Tenant", "required": true}]}), "/", &[("x-tenant", "")]),
        [""; 0]
    );
}

#[test]
fn what_means_nothing_is_refused() {
    for (field, value, path) in [
        ("headers", json!({"name": "x y"}), "headers[0].name"),
        ("queryParams", json!({"name": "a", "schema": {"minimum": 1}}), "queryParams[0].schema"),
        (
            "queryParams",
            json!({"name": "a", "schema": {"type": "integer", "pattern": "a"}}),
            "queryParams[0].schema",
        ),
        ("queryParams", json!({"name": "a", "schema": {"pattern": "("}}), "queryParams[0].schema.pattern"),
        (
            "pathParams",
            json!({"name": "a", "schema": {"type": "integer", "minimum": 2, "maximum": 1}}),
            "pathParams[0].schema.minimum",
        ),
        (
            "pathParams",
            json!({"name": "a", "schema": {"minLength": 2, "maxLength": 1}}),
            "pathParams[0].schema.minLength",
        ),
        (
            "pathParams",
            json!({"name": "a", "schema": {"type": "number", "minimum": 0.1, "exclusiveMaximum": 0.1}}),
            "pathParams[0].schema.minimum",
        ),
        (
            "headers",
            json!({"name": "a", "schema": {"type": "number", "multipleOf": -0.5}}),
            "headers[0].schema.multipleOf",
        ),
        ("queryParams", json!({"name": "a", "explode": false}), "queryParams[0].explode"),
        ("queryParams", json!({"name": "a", "schema": {"minItems": 1}}), "queryParams[0].schema"),
        (
            "queryParams",
            json!({"name": "a", "schema": {"type": "array", "enum": ["a"]}}),
            "queryParams[0].schema.enum",
        ),
        (
            "queryParams",
            json!({"name": "a", "schema": {"type": "array", "maximum": 7}}),
            "queryParams[0].schema",
        ),
        (
            "queryParams",
            json!({"name": "a", "schema": {"type": "array", "minItems": 2, "maxItems": 1}}),
            "queryParams[0].schema.minItems",
        ),
        (
            "queryParams",
            json!({"name": "a", "schema": {"type": "array", "items": {"type": "boolean", "pattern": "a"}}}),
            "queryParams[0].schema.items",
        ),
    ] {
        let problems = compile(json!({field: [value]})).expect_err("refused");
        assert_eq!(problems[0].path.as_str(), path);
    }
}

#[test]
fn a_wrong_value_is_never_said_back() {
    let plan =
        compile(json!({"queryParams": [{"name": "a", "schema": {"type": "integer"}}]})).expect("valid");
    let error = judged(&plan, &mut asked("/?a=hunter2", &[], Body::Empty)).expect_err("wrong");
    assert!(!format!("{error:?}").contains("hunter2"));
}
