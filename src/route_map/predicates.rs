//! What a match asks of a request besides its path: method, headers, cookies, query parameters.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, COOKIE, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::path::triplet;

/// What matching sees of a request. Nothing in it is copied; query and cookies are read only by those who ask.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    /// In normal form.
    pub path: &'a str,
    /// Without the `?`.
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// All of these hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Predicates {
    /// Any of these; empty: every method. Upper case.
    pub methods: Vec<Method>,
    pub headers: Vec<HeaderPredicate>,
    pub cookies: Vec<NamedPredicate>,
    pub query_params: Vec<NamedPredicate>,
}

/// One of the header's values is like this: each line counts as one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderPredicate {
    pub name: HeaderName,
    pub value: Comparison,
}

/// The first query parameter or cookie of this name is like this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamedPredicate {
    pub name: Arc<str>,
    pub value: Comparison,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    Exact(Arc<str>),
    Regex(PatternText),
}

/// A regular expression, compiled, compared by its text. It matches the whole value, in linear time, bounded in size.
#[derive(Clone, Debug)]
pub struct PatternText {
    text: Arc<str>,
    pattern: regex::Regex,
}

/// Why a request fails the predicates of a match: the first that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss<'a> {
    Method(&'a [Method]),
    Header(&'a HeaderPredicate),
    Cookie(&'a NamedPredicate),
    QueryParam(&'a NamedPredicate),
}

impl<'a> RequestView<'a> {
    /// The method that a preflight asks about (the Fetch standard, "CORS-preflight request").
    pub fn preflighted(&self) -> Option<&'a [u8]> {
        if *self.method != Method::OPTIONS || !self.headers.contains_key(ORIGIN) {
            return None;
        }
        self.headers.get(ACCESS_CONTROL_REQUEST_METHOD).map(HeaderValue::as_bytes)
    }
}

impl Predicates {
    pub fn takes_method(&self, method: &[u8]) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|one| one.as_str().as_bytes() == method)
    }

    /// Of several with one name the first counts (Gateway API); the order means nothing.
    pub(super) fn canonical(mut self) -> Self {
        self.methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        self.methods.dedup();
        self.headers.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        self.headers.dedup_by(|a, b| a.name == b.name);
        for named in [&mut self.cookies, &mut self.query_params] {
            named.sort_by(|a, b| a.name.cmp(&b.name));
            named.dedup_by(|a, b| a.name == b.name);
        }
        self
    }

    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        self.first_miss(request).is_none()
    }

    /// Cheap ones first.
    pub fn first_miss(&self, request: &RequestView<'_>) -> Option<Miss<'_>> {
        if !self.methods.is_empty() && !self.methods.contains(request.method) {
            return Some(Miss::Method(&self.methods));
        }
        if let Some(predicate) = self.headers.iter().find(|predicate| !predicate.holds(request.headers)) {
            return Some(Miss::Header(predicate));
        }
        let params = request.query.unwrap_or_default();
        if let Some(predicate) = self.query_params.iter().find(|predicate| !predicate.holds_in_query(params))
        {
            return Some(Miss::QueryParam(predicate));
        }
        let missing = self.cookies.iter().find(|predicate| !predicate.holds_in_cookies(request.headers));
        missing.map(Miss::Cookie)
    }
}

impl HeaderPredicate {
    fn holds(&self, headers: &HeaderMap) -> bool {
        headers.get_all(&self.name).iter().any(|value| self.value.is_match(value.as_bytes()))
    }
}

impl NamedPredicate {
    fn holds_in_query(&self, query: &str) -> bool {
        let first = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (!pair.is_empty() && *decode_form(name) == *self.name.as_bytes()).then_some(value)
        });
        first.is_some_and(|value| self.value.is_match(&decode_form(value)))
    }

    /// HTTP/2 clients may send one line a cookie (RFC 9113 section 8.2.3).
    fn holds_in_cookies(&self, headers: &HeaderMap) -> bool {
        let mut pairs =
            headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
        let first = pairs.find_map(|pair| {
            let pair = pair.trim_ascii();
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            (pair[..equals] == *self.name.as_bytes()).then(|| &pair[equals + 1..])
        });
        first.is_some_and(|value| self.value.is_match(value))
    }
}

impl Comparison {
    fn is_match(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Regex(pattern) => std::str::from_utf8(value).is_ok_and(|value| pattern.is_match(value)),
        }
    }
}

/// `application/x-www-form-urlencoded`: triplets decoded, `+` is a space. What is no triplet stands for itself.
fn decode_form(text: &str) -> Cow<'_, [u8]> {
    let text = text.as_bytes();
    if !text.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match (byte, triplet(&text[at..])) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(out)
}

impl PatternText {
    /// Compiles `text` as a pattern of whole values.
    ///
    /// # Errors
    /// The regex crate's own words, or that it is too large.
    pub fn new(text: &str) -> Result<Self, String> {
        let build = |pattern: &str| {
            regex::RegexBuilder::new(pattern)
                .size_limit(256 << 10)
                .dfa_size_limit(1 << 20)
                .nest_limit(50)
                .build()
                .map_err(|error| error.to_string())
        };
        // `a)|(?:b` is no expression, but would become one inside the group.
        if text.contains(')') {
            build(text)?;
        }
        Ok(Self { text: text.into(), pattern: build(&format!("^(?:{text})$"))? })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_match(&self, value: &str) -> bool {
        self.pattern.is_match(value)
    }
}

impl PartialEq for PatternText {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PatternText {}

impl Hash for PatternText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_values() {
        let pattern = |text: &str| PatternText::new(text).expect(text);
        assert!(pattern("a|b").is_match("b") && !pattern("a|b").is_match("ab"));
        assert!(pattern("(?i)abc").is_match("ABC"));
        assert!(!pattern("abc").is_match("abc\n"));
    }

    #[test]
    fn a_pattern_cannot_leave_its_group() {
        assert!(PatternText::new("a)|(?:b").is_err());
    }

    #[test]
    fn patterns_are_bounded_in_size_and_depth() {
        assert!(PatternText::new("(a{1000}){1000}").is_err());
        assert!(PatternText::new(&format!("{}a{}", "(".repeat(60), ")".repeat(60))).is_err());
    }

    #[test]
    fn forms_are_decoded_and_what_is_no_triplet_stays() {
        for (text, decoded) in
            [("a", "a"), ("a+b%20c", "a b c"), ("%41%", "A%"), ("%4", "%4"), ("%zz+", "%zz ")]
        {
            assert_eq!(&*decode_form(text), decoded.as_bytes(), "{text}");
        }
    }

    #[test]
    fn the_first_predicate_of_a_name_counts() {
        let header = |value: &str| HeaderPredicate {
            name: HeaderName::from_static("x-a"),
            value: Comparison::Exact(value.into()),
        };
        let canonical =
            Predicates { headers: vec![header("1"), header("2")], ..Predicates::default() }.canonical();
        assert_eq!(canonical.headers, [header("1")]);
    }
}
