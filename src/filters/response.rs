//! `response`: changes what a backend answered. Answers that the gateway makes are not touched.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, IF_RANGE, RANGE};
use http::response::Parts;
use http::{HeaderValue, StatusCode};
use http_body::Body as _;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::body_patch::BodyPatchSpec;
use super::changed_body::{self, Bodies, Change, Document, TWO_BODIES, Trouble, Whole};
use super::contract::{Applies, Decision, Filter, FilterKind, Keep, Member, Outcome, Ring, Scope};
use super::header_edits::{Filled, HeaderEdits, HeadersSpec};
use super::media::IsJson;
use crate::expression::{BODY, Expression, Fault, Kind, RESPONSE, Subject};
use crate::message::{self, Answered, Body, ErrorKind, Exchange, ProxyError};
use crate::values::{FieldPath, Problem, Reason};

pub struct Response;

/// Changes the backend's answer.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("!has(self.body) || !has(self.bodyPatch)", TWO_BODIES))]
pub struct Spec {
    /// CEL: which answers; without it header fields of all, status and body of 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub when: Option<String>,
    /// Status in the place of the backend's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599), extend("format" = "int32"))]
    #[x_kube(validation = ("!(self in [205, 206, 304])", NO_STATUS))]
    pub status: Option<u16>,
    /// Header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSpec>,
    /// JSON body, by JSON Pointer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_patch: Option<BodyPatchSpec>,
    /// CEL whose value becomes the body, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub body: Option<String>,
}

const NO_STATUS: &str = "205, 206 and 304 say something about a body that nobody knows here";

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    when: Option<Expression>,
    status: Option<StatusCode>,
    headers: HeaderEdits,
    body: Option<Change>,
    /// Some expression may read what was asked.
    reads_request: bool,
    /// `when` or a field reads the body.
    looks_inside: bool,
}

impl Member for Response {
    const NAME: &'static str = "response";
    const APPLIES: Applies = Applies::ToBackends;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let fields = spec.headers.unwrap_or_default();
        let texts = fields.set.iter().chain(&fields.add).map(|field| &field.value);
        let texts = texts.chain(&spec.when).chain(&spec.body);
        let reads_request = texts.into_iter().any(|text| text.contains("request"));
        let headers = HeaderEdits::new(&fields, &RESPONSE, scope, &mut problems);
        let is_changed = spec.body_patch.is_some() || spec.body.is_some();
        let body = Change::compile(spec.body_patch, spec.body, &RESPONSE, scope, &mut problems);
        let status = spec.status.map(|status| match StatusCode::from_u16(status) {
            Ok(known) if (200..600).contains(&status) && ![205, 206, 304].contains(&status) => known,
            _ => {
                problems.push(Problem::error(FieldPath::new("status"), Reason::PolicyInvalid, NO_STATUS));
                StatusCode::OK
            }
        });
        // What the scope has told already costs the member all the same.
        let wanted = spec.when.as_ref();
        let when =
            wanted.and_then(|when| scope.expression(FieldPath::new("when"), when, &RESPONSE, Kind::BOOL));
        if !problems.is_empty() || when.is_some() != wanted.is_some() || body.is_some() != is_changed {
            return Err(problems);
        }
        let looks_inside = headers.reads(BODY) || when.as_ref().is_some_and(|when| when.reads(BODY));
        Ok(Plan { when, status, headers, body, reads_request, looks_inside })
    }
}

impl FilterKind for Response {
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
        if self.plan.reads_request {
            // It is gone by the time of the answer.
            let mut asked = message::Request::default();
            asked.method_mut().clone_from(exchange.request.method());
            asked.uri_mut().clone_from(exchange.request.uri());
            asked.headers_mut().clone_from(exchange.request.headers());
            exchange.asked = Some(Box::new(asked));
        }
        let changes = self.plan.body.as_ref();
        let headers = exchange.request.headers_mut();
        if self.plan.looks_inside || changes.is_some_and(Change::needs_the_old) {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if self.plan.looks_inside || changes.is_some() {
            // Parts of the backend's body are not parts of ours.
            headers.remove(RANGE);
            headers.remove(IF_RANGE);
        }
        Decision::Continue
    }

