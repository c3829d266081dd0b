//! What is made of the calls: one body, one status, and whether anything is missing in it.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;

use crate::expression::{Fault, Subject, Why};
use crate::message::{Body, Called, ErrorKind, Exchange, ProxyError, RawJson, Response};
use crate::route_map::{AggregatePlan, BodyPlan};

/// The largest body that an expression can make.
const MAX_BODY: usize = 4 << 20;
static PARTIAL: HeaderName = HeaderName::from_static("portcullis-partial");

/// In the extensions of an answer that lacks a part.
#[derive(Clone, Copy, Debug)]
pub struct Partial;

/// # Errors
/// An expression has no value, or none that an answer can have.
pub(super) fn make(plan: &AggregatePlan, exchange: &Exchange) -> Result<Response, ProxyError> {
    written(plan, exchange).map_err(|fault| ProxyError::caused(ErrorKind::TransformFailed, fault))
}

fn written(plan: &AggregatePlan, exchange: &Exchange) -> Result<Response, Fault> {
    let subject = Subject { exchange };
    let status = match &plan.answer.status {
        None => StatusCode::OK,
        Some(status) => answerable(status.int(&subject)?)?,
    };
    let filled = plan.answer.headers.fill(&subject)?;
    let names = || plan.calls.iter().map(|call| &*call.name);
    let body = match &plan.answer.body {
        BodyPlan::Members => members(names(), &exchange.calls, None),
        BodyPlan::MembersAndErrors => members(names(), &exchange.calls, errors(names(), &exchange.calls)),
        BodyPlan::Expression(body) => body.json(&subject, MAX_BODY)?,
    };
    let mut response = Response::new(Body::Full(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    plan.answer.headers.apply(headers, filled);
    let failed: Vec<_> = names().zip(&exchange.calls).filter(|(_, call)| call.failure.is_some()).collect();
    if !failed.is_empty() {
        let failed: Vec<_> = failed.into_iter().map(|(name, _)| name).collect();
        let failed = HeaderValue::try_from(failed.join(", ")).expect("names of calls are letters and digits");
        headers.insert(&PARTIAL, failed);
        keep_out_of_caches(headers);
        response.extensions_mut().insert(Partial);
    }
    Ok(response)
}

/// For a partial answer, and once more when all filters have had it.
pub fn keep_out_of_caches(headers: &mut HeaderMap) {
    // Of what would be obeyed in its place (RFC 9213) nothing stays.
    let is_targeted = |name: &&HeaderName| {
        name.as_str().ends_with("-cache-control") || matches!(name.as_str(), "surrogate-control" | "expires")
    };
    let targeted: Vec<_> = headers.keys().filter(is_targeted).cloned().collect();
    targeted.iter().for_each(|name| drop(headers.remove(name)));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

fn answerable(status: i64) -> Result<StatusCode, Fault> {
    let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
    status.and_then(|status| StatusCode::from_u16(status).ok()).ok_or(Fault { at: 0, why: Why::BadValue })
}

/// An object with what stands for each call, as it came.
fn members<'n>(
    names: impl Iterator<Item = &'n str> + Clone,
    calls: &[Called],
    last: Option<String>,
) -> Vec<u8> {
    let bodies = names.zip(calls).filter_map(|(name, call)| Some((name, call.body.as_ref()?.as_str())));
    RawJson::object(bodies.chain(last.as_deref().map(|errors| ("_errors", errors))))
}

/// Which calls failed, in their order, and why. `None`: none did.
fn errors<'n>(names: impl Iterator<Item = &'n str>, calls: &[Called]) -> Option<String> {
    let failed = names.zip(calls).filter_map(|(name, call)| {
        let mut told = json!({"call": name, "reason": call.failure?});
        if let Some(status) = call.status {
            told["status"] = status.as_u16().into();
        }
        Some(told)
    });
    let failed: Vec<_> = failed.collect();
    (!failed.is_empty()).then(|| serde_json::Value::from(failed).to_string())
}
