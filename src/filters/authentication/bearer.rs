//! The bearer token of a request (RFC 6750 section 2.1), found in `Authorization` and nowhere else.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::filters::credential::{after_scheme, strip_scheme};
use crate::filters::places::Place;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearer<'r> {
    /// No credential of this kind.
    Nothing,
    /// One that is no token, or more than one field.
    Malformed,
    Token(&'r str),
}

/// What the request shows.
pub fn find(headers: &HeaderMap) -> Bearer<'_> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let (Some(first), second) = (fields.next(), fields.next()) else { return Bearer::Nothing };
    if second.is_some() {
        let all = headers.get_all(AUTHORIZATION).iter();
        let any = all.map(http::HeaderValue::as_bytes).any(|field| after_scheme(field, b"bearer").is_some());
        return if any { Bearer::Malformed } else { Bearer::Nothing };
    }
    let Some(rest) = after_scheme(first.as_bytes(), b"bearer") else { return Bearer::Nothing };
    let token = rest.trim_ascii_start();
    match std::str::from_utf8(token) {
        Ok(text) if !text.is_empty() && text.bytes().all(is_of_a_token) => Bearer::Token(text),
        _ => Bearer::Malformed,
    }
}

/// Takes `Authorization` away where it shows a bearer token, unless it is `kept`.
pub fn strip(headers: &mut HeaderMap, kept: Option<&Place>) {
    strip_scheme(headers, b"bearer", kept);
}

/// `b64token` without its padding, which no form of ours has.
const fn is_of_a_token(sign: u8) -> bool {
    sign.is_ascii_alphanumeric() || matches!(sign, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=')
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn found(fields: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(field.as_bytes()).expect("a value"));
        }
        format!("{:?}", find(&headers))
    }

    #[test]
    fn a_token_is_found_behind_its_scheme() {
        for (fields, expected) in [
            (&["Bearer a.b-c_d"][..], "Token(\"a.b-c_d\")"),
            (&["bEARER   x"], "Token(\"x\")"),
            (&["Bearer"], "Malformed"),
            (&["Bearer a b"], "Malformed"),
            (&["Bearer a, Bearer b"], "Malformed"),
            (&["Bearer ä"], "Malformed"),
            (&["Bearer \"a\""], "Malformed"),
            (&["Bearer a", "Bearer a"], "Malformed"),
            (&["Basic a", "Bearer a"], "Malformed"),
            (&["Basic a", "Basic b"], "Nothing"),
            (&["Bearerx a"], "Nothing"),
            (&["Basic a"], "Nothing"),
            (&[], "Nothing"),
        ] {
            assert_eq!(found(fields), expected, "{fields:?}");
        }
    }
}
