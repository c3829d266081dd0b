//! GatewayRoute → lowered route: everything that can be decided about it alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;

use super::aggregate;
use super::asking::{Asking, Budget, Holder};
use super::attachment::Applied;
use super::backend_refs::{self, Reference};
use super::certificates;
use super::client_validation::{self, Written};
use super::conditions;
use super::gateway_policy::LoweredPolicy;
use super::passthrough;
use super::policies::{self, Effective, Layer, Named, Stack};
use super::question::{Asked, Asker, Known};
use super::{Certificates, Options};
use crate::api::{
    self, AggregateSpec, AllowedNamespaces, BackendRef, HeaderMatch, ParsedRoute, ParsedRule, PathMatchType,
    PolicyLayer, PolicyRef, RedirectSpec, RespondSpec, RouteMatch, RouteTls, RuleAction, TlsMode,
    ValueMatchType,
};
use crate::filters::{RetryPlan, TimeoutsPlan};
use crate::message::{ErrorKind, Labels, Scheme};
use crate::route_map::{
    Action, AggregatePlan, BackendPlan, CertificatePlan, ClientValidation, Comparison, ForwardPlan,
    HeaderPredicate, MatchPlan, NamedPredicate, PathChange, PathPredicate, PatternText, Predicates,
    RedirectPlan, RespondPlan, Rule, Template, Unserved, WeightedBackend, WeightedTarget,
};
use crate::snapshot::{Kind, Manifest, TLS_SECRET};
use crate::values::{BackendId, FieldPath, Hostname, ObjectName, Problem, Reason, TlsVersion};

/// What one object may spend on regular expressions, in bytes of their text.
const REGEX_BUDGET: usize = 32 << 10;

/// A route alone. `None` in the memo's place: another class.
#[derive(Debug)]
pub(super) struct LoweredRoute {
    pub hostnames: Option<Vec<(FieldPath, Hostname)>>,
    pub tls: Option<Box<LoweredTls>>,
    pub allowed: Option<Box<AllowedNamespaces>>,
    pub rules: Vec<LoweredRule>,
    /// Every backend that its rules resolve to, in the order of their ids.
    pub backends: Box<[Arc<BackendPlan>]>,
    /// Fingerprint of the GatewayPolicies that apply to it.
    pub policies: u64,
    /// Fields that its policies reserve for the gateway, also those of rules that are not served.
    pub own_headers: Box<[HeaderName]>,
    /// All of the object itself and of its rules, in the order of their paths.
    pub problems: Vec<Problem>,
}

impl LoweredRoute {
    /// Whether it answers anything at all. One that does not changes nothing for others.
    pub fn is_installed(&self) -> bool {
        self.rules.iter().any(|rule| !rule.matches.is_empty())
    }

    /// Whether its backends end TLS themselves. It has one rule then, at most.
    pub fn passes_through(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Passthrough)
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct LoweredTls {
    pub mode: TlsMode,
    pub certificates: Vec<Arc<CertificatePlan>>,
    pub unusable: Vec<ObjectName>,
    /// What is named, whether it is there or not.
    pub named: Vec<ObjectName>,
    pub redirect: bool,
    pub min_version: TlsVersion,
    pub client: ClientValidation,
    pub client_written: Option<Written>,
    /// Fingerprint of what clients are shown.
    pub print: u64,
}

impl LoweredTls {
    /// Whether backends are told of the certificates that clients show.
    pub fn tells_of_clients(&self) -> bool {
        self.client_written.as_ref().is_some_and(Written::forwards)
    }
}

#[derive(Debug)]
pub(super) struct LoweredRule {
    pub index: usize,
    pub rule: Arc<Rule>,
    /// Empty: not installed.
    pub matches: Vec<Arc<MatchPlan>>,
}

impl LoweredRule {
    pub fn name(&self) -> &Arc<str> {
        &self.rule.labels.rule
    }

