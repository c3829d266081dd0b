//! GatewayPolicy → lowered policy: its targets, as far as it may name them, and its members, compiled once for all
//! routes that they apply to.

use std::sync::Arc;

use super::Options;
use super::asking::{Budget, Holder};
use super::policies::{self, Layer};
use super::question::Asker;
use crate::api::{self, PolicyTarget, Precedence, TargetKind};
use crate::snapshot::Manifest;
use crate::values::{FieldPath, NamespaceSelector, ObjectName, Problem, Reason};

/// A policy alone.
#[derive(Debug)]
pub(super) struct LoweredPolicy {
    pub name: ObjectName,
    pub created: Option<i64>,
    pub spec: Arc<str>,
    pub precedence: Precedence,
    /// Those that it may name.
    pub targets: Vec<(FieldPath, Target)>,
    /// It names targets, and none of them counts.
    pub misses_all: bool,
    pub layer: Layer,
    pub problems: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    /// Its own namespace.
    Namespace,
    Selected(NamespaceSelector),
    Route {
        name: Arc<str>,
        rule: Option<Arc<str>>,
    },
    Installation,
}

pub(super) fn lower(manifest: &Manifest, options: &Options, asker: &mut Asker<'_>) -> LoweredPolicy {
    let parsed = api::parse_policy(&manifest.spec);
    let namespace = &manifest.name.namespace;
    let holder = Holder { kind: "GatewayPolicy", name: &manifest.name, rule: None };
    let mut problems = parsed.problems;
    let mut layer = policies::compile(&parsed.policy, holder, asker, &mut Budget::default(), &mut problems);
    let mut targets = Vec::with_capacity(parsed.targets.len());
    let named = parsed.targets.len();
    let owns = *options.namespace == **namespace;
    for (path, target) in parsed.targets {
        match permitted(target, owns) {
            Ok(target) => targets.push((path, target)),
            Err(what) => {
                let message = format!(
                    "{what} is a target for policies in the installation's own namespace only, which {namespace} is not; move the policy or name another target"
                );
                problems.push(Problem::error(path, Reason::TargetNotPermitted, message));
            }
        }
    }
    let has_unserved = problems.iter().any(|problem| problem.reason == Reason::UnsupportedValue);
    let misses_all = targets.is_empty() && (named > 0 || has_unserved) && !parsed.reach_unknown;
    if parsed.reach_unknown {
        // It denies as far as it may reach in any case.
        layer.broken = true;
        targets.push((FieldPath::new("spec.targetRefs"), Target::Namespace));
    }
    problems.sort();
    problems.dedup();
    LoweredPolicy {
        name: manifest.name.clone(),
        created: manifest.created,
        spec: manifest.spec.clone(),
        precedence: parsed.precedence,
        targets,
        misses_all,
        layer,
        problems,
    }
}

fn permitted(target: PolicyTarget, owns: bool) -> Result<Target, &'static str> {
    match (target.kind, target.selector) {
        (TargetKind::Installation, _) if !owns => Err("Installation"),
        (TargetKind::Installation, _) => Ok(Target::Installation),
        (TargetKind::Namespace, Some(_)) if !owns => Err("a Namespace with a selector"),
        (TargetKind::Namespace, Some(selector)) => Ok(Target::Selected(selector)),
        (TargetKind::Namespace, None) => Ok(Target::Namespace),
        (TargetKind::GatewayRoute, _) => Ok(Target::Route {
            name: target.name.unwrap_or_default().into(),
            rule: target.section_name.map(Into::into),
        }),
    }
}

impl LoweredPolicy {
    /// The oldest first; without a timestamp the name decides.
    pub fn age(&self) -> (i64, &ObjectName) {
        (self.created.unwrap_or(i64::MAX), &self.name)
    }

    /// Whether some of it is in force, were it alone.
    pub fn is_usable(&self) -> bool {
        !self.layer.broken && !self.misses_all && (self.layer.given.is_empty() || self.layer.has_plans())
    }
}
