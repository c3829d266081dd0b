//! What templates make of values in each place, and what they make nothing of.

use proptest::prelude::*;

use super::tests::exchange;
use super::*;
use crate::message::Exchange;

fn template(source: &str) -> Template {
    Template::parse(source, &REQUEST).unwrap_or_else(|refused| panic!("{source}: {refused}"))
}

/// An exchange whose header field `x` has this value.
fn with(value: &[u8]) -> Exchange {
    let mut exchange = exchange();
    let value = http::HeaderValue::from_bytes(value).expect("a value");
    exchange.request.headers_mut().insert("x", value);
    exchange
}

/// An exchange whose capture `id` has this value, as the client sent it.
fn captured(value: &str) -> Exchange {
    Exchange { captures: crate::message::Captures(vec![("id".into(), value.into())]), ..exchange() }
}

fn path(source: &str, exchange: &Exchange) -> Result<String, Why> {
    let path = PathTemplate::new(template(source)).unwrap_or_else(|error| panic!("{source}: {error}"));
    path.fill(&Subject { exchange }).map_err(|fault| fault.why)
}

fn header(source: &str, exchange: &Exchange) -> Result<Vec<u8>, Why> {
    let value = template(source).header(&Subject { exchange }).map_err(|fault| fault.why)?;
    Ok(value.as_bytes().to_vec())
}

fn query(source: &str, exchange: &Exchange) -> Result<String, Why> {
    template(source).query(&Subject { exchange }).map_err(|fault| fault.why)
}

#[test]
fn values_stand_where_they_are_named() {
    let exchange = exchange();
    assert_eq!(
        path("/users/${identity.id}/orders/${path.id}", &exchange).as_deref(),
        Ok("/users/alice/orders/a%20b")
    );
    assert_eq!(
        path(
            "/v${identity.claims.level}/${identity.claims.level > 3 ? 'a' : 'b'}.${request.method}/",
            &exchange
        )
        .as_deref(),
        Ok("/v7/a.POST/")
    );
    assert_eq!(
        header("${identity.id} of ${identity.claims.org.id}, ${client.tls}", &exchange).as_deref(),
        Ok(&b"alice of 12, true"[..])
    );
    assert_eq!(query("a b/${path.id}", &exchange).as_deref(), Ok("a%20b%2Fa%20b"));
    // Braces and quotes of the expression are its own.
    assert_eq!(header("${{'a': '}'}.a}${\"}\"}", &exchange).as_deref(), Ok(&b"}}"[..]));
}

#[test]
fn two_dollars_and_a_brace_are_text() {
    let exchange = exchange();
    for (source, expected) in [
        ("$${request.host}", "${request.host}"),
        ("$$${x}", "$${x}"),
        ("cost: 5$", "cost: 5$"),
        ("$", "$"),
        ("", ""),
        ("$${${identity.id}}", "${alice}"),
    ] {
        assert_eq!(header(source, &exchange).as_deref(), Ok(expected.as_bytes()), "{source}");
    }
    assert_eq!(template("$${x}").as_text(), Some("${x}"));
    assert_eq!(template("${identity.id}").as_text(), None);
}

#[test]
fn what_is_wrong_is_told_with_its_place_in_the_whole_text() {
    for (source, message) in [
        ("/a/${nosuch}", "(line 1, column 6)"),
        ("/${request.method}/${request.hoast}", "did you mean \"host\"? (line 1, column 30)"),
        ("/a/${path.id", "is not closed by a } (line 1, column 6)"),
        ("/a/${}", "(line 1, column 6)"),
        ("/a/${1 +}", "(line 1, column 9)"),
        ("/a/${'b}", "the quotes that open here are not closed (line 1, column 6)"),
        ("${identity.scopes}", "(line 1, column 11)"),
        ("a\n${identity.claims}", "(line 2, column 11)"),
        ("${null}", "(line 1, column 3)"),
    ] {
        let told = Template::parse(source, &REQUEST).expect_err(source).to_string();
        assert!(told.ends_with(message), "{source}: {told}");
    }
}

