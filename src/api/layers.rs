//! Specs in layers: the object; each rule; each match; each policy member. What does not parse costs exactly its layer.
//!
//! Invariants: total over any text; whatever the CRD's schema and rules refuse is refused here too (files have no API
//! server); nothing in a result is outside of the limits of the schema.

use std::sync::LazyLock;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::gateway_route::{BACKENDS_OWN, CERTIFICATES_OR_NOT, VALIDATION_NEEDS_REDIRECT};
use super::layers_passthrough;
use super::layers_policy::{self, PolicyLayer};
use super::layers_rule;
use super::shape::{Findings, Place, Shape, kind_of, unknown_field};
use super::{
    AggregateSpec, AllowedFrom, AllowedNamespaces, AllowedRoutes, BackendCredentials, BackendLimits,
    BackendRateLimit, BackendRef, GatewayBackendSpec, HealthCheck, LoadBalancer, PolicyRef, Protocol,
    RedirectSpec, RespondSpec, RouteMatch, RouteTls, TlsMode, crd,
};
use crate::values::{
    Duration, FieldPath, Hostname, NamespaceSelector, Problem, Reason, SecretRef, TlsVersion,
};

/// A GatewayRoute's spec, as far as it can be used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParsedRoute {
    pub class_name: String,
    /// `None`: none are written, the route answers what no other route names. Entries that cannot be used are left out,
    /// each with its problem: `Some` of nothing serves no host at all.
    pub hostnames: Option<Vec<(FieldPath, Hostname)>>,
    /// Broken `tls` still forbids plain HTTP: it is here without the references that cannot be used.
    pub tls: Option<RouteTls>,
    /// Broken is `None`: nobody else is allowed.
    pub allowed_routes: Option<AllowedNamespaces>,
    pub policy_refs: Vec<(FieldPath, PolicyRef)>,
    pub policy: PolicyLayer,
    /// In order, those that are not installed included.
    pub rules: Vec<ParsedRule>,
    /// About the object itself; those of a rule stand there.
    pub problems: Vec<Problem>,
}

/// One of the rules.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedRule {
    /// In `spec.rules`.
    pub index: usize,
    /// `spec.rules[2]`
    pub path: FieldPath,
    /// What is written, or `rules[2]` where that cannot be used.
    pub name: String,
    /// The usable ones. None are written: one that takes every path. Empty: the rule is not installed.
    pub matches: Vec<(FieldPath, RouteMatch)>,
    pub policy_refs: Vec<(FieldPath, PolicyRef)>,
    pub policy: PolicyLayer,
    /// Whether it has one match, of a prefix: what `replacePrefix` needs.
    pub has_one_prefix: bool,
    /// `None` only where `failed` is not.
    pub action: Option<RuleAction>,
    /// The rule is not served but answers 503: `Invalid` or `PolicyInvalid`.
    pub failed: Option<Reason>,
    pub problems: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RuleAction {
    BackendRefs(Vec<BackendRef>),
    Aggregate(Box<AggregateSpec>),
    Redirect(RedirectSpec),
    Respond(RespondSpec),
}

/// A GatewayBackend's spec: whole or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParsedBackend {
    pub spec: Option<GatewayBackendSpec>,
    pub problems: Vec<Problem>,
}

/// The schemas of the specs.
pub(super) struct Shapes {
    pub route: Shape,
    pub backend: Shape,
    pub policy: Shape,
}

pub(super) static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
    let shape = |crd: &Value| Shape::new(crd::spec_schema(crd)).expect("a test builds them");
    Shapes {
        route: shape(&crd::gateway_route()),
        backend: shape(&crd::gateway_backend()),
        policy: shape(&crd::gateway_policy()),
    }
});

