//! An answer that is kept, and what is made of it for a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::Instant;

use super::account::Lease;
use super::conditions::{Part, is_not_modified, is_of_all, part};
use super::directives::{Wish, split};
use super::judge::Terms;
use super::key;
use super::marks::{Named, Place};
use crate::message::{Body, BodyError, Response};

/// What an entry costs beside its bytes.
const OVERHEAD: usize = 640;
const MAX_TAGS: usize = 128;

#[derive(Debug)]
pub struct Stored {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Segments,
    pub trailers: Option<HeaderMap>,
    pub terms: Terms,
    /// When it came, or was last said to hold.
    pub received: Instant,
    pub wall: SystemTime,
    /// See `marks`: when it was asked for.
    pub born: u64,
    /// The newest purge that is known not to name it.
    pub checked: AtomicU64,
    /// An answer to somebody says that it may not hold for anybody: it is asked for before it is used.
    pub doubted: AtomicBool,
    pub address: Box<[u8]>,
    pub place: Arc<Place>,
    pub tags: Box<[Box<str>]>,
    /// Fields of the request that chose it, and their values as `key::vary` writes them.
    pub vary: Box<[HeaderName]>,
    pub chosen_by: Box<[u8]>,
}

/// A body as it is kept.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    parts: Vec<Bytes>,
    length: u64,
    /// Those who read may have parts of it for longer.
    _lease: Option<Arc<Lease>>,
}

/// What may be done with an answer for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// As it is; seconds that are left.
    Hit { ttl: i64 },
    /// The same, and it is asked for again beside.
    WhileRevalidate { ttl: i64 },
    /// It is asked first whether it holds; whether the request itself wants that.
    Validate { wished: bool },
}

impl Stored {
    pub fn age(&self, now: Instant) -> Duration {
        self.terms.age + now.duration_since(self.received)
    }

    pub fn usable(&self, wish: &Wish, now: Instant) -> Use {
        match self.terms.usable(self.received, wish, now) {
            Use::Hit { .. } | Use::WhileRevalidate { .. } if self.is_doubted() => {
                Use::Validate { wished: false }
            }
            then => then,
        }
    }

    /// Its time is over.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.age(now) >= self.terms.lifetime
    }

    /// Nobody knows from now on whether it holds.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    pub fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }

    /// Whether it may be used although the backend failed (RFC 5861 section 4).
    pub fn helps_out(&self, now: Instant) -> bool {
        let age = self.age(now);
        !self.terms.no_cache && age < self.terms.lifetime + self.terms.if_error
    }

    /// The same for a failure for which `errors` wants what is at most so long past its time; not where the origin forbids
    /// that (RFC 9111 section 5.2.2.2).
    pub fn helps_for(&self, now: Instant, patience: Duration) -> bool {
        let may_be_stale = !self.terms.no_cache && !self.terms.must_revalidate;
        may_be_stale && !patience.is_zero() && self.age(now) < self.terms.lifetime + patience
    }

    /// The answer to a request with this head.
    pub fn answer(&self, method: &Method, request: &HeaderMap, now: Instant) -> Response {
        let mut response = self.part_for(method, request);
        let age = HeaderValue::from(self.age(now).as_secs());
        response.headers_mut().insert(header::AGE, age);
        response
    }

    fn part_for(&self, method: &Method, request: &HeaderMap) -> Response {
        let is_plain = !request.contains_key(header::IF_NONE_MATCH)
            && !request.contains_key(header::IF_MODIFIED_SINCE)
            && !request.contains_key(header::RANGE);
        if is_plain || self.status != StatusCode::OK {
            return self.whole();
        }
        if is_not_modified(request, &self.headers, self.wall) {
            return not_modified(&self.headers);
        }
        if *method != Method::GET {
            return self.whole();
        }
        let length = self.body.length;
        match part(request, &self.headers, length) {
            Part::Whole => self.whole(),
            Part::Bytes(first, last) => {
                let mut response = Response::new(self.body.slice(first, last));
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                *response.headers_mut() = self.headers.clone();
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(last - first + 1));
                headers.insert(header::CONTENT_RANGE, range(&format!("{first}-{last}"), length));
                response
            }
            Part::Nothing => {
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                let headers = response.headers_mut();
                for name in [header::DATE, header::ETAG, header::LAST_MODIFIED, header::VARY] {
                    if let Some(value) = self.headers.get(&name) {
                        headers.insert(name, value.clone());
                    }
                }
                headers.insert(header::CONTENT_RANGE, range("*", length));
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
                response
            }
        }
    }

    fn whole(&self) -> Response {
        let mut response = Response::new(self.body.whole(self.trailers.clone()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }

    /// Whether a request with this head would have been answered the same.
    pub fn suits(&self, request: &HeaderMap) -> bool {
        key::suits(request, &self.vary, &self.chosen_by)
    }

    /// The same after the origin said with these fields that it holds (RFC 9111 section 3.2). Whom it is for stays as it
    /// was.
    pub fn confirmed(&self, by: &HeaderMap) -> HeaderMap {
        let mut headers = self.headers.clone();
        // What is about the bytes stays with the bytes.
        let stays = |name: &HeaderName| {
            name == header::CONTENT_LENGTH
                || name == header::CONTENT_ENCODING
                || name == header::CONTENT_RANGE
                || name == header::TRANSFER_ENCODING
                || name == "content-md5"
                || name == header::VARY
                || is_for_sites(name)
        };
        let new = kept_headers(by.clone());
        for name in new.keys().filter(|name| !stays(name)) {
            headers.remove(name);
            for value in new.get_all(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        headers
    }

    pub fn named<'a>(&'a self, namespace: &'a str, route: &'a str) -> Named<'a> {
        Named { namespace, route, address: &self.address, tags: &self.tags }
    }

    /// The bytes that it costs with a key of so many.
    pub fn weight(&self, key: usize) -> u64 {
        let fields: usize =
            self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 16).sum();
        (OVERHEAD + key + self.address.len() + fields + tags + 32 * self.body.parts.len()) as u64
            + self.body.length
    }
}

