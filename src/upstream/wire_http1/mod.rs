//! A connection of HTTP/1.1 to an endpoint: requests go out on it one after the other, answers come in.
//!
//! Whoever waits for an answer reads it, by itself: no task stands between. The connection's own task sends (an answer may
//! come, and be read slowly, while its request is still on its way), and watches the connection while it is idle.
//!
//! Invariants: a request is sent only after the answer to the last one is over, in both directions, and nothing came
//! behind it; whatever comes while nothing was asked ends the connection.

mod receiving;
mod switched;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf};
use tokio::task::coop::unconstrained;

pub(super) use self::receiving::Receiving;
use self::switched::Switched;
use super::bounds::Permit;
use super::broken::Broken;
use super::connect_stream::Coming;
use super::sending::Sending;
use super::socket::Socket;
use super::tls::Failed;
use super::{HeadLines, interim, replay};
use crate::http1::{self, Head, Heads};
use crate::message::Request;

/// Interim answers and the head after them may be this long in all.
const MAX_UNANSWERED: usize = 1 << 20;
/// Read at once, and twice as much each time that it was all there.
const READ: Range<usize> = 8 << 10..128 << 10;
/// The room of larger heads and bodies is given back with their connection.
const KEPT_ROOM: usize = 16 << 10;

/// The connection. Its clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Wire(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Cell<State>,
    inner: RefCell<Inner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A request may be sent.
    Idle,
    /// One is being sent, or its answer read.
    Busy,
    /// Of no more use; the socket is closed, or somebody else's.
    Over,
}

#[derive(Debug)]
struct Inner {
    socket: Option<Socket>,
    /// Goes after the socket.
    permit: Option<Permit>,
    sending: Sending,
    /// The connection's task has something to send.
    is_sending: bool,
    /// Why it does not any more.
    failed: Option<Broken>,
    heads: Heads,
    /// What was read and not yet taken.
    read: BytesMut,
    /// How much is read at once.
    next: usize,
    /// Its room became a large one.
    is_large: bool,
    /// Bytes that came for the request under way.
    heard: usize,
    /// What the endpoint said against us, after the handshake was over for us.
    refused: Option<(Failed, String)>,
    is_to_head: bool,
    keeps_alive: bool,
    /// The answer was read to its end.
    answered: bool,
    /// For the fields of the next head.
    spare: HeaderMap,
    /// Who reads, where the connection's task has something to tell it.
    reader: Option<Waker>,
    task: Option<Waker>,
}

/// Closes the connection when its task ends, however that comes.
struct Closes(Wire);

impl Wire {
    pub fn new(socket: Socket, permit: Option<Permit>) -> Self {
        let inner = Inner {
            socket: Some(socket),
            permit,
            sending: Sending::default(),
            is_sending: false,
            failed: None,
            heads: Heads::default(),
            read: BytesMut::new(),
            next: READ.start,
            is_large: false,
            heard: 0,
            refused: None,
            is_to_head: false,
            keeps_alive: true,
            answered: true,
            spare: HeaderMap::new(),
            reader: None,
            task: None,
        };
        Self(Rc::new(Shared { state: Cell::new(State::Idle), inner: RefCell::new(inner) }))
    }

    /// The connection's task; it ends with the connection, and the connection with it.
    pub fn drive(&self) -> impl Future<Output = ()> + use<> {
        let closes = Closes(self.clone());
        poll_fn(move |context| closes.0.poll_drive(context))
    }

    /// Whether a request can be sent now.
    pub fn is_ready(&self) -> bool {
        self.0.state.get() == State::Idle
    }

    pub fn is_closed(&self) -> bool {
        self.0.state.get() == State::Over
    }

    /// Another number for each connection.
    pub fn chance(&self) -> u64 {
        Rc::as_ptr(&self.0) as usize as u64
    }

    /// Whether anything came for the request that failed.
    pub fn heard(&self) -> bool {
        self.0.inner.borrow().heard > 0
    }

    /// Why the endpoint ended the TLS connection, if it said so.
    pub fn refused(&self) -> Option<(Failed, String)> {
        self.0.inner.borrow().refused.clone()
    }

    /// The head of the request that failed, without the lines that were put into it.
    pub fn sent(&self) -> Option<Vec<u8>> {
        self.0.inner.borrow().sending.head()
    }

    /// The request that failed, where nothing of it was sent.
    pub fn unsent(&self) -> Option<Request> {
        let (head, body) = self.0.inner.borrow_mut().sending.unsent()?;
        replay::rebuild(&head, body)
    }

