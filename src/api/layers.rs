//! Specs in layers: the object; each rule; each match; each policy member. What does not parse costs exactly its layer.
//!
//! Invariants: total over any text; whatever the CRD's schema and rules refuse is refused here too (files have no API
//! server); nothing in a result is outside of the limits of the schema.

use std::sync::Arc;

use super::{
    AllowedNamespaces, BackendRef, GatewayBackendSpec, RedirectSpec, RespondSpec, RouteMatch, RouteTls,
};
use crate::values::{FieldPath, Hostname, Problem, Reason};

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
    /// What is effective on the rule, in the order of the registry.
    pub policy: Vec<Arc<PolicyMember>>,
    /// `None` only where `failed` is not.
    pub action: Option<RuleAction>,
    /// The rule is not served but answers 503: `Invalid` or `PolicyInvalid`.
    pub failed: Option<Reason>,
    pub problems: Vec<Problem>,
}

/// A member of `policy` that has the form of its schema; its row compiles it. Rules that inherit it share it.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyMember {
    /// In the registry.
    pub row: usize,
    /// Where it is written: `spec.policy.timeouts`
    pub path: FieldPath,
    pub value: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RuleAction {
    BackendRefs(Vec<BackendRef>),
    Redirect(RedirectSpec),
    Respond(RespondSpec),
}

/// A GatewayBackend's spec: whole or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParsedBackend {
    pub spec: Option<GatewayBackendSpec>,
    pub problems: Vec<Problem>,
}

/// Parses the spec of a GatewayRoute, given as JSON.
pub fn parse_route(spec: &str) -> ParsedRoute {
    let _ = spec;
    ParsedRoute::default()
}

/// Parses the spec of a GatewayBackend, given as JSON.
pub fn parse_backend(spec: &str) -> ParsedBackend {
    let _ = spec;
    ParsedBackend::default()
}
