//! Text with `${expression}` in it, and what a value becomes where it is put: each place has its own encoding, and what
//! no encoding can make harmless there has no value. `$${` is the text `${`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::{HeaderValue, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::calls::KnownCalls;
use super::environment::{Environment, Subject};
use super::fault::{Fault, Why};
use super::refused::Refused;
use super::{Expression, token};
use crate::values::{InvalidPathRewrite, PathRewrite, PathRewriteSpec};

/// Everything but unreserved characters (RFC 3986 section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What is filled in makes no text longer than this.
const MAX_FILLED: usize = 16 << 10;
/// No registered method has a longer name.
const MAX_METHOD: usize = 32;

/// Parsed and checked: comparable and printable by its text.
#[derive(Clone)]
pub struct Template {
    source: Arc<str>,
    parts: Arc<[Part]>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Box<str>),
    Value(Expression),
}

/// A path whose segments may hold expressions. What is filled in never adds a segment or takes one away.
#[derive(Clone, Debug, PartialEq)]
pub struct PathTemplate(Template);

/// The name of a method, which may hold expressions. What is filled in makes a method that may be sent, or none.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodTemplate {
    template: Template,
    /// Where it holds no expression.
    fixed: Option<Method>,
}

/// What stands around the expressions is no part of a method's name, or makes one that is never sent.
#[derive(Debug, PartialEq, Eq)]
pub struct NoMethod;

impl Template {
    /// # Errors
    /// The first thing that is wrong, with its place in `source`.
    pub fn parse(source: &str, environment: &'static Environment) -> Result<Self, Refused> {
        Self::parse_among(source, environment, None)
    }

