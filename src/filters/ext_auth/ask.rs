//! The question: what the authorizer is shown of a request.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use http_body::Body as _;
use tokio::time::Instant;

use super::{OnFailure, Plan, Shown, Style};
use crate::filters::contract::{Decision, Filter};
use crate::filters::ext_auth::verdict::Verdict;
use crate::filters::header_edits::is_forbidden;
use crate::filters::held::{self, Held};
use crate::message::{
    AnswerBy, Body, ErrorKind, Exchange, FixedHost, Identity, ProxyError, Request, Response, Scheme,
    take_method_overrides,
};
use crate::telemetry::Consulted;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
static X_ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
static X_ORIGINAL_URL: HeaderName = HeaderName::from_static("x-original-url");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static PASSES: HeaderName = HeaderName::from_static("x-portcullis-passes");

/// Whether only the gateway tells backends this.
pub(super) fn is_gateways(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "forwarded"
            | "x-forwarded-client-cert"
            | "x-forwarded-for"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-proto"
            | "x-real-ip"
            | "x-request-id"
            | "x-portcullis-passes"
    )
}

/// Whether the field introduces a client or its request: a client's own word of it is not shown.
pub(super) fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    ["x-forwarded", "x-original-", "x-rewrite-", "x-envoy-original-"]
        .iter()
        .any(|start| name.starts_with(start))
        || matches!(name, "forwarded" | "x-real-ip" | "x-request-id" | "x-portcullis-passes")
}

/// The linked member.
pub(super) struct Consulting {
    pub plan: Plan,
    /// Bodies that it holds are counted among those of all filters.
    pub held: Arc<Held>,
}

impl Filter for Consulting {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        Decision::Wait(Box::pin(self.plan.consult(exchange, &self.held)))
    }
}

