//! The layer of policy members: a broken one costs the rules on which it would be effective, no others.

use http::HeaderName;
use serde_json::Value;

use super::PolicyRef;
use super::layers::RuleAction;
use super::policy::DISABLE;
use super::shape::{Findings, Place, Shape, kind_of, unknown_field};
use crate::filters::{Applies, Credential, REGISTRY};
use crate::values::{FieldPath, Problem, Reason};

/// One `policy` as it is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyLayer {
    /// By row, in the order of the registry. `None`: given, but nothing that can be used.
    pub given: Vec<(usize, Option<PolicyMember>)>,
    /// Rows of inherited members that are dropped.
    pub disabled: Vec<usize>,
    /// It holds a member that nobody knows, or is no object: what it asks for cannot be told.
    pub broken: bool,
    /// Fields that it reserves for the gateway, whether it is right otherwise or not.
    pub own_headers: Vec<HeaderName>,
    /// Credentials of clients that it names, by row, right or wrong.
    pub credentials: Vec<(usize, Credential)>,
}

/// A member of `policy` that has the form of its schema; its row compiles it.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyMember {
    /// Where it is written: `spec.policy.timeouts`
    pub path: FieldPath,
    pub value: Value,
}

/// As many as the schema allows.
const MAX_REFERENCES: usize = 16;

/// What is said about `replacePrefix` where there is no prefix to replace.
pub const REPLACE_PREFIX_NEEDS: &str = "replacePrefix needs exactly one match, of type PathPrefix";

impl PolicyMember {
    /// Where it replaces a prefix, which not every rule has.
    pub fn replaces_prefix(&self, row: usize) -> Option<FieldPath> {
        let has = REGISTRY[row].name == "request" && self.value.pointer("/path/replacePrefix").is_some();
        has.then(|| self.path.field("path").field("replacePrefix"))
    }
}

impl PolicyLayer {
    /// Whether the rule that it is written on cannot be served.
    pub fn is_unusable(&self) -> bool {
        self.broken || self.given.iter().any(|(_, member)| member.is_none())
    }
}

/// Reads one `policy`. Everything that is wrong in it is `PolicyInvalid`.
pub(super) fn read(policy: Value, shape: &Shape, at: &FieldPath, problems: &mut Vec<Problem>) -> PolicyLayer {
    let mut refuse = |(path, message): (FieldPath, String)| {
        problems.push(Problem::error(path, Reason::PolicyInvalid, message));
    };
    let Value::Object(mut object) = policy else {
        refuse((at.clone(), format!("found {}, expected an object", kind_of(&policy))));
        return PolicyLayer { broken: true, ..PolicyLayer::default() };
    };
    let mut layer = PolicyLayer::default();
    if let Some(disable) = object.remove(DISABLE).filter(|value| !value.is_null()) {
        match disabled_rows(disable, shape, at) {
            Ok(rows) => layer.disabled = rows,
            Err(wrong) => {
                wrong.into_iter().for_each(&mut refuse);
                layer.broken = true;
            }
        }
    }
    for (name, mut value) in object {
        let place = Place::At(at);
        let place = Place::Field(&place, &name);
        let row = REGISTRY.iter().position(|row| row.name == name);
        let (Some(row), Some(shape)) = (row, shape.at(&name)) else {
            refuse((place.path(), unknown_field(&name, shape.names())));
            layer.broken = true;
            continue;
        };
        layer.own_headers.extend((REGISTRY[row].own_headers)(&value));
        layer.credentials.extend((REGISTRY[row].credentials)(&value).into_iter().map(|one| (row, one)));
        let mut findings = Findings::default();
        shape.check(&mut value, place, &mut findings);
        let wrong: Vec<_> =
            findings.wrong.into_iter().chain(findings.unknown).chain(findings.nulls).collect();
        let mut is_usable = wrong.is_empty();
        wrong.into_iter().for_each(&mut refuse);
        if layer.disabled.contains(&row) {
            refuse((at.field(DISABLE), given_and_disabled(&name)));
            is_usable = false;
        }
        layer.given.push((row, is_usable.then(|| PolicyMember { path: place.path(), value })));
    }
    layer.given.sort_by_key(|(row, _)| *row);
    layer
}

