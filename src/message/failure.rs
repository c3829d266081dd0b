//! How a failure is told: a problem document (RFC 9457), a page, or plain text, as the client likes, or as gRPC wants it. Everything in it is
//! the gateway's own words and is escaped for the form that it stands in.

use std::sync::Arc;

use http::HeaderValue;
use serde_json::Value;

use crate::message::accept::Accepted;
use crate::message::{RequestId, Violation};

/// In which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailureForm {
    #[default]
    Problem,
    Page,
    Text,
    /// A status of gRPC: the words stand in a field.
    Grpc,
}

/// What is told.
#[derive(Debug)]
pub struct FailureDocument<'a> {
    pub status: u16,
    /// A sentence for people.
    pub title: &'a str,
    /// The stable word for programs; none: a backend's failure.
    pub reason: Option<&'static str>,
    pub detail: Option<&'a str>,
    pub violations: &'a [Violation],
    pub id: RequestId,
}

impl FailureForm {
    /// What the client likes best by its `Accept`; a problem document where it says nothing, or likes nothing of it.
    pub fn of(accept: Option<&HeaderValue>) -> Self {
        accept.and_then(|accept| Accepted::of(accept.as_bytes()).choose()).unwrap_or_default()
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Problem => "application/problem+json",
            Self::Page => "text/html; charset=utf-8",
            Self::Text => "text/plain; charset=utf-8",
            Self::Grpc => "application/grpc",
        }
    }
}

impl FailureDocument<'_> {
    pub fn told(&self, form: FailureForm) -> String {
        match form {
            FailureForm::Problem => self.problem(),
            FailureForm::Page => self.page(),
            FailureForm::Text => self.text(),
            FailureForm::Grpc => self.line(),
        }
    }

    fn line(&self) -> String {
        let detail = self.detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        let reason = self.reason.map(|reason| format!("{reason}, ")).unwrap_or_default();
        format!("{}{detail} ({reason}request id {})", self.title, self.id)
    }

    fn problem(&self) -> String {
        let mut told = r#"{"type":"about:blank","title":"#.to_owned();
        told += &Value::from(self.title).to_string();
        told += &format!(r#","status":{}"#, self.status);
        if let Some(reason) = self.reason {
            told += &format!(r#","reason":"{reason}""#);
        }
        told += &format!(r#","request_id":"{}""#, self.id);
        if let Some(detail) = self.detail {
            told += r#","detail":"#;
            told += &Value::from(detail).to_string();
        }
        if !self.violations.is_empty() {
            let violations = self.violations.iter();
            let violations =
                violations.map(|one| serde_json::json!({"pointer": one.pointer, "message": one.message}));
            told += r#","violations":"#;
            told += &Value::from_iter(violations).to_string();
        }
        told += "}\n";
        told
    }

    fn page(&self) -> String {
        let title = format!("{} {}", self.status, escape_html(self.title));
        let mut told = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<h1>{title}</h1>\n"
        );
        if let Some(detail) = self.detail {
            told += &format!("<p>{}</p>\n", escape_html(detail));
        }
        if !self.violations.is_empty() {
            told += "<ul>\n";
            for one in self.violations {
                told += &format!("<li>{} {}</li>\n", escape_html(&one.pointer), escape_html(&one.message));
            }
            told += "</ul>\n";
        }
        let reason = self.reason.map(|reason| format!("reason: {reason}<br>")).unwrap_or_default();
        told += &format!("<p>{reason}request id: {}</p>\n</html>\n", self.id);
        told
    }

    fn text(&self) -> String {
        let detail = self.detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        let violations: String =
            self.violations.iter().map(|one| format!("{} {}\n", one.pointer, one.message)).collect();
        let reason = self.reason.map(|reason| format!("reason: {reason}\n")).unwrap_or_default();
        format!("{} {}{detail}\n{violations}{reason}request id: {}\n", self.status, self.title, self.id)
    }
}

/// Why something failed, with what lies behind it: for the log, never for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureCause(Arc<str>);

/// A chain is cut behind so many bytes.
const MAX_CAUSE: usize = 1024;

impl FailureCause {
    /// What an error says, and what each behind it adds.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let (mut told, mut next) = (error.to_string(), error.source());
        while let Some(source) = next.filter(|_| told.len() < MAX_CAUSE) {
            let source_says = source.to_string();
            if !told.ends_with(&source_says) {
                told += ": ";
                told += &source_says;
            }
            next = source.source();
        }
        let end = told.floor_char_boundary(MAX_CAUSE);
        told.truncate(end);
        Self(told.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text that is nothing but text in HTML, also within a quoted attribute.
pub fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for sign in text.chars() {
        match sign {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_with_what_lies_behind_it() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot connect to {0}")]
        struct Outer(&'static str, #[source] std::io::Error);
        let chain = Outer("10.0.0.7:80", std::io::Error::other("connection refused"));
        assert_eq!(FailureCause::of(&chain).as_str(), "cannot connect to 10.0.0.7:80: connection refused");
        let long = std::io::Error::other("ä".repeat(2_000));
        assert_eq!(FailureCause::of(&long).as_str().len(), MAX_CAUSE);
    }

    #[test]
    fn no_text_is_ever_more_than_text() {
        let violations = [Violation { pointer: "/<b>".into(), message: "is \"x\" & <i>".into() }];
        let document = FailureDocument {
            status: 400,
            title: "a \"b\" <c>",
            reason: Some("BadRequest"),
            detail: Some("</script>"),
            violations: &violations,
            id: RequestId([0; 16]),
        };
        let page = document.told(FailureForm::Page);
        for part in [
            "400 a &quot;b&quot; &lt;c&gt;",
            "<p>&lt;/script&gt;</p>",
            "/&lt;b&gt; is &quot;x&quot; &amp; &lt;i&gt;",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        let problem: Value = serde_json::from_str(&document.told(FailureForm::Problem)).expect("JSON");
        assert_eq!(
            problem,
            serde_json::json!({
                "type": "about:blank", "title": "a \"b\" <c>", "status": 400, "reason": "BadRequest",
                "request_id": "00000000000000000000000000000000", "detail": "</script>",
                "violations": [{"pointer": "/<b>", "message": "is \"x\" & <i>"}],
            })
        );
        assert_eq!(
            document.told(FailureForm::Text),
            "400 a \"b\" <c>: </script>\n/<b> is \"x\" & <i>\nreason: BadRequest\nrequest id: 00000000000000000000000000000000\n"
        );
    }
}
