//! One worker's connections to one endpoint.
//!
//! Law: as many idle connections are kept as were in use at once in the last 10 s, at most 1,024; the rest, and those
//! that were idle for 55 s, are closed (below the 60 s after which most servers close theirs). A small fixed number was
//! measured to cost three to five times the CPU under load. Which had their number of requests, or are too old, are not
//! kept either.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use super::bounds::Permit;
use super::carrier::Carrier;
use super::connect::{Closing, ConnectError, Connection, is_http2, reach};
use super::connect_http2::{Multiplexed, Stream};
use super::eyeballs::Begin;
use super::health::Health;
use super::line::{Free, Line, Permits};
use super::maglev;
use super::outgoing::authority;
use super::presence::Owner;
use super::proxy_header::ClientConnection;
use super::repeatable::Upload;
use super::throttle::Counter;
use super::tls::{Failed, Offer, Security, TlsClient};
use crate::route_map::{BackendProtocol, Endpoint};
use crate::telemetry::{BackendStats, Connect};
use crate::upstream::{Backend, Gate};

const MAX_IDLE: usize = 1024;
const MAX_IDLE_TIME: Duration = Duration::from_secs(55);
/// A connection that was given back and is still busy after this is closed: its request's body was never finished.
const LEFTOVERS: Duration = Duration::from_secs(1);
/// Seconds over which use is looked back on, in steps of [`SWEEP`].
const LOOK_BACK: usize = 10;
/// How often [`EndpointPool::sweep`] is to be called.
pub(super) const SWEEP: Duration = Duration::from_secs(1);
/// An endpoint that cannot be reached is left alone for this long, doubled up to the second value.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// An endpoint that refuses streams is asked on at most so many connections for that.
const MOST_BESIDE: usize = 4;

#[derive(Debug)]
pub(super) struct EndpointPool {
    pub address: SocketAddr,
    /// Replaces `Host`, where the backend's endpoints have names of their own.
    pub host: Option<HeaderValue>,
    /// What it has to prove by its certificate.
    pub server_name: Option<ServerName<'static>>,
    /// What tells it from others, on every replica.
    pub mark: u64,
    pub worker: usize,
    pub health: Arc<Health>,
    /// Where its host may be asked only so often.
    pub counter: Option<Arc<Counter>>,
    /// Whether the requests under way here matter to other workers.
    counts: bool,
    stats: Arc<BackendStats>,
    /// Of a bounded backend: who waits for a connection.
    line: Option<Rc<Line>>,
    protocol: BackendProtocol,
    /// On the connection of HTTP/2 that was opened last. None: not known yet.
    takes_websockets: Cell<Option<bool>>,
    /// None: not known yet.
    spoken: Cell<Option<Spoken>>,
    /// Longest idle first.
    idle: RefCell<Vec<Idle>>,
    /// HTTP/2: those that requests share.
    shared: RefCell<Vec<Rc<Multiplexed>>>,
    /// Held by whoever opens one of those.
    opening: tokio::sync::Mutex<()>,
    in_use: Cell<usize>,
    /// The most that were in use at once in each of the last seconds.
    peaks: [Cell<usize>; LOOK_BACK],
    now: Cell<usize>,
    /// It left the endpoint set.
    gone: Cell<bool>,
    rests_until: Cell<Option<Instant>>,
    failures: Cell<u32>,
    /// The last attempt to connect went well.
    proven: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

/// Somebody opens a connection that others wait for.
struct Opening<'a> {
    _lock: tokio::sync::MutexGuard<'a, ()>,
    endpoint: &'a EndpointPool,
}

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
}

/// What a request needs of what carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Answer,
    /// Which only HTTP/1.1 has.
    Upgrade,
    /// An upgrade of HTTP/1.1, or a stream of HTTP/2 where the endpoint takes them there.
    WebSocket,
}

/// A place in use at an endpoint. What carries the request is closed with the lease unless it is given back.
#[derive(Debug)]
pub(super) struct Lease {
    pub endpoint: Rc<EndpointPool>,
    pub carrier: Option<Carrier>,
    /// Of a request on a shared connection: its body goes on only as long as this is held.
    pub upload: Option<Upload>,
    /// It counts no longer here, but in a [`Place`].
    moved: bool,
}

