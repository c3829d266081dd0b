//! Any bytes as a request's head, an answer's head and its body: what either of them forbids is not kept, what is kept is
//! found by equal requests alone and not for longer than it may be, and its parts are parts of it.
#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
#[path = "../heads.rs"]
mod heads;
#[cfg(not(test))]
#[path = "../../benches/measure/request.rs"]
mod request;
#[cfg(test)]
use super::{heads, request};

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use portcullis::cache::{
    Asked, Forwarders, Head, Keying, Memory, Opening, Partition, Purge, Stored, Terms, Use, Wish,
    is_ambiguous, judge, kept_headers, key, tags, vary,
};
use portcullis::filters::{CacheKey, CachePlan};
use portcullis::message::{Body, Exchange, Protocol, Request, Scheme};
use portcullis::proxy::Limits;
use portcullis::proxy::request_head::take_in;
use portcullis::values::ReservedHeaders;
use tokio::time::Instant;

const NOW: Duration = Duration::from_secs(1_700_000_000);
const TOOK: Duration = Duration::from_millis(1_500);
/// Of all that is kept.
const MEMORY: u64 = 1 << 20;

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

/// An answer as it comes.
struct Answer<'a> {
    status: StatusCode,
    headers: HeaderMap,
    body: &'a [u8],
}

/// Whether it was kept under any plan.
pub fn check(input: &[u8]) -> bool {
    let Some((mut asked, rest)) = heads::request(input, Protocol::Http11) else { return false };
    let Some((status, headers, body)) = heads::answer(rest) else { return false };
    // No other head comes to a cache.
    match take_in(&mut asked, Protocol::Http11, false, &Limits::default()) {
        Ok(intake) if !intake.asterisk => {}
        _ => return false,
    }
    let answer = Answer { status, headers, body };
    let mut kept = false;
    for plan in plans() {
        let exchange = exchange(&asked);
        keys(&plan.key, &exchange);
        kept |= is_kept(&plan, &exchange, &answer);
    }
    kept
}

/// What a policy says at its shortest and at its longest.
fn plans() -> [CachePlan; 2] {
    let all = CachePlan {
        default_ttl: Some(Duration::from_secs(60)),
        max_ttl: Some(Duration::from_secs(3_600)),
        negative_ttl: Some(Duration::from_secs(5)),
        stale_while_revalidate: Duration::from_secs(30),
        stale_if_error: Duration::from_secs(300),
        allow_set_cookie: true,
        key: CacheKey {
            headers: [HeaderName::from_static("x-a")].into(),
            query: Some(["a".into(), "b".into()].into()),
            cookies: Some(["s".into()].into()),
            identity: true,
        },
        ..CachePlan::default()
    };
    [CachePlan::default(), all]
}

fn exchange(asked: &http::request::Parts) -> Exchange {
    request::exchange(Request::from_parts(asked.clone(), Body::Empty))
}

fn is_kept(plan: &CachePlan, exchange: &Exchange, answer: &Answer<'_>) -> bool {
    let request = exchange.request.headers();
    let wish = Wish::of(request);
    let asked = Asked {
        no_store: wish.no_store,
        authorized: key::is_authorized(&plan.key, exchange),
        cookies: plan.key.cookies.is_none() && request.contains_key(header::COOKIE),
    };
    let head = Head { status: answer.status, headers: &answer.headers, failure: None };
    let wall = SystemTime::UNIX_EPOCH + NOW;
    let Ok(terms) = judge(asked, &head, plan, wall, TOOK) else { return false };
    allowed(plan, request, answer, &terms);
    let received = Instant::now();
    times(&answer.headers, &terms, received, &wish);
    let Some(names) = vary(&answer.headers) else { return false };
    let is_star = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|name| name.trim_ascii() == b"*")
    };
    assert!(!answer.headers.get_all(header::VARY).iter().any(is_star), "it varies by anything");
    let Some(tags) = tags(&answer.headers) else { return false };

    let memory = Memory::new(MEMORY);
    let partition = memory.partition("shop", "web");
    let (key, mut address) = (key_of("r", Forwarders::Nobody, &plan.key, exchange), Vec::new());
    key::address(&mut address, exchange, exchange.request.uri());
    let lead = partition.lead(&key);
    let Some(body) = lead.fill.whole(&Body::Full(answer.body.to_vec().into())) else { return false };
    let Some(variant) = partition.variant(&key, request, &names) else { return false };
    let mut chosen_by = Vec::new();
    key::vary(&mut chosen_by, request, &names);
    let opening = Opening {
        status: answer.status,
        headers: kept_headers(answer.headers.clone()),
        terms,
        received,
        wall,
        vary: names,
        chosen_by: chosen_by.into(),
        born: lead.fill.born,
        address: address.clone().into(),
        place: partition.place(&address),
        tags,
    };
    let stored = Arc::new(opening.keep(body, None));
    partition.keep(variant.into(), Arc::clone(&stored));
    found(&partition, &key, request, &stored);
    answers(&stored, exchange.request.method(), request, answer.body, received);
    confirmed(&stored, &answer.headers);
    match stored.tags.first() {
        Some(tag) => memory.purge(Purge::Tag(tag.to_string())),
        None => partition.change(&address),
    }
    assert!(partition.look(&mut key.clone(), request).is_none(), "it was purged, or has changed");
    true
}

