//! `validation`: what a request must look like before it may go on: size, type and form of its body, header fields, and
//! parameters of query and path.
//!
//! Invariants: without `bodySchema` a body is never held: its size is counted as it passes; nothing of a wrong value is
//! said back.

mod body;
mod decimal;
mod parameter;
mod scalar;

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as _, Frame, SizeHint};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use self::body::{BodySchema, BodySchemaSpec};
use self::parameter::{Parameter, ParameterSpec, Place, QueryParameterSpec, name_in_query};
use super::contract::{Combine, Decision, Filter, FilterKind, Keep, Member, Ring, Scope};
use super::media::{IsJson, is_json};
use crate::message::{Body, BodyError, ErrorKind, Exchange, ProxyError, Violation};
use crate::values::{ByteSize, FieldPath, Problem, Reason};

pub struct Validation;

/// What requests must look like.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Larger bodies are refused; in the place of the installation's bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_size: Option<ByteSize>,
    /// Media types of bodies, like application/json or image/*.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 3, max = 255), regex(pattern = MEDIA_TYPE)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub content_types: Vec<String>,
    /// Header fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<ParameterSpec>,
    /// Parameters of the query; each occurrence counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub query_params: Vec<QueryParameterSpec>,
    /// Captures of the path template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub path_params: Vec<ParameterSpec>,
    /// A JSON Schema of the body; without contentTypes only JSON is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_schema: Option<BodySchemaSpec>,
}

/// Tokens (RFC 9110 section 8.3.1); a star for every subtype.
const MEDIA_TYPE: &str = "^[-A-Za-z0-9!#$%&'+.^_`|~]+/([*]|[-A-Za-z0-9!#$%&'+.^_`|~]+)$";
/// So many violations are told.
const TOLD: usize = 20;

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    max_body: Option<u64>,
    media: Media,
    /// The media types as a client may read them.
    accept: Option<HeaderValue>,
    headers: Box<[(HeaderName, Parameter)]>,
    query: Box<[Parameter]>,
    path: Box<[Parameter]>,
    body: Option<BodySchema>,
}

/// Which types of bodies are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Media {
    Any,
    Json,
    These(Box<[MediaType]>),
}

/// `image` and `png`, in lower case; no subtype: every one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MediaType {
    main: Box<str>,
    sub: Option<Box<str>>,
}

impl Member for Validation {
    const NAME: &'static str = "validation";
    const COMBINE: Combine = Combine::Both;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let (media, accept) = media(&spec, &mut problems);
        let mut list = |field: &str, place: Place, specs: Vec<QueryParameterSpec>| -> Vec<Parameter> {
            let at = FieldPath::new(field);
            let specs = specs.into_iter().enumerate();
            specs
                .filter_map(|(index, spec)| Parameter::new(spec, place, &at.index(index), &mut problems))
                .collect()
        };
        let alike = |specs: Vec<ParameterSpec>| specs.into_iter().map(Into::into).collect();
        let headers = list("headers", Place::Headers, alike(spec.headers));
        let query = list("queryParams", Place::Query, spec.query_params);
        let path = list("pathParams", Place::Path, alike(spec.path_params));
        let headers: Vec<_> = headers
            .into_iter()
            .enumerate()
            .filter_map(|(index, parameter)| match parameter.name.parse() {
                Ok(name) => Some((name, parameter)),
                Err(_) => {
                    let path = FieldPath::new("headers").index(index).field("name");
                    let message = format!("{:?} is not the name of a header field", parameter.name);
                    problems.push(Problem::error(path, Reason::PolicyInvalid, message));
                    None
                }
            })
            .collect();
        let wanted = spec.body_schema.as_ref();
        let body =
            wanted.and_then(|wanted| BodySchema::new(wanted, spec.max_body_size, scope, &mut problems));
        if !problems.is_empty() || body.is_some() != wanted.is_some() {
            return Err(problems);
        }
        Ok(Plan {
            max_body: spec.max_body_size.map(ByteSize::bytes),
            accept,
            media,
            headers: headers.into(),
            query: query.into(),
            path: path.into(),
            body,
        })
    }
}

/// The types of bodies that are taken, and how clients may read them.
fn media(spec: &Spec, problems: &mut Vec<Problem>) -> (Media, Option<HeaderValue>) {
    if spec.content_types.is_empty() {
        return match spec.body_schema {
            Some(_) => (Media::Json, Some(HeaderValue::from_static("application/json"))),
            None => (Media::Any, None),
        };
    }
    let types = spec.content_types.iter().filter_map(|text| {
        let (main, sub) = text.split_once('/')?;
        let sub = (sub != "*").then(|| sub.to_ascii_lowercase().into());
        Some(MediaType { main: main.to_ascii_lowercase().into(), sub })
    });
    let types: Box<[MediaType]> = types.collect();
    if types.len() < spec.content_types.len() {
        let message = "write media types like application/json or image/*";
        problems.push(Problem::error(FieldPath::new("contentTypes"), Reason::PolicyInvalid, message));
    }
    (Media::These(types), HeaderValue::from_str(&spec.content_types.join(", ")).ok())
}

