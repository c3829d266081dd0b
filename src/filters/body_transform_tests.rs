//! Tests of what `request` and `response` make of methods, statuses and bodies, from their specs to what comes of them.

use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use super::contract::Filter;
use super::contract_tests::{FakeOutbound, NoKeep, NoScope, exchange, fail};
use super::{REGISTRY, run};
use crate::message::{Body, BodyError, ErrorKind, Exchange, Request, Response};

fn linked(name: &str, spec: &Value) -> Arc<dyn Filter> {
    let row = REGISTRY.iter().find(|row| row.name == name).expect("a row");
    let plan = (row.compile)(spec, &mut NoScope).expect("valid");
    row.link.expect("a filter")(&plan, &NoKeep)
}

/// As a body of unknown length.
fn stream(text: &str) -> Body {
    let frames: Vec<_> = text
        .as_bytes()
        .chunks(7)
        .map(|chunk| Ok::<_, BodyError>(Frame::data(Bytes::copy_from_slice(chunk))))
        .collect();
    Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
}

/// Packed.
fn gzip(text: &str) -> Body {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(text.as_bytes()).expect("memory takes it");
    Bytes::from(writer.finish().expect("memory takes it")).into()
}

fn fields(headers: &mut http::HeaderMap, fields: &[(&'static str, &str)]) {
    for (name, value) in fields {
        headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
    }
}

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

/// What goes to the backend, and its body; or why nothing does.
async fn asked(
    spec: Value,
    with: &[(&'static str, &str)],
    body: Body,
) -> Result<(Request, String), ErrorKind> {
    let filters = [linked("request", &spec)];
    let mut exchange = exchange("/a", 0, Rc::new(FakeOutbound::default()));
    *exchange.request.method_mut() = Method::POST;
    fields(exchange.request.headers_mut(), with);
    *exchange.request.body_mut() = body;
    let mut sent = None;
    let response = run(&filters, &mut exchange, fail, async |exchange: &mut Exchange| {
        sent = Some(std::mem::take(&mut exchange.request));
        Response::default()
    })
    .await;
    let Some(mut request) = sent else {
        return Err(*response.extensions().get::<ErrorKind>().expect("the gateway's own answer"));
    };
    let body = std::mem::take(request.body_mut()).collect().await.expect("whole").to_bytes();
    Ok((request, String::from_utf8(body.to_vec()).expect("UTF-8")))
}

/// What becomes of an answer of the backend.
async fn answered(
    spec: Value,
    status: u16,
    with: &[(&'static str, &str)],
    body: Body,
) -> Result<(Response, String), ErrorKind> {
    let filters = [linked("response", &spec)];
    let mut exchange = exchange("/orders/7", 0, Rc::new(FakeOutbound::default()));
    exchange.request.headers_mut().insert("x-tenant", HeaderValue::from_static("acme"));
    exchange.request.headers_mut().insert("range", HeaderValue::from_static("bytes=0-1"));
    let mut body = Some(body);
    let mut response = run(&filters, &mut exchange, fail, async |exchange: &mut Exchange| {
        exchange.request = Request::default();
        let mut response = Response::new(body.take().expect("asked once"));
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        fields(response.headers_mut(), with);
        response
    })
    .await;
    if let Some(kind) = response.extensions().get::<ErrorKind>() {
        return Err(*kind);
    }
    let body = std::mem::take(response.body_mut()).collect().await.expect("whole").to_bytes();
    Ok((response, String::from_utf8(body.to_vec()).expect("UTF-8")))
}

fn lines(headers: &http::HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("ASCII"))).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn the_method_is_the_one_that_is_written() {
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let (request, body) = asked(json!({"method": method}), &[], "x".into()).await.expect("sent");
        assert_eq!((request.method().as_str(), &*body), (method, "x"));
    }
    let row = REGISTRY.iter().find(|row| row.name == "request").expect("a row");
    for method in ["HEAD", "CONNECT", "TRACE", "get", ""] {
        assert!((row.compile)(&json!({"method": method}), &mut NoScope).is_err(), "{method}");
    }
}

#[tokio::test]
async fn a_changed_request_says_what_it_is() {
    let spec = json!({"bodyPatch": {"set": [{"pointer": "/by", "value": "gateway"}], "remove": ["/admin"]}});
    let with = [
        JSON,
        ("content-md5", "x"),
        ("digest", "x"),
        ("content-digest", "x"),
        ("repr-digest", "x"),
        ("content-length", "999"),
        ("content-encoding", "identity"),
        ("x-other", "1"),
    ];
    let document = r#"{"id": 12345678901234567890.10, "admin": true}"#;
    let changed = r#"{"id":12345678901234567890.10,"by":"gateway"}"#;
    for body in [Body::from(document), stream(document)] {
        let (request, body) = asked(spec.clone(), &with, body).await.expect("sent");
        assert_eq!(body, changed);
        assert_eq!(
            lines(request.headers()),
            [
                &*format!("content-length: {}", changed.len()),
                "content-type: application/json; charset=utf-8",
                "x-other: 1"
            ]
        );
    }
}

#[tokio::test]
async fn a_request_whose_body_cannot_be_changed_is_not_sent() {
    let spec = json!({"bodyPatch": {"remove": ["/admin"]}});
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    for (with, body, expected) in [
        (&[JSON][..], Body::from("{"), ErrorKind::ExpressionFailed),
        (&[JSON], stream(r#"{"admin":1,"admin":2}"#), ErrorKind::ExpressionFailed),
        (&[JSON], Bytes::from_static(b"\"\xff\"").into(), ErrorKind::ExpressionFailed),
        (&[], "{}".into(), ErrorKind::UnsupportedMediaType),
        (&[JSON, JSON], "{}".into(), ErrorKind::UnsupportedMediaType),
        (&[("content-type", "text/plain")], "{}".into(), ErrorKind::UnsupportedMediaType),
        (
            &[("content-type", "application/json; charset=utf-16")],
            "{}".into(),
            ErrorKind::UnsupportedMediaType,
        ),
        (&[JSON, ("content-encoding", "deflate")], "{}".into(), ErrorKind::UnsupportedMediaType),
        (&[JSON, ("content-encoding", "gzip, gzip")], "{}".into(), ErrorKind::UnsupportedMediaType),
        (&[JSON, ("content-encoding", "gzip")], "{}".into(), ErrorKind::ExpressionFailed),
        (&[JSON, ("content-encoding", "gzip")], gzip(&"\"x\"".repeat(1 << 20)), ErrorKind::BodyTooLarge),
        (&[JSON, ("content-encoding", "gzip")], gzip(&" ".repeat(1 << 20)), ErrorKind::BodyTooLarge),
        (&[JSON], large.clone().into(), ErrorKind::BodyTooLarge),
        (&[JSON], stream(&large), ErrorKind::BodyTooLarge),
    ] {
        assert_eq!(asked(spec.clone(), with, body).await.err(), Some(expected), "{with:?}");
    }
    for body in [Body::Empty, stream("")] {
        let (_, body) = asked(spec.clone(), &[JSON], body).await.expect("there is nothing to change");
        assert_eq!(body, "");
    }
}

#[tokio::test]
async fn a_changed_answer_says_what_it_is() {
    let spec = json!({
        "bodyPatch": {"pick": ["/id"]}, "headers": {"set": [{"name": "ETag", "value": "\"own\""}]}, "status": 203
    });
    let with = [
        ("content-type", "application/problem+json"),
        ("etag", "\"a\""),
        ("last-modified", "Sat, 21 Nov 2026 00:00:00 GMT"),
        ("accept-ranges", "bytes"),
        ("repr-digest", "x"),
        ("content-length", "9"),
        ("trailer", "x"),
        ("x-other", "1"),
    ];
    let (response, body) =
        answered(spec, 200, &with, stream(r#"{"id":1e2,"secret":"x"}"#)).await.expect("changed");
    assert_eq!((response.status().as_u16(), &*body), (203, r#"{"id":1e2}"#));
    assert_eq!(
        lines(response.headers()),
        ["content-length: 10", "content-type: application/problem+json", "etag: \"own\"", "x-other: 1"]
    );
}

#[tokio::test]
async fn without_a_condition_only_json_of_2xx_is_changed() {
    let spec = json!({"bodyPatch": {"remove": ["/a"]}, "status": 202, "headers": {"set": [{"name": "x-a", "value": "1"}]}});
    for (status, kind, expected_status, expected) in [
        (200, "application/json", 202, "{}"),
        (201, "text/html", 202, r#"{"a":1}"#),
        (404, "application/json", 404, r#"{"a":1}"#),
        (500, "application/json", 500, r#"{"a":1}"#),
    ] {
        let with = [("content-type", kind), ("etag", "\"a\"")];
        let (response, body) =
            answered(spec.clone(), status, &with, stream(r#"{"a":1}"#)).await.expect("an answer");
        assert_eq!((response.status().as_u16(), &*body), (expected_status, expected), "{status} {kind}");
        assert_eq!(response.headers().contains_key("etag"), expected != "{}");
        assert!(response.headers().contains_key("x-a"), "fields of all");
    }
}

#[tokio::test]
async fn a_condition_decides_about_everything() {
    let spec = json!({
        "when": "response.status == 404 && response.headers['x-kind'] == 'a' && request.path == '/orders/7' && request.headers['x-tenant'] == 'acme'",
        "status": 200, "bodyPatch": {"set": [{"pointer": "/items", "value": []}]},
        "headers": {"set": [{"name": "x-was", "value": "${response.status} of ${request.method} ${request.path}"}]}
    });
    let with = [JSON, ("x-kind", "a")];
    let (response, body) = answered(spec.clone(), 404, &with, stream("{}")).await.expect("changed");
    assert_eq!((response.status().as_u16(), &*body), (200, r#"{"items":[]}"#));
    assert_eq!(response.headers()["x-was"], "404 of GET /orders/7");
    for (status, kind) in [(200, "a"), (404, "b")] {
        let with = [JSON, ("x-kind", kind), ("etag", "\"a\"")];
        let (response, body) = answered(spec.clone(), status, &with, stream("{}")).await.expect("as it is");
        assert_eq!((response.status().as_u16(), &*body), (status, "{}"));
        assert!(response.headers().contains_key("etag") && !response.headers().contains_key("x-was"));
    }
    let failed = answered(spec, 404, &[JSON], stream("{}")).await.err();
    assert_eq!(failed, Some(ErrorKind::TransformFailed), "it has no value without the field");
}

#[tokio::test]
async fn an_answer_that_cannot_be_changed_does_not_pass() {
    let spec = json!({"when": "true", "bodyPatch": {"remove": ["/a"]}});
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    let broken = || {
        let frames = [Ok(Frame::data(Bytes::from_static(b"{"))), Err(BodyError::Other("for the test"))];
        Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
    };
    for (status, with, body, expected) in [
        (200, &[JSON][..], stream("{"), ErrorKind::TransformFailed),
        (200, &[JSON], stream(r#"{"a":1,"a":2}"#), ErrorKind::TransformFailed),
        (200, &[JSON, ("content-encoding", "gzip")], stream("{}"), ErrorKind::TransformFailed),
        (200, &[JSON, ("content-encoding", "gzip")], gzip(&" ".repeat(1 << 20)), ErrorKind::TransformFailed),
        (200, &[JSON, ("content-encoding", "compress")], stream("{}"), ErrorKind::TransformFailed),
        (200, &[("content-type", "text/html")], stream("{}"), ErrorKind::TransformFailed),
        (206, &[JSON], stream("{}"), ErrorKind::TransformFailed),
        (200, &[JSON], large.clone().into(), ErrorKind::TransformFailed),
        (200, &[JSON], stream(&large), ErrorKind::TransformFailed),
        (200, &[JSON], broken(), ErrorKind::Reset),
    ] {
        assert_eq!(
            answered(spec.clone(), status, with, body).await.err(),
            Some(expected),
            "{status} {with:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_without_a_body_stays_without() {
    let spec = json!({"bodyPatch": {"remove": ["/a"]}});
    let with = [JSON, ("content-length", "77"), ("etag", "\"a\"")];
    let (response, body) = answered(spec, 200, &with, Body::Empty).await.expect("as to HEAD");
    assert_eq!((lines(response.headers()), &*body), (vec![format!("{}: {}", JSON.0, JSON.1)], ""));
    let with = [JSON, ("content-length", "2")];
    let (response, body) = answered(json!({"status": 204}), 200, &with, "{}".into()).await.expect("empty");
    assert_eq!((response.status().as_u16(), lines(response.headers()), &*body), (204, vec![], ""));
}

#[tokio::test]
async fn what_is_confirmed_is_changed_as_the_answer_itself_but_for_status_and_body() {
    let set = json!([{"name": "x-type", "value": "${response.headers['content-type']}"}, {"name": "x-set", "value": "1"}]);
    let fields = json!({"remove": ["x-inside"], "set": set});
    let came = [("etag", "\"a\""), ("x-inside", "7"), ("x-type", "raw")];
    for (spec, left) in [
        (json!({"headers": fields}), vec!["etag: \"a\"", "x-set: 1"]),
        (json!({"when": "response.status == 200", "headers": fields}), vec!["etag: \"a\"", "x-set: 1"]),
        (
            json!({"when": "response.status < 400", "status": 201}),
            vec!["etag: \"a\"", "x-inside: 7", "x-type: raw"],
        ),
        (
            json!({"when": "response.status >= 400", "headers": fields}),
            vec!["etag: \"a\"", "x-inside: 7", "x-type: raw"],
        ),
        (json!({"when": "has(response.body.a)", "headers": fields}), vec!["etag: \"a\"", "x-set: 1"]),
        (json!({"bodyPatch": {"remove": ["/a"]}}), vec!["x-inside: 7", "x-type: raw"]),
    ] {
        let (response, body) = answered(spec.clone(), 304, &came, Body::Empty).await.expect("confirmed");
        let mut told = lines(response.headers());
        told.sort();
        assert_eq!(
            (response.status().as_u16(), told, &*body),
            (304, left.into_iter().map(str::to_owned).collect(), ""),
            "{spec}"
        );
    }
}

#[tokio::test]
async fn an_empty_answer_is_none_however_it_is_framed() {
    for spec in
        [json!({"bodyPatch": {"remove": ["/a"]}}), json!({"when": "!has(response.body.ok)", "status": 502})]
    {
        for body in [stream(""), Body::Empty] {
            let (response, body) = answered(spec.clone(), 200, &[JSON], body).await.expect("as it is");
            assert_eq!((response.status().as_u16(), &*body), (200, ""), "{spec}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_end_in_time_is_504() {
    let filter = linked("response", &json!({"bodyPatch": {"remove": ["/a"]}}));
    let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
    exchange.deadline = Some(tokio::time::Instant::now() + std::time::Duration::from_secs(3));
    let response = run(&[filter], &mut exchange, fail, async |_: &mut Exchange| {
        let begun = futures_util::stream::iter([Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"{")))]);
        let endless = futures_util::StreamExt::chain(begun, futures_util::stream::pending());
        let mut response = Response::new(Body::stream(StreamBody::new(endless)));
        fields(response.headers_mut(), &[JSON]);
        response
    })
    .await;
    assert_eq!(response.extensions().get(), Some(&ErrorKind::BackendTimeout));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_drips_is_not_waited_for() {
    let began = tokio::time::Instant::now();
    let drips = futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        Some((Ok::<_, BodyError>(Frame::data(Bytes::from_static(b" "))), ()))
    });
    let body = Body::stream(StreamBody::new(Box::pin(drips)));
    let outcome = asked(json!({"bodyPatch": {"remove": ["/a"]}}), &[JSON], body).await;
    assert_eq!(outcome.err(), Some(ErrorKind::RequestTimeout));
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn the_backend_is_asked_for_what_can_be_changed() {
    let plain = [("accept-encoding", "gzip"), ("if-range", "x"), ("range", "bytes=0-1")];
    for (spec, expected) in [
        (json!({"bodyPatch": {"pick": ["/a"]}}), vec!["accept-encoding: identity".to_owned()]),
        (json!({"status": 201}), plain.map(|(name, value)| format!("{name}: {value}")).to_vec()),
    ] {
        let filter = linked("response", &spec);
        let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
        fields(exchange.request.headers_mut(), &plain);
        run(&[filter], &mut exchange, fail, async |_: &mut Exchange| Response::default()).await;
        assert_eq!(lines(exchange.request.headers()), expected, "{spec}");
    }
}

#[tokio::test]
async fn what_is_packed_is_changed_as_what_it_holds() {
    let spec = json!({"bodyPatch": {"remove": ["/a"]}});
    let with = [JSON, ("content-encoding", "gzip")];
    let document = r#"{"a":1,"b":12345678901234567890}"#;
    let changed = r#"{"b":12345678901234567890}"#;
    let kept = [format!("content-length: {}", changed.len()), format!("{}: {}", JSON.0, JSON.1)];
    let (request, body) = asked(spec.clone(), &with, gzip(document)).await.expect("sent");
    assert_eq!((lines(request.headers()), &*body), (kept.to_vec(), changed));
    let (response, body) = answered(spec, 200, &with, gzip(document)).await.expect("changed");
    assert_eq!((lines(response.headers()), &*body), (kept.to_vec(), changed));
    // What is only looked into goes on as it came.
    let spec = json!({"headers": {"set": [{"name": "x-b", "value": "${response.body.a}"}]}});
    let packed = gzip(document);
    let length = http_body::Body::size_hint(&packed).exact().expect("known");
    let filters = [linked("response", &spec)];
    let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
    let mut body = Some(packed);
    let response = run(&filters, &mut exchange, fail, async |_: &mut Exchange| {
        let mut response = Response::new(body.take().expect("asked once"));
        fields(response.headers_mut(), &with);
        response
    })
    .await;
    assert_eq!(
        (&response.headers()["x-b"], &response.headers()["content-encoding"]),
        (&"1".parse().expect("a value"), &"gzip".parse().expect("a value"))
    );
    assert_eq!(response.into_body().collect().await.expect("whole").to_bytes().len() as u64, length);
}

#[tokio::test]
async fn a_body_is_what_its_expression_makes_of_the_one_that_came() {
    let document =
        r#"{"id": 12345678901234567890123, "amount": 1.10, "status": "succeeded", "inner": {"a": [1e2]}}"#;
    let expression = "{'id': %.body.id, 'paid': %.body.status == 'succeeded', 'amount': %.body.amount, 'inner': %.body.inner}";
    let expected = r#"{"id":12345678901234567890123,"paid":true,"amount":1.10,"inner":{"a": [1e2]}}"#;
    for body in [Body::from(document), stream(document)] {
        let spec = json!({"body": expression.replace('%', "request")});
        let (request, body) = asked(spec, &[JSON, ("content-digest", "x")], body).await.expect("sent");
        assert_eq!(body, expected);
        let length = format!("content-length: {}", expected.len());
        assert_eq!(lines(request.headers()), [length, format!("{}: {}", JSON.0, JSON.1)]);
    }
    for body in [Body::from(document), stream(document)] {
        let spec = json!({"body": expression.replace('%', "response"), "status": 203});
        let (response, body) = answered(spec, 200, &[JSON, ("etag", "\"a\"")], body).await.expect("changed");
        assert_eq!((response.status().as_u16(), &*body), (203, expected));
        assert!(!response.headers().contains_key("etag"));
    }
    // Large ones go to other threads; the same comes out.
    let long = format!(r#"{{"x": [{}0], "id": 1.50}}"#, "0, ".repeat(100_000));
    let spec = json!({"body": "response.body.id"});
    assert_eq!(answered(spec, 200, &[JSON], stream(&long)).await.expect("changed").1, "1.50");
}

#[tokio::test]
async fn everything_of_a_request_may_be_made_of_its_body() {
    let spec = json!({
        "path": {"template": "/users/${request.body.user.id}"},
        "query": {"set": [{"name": "q", "value": "${request.body.q}"}]},
        "headers": {"set": [{"name": "x-user", "value": "${request.body.user.name}"}]},
    });
    let document = r#"{"user": {"id": 7, "name": "Ada"}, "q": "a b"}"#;
    let (request, body) = asked(spec.clone(), &[JSON], stream(document)).await.expect("sent");
    assert_eq!((request.uri().to_string().as_str(), &*body), ("/users/7?q=a%20b", document));
    assert_eq!(request.headers()["x-user"], "Ada");
    for (with, body, expected) in [
        (&[JSON][..], r#"{"user": {"id": "../x", "name": "Ada"}, "q": ""}"#, ErrorKind::ExpressionFailed),
        (&[JSON], r#"{"user": {"id": 7, "name": "a\r\nx: y"}, "q": ""}"#, ErrorKind::ExpressionFailed),
        (&[JSON], r#"{"user": {"id": 7, "id": 8, "name": ""}, "q": ""}"#, ErrorKind::ExpressionFailed),
        (&[JSON], "", ErrorKind::ExpressionFailed),
        (&[], document, ErrorKind::UnsupportedMediaType),
    ] {
        assert_eq!(asked(spec.clone(), with, stream(body)).await.err(), Some(expected), "{body}");
    }
    // Of nothing, a body can be made all the same.
    let spec = json!({"method": "PUT", "body": "{'path': request.path, 'was': request.body}"});
    let (request, body) = asked(spec, &[("content-type", "text/plain")], Body::Empty).await.expect("sent");
    assert_eq!((request.method().as_str(), &*body), ("PUT", r#"{"path":"/a","was":null}"#));
    assert_eq!(lines(request.headers()), ["content-length: 24", "content-type: application/json"]);
}

#[tokio::test]
async fn an_answers_body_decides_where_the_condition_reads_it() {
    let spec = json!({
        "when": "response.status == 200 && has(response.body.error)", "status": 502,
        "headers": {"set": [{"name": "x-code", "value": "${response.body.error.code}"}]},
        "body": "{'code': response.body.error.code}",
    });
    let wrong = r#"{"error": {"code": 17}}"#;
    let (response, body) = answered(spec.clone(), 200, &[JSON], stream(wrong)).await.expect("changed");
    assert_eq!((response.status().as_u16(), &*body), (502, r#"{"code":17}"#));
    assert_eq!(response.headers()["x-code"], "17");
    for (status, with, came) in [
        (200, &[JSON, ("etag", "\"a\"")][..], r#"{"id" : 1}"#),
        (404, &[JSON, ("etag", "\"a\"")], wrong),
        (404, &[("content-type", "text/html"), ("etag", "\"a\"")], "<p>"),
    ] {
        let (response, body) = answered(spec.clone(), status, with, stream(came)).await.expect("as it is");
        assert_eq!((response.status().as_u16(), &*body), (status, came));
        assert_eq!(response.headers()["etag"], "\"a\"");
    }
    for (with, came) in [(&[JSON][..], "{"), (&[("content-type", "text/html")], "<p>")] {
        let failed = answered(spec.clone(), 200, with, stream(came)).await.err();
        assert_eq!(failed, Some(ErrorKind::TransformFailed), "{came}");
    }
    // An answer to HEAD: nobody knows.
    let with = [JSON, ("content-length", "77"), ("etag", "\"a\"")];
    let (response, body) = answered(spec, 200, &with, Body::Empty).await.expect("as it is");
    assert_eq!(
        (response.status().as_u16(), lines(response.headers()), &*body),
        (200, vec![format!("{}: {}", JSON.0, JSON.1)], "")
    );
}

#[tokio::test]
async fn a_body_that_is_made_of_nothing_needs_none() {
    let spec = json!({"when": "response.status == 404", "status": 200, "body": "{'items': [], 'path': request.path}"});
    for body in [stream("<p>not here"), Body::Empty] {
        let (response, body) =
            answered(spec.clone(), 404, &[("content-type", "text/html")], body).await.expect("made");
        assert_eq!((response.status().as_u16(), &*body), (200, r#"{"items":[],"path":"/orders/7"}"#));
        assert_eq!(lines(response.headers()), ["content-length: 31", "content-type: application/json"]);
    }
    let spec = json!({"when": "true", "body": "[1]"});
    for status in [204, 304] {
        let (response, body) = answered(spec.clone(), status, &[], Body::Empty).await.expect("as it is");
        assert_eq!(
            (response.status().as_u16(), lines(response.headers()), &*body),
            (status, vec![], ""),
            "no body may follow"
        );
    }
}

#[tokio::test]
async fn what_an_expression_makes_is_bounded() {
    let spec = json!({"body": "[response.body, response.body, response.body]"});
    let long = format!("\"{}\"", "x".repeat(400 << 10));
    assert_eq!(answered(spec, 200, &[JSON], stream(&long)).await.err(), Some(ErrorKind::TransformFailed));
}

#[tokio::test]
async fn fields_get_other_names() {
    let spec = json!({"headers": {
        "remove": ["x-gone"],
        "rename": [{"from": "x-old", "to": "x-new"}, {"from": "x-none", "to": "x-kept"}],
        "set": [{"name": "x-set", "value": "1"}],
    }});
    let with = [("x-old", "a"), ("x-old", "b"), ("x-new", "c"), ("x-kept", "d"), ("x-gone", "e")];
    let expected = ["x-kept: d", "x-new: a", "x-new: b", "x-set: 1"];
    let (request, _) = asked(spec.clone(), &with, Body::Empty).await.expect("sent");
    assert_eq!(lines(request.headers()), expected);
    let (response, _) = answered(spec, 200, &with, Body::Empty).await.expect("changed");
    assert_eq!(lines(response.headers()), expected);
}
