//! Credentials that a policy names, by kind and place: what goes no further where another policy has taken its place.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::places::Place;
use crate::message::Request;

/// What clients may show, whether anybody judges it or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    Key(Place),
    /// A bearer token, whoever issued it.
    Token,
    Password,
}

impl Credential {
    /// Takes away whatever there is of its kind, but what stands in the place that is `kept`.
    pub fn strip(&self, request: &mut Request, kept: Option<&Place>) {
        match self {
            Self::Key(place) => place.strip(request, kept),
            Self::Token => strip_scheme(request.headers_mut(), b"bearer", kept),
            Self::Password => strip_scheme(request.headers_mut(), b"basic", kept),
        }
    }
}

/// Where tokens and passwords stand.
pub static AUTHORIZATION_FIELD: Place = Place::Header(AUTHORIZATION);

/// Takes `Authorization` away where it shows a credential of this scheme, in small letters, unless it is `kept`.
pub fn strip_scheme(headers: &mut HeaderMap, name: &[u8], kept: Option<&Place>) {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    if kept != Some(&AUTHORIZATION_FIELD)
        && fields.any(|field| after_scheme(field.as_bytes(), name).is_some())
    {
        headers.remove(AUTHORIZATION);
    }
}

/// What follows the name of a scheme, which is in any case (RFC 9110 section 11.1) and has a space behind it.
pub fn after_scheme<'f>(field: &'f [u8], name: &[u8]) -> Option<&'f [u8]> {
    let (scheme, rest) = field.split_at_checked(name.len())?;
    let ends = rest.first().is_none_or(|sign| matches!(sign, b' ' | b'\t'));
    (scheme.eq_ignore_ascii_case(name) && ends).then_some(rest)
}
