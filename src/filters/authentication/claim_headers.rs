//! `claimsToHeaders`: who the client is, told to the backend in fields that only the gateway may set.

use http::{HeaderMap, HeaderName, HeaderValue};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::filters::header_edits::may_be_reserved;
use crate::message::KnownIdentity;
use crate::values::{FieldPath, Problem, Reason, plain_name};

/// What a claim may bring into a field.
const MAX_VALUE: usize = 4 << 10;

/// A claim, and the field that tells it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimToHeader {
    /// Name of the claim or of a piece of metadata; id and scopes are always there.
    #[schemars(length(min = 1, max = 256))]
    pub claim: String,
    /// Name of the field; clients cannot set it themselves.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$"))]
    pub header: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimHeaders(Box<[(Box<str>, HeaderName)]>);

impl ClaimHeaders {
    pub fn new(specs: &[ClaimToHeader], problems: &mut Vec<Problem>) -> Self {
        let mut proven: Vec<(Box<str>, HeaderName)> = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            let at = FieldPath::new("claimsToHeaders").index(index).field("header");
            let header = spec.header.as_str();
            let message = match HeaderName::try_from(header) {
                Ok(name) if !may_be_told(&name) => {
                    format!("{header} is not a claim's to set; take another name")
                }
                Ok(name) if proven.iter().any(|(_, known)| *known == name) => {
                    format!("{header} is set here already; leave one out")
                }
                Ok(name) => {
                    proven.push((spec.claim.as_str().into(), name));
                    continue;
                }
                Err(_) => format!("found {header:?}, expected the name of a header field"),
            };
            problems.push(Problem::error(at, Reason::PolicyInvalid, message));
        }
        Self(proven.into())
    }

    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|(_, name)| name)
    }

    /// A claim that is not there, or that no field can hold, leaves its field out.
    pub fn tell(&self, identity: &KnownIdentity, headers: &mut HeaderMap) {
        for (claim, name) in &self.0 {
            match text(identity, claim).and_then(|text| value(&text)) {
                Some(value) => drop(headers.insert(name, value)),
                None => drop(headers.remove(name)),
            }
        }
    }
}

/// The fields that an entry names as it is written, right or wrong.
pub fn named_in(entry: &Value) -> impl Iterator<Item = HeaderName> {
    let claims = entry.get("claimsToHeaders").and_then(Value::as_array).into_iter().flatten();
    let names = claims.filter_map(|claim| HeaderName::try_from(claim.get("header")?.as_str()?).ok());
    names.filter(may_be_told)
}

/// What stands behind `X-Forwarded-` is said of the client's way, not of the client.
fn may_be_told(name: &HeaderName) -> bool {
    may_be_reserved(name) && !plain_name(name.as_str()).starts_with("x-forwarded-")
}

fn text(identity: &KnownIdentity, claim: &str) -> Option<String> {
    match (identity.claims.get(claim), claim) {
        (Some(Value::Null), _) => None,
        (Some(Value::String(text)), _) => Some(text.clone()),
        (Some(Value::Array(items)), _) if items.iter().all(Value::is_string) => {
            joined(items.iter().filter_map(Value::as_str), ',')
        }
        (Some(other), _) => Some(other.to_string()),
        (None, "id") => Some(identity.id.as_ref().to_owned()),
        (None, "scopes") => joined(identity.scopes.iter().map(AsRef::as_ref), ' '),
        (None, _) => None,
    }
}

/// `None`: whoever takes it apart again would find other items.
fn joined<'i>(mut items: impl Iterator<Item = &'i str> + Clone, by: char) -> Option<String> {
    let is_one = |item: &str| !item.is_empty() && item.trim() == item && !item.contains(by);
    items.clone().all(is_one).then(|| {
        let mut text = items.next().unwrap_or_default().to_owned();
        for item in items {
            text.push(by);
            text.push_str(item);
        }
        text
    })
}

fn value(text: &str) -> Option<HeaderValue> {
    let is_plain = text.trim() == text && text.len() <= MAX_VALUE;
    HeaderValue::from_str(text)
        .or_else(|_| HeaderValue::from_bytes(text.as_bytes()))
        .ok()
        .filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::message::IdentityKind;

    fn told(claims: Value) -> Vec<String> {
        told_with(&["a", "b"], claims)
    }

    fn told_with(scopes: &[&str], claims: Value) -> Vec<String> {
        let Value::Object(claims) = claims else { panic!("no claims") };
        let identity = KnownIdentity {
            kind: IdentityKind::Jwt,
            entry: "users".into(),
            issuer: "".into(),
            id: "alice".into(),
            scopes: scopes.iter().map(|scope| (*scope).into()).collect(),
            claims: Arc::new(claims),
        };
        let spec = ["id", "scopes", "x"]
            .map(|claim| ClaimToHeader { claim: claim.into(), header: format!("x-{claim}") });
        let mut headers = HeaderMap::new();
        let mut problems = Vec::new();
        ClaimHeaders::new(&spec, &mut problems).tell(&identity, &mut headers);
        assert_eq!(problems, []);
        headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect()
    }

    #[test]
    fn claims_become_fields_as_far_as_a_field_can_hold_them() {
        for (claims, last) in [
            (json!({"x": "text"}), Some("x-x: text")),
            (json!({"x": ["a", "b c"]}), Some("x-x: a,b c")),
            (json!({"x": []}), Some("x-x: ")),
            (json!({"x": ["a", "b,root"]}), None),
            (json!({"x": ["a,b"]}), None),
            (json!({"x": ["a", ""]}), None),
            (json!({"x": ["a", " b"]}), None),
            (json!({"x": ["a", 1]}), Some("x-x: [\"a\",1]")),
            (json!({"x": 7}), Some("x-x: 7")),
            (json!({"x": {"a": true}}), Some("x-x: {\"a\":true}")),
            (json!({"x": "ä"}), Some("x-x: ä")),
            (json!({"x": null}), None),
            (json!({"x": "a\r\nx-admin: 1"}), None),
            (json!({"x": " a"}), None),
            (json!({"x": "a".repeat(5_000)}), None),
            (json!({}), None),
        ] {
            let mut expected = vec!["x-id: alice".to_owned(), "x-scopes: a b".to_owned()];
            expected.extend(last.map(str::to_owned));
            assert_eq!(told(claims), expected);
        }
    }

    #[test]
    fn a_scope_that_looks_like_two_is_not_told() {
        assert_eq!(told_with(&["a", "b root"], json!({})), ["x-id: alice"]);
        assert_eq!(told_with(&["a", ""], json!({})), ["x-id: alice"]);
    }

    #[test]
    fn fields_of_the_connection_are_no_place_for_claims() {
        let spec =
            ["Host", "X-A", "x-a", "Transfer-Encoding", "content_length", "Authorization", "x.forwarded.for"]
                .map(|header| ClaimToHeader { claim: "a".into(), header: header.into() });
        let mut problems = Vec::new();
        ClaimHeaders::new(&spec, &mut problems);
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, [0, 2, 3, 4, 5, 6].map(|index| format!("claimsToHeaders[{index}].header")));
    }
}