    fn response<'a>(&'a self, exchange: &'a mut Exchange, response: message::Response) -> Outcome<'a> {
        let is_ours = response.extensions().get::<ErrorKind>().is_some();
        if is_ours || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Outcome::Ready(response);
        }
        if let Some(asked) = exchange.asked.take() {
            exchange.request = *asked;
        }
        let (mut parts, body) = response.into_parts();
        let plan = &self.plan;
        if parts.status == StatusCode::NOT_MODIFIED {
            return Outcome::Ready(plan.confirmed(exchange, parts, body));
        }
        if plan.looks_inside && body.is_end_stream() {
            return Outcome::Ready(plan.without_a_look(parts, body));
        }
        if plan.looks_inside && changed_body::kind(&parts.headers) == IsJson::Yes {
            return Outcome::Wait(Box::pin(async move {
                self.looked_into(exchange, parts, body).await.map_or_else(Into::into, Outcome::Ready)
            }));
        }
        match plan.judge(exchange, &mut parts, None) {
            Ok(Some(judged)) => self.changed(exchange, parts, body, judged),
            Ok(None) => Outcome::Ready(message::Response::from_parts(parts, body)),
            Err(error) => error.into(),
        }
    }
}

impl Linked {
    /// Where the head was enough to judge by.
    fn changed<'a>(
        &'a self,
        exchange: &'a mut Exchange,
        mut parts: Parts,
        body: Body,
        judged: Judged,
    ) -> Outcome<'a> {
        let plan = &self.plan;
        let Some(change) = plan.change(&parts, &judged) else {
            return Outcome::Ready(plan.finished(parts, body, judged));
        };
        if let Change::Made(_) = change
            && !change.needs_the_old()
        {
            return match self.made(exchange, &mut parts, change, None) {
                Ok(made) => Outcome::Ready(plan.finished(parts, made.into(), judged)),
                Err(error) => error.into(),
            };
        }
        if body.is_end_stream() {
            // An answer to HEAD: what its fields tell of is not the body that GET would bring.
            changed_body::replaced(&mut parts.headers, 0);
            parts.headers.remove(CONTENT_LENGTH);
            return Outcome::Ready(plan.finished(parts, body, judged));
        }
        if let Err(error) = changed_body::takes_answer(parts.status, &parts.headers, &body) {
            return error.into();
        }
        Outcome::Wait(Box::pin(async move {
            let read = self.bodies.read(body, &parts.headers, exchange.deadline).await;
            let changed = match read.map_err(Trouble::of_answer) {
                // As one that was announced to be empty.
                Ok(whole) if whole.is_empty() => {
                    changed_body::replaced(&mut parts.headers, 0);
                    parts.headers.remove(CONTENT_LENGTH);
                    Ok(plan.finished(parts, whole.again(), judged))
                }
                Ok(whole) => self.rewritten(exchange, parts, &whole, None, change, judged).await,
                Err(error) => Err(error),
            };
            changed.map_or_else(Into::into, Outcome::Ready)
        }))
    }

    /// Where the body decides, too.
    async fn looked_into(
        &self,
        exchange: &mut Exchange,
        mut parts: Parts,
        body: Body,
    ) -> Result<message::Response, ProxyError> {
        changed_body::takes_answer(parts.status, &parts.headers, &body)?;
        let (plan, bodies) = (&self.plan, &self.bodies);
        let read = bodies.read(body, &parts.headers, exchange.deadline).await;
        let whole = read.map_err(Trouble::of_answer)?;
        if whole.is_empty() {
            return Ok(plan.without_a_look(parts, whole.again()));
        }
        let document = bodies.document(&whole).await.map_err(Trouble::of_answer)?;
        let Some(judged) = plan.judge(exchange, &mut parts, Some(&document))? else {
            return Ok(message::Response::from_parts(parts, whole.again()));
        };
        match plan.change(&parts, &judged) {
            Some(change) => self.rewritten(exchange, parts, &whole, Some(document), change, judged).await,
            None => Ok(plan.finished(parts, whole.again(), judged)),
        }
    }

    async fn rewritten(
        &self,
        exchange: &mut Exchange,
        mut parts: Parts,
        whole: &Whole,
        document: Option<Document>,
        change: &Change,
        judged: Judged,
    ) -> Result<message::Response, ProxyError> {
        let body = match change {
            Change::Patch(patch) => {
                let patched = self.bodies.patched(patch, whole).await.map_err(Trouble::of_answer)?;
                changed_body::replaced(&mut parts.headers, patched.len());
                patched
            }
            Change::Made(_) => {
                let document = match document {
                    Some(document) => document,
                    None => self.bodies.document(whole).await.map_err(Trouble::of_answer)?,
                };
                self.made(exchange, &mut parts, change, Some(&document))?
            }
        };
        Ok(self.plan.finished(parts, body.into(), judged))
    }

    fn made(
        &self,
        exchange: &mut Exchange,
        parts: &mut Parts,
        change: &Change,
        document: Option<&Document>,
    ) -> Result<Bytes, ProxyError> {
        let Change::Made(body) = change else { return Ok(Bytes::new()) };
        let made = lent(exchange, parts, document, |subject| self.bodies.made(body, subject));
        let made = made.map_err(Trouble::of_answer)?;
        changed_body::made_anew(&mut parts.headers, made.len());
        Ok(made)
    }
}

