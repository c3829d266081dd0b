//! The request of one call: what the plan says of it, and of the client's fields those that may pass.

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue, Method};

use crate::expression::{Fault, Subject, Why};
use crate::message::{Body, ErrorKind, Exchange, FixedHost, ProxyError, Request};
use crate::route_map::CallPlan;

/// What a call sends at most.
const MAX_BODY: usize = 1 << 20;
/// A target that any server takes.
const MAX_TARGET: usize = 32 << 10;

/// Fields of the client that always pass: where its work began, and its languages.
static TRACING: [HeaderName; 10] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("b3"),
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-b3-spanid"),
    HeaderName::from_static("x-b3-parentspanid"),
    HeaderName::from_static("x-b3-sampled"),
    HeaderName::from_static("x-b3-flags"),
    header::ACCEPT_LANGUAGE,
];
/// The count of passes goes on, so that a circle ends.
static PASSES: HeaderName = HeaderName::from_static("x-portcullis-passes");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

pub(super) enum Begun {
    Request(Box<Request>),
    /// Its `when` does not hold.
    Skipped,
}

/// # Errors
/// An expression has no value, or none that may stand where it is to be put.
pub(super) fn begin(call: &CallPlan, exchange: &Exchange) -> Result<Begun, ProxyError> {
    made(call, exchange).map_err(|fault| {
        // Without answers of others there was only the client's request to read.
        let kind = if call.needs.is_empty() { ErrorKind::ExpressionFailed } else { ErrorKind::CallFailed };
        ProxyError::caused(kind, fault)
    })
}

fn made(call: &CallPlan, exchange: &Exchange) -> Result<Begun, Fault> {
    let subject = Subject { exchange };
    if let Some(when) = &call.when
        && !when.holds(&subject)?
    {
        return Ok(Begun::Skipped);
    }
    let mut request = Request::default();
    let method = call.method.fill(&subject)?;
    // A body of these means nothing (RFC 9110 section 9.3), so it is not even made.
    let body = call.body.as_ref().filter(|_| !matches!(method, Method::GET | Method::HEAD));
    *request.method_mut() = method;
    *request.uri_mut() = target(call, &subject)?;
    let filled = call.headers.fill(&subject)?;
    let headers = request.headers_mut();
    *headers = fields(call, exchange);
    if let Some(body) = body {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = Bytes::from(body.json(&subject, MAX_BODY)?);
        call.headers.apply(headers, filled);
        *request.body_mut() = Body::Full(body);
    } else {
        call.headers.apply(headers, filled);
    }
    if exchange.host_override.is_some() {
        request.extensions_mut().insert(FixedHost);
    }
    Ok(Begun::Request(Box::new(request)))
}

fn target(call: &CallPlan, subject: &Subject<'_>) -> Result<Uri, Fault> {
    let mut target = call.path.fill(subject)?;
    let mut mark = '?';
    if let Some(query) = &call.query {
        target.push('?');
        target += &query.whole_query(subject)?;
        mark = '&';
    }
    for (name, value) in &call.params {
        target.push(mark);
        target += name;
        target += &value.query(subject)?;
        mark = '&';
    }
    let too_long = Fault { at: 0, why: Why::TooLong };
    if target.len() > MAX_TARGET {
        return Err(too_long);
    }
    // A path in normal form with an encoded query is a target.
    PathAndQuery::try_from(target).map(Uri::from).map_err(|_| too_long)
}

fn fields(call: &CallPlan, exchange: &Exchange) -> HeaderMap {
    let (from, client) = (exchange.request.headers(), &exchange.client);
    let mut fields = HeaderMap::with_capacity(16);
    let host = exchange.host_override.as_ref().or(from.get(header::HOST));
    if let Some(host) = host {
        fields.insert(header::HOST, host.clone());
    }
    fields.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    for name in TRACING.iter().chain([&PASSES]).chain(&call.pass) {
        for value in from.get_all(name) {
            fields.append(name, value.clone());
        }
    }
    let text = |text: String| HeaderValue::try_from(text).expect("digits, letters, dots and colons only");
    fields.insert(&X_REQUEST_ID, text(exchange.request_id.to_string()));
    fields.insert(&X_FORWARDED_FOR, text(client.ip.to_string()));
    fields.insert(&X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()));
    if let Some(host) = from.get(header::HOST) {
        fields.insert(&X_FORWARDED_HOST, host.clone());
    }
    fields
}
