//! `apiKey`: keys in Secrets, shown in a header field, a query parameter or a cookie.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::claim_headers::{ClaimHeaders, ClaimToHeader};
use super::entry::{Checked, Entry, EntryKind, Gate, Scheme, fingerprint};
use super::key_table::KeyTable;
use crate::filters::places::{Found, Place, PlaceSpec};
use crate::filters::{Keep, Scope};
use crate::message::{Exchange, Identity, KnownIdentity, Request};
use crate::values::{FieldPath, LabelSelector, Problem, Reason, SecretRef};

pub struct ApiKeys;

/// Keys in Secrets, each with a consumer.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("has(self.secretRef) != has(self.secretSelector)", "give either secretRef or secretSelector")
)]
pub struct Spec {
    /// Where a key can stand, first come first served; the field X-Api-Key by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub from: Vec<PlaceSpec>,
    /// One Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// All Secrets of this namespace with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_selector: Option<LabelSelector>,
    /// The key goes on to the backend.
    #[serde(default)]
    pub forward: bool,
    /// Fields that tell the backend id, scopes or metadata of the consumer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub claims_to_headers: Vec<ClaimToHeader>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    from: Box<[Place]>,
    keys: Arc<KeyTable>,
    forward: bool,
    headers: ClaimHeaders,
}

impl Plan {
    pub fn places(&self) -> &[Place] {
        &self.from
    }
}

impl EntryKind for ApiKeys {
    type Spec = Spec;
    type Plan = Plan;

    fn compile(
        name: &Arc<str>,
        spec: Spec,
        at: &FieldPath,
        scope: &mut dyn Scope,
    ) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let places = spec.from.iter().enumerate();
        let mut from: Vec<_> = places
            .filter_map(|(index, place)| {
                let place = Place::new(place, &FieldPath::new("from").index(index));
                place.map_err(|problem| problems.push(problem)).ok()
            })
            .collect();
        if spec.from.is_empty() {
            from.push(usual_place());
        }
        let headers = ClaimHeaders::new(&spec.claims_to_headers, &mut problems);
        for name in headers.names() {
            if from.contains(&Place::Header(name.clone())) {
                let message = format!("{name} holds the key; tell claims in another field");
                problems.push(Problem::error(
                    FieldPath::new("claimsToHeaders"),
                    Reason::PolicyInvalid,
                    message,
                ));
            }
        }
        for (index, _) in from.iter().enumerate().filter(|(_, place)| matches!(place, Place::Query(_))) {
            scope.warn(Problem::warning(
                at.field("from").index(index),
                Reason::PolicyInvalid,
                "a key in the query stands in logs and histories of others; a header or a cookie does not",
            ));
        }
        let keys = keys(name, &spec, at, scope, &mut problems);
        match keys {
            Some(keys) if problems.is_empty() => {
                Ok(Plan { from: from.into(), keys, forward: spec.forward, headers })
            }
            _ => Err(problems),
        }
    }

    fn link(plan: &Plan, _: &dyn Keep) -> Box<dyn Entry> {
        Box::new(Linked { plan: plan.clone(), clock: SystemTime::now })
    }
}

/// Where keys stand if nothing is said.
fn usual_place() -> Place {
    Place::Header(HeaderName::from_static("x-api-key"))
}

/// Where keys stand, as far as what is written can be read.
pub fn places_in(written: &Value) -> Vec<Place> {
    let from = written.get("from").and_then(Value::as_array).filter(|from| !from.is_empty());
    let Some(from) = from else { return vec![usual_place()] };
    let place = |place: &Value| Place::new(&PlaceSpec::deserialize(place).ok()?, &FieldPath::default()).ok();
    from.iter().filter_map(place).collect()
}

