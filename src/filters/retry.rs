//! `retry`: how often, when and at which cost a request is tried again at a backend.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Member, Scope};
use crate::values::{Duration, FieldPath, GrpcCode, Problem, Reason};

pub struct Retry;

/// When a request is tried again.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Tries after the first; 2 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: Option<i32>,
    /// Statuses of the backend that are tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(range(min = 400, max = 599)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub codes: Vec<i32>,
    /// Statuses of gRPC with which a call is tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub grpc_codes: Vec<GrpcCode>,
    /// Wait before the second try, doubled for each further; 25ms by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Duration>,
    /// Retries of a backend's requests, over all rules; 20 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub budget_percent: Option<i32>,
    /// Repeats requests, too, that the backend may have carried out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub non_idempotent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPlan {
    /// Tries after the first.
    pub attempts: u8,
    /// In order, each once.
    pub codes: Box<[u16]>,
    /// The same of gRPC.
    pub grpc_codes: Box<[GrpcCode]>,
    pub backoff: std::time::Duration,
    /// Retries in a hundred requests.
    pub budget_percent: u8,
    pub non_idempotent: bool,
}

/// Longer would hold a client's request for nothing; a client that waits so long asks again itself.
const MAX_BACKOFF: std::time::Duration = std::time::Duration::from_secs(10);

impl Member for Retry {
    const NAME: &'static str = "retry";
    const APPLIES: Applies = Applies::ToBackends;
    type Spec = Spec;
    type Plan = RetryPlan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<RetryPlan, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        // The API server refuses these; in files they are possible.
        let attempts = spec.attempts.unwrap_or(2);
        if !(1..=10).contains(&attempts) {
            refuse(FieldPath::new("attempts"), format!("found {attempts}; from 1 to 10 are possible"));
        }
        let budget_percent = spec.budget_percent.unwrap_or(20);
        if !(1..=100).contains(&budget_percent) {
            let message = format!("found {budget_percent}; from 1 to 100 are possible");
            refuse(FieldPath::new("budgetPercent"), message);
        }
        for (index, code) in spec.codes.iter().enumerate() {
            if !(400..=599).contains(code) {
                let at = FieldPath::new("codes").index(index);
                refuse(at, format!("found {code}; statuses from 400 to 599 are possible"));
            }
        }
        let backoff = spec.backoff.map_or(std::time::Duration::from_millis(25), Duration::std);
        if backoff > MAX_BACKOFF {
            let message = format!("found {backoff:?}; make it at most {MAX_BACKOFF:?}");
            refuse(FieldPath::new("backoff"), message);
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let codes: std::collections::BTreeSet<_> = spec.codes.iter().map(|code| *code as u16).collect();
        let grpc_codes: std::collections::BTreeSet<_> = spec.grpc_codes.into_iter().collect();
        Ok(RetryPlan {
            attempts: attempts as u8,
            codes: codes.into_iter().collect(),
            grpc_codes: grpc_codes.into_iter().collect(),
            backoff,
            budget_percent: budget_percent as u8,
            non_idempotent: spec.non_idempotent,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::filters::contract_tests::NoScope;

    fn compile(spec: serde_json::Value) -> Result<RetryPlan, Vec<String>> {
        let spec = serde_json::from_value(spec).expect("of the right types");
        Retry::compile(spec, &mut NoScope).map_err(|all| all.iter().map(|p| p.path.to_string()).collect())
    }

    #[test]
    fn nothing_said_is_two_tries_within_a_fifth() {
        let plan = compile(json!({})).expect("valid");
        assert_eq!((plan.attempts, plan.budget_percent, plan.non_idempotent), (2, 20, false));
        assert_eq!((plan.codes.len(), plan.backoff), (0, std::time::Duration::from_millis(25)));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (spec, at) in [
            (json!({"attempts": 0}), "attempts"),
            (json!({"attempts": 11}), "attempts"),
            (json!({"budgetPercent": 0}), "budgetPercent"),
            (json!({"codes": [503, 200]}), "codes[1]"),
            (json!({"codes": [600]}), "codes[0]"),
            (json!({"backoff": "11s"}), "backoff"),
        ] {
            assert_eq!(compile(spec.clone()), Err(vec![at.to_owned()]), "{spec}");
        }
        let codes = compile(json!({"grpcCodes": ["Unavailable", "Aborted", "Unavailable"]}));
        assert_eq!(*codes.expect("valid").grpc_codes, [GrpcCode::Aborted, GrpcCode::Unavailable]);
        assert_eq!(*compile(json!({"codes": [504, 503, 504]})).expect("valid").codes, [503, 504]);
    }
}
