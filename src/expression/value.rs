//! Values of CEL while an expression is evaluated. They borrow from the exchange and from the expression wherever they
//! can: `request.method == 'GET'` allocates nothing.

use std::cmp::Ordering;
use std::rc::Rc;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use super::fault::{Meter, Why};
use super::json;
use super::lookup::Lookup;
use crate::message::Piece;

#[derive(Clone, Debug)]
pub enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'v>),
    Bytes(Octets<'v>),
    List(List<'v>),
    Map(Map<'v>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    Network(IpNet),
    /// By its name.
    Type(&'static str),
    /// A piece of JSON that nothing has looked into yet.
    Raw(Piece<'v>),
}

#[derive(Clone, Debug)]
pub enum Text<'v> {
    Borrowed(&'v str),
    Made(Rc<str>),
}

#[derive(Clone, Debug)]
pub enum Octets<'v> {
    Borrowed(&'v [u8]),
    Made(Rc<[u8]>),
}

#[derive(Clone, Debug)]
pub enum List<'v> {
    Made(Rc<[Value<'v>]>),
    Constant(&'v [Constant]),
    Json(&'v [serde_json::Value]),
    Names(&'v [Box<str>]),
}

#[derive(Clone, Debug)]
pub enum Map<'v> {
    Made(Rc<[(Value<'v>, Value<'v>)]>),
    Json(&'v serde_json::Map<String, serde_json::Value>),
    /// Read where it is, when it is asked.
    Lookup(Lookup<'v>),
    /// An object of JSON text.
    Raw(Piece<'v>),
}

/// A value that the expression itself holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    List(Box<[Constant]>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    Network(IpNet),
    Type(&'static str),
}

impl<'v> Value<'v> {
    pub fn text(made: impl Into<Rc<str>>) -> Self {
        Self::Text(Text::Made(made.into()))
    }

    pub const fn borrowed(text: &'v str) -> Self {
        Self::Text(Text::Borrowed(text))
    }

    /// As JSON has it: whole numbers are ints where they fit.
    pub fn json(value: &'v serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Self::Int(value),
                (None, Some(value)) => Self::Uint(value),
                (None, None) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::borrowed(text),
            serde_json::Value::Array(items) => Self::List(List::Json(items)),
            serde_json::Value::Object(members) => Self::Map(Map::Json(members)),
        }
    }

    /// The name that `type()` gives.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Network(_) => "net.CIDR",
            Self::Type(_) => "type",
            // What looks at it has opened it before: only a number stays closed.
            Self::Raw(_) => "double",
        }
    }

    /// CEL's equality: values of different types are unequal, numbers compare by what they are worth.
    pub fn equals(&self, other: &Self, meter: &mut Meter) -> Result<bool, Why> {
        if matches!(self, Self::Raw(_)) || matches!(other, Self::Raw(_)) {
            return match (self.clone().opened(meter)?, other.clone().opened(meter)?) {
                (Self::Raw(a), Self::Raw(b)) if a.text() == b.text() => Ok(true),
                (Self::Raw(_), other) | (other, Self::Raw(_)) if other.is_number() => Err(Why::Inexact),
                (Self::Raw(_), _) | (_, Self::Raw(_)) => Ok(false),
                (a, b) => a.equals(&b, meter),
            };
        }
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => {
                let (a, b) = (a.as_str(), b.as_str());
                meter.spend_bytes(a.len().min(b.len()))?;
                a == b
            }
            (Self::Bytes(a), Self::Bytes(b)) => {
                meter.spend_bytes(a.as_slice().len())?;
                a.as_slice() == b.as_slice()
            }
            (Self::List(a), Self::List(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for index in 0..a.len() {
                    meter.spend(1)?;
                    if !a.at(index).equals(&b.at(index), meter)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Map(a), Self::Map(b)) => a.equals(b, meter)?,
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Network(a), Self::Network(b)) => a == b,
            (Self::Type(a), Self::Type(b)) => a == b,
            _ => self.number_order(other) == Some(Ordering::Equal),
        })
    }

    /// The order of `<`. `None` where one is no number, so that every comparison is false.
    pub fn order(&self, other: &Self, meter: &mut Meter) -> Result<Option<Ordering>, Why> {
        Ok(match (self, other) {
            (Self::Raw(_), _) | (_, Self::Raw(_)) => return Err(Why::Inexact),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => {
                meter.spend_bytes(a.as_str().len())?;
                Some(a.as_str().cmp(b.as_str()))
            }
            (Self::Bytes(a), Self::Bytes(b)) => {
                meter.spend_bytes(a.as_slice().len())?;
                Some(a.as_slice().cmp(b.as_slice()))
            }
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (a, b) if a.is_number() && b.is_number() => a.number_order(b),
            _ => return Err(Why::NoOverload),
        })
    }

    const fn is_number(&self) -> bool {
        matches!(self, Self::Int(_) | Self::Uint(_) | Self::Double(_) | Self::Raw(_))
    }

    fn number_order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Int(a), Self::Double(b)) => (*a as f64).partial_cmp(b),
            (Self::Uint(a), Self::Double(b)) => (*a as f64).partial_cmp(b),
            (Self::Double(_), Self::Int(_) | Self::Uint(_)) => {
                other.number_order(self).map(Ordering::reverse)
            }
            _ => None,
        }
    }
}

impl<'v> Text<'v> {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Made(text) => text,
        }
    }

    /// A part of it, borrowed as long as the whole may be.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Value<'v> {
        match self {
            Self::Borrowed(text) => Value::Text(Text::Borrowed(&text[range])),
            Self::Made(text) => Value::text(&text[range]),
        }
    }
}

