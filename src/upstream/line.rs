//! The requests of one worker that wait for a connection to one bounded backend, first come, first served.
//!
//! Nothing is handed over. Who is woken begins its choice anew (an endpoint may have failed meanwhile) and stays where it
//! stands if it finds nothing. What becomes free wakes one who can use it and was not woken yet; who leaves the line,
//! served or not, wakes the next: so no wake is lost. What becomes free of other workers comes by the bell of [`Bounds`],
//! which [`attend`] hears; it looks every [`TICK`] besides while anybody waits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::balance::BackendPool;
use super::bounds::{Bounds, Permit};
use super::connect::ConnectError;
use crate::telemetry::BackendStats;

const TICK: Duration = Duration::from_millis(100);
/// So many look then.
const LOOKS: usize = 64;
/// So often in a row something else goes before: own requests before other workers', what is there before what was chosen.
const IN_A_ROW: u32 = 16;

#[derive(Debug)]
pub(super) struct Line {
    bounds: Arc<Bounds>,
    stats: Arc<BackendStats>,
    worker: usize,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
    /// The newest, whose idle connections can be closed.
    pool: RefCell<Weak<BackendPool>>,
    /// Connections that own requests got while others waited who have fewer.
    own: Cell<u32>,
    /// One is to be closed for others, own requests or not.
    owes: Cell<bool>,
    /// Requests that took what was free at another endpoint than theirs.
    elsewhere: Cell<u32>,
}

#[derive(Debug)]
struct Waiter {
    wants: Cell<Wants>,
    is_woken: Cell<bool>,
    /// How often others went before it.
    passed: Cell<u32>,
    waker: RefCell<Option<Waker>>,
}

/// What serves a request that waits. A connection of its own always does: one to another endpoint is closed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// A stream of any connection of HTTP/2, too.
    Any,
    /// One to this endpoint.
    Only(SocketAddr),
    NoStream,
}

/// What became free.
#[derive(Clone, Copy, Debug)]
pub(super) enum Free {
    Connection(SocketAddr),
    /// At a shared connection to this endpoint.
    Stream(SocketAddr),
}

/// A request's place in the line.
pub(super) struct Waiting {
    line: Rc<Line>,
    waiter: Rc<Waiter>,
}

/// Rights to open connections, as one request takes them: none is needed where nothing is bounded.
pub(super) struct Permits<'a> {
    pub line: Option<&'a Rc<Line>>,
    pub ready: Option<Permit>,
}

impl Line {
    pub fn new(bounds: &Arc<Bounds>, stats: &Arc<BackendStats>, worker: usize) -> Rc<Self> {
        Rc::new(Self {
            bounds: Arc::clone(bounds),
            stats: Arc::clone(stats),
            worker,
            waiters: RefCell::default(),
            pool: RefCell::default(),
            own: Cell::new(0),
            owes: Cell::new(false),
            elsewhere: Cell::new(0),
        })
    }

    pub fn is_of(&self, bounds: &Arc<Bounds>) -> bool {
        Arc::ptr_eq(&self.bounds, bounds)
    }

    /// From now on it is this one's connections that are closed for others.
    pub fn serves(&self, pool: &Rc<BackendPool>) {
        *self.pool.borrow_mut() = Rc::downgrade(pool);
    }

    pub fn is_empty(&self) -> bool {
        self.waiters.borrow().is_empty()
    }

    /// Whether a newcomer may have this though others wait: it is what none of them wants, and the first was not passed
    /// too often.
    pub fn lets_pass(&self, what: Free) -> bool {
        let waiters = self.waiters.borrow();
        waiters.front().is_none_or(|first| first.passed.get() < IN_A_ROW)
            && !waiters.iter().any(|waiter| what.fits(waiter.wants.get()))
    }

    /// A newcomer had it. A connection could have been closed for who waits, a stream could not.
    pub fn was_passed(&self, what: Free) {
        if let (Free::Connection(_), Some(first)) = (what, self.waiters.borrow().front()) {
            first.passed.set(first.passed.get() + 1);
        }
    }

    /// Workers whose requests wait, and that have fewer connections, go before.
    pub fn permit(&self) -> Option<Permit> {
        if self.bounds.has_poorer(self.worker, 0) { None } else { self.bounds.permit(self.worker) }
    }

    /// None: as many wait as may.
    pub fn join(self: &Rc<Self>, wants: Wants) -> Option<Waiting> {
        if !self.bounds.may_wait(self.worker) {
            return None;
        }
        self.stats.pending(self.worker, 1);
        // The first looks once more: something may have become free before it was seen to wait.
        let is_first = self.is_empty();
        let (is_woken, waker) = (Cell::new(is_first), RefCell::default());
        let waiter = Rc::new(Waiter { wants: Cell::new(wants), is_woken, passed: Cell::new(0), waker });
        self.waiters.borrow_mut().push_back(Rc::clone(&waiter));
        if is_first {
            self.bounds.ring(self.worker);
        }
        self.bounds.ask_another(self.worker);
        Some(Waiting { line: Rc::clone(self), waiter })
    }

    /// A connection is idle, or one has room for a stream.
    pub fn is_free(&self, what: Free) {
        if self.is_empty() {
            if self.bounds.wanted_of(self.worker) > 0 {
                self.bounds.ring(self.worker);
            }
            return;
        }
        if self.bounds.has_poorer(self.worker, 1) && is_long(&self.own) {
            self.owes.set(true);
            self.bounds.ring(self.worker);
            if matches!(what, Free::Connection(_)) {
                return;
            }
        }
        match what {
            Free::Stream(_) => self.wake(1, |wants| what.fits(wants)),
            Free::Connection(endpoint) => self.wake_for(endpoint),
        }
    }

