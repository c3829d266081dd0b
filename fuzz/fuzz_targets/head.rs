//! Any bytes as a request's head, over each protocol: it is refused with one of five words, or has one host, one path in
//! normal form and no field of its connection, and is then its own form.
#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
#[allow(dead_code, reason = "answers are the cache's")]
#[path = "../heads.rs"]
mod heads;
#[cfg(test)]
use super::heads;

use std::collections::{BTreeMap, BTreeSet};

use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};
use portcullis::http1::{frame, write_head};
use portcullis::message::{ErrorKind, Protocol};
use portcullis::proxy::Limits;
use portcullis::proxy::request_head::{Intake, split_host, take_in};
use portcullis::route_map::path::normal_form;

const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

/// Whether it was taken over any protocol.
pub fn check(input: &[u8]) -> bool {
    let mut taken = false;
    for protocol in [Protocol::Http10, Protocol::Http11, Protocol::Http2] {
        if let Some((parts, body)) = heads::request(input, protocol) {
            taken |= is_taken(&parts, protocol, !body.is_empty());
        }
    }
    taken
}

fn is_taken(asked: &Parts, protocol: Protocol, has_body: bool) -> bool {
    // So that short inputs reach them.
    let limits = Limits {
        head_fields: 24,
        field_bytes: 256,
        target_bytes: 256,
        method_bytes: 16,
        ..Limits::default()
    };
    let mut parts = asked.clone();
    let intake = match take_in(&mut parts, protocol, has_body, &limits) {
        Ok(intake) => intake,
        Err(refused) => {
            use ErrorKind::{BadRequest, HeadersTooLarge, MethodNotSupported, NotImplemented, UriTooLong};
            let told = [BadRequest, HeadersTooLarge, MethodNotSupported, NotImplemented, UriTooLong]
                .contains(&refused.kind);
            assert!(told, "no word for what is wrong with a head: {:?}", refused.kind);
            return false;
        }
    };
    bounds(asked, &limits);
    framing(&asked.headers, protocol);
    host(asked, &parts, &intake);
    target(asked, &parts, &intake);
    fields(&asked.headers, &parts.headers);
    told(asked, &parts, &intake, protocol, has_body);
    again(&parts, protocol, has_body, &intake);
    if !intake.asterisk {
        written(&parts, has_body);
    }
    true
}

fn bounds(asked: &Parts, limits: &Limits) {
    assert!(asked.method != Method::CONNECT && asked.method != Method::TRACE);
    assert!(asked.method.as_str().len() <= limits.method_bytes, "a long method");
    assert!(asked.headers.len() <= limits.head_fields, "many fields");
    let is_large =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() > limits.field_bytes;
    assert!(!asked.headers.iter().any(is_large), "a large field");
    assert!(
        asked.uri.path().len() + asked.uri.query().map_or(0, str::len) <= limits.target_bytes,
        "a long target"
    );
}

/// How the body ends is said in one way.
fn framing(asked: &HeaderMap, protocol: Protocol) {
    let codings: Vec<_> = asked.get_all(header::TRANSFER_ENCODING).iter().collect();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    match codings[..] {
        [] => {}
        [one] => assert!(protocol == Protocol::Http11 && is_chunked(one), "a body that ends in two ways"),
        _ => panic!("several codings"),
    }
}

/// There is one; the target's goes before the field.
fn host(asked: &Parts, parts: &Parts, intake: &Intake) {
    let hosts: Vec<_> = parts.headers.get_all(header::HOST).iter().collect();
    let [host] = hosts[..] else { panic!("{} hosts", hosts.len()) };
    match asked.uri.authority() {
        Some(authority) => assert_eq!(host, authority.as_str(), "another host than the target's"),
        None => assert_eq!(Some(host), asked.headers.get(header::HOST), "another host"),
    }
    let (name, port) =
        host.to_str().ok().and_then(split_host).expect("a host is a name or an address, and a port");
    let rest = &host.as_bytes()[name.len()..];
    match port {
        None => assert!(rest.is_empty(), "something after the host"),
        Some(port) => {
            assert_eq!(std::str::from_utf8(&rest[1..]).ok().and_then(|text| text.parse().ok()), Some(port))
        }
    }
    let name = intake.host(&parts.headers);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let is_address = name.starts_with('[') && name.ends_with(']');
    assert!(is_address || name.split('.').all(is_label), "no name: {name}");
    assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()), "two spellings: {name}");
}

/// What is matched is what goes on.
fn target(asked: &Parts, parts: &Parts, intake: &Intake) {
    if intake.asterisk {
        assert!(asked.method == Method::OPTIONS && asked.uri.path() == "*");
        return;
    }
    let (uri, path) = (&parts.uri, parts.uri.path());
    assert!(uri.scheme().is_none() && uri.authority().is_none(), "no origin form: {uri}");
    assert_eq!(normal_form(asked.uri.path()).as_deref(), Ok(path), "not the normal form");
    assert_eq!(uri.query(), asked.uri.query(), "another query");
    let written = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    assert_eq!(
        uri.path_and_query().map(|target| target.as_str()),
        Some(&*written),
        "another target than its parts"
    );
    assert_eq!(uri.to_string(), written, "another target on the wire");
    assert!(path.is_ascii() && path.starts_with('/') && !path.contains("//"), "{path}");
    assert!(!path.split('/').any(|segment| matches!(segment, "." | "..")), "{path}");
    let lower = path.to_ascii_lowercase();
    assert!(!["%2e", "%2f", "%5c", "%00", "\\", "?", "#"].iter().any(|part| lower.contains(part)), "{path}");
}