/// Parses the spec of a GatewayRoute, given as JSON.
pub fn parse_route(spec: &str) -> ParsedRoute {
    let at = FieldPath::new("spec");
    let mut route = ParsedRoute { class_name: "portcullis".into(), ..ParsedRoute::default() };
    let mut object = match object(spec) {
        Ok(object) => object,
        Err(message) => {
            route.problems.push(Problem::error(at, Reason::Invalid, message));
            return route;
        }
    };
    let shape = &SHAPES.route;
    warn_of_unknown(&mut object, shape, &at, &mut route.problems);
    let mut layer = Layer { shape, at: &at, problems: &mut route.problems };
    let class = object.remove("className").map(|value| layer.read::<String>("className", value));
    route.hostnames = object.remove("hostnames").map(|value| hostnames(value, &mut layer));
    route.tls = object.remove("tls").map(|value| tls(value, &mut layer));
    route.allowed_routes = object.remove("allowedRoutes").and_then(|value| allowed(value, &mut layer));
    if let Some(policy) = object.remove("policy") {
        let shape = shape.at("policy").expect("the schema has it");
        route.policy = layers_policy::read(policy, shape, &at.field("policy"), layer.problems);
    }
    if let Some(refs) = object.remove("policyRefs") {
        let shape = shape.at("policyRefs").expect("the schema has it");
        let at = at.field("policyRefs");
        route.policy_refs = layers_policy::references(refs, shape, &at, &mut route.policy, layer.problems);
    }
    let rules = rules(object.remove("rules"), &mut layer);
    match class {
        // Whose it is cannot be told: it is served by nobody.
        Some(None) => return route,
        Some(Some(class)) => route.class_name = class,
        None => {}
    }
    let shape = shape.at("rules").and_then(|rules| rules.at("[]")).expect("the schema has it");
    route.rules = layers_rule::parse(rules, shape, &at.field("rules"));
    layers_passthrough::restrict(&mut route);
    route
}

/// Parses the spec of a GatewayBackend, given as JSON.
pub fn parse_backend(spec: &str) -> ParsedBackend {
    let at = FieldPath::new("spec");
    let mut backend = ParsedBackend::default();
    let mut value = match object(spec) {
        Ok(object) => Value::Object(object),
        Err(message) => {
            backend.problems.push(Problem::error(at, Reason::Invalid, message));
            return backend;
        }
    };
    let parsed = checked::<GatewayBackendSpec>(&mut value, &SHAPES.backend, &at, &mut backend.problems);
    // A pin that is misspelt would be no pin: nothing below `tls` and `credentials` is ignored.
    let is_of_trust = |problem: &&mut Problem| {
        let path = problem.path.as_str();
        problem.reason == Reason::UnknownField
            && (path.starts_with("spec.tls.") || path.starts_with("spec.credentials."))
    };
    let mut trust_is_whole = true;
    for problem in backend.problems.iter_mut().filter(is_of_trust) {
        let message = problem.message.trim_end_matches("; ignored");
        *problem = Problem::error(problem.path.clone(), Reason::UnknownField, message);
        trust_is_whole = false;
    }
    let Some(spec) = parsed.filter(|_| trust_is_whole) else { return backend };
    let before = backend.problems.len();
    let mut refuse = |path: FieldPath, message: String| {
        backend.problems.push(Problem::error(path, Reason::Invalid, message));
    };
    if spec.hosts.is_some() == spec.service.is_some() {
        refuse(at.clone(), "a backend has either hosts or a service".into());
    }
    let fits = match spec.protocol {
        Some(Protocol::Http2) => spec.tls.is_some(),
        Some(Protocol::H2c) => spec.tls.is_none(),
        Some(Protocol::Auto | Protocol::Http1) | None => true,
    };
    if !fits {
        refuse(at.field("protocol"), "HTTP2 needs tls, and H2C is without it".into());
    }
    let speaks_http1 = matches!(spec.protocol, None | Some(Protocol::Auto | Protocol::Http1));
    if spec.proxy_protocol.is_some() && !speaks_http1 {
        let message =
            "a PROXY header goes before HTTP/1.1; with proxyProtocol, protocol is HTTP1 or left out";
        refuse(at.field("proxyProtocol"), message.into());
    }
    if let Some(check) = &spec.health_check {
        let at = at.field("healthCheck");
        refuse_times(check, &at, &mut refuse);
        let is_grpc = check.active.as_ref().is_some_and(|active| active.grpc.is_some());
        if is_grpc && spec.protocol == Some(Protocol::Http1) {
            let message = "a check by grpc needs HTTP/2; set protocol to HTTP2 or H2C";
            refuse(at.field("active").field("grpc"), message.into());
        }
    }
    if let Some((field, message)) = spec.load_balancer.as_ref().and_then(LoadBalancer::problem) {
        refuse(at.field("loadBalancer").field(field), message);
    }
    if let Some((field, message)) = spec.rate_limit.as_ref().and_then(BackendRateLimit::problem) {
        refuse(at.field("rateLimit").field(field), message.into());
    }
    if let Some((field, message)) = spec.limits.as_ref().and_then(BackendLimits::problem) {
        let at = at.field("limits");
        refuse(field.map_or_else(|| at.clone(), |field| at.field(field)), message.into());
    }
    if let Some((field, message)) = spec.credentials.as_ref().and_then(BackendCredentials::problem) {
        let at = at.field("credentials");
        refuse(field.map_or_else(|| at.clone(), |field| at.field(field)), message);
    }
    if let Some(tls) = &spec.tls {
        let at = at.field("tls");
        if spec.service.is_some() && tls.server_name.is_none() {
            refuse(at.field("serverName"), "a Service has no name of its own; set tls.serverName".into());
        }
        let is_ip = |name: &Option<String>| {
            name.as_ref().is_some_and(|name| name.parse::<std::net::IpAddr>().is_ok())
        };
        if is_ip(&tls.server_name) {
            refuse(at.field("serverName"), "a server name is a DNS name".into());
        }
        for (index, name) in tls.subject_alt_names.iter().flatten().enumerate() {
            let at = at.field("subjectAltNames").index(index);
            if name.hostname.is_some() == name.uri.is_some() {
                refuse(at.clone(), "a subject alternative name is a hostname or a uri".into());
            }
            if is_ip(&name.hostname) {
                refuse(at.field("hostname"), "a hostname is a DNS name".into());
            }
        }
    }
    for (index, host) in spec.hosts.iter().flatten().enumerate() {
        let name = host.address.strip_suffix('.').unwrap_or(&host.address);
        let is_name = || matches!(name.parse(), Ok(Hostname::Exact(_)));
        if host.address.parse::<std::net::IpAddr>().is_err() && !is_name() {
            let path = at.field("hosts").index(index).field("address");
            let found = super::shape::quoted(&host.address);
            refuse(path, format!("found {found}; an address is an IP address or a DNS name in lower case"));
        }
    }
    backend.spec = (backend.problems.len() == before).then_some(spec);
    backend
}

