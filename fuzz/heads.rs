//! Heads as the parsers below the gateway give them: what those refuse never comes to it.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use portcullis::message::Protocol;

/// The parser of HTTP/1 takes so many fields.
const MOST: usize = 100;

/// A request's head, and the bytes that come after it. Over HTTP/2 the same head says what its frames would.
pub fn request(input: &[u8], protocol: Protocol) -> Option<(http::request::Parts, &[u8])> {
    let mut fields = [httparse::EMPTY_HEADER; MOST];
    let mut head = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(end) = head.parse(input).ok()? else { return None };
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = Method::from_bytes(head.method?.as_bytes()).ok()?;
    parts.headers = map(head.headers)?;
    parts.uri = match protocol {
        Protocol::Http2 => http2_uri(head.path?, &mut parts.headers)?,
        Protocol::Http10 | Protocol::Http11 => head.path?.parse().ok()?,
    };
    Some((parts, &input[end..]))
}

/// An answer's head, and the bytes that come after it.
pub fn answer(input: &[u8]) -> Option<(StatusCode, HeaderMap, &[u8])> {
    let mut fields = [httparse::EMPTY_HEADER; MOST];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(end) = head.parse(input).ok()? else { return None };
    Some((StatusCode::from_u16(head.code?).ok()?, map(head.headers)?, &input[end..]))
}

fn map(fields: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(headers)
}

/// Of an absolute target its parts; else the target is `:path`, and the first `Host` stands for `:authority`.
fn http2_uri(target: &str, headers: &mut HeaderMap) -> Option<Uri> {
    if let Ok(uri) = target.parse::<Uri>()
        && uri.scheme().is_some()
    {
        return Some(uri);
    }
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    let mut hosts: Vec<HeaderValue> = headers.get_all(header::HOST).iter().cloned().collect();
    let first = hosts.first().and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if let Some(authority) = first {
        (parts.scheme, parts.authority) = (Some(Scheme::HTTPS), Some(authority));
        headers.remove(header::HOST);
        for host in hosts.drain(1..) {
            headers.append(header::HOST, host);
        }
    }
    Uri::from_parts(parts).ok()
}
