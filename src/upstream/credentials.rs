//! Shows a backend what it is to be shown of ours.
//!
//! Invariants: the client's own value in that place goes no further, in whatever spelling; a request that cannot carry
//! the credential is not sent.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use http_body::{Frame, SizeHint};
use percent_encoding::percent_decode_str;

use crate::message::{Body, BodyError, ErrorKind, ProxyError};
use crate::route_map::{Credential, TokenPlan};
use crate::values::ReservedHeaders;

/// `http::Uri` counts in 16 bits.
const MAX_TARGET: usize = 65_000;

/// Behind the body of a request comes no field of the credential's name either: some servers put those into the head.
pub(super) fn guard_trailers(credential: &Arc<Credential>, body: &mut Body) {
    if matches!(&**credential, Credential::Header { .. } | Credential::Token(_))
        && matches!(body, Body::Incoming(_) | Body::Received(_) | Body::Stream(_))
    {
        let inner = std::mem::take(body);
        *body = Body::stream(Guarded { inner, credential: Arc::clone(credential) });
    }
}

struct Guarded {
    inner: Body,
    credential: Arc<Credential>,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut polled = Pin::new(&mut this.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
            && let Credential::Header { spellings, .. } | Credential::Token(TokenPlan { spellings, .. }) =
                &*this.credential
        {
            remove(trailers, spellings);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Whoever gets tokens for a backend, beside the requests.
pub trait Tokens: fmt::Debug + Send + Sync {
    /// `Authorization`'s value. `None`: there is none that is good.
    fn now(&self) -> Option<HeaderValue>;

    /// Ends when it was tried to get the first. `None`: it was.
    fn first(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

    /// The backend did not want this one.
    fn refused(&self, token: &HeaderValue);
}

/// Gives the token that is shown, where it is one.
pub(super) fn show<B>(
    credential: &Credential,
    tokens: Option<&dyn Tokens>,
    request: &mut http::Request<B>,
) -> Result<Option<HeaderValue>, ProxyError> {
    match credential {
        Credential::Header { name, spellings, value } => {
            replace(request.headers_mut(), spellings, name, value.expose());
        }
        Credential::Query { name, value } => {
            let uri = with_parameter(request.uri(), name, value.expose());
            *request.uri_mut() = uri.ok_or(ErrorKind::UriTooLong)?;
        }
        Credential::Token(plan) => {
            let token = tokens.and_then(Tokens::now).ok_or(ErrorKind::CredentialsUnavailable)?;
            replace(request.headers_mut(), &plan.spellings, &AUTHORIZATION, &token);
            return Ok(Some(token));
        }
    }
    Ok(None)
}

fn replace(headers: &mut HeaderMap, spellings: &ReservedHeaders, name: &HeaderName, value: &HeaderValue) {
    remove(headers, spellings);
    headers.insert(name.clone(), value.clone());
}

fn remove(headers: &mut HeaderMap, spellings: &ReservedHeaders) {
    while let Some(theirs) = headers.keys().find(|name| spellings.hold(name.as_str())).cloned() {
        headers.remove(theirs);
    }
}

/// `None`: it does not fit. Both are in the form that they have in a query.
fn with_parameter(uri: &Uri, name: &str, value: &str) -> Option<Uri> {
    let plain = decoded(name);
    let others = uri.query().unwrap_or_default().split('&').filter(|pair| {
        // Some servers end a parameter at a semicolon, too.
        let mut names = pair.split(';').map(|pair| pair.split('=').next().unwrap_or_default());
        !pair.is_empty() && names.all(|name| decoded(name) != plain)
    });
    let mut target = uri.path().to_owned();
    let own = [name, "=", value].concat();
    for (place, pair) in others.chain([own.as_str()]).enumerate() {
        target.push(if place == 0 { '?' } else { '&' });
        target.push_str(pair);
    }
    if target.len() > MAX_TARGET {
        return None;
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

fn decoded(name: &str) -> Vec<u8> {
    percent_decode_str(name).map(|byte| if byte == b'+' { b' ' } else { byte }).collect()
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::message::Request;
    use crate::values::Redacted;

    #[test]
    fn a_field_of_the_client_s_is_replaced_in_every_spelling() {
        let credential = Credential::Header {
            name: "x-api-key".parse().expect("a name"),
            spellings: ["x-api-key"].into_iter().collect(),
            value: Redacted::new(HeaderValue::from_static("ours")),
        };
        let mut request = Request::default();
        for (name, value) in [("x-api-key", "a"), ("x-api-key", "b"), ("x_api_key", "c"), ("x.api.key", "d")]
        {
            request.headers_mut().append(name, HeaderValue::from_static(value));
        }
        request.headers_mut().insert("x-other", HeaderValue::from_static("stays"));
        show(&credential, None, &mut request).expect("it fits");
        let expected: HeaderMap = [("x-other", "stays"), ("x-api-key", "ours")]
            .map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        assert_eq!(*request.headers(), expected);
    }

    #[tokio::test]
    async fn no_trailer_has_the_credential_s_name() {
        let credential = Arc::new(Credential::Header {
            name: "x-api-key".parse().expect("a name"),
            spellings: ["x-api-key"].into_iter().collect(),
            value: Redacted::new(HeaderValue::from_static("ours")),
        });
        let mut trailers = HeaderMap::new();
        for name in ["x-api-key", "x.api.key", "x-checksum"] {
            trailers.insert(name, HeaderValue::from_static("theirs"));
        }
        let frames =
            [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)].map(Ok::<_, BodyError>);
        let mut body = Body::stream(StreamBody::new(futures_util::stream::iter(frames)));
        guard_trailers(&credential, &mut body);
        let whole = body.collect().await.expect("whole");
        let left: Vec<_> = whole.trailers().expect("some").keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-checksum"]);
        // What has none stays as it is.
        let mut full = Body::from("at hand");
        guard_trailers(&credential, &mut full);
        assert!(matches!(full, Body::Full(_)) && full.size_hint().exact() == Some(7));
    }

    #[test]
    fn a_parameter_of_the_client_s_is_replaced_in_every_spelling() {
        let cases = [
            ("/v1", "/v1?key=a%26b"),
            ("/v1?", "/v1?key=a%26b"),
            ("/v1?page=2", "/v1?page=2&key=a%26b"),
            ("/v1?key=x&page=2&key=y", "/v1?page=2&key=a%26b"),
            ("/v1?key", "/v1?key=a%26b"),
            ("/v1?%6bey=x&page=2", "/v1?page=2&key=a%26b"),
            ("/v1?page=2;key=x&q", "/v1?q&key=a%26b"),
            ("/v1?keys=1&&a=key=1", "/v1?keys=1&a=key=1&key=a%26b"),
            ("https://api.example/v1?page=2", "https://api.example/v1?page=2&key=a%26b"),
        ];
        let credential = Credential::Query { name: "key".into(), value: Redacted::new("a%26b".into()) };
        for (before, after) in cases {
            let mut request = Request::default();
            *request.uri_mut() = before.parse().expect("a URI");
            show(&credential, None, &mut request).expect("it fits");
            assert_eq!(request.uri().to_string(), after, "{before}");
        }
        assert_eq!(decoded("a+b%20c"), b"a b c");
    }

    #[test]
    fn a_request_that_cannot_carry_it_is_not_sent() {
        let value: Arc<str> = "x".repeat(70_000).into();
        let credential = Credential::Query { name: "key".into(), value: Redacted::new(value) };
        let error = show(&credential, None, &mut Request::default()).expect_err("too long");
        assert_eq!(error.kind, ErrorKind::UriTooLong);
    }
}
