//! How a GatewayBackend's requests are spread, and what it has to bear. The numbers were found to be in their bounds when
//! the object was read.

use std::time::Duration;

use crate::api::{BalancePolicy, GatewayBackendSpec, PassiveCheck};
use crate::route_map::{Balance, EjectionPlan, TrafficPlan};

pub(super) fn plan(spec: &GatewayBackendSpec) -> TrafficPlan {
    let balance = match spec.load_balancer.as_ref().map(|wanted| wanted.policy).unwrap_or_default() {
        BalancePolicy::RoundRobin => Balance::RoundRobin,
        BalancePolicy::LeastRequest => Balance::LeastRequest,
        BalancePolicy::PeakEwma => Balance::PeakEwma,
        BalancePolicy::Random => Balance::Random,
    };
    TrafficPlan {
        balance,
        ejection: spec.health_check.as_ref().map(|check| ejection(&check.passive)),
        max_requests: spec.limits.as_ref().map(|limits| limits.requests.unsigned_abs()),
    }
}

fn ejection(check: &PassiveCheck) -> EjectionPlan {
    EjectionPlan {
        consecutive_errors: check.consecutive_errors.unwrap_or(5).unsigned_abs(),
        eject_for: check.eject_for.map_or(Duration::from_secs(30), |given| given.std()),
        max_percent: check.max_ejected_percent.unwrap_or(50).clamp(0, 100) as u8,
    }
}
