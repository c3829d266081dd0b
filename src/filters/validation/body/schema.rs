//! A JSON Schema 2020-12, compiled once: `format` and the content keywords are annotations, as its meta-schema has it;
//! patterns are matched in linear time; nothing is fetched.
//!
//! Invariants: size, depth, patterns and what applies to one value at once are bounded (see `outline`); a validation takes
//! a bounded number of steps and a bounded stack.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use jsonschema::{Draft, PatternOptions, Retrieve, ValidationOptions, Validator};
use serde_json::{Value, json};

use super::outline::Outline;
use super::paid::{Paid, Prices, Seen, within};
use super::report::{self, Told};
use crate::message::{Document, JsonBounds, Violation};

/// Of the schema's text.
pub const MAX_BYTES: usize = 256 << 10;
pub const MAX_DEPTH: usize = 64;
const BOUNDS: JsonBounds = JsonBounds { depth: MAX_DEPTH, values: 1 << 14, name: 4 << 10 };
/// Of one compiled pattern.
const MAX_PATTERN: usize = 64 << 10;
const MAX_PATTERNS: usize = 256;

/// What it takes to check a document: a step is a look at a value.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// For the verdict.
    pub steps: u32,
    /// For each try to say what is wrong.
    pub report: u32,
    /// Calls inside of calls: objects and arrays one inside the other, times schemas that apply to one value.
    pub frames: usize,
}

impl Effort {
    /// What a worker may do between two requests: well under a millisecond.
    pub const SMALL: Self = Self { steps: 8 << 10, report: 8 << 10, frames: 256 };
    pub const FULL: Self = Self { steps: 2 << 20, report: 64 << 10, frames: super::MAX_DEPTH * MAX_DEPTH };
}

/// What is wrong with a schema, and where in it, by JSON Pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub pointer: String,
    pub message: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:?} of the schema: {}", report::bounded_pointer(&self.pointer), self.message)
    }
}

pub struct Schema {
    source: Value,
    validator: Validator<Paid>,
    prices: Prices,
    /// So many schemas apply to one value, one inside the other.
    chain: usize,
}

impl Schema {
    /// # Errors
    /// No JSON, or as [`Schema::new`].
    pub fn read(text: &str) -> Result<Self, Wrong> {
        let wrong = |message| Wrong { pointer: String::new(), message };
        if text.len() > MAX_BYTES {
            return Err(wrong(format!("found {} bytes, expected at most {MAX_BYTES}", text.len())));
        }
        let document = Document::read(text.as_bytes(), BOUNDS)
            .map_err(|error| wrong(format!("it is no JSON that can be used: {error}")))?;
        Self::compile(document.value)
    }

    /// # Errors
    /// Too large, not of the form of a schema, or of a kind that is not supported.
    pub fn new(source: &Value) -> Result<Self, Wrong> {
        Self::read(&source.to_string())
    }

    fn compile(source: Value) -> Result<Self, Wrong> {
        let outline = Outline::new(&source)?;
        let at_once = outline.at_once()?;
        let mut patterns = 0;
        let mut prices = Prices::default();
        for (here, place) in outline.places.iter().enumerate() {
            for (step, pattern) in place.patterns() {
                let at = || format!("{}{step}", outline.pointer(here));
                if patterns == MAX_PATTERNS {
                    let message = format!("found more than {MAX_PATTERNS} patterns; write fewer");
                    return Err(Wrong { pointer: at(), message });
                }
                let price = price(pattern).ok_or_else(|| {
                    let message = "not a regular expression that is supported: look-ahead and references back take \
                                   exponential time, and large repetitions too much memory";
                    Wrong { pointer: at(), message: message.into() }
                })?;
                patterns += 1;
                prices.text = prices.text.max(price);
            }
            // A member's name is matched with each of them.
            let names: u32 = place.name_patterns().filter_map(price).sum();
            prices.name = prices.name.max(names);
        }
        prices.name = prices.name.max(prices.text);
        let build = AssertUnwindSafe(|| options(MAX_PATTERN).build(&source));
        let validator = match catch_unwind(build) {
            Ok(Ok(validator)) => validator,
            Ok(Err(error)) => return Err(report::of_schema(&error)),
            Err(_) => {
                let message = "it cannot be compiled".to_owned();
                return Err(Wrong { pointer: String::new(), message });
            }
        };
        Ok(Self { source, validator, prices, chain: at_once.chain })
    }

    /// `None`: it takes more than `effort`.
    pub fn check(
        &self,
        document: &Document,
        effort: Effort,
        told: Told,
    ) -> Option<Result<(), Vec<Violation>>> {
        if (document.depth + 1) * (self.chain + 1) > effort.frames {
            return None;
        }
        let value = &document.value;
        let is_valid = within(effort.steps, self.prices, || self.validator.is_valid(Seen(value)))?;
        if is_valid {
            return Some(Ok(()));
        }
        // All that is wrong, else what is wrong first. Alternatives are reported with all that is wrong with each, which
        // takes longer than the verdict did.
        let all = within(effort.report, self.prices, || {
            let mut violations = Vec::new();
            for error in self.validator.iter_errors(Seen(value)) {
                report::tell(&error, told, &mut violations);
            }
            violations
        });
        let first = || {
            let error = within(effort.report, self.prices, || self.validator.validate(Seen(value)).err())??;
            let mut violations = Vec::new();
            report::tell(&error, told, &mut violations);
            Some(violations)
        };
        let violations = all.or_else(first).filter(|violations| !violations.is_empty());
        Some(Err(violations.unwrap_or_else(|| vec![report::unsaid()])))
    }
}

fn options(pattern: usize) -> ValidationOptions<'static, Arc<dyn Retrieve>, Paid> {
    ValidationOptions::default()
        .with_draft(Draft::Draft202012)
        .offline()
        .should_validate_formats(false)
        .with_pattern_options(PatternOptions::regex().size_limit(pattern))
}

/// KiB of the compiled pattern, rounded up to a power of two. `None`: it is not supported.
fn price(pattern: &str) -> Option<u32> {
    let schema = json!({"pattern": pattern});
    let mut size = 1 << 10;
    while size <= MAX_PATTERN {
        if options(size).build(&schema).is_ok() {
            return u32::try_from(size >> 10).ok();
        }
        size *= 2;
    }
    None
}

/// The rest follows from the source.
impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// Without the source: it may be of a Secret.
impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema")
    }
}
