//! What a request may change makes what is kept of it old (RFC 9111 section 4.4).

use http::header::{self, HeaderName};
use http::uri::Uri;
use http::{HeaderMap, StatusCode};

use super::{LiveCache, passed};
use crate::cache::{Forwarded, Memory, Stored, key};
use crate::message::{ErrorKind, Exchange, Response};
use crate::proxy::live::{LiveHost, LiveRule};

/// Runs the action of a method that is not safe. Where it succeeds, what is kept of its address is not used any more,
/// nor of those that the answer names on the same host.
pub async fn around(
    cache: &LiveCache,
    exchange: &mut Exchange,
    action: impl AsyncFn(&mut Exchange) -> Response,
) -> Response {
    let (mut target, uri) = (Vec::new(), exchange.request.uri().clone());
    let counted = cache.counted(&uri);
    key::address(&mut target, exchange, &counted);
    let host = exchange.request.headers().get(header::HOST).cloned();
    let response = action(exchange).await;
    if has_done(&response) {
        cache.partition.change(&target);
        let named = [header::LOCATION, header::CONTENT_LOCATION];
        for place in named.iter().filter_map(|name| place(response.headers(), name, &uri, host.as_ref())) {
            let mut address = Vec::new();
            let host = host.as_ref().map_or(&b""[..], |host| host.as_bytes());
            let scheme = exchange.client.scheme.as_str();
            key::address_of(&mut address, scheme, host, place.path(), cache.counted(&place).query());
            cache.partition.change(&address);
        }
    }
    passed(response, Forwarded::Method, None)
}

/// The address of a request under a rule without a cache that may change what others of its host keep.
pub fn threatened(host: &LiveHost, rule: &LiveRule, exchange: &Exchange) -> Option<Vec<u8>> {
    if !host.caches || rule.cache.is_some() || exchange.request.method().is_safe() {
        return None;
    }
    let mut address = Vec::new();
    key::address(&mut address, exchange, exchange.request.uri());
    Some(address)
}

/// What was threatened has changed, if the answer says that the request did something.
pub fn judge_threat(memory: &Memory, address: Option<Vec<u8>>, response: &Response) {
    let did_something = has_done(response);
    if let Some(address) = address.filter(|_| did_something) {
        memory.change(&address);
    }
}

/// The gateway's own answer did nothing, though its refusal of a call of gRPC is a 200.
fn has_done(response: &Response) -> bool {
    let (status, is_ours) = (response.status(), response.extensions().get::<ErrorKind>().is_some());
    !is_ours && (status.is_success() || status.is_redirection())
}

/// HEAD that tells of another body than the one that is kept (RFC 9111 section 4.3.5).
pub fn by_head(cache: &LiveCache, stored: &Stored, response: &Response, address: &[u8]) {
    if response.status() != StatusCode::OK {
        return;
    }
    let differs = |name: &HeaderName| {
        let told = response.headers().get(name);
        told.is_some() && told != stored.headers.get(name)
    };
    if [header::ETAG, header::LAST_MODIFIED, header::CONTENT_LENGTH].iter().any(differs) {
        cache.partition.change(address);
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
