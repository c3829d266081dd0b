//! `rateLimits` at work: which limits apply to a request, and what they say.

use std::sync::Arc;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::buckets::{Buckets, Who};
use super::hashing::{Hashed, shared_key};
use super::store::{Charged, Count, Store};
use super::{Limit, MAX_LIMITS, OnStoreFailure};
use crate::expression::{Subject, Value};
use crate::filters::contract::{Decision, Filter, Outcome};
use crate::message::{ChargedLimits, ErrorKind, Exchange, ProxyError, Quota, Quotas, Response};
use crate::telemetry::Limited;
use crate::values::Full;

pub(super) struct Linked {
    limits: Vec<Limit>,
    buckets: Arc<Buckets>,
    store: Arc<Store>,
    /// Of those that are in force.
    policy: Option<HeaderValue>,
}

/// A limit that applies to a request.
struct Charge<'l> {
    limit: &'l Limit,
    who: Who,
    cost: u64,
    counted: Counted,
}

/// Where a limit counts this request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Here,
    /// In the store, all replicas together.
    Shared,
    /// It was charged here.
    Done,
    Nowhere,
}

type Charges<'l> = [Option<Charge<'l>>; MAX_LIMITS];

/// Why a request is refused.
struct Refused<'l> {
    limit: &'l Limit,
    full: Full,
    /// So many of cost 1 would pass all the same.
    left: u64,
}

/// What the limits that allowed a request say.
#[derive(Default)]
struct Allowed {
    least: Option<Quota>,
    /// A dry run that would have refused.
    would_refuse: Option<Arc<str>>,
}

/// `RateLimit` and `RateLimit-Policy`: draft-ietf-httpapi-ratelimit-headers-10.
pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const SECOND: u64 = 1_000_000_000;
/// So long nobody asks the store again about a bucket that refused: one that is deleted there forgives soon.
const BELIEVED: u64 = 10 * SECOND;

impl Filter for Linked {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        let now = self.buckets.nanos_at(exchange.started);
        let charges = self.charges(exchange);
        if !charges.iter().flatten().any(|charge| charge.counted == Counted::Shared) {
            return self.settle(exchange, charges, now);
        }
        if let Some(refused) = self.refused(&charges, now, &[Counted::Here, Counted::Shared]) {
            return self.refuse(exchange, &refused);
        }
        match self.store.charge(self.counts(&charges, exchange)) {
            None => self.without_store(exchange, charges, now),
            Some(answer) => Decision::Wait(Box::pin(async move {
                match answer.await {
                    None => self.without_store(exchange, charges, now),
                    Some(answer) => self.with_store(exchange, charges, now, answer),
                }
            })),
        }
    }

    fn response<'a>(&'a self, exchange: &'a mut Exchange, mut response: Response) -> Outcome<'a> {
        let refused = response.extensions().get() == Some(&ErrorKind::RateLimited);
        let charged = exchange.quotas.charged.pop().unwrap_or_default();
        if refused && exchange.quotas.refused_early == self.is_early() {
            // By limits further in of the same ring, which were imposed or inherited: these were charged for nothing.
            let mut charges = self.charges(exchange);
            for (place, charge) in charges.iter_mut().flatten().enumerate() {
                charge.counted = match (charged.here >> place & 1, charged.shared >> place & 1) {
                    (1, _) => Counted::Done,
                    (_, 1) => Counted::Shared,
                    _ => Counted::Nowhere,
                };
            }
            self.refund(&charges, exchange);
        }
        if let Some(policy) = &self.policy {
            tell(policy, &mut exchange.quotas, response.headers_mut(), refused);
        }
        Outcome::Ready(response)
    }
}

impl Linked {
    pub fn new(limits: Vec<Limit>, buckets: Arc<Buckets>, store: Arc<Store>) -> Self {
        let policies: Vec<_> = limits.iter().filter(|limit| !limit.dry_run).map(Limit::policy).collect();
        let policy = (!policies.is_empty())
            .then(|| HeaderValue::try_from(policies.join(", ")).expect("names of limits are plain"));
        Self { limits, buckets, store, policy }
    }

    /// All limits of a filter are of one ring.
    fn is_early(&self) -> bool {
        self.limits.iter().any(|limit| limit.before.is_some())
    }

