//! The bytes of a backend connection on their way from and to hyper. Those that come are counted until the head of an
//! answer is there: so we know whether an endpoint that failed had said anything, and a long row of interim answers, or
//! one of long ones, comes to an end. Into the head that goes out lines are put, and it is kept for the case that it must go out
//! again.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::HeadLines;
use super::bounds::Permit;
use super::interim::{Row, interim};
use super::socket::Socket;
use super::tls::Failed;
use crate::message::Hinted;

/// Interim answers and the head after them may be this long in all. Above what hyper reads at once (about 400 KiB), or
/// the start of a body that came with its head would be taken for more of it.
const MAX_UNANSWERED: usize = 1 << 20;
const HEAD_IS_THERE: usize = usize::MAX;
/// The room of a larger head is given back when the next request begins.
const KEPT_ROOM: usize = 4 << 10;
/// hyper offers at most 64 slices.
const MAX_SLICES: usize = 68;
/// Parts of a head that come to no more are put together: one `send` costs less than `writev` of four parts.
const TOGETHER: usize = 1 << 10;

/// What is known of the request under way. Written and read on one thread; atomic, or under a mutex that nobody ever
/// waits for, because a connection that is upgraded must be `Send`.
#[derive(Clone, Debug, Default)]
pub(super) struct Exchanged(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes that came for it.
    heard: AtomicUsize,
    /// The next bytes out begin with a head.
    begins: AtomicBool,
    /// It is to be kept.
    keep: AtomicBool,
    /// To be put into it.
    lines: Mutex<Option<HeadLines>>,
    /// What comes may be hints for the client; false from the answer itself on.
    may_hint: AtomicBool,
    hinted: Mutex<Option<Hinted>>,
    /// The kept head, once the connection failed or was closed.
    sent: OnceLock<Vec<u8>>,
    /// What the endpoint said against us, after the handshake was over for us.
    refused: OnceLock<(Failed, String)>,
}

#[derive(Debug)]
pub(super) struct Wire {
    stream: Socket,
    state: Arc<State>,
    head: Vec<u8>,
    insert: Option<Insert>,
    /// Interim answers to the request under way.
    row: Row,
    /// It takes nothing any more; what it said before may still be read.
    deaf: bool,
    /// Goes after the socket.
    _permit: Option<Permit>,
}

/// Lines on their way.
#[derive(Debug)]
struct Insert {
    /// So many bytes of hyper's go before them.
    before: usize,
    lines: HeadLines,
    done: usize,
}

impl Exchanged {
    /// A request begins; `keep` its head in case that it must be sent again. `hinted`: who is told of interim answers.
    pub fn begins(&self, keep: bool, lines: Option<HeadLines>, hinted: Option<&Hinted>) {
        self.0.may_hint.store(hinted.is_some(), Ordering::Relaxed);
        if let Some(hinted) = hinted {
            *self.0.hinted.lock().unwrap_or_else(PoisonError::into_inner) = Some(hinted.clone());
        }
        self.0.heard.store(0, Ordering::Relaxed);
        self.0.keep.store(keep, Ordering::Relaxed);
        *self.0.lines.lock().unwrap_or_else(PoisonError::into_inner) = lines;
        self.0.begins.store(true, Ordering::Relaxed);
    }

    /// Another number for each connection.
    pub fn chance(&self) -> u64 {
        Arc::as_ptr(&self.0) as usize as u64
    }

    pub fn head_is_there(&self) {
        self.0.heard.store(HEAD_IS_THERE, Ordering::Relaxed);
    }

    /// Whether anything came for it.
    pub fn heard(&self) -> bool {
        self.0.heard.load(Ordering::Relaxed) > 0
    }

    /// Why the endpoint ended the TLS connection, if it said so.
    pub fn refused(&self) -> Option<&(Failed, String)> {
        self.0.refused.get()
    }

    /// The head that was to be kept, if it went out before the connection failed.
    pub fn sent(&self) -> Option<&[u8]> {
        self.0.sent.get().map(Vec::as_slice).filter(|head| !head.is_empty())
    }
}

impl Wire {
    pub fn new(stream: Socket, exchanged: &Exchanged, permit: Option<Permit>) -> Self {
        let state = exchanged.0.clone();
        Self {
            stream,
            state,
            head: Vec::new(),
            insert: None,
            row: Row::default(),
            deaf: false,
            _permit: permit,
        }
    }

    /// hyper hands over a head as a whole, at the beginning of a write.
    fn note(&mut self, bytes: &[u8]) {
        if !self.state.begins.load(Ordering::Relaxed) {
            return;
        }
        self.state.begins.store(false, Ordering::Relaxed);
        let lines = self.state.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
        let first_line = bytes.iter().position(|byte| *byte == b'\n');
        if let (Some(lines), Some(end)) = (lines, first_line) {
            self.insert = Some(Insert { before: end + 1, lines, done: 0 });
        }
        if self.state.keep.load(Ordering::Relaxed) {
            if self.head.capacity() > KEPT_ROOM {
                self.head = Vec::new();
            }
            self.head.clear();
            self.head.extend_from_slice(bytes);
        }
    }

    /// Writes the parts of a head and what follows them.
    fn poll_parts(
        &mut self,
        context: &mut Context<'_>,
        head: [&[u8]; 4],
        others: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let size: usize = head.iter().map(|part| part.len()).sum();
        if size <= TOGETHER && length(others) == 0 {
            let (mut whole, mut end) = ([0; TOGETHER], 0);
            for part in head {
                whole[end..end + part.len()].copy_from_slice(part);
                end += part.len();
            }
            return stream.poll_write(context, &whole[..end]);
        }
        let (mut all, mut count) = ([IoSlice::new(&[]); MAX_SLICES], 0);
        let head = head.map(IoSlice::new);
        for slice in head.iter().chain(others).filter(|slice| !slice.is_empty()).take(MAX_SLICES) {
            all[count] = *slice;
            count += 1;
        }
        stream.poll_write_vectored(context, &all[..count])
    }

