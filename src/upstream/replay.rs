//! A request once more, from its head as it went out. To keep those bytes costs one copy; to keep the request itself
//! would cost an allocation and two counters for each of its fields, on every request for the sake of a rare one.

use http::{HeaderName, HeaderValue, Method, Uri, Version, header};
use http_body::Body as _;

use crate::message::{Body, Request};

/// More than any request has that was let in, with what is added to it.
const MAX_FIELDS: usize = 256;

/// The body with which a request may be sent twice: it is idempotent (RFC 9110 section 9.2.2), begins no upgrade, and
/// its body is at hand.
pub(super) fn spare_body(request: &Request) -> Option<Body> {
    if !is_idempotent(request.method()) || request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    match request.body() {
        Body::Empty => Some(Body::Empty),
        Body::Full(bytes) => Some(Body::Full(bytes.clone())),
        Body::Incoming(incoming) if incoming.is_end_stream() => Some(Body::Empty),
        Body::Received(received) if received.is_end_stream() => Some(Body::Empty),
        Body::Incoming(_) | Body::Received(_) | Body::Stream(_) => None,
    }
}

/// RFC 9110, 9.2.2
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// The request whose head these bytes begin with. None: it is not whole.
pub(super) fn rebuild(sent: &[u8], body: Body) -> Option<Request> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    head.parse(sent).ok().filter(httparse::Status::is_complete)?;
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
    *request.uri_mut() = head.path?.parse::<Uri>().ok()?;
    *request.version_mut() = Version::HTTP_11;
    for field in head.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_as_it_was_sent_is_the_request_again() {
        let sent =
            b"PUT /a%20b?c=d HTTP/1.1\r\nhost: gw.test\r\nx: 1\r\nx: \xff2\r\ncontent-length: 3\r\n\r\nabc";
        let request = rebuild(sent, Body::from("abc")).expect("whole");
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::PUT, "/a%20b?c=d"));
        let values: Vec<_> = request.headers().get_all("x").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, [&b"1"[..], b"\xff2"]);
        assert_eq!(request.headers().len(), 4);
        assert!(rebuild(&sent[..40], Body::Empty).is_none(), "not whole");
    }

    #[test]
    fn only_what_may_be_repeated_has_a_spare_body() {
        let request =
            |method: &str, body| http::Request::builder().method(method).body(body).expect("a request");
        assert!(spare_body(&request("GET", Body::Empty)).is_some());
        assert!(spare_body(&request("PUT", Body::from("x"))).is_some());
        assert!(spare_body(&request("POST", Body::Empty)).is_none());
        let mut upgrade = request("GET", Body::Empty);
        upgrade.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        assert!(spare_body(&upgrade).is_none());
    }
}
