//! What a schema is made of, before it is compiled: where the schemas in it are, which apply to the same value as others,
//! and where references lead.
//!
//! Every place that may be a schema counts as one, and a reference leads to all that it may mean: what is bounded here
//! is at least what happens.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::schema::Wrong;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Its parts come with the compiler; they apply once to each value.
const DIALECT_PARTS: &str = "https://json-schema.org/draft/2020-12/";
/// So many schemas apply to one value.
const MAX_AT_ONCE: u64 = 4096;
/// One inside the other.
const MAX_CHAIN: usize = 48;
/// Schemas with an `$id`: what a reference means may depend on the way through them.
const MAX_RESOURCES: usize = 16;
const MAX_WAYS: usize = 256;
const MAX_POINTERS: usize = 8 << 20;
/// Members that hold schemas under names of the user's.
const MAPS: &[&str] =
    &["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Members that hold data.
const DATA: &[&str] =
    &["const", "enum", "default", "examples", "example", "required", "dependentRequired", "$vocabulary"];

/// A schema in the document.
pub struct Place<'s> {
    pub schema: &'s Map<String, Value>,
    /// The place around it, and the way from there.
    around: Option<usize>,
    step: String,
    /// The nearest place around it that has an `$id`, or the outermost one.
    root: usize,
    /// The one around that.
    outer: usize,
    /// Schemas that apply to the same value.
    beside: Vec<usize>,
}

pub struct Outline<'s> {
    pub places: Vec<Place<'s>>,
    /// By address.
    known: HashMap<*const Value, usize>,
    /// Bytes of the pointers to all keywords, which the compiler keeps.
    pointers: usize,
}

/// Where the walk is.
#[derive(Clone)]
struct At {
    around: Option<usize>,
    step: String,
    /// Bytes of the pointer to `around`.
    above: usize,
    root: usize,
}

/// What applies to one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOnce {
    pub schemas: u64,
    pub chain: usize,
}

#[derive(Clone, Copy)]
enum Holds {
    Schema,
    Schemas,
}

impl<'s> Outline<'s> {
    /// # Errors
    /// Another dialect, or a reference that leads out of the document or to what is no schema.
    pub fn new(source: &'s Value) -> Result<Self, Wrong> {
        let mut outline = Self { places: Vec::new(), known: HashMap::new(), pointers: 0 };
        let at = At { around: None, step: String::new(), above: 0, root: 0 };
        outline.walk(source, at, Holds::Schema)?;
        let refuse = |message: String| Err(Wrong { pointer: String::new(), message });
        if outline.resources().count() > MAX_RESOURCES {
            return refuse(format!("found more than {MAX_RESOURCES} schemas with an $id; use $defs without"));
        }
        outline.join()?;
        Ok(outline)
    }

    fn walk(&mut self, value: &'s Value, at: At, holds: Holds) -> Result<(), Wrong> {
        let Value::Object(members) = value else { return Ok(()) };
        let mut inside = at.clone();
        if matches!(holds, Holds::Schema) {
            let here = self.places.len();
            if members.get("$id").is_some_and(Value::is_string) {
                inside.root = here;
            }
            inside =
                At { around: Some(here), step: String::new(), above: at.above + at.step.len(), ..inside };
            self.known.insert(value, here);
            let At { around, step, root: outer, .. } = at;
            self.places.push(Place {
                schema: members,
                around,
                step,
                root: inside.root,
                outer,
                beside: Vec::new(),
            });
            dialect(members).or_else(|(name, message)| self.refuse(here, &format!("/{name}"), message))?;
        }
        for (name, member) in members {
            self.pointers += inside.above + inside.step.len() + name.len() + 1;
            if self.pointers > MAX_POINTERS {
                let message = "its names are too long for how deep it is nested; write shorter ones".into();
                return Err(Wrong { pointer: String::new(), message });
            }
            let step = format!("{}/{}", inside.step, escaped(name));
            let is_map = matches!(holds, Holds::Schema) && MAPS.contains(&name.as_str());
            let is_data = DATA.contains(&name.as_str()) || name.starts_with("x-");
            match (holds, member) {
                (Holds::Schemas, _) => self.walk(member, At { step, ..inside.clone() }, Holds::Schema)?,
                (Holds::Schema, _) if is_map => {
                    self.walk(member, At { step, ..inside.clone() }, Holds::Schemas)?;
                }
                (Holds::Schema, _) if is_data => {}
                (Holds::Schema, Value::Array(items)) => {
                    for (index, item) in items.iter().enumerate() {
                        let step = format!("{step}/{index}");
                        self.walk(item, At { step, ..inside.clone() }, Holds::Schema)?;
                    }
                }
                (Holds::Schema, _) => self.walk(member, At { step, ..inside.clone() }, Holds::Schema)?,
            }
        }
        Ok(())
    }