fn key_of(rule: &str, forwarders: Forwarders, cache: &CacheKey, exchange: &Exchange) -> Vec<u8> {
    let mut bytes = b"of the request before".to_vec();
    let keying = Keying::new(rule, ReservedHeaders::default(), forwarders);
    key::write(&mut bytes, &keying, [1, 2].into_iter(), cache, exchange);
    bytes
}

/// Whatever tells requests apart makes another key, and nothing else does.
fn keys(cache: &CacheKey, exchange: &Exchange) {
    let of = |exchange: &Exchange| key_of("r", Forwarders::Trusted, cache, exchange);
    let known = of(exchange);
    assert_ne!(key_of("s", Forwarders::Trusted, cache, exchange), known, "another rule");
    let (request, path) = (&exchange.request, exchange.request.uri().path());
    let changed = |change: &dyn Fn(&mut Exchange)| {
        let mut head = Request::new(Body::Empty);
        (*head.method_mut(), *head.uri_mut()) = (request.method().clone(), request.uri().clone());
        *head.headers_mut() = request.headers().clone();
        let mut other = request::exchange(head);
        change(&mut other);
        of(&other)
    };
    assert_eq!(changed(&|_| {}), known, "the same request");
    assert_eq!(
        changed(&|other| more(other.request.headers_mut(), "x-of-nobody")),
        known,
        "a field of nobody"
    );
    assert_eq!(
        changed(&|other| *other.request.method_mut() = Method::HEAD),
        known,
        "the answer to GET serves HEAD"
    );
    assert_ne!(changed(&|other| other.client.scheme = Scheme::Http), known, "another scheme");
    assert_ne!(changed(&|other| more(other.request.headers_mut(), "host")), known, "another host");
    assert_ne!(
        changed(&|other| more(other.request.headers_mut(), "x-forwarded-host")),
        known,
        "of a trusted hop"
    );
    let query = request.uri().query();
    let targets = [
        format!("{path}x{}", query.map_or_else(String::new, |query| format!("?{query}"))),
        format!("{path}?{}x", query.unwrap_or_default()),
    ];
    for target in targets {
        let Ok(uri) = target.parse::<http::Uri>() else { continue };
        assert_ne!(
            changed(&|other| *other.request.uri_mut() = uri.clone()),
            known,
            "another target: {target}"
        );
    }
    for name in &cache.headers {
        assert_ne!(
            changed(&|other| more(other.request.headers_mut(), name.as_str())),
            known,
            "another {name}"
        );
    }
    if let Some(counted) = key::counted_query(cache.query.as_deref(), query) {
        let again = key::counted_query(cache.query.as_deref(), Some(&counted));
        assert!(counted.is_empty() || again.is_none(), "more is taken off of {counted}");
        assert!(
            query.is_some_and(|query| query.is_empty() || counted.len() < query.len()),
            "nothing was taken off"
        );
    }
    if is_ambiguous(cache, request.headers()) {
        assert!(request.headers().contains_key(header::COOKIE), "cookies that nobody sent");
    }
}

/// A field's last value says more, or stands where it did not.
fn more(headers: &mut HeaderMap, name: &str) {
    let name = HeaderName::try_from(name).expect("a name");
    let mut values: Vec<Vec<u8>> =
        headers.get_all(&name).iter().map(|value| value.as_bytes().to_vec()).collect();
    match values.last_mut() {
        Some(last) => last.extend_from_slice(b"!x"),
        None => values.push(b"!x".to_vec()),
    }
    headers.remove(&name);
    for value in values {
        headers.append(name.clone(), HeaderValue::from_bytes(&value).expect("a value with two signs more"));
    }
}