    pub fn path(&self) -> FieldPath {
        FieldPath::new("spec.rules").index(self.index)
    }
}

/// A route with what it asked.
pub(super) struct RouteUnit {
    pub manifest: Arc<Manifest>,
    pub asked: Asked,
    /// The policies that targeted it when it was lowered.
    pub applied: Applied,
    /// `None`: of another class.
    pub lowered: Option<Arc<LoweredRoute>>,
}

impl RouteUnit {
    pub fn new(
        manifest: &Arc<Manifest>,
        known: Known<'_>,
        options: &Options,
        certificates: &mut Certificates,
    ) -> Self {
        let mut asker = Asker::new(Kind::GatewayRoute, known);
        let applied = asker.applied(&manifest.name);
        let parsed = api::parse_route(&manifest.spec);
        let lowered = (*parsed.class_name == *options.class_name).then(|| {
            let lowering = Lowering {
                manifest,
                asker: &mut asker,
                certificates,
                applied: &applied,
                backends: BTreeMap::new(),
                problems: Vec::new(),
                own_headers: Vec::new(),
                regex_left: REGEX_BUDGET,
                passes_through: false,
                budget: Budget::default(),
            };
            Arc::new(lowering.run(parsed))
        });
        Self { manifest: Arc::clone(manifest), asked: asker.finish(), applied, lowered }
    }

    /// Whether lowering again would give the same.
    pub fn stands(&self, manifest: &Arc<Manifest>, known: Known<'_>) -> bool {
        super::lowers_alike(&self.manifest, manifest)
            && self.asked.stands(known)
            && self.applied.same(&known.index.applied(&manifest.name))
    }
}

/// What a route says for all of its rules.
struct RoutePolicy {
    layer: Layer,
    refs: Vec<Named>,
}

struct Lowering<'a, 'w> {
    manifest: &'a Manifest,
    asker: &'a mut Asker<'w>,
    certificates: &'a mut Certificates,
    applied: &'a Applied,
    backends: BTreeMap<BackendId, Arc<BackendPlan>>,
    problems: Vec<Problem>,
    own_headers: Vec<HeaderName>,
    regex_left: usize,
    /// TLS is passed through.
    passes_through: bool,
    budget: Budget,
}

impl Lowering<'_, '_> {
    fn run(mut self, parsed: ParsedRoute) -> LoweredRoute {
        self.passes_through = parsed.passes_through();
        let ParsedRoute { hostnames, tls, allowed_routes, policy_refs, policy, rules, problems, .. } = parsed;
        self.problems = problems;
        let hostnames = hostnames.map(|mut names| {
            // What is read from JSON has room for more.
            names.shrink_to_fit();
            names
        });
        let tls = tls.map(|tls| Box::new(self.tls(&tls, hostnames.as_deref())));
        let route = RoutePolicy { layer: self.layer(&policy, None), refs: self.named(policy_refs) };
        let mut named: Vec<Arc<LoweredPolicy>> = Vec::new();
        // Not `collect`, which would keep the room that rules took as they were read.
        let mut lowered = Vec::with_capacity(rules.len());
        lowered.extend(rules.into_iter().map(|rule| self.rule(rule, &route, &mut named)));
        named.extend(route.refs.into_iter().filter_map(|(_, policy)| policy));
        let policies = match named.is_empty() && self.applied.is_empty() {
            true => 0,
            false => conditions::print_of(self.applied.all().chain(&named)),
        };
        for policy in self.applied.all().chain(&named) {
            self.own_headers.extend_from_slice(&policy.layer.own_headers);
        }
        self.problems.sort();
        self.problems.dedup();
        LoweredRoute {
            hostnames,
            tls,
            allowed: allowed_routes.map(Box::new),
            rules: lowered,
            backends: self.backends.into_values().collect(),
            policies,
            own_headers: self.own_headers.into(),
            problems: self.problems,
        }
    }

