//! Whether a peer that is silent still lives: it is asked by PING, and has a time to answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// To be polled with its connection.
#[derive(Debug)]
pub struct KeepAlive {
    pings: PingPong,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    reads: u64,
    last_read: Instant,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody minds the silence.
    Rests,
    /// Until the silence is long enough to ask.
    Listens,
    /// Until the answer, or for too long.
    Asked,
    /// Nothing to be found out any more.
    Over,
}

/// The peer did not answer in time.
#[derive(Debug, PartialEq, Eq)]
pub struct Silent;

impl KeepAlive {
    /// Asks after `interval` without a sign of life, and gives it `timeout` for the answer.
    pub fn new(pings: PingPong, interval: Duration, timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            pings,
            interval,
            timeout,
            timer: Box::pin(tokio::time::sleep_until(now + interval)),
            reads: 0,
            last_read: now,
            state: State::Rests,
        }
    }

    /// Ready once, when the peer is silent for too long. `reads` changes whenever something came; while the connection is
    /// not `used` nobody is asked, and the silence begins anew when it is.
    pub fn poll(&mut self, context: &mut Context<'_>, reads: u64, used: bool) -> Poll<Silent> {
        if self.reads != reads {
            (self.reads, self.last_read) = (reads, Instant::now());
        }
        loop {
            match self.state {
                State::Over => return Poll::Pending,
                State::Rests if !used => return Poll::Pending,
                State::Rests => {
                    self.last_read = Instant::now();
                    self.listen();
                }
                State::Listens if !used => self.state = State::Rests,
                State::Listens => {
                    ready!(self.timer.as_mut().poll(context));
                    let now = Instant::now();
                    if now < self.last_read + self.interval {
                        self.listen();
                        continue;
                    }
                    self.state = match self.pings.send_ping(Ping::opaque()) {
                        Ok(()) => State::Asked,
                        // The connection is over.
                        Err(_) => State::Over,
                    };
                    self.timer.as_mut().reset(now + self.timeout);
                }
                State::Asked => match self.pings.poll_pong(context) {
                    Poll::Ready(Ok(_)) => {
                        self.last_read = Instant::now();
                        self.listen();
                    }
                    Poll::Ready(Err(_)) => self.state = State::Over,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(context));
                        self.state = State::Over;
                        return Poll::Ready(Silent);
                    }
                },
            }
        }
    }

    fn listen(&mut self) {
        self.timer.as_mut().reset(self.last_read + self.interval);
        self.state = State::Listens;
    }
}
