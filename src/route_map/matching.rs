//! The matches of one hostname, ordered by precedence, and the look-up in them.

use std::sync::Arc;

use crate::route_map::Rule;

/// One `matches` entry: all of its predicates hold.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchPlan {
    pub path: PathPredicate,
    /// Any of these; empty: every method. Upper case.
    pub methods: Vec<http::Method>,
    pub headers: Vec<HeaderPredicate>,
    pub cookies: Vec<NamedPredicate>,
    pub query_params: Vec<NamedPredicate>,
}

/// Paths are compared in normal form (RFC 3986 section 6.2.2: dot segments gone, unreserved characters decoded).
#[derive(Clone, Debug, PartialEq)]
pub enum PathPredicate {
    Exact(Arc<str>),
    /// Whole segments; without a trailing slash, `/` is the empty prefix.
    Prefix(Arc<str>),
    /// `{name}` is one segment, `{name...}` the rest.
    Template(Arc<str>),
    Regex(PatternText),
}

/// A regular expression, compiled, compared by its text. Anchored, linear time, bounded in size.
#[derive(Clone, Debug)]
pub struct PatternText {
    text: Arc<str>,
    pattern: regex::Regex,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Comparison {
    Exact(Arc<str>),
    Regex(PatternText),
}

#[derive(Clone, Debug, PartialEq)]
pub struct HeaderPredicate {
    pub name: http::HeaderName,
    pub value: Comparison,
}

/// A query parameter or cookie.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedPredicate {
    pub name: Arc<str>,
    pub value: Comparison,
}

/// The matches of a host in the order of precedence, with an index over their paths.
#[derive(Debug, PartialEq)]
pub struct MatchTable {
    entries: Vec<(MatchPlan, Arc<Rule>)>,
}

impl PartialEq for PatternText {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl PatternText {
    /// Compiles `text` as a whole-value pattern.
    ///
    /// # Errors
    /// The regex crate's own words, or that it is too large.
    pub fn new(text: &str) -> Result<Self, String> {
        let pattern = regex::RegexBuilder::new(&format!("^(?:{text})$"))
            .size_limit(256 << 10)
            .dfa_size_limit(1 << 20)
            .nest_limit(50)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { text: text.into(), pattern })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_match(&self, value: &str) -> bool {
        self.pattern.is_match(value)
    }
}

impl MatchTable {
    /// `entries` in any order with their tie-breakers applied by the caller: see `precedence`.
    pub fn new(entries: Vec<(MatchPlan, Arc<Rule>)>) -> Self {
        Self { entries }
    }

    pub fn entries(&self) -> &[(MatchPlan, Arc<Rule>)] {
        &self.entries
    }
}