    fn layer(&mut self, policy: &PolicyLayer, rule: Option<&str>) -> Layer {
        self.own_headers.extend_from_slice(&policy.own_headers);
        let holder = Holder { kind: "GatewayRoute", name: &self.manifest.name, rule };
        policies::compile(policy, holder, self.asker, &mut self.budget, &mut self.problems)
    }

    fn named(&mut self, refs: Vec<(FieldPath, PolicyRef)>) -> Vec<Named> {
        let mut named = Vec::with_capacity(refs.len());
        for (path, reference) in refs {
            let name = ObjectName::new(self.manifest.name.namespace.clone(), reference.name);
            let policy = self.asker.policy(&name);
            if policy.is_none() {
                let message = format!("there is no GatewayPolicy {name}; create it or correct the name");
                self.problems.push(Problem::error(path.clone(), Reason::PolicyNotFound, message));
            }
            named.push((path, policy));
        }
        named
    }

    fn tls(&mut self, tls: &RouteTls, hostnames: Option<&[(FieldPath, Hostname)]>) -> LoweredTls {
        let base = FieldPath::new("spec.tls.certificateRefs");
        let (mut proven, mut unusable, mut named) = (Vec::new(), Vec::new(), Vec::new());
        for (index, secret) in tls.certificate_refs.iter().enumerate() {
            let path = base.index(index);
            let namespace: Arc<str> =
                secret.namespace.as_deref().map_or_else(|| self.manifest.name.namespace.clone(), Into::into);
            let name = ObjectName::new(namespace, secret.name.as_str());
            named.push(name.clone());
            if !self.asker.may_refer(&self.manifest.name.namespace, "", "Secret", &name) {
                self.problems.push(not_permitted(path, "Secret", &name));
                continue;
            }
            let Some(data) = self.asker.secret(&name).filter(|secret| &*secret.kind == TLS_SECRET) else {
                let (reason, message) = self.asker.no_certificate(&name);
                self.problems.push(Problem::error(path, reason, message));
                continue;
            };
            match self.certificates.prove(&data) {
                Ok(plan) => proven.push(plan),
                Err(message) => {
                    self.problems.push(Problem::error(
                        path,
                        Reason::InvalidCertificate,
                        format!(
                            "Secret {name}: {message}; until then replicas go on with the certificate that they served of it before, and those that served none refuse handshakes"
                        ),
                    ));
                    unusable.push(name);
                }
            }
        }
        if unusable.is_empty() && !proven.is_empty() {
            for (path, hostname) in hostnames.unwrap_or_default() {
                if !proven.iter().any(|plan| certificates::covers(&plan.names, hostname)) {
                    let message = format!(
                        "no certificate of spec.tls covers {hostname}; clients will refuse the connection"
                    );
                    self.problems.push(Problem::warning(path.clone(), Reason::InvalidCertificate, message));
                }
            }
        }
        let (mode, redirect, min_version) = (tls.mode, tls.redirect, tls.min_version);
        let (mut client, mut client_written) = (ClientValidation::None, None);
        if let Some(spec) = &tls.client_validation {
            let namespace = &self.manifest.name.namespace;
            let (written, validation) =
                client_validation::lower(spec, namespace, self.asker, self.certificates, &mut self.problems);
            (client, client_written) = (validation, Some(written));
        }
        let print = conditions::tls_print(&proven, &unusable, redirect, min_version, &client);
        LoweredTls {
            mode,
            certificates: proven,
            unusable,
            named,
            redirect,
            min_version,
            client,
            client_written,
            print,
        }
    }

