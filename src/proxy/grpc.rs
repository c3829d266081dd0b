//! What gRPC wants of a gateway (its protocol over HTTP/2): failures as statuses of its own, the client's deadline, and
//! streams that no limit of a request's time ends.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::message::{Body, ErrorKind, Response};

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is a call of gRPC. gRPC-Web is another protocol.
pub fn is_call(method: &Method, headers: &HeaderMap) -> bool {
    if *method != Method::POST {
        return false;
    }
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// How long the client gives the call from now on. None: for ever, or what it says is no time.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Tells the backend what is left of the client's time.
pub fn set_timeout(headers: &mut HeaderMap, left: Duration) {
    // At most eight digits; a time that is over is still a time.
    let text = match (left.as_micros(), left.as_millis()) {
        (micros @ ..100_000_000, _) => format!("{micros}u"),
        (_, millis @ ..100_000_000) => format!("{millis}m"),
        _ => format!("{}S", left.as_secs().min(99_999_999)),
    };
    headers.insert(TIMEOUT, HeaderValue::try_from(text).expect("digits and a letter"));
}

/// When the client's time is over that began with the request's head.
pub fn until(headers: &HeaderMap, started: Instant) -> Option<Instant> {
    started.checked_add(timeout(headers)?)
}

/// The status of a failure, `status` being that of HTTP.
pub fn status(kind: ErrorKind, status: StatusCode) -> u8 {
    match kind {
        ErrorKind::ClientGone => CANCELLED,
        ErrorKind::RequestTimeout | ErrorKind::BackendTimeout => DEADLINE_EXCEEDED,
        ErrorKind::RateLimited | ErrorKind::TooManyFailures => RESOURCE_EXHAUSTED,
        // As Gateway API wants it of a GRPCRoute.
        ErrorKind::BackendNotFound | ErrorKind::MisdirectedRequest => UNAVAILABLE,
        ErrorKind::InvalidResponse | ErrorKind::TransformFailed => INTERNAL,
        _ => match status.as_u16() {
            400 | 415 | 422 => INVALID_ARGUMENT,
            401 => UNAUTHENTICATED,
            403 => PERMISSION_DENIED,
            404 | 405 | 501 => UNIMPLEMENTED,
            413 | 414 | 429 | 431 => RESOURCE_EXHAUSTED,
            502..=504 => UNAVAILABLE,
            500 | 508 => INTERNAL,
            _ => UNKNOWN,
        },
    }
}

const CANCELLED: u8 = 1;
const UNKNOWN: u8 = 2;
const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const UNAUTHENTICATED: u8 = 16;

/// gRPC's "trailers only": 200, and in the head what would stand behind a body.
pub fn status_only(kind: ErrorKind, of_http: StatusCode, words: &str) -> Response {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(STATUS, HeaderValue::from(u16::from(status(kind, of_http))));
    headers.insert(MESSAGE, message(words));
    response
}

/// The name of a status in gRPC's own list; for the docs.
pub fn name(status: u8) -> &'static str {
    match status {
        CANCELLED => "CANCELLED",
        INVALID_ARGUMENT => "INVALID_ARGUMENT",
        DEADLINE_EXCEEDED => "DEADLINE_EXCEEDED",
        PERMISSION_DENIED => "PERMISSION_DENIED",
        RESOURCE_EXHAUSTED => "RESOURCE_EXHAUSTED",
        UNIMPLEMENTED => "UNIMPLEMENTED",
        INTERNAL => "INTERNAL",
        UNAVAILABLE => "UNAVAILABLE",
        UNAUTHENTICATED => "UNAUTHENTICATED",
        _ => "UNKNOWN",
    }
}

/// A text as `grpc-message` has it: percent-encoded but for what is printed as it is.
fn message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    HeaderValue::try_from(encoded).expect("printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_call_is_a_post_of_grpc_s_own_type() {
        let is = |method: Method, kind| is_call(&method, &with(CONTENT_TYPE, kind));
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
            assert!(is(Method::POST, kind), "{kind}");
            assert!(!is(Method::GET, kind), "{kind}");
        }
        for kind in ["application/grpc-web", "application/grpc-web+proto", "application/json", "x", ""] {
            assert!(!is(Method::POST, kind), "{kind}");
        }
    }

    #[test]
    fn a_deadline_is_digits_and_a_unit_or_none() {
        for (text, time) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("100m", Duration::from_millis(100)),
            ("0u", Duration::ZERO),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(timeout(&with(TIMEOUT, text)), Some(time), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", " 1S", "1 S", "100000000S", "1.5S", "1SS"] {
            assert_eq!(timeout(&with(TIMEOUT, text)), None, "{text}");
        }
    }

    #[test]
    fn what_is_left_is_told_in_eight_digits_and_never_more_than_it_is() {
        for (left, text) in [
            (Duration::ZERO, "0u"),
            (Duration::from_nanos(1_999), "1u"),
            (Duration::from_micros(99_999_999), "99999999u"),
            (Duration::from_micros(100_000_999), "100000m"),
            (Duration::from_millis(100_000_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            let mut headers = HeaderMap::new();
            set_timeout(&mut headers, left);
            assert_eq!(headers[TIMEOUT], text);
            assert!(timeout(&headers).expect("valid") <= left);
        }
    }

    #[test]
    fn a_message_is_printable_whatever_it_says() {
        assert_eq!(message("a b: 100 % ü\n"), "a b: 100 %25 %C3%BC%0A");
    }

    #[test]
    fn every_failure_has_a_status_of_an_error() {
        for row in super::super::respond::TABLE {
            let code = status(row.kind, StatusCode::from_u16(row.status).expect("a status"));
            assert!((1..=16).contains(&code), "{:?}", row.kind);
            assert!(name(code) != "UNKNOWN", "{:?} is known better", row.kind);
        }
    }
}