    /// The same where calls of an aggregation may be named, too.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place in `source`.
    pub fn parse_among(
        source: &str,
        environment: &'static Environment,
        calls: Option<&KnownCalls>,
    ) -> Result<Self, Refused> {
        let (mut parts, mut text, mut at) = (Vec::new(), String::new(), 0);
        while let Some(found) = source[at..].find('$') {
            let dollar = at + found;
            text.push_str(&source[at..dollar]);
            let rest = &source[dollar..];
            if rest.starts_with("$${") {
                text.push_str("${");
                at = dollar + 3;
            } else if rest.starts_with("${") {
                let start = dollar + 2;
                let inside = |refused: Refused| refused.moved(start).seen_in(source);
                let end = start + token::closing_brace(&source[start..]).map_err(inside)?;
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text).into()));
                }
                let expression =
                    Expression::printable(&source[start..end], environment, calls).map_err(inside)?;
                parts.push(Part::Value(expression));
                at = end + 1;
            } else {
                text.push('$');
                at = dollar + 1;
            }
        }
        text.push_str(&source[at..]);
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        Ok(Self { source: source.into(), parts: parts.into() })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// How many expressions it holds.
    pub fn expressions(&self) -> usize {
        self.parts.iter().filter(|part| matches!(part, Part::Value(_))).count()
    }

    /// Whether one of them reads a field of this name.
    pub fn reads(&self, field: &str) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Value(expression) if expression.reads(field)))
    }

    /// Its expressions.
    pub(super) fn values(&self) -> impl Iterator<Item = &Expression> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Value(expression) => Some(expression),
        })
    }

    /// The text, where it holds no expression.
    pub fn as_text(&self) -> Option<&str> {
        match &*self.parts {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text with `x` in place of each expression, to judge what stands between.
    pub fn outline(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.to_string(),
            Part::Value(_) => "x".to_owned(),
        };
        self.parts.iter().map(part).collect()
    }

    /// Cut at the first question mark of its own text: a path and the query behind it.
    #[must_use]
    pub fn cut_at_query(self) -> (Self, Option<Self>) {
        let question = |part: &Part| match part {
            Part::Text(text) => text.find('?'),
            Part::Value(_) => None,
        };
        let cut = self.parts.iter().enumerate().find_map(|(place, part)| Some((place, question(part)?)));
        let Some((place, at)) = cut else { return (self, None) };
        let Part::Text(text) = &self.parts[place] else { return (self, None) };
        let of = |before: &[Part], text: &str, after: &[Part]| {
            let middle = (!text.is_empty()).then(|| Part::Text(text.into()));
            before.iter().cloned().chain(middle).chain(after.iter().cloned()).collect()
        };
        let path = of(&self.parts[..place], &text[..at], &[]);
        let query = of(&[], &text[at + 1..], &self.parts[place + 1..]);
        let part = |parts| Self { source: Arc::clone(&self.source), parts };
        (part(path), Some(part(query)))
    }

    /// As a whole query: its own text stays as it is, in values everything but unreserved characters is encoded.
    ///
    /// # Errors
    /// A value cannot be had or is too long.
    pub fn whole_query(&self, subject: &Subject<'_>) -> Result<String, Fault> {
        self.fill(subject, |filled, value| {
            filled.extend(utf8_percent_encode(value, ENCODED));
            Ok(())
        })
    }

    /// As the value of a header field.
    ///
    /// # Errors
    /// A value cannot be had, is too long, or has control characters.
    pub fn header(&self, subject: &Subject<'_>) -> Result<HeaderValue, Fault> {
        let filled = self.fill(subject, |filled, value| {
            if value.bytes().any(|byte| byte.is_ascii_control()) {
                return Err(Why::ControlCharacter);
            }
            filled.push_str(value);
            Ok(())
        })?;
        HeaderValue::from_bytes(filled.trim_matches(' ').as_bytes())
            .map_err(|_| Fault { at: 0, why: Why::ControlCharacter })
    }

    /// As the value of a parameter: everything but unreserved characters is encoded, its own text too.
    ///
    /// # Errors
    /// A value cannot be had or is too long.
    pub fn query(&self, subject: &Subject<'_>) -> Result<String, Fault> {
        let mut encoded = String::new();
        for part in self.parts.iter() {
            match part {
                Part::Text(text) => encoded.extend(utf8_percent_encode(text, ENCODED)),
                Part::Value(expression) => {
                    encoded.extend(utf8_percent_encode(&expression.text(subject)?, ENCODED));
                }
            }
            within_bounds(&encoded)?;
        }
        Ok(encoded)
    }

    fn ends_with_slash(&self) -> bool {
        matches!(self.parts.last(), Some(Part::Text(text)) if text.ends_with('/'))
    }

    /// As text in which `put` makes each value harmless.
    ///
    /// # Errors
    /// A value cannot be had, or is too long.
    pub fn text(
        &self,
        subject: &Subject<'_>,
        mut put: impl FnMut(&mut String, &str),
    ) -> Result<String, Fault> {
        self.fill(subject, |filled, value| {
            put(filled, value);
            Ok(())
        })
    }

    fn fill(
        &self,
        subject: &Subject<'_>,
        mut put: impl FnMut(&mut String, &str) -> Result<(), Why>,
    ) -> Result<String, Fault> {
        let mut filled = String::new();
        for part in self.parts.iter() {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Value(expression) => {
                    put(&mut filled, &expression.text(subject)?).map_err(|why| Fault { at: 0, why })?
                }
            }
            within_bounds(&filled)?;
        }
        Ok(filled)
    }
}

impl PathTemplate {
    /// # Errors
    /// The text around the expressions is no path in normal form.
    pub fn new(template: Template) -> Result<Self, InvalidPathRewrite> {
        let outline = template.outline();
        let spec = PathRewriteSpec { replace_full: Some(outline.clone()), ..PathRewriteSpec::default() };
        // Whatever would have to be decoded could make something else of a value beside it.
        match PathRewrite::new(&spec)? {
            PathRewrite::ReplaceFull(normal) if normal.eq_ignore_ascii_case(&outline) => Ok(Self(template)),
            _ => Err(InvalidPathRewrite::NotNormal),
        }
    }