#[test]
fn a_method_is_one_that_is_sent_or_there_is_none() {
    let method = |source: &str| MethodTemplate::new(template(source));
    for source in
        ["", "TRACE", "CONNECT", "G T", "GET ${path.id}", "${path.id}/", "$${x}", "a\n", "GET\u{e9}"]
    {
        assert_eq!(method(source), Err(NoMethod), "{source:?}");
    }
    let long = "x".repeat(33);
    for (source, value, expected) in [
        ("GET", "", Ok("GET")),
        ("PURGE", "", Ok("PURGE")),
        ("${request.headers['x']}", "PATCH", Ok("PATCH")),
        ("${request.headers['x']}", "patch", Ok("patch")),
        ("${request.headers['x'] == '1' ? 'PUT' : 'POST'}", "1", Ok("PUT")),
        ("VERSION-${request.headers['x']}", "CONTROL", Ok("VERSION-CONTROL")),
        ("${request.headers['x']}", "TRACE", Err(Why::NoMethod)),
        ("CON${request.headers['x']}", "NECT", Err(Why::NoMethod)),
        ("${request.headers['x']}", "", Err(Why::NoMethod)),
        ("${request.headers['x']}", "GET /", Err(Why::NoMethod)),
        ("${request.headers['x']}", "GET\u{e9}", Err(Why::NoMethod)),
        ("${request.headers['x']}", long.as_str(), Err(Why::NoMethod)),
        ("${request.headers['y']}", "", Err(Why::NoSuchKey)),
    ] {
        let exchange = with(value.as_bytes());
        let filled = method(source).expect(source).fill(&Subject { exchange: &exchange });
        let filled = filled.map(|method| method.to_string()).map_err(|fault| fault.why);
        assert_eq!(filled, expected.map(str::to_owned), "{source} {value}");
    }
}

#[test]
fn around_expressions_a_path_is_in_normal_form() {
    for source in [
        "a/${path.id}",
        "${path.id}/a",
        "//${path.id}",
        "/a//${path.id}",
        "/../${path.id}",
        "/%2e%2e/${path.id}",
        "/a%2f${path.id}",
        "/a%${path.id}",
        "/%4${path.id}1",
        "/%41/${path.id}",
        "/a b/${path.id}",
        "/a?b=${path.id}",
        "/a#${path.id}",
        "/ä/${path.id}",
    ] {
        assert!(PathTemplate::new(template(source)).is_err(), "{source}");
    }
    assert_eq!(path("/%c3%a4;v=1/${path.id};x", &exchange()).as_deref(), Ok("/%c3%a4;v=1/a%20b;x"));
}

#[test]
fn a_value_never_makes_or_takes_a_segment() {
    for (value, expected) in [
        ("a/b", Ok("/u/a%2Fb/o")),
        ("a%2fb", Ok("/u/a%252fb/o")),
        ("%2e%2e", Ok("/u/%252e%252e/o")),
        ("%2e%2e%2f", Ok("/u/%252e%252e%252f/o")),
        ("a?b#c", Ok("/u/a%3Fb%23c/o")),
        ("a;b", Ok("/u/a%3Bb/o")),
        ("...", Ok("/u/.../o")),
        ("..a", Ok("/u/..a/o")),
        ("ä", Ok("/u/%C3%A4/o")),
        (".", Err(Why::DotSegment)),
        ("..", Err(Why::DotSegment)),
        ("../admin", Err(Why::DotSegment)),
        ("a/../b", Err(Why::DotSegment)),
        ("a\\..\\b", Err(Why::DotSegment)),
        ("..;/admin", Err(Why::DotSegment)),
        ("", Err(Why::EmptySegment)),
    ] {
        let exchange = with(value.as_bytes());
        assert_eq!(
            path("/u/${request.headers['x']}/o", &exchange).as_deref(),
            expected.as_ref().copied(),
            "{value:?}"
        );
    }
    // What a client sends encoded is decoded once, and encoded again.
    for (value, expected) in [
        ("%0d%0aX:y", Err(Why::ControlCharacter)),
        ("a%00", Err(Why::ControlCharacter)),
        ("%2e%2e", Err(Why::DotSegment)),
        ("%2E.", Err(Why::DotSegment)),
        ("a%2Fb", Ok("/u/a%2Fb")),
        ("%252e%252e", Ok("/u/%252e%252e")),
    ] {
        assert_eq!(
            path("/u/${path.id}", &captured(value)).as_deref(),
            expected.as_ref().copied(),
            "{value:?}"
        );
    }
    // Two that are harmless each, and text beside them.
    for source in [
        "/${request.headers['x']}${request.headers['x']}",
        "/.${request.headers['x']}",
        "/${request.headers['x']};v=1/a",
        "/a/${request.headers['x']}.",
    ] {
        assert_eq!(path(source, &with(b".")), Err(Why::DotSegment), "{source}");
    }
    for source in ["/${request.headers['x']}", "/a/${request.headers['x']}/", "/${request.headers['x']}/a"] {
        assert_eq!(path(source, &with(b"")), Err(Why::EmptySegment), "{source}");
    }
    assert_eq!(path("/a${request.headers['x']}", &with(b"")).as_deref(), Ok("/a"));
}

