//! Why an expression has no value for a request, and the meter that bounds what evaluating it may cost.

use std::fmt;

/// What all steps of one evaluation may cost together. A step is a node, an element that is looked at, or 16 bytes that
/// are read or made: some ten nanoseconds, so that the whole stays below a millisecond.
pub const MAX_STEPS: usize = 20_000;
const BYTES_A_STEP: usize = 16;
/// Of those that are only searched through.
const SEARCHED_A_STEP: usize = 256;

/// Why an expression has no value here, and where in its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// In bytes.
    pub at: usize,
    pub why: Why,
}

/// The closed set of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    NoSuchKey,
    NoSuchIndex,
    /// A header field or parameter that was sent more than once has no single value.
    SeveralValues,
    NotText,
    NoOverload,
    DivisionByZero,
    Overflow,
    DuplicateKey,
    /// A member that stands twice in a JSON object has no single value.
    SeveralMembers,
    /// A number of JSON that no number here is equal to.
    Inexact,
    /// JSON has no such value.
    NoJson,
    BadValue,
    TooExpensive,
    // What no place in a request may hold.
    ControlCharacter,
    EmptySegment,
    DotSegment,
    NoMethod,
    TooLong,
}

impl std::error::Error for Fault {}

impl Why {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSuchKey => "there is no such key",
            Self::NoSuchIndex => "the list has no such index",
            Self::SeveralValues => "it was sent more than once and has no single value",
            Self::NotText => "the value is not UTF-8",
            Self::NoOverload => "the operation does not take values of these types",
            Self::DivisionByZero => "division by zero",
            Self::Overflow => "the result is out of range",
            Self::DuplicateKey => "the map has a key twice",
            Self::SeveralMembers => "a member of the JSON object stands there twice",
            Self::Inexact => "the number of the JSON text cannot be held exactly",
            Self::NoJson => "the value cannot be written as JSON",
            Self::BadValue => "the value cannot be converted",
            Self::TooExpensive => "evaluating the expression costs too much",
            Self::ControlCharacter => "the value has control characters",
            Self::EmptySegment => "the value leaves a segment of the path empty",
            Self::DotSegment => "the value makes a dot segment of the path",
            Self::NoMethod => "the value makes no method that is sent",
            Self::TooLong => "what is filled in is too long",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (character {})", self.why.as_str(), self.at + 1)
    }
}

/// Counts down.
#[derive(Debug)]
pub struct Meter {
    left: usize,
}

impl Meter {
    pub const fn new() -> Self {
        Self { left: MAX_STEPS }
    }

    pub const fn spend(&mut self, steps: usize) -> Result<(), Why> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                // What follows may not go on with the rest: `||` would look at its other side.
                self.left = 0;
                Err(Why::TooExpensive)
            }
        }
    }

    /// For bytes in which something is looked for.
    pub const fn spend_search(&mut self, bytes: usize) -> Result<(), Why> {
        self.spend(bytes / SEARCHED_A_STEP)
    }

    pub const fn spend_bytes(&mut self, bytes: usize) -> Result<(), Why> {
        self.spend(bytes / BYTES_A_STEP)
    }
}
