//! `rateLimits`: how much each client may ask. A limit is a bucket for each key (GCRA), kept under the name of the limit,
//! so that what is left of it survives every change of routes.
//!
//! Invariants: of one rule's limits all are charged or none; a limit whose key cannot be told counts in one bucket for
//! all such requests, so that no request escapes by being odd.

mod buckets;
mod gcra;
mod hashing;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use self::buckets::{Buckets, Who};
use self::gcra::{Full, Rate};
use self::hashing::{Hashed, address};
use super::contract::{AnyPlan, Combine, Decision, Filter, FilterKind, Keep, Member, Outcome, Ring, Scope};
use crate::expression::{Expression, Kind, MAX_SOURCE, REQUEST, Subject, Value};
use crate::message::{ErrorKind, Exchange, ProxyError, Quota, Quotas, Response};
use crate::telemetry::Limited;
use crate::values::{Duration, FieldPath, Problem, Reason};

pub struct RateLimits;

/// How much each client may ask; a request is charged to all limits that apply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Spec(pub Vec<LimitSpec>);

/// So many requests in a time, for each key.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitSpec {
    /// Stands in answers, log and metrics; what is left of the limit is kept under it.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    /// So many requests.
    #[schemars(range(min = 1, max = MAX_REQUESTS))]
    pub requests: i64,
    /// In so long: a second to a month.
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('744h')", PER))]
    pub per: Duration,
    /// So many at once after a pause; as many as `requests` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_REQUESTS))]
    pub burst: Option<i64>,
    /// CEL; requests of one value share a bucket. By default the client or its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_SOURCE))]
    pub key: Option<String>,
    /// CEL that gives a bool: which requests are counted; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_SOURCE))]
    pub when: Option<String>,
    /// CEL that gives an int: for how many a request counts; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_SOURCE))]
    pub cost: Option<String>,
    /// Refuses nobody, and only counts who would be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Counts before the client is known: attempts, also those with wrong credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
}

/// What a limit comes before.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Before {
    Authentication,
}

const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const PER: &str = "a limit counts in a second to 31 days (744h)";
const MAX_LIMITS: usize = 16;
const MAX_REQUESTS: u64 = 1_000_000_000;

impl JsonSchema for Spec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RateLimits".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "How much each client may ask; a request is charged to all limits that apply.",
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_LIMITS,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": generator.subschema_for::<LimitSpec>(),
        })
    }
}

/// Limits of one ring that were written together.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan(Vec<Limit>);

#[derive(Clone, PartialEq)]
struct Limit {
    /// Where it is written.
    whose: Arc<str>,
    name: Arc<str>,
    rate: Rate,
    requests: u64,
    burst: u64,
    per: Duration,
    key: Option<Expression>,
    when: Option<Expression>,
    cost: Option<Expression>,
    dry_run: bool,
    before: Option<Before>,
}

impl Member for RateLimits {
    const NAME: &'static str = "rateLimits";
    const COMBINE: Combine = Combine::Both;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let (mut problems, mut names, mut limits) = (Vec::new(), BTreeSet::new(), Vec::new());
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        if spec.0.is_empty() || spec.0.len() > MAX_LIMITS {
            refuse(
                FieldPath::default(),
                format!("found {} limits, expected 1 to {MAX_LIMITS}", spec.0.len()),
            );
        }
        let (whose, mut is_whole): (Arc<str>, _) = (scope.holder().into(), true);
        for (index, spec) in spec.0.into_iter().enumerate() {
            let at = FieldPath::default().index(index);
            if !names.insert(spec.name.clone()) {
                let message = format!("two limits are called {}; give one another name", spec.name);
                refuse(at.field("name"), message);
            }
            let mut count = |name: &str, count: i64| {
                let known = u64::try_from(count).ok().filter(|count| (1..=MAX_REQUESTS).contains(count));
                known.unwrap_or_else(|| {
                    refuse(at.field(name), format!("found {count}, expected 1 to {MAX_REQUESTS}"));
                    1
                })
            };
            let requests = count("requests", spec.requests);
            let burst = spec.burst.map_or(requests, |burst| count("burst", burst));
            let seconds = spec.per.std().as_secs();
            if !(1..=744 * 3_600).contains(&seconds) {
                refuse(at.field("per"), PER.into());
                continue;
            }
            let Some(rate) = Rate::new(requests, spec.per.std(), burst) else {
                let message = "a bucket of this burst would take a hundred years to empty; make it smaller";
                refuse(at.field("burst"), message.into());
                continue;
            };
            let mut expression = |name: &str, source: Option<&String>, wanted| {
                let found = source.map(|source| scope.expression(at.field(name), source, &REQUEST, wanted));
                is_whole &= !matches!(found, Some(None));
                found.flatten()
            };
            limits.push(Limit {
                whose: whose.clone(),
                name: spec.name.into(),
                rate,
                requests,
                burst,
                per: spec.per,
                key: expression("key", spec.key.as_ref(), Kind::ANY),
                when: expression("when", spec.when.as_ref(), Kind::BOOL),
                cost: expression("cost", spec.cost.as_ref(), Kind::INT),
                dry_run: spec.dry_run,
                before: spec.before,
            });
        }
        if is_whole && problems.is_empty() { Ok(Plan(limits)) } else { Err(problems) }
    }
}