    /// Where a place is, by JSON Pointer.
    pub fn pointer(&self, place: usize) -> String {
        let mut steps: Vec<&str> = std::iter::successors(Some(&self.places[place]), |place| {
            place.around.map(|around| &self.places[around])
        })
        .map(|place| place.step.as_str())
        .collect();
        steps.reverse();
        steps.concat()
    }

    fn refuse<T>(&self, place: usize, step: &str, message: impl Into<String>) -> Result<T, Wrong> {
        Err(Wrong { pointer: format!("{}{step}", self.pointer(place)), message: message.into() })
    }

    fn resources(&self) -> impl Iterator<Item = usize> {
        self.places.iter().enumerate().filter(|(here, place)| place.root == *here).map(|(here, _)| here)
    }

    /// Finds for each place which others apply to the same value.
    fn join(&mut self) -> Result<(), Wrong> {
        for here in 0..self.places.len() {
            let mut beside = Vec::new();
            let place = &self.places[here];
            for (name, member) in place.schema {
                match (name.as_str(), member) {
                    ("allOf" | "anyOf" | "oneOf", Value::Array(items)) => beside.extend(items.iter()),
                    ("not" | "if" | "then" | "else", schema) => beside.push(schema),
                    ("dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                        beside.extend(schemas.values());
                    }
                    _ => {}
                }
            }
            let mut beside: Vec<usize> = beside
                .into_iter()
                .filter_map(|schema| self.known.get(&std::ptr::from_ref(schema)).copied())
                .collect();
            for name in ["$ref", "$dynamicRef"] {
                let Some(reference) = place.schema.get(name).and_then(Value::as_str) else { continue };
                let targets = self.targets(reference, place, name == "$dynamicRef");
                match targets {
                    Ok(targets) => beside.extend(targets),
                    Err(message) => return self.refuse(here, &format!("/{name}"), message),
                }
            }
            beside.sort_unstable();
            self.places[here].beside = beside;
        }
        Ok(())
    }

