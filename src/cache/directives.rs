//! `Cache-Control` and what targets it at us, parsed once: at storing for answers, at asking for requests.
//!
//! What cannot be read counts against storing and for asking the backend, never the other way round.

use http::HeaderMap;
use http::header::{self, HeaderName};

/// RFC 9213: for us and other caches that work for the origin.
pub static CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What an answer says about keeping it. Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub no_store: bool,
    pub no_cache: bool,
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub s_maxage: Option<u64>,
    pub max_age: Option<u64>,
    pub stale_while_revalidate: Option<u64>,
    pub stale_if_error: Option<u64>,
    /// It stands in a targeted field: `Cache-Control` and `Expires` mean nothing to us.
    pub targeted: bool,
}

/// What a request asks of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub no_store: bool,
    pub no_cache: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u64>,
    pub min_fresh: Option<u64>,
    /// How much past its time; `u64::MAX`: any.
    pub max_stale: Option<u64>,
}

/// The longest time that counts (RFC 9111 section 1.2.2).
pub const LONGEST: u64 = 1 << 31;

impl Said {
    pub fn of(headers: &HeaderMap) -> Self {
        if let Some(targeted) = targeted(headers) {
            return targeted;
        }
        if !is_readable(headers) {
            // What cannot be read may forbid to keep it, and what it is beside cannot allow it.
            return Self { no_store: true, ..Self::default() };
        }
        let mut said = Self::default();
        let mut times = Times::default();
        for (name, value) in members(headers, &header::CACHE_CONTROL) {
            said.take(name, value, &mut times);
        }
        said
    }

    fn take(&mut self, name: &str, value: Option<&str>, times: &mut Times) {
        let is = |word: &str| name.eq_ignore_ascii_case(word);
        // `private="a"` and `no-cache="a"` may be taken for the whole (RFC 9111 sections 5.2.2.4 and 5.2.2.7).
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("private") {
            self.private = true;
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") {
            self.must_revalidate = true;
        } else if is("proxy-revalidate") {
            self.proxy_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("s-maxage") {
            times.s_maxage.note(&mut self.s_maxage, value);
        } else if is("max-age") {
            times.max_age.note(&mut self.max_age, value);
        } else if is("stale-while-revalidate") {
            self.stale_while_revalidate = value.and_then(seconds);
        } else if is("stale-if-error") {
            self.stale_if_error = value.and_then(seconds);
        }
    }
}

impl Wish {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut wish = Self::default();
        if !headers.contains_key(header::CACHE_CONTROL) {
            // RFC 9111 section 5.4: for clients of HTTP/1.0.
            wish.no_cache =
                members(headers, &header::PRAGMA).any(|(name, _)| name.eq_ignore_ascii_case("no-cache"));
            return wish;
        }
        if !is_readable(headers) {
            (wish.no_cache, wish.no_store) = (true, true);
        }
        for (name, value) in members(headers, &header::CACHE_CONTROL) {
            let is = |word: &str| name.eq_ignore_ascii_case(word);
            if is("no-store") {
                wish.no_store = true;
            } else if is("no-cache") {
                wish.no_cache = true;
            } else if is("only-if-cached") {
                wish.only_if_cached = true;
            } else if is("max-age") {
                wish.max_age = Some(value.and_then(seconds).unwrap_or(0));
            } else if is("min-fresh") {
                wish.min_fresh = value.and_then(seconds);
            } else if is("max-stale") {
                wish.max_stale = match value {
                    None => Some(u64::MAX),
                    Some(value) => seconds(value),
                };
            }
        }
        wish
    }
}

/// Times that may be said more than once: those that differ, or cannot be read, make an answer stale at once
/// (RFC 9111 section 4.2.1).
#[derive(Default)]
struct Times {
    s_maxage: Repeated,
    max_age: Repeated,
}

#[derive(Default)]
struct Repeated {
    seen: bool,
}

impl Repeated {
    fn note(&mut self, into: &mut Option<u64>, value: Option<&str>) {
        let value = value.and_then(seconds).unwrap_or(0);
        *into = match *into {
            Some(known) if self.seen => Some(known.min(value)),
            _ => Some(value),
        };
        self.seen = true;
    }
}

