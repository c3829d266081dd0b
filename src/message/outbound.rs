//! Sub-requests: how a filter or an action asks a backend on the request's own worker.

use std::future::Future;
use std::pin::Pin;

use tokio::time::Instant;

use crate::message::{ProxyError, Request, Response};
use crate::values::BackendId;

/// A future of one worker thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The worker's way to backends. It is reached through the [`Exchange`](crate::message::Exchange), not through the
/// linked plan, because plans are shared by all workers and connections are not. Owned by `Rc`, so that work which
/// outlives the client (a mirror, a cache refresh) keeps it.
pub trait Outbound {
    /// Sends `request` to a backend of the installed route map and gives the head of its answer; the body streams.
    ///
    /// # Errors
    /// As a proxied request would: no endpoint, connect failure, time-out, reset. The caller bounds the time.
    fn call<'a>(
        &'a self,
        backend: &'a BackendId,
        request: Request,
    ) -> LocalFuture<'a, Result<Response, ProxyError>>;

    /// Runs `work` on this worker detached from the client, which may leave. Bounded per worker; ends with drain.
    /// Gives the work back when the bound is reached.
    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>>;

    /// The same for work that goes as fast as clients read: it has a bound of its own, so that slow ones leave room for
    /// the other.
    fn carry(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        self.detach(work)
    }
}

/// Extension of a sub-request: by when the head of its answer must be there. Whoever bounds the time so lets the backend
/// know of it: a call that is only dropped tells nobody that the endpoint was silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerBy(pub Instant);

/// Extension of a request whose `Host` a rule has set: no backend's own name replaces it.
#[derive(Clone, Copy, Debug)]
pub struct FixedHost;
