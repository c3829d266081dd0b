//! The answer: what counts as a yes, what as a no, and what of it goes on.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, StatusCode};
use http_body::Body as _;

use super::Plan;
use crate::filters::contract::Decision;
use crate::message::{Body, ErrorKind, IdentityKind, KnownIdentity, ProxyError, Response, TooLarge};

/// What is read of an answer's body.
const MAX_BODY: usize = 64 << 10;
/// What an answer may bring into a request or a refusal.
const MAX_FIELDS: usize = 16 << 10;
const MAX_ID: usize = 256;
const MAX_SCOPES: usize = 64;

pub(super) enum Verdict {
    Allowed { fields: HeaderMap, identity: Option<Arc<KnownIdentity>> },
    Denied(Decision<'static>),
}

impl Verdict {
    /// # Errors
    /// What came is no answer to the question.
    pub async fn of(response: Response, plan: &Plan) -> Result<Self, ProxyError> {
        let (parts, body) = response.into_parts();
        let status = parts.status;
        if status == StatusCode::LOOP_DETECTED {
            return Err(ErrorKind::LoopDetected.into());
        }
        if status.is_informational() || status.is_server_error() {
            return Err(ErrorKind::InvalidResponse.into());
        }
        // Half an answer is none. What is too large to be read to its end is no yes, for nobody knows whether it is
        // whole; a no stays one, without its body.
        let body = match body {
            body if body.is_end_stream() => Some(Bytes::new()),
            body => match body.read(MAX_BODY).await {
                Ok((body, _)) => Some(body),
                Err(TooLarge::Limit { .. }) if status.is_success() => {
                    return Err(ErrorKind::InvalidResponse.into());
                }
                Err(TooLarge::Limit { .. }) => None,
                Err(TooLarge::Broken(error)) => {
                    return Err(ProxyError::caused(ErrorKind::InvalidResponse, error));
                }
            },
        };
        if status.is_success() {
            let fields = taken(&parts.headers, &plan.backend_headers)?;
            return Ok(Self::Allowed { fields, identity: identity(&parts.headers, plan)? });
        }
        let fields = taken(&parts.headers, &plan.client_headers)?;
        Ok(Self::Denied(refusal(status, fields, &parts.headers, body.unwrap_or_default())))
    }
}

/// Those of the fields that may go on.
fn taken(from: &HeaderMap, names: &[HeaderName]) -> Result<HeaderMap, ProxyError> {
    let (mut fields, mut size) = (HeaderMap::new(), 0);
    for name in names {
        for value in from.get_all(name) {
            size += name.as_str().len() + value.len();
            fields.append(name, value.clone());
        }
    }
    if size > MAX_FIELDS {
        return Err(ErrorKind::InvalidResponse.into());
    }
    Ok(fields)
}

/// Who the client is; nobody where the answer does not say.
fn identity(from: &HeaderMap, plan: &Plan) -> Result<Option<Arc<KnownIdentity>>, ProxyError> {
    let Some(name) = &plan.id_header else { return Ok(None) };
    let mut values = from.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let id = std::str::from_utf8(value.as_bytes()).ok().map(str::trim);
    let is_one = values.next().is_none();
    let id = id.filter(|id| is_one && !id.is_empty() && id.len() <= MAX_ID && !id.contains(char::is_control));
    let id = id.ok_or(ErrorKind::InvalidResponse)?;
    let mut scopes: Vec<Box<str>> = Vec::new();
    for value in plan.scopes_header.iter().flat_map(|name| from.get_all(name)) {
        let text = value.to_str().map_err(|_| ErrorKind::InvalidResponse)?;
        scopes.extend(text.split([' ', ',']).filter(|scope| !scope.is_empty()).map(Into::into));
    }
    if scopes.len() > MAX_SCOPES {
        return Err(ErrorKind::InvalidResponse.into());
    }
    Ok(Some(Arc::new(KnownIdentity {
        kind: IdentityKind::External,
        entry: "extAuth".into(),
        issuer: plan.issuer.clone(),
        id: id.into(),
        scopes: scopes.into(),
        claims: Arc::default(),
    })))
}

/// What a client may be told as it is: that it must say who it is, that it may not, that it asks too often, or where to
/// go first. Another status says more of the authorizer than of the request.
fn refusal(status: StatusCode, fields: HeaderMap, from: &HeaderMap, body: Bytes) -> Decision<'static> {
    let goes_on = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => fields.contains_key(header::LOCATION),
        _ => false,
    };
    if !goes_on || (status == StatusCode::FORBIDDEN && body.is_empty()) {
        let mut error = ProxyError::new(ErrorKind::ExternallyDenied);
        if status == StatusCode::FORBIDDEN {
            let mut last = None;
            for (name, value) in fields {
                last = name.or(last);
                error.headers.extend(last.clone().map(|name| (name, value)));
            }
        }
        return error.into();
    }
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !body.is_empty() {
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE] {
            if let Some(value) = from.get(&name) {
                headers.insert(name, value.clone());
            }
        }
    }
    *response.body_mut() = Body::Full(body);
    response.extensions_mut().insert(ErrorKind::ExternallyDenied);
    Decision::Answer(Box::new(response))
}
