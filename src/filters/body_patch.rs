//! `bodyPatch`: changes to a JSON document by JSON Pointer.
//!
//! Invariants: what no pointer leads to stays as its text has it, all digits of its numbers included; nothing is looked
//! into that no pointer leads through; what a pointer leads through has each of its names once, for of two members of
//! one name some readers take the first and some the last.

use std::borrow::Cow;
use std::cell::Cell;

use kube::KubeSchema;
use schemars::{Schema as CrdSchema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::values::{FieldPath, Problem, Reason};

/// Changes to a JSON body by JSON Pointer, in this order: pick, remove, rename, set.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("has(self.pick) || has(self.remove) || has(self.rename) || has(self.set)", NOTHING))]
pub struct BodyPatchSpec {
    /// What stays, with the objects around it; all else goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 256), regex(pattern = POINTER)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub pick: Vec<String>,
    /// What goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 256), regex(pattern = POINTER)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub remove: Vec<String>,
    /// What gets another name or place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rename: Vec<RenameSpec>,
    /// What gets a value, whether it is there or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub set: Vec<SetSpec>,
}

/// A new place for something.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenameSpec {
    /// Where it is.
    #[schemars(length(max = 256), regex(pattern = POINTER))]
    pub from: String,
    /// Where it goes; what is there goes.
    #[schemars(length(max = 256), regex(pattern = POINTER))]
    pub to: String,
}

/// A value for a place.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetSpec {
    /// Where; objects that lack on the way are made, - is behind the end of a list.
    #[schemars(length(max = 256), regex(pattern = POINTER))]
    pub pointer: String,
    /// Any JSON but null.
    #[schemars(schema_with = "anything")]
    pub value: serde_json::Value,
}

/// RFC 6901, but for the pointer to the whole document.
const POINTER: &str = "^(/([^~/]|~[01])*)+$";
const NOTHING: &str = "give pick, remove, rename or set";
/// Names of a pointer.
pub(super) const MAX_DEPTH: usize = 32;
/// Of what a pointer leads through: each pointer may look at all of them.
pub(super) const MAX_MEMBERS: usize = 1 << 14;
/// Members that all pointers together look at, in all places of one document.
const MAX_LOOKS: usize = 1 << 22;
/// Of the text of a value.
const MAX_VALUE: usize = 4 << 10;

fn anything(_: &mut SchemaGenerator) -> CrdSchema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyPatch {
    pick: Box<[Pointer]>,
    remove: Box<[Pointer]>,
    rename: Box<[(Pointer, Pointer)]>,
    /// With values as JSON text.
    set: Box<[(Pointer, Box<str>)]>,
}

/// Why a document is not changed. Nothing of the document is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpatched {
    #[error("it is not one JSON document in UTF-8")]
    NotJson,
    #[error("a member stands twice in an object that a pointer leads through")]
    SeveralMembers,
    #[error("an object or list that a pointer leads through has more than {MAX_MEMBERS} members")]
    TooManyMembers,
    #[error("its members times the pointers of the patch are more than {MAX_LOOKS}")]
    TooMuchWork,
    #[error("a value cannot be set inside of what is no object, or behind the end of a list")]
    NoPlace,
}