impl FilterKind for RateLimits {
    const RING: Ring = Ring::RateLimits;

    fn parts(plan: &AnyPlan) -> Vec<(Ring, AnyPlan)> {
        let limits = plan.get::<Plan>().map_or(&[][..], |plan| &plan.0);
        let (early, late): (Vec<_>, Vec<_>) =
            limits.iter().cloned().partition(|limit| limit.before.is_some());
        let parts = [(Ring::EarlyRateLimits, early), (Ring::RateLimits, late)];
        let given = parts.into_iter().filter(|(_, limits)| !limits.is_empty());
        given.map(|(ring, limits)| (ring, AnyPlan::new(Plan(limits)))).collect()
    }

    fn link(plan: &Plan, keep: &dyn Keep) -> Arc<dyn Filter> {
        // One table: memory is bounded for all of them together.
        let made = keep.state("rateLimits", &mut || Arc::new(Buckets::default()));
        let buckets: Arc<Buckets> = made.downcast().expect("only buckets are kept under this name");
        let policies: Vec<_> = plan.0.iter().filter(|limit| !limit.dry_run).map(Limit::policy).collect();
        let policy = (!policies.is_empty())
            .then(|| HeaderValue::try_from(policies.join(", ")).expect("names of limits are plain"));
        Arc::new(Linked { limits: plan.0.clone(), buckets, policy })
    }
}

struct Linked {
    limits: Vec<Limit>,
    buckets: Arc<Buckets>,
    /// Of those that are in force.
    policy: Option<HeaderValue>,
}

/// A limit that applies to a request.
struct Charge<'l> {
    limit: &'l Limit,
    who: Who,
    cost: u64,
    is_charged: bool,
}

/// Why a request is refused.
struct Refused<'l> {
    limit: &'l Limit,
    full: Full,
}

/// `RateLimit` and `RateLimit-Policy`: draft-ietf-httpapi-ratelimit-headers-10.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const SECOND: u64 = 1_000_000_000;

impl Filter for Linked {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        match self.charge(exchange) {
            Ok((quota, would_refuse)) => {
                if let Some(quota) = quota {
                    exchange.quotas.note(quota);
                }
                if let Some(limit) = would_refuse {
                    exchange.limited = Some(Limited { limit, dry_run: true });
                }
                Decision::Continue
            }
            Err(refused) => {
                let error = self.refusal(&refused);
                exchange.limited = Some(Limited { limit: refused.limit.name.clone(), dry_run: false });
                exchange.quotas.told = true;
                error.into()
            }
        }
    }

    fn response<'a>(&'a self, exchange: &'a mut Exchange, mut response: Response) -> Outcome<'a> {
        let refused = response.extensions().get() == Some(&ErrorKind::RateLimited);
        if refused && self.limits.iter().all(|limit| limit.before.is_none()) {
            // By limits further in, which were imposed or inherited: these were charged for nothing.
            for charge in self.charges(exchange).iter().flatten() {
                self.buckets.refund(charge.who, &charge.limit.rate, charge.cost);
            }
        }
        if let Some(policy) = &self.policy {
            tell(policy, &mut exchange.quotas, response.headers_mut(), refused);
        }
        Outcome::Ready(response)
    }
}

