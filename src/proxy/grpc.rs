//! What gRPC wants of a gateway (its protocol over HTTP/2): failures as statuses of its own, the client's deadline, and
//! streams that no limit of a request's time ends.

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::message::{Body, ErrorKind, Response, grpc_timeout};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// When the client's time is over that began with the request's head.
pub fn until(headers: &HeaderMap, started: Instant) -> Option<Instant> {
    started.checked_add(grpc_timeout(headers)?)
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