    /// Closes an idle connection that has ended, or on which something came.
    fn is_over(&self) -> bool {
        let mut inner = self.0.inner.borrow_mut();
        let task = inner.task.clone();
        let is_over = inner.look(task.as_ref().unwrap_or(Waker::noop()));
        drop(inner);
        if is_over {
            self.leave();
        }
        is_over
    }

    /// Begins a request; [`Self::poll_answer`] goes on.
    ///
    /// # Errors
    /// The request, where nothing can be sent any more.
    pub fn begin(&self, request: Request, lines: Option<&HeadLines>) -> Result<(), Box<Request>> {
        // What came meanwhile the task may not have heard of yet.
        if !self.is_ready() || self.is_over() {
            return Err(Box::new(request));
        }
        self.0.state.set(State::Busy);
        let inner = &mut *self.0.inner.borrow_mut();
        inner.is_to_head = *request.method() == Method::HEAD;
        inner.heard = 0;
        inner.answered = false;
        inner.keeps_alive = true;
        match inner.sending.begin(request, lines) {
            Ok(headers) => {
                inner.spare = headers;
                inner.is_sending = true;
                inner.task.iter().for_each(Waker::wake_by_ref);
            }
            Err(error) => inner.failed = Some(Broken::Body(error)),
        }
        Ok(())
    }

    /// Sends, and waits for the answer's head. `heads` hears of interim answers.
    ///
    /// # Errors
    /// Why there is none. The connection is closed then.
    pub fn poll_answer(
        &self,
        context: &mut Context<'_>,
        heads: &mut interim::Heads<'_>,
    ) -> Poll<Result<http::Response<Coming>, Broken>> {
        let answer = ready!(self.0.inner.borrow_mut().poll_head(context, heads));
        match answer {
            Ok(head) => Poll::Ready(self.answered(head)),
            Err(error) => {
                self.close();
                Poll::Ready(Err(error))
            }
        }
    }

    fn answered(&self, head: Head) -> Result<http::Response<Coming>, Broken> {
        let mut response = http::Response::new(());
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.headers;
        if let Some(reason) = head.reason.and_then(|reason| ReasonPhrase::try_from(reason).ok()) {
            response.extensions_mut().insert(reason);
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let switched = self.switch().ok_or(Broken::SwitchedEarly)?;
            return Ok(response.map(|()| Coming::Tunnel(Box::new(switched))));
        }
        let incoming = http1::Incoming::new(head.framing);
        self.0.inner.borrow_mut().keeps_alive &= head.keeps_alive;
        if incoming.is_over() {
            self.answer_ends();
        }
        Ok(response.map(|()| Coming::Own(Receiving { wire: self.clone(), incoming, failed: None })))
    }

    /// The bytes behind a 101. None: the request was not over.
    fn switch(&self) -> Option<Switched> {
        let mut inner = self.0.inner.borrow_mut();
        let is_sent = !inner.is_sending;
        let socket = inner.socket.take().filter(|_| is_sent);
        let (mut read, permit) = (std::mem::take(&mut inner.read), inner.permit.take());
        if read.is_empty() {
            // Its room goes.
            read = BytesMut::new();
        }
        drop(inner);
        self.close();
        Some(Switched { read, socket: socket?, _permit: permit })
    }

    /// All of the answer was read.
    fn answer_ends(&self) {
        self.0.inner.borrow_mut().answered = true;
        self.settle();
    }

    /// After the end of a direction: the next request, or nothing more.
    fn settle(&self) {
        if self.is_closed() {
            return;
        }
        let mut inner = self.0.inner.borrow_mut();
        let goes_on = inner.keeps_alive && !inner.sending.is_deaf() && inner.failed.is_none();
        if !goes_on || !inner.read.is_empty() {
            drop(inner);
            return self.leave();
        }
        if inner.is_sending {
            return;
        }
        if std::mem::take(&mut inner.is_large) {
            inner.read = BytesMut::new();
        }
        inner.next = READ.start;
        inner.reader = None;
        inner.sending.gives_room_back();
        self.0.state.set(State::Idle);
        drop(inner);
        // From here on the task hears of what comes.
        self.is_over();
    }

