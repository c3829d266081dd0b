//! `rateLimits` at work: which limits apply to a request, and what they say.

use std::sync::Arc;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::buckets::{Buckets, Named, Who};
use super::hashing::{Hashed, shared_key};
use super::{Limit, MAX_LIMITS, OnStoreFailure};
use crate::expression::{Subject, Value};
use crate::filters::contract::{Decision, Filter, Outcome};
use crate::filters::store::{Count, Store, Told, Verdict};
use crate::message::{ErrorKind, Exchange, ProxyError, Quota, Quotas, Response};
use crate::telemetry::Limited;
use crate::values::Full;

pub(super) struct Linked {
    /// With the beginnings of their buckets' names.
    limits: Vec<(Limit, Named)>,
    /// Some of them are counted in the store.
    shared: bool,
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

/// Those that apply, from the first place on; most rules have one. More than one object may give are elsewhere.
struct Charges<'l> {
    list: [Option<Charge<'l>>; MAX_LIMITS],
    more: Vec<Charge<'l>>,
    count: usize,
}

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
        let mut charges = self.charges(exchange);
        if !self.shared || !charges.iter().any(|charge| charge.counted == Counted::Shared) {
            return self.settle(exchange, &mut charges, now);
        }
        if let Some(refused) = self.refused(&charges, now, &[Counted::Here, Counted::Shared]) {
            return self.refuse(exchange, &refused);
        }
        match self.store.charge(self.counts(&charges, exchange)) {
            None => {
                let told = charges.iter().map(|_| Told::Away).collect();
                self.told(exchange, &mut charges, now, told)
            }
            Some(answer) => Decision::Wait(Box::pin(async move {
                match answer.await {
                    Verdict::All(told) => self.told(exchange, &mut charges, now, told),
                    Verdict::Full { place, wait } => {
                        let full =
                            charges.iter().filter(|charge| charge.counted == Counted::Shared).nth(place);
                        match full {
                            Some(charge) => self.full(exchange, charge, now, wait),
                            None => ErrorKind::Internal.into(),
                        }
                    }
                }
            })),
        }
    }

    fn response<'a>(&'a self, exchange: &'a mut Exchange, mut response: Response) -> Outcome<'a> {
        let refused = response.extensions().get() == Some(&ErrorKind::RateLimited);
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
        let shared = limits.iter().any(|limit| limit.shared.is_some());
        let named = |limit: Limit| {
            let named = buckets.named((&*limit.whose, &*limit.name));
            (limit, named)
        };
        let limits = limits.into_iter().map(named).collect();
        Self { limits, shared, buckets, store, policy }
    }

    /// The limits that apply, from the first place on.
    fn charges(&self, exchange: &Exchange) -> Charges<'_> {
        let mut charges = Charges { list: [const { None }; MAX_LIMITS], more: Vec::new(), count: 0 };
        let subject = Subject { exchange };
        // What cannot be decided is counted.
        let applies =
            |limit: &Limit| !matches!(limit.when.as_ref().map(|when| when.holds(&subject)), Some(Ok(false)));
        for (limit, named) in self.limits.iter().filter(|(limit, _)| applies(limit)) {
            let cost = match limit.cost.as_ref().map(|cost| cost.evaluate(&subject)) {
                Some(Ok(Value::Int(cost))) => u64::try_from(cost).unwrap_or(1),
                _ => 1,
            };
            let counted = if limit.shared.is_some() { Counted::Shared } else { Counted::Here };
            charges.push(Charge { limit, who: self.who(limit, *named, exchange), cost, counted });
        }
        charges
    }

    fn who(&self, limit: &Limit, named: Named, exchange: &Exchange) -> Who {
        match (&limit.key, exchange.identity.known()) {
            (Some(key), _) => {
                let value = key.evaluate(&Subject { exchange }).ok();
                self.buckets.who(named, value.as_ref().and_then(Hashed::new))
            }
            (None, Some(known)) => self.buckets.who(named, (known.kind, &*known.issuer, &*known.id)),
            (None, None) => self.buckets.of_network(named, exchange.client.network()),
        }
    }

    /// Of those that count in these ways, the one that refuses longest; in the store, as far as it is known here.
    fn refused<'l>(&self, charges: &Charges<'l>, now: u64, ways: &[Counted]) -> Option<Refused<'l>> {
        let enforced = charges.iter().filter(|charge| !charge.limit.dry_run);
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
    fn settle(&self, exchange: &mut Exchange, charges: &mut Charges<'_>, now: u64) -> Decision<'static> {
        if charges.count > 1
            && let Some(refused) = self.refused(charges, now, &[Counted::Here])
        {
            self.refund(charges, exchange);
            return self.refuse(exchange, &refused);
        }
        let (mut allowed, mut refused) = (Allowed::default(), None);
        for charge in charges.iter_mut().filter(|charge| charge.counted == Counted::Here) {
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
            self.refund(charges, exchange);
            return self.refuse(exchange, &refused);
        }
        allowed.tell(exchange);
        Decision::Continue
    }

    /// What the store says of each limit that it counts, or what that limit says for the case that it does not.
    fn told(
        &self,
        exchange: &mut Exchange,
        charges: &mut Charges<'_>,
        now: u64,
        told: Vec<Told>,
    ) -> Decision<'static> {
        let (mut allowed, mut is_denied) = (Allowed::default(), false);
        let shared = charges.iter_mut().filter(|charge| charge.counted == Counted::Shared);
        for (charge, told) in shared.zip(told) {
            let on_failure = charge.limit.shared.as_ref().map(|shared| shared.on_failure);
            match told {
                Told::Empty(micros) => {
                    allowed.note(charge.limit, now.saturating_add(micros.saturating_mul(1_000)), now);
                }
                Told::Full => {
                    charge.counted = Counted::Nowhere;
                    allowed.would_refuse = Some(charge.limit.name.clone());
                }
                // Another one has denied: this one does nothing any more.
                Told::Away if is_denied => charge.counted = Counted::Nowhere,
                Told::Away => {
                    exchange.quotas.fallbacks.push(charge.limit.name.clone());
                    is_denied = on_failure == Some(OnStoreFailure::Deny) && !charge.limit.dry_run;
                    let is_counted = on_failure != Some(OnStoreFailure::Allow) && !is_denied;
                    charge.counted = if is_counted { Counted::Here } else { Counted::Nowhere };
                }
            }
        }
        if is_denied {
            self.refund(charges, exchange);
            return ErrorKind::StoreUnavailable.into();
        }
        allowed.tell(exchange);
        self.settle(exchange, charges, now)
    }

    /// A bucket in the store refuses, for so many microseconds or for ever.
    fn full(
        &self,
        exchange: &mut Exchange,
        charge: &Charge<'_>,
        now: u64,
        wait: Option<u64>,
    ) -> Decision<'static> {
        let full = wait.map_or(Full::Forever, |micros| Full::For(micros.saturating_mul(1_000).max(1)));
        if let Full::For(wait) = full {
            let empty = charge.limit.rate.refused(now, wait, charge.cost);
            self.buckets.note(charge.who.full(), empty, now);
            self.buckets.note(charge.who.heard(), now.saturating_add(BELIEVED), now);
        }
        self.refuse(exchange, &Refused { limit: charge.limit, full, left: 0 })
    }

    /// The buckets in the store.
    fn counts(&self, charges: &Charges<'_>, exchange: &Exchange) -> Vec<Count> {
        let shared = charges.iter().filter(|charge| charge.counted == Counted::Shared);
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
        for charge in charges.iter().filter(|charge| charge.counted == Counted::Done) {
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

impl<'l> Charges<'l> {
    fn push(&mut self, charge: Charge<'l>) {
        match self.list.get_mut(self.count) {
            Some(place) => *place = Some(charge),
            None => self.more.push(charge),
        }
        self.count += 1;
    }

    fn iter(&self) -> impl Iterator<Item = &Charge<'l>> {
        self.list[..self.count.min(MAX_LIMITS)].iter().flatten().chain(&self.more)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Charge<'l>> {
        self.list[..self.count.min(MAX_LIMITS)].iter_mut().flatten().chain(&mut self.more)
    }
}

impl Allowed {
    fn note(&mut self, limit: &Limit, until: u64, now: u64) {
        let (left, more) = limit.rate.left(until, now);
        if !limit.dry_run && self.least.as_ref().is_none_or(|least| left < least.left) {
            self.least = Some(Quota { limit: limit.name.clone(), left, more: more.div_ceil(SECOND) });
        }
    }

    fn tell(self, exchange: &mut Exchange) {
        exchange.quotas.merge(self.least);
        if let Some(limit) = self.would_refuse {
            exchange.limited = Some(Limited { limit, dry_run: true });
        }
    }
}

/// Tells the limits, and what is left of the tightest. What a backend says of its own limits would be taken for ours.
fn tell(policy: &HeaderValue, quotas: &mut Quotas, headers: &mut HeaderMap, refused: bool) {
    let least = quotas.least.as_ref().filter(|_| !refused);
    let told = least.map(|Quota { limit, left, more }| state(limit, *left, (*more > 0).then_some(*more)));
    if std::mem::replace(&mut quotas.told, true) {
        headers.append(RATE_LIMIT_POLICY, policy.clone());
    } else {
        headers.insert(RATE_LIMIT_POLICY, policy.clone());
        if told.is_none() {
            headers.remove(RATE_LIMIT);
        }
    }
    if let Some(told) = told {
        headers.insert(RATE_LIMIT, told);
    }
}

/// `r`: requests left; `t`: seconds until there is more. Written by hand: `format!` takes longer than the limit itself.
fn state(limit: &str, left: u64, more: Option<u64>) -> HeaderValue {
    let mut text = StateText { bytes: [0; MAX_STATE], length: 0 };
    text.push(b"\"");
    text.push(limit.as_bytes());
    text.push(b"\";r=");
    text.number(left);
    if let Some(more) = more {
        text.push(b";t=");
        text.number(more);
    }
    HeaderValue::from_bytes(&text.bytes[..text.length]).expect("names of limits are plain")
}

/// Longer than what is told of any limit: its name, two numbers, and twelve bytes around them.
const MAX_STATE: usize = 128;

/// What is told of a limit, as it is written. What has no room is left out.
struct StateText {
    bytes: [u8; MAX_STATE],
    length: usize,
}

impl StateText {
    fn push(&mut self, more: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + more.len()) {
            room.copy_from_slice(more);
            self.length += more.len();
        }
    }

    fn number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(&digits[first..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_limit_is_what_formatting_gives() {
        let long = "n".repeat(63);
        for name in ["a", "fair-share", &long] {
            for number in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX / 10, u64::MAX] {
                assert_eq!(state(name, number, None), format!("\"{name}\";r={number}"));
                assert_eq!(state(name, 7, Some(number)), format!("\"{name}\";r=7;t={number}"));
                let whole = format!("\"{name}\";r={number};t={number}");
                assert_eq!(state(name, number, Some(number)), whole);
            }
        }
    }
}