impl FilterKind for Validation {
    const RING: Ring = Ring::Validation;

    fn link(plan: &Plan, keep: &dyn Keep) -> Arc<dyn Filter> {
        let body = plan.body.as_ref().map(|body| body.link(keep));
        Arc::new(Validator { plan: plan.clone(), body })
    }
}

/// The linked member.
struct Validator {
    plan: Plan,
    body: Option<body::Linked>,
}

impl Filter for Validator {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        let plan = &self.plan;
        let has_body = !exchange.request.body().is_end_stream();
        let taken = if has_body { plan.taken(exchange.request.headers()) } else { Taken::AsItIs };
        if taken == Taken::Not {
            let mut error = ProxyError::new(ErrorKind::UnsupportedMediaType);
            if let Some(accept) = &plan.accept {
                error = error.with_header(ACCEPT, accept.clone());
            }
            return error.into();
        }
        let violations = plan.violations(exchange);
        if !violations.is_empty() {
            return ProxyError::violated(ErrorKind::ValidationFailed, violations).into();
        }
        if let Some(body) = &self.body
            && (taken == Taken::AsJson || !has_body)
        {
            return body.judge(exchange);
        }
        match plan.max_body.filter(|_| has_body) {
            Some(most) if exchange.request.body().size_hint().lower() > most => {
                ErrorKind::BodyTooLarge.into()
            }
            Some(most) => {
                let failure = exchange.body_failure.get_or_insert_default().clone();
                let inner = std::mem::take(exchange.request.body_mut());
                *exchange.request.body_mut() = Body::stream(Counted { inner, most, left: most, failure });
                Decision::Continue
            }
            None => Decision::Continue,
        }
    }

    fn max_body(&self) -> Option<u64> {
        self.plan.max_body
    }
}

/// What becomes of a body by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    AsJson,
    AsItIs,
    Not,
}

impl Plan {
    /// By what the body is said to be of, which is said once.
    fn taken(&self, headers: &HeaderMap) -> Taken {
        if self.media == Media::Any {
            return Taken::AsItIs;
        }
        let mut said = headers.get_all(CONTENT_TYPE).iter();
        let (Some(one), None) = (said.next().and_then(|value| value.to_str().ok()), said.next()) else {
            return Taken::Not;
        };
        if let Media::These(types) = &self.media {
            let essence = one.split(';').next().unwrap_or_default().trim();
            let Some((main, sub)) = essence.split_once('/') else { return Taken::Not };
            let fits = |media: &MediaType| {
                media.main.eq_ignore_ascii_case(main)
                    && media.sub.as_ref().is_none_or(|known| known.eq_ignore_ascii_case(sub))
            };
            if !types.iter().any(fits) {
                return Taken::Not;
            }
        }
        match is_json(one) {
            IsJson::Yes if self.body.is_some() => Taken::AsJson,
            IsJson::OfAnotherCharset if self.body.is_some() => Taken::Not,
            IsJson::No if self.media == Media::Json => Taken::Not,
            _ => Taken::AsItIs,
        }
    }

    fn violations(&self, exchange: &Exchange) -> Vec<Violation> {
        let mut violations = Vec::new();
        for parameter in &self.path {
            parameter.check(exchange.captures.get(&parameter.name).map(Some).into_iter(), &mut violations);
        }
        if !self.query.is_empty() {
            let query = exchange.request.uri().query().unwrap_or_default();
            let pairs: Vec<_> = query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (name_in_query(name), value))
                .collect();
            for parameter in &self.query {
                let values = pairs
                    .iter()
                    .filter(|(name, _)| name.as_deref() == Some(&parameter.name))
                    .map(|(_, value)| Some(*value));
                parameter.check(values, &mut violations);
            }
        }
        for (name, parameter) in &self.headers {
            let values = exchange.request.headers().get_all(name).iter();
            let values = values.map(|value| std::str::from_utf8(value.as_bytes()).ok());
            parameter.check(values, &mut violations);
        }
        violations.truncate(TOLD);
        violations
    }
}

/// A body that ends with an error where it passes its limit.
struct Counted {
    inner: Body,
    most: u64,
    left: u64,
    /// Why the request failed, for whoever makes the answer.
    failure: Rc<Cell<Option<ErrorKind>>>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        let Poll::Ready(Some(Ok(frame))) = &polled else { return polled };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match this.left.checked_sub(length) {
            Some(left) => {
                this.left = left;
                polled
            }
            None => {
                this.failure.set(Some(ErrorKind::BodyTooLarge));
                Poll::Ready(Some(Err(BodyError::TooLarge { limit: this.most })))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
