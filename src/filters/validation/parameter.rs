//! One parameter: whether it must be there, and of which form it is (the words of JSON Schema for one value, or for a
//! list of values).

use std::borrow::Cow;
use std::collections::HashSet;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{BOUNDS, ItemSchema, ItemType, LENGTHS, STEP, Scalar, Words, refusal};
use crate::message::Violation;
use crate::values::{FieldPath, Problem};

/// A header field, or a parameter of the path.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParameterSpec {
    /// Its name, not percent-encoded.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Requests without it are refused.
    #[serde(default)]
    pub required: bool,
    /// What each value must be; a list's items stand between commas.
    #[serde(default)]
    pub schema: ValueSchema,
}

/// A parameter of the query.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("!has(self.explode) || self.schema.type == 'array'", EXPLODE))]
pub struct QueryParameterSpec {
    /// Its name, not percent-encoded.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Requests without it are refused.
    #[serde(default)]
    pub required: bool,
    /// false: a list's items stand between commas; else each occurrence is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explode: Option<bool>,
    /// What each value must be.
    #[serde(default)]
    pub schema: ValueSchema,
}

/// A value's form, in the words of JSON Schema.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("self.type in ['integer', 'number'] || (!has(self.minimum) && !has(self.maximum) && !has(self.exclusiveMinimum) && !has(self.exclusiveMaximum) && !has(self.multipleOf))", BOUNDS),
    validation = ("!has(self.multipleOf) || self.multipleOf > 0.0", STEP),
    validation = ("self.type == 'string' || (!has(self.minLength) && !has(self.maxLength) && !has(self.pattern))", LENGTHS),
    validation = ("self.type == 'array' || (!has(self.items) && !has(self.minItems) && !has(self.maxItems) && !has(self.uniqueItems))", ITEMS),
    validation = ("self.type != 'array' || !has(self.enum)", CHOICE)
)]
pub struct ValueSchema {
    /// string, integer, number, boolean or array.
    #[serde(default, rename = "type")]
    pub kind: ValueType,
    #[serde(flatten)]
    pub words: Words,
    /// What each item of a list must be; text where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<ItemSchema>,
    /// Least number of items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_536), extend("format" = "int32"))]
    pub min_items: Option<u32>,
    /// Greatest number of items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_536), extend("format" = "int32"))]
    pub max_items: Option<u32>,
    /// No item stands twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_items: Option<bool>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum ValueType {
    #[default]
    String,
    Integer,
    Number,
    Boolean,
    Array,
}

const EXPLODE: &str = "explode goes with arrays";
const ITEMS: &str = "items, minItems, maxItems and uniqueItems go with array";
const CHOICE: &str = "the enum of an array is that of its items";

impl From<ParameterSpec> for QueryParameterSpec {
    fn from(spec: ParameterSpec) -> Self {
        Self { name: spec.name, required: spec.required, explode: None, schema: spec.schema }
    }
}

impl ValueType {
    /// None: a list.
    const fn of_one(self) -> Option<ItemType> {
        match self {
            Self::String => Some(ItemType::String),
            Self::Integer => Some(ItemType::Integer),
            Self::Number => Some(ItemType::Number),
            Self::Boolean => Some(ItemType::Boolean),
            Self::Array => None,
        }
    }
}

/// Where a parameter stands in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Path,
    Query,
    Headers,
}

/// A proven parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub name: Box<str>,
    place: Place,
    required: bool,
    form: Form,
}

#[derive(Clone, Debug, PartialEq)]
enum Form {
    One(Scalar),
    List(List),
}

#[derive(Clone, Debug, PartialEq)]
struct List {
    items: Scalar,
    least: usize,
    most: usize,
    split: Split,
    repetition: Repetition,
}

/// What parts one item from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    /// OpenAPI's `style: form, explode: true`: the name again.
    Occurrences,
    /// Its `style: simple`, and `form` with `explode: false`.
    Commas,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repetition {
    Allowed,
    Refused,
}

impl Parameter {
    pub fn new(
        spec: QueryParameterSpec,
        place: Place,
        at: &FieldPath,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let before = problems.len();
        let QueryParameterSpec { name, required, explode, schema } = spec;
        if explode.is_some() && schema.kind != ValueType::Array {
            problems.push(refusal(at.field("explode"), EXPLODE));
        }
        let at = at.field("schema");
        let is_list = schema.items.is_some()
            || schema.min_items.or(schema.max_items).is_some()
            || schema.unique_items.is_some();
        if is_list && schema.kind != ValueType::Array {
            problems.push(refusal(at.clone(), ITEMS));
        }
        let form = match schema.kind.of_one() {
            Some(kind) => Scalar::new(ItemSchema { kind, words: schema.words }, &at, problems).map(Form::One),
            None => {
                let split = match place {
                    Place::Query if explode.unwrap_or(true) => Split::Occurrences,
                    _ => Split::Commas,
                };
                List::new(schema, split, &at, problems).map(Form::List)
            }
        };
        let form = form.filter(|_| problems.len() == before)?;
        Some(Self { name: name.into(), place, required, form })
    }

