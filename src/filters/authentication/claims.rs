//! What tokens say, read by the types that RFC 7519 and RFC 7662 give it. `None`: a claim is of another type, so that the
//! token does not count; a claim that is not there is `Some(None)`.

use std::sync::Arc;

use serde_json::{Map, Value};

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

/// `scope` (RFC 8693) or `scp`, as text or list.
pub fn scopes(claims: &Map<String, Value>) -> Option<Arc<[Box<str>]>> {
    match claims.get("scope").or_else(|| claims.get("scp")) {
        None | Some(Value::Null) => Some(Arc::default()),
        Some(Value::String(text)) => Some(text.split_ascii_whitespace().map(Into::into).collect()),
        Some(Value::Array(list)) => list.iter().map(|one| Some(one.as_str()?.into())).collect(),
        Some(_) => None,
    }
}