/// Asks expressions, to which the answer is lent for as long.
fn lent<T>(
    exchange: &mut Exchange,
    parts: &mut Parts,
    document: Option<&Document>,
    ask: impl FnOnce(&Subject<'_>) -> T,
) -> T {
    let headers = std::mem::take(&mut parts.headers);
    let body = document.map(|document| Arc::clone(&document.json));
    exchange.answered = Some(Box::new(Answered { status: parts.status, headers, body }));
    let said = ask(&Subject { exchange });
    if let Some(answered) = exchange.answered.take() {
        parts.headers = answered.headers;
    }
    said
}

/// What is known before anything is changed.
struct Judged {
    /// Status and body are changed, too.
    is_meant: bool,
    fields: Filled,
}

impl Plan {
    /// `None`: nothing is changed.
    fn judge(
        &self,
        exchange: &mut Exchange,
        parts: &mut Parts,
        document: Option<&Document>,
    ) -> Result<Option<Judged>, ProxyError> {
        let succeeded = parts.status.is_success();
        if self.when.is_none() && !self.headers.has_expressions() {
            return Ok(Some(Judged { is_meant: succeeded, fields: Filled::default() }));
        }
        let judged = lent(exchange, parts, document, |subject| self.asked(subject, succeeded));
        judged.map_err(|fault| ProxyError::caused(ErrorKind::TransformFailed, fault))
    }

    /// What becomes of the body. None: it stays.
    fn change(&self, parts: &Parts, judged: &Judged) -> Option<&Change> {
        let status = self.status.unwrap_or(parts.status);
        let has_body =
            !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
        let is_json = || changed_body::kind(&parts.headers) == IsJson::Yes;
        let is_wanted = has_body && judged.is_meant && (self.when.is_some() || is_json());
        self.body.as_ref().filter(|_| is_wanted)
    }

    /// An answer to HEAD, mostly: what depends on a body that is not there is not known, nor what its fields should say
    /// of it.
    fn without_a_look(&self, mut parts: Parts, body: Body) -> message::Response {
        changed_body::replaced(&mut parts.headers, 0);
        parts.headers.remove(CONTENT_LENGTH);
        if self.when.is_none() {
            self.headers.apply(&mut parts.headers, Filled::default());
        }
        message::Response::from_parts(parts, body)
    }

    /// Fields of an answer that is known already, to the client or to the cache: they are changed as those of the answer
    /// itself, as far as that is written and not asked; its status and that it has no body stay.
    fn confirmed(&self, exchange: &mut Exchange, mut parts: Parts, body: Body) -> message::Response {
        parts.status = StatusCode::OK;
        let asked = |when: &Expression| lent(exchange, &mut parts, None, |subject| when.holds(subject));
        // What depends on the body is not known; to take a field away is never wrong.
        let is_meant = self.when.as_ref().map(asked).is_none_or(|holds| holds.unwrap_or(true));
        parts.status = StatusCode::NOT_MODIFIED;
        if is_meant {
            if self.body.is_some() {
                changed_body::replaced(&mut parts.headers, 0);
                parts.headers.remove(CONTENT_LENGTH);
            }
            self.headers.apply(&mut parts.headers, Filled::default());
        }
        message::Response::from_parts(parts, body)
    }

    fn asked(&self, subject: &Subject<'_>, succeeded: bool) -> Result<Option<Judged>, Fault> {
        let is_meant = match &self.when {
            Some(when) => when.holds(subject)?,
            None => succeeded,
        };
        if self.when.is_some() && !is_meant {
            return Ok(None);
        }
        Ok(Some(Judged { is_meant, fields: self.headers.fill(subject)? }))
    }

    fn finished(&self, mut parts: Parts, mut body: Body, judged: Judged) -> message::Response {
        if let Some(status) = self.status.filter(|_| judged.is_meant) {
            if status == StatusCode::NO_CONTENT {
                body = Body::Empty;
                changed_body::replaced(&mut parts.headers, 0);
                parts.headers.remove(CONTENT_LENGTH);
                parts.headers.remove(CONTENT_TYPE);
            }
            parts.status = status;
        }
        self.headers.apply(&mut parts.headers, judged.fields);
        message::Response::from_parts(parts, body)
    }
}