    /// The path: values are percent-encoded.
    ///
    /// # Errors
    /// A value cannot be had, is too long, has control characters, or leaves a segment empty or a dot segment.
    pub fn fill(&self, subject: &Subject<'_>) -> Result<String, Fault> {
        let filled = self.0.fill(subject, |filled, value| {
            if value.bytes().any(|byte| byte.is_ascii_control()) {
                return Err(Why::ControlCharacter);
            }
            // Servers that decode before they split would see them.
            if value.contains(['/', '\\']) && value.split(['/', '\\']).any(is_dots) {
                return Err(Why::DotSegment);
            }
            filled.extend(utf8_percent_encode(value, ENCODED));
            Ok(())
        })?;
        let mut segments = filled.split('/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            let is_empty_at_the_end = segment.is_empty() && segments.peek().is_none();
            if segment.is_empty() && !(is_empty_at_the_end && self.0.ends_with_slash()) {
                return Err(Fault { at: 0, why: Why::EmptySegment });
            }
            if is_dots(segment) {
                return Err(Fault { at: 0, why: Why::DotSegment });
            }
        }
        Ok(filled)
    }

    pub fn reads(&self, field: &str) -> bool {
        self.0.reads(field)
    }

    pub fn source(&self) -> &str {
        &self.0.source
    }
}

impl MethodTemplate {
    /// # Errors
    /// The text around the expressions is no part of a method's name, or makes one that is never sent.
    pub fn new(template: Template) -> Result<Self, NoMethod> {
        let outline = sendable(&template.outline()).ok_or(NoMethod)?;
        let fixed = template.as_text().is_some().then_some(outline);
        Ok(Self { template, fixed })
    }

    /// # Errors
    /// A value cannot be had, or makes no method that is sent.
    pub fn fill(&self, subject: &Subject<'_>) -> Result<Method, Fault> {
        if let Some(fixed) = &self.fixed {
            return Ok(fixed.clone());
        }
        let filled = self.template.text(subject, |filled, value| filled.push_str(value))?;
        sendable(&filled).ok_or(Fault { at: 0, why: Why::NoMethod })
    }

    pub fn source(&self) -> &str {
        self.template.source()
    }
}

/// A method by its name, letter by letter as it is written. CONNECT would make a tunnel of the connection, and TRACE
/// sends back what was sent, credentials of ours among it.
fn sendable(name: &str) -> Option<Method> {
    let method = Method::from_bytes(name.as_bytes()).ok().filter(|_| name.len() <= MAX_METHOD);
    method.filter(|method| !matches!(*method, Method::CONNECT | Method::TRACE))
}

/// `..;x` is taken for `..` by some servers.
fn is_dots(segment: &str) -> bool {
    matches!(segment.split(';').next(), Some("." | ".."))
}

fn within_bounds(text: &str) -> Result<(), Fault> {
    if text.len() > MAX_FILLED { Err(Fault { at: 0, why: Why::TooLong }) } else { Ok(()) }
}

impl Expression {
    /// Parses one whose value can be written as text: text itself, a number, a bool, a time.
    pub(super) fn printable(
        source: &str,
        environment: &'static Environment,
        calls: Option<&KnownCalls>,
    ) -> Result<Self, Refused> {
        use super::Kind;
        let parse = |kind| Self::parse_among(source, environment, calls, kind);
        let refused = match parse(Kind::TEXT) {
            Ok(expression) => return Ok(expression),
            Err(refused) => refused,
        };
        let others = [Kind::INT, Kind::UINT, Kind::DOUBLE, Kind::BOOL, Kind::TIMESTAMP, Kind::DURATION];
        let mut parsed = others.into_iter().filter_map(|kind| parse(kind).ok());
        parsed.next().ok_or(refused)
    }

    /// Its value as `string()` gives it.
    ///
    /// # Errors
    /// It has no value for this subject, or one that is no text.
    pub fn text<'v>(&'v self, subject: &Subject<'v>) -> Result<Cow<'v, str>, Fault> {
        let value = self.evaluate(subject)?;
        super::convert::text(value).map_err(|why| Fault { at: 0, why })
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.parts == other.parts
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.source)
    }
}
