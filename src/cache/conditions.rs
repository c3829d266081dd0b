//! Conditional requests answered from what is kept (RFC 9110 section 13), and ranges of it (section 14).

use std::time::SystemTime;

use http::header;
use http::{HeaderMap, HeaderValue};

use super::directives::split;
use super::judge::date;

/// Whether the client has what is kept already: 304 instead of 200. `received` is when it came, in place of a date.
pub fn is_not_modified(request: &HeaderMap, kept: &HeaderMap, received: SystemTime) -> bool {
    if request.contains_key(header::IF_NONE_MATCH) {
        // Where it stands, If-Modified-Since means nothing (section 13.1.3).
        let etag = kept.get(header::ETAG).and_then(|etag| etag.to_str().ok());
        return request.get_all(header::IF_NONE_MATCH).into_iter().any(|line| {
            line.to_str().is_ok_and(|line| {
                split(line).any(|one| one == "*" || etag.is_some_and(|etag| opaque(etag) == opaque(one)))
            })
        });
    }
    let Some(since) = only(request, header::IF_MODIFIED_SINCE).and_then(date) else { return false };
    let changed = kept.get(header::LAST_MODIFIED).or_else(|| kept.get(header::DATE)).and_then(date);
    changed.unwrap_or(received) <= since
}

/// What of a body of `length` bytes is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// First and last byte.
    Bytes(u64, u64),
    /// None of it is there: 416.
    Nothing,
}

/// Several ranges are answered by the whole, as any server may.
pub fn part(request: &HeaderMap, kept: &HeaderMap, length: u64) -> Part {
    let Some(range) = only(request, header::RANGE).and_then(|range| range.to_str().ok()) else {
        return Part::Whole;
    };
    if request.contains_key(header::IF_RANGE) && !is_same(request, kept) {
        return Part::Whole;
    }
    let range = match range.split_once('=') {
        Some((unit, range)) if unit.trim().eq_ignore_ascii_case("bytes") => range.trim(),
        _ => return Part::Whole,
    };
    let number = |text: &str| {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let Some((first, last)) = range.split_once('-') else { return Part::Whole };
    match (number(first), number(last), last.trim().is_empty(), first.trim().is_empty()) {
        (Some(first), Some(last), ..) if first > last => Part::Whole,
        (Some(first), last, is_open, _) if last.is_some() || is_open => {
            if first >= length {
                return Part::Nothing;
            }
            Part::Bytes(first, last.unwrap_or(u64::MAX).min(length - 1))
        }
        (None, Some(last), _, true) => match last.min(length) {
            0 => Part::Nothing,
            last => Part::Bytes(length - last, length - 1),
        },
        _ => Part::Whole,
    }
}

/// Whether the part that is asked for is the whole, as players of films and downloads begin: what may be fetched for one
/// who asks so costs the origin no more than the part.
pub fn is_of_all(request: &HeaderMap) -> bool {
    let range = only(request, header::RANGE).and_then(|range| range.to_str().ok()?.split_once('='));
    let Some((unit, Some((first, last)))) = range.map(|(unit, range)| (unit, range.split_once('-'))) else {
        return false;
    };
    let first = first.trim();
    !request.contains_key(header::IF_RANGE)
        && unit.trim().eq_ignore_ascii_case("bytes")
        && !first.is_empty()
        && first.bytes().all(|byte| byte == b'0')
        && last.trim().is_empty()
}

/// `If-Range`: a strong validator, compared exactly (section 13.1.5).
fn is_same(request: &HeaderMap, kept: &HeaderMap) -> bool {
    let Some(wanted) = only(request, header::IF_RANGE) else { return false };
    let bytes = wanted.as_bytes();
    if bytes.starts_with(b"\"") {
        return kept.get(header::ETAG) == Some(wanted);
    }
    if bytes.starts_with(b"W/") {
        return false;
    }
    // A date is strong when the origin was silent for a second after it (section 8.8.2.2).
    let (Some(modified), Some(sent)) =
        (kept.get(header::LAST_MODIFIED).and_then(date), kept.get(header::DATE).and_then(date))
    else {
        return false;
    };
    date(wanted) == Some(modified) && modified < sent
}

/// The value of a field that stands once.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&HeaderValue> {
    let mut all = headers.get_all(name).into_iter();
    all.next().filter(|_| all.next().is_none())
}

