//! The answer in the place of a failed one.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE,
    PROXY_AUTHENTICATE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Entry;
use crate::expression::{Expression, Fault, Subject, Template};
use crate::message::{Body, ErrorKind, Exchange, FailureDocument, FailureForm, Response, escape_html};

/// What a body is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Text {
        template: Template,
        /// None: as the client likes.
        media: Option<HeaderValue>,
        escaping: Escaping,
    },
    Json {
        body: Expression,
        media: HeaderValue,
    },
}

/// What a filled-in value must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escaping {
    /// Begin a tag.
    Html,
    /// End a string.
    Json,
    None,
}

/// Of a backend's answer these say what the client can do, not what went wrong there.
const KEPT: [HeaderName; 4] = [RETRY_AFTER, WWW_AUTHENTICATE, PROXY_AUTHENTICATE, ALLOW];
/// A failed answer is read to its end within these, so that its connection can be used again.
const READ: usize = 16 << 10;
/// The largest body that an expression can make.
const MAX_JSON: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_millis(50);

impl Escaping {
    pub fn of(media: Option<&str>) -> Self {
        let Some(media) = media else { return Self::None };
        let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media.as_str() {
            "application/json" => Self::Json,
            other if other.ends_with("+json") => Self::Json,
            "text/html" | "text/xml" | "application/xml" => Self::Html,
            other if other.ends_with("+xml") => Self::Html,
            _ => Self::None,
        }
    }

    fn put(self, filled: &mut String, value: &str) {
        match self {
            Self::Html => filled.extend(escape_html(value).chars().filter(|sign| !sign.is_control())),
            Self::Json => {
                let quoted = serde_json::Value::from(value).to_string();
                filled.push_str(&quoted[1..quoted.len() - 1]);
            }
            Self::None => filled.extend(value.chars().filter(|sign| !sign.is_control())),
        }
    }
}

/// The answer, and what is left of a backend's, to be read out.
pub fn replaced(
    entry: &Entry,
    exchange: &Exchange,
    response: Response,
    kind: Option<ErrorKind>,
) -> (Response, Option<Body>) {
    let (mut parts, body) = response.into_parts();
    let before = parts.status;
    parts.status = entry.status.unwrap_or(before);
    let is_gateway = kind.is_some();
    if entry.content.is_none() && !(is_gateway && parts.status != before) {
        return (Response::from_parts(parts, body), None);
    }
    let accept = exchange.asker.as_ref().and_then(|asker| asker.accept.as_ref());
    let form = FailureForm::of(accept);
    let title = parts.status.canonical_reason().unwrap_or("Error");
    let document = |title: &str| {
        let document = FailureDocument {
            status: parts.status.as_u16(),
            title,
            reason: kind.map(ErrorKind::as_str),
            detail: None,
            violations: &[],
            id: exchange.request_id,
        };
        (HeaderValue::from_static(form.content_type()), document.told(form))
    };
    let (media, text) = match &entry.content {
        None => document(title),
        Some(content) => match content.fill(exchange) {
            // The default: it needs nothing.
            Err(fault) => {
                tracing::debug!(%fault, "the text of an error cannot be filled in");
                document(title)
            }
            Ok(text) => match (content.media(), form) {
                (Some(media), _) => (media.clone(), text),
                (None, FailureForm::Text) => (HeaderValue::from_static(form.content_type()), text),
                (None, FailureForm::Problem | FailureForm::Page | FailureForm::Grpc) => document(&text),
            },
        },
    };
    let headers = &mut parts.headers;
    if is_gateway {
        for name in [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_LANGUAGE] {
            headers.remove(name);
        }
    } else {
        *headers = kept(headers);
    }
    headers.insert(CONTENT_TYPE, media);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let told = Response::from_parts(parts, Body::Full(Bytes::from(text)));
    (told, (!is_gateway).then_some(body))
}

fn kept(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in KEPT {
        for value in headers.get_all(&name) {
            kept.append(&name, value.clone());
        }
    }
    kept
}

/// Reads what is left of a failed answer, if it is soon done with.
pub async fn read_out(body: Body) {
    let reading = body.read(READ);
    // Whatever it is, nobody wants it.
    drop(tokio::time::timeout(PATIENCE, reading).await);
}

impl Content {
    const fn media(&self) -> Option<&HeaderValue> {
        match self {
            Self::Text { media, .. } => media.as_ref(),
            Self::Json { media, .. } => Some(media),
        }
    }

    fn fill(&self, exchange: &Exchange) -> Result<String, Fault> {
        let subject = Subject { exchange };
        match self {
            Self::Json { body, .. } => {
                let json = body.json(&subject, MAX_JSON)?;
                Ok(String::from_utf8(json).expect("JSON is written as text"))
            }
            Self::Text { template, media, escaping } => {
                let escaping = if media.is_some() { *escaping } else { Escaping::None };
                template.text(&subject, |filled, value| escaping.put(filled, value))
            }
        }
    }
}
