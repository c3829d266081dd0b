//! A stream of HTTP/2 as a connection of its own (RFC 8441, RFC 9113 section 8.5).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::sending::poll_room;

/// So much is written at once.
const PIECE: usize = 16 << 10;

/// Reads and writes go straight to the stream: what is written waits for the peer's windows and for the bound of what a
/// stream may hold. The end of our writing is END_STREAM, and so is the drop of the whole.
#[derive(Debug)]
pub struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
    read: Bytes,
    is_shut: bool,
}

impl Tunnel {
    pub fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, read: Bytes::new(), is_shut: false }
    }
}

fn to_io(error: h2::Error) -> io::Error {
    match error.reason() {
        _ if error.is_io() => error.into_io().unwrap_or_else(|| io::ErrorKind::Other.into()),
        Some(Reason::STREAM_CLOSED) => io::Error::new(io::ErrorKind::BrokenPipe, error),
        _ => io::Error::other(error),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read.is_empty() {
            match ready!(this.receive.poll_data(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(data)) => this.read = data,
                // Given up is an end like another.
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
            }
        }
        let taken = this.read.len().min(buffer.remaining());
        buffer.put_slice(&this.read[..taken]);
        this.read.advance(taken);
        // Refused only where the stream is over, which the next read tells.
        let _ = this.receive.flow_control().release_capacity(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // Also wakes us when the peer resets while we wait for room.
        if let Poll::Ready(reset) = this.send.poll_reset(context) {
            return Poll::Ready(Err(to_io(reset.map_or_else(|error| error, h2::Error::from))));
        }
        let room = match ready!(poll_room(&mut this.send, bytes.len().min(PIECE), context)) {
            Some(room) => room.map_err(to_io)?,
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        this.send.send_data(Bytes::copy_from_slice(&bytes[..room]), false).map_err(to_io)?;
        Poll::Ready(Ok(room))
    }

    /// What was written is the connection's already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::replace(&mut this.is_shut, true) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(this.send.send_data(Bytes::new(), true).map_err(to_io))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.is_shut {
            // Refused only where the stream is over already.
            let _ = self.send.send_data(Bytes::new(), true);
        }
    }
}
