//! `request`: changes what the backend is asked: header fields, path, host, query.

use std::sync::Arc;

use http::HeaderValue;
use http::uri::{PathAndQuery, Uri};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Decision, Filter, FilterKind, Keep, Member, Ring, Scope};
use super::header_edits::{HeaderEdits, HeadersSpec};
use super::query_edits::{QueryEdits, QuerySpec};
use crate::message::{ErrorKind, Exchange};
use crate::values::{FieldPath, Hostname, PathRewrite, PathRewriteSpec, Problem, Reason};

pub struct Request;

/// Changes the request before it goes to the backend.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSpec>,
    /// Path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewriteSpec>,
    /// Host under which the backend is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = HOSTNAME))]
    pub host: Option<String>,
    /// Parameters of the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<QuerySpec>,
}

/// DNS labels.
const HOSTNAME: &str = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    headers: HeaderEdits,
    path: Option<PathRewrite>,
    host: Option<HeaderValue>,
    query: Option<QueryEdits>,
}

impl Member for Request {
    const NAME: &'static str = "request";
    const APPLIES: Applies = Applies::ToBackends;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let headers = HeaderEdits::new(&spec.headers.unwrap_or_default(), &mut problems);
        let query = spec.query.map(|query| QueryEdits::new(&query, &mut problems));
        let mut refuse = |path, message| problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        let path = spec.path.and_then(|path| match PathRewrite::new(&path) {
            Ok(rewrite) => Some(rewrite),
            Err(error) => {
                refuse(FieldPath::new("path"), error.to_string());
                None
            }
        });
        let host = spec.host.and_then(|host| match (host.parse(), HeaderValue::from_str(&host)) {
            (Ok(Hostname::Exact(_)), Ok(value)) => Some(value),
            _ => {
                refuse(FieldPath::new("host"), format!("found {host:?}, expected a DNS name in lower case"));
                None
            }
        });
        if problems.is_empty() { Ok(Plan { headers, path, host, query }) } else { Err(problems) }
    }
}

impl FilterKind for Request {
    const RING: Ring = Ring::Transform;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(plan.clone())
    }
}

impl Filter for Plan {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        self.headers.apply(exchange.request.headers_mut());
        if let Some(host) = &self.host {
            exchange.host_override = Some(host.clone());
        }
        if self.path.is_none() && self.query.is_none() {
            return Decision::Continue;
        }
        match self.target(exchange) {
            Some(uri) => {
                *exchange.request.uri_mut() = uri;
                Decision::Continue
            }
            // A path in normal form and one of ours make a path, and neither can be long: this takes a bug to happen.
            None => ErrorKind::BadRequest.into(),
        }
    }
}

impl Plan {
    fn target(&self, exchange: &Exchange) -> Option<Uri> {
        let uri = exchange.request.uri();
        let path = match &self.path {
            Some(rewrite) => rewrite.apply(uri.path(), exchange.matched_prefix),
            None => uri.path().to_owned(),
        };
        let query = match &self.query {
            Some(edits) => edits.apply(uri.query()),
            None => uri.query().unwrap_or_default().to_owned(),
        };
        let mut target = path;
        if !query.is_empty() {
            target.push('?');
            target.push_str(&query);
        }
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
        Uri::from_parts(parts).ok()
    }
}