/// `None`: a problem is told.
fn keys(
    name: &Arc<str>,
    spec: &Spec,
    base: &FieldPath,
    scope: &mut dyn Scope,
    problems: &mut Vec<Problem>,
) -> Option<Arc<KeyTable>> {
    let mut refuse = |at: FieldPath, message: &str| {
        problems.push(Problem::error(at, Reason::PolicyInvalid, message));
        None
    };
    match (&spec.secret_ref, &spec.secret_selector) {
        (Some(reference), None) => {
            let at = base.field("secretRef");
            let table = KeyTable::new(name, &[scope.secret(at.clone(), reference)?], None);
            if table.is_empty() {
                let why = table.notes.first().map_or("the Secret has no key; add one", String::as_str);
                return refuse(FieldPath::new("secretRef"), why);
            }
            warn(&table, &at, scope);
            Some(Arc::new(table))
        }
        (None, Some(selector)) => {
            let at = base.field("secretSelector");
            if selector.match_labels.is_empty() {
                return refuse(
                    FieldPath::new("secretSelector.matchLabels"),
                    "without labels it would mean every Secret; give at least one",
                );
            }
            let secrets = scope.secrets(at.clone(), selector);
            let label = format!("apiKey {name} {:?}", selector.match_labels);
            let made = scope.derived(&label, &secrets, &mut |before| {
                Arc::new(KeyTable::new(name, &secrets, before.and_then(KeyTable::of).as_deref()))
            });
            let table = KeyTable::of(made).expect("only a table is made under this name");
            if secrets.is_empty() {
                let message =
                    "no Secret has these labels, so no key is valid; create one or correct the labels";
                scope.warn(Problem::warning(at.clone(), Reason::SecretNotFound, message));
            }
            warn(&table, &at, scope);
            Some(table)
        }
        _ => refuse(FieldPath::default(), "give either secretRef or secretSelector"),
    }
}

fn warn(table: &KeyTable, at: &FieldPath, scope: &mut dyn Scope) {
    for note in &table.notes {
        scope.warn(Problem::warning(at.clone(), Reason::PolicyInvalid, note.as_str()));
    }
}

struct Linked {
    plan: Plan,
    clock: fn() -> SystemTime,
}

impl Entry for Linked {
    fn check(&self, exchange: &Exchange, gate: &Gate<'_>) -> Checked {
        let (headers, uri) = (exchange.request.headers(), exchange.request.uri());
        let key = self.plan.from.iter().find_map(|place| match place.find(headers, uri) {
            Found::Nothing => None,
            Found::One(key) => Some(Some(key)),
            Found::Several => Some(None),
        });
        let key = match key {
            None => return Checked::Absent,
            Some(None) => return Checked::Refused,
            // Whatever the Secrets say: nothing is no key.
            Some(Some(key)) if key.is_empty() => return Checked::Refused,
            Some(Some(key)) => fingerprint(&key),
        };
        if !gate.admits(&key) {
            return Checked::Stopped;
        }
        match self.plan.keys.find(&key) {
            Some(found) if found.expires.is_none_or(|end| seconds(self.clock) < end) => {
                Checked::Known(Identity::new(Arc::clone(&found.identity)), key)
            }
            _ => Checked::Refused,
        }
    }

    fn forwards(&self) -> bool {
        self.plan.forward
    }

    fn place(&self, request: &Request) -> Option<&Place> {
        let (headers, uri) = (request.headers(), request.uri());
        self.plan.from.iter().find(|place| place.find(headers, uri) != Found::Nothing)
    }

    fn strip(&self, request: &mut Request, kept: Option<&Place>) {
        self.plan.from.iter().for_each(|place| place.strip(request, kept));
    }

    fn tell(&self, identity: &KnownIdentity, headers: &mut HeaderMap) {
        self.plan.headers.tell(identity, headers);
    }

    fn scheme(&self) -> Scheme {
        Scheme::ApiKey
    }
}

/// A clock before the epoch tells a time at which nothing has expired yet: better none at all.
fn seconds(clock: fn() -> SystemTime) -> i64 {
    clock()
        .duration_since(UNIX_EPOCH)
        .map_or(i64::MAX, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