    fn rule(
        &mut self,
        parsed: ParsedRule,
        route: &RoutePolicy,
        named: &mut Vec<Arc<LoweredPolicy>>,
    ) -> LoweredRule {
        self.problems.extend(parsed.problems);
        let mut failed = parsed.failed.map(|reason| match reason {
            Reason::PolicyInvalid => ErrorKind::PolicyInvalid,
            _ => ErrorKind::RuleInvalid,
        });
        let mut matches = Vec::with_capacity(parsed.matches.len());
        for (path, spec) in &parsed.matches {
            match self.match_plan(spec, path) {
                Ok(plan) => matches.push(Arc::new(plan)),
                Err(problem) => {
                    self.problems.push(problem);
                    failed.get_or_insert(ErrorKind::RuleInvalid);
                }
            }
        }
        let labels = Arc::new(Labels {
            namespace: self.manifest.name.namespace.clone(),
            route: self.manifest.name.name.clone(),
            rule: parsed.name.as_str().into(),
        });
        let layer = self.layer(&parsed.policy, Some(&parsed.name));
        let rule_refs = self.named(parsed.policy_refs);
        let stack = Stack {
            path: &parsed.path,
            name: &parsed.name,
            namespace: &self.manifest.name.namespace,
            rule: &layer,
            rule_refs: &rule_refs,
            route: &route.layer,
            route_refs: &route.refs,
            applied: self.applied,
            action: parsed.action.as_ref(),
            has_one_prefix: parsed.has_one_prefix,
        };
        let mut effective = stack.effective();
        if self.passes_through
            && let Some(problem) = passthrough::keep(&mut effective, &parsed.path)
        {
            effective.problems.push(problem);
            effective.failed = true;
        }
        let cannot_be_used = effective.failed;
        let Effective { filters, policy, timeouts, retry, mirror, sessions, asked, problems, .. } = effective;
        if cannot_be_used {
            failed.get_or_insert(ErrorKind::PolicyInvalid);
        }
        self.problems.extend(problems);
        named.extend(rule_refs.into_iter().filter_map(|(_, policy)| policy));
        let prefixes_only = matches.iter().all(|plan| matches!(plan.path(), PathPredicate::Prefix(_)));
        let action = match parsed.action {
            Some(RuleAction::BackendRefs(refs)) => {
                let path = parsed.path.field("backendRefs");
                let mut backends = Vec::with_capacity(refs.len());
                let those = refs.iter().enumerate();
                backends.extend(those.filter_map(|(i, backend)| self.weighted(backend, path.index(i))));
                let (retry, mirror) = (retry.map(Box::new), mirror.map(Box::new));
                Some(Action::Forward(ForwardPlan { backends, timeouts, retry, mirror, sessions }))
            }
            Some(RuleAction::Aggregate(spec)) => self
                .aggregate(&spec, &parsed.path.field("aggregate"), (timeouts, retry))
                .map(Action::Aggregate),
            Some(RuleAction::Redirect(spec)) => {
                self.redirect(&spec, &parsed.path.field("redirect"), prefixes_only).map(Action::Redirect)
            }
            Some(RuleAction::Respond(spec)) => Some(Action::Respond(respond(&spec))),
            None => None,
        };
        let action = match (failed, action) {
            (None, Some(action)) => action,
            (kind, _) => Action::Unserved(Unserved { kind: kind.unwrap_or(ErrorKind::RuleInvalid) }),
        };
        // A rule that is not served runs no filter either.
        let (filters, asked) = match action {
            Action::Unserved(_) => (Vec::new(), Vec::new()),
            _ => (filters, asked),
        };
        for plan in asked {
            self.install(plan);
        }
        LoweredRule { index: parsed.index, rule: Arc::new(Rule { labels, filters, action, policy }), matches }
    }

