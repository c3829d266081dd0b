//! Expressions over what calls answered.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};

use super::tests::exchange;
use super::{Expression, Fault, Kind, KnownCalls, REQUEST, Subject, Template, Why};
use crate::message::{Called, Exchange, RawJson};

const MOST: usize = 1 << 20;

/// What `user` answered; `late` is not over, `gone` failed.
fn answered(user: &str) -> Exchange {
    let mut exchange = exchange();
    let mut headers = HeaderMap::new();
    headers.insert("x-page", HeaderValue::from_static("2"));
    let body = Some(Arc::new(RawJson::new(user.to_owned()).expect(user)));
    let user = Called { status: Some(StatusCode::OK), headers, body, failure: None, cause: None };
    let gone = Called { failure: Some("BackendTimeout"), ..Called::default() };
    exchange.calls = vec![user, Called::default(), gone];
    exchange
}

fn known() -> KnownCalls {
    KnownCalls::new(["user", "late", "gone"].map(Arc::from).into(), [0, 2])
}

fn parse(source: &str) -> Result<Expression, String> {
    Expression::parse_among(source, &REQUEST, Some(&known()), Kind::ANY)
        .map_err(|refused| refused.to_string())
}

fn json(source: &str, user: &str) -> Result<String, Why> {
    let exchange = answered(user);
    let expression = parse(source).expect(source);
    let text = expression.json(&Subject { exchange: &exchange }, MOST).map_err(|Fault { why, .. }| why)?;
    Ok(String::from_utf8(text).expect("JSON is text"))
}

#[test]
fn what_is_only_moved_is_written_as_it_came() {
    for piece in [
        "12345678901234567890123",
        "1e400",
        "-0",
        "1.10",
        "1E2",
        "0.1",
        "18446744073709551616",
        "\"\\u00e4\\/\"",
        "\"\\ud800\"",
        "[ 1 , 2 ]",
        "{\"a\":1,\"a\":2}",
        "null",
        "true",
    ] {
        let user = format!("{{\"n\": {piece} , \"m\":[{piece}]}}");
        let moved = format!("{{\"a\":{piece},\"b\":[{piece},{piece}]}}");
        assert_eq!(json("{'a': user.body.n, 'b': [user.body.m[0], user.body['n']]}", &user), Ok(moved));
        assert_eq!(json("user.body", &format!(" {user}\n")), Ok(user.clone()));
        assert_eq!(json("true ? user.body.n : 1", &user), Ok(piece.to_owned()));
        assert_eq!(json("[user.body].map(x, x.n)", &user), Ok(format!("[{piece}]")));
    }
}

#[test]
fn a_number_counts_where_it_is_held_exactly_only() {
    for (piece, sum) in [
        ("7", Ok("8")),
        ("-9007199254740993", Ok("-9007199254740992")),
        ("9223372036854775807", Err(Why::Overflow)),
        ("7.0", Err(Why::NoOverload)),
        ("7e0", Err(Why::NoOverload)),
        ("18446744073709551616", Err(Why::NoOverload)),
    ] {
        let user = format!("{{\"n\":{piece}}}");
        assert_eq!(json("user.body.n + 1", &user), sum.map(str::to_owned), "{piece}");
    }
    let of = |source: &str, piece: &str| json(source, &format!("{{\"n\":{piece}}}"));
    assert_eq!(of("user.body.n * 2.0", "0.5"), Ok("1.0".into()));
    assert_eq!(of("user.body.n == 9007199254740993", "9007199254740993"), Ok("true".into()));
    for (source, piece) in
        [("user.body.n > 1", "1e2"), ("user.body.n == 1.5", "1.50"), ("user.body.n in [3]", "3e0")]
    {
        assert_eq!(of(source, piece), Err(Why::Inexact), "{source}");
    }
    assert_eq!(
        of("string(user.body.n)", "12345678901234567890123"),
        Ok("\"12345678901234567890123\"".into())
    );
}

