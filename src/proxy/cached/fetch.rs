//! One run of the action, and what becomes of its answer: kept, given to all that wait, or for the one alone.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::SystemTime;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use http_body::Body as _;
use tokio::time::Instant;

use super::{LiveCache, class, passed, told, without_conditions};
use crate::cache::{
    Asked, Forwarded, Head, Heard, Join, Lead, Opening, Place, Pump, Reader, Refusal, Stored, Terms, Told,
    Wish, as_a_part, is_for_sites, is_tagged, judge, kept_headers, key, opaque, tags, vary,
};
use crate::filters::Collapse;
use crate::message::{Body, ErrorKind, Exchange, Outbound, Request, Response, Side};
use crate::proxy::forwarded::introduces;
use crate::telemetry::Cached;

/// A request that the cache has no answer for.
pub struct Fetch {
    cache: Arc<LiveCache>,
    asked: Asked,
    pub wish: Wish,
    /// As the client sent it.
    pub headers: HeaderMap,
    key: Box<[u8]>,
    /// So many bytes of the key are before what its variant adds.
    primary: usize,
    address: Box<[u8]>,
    place: Arc<Place>,
}

/// What a run of the action came to.
pub enum Settled {
    /// What is kept answers; the backend's status.
    Kept(Arc<Stored>, u16),
    /// An answer that streams, which others may read too.
    Open(Arc<Opening>, Body),
    /// An answer for this request alone.
    Passed(Response, Option<Refusal>),
    /// The origin confirmed something else than what is kept: it must be asked without conditions.
    Again,
}

/// Whether the fetch ends when nobody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    Needed,
    NotNeeded,
}

impl Fetch {
    pub fn new(cache: &Arc<LiveCache>, exchange: &Exchange, key: &[u8], primary: usize, wish: Wish) -> Self {
        let mut address = Vec::new();
        key::address(&mut address, exchange, exchange.request.uri());
        Self {
            asked: cache.asked(exchange, &wish),
            wish,
            headers: exchange.request.headers().clone(),
            key: key.into(),
            primary,
            place: cache.partition.place(&address),
            address: address.into(),
            cache: Arc::clone(cache),
        }
    }

    /// No variants were known when it was looked for.
    pub fn is_primary(&self) -> bool {
        self.key.len() == self.primary
    }

    /// Finds out whether somebody fetches it already, unless this one is to go alone.
    pub fn join(&self, stored: Option<&Stored>, goes_alone: bool) -> Join {
        let partition = &self.cache.partition;
        let now = Instant::now();
        let alone = goes_alone
            || self.cache.plan.collapse == Collapse::Off
            || self.asked.no_store
            // What somebody else asked for before is not new enough.
            || self.wish.no_cache
            || self.wish.max_age == Some(0)
            // What is never fresh is confirmed for each.
            || stored.is_some_and(|stored| !stored.terms.is_for_all())
            || partition.is_alone(&self.key, class(self.asked), now);
        if alone {
            return Join::Lead(partition.lead(&self.key));
        }
        partition.join(&self.key, &self.place, |terms, received| {
            self.may_have(terms) && terms.is_fresh(received, &self.wish, now)
        })
    }

    /// Whether an answer to another request on these terms may be given to this one.
    pub fn may_have(&self, terms: &Terms) -> bool {
        terms.is_for(self.asked)
    }

    /// The one fetch beside the use of what is past its time.
    pub fn join_to_refresh(&self, stored: &Stored) -> Join {
        let now = Instant::now();
        let partition = &self.cache.partition;
        partition.join(&self.key, &self.place, |terms, received| {
            received > stored.received && terms.is_fresh(received, &self.wish, now)
        })
    }

    pub fn lead(&self) -> Lead {
        self.cache.partition.lead(&self.key)
    }

