//! Which answers are worth compressing, and what compressing does to their head.

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName,
    VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::validators;
use crate::message::Coding;

/// Types that shrink, beside `text/*`, `*+json`, `*+xml`, `*+text` and `*+yaml`. In lower case and in order.
const TYPES: &[&str] = &[
    "application/ecmascript",
    "application/graphql",
    "application/javascript",
    "application/json",
    "application/json-seq",
    "application/json5",
    "application/manifest+json",
    "application/ndjson",
    "application/openmetrics-text",
    "application/pgp-keys",
    "application/rtf",
    "application/sql",
    "application/toml",
    "application/vnd.api+json",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-javascript",
    "application/x-ndjson",
    "application/x-sh",
    "application/x-yaml",
    "application/xhtml+xml",
    "application/xml",
    "application/xml-dtd",
    "application/yaml",
    "font/collection",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/svg+xml",
    "image/vnd.microsoft.icon",
    "image/x-icon",
    "message/http",
];
/// They are of the bytes as they were (RFC 9530, RFC 3230, RFC 1864).
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// What compressing would be to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It must stay as it is.
    Never,
    /// It is too small, or its type does not shrink.
    Little,
    Yes,
}

/// Whether an answer with this head should be compressed; `length` as far as it is known.
pub fn worth(status: StatusCode, headers: &HeaderMap, length: Option<u64>, min_size: u64) -> Worth {
    let has_body = !status.is_informational()
        && !matches!(
            status,
            StatusCode::NO_CONTENT
                | StatusCode::RESET_CONTENT
                | StatusCode::NOT_MODIFIED
                | StatusCode::PARTIAL_CONTENT
        );
    if !has_body || length == Some(0) || headers.contains_key(CONTENT_RANGE) || is_encoded(headers) {
        return Worth::Never;
    }
    if no_transform(headers) {
        return Worth::Never;
    }
    let Some(media) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return Worth::Little;
    };
    let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media.starts_with("application/grpc") {
        return Worth::Never;
    }
    let shrinks = media.starts_with("text/")
        || ["+json", "+xml", "+text", "+yaml"].iter().any(|suffix| media.ends_with(suffix))
        || TYPES.binary_search(&media.as_str()).is_ok();
    if shrinks && length.is_none_or(|length| length >= min_size) { Worth::Yes } else { Worth::Little }
}

/// `Cache-Control: no-transform`, of a request or an answer (RFC 9111 sections 5.2.1.6 and 5.2.2.6).
pub fn no_transform(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case("no-transform"))
}

/// What a cache must know: another client may get the same in another form.
pub fn vary(headers: &mut HeaderMap) {
    let lines = headers.get_all(VARY).iter().filter_map(|value| value.to_str().ok());
    let is_told = lines.flat_map(|line| line.split(',')).any(|name| {
        let name = name.trim();
        name == "*" || name.eq_ignore_ascii_case("accept-encoding")
    });
    if !is_told {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Says what the body will be, and nothing more of what it was.
pub fn encoded(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    drop_digests(headers);
    validators::weaken(headers);
}

/// Of a head or of trailers.
pub fn drop_digests(headers: &mut HeaderMap) {
    for name in &DIGESTS {
        headers.remove(name);
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(CONTENT_ENCODING).iter();
    lines.any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn types_stand_in_order() {
        assert!(TYPES.is_sorted());
    }

    #[test]
    fn what_shrinks_and_is_not_small_is_worth_it() {
        let of = |media, length| worth(StatusCode::OK, &headers(&[("content-type", media)]), length, 1024);
        for media in ["text/html; charset=utf-8", "Application/JSON", "image/svg+xml", "text/event-stream"] {
            assert_eq!(of(media, Some(1024)), Worth::Yes, "{media}");
            assert_eq!(of(media, None), Worth::Yes, "{media}");
            assert_eq!(of(media, Some(1023)), Worth::Little, "{media}");
        }
        for media in
            ["image/png", "video/mp4", "application/zip", "application/octet-stream", "font/woff2", ""]
        {
            assert_eq!(of(media, None), Worth::Little, "{media}");
        }
        for media in ["application/grpc", "application/grpc+proto", "application/grpc-web+json"] {
            assert_eq!(of(media, None), Worth::Never, "{media}");
        }
        assert_eq!(worth(StatusCode::OK, &HeaderMap::new(), None, 0), Worth::Little);
        assert_eq!(of("text/plain", Some(0)), Worth::Never);
    }

    #[test]
    fn what_must_stay_as_it_is_does() {
        for status in [101, 204, 205, 206, 304] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(worth(status, &headers(&[("content-type", "text/html")]), None, 0), Worth::Never);
        }
        for (name, value) in [
            ("content-encoding", "gzip"),
            ("content-encoding", "aes128gcm"),
            ("content-range", "bytes 0-9/10"),
            ("cache-control", "public, No-Transform"),
        ] {
            let headers = headers(&[("content-type", "text/html"), (name, value)]);
            assert_eq!(worth(StatusCode::OK, &headers, None, 0), Worth::Never, "{name}");
        }
        let plain = headers(&[("content-type", "text/html"), ("content-encoding", "identity")]);
        assert_eq!(worth(StatusCode::NOT_FOUND, &plain, None, 0), Worth::Yes);
    }

    #[test]
    fn vary_is_told_once() {
        for (told, expected) in [
            (&[][..], &["Accept-Encoding"][..]),
            (&[("vary", "Origin")], &["Origin", "Accept-Encoding"]),
            (&[("vary", "Origin, accept-encoding")], &["Origin, accept-encoding"]),
            (&[("vary", "*")], &["*"]),
        ] {
            let mut headers = headers(told);
            vary(&mut headers);
            assert_eq!(headers.get_all(VARY).iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_compressed_head_says_nothing_of_the_plain_bytes() {
        let mut headers = headers(&[
            ("content-length", "5"),
            ("accept-ranges", "bytes"),
            ("etag", "\"a\""),
            ("content-digest", "sha-256=:a:"),
            ("repr-digest", "sha-256=:a:"),
            ("digest", "sha-256=a"),
            ("content-md5", "a"),
            ("x-own", "1"),
        ]);
        encoded(&mut headers, Coding::Brotli);
        let mut left: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        left.sort();
        assert_eq!(left, ["content-encoding: \"br\"", "etag: \"W/\\\"a\\\"\"", "x-own: \"1\""]);
    }
}
