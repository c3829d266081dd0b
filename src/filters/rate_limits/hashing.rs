//! What tells two keys apart: any value but a map, whose order means nothing.

use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};

use crate::expression::Value;
use crate::message::Exchange;

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

/// How the names of a limit's buckets in the store begin. What is written together has one tag in braces: a cluster keeps
/// it on one server, so that all limits of a request are asked and charged there at once.
pub fn shared_prefix(whose: &str, name: &str) -> Arc<str> {
    let mut digest = Digest(Context::new(&SHA256));
    whose.hash(&mut digest);
    format!("portcullis:limit:{{{}}}:{name}:", digest.text(4)).into()
}

/// The name of a bucket in the store, the same on every replica: the limit's own, and a cryptographic hash of the rest,
/// so that nobody can choose a key that meets another's, and no client's name stands in the store. `key`: the value of
/// the limit's expression, if it has one; `None` within: it cannot be told.
pub fn shared_key(prefix: &str, whose: &str, key: Option<&Option<Value<'_>>>, exchange: &Exchange) -> String {
    let mut digest = Digest(Context::new(&SHA256));
    // The tag is too short to tell for sure.
    whose.hash(&mut digest);
    match (key, exchange.identity.known()) {
        (Some(value), _) => {
            digest.write_u8(0);
            if let Some(Hashed(value)) = value.as_ref().and_then(Hashed::new) {
                hash(value, &mut digest);
            }
        }
        (None, Some(known)) => {
            digest.write_u8(1);
            (known.kind.as_str(), &*known.issuer, &*known.id).hash(&mut digest);
        }
        (None, None) => {
            digest.write_u8(2);
            exchange.client.network().to_string().hash(&mut digest);
        }
    }
    let mut text = String::with_capacity(prefix.len() + 32);
    text.push_str(prefix);
    digest.end(16, &mut text);
    text
}

struct Digest(Context);

impl Digest {
    fn text(self, bytes: usize) -> String {
        let mut text = String::new();
        self.end(bytes, &mut text);
        text
    }

    fn end(self, bytes: usize, text: &mut String) {
        for byte in self.0.finish().as_ref().iter().take(bytes) {
            write!(text, "{byte:02x}").expect("a string takes all that is written");
        }
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
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
    // The same in every build: replicas of two versions count together.
    value.type_name().hash(state);
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
        Value::Timestamp(at) => at.as_nanosecond().hash(state),
        Value::Duration(span) => span.as_nanos().hash(state),
        Value::Network(network) => network.to_string().hash(state),
        Value::Type(name) => name.hash(state),
        Value::Raw(piece) => piece.text().hash(state),
    }
}