    /// The limits that apply, from the first place on.
    fn charges(&self, exchange: &Exchange) -> Charges<'_> {
        let mut charges = [const { None }; MAX_LIMITS];
        let subject = Subject { exchange };
        // What cannot be decided is counted.
        let applies =
            |limit: &&Limit| !matches!(limit.when.as_ref().map(|when| when.holds(&subject)), Some(Ok(false)));
        for (place, limit) in charges.iter_mut().zip(self.limits.iter().filter(applies)) {
            let cost = match limit.cost.as_ref().map(|cost| cost.evaluate(&subject)) {
                Some(Ok(Value::Int(cost))) => u64::try_from(cost).unwrap_or(1),
                _ => 1,
            };
            let counted = if limit.shared.is_some() { Counted::Shared } else { Counted::Here };
            *place = Some(Charge { limit, who: self.who(limit, exchange), cost, counted });
        }
        charges
    }

    fn who(&self, limit: &Limit, exchange: &Exchange) -> Who {
        let (whose, name) = (&*limit.whose, &*limit.name);
        match (&limit.key, exchange.identity.known()) {
            (Some(key), _) => {
                let value = key.evaluate(&Subject { exchange }).ok();
                self.buckets.who((whose, name, value.as_ref().and_then(Hashed::new)))
            }
            (None, Some(known)) => self.buckets.who((whose, name, known.kind, &*known.issuer, &*known.id)),
            (None, None) => self.buckets.who((whose, name, exchange.client.network())),
        }
    }

    /// Of those that count in these ways, the one that refuses longest; in the store, as far as it is known here.
    fn refused<'l>(&self, charges: &Charges<'l>, now: u64, ways: &[Counted]) -> Option<Refused<'l>> {
        let enforced = charges.iter().flatten().filter(|charge| !charge.limit.dry_run);
        let enforced = enforced.filter(|charge| ways.contains(&charge.counted));
        let refused = enforced.filter_map(|Charge { limit, who, cost, counted }| {
            let left = match counted {
                Counted::Here => limit.rate.left(self.buckets.until(*who).unwrap_or(0), now).0,
                _ => 0,
            };
            let full = match counted {
                Counted::Here => self.buckets.ask(*who, &limit.rate, *cost, now).err(),
                // What costs more than a bucket holds needs no question, and what is known to be full none for a while.
                Counted::Shared => limit.rate.charged(0, now, *cost).err().or_else(|| {
                    let is_known = self.buckets.until(who.heard()).is_some_and(|until| until > now);
                    is_known.then(|| self.buckets.ask(who.full(), &limit.rate, *cost, now).err())?
                }),
                _ => None,
            };
            full.map(|full| Refused { limit, full, left })
        });
        refused.max_by_key(|refused| refused.full)
    }

    /// Charges what counts here, and lets the request go on.
    fn settle(&self, exchange: &mut Exchange, mut charges: Charges<'_>, now: u64) -> Decision<'static> {
        if charges[1].is_some()
            && let Some(refused) = self.refused(&charges, now, &[Counted::Here])
        {
            self.refund(&charges, exchange);
            return self.refuse(exchange, &refused);
        }
        let (mut allowed, mut refused) = (Allowed::default(), None);
        for charge in charges.iter_mut().flatten().filter(|charge| charge.counted == Counted::Here) {
            match self.buckets.charge(charge.who, &charge.limit.rate, charge.cost, now) {
                Ok(until) => {
                    charge.counted = Counted::Done;
                    allowed.note(charge.limit, until, now);
                }
                Err(_) if charge.limit.dry_run => {
                    charge.counted = Counted::Nowhere;
                    allowed.would_refuse = Some(charge.limit.name.clone());
                }
                Err(full) => {
                    let until = self.buckets.until(charge.who).unwrap_or(0);
                    refused = Some(Refused {
                        limit: charge.limit,
                        full,
                        left: charge.limit.rate.left(until, now).0,
                    });
                    break;
                }
            }
        }
        if let Some(refused) = refused {
            // Another request was faster after the question.
            self.refund(&charges, exchange);
            return self.refuse(exchange, &refused);
        }
        allow(exchange, allowed, &charges)
    }

    /// As each limit says for this case.
    fn without_store(
        &self,
        exchange: &mut Exchange,
        mut charges: Charges<'_>,
        now: u64,
    ) -> Decision<'static> {
        for charge in charges.iter_mut().flatten().filter(|charge| charge.counted == Counted::Shared) {
            exchange.quotas.fallbacks.push(charge.limit.name.clone());
            charge.counted = match charge.limit.shared.as_ref().map(|shared| shared.on_failure) {
                Some(OnStoreFailure::Allow) => Counted::Nowhere,
                Some(OnStoreFailure::Deny) if !charge.limit.dry_run => {
                    return ErrorKind::StoreUnavailable.into();
                }
                _ => Counted::Here,
            };
        }
        self.settle(exchange, charges, now)
    }

    fn with_store(
        &self,
        exchange: &mut Exchange,
        mut charges: Charges<'_>,
        now: u64,
        answer: Charged,
    ) -> Decision<'static> {
        let mut shared: Vec<_> =
            charges.iter_mut().flatten().filter(|charge| charge.counted == Counted::Shared).collect();
        match answer {
            Charged::Full { place, wait } => {
                let Some(charge) = shared.get(place) else { return ErrorKind::Internal.into() };
                let full =
                    wait.map_or(Full::Forever, |micros| Full::For(micros.saturating_mul(1_000).max(1)));
                if let Full::For(wait) = full {
                    let empty = charge.limit.rate.refused(now, wait, charge.cost);
                    self.buckets.note(charge.who.full(), empty, now);
                    self.buckets.note(charge.who.heard(), now.saturating_add(BELIEVED), now);
                }
                let refused = Refused { limit: charge.limit, full, left: 0 };
                self.refuse(exchange, &refused)
            }
            Charged::All(told) => {
                let mut allowed = Allowed::default();
                for (charge, empty) in shared.iter_mut().zip(told) {
                    match empty {
                        Some(micros) => {
                            allowed.note(charge.limit, now.saturating_add(micros.saturating_mul(1_000)), now);
                        }
                        None => {
                            charge.counted = Counted::Nowhere;
                            allowed.would_refuse = Some(charge.limit.name.clone());
                        }
                    }
                }
                exchange.quotas.merge(allowed.least);
                if let Some(limit) = allowed.would_refuse {
                    exchange.limited = Some(Limited { limit, dry_run: true });
                }
                self.settle(exchange, charges, now)
            }
        }
    }

    /// The buckets in the store.
    fn counts(&self, charges: &Charges<'_>, exchange: &Exchange) -> Vec<Count> {
        let shared = charges.iter().flatten().filter(|charge| charge.counted == Counted::Shared);
        let count = |charge: &Charge<'_>| {
            let limit = charge.limit;
            let key = limit.key.as_ref().map(|key| key.evaluate(&Subject { exchange }).ok());
            let (interval, burst) = limit.rate.micros();
            let prefix = limit.shared.as_ref().map_or("", |shared| &shared.prefix);
            Count {
                key: shared_key(prefix, &limit.whose, key.as_ref(), exchange),
                interval,
                burst,
                cost: i64::try_from(charge.cost).unwrap_or(i64::MAX),
                enforced: !limit.dry_run,
            }
        };
        shared.map(count).collect()
    }

    fn refund(&self, charges: &Charges<'_>, exchange: &Exchange) {
        for charge in charges.iter().flatten().filter(|charge| charge.counted == Counted::Done) {
            self.buckets.refund(charge.who, &charge.limit.rate, charge.cost);
        }
        let counts = self.counts(charges, exchange);
        if !counts.is_empty() {
            self.store.refund(counts);
        }
    }

    fn refuse(&self, exchange: &mut Exchange, refused: &Refused<'_>) -> Decision<'static> {
        exchange.limited = Some(Limited { limit: refused.limit.name.clone(), dry_run: false });
        exchange.quotas.told = true;
        exchange.quotas.refused_early = self.is_early();
        let mut error = ProxyError::from(ErrorKind::RateLimited);
        let mut wait = None;
        // What costs more than the limit ever grants is never granted.
        if let Full::For(nanos) = refused.full {
            let seconds = nanos.div_ceil(SECOND).max(1);
            wait = Some(seconds);
            error = error.with_header(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(policy) = &self.policy {
            error = error.with_header(RATE_LIMIT_POLICY, policy.clone());
        }
        error.with_header(RATE_LIMIT, state(&refused.limit.name, refused.left, wait)).into()
    }
}

impl Allowed {
    fn note(&mut self, limit: &Limit, until: u64, now: u64) {
        let (left, more) = limit.rate.left(until, now);
        if !limit.dry_run && self.least.as_ref().is_none_or(|least| left < least.left) {
            self.least = Some(Quota { limit: limit.name.clone(), left, more: more.div_ceil(SECOND) });
        }
    }
}

fn allow(exchange: &mut Exchange, allowed: Allowed, charges: &Charges<'_>) -> Decision<'static> {
    exchange.quotas.merge(allowed.least);
    if let Some(limit) = allowed.would_refuse {
        exchange.limited = Some(Limited { limit, dry_run: true });
    }
    let mut charged = ChargedLimits::default();
    for (place, charge) in charges.iter().flatten().enumerate() {
        charged.here |= u16::from(charge.counted == Counted::Done) << place;
        charged.shared |= u16::from(charge.counted == Counted::Shared) << place;
    }
    exchange.quotas.charged.push(charged);
    Decision::Continue
}

/// Tells the limits, and what is left of the tightest. What a backend says of its own limits would be taken for ours.
fn tell(policy: &HeaderValue, quotas: &mut Quotas, headers: &mut HeaderMap, refused: bool) {
    if !std::mem::replace(&mut quotas.told, true) {
        headers.remove(RATE_LIMIT_POLICY);
        headers.remove(RATE_LIMIT);
    }
    headers.append(RATE_LIMIT_POLICY, policy.clone());
    if let Some(Quota { limit, left, more }) = quotas.least.as_ref().filter(|_| !refused) {
        headers.insert(RATE_LIMIT, state(limit, *left, (*more > 0).then_some(*more)));
    }
}

/// `r`: requests left; `t`: seconds until there is more.
fn state(limit: &str, left: u64, more: Option<u64>) -> HeaderValue {
    let more = more.map(|more| format!(";t={more}")).unwrap_or_default();
    HeaderValue::try_from(format!("\"{limit}\";r={left}{more}")).expect("names of limits are plain")
}
