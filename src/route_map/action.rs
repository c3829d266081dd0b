//! What a rule does with a request that passed its filters. Exactly one of these.

use std::sync::Arc;

use bytes::Bytes;

use super::aggregate::AggregatePlan;
use crate::filters::{MirrorPlan, PathChange, RetryPlan, SessionPlan, TimeoutsPlan};
use crate::message::{ErrorKind, Scheme};
use crate::values::BackendId;

#[derive(Debug, PartialEq)]
pub enum Action {
    Forward(ForwardPlan),
    Aggregate(Box<AggregatePlan>),
    Redirect(RedirectPlan),
    Respond(RespondPlan),
    /// A rule that cannot be served: it answers with its reason rather than with its older self.
    Unserved(Unserved),
}

#[derive(Debug, PartialEq)]
pub struct ForwardPlan {
    /// Weights are positive; entries of weight 0 are left out. Empty: no backend at all (500 by Gateway API).
    pub backends: Vec<WeightedBackend>,
    pub timeouts: TimeoutsPlan,
    /// `None`: only what surely was not processed goes out again.
    pub retry: Option<Box<RetryPlan>>,
    /// Where copies of requests go.
    pub mirror: Option<Box<MirrorPlan>>,
    /// `None`: each request is balanced for itself.
    pub sessions: Option<Box<SessionPlan>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBackend {
    pub weight: u32,
    pub target: WeightedTarget,
}

#[derive(Clone, Debug, PartialEq)]
pub enum WeightedTarget {
    Backend(BackendId),
    /// Does not resolve: its share of requests gets this answer (500 `BackendNotFound`).
    Unresolved(ErrorKind),
}

/// Gateway API's HTTPRequestRedirectFilter: what is `None` stays as it was in the request.
#[derive(Debug, PartialEq)]
pub struct RedirectPlan {
    pub scheme: Option<Scheme>,
    pub hostname: Option<Arc<str>>,
    pub port: Option<u16>,
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A fixed answer.
#[derive(Debug, PartialEq)]
pub struct RespondPlan {
    pub status: u16,
    pub content_type: Option<Arc<str>>,
    pub body: Bytes,
}

/// Why a rule is not served, as the client is told: 503 with this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    pub kind: ErrorKind,
}
