//! How requests are spread over a backend's endpoints, and what the backend has to bear.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::time::Duration;

use crate::expression::Expression;
use crate::values::Rate;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPlan {
    pub balance: Balance,
    /// What tells requests apart: those of one value meet at one endpoint. With `ConsistentHash` only.
    pub key: Option<Expression>,
    /// `None`: only endpoints that cannot be connected to are passed over.
    pub ejection: Option<EjectionPlan>,
    /// `None`: nobody asks endpoints how they are.
    pub check: Option<CheckPlan>,
    /// How long an endpoint that is new, or back, takes to get all of its share. `None`: new ones get it at once.
    pub slow_start: Option<Duration>,
    /// With fewer fit endpoints in a hundred than this all are asked.
    pub panic_percent: u8,
    /// `None`: as many connections as it takes.
    pub connections: Option<ConnectionBounds>,
    /// Requests under way at once, over all workers of a replica. `None`: no bound.
    pub max_requests: Option<u32>,
    /// `None`: it may be asked as often as anybody likes.
    pub rate: Option<RatePlan>,
}

/// Over all workers of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// Open at once; each worker may have one in any case.
    pub connections: u32,
    /// Requests that wait for one.
    pub pending: u32,
}

/// How often a backend may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RatePlan {
    pub rate: Rate,
    /// As it was written.
    pub requests: u64,
    pub per: Duration,
    pub burst: u64,
    /// By all replicas together.
    pub shared: bool,
}

/// Which endpoint is asked next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    #[default]
    RoundRobin,
    Random,
    /// Of two at random the one with fewer requests under way.
    LeastRequest,
    /// Of two at random the one that would be slower is left alone: by the time that its answers took of late, and the
    /// requests under way.
    PeakEwma,
    /// The one that the request's key belongs to; in turn for those without.
    ConsistentHash,
}

/// When an endpoint that answers badly is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EjectionPlan {
    /// Failures in a row, each a 5xx or no answer.
    pub consecutive_errors: u32,
    /// With fewer good answers of late than so many in a hundred, too.
    pub least_success: Option<u8>,
    /// The first time; longer with each further.
    pub eject_for: Duration,
    /// Of all endpoints so many in a hundred at most.
    pub max_percent: u8,
}

/// How endpoints are asked how they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckPlan {
    pub question: Question,
    pub interval: Duration,
    pub timeout: Duration,
    /// Checks in a row.
    pub healthy_after: u32,
    pub unhealthy_after: u32,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A connection is enough.
    Connect,
    /// Path and query of a GET.
    Get(Arc<str>),
    /// gRPC's own health service, about this service; empty: about the server.
    Grpc(Arc<str>),
}

impl TrafficPlan {
    /// Whether the requests under way at each endpoint matter.
    pub fn counts_requests(&self) -> bool {
        matches!(self.balance, Balance::LeastRequest | Balance::PeakEwma)
    }
}

impl Display for Question {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("by connecting"),
            Self::Get(target) => f.write_str(target),
            Self::Grpc(service) if service.is_empty() => f.write_str("by gRPC"),
            Self::Grpc(service) => write!(f, "by gRPC for {service}"),
        }
    }
}

impl Display for TrafficPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.balance != Balance::RoundRobin {
            write!(f, ", {:?}", self.balance)?;
        }
        self.key.iter().try_for_each(|key| write!(f, " of {key:?}"))?;
        self.slow_start.iter().try_for_each(|time| write!(f, ", new endpoints warm up for {time:?}"))?;
        if let Some(plan) = &self.ejection {
            write!(f, ", ejects after {} errors", plan.consecutive_errors)?;
            plan.least_success
                .iter()
                .try_for_each(|least| write!(f, " or below {least}% of good answers"))?;
            write!(f, " for {:?}, at most {}%", plan.eject_for, plan.max_percent)?;
        }
        if let Some(plan) = &self.check {
            let how = &plan.question;
            write!(
                f,
                ", checked {how} every {:?} for {:?}, unhealthy after {}, healthy after {}",
                plan.interval, plan.timeout, plan.unhealthy_after, plan.healthy_after
            )?;
        }
        if self.panic_percent > 0 {
            write!(f, ", all are asked below {}%", self.panic_percent)?;
        }
        if let Some(ConnectionBounds { connections, pending }) = self.connections {
            write!(f, ", at most {connections} connections, for which {pending} requests wait")?;
        }
        self.max_requests.iter().try_for_each(|most| write!(f, ", at most {most} requests at once"))?;
        self.rate.iter().try_for_each(|rate| {
            let whose = if rate.shared { " of all replicas" } else { "" };
            write!(f, ", at most {} requests{whose} in {:?}, {} at once", rate.requests, rate.per, rate.burst)
        })
    }
}