    /// Runs the action for the client.
    pub async fn run(
        &self,
        exchange: &mut Exchange,
        lead: Lead,
        mut stale: Option<Arc<Stored>>,
        why: Forwarded,
        action: impl AsyncFn(&mut Exchange) -> Response,
    ) -> Response {
        let (uri, mut lead) = (exchange.request.uri().clone(), lead);
        loop {
            let started = Instant::now();
            self.prepare(exchange, stale.as_deref());
            let response = action(exchange).await;
            exchange.cached = Some(Cached::Miss);
            let is_known = |opening: &Opening| opening.is_known(&self.headers);
            let readers =
                |opening: &Opening| if is_known(opening) { Readers::NotNeeded } else { Readers::Needed };
            let outbound = Rc::clone(&exchange.outbound);
            return match self.settle(&*outbound, lead, response, stale.as_ref(), started, readers) {
                Settled::Kept(stored, status) => {
                    let told_so = Told::Forwarded {
                        why,
                        status: (status != stored.status.as_u16()).then_some(status),
                        stored: stale.is_none() || status == StatusCode::NOT_MODIFIED,
                        collapsed: false,
                        detail: None,
                    };
                    if status == StatusCode::NOT_MODIFIED {
                        exchange.cached = Some(Cached::Revalidated);
                    } else if stale.as_ref().is_some_and(|stale| Arc::ptr_eq(stale, &stored)) {
                        exchange.cached = Some(Cached::Stale);
                    }
                    let mut response = stored.answer(&Method::GET, &self.headers, Instant::now());
                    if stale.is_none() && stored.terms.age.is_zero() {
                        response.headers_mut().remove(header::AGE);
                    }
                    told(response, told_so)
                }
                Settled::Open(opening, body) => {
                    let keeps = self.cache.plan.collapse != Collapse::Only;
                    let told_so = if keeps { Told::stored(why) } else { Told::passed(why, None) };
                    told(opening.answer(&self.headers, body, opening.age_as_it_came()), told_so)
                }
                Settled::Passed(mut response, detail) => {
                    as_a_part(&self.headers, &mut response);
                    passed(response, why, detail)
                }
                Settled::Again => {
                    self.forget(&self.key, stale.as_deref());
                    stale = None;
                    lead = self.lead();
                    self.restore(exchange, &uri);
                    continue;
                }
            };
        }
    }

    /// Makes the request one for the cache: for the whole, if it is not as it is known.
    pub fn prepare(&self, exchange: &mut Exchange, stale: Option<&Stored>) {
        let headers = exchange.request.headers_mut();
        without_conditions(headers);
        let Some(stale) = stale else { return };
        if let Some(etag) = stale.headers.get(header::ETAG) {
            headers.insert(header::IF_NONE_MATCH, etag.clone());
        }
        if let Some(modified) = stale.headers.get(header::LAST_MODIFIED) {
            headers.insert(header::IF_MODIFIED_SINCE, modified.clone());
        }
    }

    /// The request once more: the action has consumed it.
    pub fn restore(&self, exchange: &mut Exchange, uri: &http::Uri) {
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = self.headers.clone();
        exchange.request = request;
    }

    /// Decides what becomes of an answer, and tells those who wait. `readers`: of one that streams.
    pub fn settle(
        &self,
        outbound: &dyn Outbound,
        lead: Lead,
        response: Response,
        stale: Option<&Arc<Stored>>,
        started: Instant,
        readers: impl Fn(&Opening) -> Readers,
    ) -> Settled {
        let (received, wall) = (Instant::now(), SystemTime::now());
        let status = response.status();
        let failure = response.extensions().get::<ErrorKind>().copied();
        if let Some(stale) = stale {
            if status == StatusCode::NOT_MODIFIED {
                return self.confirm(lead, &response, stale, started, received, wall);
            }
            let has_failed = failure.is_some_and(|kind| kind.side() == Side::Upstream)
                || matches!(status.as_u16(), 500 | 502..=504) && failure.is_none();
            let patience = self.cache.plan.serve_stale.patience(failure, status.as_u16());
            if has_failed && stale.helps_out(received) || stale.helps_for(received, patience) {
                lead.fill.tell(Heard::HelpsOut(Arc::clone(stale)));
                return Settled::Kept(Arc::clone(stale), status.as_u16());
            }
        }
        if let Some(kind) = failure {
            lead.fill.tell(match kind {
                // There is nobody to ask, whoever asks.
                ErrorKind::ConnectFailure | ErrorKind::NoHealthyEndpoints if self.cache.has_one_backend => {
                    Heard::Failed(kind)
                }
                // It may have been this request: the next one tries.
                kind if kind.side() == Side::Upstream => Heard::Abandoned,
                _ => Heard::Alone,
            });
            return Settled::Passed(response, None);
        }
        let head = Head { status, headers: response.headers(), failure };
        let judged = judge(self.asked, &head, &self.cache.plan, wall, received - started);
        let opened = judged.and_then(|terms| self.open(&lead, &response, terms, received, wall));
        let (opening, key) = match opened {
            Ok(opened) => opened,
            Err(why) => {
                self.refuse(&lead, stale, status);
                return Settled::Passed(response, Some(why));
            }
        };
        let opening = Arc::new(opening);
        let keeps = self.cache.plan.collapse != Collapse::Only;
        let (parts, body) = response.into_parts();
        if keeps && let Some(whole) = lead.fill.whole(&body) {
            let stored = Arc::new(opening.keep(whole, None));
            self.cache.partition.keep(key.into(), Arc::clone(&stored));
            lead.fill.tell(self.heard(&opening, Heard::Kept(Arc::clone(&stored))));
            return Settled::Kept(stored, status.as_u16());
        }
        let fill = Arc::clone(&lead.fill);
        let reader = fill.join(|_| true);
        let mut pump = Pump::new(&fill, if keeps { self.cache.plan.max_body } else { 0 }, self.cache.idle);
        let needed = readers(&opening);
        if needed == Readers::NotNeeded {
            pump = pump.staying();
        }
        let body = Rc::new(Cell::new(Some(body)));
        let work = Box::pin(pumping(lead, pump, Rc::clone(&body), Arc::clone(&opening), key));
        let started = match needed {
            Readers::Needed => outbound.carry(work),
            Readers::NotNeeded => outbound.detach(work),
        };
        if let Err(work) = started {
            // Without room for work of its own, whose pace would be this client's, it is this client's alone.
            fill.tell(Heard::Alone);
            drop((work, reader));
            let body = body.take().unwrap_or_default();
            return Settled::Passed(Response::from_parts(parts, body), Some("busy"));
        }
        fill.tell(self.heard(&opening, Heard::Open(Arc::clone(&opening))));
        Settled::Open(opening, reader.map_or(Body::Empty, Reader::body))
    }

