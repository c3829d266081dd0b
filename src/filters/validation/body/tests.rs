//! Tests of `bodySchema`, on a filter by itself.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt as _;
use serde_json::json;

use super::*;
use crate::filters::contract_tests::{FakeOutbound, NoKeep, NoScope, exchange};
use crate::filters::offload::Taken;
use crate::filters::{FilterKind as _, Member as _};

fn compile(spec: Value) -> Result<super::super::Plan, Vec<Problem>> {
    super::super::Validation::compile(serde_json::from_value(spec).expect("a spec"), &mut NoScope)
}

fn chunks(chunks: Vec<Bytes>) -> Body {
    let frames: Vec<_> = chunks.into_iter().map(|chunk| Ok::<_, BodyError>(Frame::data(chunk))).collect();
    Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
}

/// What the backend gets of a body, or why it gets none.
async fn judged(
    spec: Value,
    method: Method,
    fields: &[(&str, &str)],
    body: Body,
) -> Result<Bytes, ProxyError> {
    let filter = super::super::Validation::link(&compile(spec).expect("valid"), &NoKeep);
    let mut exchange = exchange("/", 1, Rc::new(FakeOutbound::default()));
    *exchange.request.method_mut() = method;
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().expect("a name");
        exchange.request.headers_mut().append(name, value.parse().expect("a value"));
    }
    *exchange.request.body_mut() = body;
    let decided = |decision: Decision<'_>| match decision {
        Decision::Continue => Ok(()),
        Decision::Fail(error) => Err(*error),
        _ => panic!("it makes no answer of its own, and waits once"),
    };
    match filter.request(&mut exchange) {
        Decision::Wait(waiting) => decided(waiting.await)?,
        decision => decided(decision)?,
    }
    Ok(exchange.request.into_body().collect().await.expect("whole").to_bytes())
}

const JSON: (&str, &str) = ("content-type", "application/json");

async fn post(schema: Value, body: &str) -> Result<Bytes, ProxyError> {
    let spec = json!({"bodySchema": {"inline": schema}});
    judged(spec, Method::POST, &[JSON], body.to_owned().into()).await
}

async fn said(schema: Value, body: &str) -> Vec<String> {
    let error = post(schema, body).await.expect_err("wrong");
    assert_eq!(error.kind, ErrorKind::BodyInvalid);
    error.violations.iter().map(|one| format!("{} {}", one.pointer, one.message)).collect()
}

#[tokio::test]
async fn what_is_right_goes_on_byte_for_byte() {
    let schema = json!({"type": "object", "required": ["id"]});
    let text = "\n{ \"id\" : 12345678901234567890123.50,\t\"\\u0069\":\"\\/\", \"z\":1,\"a\":-0 }\r\n ";
    assert_eq!(post(schema.clone(), text).await.expect("right"), text);
    let spec = json!({"bodySchema": {"inline": schema}});
    let pieces = text.as_bytes().chunks(3).map(Bytes::copy_from_slice).collect();
    assert_eq!(judged(spec, Method::PUT, &[JSON], chunks(pieces)).await.expect("right"), text);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_is_not_waited_for() {
    let drips = futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        Some((Ok::<_, BodyError>(Frame::data(Bytes::from_static(b" "))), ()))
    });
    let body = Body::stream(StreamBody::new(Box::pin(drips)));
    let spec = json!({"bodySchema": {"inline": {"type": "object"}}});
    let began = Instant::now();
    let error = judged(spec, Method::POST, &[JSON], body).await.expect_err("late");
    assert_eq!((error.kind, began.elapsed().as_secs()), (ErrorKind::RequestTimeout, 30));
}

#[tokio::test]
async fn trailers_go_on_too() {
    let spec = json!({"bodySchema": {"inline": {}}});
    let filter = super::super::Validation::link(&compile(spec).expect("valid"), &NoKeep);
    let mut exchange = exchange("/", 1, Rc::new(FakeOutbound::default()));
    exchange.request.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    *exchange.request.method_mut() = Method::POST;
    let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("x"))]);
    *exchange.request.body_mut() = again(Bytes::from_static(b"[]"), Some(trailers.clone()));
    let Decision::Wait(waiting) = filter.request(&mut exchange) else { panic!("it reads") };
    assert!(matches!(waiting.await, Decision::Continue));
    let body = exchange.request.into_body().collect().await.expect("whole");
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), "[]");
}

