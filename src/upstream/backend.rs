//! A backend as all workers share it: its plan and where its requests can go now.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::bounds::Bounds;
use super::budget::RetryBudget;
use super::checked::Term;
use super::health::{Health, Standing};
use super::maglev;
use super::throttle::Counter;
use super::tls::Security;
use super::{Bucket, Together, Tokens, credentials};
use crate::message::{GrpcStatus, ProxyError};
use crate::route_map::{Address, BackendPlan, BackendTarget, Balance, Credential, Endpoint, EndpointSet};
use crate::telemetry::BackendStats;

/// What an endpoint that gives no answer, or a server's error, is taken to need for one at least.
const NO_ANSWER: Duration = Duration::from_secs(2);
/// So many hundredths of a zone's endpoints bear all of its requests.
const ENOUGH: u64 = 70;
/// What is known of so many endpoints that left is kept in case they come back.
const MAX_DEPARTED: usize = 256;
/// Backends are numbered as they are made.
static MADE: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub struct Backend {
    pub plan: Arc<BackendPlan>,
    /// Dense number of the backend among those that live: workers keep their pools in a table by it. It may be given
    /// again once this backend is gone.
    pub slot: usize,
    pub stats: Arc<BackendStats>,
    pub(super) security: Security,
    budget: RetryBudget,
    /// None: as many connections as it takes.
    pub(super) bounds: Option<Arc<Bounds>>,
    /// Who gets what it is to be shown, where that is not in its plan.
    tokens: Option<Arc<dyn Tokens>>,
    /// How often each of its hosts was asked, in the plan's order; empty where that is all the same.
    counters: Vec<Arc<Counter>>,
    endpoints: ArcSwap<Endpoints>,
    /// Wakes those who wait for the first of them.
    told: Notify,
    /// Held by who ejects an endpoint, which is seldom: how many others are left must not change meanwhile.
    pub(super) ejecting: Mutex<()>,
    /// Of the checks by this plan.
    pub(super) term: Term,
    /// What tells it from others, on every replica.
    pub mark: u64,
    /// Never that of another backend, nor of this one with another plan.
    pub number: u64,
}

/// Where requests can go now, and what is known of each place, in the same order.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    pub set: EndpointSet,
    pub healths: Vec<Arc<Health>>,
    /// Who has which keys, where requests have keys.
    pub table: Option<Arc<maglev::Table>>,
    /// Of endpoints that left, as long as it matters: a name's addresses come and go.
    departed: Vec<Arc<Health>>,
    /// So few are fit that all are asked.
    panic: AtomicBool,
    /// Of a hundred requests so many stay in the gateway's own zone.
    near: AtomicU64,
}

/// Where a backend's requests go, with what takes a while to be made of that: not while anybody waits.
#[derive(Debug)]
pub struct Located {
    set: EndpointSet,
    table: Option<Arc<maglev::Table>>,
}

impl Located {
    /// `before` may have the same already.
    pub fn new(set: EndpointSet, plan: &BackendPlan, before: Option<&Backend>) -> Self {
        if plan.traffic.key.is_none() {
            return Self { set, table: None };
        }
        let known = before.and_then(|before| before.endpoints.load().table.clone());
        let marks: Vec<_> = set.endpoints.iter().map(|endpoint| (maglev::mark(endpoint), 1)).collect();
        let known = known.filter(|known| known.is_of(&marks));
        Self { set, table: known.or_else(|| maglev::Table::new(&marks).map(Arc::new)) }
    }
}

/// What has to be made is made where it is used.
impl From<EndpointSet> for Located {
    fn from(set: EndpointSet) -> Self {
        Self { set, table: None }
    }
}

/// What an answer says of the endpoint that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Well,
    /// A server's error.
    Bad,
    /// What comes behind the body will tell.
    Open,
}

impl Verdict {
    /// Of a call of gRPC, by the head of its answer.
    pub fn of_call(status: StatusCode, headers: &HeaderMap) -> Self {
        GrpcStatus::of_head(status, headers).map_or(Self::Open, Self::of_status)
    }

    /// By an answer's status.
    pub fn of_http(status: StatusCode) -> Self {
        if status.is_server_error() { Self::Bad } else { Self::Well }
    }

    /// By the trailers of a call.
    pub fn of_trailers(trailers: &HeaderMap) -> Self {
        GrpcStatus::of(trailers).map_or(Self::Open, Self::of_status)
    }

