//! A worker's kept connections.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{ErrorKind, ProxyError, Request, Response};
use crate::upstream::{Backend, Guard};

/// All kept connections of one worker.
#[derive(Debug)]
pub struct Pools {}

/// Bounds of one try.
#[derive(Clone, Copy, Debug)]
pub struct SendLimits {
    pub connect: Option<Duration>,
    /// Until when the answer's head must be there.
    pub deadline: Option<Instant>,
}

/// A backend's answer and the endpoint that gave it.
#[derive(Debug)]
pub struct Answer {
    pub response: Response,
    pub endpoint: SocketAddr,
}

impl Pools {
    /// Called on the worker's own runtime. `seed` decides where each round robin starts.
    pub fn new(worker: usize, seed: u64, guard: Guard) -> Rc<Self> {
        let _ = (worker, seed, guard);
        Rc::new(Self {})
    }

    /// Picks an endpoint, takes or makes a connection, sends the request (origin form, HTTP/1.1, hop-by-hop fields
    /// already ours) and gives the answer's head; the body streams. `BackendPlan.host_header` is applied here: a name replaces
    /// `Host` unless the request carries [`FixedHost`](crate::message::FixedHost). A kept connection that closes as we write never
    /// shows: the request goes out again on another while nothing of it was sent. An answer 101 carries
    /// `hyper::upgrade::OnUpgrade` in its extensions.
    ///
    /// # Errors
    /// `NoHealthyEndpoints`, `ConnectFailure`, `ConnectTimeout`, `BackendTimeout`, `Reset`, `InvalidResponse`, ...
    pub async fn send(
        &self,
        backend: &Arc<Backend>,
        request: Request,
        limits: SendLimits,
    ) -> Result<Answer, ProxyError> {
        let _ = (backend, request, limits);
        Err(ErrorKind::NoHealthyEndpoints.into())
    }
}
