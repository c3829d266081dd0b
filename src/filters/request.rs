//! `request`: changes what the backend is asked: header fields, path, host, query.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderValue;
use http::uri::{PathAndQuery, Uri};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Decision, Filter, FilterKind, Keep, Member, Ring, Scope};
use super::header_edits::{HeaderEdits, HeadersSpec};
use super::path_change::PathChange;
use super::query_edits::{QueryEdits, QuerySpec};
use crate::expression::{Fault, REQUEST, Subject};
use crate::message::{ErrorKind, Exchange, ProxyError};
use crate::values::{FieldPath, Hostname, PathRewriteSpec, Problem, Reason};

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

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    headers: HeaderEdits,
    path: Option<PathChange>,
    host: Option<HeaderValue>,
    query: Option<QueryEdits>,
}

impl Member for Request {
    const NAME: &'static str = "request";
    const APPLIES: Applies = Applies::ToBackends;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let headers = HeaderEdits::new(&spec.headers.unwrap_or_default(), &REQUEST, scope, &mut problems);
        let query = spec.query.map(|query| QueryEdits::new(&query, &REQUEST, scope, &mut problems));
        // What the scope has told already costs the member all the same.
        let path = spec.path.and_then(|path| {
            PathChange::new(&path, &FieldPath::new("path"), Reason::PolicyInvalid, scope)
                .map_err(|problem| problems.extend(problem))
                .ok()
        });
        let mut refuse = |path, message| problems.push(Problem::error(path, Reason::PolicyInvalid, message));
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
        // Expressions see the request as it came: all is read before anything is changed.
        let read =
            self.headers.fill(&Subject { exchange }).and_then(|filled| Ok((filled, self.target(exchange)?)));
        let (filled, target) = match read {
            Ok(read) => read,
            Err(fault) => return ProxyError::caused(ErrorKind::ExpressionFailed, fault).into(),
        };
        self.headers.apply(exchange.request.headers_mut(), filled);
        if let Some(host) = &self.host {
            exchange.host_override = Some(host.clone());
        }
        let Some(target) = target else { return Decision::Continue };
        let mut parts = exchange.request.uri().clone().into_parts();
        parts.path_and_query = PathAndQuery::try_from(target).ok();
        match Uri::from_parts(parts) {
            Ok(uri) => {
                *exchange.request.uri_mut() = uri;
                Decision::Continue
            }
            // A path in normal form and one of ours make a path, and neither can be long: this takes a bug to happen.
            Err(_) => ErrorKind::BadRequest.into(),
        }
    }
}

impl Plan {
    /// The new path and query. `None`: they stay.
    fn target(&self, exchange: &Exchange) -> Result<Option<String>, Fault> {
        if self.path.is_none() && self.query.is_none() {
            return Ok(None);
        }
        let uri = exchange.request.uri();
        let mut target = match &self.path {
            Some(change) => change.apply(exchange)?,
            None => uri.path().to_owned(),
        };
        let query = match &self.query {
            Some(edits) => Cow::Owned(edits.apply(uri.query(), &Subject { exchange })?),
            None => Cow::Borrowed(uri.query().unwrap_or_default()),
        };
        if !query.is_empty() {
            target.push('?');
            target.push_str(&query);
        }
        Ok(Some(target))
    }
}