    fn match_plan(&mut self, spec: &RouteMatch, base: &FieldPath) -> Result<MatchPlan, Problem> {
        let path = match &spec.path {
            None => PathPredicate::prefix("/").map_err(|error| invalid(base.field("path"), &error))?,
            Some(path) => {
                let at = base.field("path").field("value");
                match path.kind {
                    PathMatchType::Exact => {
                        PathPredicate::exact(&path.value).map_err(|error| invalid(at, &error))?
                    }
                    PathMatchType::PathPrefix => {
                        PathPredicate::prefix(&path.value).map_err(|error| invalid(at, &error))?
                    }
                    PathMatchType::PathTemplate => PathPredicate::Template(
                        Template::parse(&path.value).map_err(|error| invalid(at, &error))?,
                    ),
                    PathMatchType::RegularExpression => PathPredicate::Regex(self.pattern(&path.value, at)?),
                }
            }
        };
        let mut predicates = Predicates::default();
        let methods =
            spec.methods.iter().enumerate().map(|(i, method)| (base.field("methods").index(i), method));
        for (at, method) in methods.chain(spec.method.iter().map(|method| (base.field("method"), method))) {
            let method = http::Method::from_bytes(method.as_bytes()).map_err(|error| invalid(at, &error))?;
            predicates.methods.push(method);
        }
        for (i, header) in spec.headers.iter().enumerate() {
            let at = base.field("headers").index(i);
            predicates.headers.push(self.header(header, &at)?);
        }
        for (i, param) in spec.query_params.iter().enumerate() {
            let at = base.field("queryParams").index(i);
            let value = self.comparison(param.kind, &param.value, at.field("value"))?;
            predicates.query_params.push(NamedPredicate { name: param.name.as_str().into(), value });
        }
        for (i, cookie) in spec.cookies.iter().enumerate() {
            let at = base.field("cookies").index(i);
            let value = self.comparison(cookie.kind, &cookie.value, at.field("value"))?;
            predicates.cookies.push(NamedPredicate { name: cookie.name.as_str().into(), value });
        }
        Ok(MatchPlan::new(path, predicates))
    }

    fn header(&mut self, header: &HeaderMatch, at: &FieldPath) -> Result<HeaderPredicate, Problem> {
        let name = http::HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|error| invalid(at.field("name"), &error))?;
        let value = self.comparison(header.kind, &header.value, at.field("value"))?;
        Ok(HeaderPredicate { name, value })
    }

    fn comparison(
        &mut self,
        kind: ValueMatchType,
        value: &str,
        at: FieldPath,
    ) -> Result<Comparison, Problem> {
        match kind {
            ValueMatchType::Exact => Ok(Comparison::Exact(value.into())),
            ValueMatchType::RegularExpression => self.pattern(value, at).map(Comparison::Regex),
        }
    }

    fn pattern(&mut self, text: &str, at: FieldPath) -> Result<PatternText, Problem> {
        let Some(left) = self.regex_left.checked_sub(text.len()) else {
            let message = format!(
                "the regular expressions of this object have more than {REGEX_BUDGET} bytes together; split the object"
            );
            return Err(Problem::error(at, Reason::UnsupportedValue, message));
        };
        self.regex_left = left;
        PatternText::new(text).map_err(|error| {
            let reason = error.lines().last().unwrap_or_default().trim();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            Problem::error(
                at,
                Reason::UnsupportedValue,
                format!("not a regular expression that is supported: {reason}"),
            )
        })
    }

    /// `None`: weight 0.
    fn weighted(&mut self, backend: &BackendRef, at: FieldPath) -> Option<WeightedBackend> {
        let target = match self.target(backend, &at) {
            Ok(id) => WeightedTarget::Backend(id),
            Err((kind, problem)) => {
                self.problems.push(problem);
                WeightedTarget::Unresolved(kind)
            }
        };
        (backend.weight > 0).then_some(WeightedBackend { weight: backend.weight, target })
    }

