//! A worker's kept connections to all backends, and the way of a request through them.
//!
//! The one task spawned here sweeps the pools once a second and ends with them; connections spawn theirs in `connect`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use http::header;
use tokio::time::Instant;

use super::admission::{Ask, Choice, Got, Manner};
use super::answer::{self, Judge};
use super::backend::Verdict;
use super::balance::{self, BackendPool};
use super::broken::Broken;
use super::carrier::Carrier;
use super::connect::{ConnectError, Connection, Unanswered};
use super::connect_http2::Lost;
use super::credentials;
use super::endpoint::{Lease, Place, SWEEP, Wish};
use super::eyeballs::Begin;
use super::health::Health;
use super::limits::{self, SendLimits};
use super::line::{self, Line, Permits};
use super::outgoing::{Outgoing, Refused, address_to, own_names, wish};
use super::proxy_header::header as proxy_header;
use super::repeatable::{Repeatable, Upload};
use super::replay;
use super::throttle::{self, Charges};
use super::tls::Security;
use crate::http1::MAX_FIELDS;
use crate::message::{Duplex, ErrorKind, ProxyError, Request, Response, Side, set_grpc_timeout};
use crate::route_map::BackendProtocol;
use crate::telemetry::{Connect, Retry};
use crate::upstream::{Backend, Guard, HeadLines};

/// "No limit", so that nothing overflows.
pub(super) const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// An endpoint that had at least this time, and does not connect, is at fault, however little time the request had.
pub(super) const FAIR_CONNECT: Duration = Duration::from_millis(500);
/// Silence for half of this is an endpoint's fault, however little time the request had left.
const FAIR: Duration = Duration::from_secs(2);
/// So many endpoints are tried until one can be connected to.
pub(super) const MAX_ENDPOINTS: usize = 3;
/// So often a request of which nothing was sent is sent again; after the first time on a new connection.
const MAX_UNSENT: usize = 3;

/// All kept connections of one worker.
#[derive(Debug)]
pub struct Pools {
    worker: usize,
    seed: u64,
    random: Cell<u64>,
    guard: Guard,
    /// By slot of the backend.
    table: RefCell<Vec<Option<Rc<BackendPool>>>>,
    /// Of bounded backends, by slot.
    lines: RefCell<HashMap<usize, Weak<Line>>>,
}

/// A backend's answer and the endpoint that gave it.
#[derive(Debug)]
pub struct Answer {
    pub response: Response,
    pub endpoint: SocketAddr,
    /// Of an answer 101: what its tunnel takes up.
    pub place: Option<Place>,
    /// Of an answer 101: its bytes.
    pub tunnel: Option<Box<dyn Duplex>>,
    /// What tells the endpoint from others, on every replica.
    pub mark: u64,
}

/// Where a request failed; for the log.
#[derive(Debug, thiserror::Error)]
#[error("request to {endpoint} failed")]
struct Failure {
    endpoint: SocketAddr,
    source: Broken,
}

/// What the endpoint said after the handshake; for the log.
#[derive(Debug, thiserror::Error)]
#[error("{endpoint} ended the TLS connection: {alert}")]
struct Refusal {
    endpoint: SocketAddr,
    alert: String,
}

/// How a request left to go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Kept,
    New,
}

impl Pools {
    /// Called on the worker's own runtime. `seed` decides where each round robin starts.
    pub fn new(worker: usize, seed: u64, guard: Guard) -> Rc<Self> {
        let (random, table, lines) = (Cell::new(seed), RefCell::default(), RefCell::default());
        let pools = Rc::new(Self { worker, seed, random, guard, table, lines });
        tokio::task::spawn_local(upkeep(Rc::downgrade(&pools)));
        pools
    }

