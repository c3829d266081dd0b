//! Maps that are not made: header fields, parameters and captures, read in place when an expression asks.
//!
//! A field or parameter that was sent more than once has no single value: which of them a backend takes is anyone's
//! guess, so that reading one is a fault. `headerValues` and `queryValues` have all of them.

use std::borrow::Cow;
use std::rc::Rc;

use http::header::{COOKIE, HeaderMap};
use percent_encoding::percent_decode_str;

use super::fault::{Meter, Why};
use super::value::{List, Value};
use crate::message::Captures;

#[derive(Clone, Copy, Debug)]
pub enum Lookup<'v> {
    Headers(&'v HeaderMap),
    HeaderValues(&'v HeaderMap),
    Query(&'v str),
    QueryValues(&'v str),
    Captures(&'v Captures),
}

impl<'v> Lookup<'v> {
    pub fn get(self, name: &str, meter: &mut Meter) -> Result<Option<Value<'v>>, Why> {
        match self {
            Self::Headers(headers) => header(headers, name, meter),
            Self::HeaderValues(headers) => {
                let mut values = Vec::new();
                for value in headers.get_all(name) {
                    meter.spend(1)?;
                    values.push(Value::borrowed(utf8(value.as_bytes())?));
                }
                Ok(list(values))
            }
            Self::Query(query) => {
                let mut found = None;
                for (_, value) in named(query, name, meter)? {
                    if found.is_some() {
                        return Err(Why::SeveralValues);
                    }
                    found = Some(decoded(form(value), meter)?);
                }
                Ok(found)
            }
            Self::QueryValues(query) => {
                let mut values = Vec::new();
                for (_, value) in named(query, name, meter)? {
                    values.push(decoded(form(value), meter)?);
                }
                Ok(list(values))
            }
            Self::Captures(captures) => match captures.get(name) {
                Some(value) => decoded(percent_decode_str(value).into(), meter).map(Some),
                None => Ok(None),
            },
        }
    }

    pub fn contains(self, name: &str, meter: &mut Meter) -> Result<bool, Why> {
        match self {
            Self::Headers(headers) | Self::HeaderValues(headers) => Ok(headers.contains_key(name)),
            Self::Query(query) | Self::QueryValues(query) => Ok(named(query, name, meter)?.next().is_some()),
            Self::Captures(captures) => Ok(captures.get(name).is_some()),
        }
    }

    /// Each once.
    pub fn keys(self, meter: &mut Meter) -> Result<Vec<Value<'v>>, Why> {
        match self {
            Self::Headers(headers) | Self::HeaderValues(headers) => {
                meter.spend(headers.keys_len())?;
                Ok(headers.keys().map(|name| Value::borrowed(name.as_str())).collect())
            }
            Self::Query(query) | Self::QueryValues(query) => {
                meter.spend_bytes(query.len())?;
                let mut keys: Vec<Value<'v>> = Vec::new();
                for (name, _) in pairs(query) {
                    let name = decoded(form(name), meter)?;
                    let mut is_known = false;
                    for known in &keys {
                        meter.spend(1)?;
                        is_known |= known.equals(&name, meter)?;
                    }
                    if !is_known {
                        keys.push(name);
                    }
                }
                Ok(keys)
            }
            Self::Captures(captures) => {
                meter.spend(captures.0.len())?;
                Ok(captures.0.iter().map(|(name, _)| Value::borrowed(name)).collect())
            }
        }
    }
}

fn header<'v>(headers: &'v HeaderMap, name: &str, meter: &mut Meter) -> Result<Option<Value<'v>>, Why> {
    let all = headers.get_all(name);
    let mut lines = all.iter();
    let Some(first) = lines.next() else { return Ok(None) };
    let first = utf8(first.as_bytes())?;
    if lines.next().is_none() {
        return Ok(Some(Value::borrowed(first)));
    }
    if name != COOKIE.as_str() {
        return Err(Why::SeveralValues);
    }
    // RFC 9113 section 8.2.3: a cookie that came in several lines is one.
    let mut joined = String::new();
    for line in all {
        let line = utf8(line.as_bytes())?;
        meter.spend_bytes(joined.len() + line.len())?;
        joined += if joined.is_empty() { "" } else { "; " };
        joined += line;
    }
    Ok(Some(Value::text(joined)))
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The parameters of a name, undecoded.
fn named<'q, 'n>(
    query: &'q str,
    name: &'n str,
    meter: &mut Meter,
) -> Result<impl Iterator<Item = (&'q str, &'q str)> + use<'q, 'n>, Why> {
    meter.spend_bytes(query.len())?;
    Ok(pairs(query).filter(move |(found, _)| *form(found) == *name.as_bytes()))
}

/// `application/x-www-form-urlencoded`: `+` is a space. What is no triplet stands for itself.
fn form(text: &str) -> Cow<'_, [u8]> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).collect());
    }
    percent_decode_str(text).into()
}

fn decoded<'v>(bytes: Cow<'v, [u8]>, meter: &mut Meter) -> Result<Value<'v>, Why> {
    meter.spend_bytes(bytes.len())?;
    match bytes {
        Cow::Borrowed(bytes) => utf8(bytes).map(Value::borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Value::text).map_err(|_| Why::NotText),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Why> {
    std::str::from_utf8(bytes).map_err(|_| Why::NotText)
}

fn list(values: Vec<Value<'_>>) -> Option<Value<'_>> {
    (!values.is_empty()).then(|| Value::List(List::Made(Rc::from(values))))
}
