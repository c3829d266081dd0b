//! What the fields of a message say about the form of its body.

use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use crate::message::Coding;

/// Whether a body is JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsJson {
    Yes,
    No,
    /// RFC 8259 section 8.1 has UTF-8 alone; who reads it as something else reads another document.
    OfAnotherCharset,
}

/// Whether the type of a body says that it is JSON (RFC 6839 section 3.1), in the one coding that JSON has.
pub fn is_json(content_type: &str) -> IsJson {
    let mut parts = content_type.split(';');
    let essence = parts.next().unwrap_or_default().trim();
    let Some((_, sub)) = essence.split_once('/') else { return IsJson::No };
    let ends = |sub: &str, end: &str| {
        sub.len()
            .checked_sub(end.len())
            .and_then(|at| sub.get(at..))
            .is_some_and(|found| found.eq_ignore_ascii_case(end))
    };
    if !sub.eq_ignore_ascii_case("json") && !ends(sub, "+json") {
        return IsJson::No;
    }
    let other_charset = parts.filter_map(|part| part.split_once('=')).any(|(name, value)| {
        let value = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("charset")
            && !value.eq_ignore_ascii_case("utf-8")
            && !value.eq_ignore_ascii_case("us-ascii")
    });
    if other_charset { IsJson::OfAnotherCharset } else { IsJson::Yes }
}

/// What a body is packed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    One(Coding),
    /// More than one, or one that is not known here.
    Unknown,
}

pub fn packing(headers: &HeaderMap) -> Packing {
    let mut found = Packing::Plain;
    for line in headers.get_all(CONTENT_ENCODING) {
        let Ok(line) = line.to_str() else { return Packing::Unknown };
        for name in line.split(',').map(str::trim).filter(|name| !name.eq_ignore_ascii_case("identity")) {
            found = match (found, Coding::of(name)) {
                (Packing::Plain, Some(coding)) => Packing::One(coding),
                _ => return Packing::Unknown,
            };
        }
    }
    found
}

/// Whether a body has to be unpacked before it can be read.
pub fn is_packed(headers: &HeaderMap) -> bool {
    packing(headers) != Packing::Plain
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_a_body_is_packed_in_is_known_or_not_guessed() {
        for (lines, expected) in [
            (&[][..], Packing::Plain),
            (&["identity"], Packing::Plain),
            (&["GZIP"], Packing::One(Coding::Gzip)),
            (&["identity, x-gzip"], Packing::One(Coding::Gzip)),
            (&["br"], Packing::One(Coding::Brotli)),
            (&["zstd"], Packing::One(Coding::Zstd)),
            (&["gzip, br"], Packing::Unknown),
            (&["gzip", "gzip"], Packing::Unknown),
            (&["deflate"], Packing::Unknown),
            (&[""], Packing::Unknown),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(line));
            }
            assert_eq!(packing(&headers), expected, "{lines:?}");
        }
    }
}
