//! How requests are spread over a backend's endpoints, and what the backend has to bear.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficPlan {
    pub balance: Balance,
    /// `None`: only endpoints that cannot be connected to are passed over.
    pub ejection: Option<EjectionPlan>,
    /// Requests under way at once, over all workers of a replica. `None`: no bound.
    pub max_requests: Option<u32>,
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
}

/// When an endpoint that answers badly is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EjectionPlan {
    /// Failures in a row, each a 5xx or no answer.
    pub consecutive_errors: u32,
    /// The first time; longer with each further.
    pub eject_for: Duration,
    /// Of all endpoints so many in a hundred at most.
    pub max_percent: u8,
}

impl TrafficPlan {
    /// Whether the requests under way at each endpoint matter.
    pub fn counts_requests(&self) -> bool {
        matches!(self.balance, Balance::LeastRequest | Balance::PeakEwma)
    }
}

impl Display for TrafficPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.balance != Balance::RoundRobin {
            write!(f, ", {:?}", self.balance)?;
        }
        if let Some(plan) = &self.ejection {
            write!(
                f,
                ", ejects after {} errors for {:?}, at most {}%",
                plan.consecutive_errors, plan.eject_for, plan.max_percent
            )?;
        }
        self.max_requests.iter().try_for_each(|most| write!(f, ", at most {most} requests at once"))
    }
}
