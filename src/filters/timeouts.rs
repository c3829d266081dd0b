//! `timeouts`: how long a request, one try at a backend, a connect and a silent stream may take.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Member, Scope};
use crate::values::{Duration, FieldPath, Problem, Reason};

pub struct Timeouts;

/// Time limits of a rule; `0s` means none.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "!has(self.backendRequest) || duration(has(self.request) ? self.request : '30s') == duration('0s') || duration(self.backendRequest) <= duration(has(self.request) ? self.request : '30s')"
    )
    .message("backendRequest is at most as long as request, which is 30s by default")
    .field_path(".backendRequest")
)]
pub struct Spec {
    /// From the request's end to the answer's head; 30s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// One try at a backend, from the request's end to the answer's head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Duration>,
    /// To connect to an endpoint; 2s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
    /// Silence that cuts an answer (60s by default), a tunnel or gRPC stream (5m).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
}

/// The limits of a rule. `None` is "no limit", asked for by `0s`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutsPlan {
    pub request: Option<std::time::Duration>,
    pub backend_request: Option<std::time::Duration>,
    pub connect: Option<std::time::Duration>,
    /// Bodies in either direction.
    pub idle: Option<std::time::Duration>,
    /// Upgraded connections.
    pub tunnel_idle: Option<std::time::Duration>,
}

impl Default for TimeoutsPlan {
    fn default() -> Self {
        let secs = |n| Some(std::time::Duration::from_secs(n));
        Self {
            request: secs(30),
            backend_request: None,
            connect: secs(2),
            idle: secs(60),
            tunnel_idle: secs(300),
        }
    }
}

impl Member for Timeouts {
    const NAME: &'static str = "timeouts";
    const APPLIES: Applies = Applies::ToBackends;
    type Spec = Spec;
    type Plan = TimeoutsPlan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<TimeoutsPlan, Vec<Problem>> {
        let defaults = TimeoutsPlan::default();
        let limit = |given: Option<Duration>, default| match given {
            None => default,
            Some(zero) if zero.is_zero() => None,
            Some(some) => Some(some.std()),
        };
        let plan = TimeoutsPlan {
            request: limit(spec.request, defaults.request),
            backend_request: limit(spec.backend_request, defaults.backend_request),
            connect: limit(spec.connect, defaults.connect),
            idle: limit(spec.idle, defaults.idle),
            tunnel_idle: limit(spec.idle, defaults.tunnel_idle),
        };
        if let (Some(whole), Some(one_try)) = (plan.request, plan.backend_request)
            && one_try > whole
        {
            let by_default = if spec.request.is_none() { " by default" } else { "" };
            return Err(vec![Problem::error(
                FieldPath::new("backendRequest"),
                Reason::PolicyInvalid,
                format!(
                    "backendRequest is {one_try:?} and longer than request, which is {whole:?}{by_default}; make it at most as long"
                ),
            )]);
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::contract_tests::NoScope;

    fn compile(request: Option<&str>, backend_request: Option<&str>) -> Result<TimeoutsPlan, Vec<Problem>> {
        let duration = |text: Option<&str>| text.map(|text| text.parse().expect("a duration"));
        let spec = Spec {
            request: duration(request),
            backend_request: duration(backend_request),
            ..Spec::default()
        };
        Timeouts::compile(spec, &mut NoScope)
    }

    #[test]
    fn one_try_fits_into_the_whole() {
        for (request, backend_request, is_good) in [
            (Some("5s"), Some("5s"), true),
            (Some("5s"), Some("5001ms"), false),
            (Some("0s"), Some("1h"), true),
            (None, Some("30s"), true),
            (None, Some("31s"), false),
            (Some("5s"), Some("0s"), true),
        ] {
            assert_eq!(compile(request, backend_request).is_ok(), is_good, "{request:?} {backend_request:?}");
        }
    }

    #[test]
    fn zero_asks_for_no_limit_and_nothing_for_the_default() {
        let plan = compile(Some("0s"), None).expect("valid");
        assert_eq!(plan, TimeoutsPlan { request: None, ..TimeoutsPlan::default() });
    }
}