/// Nothing of the connection stays, nothing else goes, and cookies are one field.
fn fields(asked: &HeaderMap, left: &HeaderMap) {
    let listed: BTreeSet<String> = tokens(asked, header::CONNECTION)
        .filter(|token| !["keep-alive", "close", "host", "content-length"].contains(&token.as_str()))
        .collect();
    let is_expected = asked
        .get_all(header::EXPECT)
        .iter()
        .any(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let mut expected: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
    for (name, value) in asked {
        let name = name.as_str();
        let goes = HOP_BY_HOP.contains(&name)
            || listed.contains(name)
            || name.contains('_')
            || name == "host"
            || (name == "expect" && is_expected);
        if !goes {
            expected.entry(name).or_default().push(value.as_bytes());
        }
    }
    let cookies = expected.get("cookie").map(|crumbs| crumbs.join(&b"; "[..]));
    if let Some(cookies) = &cookies {
        expected.insert("cookie", vec![cookies]);
    }
    let mut found: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
    for (name, value) in left.iter().filter(|(name, _)| *name != header::HOST) {
        found.entry(name.as_str()).or_default().push(value.as_bytes());
    }
    assert_eq!(found, expected);
}

/// What is known of the head beside what stands in it.
fn told(asked: &Parts, parts: &Parts, intake: &Intake, protocol: Protocol, has_body: bool) {
    let headers = &asked.headers;
    assert_eq!(intake.trailers, tokens(headers, header::TE).any(|token| token == "trailers"));
    if let Some(upgrade) = &intake.upgrade {
        assert!(protocol != Protocol::Http10 && !has_body, "an upgrade after a body");
        assert!(tokens(headers, header::CONNECTION).any(|token| token == "upgrade"), "nobody asked for it");
        assert_eq!(headers.get_all(header::UPGRADE).iter().collect::<Vec<_>>(), [upgrade], "one of several");
        let word = upgrade.as_bytes();
        assert!(!word.is_empty() && !word.iter().any(|byte| b", \t".contains(byte)), "several: {upgrade:?}");
    }
    let introduces = |name: &HeaderName| {
        let name = name.as_str();
        ["forwarded", "x-real-ip", "x-request-id", "x-portcullis-passes", "x-portcullis-mirror"]
            .contains(&name)
            || ["x-forwarded", "x-original-", "x-rewrite-"].iter().any(|start| name.starts_with(start))
    };
    assert!(intake.introduced || !parts.headers.keys().any(introduces), "somebody introduces the client");
}

/// The form of a form is itself; it may be longer than what came.
fn again(parts: &Parts, protocol: Protocol, has_body: bool, intake: &Intake) {
    let limits = Limits { field_bytes: usize::MAX, target_bytes: usize::MAX, ..Limits::default() };
    let mut twice = parts.clone();
    let second = take_in(&mut twice, protocol, has_body, &limits);
    let second = second.unwrap_or_else(|refused| panic!("its own form is refused: {:?}", refused.detail));
    assert_eq!((&twice.method, &twice.uri, &twice.headers), (&parts.method, &parts.uri, &parts.headers));
    assert_eq!(second.host(&twice.headers), intake.host(&parts.headers));
    assert_eq!((second.upgrade, second.trailers, second.expects_continue), (None, false, false));
}

/// A backend reads one request from what is written to it, and the same one.
fn written(parts: &Parts, has_body: bool) {
    let (mut headers, mut wire) = (parts.headers.clone(), Vec::new());
    // It says two lengths, which the parser below the gateway refuses.
    let Ok(_) = frame(&mut headers, !has_body, None) else { return };
    write_head(&mut wire, &parts.method, &parts.uri, &headers, [b"", b""]);
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut fields);
    assert_eq!(head.parse(&wire), Ok(httparse::Status::Complete(wire.len())), "{}", wire.escape_ascii());
    assert_eq!((head.method, head.path), (Some(parts.method.as_str()), Some(&*parts.uri.to_string())));
    let read = head.headers.iter().map(|field| (field.name, field.value.trim_ascii()));
    let meant = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes().trim_ascii()));
    assert!(read.eq(meant), "other fields: {}", wire.escape_ascii());
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    let codings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
    assert!(lengths + codings <= 1 && (!has_body || lengths + codings == 1), "a body that ends in two ways");
}

/// The members of a list field, in lower case.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = String> {
    let members = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    members.map(|member| String::from_utf8_lossy(member.trim_ascii()).to_ascii_lowercase())
}
