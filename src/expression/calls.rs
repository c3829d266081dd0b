//! The calls of an aggregation as variables: each call by its name, with what came of it.

use std::sync::Arc;

use super::environment::Subject;
use super::fault::Why;
use super::kind::{Kind, Scalar};
use super::lookup::Lookup;
use super::value::{Map, Value};
use crate::message::Called;

/// Calls that an expression may name.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownCalls {
    /// Of all, in the order of the plan.
    names: Arc<[Arc<str>]>,
    /// Those that are over by then, by their places as bits.
    over: u32,
}

/// What an expression reads of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallField {
    Ok,
    Status,
    Headers,
    Body,
    Error,
}

/// What is said about a field of each call.
pub(super) const FIELDS: &[(&str, CallField, Kind, &str)] = &[
    (
        "body",
        CallField::Body,
        Kind::ANY,
        "What stands for the call in the answer: its JSON, or the value of `onError`",
    ),
    ("status", CallField::Status, Kind::INT, "Status of the answer, where one came"),
    (
        "headers",
        CallField::Headers,
        Kind::Map(Scalar::Text),
        "Header fields of the answer by their names in lower case, where one came",
    ),
    ("ok", CallField::Ok, Kind::BOOL, "Whether the call was made and succeeded"),
    ("error", CallField::Error, Kind::TEXT, "The reason of its failure; empty where there is none"),
];

impl KnownCalls {
    /// Of `names`, which are at most 32, those `over` may be read.
    pub fn new(names: Arc<[Arc<str>]>, over: impl IntoIterator<Item = usize>) -> Self {
        Self {
            names,
            over: over.into_iter().fold(0, |bits, place| bits | 1_u32.checked_shl(place as u32).unwrap_or(0)),
        }
    }

    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| **known == *name)
    }

    pub(super) fn is_over(&self, place: usize) -> bool {
        place < 32 && self.over & (1 << place) != 0
    }

    pub(super) fn over(&self) -> impl Iterator<Item = &str> {
        self.names.iter().enumerate().filter(|(place, _)| self.is_over(*place)).map(|(_, name)| &**name)
    }
}

impl CallField {
    pub fn read<'v>(self, place: usize, subject: Subject<'v>) -> Result<Value<'v>, Why> {
        let call = subject.exchange.calls.get(place).ok_or(Why::NoSuchKey)?;
        match self {
            Self::Ok => Ok(Value::Bool(is_ok(call))),
            Self::Error => Ok(Value::borrowed(call.failure.unwrap_or_default())),
            Self::Status => {
                call.status.map(|status| Value::Int(status.as_u16().into())).ok_or(Why::NoSuchKey)
            }
            Self::Headers if call.status.is_none() => Err(Why::NoSuchKey),
            Self::Headers => Ok(Value::Map(Map::Lookup(Lookup::Headers(&call.headers)))),
            Self::Body => call.body.as_ref().map(|body| Value::Raw(body.root())).ok_or(Why::NoSuchKey),
        }
    }

    /// `has(call.field)`
    pub fn is_there(self, place: usize, subject: Subject<'_>) -> bool {
        subject.exchange.calls.get(place).is_some_and(|call| match self {
            Self::Ok => is_ok(call),
            Self::Error => call.failure.is_some(),
            Self::Status => call.status.is_some(),
            Self::Headers => !call.headers.is_empty(),
            Self::Body => call.body.is_some(),
        })
    }
}

fn is_ok(call: &Called) -> bool {
    call.failure.is_none() && call.status.is_some()
}
