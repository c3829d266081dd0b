//! Conversions between types, sizes and networks.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use super::fault::{Meter, Why};
use super::value::{Octets, Text, Value};

type Made<'v> = Result<Value<'v>, Why>;

pub(super) fn size<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let size = match values {
        [Value::Text(text)] => {
            meter.spend_bytes(text.as_str().len())?;
            text.as_str().chars().count()
        }
        [Value::Bytes(bytes)] => bytes.as_slice().len(),
        [Value::List(list)] => list.len(),
        [Value::Map(map)] => map.len(meter)?,
        _ => return Err(Why::NoOverload),
    };
    i64::try_from(size).map(Value::Int).map_err(|_| Why::Overflow)
}

pub(super) fn int<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let value = match values {
        [Value::Int(value)] => *value,
        [Value::Uint(value)] => i64::try_from(*value).map_err(|_| Why::Overflow)?,
        // The bounds themselves are not exact as doubles; CEL refuses them.
        [Value::Double(value)] if *value > i64::MIN as f64 && *value < i64::MAX as f64 => *value as i64,
        [Value::Double(_)] => return Err(Why::Overflow),
        [Value::Text(text)] => text.as_str().parse().map_err(|_| Why::BadValue)?,
        [Value::Timestamp(at)] => at.as_second(),
        _ => return Err(Why::NoOverload),
    };
    Ok(Value::Int(value))
}

pub(super) fn uint<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let value = match values {
        [Value::Uint(value)] => *value,
        [Value::Int(value)] => u64::try_from(*value).map_err(|_| Why::Overflow)?,
        [Value::Double(value)] if *value > -1.0 && *value < u64::MAX as f64 => *value as u64,
        [Value::Double(_)] => return Err(Why::Overflow),
        [Value::Text(text)] => text.as_str().parse().map_err(|_| Why::BadValue)?,
        _ => return Err(Why::NoOverload),
    };
    Ok(Value::Uint(value))
}

pub(super) fn double<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let value = match values {
        [Value::Double(value)] => *value,
        [Value::Int(value)] => *value as f64,
        [Value::Uint(value)] => *value as f64,
        [Value::Text(text)] => text.as_str().parse().map_err(|_| Why::BadValue)?,
        _ => return Err(Why::NoOverload),
    };
    Ok(Value::Double(value))
}

pub(super) fn string<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    Ok(match values {
        [Value::Text(text)] => Value::Text(text.clone()),
        [Value::Bool(value)] => Value::borrowed(if *value { "true" } else { "false" }),
        [Value::Int(value)] => Value::text(value.to_string()),
        [Value::Uint(value)] => Value::text(value.to_string()),
        [Value::Double(value)] => Value::text(double_text(*value)),
        [Value::Bytes(bytes)] => {
            meter.spend_bytes(bytes.as_slice().len())?;
            match bytes {
                Octets::Borrowed(bytes) => {
                    Value::borrowed(std::str::from_utf8(bytes).map_err(|_| Why::NotText)?)
                }
                Octets::Made(bytes) => Value::text(std::str::from_utf8(bytes).map_err(|_| Why::NotText)?),
            }
        }
        // A number that is held by none: its text is exact.
        [Value::Raw(piece)] => Value::borrowed(piece.text()),
        [Value::Timestamp(at)] => Value::text(at.to_string()),
        [Value::Duration(duration)] => Value::text(super::moments::duration_text(*duration)),
        [Value::Network(network)] => Value::text(network.to_string()),
        _ => return Err(Why::NoOverload),
    })
}

/// What `string()` gives.
pub(super) fn text(value: Value<'_>) -> Result<Cow<'_, str>, Why> {
    let mut meter = Meter::new();
    let value = value.opened(&mut meter)?;
    match string(&mut meter, &[value])? {
        Value::Text(Text::Borrowed(text)) => Ok(Cow::Borrowed(text)),
        Value::Text(Text::Made(text)) => Ok(Cow::Owned(text.to_string())),
        _ => Err(Why::NoOverload),
    }
}

/// The shortest text that stands for the value; very large and small ones with an exponent.
fn double_text(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let size = value.abs();
    if value.is_nan() || value == 0.0 || (1e-4..1e21).contains(&size) {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

pub(super) fn bytes<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    match values {
        [Value::Bytes(bytes)] => Ok(Value::Bytes(bytes.clone())),
        [Value::Text(text)] => {
            meter.spend_bytes(text.as_str().len())?;
            Ok(Value::Bytes(Octets::Made(text.as_str().as_bytes().into())))
        }
        _ => Err(Why::NoOverload),
    }
}

pub(super) fn bool<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    match values {
        [Value::Bool(value)] => Ok(Value::Bool(*value)),
        [Value::Text(text)] => match text.as_str() {
            "1" | "t" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(Why::BadValue),
        },
        _ => Err(Why::NoOverload),
    }
}

pub(super) fn network<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Text(text)] = values else { return Err(Why::NoOverload) };
    text.as_str().parse::<IpNet>().map(Value::Network).map_err(|_| Why::BadValue)
}

pub(super) fn contains_ip<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Network(network), Value::Text(text)] = values else { return Err(Why::NoOverload) };
    let address: IpAddr = text.as_str().parse().map_err(|_| Why::BadValue)?;
    // An IPv4 address may come mapped into IPv6.
    Ok(Value::Bool(network.contains(&address.to_canonical())))
}
