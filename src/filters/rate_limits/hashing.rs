//! What tells two keys apart: any value but a map, whose order means nothing.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use crate::expression::Value;

/// Lists in lists beyond this are no keys.
const MAX_DEPTH: usize = 4;

/// A value that can be a key.
pub struct Hashed<'v>(&'v Value<'v>);

impl<'v> Hashed<'v> {
    pub fn new(value: &'v Value<'v>) -> Option<Self> {
        is_key(value, MAX_DEPTH).then_some(Self(value))
    }
}

impl Hash for Hashed<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.0, state);
    }
}

/// Whoever has an IPv6 address has the other 2⁶⁴ of its network too.
pub fn address(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
        v4 => v4,
    }
}

fn is_key(value: &Value<'_>, depth: usize) -> bool {
    match value {
        Value::Map(_) => false,
        Value::List(list) => depth > 0 && (0..list.len()).all(|index| is_key(&list.at(index), depth - 1)),
        _ => true,
    }
}

fn hash<H: Hasher>(value: &Value<'_>, state: &mut H) {
    std::mem::discriminant(value).hash(state);
    match value {
        Value::Null | Value::Map(_) => {}
        Value::Bool(value) => value.hash(state),
        Value::Int(value) => value.hash(state),
        Value::Uint(value) => value.hash(state),
        Value::Double(value) => value.to_bits().hash(state),
        Value::Text(text) => text.as_str().hash(state),
        Value::Bytes(bytes) => bytes.as_slice().hash(state),
        Value::List(list) => {
            list.len().hash(state);
            (0..list.len()).for_each(|index| hash(&list.at(index), state));
        }
        Value::Timestamp(at) => at.hash(state),
        Value::Duration(span) => span.hash(state),
        Value::Network(network) => network.hash(state),
        Value::Type(name) => name.hash(state),
    }
}
