//! What a member of a policy may ask while it is compiled, and what its object may hold of expressions.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend_refs::{self, Reference};
use super::gateway_route::not_permitted;
use super::question::Asker;
use crate::expression::{Environment, Expression, Kind, KnownCalls, Read, Refused, Template};
use crate::filters::{Derive, OwnHost, Scope, Selection};
use crate::route_map::BackendPlan;
use crate::snapshot::{self, Unreadable};
use crate::values::{
    AskedBackendRef, BackendId, ConfigMapKeyRef, FieldPath, LabelSelector, ObjectName, Origin, Problem,
    Reason, Redacted, SecretData, SecretKeyRef, SecretRef, Severity,
};

/// What one object may hold of expressions.
const MAX_EXPRESSIONS: usize = 256;
const MAX_EXPRESSION_BYTES: usize = 64 << 10;

/// What is left to one object.
pub(super) struct Budget {
    expressions_left: usize,
    expression_bytes_left: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { expressions_left: MAX_EXPRESSIONS, expression_bytes_left: MAX_EXPRESSION_BYTES }
    }
}

/// What holds a `policy`.
#[derive(Clone, Copy)]
pub(super) struct Holder<'a> {
    pub kind: &'static str,
    /// References resolve in its namespace.
    pub name: &'a ObjectName,
    /// `None`: the policy of the whole object.
    pub rule: Option<&'a str>,
}

/// What a member asks is asked of the world, in the namespace of the object that holds it.
pub(super) struct Asking<'a, 'w> {
    pub asker: &'a mut Asker<'w>,
    holder: Holder<'a>,
    budget: &'a mut Budget,
    /// Calls of an aggregation that expressions may name.
    pub calls: Option<KnownCalls>,
    /// Backends that the member asks by itself.
    pub asked: Vec<Arc<BackendPlan>>,
    pub problems: Vec<Problem>,
    /// What is wrong and costs the member nothing.
    pub forgiven: Vec<Problem>,
    /// What expressions read, and where they stand in the member.
    pub reads: Vec<(FieldPath, Read)>,
}