/// What a request takes up at a backend, in the numbers that balancing and bounds go by. A tunnel keeps it.
#[derive(Debug)]
pub struct Place {
    _taken: Taken,
    /// Of a tunnel over a shared connection, which lives as long.
    _stream: Option<Stream>,
    /// Of a bounded backend whose bytes are somebody else's.
    _permit: Option<Permit>,
}

#[derive(Debug)]
struct Taken {
    stats: Arc<BackendStats>,
    worker: usize,
    /// Where the requests under way at an endpoint matter to other workers.
    health: Option<Arc<Health>>,
}

impl EndpointPool {
    pub fn new(
        endpoint: &Endpoint,
        health: &Arc<Health>,
        (worker, line): (usize, Option<&Rc<Line>>),
        backend: &Backend,
    ) -> Rc<Self> {
        let tls = match &backend.security {
            Security::Tls(client) => Some(client),
            Security::Plain | Security::Unusable => None,
        };
        Rc::new(Self {
            address: endpoint.address,
            host: authority(endpoint, tls),
            server_name: tls.map(|client| client.name_of(endpoint)),
            mark: maglev::mark(endpoint),
            worker,
            health: health.clone(),
            counter: backend.counter(endpoint),
            counts: backend.plan.traffic.counts_requests(),
            stats: backend.stats.clone(),
            line: line.cloned(),
            protocol: backend.plan.protocol,
            takes_websockets: Cell::new(None),
            spoken: Cell::new(match backend.plan.protocol {
                BackendProtocol::Http1 => Some(Spoken::Http1),
                BackendProtocol::Http2 => Some(Spoken::Http2),
                BackendProtocol::Negotiated => None,
            }),
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: tokio::sync::Mutex::default(),
            in_use: Cell::new(0),
            peaks: Default::default(),
            now: Cell::new(0),
            gone: Cell::new(false),
            rests_until: Cell::new(None),
            failures: Cell::new(0),
            proven: Cell::new(false),
        })
    }

    /// A place at the endpoint, without a connection yet.
    pub fn lease(self: &Rc<Self>) -> Lease {
        self.in_use.set(self.in_use.get() + 1);
        let peak = &self.peaks[self.now.get()];
        peak.set(peak.get().max(self.in_use.get()));
        self.stats.active(self.worker, 1);
        if self.counts {
            self.health.begins();
        }
        Lease { endpoint: self.clone(), carrier: None, upload: None, moved: false }
    }

    /// The same with what carries the request.
    pub fn lease_of(self: &Rc<Self>, carrier: Carrier) -> Lease {
        let mut lease = self.lease();
        lease.carrier = Some(carrier);
        lease
    }