    fn of_status(status: GrpcStatus) -> Self {
        if status.is_server_error() { Self::Bad } else { Self::Well }
    }
}

impl Backend {
    pub fn new(plan: Arc<BackendPlan>, slot: usize, stats: Arc<BackendStats>) -> Self {
        let security = Security::new(plan.tls.as_deref(), plan.protocol, &plan.id);
        let budget = RetryBudget::new(stats.requests());
        let mut mark = maglev::Stable::default();
        plan.id.hash(&mut mark);
        let mark = mark.finish();
        let bounds = plan.traffic.connections.map(|plan| Bounds::new(plan, stats.workers()));
        stats.set_ejected(0);
        Self {
            plan,
            slot,
            stats,
            security,
            budget,
            bounds,
            tokens: None,
            counters: Vec::new(),
            endpoints: ArcSwap::default(),
            told: Notify::new(),
            ejecting: Mutex::default(),
            term: Term::default(),
            mark,
            number: MADE.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// As [`Backend::new`], in place of one whose plan was another: what is known of its endpoints stays known.
    pub fn after(before: &Self, plan: Arc<BackendPlan>) -> Self {
        // First: what the plan before finds out must not be said of endpoints that are this one's.
        before.supersede();
        let mut backend = Self::new(plan, before.slot, before.stats.clone());
        if let (Some(plan), Some(bounds)) = (backend.plan.traffic.connections, &before.bounds) {
            // What is open counts on.
            bounds.change(plan);
            backend.bounds = Some(Arc::clone(bounds));
        }
        let known = before.endpoints.load();
        let (healths, departed, table) = (known.healths.clone(), known.departed.clone(), known.table.clone());
        backend.endpoints.store(Arc::new(Endpoints { healths, departed, table, ..Endpoints::default() }));
        backend
    }

    #[must_use]
    pub fn with_tokens(self, tokens: Arc<dyn Tokens>) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// By what its hosts are counted, where its plan says so: of each, by its name, what was asked, and whoever counts for
    /// all replicas. A Service is one.
    #[must_use]
    pub fn counted(
        self,
        mut by: impl FnMut(Option<&str>) -> (Arc<Bucket>, Option<Arc<dyn Together>>),
    ) -> Self {
        let Some(plan) = self.plan.traffic.rate else { return self };
        let mut counter = |host: Option<&str>| {
            let (bucket, together) = by(host);
            Arc::new(Counter::new(plan, bucket, together))
        };
        let counters = match &self.plan.target {
            BackendTarget::Service { .. } => vec![counter(None)],
            BackendTarget::Hosts(hosts) => {
                hosts.iter().map(|(address, port)| counter(Some(&format!("{address}:{port}")))).collect()
            }
        };
        Self { counters, ..self }
    }

    /// What counts how often this endpoint's host is asked.
    pub(super) fn counter(&self, endpoint: &Endpoint) -> Option<Arc<Counter>> {
        let at = match &self.plan.target {
            BackendTarget::Service { .. } => 0,
            BackendTarget::Hosts(hosts) => hosts.iter().position(|(address, port)| {
                *port == endpoint.address.port()
                    && match (address, endpoint.name.as_deref()) {
                        (Address::Ip(ip), None) => *ip == endpoint.address.ip(),
                        // Endpoints have names without the dot of absolute ones.
                        (Address::Name(name), Some(own)) => name.strip_suffix('.').unwrap_or(name) == own,
                        _ => false,
                    }
            })?,
        };
        self.counters.get(at).cloned()
    }

    /// Whether it can be shown what it is to be shown.
    pub fn has_credential(&self) -> bool {
        let is_token = matches!(self.plan.credential.as_deref(), Some(Credential::Token(_)));
        !is_token || self.tokens.as_ref().is_some_and(|tokens| tokens.now().is_some())
    }

    /// Waits until it was tried for the first time to get what it is to be shown, where that is fetched.
    pub async fn has_tried(&self, until: Instant) {
        let Some(tokens) = self.tokens.as_ref().filter(|tokens| tokens.now().is_none()) else { return };
        if let Some(first) = tokens.first() {
            // Whatever came of it: who shows it finds out.
            let _ = tokio::time::timeout_at(until, first).await;
        }
    }

    /// Puts in what it is to be shown of ours; gives the token, where it is one.
    ///
    /// # Errors
    /// There is none, or the request cannot carry it: it must not be sent.
    pub fn show<B>(&self, request: &mut http::Request<B>) -> Result<Option<HeaderValue>, ProxyError> {
        match &self.plan.credential {
            None => Ok(None),
            Some(credential) => credentials::show(credential, self.tokens.as_deref(), request),
        }
    }

    /// What it said to who showed this token.
    pub fn took(&self, shown: Option<&HeaderValue>, status: StatusCode) {
        if let (Some(token), Some(tokens), StatusCode::UNAUTHORIZED) = (shown, &self.tokens, status) {
            tokens.refused(token);
        }
    }

    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.number > other.number
    }

    /// As [`Backend::locate`], with what has to be made of them first.
    pub fn set_endpoints(&self, set: EndpointSet) {
        self.locate(Located::new(set, &self.plan, Some(self)));
    }

    /// Where requests go from now on; connections to endpoints that are gone take no new ones.
    pub fn locate(&self, located: Located) {
        // Another plan than it was made for.
        let located = match (&self.plan.traffic.key, &located.table) {
            (Some(_), None) => Located::new(located.set, &self.plan, Some(self)),
            _ => located,
        };
        let Located { set, table } = located;
        let before = self.endpoints.load();
        let known = before.departed.iter().chain(&before.healths);
        let mut known: HashMap<_, _> = known.map(|health| (health.address, Arc::clone(health))).collect();
        let there: HashSet<_> = before.healths.iter().map(|health| health.address).collect();
        // Who is found by a replica that starts is not new.
        let warms = self.plan.traffic.slow_start.filter(|_| !there.is_empty());
        // Two names may lead to one address: what is known is known of both.
        let health = |address| {
            let health = known.entry(address).or_insert_with(|| Arc::new(Health::new(address)));
            if let Some(time) = warms.filter(|_| !there.contains(&address)) {
                health.returns(time);
            }
            Arc::clone(health)
        };
        let healths: Vec<_> = set.endpoints.iter().map(|endpoint| endpoint.address).map(health).collect();
        set.endpoints.iter().for_each(|endpoint| drop(known.remove(&endpoint.address)));
        // A worker may still have it, or it was ejected and must not come back as good as new.
        let matters =
            |health: &Arc<Health>| health.standing() != Standing::Good || Arc::strong_count(health) > 2;
        let departed = known.into_values().filter(matters).take(MAX_DEPARTED).collect();
        if self.plan.traffic.check.is_none() {
            healths.iter().for_each(|health| health.unchecked());
        }
        let (panic, near) = (AtomicBool::new(false), AtomicU64::new(100));
        self.endpoints.store(Arc::new(Endpoints { set, healths, table, departed, panic, near }));
        self.told.notify_waiters();
        self.judge();
        self.term.endpoints_changed();
    }

    /// Waits for what its names lead to, if that was never found out. False: that is known, or takes too long.
    pub async fn resolves(&self, until: Instant) -> bool {
        let is_unknown =
            || matches!(self.plan.target, BackendTarget::Hosts(_)) && !self.endpoints.load().set.known;
        if !is_unknown() {
            return false;
        }
        let told = async {
            loop {
                let told = self.told.notified();
                if !is_unknown() {
                    return;
                }
                told.await;
            }
        };
        // Boxed: only the first requests come here.
        tokio::time::timeout_at(until, Box::pin(told)).await.is_ok()
    }

    /// Counts who is fit.
    pub(super) fn judge(&self) {
        let all = self.endpoints.load();
        let traffic = &self.plan.traffic;
        if traffic.check.is_some() {
            self.stats.set_unhealthy(all.healths.iter().filter(|health| health.is_unhealthy()).count());
        }
        all.judge_near();
        if traffic.panic_percent > 0 {
            let is_fit =
                |health: &&Arc<Health>| !matches!(health.standing(), Standing::Ejected | Standing::Unhealthy);
            let fit = all.healths.iter().filter(is_fit).count();
            let in_panic = fit * 100 < all.healths.len() * usize::from(traffic.panic_percent);
            if all.panic.swap(in_panic, Ordering::Relaxed) != in_panic {
                let count = all.healths.len();
                tracing::warn!(backend = %self.plan.id, fit, of = count, in_panic, "fit endpoints");
            }
        }
    }

    pub(super) fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.load_full()
    }

