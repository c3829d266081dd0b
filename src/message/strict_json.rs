//! JSON as a gateway must read what others read after it: a member that stands twice in an object is refused, wherever it
//! stands, because two readers may take different ones; so is what is nested too deep or holds too much.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How much a document may hold.
#[derive(Clone, Copy, Debug)]
pub struct JsonBounds {
    /// Objects and arrays, one inside the other.
    pub depth: usize,
    /// Objects, arrays, texts, numbers and so on.
    pub values: usize,
    /// Bytes of a member's name.
    pub name: usize,
}

/// A document within its bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub value: Value,
    /// How many objects and arrays are one inside the other.
    pub depth: usize,
}

impl Document {
    /// Reads one document.
    ///
    /// # Errors
    /// Not JSON in UTF-8 (a byte order mark is not), a member twice, out of bounds, or something behind it. The error
    /// says what and where, nothing of the document itself.
    pub fn read(text: &[u8], bounds: JsonBounds) -> Result<Self, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let (left, deepest) = (Cell::new(bounds.values), Cell::new(0));
        let value = Strict { bounds, depth: 0, left: &left, deepest: &deepest }.deserialize(&mut reader)?;
        reader.end()?;
        Ok(Self { value, depth: deepest.get() })
    }

    /// Reads one object of at most so many objects and arrays inside of it, one inside the other.
    ///
    /// # Errors
    /// As [`Document::read`], or another thing than an object.
    pub fn read_object(text: &[u8], bounds: JsonBounds) -> Result<Map<String, Value>, serde_json::Error> {
        match Self::read(text, bounds)?.value {
            Value::Object(map) => Ok(map),
            _ => Err(serde_json::Error::custom("not an object")),
        }
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    bounds: JsonBounds,
    depth: usize,
    left: &'a Cell<usize>,
    deepest: &'a Cell<usize>,
}

impl Strict<'_> {
    fn inner<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > self.bounds.depth {
            return Err(E::custom("nested too deep"));
        }
        self.deepest.set(self.deepest.get().max(depth));
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| D::Error::custom("too many values"))?;
        self.left.set(left);
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("no number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if name.len() > self.bounds.name {
                return Err(A::Error::custom("a member's name is too long"));
            }
            let value = members.next_value_seed(inner)?;
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a member stands twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: JsonBounds = JsonBounds { depth: 17, values: 100, name: 8 };

    fn object(text: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
        Document::read_object(text, BOUNDS)
    }

    #[test]
    fn a_member_stands_once_in_every_object() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#"{"x":[{"a":{"b":1,"b":2}}]}"#] {
            assert!(object(text.as_bytes()).is_err(), "{text}");
        }
        let text = r#" {"a":{"b":1},"c":[{"b":2},null,true,-1,1.5,"ä"]} "#;
        let expected: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(Value::Object(object(text.as_bytes()).expect("fine")), expected);
    }

    #[test]
    fn only_one_object_of_a_bounded_depth_is_read() {
        for text in
            ["", "1", "[]", "null", "{}{}", "{} x", "{\"a\":1e999}", "\u{feff}{}", "{'a':1}", "{\"a\":01}"]
        {
            assert!(object(text.as_bytes()).is_err(), "{text}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_err());
        assert!(object(br#"{"a":"\ud800"}"#).is_err());
        let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(16).as_bytes()).is_ok() && object(nested(17).as_bytes()).is_err());
        assert!(object(nested(100_000).as_bytes()).is_err());
        assert_eq!(Document::read(nested(3).as_bytes(), BOUNDS).expect("fine").depth, 4);
    }

    #[test]
    fn names_and_the_number_of_values_are_bounded() {
        let list = |values: usize| format!("[{}]", vec!["0"; values].join(","));
        assert!(Document::read(list(99).as_bytes(), BOUNDS).is_ok());
        assert!(Document::read(list(100).as_bytes(), BOUNDS).is_err());
        assert!(Document::read(br#"{"12345678":1}"#, BOUNDS).is_ok());
        assert!(Document::read(br#"{"123456789":1}"#, BOUNDS).is_err());
    }

    #[test]
    fn an_error_says_nothing_of_the_document() {
        for text in
            [r#"{"hunter2":1,"hunter2":2}"#, r#"{"a":hunter2}"#, "\"hunter2", "[\"hunter2\"", "hunter2"]
        {
            let error = Document::read(text.as_bytes(), BOUNDS).expect_err("wrong").to_string();
            assert!(!error.contains("hunter") && error.contains("column"), "{error}");
        }
    }
}