    /// Where a reference may lead.
    fn targets(&self, reference: &str, from: &Place<'_>, dynamic: bool) -> Result<Vec<usize>, String> {
        let (document, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        if document.starts_with(DIALECT_PARTS) {
            return Ok(Vec::new());
        }
        let bases: Vec<usize> = if document.is_empty() {
            vec![from.root]
        } else {
            self.resources().filter(|root| self.is_called(*root, document)).collect()
        };
        if bases.is_empty() {
            return Err(
                "it leads to another document, and none is fetched; put what it names under $defs".into()
            );
        }
        let fragment = percent_encoding::percent_decode_str(fragment).decode_utf8_lossy();
        let mut found = Vec::new();
        for base in bases {
            let root = &self.places[base];
            if fragment.is_empty() {
                found.push(Some(base));
            } else if fragment.starts_with('/') {
                let mut tokens =
                    fragment.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~"));
                let Some(first) = tokens.next().and_then(|token| root.schema.get(&token)) else { continue };
                let target = tokens.try_fold(first, |value, token| match value {
                    Value::Object(members) => members.get(&token),
                    Value::Array(items) => items.get(token.parse::<usize>().ok()?),
                    _ => None,
                });
                match target {
                    Some(Value::Bool(_)) => found.push(None),
                    Some(target) => match self.known.get(&std::ptr::from_ref(target)) {
                        Some(place) => found.push(Some(*place)),
                        None => return Err("it leads to what is no schema".into()),
                    },
                    None => {}
                }
            } else {
                let named = |place: &Place<'_>, name: &str| {
                    place.schema.get(name).and_then(Value::as_str) == Some(&*fragment)
                };
                let fitting = self.places.iter().enumerate().filter(|(_, place)| {
                    let is_here = place.root == base;
                    named(place, "$dynamicAnchor") && (dynamic || is_here)
                        || named(place, "$anchor") && is_here
                });
                found.extend(fitting.map(|(place, _)| Some(place)));
            }
        }
        if found.is_empty() {
            return Err("it leads nowhere".into());
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Whether a URI may mean this resource: their last parts are the same.
    fn is_called(&self, root: usize, uri: &str) -> bool {
        let last = |uri: &str| {
            let uri = uri.split('#').next().unwrap_or_default();
            let part = uri.rsplit('/').next().unwrap_or_default();
            percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
        };
        let id = self.places[root].schema.get("$id").and_then(Value::as_str);
        id.is_some_and(|id| last(id) == last(uri))
    }

    /// The most that applies to one value.
    ///
    /// # Errors
    /// Too much, or a schema that applies to the same value again.
    pub fn at_once(&self) -> Result<AtOnce, Wrong> {
        let mut measured = vec![Measure::Unknown; self.places.len()];
        let mut most = AtOnce { schemas: 1, chain: 1 };
        for place in 0..self.places.len() {
            let one = self.measure(place, 1, &mut measured)?;
            most = AtOnce { schemas: most.schemas.max(one.schemas), chain: most.chain.max(one.chain) };
        }
        self.ways()?;
        Ok(most)
    }

    fn measure(&self, here: usize, depth: usize, measured: &mut [Measure]) -> Result<AtOnce, Wrong> {
        let place = &self.places[here];
        let refuse = |message: String| self.refuse(here, "", message);
        match measured[here] {
            Measure::Known(known) => return Ok(known),
            Measure::Running => return refuse("it applies to the same value again without end".into()),
            Measure::Unknown => {}
        }
        let too_long = format!("more than {MAX_CHAIN} schemas apply to one value, one inside the other");
        if depth > MAX_CHAIN {
            return refuse(too_long);
        }
        measured[here] = Measure::Running;
        let mut all = AtOnce { schemas: 1, chain: 1 };
        for other in &place.beside {
            let one = self.measure(*other, depth + 1, measured)?;
            all.schemas = all.schemas.saturating_add(one.schemas);
            all.chain = all.chain.max(one.chain + 1);
        }
        // What is left is found by asking all of them once more.
        for name in ["unevaluatedProperties", "unevaluatedItems"] {
            if place.schema.contains_key(name) {
                all.schemas = all.schemas.saturating_mul(2);
            }
        }
        if all.schemas > MAX_AT_ONCE {
            return refuse(format!(
                "more than {MAX_AT_ONCE} schemas apply to one value; write fewer alternatives"
            ));
        }
        if all.chain > MAX_CHAIN {
            return refuse(too_long);
        }
        measured[here] = Measure::Known(all);
        Ok(all)
    }

    /// Schemas with an `$id` are compiled once for each way that leads to them.
    fn ways(&self) -> Result<(), Wrong> {
        let mut next: HashMap<usize, Vec<usize>> = HashMap::new();
        for place in &self.places {
            let led = place.beside.iter().map(|other| (place.root, self.places[*other].root));
            for (from, to) in led.chain([(place.outer, place.root)]).filter(|(from, to)| from != to) {
                next.entry(from).or_default().push(to);
            }
        }
        next.values_mut().for_each(|roots| {
            roots.sort_unstable();
            roots.dedup();
        });
        let mut ways = vec![Vec::from([0])];
        let mut count = 0;
        while let Some(way) = ways.pop() {
            count += 1;
            if count > MAX_WAYS {
                let message = "too many ways lead through its schemas with an $id; use $defs without";
                return Err(Wrong { pointer: String::new(), message: message.into() });
            }
            let last = *way.last().expect("a way has a place");
            for root in next.get(&last).into_iter().flatten().filter(|root| !way.contains(root)) {
                ways.push([way.as_slice(), &[*root]].concat());
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Measure {
    Unknown,
    Running,
    Known(AtOnce),
}

impl<'s> Place<'s> {
    /// Regular expressions, and where in the place they stand.
    pub fn patterns(&self) -> impl Iterator<Item = (String, &'s str)> + use<'s> {
        let own = self.schema.get("pattern").and_then(Value::as_str);
        let own = own.map(|pattern| ("/pattern".to_owned(), pattern));
        let names = self.name_patterns().map(|name| (format!("/patternProperties/{}", escaped(name)), name));
        own.into_iter().chain(names)
    }

    /// Those for the names of members.
    pub fn name_patterns(&self) -> impl Iterator<Item = &'s str> + use<'s> {
        let members = self.schema.get("patternProperties").and_then(Value::as_object);
        members.into_iter().flat_map(Map::keys).map(String::as_str)
    }
}

/// Which member is wrong, and how.
fn dialect(schema: &Map<String, Value>) -> Result<(), (&'static str, String)> {
    if let Some(told) = schema.get("$schema").and_then(Value::as_str)
        && told.trim_end_matches('#') != DIALECT
    {
        return Err(("$schema", format!("expected {DIALECT:?}; no other dialect is supported")));
    }
    if schema.get("$id").and_then(Value::as_str).is_some_and(|id| id.contains("://json-schema.org/")) {
        return Err(("$id", "it is a name of JSON Schema itself; take another".into()));
    }
    Ok(())
}

/// As a part of a JSON Pointer (RFC 6901 section 3).
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
