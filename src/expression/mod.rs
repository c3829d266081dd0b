//! CEL, the language of `when` and of every other expression. Parsed, checked and bounded when a route is compiled;
//! evaluated against an exchange with a bounded cost, without copies of what it only looks at.
//!
//! Why not the `cel` crate: it has no bound on what evaluating may cost (only its source can be bounded), takes its
//! variables as values that are built for each request, checks no names, and gives its errors no position.
//!
//! Invariants: parsing and evaluating never panic, whatever the text; evaluation ends after [`MAX_STEPS`] steps.

mod check;
mod convert;
mod docs;
mod environment;
mod evaluate;
mod fault;
mod functions;
mod kind;
mod lookup;
mod moments;
mod node;
mod operators;
mod parse;
mod pattern;
mod refused;
mod template;
#[cfg(test)]
mod template_tests;
#[cfg(test)]
mod tests;
mod texts;
mod token;
mod value;

use std::fmt;
use std::sync::Arc;

pub use docs::reference;
pub use environment::{Content, Environment, Field, Keys, REQUEST, Subject, Variable};
pub use fault::{Fault, MAX_STEPS, Why};
pub use kind::{Kind, Scalar};
pub use parse::{MAX_DEPTH, MAX_NODES, MAX_SOURCE};
pub use refused::Refused;
pub use template::{PathTemplate, Template};
pub use value::Value;

use self::node::Node;

/// A checked expression: comparable and printable by its text.
#[derive(Clone)]
pub struct Expression {
    source: Arc<str>,
    root: Arc<Node>,
    environment: &'static Environment,
}

impl Expression {
    /// Parses `source` and checks it against what `environment` knows; its value must be of the kind that is `wanted`,
    /// as far as that is known before there is one.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse(source: &str, environment: &'static Environment, wanted: Kind) -> Result<Self, Refused> {
        let root = parse::parse(source).and_then(|syntax| check::check(&syntax, environment, wanted));
        let root = root.map_err(|refused| refused.seen_in(source))?;
        Ok(Self { source: source.into(), root: Arc::new(root), environment })
    }

    /// # Errors
    /// It has no value for this subject.
    pub fn evaluate<'v>(&'v self, subject: &Subject<'v>) -> Result<Value<'v>, Fault> {
        evaluate::evaluate(&self.root, subject)
    }

    /// The value of a condition.
    ///
    /// # Errors
    /// It has no value for this subject, or one that is no bool.
    pub fn holds(&self, subject: &Subject<'_>) -> Result<bool, Fault> {
        match self.evaluate(subject)? {
            Value::Bool(value) => Ok(value),
            _ => Err(Fault { at: 0, why: Why::NoOverload }),
        }
    }

    pub fn source(&self) -> &str {
        &self.source
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && std::ptr::eq(self.environment, other.environment)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.source)
    }
}
