//! Entity tags of answers that we change (RFC 9110 section 8.8.3): what is compressed on the way is equal in meaning, not
//! byte by byte, so its tag is weak. Clients send such a tag back to whoever made the strong one.

use http::header::{ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};

/// `"a"` becomes `W/"a"`.
pub fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(ETAG) else { return };
    if tag.as_bytes().starts_with(b"W/") {
        return;
    }
    let weak = [b"W/".as_slice(), tag.as_bytes()].concat();
    match HeaderValue::from_bytes(&weak) {
        Ok(weak) => drop(headers.insert(ETAG, weak)),
        Err(_) => drop(headers.remove(ETAG)),
    }
}

/// Adds to each weak tag that a condition names the strong one that we may have made it of. Whoever compares weakly sees
/// no difference; whoever compares strongly, as for `If-Match`, finds its own.
pub fn strengthen(headers: &mut HeaderMap) {
    for name in [IF_NONE_MATCH, IF_MATCH] {
        let has_weak = headers
            .get_all(&name)
            .iter()
            .any(|value| value.as_bytes().windows(3).any(|part| part == b"W/\""));
        if has_weak {
            strengthen_field(headers, &name);
        }
    }
}

/// A date is the same for every form of an answer: the client may have begun with a compressed one, which no part of the
/// plain one continues. A weak tag, which is all that we give such an answer, never matches.
pub fn drop_dated_range(headers: &mut HeaderMap) {
    let is_tag =
        |value: &HeaderValue| value.as_bytes().starts_with(b"\"") || value.as_bytes().starts_with(b"W/");
    if headers.get(IF_RANGE).is_some_and(|value| !is_tag(value)) {
        headers.remove(RANGE);
        headers.remove(IF_RANGE);
    }
}

fn strengthen_field(headers: &mut HeaderMap, name: &HeaderName) {
    let lines: Vec<_> = headers.get_all(name).iter().map(both).collect();
    headers.remove(name);
    for line in lines {
        headers.append(name, line);
    }
}

/// A list of tags, each weak one followed by its strong form; what is no such list stays as it is.
fn both(line: &HeaderValue) -> HeaderValue {
    let (mut rest, mut told) = (line.as_bytes(), Vec::new());
    loop {
        rest = rest.trim_ascii_start();
        let prefix = if rest.starts_with(b"W/") { 2 } else { 0 };
        let tag = &rest[prefix..];
        let end = tag.strip_prefix(b"\"").and_then(|tag| tag.iter().position(|byte| *byte == b'"'));
        let Some(end) = end else { return line.clone() };
        let (tag, after) = tag.split_at(end + 2);
        if !told.is_empty() {
            told.extend_from_slice(b", ");
        }
        if prefix > 0 {
            told.extend_from_slice(b"W/");
            told.extend_from_slice(tag);
            told.extend_from_slice(b", ");
        }
        told.extend_from_slice(tag);
        match after.trim_ascii_start() {
            b"" => break,
            [b',', after @ ..] => rest = after,
            _ => return line.clone(),
        }
    }
    HeaderValue::from_bytes(&told).unwrap_or_else(|_| line.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strong_tag_becomes_weak_and_a_weak_one_stays() {
        for (tag, weak) in [("\"a\"", "W/\"a\""), ("W/\"a\"", "W/\"a\"")] {
            let mut headers = HeaderMap::from_iter([(ETAG, HeaderValue::from_static(tag))]);
            weaken(&mut headers);
            assert_eq!(headers[ETAG], weak);
        }
    }

    #[test]
    fn a_condition_names_the_strong_form_too() {
        for (told, both) in [
            ("W/\"a\"", "W/\"a\", \"a\""),
            ("\"x\", W/\"a,b\" ,\"y\"", "\"x\", W/\"a,b\", \"a,b\", \"y\""),
            ("W/\"\"", "W/\"\", \"\""),
            // Not ours to judge.
            ("*", "*"),
            ("W/\"a", "W/\"a"),
            ("W/\"a\" W/\"b\"", "W/\"a\" W/\"b\""),
            ("W/\"a\", W/b", "W/\"a\", W/b"),
        ] {
            for name in [IF_MATCH, IF_NONE_MATCH] {
                let mut headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static(told))]);
                strengthen(&mut headers);
                assert_eq!(headers[&name], both, "{told}");
            }
        }
    }

    #[test]
    fn lines_stay_apart() {
        let mut headers = HeaderMap::new();
        headers.append(IF_NONE_MATCH, HeaderValue::from_static("\"a\""));
        headers.append(IF_NONE_MATCH, HeaderValue::from_static("W/\"b\""));
        strengthen(&mut headers);
        let lines: Vec<_> = headers.get_all(IF_NONE_MATCH).iter().collect();
        assert_eq!(lines, ["\"a\"", "W/\"b\", \"b\""]);
    }
}
