//! The request's head as it comes in: what is ambiguous or oversized is refused, what belongs to the client's
//! connection only is taken off, and the rest is brought into one form: origin-form target with a normal path, one
//! valid `Host`.
//!
//! Known gaps, all in the parsers below us and harmless because what goes out is written anew: a bare LF ends a line,
//! `Content-Length` beside `Transfer-Encoding` is dropped (the connection ends with the answer), a fragment in the
//! target is dropped.

use std::borrow::Cow;

use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri};

use super::Limits;
use super::forwarded::introduces;
use crate::message::{ErrorKind, Protocol, ProxyError};
use crate::route_map::path::normal_form;

/// What the head said beside what still stands in it.
#[derive(Debug, Default, PartialEq)]
pub struct Intake {
    /// The one protocol that the client asks to switch to.
    pub upgrade: Option<HeaderValue>,
    /// `TE: trailers`
    pub trailers: bool,
    /// `Expect: 100-continue`
    pub expects_continue: bool,
    /// `OPTIONS *`
    pub asterisk: bool,
    /// A field introduces the client, as we do.
    pub introduced: bool,
    /// So many bytes of `Host` are the host, without a port.
    host_bytes: usize,
}

impl Intake {
    /// Of a request that nobody sent: whatever introduces a client in it is taken off.
    pub fn of_nobody() -> Self {
        Self { introduced: true, ..Self::default() }
    }

    /// The name that the request is for: lower case, without port and without the dot of a fully qualified name.
    pub fn host<'h>(&self, headers: &'h HeaderMap) -> Cow<'h, str> {
        let host = headers.get(header::HOST).and_then(|host| host.as_bytes().get(..self.host_bytes));
        name_of(host.and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default())
    }
}

/// Checks a head and brings it into its one form.
///
/// # Errors
/// What a client may be told: 400, 405, 414, 431 or 501.
pub fn take_in(
    parts: &mut http::request::Parts,
    protocol: Protocol,
    has_body: bool,
    limits: &Limits,
) -> Result<Intake, ProxyError> {
    check_line(parts, limits)?;
    let mut survey = Survey::default();
    survey.take(&parts.headers, limits)?;
    if survey.transfer_encodings > 0 {
        check_transfer_encoding(&parts.headers, protocol, survey.transfer_encodings)?;
    }
    let host_bytes = settle_host(parts, protocol, survey.hosts)?;
    let mut intake = Intake {
        expects_continue: survey.expect,
        introduced: survey.introduced,
        host_bytes,
        ..Intake::default()
    };
    settle_target(parts, &mut intake)?;
    // Over HTTP/2 the parser refuses the field: it is a WebSocket's CONNECT (see `websocket`).
    if survey.upgrade && protocol != Protocol::Http10 && !has_body {
        intake.upgrade = wanted_upgrade(&parts.headers);
    }
    if survey.te {
        intake.trailers = lists(&parts.headers, &header::TE, "trailers");
    }
    survey.strip(&mut parts.headers);
    if survey.cookies > 1 {
        join_cookies(&mut parts.headers);
    }
    Ok(intake)
}

/// One field, as HTTP/1.1 has it (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // `Connection` may have named them.
    if crumbs.is_empty() {
        return;
    }
    // What was valid apart is valid together.
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

fn check_line(parts: &http::request::Parts, limits: &Limits) -> Result<(), ProxyError> {
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        return Err(ErrorKind::MethodNotSupported.into());
    }
    if parts.method.as_str().len() > limits.method_bytes {
        return Err(ProxyError::with_detail(ErrorKind::NotImplemented, "the method's name is too long"));
    }
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > limits.target_bytes {
        return Err(ErrorKind::UriTooLong.into());
    }
    if parts.headers.len() > limits.head_fields {
        return Err(ProxyError::with_detail(ErrorKind::HeadersTooLarge, "too many header fields"));
    }
    Ok(())
}

/// What one pass over the fields found.
#[derive(Debug, Default)]
struct Survey {
    hosts: usize,
    transfer_encodings: usize,
    connection: bool,
    upgrade: bool,
    te: bool,
    cookies: usize,
    expect: bool,
    /// Any other field that ends here.
    hop_by_hop: bool,
    underscore: bool,
    introduced: bool,
}

