//! Which of several matching entries wins: a total order over all matches of a hostname.
//!
//! `Exact`; `PathTemplate` without a rest capture (more literal characters, then fewer captures); `RegularExpression`
//! (longer pattern); `PathPrefix` and `PathTemplate` with a rest capture together (more literal characters, a prefix
//! before a template, fewer captures); a method match; more headers; more cookies; more query parameters; the older
//! object; namespace/name; the order of the rules; the order of their matches.

use std::cmp::Reverse;

use super::matching::PathPredicate;
use super::predicates::Predicates;
use crate::values::ObjectName;

/// What a match says by itself, whoever wrote it. The smallest wins; the order of the fields is the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Specificity {
    class: PathClass,
    /// Those of a regular expression are its whole text; those of an exact path do not count.
    characters: Reverse<u32>,
    form: Form,
    captures: u32,
    method: Reverse<bool>,
    headers: Reverse<u32>,
    cookies: Reverse<u32>,
    query_params: Reverse<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum PathClass {
    Exact,
    Template,
    Regex,
    /// Prefixes and templates with a rest.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Form {
    Text,
    Template,
}

/// What decides between equally specific matches: who was first. No two matches of a hostname have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Standing {
    /// Seconds since the epoch; objects without a timestamp come last.
    created: i64,
    object: ObjectName,
    rule: u32,
    index: u32,
}

impl Standing {
    /// `rule` and `index` count from 0: the place of the rule in its route and of the match in its rule.
    pub fn new(created: Option<i64>, object: ObjectName, rule: usize, index: usize) -> Self {
        Self { created: created.unwrap_or(i64::MAX), object, rule: count(rule), index: count(index) }
    }

    pub fn object(&self) -> &ObjectName {
        &self.object
    }

    /// The place of the rule in its route.
    pub fn rule(&self) -> usize {
        self.rule as usize
    }

    /// The place of the match in its rule.
    pub fn index(&self) -> usize {
        self.index as usize
    }
}

impl Specificity {
    pub(super) fn of(path: &PathPredicate, predicates: &Predicates) -> Self {
        let (class, characters, form, captures) = match path {
            PathPredicate::Exact(_) => (PathClass::Exact, 0, Form::Text, 0),
            PathPredicate::Prefix(prefix) => (PathClass::Open, prefix.as_str().len(), Form::Text, 0),
            PathPredicate::Regex(pattern) => {
                (PathClass::Regex, pattern.as_str().chars().count(), Form::Text, 0)
            }
            PathPredicate::Template(template) => {
                let class = if template.has_rest() { PathClass::Open } else { PathClass::Template };
                (class, template.literal_characters(), Form::Template, template.capture_count())
            }
        };
        Self {
            class,
            characters: Reverse(count(characters)),
            form,
            captures: count(captures),
            method: Reverse(!predicates.methods.is_empty()),
            headers: Reverse(count(predicates.headers.len())),
            cookies: Reverse(count(predicates.cookies.len())),
            query_params: Reverse(count(predicates.query_params.len())),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
