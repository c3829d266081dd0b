//! `response`: changes what a backend answered. Answers that the gateway makes are not touched.

use std::sync::Arc;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Filter, FilterKind, Keep, Member, Outcome, Ring, Scope};
use super::header_edits::{HeaderEdits, HeadersSpec};
use crate::message::{ErrorKind, Exchange};
use crate::values::Problem;

pub struct Response;

/// Changes the backend's answer.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    headers: HeaderEdits,
}

impl Member for Response {
    const NAME: &'static str = "response";
    const APPLIES: Applies = Applies::ToBackends;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let headers = HeaderEdits::new(&spec.headers.unwrap_or_default(), &mut problems);
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
            self.headers.apply(response.headers_mut());
        }
        Outcome::Ready(response)
    }
}
