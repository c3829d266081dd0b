//! Ring 11: what is kept answers in place of the action, and one run of the action serves all that wait for it. What may
//! be kept and used is decided in `cache/`; here is who asks, who waits, and what runs the action again without a client.
//!
//! Invariant: a request runs the action at most once for itself (twice where the origin's 304 is of something else);
//! whatever goes wrong with another's fetch, it gets an answer of its own.

mod again;
mod fetch;
mod invalidate;
mod meaning;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderName};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, Method};
use http_body::Body as _;
use tokio::time::Instant;

pub use self::again::Rerun;
use self::fetch::Fetch;
pub use self::invalidate::{judge_threat, threatened};
pub use self::meaning::{Meaning, Meanings, plan_of};
use super::live::{Live, Slot};
use super::request_head::Intake;
use crate::cache::key;
use crate::cache::{
    Asked, Forwarded, Heard, Join, Keying, Partition, Reader, Stored, TAGS, Terms, Told, Use, Wish,
    is_ambiguous, is_of_all,
};
use crate::filters::{CachePlan, ClientDirectives, Collapse};
use crate::message::{ErrorKind, Exchange, ProxyError, Response};
use crate::telemetry::Cached;

/// So often a request waits for another's fetch before it sends its own.
const MAX_WAITS: usize = 2;

/// The cache of one rule.
#[derive(Debug)]
pub struct LiveCache {
    pub plan: CachePlan,
    pub partition: Arc<Partition>,
    pub keying: Keying,
    /// Held as long as what the rule does is the same.
    pub meaning: Arc<Meaning>,
    /// Who may be asked.
    pub backends: Box<[Arc<Slot>]>,
    /// Fields that are written anew further in: what the client says in them, the backend does not see.
    pub rewritten: Box<[HeaderName]>,
    /// How long a backend may be silent in a body.
    pub idle: Option<Duration>,
    /// A filter further out says which sites may read the answers.
    pub has_cors: bool,
    /// Whoever asks is answered by the same backend.
    pub has_one_backend: bool,
}

/// Fields that some backends read in place of the method or the path: an answer to such a request is no answer to
/// others with the same address.
static OVERRIDES: [HeaderName; 9] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-http-host-override"),
    HeaderName::from_static("x-forwarded-path"),
];

/// What a request is to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Get,
    Head,
    /// It may change what is kept.
    Unsafe,
    /// It goes past.
    Other(Forwarded, Option<&'static str>),
}

