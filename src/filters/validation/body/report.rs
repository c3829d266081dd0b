//! What is said of a body that is wrong: where, by JSON Pointer, and what is asked for; never what was found there.

use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use jsonschema::{JsonType, ValidationError};

use super::outline::escaped;
use super::schema::Wrong;
use crate::filters::validation::TOLD;
use crate::message::Violation;

/// How much of the schema may be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its limits and the names of members.
    Schema,
    /// It is of a Secret: the names of its keywords.
    Keywords,
}

/// Of a pointer, which holds names that the client chose.
const MAX_POINTER: usize = 256;
/// Of a limit or a type as the schema writes it.
const MAX_WORD: usize = 64;
/// Of a message about a schema.
const MAX_MESSAGE: usize = 256;

/// Adds what is wrong, once, and not more than is told at all.
pub fn tell(error: &ValidationError<'_>, told: Told, violations: &mut Vec<Violation>) {
    let here = error.instance_path().as_str();
    let mut add = |pointer: &str, message: String| {
        let violation = Violation { pointer: bounded_pointer(pointer), message };
        if violations.len() < TOLD && !violations.contains(&violation) {
            violations.push(violation);
        }
    };
    match error.kind() {
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            for name in unexpected.iter().take(TOLD) {
                add(&format!("{here}/{}", escaped(name)), "is not allowed here".into());
            }
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => match meant(here, context) {
            Some(errors) => errors.iter().for_each(|error| tell(error, told, violations)),
            None => add(here, "is of none of the forms that are allowed".into()),
        },
        Kind::Required { property } if told == Told::Schema => {
            let name = property.as_str().unwrap_or_default();
            add(&format!("{here}/{}", escaped(name)), "is required".into());
        }
        kind if told == Told::Keywords => add(here, format!("does not meet {:?}", word(kind.keyword()))),
        kind => add(here, message(kind)),
    }
}

/// Of alternatives, the only one that is wrong nowhere but further inside: the others are of another type.
fn meant<'e>(
    here: &str,
    context: &'e [Vec<ValidationError<'static>>],
) -> Option<&'e [ValidationError<'static>]> {
    let is_inside = |error: &ValidationError<'_>| {
        error.instance_path().as_str().len() > here.len() || matches!(error.kind(), Kind::Required { .. })
    };
    let mut fitting = context.iter().filter(|errors| !errors.is_empty() && errors.iter().all(is_inside));
    let (one, None) = (fitting.next()?, fitting.next()) else { return None };
    Some(one)
}

/// What is said where it takes too long to say more.
pub fn unsaid() -> Violation {
    Violation { pointer: String::new(), message: "is not of the form that is asked for".into() }
}

/// What is wrong with a schema, by its meta-schema or because it cannot be compiled.
pub fn of_schema(error: &ValidationError<'_>) -> Wrong {
    let mut violations = Vec::new();
    let message = match error.kind() {
        Kind::Referencing(error) => {
            let text = error.to_string();
            format!("a reference in it cannot be followed: {}", cut(&text, MAX_MESSAGE))
        }
        _ => {
            tell(error, Told::Schema, &mut violations);
            violations.first().map_or_else(|| "it cannot be compiled".into(), |one| one.message.clone())
        }
    };
    let pointer = violations.into_iter().next().map(|one| one.pointer);
    Wrong { pointer: pointer.unwrap_or_else(|| bounded_pointer(error.instance_path().as_str())), message }
}

fn message(kind: &Kind) -> String {
    match kind {
        Kind::AdditionalItems { limit } => format!("has more than {limit} items"),
        Kind::MaxItems { limit } => format!("has more than {limit} items"),
        Kind::MinItems { limit } => format!("has fewer than {limit} items"),
        Kind::MaxLength { limit } => format!("has more than {limit} characters"),
        Kind::MinLength { limit } => format!("has fewer than {limit} characters"),
        Kind::MaxProperties { limit } => format!("has more than {limit} members"),
        Kind::MinProperties { limit } => format!("has fewer than {limit} members"),
        Kind::Maximum { limit } => format!("is greater than {}", word(&limit.to_string())),
        Kind::Minimum { limit } => format!("is less than {}", word(&limit.to_string())),
        Kind::ExclusiveMaximum { limit } => format!("is not less than {}", word(&limit.to_string())),
        Kind::ExclusiveMinimum { limit } => format!("is not greater than {}", word(&limit.to_string())),
        Kind::MultipleOf { multiple_of } => format!("is not a multiple of {multiple_of}"),
        Kind::Constant { .. } => "is not the value that is allowed".into(),
        Kind::Enum { .. } => "is not one of the values that are allowed".into(),
        Kind::Pattern { .. } => "does not match the pattern".into(),
        Kind::FalseSchema => "is not allowed here".into(),
        Kind::UnevaluatedItems { .. } => "has items that are not allowed".into(),
        Kind::UniqueItems => "has an item twice".into(),
        Kind::Contains => "has too few or too many items of the form that is asked for".into(),
        Kind::Not { .. } => "is of a form that is not allowed".into(),
        Kind::OneOfMultipleValid { .. } => "is of several forms that exclude each other".into(),
        Kind::PropertyNames { error } => format!("has a member whose name {}", message(error.kind())),
        Kind::Required { .. } => "lacks a member that is required".into(),
        Kind::Type { kind: TypeKind::Single(one) } => format!("is not {}", with_article(*one)),
        Kind::Type { kind: TypeKind::Multiple(several) } => {
            let several: Vec<_> = several.iter().map(|one| one.to_string()).collect();
            format!("is none of {}", several.join(", "))
        }
        _ => "is not of the form that is asked for".into(),
    }
}

fn with_article(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Array => "an array",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "an integer",
        JsonType::Null => "null",
        JsonType::Number => "a number",
        JsonType::Object => "an object",
        JsonType::String => "a string",
    }
}

fn word(text: &str) -> &str {
    cut(text, MAX_WORD)
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// As it is, or of the nearest value around whose pointer is short enough.
pub fn bounded_pointer(pointer: &str) -> String {
    let mut short = pointer;
    while short.len() > MAX_POINTER {
        short = short.rsplit_once('/').map_or("", |(around, _)| around);
    }
    short.to_owned()
}
