//! Path templates: `/users/{id}/files/{path...}`.

use std::fmt;
use std::sync::Arc;

use super::path::{NotNormal, normal_form};
use crate::message::Captures;

/// The longest name of a capture.
const MAX_NAME: usize = 31;

/// A parsed template: literal segments in normal form, `{name}` for one segment that is not empty, and at the end
/// `{name...}` for the rest: nothing, or a slash and whatever follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    segments: Box<[Segment]>,
    rest: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// Empty only at the end: the template ends with a slash.
    Literal(Box<str>),
    Capture(Arc<str>),
}

/// What is wrong with a template, and where: `at` counts bytes from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path template, character {}: {why}", at + 1)]
pub struct InvalidTemplate {
    pub at: usize,
    why: String,
}

impl Template {
    /// # Errors
    /// Not a template; says where.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let Some(inner) = text.strip_prefix('/') else {
            return Err(InvalidTemplate { at: 0, why: NotNormal::NotAbsolute.to_string() });
        };
        let mut template = Parsed::default();
        let mut at = 1;
        let count = inner.split('/').count();
        for (index, segment) in inner.split('/').enumerate() {
            let place = if index + 1 == count { Place::Last } else { Place::Before };
            template.push(segment, place).map_err(|why| InvalidTemplate { at, why })?;
            at += segment.len() + 1;
        }
        Ok(Self { segments: template.segments.into(), rest: template.rest })
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Each segment's text, in order; none for captures.
    pub(super) fn literals(&self) -> impl Iterator<Item = Option<&str>> {
        self.segments.iter().map(|segment| match segment {
            Segment::Literal(text) => Some(&**text),
            Segment::Capture(_) => None,
        })
    }

    pub fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// Characters outside the braces, without the slash before a rest: `/users/{id}/{rest...}` has 7 ("/users/").
    pub fn literal_characters(&self) -> usize {
        self.literals().map(|literal| 1 + literal.map_or(0, str::len)).sum()
    }

    pub fn capture_count(&self) -> usize {
        self.segments.iter().filter(|segment| matches!(segment, Segment::Capture(_))).count()
            + usize::from(self.rest.is_some())
    }

    /// The parts of a path in normal form that this template captures; `None` when it does not match.
    pub fn captures(&self, path: &str) -> Option<Captures> {
        let mut captures = Vec::with_capacity(self.capture_count());
        let matches = self.walk(path, |name, value| captures.push((Arc::clone(name), value.into())));
        matches.then_some(Captures(captures))
    }

    pub fn matches(&self, path: &str) -> bool {
        self.walk(path, |_, _| {})
    }

    /// Tells each capture as it goes, and whether `path` matches in the end.
    fn walk(&self, path: &str, mut capture: impl FnMut(&Arc<str>, &str)) -> bool {
        let Some(inner) = path.strip_prefix('/') else { return false };
        let mut left = Some(inner);
        for segment in &self.segments {
            let Some(path) = left else { return false };
            let (first, rest) = split_segment(path);
            left = rest;
            match segment {
                Segment::Literal(text) if **text == *first => {}
                Segment::Capture(name) if !first.is_empty() => capture(name, first),
                _ => return false,
            }
        }
        match &self.rest {
            Some(name) => {
                capture(name, left.unwrap_or_default());
                true
            }
            None => left.is_none(),
        }
    }

    /// Whether both match the same paths, whatever their captures are called.
    pub(super) fn same_shape(&self, other: &Self) -> bool {
        self.has_rest() == other.has_rest()
            && self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Segment::Literal(a), Segment::Literal(b)) => a == b,
                (Segment::Capture(_), Segment::Capture(_)) => true,
                _ => false,
            })
    }
}

/// The first segment of `path`, and what follows its slash if there is one.
pub(super) fn split_segment(path: &str) -> (&str, Option<&str>) {
    match path.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Capture(name) => write!(f, "/{{{name}}}")?,
            }
        }
        match &self.rest {
            Some(name) => write!(f, "/{{{name}...}}"),
            None => Ok(()),
        }
    }
}

#[derive(PartialEq)]
enum Place {
    Before,
    Last,
}

#[derive(Default)]
struct Parsed {
    segments: Vec<Segment>,
    rest: Option<Arc<str>>,
}