    /// The connection that was used last, so that those too many grow old.
    fn take_idle(&self, client: Option<&ClientConnection>) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let at = idle.iter().rposition(|Idle { connection, .. }| {
                connection.is_for(client) && (connection.is_ready() || connection.is_closed())
            })?;
            let taken = idle.remove(at);
            self.idles(-1);
            if taken.connection.is_ready() {
                return Some(taken.connection);
            }
        }
    }

    /// Whoever connects now finds out for all others: they pass the endpoint over until it is known, or for so long.
    pub fn probes(&self, until: Instant) {
        if self.failures.get() > 0 {
            self.rests_until.set(Some(until));
        }
    }

    /// What is there already to carry a request: a place on a shared connection, or an idle one. `client`: whose it must
    /// be, where the backend is told.
    pub fn take(&self, wish: Wish, client: Option<&ClientConnection>) -> Option<Carrier> {
        self.spoken.get()?;
        match self.is_alone(wish) {
            true => self.take_idle(client).map(Carrier::Own),
            false => self.take_stream(wish).map(Carrier::Shared),
        }
    }

    /// The same of a connection that is new, or that another request opened meanwhile: those that come together wait
    /// for one that they may share.
    pub async fn open(
        &self,
        gate: &Gate,
        tls: Option<(&TlsClient, ServerName<'static>)>,
        (wish, refused): (Wish, Option<&Rc<Multiplexed>>),
        begin: Begin,
        until: Instant,
        permits: &mut Permits<'_>,
    ) -> Result<Carrier, ConnectError> {
        if self.is_alone(wish) {
            return self.connect(gate, tls, wish, begin, until, permits).await;
        }
        let (failures, started) = (self.failures.get(), Instant::now());
        let late = |_| ConnectError::TimedOut(self.address, started.elapsed());
        let lock = tokio::time::timeout_at(until, self.opening.lock()).await.map_err(late)?;
        let opening = Opening { _lock: lock, endpoint: self };
        if let Some(stream) = self.take_stream_beside(refused, wish) {
            return Ok(Carrier::Shared(stream));
        }
        let is_known = self.takes_websockets.get() == Some(false) && !self.shared.borrow().is_empty();
        if wish == Wish::WebSocket && is_known && self.protocol == BackendProtocol::Http2 {
            return Err(ConnectError::NoWebSockets(self.address));
        }
        if self.failures.get() > failures {
            return Err(ConnectError::JustFailed(self.address));
        }
        if self.is_alone(wish) {
            drop(opening);
            return self.connect(gate, tls, wish, begin, until, permits).await;
        }
        match self.connect(gate, tls.clone(), wish, begin, until, permits).await {
            // Now it is known that a connection of HTTP/1.1 is what is needed.
            Err(ConnectError::NoWebSockets(_)) if self.offer(wish) == Offer::Http1 => {
                drop(opening);
                self.connect(gate, tls, wish, Begin::Alone, until, permits).await
            }
            connected => connected,
        }
    }

    /// Whether it would not be shared with other requests.
    fn is_alone(&self, wish: Wish) -> bool {
        self.spoken.get() == Some(Spoken::Http1) || self.offer(wish) == Offer::Http1
    }

    /// What [`Self::take`] takes, if anything.
    pub fn frees(&self, wish: Wish) -> Free {
        if self.is_alone(wish) { Free::Connection(self.address) } else { Free::Stream(self.address) }
    }

    /// Whether somebody opens a connection that may be shared.
    pub fn is_being_opened(&self, wish: Wish) -> bool {
        !self.is_alone(wish) && self.opening.try_lock().is_err()
    }

    async fn connect(
        &self,
        gate: &Gate,
        tls: Option<(&TlsClient, ServerName<'static>)>,
        wish: Wish,
        begin: Begin,
        until: Instant,
        permits: &mut Permits<'_>,
    ) -> Result<Carrier, ConnectError> {
        permits.have()?;
        let offer = self.offer(wish);
        let socket = match reach(self.address, gate, tls, offer, (begin, None), until).await {
            // It speaks HTTP/2 alone, and has said that it takes no WebSocket there.
            Err(ConnectError::Tls(_, Failed::NothingInCommon, _))
                if wish == Wish::WebSocket && offer == Offer::Http1 =>
            {
                return Err(ConnectError::NoWebSockets(self.address));
            }
            reached => reached?,
        };
        let is_http2 = is_http2(self.protocol, &socket, self.address)?;
        if offer == Offer::Planned {
            self.spoken.set(Some(if is_http2 { Spoken::Http2 } else { Spoken::Http1 }));
        }
        if !is_http2 {
            let connection = Connection::over(socket, permits.take());
            self.connected();
            return Ok(Carrier::Own(connection));
        }
        let (whose, bounded) = ((&self.stats, self.worker), (self.line.as_ref(), permits.take()));
        let connection = Multiplexed::over(socket, self.address, whose, bounded, until).await?;
        self.takes_websockets.set(Some(connection.takes_websockets()));
        let is_of_use = wish != Wish::WebSocket || connection.takes_websockets();
        let stream = if is_of_use { connection.stream() } else { None };
        self.connected();
        if self.gone.get() {
            connection.gives_back();
        } else {
            self.shared.borrow_mut().push(connection);
        }
        match stream {
            Some(stream) => Ok(Carrier::Shared(stream)),
            None if is_of_use => Err(ConnectError::JustFailed(self.address)),
            None => Err(ConnectError::NoWebSockets(self.address)),
        }
    }

    /// What is offered for it: HTTP/1.1 alone where that can be had and is what is needed.
    fn offer(&self, wish: Wish) -> Offer {
        let needs_http1 = match wish {
            Wish::Answer => false,
            Wish::Upgrade => true,
            Wish::WebSocket => self.takes_websockets.get() == Some(false),
        };
        if needs_http1 && self.protocol == BackendProtocol::Negotiated {
            Offer::Http1
        } else {
            Offer::Planned
        }
    }

    pub fn take_stream(&self, wish: Wish) -> Option<Stream> {
        let shared = self.shared.borrow();
        let fits = |one: &&Rc<Multiplexed>| wish != Wish::WebSocket || one.takes_websockets();
        shared.iter().filter(fits).find_map(Multiplexed::stream)
    }

    /// On another connection than the one that refused a request; any, where there are as many as may be for that.
    fn take_stream_beside(&self, refused: Option<&Rc<Multiplexed>>, wish: Wish) -> Option<Stream> {
        let Some(refused) = refused.filter(|_| wish == Wish::Answer) else { return self.take_stream(wish) };
        let shared = self.shared.borrow();
        let mut others = shared.iter().filter(|one| !Rc::ptr_eq(one, refused));
        let other = others.find_map(Multiplexed::stream);
        other.or_else(|| match shared.len() {
            ..MOST_BESIDE => None,
            _ => shared.iter().find_map(Multiplexed::stream),
        })
    }

    /// Whether it may be that another address of the same name is the better one.
    pub fn has_rivals(&self) -> bool {
        self.host.is_some() && !self.proven.get()
    }

    /// Whether the last attempts to connect failed and it is not time yet for another.
    pub fn rests(&self) -> bool {
        self.rests_until.get().is_some_and(|until| Instant::now() < until)
    }

    pub fn connected(&self) {
        self.stats.connect(self.worker, Connect::Connected);
        self.rests_until.set(None);
        self.failures.set(0);
        self.proven.set(true);
    }

    pub fn not_connected(&self, result: Connect) {
        self.stats.connect(self.worker, result);
        self.proven.set(false);
        let rest = REST.0.saturating_mul(1 << self.failures.get().min(8)).min(REST.1);
        self.failures.set(self.failures.get().saturating_add(1));
        self.rests_until.set(Some(Instant::now() + rest));
    }

    /// The endpoint left the set: idle connections are closed, those in use when their request is over.
    pub fn retire(&self) {
        self.gone.set(true);
        self.keep_last(0);
        // Each ends with its last request.
        self.keep_shared(|_| false);
    }

    /// Once a second: keeps the law above.
    pub fn sweep(&self, now: Instant) {
        self.discard(|idle| {
            let waited = now - idle.since;
            idle.connection.is_closed()
                || waited >= MAX_IDLE_TIME
                || idle.connection.is_spent(now)
                || (waited >= LEFTOVERS && !idle.connection.is_ready())
        });
        let is_wanted = |one: &Rc<Multiplexed>| {
            !one.is_leaving() && one.idle_since().is_none_or(|since| now - since < MAX_IDLE_TIME)
        };
        self.keep_shared(is_wanted);
        self.keep_last(self.peak().min(MAX_IDLE));
        self.now.set((self.now.get() + 1) % LOOK_BACK);
        self.peaks[self.now.get()].set(self.in_use.get());
    }

    /// Nothing is open here and nothing was of late.
    pub fn is_unused(&self) -> bool {
        self.in_use.get() == 0
            && self.idle.borrow().is_empty()
            && self.shared.borrow().is_empty()
            && self.peak() == 0
            && !self.rests()
    }

    /// Closes what is kept for clients that have gone.
    pub fn forget_the_gone(&self) {
        self.discard(|idle| idle.connection.owner.as_ref().is_some_and(Owner::is_gone));
    }

    /// Since when the connection that nobody used for longest is idle.
    pub fn idle_since(&self) -> Option<Instant> {
        let own = self.idle.borrow().first().map(|idle| idle.since);
        let shared = self.shared.borrow().iter().filter_map(|one| one.idle_since()).min();
        own.into_iter().chain(shared).min()
    }

    /// Closes that one for another.
    pub fn spare(&self) -> Option<Closing> {
        let since = self.idle_since()?;
        let mut shared = self.shared.borrow_mut();
        if let Some(at) = shared.iter().position(|one| one.idle_since() == Some(since)) {
            return Some(shared.remove(at).give_up());
        }
        let longest = self.idle.borrow_mut().remove(0);
        self.idles(-1);
        Some(longest.connection.give_up())
    }

    /// Shared connections that take no new requests count no longer. How many there were.
    pub fn forget_leaving(&self) -> usize {
        self.keep_shared(|one| !one.is_leaving())
    }

    fn keep_shared(&self, is_wanted: impl Fn(&Rc<Multiplexed>) -> bool) -> usize {
        let mut shared = self.shared.borrow_mut();
        let before = shared.len();
        shared.retain(|one| {
            let stays = is_wanted(one);
            if !stays {
                one.gives_back();
            }
            stays
        });
        before - shared.len()
    }

    fn idles(&self, by: isize) {
        self.stats.idle(self.worker, by as i64);
        self.line.iter().for_each(|line| line.idles(by));
    }

    fn peak(&self) -> usize {
        self.peaks.iter().map(Cell::get).max().unwrap_or(0)
    }

    fn keep_last(&self, count: usize) {
        let mut idle = self.idle.borrow_mut();
        let surplus = idle.len().saturating_sub(count);
        idle.drain(..surplus);
        self.idles(-(surplus as isize));
    }

    fn discard(&self, unwanted: impl Fn(&Idle) -> bool) {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain(|idle| !unwanted(idle));
        self.idles(idle.len() as isize - before as isize);
    }

    fn keep(self: &Rc<Self>, connection: Box<Connection>) {
        if let Some(owner) = &connection.owner {
            let Some(client) = owner.presence() else { return };
            client.is_kept_at(self);
        }
        let (mut idle, now) = (self.idle.borrow_mut(), Instant::now());
        let is_of_use = !connection.is_closed() && !connection.is_spent(now);
        if self.gone.get() || !is_of_use || idle.len() >= MAX_IDLE {
            return;
        }
        if let Some(line) = &self.line
            && !line.is_empty()
            && !connection.is_ready()
        {
            // Nobody waits for the end of an upload that its answer did not wait for.
            return;
        }
        idle.push(Idle { connection, since: now });
        self.idles(1);
        self.line.iter().for_each(|line| line.is_free(Free::Connection(self.address)));
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let EndpointPool { line, shared, address, .. } = self.endpoint;
        if let Some(line) = line {
            let newest = shared.borrow().last().map_or(usize::MAX, |one| one.most());
            line.is_opened(*address, newest);
        }
    }
}

impl Drop for EndpointPool {
    fn drop(&mut self) {
        self.keep_last(0);
    }
}

impl Lease {
    /// The answer is over: the connection waits for the next request.
    pub fn give_back(mut self) {
        if let Some(Carrier::Own(connection)) = self.carrier.take() {
            self.endpoint.keep(connection);
        }
    }

    pub fn is_shared(&self) -> bool {
        self.carrier.as_ref().is_some_and(Carrier::is_shared)
    }

    /// The connection became a tunnel and is no longer ours.
    pub fn release(mut self) -> Place {
        let stream = match self.carrier.take() {
            Some(Carrier::Own(connection)) => {
                connection.release();
                None
            }
            Some(Carrier::Shared(stream)) => Some(stream),
            None => None,
        };
        self.moved = true;
        let endpoint = &self.endpoint;
        let health = endpoint.counts.then(|| endpoint.health.clone());
        let taken = Taken { stats: endpoint.stats.clone(), worker: endpoint.worker, health };
        Place { _taken: taken, _stream: stream, _permit: None }
    }

    /// A connection of somebody else's bytes.
    pub fn passes(self, permit: Option<Permit>) -> Place {
        Place { _permit: permit, ..self.release() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_use.set(self.endpoint.in_use.get() - 1);
        if self.moved {
            return;
        }
        self.endpoint.stats.active(self.endpoint.worker, -1);
        if self.endpoint.counts {
            self.endpoint.health.ends();
        }
    }
}

/// On the worker that took it: its cells of the counters are its own.
impl Drop for Taken {
    fn drop(&mut self) {
        self.stats.active(self.worker, -1);
        if let Some(health) = &self.health {
            health.ends();
        }
    }
}