    /// Writes with the lines put in; how many of hyper's own bytes went out.
    fn poll_insert(
        &mut self,
        context: &mut Context<'_>,
        insert: &mut Insert,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some((first, others)) = slices.split_first() else { return Poll::Ready(Ok(0)) };
        loop {
            let (before, after) = first.split_at(insert.before.min(first.len()));
            let [shared, own] = insert.lines.left(insert.done);
            let head = [before, shared, own, after];
            let written = ready!(self.poll_parts(context, head, others))?;
            if written == 0 {
                return Poll::Ready(Ok(0));
            }
            let ours = before.len();
            let lines = written.saturating_sub(ours).min(insert.lines.len() - insert.done);
            insert.before -= written.min(ours);
            insert.done += lines;
            // hyper takes nothing written for the end of the connection.
            if written > lines {
                return Poll::Ready(Ok(written - lines));
            }
        }
    }

    /// Interim answers stand whole at the beginning of what was read, or are passed over.
    fn hear(&self, mut read: &[u8]) {
        if !self.state.may_hint.load(Ordering::Relaxed) {
            return;
        }
        while !read.is_empty() {
            let Some(interim) = interim(read) else {
                self.state.may_hint.store(false, Ordering::Relaxed);
                return;
            };
            if let (Some(head), Some(hinted)) =
                (interim.head, &*self.state.hinted.lock().unwrap_or_else(PoisonError::into_inner))
            {
                hinted.say(&head);
            }
            read = &read[interim.length..];
        }
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
            return Poll::Ready(Err(without_end()));
        }
        if heard == 0 {
            self.row = Row::default();
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        let came = buffer.filled().len() - before;
        if came == 0 && outcome.is_ready() {
            self.failed();
            if let Poll::Ready(Err(error)) = &outcome
                && let Some(cause) = Failed::late(error)
            {
                let _ = self.state.refused.set((cause, error.to_string()));
            }
        }
        self.state.heard.store(heard + came, Ordering::Relaxed);
        let read = &buffer.filled()[before..];
        if self.row.take(read).is_err() {
            return Poll::Ready(Err(without_end()));
        }
        self.hear(read);
        outcome
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let begins = self.state.begins.load(Ordering::Relaxed);
        if let Some(first) = slices.first() {
            self.note(first);
        }
        if self.deaf {
            if begins {
                self.failed();
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            return Poll::Ready(Ok(length(slices)));
        }
        let outcome = match (self.insert.take(), slices) {
            (Some(mut insert), _) => {
                let outcome = self.poll_insert(context, &mut insert, slices);
                self.insert = (insert.done < insert.lines.len()).then_some(insert);
                outcome
            }
            // `send` is cheaper than `writev`.
            (None, [one]) => Pin::new(&mut self.stream).poll_write(context, one),
            (None, _) => Pin::new(&mut self.stream).poll_write_vectored(context, slices),
        };
        match outcome {
            // Who answers before it has read all and closes lets its answer be followed by a reset (RFC 9112 section
            // 9.6). hyper would give up at the write: it is to read on, which brings the answer, or the end.
            Poll::Ready(Err(error)) if !begins && is_gone(&error) => {
                self.deaf = true;
                Poll::Ready(Ok(length(slices)))
            }
            Poll::Ready(Err(error)) => {
                self.failed();
                Poll::Ready(Err(error))
            }
            written => written,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn without_end() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "interim answers without end")
}

fn length(slices: &[IoSlice<'_>]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n";

    /// To one that has read some of a request, has answered, and is gone: a reset has come by now.
    async fn answered() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut ours, (mut theirs, _)) = (ours.expect("connected"), theirs.expect("accepted"));
        ours.write_all(b"POST / HTTP/1.1\r\n\r\nmuch of a body").await.expect("sent");
        theirs.readable().await.expect("open");
        theirs.write_all(ANSWER).await.expect("sent");
        theirs.set_zero_linger().expect("open");
        drop(theirs);
        ours.ready(tokio::io::Interest::ERROR).await.expect("open");
        ours
    }

    #[tokio::test]
    async fn an_answer_before_the_end_of_a_body_is_read_though_nothing_can_be_written() {
        let mut plain = answered().await;
        plain.write_all(b"more").await.expect_err("the control: it is gone");
        let exchanged = Exchanged::default();
        let mut wire = Wire::new(Socket::Plain(answered().await), &exchanged, None);
        wire.write_all(b"more").await.expect("hyper goes on");
        wire.flush().await.expect("and reads");
        let mut read = Vec::new();
        let _ = wire.read_to_end(&mut read).await;
        assert_eq!(read, ANSWER);
    }

    #[tokio::test]
    async fn the_next_request_is_told_that_nobody_is_there() {
        let exchanged = Exchanged::default();
        let mut wire = Wire::new(Socket::Plain(answered().await), &exchanged, None);
        wire.write_all(b"the end of a body").await.expect("hyper goes on");
        exchanged.begins(true, None, None);
        let head = b"GET /next HTTP/1.1\r\n\r\n";
        wire.write_all(head).await.expect_err("nobody is there");
        assert_eq!(exchanged.sent(), Some(&head[..]), "what is sent again is the next one");
    }
}
