//! Where a key can stand in a request: found there, and taken away.

use std::borrow::Cow;

use http::header::COOKIE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use kube::KubeSchema;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::query_edits::is_spelling_of;
use crate::message::Request;
use crate::values::{FieldPath, Problem, Reason, is_same_field};

/// A place in the request: exactly one of these.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("[has(self.header), has(self.query), has(self.cookie)].exists_one(x, x)", "give exactly one of header, query and cookie")
)]
pub struct PlaceSpec {
    /// Name of a header field, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$"))]
    pub header: Option<String>,
    /// Name of a query parameter, not percent-encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub query: Option<String>,
    /// Name of a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$"))]
    pub cookie: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Header(HeaderName),
    Query(Box<str>),
    Cookie(Box<str>),
}

/// What stands in a place.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Nothing,
    One(Cow<'a, [u8]>),
    /// Which of them is meant, gateway and backend could see differently.
    Several,
}

impl Place {
    /// # Errors
    /// Says what to write.
    pub fn new(spec: &PlaceSpec, at: &FieldPath) -> Result<Self, Problem> {
        let refuse = |path: FieldPath, message: String| Problem::error(path, Reason::PolicyInvalid, message);
        match (&spec.header, &spec.query, &spec.cookie) {
            (Some(name), None, None) => match HeaderName::try_from(name.as_str()) {
                Ok(COOKIE) => Err(refuse(at.field("header"), "name the cookie itself, in cookie".into())),
                Ok(name) => Ok(Self::Header(name)),
                Err(_) => {
                    Err(refuse(at.field("header"), format!("found {name:?}, expected the name of a field")))
                }
            },
            (None, Some(name), None) => Ok(Self::Query(name.as_str().into())),
            (None, None, Some(name)) => Ok(Self::Cookie(name.as_str().into())),
            _ => Err(refuse(at.clone(), "give exactly one of header, query and cookie".into())),
        }
    }

    pub fn find<'r>(&self, headers: &'r HeaderMap, uri: &'r Uri) -> Found<'r> {
        match self {
            Self::Header(name) => {
                let mut values = headers.get_all(name).iter();
                one(values.next().map(|value| Cow::Borrowed(value.as_bytes())), values.next().is_some())
            }
            Self::Query(name) => {
                let pairs = uri.query().unwrap_or_default().split('&');
                let mut values = pairs.filter_map(|pair| {
                    let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
                    is_spelling_of(found, name).then(|| Cow::from(percent_decode_str(value)))
                });
                one(values.next(), values.next().is_some())
            }
            Self::Cookie(name) => {
                let mut values = crumbs(headers).filter_map(|crumb| {
                    let (found, value) = split(crumb);
                    (found == name.as_bytes()).then_some(Cow::Borrowed(value))
                });
                one(values.next(), values.next().is_some())
            }
        }
    }

    /// Takes away whatever stands here, but what is `kept`: of a header field all that a backend may read under its
    /// name, so that none finds a value there that nobody judged.
    pub fn strip(&self, request: &mut Request, kept: Option<&Self>) {
        match self {
            Self::Header(name) => {
                let headers = request.headers_mut();
                let goes = |found: &&HeaderName| {
                    is_same_field(found.as_str(), name.as_str())
                        && !matches!(kept, Some(Self::Header(kept)) if kept == *found)
                };
                while let Some(found) = headers.keys().find(goes).cloned() {
                    headers.remove(found);
                }
            }
            _ if kept == Some(self) => {}
            Self::Query(name) => {
                let Some(query) = request.uri().query() else { return };
                let is_ours = |pair: &&str| is_spelling_of(pair.split('=').next().unwrap_or_default(), name);
                if !query.split('&').any(|pair| is_ours(&pair)) {
                    return;
                }
                let rest: Vec<_> = query.split('&').filter(|pair| !is_ours(pair)).collect();
                let path = request.uri().path();
                let target =
                    if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
                let mut parts = request.uri().clone().into_parts();
                // A part of a target that was one is one.
                parts.path_and_query = PathAndQuery::try_from(target).ok();
                if let Ok(uri) = Uri::from_parts(parts) {
                    *request.uri_mut() = uri;
                }
            }
            Self::Cookie(name) => {
                let is_ours = |crumb: &&[u8]| split(crumb).0 == name.as_bytes();
                if !crumbs(request.headers()).any(|crumb| is_ours(&crumb)) {
                    return;
                }
                let rest: Vec<_> = crumbs(request.headers()).filter(|crumb| !is_ours(crumb)).collect();
                let rest = HeaderValue::from_bytes(&rest.join(&b"; "[..]));
                request.headers_mut().remove(COOKIE);
                if let Ok(rest) = rest
                    && !rest.is_empty()
                {
                    request.headers_mut().insert(COOKIE, rest);
                }
            }
        }
    }
}

