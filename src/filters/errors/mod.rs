//! `errors`: what clients are told instead of a failure, whoever made it.
//!
//! Invariants: what a body says is known here, never asked for elsewhere; nothing of a backend's answer is in one that is
//! put in its place; an entry that cannot be filled in is told as a problem document.

mod answer;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration as Time;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use self::answer::{Content, Escaping};
use super::contract::{Decision, Filter, FilterKind, Keep, Member, Outcome, Ring, Scope, Unmatched};
use super::failures::{About, On, Origin, ServeStale};
use super::header_edits::{HeaderEdits, HeadersSpec};
use crate::expression::{FAILURE, Kind, Subject};
use crate::message::{Asker, ErrorKind, Exchange, Failed, Response, accept_of};
use crate::values::{Duration, FieldPath, Problem, Reason};

pub struct Errors;

/// What is told instead of a failure; the first entry that fits decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Spec(pub Vec<EntrySpec>);

/// Replaces status, header fields and body of a failure; what is not given stays.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("!has(self.contentType) || has(self.text) || has(self.body)", TYPE_OF_NOTHING),
    validation = ("!has(self.text) || !has(self.body)", TWO_BODIES)
)]
pub struct EntrySpec {
    /// Reasons (Timeout), statuses (404) and ranges (4xx, 502-504); 5xx by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 3, max = 40), regex(pattern = ON)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub on: Vec<String>,
    /// Who failed: Gateway or Backend; both by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    #[x_kube(validation = ("!(self in [204, 205, 206, 304])", BODILESS))]
    pub status: Option<i64>,
    /// Header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSpec>,
    /// Media type; without it text becomes JSON, HTML or text, as the client likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 255), regex(pattern = MEDIA_TYPE))]
    pub content_type: Option<String>,
    /// The body; `${expression}` is escaped for its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT))]
    pub text: Option<String>,
    /// CEL whose value is the body, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub body: Option<String>,
    /// What cache keeps goes before, at most so long past its time; at most 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('24h')", STALE))]
    pub serve_stale: Option<Duration>,
}

const STALE: &str = "what is kept is served 1s to 24h past its time";
const BODILESS: &str = "204, 205, 206 and 304 have no body of their own, which a failure has";

const SHORTEST_STALE: Time = Time::from_secs(1);
const LONGEST_STALE: Time = Time::from_secs(24 * 3600);
const MAX_ENTRIES: usize = 16;
const MAX_TEXT: usize = 8192;
const ON: &str = "^([A-Z][A-Za-z]+|[45]xx|[45][0-9]{2}(-[45][0-9]{2})?)$";
/// A media type with parameters (RFC 9110 section 8.3.1).
const MEDIA_TYPE: &str =
    "^[-A-Za-z0-9!#$%&'+.^_`|~]+/[-A-Za-z0-9!#$%&'+.^_`|~]+( *; *[-A-Za-z0-9]+=[-A-Za-z0-9\"]+)*$";
const TYPE_OF_NOTHING: &str = "contentType is the type of text or body; give one of them, too";
const TWO_BODIES: &str = "text and body are both the body; give one of them";
const NOT_JSON: &str =
    "body gives JSON; leave the type out, or write application/json or one that ends with +json";

impl JsonSchema for Spec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ErrorsSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What is told instead of a failure; the first entry that fits decides.",
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_ENTRIES,
            "x-kubernetes-list-type": "atomic",
            "items": generator.subschema_for::<EntrySpec>(),
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan(Arc<[Entry]>);

impl Plan {
    /// For the cache of the same rule. `None`: no entry wants anything of it.
    pub fn serve_stale(&self) -> Option<ServeStale> {
        let wants = self.0.iter().any(|entry| entry.serve_stale.is_some());
        wants.then(|| ServeStale::new(self.0.iter().map(|entry| (entry.about.clone(), entry.serve_stale))))
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    about: About,
    serve_stale: Option<Time>,
    status: Option<StatusCode>,
    headers: HeaderEdits,
    content: Option<Content>,
}

impl Member for Errors {
    const NAME: &'static str = "errors";
    const UNMATCHED: Unmatched = Unmatched::Applies;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        if spec.0.is_empty() || spec.0.len() > MAX_ENTRIES {
            let message = format!("found {} entries, expected 1 to {MAX_ENTRIES}", spec.0.len());
            problems.push(Problem::error(FieldPath::default(), Reason::PolicyInvalid, message));
        }
        let entries = spec.0.into_iter().enumerate();
        let entries: Vec<_> = entries
            .filter_map(|(index, spec)| {
                let mut own = Vec::new();
                let at = FieldPath::default().index(index);
                let entry = Entry::compile(spec, &at, scope, &mut own);
                problems.append(&mut own);
                entry
            })
            .collect();
        if problems.is_empty() { Ok(Plan(entries.into())) } else { Err(problems) }
    }
}

