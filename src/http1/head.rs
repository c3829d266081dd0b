//! The head of an answer.

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

/// Bytes of one head.
pub const MAX_HEAD: usize = 64 << 10;
/// Fields of one head, and of trailers.
pub const MAX_FIELDS: usize = 200;

/// How the end of an answer's body is found (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Nothing,
    Length(u64),
    Chunked,
    /// It ends with the connection.
    UntilClose,
}

#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub version: Version,
    /// Where it is not the usual one.
    pub reason: Option<Bytes>,
    pub headers: HeaderMap,
    pub framing: Framing,
    /// Whether another request may follow on the connection.
    pub keeps_alive: bool,
}

/// Why a head is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the head is not HTTP/1: {0}")]
    Malformed(#[from] httparse::Error),
    #[error("a field of the head has a name or value that none can have")]
    Field,
    #[error("the head has more than {MAX_HEAD} bytes")]
    TooLong,
    #[error("Content-Length is no number, or has two values")]
    Length,
    #[error("HTTP/1.0 has no Transfer-Encoding")]
    Encoding,
}

/// Reads the heads of a connection's answers, one after the other, however they are cut.
#[derive(Debug, Default)]
pub struct Heads {
    /// So much of what is at hand has no end of a head in it.
    looked_at: usize,
}

impl Heads {
    /// Takes a head off the beginning of `read`; `None`: it is not whole yet. `to_head`: the request was HEAD. `room`: a
    /// map whose memory may be used.
    ///
    /// # Errors
    /// What came is no head, or too long.
    pub fn take(
        &mut self,
        read: &mut BytesMut,
        to_head: bool,
        room: &mut HeaderMap,
    ) -> Result<Option<Head>, HeadError> {
        if self.looked_at == 0 {
            // RFC 9112, 2.2.
            let blank = read.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            read.advance(blank);
        }
        let end = end_of_head(read, self.looked_at);
        if end.unwrap_or(read.len()) > MAX_HEAD {
            return Err(HeadError::TooLong);
        }
        let Some(end) = end else {
            self.looked_at = read.len();
            return Ok(None);
        };
        self.looked_at = 0;
        parse(read.split_to(end).freeze(), to_head, std::mem::take(room)).map(Some)
    }
}

/// Behind the first empty line; `from`: before that there is none.
fn end_of_head(read: &[u8], from: usize) -> Option<usize> {
    let mut at = from.saturating_sub(2);
    while let Some(next) = read[at..].iter().position(|byte| *byte == b'\n') {
        at += next + 1;
        match &read[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

fn parse(bytes: Bytes, to_head: bool, mut headers: HeaderMap) -> Result<Head, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, &bytes, &mut fields)?;
    if status.is_partial() {
        return Err(httparse::Error::HeaderName.into());
    }
    let status =
        StatusCode::from_u16(parsed.code.unwrap_or_default()).map_err(|_| httparse::Error::Status)?;
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let reason = parsed.reason.filter(|reason| status.canonical_reason() != Some(reason));
    let reason = reason.map(|reason| bytes.slice_ref(reason.as_bytes()));
    headers.clear();
    headers.reserve(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| HeadError::Field)?;
        let value = bytes.slice_ref(field.value);
        headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| HeadError::Field)?);
    }
    let framing = framing(status, version, to_head, &mut headers)?;
    let keeps_alive = framing != Framing::UntilClose && keeps_alive(version, &headers);
    Ok(Head { status, version, reason, headers, framing, keeps_alive })
}

/// RFC 9112, 6.3.
fn framing(
    status: StatusCode,
    version: Version,
    to_head: bool,
    headers: &mut HeaderMap,
) -> Result<Framing, HeadError> {
    let has_no_body = to_head
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has_no_body {
        return Ok(Framing::Nothing);
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        if version == Version::HTTP_10 {
            return Err(HeadError::Encoding);
        }
        // It would say where another reader finds the end.
        headers.remove(CONTENT_LENGTH);
        let is_chunked = is_chunked(headers);
        return Ok(if is_chunked { Framing::Chunked } else { Framing::UntilClose });
    }
    Ok(length(headers)?.map_or(Framing::UntilClose, Framing::Length))
}

