//! Trailers: fields that come behind a body, after everything was decided by the head. Whoever merges them into the
//! head would believe a client's word where only ours counts, so they may name nothing that a head is judged by.
//!
//! Invariant: no trailer has the name of a field that frames, routes, authenticates or controls (RFC 9110 section
//! 6.5.1), that introduces the client or overrides the method, that only the gateway may set under this host, or in which
//! keys stand there, in any spelling.

use http::HeaderMap;
use http::header::HeaderName;

use super::forwarded::introduces;
use super::live::LiveHost;
use super::request_head::strip_underscores;
use crate::message::overrides_method;

/// Takes off what may not stand behind a request's body. `host`: where it has fields of its own.
pub fn of_request(trailers: &mut HeaderMap, host: Option<&LiveHost>) {
    strip(trailers);
    if let Some(host) = host {
        host.take_trailers(trailers);
    }
}

/// Takes off what may not stand behind an answer's body.
pub fn of_answer(trailers: &mut HeaderMap) {
    strip(trailers);
}

fn strip(trailers: &mut HeaderMap) {
    strip_underscores(trailers);
    let forbidden: Vec<HeaderName> =
        trailers.keys().filter(|name| is_forbidden(name.as_str())).cloned().collect();
    forbidden.iter().for_each(|name| drop(trailers.remove(name)));
}

/// By what they begin with: families of fields that controls, conditions, credentials and policies are written in.
const FAMILIES: [&str; 9] = [
    "access-control-",
    "content-",
    "cross-origin-",
    "if-",
    "portcullis-",
    "proxy-",
    "sec-",
    "transfer-",
    "www-",
];

const FORBIDDEN: [&str; 39] = [
    "age",
    "alt-svc",
    "authorization",
    "cache-control",
    "clear-site-data",
    "connection",
    "cookie",
    "cookie2",
    "date",
    "early-data",
    "expect",
    "expires",
    "forwarded",
    "from",
    "front-end-https",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "max-forwards",
    "origin",
    "permissions-policy",
    "pragma",
    "range",
    "referer",
    "referrer-policy",
    "retry-after",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "te",
    "trailer",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "x-api-key",
    "x-content-type-options",
    "x-frame-options",
];

fn is_forbidden(name: &str) -> bool {
    FORBIDDEN.binary_search(&name).is_ok()
        || introduces(name)
        || overrides_method(name)
        // `Content-MD5` and digests are what trailers are for (RFC 9530).
        || (FAMILIES.iter().any(|family| name.starts_with(family))
            && !matches!(name, "content-digest" | "content-md5"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn left(names: &[&'static str]) -> Vec<String> {
        let mut trailers = HeaderMap::new();
        for name in names {
            trailers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
            trailers.append(HeaderName::from_static(name), HeaderValue::from_static("2"));
        }
        strip(&mut trailers);
        trailers.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn the_list_is_in_order() {
        assert!(FORBIDDEN.is_sorted());
    }

    #[test]
    fn nothing_that_a_head_is_judged_by_comes_behind_a_body() {
        assert!(left(&FORBIDDEN).is_empty());
        let more = [
            "content-length",
            "content-type",
            "transfer-encoding",
            "if-match",
            "www-authenticate",
            "proxy-authorization",
            "access-control-allow-origin",
            "x-forwarded-for",
            "x-real-ip",
            "x-request-id",
            "x-portcullis-passes",
            "x-original-url",
            "x-rewrite-url",
            "x-method-override",
            "x-http-method",
            "x-http-method-override",
            "x.http.method",
            "x_user",
        ];
        assert!(left(&more).is_empty(), "{:?}", left(&more));
    }

    #[test]
    fn what_trailers_are_for_passes() {
        let good = ["content-digest", "grpc-status", "server-timing", "x-checksum"];
        let mut passed = left(&good);
        passed.sort();
        assert_eq!(passed, good);
    }
}