impl Plan {
    async fn consult(&self, exchange: &mut Exchange, held: &Arc<Held>) -> Decision<'static> {
        self.take_overrides(exchange.request.headers_mut());
        let body = match self.take_body(exchange, held).await {
            Ok(body) => body,
            Err(error) => return error.into(),
        };
        let Some(mut question) = self.question(exchange, body) else { return ErrorKind::BadRequest.into() };
        let own = Instant::now() + self.timeout;
        let until = exchange.deadline.map_or(own, |deadline| deadline.min(own));
        // One that hangs is held against its endpoint.
        question.extensions_mut().insert(AnswerBy(until));
        let asking = async {
            let response = exchange.outbound.call(&self.backend, question).await?;
            self.hear(response).await
        };
        let verdict = match tokio::time::timeout_at(until, asking).await {
            Ok(verdict) => verdict,
            Err(_) => Err(ErrorKind::BackendTimeout.into()),
        };
        let said = |exchange: &mut Exchange, consulted| {
            exchange.consulted = exchange.consulted.max(Some(consulted));
        };
        match verdict {
            Ok(Verdict::Allowed { fields, identity }) => {
                said(exchange, Consulted::Allowed);
                self.tell(exchange.request.headers_mut(), fields);
                // Whoever authentication found, or an authorizer before, is not renamed.
                if let Some(known) = identity
                    && exchange.identity.known().is_none()
                {
                    exchange.identity = Identity::new(known);
                }
                Decision::Continue
            }
            Ok(Verdict::Denied(answer)) => {
                said(exchange, Consulted::Denied);
                answer
            }
            // A circle does not end by letting it go on.
            Err(error) if error.kind == ErrorKind::LoopDetected => error.into(),
            // Nobody who could have failed was asked: the authorizer went away under this request.
            Err(error) if self.on_failure == OnFailure::Allow && error.kind != ErrorKind::BackendNotFound => {
                said(exchange, Consulted::AllowedOnFailure);
                self.tell(exchange.request.headers_mut(), HeaderMap::new());
                Decision::Continue
            }
            Err(error) => {
                said(exchange, Consulted::Failed);
                tracing::debug!(
                    backend = %self.backend,
                    error = &error as &dyn std::error::Error,
                    "an authorizer gave no answer that counts"
                );
                ErrorKind::AuthorizerUnavailable.into()
            }
        }
    }

    /// What overrides the method reaches the backend only where the policy shows it to the authorizer by its name.
    fn take_overrides(&self, headers: &mut HeaderMap) {
        let is_shown = |name: &HeaderName| matches!(&self.shown, Shown::These(names) if names.contains(name));
        take_method_overrides(headers, is_shown);
    }

    async fn hear(&self, response: Response) -> Result<Verdict, ProxyError> {
        Verdict::of(response, self).await
    }

    /// The authorizer's fields take the place of the client's, of which none is left.
    fn tell(&self, headers: &mut HeaderMap, fields: HeaderMap) {
        for name in &self.backend_headers {
            headers.remove(name);
        }
        let mut last = None;
        for (name, value) in fields {
            last = name.or(last);
            if let Some(name) = &last {
                headers.append(name, value);
            }
        }
    }

    /// The body in full, which stays in the request as well.
    async fn take_body(
        &self,
        exchange: &mut Exchange,
        held: &Arc<Held>,
    ) -> Result<Option<Bytes>, ProxyError> {
        let Some(limit) = self.body else { return Ok(None) };
        if exchange.request.body().is_end_stream() {
            return Ok(Some(Bytes::new()));
        }
        let body = std::mem::take(exchange.request.body_mut());
        // A client that drips is never stalled.
        let until = exchange.deadline.unwrap_or_else(|| Instant::now() + held::PATIENCE);
        if body.size_hint().lower() > limit as u64 {
            return Err(ErrorKind::BodyTooLarge.into());
        }
        let read = tokio::time::timeout_at(until, held::read(body, limit as u64, held)).await;
        let (whole, _) = read.map_err(|_| ErrorKind::RequestTimeout)?.map_err(held::of_request)?;
        *exchange.request.body_mut() = Body::Full(whole.clone());
        // Trailers went with the stream (RFC 9110 section 6.5.1 lets them).
        exchange.request.headers_mut().remove(header::TRAILER);
        Ok(Some(whole))
    }

    /// `None`: its target would be too long to be one.
    fn question(&self, exchange: &Exchange, body: Option<Bytes>) -> Option<Request> {
        let (request, client) = (&exchange.request, &exchange.client);
        let (from, target) = (request.headers(), request.uri().path_and_query()?.as_str());
        let mut question = Request::default();
        *question.version_mut() = Version::HTTP_11;
        let (method, uri) = match (self.style, &body) {
            (Style::ForwardAuth, None) => (Method::GET, Uri::try_from(&*self.target)),
            (Style::ForwardAuth, Some(_)) => (Method::POST, Uri::try_from(&*self.target)),
            (Style::ExtAuthz, _) => {
                (request.method().clone(), Uri::try_from(format!("{}{target}", self.target)))
            }
        };
        *question.method_mut() = method;
        *question.uri_mut() = uri.ok()?;
        let to = question.headers_mut();
        self.show(from, body.is_some(), to);
        let host = from.get(header::HOST)?;
        to.insert(header::HOST, self.host.as_ref().unwrap_or(host).clone());
        let vouched = client.vouched.as_deref();
        let ip = text(&client.ip.to_string())?;
        to.insert(&X_FORWARDED_FOR, vouched.map_or_else(|| ip.clone(), |vouched| vouched.chain.clone()));
        to.insert(&X_REAL_IP, ip);
        to.insert(&X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()));
        to.insert(&X_FORWARDED_HOST, vouched.map_or(host, |vouched| &vouched.host).clone());
        let port = || asked_port(host, client.scheme);
        to.insert(&X_FORWARDED_PORT, vouched.map_or_else(port, |vouched| vouched.port.clone()));
        to.insert(&X_FORWARDED_METHOD, text(request.method().as_str())?);
        to.insert(&X_ORIGINAL_METHOD, text(request.method().as_str())?);
        to.insert(&X_FORWARDED_URI, text(target)?);
        let scheme = client.scheme.as_str();
        let url = [scheme.as_bytes(), b"://", host.as_bytes(), target.as_bytes()].concat();
        to.insert(&X_ORIGINAL_URL, HeaderValue::from_bytes(&url).ok()?);
        to.insert(&X_REQUEST_ID, text(&exchange.request_id.to_string())?);
        for pass in from.get_all(&PASSES) {
            to.append(&PASSES, pass.clone());
        }
        let length = body.as_ref().map_or(0, Bytes::len);
        if length > 0 || !matches!(*question.method(), Method::GET | Method::HEAD) {
            question.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        if let Some(body) = body.filter(|body| !body.is_empty()) {
            *question.body_mut() = Body::Full(body);
        }
        if self.host.is_some() {
            question.extensions_mut().insert(FixedHost);
        }
        Some(question)
    }

    /// Copies the client's fields that may be seen, each as often and in the order in which the backend gets them.
    fn show(&self, from: &HeaderMap, has_body: bool, to: &mut HeaderMap) {
        let copy = |name: &HeaderName, to: &mut HeaderMap| {
            for value in from.get_all(name) {
                to.append(name, value.clone());
            }
        };
        match &self.shown {
            Shown::These(names) => names.iter().for_each(|name| copy(name, to)),
            Shown::All => {
                let of_the_body = |name: &HeaderName| !has_body && name.as_str().starts_with("content-");
                from.keys()
                    .filter(|name| !is_ours(name) && !is_forbidden(name) && !of_the_body(name))
                    .for_each(|name| copy(name, to));
            }
        }
        if has_body {
            for name in [&header::CONTENT_TYPE, &header::CONTENT_ENCODING] {
                to.remove(name);
                copy(name, to);
            }
        }
    }
}

/// The port that the client asked for.
fn asked_port(host: &HeaderValue, scheme: Scheme) -> HeaderValue {
    let authority = Authority::try_from(host.as_bytes()).ok();
    let port = authority.and_then(|authority| authority.port_u16());
    HeaderValue::from(port.unwrap_or_else(|| scheme.default_port()))
}

fn text(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}
