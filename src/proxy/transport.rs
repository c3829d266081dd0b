//! A client's connection as bytes: plain or TLS, with what was read ahead, watched for progress, and on HTTP/2 with a
//! count of the control frames that nobody else bounds.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::refusal;
use super::watch::{Wait, Watch};
use crate::message::{FrameBudget, Hints};

/// How a head ends.
const END: &[u8; 4] = b"\r\n\r\n";

/// The socket.
#[derive(Debug)]
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// Up to so many bytes are copied together.
const SMALL: usize = 4 << 10;

thread_local! {
    /// Where small answers are put together, head and body. One for all connections of a worker: it stays in the
    /// processor's nearest cache.
    static TOGETHER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub struct Transport {
    wire: Wire,
    read_ahead: Bytes,
    watch: Rc<Watch>,
    /// HTTP/2 only.
    frames: Option<FrameBudget>,
    /// HTTP/1: what backends say before their answers, and what of it is on its way.
    hints: Option<Arc<Hints>>,
    interim: Bytes,
    /// HTTP/1: the last bytes that were read.
    tail: [u8; 4],
    /// HTTP/1: the status of an answer that the parser made itself, which was not sent.
    refused: Option<StatusCode>,
}

impl Transport {
    pub fn new(wire: Wire, read_ahead: Bytes, watch: Rc<Watch>) -> Self {
        Self {
            wire,
            read_ahead,
            watch,
            frames: None,
            hints: None,
            interim: Bytes::new(),
            tail: *END,
            refused: None,
        }
    }

    pub fn counting_frames(mut self) -> Self {
        self.frames = Some(FrameBudget::of_client());
        self
    }

    pub fn telling(mut self, hints: &Arc<Hints>) -> Self {
        self.hints = Some(Arc::clone(hints));
        self
    }

    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Status of the answer that the parser made itself; what is written from now on is ours.
    pub fn take_refused(&mut self) -> Option<StatusCode> {
        self.watch.answer_comes();
        self.refused.take()
    }

    /// Whether this is the parser's own answer, which is not sent.
    fn refuses(&mut self, start: &[u8]) -> bool {
        if self.frames.is_none() && self.watch.is_quiet() {
            self.refused = self.refused.or_else(|| refusal::status_of(start));
            return self.refused.is_some();
        }
        false
    }

    /// Puts bytes in front of those still to be read.
    pub fn give_back(&mut self, bytes: Bytes) {
        if self.read_ahead.is_empty() {
            self.read_ahead = bytes;
        } else {
            self.read_ahead = [bytes, std::mem::take(&mut self.read_ahead)].concat().into();
        }
    }

    fn account(&mut self, read: &[u8]) -> io::Result<()> {
        if let Some(frames) = &mut self.frames {
            return frames.take(read);
        }
        if read.is_empty() {
            return Ok(());
        }
        if matches!(self.watch.read_wait(), Wait::FirstByte | Wait::Idle) {
            self.watch.read_waits(Wait::Head);
        }
        let new = read.len().min(END.len());
        self.tail.rotate_left(new);
        self.tail[END.len() - new..].copy_from_slice(&read[read.len() - new..]);
        // A bare LF ends a line too.
        self.watch.read_ended_head(self.tail.ends_with(b"\n\r\n") || self.tail.ends_with(b"\n\n"));
        Ok(())
    }

    /// Writes what was begun of an interim answer: nothing may come within it.
    fn poll_interim(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            let written = match &mut self.wire {
                Wire::Plain(tcp) => Pin::new(tcp).poll_write(context, &self.interim),
                Wire::Tls(tls) => Pin::new(tls).poll_write(context, &self.interim),
            };
            match written {
                Poll::Pending => {
                    self.watch.write_blocked();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => {
                    self.watch.wrote();
                    self.interim.advance(bytes);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn note_write(&mut self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Pending => self.watch.write_blocked(),
            Poll::Ready(Ok(bytes)) => {
                self.watch.wrote();
                if let Some(frames) = &mut self.frames {
                    frames.wrote(*bytes);
                }
            }
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.read_ahead.is_empty() {
            ready!(match &mut this.wire {
                Wire::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
                Wire::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
            })?;
        } else {
            let taken = this.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.read_ahead[..taken]);
            this.read_ahead.advance(taken);
            if this.read_ahead.is_empty() {
                // Lets go of the buffer.
                this.read_ahead = Bytes::new();
            }
        }
        Poll::Ready(this.account(&buffer.filled()[before..]))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refuses(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(this.poll_interim(context))?;
        let written = match &mut this.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Wire::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        };
        this.note_write(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refuses(slices.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        ready!(this.poll_interim(context))?;
        let written = match &mut this.wire {
            Wire::Plain(tcp) => {
                let total: usize = slices.iter().map(|slice| slice.len()).sum();
                if total <= SMALL && slices.len() > 1 {
                    // One `send` costs less than `writev` and a copy.
                    TOGETHER.with_borrow_mut(|whole| {
                        whole.clear();
                        slices.iter().for_each(|slice| whole.extend_from_slice(slice));
                        Pin::new(tcp).poll_write(context, whole)
                    })
                } else {
                    Pin::new(tcp).poll_write_vectored(context, slices)
                }
            }
            Wire::Tls(tls) => Pin::new(tls).poll_write_vectored(context, slices),
        };
        this.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(tcp) => tcp.is_write_vectored(),
            Wire::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper flushes when it has nothing left to write: what was before is out as a whole, and while a request waits
        // its answer has not begun.
        if this.interim.is_empty()
            && let Some(heads) = this.hints.as_ref().and_then(|hints| hints.take())
        {
            this.interim = heads.into();
        }
        ready!(this.poll_interim(context))?;
        let flushed = match &mut this.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Wire::Tls(tls) => Pin::new(tls).poll_flush(context),
        };
        match flushed {
            Poll::Pending => this.watch.write_blocked(),
            Poll::Ready(_) => this.watch.flushed(),
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused.is_some() {
            return Poll::Ready(Ok(()));
        }
        let done = match &mut this.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Wire::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        };
        if done.is_pending() {
            this.watch.write_blocked();
        }
        done
    }
}