/// Whether `chunked` is the last coding.
pub fn is_chunked(headers: &HeaderMap) -> bool {
    let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    last.and_then(|value| value.as_bytes().rsplit(|byte| *byte == b',').next())
        .is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// The length that is told; said more than once, it has to be the same, and is said once from here on.
///
/// # Errors
/// It is no number, or there are two.
pub fn length(headers: &mut HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_none()
        && let Some(length) = number(first.as_bytes())
    {
        return Ok(Some(length));
    }
    let mut all = headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|part| number(part.trim_ascii()));
    let length = all.next().flatten().ok_or(HeadError::Length)?;
    if all.any(|other| other != Some(length)) {
        return Err(HeadError::Length);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(Some(length))
}

/// Digits alone, without a sign.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// RFC 9112, 9.3.
fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let mut keeps = version == Version::HTTP_11;
    for option in
        headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    {
        let option = option.trim_ascii();
        if option.eq_ignore_ascii_case(b"close") {
            return false;
        }
        keeps |= option.eq_ignore_ascii_case(b"keep-alive");
    }
    keeps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Head>, HeadError> {
        Heads::default().take(&mut BytesMut::from(text), false, &mut HeaderMap::new())
    }

    fn head(text: &str) -> Head {
        read(text).expect("well-formed").expect("whole")
    }

    #[test]
    fn the_end_of_a_body_is_found_as_the_rules_say() {
        for (fields, framing) in [
            ("", Framing::UntilClose),
            ("content-length: 0\r\n", Framing::Length(0)),
            ("content-length: 5\r\ncontent-length: 5\r\n", Framing::Length(5)),
            ("content-length: 5, 5\r\n", Framing::Length(5)),
            ("transfer-encoding: chunked\r\n", Framing::Chunked),
            ("Transfer-Encoding: gzip, CHUNKED\r\ncontent-length: 5\r\n", Framing::Chunked),
            ("transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n", Framing::Chunked),
            ("transfer-encoding: chunked, gzip\r\n", Framing::UntilClose),
            ("transfer-encoding: gzip\r\ncontent-length: 5\r\n", Framing::UntilClose),
            ("transfer-encoding: xchunked\r\n", Framing::UntilClose),
        ] {
            let head = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            assert_eq!(head.framing, framing, "{fields}");
            let lengths = head.headers.get_all(CONTENT_LENGTH).iter().count();
            assert_eq!(lengths, usize::from(matches!(framing, Framing::Length(_))), "{fields}");
        }
        for status in ["204 No Content", "304 Not Modified", "101 Switching Protocols", "103 Early Hints"] {
            let head = head(&format!("HTTP/1.1 {status}\r\ncontent-length: 5\r\n\r\n"));
            assert_eq!(head.framing, Framing::Nothing, "{status}");
        }
        let mut answer = BytesMut::from("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        let head = Heads::default().take(&mut answer, true, &mut HeaderMap::new());
        let head = head.expect("well-formed").expect("whole");
        assert_eq!((head.framing, head.headers.len()), (Framing::Nothing, 1), "to HEAD");
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (fields, error) in [
            ("content-length: 5\r\ncontent-length: 6\r\n", HeadError::Length),
            ("content-length: 5, 6\r\n", HeadError::Length),
            ("content-length: 5,\r\n", HeadError::Length),
            ("content-length: +5\r\n", HeadError::Length),
            ("content-length: -5\r\n", HeadError::Length),
            ("content-length: 0x5\r\n", HeadError::Length),
            ("content-length:\r\n", HeadError::Length),
            ("content-length: 18446744073709551616\r\n", HeadError::Length),
            ("content-length: 5 5\r\n", HeadError::Length),
            ("x : 1\r\n", HeadError::Malformed(httparse::Error::HeaderName)),
            (" x: 1\r\n", HeadError::Malformed(httparse::Error::HeaderName)),
            ("x: 1\r\n y\r\n", HeadError::Malformed(httparse::Error::HeaderName)),
            ("x\r\n", HeadError::Malformed(httparse::Error::HeaderName)),
            ("x: a\0b\r\n", HeadError::Malformed(httparse::Error::HeaderValue)),
            ("x: a\rb\r\n", HeadError::Malformed(httparse::Error::HeaderValue)),
        ] {
            let read = read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            assert_eq!(read.expect_err(fields), error, "{fields}");
        }
        let old = read("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(old.expect_err("of 1.0"), HeadError::Encoding);
        for line in
            ["HTTP/2.0 200 OK", "HTTP/1.1 20 OK", "HTTP/1.1 099 OK", "ICY 200 OK", "HTTP/1.1  200", "200"]
        {
            assert!(read(&format!("{line}\r\n\r\n")).is_err(), "{line}");
        }
    }

    #[test]
    fn a_connection_goes_on_where_its_head_and_framing_let_it() {
        for (text, keeps) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: x, Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive, close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: Keep-Alive\r\n\r\n", true),
        ] {
            assert_eq!(head(text).keeps_alive, keeps, "{text}");
        }
    }

    #[test]
    fn however_it_is_cut_a_head_is_the_same_and_what_follows_it_stays() {
        let text = b"\r\nHTTP/1.1 200 Fine\r\nA: 1\r\nset-cookie: b\r\nSet-Cookie:  c \r\n\r\nbody";
        for step in 1..text.len() {
            let (mut heads, mut read, mut found) = (Heads::default(), BytesMut::new(), None);
            for piece in text.chunks(step) {
                read.extend_from_slice(piece);
                if found.is_none() {
                    found = heads.take(&mut read, false, &mut HeaderMap::new()).expect("well-formed");
                }
            }
            let head = found.expect("whole");
            let cookies: Vec<_> =
                head.headers.get_all("set-cookie").iter().map(HeaderValue::as_bytes).collect();
            assert_eq!(
                (head.status, head.headers.len(), cookies),
                (StatusCode::OK, 3, vec![&b"b"[..], b"c"])
            );
            assert_eq!(head.reason.as_deref(), Some(&b"Fine"[..]));
            assert_eq!(&read[..], b"body", "cut every {step} bytes");
        }
    }

    #[test]
    fn a_head_has_a_bound_in_bytes_and_in_fields() {
        let fields = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: 1\r\n".repeat(count));
        assert_eq!(head(&fields(MAX_FIELDS)).headers.len(), MAX_FIELDS);
        let many = read(&fields(MAX_FIELDS + 1));
        assert_eq!(many.expect_err("too many"), HeadError::Malformed(httparse::Error::TooManyHeaders));
        let long = |length: usize| format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(length - 24));
        assert_eq!(head(&long(MAX_HEAD)).headers.len(), 1);
        assert_eq!(read(&long(MAX_HEAD + 1)).expect_err("too long"), HeadError::TooLong);
        let endless = read(&"x".repeat(MAX_HEAD + 1));
        assert_eq!(endless.expect_err("too long, though not whole"), HeadError::TooLong);
    }
}
