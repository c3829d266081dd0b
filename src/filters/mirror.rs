//! `mirror`: copies of some requests go to another backend, whose answers nobody waits for.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Member, Scope};
use crate::values::{AskedBackendRef, BackendId, FieldPath, Problem, Reason};

pub struct Mirror;

/// Copies of requests, to try something out with them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Where they go; what it answers is thrown away.
    pub backend_ref: AskedBackendRef,
    /// Of the requests so many in a hundred; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorPlan {
    /// None: it is not there, or may not be used, which is told; clients do not suffer from it.
    pub backend: Option<BackendId>,
    /// Of each hundred requests, from 1 to 100.
    pub percent: u32,
}

impl Member for Mirror {
    const NAME: &'static str = "mirror";
    const APPLIES: Applies = Applies::ToBackendRefs;
    type Spec = Spec;
    type Plan = MirrorPlan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<MirrorPlan, Vec<Problem>> {
        let refuse =
            |path: FieldPath, message: String| vec![Problem::error(path, Reason::PolicyInvalid, message)];
        let at = FieldPath::new("backendRef");
        // The API server refuses these; in files they are possible.
        if let Some((field, message)) = spec.backend_ref.mistake() {
            return Err(refuse(at.field(field), message.to_owned()));
        }
        let percent = spec.percent.unwrap_or(100);
        if !(1..=100).contains(&percent) {
            let message = format!("found {percent}; from 1 to 100 are possible");
            return Err(refuse(FieldPath::new("percent"), message));
        }
        let backend = scope.dispensable_backend(at, &spec.backend_ref);
        Ok(MirrorPlan { backend, percent: percent.unsigned_abs() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::filters::contract_tests::NoScope;

    fn compile(spec: serde_json::Value) -> Result<MirrorPlan, Vec<String>> {
        let spec = serde_json::from_value(spec).expect("of the right types");
        Mirror::compile(spec, &mut NoScope).map_err(|all| all.iter().map(|p| p.path.to_string()).collect())
    }

    #[test]
    fn all_requests_are_copied_unless_less_is_asked_for() {
        let to = json!({"name": "next", "port": 8080});
        assert_eq!(compile(json!({"backendRef": to})).expect("valid").percent, 100);
        assert_eq!(compile(json!({"backendRef": to, "percent": 7})).expect("valid").percent, 7);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let to = json!({"name": "next", "port": 8080});
        for (spec, at) in [
            (json!({"backendRef": to, "percent": 0}), "percent"),
            (json!({"backendRef": to, "percent": 101}), "percent"),
            (json!({"backendRef": {"name": "next"}}), "backendRef.port"),
            (json!({"backendRef": {"kind": "GatewayBackend", "name": "next", "port": 1}}), "backendRef.port"),
        ] {
            assert_eq!(compile(spec.clone()), Err(vec![at.to_owned()]), "{spec}");
        }
    }
}