impl BodyPatch {
    /// Proves what is written at `bodyPatch`; problems carry paths from there.
    pub fn new(spec: &BodyPatchSpec, problems: &mut Vec<Problem>) -> Self {
        let at = FieldPath::new("bodyPatch");
        let mut refuse =
            |path, message: String| problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        if *spec == BodyPatchSpec::default() {
            refuse(at.clone(), NOTHING.into());
        }
        let mut pointer = |text: &str, path: FieldPath| {
            Pointer::new(text).map_err(|message| refuse(path, message)).unwrap_or_default()
        };
        let mut list = |field: &str, texts: &[String]| -> Box<[Pointer]> {
            let texts = texts.iter().enumerate();
            texts.map(|(index, text)| pointer(text, at.field(field).index(index))).collect()
        };
        let (pick, remove) = (list("pick", &spec.pick), list("remove", &spec.remove));
        let rename = spec.rename.iter().enumerate().map(|(index, rename)| {
            let at = at.field("rename").index(index);
            (pointer(&rename.from, at.field("from")), pointer(&rename.to, at.field("to")))
        });
        let rename: Box<[(Pointer, Pointer)]> = rename.collect();
        let set = spec.set.iter().enumerate().map(|(index, set)| {
            let at = at.field("set").index(index);
            (pointer(&set.pointer, at.field("pointer")), Box::from(set.value.to_string()))
        });
        let set: Box<[(Pointer, Box<str>)]> = set.collect();
        for (index, (from, to)) in rename.iter().enumerate() {
            if to.0.starts_with(&from.0) {
                let message = "nothing can go into itself; name another place";
                refuse(at.field("rename").index(index), message.into());
            }
        }
        for (index, (_, value)) in set.iter().enumerate() {
            if value.len() > MAX_VALUE {
                let message = format!("found {} bytes of JSON, expected at most {MAX_VALUE}", value.len());
                refuse(at.field("set").index(index).field("value"), message);
            }
        }
        Self { pick, remove, rename, set }
    }

    /// How many pointers look at what they lead through.
    pub fn pointers(&self) -> usize {
        self.pick.len() + self.remove.len() + 2 * self.rename.len() + self.set.len()
    }

    /// The changed document.
    ///
    /// # Errors
    /// It is none, or has no place for a change.
    pub fn apply(&self, document: &str) -> Result<Vec<u8>, Unpatched> {
        let work = &Work::default();
        let mut tree = Tree::Text(Cow::Borrowed(document));
        // A scalar is never opened, and must be one.
        if !tree.open()? {
            serde_json::from_str::<&RawValue>(document).map_err(|_| Unpatched::NotJson)?;
        }
        if !self.pick.is_empty() {
            let wanted: Vec<&[Box<str>]> = self.pick.iter().map(|pointer| &*pointer.0).collect();
            if !tree.pick(&wanted, work)? {
                tree.clear();
            }
        }
        for pointer in &self.remove {
            tree.take(&pointer.0, work)?;
        }
        for (from, to) in &self.rename {
            tree.rename(&from.0, &to.0, work)?;
        }
        for (pointer, value) in &self.set {
            tree.put(&pointer.0, Tree::Text(Cow::Borrowed(value)), work)?;
        }
        let mut out = Vec::with_capacity(document.len() + 64);
        tree.write(&mut out);
        Ok(out)
    }
}

/// The names on the way to a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pointer(Box<[Box<str>]>);

impl Pointer {
    fn new(text: &str) -> Result<Self, String> {
        let Some(names) = text.strip_prefix('/') else {
            return Err(format!("found {text:?}, expected a JSON Pointer like /items/0/id"));
        };
        let names: Vec<&str> = names.split('/').collect();
        if names.len() > MAX_DEPTH {
            return Err(format!("found {} names, expected at most {MAX_DEPTH}", names.len()));
        }
        let name = |name: &&str| {
            let rest = name.replace("~0", "").replace("~1", "");
            let plain = || name.replace("~1", "/").replace("~0", "~").into();
            (!rest.contains('~')).then(plain).ok_or(format!("found {name:?}, write ~ as ~0 and / as ~1"))
        };
        names.iter().map(name).collect::<Result<_, _>>().map(Self)
    }
}

/// What was looked at.
#[derive(Default)]
struct Work(Cell<usize>);

impl Work {
    fn looks(&self, members: usize) -> Result<(), Unpatched> {
        self.0.set(self.0.get().saturating_add(members));
        if self.0.get() > MAX_LOOKS { Err(Unpatched::TooMuchWork) } else { Ok(()) }
    }
}

