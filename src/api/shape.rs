//! The CRD's schema as a checker: what the API server refuses by it is refused in files too, with the same words
//! everywhere.
//!
//! Not here: the CEL rules, which `layers` and the policy members check in their own words.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::{Map, Value};

use crate::values::{FieldPath, nearest};

/// A schema, ready to check values.
#[derive(Debug)]
pub(super) enum Shape {
    Object {
        fields: BTreeMap<String, Shape>,
        required: Vec<String>,
    },
    Map {
        values: Box<Shape>,
        min: usize,
        max: usize,
    },
    List {
        items: Box<Shape>,
        min: usize,
        max: usize,
        unique: Unique,
    },
    Text {
        min: usize,
        max: usize,
        pattern: Option<Regex>,
        words: Vec<String>,
    },
    Integer {
        min: i64,
        max: i64,
        values: Vec<i64>,
    },
    Number,
    Boolean,
    /// The words of somebody else's language.
    AnyObject,
    /// Any JSON: what it means is not the schema's to say.
    Any,
}

#[derive(Debug)]
pub(super) enum Unique {
    No,
    Whole,
    By(String),
}

/// Where a value stands; written out only when there is something to say about it.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    At(&'a FieldPath),
    Field(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

/// What was found. It is bounded: of what is wrong in the same way a thousand times, the first are told.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Does not fit the schema.
    pub wrong: Vec<(FieldPath, String)>,
    /// Fields that the schema does not know; they were taken out of the value.
    pub unknown: Vec<(FieldPath, String)>,
    /// Fields that are there and say nothing; they were taken out, too.
    pub nulls: Vec<(FieldPath, String)>,
}

const MOST: usize = 16;

