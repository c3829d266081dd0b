//! How a request's path is rewritten, as it is written and as it is done: the one word of redirects and `request.path`.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.replacePrefix), has(self.replaceFull), has(self.template)].filter(x, x).size() == 1", "message": ONE_OF_THREE},
]))]
pub struct PathRewriteSpec {
    /// Replaces what the PathPrefix match covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATTERN), extend("x-kubernetes-validations" = [normal_form()]))]
    pub replace_prefix: Option<String>,
    /// Replaces the whole path; the query stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATTERN), extend("x-kubernetes-validations" = [normal_form()]))]
    pub replace_full: Option<String>,
    /// Replaces the whole path; ${expression} is filled in, percent-encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/"))]
    pub template: Option<String>,
}

const ONE_OF_THREE: &str = "give exactly one of replacePrefix, replaceFull and template";

/// An absolute path of RFC 3986 segments without an empty one (but for a trailing slash).
const PATTERN: &str = "^/(([-A-Za-z0-9._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+(/([-A-Za-z0-9._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+)*/?)?$";
const NORMAL_FORM: &str =
    "write the path without dot segments and without encoded slashes or control characters";

fn normal_form() -> serde_json::Value {
    serde_json::json!({
        "rule": r"!self.matches('/([.]|%2[eE]){1,2}([/;]|%3[bB]|$)|%(2[fF]|5[cC]|[01]|7[fF])')",
        "message": NORMAL_FORM,
    })
}

/// The proven form. The text is an absolute path without dot segments, empty segments or encoded slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// Replaces the part that the PathPrefix match covers.
    ReplacePrefix(Arc<str>),
    ReplaceFull(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPathRewrite {
    #[error("{ONE_OF_THREE}")]
    NotOne,
    #[error("an absolute path begins with '/'")]
    Relative,
    #[error("a path has no empty segments ('//')")]
    EmptySegment,
    #[error("{NORMAL_FORM}")]
    NotNormal,
    #[error("a path has unreserved characters, sub-delimiters and %-escapes only (RFC 3986)")]
    Character,
}

impl PathRewriteSpec {
    /// The template, where nothing else is given.
    pub fn as_template(&self) -> Option<&str> {
        let is_alone = self.replace_prefix.is_none() && self.replace_full.is_none();
        self.template.as_deref().filter(|_| is_alone)
    }
}

impl PathRewrite {
    /// Proves what is written. A template is not proven here.
    ///
    /// # Errors
    /// Not exactly one of `replacePrefix` and `replaceFull` is given, or the text is no path in normal form.
    pub fn new(spec: &PathRewriteSpec) -> Result<Self, InvalidPathRewrite> {
        match (&spec.replace_prefix, &spec.replace_full, &spec.template) {
            (Some(path), None, None) => normal(path).map(Self::ReplacePrefix),
            (None, Some(path), None) => normal(path).map(Self::ReplaceFull),
            _ => Err(InvalidPathRewrite::NotOne),
        }
    }

    pub const fn replaces_prefix(&self) -> bool {
        matches!(self, Self::ReplacePrefix(_))
    }

    /// The new path for `path`, which is in normal form and of which the match covers the first `matched` bytes. The
    /// result is in normal form and never begins with `//`, which a `Location` would take for another host.
    pub fn apply(&self, path: &str, matched: usize) -> String {
        let prefix = match self {
            Self::ReplaceFull(full) => return full.as_ref().to_owned(),
            Self::ReplacePrefix(prefix) => prefix.as_ref(),
        };
        let rest = path.get(matched..).unwrap_or_default();
        if rest.is_empty() {
            return prefix.to_owned();
        }
        let base = prefix.trim_end_matches('/');
        let separate = if rest.starts_with('/') { "" } else { "/" };
        let rest = if base.is_empty() { rest.trim_start_matches('/') } else { rest };
        let separate = if base.is_empty() { "/" } else { separate };
        [base, separate, rest].concat()
    }
}

impl fmt::Display for PathRewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplacePrefix(path) => write!(f, "replacePrefix {path}"),
            Self::ReplaceFull(path) => write!(f, "replaceFull {path}"),
        }
    }
}