impl Linked {
    /// Charges all limits that apply, or none. Gives the one that has least left, and one that would have refused.
    fn charge(&self, exchange: &Exchange) -> Result<(Option<Quota>, Option<Arc<str>>), Refused<'_>> {
        let now = self.buckets.nanos_at(exchange.started);
        let mut charges = self.charges(exchange);
        if charges[1].is_some() {
            let enforced = charges.iter().flatten().filter(|charge| !charge.limit.dry_run);
            let refused = enforced.filter_map(|Charge { limit, who, cost, .. }| {
                self.buckets.ask(*who, &limit.rate, *cost, now).err().map(|full| Refused { limit, full })
            });
            if let Some(refused) = refused.max_by_key(|refused| refused.full) {
                return Err(refused);
            }
        }
        let (mut least, mut would_refuse, mut refused): (Option<Quota>, _, _) = (None, None, None);
        for charge in charges.iter_mut().flatten() {
            let limit = charge.limit;
            match self.buckets.charge(charge.who, &limit.rate, charge.cost, now) {
                Ok(until) => {
                    charge.is_charged = true;
                    let left = limit.rate.left(until, now);
                    if !limit.dry_run && least.as_ref().is_none_or(|least| left < least.left) {
                        let resets = until.saturating_sub(now).div_ceil(SECOND);
                        least = Some(Quota { limit: limit.name.clone(), left, resets });
                    }
                }
                Err(_) if limit.dry_run => would_refuse = Some(limit.name.clone()),
                Err(full) => {
                    refused = Some(Refused { limit, full });
                    break;
                }
            }
        }
        let Some(refused) = refused else { return Ok((least, would_refuse)) };
        // Another request was faster after the question.
        for charge in charges.iter().flatten().filter(|charge| charge.is_charged) {
            self.buckets.refund(charge.who, &charge.limit.rate, charge.cost);
        }
        Err(refused)
    }

    /// The limits that apply, from the first place on.
    fn charges(&self, exchange: &Exchange) -> [Option<Charge<'_>>; MAX_LIMITS] {
        let mut charges = [const { None }; MAX_LIMITS];
        let subject = Subject { exchange };
        // What cannot be decided is counted.
        let applies =
            |limit: &&Limit| !matches!(limit.when.as_ref().map(|when| when.holds(&subject)), Some(Ok(false)));
        for (place, limit) in charges.iter_mut().zip(self.limits.iter().filter(applies)) {
            let cost = match limit.cost.as_ref().map(|cost| cost.evaluate(&subject)) {
                Some(Ok(Value::Int(cost))) => u64::try_from(cost).unwrap_or(0),
                _ => 1,
            };
            *place = Some(Charge { limit, who: self.who(limit, exchange), cost, is_charged: false });
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
            (None, None) => self.buckets.who((whose, name, address(exchange.client.ip))),
        }
    }

    fn refusal(&self, refused: &Refused<'_>) -> ProxyError {
        let mut error = ProxyError::from(ErrorKind::RateLimited);
        let mut wait = 0;
        // What costs more than the limit ever grants is never granted.
        if let Full::For(nanos) = refused.full {
            wait = nanos.div_ceil(SECOND).max(1);
            error = error.with_header(RETRY_AFTER, HeaderValue::from(wait));
        }
        if let Some(policy) = &self.policy {
            error = error.with_header(RATE_LIMIT_POLICY, policy.clone());
        }
        error.with_header(RATE_LIMIT, state(&refused.limit.name, 0, wait))
    }
}

/// Tells the limits, and what is left of the tightest. What a backend says of its own limits would be taken for ours.
fn tell(policy: &HeaderValue, quotas: &mut Quotas, headers: &mut HeaderMap, refused: bool) {
    if !std::mem::replace(&mut quotas.told, true) {
        headers.remove(RATE_LIMIT_POLICY);
        headers.remove(RATE_LIMIT);
    }
    headers.append(RATE_LIMIT_POLICY, policy.clone());
    if let Some(Quota { limit, left, resets }) = quotas.least.as_ref().filter(|_| !refused) {
        headers.insert(RATE_LIMIT, state(limit, *left, *resets));
    }
}

fn state(limit: &str, left: u64, resets: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{limit}\";r={left};t={resets}")).expect("names of limits are plain")
}

impl Limit {
    fn policy(&self) -> String {
        format!("\"{}\";q={};w={}", self.name, self.requests, self.per.std().as_secs())
    }
}

/// In short, with what it has only.
impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, requests, burst, per, .. } = self;
        write!(f, "{name} {requests} in {per}")?;
        if burst != requests {
            write!(f, " burst {burst}")?;
        }
        let expressions = [("key", &self.key), ("when", &self.when), ("cost", &self.cost)];
        for (word, expression) in expressions {
            if let Some(expression) = expression {
                write!(f, " {word} {expression:?}")?;
            }
        }
        if let Some(before) = self.before {
            write!(f, " before {before:?}")?;
        }
        f.write_str(if self.dry_run { " dry run" } else { "" })
    }
}
