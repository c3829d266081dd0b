//! Whether an answer may be kept, for how long it is fresh, and what may be done with it after (RFC 9111 sections 3
//! and 4.2, RFC 5861).
//!
//! Invariants: never kept are partial answers, answers to somebody unless the key or the origin says so, and answers
//! that set a cookie unless the policy allows it; what an origin forbids no setting allows.

use std::time::{Duration, SystemTime};

use http::header;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::directives::{LONGEST, Said, seconds};
use crate::filters::CachePlan;
use crate::message::ErrorKind;

/// What of a request decides whether its answer may be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// It said `no-store`.
    pub no_store: bool,
    /// It carried a credential that the key does not hold.
    pub authorized: bool,
    /// It carried cookies, and nobody said which of them matter.
    pub cookies: bool,
}

/// On what terms an answer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its age when it came.
    pub age: Duration,
    pub lifetime: Duration,
    /// After that it may be used while it is asked for again.
    pub while_revalidate: Duration,
    /// After that it may be used when the backend fails.
    pub if_error: Duration,
    /// It is never used without asking.
    pub no_cache: bool,
    /// Once stale it is never used without asking.
    pub must_revalidate: bool,
    /// The policy says how long it is kept, not the origin, which may answer others otherwise.
    pub by_policy: bool,
}

/// Why an answer is not kept; a word for `Cache-Status`.
pub type Refusal = &'static str;

impl Asked {
    /// Whether its answer is as good as anybody's.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }
}

impl Terms {
    /// Whether a request may have it whose own answer would not be kept on such terms.
    pub fn is_for(&self, asked: Asked) -> bool {
        !self.by_policy || !(asked.authorized || asked.cookies)
    }

    /// Whether those who asked at the same time may have it too: as if each had come a moment later.
    pub fn is_for_all(&self) -> bool {
        !self.no_cache && self.lifetime > self.age
    }
}

/// What of an answer's head is judged.
pub struct Head<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    /// It is the gateway's own.
    pub failure: Option<ErrorKind>,
}

/// Judges an answer that came at `now`, `took` after it was asked for.
///
/// # Errors
/// It must not be kept, and why.
pub fn judge(
    asked: Asked,
    head: &Head<'_>,
    plan: &CachePlan,
    now: SystemTime,
    took: Duration,
) -> Result<Terms, Refusal> {
    let Head { status, headers, failure } = head;
    if failure.is_some() {
        return Err("failure");
    }
    if status.is_informational() || matches!(*status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED)
    {
        return Err("partial");
    }
    // An aggregate that lacks a part says so in this field.
    if headers.contains_key("content-range") || headers.contains_key("portcullis-partial") {
        return Err("partial");
    }
    if is_endless(headers) {
        return Err("stream");
    }
    let said = Said::of(headers);
    let understood = said.must_understand && is_understood(*status);
    if asked.no_store || (said.no_store && !understood) {
        return Err("no-store");
    }
    if said.must_understand && !understood {
        return Err("must-understand");
    }
    if said.private {
        return Err("private");
    }
    if headers.contains_key(header::SET_COOKIE) && !plan.allow_set_cookie {
        return Err("set-cookie");
    }
    // RFC 9111 section 3.5.
    if asked.authorized && !(said.public || said.must_revalidate || said.s_maxage.is_some()) {
        return Err("authorized");
    }
    let (lifetime, by_policy) = match said_lifetime(&said, headers, now) {
        Some(lifetime) => (lifetime, false),
        None => {
            let given = unsaid_lifetime(*status, &said, plan);
            if given.is_some() && asked.cookies && !said.public {
                return Err("cookie");
            }
            match given {
                Some(lifetime) => (lifetime, !said.public),
                // Of use only to ask whether it still holds.
                None if is_heuristic(*status) && has_validator(headers) => (Duration::ZERO, false),
                None if said.public => (Duration::ZERO, false),
                None => return Err("no-lifetime"),
            }
        }
    };
    let age = initial_age(headers, now, took);
    let lifetime = plan.max_ttl.map_or(lifetime, |most| lifetime.min(most));
    let strict = said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some() || said.no_cache;
    let stale = |origin: Option<u64>, ours: Duration| match origin {
        _ if strict => Duration::ZERO,
        Some(seconds) => Duration::from_secs(seconds),
        None => ours,
    };
    let terms = Terms {
        age,
        lifetime,
        while_revalidate: stale(said.stale_while_revalidate, plan.stale_while_revalidate),
        if_error: stale(said.stale_if_error, plan.stale_if_error),
        no_cache: said.no_cache,
        must_revalidate: strict,
        by_policy,
    };
    let served_stale = if strict { Duration::ZERO } else { plan.serve_stale.longest() };
    let is_of_use = terms.is_for_all()
        || has_validator(headers)
        || (!terms.no_cache
            && terms.lifetime + terms.while_revalidate.max(terms.if_error).max(served_stale) > terms.age);
    if is_of_use { Ok(terms) } else { Err("stale") }
}

