//! The bytes of a backend connection on their way to hyper. They are counted until the head of an answer is there: so
//! we know whether an endpoint that failed had said anything, and an endless row of interim answers comes to an end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Interim answers and the head after them may be this long in all. Above what hyper reads at once (about 400 KiB), or
/// the start of a body that came with its head would be taken for more of it.
const MAX_UNANSWERED: usize = 1 << 20;
const HEAD_IS_THERE: usize = usize::MAX;

/// How many bytes came for the request under way. Written and read on one thread; atomic because a connection that is
/// upgraded must be `Send`.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicUsize>);

#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    heard: Heard,
}

impl Heard {
    pub fn expect_head(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub fn head_is_there(&self) {
        self.0.store(HEAD_IS_THERE, Ordering::Relaxed);
    }

    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Wire {
    pub fn new(stream: TcpStream, heard: Heard) -> Self {
        Self { stream, heard }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let heard = self.heard.0.load(Ordering::Relaxed);
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
        self.heard.0.store(heard + buffer.filled().len() - before, Ordering::Relaxed);
        outcome
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
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
