//! `bodySchema`: a JSON body must be of the form that a JSON Schema asks for.
//!
//! Invariants: a body is held whole, within the rule's bound and within what all held bodies together may take, and goes
//! on byte for byte as it came; what two readers may read differently is refused; a worker is not held by a large body.

mod outline;
mod paid;
mod report;
mod schema;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue, Method};
use http_body::Frame;
use http_body_util::StreamBody;
use kube::KubeSchema;
use schemars::{Schema as CrdSchema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use self::report::Told;
use self::schema::{Effort, Schema, Wrong};
use crate::filters::contract::{Decision, Keep, Scope};
use crate::filters::held::{self, Held};
use crate::filters::media::is_packed;
use crate::filters::offload::Offload;
use crate::message::{
    Body, BodyError, Document, ErrorKind, Exchange, JsonBounds, ProxyError, Request, Violation,
};
use crate::values::{ByteSize, ConfigMapKeyRef, FieldPath, Problem, Reason, SecretKeyRef};

/// A JSON Schema 2020-12: exactly one of these.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("[has(self.inline), has(self.secretRef), has(self.configMapRef)].exists_one(x, x)", ONE_SOURCE)
)]
pub struct BodySchemaSpec {
    /// The schema itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub inline: Option<Value>,
    /// A key of a Secret that holds it, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// A key of a ConfigMap that holds it, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapKeyRef>,
}

const ONE_SOURCE: &str = "give exactly one of inline, secretRef and configMapRef";
/// Where `maxBodySize` says nothing.
const MOST_BY_DEFAULT: u64 = 1 << 20;
/// As a body is held.
const MOST: u64 = 16 << 20;
pub const MAX_DEPTH: usize = 64;
const BOUNDS: JsonBounds = JsonBounds { depth: MAX_DEPTH, values: 1 << 18, name: 4 << 10 };
/// Larger bodies are read elsewhere than on the worker.
const SMALL: usize = 64 << 10;

fn any_object(_: &mut SchemaGenerator) -> CrdSchema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

#[derive(Clone, Debug, PartialEq)]
pub struct BodySchema {
    schema: Arc<Schema>,
    told: Told,
    /// Bytes of a body.
    most: u64,
}

impl BodySchema {
    /// `None`: a problem is told.
    pub fn new(
        spec: &BodySchemaSpec,
        max_body: Option<ByteSize>,
        scope: &mut dyn Scope,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let path = FieldPath::new("bodySchema");
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message))
        };
        let most = max_body.map_or(MOST_BY_DEFAULT, ByteSize::bytes);
        if most > MOST {
            let message = "a body is held while its schema is checked: at most 16Mi";
            refuse(FieldPath::new("maxBodySize"), message.into());
        }
        let (told, read) = match (&spec.inline, &spec.secret_ref, &spec.config_map_ref) {
            (Some(source), None, None) => (Told::Schema, Schema::new(source)),
            (None, Some(secret), None) => {
                let text = scope.secret_key(path.field("secretRef"), secret)?;
                let read = std::str::from_utf8(text.expose());
                let wrong = || Wrong { pointer: String::new(), message: "it is not UTF-8".into() };
                (Told::Keywords, read.map_err(|_| wrong()).and_then(Schema::read))
            }
            (None, None, Some(map)) => {
                let text = scope.config_map(path.field("configMapRef"), map)?;
                (Told::Schema, Schema::read(&text))
            }
            _ => {
                refuse(path, ONE_SOURCE.into());
                return None;
            }
        };
        match (read, told) {
            (Ok(schema), _) => (most <= MOST).then(|| Self { schema: Arc::new(schema), told, most }),
            (Err(wrong), Told::Schema) => {
                refuse(path, format!("no JSON Schema 2020-12 that can be used: {wrong}"));
                None
            }
            (Err(_), Told::Keywords) => {
                let message = "no JSON Schema 2020-12 that can be used; what is wrong with it is told of a schema \
                               in a ConfigMap only";
                refuse(path.field("secretRef"), message.into());
                None
            }
        }
    }

    pub fn link(&self, keep: &dyn Keep) -> Linked {
        Linked { plan: self.clone(), held: Held::kept(keep), offload: keep.offload() }
    }
}

