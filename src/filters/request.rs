//! `request`: changes what the backend is asked: method, header fields, path, host, query, body.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderName, HeaderValue, Method};
use http_body::Body as _;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::body_patch::BodyPatchSpec;
use super::changed_body::{self, Bodies, Change, Document, TWO_BODIES, Trouble};
use super::contract::{Applies, Decision, Filter, FilterKind, Keep, Member, Ring, Scope};
use super::header_edits::{Filled, HeaderEdits, HeadersSpec};
use super::path_change::PathChange;
use super::query_edits::{QueryEdits, QuerySpec};
use crate::expression::{BODY, Fault, Subject, WHOLE_REQUEST};
use crate::message::{ErrorKind, Exchange, ProxyError};
use crate::values::{FieldPath, Hostname, PathRewriteSpec, Problem, Reason};

pub struct Request;

/// Changes the request before it goes to the backend.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("!has(self.body) || !has(self.bodyPatch)", TWO_BODIES))]
pub struct Spec {
    /// Method in the place of the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<NewMethod>,
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
    /// JSON body, by JSON Pointer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_patch: Option<BodyPatchSpec>,
    /// CEL whose value becomes the body, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub body: Option<String>,
}

/// Not HEAD: an answer to it has no body, which whoever asked with GET waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum NewMethod {
    Get,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

impl NewMethod {
    const fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Post => Method::POST,
            Self::Put => Method::PUT,
            Self::Patch => Method::PATCH,
            Self::Delete => Method::DELETE,
            Self::Options => Method::OPTIONS,
        }
    }
}

/// DNS labels.
const HOSTNAME: &str = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    method: Option<Method>,
    headers: HeaderEdits,
    path: Option<PathChange>,
    host: Option<HeaderValue>,
    query: Option<QueryEdits>,
    body: Option<Change>,
    /// Some expression reads the body.
    looks_inside: bool,
}

impl Plan {
    /// Fields in which the backend is told what is written here, not what the client said.
    pub fn written_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.written()
    }
}

impl Member for Request {
    const NAME: &'static str = "request";
    const APPLIES: Applies = Applies::ToBackends;
    const OF_ONE_REQUEST: &'static [&'static str] = &["method", "path", "query", "bodyPatch", "body"];
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let headers =
            HeaderEdits::new(&spec.headers.unwrap_or_default(), &WHOLE_REQUEST, scope, &mut problems);
        let query = spec.query.map(|query| QueryEdits::new(&query, &WHOLE_REQUEST, scope, &mut problems));
        let body = Change::compile(spec.body_patch, spec.body, &WHOLE_REQUEST, scope, &mut problems);
        let method = spec.method.map(NewMethod::method);
        // What the scope has told already costs the member all the same.
        let path = spec.path.and_then(|path| {
            PathChange::new(&path, &FieldPath::new("path"), Reason::PolicyInvalid, &WHOLE_REQUEST, scope)
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
        if !problems.is_empty() {
            return Err(problems);
        }
        let looks_inside = headers.reads(BODY)
            || path.as_ref().is_some_and(|path| path.reads(BODY))
            || query.as_ref().is_some_and(|query| query.reads(BODY))
            || body.as_ref().is_some_and(Change::looks_inside);
        Ok(Plan { method, headers, path, host, query, body, looks_inside })
    }

    /// Each call says for itself what it asks for; the client's fields and host are those of all.
    fn for_calls(plan: &Plan) -> Option<Plan> {
        let looks_inside = plan.headers.reads(BODY);
        let (headers, host) = (plan.headers.clone(), plan.host.clone());
        Some(Plan { method: None, headers, path: None, host, query: None, body: None, looks_inside })
    }
}

impl FilterKind for Request {
    const RING: Ring = Ring::Transform;

    fn link(plan: &Plan, keep: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(Linked { plan: plan.clone(), bodies: Bodies::kept(keep) })
    }
}