thread_local! {
    /// Where keys are written: what is found costs no allocation.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Answers a request by what is kept, by another's fetch, or by the action.
pub async fn answer<R, A, G>(
    cache: &Arc<LiveCache>,
    live: &Live,
    intake: &Intake,
    exchange: &mut Exchange,
    refuse: R,
    action: A,
    again: G,
) -> Response
where
    R: Fn(&ProxyError) -> Response,
    A: AsyncFn(&mut Exchange) -> Response,
    G: FnOnce() -> Rerun,
{
    let kind = cache.kind(exchange, intake);
    let (method, is_head) = match kind {
        Kind::Get => (Method::GET, false),
        Kind::Head => (Method::HEAD, true),
        Kind::Unsafe => {
            exchange.cached = Some(Cached::Bypass);
            return passed(action(exchange).await, Forwarded::Method, None);
        }
        Kind::Other(why, detail) => {
            exchange.cached = Some(Cached::Bypass);
            return passed(action(exchange).await, why, detail);
        }
    };
    cache.take_uncounted(exchange);
    let wish = match cache.plan.client_directives {
        ClientDirectives::Honor => Wish::of(exchange.request.headers()),
        ClientDirectives::Ignore => Wish::default(),
    };
    let mut key = BUFFER.take();
    // A backend that is another one by now answers otherwise.
    let backends = cache.backends.iter().map(|slot| live.backend(slot).map_or(0, |backend| backend.number));
    let meaning = std::iter::once(cache.meaning.number).chain(backends);
    key::write(&mut key, &cache.keying, meaning, &cache.plan.key, exchange);
    let primary = key.len();
    let now = Instant::now();
    let mut stored = match cache.plan.collapse {
        Collapse::Only => None,
        _ => cache.partition.look(&mut key, exchange.request.headers()),
    };
    if stored.as_ref().is_some_and(|stored| !cache.is_for(exchange, &wish, &stored.terms)) {
        stored = None;
    }
    let found = stored.as_ref().map(|stored| stored.usable(&wish, now));
    match (&stored, found) {
        (Some(stored), Some(Use::Hit { ttl })) => {
            BUFFER.set(key);
            return hit(stored, exchange, &method, ttl, now);
        }
        (Some(stored), Some(Use::WhileRevalidate { ttl })) => {
            let response = hit(stored, exchange, &method, ttl, now);
            let fetch = Fetch::new(cache, exchange, &key, primary, wish);
            again::refresh(fetch, exchange, stored, again);
            BUFFER.set(key);
            return response;
        }
        _ => {}
    }
    if wish.only_if_cached {
        BUFFER.set(key);
        exchange.cached = Some(Cached::Miss);
        return told(refuse(&ErrorKind::NotCached.into()), Told::passed(Forwarded::UriMiss, None));
    }
    let why = match found {
        None => Forwarded::UriMiss,
        Some(Use::Validate { wished: true }) => Forwarded::Request,
        Some(_) => Forwarded::Stale,
    };
    let headers = exchange.request.headers();
    let asks_part = headers.contains_key(header::RANGE) && !is_of_all(headers);
    if is_head || (asks_part && stored.is_none()) {
        BUFFER.set(key);
        exchange.cached = Some(Cached::Miss);
        let why = if is_head { why } else { Forwarded::Partial };
        let head = is_head.then(|| key_of_head(cache, exchange, &wish)).flatten();
        let response = action(exchange).await;
        if let Some(stored) = stored.as_ref().filter(|_| is_head) {
            invalidate::by_head(cache, stored, &response, head.as_deref());
        }
        return passed(response, why, None);
    }
    let fetch = Fetch::new(cache, exchange, &key, primary, wish);
    BUFFER.set(key);
    let mut waits = 0;
    loop {
        let lead = match fetch.join(stored.as_deref(), waits >= MAX_WAITS) {
            Join::Lead(lead) => lead,
            Join::Here(stored) => {
                let now = Instant::now();
                let Use::Hit { ttl } = stored.usable(&wish, now) else {
                    waits = MAX_WAITS;
                    continue;
                };
                return hit(&stored, exchange, &method, ttl, now);
            }
            Join::Wait(reader) => match wait(&fetch, exchange, reader, why, &refuse).await {
                Waited::Answered(response) => return response,
                Waited::Alone => {
                    waits = MAX_WAITS;
                    continue;
                }
                Waited::Freed => {
                    waits += 1;
                    continue;
                }
            },
        };
        return fetch.run(exchange, lead, stored.take(), why, action).await;
    }
}

/// What came of waiting.
enum Waited {
    Answered(Response),
    Alone,
    Freed,
}

async fn wait(
    fetch: &Fetch,
    exchange: &mut Exchange,
    reader: Reader,
    why: Forwarded,
    refuse: impl Fn(&ProxyError) -> Response,
) -> Waited {
    let heard = match exchange.deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, reader.heard()).await,
        None => Ok(reader.heard().await),
    };
    let Ok(heard) = heard else {
        let cause = "the answer that another request fetches did not come in time";
        return Waited::Answered(refuse(&ProxyError::caused(ErrorKind::BackendTimeout, cause)));
    };
    let (headers, now) = (exchange.request.headers(), Instant::now());
    let response = match heard {
        // What has been on its way for long may be too old for who asks now.
        Heard::Open(opening) if !opening.terms.is_fresh(opening.received, &fetch.wish, now) => {
            return Waited::Alone;
        }
        Heard::Open(opening) if !fetch.may_have(&opening.terms) => return Waited::Alone,
        Heard::Open(opening) if opening.suits(headers) => {
            opening.answer(headers, reader.body(), Some(opening.age(now)))
        }
        Heard::Kept(stored) | Heard::HelpsOut(stored) if !fetch.may_have(&stored.terms) => {
            return Waited::Alone;
        }
        Heard::Kept(stored) if !stored.terms.is_fresh(stored.received, &fetch.wish, now) => {
            return Waited::Alone;
        }
        // What helps out is past its time.
        Heard::HelpsOut(_) if fetch.wish.max_age.is_some() || fetch.wish.min_fresh.is_some() => {
            return Waited::Alone;
        }
        Heard::Kept(stored) | Heard::HelpsOut(stored) if stored.suits(headers) => {
            stored.answer(&Method::GET, headers, now)
        }
        Heard::Failed(kind) => {
            exchange.cached = Some(Cached::Collapsed);
            return Waited::Answered(told(refuse(&kind.into()), Told::collapsed(why)));
        }
        Heard::Alone => return Waited::Alone,
        Heard::Abandoned => return Waited::Freed,
        // The other variant's key is known now.
        Heard::Open(_) | Heard::Kept(_) | Heard::HelpsOut(_) if fetch.is_primary() => return Waited::Alone,
        Heard::Open(_) | Heard::Kept(_) | Heard::HelpsOut(_) => return Waited::Freed,
    };
    exchange.cached = Some(Cached::Collapsed);
    Waited::Answered(told(response, Told::collapsed(why)))
}

