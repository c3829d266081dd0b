//! A request as it is written: its head, and the framing of its body.

use std::ops::Range;

use bytes::{BufMut as _, Bytes};
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use super::head::{HeadError, is_chunked, length};

/// What is still to be written of a request's body.
#[derive(Debug)]
pub enum Outgoing {
    /// So many bytes.
    Length(u64),
    /// `trailers`: the fields that may follow it, as the head announced them.
    Chunked { trailers: Vec<HeaderValue> },
}

/// Says in the head how the end of the body is found (RFC 9112, 6): a coding that is said already, else a length that is
/// said or known, else chunks. `known`: the body's length, 0 where there is none.
///
/// # Errors
/// The head says two lengths, or one of a body that is not there.
pub fn frame(headers: &mut HeaderMap, is_empty: bool, known: Option<u64>) -> Result<Outgoing, HeadError> {
    if is_empty {
        headers.remove(TRANSFER_ENCODING);
        // The next request would be taken for the body.
        return match length(headers)? {
            None | Some(0) => Ok(Outgoing::Length(0)),
            Some(_) => Err(HeadError::Length),
        };
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    } else if let Some(length) = length(headers)? {
        return Ok(Outgoing::Length(length));
    } else if let Some(length) = known {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        return Ok(Outgoing::Length(length));
    }
    if !is_chunked(headers) {
        headers.append(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Ok(Outgoing::Chunked { trailers: headers.get_all(TRAILER).iter().cloned().collect() })
}

/// Writes a request's head with `lines` behind its first: whole lines of fields. Where those stand.
pub fn write_head(
    to: &mut Vec<u8>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    lines: [&[u8]; 2],
) -> Range<usize> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let [shared, own] = lines;
    to.reserve(method.as_str().len() + path.len() + 14 + shared.len() + own.len() + fields);
    // RFC 9112, 3.2.1: a path is never empty.
    let root = if path.starts_with('?') { "/" } else { "" };
    for part in [method.as_str(), " ", root, path, " HTTP/1.1\r\n"].map(str::as_bytes) {
        to.extend_from_slice(part);
    }
    let begin = to.len();
    to.extend_from_slice(shared);
    to.extend_from_slice(own);
    let lines = begin..to.len();
    for (name, value) in headers {
        to.extend_from_slice(name.as_str().as_bytes());
        to.extend_from_slice(b": ");
        to.extend_from_slice(value.as_bytes());
        to.extend_from_slice(b"\r\n");
    }
    to.extend_from_slice(b"\r\n");
    lines
}

/// A body that is not as long as its head said.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not as long as its head says")]
pub struct WrongLength;

impl Outgoing {
    /// What has to stand before `data` goes into `before`; gives what has to stand behind it, and cuts off what is beyond
    /// the length.
    pub fn data(&mut self, before: &mut Vec<u8>, data: &mut Bytes) -> &'static [u8] {
        match self {
            Self::Length(left) => {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                b""
            }
            // It would be the end.
            Self::Chunked { .. } if data.is_empty() => b"",
            Self::Chunked { .. } => {
                hex(before, data.len());
                before.extend_from_slice(b"\r\n");
                b"\r\n"
            }
        }
    }

    /// What ends the body. Of `trailers` those are written that the head announced and that may be there (RFC 9110, 6.5.1).
    ///
    /// # Errors
    /// It is shorter than its head said.
    pub fn end(self, to: &mut Vec<u8>, trailers: Option<&HeaderMap>) -> Result<(), WrongLength> {
        match self {
            Self::Length(0) => Ok(()),
            Self::Length(_) => Err(WrongLength),
            Self::Chunked { trailers: announced } => {
                to.put_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if may_trail(name) && is_announced(&announced, name) {
                        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                            to.put_slice(part);
                        }
                    }
                }
                to.put_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

fn is_announced(announced: &[HeaderValue], name: &HeaderName) -> bool {
    announced
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|one| one.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
}

/// Whether a field means the same behind a body: none for framing, routing, authentication or modifiers.
fn may_trail(name: &HeaderName) -> bool {
    const NEVER: [HeaderName; 12] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
    ];
    !NEVER.contains(name)
}

fn hex(to: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    to.extend((0..digits).rev().map(|digit| b"0123456789ABCDEF"[number >> (4 * digit) & 15]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let of = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(of).collect()
    }

    #[test]
    fn a_head_is_written_with_the_lines_behind_its_first() {
        let mut head = Vec::new();
        let uri = Uri::from_static("/a%20b?c=d");
        let fields = headers(&[("host", "gw.test"), ("x", "1"), ("x", "2")]);
        let lines = [&b"forwarded: for=a\r\n"[..], b"y: z\r\n"];
        let at = write_head(&mut head, &Method::POST, &uri, &fields, lines);
        assert_eq!(&head[at], lines.concat());
        let text =
            "POST /a%20b?c=d HTTP/1.1\r\nforwarded: for=a\r\ny: z\r\nhost: gw.test\r\nx: 1\r\nx: 2\r\n\r\n";
        assert_eq!(std::str::from_utf8(&head), Ok(text));
        head.clear();
        let uri = Uri::from_static("http://gw.test?x");
        write_head(&mut head, &Method::GET, &uri, &HeaderMap::new(), [b"", b""]);
        assert_eq!(head, b"GET /?x HTTP/1.1\r\n\r\n");
        head.clear();
        write_head(&mut head, &Method::OPTIONS, &Uri::from_static("*"), &HeaderMap::new(), [b"", b""]);
        assert_eq!(head, b"OPTIONS * HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn the_head_says_how_the_body_ends() {
        for (before, is_empty, known, after) in [
            (&[][..], true, Some(0), &[][..]),
            (&[("content-length", "0")], true, Some(0), &[("content-length", "0")]),
            (&[("transfer-encoding", "chunked")], true, Some(0), &[]),
            (&[], false, Some(5), &[("content-length", "5")]),
            (&[("content-length", "5")], false, None, &[("content-length", "5")]),
            (&[], false, None, &[("transfer-encoding", "chunked")]),
            (
                &[("transfer-encoding", "chunked"), ("content-length", "5")],
                false,
                Some(5),
                &[("transfer-encoding", "chunked")],
            ),
            (
                &[("transfer-encoding", "gzip")],
                false,
                None,
                &[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
            ),
        ] {
            let mut said = headers(before);
            frame(&mut said, is_empty, known).expect("one length");
            assert_eq!(said, headers(after), "{before:?} {is_empty} {known:?}");
        }
        let mut two = headers(&[("content-length", "5"), ("content-length", "6")]);
        assert_eq!(frame(&mut two, false, None).expect_err("two"), HeadError::Length);
        let mut more = headers(&[("content-length", "5")]);
        assert_eq!(frame(&mut more, true, Some(0)).expect_err("of nothing"), HeadError::Length);
    }

    /// A body of these pieces as it goes out.
    fn written(
        mut framing: Outgoing,
        pieces: &[&'static str],
        trailers: Option<&HeaderMap>,
    ) -> Option<String> {
        let mut out = Vec::new();
        for piece in pieces {
            let mut data = Bytes::from_static(piece.as_bytes());
            let behind = framing.data(&mut out, &mut data);
            out.extend_from_slice(&data);
            out.extend_from_slice(behind);
        }
        framing.end(&mut out, trailers).ok()?;
        Some(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_body_is_framed_as_was_said() {
        assert_eq!(written(Outgoing::Length(4), &["ab", "cd"], None).as_deref(), Some("abcd"));
        assert_eq!(written(Outgoing::Length(4), &["ab"], None), None, "too short");
        assert_eq!(written(Outgoing::Length(3), &["ab", "cd", "ef"], None).as_deref(), Some("abc"));
        let chunked = |trailers| Outgoing::Chunked { trailers };
        let long = "0123456789abcdefg";
        let text = written(chunked(Vec::new()), &["ab", "", long], None).expect("whole");
        assert_eq!(text, format!("2\r\nab\r\n11\r\n{long}\r\n0\r\n\r\n"));
        let fields = headers(&[("x", "1"), ("y", "2"), ("content-length", "3"), ("x", "4")]);
        let announced = vec![HeaderValue::from_static("a, X"), HeaderValue::from_static("content-length")];
        let text = written(chunked(announced), &[], Some(&fields)).expect("whole");
        assert_eq!(text, "0\r\nx: 1\r\nx: 4\r\n\r\n");
    }

    #[test]
    fn lengths_are_written_as_numbers_of_base_16() {
        for number in [0, 1, 9, 10, 15, 16, 255, 256, 4095, 65536, usize::MAX] {
            let mut text = Vec::new();
            hex(&mut text, number);
            assert_eq!(String::from_utf8(text).expect("text"), format!("{number:X}"));
        }
    }
}