/// The linked member.
struct Linked {
    plan: Plan,
    bodies: Bodies,
}

impl Filter for Linked {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        let plan = &self.plan;
        let has_body = !exchange.request.body().is_end_stream();
        let is_read = plan.looks_inside || matches!(plan.body, Some(Change::Patch(_)));
        if !(has_body && is_read) {
            let nothing = plan.looks_inside.then(Document::nothing);
            return self.decided(exchange, nothing.as_ref(), None);
        }
        if let Err(error) = changed_body::takes(&exchange.request) {
            return error.into();
        }
        Decision::Wait(Box::pin(async move {
            match self.with_its_body(exchange).await {
                Ok(()) => Decision::Continue,
                Err(error) => error.into(),
            }
        }))
    }
}

impl Linked {
    async fn with_its_body(&self, exchange: &mut Exchange) -> Result<(), ProxyError> {
        let body = std::mem::take(exchange.request.body_mut());
        let read = self.bodies.read(body, exchange.request.headers(), exchange.deadline).await;
        let whole = read.map_err(Trouble::of_request)?;
        let document = match self.plan.looks_inside {
            true => Some(self.bodies.document(&whole).await.map_err(Trouble::of_request)?),
            false => None,
        };
        let patched = match &self.plan.body {
            Some(Change::Patch(patch)) if !whole.is_empty() => {
                Some(self.bodies.patched(patch, &whole).await.map_err(Trouble::of_request)?)
            }
            _ => None,
        };
        *exchange.request.body_mut() = whole.again();
        self.change(exchange, document.as_ref(), patched)
    }

    fn decided(
        &self,
        exchange: &mut Exchange,
        document: Option<&Document>,
        patched: Option<Bytes>,
    ) -> Decision<'static> {
        match self.change(exchange, document, patched) {
            Ok(()) => Decision::Continue,
            Err(error) => error.into(),
        }
    }

    /// Expressions see the request as it came: all is read before anything is changed.
    fn change(
        &self,
        exchange: &mut Exchange,
        document: Option<&Document>,
        patched: Option<Bytes>,
    ) -> Result<(), ProxyError> {
        let plan = &self.plan;
        exchange.request_body = document.map(|document| Arc::clone(&document.json));
        let read = plan.read(exchange, &self.bodies);
        exchange.request_body = None;
        let Read { fields, target, made } = read.map_err(Trouble::of_request)?;
        let request = &mut exchange.request;
        if let Some(patched) = patched {
            changed_body::replaced(request.headers_mut(), patched.len());
            *request.body_mut() = patched.into();
        }
        if let Some(made) = made {
            changed_body::made_anew(request.headers_mut(), made.len());
            *request.body_mut() = made.into();
        }
        plan.headers.apply(request.headers_mut(), fields);
        if let Some(method) = &plan.method {
            request.method_mut().clone_from(method);
        }
        if let Some(target) = target {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = PathAndQuery::try_from(target).ok();
            // A path in normal form and one of ours make a path, and neither can be long: this takes a bug to happen.
            *request.uri_mut() = Uri::from_parts(parts).map_err(|_| ErrorKind::BadRequest)?;
        }
        if let Some(host) = &plan.host {
            exchange.host_override = Some(host.clone());
        }
        Ok(())
    }
}

/// What expressions gave.
struct Read {
    fields: Filled,
    target: Option<String>,
    made: Option<Bytes>,
}

impl Plan {
    fn read(&self, exchange: &Exchange, bodies: &Bodies) -> Result<Read, Trouble> {
        let subject = Subject { exchange };
        let wrong = |fault: Fault| Trouble::Unusable(fault.into());
        let made = match &self.body {
            Some(Change::Made(body)) => Some(bodies.made(body, &subject)?),
            Some(Change::Patch(_)) | None => None,
        };
        Ok(Read {
            fields: self.headers.fill(&subject).map_err(wrong)?,
            target: self.target(exchange).map_err(wrong)?,
            made,
        })
    }

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
