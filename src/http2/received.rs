//! A stream of HTTP/2 as the body of the message that it carries.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};

/// A reset before the end is a failure, whatever its reason: what came by then is not the message. (After the end,
/// `NO_ERROR` asks for no more of the other direction, RFC 9113, 8.1; h2 keeps it from here.)
///
/// What the peer may send next of it grows as it is read: an unread body costs a window and no more. Dropped before its
/// end, h2 tells the peer to stop.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    /// What is still to come, where that was said.
    left: Option<u64>,
    /// After it only trailers may come.
    has_all_data: bool,
}

impl Received {
    /// `headers`: of its message. That the length they tell is the true one, h2 sees to.
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let left = match content_length(headers) {
            None if stream.is_end_stream() => Some(0),
            told => told,
        };
        Self { stream, left, has_all_data: false }
    }
}

/// The length that all these fields tell; `None`: they tell none, or not the same.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    let mut told = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for one in value.as_bytes().split(|byte| *byte == b',') {
            let one = one.trim_ascii();
            // Numbers may have a sign in Rust.
            if !one.iter().all(u8::is_ascii_digit) {
                return None;
            }
            let length: u64 = std::str::from_utf8(one).ok()?.parse().ok()?;
            if told.replace(length).is_some_and(|other| other != length) {
                return None;
            }
        }
    }
    told
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        if !this.has_all_data {
            match ready!(this.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // Refused only where the stream is over, which the next poll tells.
                    let _ = this.stream.flow_control().release_capacity(data.len());
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => this.has_all_data = true,
            }
        }
        match ready!(this.stream.poll_trailers(context)) {
            Ok(fields) => Poll::Ready(fields.map(|fields| Ok(Frame::trailers(fields)))),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod cases {
    use super::*;

    #[test]
    fn a_length_is_what_all_fields_say() {
        for (fields, expected) in [
            (&[][..], None),
            (&["7"][..], Some(7)),
            (&["7", "7"], Some(7)),
            (&["7, 7"], Some(7)),
            (&["7", "8"], None),
            (&["7, 8"], None),
            (&["+7"], None),
            (&["-7"], None),
            (&[""], None),
            (&["7,"], None),
            (&["99999999999999999999"], None),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(header::CONTENT_LENGTH, field.parse().expect("a value"));
            }
            assert_eq!(content_length(&headers), expected, "{fields:?}");
        }
    }
}
