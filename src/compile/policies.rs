//! The effective policy of a rule: of all that applies to it, what decides each member.
//!
//! Defaults, the most specific first: the rule, its `policyRefs`, policies on the rule; the route, its `policyRefs`,
//! policies on the route; policies on the namespace, on namespaces by label, on the installation. Overrides the other
//! way round: one that is a setting replaces, one that is a gate is added, so that imposing never weakens.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;

use super::attachment::{Applied, Level};
use super::backend_refs::{self, Reference};
use super::gateway_policy::LoweredPolicy;
use super::gateway_route::not_permitted;
use super::question::Asker;
use crate::api::{PolicyLayer, Precedence, REPLACE_PREFIX_NEEDS, RuleAction};
use crate::expression::{Environment, Expression, Kind, KnownCalls, REQUEST, Refused, Template};
use crate::filters::{
    AnyPlan, Applies, Combine, Derive, OwnHost, PathChange, REGISTRY, RetryPlan, Ring, Scope, Selection,
    TimeoutsPlan,
};
use crate::route_map::{BackendPlan, PolicyBy, PolicyMember, PolicyOrigin};
use crate::snapshot::{self, Unreadable};
use crate::values::{
    AskedBackendRef, BackendId, ConfigMapKeyRef, FieldPath, LabelSelector, ObjectName, Origin,
    PathRewriteSpec, Problem, Reason, Redacted, SecretData, SecretKeyRef, SecretRef, Severity,
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

/// One `policy`, its members compiled.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// By row, in the order of the registry.
    pub given: Vec<(usize, Given)>,
    pub disabled: Vec<usize>,
    /// What it asks for cannot be told.
    pub broken: bool,
    /// Fields that it reserves for the gateway, whether it compiles or not.
    pub own_headers: Vec<HeaderName>,
}

#[derive(Debug)]
pub(super) struct Given {
    /// `None`: it does not compile.
    plan: Option<AnyPlan>,
    /// Where it replaces a prefix, which not every rule has.
    replaces_prefix: Option<FieldPath>,
    /// Backends that it asks by itself.
    asked: Vec<Arc<BackendPlan>>,
}

/// A policy that `policyRefs` names; `None`: it is not there.
pub(super) type Named = (FieldPath, Option<Arc<LoweredPolicy>>);

/// Everything that applies to one rule.
pub(super) struct Stack<'a> {
    /// `spec.rules[2]`
    pub path: &'a FieldPath,
    pub name: &'a str,
    pub namespace: &'a str,
    pub rule: &'a Layer,
    pub rule_refs: &'a [Named],
    pub route: &'a Layer,
    pub route_refs: &'a [Named],
    pub applied: &'a Applied,
    pub action: Option<&'a RuleAction>,
    pub has_one_prefix: bool,
}

#[derive(Default)]
pub(super) struct Effective {
    pub filters: Vec<(usize, AnyPlan)>,
    pub policy: Vec<PolicyMember>,
    parts: Vec<Part>,
    pub timeouts: TimeoutsPlan,
    /// Backends that its members ask by themselves.
    pub asked: Vec<Arc<BackendPlan>>,
    pub retry: Option<RetryPlan>,
    pub problems: Vec<Problem>,
    /// Something that should be effective cannot be used: the rule is not served.
    pub failed: bool,
}

/// What a member adds to a rule.
struct Part {
    row: usize,
    /// With the filter that it becomes; none: a setting.
    filter: Option<(Ring, AnyPlan)>,
    origin: PolicyOrigin,
}

/// One layer among those that apply.
struct Step<'a> {
    layer: &'a Layer,
    from: From<'a>,
}

#[derive(Clone, Copy)]
enum From<'a> {
    Rule,
    Route,
    Policy { policy: &'a Arc<LoweredPolicy>, by: PolicyBy, at: &'a FieldPath },
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