/// A body schema with what it needs to be asked.
pub struct Linked {
    plan: BodySchema,
    held: Arc<Held>,
    offload: Offload,
}

impl Linked {
    /// Judges the body and puts it back, or says why it does not go on.
    pub fn judge<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        let request = &exchange.request;
        if http_body::Body::is_end_stream(request.body()) {
            return match missing(request.method()) {
                Some(error) => error.into(),
                None => Decision::Continue,
            };
        }
        if is_packed(request.headers()) {
            // What it says unpacked, another reader may not find (RFC 9110 section 15.5.16).
            let error = ProxyError::new(ErrorKind::UnsupportedMediaType);
            return error.with_header(ACCEPT_ENCODING, HeaderValue::from_static("identity")).into();
        }
        if http_body::Body::size_hint(request.body()).lower() > self.plan.most {
            return ErrorKind::BodyTooLarge.into();
        }
        Decision::Wait(Box::pin(async move {
            match self.read(&mut exchange.request, exchange.deadline).await {
                Ok(()) => Decision::Continue,
                Err(error) => error.into(),
            }
        }))
    }

    async fn read(&self, request: &mut Request, deadline: Option<Instant>) -> Result<(), ProxyError> {
        let body = std::mem::take(request.body_mut());
        let deadline = deadline.unwrap_or_else(|| Instant::now() + held::PATIENCE);
        let reading = tokio::time::timeout_at(deadline, held::read(body, self.plan.most, &self.held));
        let read = reading.await.map_err(|_| ErrorKind::RequestTimeout)?;
        let (bytes, trailers) = read.map_err(held::of_request)?;
        if bytes.is_empty() {
            if let Some(error) = missing(request.method()) {
                return Err(error);
            }
        } else {
            self.check(&bytes).await?;
        }
        *request.body_mut() = again(bytes, trailers);
        Ok(())
    }

    async fn check(&self, bytes: &Bytes) -> Result<(), ProxyError> {
        let mut document = None;
        if bytes.len() <= SMALL {
            let read = parse(bytes)?;
            match self.plan.schema.check(&read, Effort::SMALL, self.plan.told) {
                Some(verdict) => return verdict.map_err(wrong),
                None => document = Some(read),
            }
        }
        let (schema, told, bytes) = (Arc::clone(&self.plan.schema), self.plan.told, bytes.clone());
        let verdict = self.offload.run(move || {
            let document = match document {
                Some(document) => document,
                None => parse(&bytes)?,
            };
            Ok::<_, ProxyError>(schema.check(&document, Effort::FULL, told))
        });
        verdict.await??.unwrap_or_else(|| Err(vec![at("", "takes too long to check")])).map_err(wrong)
    }
}

fn parse(bytes: &[u8]) -> Result<Document, ProxyError> {
    Document::read(bytes, BOUNDS).map_err(|error| malformed(format!("is no JSON that can be used: {error}")))
}

/// Bodies of these methods have no meaning (RFC 9110 section 9.3), so none is asked for.
fn missing(method: &Method) -> Option<ProxyError> {
    let is_needed = !matches!(
        *method,
        Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS | Method::TRACE | Method::CONNECT
    );
    is_needed.then(|| malformed("is required"))
}

fn malformed(message: impl Into<String>) -> ProxyError {
    ProxyError::violated(ErrorKind::ValidationFailed, vec![at("/body", message)])
}

fn wrong(violations: Vec<Violation>) -> ProxyError {
    ProxyError::violated(ErrorKind::BodyInvalid, violations)
}

fn at(pointer: &str, message: impl Into<String>) -> Violation {
    Violation { pointer: pointer.into(), message: message.into() }
}

/// The same body once more.
fn again(bytes: Bytes, trailers: Option<HeaderMap>) -> Body {
    let Some(trailers) = trailers else { return bytes.into() };
    let frames = [Frame::data(bytes), Frame::trailers(trailers)].map(Ok::<_, BodyError>);
    Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
}