/// Fields of RFC 9110 section 7.6.1 and those that were used in their place. `Trailer` goes on with the trailers.
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

impl Survey {
    fn take(&mut self, headers: &HeaderMap, limits: &Limits) -> Result<(), ProxyError> {
        for (name, value) in headers {
            if name.as_str().len() + value.len() > limits.field_bytes {
                return Err(ProxyError::with_detail(
                    ErrorKind::HeadersTooLarge,
                    "a header field is too large",
                ));
            }
            match *name {
                header::HOST => self.hosts += 1,
                header::TRANSFER_ENCODING => self.transfer_encodings += 1,
                header::CONNECTION => self.connection = true,
                header::UPGRADE => self.upgrade = true,
                header::TE => self.te = true,
                header::COOKIE => self.cookies += 1,
                header::EXPECT => self.expect |= value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
                header::PROXY_AUTHORIZATION => self.hop_by_hop = true,
                header::FORWARDED => self.introduced = true,
                _ => match name.as_str() {
                    "keep-alive" | "proxy-connection" | "http2-settings" => self.hop_by_hop = true,
                    other => {
                        self.underscore |= other.as_bytes().contains(&b'_');
                        self.introduced |= introduces(other);
                    }
                },
            }
        }
        Ok(())
    }

    fn strip(&self, headers: &mut HeaderMap) {
        if self.connection {
            strip_listed(headers);
        }
        if self.connection || self.hop_by_hop || self.te || self.upgrade || self.transfer_encodings > 0 {
            drop_hop_by_hop(headers);
        }
        if self.expect {
            headers.remove(header::EXPECT);
        }
        if self.underscore {
            strip_underscores(headers);
        }
    }
}

/// Takes off what belongs to one connection only, of a request or an answer. What frames the message and who it is
/// for is not `Connection`'s to take away.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip_listed(headers);
    drop_hop_by_hop(headers);
}

/// Looks for those that are there: to remove each name that could be costs a look-up each.
fn drop_hop_by_hop(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| HOP_BY_HOP.contains(name)).cloned() {
        headers.remove(name);
    }
}

fn strip_listed(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        // What most servers say; no names of fields to be taken off here.
        .filter(|token| !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"close"))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    listed.iter().for_each(|name| drop(headers.remove(name)));
}

/// Many servers take `X_Forwarded_For` for `X-Forwarded-For`, so a name with `_` could stand for one that we set or
/// check; such fields are dropped, as nginx does.
pub fn strip_underscores(headers: &mut HeaderMap) {
    let names: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    names.iter().for_each(|name| drop(headers.remove(name)));
}

/// RFC 9112 section 6.1. The parser below sees `chunked` at the end of anything; backends may see it differently.
fn check_transfer_encoding(headers: &HeaderMap, protocol: Protocol, fields: usize) -> Result<(), ProxyError> {
    let value = headers.get(header::TRANSFER_ENCODING).map(HeaderValue::as_bytes).unwrap_or_default();
    if fields == 1 && protocol == Protocol::Http11 && value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let known = |token: &[u8]| {
        let token = token.trim_ascii();
        token.is_empty() || token.eq_ignore_ascii_case(b"chunked") || token.eq_ignore_ascii_case(b"identity")
    };
    let all_known = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .all(known);
    if all_known {
        return Err(ProxyError::with_detail(
            ErrorKind::BadRequest,
            "transfer-encoding must be chunked and nothing else",
        ));
    }
    Err(ProxyError::with_detail(ErrorKind::NotImplemented, "the transfer coding is not supported"))
}