impl Entry {
    /// What is written `at` its place in the member.
    fn compile(
        spec: EntrySpec,
        at: &FieldPath,
        scope: &mut dyn Scope,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        let mut on = Vec::new();
        for (index, text) in spec.on.iter().enumerate() {
            match On::read(text) {
                Ok(found) => on.extend(found),
                Err(message) => refuse(FieldPath::new("on").index(index), message),
            }
        }
        if spec.on.is_empty() {
            on.push(On::Status(500, 599));
        }
        let status = spec.status.map(|status| {
            let known = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
            known.and_then(|status| StatusCode::from_u16(status).ok())
        });
        if status == Some(None) {
            refuse(FieldPath::new("status"), "found no status of an answer, expected 200 to 599".into());
        }
        if spec.status.is_some_and(|status| [204, 205, 206, 304].contains(&status)) {
            refuse(FieldPath::new("status"), BODILESS.into());
        }
        let content_type = spec.content_type.as_deref().map(HeaderValue::from_str);
        if let Some(Err(_)) = content_type {
            refuse(FieldPath::new("contentType"), "write a media type like text/html; charset=utf-8".into());
        }
        if spec.content_type.is_some() && spec.text.is_none() && spec.body.is_none() {
            refuse(FieldPath::new("contentType"), TYPE_OF_NOTHING.into());
        }
        if spec.text.is_some() && spec.body.is_some() {
            refuse(FieldPath::new("body"), TWO_BODIES.into());
        }
        let serve_stale = spec.serve_stale.map(Duration::std);
        if serve_stale.is_some_and(|time| !(SHORTEST_STALE..=LONGEST_STALE).contains(&time)) {
            refuse(FieldPath::new("serveStale"), STALE.into());
        }
        let escaping = Escaping::of(spec.content_type.as_deref());
        if spec.body.is_some() && spec.content_type.is_some() && escaping != Escaping::Json {
            refuse(FieldPath::new("contentType"), NOT_JSON.into());
        }
        if spec.text.as_ref().is_some_and(|text| text.len() > MAX_TEXT) {
            refuse(FieldPath::new("text"), format!("it is longer than {MAX_TEXT} bytes"));
        }
        *problems = std::mem::take(problems).into_iter().map(|problem| problem.under(at)).collect();
        let edits = spec.headers.unwrap_or_default();
        let headers = HeaderEdits::at(at.field("headers"), &edits, &FAILURE, scope, problems);
        let media = content_type.and_then(Result::ok);
        // What is wrong with either is told by whoever proves it.
        let content = match (&spec.text, &spec.body) {
            (None, None) => None,
            (Some(text), _) => {
                let template = scope.template(at.field("text"), text, &FAILURE)?;
                Some(Content::Text { template, media, escaping })
            }
            (None, Some(body)) => {
                let body = scope.expression(at.field("body"), body, &FAILURE, Kind::ANY)?;
                let media = media.unwrap_or(HeaderValue::from_static("application/json"));
                Some(Content::Json { body, media })
            }
        };
        let about = About { on: on.into(), origin: spec.origin };
        Some(Self { about, serve_stale, status: status.flatten(), headers, content })
    }
}

impl FilterKind for Errors {
    const RING: Ring = Ring::Errors;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(plan.clone())
    }
}

impl Filter for Plan {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        // By the time of the answer the request has gone to the backend.
        let request = &exchange.request;
        exchange.asker = Some(Box::new(Asker {
            method: request.method().clone(),
            uri: request.uri().clone(),
            accept: accept_of(request.headers()),
        }));
        Decision::Continue
    }

    fn response<'a>(&'a self, exchange: &'a mut Exchange, response: Response) -> Outcome<'a> {
        let (kind, status) = (response.extensions().get::<ErrorKind>().copied(), response.status().as_u16());
        // A call of gRPC is told in gRPC's own way: its clients read nothing else.
        let is_grpc = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
        if is_grpc || kind.is_none() && (status < 400 || exchange.fixed_answer) {
            return Outcome::Ready(response);
        }
        let Some(entry) = self.0.iter().find(|entry| entry.about.fits(kind, status)) else {
            return Outcome::Ready(response);
        };
        let is_head = exchange.asker.as_ref().is_some_and(|asker| asker.method == Method::HEAD);
        exchange.failed = Some(Failed {
            status,
            reason: kind.map_or("", ErrorKind::as_str),
            origin: if kind.is_some() { "Gateway" } else { "Backend" },
        });
        let (mut told, left) = answer::replaced(entry, exchange, response, kind);
        let filled = entry.headers.fill_what_can_be(&Subject { exchange });
        entry.headers.apply(told.headers_mut(), filled);
        match left {
            Some(body) if !is_head => Outcome::Wait(Box::pin(async move {
                answer::read_out(body).await;
                Outcome::Ready(told)
            })),
            _ => Outcome::Ready(told),
        }
    }
}