    /// Whether it matters how requests went.
    pub(super) fn cares(&self) -> bool {
        self.plan.traffic.ejection.is_some()
    }

    /// Whether it matters how long answers took.
    pub(super) fn measures(&self) -> bool {
        self.plan.traffic.balance == Balance::PeakEwma
    }

    /// Whether as many requests are under way as may be. Workers that ask at once may each let one more pass.
    pub(super) fn is_full(&self) -> bool {
        self.plan.traffic.max_requests.is_some_and(|most| self.stats.active_now() >= u64::from(most))
    }

    /// An endpoint answered. `since`: when it had the whole request; none if it has not, and its time is the client's.
    pub(super) fn answered(&self, health: &Health, verdict: Verdict, since: Option<Instant>) {
        let is_bad = verdict == Verdict::Bad;
        if self.measures()
            && let Some(since) = since
        {
            // Who fails at once would be the quickest of all.
            health.measure(if is_bad { since.elapsed().max(NO_ANSWER) } else { since.elapsed() });
        }
        self.judged(health, verdict);
    }

    /// What an answer says of its endpoint.
    pub(super) fn judged(&self, health: &Health, verdict: Verdict) {
        match verdict {
            Verdict::Well => health.went_well(self.plan.traffic.ejection.as_ref()),
            Verdict::Bad => self.is_bad(health),
            Verdict::Open => {}
        }
    }