impl Terms {
    /// RFC 9111 sections 4.2 and 5.2.1, RFC 5861 section 3.
    /// Of an answer that came then.
    pub fn usable(&self, received: Instant, wish: &Wish, now: Instant) -> Use {
        let (age, terms) = (self.age + now.duration_since(received), self);
        let ttl = signed(terms.lifetime) - signed(age);
        if wish.no_cache {
            return Use::Validate { wished: true };
        }
        if terms.no_cache {
            return Use::Validate { wished: false };
        }
        let fresh = terms.lifetime > age;
        // Who wants nothing that has an age wants nothing that is kept.
        if wish.max_age.is_some_and(|most| age.as_secs() > most || (most == 0 && !age.is_zero())) {
            return Use::Validate { wished: fresh };
        }
        if fresh {
            let left = terms.lifetime.saturating_sub(age).as_secs();
            return match wish.min_fresh {
                Some(wanted) if left < wanted => Use::Validate { wished: true },
                _ => Use::Hit { ttl },
            };
        }
        let overdue = age - terms.lifetime;
        if !terms.must_revalidate && wish.max_stale.is_some_and(|most| overdue.as_secs() <= most) {
            return Use::Hit { ttl };
        }
        if overdue < terms.while_revalidate && wish.min_fresh.is_none() {
            return Use::WhileRevalidate { ttl };
        }
        Use::Validate { wished: false }
    }

    /// Whether somebody who asks now may have what came then as if it had been kept.
    pub fn is_fresh(&self, received: Instant, wish: &Wish, now: Instant) -> bool {
        matches!(self.usable(received, wish, now), Use::Hit { .. })
    }
}

