//! Which endpoint of a backend a worker asks next: in turn from a random place, at random, or the less busy of two, past
//! endpoints that cannot be connected to or were ejected.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use http::HeaderValue;
use tokio::time::Instant;

use super::backend::Endpoints;
use super::endpoint::EndpointPool;
use super::eyeballs::{Begin, MAX_RIVALS};
use super::health::Standing;
use crate::message::{ErrorKind, ProxyError};
use crate::route_map::{BackendTarget, Balance, HostHeader};
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
    set: RefCell<Arc<Endpoints>>,
    /// What the guard knew when it was asked about them.
    judged: Cell<u64>,
    /// Those endpoints of the set that the guard permits, in its order.
    endpoints: RefCell<Vec<Rc<EndpointPool>>>,
    turn: Cell<usize>,
    balance: Balance,
    random: Cell<u64>,
}

/// Whether a pool is still of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swept {
    InUse,
    Unused,
}

/// So often chance decides, before whoever stands next is asked.
const CHANCES: usize = 8;

/// Whether an endpoint can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fitness {
    Fit,
    /// It is coming back, and this request is none of its share.
    NotItsTurn,
    Unfit,
}

impl Fitness {
    /// 0 is asked first. One that has this request already, and failed, is better than one that is known to fail.
    fn rank(self, is_asked: bool) -> u8 {
        match (self, is_asked) {
            (Self::Fit, false) => 0,
            (Self::NotItsTurn, false) => 1,
            (Self::Fit, true) => 2,
            (Self::NotItsTurn, true) => 3,
            (Self::Unfit, false) => 4,
            (Self::Unfit, true) => 5,
        }
    }
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
            balance: backend.plan.traffic.balance,
            random: Cell::new(scatter(seed, backend.slot) as u64),
        });
        pool.refresh(backend);
        pool
    }

    /// Whether it is of a backend that took the place of this one.
    pub fn is_newer_than(&self, backend: &Backend) -> bool {
        self.backend.upgrade().is_some_and(|own| own.is_newer_than(backend))
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
        for (endpoint, health) in set.set.endpoints.iter().zip(&set.healths) {
            if !self.guard.permits(endpoint.address) {
                continue;
            }
            let new = EndpointPool::new(endpoint, health, self.worker, backend);
            let known = before.remove(&(new.address, new.host.clone()));
            endpoints.push(known.unwrap_or(new));
        }
        before.values().for_each(|endpoint| endpoint.retire());
        *self.set.borrow_mut() = set;
    }

    /// The endpoint to ask, none of `tried`, and none of `asked` while there are others of use. One that rests or was
    /// ejected is asked only if all are: it may be back.
    pub fn next(&self, tried: &[SocketAddr], asked: &[SocketAddr]) -> Option<Rc<EndpointPool>> {
        let endpoints = self.endpoints.borrow();
        let rank = |at: usize| {
            let endpoint: &EndpointPool = &endpoints[at];
            let is_asked = asked.contains(&endpoint.address);
            (!tried.contains(&endpoint.address)).then(|| self.fitness(endpoint).rank(is_asked))
        };
        let count = endpoints.len();
        let by_chance = match self.balance {
            Balance::RoundRobin => None,
            _ if count < 2 => None,
            Balance::Random => {
                (0..CHANCES).map(|_| self.random() as usize % count).find(|at| rank(*at) == Some(0))
            }
            Balance::LeastRequest | Balance::PeakEwma => {
                (0..CHANCES).find_map(|_| self.better_of_two(&endpoints, &rank))
            }
        };
        if let Some(at) = by_chance {
            return Some(endpoints[at].clone());
        }
        let turn = match self.balance {
            Balance::RoundRobin => self.turn.get(),
            Balance::Random | Balance::LeastRequest | Balance::PeakEwma => self.random() as usize,
        };
        let mut best = None;
        for at in (0..count).map(|step| turn.wrapping_add(step) % count) {
            let Some(rank) = rank(at) else { continue };
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, at));
            }
            if rank == 0 {
                break;
            }
        }
        let (_, at) = best?;
        self.turn.set(at + 1);
        Some(endpoints[at].clone())
    }

    /// How a connection to this endpoint begins: against others of its name while nobody knows that it is well.
    /// None of `tried`, none of `asked`, and none that would not be asked otherwise.
    pub fn begin(&self, endpoint: &EndpointPool, tried: &[SocketAddr], asked: &[SocketAddr]) -> Begin {
        if !endpoint.has_rivals() {
            return Begin::Alone;
        }
        let endpoints = self.endpoints.borrow();
        let is_rival = |rival: &&Rc<EndpointPool>| {
            rival.address != endpoint.address
                && rival.host == endpoint.host
                && !tried.contains(&rival.address)
                && !asked.contains(&rival.address)
                && self.fitness(rival) == Fitness::Fit
        };
        let mut rivals: Vec<_> = endpoints.iter().filter(is_rival).map(|rival| rival.address).collect();
        rivals.sort_by_key(|rival| rival.is_ipv4() == endpoint.address.is_ipv4());
        rivals.truncate(MAX_RIVALS);
        if rivals.is_empty() { Begin::Alone } else { Begin::Against(rivals) }
    }

    /// The one of the same name that was quicker.
    pub fn rival(&self, endpoint: &EndpointPool, address: SocketAddr) -> Option<Rc<EndpointPool>> {
        let endpoints = self.endpoints.borrow();
        endpoints.iter().find(|rival| rival.address == address && rival.host == endpoint.host).cloned()
    }

    /// Two at random, each as likely as any other; none if neither is of the first rank.
    fn better_of_two(
        &self,
        endpoints: &[Rc<EndpointPool>],
        rank: &impl Fn(usize) -> Option<u8>,
    ) -> Option<usize> {
        let random = self.random();
        let first = (random >> 32) as usize % endpoints.len();
        let second = (first + 1 + (random as u32) as usize % (endpoints.len() - 1)) % endpoints.len();
        let cost = |at: usize| {
            let health = &endpoints[at].health;
            (rank(at) == Some(0)).then(|| match self.balance {
                Balance::PeakEwma => health.cost(),
                _ => f64::from(health.active()),
            })
        };
        match (cost(first), cost(second)) {
            (Some(one), Some(other)) if other < one => Some(second),
            (Some(_), _) => Some(first),
            (None, Some(_)) => Some(second),
            (None, None) => None,
        }
    }

    fn fitness(&self, endpoint: &EndpointPool) -> Fitness {
        match endpoint.health.standing() {
            _ if endpoint.rests() => Fitness::Unfit,
            _ if self.set.borrow().in_panic() => Fitness::Fit,
            Standing::Good => Fitness::Fit,
            Standing::Ejected | Standing::Unhealthy => Fitness::Unfit,
            Standing::Recovering(share) if self.random() % 100 < share => Fitness::Fit,
            Standing::Recovering(_) => Fitness::NotItsTurn,
        }
    }

    fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        mix(state)
    }

    /// Why there is no endpoint to ask.
    pub fn nowhere(&self, backend: &Backend) -> ProxyError {
        let kind = match &backend.plan.target {
            _ if !self.set.borrow().set.endpoints.is_empty() => ErrorKind::AddressNotPermitted,
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
