//! Which endpoint of a backend a worker asks next: in turn from a random place, at random, or the less busy of two, past
//! endpoints that cannot be connected to or were ejected.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::admission::Choice;
use super::aim::Aim;
use super::backend::Endpoints;
use super::carrier::Carrier;
use super::connect::Closing;
use super::endpoint::{EndpointPool, Wish};
use super::eyeballs::{Begin, MAX_RIVALS};
use super::health::Standing;
use super::line::Line;
use super::proxy_header::ClientConnection;
use super::throttle::Charges;
use crate::message::{ErrorKind, ProxyError};
use crate::route_map::{Address, BackendTarget, Balance, HostHeader};
use crate::upstream::{Backend, Gate, Guard};

/// One worker's connections to one backend.
#[derive(Debug)]
pub(super) struct BackendPool {
    /// Weak: the backend, and its series with it, must be able to go while connections are still open.
    backend: Weak<Backend>,
    worker: usize,
    /// Where its connections are bounded.
    pub line: Option<Rc<Line>>,
    pub(super) gate: Gate,
    /// Replaces `Host`; see also [`EndpointPool::host`].
    pub host: Option<HeaderValue>,
    set: RefCell<Arc<Endpoints>>,
    /// What the guard knew when it was asked about them.
    judged: Cell<u64>,
    /// Those endpoints of the set that the guard permits, in its order.
    endpoints: RefCell<Vec<Rc<EndpointPool>>>,
    /// Where requests have keys: where each endpoint of the set stands among those above, if it is there.
    places: RefCell<Vec<Option<usize>>>,
    /// Places of the endpoints in the gateway's own zone, and of all others; empty if that is all the same.
    tiers: RefCell<(Vec<usize>, Vec<usize>)>,
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
/// Times of answers that differ by less than this factor are taken for equal.
const ALIKE: f64 = 2.0;
/// So many endpoints a key belongs to, one after the other, as long as those before are unfit.
const HEIRS: u64 = 16;
/// So many refused addresses are told.
const TOLD: usize = 8;

/// Places of endpoints that are chosen among.
enum Among<'a> {
    All(usize),
    These(&'a [usize]),
}

impl Among<'_> {
    fn len(&self) -> usize {
        match self {
            Self::All(count) => *count,
            Self::These(places) => places.len(),
        }
    }