/// `delta-seconds`, quoted or not.
pub fn seconds(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // More digits than fit are more than the longest.
    Some(digits.parse::<u64>().unwrap_or(LONGEST).min(LONGEST))
}

/// The members of a list field, each with its value; quoted strings may hold commas.
pub fn members<'h>(
    headers: &'h HeaderMap,
    name: &'h HeaderName,
) -> impl Iterator<Item = (&'h str, Option<&'h str>)> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(split).map(|member| match member.split_once('=') {
        Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
        None => (member, None),
    })
}

/// Whether every line of `Cache-Control` is text in which each quote has its end.
fn is_readable(headers: &HeaderMap) -> bool {
    headers.get_all(header::CACHE_CONTROL).into_iter().all(|line| {
        let (mut quoted, mut escaped) = (false, false);
        for byte in line.as_bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
        }
        !quoted && line.to_str().is_ok()
    })
}

/// Splits at the commas that stand outside of quotes.
pub fn split(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        loop {
            let text = rest?;
            let (mut quoted, mut escaped, mut end) = (false, false, None);
            for (at, byte) in text.bytes().enumerate() {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    b',' if !quoted => {
                        end = Some(at);
                        break;
                    }
                    _ => {}
                }
            }
            let member = match end {
                Some(at) => {
                    rest = Some(&text[at + 1..]);
                    &text[..at]
                }
                None => {
                    rest = None;
                    text
                }
            };
            let member = member.trim_matches([' ', '\t']);
            if !member.is_empty() {
                return Some(member);
            }
        }
    })
}

/// What stands in `CDN-Cache-Control`: a dictionary of structured fields (RFC 9213 section 2.1, RFC 8941). One that is
/// none, or empty, counts as absent.
fn targeted(headers: &HeaderMap) -> Option<Said> {
    let mut said = Said { targeted: true, ..Said::default() };
    let mut any = false;
    for value in headers.get_all(&CDN_CACHE_CONTROL) {
        let line = value.to_str().ok()?;
        for member in split(line) {
            // Parameters of a member mean nothing here.
            let member = member.split(';').next().unwrap_or_default().trim();
            let (name, value) = match member.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (member, None),
            };
            let is_key = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'*')
                && name.bytes().all(|byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)
                });
            if !is_key || value.is_some_and(|value| !is_item(value)) {
                return None;
            }
            any = true;
            // Booleans may be said false; a time is an integer, and the last one counts.
            match (name, value) {
                (_, Some("?0")) => {}
                ("max-age" | "s-maxage" | "stale-while-revalidate" | "stale-if-error", value) => {
                    let time = value.filter(|value| !value.starts_with('"')).and_then(seconds);
                    let place = match name {
                        "max-age" => &mut said.max_age,
                        "s-maxage" => &mut said.s_maxage,
                        "stale-while-revalidate" => &mut said.stale_while_revalidate,
                        _ => &mut said.stale_if_error,
                    };
                    *place = time;
                }
                (name, value) => said.take(name, value, &mut Times::default()),
            }
        }
    }
    any.then_some(said)
}

