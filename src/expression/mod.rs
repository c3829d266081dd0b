//! CEL, the language of `when` and of every other expression. Parsed, checked and bounded when a route is compiled;
//! evaluated against an exchange with a bounded cost, without copies of what it only looks at.
//!
//! Why not the `cel` crate: it has no bound on what evaluating may cost (only its source can be bounded), takes its
//! variables as values that are built for each request, checks no names, and gives its errors no position.
//!
//! Invariants: parsing and evaluating never panic, whatever the text; evaluation ends after [`MAX_STEPS`] steps.

mod calls;
mod check;
mod convert;
mod docs;
mod environment;
mod evaluate;
mod fault;
mod functions;
mod json;
#[cfg(test)]
mod json_tests;
mod kind;
mod lookup;
mod moments;
mod node;
mod operators;
mod parse;
mod pattern;
mod reads;
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

pub use calls::KnownCalls;
pub use docs::reference;
pub use environment::{
    BODY, Content, Environment, FAILURE, Field, Keys, REQUEST, RESPONSE, Subject, Variable, WHOLE_REQUEST,
};
pub use fault::{Fault, MAX_STEPS, Why};
pub use kind::{Kind, Scalar};
pub use parse::{MAX_DEPTH, MAX_NODES, MAX_SOURCE};
pub use reads::Read;
pub use refused::Refused;
pub use template::{MethodTemplate, NoMethod, PathTemplate, Template};
pub use value::Value;

use self::fault::Meter;
use self::node::Node;

/// A checked expression: comparable and printable by its text.
#[derive(Clone)]
pub struct Expression {
    source: Arc<str>,
    root: Arc<Node>,
    environment: &'static Environment,
    calls: Option<KnownCalls>,
}

impl Expression {
    /// Parses `source` and checks it against what `environment` knows; its value must be of the kind that is `wanted`,
    /// as far as that is known before there is one.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse(source: &str, environment: &'static Environment, wanted: Kind) -> Result<Self, Refused> {
        Self::parse_among(source, environment, None, wanted)
    }

    /// The same where calls of an aggregation may be named, too.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse_among(
        source: &str,
        environment: &'static Environment,
        calls: Option<&KnownCalls>,
        wanted: Kind,
    ) -> Result<Self, Refused> {
        let root = parse::parse(source).and_then(|syntax| check::check(&syntax, environment, calls, wanted));
        let root = root.map_err(|refused| refused.seen_in(source))?;
        Ok(Self { source: source.into(), root: Arc::new(root), environment, calls: calls.cloned() })
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
        match self.opened(subject)? {
            Value::Bool(value) => Ok(value),
            _ => Err(Fault { at: 0, why: Why::NoOverload }),
        }
    }

    /// A whole number.
    ///
    /// # Errors
    /// It has no value for this subject, or one that is no int.
    pub fn int(&self, subject: &Subject<'_>) -> Result<i64, Fault> {
        match self.opened(subject)? {
            Value::Int(value) => Ok(value),
            _ => Err(Fault { at: 0, why: Why::NoOverload }),
        }
    }

    /// Its value as JSON text of at most so many bytes. What it only moves is written as it came.
    ///
    /// # Errors
    /// It has no value for this subject, a larger one, or one that JSON does not have.
    pub fn json(&self, subject: &Subject<'_>, most: usize) -> Result<Vec<u8>, Fault> {
        let (value, mut text) = (self.evaluate(subject)?, Vec::new());
        json::write(&value, &mut text, most, &mut Meter::new()).map_err(|why| Fault { at: 0, why })?;
        Ok(text)
    }

    fn opened<'v>(&'v self, subject: &Subject<'v>) -> Result<Value<'v>, Fault> {
        self.evaluate(subject)?.opened(&mut Meter::new()).map_err(|why| Fault { at: 0, why })
    }

    /// Whether it reads a field of this name, of whatever variable.
    pub fn reads(&self, field: &str) -> bool {
        self.root.reads(field)
    }

    pub fn source(&self) -> &str {
        &self.source
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
            && std::ptr::eq(self.environment, other.environment)
            && self.calls == other.calls
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.source)
    }
}