/// Compiles the members of one `policy`.
pub(super) fn compile(
    parsed: &PolicyLayer,
    holder: Holder<'_>,
    asker: &mut Asker<'_>,
    budget: &mut Budget,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut member = |row: usize, member: Option<&crate::api::PolicyMember>| {
        let Some(member) = member else {
            return Given { plan: None, replaces_prefix: None, asked: Vec::new() };
        };
        let mut asking = Asking {
            asker: &mut *asker,
            holder,
            budget: &mut *budget,
            calls: None,
            asked: Vec::new(),
            problems: Vec::new(),
        };
        let result = (REGISTRY[row].compile)(&member.value, &mut asking);
        let (mut found, asked) = (asking.problems, asking.asked);
        let plan = match result {
            Ok(plan) => Some(plan),
            Err(own) => {
                found.extend(own);
                None
            }
        };
        let is_wrong = found.iter().any(|problem| problem.severity == Severity::Error);
        if plan.is_none() && !is_wrong {
            let name = REGISTRY[row].name;
            let message = format!("{name} cannot be used as it is written; look at what it refers to");
            found.push(Problem::error(FieldPath::default(), Reason::PolicyInvalid, message));
        }
        problems.extend(found.into_iter().map(|problem| problem.under(&member.path)));
        Given { plan: plan.filter(|_| !is_wrong), replaces_prefix: member.replaces_prefix(row), asked }
    };
    let given = parsed.given.iter().map(|(row, one)| (*row, member(*row, one.as_ref()))).collect();
    Layer {
        given,
        disabled: parsed.disabled.clone(),
        broken: parsed.broken,
        own_headers: parsed.own_headers.clone(),
    }
}

/// Proves the `path` of a redirect, which is no policy and has expressions all the same.
pub(super) fn path_change(
    spec: &PathRewriteSpec,
    at: &FieldPath,
    holder: Holder<'_>,
    asker: &mut Asker<'_>,
    budget: &mut Budget,
    problems: &mut Vec<Problem>,
) -> Option<PathChange> {
    let mut asking = Asking { asker, holder, budget, calls: None, asked: Vec::new(), problems: Vec::new() };
    let change = PathChange::new(spec, at, Reason::Invalid, &REQUEST, &mut asking);
    problems.append(&mut asking.problems);
    change.map_err(|problem| problems.extend(problem)).ok()
}

impl Layer {
    pub fn is_empty(&self) -> bool {
        self.given.is_empty() && self.disabled.is_empty() && !self.broken
    }

    pub fn gives(&self, row: usize) -> Option<&Given> {
        self.given.iter().find(|(given, _)| *given == row).map(|(_, given)| given)
    }

    /// Whether any of its members can be used.
    pub fn has_plans(&self) -> bool {
        self.given.iter().any(|(_, given)| given.plan.is_some())
    }
}

impl<'a> Stack<'a> {
    /// What applies where no rule does: policies on the installation, as far as their members mean something there.
    pub fn without_rule(nothing: &'a Layer, nowhere: &'a FieldPath, applied: &'a Applied) -> Self {
        Self {
            path: nowhere,
            name: "",
            namespace: "",
            rule: nothing,
            rule_refs: &[],
            route: nothing,
            route_refs: &[],
            applied,
            action: None,
            has_one_prefix: false,
        }
    }

    /// Of each member, what decides.
    pub fn effective(&self) -> Effective {
        let mut effective = Effective::default();
        if self.is_empty() {
            return effective;
        }
        // What it would have said cannot be told. That it is missing is said where it is looked up.
        effective.failed = self.rule_refs.iter().chain(self.route_refs).any(|(_, policy)| policy.is_none());
        let (defaults, overrides) = (self.defaults(), self.overrides());
        for step in defaults.iter().chain(overrides.iter().flatten()).filter(|step| step.layer.broken) {
            self.fail(step.from, &mut effective);
        }
        for row in 0..REGISTRY.len() {
            self.member(row, &defaults, &overrides, &mut effective);
        }
        effective.arrange();
        effective
    }

    fn is_empty(&self) -> bool {
        self.applied.is_empty()
            && self.rule.is_empty()
            && self.route.is_empty()
            && self.rule_refs.is_empty()
            && self.route_refs.is_empty()
    }

