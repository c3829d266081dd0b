//! What is said in gRPC's health protocol (grpc.health.v1.Health/Check): one small message each way, of one field each.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, TE};
use http::{Request, StatusCode, request};

use super::client::Whole;

/// The answer is a message of a few bytes.
pub(super) const MAX_ANSWER: usize = 4 << 10;
/// `ServingStatus.SERVING`
const SERVING: u64 = 1;

/// The head of the call.
pub(super) fn request() -> request::Builder {
    Request::post("/grpc.health.v1.Health/Check")
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
}

/// `HealthCheckRequest {string service = 1}` in its frame.
pub(super) fn message(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    // Defaults are not written.
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.unsplit(message);
    framed.freeze()
}

/// # Errors
/// Why it is not well, for the log.
pub(super) fn judge(answer: &Whole) -> Result<(), String> {
    if answer.head.status != StatusCode::OK {
        return Err(format!("it answered {}", answer.head.status));
    }
    let status = |fields: &HeaderMap| Some(fields.get("grpc-status")?.to_str().ok()?.to_owned());
    match answer.trailers.as_ref().and_then(status).or_else(|| status(&answer.head.headers)) {
        Some(code) if code == "0" => {}
        Some(code) if code == "5" => return Err("its health service does not know the service".into()),
        Some(code) if code == "12" => return Err("it has no health service (grpc-status 12)".into()),
        Some(code) => {
            return Err(format!("its health service answered grpc-status {}", code.escape_default()));
        }
        None => return Err("its answer has no grpc-status".into()),
    }
    match serving(&answer.body) {
        Some(SERVING) => Ok(()),
        Some(0) => Err("it says UNKNOWN".into()),
        Some(2) => Err("it says NOT_SERVING".into()),
        Some(3) => Err("it says SERVICE_UNKNOWN".into()),
        Some(other) => Err(format!("it says {other}")),
        None => Err("its answer is no HealthCheckResponse".into()),
    }
}

/// `HealthCheckResponse {ServingStatus status = 1}`; fields that came later are passed over.
fn serving(framed: &[u8]) -> Option<u64> {
    let (prefix, mut message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    if prefix[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = take_varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = take_varint(&mut message)?,
            (_, 0) => drop(take_varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(to: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        to.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    to.put_u8(value as u8);
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (index, byte) in from.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *from = &from[index + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Response};

    use super::*;

    fn answer(status: u16, code: Option<&'static str>, message: &[u8]) -> Whole {
        let head = Response::builder().status(status).body(()).expect("a head").into_parts().0;
        let mut body = vec![0];
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
        let trailers = code.map(|code| {
            HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static(code),
            )])
        });
        Whole { head, body: body.into(), trailers }
    }

    #[test]
    fn the_question_is_the_service_or_nothing() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = message(&"x".repeat(200));
        assert_eq!(&long[..8], b"\0\0\0\0\xcb\x0a\xc8\x01");
    }

    #[test]
    fn only_serving_is_well() {
        assert_eq!(judge(&answer(200, Some("0"), &[8, 1])), Ok(()));
        // A field of another number and of each kind before it.
        let later = [0x10, 0x80, 1, 0x1a, 1, b'x', 0x25, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0, 0, 0, 0, 8, 1];
        assert_eq!(judge(&answer(200, Some("0"), &later)), Ok(()));
        for (bad, why) in [
            (answer(503, Some("0"), &[8, 1]), "503"),
            (answer(200, None, &[8, 1]), "no grpc-status"),
            (answer(200, Some("5"), &[]), "does not know"),
            (answer(200, Some("12"), &[]), "no health service"),
            (answer(200, Some("14"), &[8, 1]), "14"),
            (answer(200, Some("0"), &[]), "UNKNOWN"),
            (answer(200, Some("0"), &[8, 2]), "NOT_SERVING"),
            (answer(200, Some("0"), &[8, 3]), "SERVICE_UNKNOWN"),
            (answer(200, Some("0"), &[8]), "no HealthCheckResponse"),
            (answer(200, Some("0"), &[8, 0x80, 0x80]), "no HealthCheckResponse"),
            (answer(200, Some("0"), &[0x12, 99]), "no HealthCheckResponse"),
        ] {
            let said = judge(&bad).expect_err(why);
            assert!(said.contains(why), "{said}");
        }
        let mut short = answer(200, Some("0"), &[8, 1]);
        short.body = short.body.slice(..4);
        assert!(judge(&short).is_err());
    }

    #[test]
    fn a_status_in_the_head_counts_where_there_are_no_trailers() {
        let mut only = answer(200, None, &[]);
        only.head.headers.insert("grpc-status", HeaderValue::from_static("5"));
        assert!(judge(&only).expect_err("bad").contains("does not know"));
    }
}