impl<'a, 'w> Asking<'a, 'w> {
    pub fn new(asker: &'a mut Asker<'w>, holder: Holder<'a>, budget: &'a mut Budget) -> Self {
        let (asked, problems, forgiven, reads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { asker, holder, budget, calls: None, asked, problems, forgiven, reads }
    }

    fn notes(&mut self, at: &FieldPath, reads: Vec<Read>) {
        self.reads.extend(reads.into_iter().map(|read| (at.clone(), read)));
    }

    /// Takes expressions off the object's budget.
    fn spend(&mut self, at: &FieldPath, expressions: usize, bytes: usize) -> Option<()> {
        let Budget { expressions_left, expression_bytes_left } = &*self.budget;
        let left = (expressions_left.checked_sub(expressions), expression_bytes_left.checked_sub(bytes));
        let (Some(expressions_left), Some(expression_bytes_left)) = left else {
            let message = format!(
                "the object has more than {MAX_EXPRESSIONS} expressions or {MAX_EXPRESSION_BYTES} bytes of them; \
                 split it"
            );
            self.refuse(at.clone(), Reason::PolicyInvalid, message);
            return None;
        };
        *self.budget = Budget { expressions_left, expression_bytes_left };
        Some(())
    }

    fn told<T>(&mut self, at: FieldPath, parsed: Result<T, Refused>) -> Option<T> {
        parsed.map_err(|refused| self.refuse(at, Reason::PolicyInvalid, refused.to_string())).ok()
    }

    fn refuse(&mut self, at: FieldPath, reason: Reason, message: String) {
        self.problems.push(Problem::error(at, reason, message));
    }

    /// From now on the backend is part of what is served wherever the member is.
    fn asks(&mut self, plan: Arc<BackendPlan>) -> BackendId {
        let id = plan.id.clone();
        self.asked.push(plan);
        id
    }

    /// The name that a reference means, if it may be used.
    fn named(
        &mut self,
        at: &FieldPath,
        kind: &'static str,
        name: &str,
        namespace: Option<&str>,
    ) -> Option<ObjectName> {
        let namespace = namespace.map_or_else(|| self.holder.name.namespace.clone(), Into::into);
        let name = ObjectName::new(namespace, name);
        if !self.asker.may_refer(&self.holder.name.namespace, "", kind, &name) {
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

impl Asking<'_, '_> {
    fn resolve(&mut self, at: &FieldPath, backend: &AskedBackendRef) -> Option<Arc<BackendPlan>> {
        let reference = Reference {
            kind: backend.kind,
            name: &backend.name,
            namespace: backend.namespace.as_deref(),
            port: backend.port,
        };
        let resolved = backend_refs::resolve(&reference, &self.holder.name.namespace, self.asker, at);
        resolved.map_err(|(_, problem)| self.problems.push(problem)).ok()
    }
}

impl Scope for Asking<'_, '_> {
    fn secret(&mut self, at: FieldPath, secret: &SecretRef) -> Option<Arc<SecretData>> {
        let name = self.named(&at, "Secret", &secret.name, secret.namespace.as_deref())?;
        let found = self.asker.secret(&name);
        if found.is_none() {
            let (reason, message) = self.asker.why_not(snapshot::Kind::Secret, &name);
            self.refuse(at, reason, message);
        }
        found
    }

    fn secret_key(&mut self, at: FieldPath, secret: &SecretKeyRef) -> Option<Redacted<Vec<u8>>> {
        let reference = SecretRef { name: secret.name.clone(), namespace: secret.namespace.clone() };
        let found = self.secret(at.clone(), &reference)?;
        self.value(at, ("Secret", &found.name), &found.data, secret.key.as_deref()).cloned()
    }

    fn secrets(&mut self, at: FieldPath, selector: &LabelSelector) -> Selection {
        let namespace = Arc::clone(&self.holder.name.namespace);
        if self.asker.is_unreadable(Unreadable::Labelled(Arc::clone(&namespace), selector.clone())) {
            let message = format!(
                "the gateway may not list the Secrets of namespace {namespace}, so it cannot find any by label; name one \
                 by secretRef, or let its service account list them (the chart's rbac.secrets)"
            );
            self.refuse(at, Reason::RefNotPermitted, message);
        }
        self.asker.secrets(&namespace, selector)
    }

    fn config_map(&mut self, at: FieldPath, map: &ConfigMapKeyRef) -> Option<Arc<str>> {
        let name = self.named(&at, "ConfigMap", &map.name, map.namespace.as_deref())?;
        let Some(found) = self.asker.config_map(&name) else {
            let (reason, message) = self.asker.why_not(snapshot::Kind::ConfigMap, &name);
            self.refuse(at, reason, message);
            return None;
        };
        self.value(at, ("ConfigMap", &name), &found.data, map.key.as_deref()).cloned()
    }

    fn derived(&mut self, name: &str, of: &Selection, make: Derive<'_>) -> Arc<dyn Any + Send + Sync> {
        self.asker.gathered().derived(format!("{} {name}", self.holder.name.namespace), of, make)
    }

    fn expression(
        &mut self,
        at: FieldPath,
        source: &str,
        environment: &'static Environment,
        wanted: Kind,
    ) -> Option<Expression> {
        self.spend(&at, 1, source.len())?;
        let expression =
            self.told(at.clone(), Expression::parse_among(source, environment, self.calls.as_ref(), wanted))?;
        self.notes(&at, expression.what_it_reads());
        Some(expression)
    }

    fn template(
        &mut self,
        at: FieldPath,
        source: &str,
        environment: &'static Environment,
    ) -> Option<Template> {
        self.spend(&at, 0, source.len())?;
        let template =
            self.told(at.clone(), Template::parse_among(source, environment, self.calls.as_ref()))?;
        self.spend(&at, template.expressions(), 0)?;
        self.notes(&at, template.what_it_reads());
        Some(template)
    }

    fn holder(&self) -> String {
        let Holder { kind, name, rule } = self.holder;
        format!("{kind} {name} {}", rule.unwrap_or_default())
    }

    fn has_store(&self) -> bool {
        self.asker.has_store()
    }

    fn backend(&mut self, at: FieldPath, backend: &AskedBackendRef) -> Option<BackendId> {
        let plan = self.resolve(&at, backend)?;
        Some(self.asks(plan))
    }

    fn trusted_backend(&mut self, at: FieldPath, backend: &AskedBackendRef) -> Option<BackendId> {
        let plan = self.resolve(&at, backend)?;
        if let Some(host) = backend_refs::outside_in_the_clear(&plan) {
            self.problems.push(backend_refs::in_the_clear(&at, &host));
            return None;
        }
        Some(self.asks(plan))
    }

    fn dispensable_backend(&mut self, at: FieldPath, backend: &AskedBackendRef) -> Option<BackendId> {
        let before = self.problems.len();
        let found = self.backend(at, backend);
        self.forgiven.extend(self.problems.drain(before..));
        found
    }

    fn origin(&mut self, origin: &Origin) -> BackendId {
        self.asks(backend_refs::of_origin(origin))
    }

    fn own_host(&self) -> OwnHost {
        self.asker.own_host()
    }

    fn permits(&self, host: &str) -> Result<(), String> {
        self.asker.permits(host)
    }

    fn warn(&mut self, problem: Problem) {
        self.problems.push(Problem { severity: Severity::Warning, ..problem });
    }
}