    /// What is kept holds (RFC 9111 section 4.3.4).
    fn confirm(
        &self,
        lead: Lead,
        response: &Response,
        stale: &Arc<Stored>,
        started: Instant,
        received: Instant,
        wall: SystemTime,
    ) -> Settled {
        let etag = |headers: &HeaderMap| {
            headers.get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(|etag| opaque(etag).to_owned())
        };
        let said = etag(response.headers());
        let is_other = said.is_some() && said != etag(&stale.headers);
        if is_other || !self.is_for_the_same(response.headers(), stale) {
            lead.fill.tell(Heard::Abandoned);
            return Settled::Again;
        }
        let headers = stale.confirmed(response.headers());
        let status = stale.status;
        let mut judged = headers.clone();
        if let Some(age) = response.headers().get(header::AGE) {
            judged.insert(header::AGE, age.clone());
        }
        let head = Head { status, headers: &judged, failure: None };
        let terms = judge(self.asked, &head, &self.cache.plan, wall, received - started);
        // What it says nothing of stays.
        let tags = match is_tagged(response.headers()) {
            true => tags(response.headers()),
            false => Some(stale.tags.clone()),
        };
        let terms = terms.and_then(|terms| if tags.is_some() { Ok(terms) } else { Err("tags") });
        let stored = Arc::new(Stored {
            status,
            headers,
            body: stale.body.clone(),
            trailers: stale.trailers.clone(),
            terms: terms.unwrap_or(stale.terms),
            received,
            wall,
            born: lead.fill.born,
            checked: AtomicU64::new(0),
            doubted: AtomicBool::new(false),
            address: stale.address.clone(),
            place: Arc::clone(&stale.place),
            tags: tags.unwrap_or_default(),
            vary: stale.vary.clone(),
            chosen_by: stale.chosen_by.clone(),
        });
        match terms {
            Ok(terms) => {
                self.cache.partition.keep(lead.key().into(), Arc::clone(&stored));
                let kept = Heard::Kept(Arc::clone(&stored));
                lead.fill.tell(if terms.is_for_all() { kept } else { Heard::Alone });
            }
            Err(_) => {
                self.forget(lead.key(), Some(stale));
                lead.fill.tell(Heard::Alone);
            }
        }
        Settled::Kept(stored, StatusCode::NOT_MODIFIED.as_u16())
    }

    /// Whether a 304 says of whom its answer is for what was said before: neither other sites nor other fields that
    /// choose it.
    fn is_for_the_same(&self, said: &HeaderMap, stale: &Stored) -> bool {
        let chooses = |name: &HeaderName| stale.vary.contains(name) || self.cache.is_in_key(name);
        if said.contains_key(header::VARY) && !vary(said).is_some_and(|names| names.iter().all(chooses)) {
            return false;
        }
        let is_same = |name: &HeaderName| said.get_all(name).iter().eq(stale.headers.get_all(name));
        self.cache.has_cors || said.keys().filter(|name| is_for_sites(name)).all(is_same)
    }

