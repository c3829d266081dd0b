//! Cookies that tell answers apart.
//!
//! Invariant: of a request that a backend may read otherwise than we do nothing is kept, and it is given nothing.

use http::HeaderMap;
use http::header::{self, HeaderName};

use super::key::END;
use crate::filters::CacheKey;

/// The values of all cookies of a name.
pub fn write(bytes: &mut Vec<u8>, headers: &HeaderMap, name: &str) {
    for (_, value) in pairs(headers).filter(|(known, _)| *known == name.as_bytes()) {
        bytes.push(b'=');
        bytes.extend_from_slice(value);
        bytes.push(b';');
    }
    bytes.push(END);
}

/// Names and values of cookies, without the spaces around names: some backends take them off.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = headers.get_all(header::COOKIE).into_iter().flat_map(|line| {
        line.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
    });
    pairs.map(|pair| match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => (pair[..at].trim_ascii(), &pair[at + 1..]),
        None => (pair, &b""[..]),
    })
}

/// Whether a backend may find other cookies than we do, where names tell answers apart: by a name that is none, by a
/// quoted value that does not end where we end it, or by one of the names within a value, behind a sign that some take for
/// the end of one (RFC 2109 has the comma and quotes, others have spaces).
pub fn is_ambiguous(key: &CacheKey, headers: &HeaderMap) -> bool {
    let Some(names) = key.cookies.as_ref().filter(|names| !names.is_empty()) else { return false };
    let is_open = |value: &[u8]| {
        value.first() == Some(&b'"')
            && !(value.len() > 1
                && value.ends_with(b"\"")
                && !value[1..value.len() - 1].iter().any(|byte| matches!(byte, b'"' | b'\\')))
    };
    let is_listed = |part: &[u8]| {
        let name = part.split(|byte| *byte == b'=').next().unwrap_or_default();
        names.iter().any(|known| known.as_bytes() == name)
    };
    let hides_one = |value: &[u8]| {
        let mut parts = value.split(|byte| *byte == b',' || byte.is_ascii_whitespace());
        // What stands first is the value itself.
        parts.next();
        parts.any(is_listed)
    };
    pairs(headers).any(|(name, value)| {
        let value = value.trim_ascii();
        HeaderName::from_bytes(name).is_err() || is_open(value) || hides_one(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::exchange;

    #[test]
    fn what_others_may_read_otherwise_is_seen() {
        let cache = CacheKey { cookies: Some(["session".into()].into()), ..CacheKey::default() };
        let ask = |cookie: &'static str| exchange("http://a.example/", &[("cookie", cookie)]);
        let is_strange = |key: &CacheKey, cookie| is_ambiguous(key, ask(cookie).request.headers());
        for strange in ["ses sion=1", "=1", "a=1; \"session\"=2", "session\t\tx=1", "{session}=1"] {
            assert!(is_strange(&cache, strange), "{strange}");
            assert!(!is_strange(&CacheKey::default(), strange), "no cookie is in the key: {strange}");
        }
        for strange in [
            "a=\"1; session=2; b=3\"",
            "a=\"1\\\"; session=2",
            "a=\"1\"2; session=2",
            "a=\"",
            "$Version=1; a=1, session=2",
            "a=1 session=2",
            "a=1,session",
        ] {
            assert!(is_strange(&cache, strange), "others may read it otherwise: {strange}");
        }
        for plain in [
            "a={\"b\":1,\"c\":2}; session=1",
            "a=Mon, 1 Jan; session=a,b",
            "a=session=1",
            "a=sessions,1",
            "a=\"\"",
        ] {
            assert!(!is_strange(&cache, plain), "{plain}");
        }
        for plain in ["session=1", "session =1", "a=1;;session=\"2\"; ", "session"] {
            assert!(!is_strange(&cache, plain), "{plain}");
        }
    }
}