impl Parsed {
    fn push(&mut self, segment: &str, place: Place) -> Result<(), String> {
        let Some(braced) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            self.segments.push(Segment::Literal(literal(segment, &place)?));
            return Ok(());
        };
        if let Some(name) = braced.strip_suffix("...") {
            if place != Place::Last {
                return Err(format!("{segment:?} takes the rest of the path, so nothing may follow it"));
            }
            self.rest = Some(self.name(name)?);
            return Ok(());
        }
        let name = self.name(braced)?;
        self.segments.push(Segment::Capture(name));
        Ok(())
    }

    fn name(&self, name: &str) -> Result<Arc<str>, String> {
        let begins_well = name.starts_with(|first: char| first.is_ascii_lowercase());
        if !begins_well
            || name.len() > MAX_NAME
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return Err(format!(
                "{name:?} is not a name; it begins with a lower-case letter and has at most {MAX_NAME} letters, digits and '_'"
            ));
        }
        let taken =
            self.segments.iter().any(|known| matches!(known, Segment::Capture(other) if **other == *name));
        if taken {
            return Err(format!("the name {name:?} stands twice; give each capture its own"));
        }
        Ok(name.into())
    }
}

fn literal(segment: &str, place: &Place) -> Result<Box<str>, String> {
    if segment.contains(['{', '}']) {
        return Err(format!("{segment:?} mixes text and braces; a capture is a whole segment like {{id}}"));
    }
    match segment {
        "" if *place == Place::Last => return Ok("".into()),
        "" | "." | ".." => {
            return Err("empty and dot segments never occur in a normal path; leave them out".into());
        }
        _ => {}
    }
    let path = format!("/{segment}");
    match normal_form(&path) {
        // `%2e%2e` is a dot segment in disguise.
        Ok(normal) if normal.len() > 1 && !normal.ends_with('/') => Ok(normal[1..].into()),
        Ok(_) | Err(NotNormal::AboveRoot) => {
            Err("dot segments never occur in a normal path; leave them out".into())
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).expect(text)
    }

    fn captured(text: &str, path: &str) -> Option<String> {
        let captures = template(text).captures(path)?;
        Some(captures.0.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_capture_takes_one_segment_and_a_rest_takes_all() {
        for (text, path, expected) in [
            ("/users/{id}", "/users/7", Some("id=7")),
            ("/users/{id}", "/users/a%20b", Some("id=a%20b")),
            ("/users/{id}", "/users/", None),
            ("/users/{id}", "/users/7/", None),
            ("/users/{id}", "/users/7/x", None),
            ("/users/{id}/", "/users/7/", Some("id=7")),
            ("/{a}/x/{b}", "/1/x/2", Some("a=1 b=2")),
            ("/f/{p...}", "/f", Some("p=")),
            ("/f/{p...}", "/f/", Some("p=")),
            ("/f/{p...}", "/f/a/b/", Some("p=a/b/")),
            ("/f/{p...}", "/fa", None),
            ("/{p...}", "/", Some("p=")),
            ("/caf\u{e9}/{x}", "/caf%C3%A9/1", Some("x=1")),
            ("/", "/", Some("")),
        ] {
            assert_eq!(captured(text, path).as_deref(), expected, "{text} {path}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (text, at) in [
            ("users", 0),
            ("/a/v{n}", 3),
            ("/a/{}", 3),
            ("/a/{9x}", 3),
            ("/{A}", 1),
            ("/{a-b}", 1),
            ("/{a...}/b", 1),
            ("/x/{a}/{a}", 7),
            ("/x/{a}/{a...}", 7),
            ("/a//b", 3),
            ("/a/../b", 3),
            ("/a/%2e%2e", 3),
            ("/a/%2e", 3),
            ("/a/%2f", 3),
            ("/a/{b", 3),
            ("/{aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}", 1),
        ] {
            assert_eq!(Template::parse(text).expect_err(text).at, at, "{text}");
        }
        assert_eq!(
            Template::parse("/a/v{n}").expect_err("mixed").to_string(),
            "path template, character 4: \"v{n}\" mixes text and braces; a capture is a whole segment like {id}"
        );
    }

    #[test]
    fn literal_characters_are_those_outside_the_braces() {
        for (text, characters) in [
            ("/users/{id}", 7),
            ("/users/{id}/home", 12),
            ("/api/{rest...}", 4),
            ("/api/{x}/{rest...}", 5),
            ("/{rest...}", 0),
            ("/{a}/{b}", 2),
            ("/a/", 3),
        ] {
            assert_eq!(template(text).literal_characters(), characters, "{text}");
        }
    }

    #[test]
    fn prints_what_it_reads() {
        for text in ["/", "/a/", "/a/{b}/c", "/a/{b}/{c...}"] {
            assert_eq!(template(text).to_string(), text);
        }
    }
}
