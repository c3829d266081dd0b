//! A request on its way out of a connection of HTTP/1.1: its head, with the first of its body behind it where that is at
//! hand, and the rest as the socket takes it.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as _;
use tokio::io::AsyncWrite;

use super::HeadLines;
use super::broken::Broken;
use super::socket::Socket;
use crate::http1::{self, Outgoing};
use crate::message::{Body, BodyError, Request};

/// The room of a larger head is given back.
const KEPT_ROOM: usize = 4 << 10;
/// Parts that come to no more are put together: one `send` costs less than `writev` of four parts.
const TOGETHER: usize = 1 << 10;

#[derive(Debug, Default)]
pub(super) struct Sending {
    /// Kept until the next request, for the case that it must go out again.
    head: Vec<u8>,
    /// Where lines were put into it.
    lines: Range<usize>,
    /// So much of it is out.
    head_out: usize,
    body: Option<(Body, Outgoing)>,
    /// What stands around the piece of the body that is being written.
    before: Vec<u8>,
    piece: Bytes,
    behind: &'static [u8],
    /// So much of those three is out.
    out: usize,
    /// What is written is to be flushed.
    unflushed: bool,
    /// The endpoint takes nothing any more; what it said before may still be read.
    deaf: bool,
}

impl Sending {
    /// Takes a request up. Gives the room of its fields for others.
    ///
    /// # Errors
    /// Its head says two lengths, or one of a body that is not there.
    pub fn begin(&mut self, request: Request, lines: Option<&HeadLines>) -> Result<HeaderMap, BodyError> {
        self.head.clear();
        let (mut parts, body) = request.into_parts();
        let is_empty = body.is_end_stream();
        let framing = http1::frame(&mut parts.headers, is_empty, body.size_hint().exact()).map_err(|_| {
            BodyError::Other("the head of the request says another length than its body has, or two")
        })?;
        let lines = lines.map_or([&[][..]; 2], HeadLines::parts);
        self.lines = http1::write_head(&mut self.head, &parts.method, &parts.uri, &parts.headers, lines);
        (self.head_out, self.unflushed) = (0, true);
        self.body = (!is_empty).then_some((body, framing));
        parts.headers.clear();
        Ok(parts.headers)
    }

    /// The head as it was before lines were put into it.
    pub fn head(&self) -> Option<Vec<u8>> {
        let (before, after) = (self.head.get(..self.lines.start)?, self.head.get(self.lines.end..)?);
        Some([before, after].concat()).filter(|head| !head.is_empty())
    }

    /// Whether nothing of the request is out, or was asked for.
    pub fn is_new(&self) -> bool {
        self.head_out == 0 && self.unflushed && self.before.is_empty() && self.piece.is_empty()
    }

    /// Head and body of a request of which nothing was sent.
    pub fn unsent(&mut self) -> Option<(Vec<u8>, Body)> {
        if !self.is_new() {
            return None;
        }
        self.unflushed = false;
        let body = self.body.take().map_or(Body::Empty, |(body, _)| body);
        Some((self.head()?, body))
    }

    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Sends no more. What of the body was not sent, but for [`Self::unsent`].
    pub fn ends(&mut self) -> Option<(Body, Bytes)> {
        if self.is_new() {
            return None;
        }
        let piece = std::mem::take(&mut self.piece);
        self.body.take().map(|(body, _)| (body, piece))
    }

    pub fn gives_room_back(&mut self) {
        if self.head.capacity() > KEPT_ROOM {
            self.head = Vec::new();
        }
    }

    /// Ready when all is out, or when the endpoint takes no more of it.
    ///
    /// # Errors
    /// The request's own body failed, or nothing of it could be written.
    pub fn poll(&mut self, context: &mut Context<'_>, socket: &mut Socket) -> Poll<Result<(), Broken>> {
        while self.unflushed {
            let waits = self.stage(context)?;
            if self.left() > 0 {
                match ready!(self.poll_write(context, socket)) {
                    Ok(0) => return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into())),
                    Ok(written) => self.wrote(written),
                    Err(error) => return Poll::Ready(self.is_refused(error)),
                }
            } else if let Err(error) = ready!(Pin::new(&mut *socket).poll_flush(context)) {
                return Poll::Ready(self.is_refused(error));
            } else if waits {
                return Poll::Pending;
            } else if self.body.is_none() {
                self.unflushed = false;
                (self.out, self.piece, self.behind) = (0, Bytes::new(), b"");
                self.before.clear();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes up the next of the body when the last is out. Whether it has to be waited for.
    fn stage(&mut self, context: &mut Context<'_>) -> Result<bool, Broken> {
        while self.out == self.before.len() + self.piece.len() + self.behind.len() {
            let Some((body, framing)) = &mut self.body else { break };
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) else { return Ok(true) };
            (self.out, self.behind) = (0, b"");
            self.before.clear();
            self.piece = Bytes::new();
            let frame = frame.transpose().map_err(Broken::Body)?;
            let trailers = match frame.map(http_body::Frame::into_data) {
                Some(Ok(mut data)) => {
                    self.behind = framing.data(&mut self.before, &mut data);
                    self.piece = data;
                    if matches!(framing, Outgoing::Length(0)) {
                        self.body = None;
                    }
                    continue;
                }
                Some(Err(frame)) => frame.into_trailers().ok(),
                None => None,
            };
            if let Some((_, framing)) = self.body.take() {
                let end = framing.end(&mut self.before, trailers.as_ref());
                end.map_err(|_| Broken::Body(BodyError::Other("the body is not as long as its head says")))?;
            }
        }
        Ok(false)
    }

    fn left(&self) -> usize {
        self.head.len() - self.head_out + self.before.len() + self.piece.len() + self.behind.len() - self.out
    }

    fn wrote(&mut self, written: usize) {
        let head = written.min(self.head.len() - self.head_out);
        self.head_out += head;
        self.out += written - head;
    }

    fn poll_write(&self, context: &mut Context<'_>, socket: &mut Socket) -> Poll<io::Result<usize>> {
        let socket = Pin::new(socket);
        let (mut parts, mut done) =
            ([&self.head[self.head_out..], &self.before, &self.piece, self.behind], self.out);
        for part in &mut parts[1..] {
            let out = done.min(part.len());
            *part = &part[out..];
            done -= out;
        }
        let mut full = parts.iter().filter(|part| !part.is_empty());
        if let (Some(one), None) = (full.next(), full.next()) {
            return socket.poll_write(context, one);
        }
        if self.left() > TOGETHER {
            return socket.poll_write_vectored(context, &parts.map(IoSlice::new));
        }
        let (mut whole, mut end) = ([0; TOGETHER], 0);
        for part in parts {
            whole[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        socket.poll_write(context, &whole[..end])
    }

    /// Who answers before it has read all and closes lets its answer be followed by a reset (RFC 9112, 9.6): the answer is
    /// to be read all the same, unless not even the head began to go out.
    fn is_refused(&mut self, error: io::Error) -> Result<(), Broken> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        let is_gone = matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset);
        if !is_gone || self.head_out == 0 {
            return Err(error.into());
        }
        self.deaf = true;
        self.unflushed = false;
        self.body = None;
        Ok(())
    }
}