/// Exactly one valid host: the target's authority wins (RFC 9112 section 3.2.2) and takes the place of `Host`. How many
/// bytes of it are before the port.
fn settle_host(
    parts: &mut http::request::Parts,
    protocol: Protocol,
    fields: usize,
) -> Result<usize, ProxyError> {
    let wrong = |detail| Err(ProxyError::with_detail(ErrorKind::BadRequest, detail));
    if fields > 1 {
        return wrong("more than one host field");
    }
    if fields == 0 && protocol != Protocol::Http2 {
        return wrong("no host field");
    }
    if let Some(scheme) = parts.uri.scheme()
        && *scheme != http::uri::Scheme::HTTP
        && *scheme != http::uri::Scheme::HTTPS
    {
        return wrong("the target's scheme is neither http nor https");
    }
    if let Some(authority) = parts.uri.authority() {
        let written = parts.headers.get(header::HOST);
        if protocol == Protocol::Http2
            && written
                .is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
        {
            return wrong("authority and host differ");
        }
        if written.is_none_or(|host| host.as_bytes() != authority.as_str().as_bytes()) {
            let host = HeaderValue::from_str(authority.as_str())
                .map_err(|_| ProxyError::with_detail(ErrorKind::BadRequest, "the authority is not valid"))?;
            parts.headers.insert(header::HOST, host);
        }
    }
    match parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).and_then(split_host) {
        Some((host, _)) => Ok(host.len()),
        None => wrong("the host is not valid"),
    }
}

/// Splits `host[:port]`; none when it is not valid.
pub fn split_host(text: &str) -> Option<(&str, Option<u16>)> {
    let end = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, _) = inner.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            address.len() + 2
        }
        None => name_end(text.as_bytes())?,
    };
    let (host, rest) = text.split_at(end);
    let port = match rest.as_bytes() {
        [] => None,
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            Some(rest[1..].parse().ok().filter(|port| *port > 0)?)
        }
        _ => return None,
    };
    Some((host, port))
}

/// How many bytes at the start are a name without empty labels (but for the root's at the end).
fn name_end(text: &[u8]) -> Option<usize> {
    let mut after_dot = true;
    let mut end = 0;
    for byte in text {
        match byte {
            b'.' if after_dot => return None,
            b'.' => after_dot = true,
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'A'..=b'Z' | b'_' => after_dot = false,
            _ => break,
        }
        end += 1;
    }
    (1..=255).contains(&end).then_some(end)
}

/// The name to look up: lower case, without port and without the dot of a fully qualified name.
fn name_of(host: &str) -> Cow<'_, str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(host.to_ascii_lowercase());
    }
    Cow::Borrowed(host)
}

/// Origin form with a normal path: what is matched is what the backend gets.
fn settle_target(parts: &mut http::request::Parts, intake: &mut Intake) -> Result<(), ProxyError> {
    let path = parts.uri.path();
    if path == "*" {
        if parts.method != Method::OPTIONS {
            return Err(ProxyError::with_detail(ErrorKind::BadRequest, "only OPTIONS may ask for *"));
        }
        intake.asterisk = true;
        return Ok(());
    }
    let normal = normal_form(path)
        .map_err(|_| ProxyError::with_detail(ErrorKind::BadRequest, "the path has no normal form"))?;
    let changed = matches!(normal, Cow::Owned(_));
    // The parser keeps what it finds: the target of `http://host?x` is `?x`, though its path is `/`.
    let has_path = parts.uri.path_and_query().is_some_and(|target| target.as_str().starts_with('/'));
    if !changed && has_path && parts.uri.scheme().is_none() && parts.uri.authority().is_none() {
        return Ok(());
    }
    let target = match (changed, parts.uri.path_and_query()) {
        // Of `http://host#x` it keeps nothing, which has no path where it stands alone.
        (false, Some(target)) if target.as_str() == "/" => PathAndQuery::from_static("/"),
        (false, Some(target)) if has_path => target.clone(),
        (_, target) => {
            let text = match target.and_then(PathAndQuery::query) {
                Some(query) => format!("{normal}?{query}"),
                None => normal.into_owned(),
            };
            PathAndQuery::try_from(text)
                .map_err(|_| ProxyError::with_detail(ErrorKind::BadRequest, "the target is not valid"))?
        }
    };
    parts.uri = Uri::from(target);
    Ok(())
}

/// The one protocol that the client wants to switch to. More than one, or HTTP/2 without TLS (RFC 9113 took it back):
/// the wish is ignored, as any server may (RFC 9110 section 7.8).
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !lists(headers, &header::CONNECTION, "upgrade") {
        return None;
    }
    let mut values = headers.get_all(header::UPGRADE).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let single =
        !value.is_empty() && value.as_bytes().iter().all(|byte| !matches!(byte, b',' | b' ' | b'\t'));
    (single && !value.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| value.clone())
}