fn refuse_times(check: &HealthCheck, at: &FieldPath, refuse: &mut impl FnMut(FieldPath, String)) {
    if check.active.is_none() && check.passive.is_none() {
        refuse(at.clone(), "a health check is active, passive or both".into());
    }
    let active = check.active.as_ref();
    let given = [
        ("passive", "ejectFor", check.passive.as_ref().and_then(|passive| passive.eject_for), ("1s", "1h")),
        ("active", "interval", active.and_then(|active| active.interval), ("100ms", "1h")),
        ("active", "timeout", active.and_then(|active| active.timeout), ("10ms", "1m")),
    ];
    for (kind, field, time, (least, most)) in given {
        let bound = |text: &str| text.parse::<Duration>().expect("a duration");
        if let Some(time) = time
            && !(bound(least)..=bound(most)).contains(&time)
        {
            let message = format!("found {time}; from {least} to {most} are possible");
            refuse(at.field(kind).field(field), message);
        }
    }
    let interval = active.and_then(|active| active.interval).unwrap_or(Duration::from_secs(5));
    if active.is_some_and(|active| active.timeout.unwrap_or(Duration::from_secs(1)) > interval) {
        refuse(at.field("active").field("timeout"), "timeout is at most as long as interval".into());
    }
    if active.is_some_and(|active| active.path.is_some() && active.grpc.is_some()) {
        refuse(at.field("active"), "a check is by path or by grpc, not by both".into());
    }
}

pub(super) fn object(spec: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(spec) {
        Ok(Value::Object(mut object)) => {
            object.retain(|_, value| !value.is_null());
            Ok(object)
        }
        Ok(other) => Err(format!("found {}, expected an object", kind_of(&other))),
        Err(error) => Err(format!("the spec cannot be read: {error}")),
    }
}

