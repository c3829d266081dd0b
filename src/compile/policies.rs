//! The effective policy of a rule: of all that applies to it, what decides each member.
//!
//! Defaults, the most specific first: the rule, its `policyRefs`, policies on the rule; the route, its `policyRefs`,
//! policies on the route; policies on the namespace, on namespaces by label, on the installation. Overrides the other
//! way round: one that is a setting replaces, one that is a gate is added, so that imposing never weakens.

use std::sync::Arc;

use http::HeaderName;

use super::asking::{Asking, Budget, Holder};
use super::attachment::{Applied, Level};
use super::cached;
use super::gateway_policy::LoweredPolicy;
use super::question::Asker;
use crate::api::{PolicyLayer, Precedence, REPLACE_PREFIX_NEEDS, RuleAction};
use crate::expression::{REQUEST, Read};
use crate::filters::{
    AnyPlan, Applies, CachePlan, Combine, Credential, ErrorsPlan, MirrorPlan, PathChange, REGISTRY,
    RetryPlan, Ring, SessionPlan, TimeoutsPlan,
};
use crate::route_map::{BackendPlan, PolicyBy, PolicyMember, PolicyOrigin};
use crate::values::{FieldPath, PathRewriteSpec, Problem, Reason, Severity};

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
    /// Credentials that it names, by row.
    pub credentials: Vec<(usize, Credential)>,
}

