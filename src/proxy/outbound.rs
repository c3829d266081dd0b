//! Sub-requests of filters and actions, on the request's own worker.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::rc::{Rc, Weak};

use futures_util::FutureExt;
use tokio::time::Instant;

use super::connection;
use super::forwarded;
use super::worker::Worker;
use crate::message::{AnswerBy, ErrorKind, LocalFuture, Outbound, ProxyError, Request, Response};
use crate::upstream::SendLimits;
use crate::values::BackendId;

/// So much detached work a worker has at once, and as much that goes as fast as clients read.
const MAX_DETACHED: usize = 1024;
/// Nothing waits longer for a sub-request's head; callers bound it closer.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(30);
const CONNECT: std::time::Duration = std::time::Duration::from_secs(2);

struct WorkerOutbound {
    worker: Weak<Worker>,
    detached: Rc<Cell<usize>>,
    carried: Rc<Cell<usize>>,
}

/// The way of a worker's requests to backends.
pub fn of(worker: &Rc<Worker>) -> Rc<dyn Outbound> {
    Rc::new(WorkerOutbound { worker: Rc::downgrade(worker), detached: Rc::default(), carried: Rc::default() })
}

impl Outbound for WorkerOutbound {
    fn call<'a>(
        &'a self,
        backend: &'a BackendId,
        mut request: Request,
    ) -> LocalFuture<'a, Result<Response, ProxyError>> {
        Box::pin(async move {
            let worker = self.worker.upgrade().ok_or(ErrorKind::Draining)?;
            let live = worker.live();
            let backend = live.backend_by_id(backend).ok_or(ErrorKind::BackendNotFound)?;
            // A way that leads back to us must end, as that of clients' requests does.
            forwarded::pass_on(request.headers_mut(), &worker.settings.installation, 1)?;
            let deadline = Some(answer_by(&request, Instant::now()));
            let limits = SendLimits { connect: Some(CONNECT), deadline, ..SendLimits::default() };
            Ok(worker.pools.send(backend, request, None, limits).await?.response)
        })
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        self.begin(&self.detached, work)
    }

    fn carry(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        self.begin(&self.carried, work)
    }
}

impl WorkerOutbound {
    fn begin(
        &self,
        count: &Rc<Cell<usize>>,
        work: LocalFuture<'static, ()>,
    ) -> Result<(), LocalFuture<'static, ()>> {
        if count.get() >= MAX_DETACHED {
            return Err(work);
        }
        count.set(count.get() + 1);
        let (count, worker) = (Leave(Rc::clone(count)), self.worker.clone());
        connection::spawn(async move {
            let _count = count;
            if AssertUnwindSafe(work).catch_unwind().await.is_err()
                && let Some(worker) = worker.upgrade()
            {
                worker.count_panic();
            }
        });
        Ok(())
    }
}

/// What the caller says of it, as far as that is sooner than nobody waits for longer.
fn answer_by(request: &Request, now: Instant) -> Instant {
    let longest = now + LONGEST;
    request.extensions().get::<AnswerBy>().map_or(longest, |by| by.0.min(longest))
}

/// One place of detached work; free when dropped.
struct Leave(Rc<Cell<usize>>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_time_bounds_the_call_itself_and_nothing_waits_longer_than_the_longest() {
        let now = Instant::now();
        let mut request = Request::default();
        assert_eq!(answer_by(&request, now), now + LONGEST);
        for (asked, expected) in [(LONGEST / 2, LONGEST / 2), (LONGEST * 2, LONGEST)] {
            request.extensions_mut().insert(AnswerBy(now + asked));
            assert_eq!(answer_by(&request, now), now + expected);
        }
    }

    #[tokio::test]
    async fn what_slow_readers_hold_up_leaves_room_for_other_work() {
        let outbound =
            WorkerOutbound { worker: Weak::new(), detached: Rc::default(), carried: Rc::default() };
        let never = || Box::pin(std::future::pending());
        let local = tokio::task::LocalSet::new();
        let begun = local.run_until(async {
            let carried = (0..=MAX_DETACHED).filter(|_| outbound.carry(never()).is_ok()).count();
            (carried, outbound.detach(never()).is_ok())
        });
        assert_eq!(begun.await, (MAX_DETACHED, true));
    }
}