impl Shape {
    /// # Errors
    /// Names a word of the schema that is not understood here.
    pub fn new(schema: &Value) -> Result<Self, String> {
        let size = |word: &str, default| {
            schema.get(word).map_or(Ok(default), |found| {
                found.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or(format!("{word}: {found}"))
            })
        };
        match schema["type"].as_str() {
            Some("object") if schema["x-kubernetes-preserve-unknown-fields"] == true => Ok(Self::AnyObject),
            Some("object") => match schema.get("additionalProperties") {
                Some(values) => Ok(Self::Map {
                    values: Box::new(Self::new(values)?),
                    min: size("minProperties", 0)?,
                    max: size("maxProperties", usize::MAX)?,
                }),
                None => Self::object(schema),
            },
            Some("array") => Ok(Self::List {
                items: Box::new(Self::new(&schema["items"])?),
                min: size("minItems", 0)?,
                max: size("maxItems", usize::MAX)?,
                unique: match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => Unique::Whole,
                    Some("map") => Unique::By(
                        schema["x-kubernetes-list-map-keys"][0].as_str().ok_or("no list-map key")?.to_owned(),
                    ),
                    _ => Unique::No,
                },
            }),
            Some("string") => Ok(Self::Text {
                min: size("minLength", 0)?,
                max: size("maxLength", usize::MAX)?,
                pattern: match schema.get("pattern").and_then(Value::as_str) {
                    Some(pattern) => Some(Regex::new(pattern).map_err(|error| error.to_string())?),
                    None => None,
                },
                words: listed(schema, |word| word.as_str().map(str::to_owned)),
            }),
            Some("integer") => Ok(Self::Integer {
                min: bound(schema, "minimum").unwrap_or(i64::MIN),
                max: bound(schema, "maximum").unwrap_or(i64::MAX),
                values: listed(schema, Value::as_i64),
            }),
            // Bounds of those are for rules to say.
            Some("number") => match bound(schema, "minimum").or(bound(schema, "maximum")) {
                Some(bound) => Err(format!("a bound of a number: {bound}")),
                None => Ok(Self::Number),
            },
            Some("boolean") => Ok(Self::Boolean),
            None if schema["x-kubernetes-preserve-unknown-fields"] == true => Ok(Self::Any),
            other => Err(format!("type {other:?}")),
        }
    }

    fn object(schema: &Value) -> Result<Self, String> {
        let mut fields = BTreeMap::new();
        for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            fields.insert(name.clone(), Self::new(field).map_err(|error| format!("{name}: {error}"))?);
        }
        Ok(Self::Object { fields, required: listed(schema, |name| name.as_str().map(str::to_owned)) })
    }

    /// The schema of a field, or of the items of a list.
    pub fn at(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object { fields, .. } => fields.get(name),
            Self::List { items, .. } if name == "[]" => Some(items),
            _ => None,
        }
    }

    /// The names of an object's fields.
    pub fn names(&self) -> impl Iterator<Item = &String> + Clone {
        let fields = match self {
            Self::Object { fields, .. } => Some(fields.keys()),
            _ => None,
        };
        fields.into_iter().flatten()
    }

    /// Checks `value` and takes out of it what is `null` or unknown, as the API server does.
    pub fn check(&self, value: &mut Value, place: Place<'_>, findings: &mut Findings) {
        match (self, value) {
            (Self::Object { fields, required }, Value::Object(object)) => {
                check_object(fields, required, object, place, findings);
            }
            (Self::Map { values, min, max }, Value::Object(object)) => {
                object.retain(|name, value| {
                    if value.is_null() {
                        findings.null(Place::Field(&place, name));
                    }
                    !value.is_null()
                });
                check_count("entries", object.len(), (*min, *max), place, findings);
                if object.len() <= *max {
                    for (key, value) in object {
                        values.check(value, Place::Field(&place, key), findings);
                    }
                }
            }
            (Self::List { items, min, max, unique }, Value::Array(list)) => {
                check_count("entries", list.len(), (*min, *max), place, findings);
                if list.len() <= *max {
                    for (index, item) in list.iter_mut().enumerate() {
                        items.check(item, Place::Index(&place, index), findings);
                    }
                    unique.check(list, place, findings);
                }
            }
            (Self::Text { min, max, pattern, words }, Value::String(text)) => {
                check_text(text, (*min, *max), pattern.as_ref(), words, place, findings);
            }
            (Self::Integer { min, max, values }, Value::Number(number)) => match number.as_i64() {
                Some(found)
                    if (*min..=*max).contains(&found) && (values.is_empty() || values.contains(&found)) => {}
                _ if !values.is_empty() => {
                    findings.wrong(place, format!("found {number}, expected one of {}", joined(values)));
                }
                _ => {
                    findings.wrong(place, format!("found {number}, expected an integer from {min} to {max}"))
                }
            },
            (Self::Boolean, Value::Bool(_))
            | (Self::Number, Value::Number(_))
            | (Self::AnyObject, Value::Object(_))
            | (Self::Any, _) => {}
            (_, Value::Null) => findings.wrong(place, NULL.to_owned()),
            (_, value) => {
                findings.wrong(place, format!("found {}, expected {}", kind_of(value), self.noun()));
            }
        }
    }

    const fn noun(&self) -> &'static str {
        match self {
            Self::Object { .. } | Self::Map { .. } | Self::AnyObject => "an object",
            Self::List { .. } => "a list",
            Self::Text { .. } => "a string",
            Self::Integer { .. } => "an integer",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Any => "a value",
        }
    }
}

impl Unique {
    fn check(&self, list: &[Value], place: Place<'_>, findings: &mut Findings) {
        let mut seen = BTreeSet::new();
        for (index, item) in list.iter().enumerate() {
            let key = match self {
                Self::No => return,
                Self::Whole => item,
                Self::By(key) => &item[key.as_str()],
            };
            if let Some(key) = key.as_str()
                && !seen.insert(key)
            {
                findings.wrong(
                    Place::Index(&place, index),
                    format!("{} stands here twice; leave one out", quoted(key)),
                );
            }
        }
    }
}

impl Findings {
    pub fn wrong(&mut self, place: Place<'_>, message: String) {
        if self.wrong.len() < MOST {
            self.wrong.push((place.path(), message));
        }
    }

    pub fn unknown(&mut self, place: Place<'_>, message: String) {
        if self.unknown.len() < MOST {
            self.unknown.push((place.path(), message));
        }
    }

