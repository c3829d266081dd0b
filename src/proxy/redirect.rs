//! The action `redirect`, and the redirect of plain HTTP to HTTPS.

use std::fmt::Write as _;

use http::header::{HOST, LOCATION};
use http::{HeaderValue, StatusCode};

use super::request_head::split_host;
use crate::message::{Body, ErrorKind, Exchange, ProxyError, Response, Scheme};
use crate::route_map::RedirectPlan;

/// The answer of a redirecting rule. What the plan leaves open stays as it was asked; a port that is the scheme's own
/// is not written.
///
/// # Errors
/// The path has no value for this request, or the new target is no valid field value.
pub fn answer(plan: &RedirectPlan, exchange: &Exchange) -> Result<Response, ProxyError> {
    let uri = exchange.request.uri();
    let scheme = plan.scheme.unwrap_or(exchange.client.scheme);
    let (asked_host, asked_port) = asked(exchange);
    let host = plan.hostname.as_deref().unwrap_or(asked_host);
    // Gateway API: a scheme without a port means that scheme's own port; neither means the port that was asked.
    let port = plan.port.or(if plan.scheme.is_some() { None } else { asked_port });
    let path = match &plan.path {
        Some(change) => {
            change.apply(exchange).map_err(|fault| ProxyError::caused(ErrorKind::ExpressionFailed, fault))?
        }
        None => uri.path().to_owned(),
    };
    location(plan.status, scheme, host, port, &path, uri.query())
}

/// 308 to the same place over HTTPS; no port is 443.
///
/// # Errors
/// The target is no valid field value.
pub fn to_https(host: &str, port: Option<u16>, uri: &http::Uri) -> Result<Response, ProxyError> {
    location(308, Scheme::Https, host, port, uri.path(), uri.query())
}

fn asked(exchange: &Exchange) -> (&str, Option<u16>) {
    let host = exchange.request.headers().get(HOST).and_then(|host| host.to_str().ok());
    host.and_then(split_host).unwrap_or((&exchange.host, None))
}

fn location(
    status: u16,
    scheme: Scheme,
    host: &str,
    port: Option<u16>,
    path: &str,
    query: Option<&str>,
) -> Result<Response, ProxyError> {
    let mut target = format!("{}://{host}", scheme.as_str());
    if let Some(port) = port.filter(|port| *port != scheme.default_port()) {
        let _ = write!(target, ":{port}");
    }
    target += path;
    if let Some(query) = query {
        target.push('?');
        target += query;
    }
    let target =
        HeaderValue::from_str(&target).map_err(|error| ProxyError::caused(ErrorKind::Internal, error))?;
    let mut response = Response::new(Body::Empty);
    *response.status_mut() =
        StatusCode::from_u16(status).map_err(|error| ProxyError::caused(ErrorKind::Internal, error))?;
    response.headers_mut().insert(LOCATION, target);
    Ok(response)
}
