//! The layers of a GatewayPolicy: each target, each member.

use serde_json::Value;

use super::layers::{SHAPES, checked, object, warn_of_unknown};
use super::layers_policy::{self, PolicyLayer};
use super::shape::{Shape, kind_of};
use super::{PolicyTarget, Precedence, TargetKind};
use crate::values::{FieldPath, NamespaceSelector, Problem, Reason};

/// A GatewayPolicy's spec, as far as it can be used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParsedPolicy {
    /// Those that can be used, with where they stand.
    pub targets: Vec<(FieldPath, PolicyTarget)>,
    /// Something among the targets cannot be read: how far the policy reaches cannot be told.
    pub reach_unknown: bool,
    pub precedence: Precedence,
    pub policy: PolicyLayer,
    pub problems: Vec<Problem>,
}

/// Kinds that a policy will apply to once their objects are served.
const TO_COME: &[&str] = &["Gateway", "HTTPRoute", "GRPCRoute", "Service"];

/// Parses the spec of a GatewayPolicy, given as JSON.
pub fn parse_policy(spec: &str) -> ParsedPolicy {
    let at = FieldPath::new("spec");
    let mut policy = ParsedPolicy::default();
    let mut object = match object(spec) {
        Ok(object) => object,
        Err(message) => {
            policy.problems.push(Problem::error(at, Reason::Invalid, message));
            (policy.reach_unknown, policy.policy.broken) = (true, true);
            return policy;
        }
    };
    let shape = &SHAPES.policy;
    warn_of_unknown(&mut object, shape, &at, &mut policy.problems);
    let of = |name: &str| shape.at(name).expect("the schema has it");
    match object.remove("policy") {
        Some(value) => {
            policy.policy =
                layers_policy::read(value, of("policy"), &at.field("policy"), &mut policy.problems);
        }
        // A name that is misspelt would let everybody in where its members should stand.
        None => {
            policy.problems.push(Problem::error(at.clone(), Reason::Invalid, "policy is missing; add it"));
            policy.policy.broken = true;
        }
    }
    if let Some(mut value) = object.remove("precedence") {
        let read = checked(&mut value, of("precedence"), &at.field("precedence"), &mut policy.problems);
        // Whether it may be replaced cannot be told: wherever it applies, it denies.
        policy.policy.broken |= read.is_none();
        policy.precedence = read.unwrap_or_default();
    }
    if policy.precedence == Precedence::Override && !policy.policy.disabled.is_empty() {
        let message = "disable drops inherited members, so it goes with precedence Default";
        let path = at.field("policy").field("disable");
        policy.problems.push(Problem::error(path, Reason::Invalid, message));
        policy.policy.disabled.clear();
        policy.policy.broken = true;
    }
    if let Some(value) = object.remove("targetRefs") {
        targets(value, of("targetRefs"), &at.field("targetRefs"), &mut policy);
    }
    policy
}

fn targets(value: Value, shape: &Shape, at: &FieldPath, policy: &mut ParsedPolicy) {
    let mut refuse = |message: String| {
        policy.problems.push(Problem::error(at.clone(), Reason::Invalid, message));
        policy.reach_unknown = true;
    };
    let list = match value {
        Value::Array(list) if (1..=16).contains(&list.len()) => list,
        Value::Array(list) => return refuse(format!("found {} entries, expected 1 to 16", list.len())),
        other => return refuse(format!("found {}, expected a list", kind_of(&other))),
    };
    let shape = shape.at("[]").expect("a list has items");
    for (index, mut value) in list.into_iter().enumerate() {
        let at = at.index(index);
        if let Some(kind) = value["kind"].as_str().filter(|kind| TO_COME.contains(kind)) {
            let message = format!(
                "{kind} is not served yet, so nothing of this policy applies there; a target is a Namespace, a GatewayRoute or the Installation"
            );
            policy.problems.push(Problem::error(at.field("kind"), Reason::UnsupportedValue, message));
            continue;
        }
        let before = policy.problems.len();
        let target = checked::<PolicyTarget>(&mut value, shape, &at, &mut policy.problems)
            .and_then(|target| fitting(target, &at, &mut policy.problems));
        // An unknown field may be what narrows the target.
        match target {
            Some(target) if policy.problems.len() == before => policy.targets.push((at, target)),
            _ => policy.reach_unknown = true,
        }
    }
}

/// What the CRD's rules refuse in a target.
fn fitting(target: PolicyTarget, at: &FieldPath, problems: &mut Vec<Problem>) -> Option<PolicyTarget> {
    let is_route = target.kind == TargetKind::GatewayRoute;
    let refused = target.selector.as_ref().and_then(NamespaceSelector::problem);
    let (field, message) = if is_route != target.name.is_some() {
        ("name", "name is required for a GatewayRoute, and not for other kinds".to_owned())
    } else if target.section_name.is_some() && !is_route {
        ("sectionName", "sectionName goes with kind GatewayRoute: it names one of its rules".to_owned())
    } else if target.selector.is_some() && target.kind != TargetKind::Namespace {
        ("selector", "selector goes with kind Namespace".to_owned())
    } else if let Some((_, message)) = refused {
        ("selector", message)
    } else {
        return Some(target);
    };
    problems.push(Problem::error(at.field(field), Reason::Invalid, message));
    None
}