#[tokio::test]
async fn each_violation_is_told_with_its_place_and_nothing_of_what_was_found() {
    let schema = json!({
        "type": "object",
        "required": ["id", "items"],
        "properties": {
            "id": {"type": "integer", "minimum": 1},
            "note": {"type": ["string", "null"], "maxLength": 8, "pattern": "^[a-z]*$"},
            "kind": {"enum": ["a", "b"]},
            "items": {"type": "array", "minItems": 1, "uniqueItems": true, "items": {
                "type": "object", "additionalProperties": false, "properties": {"n/m": {"multipleOf": 5}}}}
        }
    });
    assert_eq!(said(schema.clone(), "[]").await, [" is not an object"]);
    assert_eq!(said(schema.clone(), "{}").await, ["/id is required", "/items is required"]);
    let body = r#"{"id": 0, "note": "hunter2 hunter2", "kind": "hunter2", "items": [{"n/m": 7}, {"x~": "hunter2"}]}"#;
    assert_eq!(
        said(schema.clone(), body).await,
        [
            "/id is less than 1",
            "/items/0/n~1m is not a multiple of 5",
            "/items/1/x~0 is not allowed here",
            "/kind is not one of the values that are allowed",
            "/note has more than 8 characters",
            "/note does not match the pattern",
        ]
    );
    assert_eq!(
        said(schema, r#"{"id": "hunter2", "note": 1, "items": []}"#).await,
        ["/id is not an integer", "/items has fewer than 1 items", "/note is none of null, string",]
    );
}

#[tokio::test]
async fn of_alternatives_the_one_that_was_meant_is_told() {
    let schema = json!({"properties": {"a": {"anyOf": [
        {"type": "null"},
        {"type": "object", "required": ["b"], "properties": {"b": {"type": "string"}}}
    ]}}});
    assert_eq!(said(schema.clone(), r#"{"a": {"b": 1}}"#).await, ["/a/b is not a string"]);
    assert_eq!(said(schema.clone(), r#"{"a": {}}"#).await, ["/a/b is required"]);
    assert_eq!(said(schema, r#"{"a": 1}"#).await, ["/a is of none of the forms that are allowed"]);
}

#[tokio::test]
async fn at_most_twenty_violations_are_told_and_long_names_are_not() {
    let many = format!("[{}]", vec!["1"; 100].join(","));
    assert_eq!(said(json!({"items": {"type": "string"}}), &many).await.len(), 20);
    let long = format!(r#"{{"a": {{"{}": 1}}}}"#, "x".repeat(1000));
    let schema = json!({"properties": {"a": {"additionalProperties": false}}});
    assert_eq!(said(schema, &long).await, ["/a is not allowed here"]);
}

#[tokio::test]
async fn what_two_readers_may_read_differently_is_refused() {
    for body in [
        &b"{"[..],
        b"{} {}",
        b"{\"a\":1,\"a\":2}",
        b"{\"a\":1,\"\\u0061\":2}",
        b"\xef\xbb\xbf{}",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\\ud800\"}",
        b"{'a':1}",
        b"{\"a\":01}",
        b"{\"a\":NaN}",
        b"{\"a\":1e400}",
        b"[1,]",
        b"// x\n{}",
        b"{}\0",
        b" ",
    ] {
        let spec = json!({"bodySchema": {"inline": {}}});
        let body = Bytes::from_static(body);
        let error = judged(spec, Method::POST, &[JSON], body.clone().into()).await.expect_err("refused");
        assert_eq!(error.kind, ErrorKind::ValidationFailed, "{body:?}");
        assert!(error.violations[0].message.starts_with("is no JSON that can be used: "), "{body:?}");
        assert_eq!(error.violations[0].pointer, "/body");
    }
}

#[tokio::test]
async fn a_body_is_asked_for_where_the_method_means_one() {
    for (method, needed) in [
        (Method::GET, false),
        (Method::HEAD, false),
        (Method::DELETE, false),
        (Method::OPTIONS, false),
        (Method::POST, true),
        (Method::PUT, true),
        (Method::PATCH, true),
        (Method::from_bytes(b"PURGE").expect("a method"), true),
    ] {
        for body in [Body::Empty, chunks(Vec::new()), chunks(vec![Bytes::new()])] {
            let spec = json!({"bodySchema": {"inline": {"not": {}}}});
            let error = judged(spec, method.clone(), &[JSON], body).await.err();
            let told = error.map(|error| (error.kind, error.violations[0].message.clone()));
            let missing = (ErrorKind::ValidationFailed, "is required".to_owned());
            assert_eq!(told, needed.then_some(missing), "{method}");
        }
        let spec = json!({"bodySchema": {"inline": {"not": {}}}});
        let error = judged(spec, method, &[JSON], "1".into()).await.expect_err("what is there is judged");
        assert_eq!(error.kind, ErrorKind::BodyInvalid);
    }
}

#[tokio::test]
async fn only_json_is_taken_unless_other_types_are_named() {
    let alone = json!({"bodySchema": {"inline": {"type": "array"}}});
    let named =
        json!({"contentTypes": ["application/*", "text/plain"], "bodySchema": {"inline": {"type": "array"}}});
    let (not, wrong) = (Some(ErrorKind::UnsupportedMediaType), Some(ErrorKind::BodyInvalid));
    for (kind, of_alone, of_named) in [
        (Some("application/json"), wrong, wrong),
        (Some("Application/Problem+JSON; charset=\"UTF-8\""), wrong, wrong),
        (Some("application/json; charset=utf-16"), not, not),
        (Some("application/json;x=y; CHARSET = latin1"), not, not),
        (Some("text/json"), wrong, not),
        (Some("text/plain"), not, None),
        (Some("application/jsonx"), not, None),
        (Some("application/xml"), not, None),
        (None, not, not),
    ] {
        let fields: Vec<_> = kind.map(|kind| ("content-type", kind)).into_iter().collect();
        for (spec, expected) in [(&alone, of_alone), (&named, of_named)] {
            let result = judged(spec.clone(), Method::POST, &fields, "{}".into()).await;
            assert_eq!(result.err().map(|error| error.kind), expected, "{kind:?} {spec}");
        }
    }
}

#[tokio::test]
async fn what_is_packed_is_not_looked_into_and_does_not_pass() {
    for (coding, passes) in [("identity", true), ("gzip", false), ("br", false), ("identity, gzip", false)] {
        let spec = json!({"bodySchema": {"inline": {}}});
        let fields = [JSON, ("content-encoding", coding)];
        let error = judged(spec, Method::POST, &fields, "{}".into()).await.err();
        assert_eq!(error.is_none(), passes, "{coding}");
        if let Some(error) = error {
            assert_eq!(error.kind, ErrorKind::UnsupportedMediaType);
            assert_eq!(error.headers, [(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        }
    }
}

#[tokio::test]
async fn size_depth_and_number_of_values_are_bounded() {
    let kind =
        async |spec: Value, body: Body| judged(spec, Method::POST, &[JSON], body).await.err().map(|e| e.kind);
    let of_size = |size: usize| format!("\"{}\"", "x".repeat(size - 2));
    let plain = || json!({"bodySchema": {"inline": {}}});
    assert_eq!(kind(plain(), of_size(1 << 20).into()).await, None);
    assert_eq!(kind(plain(), of_size((1 << 20) + 1).into()).await, Some(ErrorKind::BodyTooLarge));
    let streamed = |text: String| chunks(vec![Bytes::from(text), Bytes::from_static(b" ")]);
    assert_eq!(kind(plain(), streamed(of_size(1 << 20))).await, Some(ErrorKind::BodyTooLarge));
    let own = || json!({"maxBodySize": "8", "bodySchema": {"inline": {}}});
    assert_eq!(kind(own(), of_size(8).into()).await, None);
    assert_eq!(kind(own(), of_size(9).into()).await, Some(ErrorKind::BodyTooLarge));
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(kind(plain(), nested(64).into()).await, None);
    assert_eq!(kind(plain(), nested(65).into()).await, Some(ErrorKind::ValidationFailed));
    let list = |values: usize| format!("[{}0]", "0,".repeat(values - 2));
    assert_eq!(kind(plain(), list(1 << 18).into()).await, None);
    assert_eq!(kind(plain(), list((1 << 18) + 1).into()).await, Some(ErrorKind::ValidationFailed));
    let problems =
        compile(json!({"maxBodySize": "17Mi", "bodySchema": {"inline": {}}})).expect_err("too much");
    assert_eq!(problems[0].path.as_str(), "maxBodySize");
}

/// Each alternative contains all of them again: without a bound on its steps, the reason why a document of 300 bytes is
/// wrong would be looked for until the end of time.
#[tokio::test]
async fn alternatives_that_contain_each_other_take_a_bounded_time() {
    let alternative = |name: &str| json!({"type": "object", "required": ["l", "op"], "properties": {"op": {"const": name}, "l": {"$ref": "#/$defs/e"}}});
    let schema = json!({
        "$ref": "#/$defs/e",
        "$defs": {"e": {"oneOf": [
            alternative("a"), alternative("b"), alternative("c"), alternative("d"), alternative("e"), {"type": "integer"}
        ]}}
    });
    let nested = |inner: &str| format!("{}{inner}{}", r#"{"l":"#.repeat(60), r#","op":"a"}"#.repeat(60));
    let right = post(schema.clone(), &nested("1")).await;
    assert!(right.is_ok(), "{right:?}");
    let wrong = said(schema, &nested("true")).await;
    assert_eq!(wrong.len(), 1, "{wrong:?}");
}

#[tokio::test]
async fn what_cannot_be_checked_in_time_does_not_pass() {
    // 64 patterns for each name.
    let patterns: serde_json::Map<_, _> =
        (0..64).map(|i| (format!("(a|b|c)*{i}(a|b|c){{300}}$"), json!(true))).collect();
    let schema = json!({"patternProperties": patterns});
    let names: serde_json::Map<_, _> =
        (0..200).map(|i| (format!("{i}{}", "abc".repeat(1000)), json!(1))).collect();
    let body = Value::from(names).to_string();
    assert_eq!(said(schema, &body).await, [" takes too long to check"]);
}

#[tokio::test]
async fn large_bodies_are_read_elsewhere() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&asked);
    let plan = compile(json!({"bodySchema": {"inline": {"type": "string"}}})).expect("valid");
    let mut linked = plan.body.expect("a schema").link(&NoKeep);
    linked.offload = Offload::new(move |work| {
        counting.fetch_add(1, Ordering::Relaxed);
        work();
        Taken::Yes
    });
    let text = |size: usize| Bytes::from(format!("\"{}\"", "x".repeat(size - 2)));
    assert!(linked.check(&text(SMALL)).await.is_ok());
    assert_eq!(asked.load(Ordering::Relaxed), 0, "small ones are not");
    assert!(linked.check(&text(SMALL + 1)).await.is_ok());
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let malformed = linked.check(&Bytes::from(vec![b'['; SMALL + 1])).await.expect_err("no JSON");
    assert_eq!((malformed.kind, asked.load(Ordering::Relaxed)), (ErrorKind::ValidationFailed, 2));
    // Small ones that take long are, too.
    let list = Bytes::from(format!("[{}0]", "0,".repeat(Effort::SMALL.steps as usize)));
    let plan = compile(json!({"bodySchema": {"inline": {"items": {"type": "integer"}}}})).expect("valid");
    linked.plan = plan.body.expect("a schema");
    assert!(linked.check(&list).await.is_ok());
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    linked.offload = Offload::new(|_| Taken::Full);
    let error = linked.check(&text(SMALL + 1)).await.expect_err("no room");
    assert_eq!(error.kind, ErrorKind::Overloaded);
}

#[test]
fn of_a_schema_in_a_secret_only_keywords_are_told() {
    let schema = json!({
        "required": ["hunter2"], "properties": {"a": {"maximum": 4711}, "b": {"type": "integer"}}
    });
    let schema = Schema::read(&schema.to_string()).expect("a schema");
    let document = Document::read(br#"{"a": 5000, "b": "x"}"#, BOUNDS).expect("JSON");
    let told = |told| -> Vec<String> {
        let violations = schema.check(&document, Effort::SMALL, told).expect("quick").expect_err("wrong");
        violations.iter().map(|one| format!("{} {}", one.pointer, one.message)).collect()
    };
    assert_eq!(
        told(Told::Schema),
        ["/hunter2 is required", "/a is greater than 4711", "/b is not an integer"]
    );
    assert_eq!(
        told(Told::Keywords),
        [r#" does not meet "required""#, r#"/a does not meet "maximum""#, r#"/b does not meet "type""#]
    );
    assert_eq!(format!("{schema:?}"), "Schema");
}

#[test]
fn a_schema_that_cannot_be_used_is_refused_where_it_is_wrong() {
    let deep = |levels: usize| (0..levels).fold(json!({}), |inner, _| json!({"not": inner}));
    let wide = |members: usize| Value::from_iter((0..members).map(|i| (i.to_string(), json!({}))));
    let doubling = |levels: usize| {
        let defs: serde_json::Map<_, _> = (0..levels)
            .map(|i| {
                let next = json!({"$ref": format!("#/$defs/{}", i + 1)});
                (i.to_string(), json!({"anyOf": [next, next]}))
            })
            .chain([(levels.to_string(), json!({"type": "null"}))])
            .collect();
        json!({"$ref": "#/$defs/0", "$defs": defs})
    };
    for (schema, pointer, message) in [
        (json!({"type": "strin"}), "/type", "is of none of the forms that are allowed"),
        (json!({"properties": {"a": {"minimum": "1"}}}), "/properties/a/minimum", "is not a number"),
        (json!({"properties": {"a": 1}}), "/properties/a", "is none of boolean, object"),
        (json!({"pattern": "("}), "/pattern", "not a regular expression that is supported"),
        (json!({"pattern": "(?=x)a"}), "/pattern", "not a regular expression that is supported"),
        (json!({"pattern": r"(a)\1"}), "/pattern", "not a regular expression that is supported"),
        (json!({"pattern": "((a{1,100}){1,100}){1,100}"}), "/pattern", "not a regular expression"),
        (json!({"patternProperties": {"a/(": {}}}), "/patternProperties/a~1(", "not a regular expression"),
        (json!({"$ref": "https://schemas.example/x.json"}), "/$ref", "it leads to another document"),
        (json!({"items": {"$ref": "file:///etc/passwd"}}), "/items/$ref", "it leads to another document"),
        (json!({"items": {"$ref": "other.json#/x"}}), "/items/$ref", "it leads to another document"),
        (json!({"$ref": "#/$defs/a"}), "/$ref", "it leads nowhere"),
        (json!({"$ref": "#a"}), "/$ref", "it leads nowhere"),
        (json!({"$ref": "#/enum/0", "enum": [{}]}), "/$ref", "it leads to what is no schema"),
        (json!({"$ref": "#"}), "", "it applies to the same value again without end"),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#"}),
            "/$schema",
            "no other dialect is supported",
        ),
        (json!({"$id": "https://json-schema.org/draft/2020-12/schema"}), "/$id", "take another"),
        (doubling(12), "/$defs/1", "more than 4096 schemas apply to one value"),
        (deep(60), &"/not".repeat(48), "more than 48 schemas apply to one value, one inside the other"),
        (json!({"x-a": deep(80)}), "", "nested too deep"),
        (
            Value::from_iter([(
                "$defs",
                (0..20).fold(wide(1000), |inner, _| json!({"x".repeat(4000): inner})),
            )]),
            "",
            "its names are too long for how deep it is nested",
        ),
        (json!({"description": "x".repeat(300_000)}), "", "expected at most 262144"),
        (
            Value::from_iter((0..300).map(|i| (i.to_string(), json!({"pattern": "a"})))),
            "/6/pattern",
            "more than 256 patterns",
        ),
    ] {
        let shown = schema.to_string().chars().take(100).collect::<String>();
        let Err(wrong) = Schema::new(&schema) else { panic!("{shown} compiles") };
        assert!(wrong.message.contains(message), "{shown}: {wrong}");
        assert_eq!(wrong.pointer, pointer, "{shown}: {wrong}");
        let problems = compile(json!({"bodySchema": {"inline": schema}})).expect_err("refused");
        assert_eq!((problems.len(), problems[0].path.as_str()), (1, "bodySchema"), "{shown}");
    }
    assert!(Schema::new(&doubling(10)).is_ok(), "the control");
    assert!(Schema::read(r#"{"type":"null","type":"string"}"#).is_err(), "a member stands twice");
}

#[test]
fn exactly_one_source_is_given() {
    for spec in [json!({}), json!({"inline": {}, "configMapRef": {"name": "a", "key": "b"}})] {
        let problems = compile(json!({"bodySchema": spec})).expect_err("refused");
        assert_eq!(problems[0].message, ONE_SOURCE);
    }
}

/// As deep as documents and schemas may be, on the stack of the threads that such documents are checked on.
#[test]
fn the_deepest_document_with_the_deepest_schema_fits_a_stack() {
    let mut defs: serde_json::Map<_, _> =
        (0..45).map(|i| (i.to_string(), json!({"$ref": format!("#/$defs/{}", i + 1)}))).collect();
    defs.insert("45".into(), json!({"items": {"$ref": "#"}, "maxItems": 1}));
    let chain = json!({"$ref": "#/$defs/0", "$defs": defs});
    let schema = Schema::new(&chain).expect("a schema");
    let nested = |inner: &str| format!("{}{inner}{}", "[".repeat(MAX_DEPTH - 1), "]".repeat(MAX_DEPTH - 1));
    for (inner, is_right) in [("[]", true), ("[1,2]", false)] {
        let document = Document::read(nested(inner).as_bytes(), BOUNDS).expect("JSON");
        assert!(schema.check(&document, Effort::SMALL, Told::Schema).is_none(), "not on a worker");
        let result = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(16 << 20);
            let check = || schema.check(&document, Effort::FULL, Told::Schema);
            thread.spawn_scoped(scope, check).expect("a thread").join().expect("no panic")
        });
        assert_eq!(result.map(|verdict| verdict.is_ok()), Some(is_right));
    }
}

/// Schemas and documents broken at random: each run the same, `MUTATIONS=N` N times as many, `MUTATIONS_SEED` others.
#[test]
fn what_is_broken_neither_panics_nor_runs_away() {
    let number = |variable: &str, otherwise: u64| {
        std::env::var(variable).ok().map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let mut state = number("MUTATIONS_SEED", 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % bound as u64).expect("below a usize")
    };
    let seeds = [
        include_str!("../../../../tests/json-schema/orders.json"),
        include_str!("../../../../tests/json-schema/words.json"),
    ];
    let groups = seeds.map(|text| serde_json::from_str::<Vec<Value>>(text).expect("cases")).concat();
    let words = [
        "{}",
        "[]",
        "null",
        "-1",
        "1e308",
        "\"$ref\"",
        "\"#\"",
        "\"$id\"",
        "\"a\"",
        "true",
        "\"#/$defs\"",
        "{\"",
        "\\u0000",
    ];
    let mut broken = |text: String| {
        let mut text = text;
        for _ in 0..=below(3) {
            let at = text.floor_char_boundary(below(text.len() + 1));
            let end = text.floor_char_boundary((at + below(16)).min(text.len()));
            match below(4) {
                0 => text.replace_range(at..end, ""),
                1 => text.insert_str(at, words[below(words.len())]),
                2 => text.replace_range(at..end, words[below(words.len())]),
                _ => {
                    let piece = text[at..end].to_owned();
                    text.insert_str(at, &piece);
                }
            }
        }
        text
    };
    let (mut compiled, mut read) = (0, 0);
    for _ in 0..number("MUTATIONS", 1) {
        for group in &groups {
            for round in 0..20 {
                let source = group["schema"].to_string();
                let source = if round == 0 { source } else { broken(source) };
                let Ok(schema) = Schema::read(&source) else { continue };
                compiled += 1;
                for case in group["tests"].as_array().expect("cases") {
                    let text = broken(case["data"].to_string());
                    let Ok(document) = Document::read(text.as_bytes(), BOUNDS) else { continue };
                    read += 1;
                    // Too much for a worker or not: it ends.
                    let _ = schema.check(&document, Effort::SMALL, Told::Keywords);
                }
            }
        }
    }
    assert!(compiled > groups.len() && read > groups.len(), "{compiled} schemas, {read} documents");
}