/// What comes as it happens: whoever asks later is told of what has happened since, not of what happened before.
fn is_endless(headers: &HeaderMap) -> bool {
    const ENDLESS: [&[u8]; 3] = [b"text/event-stream", b"multipart/x-mixed-replace", b"application/grpc"];
    headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
        let value = value.as_bytes();
        ENDLESS
            .iter()
            .any(|kind| value.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind)))
    })
}

/// The lifetime that the origin says (RFC 9111 section 4.2.1).
fn said_lifetime(said: &Said, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(seconds) = said.s_maxage.or(said.max_age) {
        return Some(Duration::from_secs(seconds));
    }
    if said.targeted {
        return None;
    }
    let mut expires = headers.get_all(header::EXPIRES).into_iter();
    let first = expires.next()?;
    // Anything that is no date is the past, also a date that is said twice.
    let end = if expires.next().is_some() { None } else { date(first) };
    let start = headers.get(header::DATE).and_then(date).unwrap_or(now);
    Some(end.and_then(|end| end.duration_since(start).ok()).unwrap_or_default())
}

/// The lifetime that the policy gives where the origin says nothing.
fn unsaid_lifetime(status: StatusCode, said: &Said, plan: &CachePlan) -> Option<Duration> {
    if said.no_cache {
        return None;
    }
    match status.as_u16() {
        200 | 203 | 204 | 300 | 301 | 308 => plan.default_ttl,
        404 | 405 | 410 | 414 | 501 => plan.negative_ttl,
        _ => None,
    }
}

/// RFC 9110 section 15.1.
fn is_heuristic(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Statuses whose caching we know.
fn is_understood(status: StatusCode) -> bool {
    is_heuristic(status) || matches!(status.as_u16(), 302 | 303 | 307 | 400..=403 | 500 | 502..=504)
}

fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED)
}

/// RFC 9111 section 4.2.3.
fn initial_age(headers: &HeaderMap, now: SystemTime, took: Duration) -> Duration {
    let apparent = headers
        .get(header::DATE)
        .and_then(date)
        .and_then(|date| now.duration_since(date).ok())
        .unwrap_or_default();
    // A clock that goes a little ahead of the origin's makes no age.
    let apparent = if apparent < Duration::from_secs(1) { Duration::ZERO } else { apparent };
    let mut said = Duration::ZERO;
    // Of several the oldest counts; what cannot be read may be any.
    for value in headers.get_all(header::AGE) {
        for age in value.to_str().unwrap_or("?").split(',').map(str::trim) {
            let seconds = seconds(age).filter(|_| !age.starts_with('"'));
            said = said.max(Duration::from_secs(seconds.unwrap_or(LONGEST)));
        }
    }
    apparent.max(said + took)
}