/// The normal form (RFC 3986 section 6.2.2): unreserved characters decoded, triplets in upper case. What would have to be
/// taken out of it (dot segments, empty ones) and what servers read in different ways is refused.
fn normal(path: &str) -> Result<Arc<str>, InvalidPathRewrite> {
    if !path.starts_with('/') {
        return Err(InvalidPathRewrite::Relative);
    }
    if path.contains("//") {
        return Err(InvalidPathRewrite::EmptySegment);
    }
    let mut spelled = String::with_capacity(path.len());
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            if !character.is_ascii_alphanumeric() && !"/-._~!$&'()*+,;=:@".contains(character) {
                return Err(InvalidPathRewrite::Character);
            }
            spelled.push(character);
            continue;
        }
        let mut digit = || characters.next().and_then(|c| c.to_digit(16)).and_then(|d| u8::try_from(d).ok());
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(InvalidPathRewrite::Character);
        };
        match high << 4 | low {
            b'/' | b'\\' | 0..=0x1f | 0x7f => return Err(InvalidPathRewrite::NotNormal),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => spelled.push(char::from(byte)),
            byte => spelled.push_str(&format!("%{byte:02X}")),
        }
    }
    // `..;x` is taken for `..` by some servers.
    let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    if spelled.split('/').any(is_dots) {
        return Err(InvalidPathRewrite::NotNormal);
    }
    Ok(spelled.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> PathRewrite {
        let spec = PathRewriteSpec { replace_prefix: Some(text.into()), ..PathRewriteSpec::default() };
        PathRewrite::new(&spec).expect(text)
    }

    #[test]
    fn a_replaced_prefix_joins_the_rest_at_one_slash() {
        for (replacement, path, matched, expected) in [
            ("/v1", "/pay/x", 4, "/v1/x"),
            ("/v1/", "/pay/x", 4, "/v1/x"),
            ("/v1", "/pay", 4, "/v1"),
            ("/v1/", "/pay", 4, "/v1/"),
            ("/v1", "/pay/", 4, "/v1/"),
            ("/", "/pay/x", 4, "/x"),
            ("/", "/pay", 4, "/"),
            ("/", "/pay/", 4, "/"),
            ("/v1", "/x", 0, "/v1/x"),
            ("/v1", "/", 0, "/v1/"),
        ] {
            assert_eq!(prefix(replacement).apply(path, matched), expected, "{replacement} {path}");
        }
    }

    /// A `Location: //evil.example` is another host.
    #[test]
    fn stripping_a_prefix_never_leaves_two_slashes_in_front() {
        assert_eq!(prefix("/").apply("/pub//evil.example", 4), "/evil.example");
        assert_eq!(prefix("/").apply("//evil.example", 0), "/evil.example");
    }

    #[test]
    fn a_full_replacement_forgets_the_path() {
        let spec = PathRewriteSpec { replace_full: Some("/new".into()), ..PathRewriteSpec::default() };
        assert_eq!(PathRewrite::new(&spec).expect("valid").apply("/old/x", 4), "/new");
    }

    #[test]
    fn what_is_not_in_normal_form_is_refused() {
        for text in [
            "",
            "a",
            "//a",
            "/a//b",
            "/a/../b",
            "/..",
            "/a/.",
            "/%2e%2E/b",
            "/.%2e",
            "/a%2fb",
            "/a%5Cb",
            "/a%00",
            "/a?b",
            "/a#b",
            "/a b",
            "/ä",
            "/%",
            "/%4",
            "/%zz",
            "/${x}",
        ] {
            assert!(normal(text).is_err(), "{text}");
        }
        for (text, form) in
            [("/", "/"), ("/a/", "/a/"), ("/..a/b..", "/..a/b.."), ("/%41%c3%a4;v=1/@", "/A%C3%A4;v=1/@")]
        {
            assert_eq!(normal(text).as_deref(), Ok(form), "{text}");
        }
    }

    #[test]
    fn the_schema_refuses_what_the_parser_refuses() {
        let pattern = regex::Regex::new(PATTERN).expect("a pattern");
        let dots = regex::Regex::new("/([.]|%2[eE]){1,2}([/;]|%3[bB]|$)|%(2[fF]|5[cC]|[01]|7[fF])")
            .expect("a pattern");
        for text in [
            "/", "/a/", "//a", "/a//b", "/a/../b", "/%2e", "/a%2fb", "/a%5Cb", "/a%1f", "/a?b", "/..a",
            "/%7f", "",
        ] {
            assert_eq!(normal(text).is_ok(), pattern.is_match(text) && !dots.is_match(text), "{text}");
        }
    }
}
