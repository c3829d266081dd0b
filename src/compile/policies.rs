//! The effective policy of a rule: each member compiled by its row, inherited ones once for all rules that share them.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::gateway_route::not_permitted;
use super::question::Asker;
use crate::api::PolicyMember as Written;
use crate::expression::{Environment, Expression, Kind};
use crate::filters::{AnyPlan, Derive, REGISTRY, Scope, Selection, TimeoutsPlan};
use crate::route_map::{PolicyMember, PolicyOrigin};
use crate::values::{
    ConfigMapKeyRef, FieldPath, LabelSelector, ObjectName, Problem, Reason, Redacted, SecretData,
    SecretKeyRef, SecretRef, Severity,
};

/// What one object may hold of expressions.
const MAX_EXPRESSIONS: usize = 256;
const MAX_EXPRESSION_BYTES: usize = 64 << 10;

/// What the rules of one object share.
pub(super) struct Inherited {
    /// Members of `spec.policy` that were compiled already, by their place in memory.
    proven: BTreeMap<usize, Proven>,
    expressions_left: usize,
    expression_bytes_left: usize,
}

impl Default for Inherited {
    fn default() -> Self {
        Self {
            proven: BTreeMap::new(),
            expressions_left: MAX_EXPRESSIONS,
            expression_bytes_left: MAX_EXPRESSION_BYTES,
        }
    }
}

/// A member as its row compiled it, with all that is to be said about it.
pub(super) struct Proven {
    /// Holds the place in memory.
    _member: Arc<Written>,
    plan: Option<AnyPlan>,
    problems: Vec<Problem>,
}

#[derive(Default)]
pub(super) struct Effective {
    pub filters: Vec<(usize, AnyPlan)>,
    pub policy: Vec<PolicyMember>,
    pub timeouts: TimeoutsPlan,
    pub problems: Vec<Problem>,
}

pub(super) fn effective(
    members: &[Arc<Written>],
    inherited: &mut Inherited,
    namespace: &Arc<str>,
    asker: &mut Asker<'_>,
) -> Effective {
    let mut effective = Effective::default();
    for member in members {
        let Some(row) = REGISTRY.get(member.row) else { continue };
        let key = Arc::as_ptr(member).addr();
        let Inherited { proven, expressions_left, expression_bytes_left } = inherited;
        let proven = proven.entry(key).or_insert_with(|| {
            let mut asking = Asking {
                asker: &mut *asker,
                namespace,
                problems: Vec::new(),
                expressions_left,
                expression_bytes_left,
            };
            let result = (row.compile)(&member.value, &mut asking);
            let mut problems = asking.problems;
            let plan = match result {
                Ok(plan) => Some(plan),
                Err(own) => {
                    problems.extend(own);
                    None
                }
            };
            let is_wrong = problems.iter().any(|problem| problem.severity == Severity::Error);
            if plan.is_none() && !is_wrong {
                let message =
                    format!("{} cannot be used as it is written; look at what it refers to", row.name);
                problems.push(Problem::error(FieldPath::default(), Reason::PolicyInvalid, message));
            }
            let problems = problems.into_iter().map(|problem| problem.under(&member.path)).collect();
            Proven { _member: Arc::clone(member), plan: plan.filter(|_| !is_wrong), problems }
        });
        effective.problems.extend(proven.problems.iter().cloned());
        let Some(plan) = proven.plan.clone() else { continue };
        let is_route_wide = member.path.as_str().starts_with("spec.policy");
        let origin = if is_route_wide { PolicyOrigin::Route } else { PolicyOrigin::Rule };
        effective.policy.push(PolicyMember { row: member.row, origin });
        if let Some(timeouts) = plan.get::<TimeoutsPlan>() {
            effective.timeouts = timeouts.clone();
        }
        if row.link.is_some() {
            effective.filters.push((member.row, plan));
        }
    }
    effective.filters.sort_by_key(|(row, _)| (REGISTRY[*row].ring, *row));
    effective.policy.sort_by_key(|member| member.row);
    effective
}

/// What a member asks is asked of the world, in the namespace of the object that holds it.
struct Asking<'a, 'w> {
    asker: &'a mut Asker<'w>,
    namespace: &'a Arc<str>,
    problems: Vec<Problem>,
    expressions_left: &'a mut usize,
    expression_bytes_left: &'a mut usize,
}