/// Takes out of `object` what the schema does not know.
pub(super) fn warn_of_unknown(
    object: &mut Map<String, Value>,
    shape: &Shape,
    at: &FieldPath,
    problems: &mut Vec<Problem>,
) {
    let Shape::Object { fields, .. } = shape else { return };
    let mut findings = Findings::default();
    object.retain(|name, _| {
        let known = fields.contains_key(name);
        if !known {
            findings.unknown(Place::Field(&Place::At(at), name), unknown_field(name, fields.keys()));
        }
        known
    });
    warn(findings, problems);
}

/// Tells of unknown fields that cost nothing.
pub(super) fn warn(findings: Findings, problems: &mut Vec<Problem>) {
    problems.extend(
        findings.unknown.into_iter().map(|(path, message)| {
            Problem::warning(path, Reason::UnknownField, format!("{message}; ignored"))
        }),
    );
}

/// Reads a value that fits its schema; tells why not, and of unknown fields.
pub(super) fn checked<T: DeserializeOwned>(
    value: &mut Value,
    shape: &Shape,
    at: &FieldPath,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let mut findings = Findings::default();
    shape.check(value, Place::At(at), &mut findings);
    let is_wrong = !findings.wrong.is_empty();
    let wrong = std::mem::take(&mut findings.wrong).into_iter();
    problems.extend(wrong.map(|(path, message)| Problem::error(path, Reason::Invalid, message)));
    warn(findings, problems);
    if is_wrong {
        return None;
    }
    match T::deserialize(&*value) {
        Ok(read) => Some(read),
        // The schema is made from the type, so this takes a value that only the type refuses.
        Err(error) => {
            problems.push(Problem::error(at.clone(), Reason::Invalid, error.to_string()));
            None
        }
    }
}

/// The object's own layer.
struct Layer<'a> {
    shape: &'a Shape,
    at: &'a FieldPath,
    problems: &'a mut Vec<Problem>,
}

impl Layer<'_> {
    fn read<T: DeserializeOwned>(&mut self, name: &str, mut value: Value) -> Option<T> {
        let shape = self.shape.at(name).expect("the schema has it");
        checked(&mut value, shape, &self.at.field(name), self.problems)
    }

    fn refuse(&mut self, path: FieldPath, message: impl Into<String>) {
        self.problems.push(Problem::error(path, Reason::Invalid, message));
    }
}

fn hostnames(value: Value, layer: &mut Layer<'_>) -> Vec<(FieldPath, Hostname)> {
    let at = layer.at.field("hostnames");
    let Value::Array(list) = value else {
        layer.refuse(at, format!("found {}, expected a list", kind_of(&value)));
        return Vec::new();
    };
    if list.len() > 16 {
        layer.refuse(at, format!("found {} entries, expected at most 16", list.len()));
        return Vec::new();
    }
    let mut names: Vec<(FieldPath, Hostname)> = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let path = at.index(index);
        let Some(text) = value.as_str() else {
            layer.refuse(path, format!("found {}, expected a string", kind_of(value)));
            continue;
        };
        match text.parse::<Hostname>() {
            Ok(name) if names.iter().any(|(_, known)| *known == name) => {
                layer.refuse(path, format!("{text:?} stands here twice; leave one out"));
            }
            Ok(name) => names.push((path, name)),
            Err(error) => layer.refuse(path, error.to_string()),
        }
    }
    names
}