    /// Checks all values, as they stand in the request; `None` is one that is no UTF-8.
    pub fn check<'a>(&self, values: impl Iterator<Item = Option<&'a str>>, violations: &mut Vec<Violation>) {
        let mut values = values.peekable();
        let wrong = match &self.form {
            _ if values.peek().is_none() => self.required.then(|| Wrong::whole("is required")),
            Form::One(scalar) => values.find_map(|value| {
                let value = value.and_then(|value| self.place.read(value));
                value.map_or(Some(NOT_UTF8.into()), |value| scalar.wrong(&value)).map(Wrong::whole)
            }),
            Form::List(list) => list.wrong(self.place, values),
        };
        if let Some(wrong) = wrong {
            violations.push(self.violation(wrong));
        }
    }

    fn violation(&self, wrong: Wrong) -> Violation {
        // RFC 6901 section 3.
        let name = self.name.replace('~', "~0").replace('/', "~1");
        let place = match self.place {
            Place::Path => "path",
            Place::Query => "query",
            Place::Headers => "headers",
        };
        let item = wrong.item.map(|item| format!("/{item}")).unwrap_or_default();
        Violation { pointer: format!("/{place}/{name}{item}"), message: wrong.message }
    }
}

const NOT_UTF8: &str = "is not UTF-8";

/// What is wrong, and with which item of a list.
struct Wrong {
    item: Option<usize>,
    message: String,
}

impl Wrong {
    fn whole(message: impl Into<String>) -> Self {
        Self { item: None, message: message.into() }
    }
}

impl List {
    fn new(schema: ValueSchema, split: Split, at: &FieldPath, problems: &mut Vec<Problem>) -> Option<Self> {
        let ValueSchema { words, items, min_items, max_items, unique_items, .. } = schema;
        let has_enum = !words.values.is_empty();
        // Words of one value say nothing about a list: no type has all of them.
        Scalar::new(ItemSchema { kind: ItemType::Boolean, words }, at, problems);
        if has_enum {
            problems.push(refusal(at.field("enum"), CHOICE));
        }
        if min_items.zip(max_items).is_some_and(|(least, most)| least > most) {
            let message = "no list has at least minItems and at most maxItems items";
            problems.push(refusal(at.field("minItems"), message));
        }
        let count = |number: Option<u32>| number.and_then(|number| usize::try_from(number).ok());
        Some(Self {
            items: Scalar::new(items.unwrap_or_default(), &at.field("items"), problems)?,
            least: count(min_items).unwrap_or(0),
            most: count(max_items).unwrap_or(usize::MAX),
            split,
            repetition: match unique_items {
                Some(true) => Repetition::Refused,
                _ => Repetition::Allowed,
            },
        })
    }

    /// The first thing that is wrong; what a list may hold is bounded by the size of heads.
    fn wrong<'a>(&self, place: Place, values: impl Iterator<Item = Option<&'a str>>) -> Option<Wrong> {
        let mut seen = HashSet::new();
        let mut count = 0;
        for value in values {
            let Some(mut rest) = value else { return Some(Wrong::whole(NOT_UTF8)) };
            loop {
                let parts = rest.split_once(',').filter(|_| self.split == Split::Commas);
                let (item, behind) = parts.map_or((rest, None), |(item, behind)| (item, Some(behind)));
                let of_item = |message: String| Some(Wrong { item: Some(count), message });
                if count == self.most {
                    return Some(Wrong::whole(format!("has more than {} items", self.most)));
                }
                let Some(item) = place.read(item) else { return of_item(NOT_UTF8.into()) };
                // Some readers decode first and split then, and find another list.
                if self.split == Split::Commas && item.contains(',') {
                    return of_item("holds an encoded comma".into());
                }
                let item = if place == Place::Headers { item.trim_matches([' ', '\t']) } else { &item };
                if let Some(message) = self.items.wrong(item) {
                    return of_item(message);
                }
                if self.repetition == Repetition::Refused && !seen.insert(self.items.identity(item)) {
                    return of_item("stands there twice".into());
                }
                count += 1;
                match behind {
                    Some(behind) => rest = behind,
                    None => break,
                }
            }
        }
        (count < self.least).then(|| Wrong::whole(format!("has fewer than {} items", self.least)))
    }
}

impl Place {
    /// `None`: no UTF-8. A `+` is a space in forms, and itself in paths.
    fn read(self, text: &str) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::Headers => return Some(Cow::Borrowed(text)),
            Self::Query if text.contains('+') => Cow::Owned(text.replace('+', " ")),
            Self::Path | Self::Query => Cow::Borrowed(text),
        };
        match text {
            Cow::Borrowed(text) => percent_encoding::percent_decode_str(text).decode_utf8().ok(),
            Cow::Owned(text) => {
                let decoded = percent_encoding::percent_decode_str(&text).decode_utf8().ok()?;
                Some(Cow::Owned(decoded.into_owned()))
            }
        }
    }
}

/// A name of the query, as it is compared.
pub fn name_in_query(name: &str) -> Option<Cow<'_, str>> {
    Place::Query.read(name)
}
