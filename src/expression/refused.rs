//! Why a text is no expression that may be used: one sentence with its place.

use std::fmt;

use crate::values::nearest;

/// What is wrong with the text of an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    message: String,
    /// In bytes.
    at: usize,
    /// Both begin with 1.
    line: usize,
    column: usize,
}

impl std::error::Error for Refused {}

impl Refused {
    pub(super) fn at(at: usize, message: impl Into<String>) -> Self {
        Self { message: message.into(), at, line: 1, column: at + 1 }
    }

    /// The same in a text in which the source begins there.
    pub(super) const fn moved(mut self, by: usize) -> Self {
        self.at += by;
        self
    }

    /// With line and column, which take the source to know.
    pub(super) fn seen_in(mut self, source: &str) -> Self {
        let before = source.get(..self.at).unwrap_or(source);
        let line = before.rsplit('\n').next().unwrap_or_default();
        self.line = before.matches('\n').count() + 1;
        self.column = line.chars().count() + 1;
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (line {}, column {})", self.message, self.line, self.column)
    }
}

/// Known words that are told when none is near.
const MOST_TOLD: usize = 12;

/// `; did you mean "request"?`, where a known word is near, else the known words.
pub(super) fn hint<'w>(found: &str, known: impl IntoIterator<Item = &'w str>) -> String {
    let known: Vec<_> = known.into_iter().collect();
    match nearest(found, known.iter().copied()) {
        Some(word) => format!("; did you mean {word:?}?"),
        None if known.len() <= MOST_TOLD => format!("; there are {}", known.join(", ")),
        None => String::new(),
    }
}