/// An entity tag for the weak comparison (section 8.8.3.2).
pub fn opaque(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: header::HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    const OLD: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
    const NEW: &str = "Tue, 14 Nov 2023 22:13:21 GMT";

    #[test]
    fn etags_are_compared_weakly_and_before_dates() {
        let kept = map(&[("etag", "W/\"a\""), ("last-modified", OLD)]);
        let is = |lines: &[(&str, &str)]| is_not_modified(&map(lines), &kept, SystemTime::UNIX_EPOCH);
        assert!(is(&[("if-none-match", "\"a\"")]));
        assert!(is(&[("if-none-match", "\"x\", W/\"a\"")]));
        assert!(is(&[("if-none-match", "\"x\""), ("if-none-match", "\"a\"")]));
        assert!(is(&[("if-none-match", "*")]));
        assert!(!is(&[("if-none-match", "\"x, W/\\\"a\"")]));
        assert!(!is(&[("if-none-match", "a")]));
        assert!(!is(&[("if-none-match", "\"x\""), ("if-modified-since", NEW)]));
        assert!(!is(&[]));
    }

    #[test]
    fn a_date_is_met_by_what_was_not_changed_after_it() {
        let kept = map(&[("last-modified", OLD)]);
        let is =
            |since: &str| is_not_modified(&map(&[("if-modified-since", since)]), &kept, SystemTime::now());
        assert!(is(OLD) && is(NEW) && !is("Tue, 14 Nov 2023 22:13:19 GMT") && !is("soon"));
        let sent = map(&[("date", OLD)]);
        assert!(is_not_modified(&map(&[("if-modified-since", NEW)]), &sent, SystemTime::now()));
        assert!(!is_not_modified(&map(&[("if-modified-since", NEW)]), &map(&[]), SystemTime::now()));
    }

    #[test]
    fn one_range_is_one_part() {
        let of = |range: &str| part(&map(&[("range", range)]), &map(&[]), 10);
        for (range, expected) in [
            ("bytes=0-3", Part::Bytes(0, 3)),
            ("Bytes = 2-", Part::Bytes(2, 9)),
            ("bytes=-3", Part::Bytes(7, 9)),
            ("bytes=-30", Part::Bytes(0, 9)),
            ("bytes=9-100", Part::Bytes(9, 9)),
            ("bytes=10-", Part::Nothing),
            ("bytes=-0", Part::Nothing),
            ("bytes=3-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=a-", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=1-x", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("bytes=99999999999999999999-", Part::Nothing),
        ] {
            assert_eq!(of(range), expected, "{range}");
        }
        assert_eq!(part(&map(&[("range", "bytes=0-")]), &map(&[]), 0), Part::Nothing);
    }

    #[test]
    fn from_the_first_byte_to_the_last_is_all() {
        let of = |lines: &[(&str, &str)]| is_of_all(&map(lines));
        assert!(of(&[("range", "bytes=0-")]) && of(&[("range", "Bytes = 00- ")]));
        for range in
            ["bytes=1-", "bytes=-", "bytes=-0", "bytes=0-0", "bytes=0-,5-6", "lines=0-", "bytes 0-", "0-"]
        {
            assert!(!of(&[("range", range)]), "{range}");
        }
        assert!(!of(&[]) && !of(&[("range", "bytes=0-"), ("range", "bytes=0-")]));
        assert!(!of(&[("range", "bytes=0-"), ("if-range", "\"a\"")]), "only who knows the whole can tell");
    }

    #[test]
    fn a_part_is_given_only_of_what_the_client_has_the_rest_of() {
        let of = |validator: &str, kept: &[(&str, &str)]| {
            part(&map(&[("range", "bytes=0-0"), ("if-range", validator)]), &map(kept), 10)
        };
        let one = Part::Bytes(0, 0);
        assert_eq!(of("\"a\"", &[("etag", "\"a\"")]), one);
        assert_eq!(of("\"b\"", &[("etag", "\"a\"")]), Part::Whole);
        assert_eq!(of("W/\"a\"", &[("etag", "W/\"a\"")]), Part::Whole);
        assert_eq!(of(OLD, &[("last-modified", OLD), ("date", NEW)]), one);
        assert_eq!(of(OLD, &[("last-modified", OLD), ("date", OLD)]), Part::Whole);
        assert_eq!(of(NEW, &[("last-modified", OLD), ("date", NEW)]), Part::Whole);
    }
}