    /// Picks an endpoint, takes or makes a connection, sends the request (origin form, HTTP/1.1, hop-by-hop fields
    /// already ours) with `lines` in its head and gives the answer's head; the body streams. `BackendPlan.host_header`
    /// is applied here: a name (of the backend, or of the endpoint) replaces `Host` unless the request carries [`FixedHost`].
    /// What the backend is to be shown of ours is put in. A kept connection that closes as we write never shows: the request
    /// goes out again on another while nothing of it was sent, or nothing came back and it may be repeated (idempotent, its
    /// body at hand). An answer 101 has its tunnel beside it.
    ///
    /// Dropping this future, or the answer's body before its end, closes the connection at once.
    ///
    /// # Errors
    /// `NoHealthyEndpoints`, `ConnectFailure`, `ConnectTimeout`, `BackendTimeout`, `Reset`, `InvalidResponse`, ...
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` keeps its arguments twice, and a request is large"
    )]
    pub fn send(
        &self,
        backend: &Arc<Backend>,
        mut request: Request,
        lines: Option<HeadLines>,
        mut limits: SendLimits<'_>,
    ) -> impl Future<Output = Result<Answer, ProxyError>> {
        async move {
            let pool = self.pool(backend);
            let asked_as = own_names(backend, &request);
            address_to(&mut request, pool.host.as_ref());
            if backend.is_full() {
                backend.stats.error(self.worker, ErrorKind::Overloaded.as_str());
                return Err(ErrorKind::Overloaded.into());
            }
            if let Some(credential) = &backend.plan.credential {
                credentials::guard_trailers(credential, request.body_mut());
            }
            let mut shown = backend.show(&mut request);
            if matches!(&shown, Err(error) if error.kind == ErrorKind::CredentialsUnavailable) {
                let until = Instant::now() + limits.connect.unwrap_or(FOREVER);
                // Boxed: only the first requests come here.
                Box::pin(backend.has_tried(limits.deadline.map_or(until, |deadline| deadline.min(until))))
                    .await;
                shown = backend.show(&mut request);
            }
            let shown = match shown {
                Ok(shown) => shown,
                Err(error) => {
                    backend.stats.error(self.worker, error.kind.as_str());
                    return Err(error);
                }
            };
            let (asking, charges) = (RefCell::default(), Charges::default());
            if backend.plan.traffic.rate.is_none() {
                self.is_request(backend, &charges);
            }
            let began = Instant::now();
            let (end, own) = (limits.first_look(began), limits.one_try);
            limits.deadline = limits.upload.map_or(end, |_| limits.due_of(began));
            let limits = &limits;
            // Pinned where it is made: moving it into the time-out would copy all of its state.
            let mut attempts = pin!(self.attempts(
                backend,
                &pool,
                Outgoing { request: &mut request, lines: lines.as_ref(), asked_as },
                limits,
                &asking,
                &charges
            ));
            let outcome = match end {
                None => attempts.await,
                Some(deadline) => match tokio::time::timeout_at(deadline, attempts.as_mut()).await {
                    Ok(outcome) => outcome,
                    Err(_) => match limits.upload {
                        // Boxed: rare, and requests would carry the room for it.
                        Some(upload) => Box::pin(limits.within(upload, began, attempts)).await,
                        None => Err(limits::late(began)),
                    },
                },
            };
            match &outcome {
                Err(error) if throttle::is_refusal(error) => {
                    backend.stats.error(self.worker, ErrorKind::RateLimited.as_str());
                }
                _ => self.is_request(backend, &charges),
            }
            if let (Some(_), Ok(answer)) = (&shown, &outcome) {
                backend.took(shown.as_ref(), answer.response.status());
            }
            if let Err(error) = &outcome
                && error.kind == ErrorKind::BackendTimeout
            {
                let patience = own.into_iter().chain(limits.whole).fold(FAIR, Duration::min);
                let silent = asking.take().filter(|(_, asked)| {
                    limits.answerable_since(*asked).is_some_and(|since| since.elapsed() >= patience / 2)
                });
                if let Some((silent, _)) = silent {
                    backend.failed(&silent);
                }
            }
            if let Err(error) = &outcome
                && error.kind.side() == Side::Upstream
            {
                backend.stats.error(self.worker, error.kind.as_str());
            }
            outcome
        }
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` keeps its arguments twice, and a request is large"
    )]
    fn attempts(
        &self,
        backend: &Arc<Backend>,
        pool: &BackendPool,
        outgoing: Outgoing<'_>,
        limits: &SendLimits<'_>,
        asking: &RefCell<Option<(Arc<Health>, Instant)>>,
        charges: &Charges,
    ) -> impl Future<Output = Result<Answer, ProxyError>> {
        async move {
            let Outgoing { request, lines, asked_as } = outgoing;
            let (mut from, mut unsent, mut connect) = (From::Kept, 0, None);
            let mut refusals = Refused::default();
            let wish = wish(request);
            loop {
                let mut lease =
                    self.lease(backend, pool, (from, wish, &refusals), limits, &mut connect, charges).await?;
                if let Some(counter) = &lease.0.endpoint.counter {
                    // Boxed: few backends have a limit.
                    if !Box::pin(charges.pay(counter)).await {
                        lease.0.give_back();
                        continue;
                    }
                    self.is_request(backend, charges);
                }
                if let Some(client) = &asked_as {
                    let host = lease.0.endpoint.host.as_ref().unwrap_or(client);
                    request.headers_mut().insert(header::HOST, host.clone());
                }
                let kept = lease.1 == From::Kept;
                let spare = if kept && from == From::Kept { replay::spare_body(request) } else { None };
                let (endpoint, mark) = (lease.0.endpoint.address, lease.0.endpoint.mark);
                limits.is_asked(endpoint);
                if let Some(until) = limits.call.and_then(|call| call.until) {
                    let left = until.saturating_duration_since(Instant::now());
                    set_grpc_timeout(request.headers_mut(), left);
                }
                let health = (backend.cares() || backend.measures()).then(|| lease.0.endpoint.health.clone());
                let asked = health.is_some().then(Instant::now);
                asking.replace(health.clone().zip(asked));
                let carrier = lease.0.carrier.as_mut().expect("`lease` gives none without");
                // Of what goes over a shared connection no bytes of its own are left to be looked at.
                let mut shared = if carrier.is_shared() {
                    let sharing;
                    (*request, sharing) = Sharing::of(std::mem::take(request));
                    Some(sharing)
                } else {
                    None
                };
                let failed = match carrier.send(std::mem::take(request), lines, limits.hinted).await {
                    Ok(head) => {
                        asking.take();
                        // Over HTTP/2 h2 counts bytes alone.
                        if head.headers().len() > MAX_FIELDS {
                            return Err(ErrorKind::InvalidResponse.into());
                        }
                        let verdict = match limits.call {
                            None => Verdict::of_http(head.status()),
                            Some(_) => Verdict::of_call(head.status(), head.headers()),
                        };
                        let mut judge = None;
                        if let Some((health, asked)) = health.zip(asked) {
                            backend.answered(&health, verdict, limits.answerable_since(asked));
                            judge = (verdict == Verdict::Open)
                                .then(|| Judge { backend: backend.clone(), health });
                        }
                        lease.0.upload = shared.as_mut().and_then(|shared| shared.upload.take());
                        let (response, behind) = answer::stream(head, lease.0, judge);
                        let (place, tunnel) = behind.map(|behind| (behind.place, behind.tunnel)).unzip();
                        let tunnel = tunnel.flatten();
                        return Ok(Answer { response, endpoint, place, tunnel, mark });
                    }
                    Err(failed) => failed,
                };
                asking.take();
                let Unanswered { error, unsent: whole, lost, heard, refused } = *failed;
                if let (Some((cause, alert)), Security::Tls(client)) = (refused, &backend.security) {
                    backend.stats.tls_failure(self.worker, cause.as_str());
                    let late = Refusal { endpoint, alert };
                    client.tell(&backend.plan.id, endpoint, cause, &late);
                    return Err(ProxyError::caused(ErrorKind::TlsFailure, late));
                }
                let again = match (whole, spare) {
                    (Some(whole), _) if unsent < MAX_UNSENT => Some(whole),
                    (None, Some(body)) if lost.is_none() && !heard && error.is_of_the_connection() => {
                        unsent = MAX_UNSENT;
                        carrier.sent().and_then(|head| replay::rebuild(&head, body))
                    }
                    _ if unsent >= MAX_UNSENT => None,
                    _ => match (lost, shared) {
                        (Some(Lost::Unsent), Some(shared)) => shared.request.again(),
                        // It is busy, or leaves: others are asked, and not without end.
                        (Some(Lost::Refused), Some(shared)) if shared.request.is_there() => {
                            refusals.by(endpoint, carrier.shared());
                            from = From::New;
                            let may = backend.may_retry(limits.budget_percent);
                            backend
                                .stats
                                .retry(self.worker, if may { Retry::Sent } else { Retry::OverBudget });
                            if may { shared.request.again() } else { None }
                        }
                        (Some(Lost::WithItsConnection { .. }), Some(shared))
                            if kept && shared.is_idempotent =>
                        {
                            unsent = MAX_UNSENT;
                            shared.request.again()
                        }
                        (Some(Lost::Ours), Some(shared)) if let Some(kind) = shared.request.failure() => {
                            return Err(ProxyError::caused(kind, Failure { endpoint, source: error }));
                        }
                        _ => None,
                    },
                };
                let Some(again) = again else {
                    let error = ProxyError::caused(error.kind(heard), Failure { endpoint, source: error });
                    let is_told = matches!(lost, Some(Lost::WithItsConnection { first: false } | Lost::Ours));
                    if let Some(health) = health.filter(|_| !is_told && error.kind.side() == Side::Upstream) {
                        backend.failed(&health);
                    }
                    return Err(error);
                };
                *request = again;
                if unsent > 0 {
                    from = From::New;
                }
                unsent += 1;
            }
        }
    }

    /// A place at an endpoint with a connection in it. Endpoints that cannot be connected to are passed over: nothing
    /// was sent to them.
    async fn lease(
        &self,
        backend: &Backend,
        pool: &BackendPool,
        (from, wish, refused): (From, Wish, &Refused),
        limits: &SendLimits<'_>,
        budget: &mut Option<Instant>,
        charges: &Charges,
    ) -> Result<(Lease, From), ProxyError> {
        let mut tried: Vec<SocketAddr> = Vec::new();
        let (mut quicker, mut patience) = (None, None);
        let mut permits = Permits::of(pool.line.as_ref());
        let (aim, tries) = (limits.aim, limits.tries);
        loop {
            let choice = Choice { tried: &tried, refused: &refused.endpoints, tries, aim, charges };
            let endpoint = match &quicker {
                Some((endpoint, _)) => Some(Rc::clone(endpoint)),
                None => choice.next(pool)?,
            };
            let Some(mut endpoint) = endpoint else {
                let until = *budget.get_or_insert_with(|| Instant::now() + limits.connect.unwrap_or(FOREVER));
                if tried.is_empty() && backend.resolves(until).await {
                    pool.refresh(backend);
                    continue;
                }
                return Err(pool.nowhere(backend));
            };
            if let Some(line) = permits.are_missing() {
                let patience =
                    *patience.get_or_insert_with(|| Instant::now() + limits.connect.unwrap_or(FOREVER));
                let until = limits.deadline.map_or(patience, |deadline| deadline.min(patience));
                let manner = if from == From::Kept { Manner::Any } else { Manner::New };
                let ask = Ask { manner, wish, client: limits.client, choice };
                // Boxed: few backends are bounded, and every request would carry the room for it.
                let admitted = Box::pin(ask.admitted(backend, pool, line, endpoint, until)).await;
                let (other, got) = admitted.inspect_err(|error| self.is_overloaded(backend, error))?;
                endpoint = other;
                match got {
                    Got::Permit(permit) => permits.ready = Some(permit),
                    Got::Carrier(carrier) => return Ok((endpoint.lease_of(carrier), From::Kept)),
                }
            }
            let mut lease = endpoint.lease();
            if from == From::Kept
                && quicker.is_none()
                && let Some(carrier) = endpoint.take(wish, limits.client)
            {
                lease.carrier = Some(carrier);
                return Ok((lease, From::Kept));
            }
            let now = Instant::now();
            let connect = *budget.get_or_insert_with(|| now + limits.connect.unwrap_or(FOREVER));
            // What a try's end would cut off here would never be told to have failed.
            let end = limits.deadline.map_or(connect, |deadline| deadline.min(connect));
            let begin = match quicker.take() {
                Some((_, stream)) => Begin::With(stream),
                None => choice.begin(pool, &endpoint),
            };
            tried.push(endpoint.address);
            // An endpoint that swallows packets must leave time for the others.
            let left = pool.len().min(MAX_ENDPOINTS).saturating_sub(tried.len() - 1).max(1) as u32;
            let until = now + end.saturating_duration_since(now) / left;
            let own = [Some(connect.saturating_duration_since(now)), limits.one_try];
            let fair = own.into_iter().flatten().fold(FAIR_CONNECT, |fair, own| fair.min(own / left));
            // A client can leave an endpoint no time; and an upgrade asks for HTTP/1.1, which it need not speak.
            let is_fair = until.saturating_duration_since(now) >= fair - fair / 10;
            let is_asked_too_much =
                wish != Wish::Answer && backend.plan.protocol == BackendProtocol::Negotiated;
            endpoint.probes(until);
            let tls = backend.security.towards(endpoint.server_name.as_ref())?;
            let opened = match backend.plan.protocol {
                BackendProtocol::Http1 => {
                    let header =
                        backend.plan.proxy_header.map(|version| proxy_header(version, limits.client));
                    let header = header.as_deref();
                    let (address, begin) = (endpoint.address, (begin, header));
                    Connection::open(address, &pool.gate, tls, begin, until, &mut permits).await.map(
                        |connection| {
                            endpoint.connected();
                            Carrier::Own(connection.reserved(limits.client))
                        },
                    )
                }
                // Boxed: it is large, and requests over HTTP/1.1 would carry the room for it.
                BackendProtocol::Http2 | BackendProtocol::Negotiated => {
                    let besides = (wish, refused.connection.as_ref());
                    Box::pin(endpoint.open(&pool.gate, tls, besides, begin, until, &mut permits)).await
                }
            };
            let error = match opened {
                Ok(carrier) => {
                    lease.carrier = Some(carrier);
                    return Ok((lease, From::New));
                }
                Err(ConnectError::Outrun(address, stream)) => {
                    quicker = pool.rival(&endpoint, address).zip(Some(stream));
                    endpoint.not_connected(Connect::TimedOut);
                    backend.not_connected(&endpoint.health);
                    continue;
                }
                Err(ConnectError::NonePermitted) => {
                    tried.pop();
                    continue;
                }
                Err(error) => error,
            };
            if let (ConnectError::Tls(_, cause, error), Security::Tls(client)) = (&error, &backend.security) {
                backend.stats.tls_failure(self.worker, cause.as_str());
                client.tell(&backend.plan.id, endpoint.address, *cause, error);
            }
            let is_its_own = match error {
                ConnectError::JustFailed(_) | ConnectError::NoWebSockets(_) => false,
                ConnectError::TimedOut(..) => is_fair,
                ConnectError::Tls(..) => !is_asked_too_much,
                _ => true,
            };
            if error.is_of_the_endpoint() && is_its_own {
                endpoint.not_connected(error.counted());
                backend.not_connected(&endpoint.health);
            }
            let more = tried.len() < pool.len().min(MAX_ENDPOINTS) && Instant::now() < end;
            if !more || !error.is_of_the_endpoint() {
                return Err(error.into());
            }
        }
    }

    pub(super) fn pool(&self, backend: &Arc<Backend>) -> Rc<BackendPool> {
        let mut table = self.table.borrow_mut();
        if let Some(Some(pool)) = table.get(backend.slot) {
            if pool.is_of(backend) {
                pool.refresh(backend);
                return pool.clone();
            }
            if pool.is_newer_than(backend) {
                // A request of an older map: what it opens is its own.
                return self.new_pool(backend);
            }
        }
        if table.len() <= backend.slot {
            table.resize(backend.slot + 1, None);
        }
        let pool = self.new_pool(backend);
        pool.line.iter().for_each(|line| line.serves(&pool));
        table[backend.slot] = Some(pool.clone());
        pool
    }

    fn new_pool(&self, backend: &Arc<Backend>) -> Rc<BackendPool> {
        BackendPool::new(backend, (self.worker, self.line(backend)), self.seed, &self.guard)
    }

    /// One for all pools of a bounded backend, also while one takes the place of another.
    fn line(&self, backend: &Backend) -> Option<Rc<Line>> {
        let bounds = backend.bounds.as_ref()?;
        let mut lines = self.lines.borrow_mut();
        let known = lines.get(&backend.slot).and_then(Weak::upgrade).filter(|line| line.is_of(bounds));
        Some(known.unwrap_or_else(|| {
            let line = Line::new(bounds, &backend.stats, self.worker);
            tokio::task::spawn_local(line::attend(Rc::downgrade(&line)));
            lines.insert(backend.slot, Rc::downgrade(&line));
            line
        }))
    }

    /// Counts it as one of the backend's, once.
    fn is_request(&self, backend: &Backend, charges: &Charges) {
        if !charges.is_request.replace(true) {
            backend.stats.request(self.worker);
        }
    }

    /// Counts it, if it was.
    pub(super) fn is_overloaded(&self, backend: &Backend, error: &ProxyError) {
        if error.kind == ErrorKind::Overloaded && !throttle::is_refusal(error) {
            backend.stats.error(self.worker, error.kind.as_str());
        }
    }

    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    /// Not secret, only different each time.
    pub(super) fn next_random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        balance::mix(state)
    }

    /// How many backends have a pool here.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.table.borrow().iter().flatten().count()
    }

    fn sweep(&self, now: Instant) {
        self.lines.borrow_mut().retain(|_, line| line.strong_count() > 0);
        for place in self.table.borrow_mut().iter_mut() {
            if place.as_ref().is_some_and(|pool| pool.sweep(now) == super::balance::Swept::Unused) {
                *place = None;
            }
        }
    }
}

async fn upkeep(pools: Weak<Pools>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(pools) = pools.upgrade() else { return };
        pools.sweep(Instant::now());
    }
}

/// What is kept of a request that goes over a shared connection.
struct Sharing {
    request: Repeatable,
    /// Ends its upload when it is dropped: a stream is over only when both sides of it are.
    upload: Option<Upload>,
    is_idempotent: bool,
}

impl Sharing {
    fn of(request: Request) -> (Request, Self) {
        let begins_tunnel = request.headers().contains_key(header::UPGRADE);
        let is_idempotent = replay::is_idempotent(request.method()) && !begins_tunnel;
        let (request, repeatable) = Repeatable::whatever(request, true);
        let upload = repeatable.upload();
        (request, Self { upload, request: repeatable, is_idempotent })
    }
}
