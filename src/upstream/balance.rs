//! Which endpoint of a backend a worker asks next: round robin from a random place, past endpoints that cannot be
//! connected to.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use http::HeaderValue;
use tokio::time::Instant;

use super::endpoint::EndpointPool;
use crate::message::{ErrorKind, ProxyError};
use crate::route_map::{BackendTarget, EndpointSet, HostHeader};
use crate::upstream::{Backend, Guard};

/// One worker's connections to one backend.
#[derive(Debug)]
pub(super) struct BackendPool {
    /// Weak: the backend, and its series with it, must be able to go while connections are still open.
    backend: Weak<Backend>,
    worker: usize,
    guard: Guard,
    /// Replaces `Host`; see also [`EndpointPool::host`].
    pub host: Option<HeaderValue>,
    set: RefCell<Arc<EndpointSet>>,
    /// What the guard knew when it was asked about them.
    judged: Cell<u64>,
    /// Those endpoints of the set that the guard permits, in its order.
    endpoints: RefCell<Vec<Rc<EndpointPool>>>,
    turn: Cell<usize>,
}

/// Whether a pool is still of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swept {
    InUse,
    Unused,
}

impl BackendPool {
    pub fn new(backend: &Arc<Backend>, worker: usize, seed: u64, guard: Guard) -> Rc<Self> {
        let host = match &backend.plan.host_header {
            HostHeader::Preserve | HostHeader::Own => None,
            // The compiler has proven it to be a host; what is none would be left to the client's.
            HostHeader::Name(name) => HeaderValue::from_str(name).ok(),
        };
        let pool = Rc::new(Self {
            backend: Arc::downgrade(backend),
            worker,
            guard,
            host,
            set: RefCell::default(),
            judged: Cell::default(),
            endpoints: RefCell::default(),
            turn: Cell::new(scatter(seed, backend.slot)),
        });
        pool.refresh(backend);
        pool
    }

    pub fn is_of(&self, backend: &Arc<Backend>) -> bool {
        std::ptr::eq(self.backend.as_ptr(), Arc::as_ptr(backend))
    }

    pub fn len(&self) -> usize {
        self.endpoints.borrow().len()
    }

    /// Follows the backend's endpoints; connections to those that stay are kept.
    pub fn refresh(&self, backend: &Backend) {
        let known = self.guard.version();
        if self.judged.get() == known && backend.has_endpoints(&self.set.borrow()) {
            return;
        }
        self.judged.set(known);
        let set = backend.endpoints();
        let mut endpoints = self.endpoints.borrow_mut();
        // Two names may lead to one address.
        type Key = (SocketAddr, Option<HeaderValue>);
        let mut before: std::collections::HashMap<Key, Rc<EndpointPool>, foldhash::fast::RandomState> =
            endpoints.drain(..).map(|pool| ((pool.address, pool.host.clone()), pool)).collect();
        let permitted = set.endpoints.iter().filter(|endpoint| self.guard.permits(endpoint.address));
        for endpoint in permitted {
            let new = EndpointPool::new(endpoint, self.worker, backend);
            let known = before.remove(&(new.address, new.host.clone()));
            endpoints.push(known.unwrap_or(new));
        }
        before.values().for_each(|endpoint| endpoint.retire());
        *self.set.borrow_mut() = set;
    }

    /// The endpoint whose turn it is. One that rests is asked only if all do: it may be back.
    pub fn next(&self, pass_over: impl Fn(SocketAddr) -> bool) -> Option<Rc<EndpointPool>> {
        let endpoints = self.endpoints.borrow();
        let (count, turn) = (endpoints.len(), self.turn.get());
        let mut resting = None;
        for step in 0..count {
            let at = turn.wrapping_add(step) % count;
            let endpoint = &endpoints[at];
            if pass_over(endpoint.address) {
                continue;
            }
            if !endpoint.rests() {
                self.turn.set(at + 1);
                return Some(endpoint.clone());
            }
            resting.get_or_insert(at);
        }
        let at = resting?;
        self.turn.set(at + 1);
        Some(endpoints[at].clone())
    }

    /// Why there is no endpoint to ask.
    pub fn nowhere(&self, backend: &Backend) -> ProxyError {
        let kind = match &backend.plan.target {
            _ if !self.set.borrow().endpoints.is_empty() => ErrorKind::AddressNotPermitted,
            BackendTarget::Service { .. } => ErrorKind::NoHealthyEndpoints,
            BackendTarget::Hosts(_) => ErrorKind::NameResolution,
        };
        kind.into()
    }

    pub fn sweep(&self, now: Instant) -> Swept {
        let Some(backend) = self.backend.upgrade() else { return Swept::Unused };
        self.refresh(&backend);
        backend.tick(now);
        let endpoints = self.endpoints.borrow();
        endpoints.iter().for_each(|endpoint| endpoint.sweep(now));
        if endpoints.iter().all(|endpoint| endpoint.is_unused()) { Swept::Unused } else { Swept::InUse }
    }
}

impl Drop for BackendPool {
    fn drop(&mut self) {
        self.endpoints.borrow().iter().for_each(|endpoint| endpoint.retire());
    }
}

/// A start that differs from worker to worker and from backend to backend.
fn scatter(seed: u64, slot: usize) -> usize {
    mix(seed.wrapping_add((slot as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))) as usize
}

/// The finish of SplitMix64.
pub(super) fn mix(state: u64) -> u64 {
    let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
