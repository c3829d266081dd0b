//! The form of one value: its type, its bounds, its length, the texts that it may be.

use kube::KubeSchema;
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::decimal::Decimal;
use crate::values::{FieldPath, Problem, Reason};

/// The form of one item.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("self.type in ['integer', 'number'] || (!has(self.minimum) && !has(self.maximum) && !has(self.exclusiveMinimum) && !has(self.exclusiveMaximum) && !has(self.multipleOf))", BOUNDS),
    validation = ("!has(self.multipleOf) || self.multipleOf > 0.0", STEP),
    validation = ("self.type == 'string' || (!has(self.minLength) && !has(self.maxLength) && !has(self.pattern))", LENGTHS)
)]
pub struct ItemSchema {
    /// string, integer, number or boolean.
    #[serde(default, rename = "type")]
    pub kind: ItemType,
    #[serde(flatten)]
    pub words: Words,
}

/// What is said of one value beside its type.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Words {
    /// The only values that it may have.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub values: Vec<String>,
    /// Least number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Number>,
    /// Greatest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<Number>,
    /// The number is greater.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive_minimum: Option<Number>,
    /// The number is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive_maximum: Option<Number>,
    /// The number is so much times a whole number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiple_of: Option<Number>,
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
pub enum ItemType {
    #[default]
    String,
    Integer,
    Number,
    Boolean,
}

pub const BOUNDS: &str =
    "minimum, maximum, exclusiveMinimum, exclusiveMaximum and multipleOf go with integer and number";
pub const STEP: &str = "multipleOf is greater than 0";
pub const LENGTHS: &str = "minLength, maxLength and pattern go with string";
const MAX_PATTERN: usize = 256 << 10;

/// A proven form.
#[derive(Clone, Debug)]
pub struct Scalar {
    schema: ItemSchema,
    numbers: Vec<Constraint>,
    pattern: Option<Regex>,
}

/// The rest follows from the schema.
impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.schema == other.schema
    }
}

/// What a number must be, and how that is said.
#[derive(Clone, Debug)]
struct Constraint {
    word: Word,
    number: Decimal,
    said: Number,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Minimum,
    ExclusiveMinimum,
    Maximum,
    ExclusiveMaximum,
    MultipleOf,
}

impl Scalar {
    pub fn new(schema: ItemSchema, at: &FieldPath, problems: &mut Vec<Problem>) -> Option<Self> {
        let before = problems.len();
        let is_number = matches!(schema.kind, ItemType::Integer | ItemType::Number);
        let Words { min_length, max_length, ref pattern, .. } = schema.words;
        let numbers = numbers(&schema.words, at, problems);
        if !is_number && !numbers.is_empty() {
            problems.push(refusal(at.clone(), BOUNDS));
        }
        let of_text = min_length.is_some() || max_length.is_some() || pattern.is_some();
        if schema.kind != ItemType::String && of_text {
            problems.push(refusal(at.clone(), LENGTHS));
        }
        if min_length.zip(max_length).is_some_and(|(least, most)| least > most) {
            let message = "no text is at least minLength and at most maxLength long";
            problems.push(refusal(at.field("minLength"), message));
        }
        let pattern = pattern.as_deref().and_then(|text| {
            match RegexBuilder::new(text).size_limit(MAX_PATTERN).nest_limit(50).build() {
                Ok(pattern) => Some(pattern),
                Err(error) => {
                    let error = error.to_string();
                    let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    let message = format!("not a regular expression that is supported: {reason}");
                    problems.push(refusal(at.field("pattern"), message));
                    None
                }
            }
        });
        (problems.len() == before).then_some(Self { schema, numbers, pattern })
    }