    /// What it leads to, or what the rule answers in its place and why.
    fn target(&mut self, backend: &BackendRef, at: &FieldPath) -> Result<BackendId, (ErrorKind, Problem)> {
        let reference = Reference {
            kind: backend.kind,
            name: &backend.name,
            namespace: backend.namespace.as_deref(),
            port: backend.port,
        };
        let plan = backend_refs::resolve(&reference, &self.manifest.name.namespace, self.asker, at)?;
        if let Some(message) = passthrough::unfit(&plan).filter(|_| self.passes_through) {
            let problem = Problem::error(at.clone(), Reason::UnsupportedValue, message);
            return Err((ErrorKind::PolicyInvalid, problem));
        }
        if let Some(message) = passthrough::ignored(&plan).filter(|_| self.passes_through) {
            self.problems.push(Problem::warning(at.clone(), Reason::UnsupportedValue, message));
        }
        Ok(self.install(plan))
    }

    /// From now on the backend is part of what is served.
    fn install(&mut self, plan: Arc<BackendPlan>) -> BackendId {
        let plan = self.certificates.one_of(plan);
        let id = plan.id.clone();
        self.backends.entry(id.clone()).or_insert(plan);
        id
    }

    fn aggregate(
        &mut self,
        spec: &AggregateSpec,
        at: &FieldPath,
        inherited: (TimeoutsPlan, Option<RetryPlan>),
    ) -> Option<Box<AggregatePlan>> {
        let holder = Holder { kind: "GatewayRoute", name: &self.manifest.name, rule: None };
        let asking = Asking::new(self.asker, holder, &mut self.budget);
        let lowered = aggregate::lower(spec, at, &self.manifest.name.namespace, inherited, asking);
        self.problems.extend(lowered.problems);
        let plan = lowered.plan?;
        for backend in lowered.backends {
            self.install(backend);
        }
        Some(Box::new(plan))
    }

    fn redirect(&mut self, spec: &RedirectSpec, at: &FieldPath, prefixes_only: bool) -> Option<RedirectPlan> {
        let mut path = None;
        if let Some(spec) = &spec.path {
            let holder = Holder { kind: "GatewayRoute", name: &self.manifest.name, rule: None };
            let (asker, budget) = (&mut *self.asker, &mut self.budget);
            let at = at.field("path");
            path = Some(policies::path_change(spec, &at, holder, asker, budget, &mut self.problems)?);
        }
        if path.as_ref().is_some_and(PathChange::replaces_prefix) && !prefixes_only {
            let message =
                "replacePrefix needs matches of type PathPrefix only; use replaceFull or split the rule";
            self.problems.push(Problem::error(
                at.field("path").field("replacePrefix"),
                Reason::Invalid,
                message,
            ));
            return None;
        }
        let scheme = match spec.scheme.as_deref() {
            None => None,
            Some("http") => Some(Scheme::Http),
            Some("https") => Some(Scheme::Https),
            Some(other) => {
                let message = format!("{other} is not a scheme for a redirect; write http or https");
                self.problems.push(Problem::error(at.field("scheme"), Reason::UnsupportedValue, message));
                return None;
            }
        };
        let hostname = spec.hostname.as_deref().map(|name| name.to_ascii_lowercase().into());
        Some(RedirectPlan { scheme, hostname, port: spec.port, path, status: spec.status_code })
    }
}

fn respond(spec: &RespondSpec) -> RespondPlan {
    let body = spec.text.clone().unwrap_or_default();
    let content_type =
        spec.content_type.as_deref().or(spec.text.as_ref().map(|_| "text/plain; charset=utf-8"));
    RespondPlan { status: spec.status, content_type: content_type.map(Into::into), body: body.into() }
}

fn invalid(at: FieldPath, error: &dyn std::fmt::Display) -> Problem {
    Problem::error(at, Reason::Invalid, error.to_string())
}

/// The same whether the object exists or not.
pub(super) fn not_permitted(at: FieldPath, kind: &str, name: &ObjectName) -> Problem {
    let message = format!(
        "{kind} {name} is in another namespace and no ReferenceGrant there allows it; create one or move the object"
    );
    Problem::error(at, Reason::RefNotPermitted, message)
}