/// Names of policies, as far as they can be read. Where some cannot, the layer is broken; those that can still say which
/// fields clients may not set under the hostname.
pub(super) fn references(
    value: Value,
    shape: &Shape,
    at: &FieldPath,
    layer: &mut PolicyLayer,
    problems: &mut Vec<Problem>,
) -> Vec<(FieldPath, PolicyRef)> {
    // What is unknown is taken out as it is found.
    let mut checked = value.clone();
    let mut findings = Findings::default();
    shape.check(&mut checked, Place::At(at), &mut findings);
    let wrong = findings.wrong.into_iter().chain(findings.unknown);
    let before = problems.len();
    problems.extend(wrong.map(|(path, message)| Problem::error(path, Reason::PolicyInvalid, message)));
    layer.broken |= problems.len() > before;
    let (Value::Array(entries), Some(shape)) = (value, shape.at("[]")) else {
        layer.broken = true;
        return Vec::new();
    };
    let read = |(index, mut entry): (usize, Value)| {
        let (at, mut findings) = (at.index(index), Findings::default());
        shape.check(&mut entry, Place::At(&at), &mut findings);
        let is_whole = findings.wrong.is_empty() && findings.unknown.is_empty();
        let read = serde_json::from_value::<PolicyRef>(entry).ok().filter(|_| is_whole);
        layer.broken |= read.is_none();
        Some((at, read?))
    };
    entries.into_iter().take(MAX_REFERENCES).enumerate().filter_map(read).collect()
}

/// Members that mean nothing for the action of the rule that they are written on.
pub(super) fn refuse_meaningless(
    layer: &mut PolicyLayer,
    action: Option<&RuleAction>,
    at: &FieldPath,
    problems: &mut Vec<Problem>,
) {
    let is_meaningless = |applies| match action {
        Some(RuleAction::Redirect(_) | RuleAction::Respond(_)) => applies != Applies::ToEveryAction,
        Some(RuleAction::Aggregate(_)) => applies == Applies::ToBackendRefs,
        Some(RuleAction::BackendRefs(_)) | None => false,
    };
    for (row, member) in &mut layer.given {
        let row = &REGISTRY[*row];
        if is_meaningless(row.applies) {
            let (path, message) = (at.field(row.name), super::crd::meaningless(row));
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
            *member = None;
        }
        let Some(RuleAction::Aggregate(_)) = action else { continue };
        let Some(given) = member.as_ref().and_then(|member| member.value.as_object()) else { continue };
        let mut told = false;
        for field in row.of_one_request.iter().filter(|field| given.contains_key(**field)) {
            let (path, message) = (at.field(row.name).field(field), super::crd::of_calls(row));
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
            told = true;
        }
        if told {
            *member = None;
        }
    }
}

/// What is said about a member that is both, here and in the schema.
pub(super) fn given_and_disabled(member: &str) -> String {
    format!("{member} is disabled and given; a member that is given replaces the inherited one anyway")
}

fn disabled_rows(
    mut value: Value,
    shape: &Shape,
    at: &FieldPath,
) -> Result<Vec<usize>, Vec<(FieldPath, String)>> {
    let at = at.field(DISABLE);
    let mut findings = Findings::default();
    shape.at(DISABLE).expect("the schema of a policy has it").check(
        &mut value,
        Place::At(&at),
        &mut findings,
    );
    if !findings.wrong.is_empty() {
        return Err(findings.wrong);
    }
    let names = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(names.filter_map(|name| REGISTRY.iter().position(|row| row.name == name)).collect())
}
