//! The bytes of an HTTP/2 connection to an endpoint, on their way from and to h2: whether the endpoint has said hello or
//! farewell, whether it says anything at all, and a bound on what it says for nothing.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::bounds::Permit;
use super::socket::Socket;
use crate::message::FrameBudget;

/// What came from the endpoint so far.
#[derive(Debug)]
pub(super) struct Heard {
    frames: RefCell<FrameBudget>,
    /// How often anything came.
    reads: Cell<u64>,
    /// Why nothing more comes.
    ended: RefCell<Option<io::Error>>,
    /// The endpoint's SETTINGS are in force: what it permits is known.
    begun: Cell<bool>,
    /// Who waits for that.
    waiter: RefCell<Option<Waker>>,
    /// Who is to look at SETTINGS that came.
    driver: RefCell<Option<Waker>>,
}

#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    heard: Rc<Heard>,
    /// Goes after the socket.
    _permit: Option<Permit>,
}

impl Heard {
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            frames: RefCell::new(FrameBudget::of_server()),
            reads: Cell::new(0),
            ended: RefCell::default(),
            begun: Cell::new(false),
            waiter: RefCell::default(),
            driver: RefCell::default(),
        })
    }

    /// Waits for the endpoint's first SETTINGS: before them nobody knows how many requests it takes at once.
    ///
    /// # Errors
    /// What ended the connection before.
    pub async fn hello(&self) -> io::Result<()> {
        std::future::poll_fn(|context| {
            if self.begun.get() {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = self.ended.borrow_mut().take() {
                return Poll::Ready(Err(error));
            }
            *self.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// To be called by whoever sees what the SETTINGS say, each time that they are looked at.
    pub fn looks(&self, context: &Context<'_>) {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *driver = Some(context.waker().clone());
        }
        if !self.begun.get() && self.frames.borrow().settings() > 0 {
            self.begun.set(true);
            wake(&self.waiter);
        }
    }

    /// How often anything came.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    pub fn is_going_away(&self) -> bool {
        self.frames.borrow().is_going_away()
    }

    /// A request is about to be sent.
    pub fn asks(&self) {
        self.frames.borrow_mut().asked();
    }

    fn came(&self, bytes: &[u8]) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        let mut frames = self.frames.borrow_mut();
        let before = frames.settings();
        frames.take(bytes)?;
        if frames.settings() != before {
            wake(&self.driver);
        }
        Ok(())
    }

    fn ends(&self, error: io::Error) {
        self.ended.borrow_mut().get_or_insert(error);
        wake(&self.waiter);
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow_mut().take() {
        waker.wake();
    }
}

impl Wire {
    pub fn new(socket: Socket, heard: &Rc<Heard>, permit: Option<Permit>) -> Self {
        Self { socket, heard: Rc::clone(heard), _permit: permit }
    }

    fn note_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.heard.frames.borrow_mut().wrote(*bytes);
        }
        written
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.heard.ends(io::ErrorKind::ConnectionAborted.into());
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match std::task::ready!(Pin::new(&mut self.socket).poll_read(context, buffer)) {
            Err(error) => {
                // h2 keeps the one, whoever waits for the hello the other: it may say why there is no TLS.
                let same = io::Error::new(error.kind(), error.to_string());
                self.heard.ends(error);
                Poll::Ready(Err(same))
            }
            Ok(()) if buffer.filled().len() == before => {
                self.heard.ends(io::ErrorKind::UnexpectedEof.into());
                Poll::Ready(Ok(()))
            }
            Ok(()) => Poll::Ready(self.heard.came(&buffer.filled()[before..])),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