#[test]
fn bodies_are_looked_into_like_any_value() {
    let user = r#"{"id":7,"name":"A\"da","on":true,"tags":["a","b"],"items":[{"n":1,"ok":true},{"n":2,"ok":false}],"no":null}"#;
    for (source, expected) in [
        ("user.body.name", r#""A\"da""#),
        ("user.body.name + '!'", r#""A\"da!""#),
        ("user.body.name == 'A\"da' && user.body.on", "true"),
        ("!user.body.on || user.body.on ? 1 : 2", "1"),
        ("has(user.body.name) && !has(user.body.names)", "true"),
        ("'id' in user.body && !('x' in user.body)", "true"),
        ("user.body.tags.join('-')", "\"a-b\""),
        ("user.body.tags == ['a', 'b']", "true"),
        ("user.body.tags + user.body.tags", r#"["a","b","a","b"]"#),
        ("'b' in user.body.tags", "true"),
        ("size(user.body.items) + user.body.tags.size()", "4"),
        ("user.body.items.filter(i, i.ok).map(i, i.n)", "[1]"),
        ("user.body.items.exists(i, i.n == 2)", "true"),
        ("user.body.items.map(i, i.ok, {'n': i.n})", r#"[{"n":1}]"#),
        ("user.body.no == null", "true"),
        ("user.body.map(k, k)", r#"["id","name","on","tags","items","no"]"#),
        ("user.body == user.body", "true"),
        ("type(user.body.id) == int && type(user.body.tags) == list", "true"),
        ("[user.status, int(user.headers['x-page'])]", "[200,2]"),
        (
            "[user.ok, gone.ok, has(gone.body), has(gone.status), has(user.error)]",
            "[true,false,false,false,false]",
        ),
        ("gone.error", "\"BackendTimeout\""),
        (
            "{'t': timestamp('2026-01-02T03:04:05Z'), 'd': duration('90s'), 'b': b'abc'}",
            r#"{"t":"2026-01-02T03:04:05Z","d":"90s","b":"YWJj"}"#,
        ),
        ("{'q': 'a\\u0001\\n\"', 'n': null}", "{\"q\":\"a\\u0001\\n\\\"\",\"n\":null}"),
    ] {
        assert_eq!(json(source, user).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn what_has_no_single_value_or_none_is_a_fault() {
    for (source, user, why) in [
        ("user.body.a", r#"{"a":1,"a":1}"#, Why::SeveralMembers),
        ("user.body.a", r#"{"a":1,"\u0061":1}"#, Why::SeveralMembers),
        ("user.body.map(k, k)", r#"{"b":1,"b":1}"#, Why::SeveralMembers),
        ("user.body.a", "{}", Why::NoSuchKey),
        ("user.body.a", "[]", Why::NoOverload),
        ("user.body.a.b", r#"{"a":"text"}"#, Why::NoOverload),
        ("user.body[2]", "[1]", Why::NoSuchIndex),
        ("user.body.a + ''", r#"{"a":"\ud800"}"#, Why::NotText),
        ("gone.body", "1", Why::NoSuchKey),
        ("gone.status", "1", Why::NoSuchKey),
        ("1.0 / 0.0", "1", Why::NoJson),
        ("int", "1", Why::NoJson),
        ("{1: 2}", "1", Why::NoJson),
    ] {
        assert_eq!(json(source, user), Err(why), "{source} of {user}");
    }
    let long = format!("\"{}\"", "x".repeat(MOST / 2));
    assert_eq!(json("[user.body, user.body]", &long), Err(Why::TooLong));
    let many = format!("[{}]", vec!["1"; 30_000].join(","));
    assert_eq!(json("user.body.exists(x, x == 2)", &many), Err(Why::TooExpensive));
    assert!(json("[user.body]", &many).is_ok(), "the control: it is moved");
}

#[test]
fn only_calls_that_are_over_may_be_named() {
    for (source, expected) in [
        ("late.body", "the call \"late\" may not be over by then; add it to dependsOn (line 1, column 1)"),
        (
            "user",
            "user alone is no value; name one of its fields: body, status, headers, ok, error (line 1, column 1)",
        ),
        ("user.boddy", "the call user has no field \"boddy\"; did you mean \"body\"? (line 1, column 6)"),
        ("usr.body", "there is no \"usr\"; did you mean \"user\"? (line 1, column 1)"),
        (
            "user.headers['X-Page']",
            "names of header fields are in lower case here: write 'x-page' (line 1, column 14)",
        ),
    ] {
        assert_eq!(parse(source).expect_err(source), expected);
    }
    assert!(Expression::parse("user.body", &REQUEST, Kind::ANY).is_err());
    let parse = |calls| Expression::parse_among("user.ok", &REQUEST, Some(calls), Kind::BOOL).expect("known");
    let moved = KnownCalls::new(["late", "user"].map(Arc::from).into(), [1]);
    assert_ne!(parse(&known()), parse(&moved), "the same text, another call");
}

#[test]
fn a_path_is_cut_at_its_own_question_mark() {
    let exchange = answered(r#"{"id":"a/?&b","n":12345678901234567890}"#);
    let subject = Subject { exchange: &exchange };
    let template = |source| Template::parse_among(source, &REQUEST, Some(&known())).expect(source);
    let (path, query) = template("/u/${user.body.n}?id=${user.body.id}&x=1?${'?' + '='}").cut_at_query();
    let path = super::PathTemplate::new(path).expect("a path");
    assert_eq!(path.fill(&subject).as_deref(), Ok("/u/12345678901234567890"));
    let query = query.expect("a query").whole_query(&subject);
    assert_eq!(query.as_deref(), Ok("id=a%2F%3F%26b&x=1?%3F%3D"));
    let (path, query) = template("/u/${user.body.id}").cut_at_query();
    assert_eq!(query, None);
    let path = super::PathTemplate::new(path).expect("a path");
    assert_eq!(path.fill(&subject).as_deref(), Ok("/u/a%2F%3F%26b"));
    assert_eq!(path.source(), "/u/${user.body.id}");
}
