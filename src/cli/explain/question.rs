//! The request that is asked about.

use anyhow::Context as _;
use http::header::{HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Uri};

use crate::message::Scheme;

/// A request as it is asked about.
#[derive(Debug)]
pub struct Question {
    pub method: Method,
    pub scheme: Scheme,
    pub host: String,
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    /// Where clients would be sent that ask over plain HTTP.
    pub https_port: u16,
}

impl Question {
    /// # Errors
    /// What of it is no request.
    pub fn new(method: &str, url: &str, headers: &[String]) -> anyhow::Result<Self> {
        let method =
            Method::from_bytes(method.as_bytes()).with_context(|| format!("{method:?} is not a method"))?;
        let (scheme, rest) = match url.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => anyhow::bail!("{url:?} does not begin with http:// or https://"),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let authority: http::uri::Authority =
            authority.parse().with_context(|| format!("{authority:?} is not a host"))?;
        let target = target.split('#').next().unwrap_or_default();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let mut question = Self {
            method,
            scheme,
            host: authority.host().to_ascii_lowercase(),
            path: if path.is_empty() { "/".into() } else { path.into() },
            query,
            headers: HeaderMap::new(),
            https_port: Scheme::Https.default_port(),
        };
        question.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
        for line in headers {
            let (name, value) = line
                .split_once(':')
                .with_context(|| format!("{line:?} is not a header like \"name: value\""))?;
            let name = HeaderName::from_bytes(name.trim().as_bytes())
                .with_context(|| format!("{name:?} is not the name of a header"))?;
            question.headers.append(name, HeaderValue::from_str(value.trim())?);
        }
        if let Some(host) = question.headers.get_all(HOST).iter().nth(1) {
            let uri: Uri = format!("http://{}/", host.to_str()?).parse()?;
            question.host = uri.host().unwrap_or_default().to_ascii_lowercase();
        }
        Ok(question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_checked() {
        for (method, url, header) in [
            ("G T", "http://a/", "a: b"),
            ("GET", "a/b", "a: b"),
            ("GET", "ftp://a/", "a: b"),
            ("GET", "http://a b/", "a: b"),
            ("GET", "http://a/", "nocolon"),
        ] {
            assert!(Question::new(method, url, &[header.into()]).is_err(), "{method} {url} {header}");
        }
    }
}