impl Segments {
    /// Of parts that have memory of their own.
    pub fn of(parts: impl Iterator<Item = Bytes>, lease: Arc<Lease>) -> Self {
        let parts: Vec<Bytes> = parts.filter(|part| !part.is_empty()).collect();
        let length = parts.iter().map(|part| part.len() as u64).sum();
        Self { parts, length, _lease: Some(lease) }
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    fn whole(&self, trailers: Option<HeaderMap>) -> Body {
        match (&*self.parts, trailers) {
            ([], None) => Body::Empty,
            ([one], None) => Body::Full(one.clone()),
            (_, trailers) => stream(self.parts.clone(), trailers),
        }
    }

    /// Shares the bytes.
    fn slice(&self, first: u64, last: u64) -> Body {
        let (mut at, mut parts) = (0_u64, Vec::new());
        for part in &self.parts {
            let end = at + part.len() as u64;
            if end > first && at <= last {
                // Both are within the part, whose length fits.
                let from = first.saturating_sub(at) as usize;
                let to = (last + 1 - at).min(part.len() as u64) as usize;
                parts.push(part.slice(from..to));
            }
            at = end;
        }
        match <[Bytes; 1]>::try_from(parts) {
            Ok([one]) => Body::Full(one),
            Err(parts) => stream(parts, None),
        }
    }
}

fn stream(parts: Vec<Bytes>, trailers: Option<HeaderMap>) -> Body {
    let frames = parts.into_iter().map(Frame::data).chain(trailers.map(Frame::trailers));
    Body::stream(StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, BodyError>))))
}

/// Tells who asked for all of it as a part that it is one: players take no other answer.
pub fn as_a_part(request: &HeaderMap, response: &mut Response) {
    if response.status() != StatusCode::OK
        || response.headers().contains_key(header::CONTENT_RANGE)
        || !is_of_all(request)
    {
        return;
    }
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let length = length.and_then(|length| length.parse::<u64>().ok());
    if let Some(length) = length.filter(|length| *length > 0) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let all = range(&format!("0-{}", length - 1), length);
        response.headers_mut().insert(header::CONTENT_RANGE, all);
    }
}

/// 304 with the fields that RFC 9110 section 15.4.5 wants.
pub fn not_modified(kept: &HeaderMap) -> Response {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    let of_the_body = |name: &HeaderName| {
        matches!(name.as_str(), "content-length" | "content-type" | "content-encoding" | "content-language")
            || *name == header::CONTENT_RANGE
    };
    let headers = response.headers_mut();
    for (name, value) in kept.iter().filter(|(name, _)| !of_the_body(name)) {
        headers.append(name.clone(), value.clone());
    }
    response
}

/// What of an answer's fields is kept: not those of one client or of one hop. It has a date.
pub fn kept_headers(mut headers: HeaderMap) -> HeaderMap {
    let is_of_one = |name: &str| {
        matches!(
            name,
            "age"
                | "connection"
                | "keep-alive"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "retry-after"
                | "surrogate-key"
                | "cache-tag"
                | "proxy-authenticate"
                | "proxy-authentication-info"
                | "proxy-authorization"
                | "proxy-connection"
                | "ratelimit"
                | "ratelimit-policy"
                | "x-request-id"
        ) || name.starts_with("x-ratelimit-")
            || name.starts_with("ratelimit-")
    };
    let gone: Vec<HeaderName> = headers.keys().filter(|name| is_of_one(name.as_str())).cloned().collect();
    gone.iter().for_each(|name| drop(headers.remove(name)));
    headers
}

/// Where the origin marks answers for purges: for us, and for no client.
pub static TAGS: [HeaderName; 2] =
    [HeaderName::from_static("surrogate-key"), HeaderName::from_static("cache-tag")];

pub fn is_tagged(headers: &HeaderMap) -> bool {
    TAGS.iter().any(|name| headers.contains_key(name))
}

/// What the origin marked an answer with, for purges.
///
/// `None`: more than are told apart, so that a purge would not find it.
pub fn tags(headers: &HeaderMap) -> Option<Box<[Box<str>]>> {
    let mut tags: Vec<Box<str>> = Vec::new();
    let [keys, marks] = &TAGS;
    for line in headers.get_all(keys).into_iter().filter_map(|value| value.to_str().ok()) {
        tags.extend(line.split_ascii_whitespace().map(Into::into));
    }
    for line in headers.get_all(marks).into_iter().filter_map(|value| value.to_str().ok()) {
        tags.extend(split(line).map(Into::into));
    }
    (tags.len() <= MAX_TAGS).then(|| tags.into())
}

/// Which sites' scripts may read the answer.
pub fn is_for_sites(name: &HeaderName) -> bool {
    name.as_str().starts_with("access-control-")
}

fn range(part: &str, length: u64) -> HeaderValue {
    HeaderValue::try_from(format!("bytes {part}/{length}")).expect("digits and signs")
}

fn signed(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