    /// The most specific first.
    fn defaults(&self) -> Vec<Step<'a>> {
        let refs = |refs: &'a [Named], by| {
            refs.iter().filter_map(move |(at, policy)| Some(step(policy.as_ref()?, by, at)))
        };
        let targeting = |level| self.targeting(level, Precedence::Default);
        let mut steps = vec![Step { layer: self.rule, from: From::Rule }];
        steps.extend(refs(self.rule_refs, PolicyBy::RuleRefs));
        steps.extend(targeting(Level::Rule));
        steps.push(Step { layer: self.route, from: From::Route });
        steps.extend(refs(self.route_refs, PolicyBy::RouteRefs));
        steps.extend(targeting(Level::Route));
        steps.extend(targeting(Level::Namespace));
        steps.extend(targeting(Level::Selected));
        steps.extend(targeting(Level::Installation));
        steps
    }

    /// By level, the strongest first.
    fn overrides(&self) -> Vec<Vec<Step<'a>>> {
        [Level::Installation, Level::Selected, Level::Namespace, Level::Route, Level::Rule]
            .map(|level| self.targeting(level, Precedence::Override).collect())
            .into()
    }

    fn targeting(&self, level: Level, precedence: Precedence) -> impl Iterator<Item = Step<'a>> + use<'a> {
        let path = self.path;
        let by = PolicyBy::Target { level: level.word(), imposed: precedence == Precedence::Override };
        let policies = self.applied.at(level, self.name);
        policies
            .filter(move |policy| policy.precedence == precedence)
            .map(move |policy| step(policy, by, path))
    }

    fn member(
        &self,
        row: usize,
        defaults: &[Step<'a>],
        overrides: &[Vec<Step<'a>>],
        effective: &mut Effective,
    ) {
        // Inherited without meaning is ignored; written without meaning was refused.
        let is_forwarded =
            matches!(self.action, Some(RuleAction::BackendRefs(_) | RuleAction::Aggregate(_)) | None);
        if REGISTRY[row].applies == Applies::ToBackends && !is_forwarded {
            return;
        }
        let default = defaults.iter().find_map(|step| match step.layer.gives(row) {
            Some(given) => Some(Some((given, step.from))),
            None => step.layer.disabled.contains(&row).then_some(None),
        });
        // Of two on one target the older wins.
        let mut imposed = overrides
            .iter()
            .filter_map(|level| level.iter().find_map(|step| Some((step.layer.gives(row)?, step.from))));
        match REGISTRY[row].combine {
            Combine::Replace => {
                if let Some((given, from)) = imposed.next().or(default.flatten()) {
                    self.take(row, given, from, effective);
                }
            }
            Combine::Both => {
                let mut taken: Vec<&Arc<LoweredPolicy>> = Vec::new();
                for (given, from) in imposed.chain(default.flatten()) {
                    // One that reaches the rule in two ways is one.
                    if let From::Policy { policy, .. } = from {
                        if taken.iter().any(|known| Arc::ptr_eq(known, policy)) {
                            continue;
                        }
                        taken.push(policy);
                    }
                    self.take(row, given, from, effective);
                }
            }
        }
    }

    fn take(&self, row: usize, given: &Given, from: From<'_>, effective: &mut Effective) {
        let Some(plan) = &given.plan else {
            return self.fail(from, effective);
        };
        if let Some(path) = given.replaces_prefix.as_ref().filter(|_| !self.has_one_prefix) {
            let (path, message) = match from {
                From::Rule | From::Route => (path, REPLACE_PREFIX_NEEDS.to_owned()),
                From::Policy { policy, at, .. } => {
                    (at, format!("{REPLACE_PREFIX_NEEDS}; {} has it", self.word(policy)))
                }
            };
            effective.problems.push(Problem::error(path.clone(), Reason::PolicyInvalid, message));
            effective.failed = true;
            return;
        }
        let origin = match from {
            From::Rule => PolicyOrigin::Rule,
            From::Route => PolicyOrigin::Route,
            From::Policy { policy, by, .. } => PolicyOrigin::Policy { name: policy.name.clone(), by },
        };
        if let Some(timeouts) = plan.get::<TimeoutsPlan>() {
            effective.timeouts = timeouts.clone();
        }
        if let Some(retry) = plan.get::<RetryPlan>() {
            effective.retry = Some(retry.clone());
        }
        let mut filters = (REGISTRY[row].parts)(plan);
        effective.asked.extend(given.asked.iter().cloned());
        let setting = filters.is_empty().then(|| Part { row, filter: None, origin: origin.clone() });
        effective.parts.extend(setting);
        let part = |filter| Part { row, filter: Some(filter), origin: origin.clone() };
        effective.parts.extend(filters.drain(..).map(part));
    }

    /// What is wrong with a rule's own policy is told at the rule already; what comes from elsewhere is told there, and
    /// here that it costs this rule.
    fn fail(&self, from: From<'_>, effective: &mut Effective) {
        effective.failed = true;
        let (at, whose, where_told) = match from {
            From::Rule => return,
            From::Route => (self.path, "spec.policy".to_owned(), "correct it, or replace the member here"),
            From::Policy { policy, at, .. } => (at, self.word(policy), "its own status says why"),
        };
        let message = format!("{whose} applies here and cannot be used, so this answers 503; {where_told}");
        let problem = Problem::error(at.clone(), Reason::PolicyInvalid, message);
        if !effective.problems.contains(&problem) {
            effective.problems.push(problem);
        }
    }

    /// A policy of another namespace is named by that alone.
    fn word(&self, policy: &LoweredPolicy) -> String {
        match *policy.name.namespace == *self.namespace {
            true => format!("GatewayPolicy {}", policy.name),
            false => format!("a GatewayPolicy of namespace {}", policy.name.namespace),
        }
    }
}

impl Effective {
    fn arrange(&mut self) {
        let ring = |part: &Part| part.filter.as_ref().map(|(ring, _)| *ring);
        self.parts.sort_by_key(|part| (part.row, ring(part)));
        let member = |part: &Part| PolicyMember { row: part.row, origin: part.origin.clone() };
        self.policy = self.parts.iter().map(member).collect();
        self.parts.sort_by_key(|part| (ring(part), part.row));
        let filters = std::mem::take(&mut self.parts).into_iter();
        self.filters = filters.filter_map(|part| Some((part.row, part.filter?.1))).collect();
    }
}

fn step<'a>(policy: &'a Arc<LoweredPolicy>, by: PolicyBy, at: &'a FieldPath) -> Step<'a> {
    Step { layer: &policy.layer, from: From::Policy { policy, by, at } }
}

/// What a member asks is asked of the world, in the namespace of the object that holds it.
pub(super) struct Asking<'a, 'w> {
    pub asker: &'a mut Asker<'w>,
    pub holder: Holder<'a>,
    pub budget: &'a mut Budget,
    /// Calls of an aggregation that expressions may name.
    pub calls: Option<KnownCalls>,
    pub asked: Vec<Arc<BackendPlan>>,
    pub problems: Vec<Problem>,
}

impl Asking<'_, '_> {
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
        self.told(at, Expression::parse_among(source, environment, self.calls.as_ref(), wanted))
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
        let reference = Reference {
            kind: backend.kind,
            name: &backend.name,
            namespace: backend.namespace.as_deref(),
            port: backend.port,
        };
        match backend_refs::resolve(&reference, &self.holder.name.namespace, self.asker, &at) {
            Ok(plan) => Some(self.asks(plan)),
            Err((_, problem)) => {
                self.problems.push(problem);
                None
            }
        }
    }

    fn origin(&mut self, origin: &Origin) -> BackendId {
        self.asks(backend_refs::of_origin(origin))
    }

    fn own_host(&self) -> OwnHost {
        self.asker.own_host()
    }

    fn warn(&mut self, problem: Problem) {
        self.problems.push(Problem { severity: Severity::Warning, ..problem });
    }
}
