//! The layer of routes that pass TLS through. Behind their hostnames is no HTTP for us: no request, and so nothing of a
//! policy but who may connect, and how long nothing may move.

use super::crd::{NO_REQUESTS, ON_CONNECTIONS};
use super::layers::{ParsedRoute, RuleAction};
use super::layers_policy::PolicyLayer;
use super::{RouteMatch, TlsMode};
use crate::filters::REGISTRY;
use crate::values::{FieldPath, Problem, Reason, Severity};

impl ParsedRoute {
    /// Whether its backends end TLS themselves.
    pub fn passes_through(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Passthrough)
    }
}

/// Finds what makes no sense in a route that passes TLS through, and gives it the form of one: hostnames, and one rule
/// that takes all.
pub(super) fn restrict(route: &mut ParsedRoute) {
    if !route.passes_through() {
        return;
    }
    let mut problems = Vec::new();
    let mut refuse = |path: FieldPath, reason, message: &str| {
        problems.push(Problem::error(path, reason, message));
    };
    if route.hostnames.as_ref().is_none_or(Vec::is_empty) {
        // Without any it would be the catch-all's.
        route.hostnames = Some(Vec::new());
        refuse(FieldPath::new("spec.hostnames"), Reason::Invalid, NEEDS_HOSTNAMES);
    }
    if route.rules.len() > 1 {
        refuse(FieldPath::new("spec.rules"), Reason::Invalid, ONE_RULE);
    }
    refuse_members(&route.policy, &mut refuse);
    // What is wrong with its `tls` is told already.
    let is_broken = route
        .problems
        .iter()
        .any(|problem| problem.path.as_str().starts_with("spec.tls") && problem.severity == Severity::Error);
    route.rules.truncate(1);
    for rule in &mut route.rules {
        let matches = rule.path.field("matches");
        if rule.matches.iter().any(|(path, _)| *path != matches) {
            refuse(matches.clone(), Reason::Invalid, ONE_RULE);
        }
        // Also of one that cannot be used: no other route answers under its hostnames then.
        rule.matches = vec![(matches, RouteMatch::default())];
        if !matches!(rule.action, Some(RuleAction::BackendRefs(_)) | None) {
            refuse(rule.path.clone(), Reason::Invalid, ONE_RULE);
        }
        refuse_members(&rule.policy, &mut refuse);
    }
    if is_broken || !problems.is_empty() {
        for rule in &mut route.rules {
            rule.failed.get_or_insert(Reason::Invalid);
        }
    }
    route.problems.extend(problems);
}

const NEEDS_HOSTNAMES: &str =
    "a route that passes TLS through needs hostnames: by them its connections are known";
const ONE_RULE: &str =
    "a route that passes TLS through has one rule, with backendRefs and without matches: it sees no requests";

fn refuse_members(layer: &PolicyLayer, refuse: &mut impl FnMut(FieldPath, Reason, &str)) {
    for member in layer.given.iter().filter_map(|(row, member)| Some((REGISTRY[*row].name, member.as_ref()?)))
    {
        match member {
            ("timeouts", timeouts) => {
                for limit in ["request", "backendRequest"] {
                    if timeouts.value.get(limit).is_some() {
                        refuse(timeouts.path.field(limit), Reason::PolicyInvalid, NO_REQUESTS);
                    }
                }
            }
            (name, _) if ON_CONNECTIONS.contains(&name) => {}
            (_, member) => refuse(member.path.clone(), Reason::PolicyInvalid, NO_REQUESTS),
        }
    }
}
