//! The layer of policy members: a broken one costs the rules on which it would be effective, no others.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::crd::meaningless;
use super::layers::{PolicyMember, RuleAction};
use super::policy::DISABLE;
use super::shape::{Findings, Place, Shape, kind_of, unknown_field};
use crate::filters::{Applies, REGISTRY};
use crate::values::{FieldPath, Problem, Reason};

/// The members of one `policy`.
#[derive(Default)]
pub(super) struct Members {
    /// By row. `None`: given, but not in the form of its schema.
    by_row: BTreeMap<usize, Option<Arc<PolicyMember>>>,
    /// Holds a member that nobody knows, or is no object: what it asks for cannot be told.
    broken: bool,
}

/// What is effective on one rule.
pub(super) struct Effective {
    /// In the order of the registry.
    pub members: Vec<Arc<PolicyMember>>,
    /// Something that should be effective cannot be used.
    pub failed: bool,
}

/// Reads one `policy`. Everything that is wrong in it is `PolicyInvalid`.
pub(super) fn read(policy: Value, shape: &Shape, at: &FieldPath, problems: &mut Vec<Problem>) -> Members {
    let mut refuse = |(path, message): (FieldPath, String)| {
        problems.push(Problem::error(path, Reason::PolicyInvalid, message));
    };
    let Value::Object(object) = policy else {
        refuse((at.clone(), format!("found {}, expected an object", kind_of(&policy))));
        return Members { broken: true, ..Members::default() };
    };
    let mut members = Members::default();
    for (name, mut value) in object.into_iter().filter(|(_, value)| !value.is_null()) {
        let place = Place::At(at);
        let place = Place::Field(&place, &name);
        let row = REGISTRY.iter().position(|row| row.name == name);
        let (Some(row), Some(shape)) = (row, shape.at(&name)) else {
            refuse((place.path(), unknown_field(&name, shape.names())));
            members.broken = true;
            continue;
        };
        let mut findings = Findings::default();
        shape.check(&mut value, place, &mut findings);
        let is_usable = findings.wrong.is_empty() && findings.unknown.is_empty();
        findings.wrong.into_iter().chain(findings.unknown).for_each(&mut refuse);
        let member = is_usable.then(|| Arc::new(PolicyMember { row, path: place.path(), value }));
        members.by_row.insert(row, member);
    }
    members
}

/// What is effective on a rule that has `own` as its policy. `action` is `None` where it cannot be used.
pub(super) fn effective(
    own: Option<Value>,
    shape: &Shape,
    at: &FieldPath,
    inherited: &Members,
    action: Option<&RuleAction>,
    problems: &mut Vec<Problem>,
) -> Effective {
    let mut own = own.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let disabled =
        own.as_object_mut().and_then(|object| object.remove(DISABLE)).filter(|value| !value.is_null());
    let disabled = match disabled {
        Some(value) => disabled_rows(value, shape, at, problems),
        None => Some(Vec::new()),
    };
    let own = read(own, shape, at, problems);
    let mut failed = own.broken || inherited.broken || disabled.is_none();
    let disabled = disabled.unwrap_or_default();
    let is_meaningless = |row: usize| {
        REGISTRY[row].applies == Applies::ToBackends
            && matches!(action, Some(RuleAction::Redirect(_) | RuleAction::Respond(_)))
    };
    let mut members = Vec::new();
    for (row, name) in REGISTRY.iter().map(|row| row.name).enumerate() {
        let mut refuse = |path, message| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
            failed = true;
        };
        let member = match (own.by_row.get(&row), inherited.by_row.get(&row)) {
            (Some(_), _) if is_meaningless(row) => {
                refuse(at.field(name), meaningless(name));
                continue;
            }
            (Some(_), _) if disabled.contains(&row) => {
                refuse(at.field(DISABLE), given_and_disabled(name));
                continue;
            }
            (Some(own), _) => own,
            (None, Some(inherited)) if !disabled.contains(&row) && !is_meaningless(row) => inherited,
            _ => continue,
        };
        match member {
            Some(member) => members.push(Arc::clone(member)),
            None => failed = true,
        }
    }
    Effective { members, failed }
}

/// What is said about a member that is both, here and in the schema.
pub(super) fn given_and_disabled(member: &str) -> String {
    format!("{member} is disabled and given; a member that is given replaces the inherited one anyway")
}

fn disabled_rows(
    mut value: Value,
    shape: &Shape,
    at: &FieldPath,
    problems: &mut Vec<Problem>,
) -> Option<Vec<usize>> {
    let at = at.field(DISABLE);
    let mut findings = Findings::default();
    shape.at(DISABLE).expect("the schema of a rule has it").check(&mut value, Place::At(&at), &mut findings);
    if !findings.wrong.is_empty() {
        let told = findings.wrong.into_iter();
        problems.extend(told.map(|(path, message)| Problem::error(path, Reason::PolicyInvalid, message)));
        return None;
    }
    let names = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    Some(names.filter_map(|name| REGISTRY.iter().position(|row| row.name == name)).collect())
}
