//! The bytes of a backend connection on their way from and to hyper. Those that come are counted until the head of an
//! answer is there: so we know whether an endpoint that failed had said anything, and an endless row of interim
//! answers comes to an end. The head that went out is kept for the case that it must go out again.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Interim answers and the head after them may be this long in all. Above what hyper reads at once (about 400 KiB), or
/// the start of a body that came with its head would be taken for more of it.
const MAX_UNANSWERED: usize = 1 << 20;
const HEAD_IS_THERE: usize = usize::MAX;
/// Larger heads are not kept beyond their request.
const KEPT_ROOM: usize = 4 << 10;

/// What is known of the request under way. Written and read on one thread; atomic because a connection that is
/// upgraded must be `Send`.
#[derive(Clone, Debug, Default)]
pub(super) struct Exchanged(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes that came for it.
    heard: AtomicUsize,
    /// The next bytes out begin with a head that is to be kept.
    keep: AtomicBool,
    /// The kept head, once the connection failed or was closed.
    sent: OnceLock<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    state: Arc<State>,
    head: Vec<u8>,
}

impl Exchanged {
    /// A request begins; `keep` its head in case that it must be sent again.
    pub fn begins(&self, keep: bool) {
        self.0.heard.store(0, Ordering::Relaxed);
        self.0.keep.store(keep, Ordering::Relaxed);
    }

    pub fn head_is_there(&self) {
        self.0.heard.store(HEAD_IS_THERE, Ordering::Relaxed);
    }

    /// Whether anything came for it.
    pub fn heard(&self) -> bool {
        self.0.heard.load(Ordering::Relaxed) > 0
    }

    /// The head that was to be kept, if it went out before the connection failed.
    pub fn sent(&self) -> Option<&[u8]> {
        self.0.sent.get().map(Vec::as_slice).filter(|head| !head.is_empty())
    }
}

impl Wire {
    pub fn new(stream: TcpStream, exchanged: &Exchanged) -> Self {
        Self { stream, state: exchanged.0.clone(), head: Vec::new() }
    }

    /// hyper hands over a head as a whole, at the beginning of a write.
    fn note(&mut self, bytes: &[u8]) {
        if !self.state.keep.load(Ordering::Relaxed) {
            return;
        }
        self.state.keep.store(false, Ordering::Relaxed);
        if self.head.capacity() > KEPT_ROOM {
            self.head = Vec::new();
        }
        self.head.clear();
        self.head.extend_from_slice(bytes);
    }

    fn failed(&mut self) {
        let _ = self.state.sent.set(std::mem::take(&mut self.head));
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let heard = self.state.heard.load(Ordering::Relaxed);
        if heard == HEAD_IS_THERE {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        if heard > MAX_UNANSWERED {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "interim answers without end",
            )));
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        let came = buffer.filled().len() - before;
        if came == 0 && outcome.is_ready() {
            self.failed();
        }
        self.state.heard.store(heard + came, Ordering::Relaxed);
        outcome
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.note(bytes);
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Err(_)) = &outcome {
            self.failed();
        }
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = slices.first() {
            self.note(first);
        }
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if let Poll::Ready(Err(_)) = &outcome {
            self.failed();
        }
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