/// Whether a list says a word, read simply: no word at all where anything is quoted.
fn says(headers: &HeaderMap, word: &str) -> bool {
    let lines = || headers.get_all(header::CACHE_CONTROL).iter().map(HeaderValue::as_bytes);
    let is_word = |member: &[u8]| {
        let name = member.split(|byte| *byte == b'=').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(word.as_bytes())
    };
    !lines().any(|line| line.contains(&b'"'))
        && lines().any(|line| line.split(|byte| *byte == b',').any(is_word))
}

/// What is kept nobody forbade.
fn allowed(plan: &CachePlan, request: &HeaderMap, answer: &Answer<'_>, terms: &Terms) {
    let (status, headers) = (answer.status, &answer.headers);
    assert!(!says(request, "no-store"), "the client wants it to be kept nowhere");
    let is_targeted = headers.contains_key("cdn-cache-control");
    if !is_targeted {
        assert!(!says(headers, "private"), "it is for one client");
        assert!(!says(headers, "no-store") || says(headers, "must-understand"), "the origin forbids it");
        assert!(!says(headers, "no-cache") || terms.no_cache, "it must be asked for each time");
    }
    let targeted: Vec<_> = headers.get_all("cdn-cache-control").iter().collect();
    let is_forbidden = |value: &HeaderValue| matches!(value.as_bytes(), b"no-store" | b"private");
    assert!(!matches!(targeted[..], [one] if is_forbidden(one)), "the origin forbids it to us");
    assert!(!status.is_informational() && !matches!(status.as_u16(), 206 | 304), "no whole answer: {status}");
    assert!(!headers.contains_key(header::CONTENT_RANGE), "a part");
    assert!(!headers.contains_key(header::SET_COOKIE) || plan.allow_set_cookie, "a cookie of one client");
    if request.contains_key(header::AUTHORIZATION) {
        let lines = headers.get_all(header::CACHE_CONTROL).iter().chain(targeted);
        let consents = lines.map(|line| line.as_bytes().to_ascii_lowercase()).any(|line| {
            [&b"public"[..], b"must-revalidate", b"s-maxage"]
                .iter()
                .any(|word| line.windows(word.len()).any(|part| part == *word))
        });
        assert!(consents, "it is for who may see it, and nobody said that others may");
    }
    let has_cookies = request.contains_key(header::COOKIE) && plan.key.cookies.is_none();
    assert!(!(has_cookies && terms.by_policy), "it may be by its cookies");
    assert!(plan.max_ttl.is_none_or(|most| terms.lifetime <= most), "longer than the policy has it");
    assert!(terms.age >= TOOK, "younger than its way here");
    let ages: Vec<_> = headers.get_all(header::AGE).iter().collect();
    if let [age] = ages[..]
        && let Some(seconds) = age.to_str().ok().and_then(|text| text.parse::<u32>().ok())
    {
        assert!(terms.age >= Duration::from_secs(u64::from(seconds).min(1 << 31)), "younger than it says");
    }
}

/// When it may be used: before its time is over, and after as far as somebody said so.
fn times(headers: &HeaderMap, terms: &Terms, received: Instant, wish: &Wish) {
    let rest = terms.lifetime.saturating_sub(terms.age);
    let second = Duration::from_secs(1);
    let waits = [
        Duration::ZERO,
        rest.saturating_sub(second),
        rest,
        rest + second,
        rest + terms.while_revalidate,
        rest + terms.while_revalidate + terms.if_error + second,
    ];
    for wait in waits {
        let Some(now) = received.checked_add(wait) else { continue };
        let age = terms.age + wait;
        let is_fresh = age < terms.lifetime;
        let plain = terms.usable(received, &Wish::default(), now);
        let expected =
            if terms.no_cache { false } else { is_fresh || age - terms.lifetime < terms.while_revalidate };
        assert_eq!(!matches!(plain, Use::Validate { .. }), expected, "{terms:?} after {wait:?}");
        if terms.must_revalidate && !is_fresh {
            assert!(matches!(plain, Use::Validate { .. }), "stale, and it must not be");
        }
        let wished = terms.usable(received, wish, now);
        assert!(
            !(wish.no_cache || terms.no_cache) || matches!(wished, Use::Validate { .. }),
            "nobody was asked"
        );
        if let Use::Hit { ttl } = wished {
            assert!(
                is_fresh || (wish.max_stale.is_some() && !terms.must_revalidate),
                "stale for who wants it fresh"
            );
            assert!(is_fresh == (ttl > 0) || ttl == 0, "{ttl} seconds left of {terms:?} after {wait:?}");
            assert!(wish.max_age.is_none_or(|most| age.as_secs() <= most), "older than it may be");
        }
        if !headers.contains_key("cdn-cache-control") && says(headers, "must-revalidate") {
            assert!(is_fresh || !matches!(wished, Use::Hit { .. }), "stale, and the origin forbids it");
        }
    }
}

