//! `faultInjection`: some requests wait, or fail, before a backend is asked: to try out what clients do then.
//!
//! Invariant: it can only hold up or refuse a request, after every gate; what has no answer by `timeouts.request` fails
//! as it would at a slow backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::contract::{Applies, Decision, Filter, FilterKind, Keep, Member, Ring, Scope};
use crate::expression::{Expression, Kind, REQUEST, Subject};
use crate::message::{ErrorKind, Exchange, ProxyError};
use crate::values::{Duration, FieldPath, Problem, Reason};

pub struct FaultInjection;

/// Requests that wait, or fail.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("has(self.abort) || has(self.delay)", SAY_ONE))]
pub struct Spec {
    /// Requests that are answered with an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<AbortSpec>,
    /// Requests that go on later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DelaySpec>,
    /// Only requests of which this holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub when: Option<String>,
}

/// An answer of the gateway's own in place of a backend's.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbortSpec {
    /// Status of the answer; 503 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 400, max = 599))]
    pub status: Option<i32>,
    /// Of the requests so many in a hundred; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i32>,
}

/// A wait before the backend is asked.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DelaySpec {
    /// How long; at most 1m.
    #[x_kube(validation = ("duration(self) > duration('0s') && duration(self) <= duration('1m')", WAITS))]
    pub duration: Duration,
    /// Of the requests so many in a hundred; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i32>,
}

const SAY_ONE: &str = "say abort, delay or both";
const WAITS: &str = "from 1ms to 1m are possible";
const LONGEST: std::time::Duration = std::time::Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// With so many requests in a hundred.
    abort: Option<(StatusCode, u32)>,
    delay: Option<(std::time::Duration, u32)>,
    when: Option<Expression>,
}

impl Member for FaultInjection {
    const NAME: &'static str = "faultInjection";
    const APPLIES: Applies = Applies::ToBackends;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        if spec.abort.is_none() && spec.delay.is_none() {
            refuse(FieldPath::default(), SAY_ONE.into());
        }
        let mut percent = |of: &str, given: Option<i32>| {
            let found = given.unwrap_or(100);
            if !(1..=100).contains(&found) {
                let at = FieldPath::new(of).field("percent");
                refuse(at, format!("found {found}; from 1 to 100 are possible"));
            }
            found.unsigned_abs()
        };
        let abort = spec.abort.map(|abort| (abort.status.unwrap_or(503), percent("abort", abort.percent)));
        let delay = spec.delay.map(|delay| (delay.duration.std(), percent("delay", delay.percent)));
        if let Some((time, _)) = delay
            && (time.is_zero() || time > LONGEST)
        {
            refuse(FieldPath::new("delay").field("duration"), format!("found {time:?}; {WAITS}"));
        }
        let abort = abort.and_then(|(status, percent)| {
            let status = u16::try_from(status).ok().filter(|status| (400..=599).contains(status));
            let Some(status) = status.and_then(|status| StatusCode::from_u16(status).ok()) else {
                let at = FieldPath::new("abort").field("status");
                refuse(at, "statuses from 400 to 599 are possible".into());
                return None;
            };
            Some((status, percent))
        });
        let when =
            spec.when.map(|when| scope.expression(FieldPath::new("when"), &when, &REQUEST, Kind::BOOL));
        match (problems.is_empty(), when) {
            (true, None) => Ok(Plan { abort, delay, when: None }),
            (true, Some(Some(when))) => Ok(Plan { abort, delay, when: Some(when) }),
            _ => Err(problems),
        }
    }
}

impl FilterKind for FaultInjection {
    const RING: Ring = Ring::FaultInjection;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(Faults { plan: plan.clone(), aborts: Share::new(37), delays: Share::new(63) })
    }
}

/// The linked member.
struct Faults {
    plan: Plan,
    aborts: Share,
    delays: Share,
}

/// Picks exactly as many of each hundred as are wanted, scattered over them.
struct Share {
    count: AtomicU32,
    /// Has no divisor with 100.
    step: u32,
}

impl Share {
    const fn new(step: u32) -> Self {
        Self { count: AtomicU32::new(0), step }
    }

    fn picks(&self, percent: u32) -> bool {
        let number = self.count.fetch_add(1, Ordering::Relaxed) % 100;
        number * self.step % 100 < percent
    }
}

impl Filter for Faults {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        // What cannot be decided is left alone: a fault is wanted only where it is asked for.
        let applies =
            self.plan.when.as_ref().is_none_or(|when| matches!(when.holds(&Subject { exchange }), Ok(true)));
        if !applies {
            return Decision::Continue;
        }
        let abort =
            self.plan.abort.filter(|(_, percent)| self.aborts.picks(*percent)).map(|(status, _)| status);
        let Some((delay, _)) = self.plan.delay.filter(|(_, percent)| self.delays.picks(*percent)) else {
            return outcome(abort);
        };
        let deadline = exchange.deadline;
        Decision::Wait(Box::pin(async move {
            let until = Instant::now() + delay;
            tokio::time::sleep_until(deadline.map_or(until, |deadline| deadline.min(until))).await;
            match deadline {
                Some(deadline) if deadline <= until => ErrorKind::BackendTimeout.into(),
                _ => outcome(abort),
            }
        }))
    }
}

fn outcome(abort: Option<StatusCode>) -> Decision<'static> {
    match abort {
        None => Decision::Continue,
        Some(status) => ProxyError { status: Some(status), ..ErrorKind::FaultInjected.into() }.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::contract_tests::NoScope;
    use super::*;

    fn compile(spec: Value) -> Result<Plan, Vec<Problem>> {
        FaultInjection::compile(serde_json::from_value(spec).expect("the form"), &mut NoScope)
    }

    #[test]
    fn of_each_hundred_exactly_as_many_are_picked() {
        for step in [37, 63] {
            for percent in [1, 10, 33, 50, 99, 100] {
                let share = Share::new(step);
                for _ in 0..3 {
                    let picked = (0..100).filter(|_| share.picks(percent)).count();
                    assert_eq!(picked, percent as usize);
                }
            }
        }
        let share = Share::new(37);
        let first = (0..20).filter(|_| share.picks(50)).count();
        assert!((8..=12).contains(&first), "scattered: {first}");
    }

    #[test]
    fn what_means_nothing_is_refused_with_the_field_and_the_remedy() {
        for (spec, at, says) in [
            (json!({}), "", SAY_ONE),
            (json!({"abort": {"status": 200}}), "abort.status", "from 400 to 599"),
            (json!({"abort": {"percent": 0}}), "abort.percent", "from 1 to 100"),
            (json!({"delay": {"duration": "1s", "percent": 101}}), "delay.percent", "from 1 to 100"),
            (json!({"delay": {"duration": "0s"}}), "delay.duration", WAITS),
            (json!({"delay": {"duration": "61s"}}), "delay.duration", WAITS),
        ] {
            let problems = compile(spec.clone()).expect_err("refused");
            let told: Vec<_> = problems.iter().map(|one| (one.path.to_string(), &one.message)).collect();
            assert!(told.iter().any(|(path, text)| path == at && text.contains(says)), "{spec}: {told:?}");
        }
        let plan = compile(json!({"abort": {}, "delay": {"duration": "20ms", "percent": 5}})).expect("good");
        assert_eq!(plan.abort, Some((StatusCode::SERVICE_UNAVAILABLE, 100)));
        assert_eq!(plan.delay, Some((std::time::Duration::from_millis(20), 5)));
    }
}