/// A date in any form that RFC 9110 section 5.6.7 lets stand, and in any case (RFC 9111 section 4.2).
pub fn date(value: &HeaderValue) -> Option<SystemTime> {
    let text = value.to_str().ok()?;
    httpdate::parse_http_date(text).or_else(|_| httpdate::parse_http_date(&in_its_case(text))).ok()
}

/// With days and months as they are written: `sun, 06 NOV 1994 08:49:37 gmt`.
fn in_its_case(date: &str) -> String {
    let mut is_first = true;
    let cased = date.chars().map(|sign| {
        let cased = if is_first { sign.to_ascii_uppercase() } else { sign.to_ascii_lowercase() };
        is_first = !sign.is_ascii_alphabetic();
        cased
    });
    cased.collect::<String>().replace(" Gmt", " GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn at(seconds: i64) -> String {
        let time = NOW.checked_add_signed(seconds).expect("in range");
        httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(time))
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn with(plan: &CachePlan, asked: Asked, status: u16, lines: &[(&str, &str)]) -> Result<Terms, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: header::HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        judge(asked, &Head { status, headers: &headers, failure: None }, plan, now(), Duration::ZERO)
    }

    fn plain(status: u16, lines: &[(&str, &str)]) -> Result<Terms, Refusal> {
        with(&CachePlan::default(), Asked::default(), status, lines)
    }

    fn lifetime(lines: &[(&str, &str)]) -> Duration {
        plain(200, lines).expect("kept").lifetime
    }

    #[test]
    fn s_maxage_goes_before_max_age_and_that_before_expires() {
        let expires = at(5);
        let all = [("expires", expires.as_str()), ("cache-control", "max-age=60, s-maxage=30")];
        assert_eq!(lifetime(&all), secs(30));
        assert_eq!(lifetime(&[("expires", &expires), ("cache-control", "max-age=60")]), secs(60));
        assert_eq!(lifetime(&[("expires", &expires), ("date", &at(-10))]), secs(15));
        assert_eq!(lifetime(&[("expires", &expires)]), secs(5));
    }

    #[test]
    fn dates_are_read_in_any_case_and_in_one_zone() {
        let read = |text: &str| date(&text.parse().expect("a value"));
        let time = Some(SystemTime::UNIX_EPOCH + secs(784_111_777));
        for text in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            for text in [text.to_owned(), text.to_ascii_lowercase(), text.to_ascii_uppercase()] {
                assert_eq!(read(&text), time, "{text}");
            }
        }
        for other in ["CET", "+0000", "EST", "", "gm t"] {
            assert_eq!(read(&format!("Sun, 06 Nov 1994 08:49:37 {other}")), None, "{other}");
        }
    }

    #[test]
    fn the_time_that_an_answer_takes_is_part_of_its_age() {
        let age = |lines: &[(&'static str, &str)], took| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().expect("a value"));
            }
            initial_age(&headers, now(), took)
        };
        assert_eq!(age(&[("age", "10")], secs(3)), secs(13));
        assert_eq!(age(&[], secs(3)), secs(3));
        assert_eq!(age(&[("date", &at(-20)), ("age", "10")], secs(3)), secs(20), "the clock says more");
    }

    #[test]
    fn expires_that_is_no_date_is_the_past() {
        for expires in ["0", "-1", "soon", &at(-100)] {
            let etag = [("expires", expires), ("etag", "\"a\"")];
            assert_eq!(lifetime(&etag), Duration::ZERO, "{expires}");
            assert_eq!(plain(200, &[("expires", expires)]), Err("stale"), "of no use: {expires}");
        }
        assert_eq!(lifetime(&[("expires", &at(9)), ("expires", &at(8)), ("etag", "\"a\"")]), Duration::ZERO);
    }

    #[test]
    fn what_must_not_be_kept_is_not() {
        let fresh = "max-age=60";
        for (status, lines, why) in [
            (200, vec![("cache-control", "no-store, max-age=60")], "no-store"),
            (200, vec![("cache-control", "private, max-age=60")], "private"),
            (200, vec![("cache-control", fresh), ("set-cookie", "a=b")], "set-cookie"),
            (103, vec![("cache-control", fresh)], "partial"),
            (206, vec![("cache-control", fresh)], "partial"),
            (304, vec![("cache-control", fresh)], "partial"),
            (200, vec![("cache-control", fresh), ("content-range", "bytes 0-1/2")], "partial"),
            (200, vec![("cache-control", fresh), ("portcullis-partial", "orders")], "partial"),
            (200, vec![], "no-lifetime"),
            (302, vec![("etag", "\"a\"")], "no-lifetime"),
        ] {
            assert_eq!(plain(status, &lines), Err(why), "{status} {lines:?}");
        }
        let no_store = Asked { no_store: true, ..Asked::default() };
        assert_eq!(with(&CachePlan::default(), no_store, 200, &[("cache-control", fresh)]), Err("no-store"));
        let failure =
            Head { status: StatusCode::OK, headers: &HeaderMap::new(), failure: Some(ErrorKind::Reset) };
        let plan = CachePlan { default_ttl: Some(secs(9)), ..CachePlan::default() };
        assert_eq!(judge(Asked::default(), &failure, &plan, now(), Duration::ZERO), Err("failure"));
    }

    #[test]
    fn an_answer_to_somebody_is_kept_only_if_the_origin_says_so() {
        let authorized = Asked { authorized: true, ..Asked::default() };
        let default = CachePlan { default_ttl: Some(secs(60)), ..CachePlan::default() };
        let judged = |value: &str| with(&default, authorized, 200, &[("cache-control", value)]).err();
        assert_eq!(judged("max-age=60"), Some("authorized"));
        assert_eq!(with(&default, authorized, 200, &[]), Err("authorized"), "defaultTtl is nobody's consent");
        for consent in ["public, max-age=60", "s-maxage=60", "must-revalidate, max-age=60"] {
            assert_eq!(judged(consent), None, "{consent}");
        }
        assert_eq!(judged("private, s-maxage=60"), Some("private"));
        assert_eq!(judged("max-age=9, proxy-revalidate"), Some("authorized"), "section 3.5 does not name it");
    }

    #[test]
    fn the_policy_gives_a_lifetime_where_the_origin_says_nothing() {
        let plan =
            CachePlan { default_ttl: Some(secs(60)), negative_ttl: Some(secs(5)), ..CachePlan::default() };
        let judged = |status, lines: &[(&str, &str)]| with(&plan, Asked::default(), status, lines);
        let time = |status, lines: &[(&str, &str)]| judged(status, lines).map(|terms| terms.lifetime);
        assert_eq!(time(200, &[]), Ok(secs(60)));
        assert_eq!(time(200, &[("cache-control", "public")]), Ok(secs(60)));
        assert_eq!(time(200, &[("cache-control", "max-age=3")]), Ok(secs(3)));
        assert_eq!(time(404, &[]), Ok(secs(5)));
        assert_eq!(time(500, &[]), Err("no-lifetime"));
        assert_eq!(time(500, &[("cache-control", "max-age=3")]), Ok(secs(3)));
        assert_eq!(time(200, &[("cache-control", "no-cache")]), Err("no-lifetime"));
        assert_eq!(
            time(200, &[("expires", "0"), ("etag", "x")]),
            Ok(Duration::ZERO),
            "it does say something"
        );
    }

    #[test]
    fn what_comes_as_it_happens_is_never_kept() {
        let of = |kind: &str| plain(200, &[("content-type", kind), ("cache-control", "public, max-age=60")]);
        for kind in ["text/event-stream", "Text/Event-Stream; charset=utf-8", "application/grpc+proto"] {
            assert_eq!(of(kind), Err("stream"), "{kind}");
        }
        assert!(of("text/html").is_ok());
    }

    #[test]
    fn cookies_that_nobody_declared_keep_a_lifetime_of_ours_off() {
        let plan = CachePlan { default_ttl: Some(secs(60)), ..CachePlan::default() };
        let cookies = Asked { cookies: true, ..Asked::default() };
        assert_eq!(with(&plan, cookies, 200, &[]), Err("cookie"));
        assert!(
            with(&plan, cookies, 200, &[("cache-control", "max-age=9")]).is_ok(),
            "the origin knows its cookies"
        );
        assert!(with(&plan, cookies, 200, &[("cache-control", "public")]).is_ok());
    }

    #[test]
    fn what_the_policy_keeps_is_not_for_those_whose_own_answers_are_not_kept() {
        let plan = CachePlan { default_ttl: Some(secs(60)), ..CachePlan::default() };
        let cookies = Asked { cookies: true, ..Asked::default() };
        let authorized = Asked { authorized: true, ..Asked::default() };
        for (lines, is_for_all) in [
            (&[][..], false),
            (&[("cache-control", "must-revalidate")], false),
            (&[("cache-control", "public")], true),
            (&[("cache-control", "max-age=9")], true),
            (&[("etag", "\"a\""), ("expires", "0")], true),
        ] {
            let terms = with(&plan, Asked::default(), 200, lines).expect("kept");
            assert!(
                terms.is_for(Asked::default()) && terms.is_for(Asked { no_store: true, ..Asked::default() })
            );
            assert_eq!(
                (terms.is_for(cookies), terms.is_for(authorized)),
                (is_for_all, is_for_all),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn the_policy_bounds_what_the_origin_says() {
        let plan = CachePlan { max_ttl: Some(secs(10)), ..CachePlan::default() };
        let terms = with(&plan, Asked::default(), 200, &[("cache-control", "max-age=60")]).expect("kept");
        assert_eq!(terms.lifetime, secs(10));
    }

    #[test]
    fn age_is_the_longer_of_what_is_said_and_what_the_clock_says() {
        let age = |lines: &[(&str, &str)]| {
            let all: Vec<_> = lines.iter().copied().chain([("cache-control", "max-age=9999")]).collect();
            plain(200, &all).expect("kept").age
        };
        assert_eq!(age(&[("age", "100")]), secs(100));
        assert_eq!(age(&[("date", &at(-200)), ("age", "100")]), secs(200));
        assert_eq!(age(&[("date", &at(50)), ("age", "100")]), secs(100));
        assert_eq!(age(&[("age", "7, 8")]), secs(8));
        assert_eq!(age(&[("age", "8"), ("age", "7")]), secs(8));
        for odd in ["a", "-1", "7.0", "7;a", "7, a", "\"7\"", ""] {
            assert_eq!(plain(200, &[("cache-control", "max-age=9999"), ("age", odd)]), Err("stale"), "{odd}");
        }
        assert_eq!(plain(200, &[("cache-control", "max-age=60"), ("age", "61")]), Err("stale"));
    }

    #[test]
    fn stale_answers_are_used_as_far_as_nobody_forbids_it() {
        let plan =
            CachePlan { stale_while_revalidate: secs(30), stale_if_error: secs(300), ..CachePlan::default() };
        let times = |value: &str| {
            let terms = with(&plan, Asked::default(), 200, &[("cache-control", value)]).expect("kept");
            (terms.while_revalidate.as_secs(), terms.if_error.as_secs())
        };
        assert_eq!(times("max-age=60"), (30, 300));
        assert_eq!(times("max-age=60, stale-while-revalidate=1, stale-if-error=2"), (1, 2));
        for strict in ["max-age=60, must-revalidate", "s-maxage=60", "max-age=60, proxy-revalidate"] {
            assert_eq!(times(strict), (0, 0), "{strict}");
        }
    }

    #[test]
    fn must_understand_goes_before_no_store_where_we_do() {
        assert!(plain(200, &[("cache-control", "no-store, must-understand, max-age=60")]).is_ok());
        assert_eq!(
            plain(499, &[("cache-control", "no-store, must-understand, max-age=60")]),
            Err("no-store")
        );
    }
}