/// Whether a comma-separated field holds a token.
pub fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(
        target: &str,
        protocol: Protocol,
        fields: &[(&'static str, &str)],
    ) -> (Result<Intake, (ErrorKind, Option<&'static str>)>, http::request::Parts) {
        let mut request = http::Request::builder().uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        let intake = take_in(&mut parts, protocol, false, &Limits::default());
        (intake.map_err(|error| (error.kind, error.detail)), parts)
    }

    fn refused(target: &str, protocol: Protocol, fields: &[(&'static str, &str)]) -> ErrorKind {
        taken(target, protocol, fields).0.expect_err("refused").0
    }

    #[test]
    fn exactly_one_valid_host_is_wanted() {
        for host in [
            "",
            "gw.test:99999",
            "gw.test:0",
            "a@gw.test",
            "gw.test:",
            "a b",
            "a/b",
            "..",
            "[::1",
            "[x]",
            "a:1:2",
        ] {
            assert_eq!(refused("/", Protocol::Http11, &[("host", host)]), ErrorKind::BadRequest, "{host}");
        }
        assert_eq!(refused("/", Protocol::Http11, &[]), ErrorKind::BadRequest);
        assert_eq!(refused("/", Protocol::Http10, &[]), ErrorKind::BadRequest);
        assert_eq!(refused("/", Protocol::Http11, &[("host", "a"), ("host", "a")]), ErrorKind::BadRequest);
        for host in ["gw.test", "gw.test:8080", "10.0.0.1", "[::1]:80", "GW.test.", "a_b.test"] {
            assert!(taken("/", Protocol::Http11, &[("host", host)]).0.is_ok(), "{host}");
        }
    }

    #[test]
    fn the_target_s_authority_takes_the_place_of_host() {
        let (intake, parts) = taken("http://a.test/x?y=1", Protocol::Http11, &[("host", "b.test")]);
        assert!(intake.is_ok());
        assert!(parts.headers["host"] == "a.test" && parts.uri == "/x?y=1");
        let (intake, parts) = taken("https://a.test/", Protocol::Http2, &[]);
        assert!(intake.is_ok() && parts.headers["host"] == "a.test" && parts.uri == "/");
        assert_eq!(refused("https://a.test/", Protocol::Http2, &[("host", "b.test")]), ErrorKind::BadRequest);
        assert_eq!(refused("ftp://a.test/", Protocol::Http11, &[("host", "a.test")]), ErrorKind::BadRequest);
        assert_eq!(
            refused("http://u@a.test/", Protocol::Http11, &[("host", "a.test")]),
            ErrorKind::BadRequest
        );
    }

    #[test]
    fn the_name_to_look_up_is_lower_case_without_port_and_last_dot() {
        for (host, name) in
            [("GW.Test:80", "gw.test"), ("gw.test.", "gw.test"), ("[::1]:80", "[::1]"), ("a", "a")]
        {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(host).expect(host))]);
            let (host, _) = headers[header::HOST].to_str().ok().and_then(split_host).expect(host);
            assert_eq!(name_of(host), name);
        }
    }

    #[test]
    fn transfer_encoding_is_chunked_alone_or_refused() {
        let with = |values: &[&str]| {
            let fields: Vec<_> =
                [("host", "a")].into_iter().chain(values.iter().map(|v| ("transfer-encoding", *v))).collect();
            taken("/", Protocol::Http11, &fields).0.map_err(|(kind, _)| kind)
        };
        assert!(with(&["chunked"]).is_ok() && with(&["Chunked"]).is_ok());
        for bad in [&[",chunked"][..], &["identity, chunked"], &["chunked, chunked"], &["chunked", "chunked"]]
        {
            assert_eq!(with(bad), Err(ErrorKind::BadRequest), "{bad:?}");
        }
        for other in [&["gzip, chunked"][..], &["gzip", "chunked"], &["xchunked"]] {
            assert_eq!(with(other), Err(ErrorKind::NotImplemented), "{other:?}");
        }
        let old = [("host", "a"), ("transfer-encoding", "chunked")];
        assert_eq!(refused("/", Protocol::Http10, &old), ErrorKind::BadRequest);
    }

    #[test]
    fn what_belongs_to_the_connection_is_taken_off() {
        let (intake, parts) = taken(
            "/",
            Protocol::Http11,
            &[
                ("host", "a"),
                ("connection", "close, X-Secret, Host, content-length"),
                ("x-secret", "1"),
                ("content-length", "3"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authorization", "Basic x"),
                ("te", "gzip, trailers"),
                ("http2-settings", "x"),
                ("x_forwarded_for", "1.1.1.1"),
                ("accept", "*/*"),
                ("trailer", "x-sum"),
            ],
        );
        assert!(intake.expect("taken").trailers);
        let mut left: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host", "trailer"]);
    }

    #[test]
    fn one_upgrade_is_a_wish_and_everything_else_is_ignored() {
        let upgrade = |connection, value| {
            let fields = [("host", "a"), ("connection", connection), ("upgrade", value)];
            taken("/", Protocol::Http11, &fields).0.expect("taken").upgrade
        };
        assert_eq!(upgrade("keep-alive, Upgrade", "websocket"), Some(HeaderValue::from_static("websocket")));
        assert_eq!(upgrade("keep-alive", "websocket"), None);
        assert_eq!(upgrade("Upgrade, HTTP2-Settings", "h2c"), None);
        assert_eq!(upgrade("Upgrade", "websocket, h2c"), None);
        let fields = [("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")];
        assert_eq!(taken("/", Protocol::Http10, &fields).0.expect("taken").upgrade, None);
    }

    #[test]
    fn sizes_are_bounded() {
        let long = "a".repeat(9_000);
        assert_eq!(refused(&format!("/{long}"), Protocol::Http11, &[("host", "a")]), ErrorKind::UriTooLong);
        let large = "a".repeat(17 << 10);
        let fields = [("host", "a"), ("x-large", &*large)];
        assert_eq!(refused("/", Protocol::Http11, &fields), ErrorKind::HeadersTooLarge);
        let many: Vec<_> =
            std::iter::once(("host", "a")).chain((0..100).map(|_| ("cookie", "a=b"))).collect();
        assert_eq!(refused("/", Protocol::Http2, &many), ErrorKind::HeadersTooLarge);
        assert!(taken("/", Protocol::Http2, &many[..100]).0.is_ok());
    }

    #[test]
    fn the_path_is_normal_before_anybody_matches_it() {
        let (_, parts) = taken("/a/./b/%7Ex?q=%2e", Protocol::Http11, &[("host", "a")]);
        assert_eq!(parts.uri, "/a/b/~x?q=%2e");
    }

    #[test]
    fn crumbs_of_cookies_become_one_field() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2; c=3", "d="] {
            headers.append(header::COOKIE, HeaderValue::from_static(crumb));
        }
        join_cookies(&mut headers);
        let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3; d="]);
    }

    #[test]
    fn cookies_that_were_taken_off_leave_no_field() {
        let fields = [("host", "a"), ("connection", "cookie"), ("cookie", "a=1"), ("cookie", "b=2")];
        let (intake, parts) = taken("/", Protocol::Http11, &fields);
        assert!(intake.is_ok() && !parts.headers.contains_key(header::COOKIE), "{:?}", parts.headers);
    }

    /// What went on was `?x=1`, or nothing at all.
    #[test]
    fn a_target_without_a_path_asks_for_the_root() {
        for (target, form) in [
            ("http://a.test", "/"),
            ("http://a.test#x", "/"),
            ("http://a.test?", "/?"),
            ("http://a.test?x=1", "/?x=1"),
            ("http://a.test?x=1#y", "/?x=1"),
        ] {
            for protocol in [Protocol::Http11, Protocol::Http2] {
                let (intake, parts) = taken(target, protocol, &[("host", "a.test")]);
                assert!(intake.is_ok(), "{target}");
                assert_eq!(parts.uri.path(), "/", "{target}");
                assert_eq!(parts.uri.path_and_query().map(PathAndQuery::as_str), Some(form), "{target}");
            }
        }
    }
}
