//! What tokens say, read by the types that RFC 7519 and RFC 7662 give it. `None`: a claim is of another type, so that the
//! token does not count; a claim that is not there is `Some(None)`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::entry::{Fingerprint, fingerprint};

pub fn text<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<Option<&'c str>> {
    match claims.get(name) {
        None => Some(None),
        Some(Value::String(text)) => Some(Some(text)),
        Some(_) => None,
    }
}

/// Seconds since the epoch; there may be a fraction (RFC 7519 section 2).
pub fn date(claims: &Map<String, Value>, name: &str) -> Option<Option<f64>> {
    match claims.get(name) {
        None => Some(None),
        Some(Value::Number(number)) => Some(Some(number.as_f64()?)),
        Some(_) => None,
    }
}

/// Whether `aud` is there and holds one of these.
pub fn is_for(claims: &Map<String, Value>, audiences: &[Box<str>]) -> Option<bool> {
    let is_ours = |audience: &str| audiences.iter().any(|ours| **ours == *audience);
    match claims.get("aud") {
        None => Some(false),
        Some(Value::String(one)) => Some(is_ours(one)),
        Some(Value::Array(several)) => {
            let texts: Vec<_> = several.iter().map(Value::as_str).collect::<Option<_>>()?;
            Some(texts.into_iter().any(is_ours))
        }
        Some(_) => None,
    }
}

/// Who a token is about: `sub`, or what tells its holder apart where there is none. Ids of different kinds never look alike,
/// and a token that names nobody is nobody else's.
pub fn id(claims: &Map<String, Value>, token: &Fingerprint) -> Option<Arc<str>> {
    const WITHOUT_SUBJECT: [&str; 2] = ["username", "client_id"];
    let given = |name| Some(text(claims, name)?.filter(|text| !text.is_empty()));
    let is_made = |subject: &str| {
        let kind = subject.split_once(':').map(|(kind, _)| kind);
        kind.is_some_and(|kind| kind == "sub" || kind == "token" || WITHOUT_SUBJECT.contains(&kind))
    };
    match given("sub")? {
        Some(subject) if is_made(subject) => return Some(format!("sub:{subject}").into()),
        Some(subject) => return Some(subject.into()),
        None => {}
    }
    for name in WITHOUT_SUBJECT {
        if let Some(text) = given(name)? {
            return Some(format!("{name}:{text}").into());
        }
    }
    // Not the fingerprint itself, by which it is looked up.
    let digest = fingerprint(&[b"the holder of ", &token[..]].concat());
    Some(format!("token:{}", URL_SAFE_NO_PAD.encode(&digest[..16])).into())
}

/// What may be kept of one token, in bytes of memory: the tables hold thousands.
const MOST_KEPT: usize = 16 << 10;

/// Whether a token's claims are small enough to be kept in a table.
pub fn may_be_kept(claims: &Map<String, Value>) -> bool {
    let mut left = MOST_KEPT;
    claims.iter().all(|(name, value)| takes(name.len(), &mut left) && value_takes(value, &mut left))
}

fn value_takes(value: &Value, left: &mut usize) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => takes(0, left),
        Value::String(text) => takes(text.len(), left),
        Value::Array(items) => takes(0, left) && items.iter().all(|item| value_takes(item, left)),
        Value::Object(members) => {
            takes(0, left)
                && members.iter().all(|(name, value)| takes(name.len(), left) && value_takes(value, left))
        }
    }
}

/// A name or a value, with what it takes besides its text.
fn takes(text: usize, left: &mut usize) -> bool {
    const BESIDES: usize = 40;
    let rest = left.checked_sub(text.saturating_add(BESIDES));
    *left = rest.unwrap_or(0);
    rest.is_some()
}

/// `scope` (RFC 8693) or `scp`, as text or list.
pub fn scopes(claims: &Map<String, Value>) -> Option<Arc<[Box<str>]>> {
    match claims.get("scope").or_else(|| claims.get("scp")) {
        None | Some(Value::Null) => Some(Arc::default()),
        Some(Value::String(text)) => Some(text.split_ascii_whitespace().map(Into::into).collect()),
        Some(Value::Array(list)) => list.iter().map(|one| Some(one.as_str()?.into())).collect(),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id_of(claims: &Value, token: u8) -> Option<String> {
        let Value::Object(claims) = claims else { panic!("no claims") };
        id(claims, &[token; 32]).map(|id| id.to_string())
    }

    #[test]
    fn tokens_of_different_holders_never_have_one_id() {
        let ids: Vec<_> = [
            (json!({"sub": "a", "username": "b"}), Some("a")),
            (json!({"username": "a", "client_id": "b"}), Some("username:a")),
            (json!({"sub": "", "username": "", "client_id": "a"}), Some("client_id:a")),
            (json!({"sub": "client_id:a"}), Some("sub:client_id:a")),
            (json!({"sub": "username:a"}), Some("sub:username:a")),
            (json!({"sub": "sub:client_id:a"}), Some("sub:sub:client_id:a")),
            (json!({"sub": "system:serviceaccount:a"}), Some("system:serviceaccount:a")),
            (json!({"sub": "urn:token:a"}), Some("urn:token:a")),
        ]
        .into_iter()
        .map(|(claims, expected)| {
            assert_eq!(id_of(&claims, 1).as_deref(), expected, "{claims}");
            expected
        })
        .collect();
        let different: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(different.len(), ids.len());
        let nameless = [1, 2].map(|token| id_of(&json!({}), token).expect("an id"));
        assert!(nameless[0].starts_with("token:") && nameless[0] != nameless[1], "{nameless:?}");
        assert_eq!(id_of(&json!({}), 1).as_ref(), Some(&nameless[0]), "the same for the same");
        assert_eq!(id_of(&json!({"sub": nameless[0]}), 2), Some(format!("sub:{}", nameless[0])));
        assert_eq!(id_of(&json!({"sub": 7}), 1), None);
        assert_eq!(id_of(&json!({"username": {}}), 1), None);
    }

    #[test]
    fn what_is_kept_of_a_token_is_bounded() {
        let kept = |claims: Value| may_be_kept(claims.as_object().expect("claims"));
        let groups: Vec<_> = (0..100).map(|number| format!("a group of people {number}")).collect();
        assert!(kept(json!({"sub": "alice", "groups": groups, "a": {"b": [1, null, true]}})));
        assert!(!kept(json!({"a": "x".repeat(MOST_KEPT)})));
        assert!(!kept(json!({"x".repeat(MOST_KEPT): 1})));
        assert!(!kept(json!({"a": vec![0; 500]})));
        assert!(!kept(json!({"a": [[[vec![json!({}); 500]]]]})));
        assert!(!kept(json!({"a": {"b": {"c": "x".repeat(MOST_KEPT)}}})));
    }
}
