//! One parameter: whether it must be there, and of which form it is (the words of JSON Schema for one value).

use kube::KubeSchema;
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::message::Violation;
use crate::values::{FieldPath, Problem, Reason};

/// A header field, or a parameter of query or path.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParameterSpec {
    /// Its name, not percent-encoded.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Requests without it are refused.
    #[serde(default)]
    pub required: bool,
    /// What each value must be.
    #[serde(default)]
    pub schema: ValueSchema,
}

/// A value's form, in the words of JSON Schema.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("self.type in ['integer', 'number'] || (!has(self.minimum) && !has(self.maximum))", BOUNDS),
    validation = ("self.type == 'string' || (!has(self.minLength) && !has(self.maxLength) && !has(self.pattern))", LENGTHS)
)]
pub struct ValueSchema {
    /// string, integer, number or boolean.
    #[serde(default, rename = "type")]
    pub kind: ValueType,
    /// The only values that it may have.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub values: Vec<String>,
    /// Least number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<i64>,
    /// Greatest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<i64>,
    /// Least number of characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_536), extend("format" = "int32"))]
    pub min_length: Option<u32>,
    /// Greatest number of characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_536), extend("format" = "int32"))]
    pub max_length: Option<u32>,
    /// Regular expression that matches a part; ^ and $ anchor it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub pattern: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum ValueType {
    #[default]
    String,
    Integer,
    Number,
    Boolean,
}

const BOUNDS: &str = "minimum and maximum go with integer and number";
const LENGTHS: &str = "minLength, maxLength and pattern go with string";
const MAX_PATTERN: usize = 256 << 10;

/// A proven parameter.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: Box<str>,
    required: bool,
    schema: ValueSchema,
    pattern: Option<Regex>,
}

/// The expression follows from the schema.
impl PartialEq for Parameter {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.required == other.required && self.schema == other.schema
    }
}

impl Eq for Parameter {}

impl Parameter {
    pub fn new(spec: ParameterSpec, at: &FieldPath, problems: &mut Vec<Problem>) -> Option<Self> {
        let before = problems.len();
        let at = at.field("schema");
        let mut refuse =
            |path, message: String| problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        let ValueSchema { kind, minimum, maximum, min_length, max_length, ref pattern, .. } = spec.schema;
        let is_number = matches!(kind, ValueType::Integer | ValueType::Number);
        if !is_number && (minimum.is_some() || maximum.is_some()) {
            refuse(at.clone(), BOUNDS.into());
        }
        if kind != ValueType::String && (min_length.is_some() || max_length.is_some() || pattern.is_some()) {
            refuse(at.clone(), LENGTHS.into());
        }
        if minimum.zip(maximum).is_some_and(|(least, most)| least > most) {
            refuse(at.field("minimum"), "no number is at least minimum and at most maximum".into());
        }
        if min_length.zip(max_length).is_some_and(|(least, most)| least > most) {
            refuse(at.field("minLength"), "no text is at least minLength and at most maxLength long".into());
        }
        let compiled = pattern.as_deref().and_then(|text| {
            match RegexBuilder::new(text).size_limit(MAX_PATTERN).nest_limit(50).build() {
                Ok(pattern) => Some(pattern),
                Err(error) => {
                    let error = error.to_string();
                    let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    let message = format!("not a regular expression that is supported: {reason}");
                    refuse(at.field("pattern"), message);
                    None
                }
            }
        });
        (problems.len() == before).then(|| Self {
            name: spec.name.into(),
            required: spec.required,
            schema: spec.schema,
            pattern: compiled,
        })
    }

    /// Checks all values; `None` is one that is no UTF-8.
    pub fn check(
        &self,
        place: &str,
        values: impl Iterator<Item = Option<String>>,
        violations: &mut Vec<Violation>,
    ) {
        let mut found = false;
        for value in values {
            found = true;
            let message = match value {
                Some(value) => self.wrong(&value),
                None => Some("is not UTF-8".into()),
            };
            if let Some(message) = message {
                violations.push(self.violation(place, message));
                return;
            }
        }
        if self.required && !found {
            violations.push(self.violation(place, "is required".into()));
        }
    }

    fn violation(&self, place: &str, message: String) -> Violation {
        // RFC 6901 section 3.
        let name = self.name.replace('~', "~0").replace('/', "~1");
        Violation { pointer: format!("/{place}/{name}"), message }
    }

    /// What is wrong with a value, without saying it.
    fn wrong(&self, value: &str) -> Option<String> {
        let ValueSchema { kind, values, minimum, maximum, min_length, max_length, .. } = &self.schema;
        match kind {
            ValueType::String => {}
            ValueType::Boolean if matches!(value, "true" | "false") => {}
            ValueType::Boolean => return Some("is not true or false".into()),
            ValueType::Integer => match integer(value) {
                Some(number) => {
                    if minimum.is_some_and(|least| number < i128::from(least)) {
                        return Some(format!("is less than {}", minimum.unwrap_or_default()));
                    }
                    if maximum.is_some_and(|most| number > i128::from(most)) {
                        return Some(format!("is greater than {}", maximum.unwrap_or_default()));
                    }
                }
                None => return Some("is not an integer".into()),
            },
            ValueType::Number => match number(value) {
                Some(number) => {
                    if minimum.is_some_and(|least| number < least as f64) {
                        return Some(format!("is less than {}", minimum.unwrap_or_default()));
                    }
                    if maximum.is_some_and(|most| number > most as f64) {
                        return Some(format!("is greater than {}", maximum.unwrap_or_default()));
                    }
                }
                None => return Some("is not a number".into()),
            },
        }
        if min_length.is_some() || max_length.is_some() {
            let length = value.chars().count();
            if min_length.is_some_and(|least| length < least as usize) {
                return Some(format!("has fewer than {} characters", min_length.unwrap_or_default()));
            }
            if max_length.is_some_and(|most| length > most as usize) {
                return Some(format!("has more than {} characters", max_length.unwrap_or_default()));
            }
        }
        if !values.is_empty() && !values.iter().any(|one| one == value) {
            return Some("is not one of the values that are allowed".into());
        }
        let pattern = self.pattern.as_ref().filter(|pattern| !pattern.is_match(value));
        pattern.map(|_| "does not match the pattern".into())
    }
}

/// As JSON writes them: no plus, no leading zeros, no spaces. Larger ones than anybody counts are none.
fn integer(value: &str) -> Option<i128> {
    let digits = value.strip_prefix('-').unwrap_or(value);
    let is_plain = !digits.is_empty()
        && digits.len() <= 36
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'));
    value.parse().ok().filter(|_| is_plain)
}

fn number(value: &str) -> Option<f64> {
    if value.len() > 64 {
        return None;
    }
    serde_json::from_str::<serde_json::Number>(value).ok()?.as_f64().filter(|number| number.is_finite())
}