    fn at(&self, index: usize) -> usize {
        match self {
            Self::All(_) => index,
            Self::These(places) => places[index],
        }
    }
}

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
    pub fn new(
        backend: &Arc<Backend>,
        (worker, line): (usize, Option<Rc<Line>>),
        seed: u64,
        guard: &Guard,
    ) -> Rc<Self> {
        let host = match &backend.plan.host_header {
            HostHeader::Preserve | HostHeader::Own => None,
            // The compiler has proven it to be a host; what is none would be left to the client's.
            HostHeader::Name(name) => HeaderValue::from_str(name).ok(),
        };
        let pool = Rc::new(Self {
            backend: Arc::downgrade(backend),
            worker,
            line,
            gate: guard.towards(&backend.plan.target),
            host,
            set: RefCell::default(),
            judged: Cell::default(),
            endpoints: RefCell::default(),
            places: RefCell::default(),
            tiers: RefCell::default(),
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
        let known = self.gate.version();
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
        let mut places = self.places.borrow_mut();
        places.clear();
        let mut tiers = (Vec::new(), Vec::new());
        for (endpoint, health) in set.set.endpoints.iter().zip(&set.healths) {
            let is_permitted = self.gate.permits(endpoint.address);
            if set.table.is_some() {
                places.push(is_permitted.then_some(endpoints.len()));
            }
            if !is_permitted {
                continue;
            }
            if set.near_share().is_some() {
                let is_near = set.set.near.binary_search(&endpoint.address).is_ok();
                if is_near { &mut tiers.0 } else { &mut tiers.1 }.push(endpoints.len());
            }
            let new = EndpointPool::new(endpoint, health, (self.worker, self.line.as_ref()), backend);
            let known = before.remove(&(new.address, new.host.clone()));
            endpoints.push(known.unwrap_or(new));
        }
        self.tiers.replace(tiers);
        before.values().for_each(|endpoint| endpoint.retire());
        *self.set.borrow_mut() = set;
    }

    /// The endpoint to ask, none of `tried`, and none of `asked` while there are others of use. One that rests or was
    /// ejected is asked only if all are: it may be back.
    ///
    /// # Errors
    /// There are some, and their hosts must not be asked more often before this time is over. A session's endpoint is
    /// not left for that.
    pub fn choose(
        &self,
        tried: &[SocketAddr],
        asked: &[SocketAddr],
        aim: Aim,
        charges: &Charges,
    ) -> Result<Option<Rc<EndpointPool>>, Duration> {
        let endpoints = self.endpoints.borrow();
        let wait = |at: usize| charges.wait(endpoints[at].counter.as_ref());
        let may_be = |at: usize| {
            let endpoint: &EndpointPool = &endpoints[at];
            let is_asked = asked.contains(&endpoint.address);
            (!tried.contains(&endpoint.address)).then(|| self.fitness(endpoint, aim).rank(is_asked))
        };
        let rank = |at: usize| may_be(at).filter(|_| wait(at).is_none());
        let own = match aim {
            Aim::Anywhere => None,
            Aim::Key(hash) => self.by_key(hash, &rank),
            Aim::Seat(number) => self.by_seat(number, &endpoints, &may_be),
            Aim::Endpoint(mark) => self.by_mark(mark, &endpoints, &may_be),
        };
        if let Some(wait) = own.and_then(wait) {
            return Err(wait);
        }
        let at = own.or_else(|| match aim {
            Aim::Key(hash) | Aim::Seat(hash) => best_from(hash, endpoints.len(), &rank),
            Aim::Anywhere | Aim::Endpoint(_) => self
                .nearby(&endpoints, &rank)
                .or_else(|| self.by_policy(Among::All(endpoints.len()), &endpoints, &rank))
                .or_else(|| best_from(self.random(), endpoints.len(), &rank)),
        });
        if at.is_none()
            && let Some(wait) = (0..endpoints.len()).filter(|at| may_be(*at).is_some()).filter_map(wait).min()
        {
            return Err(wait);
        }
        Ok(at.map(|at| Rc::clone(&endpoints[at])))
    }

    /// The same where nobody counts.
    #[cfg(test)]
    pub fn next(&self, tried: &[SocketAddr], asked: &[SocketAddr], aim: Aim) -> Option<Rc<EndpointPool>> {
        self.choose(tried, asked, aim, &Charges::default()).expect("it has no limit")
    }

    /// One in the gateway's own zone, as long as what is fit there is enough; else, for a share of the requests, one of
    /// the others.
    fn nearby(&self, endpoints: &[Rc<EndpointPool>], rank: &impl Fn(usize) -> Option<u8>) -> Option<usize> {
        let share = self.set.borrow().near_share()?;
        let tiers = self.tiers.borrow();
        let tier = if self.random() % 100 < share { &tiers.0 } else { &tiers.1 };
        self.by_policy(Among::These(tier), endpoints, rank)
    }

    /// None: nobody of the first rank was met.
    fn by_policy(
        &self,
        among: Among<'_>,
        endpoints: &[Rc<EndpointPool>],
        rank: &impl Fn(usize) -> Option<u8>,
    ) -> Option<usize> {
        let is_fit = |at: &usize| rank(*at) == Some(0);
        let any = || among.at(self.random() as usize % among.len());
        match (among.len(), self.balance) {
            (0, _) => None,
            (1, _) => Some(among.at(0)).filter(is_fit),
            (count, Balance::RoundRobin | Balance::ConsistentHash) => {
                let turn = self.turn.get();
                self.turn.set(turn.wrapping_add(1));
                // Whose turn it is and cannot take it leaves it to any other, not always to the next.
                let own = Some(among.at(turn % count)).filter(is_fit);
                own.or_else(|| (0..CHANCES).map(|_| any()).find(is_fit))
            }
            (_, Balance::Random) => (0..CHANCES).map(|_| any()).find(is_fit),
            (_, Balance::LeastRequest | Balance::PeakEwma) => {
                (0..CHANCES).find_map(|_| self.better_of_two(&among, endpoints, rank))
            }
        }
    }

    /// Whom a key belongs to: the first of its heirs that is of the first rank. The keys of who is unfit go to many, and
    /// no other key moves.
    fn by_key(&self, hash: u64, rank: &impl Fn(usize) -> Option<u8>) -> Option<usize> {
        let (set, places) = (self.set.borrow(), self.places.borrow());
        let table = set.table.as_ref()?;
        let heir = |turn: u64| places[table.at(if turn == 0 { hash } else { mix(hash.wrapping_add(turn)) })];
        (0..HEIRS).filter_map(heir).find(|at| rank(*at) == Some(0))
    }

    /// Of all that are of the first rank the one that the number falls to: who leaves moves its own, and no others.
    fn by_seat(
        &self,
        number: u64,
        endpoints: &[Rc<EndpointPool>],
        rank: &impl Fn(usize) -> Option<u8>,
    ) -> Option<usize> {
        let mut best = None;
        for (at, endpoint) in endpoints.iter().enumerate() {
            let score = mix(number ^ endpoint.mark);
            if best.is_none_or(|(most, _)| score > most) && rank(at) == Some(0) {
                best = Some((score, at));
            }
        }
        best.map(|(_, at)| at)
    }

    /// A session stays where it is while the endpoint comes back in steps.
    fn by_mark(
        &self,
        mark: u64,
        endpoints: &[Rc<EndpointPool>],
        rank: &impl Fn(usize) -> Option<u8>,
    ) -> Option<usize> {
        let own = endpoints.iter().position(|endpoint| endpoint.mark == mark)?;
        matches!(rank(own), Some(0 | 1)).then_some(own)
    }

    /// How a connection to this endpoint begins: against others of its name while nobody knows that it is well.
    /// None of `tried`, none of `asked`, and none that would not be asked otherwise.
    /// Who wants this endpoint gets no other.
    pub fn begin(
        &self,
        endpoint: &EndpointPool,
        tried: &[SocketAddr],
        asked: &[SocketAddr],
        aim: Aim,
    ) -> Begin {
        if !endpoint.has_rivals() || aim != Aim::Anywhere {
            return Begin::Alone;
        }
        let endpoints = self.endpoints.borrow();
        let is_rival = |rival: &&Rc<EndpointPool>| {
            rival.address != endpoint.address
                && rival.host == endpoint.host
                && !tried.contains(&rival.address)
                && !asked.contains(&rival.address)
                && self.fitness(rival, aim) == Fitness::Fit
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

    /// What is free at any endpoint of the first rank.
    pub fn free(
        &self,
        choice: &Choice<'_>,
        wish: Wish,
        client: Option<&ClientConnection>,
    ) -> Option<(Rc<EndpointPool>, Carrier)> {
        let endpoints = self.endpoints.borrow();
        let (count, start) = (endpoints.len(), self.random() as usize);
        let at = |step: usize| &endpoints[start.wrapping_add(step) % count];
        choice.asked(|asked| {
            let is_fit = |endpoint: &&Rc<EndpointPool>| {
                !choice.tried.contains(&endpoint.address)
                    && !asked.contains(&endpoint.address)
                    && choice.charges.wait(endpoint.counter.as_ref()).is_none()
                    && self.fitness(endpoint, choice.aim) == Fitness::Fit
            };
            let mut fit = (0..count).map(at).filter(is_fit);
            fit.find_map(|endpoint| endpoint.take(wish, client).map(|carrier| (Rc::clone(endpoint), carrier)))
        })
    }

    /// Closes what nobody used for longest, for another connection.
    pub fn spare(&self) -> Option<Closing> {
        let endpoints = self.endpoints.borrow();
        let idle =
            endpoints.iter().filter_map(|endpoint| endpoint.idle_since().map(|since| (since, endpoint)));
        idle.min_by_key(|(since, _)| *since)?.1.spare()
    }

    /// See [`EndpointPool::forget_leaving`].
    pub fn forget_leaving(&self) -> usize {
        self.endpoints.borrow().iter().map(|endpoint| endpoint.forget_leaving()).sum()
    }

    /// Two at random, each as likely as any other; none if neither is of the first rank.
    fn better_of_two(
        &self,
        among: &Among<'_>,
        endpoints: &[Rc<EndpointPool>],
        rank: &impl Fn(usize) -> Option<u8>,
    ) -> Option<usize> {
        let random = self.random();
        let count = among.len();
        let first = (random >> 32) as usize % count;
        let second = (first + 1 + (random as u32) as usize % (count - 1)) % count;
        let (first, second) = (among.at(first), among.at(second));
        let health = |at: usize| &endpoints[at].health;
        // Chance makes one a little slower than the other at any time: that is no reason.
        let paces =
            (self.balance == Balance::PeakEwma).then(|| (health(first).pace(), health(second).pace()));
        let are_alike = match paces {
            Some((Some(one), Some(other))) => one < other * ALIKE && other < one * ALIKE,
            _ => false,
        };
        let cost = |at: usize| {
            (rank(at) == Some(0)).then(|| match self.balance {
                Balance::PeakEwma if !are_alike => health(at).cost(),
                _ => f64::from(health(at).active()),
            })
        };
        match (cost(first), cost(second)) {
            (Some(one), Some(other)) if other < one => Some(second),
            (Some(_), _) => Some(first),
            (None, Some(_)) => Some(second),
            (None, None) => None,
        }
    }

    fn fitness(&self, endpoint: &EndpointPool, aim: Aim) -> Fitness {
        // A key that came back to an endpoint stays there while its share grows.
        let draw = || match aim {
            Aim::Anywhere | Aim::Endpoint(_) => self.random() % 100,
            Aim::Key(hash) | Aim::Seat(hash) => mix(hash ^ endpoint.mark) % 100,
        };
        match endpoint.health.standing() {
            _ if endpoint.rests() => Fitness::Unfit,
            _ if self.set.borrow().in_panic() => Fitness::Fit,
            Standing::Good => Fitness::Fit,
            Standing::Ejected | Standing::Unhealthy => Fitness::Unfit,
            Standing::Recovering(share) if draw() < share => Fitness::Fit,
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
        let set = self.set.borrow();
        let refused = set.set.endpoints.iter().take(TOLD).map(|endpoint| endpoint.address.to_string());
        let refused: Vec<_> = refused.collect();
        let (kind, cause) = match &backend.plan.target {
            _ if !refused.is_empty() => {
                let refused = refused.join(", ");
                (ErrorKind::AddressNotPermitted, format!("the egress guard refuses {refused}"))
            }
            BackendTarget::Service { service, port } => {
                let cause = format!("no endpoint of the Service {service}, port {port}, is ready");
                (ErrorKind::NoHealthyEndpoints, cause)
            }
            BackendTarget::Hosts(hosts) => {
                let names = hosts.iter().filter_map(|(address, _)| match address {
                    Address::Name(name) => Some(&**name),
                    Address::Ip(_) => None,
                });
                let names = names.collect::<Vec<_>>().join(", ");
                (ErrorKind::NameResolution, format!("no address is known of {names}"))
            }
        };
        ProxyError::caused(kind, cause)
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

/// The first of the best rank, from a place on.
fn best_from(start: u64, count: usize, rank: &impl Fn(usize) -> Option<u8>) -> Option<usize> {
    let mut best = None;
    for at in (0..count).map(|step| (start as usize).wrapping_add(step) % count) {
        let Some(rank) = rank(at) else { continue };
        if best.is_none_or(|(least, _)| rank < least) {
            best = Some((rank, at));
        }
        if rank == 0 {
            break;
        }
    }
    best.map(|(_, at)| at)
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
