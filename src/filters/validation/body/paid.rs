//! A document as the validator of JSON Schema sees it: each look at it is paid for, so that a validation ends after a
//! bounded number of steps whatever schema and document say. Without that, a few alternatives that contain each other
//! take a document nested 60 deep more time than there is.
//!
//! Invariant: what cannot be paid for shows nothing (no members, no items, no text), so that nothing goes deeper; what
//! was found then means nothing, and [`within`] says so.

use std::borrow::Cow;
use std::cell::Cell;

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node, NodeIdentity, Object, unique};
use serde_json::{Map, Number, Value};

/// The representation.
#[derive(Debug)]
pub struct Paid;

/// What matching costs, in steps for every [`CHUNK`] bytes: a pattern may look at each byte as often as it has states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    pub text: u32,
    /// Of a member's name, which several patterns may be asked about.
    pub name: u32,
}

const CHUNK: u64 = 8;
/// Counting characters looks at many bytes at once.
const COUNTED: u64 = 256;

thread_local! {
    static LEFT: Cell<i64> = const { Cell::new(0) };
    static PRICES: Cell<Prices> = const { Cell::new(Prices { text: 0, name: 0 }) };
}

/// What `work` gives if `steps` suffice for it.
pub fn within<T>(steps: u32, prices: Prices, work: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(i64::from(steps));
    PRICES.set(prices);
    let given = work();
    (LEFT.get() >= 0).then_some(given)
}

fn pay(steps: u64) -> bool {
    let left = LEFT.get().saturating_sub_unsigned(steps);
    LEFT.set(left);
    left >= 0
}

fn pay_for_text(bytes: usize, price: u32) -> bool {
    pay(1 + (bytes as u64 / CHUNK + 1) * u64::from(price))
}

/// Pays for each value in it.
fn pay_for_all(value: &Value) -> bool {
    pay(1)
        && match value {
            Value::Array(items) => items.iter().all(pay_for_all),
            Value::Object(members) => members.values().all(pay_for_all),
            _ => true,
        }
}

/// A value.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a>(pub &'a Value);

#[derive(Debug)]
pub struct Members<'a>(&'a Map<String, Value>);

pub struct MembersIter<'a>(serde_json::map::Iter<'a>);

#[derive(Debug)]
pub struct Items<'a>(&'a [Value]);

#[derive(Debug)]
pub struct ItemsIter<'a>(std::slice::Iter<'a, Value>);

impl Json for Paid {
    type Node<'a> = Seen<'a>;
    type PreparedKey = String;
    type StringBuffer = Value;

    // As the crate has it for the same map.
    const KEYS_PER_LOOKUP: usize = 2;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>(buffer: &mut Value, string: &str, f: impl FnOnce(Seen<'_>) -> T) -> T {
        *buffer = Value::String(string.to_owned());
        f(Seen(buffer))
    }
}

impl<'a> Node<'a, Paid> for Seen<'a> {
    type Object = Members<'a>;
    type Array = Items<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<Members<'a>> {
        self.0.as_object().filter(|_| pay(1)).map(Members)
    }

    fn as_array(&self) -> Option<Items<'a>> {
        self.0.as_array().filter(|_| pay(1)).map(|items| Items(items))
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        let text = self.0.as_str()?;
        pay_for_text(text.len(), PRICES.get().text).then_some(Cow::Borrowed(text))
    }

    fn as_number(&self) -> Option<&'a Number> {
        pay(1);
        self.0.as_number()
    }

    fn as_boolean(&self) -> Option<bool> {
        pay(1);
        self.0.as_bool()
    }

    fn is_null(&self) -> bool {
        pay(1);
        self.0.is_null()
    }

    fn is_number(&self) -> bool {
        pay(1);
        self.0.is_number()
    }

    fn is_string(&self) -> bool {
        pay(1);
        self.0.is_string()
    }

    fn json_type(&self) -> JsonType {
        pay(1);
        match self.0 {
            Value::Null => JsonType::Null,
            Value::Bool(_) => JsonType::Boolean,
            Value::Number(_) => JsonType::Number,
            Value::String(_) => JsonType::String,
            Value::Array(_) => JsonType::Array,
            Value::Object(_) => JsonType::Object,
        }
    }

    fn string_length(&self) -> Option<u64> {
        let text = self.0.as_str()?;
        pay(1 + text.len() as u64 / COUNTED).then(|| text.chars().count() as u64)
    }

    fn equals_value(&self, expected: &Value) -> bool {
        let paid = match (self.0, expected) {
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => pay_for_all(expected),
            (Value::Object(one), Value::Object(other)) if one.len() == other.len() => pay_for_all(expected),
            (Value::String(one), Value::String(_)) => pay(1 + one.len() as u64 / COUNTED),
            _ => pay(1),
        };
        paid && jsonschema::json::cmp::equal(self.0, expected)
    }

    fn to_value(&self) -> Cow<'a, Value> {
        Cow::Borrowed(self.0)
    }

    fn identity(&self) -> Option<NodeIdentity> {
        Some(NodeIdentity::new(std::ptr::from_ref(self.0).addr()))
    }
}

impl<'a> Object<'a, Paid> for Members<'a> {
    type Node = Seen<'a>;
    type MemberName = &'a str;
    type MembersIter = MembersIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<Seen<'a>> {
        if pay(1) { self.0.get(key).map(Seen) } else { None }
    }

    fn members(&self) -> MembersIter<'a> {
        MembersIter(self.0.iter())
    }
}

impl<'a> Iterator for MembersIter<'a> {
    type Item = (&'a str, Seen<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.0.next()?;
        pay_for_text(name.len(), PRICES.get().name).then_some((name.as_str(), Seen(value)))
    }
}

impl<'a> Array<'a, Paid> for Items<'a> {
    type Node = Seen<'a>;
    type ElementsIter = ItemsIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn elements(&self) -> ItemsIter<'a> {
        ItemsIter(self.0.iter())
    }

    fn is_unique(&self) -> bool {
        // Few are compared one with another, many are hashed.
        let times = if self.0.len() < 16 { self.0.len() } else { 2 };
        (0..times).all(|_| self.0.iter().all(pay_for_all)) && unique::is_unique(self.0)
    }
}

impl<'a> Iterator for ItemsIter<'a> {
    type Item = Seen<'a>;

    fn next(&mut self) -> Option<Seen<'a>> {
        let item = self.0.next()?;
        pay(1).then_some(Seen(item))
    }
}