    /// A connection has room for so many.
    pub fn is_opened(&self, endpoint: SocketAddr, streams: usize) {
        self.wake(streams, |wants| Free::Stream(endpoint).fits(wants));
    }

    /// See [`Bounds::idles`].
    pub fn idles(&self, by: isize) {
        self.bounds.idles(self.worker, by);
    }

    /// Whether it was so often that a request took what was free at another endpoint than its own.
    pub fn is_long_elsewhere(&self) -> bool {
        self.elsewhere.get() >= IN_A_ROW
    }

    pub fn went_elsewhere(&self, count: u32) {
        self.elsewhere.set(if count == 0 { 0 } else { self.elsewhere.get().saturating_add(count) });
    }

    fn wake(&self, count: usize, is_served: impl Fn(Wants) -> bool) {
        let waiters = self.waiters.borrow();
        let asleep = waiters.iter().filter(|waiter| !waiter.is_woken.get() && is_served(waiter.wants.get()));
        asleep.take(count).for_each(|waiter| waiter.wake());
    }

    /// Who waits for this endpoint goes before who would have to close the connection; so often.
    fn wake_for(&self, endpoint: SocketAddr) {
        let waiters = self.waiters.borrow();
        let mut asleep = waiters.iter().filter(|waiter| !waiter.is_woken.get());
        let Some(head) = asleep.next() else { return };
        let fits = |waiter: &&Rc<Waiter>| Free::Connection(endpoint).fits(waiter.wants.get());
        if fits(&head) || head.passed.get() >= IN_A_ROW {
            return head.wake();
        }
        let Some(other) = asleep.find(fits) else { return head.wake() };
        head.passed.set(head.passed.get() + 1);
        other.wake();
    }

    /// What is free goes to who waits here, and what is idle to who waits elsewhere.
    fn look(&self, is_late: bool) {
        if is_late {
            self.wake(LOOKS, |_| true);
            self.bounds.ask_others(self.worker);
        } else {
            self.wake(self.bounds.free(self.worker), |_| true);
        }
        let wanted = self.bounds.wanted_of(self.worker);
        let owes = self.owes.take();
        let count = match owes {
            true => wanted.min(1),
            false if self.is_empty() => wanted,
            false => 0,
        };
        if owes && count == 0 {
            // Who it was kept for has gone.
            self.wake(1, |_| true);
        }
        let pool = if count > 0 { self.pool.borrow().upgrade() } else { None };
        if let Some(pool) = pool {
            let left = pool.forget_leaving();
            (left..count).map_while(|_| pool.spare()).for_each(drop);
        }
    }
}

/// Hears the worker's bell for as long as the line is there.
pub(super) async fn attend(line: Weak<Line>) {
    let Some((bounds, worker)) = line.upgrade().map(|line| (Arc::clone(&line.bounds), line.worker)) else {
        return;
    };
    while let Some(is_empty) = line.upgrade().map(|line| line.is_empty()) {
        let rung = bounds.rung(worker);
        let is_late = match is_empty {
            true => {
                rung.await;
                false
            }
            false => tokio::time::timeout(TICK, rung).await.is_err(),
        };
        let Some(line) = line.upgrade() else { break };
        line.look(is_late);
        drop(line);
        // What was closed is given back before the next look.
        tokio::task::yield_now().await;
    }
    // It may have been another line's.
    bounds.ring(worker);
}

impl Drop for Line {
    fn drop(&mut self) {
        self.bounds.ring(self.worker);
    }
}

impl Free {
    /// As it is.
    fn fits(self, wants: Wants) -> bool {
        match (self, wants) {
            (Self::Connection(_) | Self::Stream(_), Wants::Any) => true,
            (Self::Connection(endpoint) | Self::Stream(endpoint), Wants::Only(wanted)) => endpoint == wanted,
            (Self::Connection(_), Wants::NoStream) => true,
            (Self::Stream(_), Wants::NoStream) => false,
        }
    }
}

impl Waiter {
    fn wake(&self) {
        self.is_woken.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Waiting {
    /// Until there may be something for it.
    pub async fn woken(&self) {
        std::future::poll_fn(|context| {
            if self.waiter.is_woken.take() {
                return Poll::Ready(());
            }
            *self.waiter.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub fn wants(&self, wants: Wants) {
        self.waiter.wants.set(wants);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let line = &self.line;
        let mut waiters = line.waiters.borrow_mut();
        let at = waiters.iter().position(|waiter| Rc::ptr_eq(waiter, &self.waiter));
        at.map(|at| waiters.remove(at));
        drop(waiters);
        line.bounds.waits_no_more(line.worker);
        line.stats.pending(line.worker, -1);
        line.wake(1, |_| true);
    }
}

impl<'a> Permits<'a> {
    pub fn of(line: Option<&'a Rc<Line>>) -> Self {
        Self { line, ready: None }
    }

    /// Whether one has to be had first.
    pub fn are_missing(&self) -> Option<&'a Rc<Line>> {
        self.line.filter(|_| self.ready.is_none())
    }

    /// To be called before a connection is begun.
    ///
    /// # Errors
    /// Whoever wants to has to wait.
    pub fn have(&mut self) -> Result<(), ConnectError> {
        if let Some(line) = self.are_missing() {
            self.ready = Some(line.permit().ok_or(ConnectError::NonePermitted)?);
        }
        Ok(())
    }

    /// For the connection that there is now. None: it needs none.
    pub fn take(&mut self) -> Option<Permit> {
        self.ready.take()
    }
}

/// Counts; and begins anew when it was long enough.
fn is_long(row: &Cell<u32>) -> bool {
    row.set((row.get() + 1) % IN_A_ROW);
    row.get() == 0
}
