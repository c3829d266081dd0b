//! What an HTTP/2 connection has to say, gathered over one poll of it and sent at its end. h2 flushes after every DATA
//! frame of some size; each of these flushes would be a TLS record and a system call of its own.
//!
//! Invariants: at most [`HELD`] bytes are held; nothing is held when the connection's task goes to sleep unless the
//! client does not take it; an idle connection holds no buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::transport::Transport;

/// Two TLS records.
const HELD: usize = 32 << 10;
/// A write of this size is not worth a copy.
const DIRECT: usize = 4 << 10;

/// A transport that holds writes back until [`Gathered::poll_send`]. Clones are the same transport.
#[derive(Debug)]
pub struct Gathered<T = Transport>(Rc<RefCell<Inner<T>>>);

#[derive(Debug)]
struct Inner<T> {
    transport: T,
    held: Vec<u8>,
    /// Of these.
    sent: usize,
    /// How often anything came.
    reads: u64,
}

impl<T> Clone for Gathered<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Gathered<T> {
    pub fn new(transport: T) -> Self {
        Self(Rc::new(RefCell::new(Inner { transport, held: Vec::new(), sent: 0, reads: 0 })))
    }

    /// Sends what is held; to be called after each poll of the connection.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(context)
    }

    /// Changes whenever something came.
    pub fn reads(&self) -> u64 {
        self.0.borrow().reads
    }
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            let sent = ready!(Pin::new(&mut self.transport).poll_write(context, &self.held[self.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        (self.held, self.sent) = (Vec::new(), 0);
        Pin::new(&mut self.transport).poll_flush(context)
    }

    /// Makes room for so many bytes. `true`: they are worth no copy and what was held is on its way.
    fn poll_room(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<io::Result<bool>> {
        let direct = bytes >= DIRECT;
        if !self.held.is_empty() && (direct || self.held.len() + bytes > HELD) {
            ready!(self.poll_send(context))?;
        }
        Poll::Ready(Ok(direct))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        let read = ready!(Pin::new(&mut inner.transport).poll_read(context, buffer));
        inner.reads += 1;
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if ready!(inner.poll_room(context, bytes.len()))? {
            return Pin::new(&mut inner.transport).poll_write(context, bytes);
        }
        inner.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        if ready!(inner.poll_room(context, bytes))? {
            return Pin::new(&mut inner.transport).poll_write_vectored(context, slices);
        }
        slices.iter().for_each(|slice| inner.held.extend_from_slice(slice));
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().transport.is_write_vectored()
    }

    /// The end of the poll flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_send(context))?;
        Pin::new(&mut inner.transport).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_writes_go_out_together_and_in_order() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut gathered = Gathered::new(ours);
        gathered.write_all(b"one ").await.expect("held");
        gathered.write_all(b"two ").await.expect("held");
        gathered.flush().await.expect("nothing to wait for");
        let nothing = tokio::time::timeout(std::time::Duration::ZERO, theirs.read_u8()).await;
        assert!(nothing.is_err(), "the control: nothing was sent yet");
        poll_fn(|context| gathered.poll_send(context)).await.expect("sent");
        let large = vec![b'x'; DIRECT];
        gathered.write_all(b"three ").await.expect("held");
        gathered.write_all(&large).await.expect("sent, after what was held");
        gathered.write_all(b" four").await.expect("held");
        gathered.shutdown().await.expect("sends what is held");
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.expect("read");
        let expected = [b"one two three ".as_slice(), &large, b" four"].concat();
        assert!(all == expected);
    }

    #[tokio::test]
    async fn what_the_client_does_not_take_is_bounded() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let mut gathered = Gathered::new(ours);
        let part = [7; 1000];
        let mut taken = 0;
        while tokio::time::timeout(std::time::Duration::ZERO, gathered.write_all(&part)).await.is_ok() {
            taken += part.len();
            assert!(taken <= HELD + 2048, "no bound");
        }
        assert!(taken > HELD / 2, "the control: it holds something");
        // A cut `write_all` may have been taken in part: whatever was taken comes out.
        let mut all = Vec::new();
        let drain = async {
            poll_fn(|context| gathered.poll_send(context)).await.expect("sent");
            drop(gathered);
        };
        let (_, read) = tokio::join!(drain, theirs.read_to_end(&mut all));
        read.expect("read");
        assert!(all.len() >= taken && all.iter().all(|byte| *byte == 7));
    }
}
