//! How a GatewayBackend's requests are spread, and what it has to bear. The numbers were found to be in their bounds when
//! the object was read.

use std::time::Duration;

use super::asking::{Asking, Budget, Holder};
use super::question::Asker;
use crate::api::{
    ActiveCheck, BackendLimits, BackendRateLimit, BalancePolicy, GatewayBackendSpec, PassiveCheck,
};
use crate::expression::{Kind, REQUEST};
use crate::filters::{RateLimitScope, Scope as _};
use crate::route_map::{
    BackendProtocol, Balance, CheckPlan, ConnectionBounds, EjectionPlan, Question, RatePlan, TrafficPlan,
};
use crate::values::{Duration as Length, FieldPath, ObjectName, Problem, Rate, Reason};

/// `None`: something is wrong, and told.
pub(super) fn plan(
    spec: &GatewayBackendSpec,
    name: &ObjectName,
    asker: &mut Asker<'_>,
    problems: &mut Vec<Problem>,
) -> Option<TrafficPlan> {
    let balance = match spec.load_balancer.as_ref().map(|wanted| wanted.policy).unwrap_or_default() {
        BalancePolicy::RoundRobin => Balance::RoundRobin,
        BalancePolicy::LeastRequest => Balance::LeastRequest,
        BalancePolicy::PeakEwma => Balance::PeakEwma,
        BalancePolicy::Random => Balance::Random,
        BalancePolicy::ConsistentHash => Balance::ConsistentHash,
    };
    let hashed = spec.load_balancer.as_ref().and_then(|wanted| wanted.consistent_hash.as_ref());
    let key = match hashed {
        None => None,
        Some(hashed) => {
            let (holder, mut budget) =
                (Holder { kind: "GatewayBackend", name, rule: None }, Budget::default());
            let mut asking = Asking::new(asker, holder, &mut budget);
            let at = FieldPath::new("spec.loadBalancer.consistentHash.key");
            let key = asking.expression(at, &hashed.key, &REQUEST, Kind::ANY);
            problems.append(&mut asking.problems);
            Some(key?)
        }
    };
    let health = spec.health_check.as_ref();
    Some(TrafficPlan {
        balance,
        key,
        slow_start: spec.load_balancer.as_ref().and_then(|wanted| wanted.slow_start).map(Length::std),
        ejection: health.and_then(|check| check.passive.as_ref()).map(ejection),
        check: health.and_then(|check| check.active.as_ref()).map(check),
        panic_percent: health.and_then(|check| check.panic_percent).unwrap_or(0).clamp(0, 100) as u8,
        connections: spec.limits.as_ref().and_then(connections),
        max_requests: spec.limits.as_ref().and_then(|limits| limits.requests).map(i32::unsigned_abs),
        rate: spec.rate_limit.as_ref().and_then(|limit| rate(limit, asker.has_store(), problems)),
    })
}

/// What cannot be asked over what is spoken to the backend.
pub(super) fn problem(traffic: &TrafficPlan, protocol: BackendProtocol) -> Option<Problem> {
    let question = traffic.check.as_ref().map(|check| &check.question);
    let impossible = matches!(question, Some(Question::Grpc(_))) && protocol == BackendProtocol::Http1;
    let message = "gRPC needs HTTP/2 and this backend is asked by HTTP/1.1; set protocol: H2C, or tls, or give the Service's port appProtocol: kubernetes.io/h2c";
    let at = FieldPath::new("spec").field("healthCheck").field("active").field("grpc");
    impossible.then(|| Problem::error(at, Reason::Invalid, message.to_owned()))
}

/// `None`: it cannot be kept, and that is told.
fn rate(limit: &BackendRateLimit, has_store: bool, problems: &mut Vec<Problem>) -> Option<RatePlan> {
    let at = FieldPath::new("spec.rateLimit");
    let requests = limit.requests.unsigned_abs();
    let burst = limit.burst.map_or(requests, i64::unsigned_abs);
    let per = limit.per.std();
    let Some(rate) = Rate::new(requests, per, burst) else {
        let message = "such a burst would be counted for a hundred years; lower burst or raise requests";
        problems.push(Problem::error(at.field("burst"), Reason::Invalid, message));
        return None;
    };
    let shared = limit.scope == Some(RateLimitScope::Global);
    if shared && !has_store {
        let message = "no store is given to this installation (--redis), so each replica counts for itself";
        problems.push(Problem::warning(at.field("scope"), Reason::UnsupportedValue, message));
    }
    Some(RatePlan { rate, requests, per, burst, shared })
}

fn connections(limits: &BackendLimits) -> Option<ConnectionBounds> {
    Some(ConnectionBounds {
        connections: limits.connections?.unsigned_abs(),
        pending: limits.pending_requests.map_or(1024, i32::unsigned_abs),
    })
}

fn check(check: &ActiveCheck) -> CheckPlan {
    let time = |given: Option<crate::values::Duration>, usual| given.map_or(usual, |given| given.std());
    CheckPlan {
        question: match (&check.grpc, check.path.as_deref()) {
            (Some(grpc), _) => Question::Grpc(grpc.service.as_deref().unwrap_or_default().into()),
            (None, Some(path)) => Question::Get(path.into()),
            (None, None) => Question::Connect,
        },
        interval: time(check.interval, Duration::from_secs(5)),
        timeout: time(check.timeout, Duration::from_secs(1)),
        healthy_after: check.healthy_after.unwrap_or(2).unsigned_abs(),
        unhealthy_after: check.unhealthy_after.unwrap_or(3).unsigned_abs(),
    }
}

fn ejection(check: &PassiveCheck) -> EjectionPlan {
    EjectionPlan {
        consecutive_errors: check.consecutive_errors.unwrap_or(5).unsigned_abs(),
        least_success: check.min_success_percent.map(|least| least.clamp(1, 100) as u8),
        eject_for: check.eject_for.map_or(Duration::from_secs(30), |given| given.std()),
        max_percent: check.max_ejected_percent.unwrap_or(50).clamp(0, 100) as u8,
    }
}