impl Octets<'_> {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

impl<'v> List<'v> {
    pub fn len(&self) -> usize {
        match self {
            Self::Made(items) => items.len(),
            Self::Constant(items) => items.len(),
            Self::Json(items) => items.len(),
            Self::Names(items) => items.len(),
        }
    }

    pub fn get(&self, index: usize) -> Option<Value<'v>> {
        match self {
            Self::Made(items) => items.get(index).cloned(),
            Self::Constant(items) => items.get(index).map(Constant::value),
            Self::Json(items) => items.get(index).map(Value::json),
            Self::Names(items) => items.get(index).map(|item| Value::borrowed(item)),
        }
    }

    /// For indices below the length.
    pub fn at(&self, index: usize) -> Value<'v> {
        self.get(index).unwrap_or(Value::Null)
    }

    pub fn contains(&self, wanted: &Value<'v>, meter: &mut Meter) -> Result<bool, Why> {
        for index in 0..self.len() {
            meter.spend(1)?;
            if self.at(index).equals(wanted, meter)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl<'v> Map<'v> {
    pub fn len(&self, meter: &mut Meter) -> Result<usize, Why> {
        match self {
            Self::Made(entries) => Ok(entries.len()),
            Self::Json(members) => Ok(members.len()),
            Self::Lookup(lookup) => Ok(lookup.keys(meter)?.len()),
            Self::Raw(object) => Ok(json::keys(*object, meter)?.len()),
        }
    }

    pub fn get(&self, key: &Value<'v>, meter: &mut Meter) -> Result<Option<Value<'v>>, Why> {
        if let Value::Text(text) = key
            && !matches!(self, Self::Made(_))
        {
            return self.member(text.as_str(), meter);
        }
        match (self, key) {
            (
                Self::Made(entries),
                Value::Text(_) | Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_),
            ) => {
                for (known, value) in entries.iter() {
                    meter.spend(1)?;
                    if known.equals(key, meter)? {
                        return Ok(Some(value.clone()));
                    }
                }
                Ok(None)
            }
            (Self::Made(_), _) => Err(Why::NoOverload),
            // The keys of all others are text.
            (_, Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_)) => Ok(None),
            _ => Err(Why::NoOverload),
        }
    }

    pub fn member(&self, name: &str, meter: &mut Meter) -> Result<Option<Value<'v>>, Why> {
        match self {
            Self::Made(entries) => {
                for (known, value) in entries.iter() {
                    meter.spend(1)?;
                    if matches!(known, Value::Text(known) if known.as_str() == name) {
                        return Ok(Some(value.clone()));
                    }
                }
                Ok(None)
            }
            Self::Json(members) => {
                meter.spend_bytes(name.len())?;
                Ok(members.get(name).map(Value::json))
            }
            Self::Lookup(lookup) => lookup.get(name, meter),
            Self::Raw(object) => json::member(*object, name, meter),
        }
    }

    pub fn contains(&self, key: &Value<'v>, meter: &mut Meter) -> Result<bool, Why> {
        match (self, key) {
            (Self::Lookup(lookup), Value::Text(name)) => lookup.contains(name.as_str(), meter),
            _ => Ok(self.get(key, meter)?.is_some()),
        }
    }

    pub fn keys(&self, meter: &mut Meter) -> Result<Vec<Value<'v>>, Why> {
        match self {
            Self::Made(entries) => {
                meter.spend(entries.len())?;
                Ok(entries.iter().map(|(key, _)| key.clone()).collect())
            }
            Self::Json(members) => {
                meter.spend(members.len())?;
                Ok(members.keys().map(|key| Value::borrowed(key)).collect())
            }
            Self::Lookup(lookup) => lookup.keys(meter),
            Self::Raw(object) => json::keys(*object, meter),
        }
    }

    fn equals(&self, other: &Self, meter: &mut Meter) -> Result<bool, Why> {
        let keys = self.keys(meter)?;
        if keys.len() != other.len(meter)? {
            return Ok(false);
        }
        for key in keys {
            let (Some(own), Some(others)) = (self.get(&key, meter)?, other.get(&key, meter)?) else {
                return Ok(false);
            };
            if !own.equals(&others, meter)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Constant {
    pub fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Uint(value) => Value::Uint(*value),
            Self::Double(value) => Value::Double(*value),
            Self::Text(text) => Value::borrowed(text),
            Self::Bytes(bytes) => Value::Bytes(Octets::Borrowed(bytes)),
            Self::List(items) => Value::List(List::Constant(items)),
            Self::Timestamp(value) => Value::Timestamp(*value),
            Self::Duration(value) => Value::Duration(*value),
            Self::Network(value) => Value::Network(*value),
            Self::Type(name) => Value::Type(name),
        }
    }
}