#[test]
fn a_value_never_ends_a_field_or_a_parameter() {
    for value in ["a%0d%0aSet-Cookie: x", "a%0Ab", "%00", "a%7f", "%09"] {
        assert_eq!(header("v=${path.id}", &captured(value)), Err(Why::ControlCharacter), "{value}");
    }
    assert_eq!(header("${path.id}", &captured("caf%C3%A9 ")).as_deref(), Ok("café".as_bytes()));
    for (value, expected) in [
        ("a&b=c", "a%26b%3Dc"),
        ("a%26b", "a%26b"),
        ("a+b c", "a%2Bb%20c"),
        ("a%0d%0ab", "a%0D%0Ab"),
        ("#?/;%2500", "%23%3F%2F%3B%2500"),
    ] {
        assert_eq!(query("${path.id}", &captured(value)).as_deref(), Ok(expected), "{value}");
    }
}

#[test]
fn what_has_no_value_makes_nothing() {
    let exchange = exchange();
    for (source, why) in [
        ("/${identity.claims.nosuch}", Why::NoSuchKey),
        ("/${request.headers['accept']}", Why::SeveralValues),
        ("/${request.headers['x-latin']}", Why::NotText),
        ("/${identity.claims.groups}", Why::NoOverload),
        ("/${path.nosuch}", Why::NoSuchKey),
    ] {
        assert_eq!(path(source, &exchange), Err(why), "{source}");
        assert_eq!(header(source, &exchange), Err(why), "{source}");
        assert_eq!(query(source, &exchange), Err(why), "{source}");
    }
    let long = captured(&"a".repeat(20_000));
    assert_eq!(path("/${path.id}", &long), Err(Why::TooLong));
    assert_eq!(header("${path.id}", &long), Err(Why::TooLong));
    assert_eq!(query("${path.id}", &long), Err(Why::TooLong));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(source in "[${}'\"a-z./\\\\ é]{0,40}", value in "\\PC{0,20}") {
        if let Ok(template) = Template::parse(&source, &REQUEST) {
            let exchange = captured(&value);
            let subject = Subject { exchange: &exchange };
            let _ = (template.header(&subject), template.query(&subject));
            if let Ok(path) = PathTemplate::new(template) {
                let _ = path.fill(&subject);
            }
        }
    }

    #[test]
    fn whatever_is_filled_in_the_path_has_its_segments(value in "\\PC{0,12}|[./%\\\\;2eEfF]{0,8}") {
        let encoded: String = percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC).to_string();
        if let Ok(filled) = path("/a/${path.id}/b", &captured(&encoded)) {
            let segments: Vec<_> = filled.split('/').collect();
            prop_assert_eq!(segments.len(), 4);
            prop_assert_eq!((segments[1], segments[3]), ("a", "b"));
            let decoded = percent_encoding::percent_decode_str(segments[2]).decode_utf8().expect("UTF-8");
            prop_assert_eq!(&*decoded, &*value);
            prop_assert!(!decoded.split(['/', '\\']).any(|part| matches!(part, "." | "..")));
        }
    }
}