/// Whether it looks like a bare item or an inner list of RFC 8941.
fn is_item(value: &str) -> bool {
    let Some(first) = value.bytes().next() else { return false };
    match first {
        b'"' => value.len() > 1 && value.ends_with('"'),
        b'?' => matches!(value, "?0" | "?1"),
        b'-' | b'0'..=b'9' => value.bytes().skip(1).all(|byte| byte.is_ascii_digit() || byte == b'.'),
        b':' => value.len() > 1 && value.ends_with(':'),
        b'(' => value.ends_with(')'),
        first => first.is_ascii_alphabetic() || first == b'*',
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut map = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            map.append(name, value);
        }
        map
    }

    fn said(text: &'static str) -> Said {
        Said::of(&headers(&[("cache-control", text)]))
    }

    #[test]
    fn directives_are_read_in_any_case_and_over_several_lines() {
        let both = Said::of(&headers(&[
            ("cache-control", "Public, MAX-AGE=60"),
            ("cache-control", "s-maxage=\"5\""),
        ]));
        assert_eq!(both, Said { public: true, max_age: Some(60), s_maxage: Some(5), ..Said::default() });
        assert_eq!(said("max-age = 60").max_age, Some(60));
        assert_eq!(said(",, max-age=60 ,").max_age, Some(60));
    }

    #[test]
    fn what_stands_in_quotes_is_no_directive() {
        let said = said("a=\"no-store, private\\\", max-age=3\", max-age=60");
        assert_eq!(said, Said { max_age: Some(60), ..Said::default() });
    }

    #[test]
    fn a_time_that_cannot_be_read_is_none_at_all() {
        for text in
            ["max-age", "max-age=", "max-age=-1", "max-age=1.5", "max-age='60'", "max-age=60s", "max-age=+1"]
        {
            assert_eq!(said(text).max_age, Some(0), "{text}");
        }
        assert_eq!(said("max-age=99999999999999999999999").max_age, Some(LONGEST));
        assert_eq!(said("max-age=0060").max_age, Some(60));
    }

    #[test]
    fn of_two_times_the_shorter_counts() {
        assert_eq!(said("max-age=60, max-age=1").max_age, Some(1));
        assert_eq!(said("max-age=60, max-age=x").max_age, Some(0));
        assert_eq!(said("max-age=60, s-maxage=5").s_maxage, Some(5));
    }

    #[test]
    fn fields_of_private_and_no_cache_count_for_the_whole() {
        assert!(said("private=\"set-cookie\"").private && said("no-cache=\"a, b\"").no_cache);
    }

    #[test]
    fn the_targeted_field_replaces_the_general_one() {
        let both = headers(&[("cache-control", "no-store"), ("cdn-cache-control", "max-age=60")]);
        assert_eq!(Said::of(&both), Said { max_age: Some(60), targeted: true, ..Said::default() });
        for not_one in ["", "max-age=60,, (", "Max-Age=60", "max-age=\"6"] {
            let both = headers(&[("cache-control", "no-store"), ("cdn-cache-control", not_one)]);
            assert!(Said::of(&both).no_store, "{not_one}");
        }
        let quoted = headers(&[("cdn-cache-control", "max-age=\"60\""), ("cache-control", "max-age=5")]);
        assert_eq!(Said::of(&quoted).max_age, None, "a string is no time");
        let more = headers(&[("cdn-cache-control", "no-store;a=1, max-age=60;b")]);
        assert!(Said::of(&more).no_store);
    }

    #[test]
    fn a_line_that_cannot_be_read_forbids_to_keep_it() {
        let of = |line: &[u8]| {
            let mut map = headers(&[("cache-control", "public, must-understand, max-age=60")]);
            map.append("cache-control", HeaderValue::from_bytes(line).expect("a value"));
            map
        };
        for line in [&b"no-store, a=\xfc"[..], b"\xa0no-store", b"a=\", no-store", b"a=\"\\\", private"] {
            assert_eq!(Said::of(&of(line)), Said { no_store: true, ..Said::default() }, "{line:?}");
            let wish = Wish::of(&of(line));
            assert!(wish.no_store && wish.no_cache, "{line:?}");
        }
        assert!(!Said::of(&of(b"a=\"b\\\"\"")).no_store, "the control");
    }

    #[test]
    fn a_request_says_what_it_takes() {
        let wish = |text: &'static str| Wish::of(&headers(&[("cache-control", text)]));
        assert_eq!(wish("max-stale").max_stale, Some(u64::MAX));
        assert_eq!(wish("max-stale=5, min-fresh=2").max_stale, Some(5));
        assert_eq!(wish("max-age=x").max_age, Some(0));
        assert!(
            wish("no-cache").no_cache && wish("no-store").no_store && wish("only-if-cached").only_if_cached
        );
        assert!(Wish::of(&headers(&[("pragma", "no-cache")])).no_cache);
        let both = headers(&[("pragma", "no-cache"), ("cache-control", "max-age=1")]);
        assert!(!Wish::of(&both).no_cache, "Pragma counts only without Cache-Control");
    }
}
