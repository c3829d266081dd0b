//! Heads that the parser below us cannot read. hyper answers them with a status and nothing else: `transport` keeps that
//! from the client, and what every failure answers goes out in its place, counted and logged as any other.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE};
use http::{HeaderValue, Method, StatusCode};
use tokio::io::AsyncWriteExt;

use super::account::Account;
use super::connection::Connection;
use super::respond;
use super::transport::Transport;
use crate::message::{Body, FailureForm, Protocol, Response};
use crate::upstream::SharedLines;

/// The status of an answer's first bytes.
pub fn status_of(written: &[u8]) -> Option<StatusCode> {
    let status = written.strip_prefix(b"HTTP/1.1 ").or_else(|| written.strip_prefix(b"HTTP/1.0 "))?;
    StatusCode::from_bytes(status.get(..3)?).ok()
}

/// Answers a head that was refused with `status`. The connection ends with it.
pub async fn answer(connection: &Connection, transport: &mut Transport, status: StatusCode) {
    let kind = respond::refused_head(status);
    // What the head said is not known, its method included.
    let method = Method::from_bytes(b"-").expect("a token");
    let mut account = Account::new(connection.worker.clone(), method, Protocol::Http11, connection.scheme);
    account.note(&http::Request::new(()).into_parts().0, "", connection.peer.ip());
    account.fail(kind);
    let response = respond::failure(&kind.into(), FailureForm::Problem, account.request_id);
    account.status = response.status().as_u16();
    let (head, body) = bytes(response);
    let sent = async {
        transport.write_all(&[head, body.to_vec()].concat()).await?;
        transport.flush().await
    };
    account.complete = sent.await.is_ok();
    account.response_bytes = body.len() as u64;
}

fn bytes(response: Response) -> (Vec<u8>, Bytes) {
    let (mut parts, body) = response.into_parts();
    let body = match body {
        Body::Full(body) => body,
        _ => Bytes::new(),
    };
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let now = httpdate::fmt_http_date(SystemTime::now());
    parts.headers.insert(DATE, HeaderValue::try_from(now).expect("a date is ASCII"));
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let mut lines = SharedLines::default();
    parts.headers.iter().for_each(|(name, value)| lines.add(name, value));
    let first = format!("HTTP/1.1 {} {reason}\r\n", parts.status.as_str());
    ([first.as_bytes(), &lines.freeze(), b"\r\n"].concat(), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_stands_after_the_version() {
        assert_eq!(
            status_of(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"),
            StatusCode::from_u16(431).ok()
        );
        assert_eq!(status_of(b"HTTP/1.0 400 Bad Request\r\n"), Some(StatusCode::BAD_REQUEST));
        for other in [&b"HTTP/1.1"[..], b"HTTP/1.1 4", b"400 Bad Request", b""] {
            assert_eq!(status_of(other), None, "{other:?}");
        }
    }
}
