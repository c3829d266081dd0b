//! What runs behind a cache may read of the request only what the cache's key holds: anything else would be answered to
//! others.

use crate::expression::Read;
use crate::filters::CacheKey;

/// What to do about something that is read and not in the key. `None`: it is.
pub(super) fn unkeyed(key: &CacheKey, read: &Read) -> Option<String> {
    let remedy = match (read.variable, read.field) {
        ("request", "method" | "scheme" | "host" | "path") => return None,
        ("request", "query" | "queryValues") => match (&key.query, &read.key) {
            (None, _) => return None,
            (Some(names), Some(name)) if names.contains(name) => return None,
            (_, Some(name)) => format!("add {name} to cache.key.queryParams.include"),
            (_, None) => "read single parameters, or leave cache.key.queryParams out".to_owned(),
        },
        ("request", "headers" | "headerValues") => match &read.key {
            Some(name) if key.headers.iter().any(|known| known.as_str() == &**name) => return None,
            Some(name) if **name == *"cookie" => "cookies can be read only without cache".to_owned(),
            Some(name) => format!("add {name} to cache.key.headers"),
            None => "read single fields, and add them to cache.key.headers".to_owned(),
        },
        ("identity", _) if key.identity => return None,
        ("identity", _) => "add identity to cache.key".to_owned(),
        ("request" | "client", _) => "it cannot be part of a cache's key".to_owned(),
        // What the path matched, and what was answered.
        _ => return None,
    };
    let name = match &read.key {
        Some(name) => format!("{}.{}[{name:?}]", read.variable, read.field),
        None => format!("{}.{}", read.variable, read.field),
    };
    Some(format!("reads {name}, by which the cache does not tell answers apart; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_key_holds_may_be_read_and_nothing_else() {
        let read = |variable, field, key: Option<&str>| Read { variable, field, key: key.map(Into::into) };
        let plain = CacheKey::default();
        let full = CacheKey {
            headers: ["x-a".parse().expect("a name")].into(),
            query: Some(["q".into()].into()),
            identity: true,
            ..CacheKey::default()
        };
        for (one, without, with) in [
            (read("request", "path", None), true, true),
            (read("path", "path", Some("id")), true, true),
            (read("route", "rule", None), true, true),
            (read("response", "body", None), true, true),
            (read("request", "query", None), true, false),
            (read("request", "query", Some("q")), true, true),
            (read("request", "queryValues", Some("p")), true, false),
            (read("request", "headers", Some("x-a")), false, true),
            (read("request", "headers", Some("x-b")), false, false),
            (read("request", "headerValues", None), false, false),
            (read("identity", "id", None), false, true),
            (read("client", "address", None), false, false),
            (read("request", "body", None), false, false),
        ] {
            assert_eq!(unkeyed(&plain, &one).is_none(), without, "{one:?}");
            assert_eq!(unkeyed(&full, &one).is_none(), with, "{one:?}");
        }
        let told = unkeyed(&plain, &read("identity", "id", None)).expect("refused");
        assert_eq!(
            told,
            "reads identity.id, by which the cache does not tell answers apart; add identity to cache.key"
        );
    }
}