    fn null(&mut self, place: Place<'_>) {
        if self.nulls.len() < MOST {
            self.nulls.push((place.path(), NULL.to_owned()));
        }
    }
}

/// An API server drops such a field. Where it would have kept somebody out, that must not happen unseen.
const NULL: &str = "found null, which asks for nothing; leave the field out, or give it a value";

impl Place<'_> {
    pub fn path(&self) -> FieldPath {
        match self {
            Self::At(path) => (*path).clone(),
            Self::Field(outer, name) if is_plain(name) => outer.path().field(name),
            Self::Field(outer, name) => FieldPath::new(format!("{}[{}]", outer.path(), quoted(name))),
            Self::Index(outer, index) => outer.path().index(*index),
        }
    }
}

fn check_object(
    fields: &BTreeMap<String, Shape>,
    required: &[String],
    object: &mut Map<String, Value>,
    place: Place<'_>,
    findings: &mut Findings,
) {
    object.retain(|name, value| {
        if value.is_null() {
            findings.null(Place::Field(&place, name));
            return false;
        }
        match fields.get(name) {
            Some(shape) => shape.check(value, Place::Field(&place, name), findings),
            None => {
                findings.unknown(Place::Field(&place, name), unknown_field(name, fields.keys()));
                return false;
            }
        }
        true
    });
    for name in required {
        if !object.contains_key(name) {
            findings.wrong(place, format!("{name} is missing"));
        }
    }
}

fn check_count(
    what: &str,
    count: usize,
    (min, max): (usize, usize),
    place: Place<'_>,
    findings: &mut Findings,
) {
    if count < min {
        findings.wrong(place, format!("found {count} {what}, expected at least {min}"));
    } else if count > max {
        findings.wrong(place, format!("found {count} {what}, expected at most {max}"));
    }
}

fn check_text(
    text: &str,
    (min, max): (usize, usize),
    pattern: Option<&Regex>,
    words: &[String],
    place: Place<'_>,
    findings: &mut Findings,
) {
    if text.len() < min {
        return findings.wrong(place, format!("found an empty string, expected at least {min} characters"));
    }
    // Bytes are never fewer than characters.
    if text.len() > max && text.chars().count() > max {
        let count = text.chars().count();
        return findings.wrong(place, format!("found {count} characters, expected at most {max}"));
    }
    if !words.is_empty() && !words.iter().any(|word| word == text) {
        let hint = did_you_mean(text, words.iter());
        return findings
            .wrong(place, format!("found {}, expected one of {}{hint}", quoted(text), joined(words)));
    }
    if let Some(pattern) = pattern
        && !pattern.is_match(text)
    {
        findings.wrong(place, format!("found {}, expected text that matches {pattern}", quoted(text)));
    }
}

/// What is said about a field that nobody knows.
pub(super) fn unknown_field<'a>(name: &str, known: impl Iterator<Item = &'a String> + Clone) -> String {
    if name == "true" && known.clone().any(|field| field == "on") {
        return "there is no field \"true\": YAML 1.1, which kubectl and helm read, takes on without quotes for true; write \"on\"".to_owned();
    }
    let hint = did_you_mean(name, known.clone());
    if hint.is_empty() {
        let known: Vec<_> = known.map(String::as_str).collect();
        return format!("there is no field {}; there are {}", quoted(name), known.join(", "));
    }
    format!("there is no field {}{hint}", quoted(name))
}

fn did_you_mean<'a>(found: &str, known: impl Iterator<Item = &'a String>) -> String {
    let nearest = nearest(found, known.map(String::as_str));
    nearest.map(|word| format!("; did you mean {word}?")).unwrap_or_default()
}

/// A user's text in a message: quoted, escaped, not too long.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

