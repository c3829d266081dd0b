//! What a request may change makes what is kept of it old (RFC 9111 section 4.4).

use http::header::{self, HeaderName, HeaderValue};
use http::uri::Uri;
use http::{HeaderMap, StatusCode};

use super::LiveCache;
use crate::cache::key::CountedNames;
use crate::cache::{Memory, Stored, key};
use crate::message::{ErrorKind, Exchange, Response, Scheme};
use crate::proxy::live::LiveHost;

/// A request that may change what others of its host keep.
pub struct Threat {
    uri: Uri,
    host: Option<HeaderValue>,
    scheme: Scheme,
}

/// What a request threatens, also one under a rule without a cache.
pub fn threatened(host: &LiveHost, exchange: &Exchange) -> Option<Threat> {
    if host.counted.is_empty() || exchange.request.method().is_safe() {
        return None;
    }
    Some(Threat {
        uri: exchange.request.uri().clone(),
        host: exchange.request.headers().get(header::HOST).cloned(),
        scheme: exchange.client.scheme,
    })
}

/// What was threatened has changed, if the answer says that the request did something: its own address, and those that
/// the answer names on the same host, as each of the host's caches counts their queries.
pub fn judge_threat(memory: &Memory, host: &LiveHost, threat: Option<Threat>, response: &Response) {
    let Some(threat) = threat.filter(|_| has_done(response)) else { return };
    let named = [header::LOCATION, header::CONTENT_LOCATION];
    let named =
        named.iter().filter_map(|name| place(response.headers(), name, &threat.uri, threat.host.as_ref()));
    for uri in std::iter::once(threat.uri.clone()).chain(named) {
        for address in threat.addresses(&host.counted, &uri) {
            memory.write(&address);
        }
    }
}

impl Threat {
    fn addresses<'t>(
        &'t self,
        counted: &'t [CountedNames],
        uri: &'t Uri,
    ) -> impl Iterator<Item = Vec<u8>> + 't {
        counted.iter().map(|counted| {
            let (mut address, query) = (Vec::new(), uri.query());
            let host = self.host.as_ref().map_or(&b""[..], |host| host.as_bytes());
            let fewer = key::counted_query(counted.as_deref(), query);
            // Without any parameter left there is no query.
            let query = fewer.as_deref().map_or(query, |fewer| Some(fewer).filter(|fewer| !fewer.is_empty()));
            key::address_of(&mut address, self.scheme.as_str(), host, uri.path(), query);
            address
        })
    }
}

/// The gateway's own answer did nothing, though its refusal of a call of gRPC is a 200.
fn has_done(response: &Response) -> bool {
    let (status, is_ours) = (response.status(), response.extensions().get::<ErrorKind>().is_some());
    !is_ours && (status.is_success() || status.is_redirection())
}

/// HEAD that tells of another body than the one that is kept (RFC 9111 section 4.3.5). Without an address it is somebody's
/// alone, and says nothing for sure.
pub fn by_head(cache: &LiveCache, stored: &Stored, response: &Response, address: Option<&[u8]>) {
    if response.status() != StatusCode::OK {
        return;
    }
    let differs = |name: &HeaderName| {
        let told = response.headers().get(name);
        told.is_some() && told != stored.headers.get(name)
    };
    if [header::ETAG, header::LAST_MODIFIED, header::CONTENT_LENGTH].iter().any(differs) {
        match address {
            Some(address) => cache.partition.change(address),
            None => stored.doubt(),
        }
    }
}

/// The address that a field of the answer names, if it is of the same host.
fn place(
    headers: &HeaderMap,
    name: &HeaderName,
    from: &Uri,
    host: Option<&header::HeaderValue>,
) -> Option<Uri> {
    let text = headers.get(name)?.to_str().ok()?;
    let text = text.split('#').next().unwrap_or_default();
    if text.starts_with("//") {
        return None;
    }
    if text.starts_with('/') {
        return text.parse().ok();
    }
    if text.contains("://") {
        let uri: Uri = text.parse().ok()?;
        let is_ours = host?.as_bytes().eq_ignore_ascii_case(uri.authority()?.as_str().as_bytes());
        return is_ours.then_some(uri);
    }
    let folder = &from.path()[..=from.path().rfind('/')?];
    format!("{folder}{text}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_threatens_what_each_cache_of_the_host_counts() {
        let threat = Threat {
            uri: "/a?page=1&utm=x".parse().expect("a target"),
            host: Some(HeaderValue::from_static("Shop.example")),
            scheme: Scheme::Https,
        };
        let of = |counted: &[CountedNames]| {
            let addresses = threat.addresses(counted, &threat.uri);
            addresses
                .map(|bytes| String::from_utf8(bytes).expect("text").replace('\0', " "))
                .collect::<Vec<_>>()
        };
        let pages: Box<[Box<str>]> = ["page".into()].into();
        assert_eq!(
            of(&[None, Some(pages), Some(Box::default())]),
            [
                "https shop.example /a?page=1&utm=x ",
                "https shop.example /a?page=1 ",
                "https shop.example /a "
            ]
        );
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn an_answer_names_addresses_of_its_own_host_only() {
        let from: Uri = "/a/b?c".parse().expect("a target");
        let host = header::HeaderValue::from_static("Shop.example");
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, header::HeaderValue::from_static(text));
            place(&headers, &header::LOCATION, &from, Some(&host))
                .map(|uri| uri.path_and_query().expect("a target").as_str().to_owned())
        };
        assert_eq!(of("/x?y#z").as_deref(), Some("/x?y"));
        assert_eq!(of("d").as_deref(), Some("/a/d"));
        assert_eq!(of("http://shop.example/e").as_deref(), Some("/e"));
        assert_eq!(of("http://shop.example:81/e"), None);
        assert_eq!(of("http://other.example/e"), None);
        assert_eq!(of("//other.example/e"), None);
    }
}
