//! What everybody on a request's way must know of gRPC's protocol over HTTP/2: what a call is, how long the client gives
//! it, and what it came to.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::values::GrpcCode;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatus {
    Good,
    Failed(GrpcCode),
}

/// Whether a request is a call of gRPC. gRPC-Web is another protocol.
pub fn is_grpc_call(method: &Method, headers: &HeaderMap) -> bool {
    if *method != Method::POST {
        return false;
    }
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// How long the client gives the call from now on. None: for ever, or what it says is no time.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
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
pub fn set_grpc_timeout(headers: &mut HeaderMap, left: Duration) {
    // At most eight digits; a time that is over is still a time.
    let text = match (left.as_micros(), left.as_millis()) {
        (micros @ ..100_000_000, _) => format!("{micros}u"),
        (_, millis @ ..100_000_000) => format!("{millis}m"),
        _ => format!("{}S", left.as_secs().min(99_999_999)),
    };
    headers.insert(TIMEOUT, HeaderValue::try_from(text).expect("digits and a letter"));
}

impl GrpcStatus {
    /// As a head or trailers say it; what is no number of the list is `Unknown`. None: they say nothing.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let number = headers.get(&STATUS)?.to_str().ok().and_then(|text| text.parse().ok());
        Some(match number {
            Some(0) => Self::Good,
            Some(number) => Self::Failed(GrpcCode::of_number(number).unwrap_or(GrpcCode::Unknown)),
            None => Self::Failed(GrpcCode::Unknown),
        })
    }

    /// By the head of an answer alone: of "trailers only", or of something that is no server of gRPC. None: it is not
    /// known yet.
    pub fn of_head(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        Self::of(headers).or_else(|| {
            // As clients take it: gRPC's "HTTP to gRPC Status Code Mapping".
            let code = match status.as_u16() {
                200 => return None,
                400 => GrpcCode::Internal,
                401 => GrpcCode::Unauthenticated,
                403 => GrpcCode::PermissionDenied,
                404 => GrpcCode::Unimplemented,
                429 | 502 | 503 | 504 => GrpcCode::Unavailable,
                _ => GrpcCode::Unknown,
            };
            Some(Self::Failed(code))
        })
    }

    /// Whether the server is to blame: what 5xx is in HTTP. Not a deadline, which is the client's, and not what any
    /// client can bring about.
    pub fn is_server_error(self) -> bool {
        matches!(
            self,
            Self::Failed(GrpcCode::Unknown | GrpcCode::Internal | GrpcCode::Unavailable | GrpcCode::DataLoss)
        )
    }

    /// 0 is good.
    pub fn number(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Failed(code) => code.number(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_call_is_a_post_of_grpc_s_own_type() {
        let is = |method: Method, kind| is_grpc_call(&method, &with(CONTENT_TYPE, kind));
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
            assert_eq!(grpc_timeout(&with(TIMEOUT, text)), Some(time), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", " 1S", "1 S", "100000000S", "1.5S", "1SS"] {
            assert_eq!(grpc_timeout(&with(TIMEOUT, text)), None, "{text}");
        }
    }

    #[test]
    fn a_status_is_in_the_head_or_as_clients_take_the_one_of_http() {
        let unknown = GrpcStatus::Failed(GrpcCode::Unknown);
        for (text, status) in [
            ("0", GrpcStatus::Good),
            ("14", GrpcStatus::Failed(GrpcCode::Unavailable)),
            ("17", unknown),
            ("300", unknown),
            ("x", unknown),
            ("", unknown),
        ] {
            assert_eq!(GrpcStatus::of(&with(STATUS, text)), Some(status), "{text}");
            assert_eq!(GrpcStatus::of_head(StatusCode::BAD_GATEWAY, &with(STATUS, text)), Some(status));
        }
        let of_http = |status: u16| {
            GrpcStatus::of_head(StatusCode::from_u16(status).expect("a status"), &HeaderMap::new())
        };
        assert_eq!(of_http(200), None);
        assert_eq!(of_http(503), Some(GrpcStatus::Failed(GrpcCode::Unavailable)));
        assert_eq!(of_http(500), Some(unknown));
    }

    #[test]
    fn what_a_client_can_bring_about_is_no_server_s_error() {
        let bad: Vec<_> = (1..=16)
            .filter_map(GrpcCode::of_number)
            .filter(|code| GrpcStatus::Failed(*code).is_server_error())
            .collect();
        assert_eq!(bad, [GrpcCode::Unknown, GrpcCode::Internal, GrpcCode::Unavailable, GrpcCode::DataLoss]);
        assert!(!GrpcStatus::Good.is_server_error());
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
            set_grpc_timeout(&mut headers, left);
            assert_eq!(headers[TIMEOUT], text);
            assert!(grpc_timeout(&headers).expect("valid") <= left);
        }
    }
}