fn is_plain(name: &str) -> bool {
    name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

pub(super) const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn joined(words: &[impl ToString]) -> String {
    words.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// `enum` or `required`, whichever the schema has.
fn listed<T>(schema: &Value, read: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    let list = schema.get("enum").or_else(|| schema.get("required"));
    list.and_then(Value::as_array).into_iter().flatten().filter_map(read).collect()
}

fn bound(schema: &Value, word: &str) -> Option<i64> {
    schema.get(word)?.as_i64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(schema: Value, mut value: Value) -> (Value, Vec<String>, Vec<String>) {
        let mut findings = Findings::default();
        Shape::new(&schema).expect("a schema").check(
            &mut value,
            Place::At(&FieldPath::new("spec")),
            &mut findings,
        );
        let told = |list: Vec<(FieldPath, String)>| list.iter().map(|(p, m)| format!("{p}: {m}")).collect();
        (value, told(findings.wrong), told(findings.unknown))
    }

    #[test]
    fn each_word_of_the_schema_is_checked() {
        let text = json!({"type": "string", "minLength": 1, "maxLength": 3, "pattern": "^[a-z]*$"});
        let number = json!({"type": "integer", "minimum": 1, "maximum": 9});
        for (schema, value, expected) in [
            (text.clone(), json!("äöü"), "spec: found \"äöü\", expected text that matches ^[a-z]*$"),
            (text.clone(), json!("abcd"), "spec: found 4 characters, expected at most 3"),
            (text.clone(), json!(""), "spec: found an empty string, expected at least 1 characters"),
            (text, json!(7), "spec: found a number, expected a string"),
            (number.clone(), json!(10), "spec: found 10, expected an integer from 1 to 9"),
            (number, json!(1.5), "spec: found 1.5, expected an integer from 1 to 9"),
            (
                json!({"type": "integer", "enum": [301, 302]}),
                json!(300),
                "spec: found 300, expected one of 301, 302",
            ),
            (
                json!({"type": "string", "enum": ["Exact", "PathPrefix"]}),
                json!("pathprefix"),
                "spec: found \"pathprefix\", expected one of Exact, PathPrefix; did you mean PathPrefix?",
            ),
            (json!({"type": "boolean"}), json!("true"), "spec: found a string, expected true or false"),
            (json!({"type": "number"}), json!("1.5"), "spec: found a string, expected a number"),
            (
                json!({"type": "array", "maxItems": 1, "items": {"type": "boolean"}}),
                json!([true, 1]),
                "spec: found 2 entries, expected at most 1",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
                json!(["a", "b", "a"]),
                "spec[2]: \"a\" stands here twice; leave one out",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1}),
                json!({"a": "", "b": ""}),
                "spec: found 2 entries, expected at most 1",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}),
                json!({"a": null}),
                "spec: a is missing",
            ),
        ] {
            assert_eq!(check(schema, value.clone()).1, [expected], "{value}");
        }
    }

    #[test]
    fn on_without_quotes_is_told_to_be_what_yaml_1_1_made_of_it() {
        let unknown = |field: &str| {
            let schema = json!({"type": "object", "properties": {field: {"type": "boolean"}}});
            check(schema, json!({"true": []})).2.concat()
        };
        assert!(
            unknown("on").ends_with("takes on without quotes for true; write \"on\""),
            "{}",
            unknown("on")
        );
        assert!(!unknown("of").contains("YAML"), "{}", unknown("of"));
    }

    #[test]
    fn unknown_fields_are_taken_out_with_a_hint() {
        let schema = json!({"type": "object", "properties": {"hostnames": {"type": "boolean"}}});
        let (left, wrong, unknown) = check(schema, json!({"hostnames": true, "hostname": [], "x\n": 1}));
        assert_eq!((left, wrong.len()), (json!({"hostnames": true}), 0));
        assert_eq!(
            unknown,
            [
                "spec.hostname: there is no field \"hostname\"; did you mean hostnames?",
                "spec[\"x\\n\"]: there is no field \"x\\n\"; there are hostnames",
            ]
        );
    }

    #[test]
    fn a_thousand_mistakes_are_told_sixteen_times() {
        let list = json!({"type": "array", "items": {"type": "boolean"}});
        assert_eq!(check(list, json!(vec![1; 1000])).1.len(), MOST);
    }
}
