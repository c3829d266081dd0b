//! `rateLimits`: how much each client may ask. A limit is a bucket for each key (GCRA), kept under the name of the limit,
//! so that what is left of it survives every change of routes.
//!
//! Invariants: of a rule's limits, whoever gives them, all of one ring are charged or none; a limit whose key cannot be
//! told counts in one bucket for all such requests, so that no request escapes by being odd.

mod buckets;
mod hashing;
#[cfg(test)]
mod redis_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
mod work;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use self::buckets::Buckets;
pub use self::hashing::Hashed;
use self::work::Linked;
use super::contract::{AnyPlan, Combine, Filter, FilterKind, Keep, Member, Ring, Scope};
use crate::expression::{Expression, Kind, MAX_SOURCE, REQUEST};
use crate::values::{Duration, FieldPath, Problem, Rate, Reason};

pub struct RateLimits;

/// How much each client may ask; a request is charged to all limits that apply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Spec(pub Vec<LimitSpec>);

/// So many requests in a time, for each key.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("!has(self.onStoreFailure) || (has(self.scope) && self.scope == 'Global')", FAILURE))]
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
    /// Where it is counted; Local by default: each replica for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Counted>,
    /// What a Global limit does while the store cannot be asked; Local by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_store_failure: Option<OnStoreFailure>,
    /// Refuses nobody, and only counts who would be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Counts before the client is known: attempts, also those with wrong credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
}

/// Where a limit is counted.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[schemars(rename = "RateLimitScope")]
pub enum Counted {
    Local,
    Global,
}

/// What a Global limit does while the store cannot be asked.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnStoreFailure {
    /// Each replica counts for itself.
    Local,
    Allow,
    Deny,
}

/// What a limit comes before.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Before {
    Authentication,
}

const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const PER: &str = "a limit counts in a second to 31 days (744h)";
const FAILURE: &str = "onStoreFailure means something only with scope: Global";
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

/// Limits of one ring, imposed ones before the rule's own.
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
    /// It is counted in the store; `None`: each replica counts for itself.
    shared: Option<Shared>,
}

/// A limit that is counted in the store.
#[derive(Clone, PartialEq)]
struct Shared {
    /// How the names of its buckets begin.
    prefix: Arc<str>,
    on_failure: OnStoreFailure,
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
            let is_global = spec.scope == Some(Counted::Global);
            if spec.on_store_failure.is_some() && !is_global {
                refuse(at.field("onStoreFailure"), FAILURE.into());
            }
            let mut expression = |name: &str, source: Option<&String>, wanted| {
                let found = source.map(|source| scope.expression(at.field(name), source, &REQUEST, wanted));
                is_whole &= !matches!(found, Some(None));
                found.flatten()
            };
            let shared = is_global.then(|| Shared {
                prefix: hashing::shared_prefix(&whose, &spec.name),
                on_failure: spec.on_store_failure.unwrap_or(OnStoreFailure::Local),
            });
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
                shared,
            });
            if is_global && !scope.has_store() {
                let message = "no store is given to this installation (--redis), so onStoreFailure decides";
                scope.warn(Problem::warning(at.field("scope"), Reason::PolicyInvalid, message));
            }
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

    /// So that those which are counted in the store are one question.
    fn joined(plans: &[AnyPlan]) -> Option<AnyPlan> {
        let limits = plans.iter().filter_map(AnyPlan::get::<Plan>).flat_map(|plan| plan.0.iter().cloned());
        Some(AnyPlan::new(Plan(limits.collect())))
    }

    fn link(plan: &Plan, keep: &dyn Keep) -> Arc<dyn Filter> {
        // One table: memory is bounded for all of them together.
        let made = keep.state("rateLimits", &mut || Arc::new(Buckets::default()));
        let buckets = made.downcast().expect("only buckets are kept under this name");
        Arc::new(Linked::new(plan.0.clone(), buckets, keep.store()))
    }
}

impl Limit {
    fn policy(&self) -> String {
        format!("\"{}\";q={};w={}", self.name, self.requests, self.per.std().as_millis().div_ceil(1_000))
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
        if let Some(Shared { on_failure, .. }) = &self.shared {
            write!(f, " shared, without store {on_failure:?}")?;
        }
        if let Some(before) = self.before {
            write!(f, " before {before:?}")?;
        }
        f.write_str(if self.dry_run { " dry run" } else { "" })
    }
}
