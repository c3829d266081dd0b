//! One request's context, from its match to its answer.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::message::{Called, Client, Compressed, ErrorKind, Identity, Outbound, RawJson, Request, Wished};
use crate::telemetry::{Cached, Consulted, Limited, Ruling};

/// Sixteen random bytes that name a request in answers and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(pub [u8; 16]);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The configured names under which a request is counted and logged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    pub namespace: Arc<str>,
    pub route: Arc<str>,
    pub rule: Arc<str>,
}

/// What the `{name}` parts of the matched path template hold, percent-encoded as the client sent them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captures(pub Vec<(Arc<str>, Box<str>)>);

impl Captures {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }
}

/// What is left of a rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Its name.
    pub limit: Arc<str>,
    /// So many requests more.
    pub left: u64,
    /// Seconds until there is more; 0: nothing is missing.
    pub more: u64,
}

/// The rate limits that a request was charged to.
#[derive(Debug, Default)]
pub struct Quotas {
    /// The one that has least left.
    pub least: Option<Quota>,
    /// The answer tells some of them already.
    pub told: bool,
    /// The limits that the store could not be asked about.
    pub fallbacks: Vec<Arc<str>>,
}

/// What is kept of a request's head.
#[derive(Clone, Debug)]
pub struct Asker {
    pub method: http::Method,
    pub uri: http::Uri,
    pub accept: Option<http::HeaderValue>,
}

/// A failure as the text of another answer may tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub status: u16,
    /// Empty: the backend's.
    pub reason: &'static str,
    pub origin: &'static str,
}

impl Quotas {
    pub fn merge(&mut self, quota: Option<Quota>) {
        if let Some(quota) = quota
            && self.least.as_ref().is_none_or(|least| quota.left < least.left)
        {
            self.least = Some(quota);
        }
    }
}

/// A request's place among those that may be under way at once; given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicU32>);

impl Place {
    /// `None`: there are `most` already.
    pub fn take(open: &Arc<AtomicU32>, most: u32) -> Option<Self> {
        let more = |open: u32| (open < most).then(|| open + 1);
        open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(Arc::clone(open)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer as expressions read it.
#[derive(Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Where it was read.
    pub body: Option<Arc<RawJson>>,
}

/// The context of one request. `request` is what will go to the backend: filters change it in place.
pub struct Exchange {
    pub request: Request,
    pub client: Client,
    /// Set by authentication; anonymous until then.
    pub identity: Identity,
    /// What the last authorization said that was asked.
    pub ruling: Option<Ruling>,
    /// The rate limit that refused it, or would have.
    pub limited: Option<Limited>,
    pub quotas: Quotas,
    /// Held until its answer is over, body and tunnel included.
    pub places: Vec<Place>,
    /// What external authorizers said, if any were asked.
    pub consulted: Option<Consulted>,
    /// What the cache did, where there is one.
    pub cached: Option<Cached>,
    /// The site whose script asks, where `cors` allows it; kept, as a transform may take the field away.
    pub origin: Option<http::HeaderValue>,
    /// What the client says of the codings of its answer, where `compression` wants to know.
    pub wished: Wished,
    /// The answer is compressed on its way.
    pub compressed: Option<Compressed>,
    /// Who asked for what, where `errors` must tell it after the request has gone to the backend.
    pub asker: Option<Box<Asker>>,
    /// The failure in whose place an answer is made.
    pub failed: Option<Failed>,
    /// The answer stands in the route, whatever its status.
    pub fixed_answer: bool,
    /// Host that the request is for, lower case, without port.
    pub host: Arc<str>,
    pub labels: Arc<Labels>,
    pub captures: Captures,
    /// The name under which the backend is asked, where `request.host` sets it: it goes before the client's and the
    /// backend's own.
    pub host_override: Option<http::HeaderValue>,
    /// The literal part of the path that the winning PathPrefix match covers, in bytes of the request's path; 0 when
    /// the match is of another type. `replacePrefix` replaces exactly these.
    pub matched_prefix: usize,
    pub request_id: RequestId,
    pub started: Instant,
    /// When the whole request must be answered (head), if at all.
    pub deadline: Option<Instant>,
    /// Why the request's body was cut, where a filter counts what passes of it.
    pub body_failure: Option<Rc<Cell<Option<ErrorKind>>>>,
    /// The calls of an aggregation, in the order of its plan. Empty: it is none, or has not begun.
    pub calls: Vec<Called>,
    /// The head of `request` as it came, where something asks about it once it is gone.
    pub asked: Option<Box<Request>>,
    /// The body of `request`, while something asks about it.
    pub request_body: Option<Arc<RawJson>>,
    /// What came of it, while something asks about that.
    pub answered: Option<Box<Answered>>,
    /// What the client is told of its session, outside of whatever is kept of the answer.
    pub session: Option<Box<(http::HeaderName, http::HeaderValue)>>,
    pub outbound: Rc<dyn Outbound>,
}

impl Exchange {
    /// A request of nobody in particular, under a rule without captures, prefix and deadline.
    #[inline]
    pub fn new(
        request: Request,
        client: Client,
        host: Arc<str>,
        labels: Arc<Labels>,
        request_id: RequestId,
        started: Instant,
        outbound: Rc<dyn Outbound>,
    ) -> Self {
        Self {
            request,
            client,
            identity: Identity::ANONYMOUS,
            ruling: None,
            limited: None,
            quotas: Quotas::default(),
            places: Vec::new(),
            consulted: None,
            cached: None,
            origin: None,
            asker: None,
            failed: None,
            fixed_answer: false,
            wished: Wished::default(),
            compressed: None,
            host,
            labels,
            captures: Captures::default(),
            host_override: None,
            matched_prefix: 0,
            request_id,
            started,
            deadline: None,
            body_failure: None,
            calls: Vec::new(),
            asked: None,
            request_body: None,
            answered: None,
            session: None,
            outbound,
        }
    }

    /// The same context for another request of the same client: for work that goes on without it.
    pub fn again(&self, request: Request, request_id: RequestId) -> Self {
        Self {
            identity: self.identity.clone(),
            captures: self.captures.clone(),
            matched_prefix: self.matched_prefix,
            ..Self::new(
                request,
                self.client.clone(),
                Arc::clone(&self.host),
                Arc::clone(&self.labels),
                request_id,
                Instant::now(),
                Rc::clone(&self.outbound),
            )
        }
    }

    /// What limits and caches tell clients apart by: unique over kinds and issuers, the network of the anonymous.
    pub fn identity_key(&self) -> String {
        match self.identity.known() {
            Some(known) => known.key(),
            None => format!("Anonymous||{}", self.client.network()),
        }
    }
}