    /// What is wrong with a value, without saying it.
    pub fn wrong(&self, value: &str) -> Option<String> {
        let ItemSchema { kind, words: Words { values, min_length, max_length, .. } } = &self.schema;
        match kind {
            ItemType::String => {}
            ItemType::Boolean if matches!(value, "true" | "false") => {}
            ItemType::Boolean => return Some("is not true or false".into()),
            ItemType::Integer | ItemType::Number => match self.number(value) {
                Some(number) => {
                    if let Some(broken) = self.numbers.iter().find(|constraint| !constraint.holds(&number)) {
                        return Some(broken.message());
                    }
                }
                None if *kind == ItemType::Integer => return Some("is not an integer".into()),
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

    /// Equal for values that are the same; a right value is asked for.
    pub fn identity(&self, value: &str) -> Identity {
        match self.number(value) {
            Some(number) => Identity::Number(number),
            None => Identity::Text(value.into()),
        }
    }

    fn number(&self, value: &str) -> Option<Decimal> {
        match self.schema.kind {
            ItemType::Integer => integer(value),
            ItemType::Number => Decimal::parse(value),
            ItemType::String | ItemType::Boolean => None,
        }
    }
}

/// Numbers are the same however they are written.
#[derive(PartialEq, Eq, Hash)]
pub enum Identity {
    Number(Decimal),
    Text(Box<str>),
}

impl Constraint {
    fn holds(&self, number: &Decimal) -> bool {
        match self.word {
            Word::Minimum => *number >= self.number,
            Word::ExclusiveMinimum => *number > self.number,
            Word::Maximum => *number <= self.number,
            Word::ExclusiveMaximum => *number < self.number,
            Word::MultipleOf => number.is_multiple_of(&self.number),
        }
    }

    fn message(&self) -> String {
        let said = &self.said;
        match self.word {
            Word::Minimum => format!("is less than {said}"),
            Word::ExclusiveMinimum => format!("is not greater than {said}"),
            Word::Maximum => format!("is greater than {said}"),
            Word::ExclusiveMaximum => format!("is not less than {said}"),
            Word::MultipleOf => format!("is not a multiple of {said}"),
        }
    }
}

impl Word {
    const fn name(self) -> &'static str {
        match self {
            Self::Minimum => "minimum",
            Self::ExclusiveMinimum => "exclusiveMinimum",
            Self::Maximum => "maximum",
            Self::ExclusiveMaximum => "exclusiveMaximum",
            Self::MultipleOf => "multipleOf",
        }
    }
}

fn numbers(words: &Words, at: &FieldPath, problems: &mut Vec<Problem>) -> Vec<Constraint> {
    let mut found = Vec::new();
    for (word, said) in [
        (Word::Minimum, &words.minimum),
        (Word::ExclusiveMinimum, &words.exclusive_minimum),
        (Word::Maximum, &words.maximum),
        (Word::ExclusiveMaximum, &words.exclusive_maximum),
        (Word::MultipleOf, &words.multiple_of),
    ] {
        let Some(said) = said else { continue };
        match Decimal::parse(&said.to_string()) {
            Some(number) if word == Word::MultipleOf && !number.is_positive() => {
                problems.push(refusal(at.field(word.name()), STEP));
            }
            Some(number) => found.push(Constraint { word, number, said: said.clone() }),
            None => problems.push(refusal(at.field(word.name()), format!("found {said}, expected a number"))),
        }
    }
    let is_exclusive = |word| matches!(word, Word::ExclusiveMinimum | Word::ExclusiveMaximum);
    let lower = found.iter().filter(|one| matches!(one.word, Word::Minimum | Word::ExclusiveMinimum));
    for least in lower {
        let mut upper = found.iter().filter(|one| matches!(one.word, Word::Maximum | Word::ExclusiveMaximum));
        let nothing_fits = |most: &&Constraint| {
            let is_point = !is_exclusive(least.word) && !is_exclusive(most.word);
            least.number > most.number || least.number == most.number && !is_point
        };
        if let Some(most) = upper.find(nothing_fits) {
            let message = format!("no number is within {} and {}", least.word.name(), most.word.name());
            problems.push(refusal(at.field(least.word.name()), message));
            break;
        }
    }
    found
}

/// As JSON writes them: no plus, no leading zeros, no spaces. Larger ones than anybody counts are none.
fn integer(value: &str) -> Option<Decimal> {
    let digits = value.strip_prefix('-').unwrap_or(value);
    let is_plain = digits.len() <= 36 && digits.bytes().all(|byte| byte.is_ascii_digit());
    Decimal::parse(value).filter(|_| is_plain)
}

pub fn refusal(path: FieldPath, message: impl Into<String>) -> Problem {
    Problem::error(path, Reason::PolicyInvalid, message)
}
