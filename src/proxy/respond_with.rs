//! The action `respond`: an answer that stands in the route.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use crate::message::{Body, ErrorKind, ProxyError, Response};
use crate::route_map::RespondPlan;

/// # Errors
/// The plan holds what no answer can have.
pub fn answer(plan: &RespondPlan) -> Result<Response, ProxyError> {
    let mut response = Response::new(Body::Full(plan.body.clone()));
    *response.status_mut() =
        StatusCode::from_u16(plan.status).map_err(|error| ProxyError::caused(ErrorKind::Internal, error))?;
    if let Some(content_type) = &plan.content_type {
        let value = HeaderValue::from_str(content_type)
            .map_err(|error| ProxyError::caused(ErrorKind::Internal, error))?;
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    Ok(response)
}