/// Equal requests find it, and none that the origin would have answered otherwise.
fn found(partition: &Arc<Partition>, key: &[u8], request: &HeaderMap, stored: &Arc<Stored>) {
    let look = |request: &HeaderMap| partition.look(&mut key.to_vec(), request);
    assert!(look(request).is_some_and(|found| Arc::ptr_eq(&found, stored)), "the same request");
    assert!(stored.suits(request), "who asked for it");
    // Codings are told apart by what they are, not by how they are written.
    for name in stored.vary.iter().filter(|name| **name != header::ACCEPT_ENCODING) {
        let mut other = request.clone();
        more(&mut other, name.as_str());
        assert!(look(&other).is_none(), "found with another {name}");
        assert!(!stored.suits(&other), "given with another {name}");
    }
}

/// What a client is given of it.
fn answers(stored: &Stored, asked: &Method, request: &HeaderMap, body: &[u8], received: Instant) {
    for method in [&Method::GET, &Method::HEAD, asked] {
        let now = received + Duration::from_secs(7);
        let response = stored.answer(method, request, now);
        let (head, given) = response.into_parts();
        let given = match given {
            Body::Empty => &b""[..],
            Body::Full(ref bytes) => &bytes[..],
            Body::Incoming(_) | Body::Received(_) | Body::Stream(_) => panic!("a body of one part is whole"),
        };
        let field = |name: HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
        let length = field(header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
        let is_new = head.status != stored.status;
        assert!(!is_new || stored.status == StatusCode::OK, "another status than {}", stored.status);
        assert_eq!(field(header::AGE), Some(&*stored.age(now).as_secs().to_string()));
        match head.status.as_u16() {
            206 if is_new => {
                assert!(*method == Method::GET && request.contains_key(header::RANGE), "nobody wants a part");
                let range = field(header::CONTENT_RANGE)
                    .and_then(|range| range.strip_prefix("bytes "))
                    .expect("a part");
                let (part, whole) = range.split_once('/').expect("a part of all");
                let (first, last) = part.split_once('-').expect("from, to");
                let number = |text: &str| text.parse::<usize>().expect("a number");
                assert_eq!(number(whole), body.len());
                assert_eq!(body.get(number(first)..=number(last)), Some(given), "another part");
                assert_eq!(length, Some(given.len()));
            }
            304 if is_new => {
                let conditions = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
                assert!(conditions.iter().any(|name| request.contains_key(name)), "nobody has it");
                assert!(given.is_empty() && length.is_none(), "an answer without a body");
            }
            416 if is_new => {
                assert!(*method == Method::GET && request.contains_key(header::RANGE), "nobody wants a part");
                assert_eq!(field(header::CONTENT_RANGE), Some(&*format!("bytes */{}", body.len())));
                assert!(given.is_empty() && length == Some(0));
            }
            _ => {
                assert!(!is_new, "a status of nobody: {}", head.status);
                assert_eq!(given, body);
                assert!(
                    head.status == StatusCode::NO_CONTENT || length == Some(body.len()),
                    "another length"
                );
            }
        }
        known(stored, request, head.status);
    }
}

/// Who shows the tag of what is kept has it.
fn known(stored: &Stored, request: &HeaderMap, status: StatusCode) {
    let shown: Vec<_> = request.get_all(header::IF_NONE_MATCH).iter().collect();
    let is_tag = |tag: &[u8]| {
        tag.len() > 1
            && tag.starts_with(b"\"")
            && tag.ends_with(b"\"")
            && !tag[1..tag.len() - 1].iter().any(|byte| matches!(byte, b'"' | b'\\' | 0x80..))
    };
    if let [shown] = shown[..]
        && stored.status == StatusCode::OK
        && is_tag(shown.as_bytes())
        && stored.headers.get(header::ETAG) == Some(shown)
    {
        assert_eq!(status, StatusCode::NOT_MODIFIED, "it is sent to who has it");
    }
}

/// What says again what was said changes nothing, and what is kept has no field of one client or one hop.
fn confirmed(stored: &Stored, headers: &HeaderMap) {
    assert_eq!(stored.confirmed(headers), stored.headers);
    for name in
        ["age", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "cache-tag"]
    {
        assert!(!stored.headers.contains_key(name), "{name} is kept");
    }
}