    /// Closes what has come to its end; over TLS that is said (RFC 9112, 9.8).
    fn leave(&self) {
        let mut inner = self.0.inner.borrow_mut();
        if let Some(socket) = inner.socket.as_mut().filter(|socket| socket.is_tls()) {
            let _ = Pin::new(socket).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
        drop(inner);
        self.close();
    }

    fn close(&self) {
        self.0.state.set(State::Over);
        let mut inner = self.0.inner.borrow_mut();
        let (socket, permit) = (inner.socket.take(), inner.permit.take());
        let wakers = [inner.task.take(), inner.reader.take()];
        let unsent = inner.sending.ends();
        drop(inner);
        // In this order.
        drop(socket);
        drop(permit);
        drop(unsent);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn poll_drive(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.0.inner.borrow_mut();
        if self.is_closed() {
            return Poll::Ready(());
        }
        if !inner.task.as_ref().is_some_and(|task| task.will_wake(context.waker())) {
            inner.task = Some(context.waker().clone());
        }
        let mut ends = false;
        if inner.is_sending
            && let Poll::Ready(sent) = inner.poll_send(context)
        {
            inner.is_sending = false;
            inner.failed = sent.err();
            let (has_failed, is_answered) = (inner.failed.is_some(), inner.answered);
            drop(inner);
            if has_failed {
                self.close();
            } else if is_answered {
                self.settle();
            }
            inner = self.0.inner.borrow_mut();
        }
        if self.is_ready() {
            ends = inner.poll_idle(context).is_ready();
        }
        drop(inner);
        if ends {
            self.leave();
        }
        if self.is_closed() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Inner {
    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        heads: &mut interim::Heads<'_>,
    ) -> Poll<Result<Head, Broken>> {
        if let Some(failed) = self.failed.take() {
            return Poll::Ready(Err(failed));
        }
        loop {
            while let Some(head) = self.heads.take(&mut self.read, self.is_to_head, &mut self.spare)? {
                if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(head));
                }
                heads.take(head.status, &head.headers)?;
            }
            let came = ready!(self.poll_read(context)).inspect_err(|error| self.is_refused(error))?;
            // What came before anything was sent is no answer to it.
            if came == 0 || self.is_sending && self.sending.is_new() {
                return Poll::Ready(Err(Broken::Closed));
            }
            self.heard += came;
            if self.heard > MAX_UNANSWERED {
                return Poll::Ready(Err(interim::TooMany.into()));
            }
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.sending.is_new() {
            // Others may have had many turns since it was looked at. Who reads goes on to hear of what comes.
            let reader = self.reader.take();
            let is_over = self.look(reader.as_ref().unwrap_or(Waker::noop()));
            self.reader = reader;
            if is_over {
                return Poll::Ready(Err(Broken::Closed));
            }
        }
        match &mut self.socket {
            Some(socket) => self.sending.poll(context, socket),
            None => Poll::Ready(Err(Broken::Closed)),
        }
    }

    /// Reads more; how much came, 0 at the end of the connection.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(Ok(0)) };
        self.read.reserve(self.next);
        self.is_large |= self.read.len() + self.next > KEPT_ROOM;
        let Poll::Ready(came) = pin!(socket.read_buf(&mut self.read)).poll(context)? else {
            if self.is_sending
                && !self.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker()))
            {
                self.reader = Some(context.waker().clone());
            }
            return Poll::Pending;
        };
        if came >= self.next {
            self.next = (self.next * 2).min(READ.end);
        } else if came < self.next / 2 {
            self.next = (self.next / 2).max(READ.start);
        }
        Poll::Ready(Ok(came))
    }

    fn is_refused(&mut self, error: &io::Error) {
        self.refused = Failed::late(error).map(|cause| (cause, error.to_string()));
    }

    /// Whether the connection has ended, or something came that nobody asked for. `waker` hears of what comes later.
    fn look(&mut self, waker: &Waker) -> bool {
        let mut context = Context::from_waker(waker);
        let is_tls = self.socket.as_ref().is_some_and(Socket::is_tls);
        let looks = poll_fn(|context| self.poll_idle(context));
        // Over TLS one read is as many of the socket as the endpoint likes, unless a turn's budget ends them.
        if is_tls {
            return pin!(looks).poll(&mut context).is_ready();
        }
        pin!(unconstrained(looks)).poll(&mut context).is_ready()
    }

    /// Ready when the connection ends, or something comes that nobody asked for.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(()) };
        let mut byte = [0];
        let came = ready!(Pin::new(socket).poll_read(context, &mut ReadBuf::new(&mut byte)));
        if let (Err(error), 0) = (came, self.heard) {
            self.is_refused(&error);
        }
        Poll::Ready(())
    }
}

impl Drop for Closes {
    fn drop(&mut self) {
        if self.0.is_ready() { self.0.leave() } else { self.0.close() }
    }
}

#[cfg(test)]
mod tests;