    /// The head as it is kept, and its key.
    fn open(
        &self,
        lead: &Lead,
        response: &Response,
        terms: Terms,
        received: Instant,
        wall: SystemTime,
    ) -> Result<(Opening, Vec<u8>), Refusal> {
        let headers = response.headers();
        let mut names = vary(headers).ok_or("vary")?.into_vec();
        names.retain(|name| !self.cache.is_in_key(name));
        if names.iter().any(|name| is_told(name) || self.cache.rewritten.contains(name)) {
            return Err("vary");
        }
        let tags = tags(headers).ok_or("tags")?;
        if response.body().size_hint().lower() > self.cache.plan.max_body {
            return Err("too-large");
        }
        let mut headers = kept_headers(headers.clone());
        if self.cache.take_sites(&mut headers) && !names.contains(&header::ORIGIN) {
            // One site's permission is not another's.
            names.push(header::ORIGIN);
        }
        headers
            .entry(header::DATE)
            .or_insert_with(|| HeaderValue::try_from(httpdate::fmt_http_date(wall)).expect("a date is text"));
        let key =
            self.cache.partition.variant(&self.key[..self.primary], &self.headers, &names).ok_or("vary")?;
        let mut chosen_by = Vec::new();
        key::vary(&mut chosen_by, &self.headers, &names);
        let opening = Opening {
            status: response.status(),
            headers,
            terms,
            received,
            wall,
            vary: names.into(),
            chosen_by: chosen_by.into(),
            born: lead.fill.born,
            address: self.address.clone(),
            place: Arc::clone(&self.place),
            tags,
        };
        Ok((opening, key))
    }

    /// Those who asked at the same time may have it only if it is fresh for a moment at least, or if the policy gives
    /// it to them without.
    fn heard(&self, opening: &Opening, heard: Heard) -> Heard {
        if opening.terms.is_for_all() { heard } else { Heard::Alone }
    }

    /// Forgets what an answer to anybody shows to hold no more. An answer to one with cookies or credentials, or who wants
    /// nothing kept, may be that client's alone: then the next one for whom it is asks the origin.
    fn forget(&self, key: &[u8], stale: Option<&Stored>) {
        if self.asked.is_plain() {
            self.cache.partition.forget(key);
        } else if let Some(stale) = stale {
            stale.doubt();
        }
    }

    fn refuse(&self, lead: &Lead, stale: Option<&Arc<Stored>>, status: StatusCode) {
        let partition = &self.cache.partition;
        let is_gone = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
        if status.is_server_error() || status.is_client_error() && !is_gone {
            // The next one tries, and does not ask for an answer of its own for that: what the origin finds wrong with a
            // request may be a field that the key does not hold.
            lead.fill.tell(Heard::Abandoned);
            let now = Instant::now();
            if let Some(stale) = stale.filter(|stale| status.is_client_error() && stale.is_overdue(now)) {
                stale.doubt();
            }
            return;
        }
        lead.fill.tell(Heard::Alone);
        if let Some(stale) = stale {
            self.forget(lead.key(), Some(stale));
        }
        if !self.asked.no_store {
            partition.alone(lead.key(), class(self.asked), Instant::now());
        }
    }
}

impl LiveCache {
    /// Takes off what a filter further out says; whether one site's permission is left.
    fn take_sites(&self, headers: &mut HeaderMap) -> bool {
        if self.has_cors {
            let ours: Vec<HeaderName> = headers.keys().filter(|name| is_for_sites(name)).cloned().collect();
            ours.iter().for_each(|name| drop(headers.remove(name)));
            return false;
        }
        headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).is_some_and(|origin| origin != "*")
    }

    /// Whether the key holds what the backend is told in this field, whatever the client said.
    fn is_in_key(&self, name: &HeaderName) -> bool {
        *name == header::HOST
            || matches!(name.as_str(), "x-forwarded-host" | "x-forwarded-port" | "x-forwarded-proto")
    }
}

/// Whether a field tells the backend what the gateway knows, not what the client said: by the client's word answers that
/// vary by it are not told apart.
fn is_told(name: &HeaderName) -> bool {
    introduces(name.as_str())
        || *name == header::FORWARDED
        || *name == header::CONNECTION
        || *name == header::TE
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
}

/// Brings a body to its readers, and keeps it.
async fn pumping(lead: Lead, pump: Pump, body: Rc<Cell<Option<Body>>>, opening: Arc<Opening>, key: Vec<u8>) {
    let Some(pumped) = pump.run(body.take().unwrap_or_default()).await else { return };
    if let Some(pumped) = pumped {
        let stored = Arc::new(opening.keep(pumped.body, pumped.trailers));
        // First, so that nobody finds neither the fetch nor what it brought.
        lead.partition().keep(key.into(), stored);
    }
    Pump::finish(&lead.fill);
}