fn hit(stored: &Stored, exchange: &mut Exchange, method: &Method, ttl: i64, now: Instant) -> Response {
    exchange.cached =
        Some(if ttl > 0 || stored.terms.lifetime > stored.age(now) { Cached::Hit } else { Cached::Stale });
    told(stored.answer(method, exchange.request.headers(), now), Told::Hit { ttl })
}

fn passed(mut response: Response, why: Forwarded, detail: Option<&'static str>) -> Response {
    // They are for caches, and name what the origin calls its things.
    TAGS.iter().for_each(|name| drop(response.headers_mut().remove(name)));
    told(response, Told::passed(why, detail))
}

fn told(mut response: Response, told: Told) -> Response {
    told.write(response.headers_mut());
    response
}

/// What an answer to HEAD may show to have changed: only one that anybody would get.
fn key_of_head(cache: &LiveCache, exchange: &Exchange, wish: &Wish) -> Option<Vec<u8>> {
    if cache.plan.collapse == Collapse::Only || !cache.asked(exchange, wish).is_plain() {
        return None;
    }
    let mut address = Vec::new();
    key::address(&mut address, exchange, exchange.request.uri());
    Some(address)
}

impl LiveCache {
    fn kind(&self, exchange: &Exchange, intake: &Intake) -> Kind {
        let request = &exchange.request;
        let headers = request.headers();
        let kind = match *request.method() {
            Method::GET => Kind::Get,
            Method::HEAD => Kind::Head,
            Method::OPTIONS | Method::TRACE => return Kind::Other(Forwarded::Method, None),
            _ => return Kind::Unsafe,
        };
        if !request.body().is_end_stream() {
            return Kind::Other(Forwarded::Bypass, Some("body"));
        }
        // The head does not hold it any more.
        if intake.upgrade.is_some() {
            return Kind::Other(Forwarded::Bypass, Some("upgrade"));
        }
        // Only the origin can tell whether these hold.
        if headers.contains_key(header::IF_MATCH) || headers.contains_key(header::IF_UNMODIFIED_SINCE) {
            return Kind::Other(Forwarded::Bypass, Some("precondition"));
        }
        let overrides =
            |name: &HeaderName| headers.contains_key(name) && !self.plan.key.headers.contains(name);
        if OVERRIDES.iter().any(overrides)
            || key::has_look_alike(headers, OVERRIDES.iter().chain(&self.plan.key.headers))
        {
            return Kind::Other(Forwarded::Bypass, Some("override"));
        }
        if is_ambiguous(&self.plan.key, headers) {
            return Kind::Other(Forwarded::Bypass, Some("cookie"));
        }
        kind
    }

    /// Takes off the parameters that do not count, so that no backend answers by them.
    fn take_uncounted(&self, exchange: &mut Exchange) {
        if let Cow::Owned(uri) = self.counted(exchange.request.uri()) {
            *exchange.request.uri_mut() = uri;
        }
    }

    /// The address as far as it counts.
    fn counted<'u>(&self, uri: &'u Uri) -> Cow<'u, Uri> {
        let Some(counted) = key::counted_query(self.plan.key.query.as_deref(), uri.query()) else {
            return Cow::Borrowed(uri);
        };
        let mut target = uri.path().to_owned();
        if !counted.is_empty() {
            target.push('?');
            target.push_str(&counted);
        }
        let mut parts = uri.clone().into_parts();
        // A part of a target is one.
        parts.path_and_query = PathAndQuery::try_from(target).ok();
        Uri::from_parts(parts).map_or(Cow::Borrowed(uri), Cow::Owned)
    }

    fn asked(&self, exchange: &Exchange, wish: &Wish) -> Asked {
        let key = &self.plan.key;
        Asked {
            no_store: wish.no_store,
            authorized: key::is_authorized(key, exchange),
            cookies: key.cookies.is_none() && exchange.request.headers().contains_key(header::COOKIE),
        }
    }

    /// Whether an answer on these terms may be given to this request.
    fn is_for(&self, exchange: &Exchange, wish: &Wish, terms: &Terms) -> bool {
        !terms.by_policy || terms.is_for(self.asked(exchange, wish))
    }
}

/// Requests of one class have answers for themselves for the same reasons.
fn class(asked: Asked) -> u8 {
    u8::from(asked.authorized) | u8::from(asked.cookies) << 1
}

/// What is kept of a request for as long as it is fetched.
fn without_conditions(headers: &mut HeaderMap) {
    for name in [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::RANGE, header::IF_RANGE] {
        headers.remove(name);
    }
}