fn one(first: Option<Cow<'_, [u8]>>, more: bool) -> Found<'_> {
    match (first, more) {
        (None, _) => Found::Nothing,
        (Some(_), true) => Found::Several,
        (Some(value), false) => Found::One(value),
    }
}

fn crumbs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let fields = headers.get_all(COOKIE).iter();
    fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';')).map(<[u8]>::trim_ascii)
}

fn split(crumb: &[u8]) -> (&[u8], &[u8]) {
    match crumb.iter().position(|byte| *byte == b'=') {
        Some(place) => (crumb[..place].trim_ascii(), crumb[place + 1..].trim_ascii()),
        None => (crumb, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, fields: &[(&'static str, &'static str)]) -> Request {
        let mut request = Request::default();
        *request.uri_mut() = uri.parse().expect("a URI");
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    fn found(place: &Place, request: &Request) -> Option<String> {
        match place.find(request.headers(), request.uri()) {
            Found::Nothing => None,
            Found::One(value) => Some(String::from_utf8_lossy(&value).into_owned()),
            Found::Several => Some("several".into()),
        }
    }

    #[test]
    fn a_header_is_found_once_in_any_case_and_removed() {
        let place = Place::Header(HeaderName::from_static("x-api-key"));
        let mut one = request("/", &[("X-API-KEY", "a b"), ("accept", "x")]);
        assert_eq!(found(&place, &one).as_deref(), Some("a b"));
        place.strip(&mut one, None);
        assert_eq!((found(&place, &one), one.headers().len()), (None, 1));
        let two = request("/", &[("x-api-key", "a"), ("x-api-key", "a")]);
        assert_eq!(found(&place, &two).as_deref(), Some("several"));
    }

    #[test]
    fn what_a_backend_may_read_as_the_header_goes_with_it_and_what_is_kept_stays_alone() {
        let place = Place::Header(HeaderName::from_static("x-api-key"));
        let fields = [
            ("x-api-key", "good"),
            ("x_api_key", "a"),
            ("x.api.key", "b"),
            ("X-API_KEY", "c"),
            ("x-api", "d"),
        ];
        let names = |request: &Request| {
            let mut names: Vec<_> = request.headers().keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            names
        };
        let mut all = request("/", &fields);
        place.strip(&mut all, None);
        assert_eq!(names(&all), ["x-api"]);
        let mut kept = request("/", &fields);
        place.strip(&mut kept, Some(&place));
        assert_eq!(
            (names(&kept), found(&place, &kept).as_deref()),
            (vec!["x-api".into(), "x-api-key".into()], Some("good"))
        );
        // Another entry's own name is what it keeps.
        let other = Place::Header(HeaderName::from_static("x_api_key"));
        let mut kept = request("/", &fields);
        place.strip(&mut kept, Some(&other));
        assert_eq!(names(&kept), ["x-api", "x_api_key"]);
    }

    #[test]
    fn a_parameter_is_found_in_every_spelling_and_the_rest_stays_byte_for_byte() {
        let place = Place::Query("api_key".into());
        for (uri, expected, rest) in [
            ("/a?api_key=s%2F+1&x=%7e", Some("s/+1"), "/a?x=%7e"),
            ("/a?x&api%5Fkey=s", Some("s"), "/a?x"),
            ("/a?api_key", Some(""), "/a"),
            ("/a?api_key=1&API_KEY=2", Some("1"), "/a?API_KEY=2"),
            ("/a?api_key=1&b=2&api%5fkey=1", Some("several"), "/a?b=2"),
            ("/a?b=api_key", None, "/a?b=api_key"),
            ("/a", None, "/a"),
        ] {
            let mut request = request(uri, &[]);
            assert_eq!(found(&place, &request).as_deref(), expected, "{uri}");
            place.strip(&mut request, None);
            assert_eq!(request.uri().to_string(), rest, "{uri}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others_and_taken_out() {
        let place = Place::Cookie("key".into());
        let mut one = request("/", &[("cookie", "a=1; key=se=cret;b"), ("cookie", "c=2")]);
        assert_eq!(found(&place, &one).as_deref(), Some("se=cret"));
        place.strip(&mut one, None);
        assert_eq!(one.headers()[COOKIE], "a=1; b; c=2");
        let mut alone = request("/", &[("cookie", "key=1")]);
        place.strip(&mut alone, Some(&place));
        assert_eq!(found(&place, &alone).as_deref(), Some("1"));
        place.strip(&mut alone, None);
        assert!(alone.headers().is_empty());
        assert_eq!(found(&place, &request("/", &[("cookie", "key=1; key=2")])).as_deref(), Some("several"));
        assert_eq!(found(&place, &request("/", &[("cookie", "Key=1; xkey=2")])), None);
    }
}