/// Always something: whoever wrote `tls` did not mean plain HTTP.
fn tls(value: Value, layer: &mut Layer<'_>) -> RouteTls {
    let at = layer.at.field("tls");
    let mut tls = RouteTls {
        mode: TlsMode::default(),
        certificate_refs: Vec::new(),
        redirect: true,
        min_version: TlsVersion::default(),
        client_validation: None,
    };
    let Value::Object(mut object) = value else {
        layer.refuse(at, format!("found {}, expected an object", kind_of(&value)));
        return tls;
    };
    // Who wrote its name meant to ask for certificates.
    object.retain(|name, value| !value.is_null() || name == "clientValidation");
    let shape = layer.shape.at("tls").expect("the schema has it");
    // What nobody knows here may be what asks for certificates, misspelled, or for a version.
    let unknown: Vec<_> = object.keys().filter(|name| shape.at(name).is_none()).cloned().collect();
    for name in &unknown {
        object.remove(name);
        layer.refuse(at.field(name), unknown_field(name, shape.names()));
    }
    let is_known = unknown.is_empty();
    let of = |name: &str| shape.at(name).expect("the schema has it");
    if let Some(mut mode) = object.remove("mode") {
        // Who wrote something meant more than the usual: nobody is shown a certificate by mistake.
        let read = checked(&mut mode, of("mode"), &at.field("mode"), layer.problems);
        tls.mode = read.unwrap_or(TlsMode::Passthrough);
    }
    let passes = tls.mode == TlsMode::Passthrough;
    if let Some(mut redirect) = object.remove("redirect") {
        tls.redirect =
            checked(&mut redirect, of("redirect"), &at.field("redirect"), layer.problems).unwrap_or(true);
    }
    if let Some(mut version) = object.remove("minVersion") {
        let read = checked(&mut version, of("minVersion"), &at.field("minVersion"), layer.problems);
        // Who wrote something meant more than the least.
        tls.min_version = read.unwrap_or(TlsVersion::Tls13);
        if passes && tls.min_version != TlsVersion::default() {
            layer.refuse(at.field("minVersion"), BACKENDS_OWN);
        }
    }
    if let Some(mut validation) = object.remove("clientValidation") {
        let at = at.field("clientValidation");
        let read = checked(&mut validation, of("clientValidation"), &at, layer.problems);
        // Without an authority nobody is valid.
        tls.client_validation = Some(read.unwrap_or_default());
        if passes {
            layer.refuse(at.clone(), BACKENDS_OWN);
        }
        if !tls.redirect {
            layer.refuse(at, VALIDATION_NEEDS_REDIRECT);
            tls.redirect = true;
        }
    }
    if !is_known && !passes {
        (tls.redirect, tls.min_version) = (true, TlsVersion::Tls13);
        tls.client_validation.get_or_insert_default();
    }
    let at = at.field("certificateRefs");
    match object.remove("certificateRefs") {
        Some(_) if passes => layer.refuse(at, CERTIFICATES_OR_NOT),
        None if passes => {}
        Some(Value::Array(refs)) if (1..=4).contains(&refs.len()) => {
            let shape = of("certificateRefs").at("[]").expect("the schema has it");
            for (index, mut reference) in refs.into_iter().enumerate() {
                let read = checked::<SecretRef>(&mut reference, shape, &at.index(index), layer.problems);
                tls.certificate_refs.extend(read);
            }
        }
        Some(Value::Array(refs)) => {
            layer.refuse(at, format!("found {} entries, expected 1 to 4", refs.len()));
        }
        Some(other) => layer.refuse(at, format!("found {}, expected a list", kind_of(&other))),
        None => layer.refuse(at, "certificateRefs is missing; name a Secret of type kubernetes.io/tls"),
    }
    tls
}

fn allowed(value: Value, layer: &mut Layer<'_>) -> Option<AllowedNamespaces> {
    let namespaces = layer.read::<AllowedRoutes>("allowedRoutes", value)?.namespaces;
    let at = layer.at.field("allowedRoutes").field("namespaces");
    if (namespaces.from == AllowedFrom::Selector) != namespaces.selector.is_some() {
        layer.refuse(at, "selector goes with from: Selector, and only with it");
        return None;
    }
    if let Some((field, message)) = namespaces.selector.as_ref().and_then(NamespaceSelector::problem) {
        layer.refuse(at.field("selector").field(field), message);
        return None;
    }
    Some(namespaces)
}

fn rules(value: Option<Value>, layer: &mut Layer<'_>) -> Vec<Value> {
    let at = layer.at.field("rules");
    match value {
        Some(Value::Array(rules)) if (1..=64).contains(&rules.len()) => return rules,
        Some(Value::Array(rules)) => {
            layer.refuse(at, format!("found {} entries, expected 1 to 64", rules.len()));
        }
        Some(other) => layer.refuse(at, format!("found {}, expected a list", kind_of(&other))),
        None => layer.refuse(layer.at.clone(), "rules is missing"),
    }
    Vec::new()
}
