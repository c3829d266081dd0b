//! Arithmetic and indexing: what overflows is a fault.

use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};

use super::fault::{Meter, Why};
use super::moments::{duration_in_range, timestamp_in_range};
use super::parse::Operator;
use super::value::{List, Octets, Value};

pub(super) fn index<'v>(of: &Value<'v>, key: &Value<'v>, meter: &mut Meter) -> Result<Value<'v>, Why> {
    match of {
        Value::Map(map) => map.get(key, meter)?.ok_or(Why::NoSuchKey),
        Value::List(list) => {
            let index = match key {
                Value::Int(index) => usize::try_from(*index).ok(),
                Value::Uint(index) => usize::try_from(*index).ok(),
                Value::Double(index) if index.fract() == 0.0 && (0.0..1e9).contains(index) => {
                    Some(*index as usize)
                }
                Value::Double(_) => None,
                _ => return Err(Why::NoOverload),
            };
            index.and_then(|index| list.get(index)).ok_or(Why::NoSuchIndex)
        }
        _ => Err(Why::NoOverload),
    }
}

pub(super) fn negate<'v>(value: &Value<'v>) -> Result<Value<'v>, Why> {
    match value {
        Value::Int(value) => value.checked_neg().map(Value::Int).ok_or(Why::Overflow),
        Value::Double(value) => Ok(Value::Double(-value)),
        Value::Duration(value) => value.checked_neg().map(Value::Duration).ok_or(Why::Overflow),
        _ => Err(Why::NoOverload),
    }
}

pub(super) fn calculate<'v>(
    operator: Operator,
    left: &Value<'v>,
    right: &Value<'v>,
    meter: &mut Meter,
) -> Result<Value<'v>, Why> {
    match (left, right) {
        (Value::Int(a), Value::Int(b)) => int(operator, *a, *b).map(Value::Int),
        (Value::Uint(a), Value::Uint(b)) => uint(operator, *a, *b).map(Value::Uint),
        (Value::Double(a), Value::Double(b)) => double(operator, *a, *b).map(Value::Double),
        (a, b) if operator == Operator::Add => add(a, b, meter),
        (a, b) if operator == Operator::Subtract => subtract(a, b),
        _ => Err(Why::NoOverload),
    }
}

fn int(operator: Operator, a: i64, b: i64) -> Result<i64, Why> {
    let by = [i64::checked_add, i64::checked_sub, i64::checked_mul, i64::checked_div, i64::checked_rem];
    whole(operator, by, a, b)
}

fn uint(operator: Operator, a: u64, b: u64) -> Result<u64, Why> {
    let by = [u64::checked_add, u64::checked_sub, u64::checked_mul, u64::checked_div, u64::checked_rem];
    whole(operator, by, a, b)
}

/// `by` adds, subtracts, multiplies, divides, and gives what is left of a division.
fn whole<T: Default + PartialEq>(
    operator: Operator,
    [add, subtract, multiply, divide, remain]: [fn(T, T) -> Option<T>; 5],
    a: T,
    b: T,
) -> Result<T, Why> {
    let by = match operator {
        Operator::Add => add,
        Operator::Subtract => subtract,
        Operator::Multiply => multiply,
        Operator::Divide | Operator::Remainder if b == T::default() => return Err(Why::DivisionByZero),
        Operator::Divide => divide,
        Operator::Remainder => remain,
        _ => return Err(Why::NoOverload),
    };
    by(a, b).ok_or(Why::Overflow)
}

fn double(operator: Operator, a: f64, b: f64) -> Result<f64, Why> {
    Ok(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        _ => return Err(Why::NoOverload),
    })
}

/// What is made is paid for before it is made.
fn add<'v>(left: &Value<'v>, right: &Value<'v>, meter: &mut Meter) -> Result<Value<'v>, Why> {
    match (left, right) {
        (Value::Text(a), Value::Text(b)) => {
            meter.spend_bytes(a.as_str().len() + b.as_str().len())?;
            Ok(Value::text([a.as_str(), b.as_str()].concat()))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.spend_bytes(a.as_slice().len() + b.as_slice().len())?;
            Ok(Value::Bytes(Octets::Made([a.as_slice(), b.as_slice()].concat().into())))
        }
        (Value::List(a), Value::List(b)) => {
            meter.spend(a.len() + b.len())?;
            let items = (0..a.len()).map(|i| a.at(i)).chain((0..b.len()).map(|i| b.at(i)));
            Ok(Value::List(List::Made(Rc::from(items.collect::<Vec<_>>()))))
        }
        (Value::Timestamp(at), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(at)) => {
            shift(*at, *by)
        }
        (Value::Duration(a), Value::Duration(b)) => span(a.checked_add(*b)),
        _ => Err(Why::NoOverload),
    }
}

fn subtract<'v>(left: &Value<'v>, right: &Value<'v>) -> Result<Value<'v>, Why> {
    match (left, right) {
        (Value::Timestamp(at), Value::Duration(by)) => shift(*at, by.checked_neg().ok_or(Why::Overflow)?),
        (Value::Timestamp(a), Value::Timestamp(b)) => span(Some(a.duration_since(*b))),
        (Value::Duration(a), Value::Duration(b)) => span(a.checked_sub(*b)),
        _ => Err(Why::NoOverload),
    }
}

fn shift<'v>(at: Timestamp, by: SignedDuration) -> Result<Value<'v>, Why> {
    timestamp_in_range(at.checked_add(by).map_err(|_| Why::Overflow)?)
}

fn span<'v>(duration: Option<SignedDuration>) -> Result<Value<'v>, Why> {
    duration_in_range(duration.ok_or(Why::Overflow)?).map(Value::Duration)
}