/// A document, opened along the pointers only.
enum Tree<'a> {
    Text(Cow<'a, str>),
    Object(Vec<(Cow<'a, str>, Tree<'a>)>),
    List(Vec<Tree<'a>>),
}

impl<'a> Tree<'a> {
    /// Whether it is an object or a list now.
    fn open(&mut self) -> Result<bool, Unpatched> {
        let Self::Text(text) = self else { return Ok(true) };
        let is_object = match text.trim_ascii_start().as_bytes().first() {
            Some(b'{') => true,
            Some(b'[') => false,
            _ => return Ok(false),
        };
        *self = match std::mem::take(text) {
            Cow::Borrowed(text) => Self::read(text, is_object, Cow::Borrowed)?,
            // What a pointer has set before.
            Cow::Owned(text) => {
                let owned = |text: &str| Cow::Owned(text.to_owned());
                Tree::read(&text, is_object, owned)?.into_owned()
            }
        };
        Ok(true)
    }

    fn read<'t>(
        text: &'t str,
        is_object: bool,
        kept: impl Fn(&'t str) -> Cow<'t, str>,
    ) -> Result<Tree<'t>, Unpatched> {
        let not_json = |_| Unpatched::NotJson;
        let tree = if is_object {
            let Members(members) = serde_json::from_str(text).map_err(not_json)?;
            Tree::Object(members.into_iter().map(|(name, value)| (name, Tree::Text(kept(value)))).collect())
        } else {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
            Tree::List(items.into_iter().map(|item| Tree::Text(kept(item.get()))).collect())
        };
        let count = match &tree {
            Tree::Object(members) => members.len(),
            Tree::List(items) => items.len(),
            Tree::Text(_) => 0,
        };
        if count > MAX_MEMBERS { Err(Unpatched::TooManyMembers) } else { Ok(tree) }
    }

    /// Of what was just read.
    fn into_owned<'o>(self) -> Tree<'o> {
        match self {
            Self::Text(text) => Tree::Text(Cow::Owned(text.into_owned())),
            Self::List(items) => Tree::List(items.into_iter().map(Tree::into_owned).collect()),
            Self::Object(members) => {
                let owned =
                    |(name, value): (Cow<'a, str>, Self)| (Cow::Owned(name.into_owned()), value.into_owned());
                Tree::Object(members.into_iter().map(owned).collect())
            }
        }
    }

    /// What a name leads to.
    fn place(&mut self, name: &str, work: &Work) -> Result<Option<usize>, Unpatched> {
        self.open()?;
        match self {
            Self::Object(members) => find(members, name, work),
            Self::List(items) => Ok(position(name).filter(|index| *index < items.len())),
            Self::Text(_) => Ok(None),
        }
    }

    fn at(&mut self, place: usize) -> Option<&mut Self> {
        match self {
            Self::Object(members) => members.get_mut(place).map(|(_, value)| value),
            Self::List(items) => items.get_mut(place),
            Self::Text(_) => None,
        }
    }

    /// Keeps what the ways lead to. Whether one leads to anything.
    fn pick(&mut self, ways: &[&[Box<str>]], work: &Work) -> Result<bool, Unpatched> {
        if ways.iter().any(|way| way.is_empty()) {
            return Ok(true);
        }
        self.open()?;
        let through = |is_named: &dyn Fn(&str) -> bool| -> Vec<&[Box<str>]> {
            ways.iter().filter(|way| is_named(&way[0])).map(|way| &way[1..]).collect()
        };
        match self {
            Self::Text(_) => Ok(false),
            Self::Object(members) => {
                work.looks(members.len() * ways.len())?;
                let mut kept: Vec<(Cow<'a, str>, Self)> = Vec::new();
                // One that leads to nothing counts as well.
                let mut seen: Vec<&str> = Vec::new();
                for (name, mut value) in std::mem::take(members) {
                    let Some(wanted) = ways.iter().map(|way| &*way[0]).find(|wanted| **wanted == *name)
                    else {
                        continue;
                    };
                    if seen.contains(&wanted) {
                        return Err(Unpatched::SeveralMembers);
                    }
                    seen.push(wanted);
                    if value.pick(&through(&|one| *one == *name), work)? {
                        kept.push((name, value));
                    }
                }
                *members = kept;
                Ok(!members.is_empty())
            }
            Self::List(items) => {
                work.looks(items.len() * ways.len())?;
                let mut kept = Vec::new();
                for (index, mut item) in std::mem::take(items).into_iter().enumerate() {
                    let further = through(&|wanted| position(wanted) == Some(index));
                    if !further.is_empty() && item.pick(&further, work)? {
                        kept.push(item);
                    }
                }
                *items = kept;
                Ok(!items.is_empty())
            }
        }
    }

    /// Of an object or a list nothing is left but itself, of anything else `null`.
    fn clear(&mut self) {
        match self {
            Self::Object(members) => members.clear(),
            Self::List(items) => items.clear(),
            Self::Text(text) => *text = Cow::Borrowed("null"),
        }
    }

    /// Takes out what the way leads to.
    fn take(&mut self, way: &[Box<str>], work: &Work) -> Result<Option<Self>, Unpatched> {
        let Some((name, further)) = way.split_first() else { return Ok(None) };
        let Some(place) = self.place(name, work)? else { return Ok(None) };
        if !further.is_empty() {
            return self.at(place).map_or(Ok(None), |inner| inner.take(further, work));
        }
        Ok(match self {
            Self::Object(members) => Some(members.remove(place).1),
            Self::List(items) => Some(items.remove(place)),
            Self::Text(_) => None,
        })
    }

    fn rename(&mut self, from: &[Box<str>], to: &[Box<str>], work: &Work) -> Result<(), Unpatched> {
        match (from, to) {
            ([name, from @ ..], [same, to @ ..]) if name == same && !from.is_empty() && !to.is_empty() => {
                let Some(place) = self.place(name, work)? else { return Ok(()) };
                self.at(place).map_or(Ok(()), |inner| inner.rename(from, to, work))
            }
            ([from], [to]) => {
                let Some(place) = self.place(from, work)? else { return Ok(()) };
                let Self::Object(members) = self else { return Err(Unpatched::NoPlace) };
                // In its place among the others.
                let taken = find(members, to, work)?;
                members[place].0 = Cow::Owned(to.to_string());
                if let Some(taken) = taken {
                    members.remove(taken);
                }
                Ok(())
            }
            _ => match self.take(from, work)? {
                Some(value) => self.put(to, value, work),
                None => Ok(()),
            },
        }
    }

    fn put(&mut self, way: &[Box<str>], value: Self, work: &Work) -> Result<(), Unpatched> {
        let Some((name, further)) = way.split_first() else {
            *self = value;
            return Ok(());
        };
        if let Some(place) = self.place(name, work)? {
            return self.at(place).map_or(Ok(()), |inner| inner.put(further, value, work));
        }
        let mut made = Self::Object(Vec::new());
        made.put(further, value, work)?;
        match self {
            Self::Object(members) => members.push((Cow::Owned(name.to_string()), made)),
            Self::List(items) if **name == *"-" || position(name) == Some(items.len()) => items.push(made),
            _ => return Err(Unpatched::NoPlace),
        }
        Ok(())
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => out.extend_from_slice(text.trim_ascii().as_bytes()),
            Self::Object(members) => {
                out.push(b'{');
                for (index, (name, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    serde_json::to_writer(&mut *out, &**name).expect("a text is JSON, and memory takes it");
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
            Self::List(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
        }
    }
}

/// The members of an object in their order, doubled ones too.
struct Members<'a>(Vec<(Cow<'a, str>, &'a str)>);

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> serde::de::Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut read: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = read.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((name, value.get()));
                }
                Ok(Members(members))
            }
        }
        reader.deserialize_map(Reader)
    }
}

fn find(members: &[(Cow<'_, str>, Tree<'_>)], name: &str, work: &Work) -> Result<Option<usize>, Unpatched> {
    work.looks(members.len())?;
    let mut found = members.iter().enumerate().filter(|(_, (known, _))| *known == *name);
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => Err(Unpatched::SeveralMembers),
        (one, _) => Ok(one.map(|(place, _)| place)),
    }
}

/// In a list: digits without a zero in front (RFC 6901 section 4).
fn position(name: &str) -> Option<usize> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    is_plain.then(|| name.parse().ok()).flatten()
}