    /// An endpoint gave no answer.
    pub(super) fn failed(&self, health: &Health) {
        self.not_connected(health);
        self.is_bad(health);
    }

    /// An endpoint could not be connected to. It rests, and is tried again sooner than one that was ejected.
    pub(super) fn not_connected(&self, health: &Health) {
        if self.measures() {
            health.measure(NO_ANSWER);
        }
    }

    /// An endpoint answered badly, or not at all: it is left alone once that was too often and enough others are left.
    fn is_bad(&self, health: &Health) {
        let Some(plan) = &self.plan.traffic.ejection else { return };
        if !health.failed(plan) {
            return;
        }
        let _one_at_a_time = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.endpoints.load();
        if health.standing_of_requests() == Standing::Ejected
            || (all.ejected() + 1) * 100 > all.healths.len() * usize::from(plan.max_percent)
        {
            return;
        }
        let time = health.eject(plan);
        self.judge();
        self.stats.ejection();
        tracing::warn!(backend = %self.plan.id, endpoint = %health.address, ?time, "endpoint ejected");
    }

    /// Whether one more retry fits into what the backend is to bear; then it is counted.
    pub(super) fn may_retry(&self, percent: u8) -> bool {
        self.budget.spend(percent, self.stats.requests())
    }

    /// To be called once a second.
    pub(super) fn tick(&self, now: Instant) {
        self.budget.tick(now, || self.stats.requests());
        if self.plan.traffic.ejection.is_some() {
            self.stats.set_ejected(self.endpoints.load().ejected());
        }
        if self.plan.traffic.panic_percent > 0 || self.endpoints.load().near_share().is_some() {
            self.judge();
        }
    }

    /// Where requests can go now, for who asks it beside the requests.
    pub fn known_endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.load().set.endpoints.clone()
    }

    /// Whether `known` is still the newest set; cheaper than to fetch it.
    pub(super) fn has_endpoints(&self, known: &Arc<Endpoints>) -> bool {
        Arc::ptr_eq(&self.endpoints.load(), known)
    }
}

impl Endpoints {
    pub fn in_panic(&self) -> bool {
        self.panic.load(Ordering::Relaxed)
    }

    /// Of a hundred requests so many stay in the gateway's own zone. None: zones are all the same.
    pub fn near_share(&self) -> Option<u64> {
        (!self.set.near.is_empty()).then(|| self.near.load(Ordering::Relaxed))
    }

    /// A zone bears its requests as long as so much of it is fit; below, the others get what it cannot.
    fn judge_near(&self) {
        if self.set.near.is_empty() {
            return;
        }
        let both = self.set.endpoints.iter().zip(&self.healths);
        let near = both.filter(|(endpoint, _)| self.set.near.binary_search(&endpoint.address).is_ok());
        let shares = near.map(|(_, health)| match health.standing() {
            Standing::Good => 100,
            Standing::Recovering(share) => share,
            Standing::Ejected | Standing::Unhealthy => 0,
        });
        let (count, sum) = shares.fold((0, 0), |(count, sum), share| (count + 1, sum + share));
        let fit = sum / u64::max(count, 1);
        self.near.store((fit * 100 / ENOUGH).min(100), Ordering::Relaxed);
    }

    fn ejected(&self) -> usize {
        self.healths.iter().filter(|health| health.standing_of_requests() == Standing::Ejected).count()
    }
}