impl Asking<'_, '_> {
    fn refuse(&mut self, at: FieldPath, reason: Reason, message: String) {
        self.problems.push(Problem::error(at, reason, message));
    }

    /// The name that a reference means, if it may be used.
    fn named(
        &mut self,
        at: &FieldPath,
        kind: &'static str,
        name: &str,
        namespace: Option<&str>,
    ) -> Option<ObjectName> {
        let namespace = namespace.map_or_else(|| Arc::clone(self.namespace), Into::into);
        let name = ObjectName::new(namespace, name);
        if !self.asker.may_refer(self.namespace, "", kind, &name) {
            self.problems.push(not_permitted(at.clone(), kind, &name));
            return None;
        }
        Some(name)
    }

    /// The value of a key, or of the only one.
    fn value<'d, V>(
        &mut self,
        at: FieldPath,
        object: (&'static str, &ObjectName),
        data: &'d BTreeMap<String, V>,
        key: Option<&str>,
    ) -> Option<&'d V> {
        let (kind, name) = object;
        let reason = if kind == "Secret" { Reason::SecretNotFound } else { Reason::ConfigMapNotFound };
        let found = match key {
            Some(key) => data.get(key),
            None if data.len() == 1 => data.values().next(),
            None => {
                let count = data.len();
                self.refuse(
                    at.field("key"),
                    reason,
                    format!("{kind} {name} has {count} keys; say which one"),
                );
                return None;
            }
        };
        if found.is_none() {
            let key = key.unwrap_or_default();
            let message = format!("{kind} {name} has no key {key}; add it or correct the name");
            self.refuse(at.field("key"), reason, message);
        }
        found
    }
}

impl Scope for Asking<'_, '_> {
    fn secret(&mut self, at: FieldPath, secret: &SecretRef) -> Option<Arc<SecretData>> {
        let name = self.named(&at, "Secret", &secret.name, secret.namespace.as_deref())?;
        let found = self.asker.secret(&name);
        if found.is_none() {
            let message = format!("there is no Secret {name}; create it or correct the name");
            self.refuse(at, Reason::SecretNotFound, message);
        }
        found
    }

    fn secret_key(&mut self, at: FieldPath, secret: &SecretKeyRef) -> Option<Redacted<Vec<u8>>> {
        let reference = SecretRef { name: secret.name.clone(), namespace: secret.namespace.clone() };
        let found = self.secret(at.clone(), &reference)?;
        self.value(at, ("Secret", &found.name), &found.data, secret.key.as_deref()).cloned()
    }

    fn secrets(&mut self, selector: &LabelSelector) -> Selection {
        self.asker.secrets(self.namespace, selector)
    }

    fn config_map(&mut self, at: FieldPath, map: &ConfigMapKeyRef) -> Option<Arc<str>> {
        let name = self.named(&at, "ConfigMap", &map.name, map.namespace.as_deref())?;
        let Some(found) = self.asker.config_map(&name) else {
            let message = format!("there is no ConfigMap {name}; create it or correct the name");
            self.refuse(at, Reason::ConfigMapNotFound, message);
            return None;
        };
        self.value(at, ("ConfigMap", &name), &found.data, map.key.as_deref()).cloned()
    }

    fn derived(&mut self, name: &str, of: &Selection, make: Derive<'_>) -> Arc<dyn Any + Send + Sync> {
        self.asker.gathered().derived(format!("{} {name}", self.namespace), of, make)
    }

    fn expression(
        &mut self,
        at: FieldPath,
        source: &str,
        environment: &'static Environment,
        wanted: Kind,
    ) -> Option<Expression> {
        let left =
            (self.expressions_left.checked_sub(1), self.expression_bytes_left.checked_sub(source.len()));
        let (Some(expressions), Some(bytes)) = left else {
            let message = format!(
                "the object has more than {MAX_EXPRESSIONS} expressions or {MAX_EXPRESSION_BYTES} bytes of them; \
                 split it"
            );
            self.refuse(at, Reason::PolicyInvalid, message);
            return None;
        };
        (*self.expressions_left, *self.expression_bytes_left) = (expressions, bytes);
        match Expression::parse(source, environment, wanted) {
            Ok(expression) => Some(expression),
            Err(refused) => {
                self.refuse(at, Reason::PolicyInvalid, refused.to_string());
                None
            }
        }
    }

    fn warn(&mut self, problem: Problem) {
        self.problems.push(Problem { severity: Severity::Warning, ..problem });
    }
}