#[derive(Debug, Default)]
pub(super) struct Given {
    /// `None`: it does not compile.
    plan: Option<AnyPlan>,
    /// Where it replaces a prefix, which not every rule has.
    replaces_prefix: Option<FieldPath>,
    /// Backends that it asks by itself.
    asked: Vec<Arc<BackendPlan>>,
    /// What its expressions read, and where.
    reads: Vec<(FieldPath, Read)>,
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
    /// What is read behind the cache, if there is one.
    reads: Vec<(FieldPath, Read)>,
    pub timeouts: TimeoutsPlan,
    /// Backends that its members ask by themselves.
    pub asked: Vec<Arc<BackendPlan>>,
    pub retry: Option<RetryPlan>,
    pub mirror: Option<MirrorPlan>,
    pub sessions: Option<Box<SessionPlan>>,
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

/// Compiles the members of one `policy`.
pub(super) fn compile(
    parsed: &PolicyLayer,
    holder: Holder<'_>,
    asker: &mut Asker<'_>,
    budget: &mut Budget,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut member = |row: usize, member: Option<&crate::api::PolicyMember>| {
        let Some(member) = member else { return Given::default() };
        let mut asking = Asking::new(asker, holder, budget);
        let result = (REGISTRY[row].compile)(&member.value, &mut asking);
        let reads = asking.reads.into_iter().map(|(at, read)| (at.under(&member.path), read)).collect();
        let (mut found, asked, forgiven) = (asking.problems, asking.asked, asking.forgiven);
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
        problems.extend(found.into_iter().chain(forgiven).map(|problem| problem.under(&member.path)));
        Given { plan: plan.filter(|_| !is_wrong), replaces_prefix: member.replaces_prefix(row), asked, reads }
    };
    let given = parsed.given.iter().map(|(row, one)| (*row, member(*row, one.as_ref()))).collect();
    Layer {
        given,
        disabled: parsed.disabled.clone(),
        broken: parsed.broken,
        own_headers: parsed.own_headers.clone(),
        credentials: parsed.credentials.clone(),
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
    let mut asking = Asking::new(asker, holder, budget);
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
        effective.check_cache(self.path);
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
        let has_meaning = match (REGISTRY[row].applies, self.action) {
            (Applies::ToEveryAction, _) | (_, Some(RuleAction::BackendRefs(_)) | None) => true,
            (Applies::ToBackends, Some(RuleAction::Aggregate(_))) => true,
            (Applies::ToBackends | Applies::ToBackendRefs, _) => false,
        };
        if !has_meaning {
            return;
        }
        let default = defaults.iter().find_map(|step| match step.layer.gives(row) {
            Some(given) => Some(Some((given, step.from))),
            None => step.layer.disabled.contains(&row).then_some(None),
        });
        // The strongest level first, and in each the oldest.
        let mut imposed =
            overrides.iter().flatten().filter_map(|step| Some((step.layer.gives(row)?, step.from)));
        match REGISTRY[row].combine {
            Combine::Replace => {
                if let Some((given, from)) = imposed.next().or(default.flatten()) {
                    let kept = defaults.iter().take_while(|step| !step.layer.disabled.contains(&row));
                    let steps = kept.chain(overrides.iter().flatten());
                    let named = steps.flat_map(|step| &step.layer.credentials);
                    let named = named.filter(|(of, _)| *of == row).map(|(_, credential)| credential);
                    self.take(row, given, &named.collect::<Vec<_>>(), from, effective);
                }
            }
            // All that are imposed: two policies may meet in a namespace, and neither gate gives way.
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
                    self.take(row, given, &[], from, effective);
                }
            }
        }
    }

    /// `named`: credentials that the policies name among which it was chosen.
    fn take(
        &self,
        row: usize,
        given: &Given,
        named: &[&Credential],
        from: From<'_>,
        effective: &mut Effective,
    ) {
        let Some(plan) = &given.plan else {
            return self.fail(from, effective);
        };
        let for_calls = match self.action {
            Some(RuleAction::Aggregate(_)) => (REGISTRY[row].for_calls)(plan),
            _ => None,
        };
        let plan = for_calls.as_ref().unwrap_or(plan);
        let instead = (REGISTRY[row].instead_of)(plan, named);
        let plan = instead.as_ref().unwrap_or(plan);
        let replaces_prefix = given.replaces_prefix.as_ref().filter(|_| for_calls.is_none());
        if let Some(path) = replaces_prefix.filter(|_| !self.has_one_prefix) {
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
        if let Some(mirror) = plan.get::<MirrorPlan>() {
            effective.mirror = Some(mirror.clone());
        }
        if let Some(sessions) = plan.get::<SessionPlan>() {
            effective.sessions = Some(Box::new(sessions.clone()));
        }
        if REGISTRY[row].ring > Some(Ring::Cache) {
            let at = |path: &FieldPath| match from {
                From::Rule | From::Route => path.clone(),
                From::Policy { at, .. } => at.clone(),
            };
            effective.reads.extend(given.reads.iter().map(|(path, read)| (at(path), read.clone())));
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
    fn check_cache(&mut self, rule: &FieldPath) {
        let errors = self
            .parts
            .iter()
            .find_map(|part| Some((part.filter.as_ref()?.1.get::<ErrorsPlan>()?, &part.origin)));
        let stale = errors.and_then(|(errors, origin)| Some((errors.serve_stale()?, origin.clone())));
        let place = self
            .parts
            .iter()
            .position(|part| part.filter.as_ref().is_some_and(|(_, plan)| plan.get::<CachePlan>().is_some()));
        let Some(place) = place else {
            if let Some((_, PolicyOrigin::Rule)) = stale {
                let message =
                    "serveStale serves what cache keeps, and this rule has none; add cache to its policy";
                let at = rule.field("policy").field("errors");
                self.problems.push(Problem::warning(at, Reason::PolicyInvalid, message));
            }
            return;
        };
        let Some((_, plan)) = &mut self.parts[place].filter else { return };
        if let Some((serve_stale, _)) = stale
            && let Some(cache) = plan.get::<CachePlan>()
        {
            *plan = AnyPlan::new(CachePlan { serve_stale, ..cache.clone() });
        }
        let Some(cache) = plan.get::<CachePlan>() else { return };
        for (path, read) in &self.reads {
            if let Some(message) = cached::unkeyed(&cache.key, read) {
                self.problems.push(Problem::error(path.clone(), Reason::PolicyInvalid, message));
                self.failed = true;
            }
        }
    }

    fn arrange(&mut self) {
        let ring = |part: &Part| part.filter.as_ref().map(|(ring, _)| *ring);
        self.parts.sort_by_key(|part| (part.row, ring(part)));
        let member = |part: &Part| PolicyMember { row: part.row, origin: part.origin.clone() };
        self.policy = self.parts.iter().map(member).collect();
        self.parts.sort_by_key(|part| (ring(part), part.row));
        for same in self.parts.chunk_by(|one, other| (one.row, ring(one)) == (other.row, ring(other))) {
            let row = same[0].row;
            let mut plans: Vec<_> =
                same.iter().filter_map(|part| Some(part.filter.as_ref()?.1.clone())).collect();
            if plans.len() > 1
                && let Some(joined) = (REGISTRY[row].joined)(&plans)
            {
                plans = vec![joined];
            }
            self.filters.extend(plans.into_iter().map(|plan| (row, plan)));
        }
        self.parts.clear();
    }
}

fn step<'a>(policy: &'a Arc<LoweredPolicy>, by: PolicyBy, at: &'a FieldPath) -> Step<'a> {
    Step { layer: &policy.layer, from: From::Policy { policy, by, at } }
}
