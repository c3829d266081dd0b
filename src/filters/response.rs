//! `response`: changes what a backend answered. Answers that the gateway makes are not touched.

use std::sync::Arc;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Filter, FilterKind, Keep, Member, Outcome, Ring, Scope};
use super::header_edits::{Filled, HeaderEdits, HeadersSpec};
use crate::expression::REQUEST;
use crate::message::{ErrorKind, Exchange};
use crate::values::{FieldPath, Problem, Reason};

pub struct Response;

/// Changes the backend's answer.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSpec>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    headers: HeaderEdits,
}

impl Member for Response {
    const NAME: &'static str = "response";
    const APPLIES: Applies = Applies::ToBackends;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let spec = spec.headers.unwrap_or_default();
        for (list, fields) in [("set", &spec.set), ("add", &spec.add)] {
            for (index, field) in fields.iter().enumerate() {
                // The request is gone by the time of the answer.
                if field.value.replace("$${", "").contains("${") {
                    let at = FieldPath::new("headers").field(list).index(index).field("value");
                    let message =
                        "expressions (${...}) are not supported in answers; write $${ for the text ${";
                    problems.push(Problem::error(at, Reason::PolicyInvalid, message));
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let headers = HeaderEdits::new(&spec, &REQUEST, scope, &mut problems);
        if problems.is_empty() { Ok(Plan { headers }) } else { Err(problems) }
    }
}

impl FilterKind for Response {
    const RING: Ring = Ring::Transform;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(plan.clone())
    }
}

impl Filter for Plan {
    fn response<'a>(&'a self, _: &'a mut Exchange, mut response: crate::message::Response) -> Outcome<'a> {
        let is_ours = response.extensions().get::<ErrorKind>().is_some();
        if !is_ours {
            self.headers.apply(response.headers_mut(), Filled::default());
        }
        Outcome::Ready(response)
    }
}
