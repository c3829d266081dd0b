//! Credentials that `authentication` names, read from what is written.

use serde_json::Value;

use super::api_key;
use crate::filters::credential::Credential;

/// Those that are named, right or wrong. Certificates are no part of a request.
pub fn named_in(written: &Value) -> Vec<Credential> {
    let mut named = Vec::new();
    let entries = written.get("anyOf").and_then(Value::as_array).into_iter().flatten();
    for (kind, entry) in entries.filter_map(Value::as_object).flatten() {
        match kind.as_str() {
            "apiKey" => named.extend(api_key::places_in(entry).into_iter().map(Credential::Key)),
            "jwt" | "introspection" => named.push(Credential::Token),
            "basicAuth" => named.push(Credential::Password),
            _ => {}
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use serde_json::json;

    use super::*;
    use crate::filters::places::Place;

    #[test]
    fn what_is_named_is_read_as_far_as_it_can_be() {
        let header = |name| Credential::Key(Place::Header(HeaderName::from_static(name)));
        for (written, named) in [
            (json!({"mode": "Disabled"}), vec![]),
            (json!({"anyOf": [{"apiKey": {"secretRef": {"name": "gone"}}}]}), vec![header("x-api-key")]),
            (json!({"anyOf": [{"apiKey": {"from": [], "surprise": 1}}]}), vec![header("x-api-key")]),
            (
                json!({"anyOf": [{"apiKey": {"from": [{"header": "X-Key"}, {"nowhere": 1}, {"query": "key"}]}}]}),
                vec![header("x-key"), Credential::Key(Place::Query("key".into()))],
            ),
            (
                json!({"mode": "Sometimes", "anyOf": [7, {"jwt": {}, "name": "a"}, {"basicAuth": null}, {"introspection": 1}]}),
                vec![Credential::Token, Credential::Password, Credential::Token],
            ),
            (json!({"anyOf": [{"clientCertificate": {}}]}), vec![]),
            (json!({"anyOf": {"apiKey": {}}}), vec![]),
            (json!(null), vec![]),
        ] {
            assert_eq!(named_in(&written), named, "{written}");
        }
    }
}
