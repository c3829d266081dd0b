//! `Cache-Status` (RFC 9211): what this cache did, for people.

use std::fmt::Write as _;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

pub static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// It is nothing for a cache.
    Bypass,
    Method,
    /// Nothing is kept for its address.
    UriMiss,
    /// The request itself wants it.
    Request,
    Stale,
    /// A range of what is not kept.
    Partial,
}

/// What is told about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Seconds that are left; negative: past its time.
    Hit { ttl: i64 },
    Forwarded {
        why: Forwarded,
        /// The backend's status, where it is not the answer's.
        status: Option<u16>,
        stored: bool,
        /// It was another's fetch.
        collapsed: bool,
        /// Why it is not kept.
        detail: Option<&'static str>,
    },
}

impl Told {
    pub fn passed(why: Forwarded, detail: Option<&'static str>) -> Self {
        Self::Forwarded { why, status: None, stored: false, collapsed: false, detail }
    }

    pub fn stored(why: Forwarded) -> Self {
        Self::Forwarded { why, status: None, stored: true, collapsed: false, detail: None }
    }

    pub fn collapsed(why: Forwarded) -> Self {
        Self::Forwarded { why, status: None, stored: false, collapsed: true, detail: None }
    }

    /// After the caches that were nearer to the origin.
    pub fn write(self, headers: &mut HeaderMap) {
        let mut text = String::with_capacity(48);
        text.push_str("portcullis");
        match self {
            Self::Hit { ttl } => {
                let _ = write!(text, "; hit; ttl={ttl}");
            }
            Self::Forwarded { why, status, stored, collapsed, detail } => {
                text.push_str("; fwd=");
                text.push_str(why.word());
                if let Some(status) = status {
                    let _ = write!(text, "; fwd-status={status}");
                }
                text.push_str(if stored { "; stored" } else { "" });
                text.push_str(if collapsed { "; collapsed" } else { "" });
                if let Some(detail) = detail {
                    text.push_str("; detail=");
                    text.push_str(detail);
                }
            }
        }
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(&CACHE_STATUS, value);
        }
    }
}

impl Forwarded {
    const fn word(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_the_rfc_has_it() {
        let text = |told: Told| {
            let mut headers = HeaderMap::new();
            told.write(&mut headers);
            headers[&CACHE_STATUS].to_str().expect("text").to_owned()
        };
        assert_eq!(text(Told::Hit { ttl: -3 }), "portcullis; hit; ttl=-3");
        assert_eq!(text(Told::stored(Forwarded::UriMiss)), "portcullis; fwd=uri-miss; stored");
        assert_eq!(text(Told::collapsed(Forwarded::Stale)), "portcullis; fwd=stale; collapsed");
        assert_eq!(
            text(Told::passed(Forwarded::UriMiss, Some("private"))),
            "portcullis; fwd=uri-miss; detail=private"
        );
    }
}
