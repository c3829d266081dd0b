//! One finished request, as it is counted.

use std::sync::Arc;
use std::time::Duration;

/// One finished request. Everything in it is from configuration or a closed set.
#[derive(Clone, Debug)]
pub struct Sample {
    pub status: u16,
    pub method: http::Method,
    /// "HTTP/1.0", "HTTP/1.1" or "HTTP/2"
    pub protocol: &'static str,
    pub scheme: &'static str,
    /// From the request's head to the end of the answer's body.
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Why the gateway itself answered, or why the answer was cut.
    pub reason: Option<&'static str>,
    /// What authorization said, where it was asked.
    pub ruling: Option<Ruling>,
    /// The rate limit that refused it, or would have.
    pub limited: Option<Limited>,
    /// The limits that the store could not be asked about.
    pub fallbacks: Vec<Arc<str>>,
    /// What external authorizers said, where any were asked.
    pub consulted: Option<Consulted>,
    /// The answer was compressed.
    pub packed: Option<Packed>,
    /// What the cache did.
    pub cached: Option<Cached>,
    /// What a call of gRPC came to. None: it is none.
    pub call: Option<CallStatus>,
}

/// What a call of gRPC came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStatus {
    /// It ended before it had a status.
    Missing,
    /// From 0 to 16.
    Number(u8),
}

/// Statuses of gRPC by number, as logs and metrics name them; then of calls that have none.
pub(super) const CALL_STATUSES: [&str; 18] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
    "(none)",
];

impl CallStatus {
    pub(super) fn index(self) -> usize {
        match self {
            Self::Number(number) if usize::from(number) < CALL_STATUSES.len() - 1 => usize::from(number),
            Self::Number(_) | Self::Missing => CALL_STATUSES.len() - 1,
        }
    }

    pub fn as_str(self) -> &'static str {
        CALL_STATUSES[self.index()]
    }
}

/// What an answer was before it was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// One of a closed set.
    pub coding: &'static str,
    pub plain: u64,
}

/// What external authorizers said to a request; of several the last in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consulted {
    Allowed,
    /// It gave no answer that counts, and the policy lets the request pass then.
    AllowedOnFailure,
    Denied,
    Failed,
}

impl Consulted {
    pub(super) const ALL: [Self; 4] = [Self::Allowed, Self::AllowedOnFailure, Self::Denied, Self::Failed];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allow",
            Self::AllowedOnFailure => "allow_on_failure",
            Self::Denied => "deny",
            Self::Failed => "failure",
        }
    }
}

/// What the cache did for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cached {
    /// Answered by what is kept.
    Hit,
    /// The same, past its time.
    Stale,
    /// The origin said that what is kept holds.
    Revalidated,
    /// Answered by another's fetch.
    Collapsed,
    Miss,
    /// It is nothing for a cache.
    Bypass,
}

pub(super) const CACHED: [&str; 6] = ["hit", "stale", "revalidated", "collapsed", "miss", "bypass"];

impl Cached {
    pub const fn as_str(self) -> &'static str {
        CACHED[self as usize]
    }
}

/// What a rate limit said to a request that was too much.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limited {
    /// Name of the limit.
    pub limit: Arc<str>,
    /// It only counts.
    pub dry_run: bool,
}

/// What authorization said to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The name of the rule that decided; none: no rule allows it.
    pub rule: Option<Arc<str>>,
    pub allows: bool,
}

impl Ruling {
    /// What log and metrics show in the place of a rule that there is not.
    pub(super) const NO_RULE: &str = "(none)";

    /// The name of the rule that decided.
    pub fn rule_name(&self) -> &str {
        self.rule.as_deref().unwrap_or(Self::NO_RULE)
    }
}
