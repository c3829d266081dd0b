//! The manifests of some folders and files as they were read last, and what a new reading changes.
//!
//! Invariants: a document that did not change is not parsed again; a file with a document that cannot be read keeps
//! the objects that it had until it can be read again or is gone; a name that is defined twice has one owner, the
//! first by file and line, and the other place is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foldhash::fast::FixedState;

use crate::snapshot::{self, Change, Failure, Kind, Object, Origin};
use crate::values::ObjectName;

/// A larger file is not read.
const MAX_FILE: u64 = 256 << 20;
/// A larger folder is not read to its end.
const MAX_FILES: usize = 100_000;

type Key = (Kind, ObjectName);

/// What tells that a file is another one than before, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub inode: (u64, u64),
    modified: Option<SystemTime>,
    size: u64,
}

/// Which files to look at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    Everything,
    At(BTreeSet<PathBuf>),
}

#[derive(Debug)]
pub struct Folder {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    /// Roots that cannot be listed, with why. Their files keep their objects.
    unreadable: BTreeMap<PathBuf, Failure>,
    /// Every place that defines a name, in the order that decides.
    places: BTreeMap<Key, BTreeSet<Place>>,
    /// What the other side has been told.
    told: BTreeMap<Key, Told>,
    told_failures: Vec<Failure>,
}

/// File, then position in it.
type Place = (PathBuf, usize);

#[derive(Debug, PartialEq)]
struct Told {
    place: Place,
    document: u64,
    line: u32,
}

#[derive(Debug, Default)]
struct File {
    /// None: whatever is found next is read.
    stamp: Option<Stamp>,
    content: Option<u64>,
    entries: Vec<Entry>,
    failures: Vec<Failure>,
    /// Documents that could not be read, or not wholly.
    broken: BTreeSet<u64>,
}

/// One object of a file.
#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    document: u64,
    line: u32,
    object: Object,
}

impl Stamp {
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            inode: (metadata.dev(), metadata.ino()),
            modified: metadata.modified().ok(),
            size: metadata.len(),
        }
    }

    /// Whether a later change would show in it: two writes within a tick of the file system's clock do not.
    fn settled(&self) -> bool {
        self.modified.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > Duration::from_millis(20))
    }
}

/// Whether a file of this name is read: no hidden files, no editor's backups, only manifests.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

impl Folder {
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            files: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            places: BTreeMap::new(),
            told: BTreeMap::new(),
            told_failures: Vec::new(),
        }
    }

    /// The stamp of a file as it was read last.
    pub fn stamp(&self, path: &Path) -> Option<Stamp> {
        self.files.get(path).and_then(|file| file.stamp)
    }

    pub fn known(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Reads what may have changed, and says what did.
    pub fn refresh(&mut self, look: &Look) -> Vec<Change> {
        let mut affected = BTreeSet::new();
        match look {
            Look::Everything => {
                let (present, lost) = self.list();
                for path in &present {
                    let known = self.stamp(path);
                    self.read(path, known, &mut affected);
                }
                let gone: Vec<PathBuf> = self
                    .files
                    .keys()
                    .filter(|path| {
                        !present.contains(*path) && !lost.iter().any(|root| path.starts_with(root))
                    })
                    .cloned()
                    .collect();
                for path in gone {
                    self.forget(&path, &mut affected);
                }
            }
            Look::At(paths) => {
                for path in paths {
                    self.read(path, None, &mut affected);
                }
            }
        }
        self.changes(affected)
    }

    /// The files that are there now, and the roots that cannot be listed.
    pub fn list(&mut self) -> (BTreeSet<PathBuf>, Vec<PathBuf>) {
        let (mut present, mut lost) = (BTreeSet::new(), Vec::new());
        self.unreadable.clear();
        for root in &self.roots {
            match list_root(root, &mut present) {
                Ok(()) => {}
                Err(message) => {
                    lost.push(root.clone());
                    self.unreadable.insert(root.clone(), failure_at(root, message));
                }
            }
        }
        (present, lost)
    }

    /// Reads a file unless its stamp is the known one.
    fn read(&mut self, path: &Path, known: Option<Stamp>, affected: &mut BTreeSet<Key>) {
        let (stamp, text) = match read_file(path, known) {
            Ok(Found::Text(stamp, text)) => (stamp, text),
            Ok(Found::AsKnown) => return,
            // A root that is gone is like one that cannot be read.
            Ok(Found::NoFile) if !self.roots.iter().any(|root| root == path) => {
                return self.forget(path, affected);
            }
            Ok(Found::NoFile) => return self.keep(path, "the file is gone; its last objects stay".into()),
            Err(error) => {
                return self.keep(path, format!("the file cannot be read: {error}; its last objects stay"));
            }
        };
        let content = hash(text.as_bytes());
        let old = self.files.remove(path).unwrap_or_default();
        if old.content == Some(content) {
            self.files.insert(path.to_owned(), File { stamp, ..old });
            return;
        }
        let new = parse(path, &text, &old);
        self.replace(path, &old, File { stamp, content: Some(content), ..new }, affected);
    }

    fn replace(&mut self, path: &Path, old: &File, new: File, affected: &mut BTreeSet<Key>) {
        for (position, entry) in old.entries.iter().enumerate() {
            if let Some(places) = self.places.get_mut(&entry.key) {
                places.remove(&(path.to_owned(), position));
            }
            affected.insert(entry.key.clone());
        }
        for (position, entry) in new.entries.iter().enumerate() {
            self.places.entry(entry.key.clone()).or_default().insert((path.to_owned(), position));
            affected.insert(entry.key.clone());
        }
        self.files.insert(path.to_owned(), new);
    }

    fn forget(&mut self, path: &Path, affected: &mut BTreeSet<Key>) {
        if let Some(old) = self.files.remove(path) {
            self.replace(path, &old, File::default(), affected);
            self.files.remove(path);
        }
    }

    /// The file is there and cannot be read: what it said last stays.
    fn keep(&mut self, path: &Path, message: String) {
        let file = self.files.entry(path.to_owned()).or_default();
        file.failures = vec![failure_at(path, message)];
        // Whatever is read next is new.
        (file.stamp, file.content) = (None, None);
    }

    fn changes(&mut self, affected: BTreeSet<Key>) -> Vec<Change> {
        let mut changes = Vec::new();
        for key in affected {
            let Some(place) = self.places.get(&key).and_then(BTreeSet::first) else {
                self.places.remove(&key);
                if self.told.remove(&key).is_some() {
                    changes.push(Change::Gone(key.0, key.1));
                }
                continue;
            };
            let entry = &self.files[&place.0].entries[place.1];
            let told = Told { place: place.clone(), document: entry.document, line: entry.line };
            if self.told.get(&key) != Some(&told) {
                changes.push(Change::Put(entry.object.clone()));
                self.told.insert(key, told);
            }
        }
        let failures = self.failures();
        if failures != self.told_failures {
            self.told_failures.clone_from(&failures);
            changes.push(Change::Failures(failures));
        }
        changes
    }

    /// All there is to complain about: files, documents, and names that are defined twice.
    fn failures(&self) -> Vec<Failure> {
        let unread = self.unreadable.values().cloned();
        let broken = self.files.values().flat_map(|file| file.failures.iter().cloned());
        let mut failures: Vec<Failure> = unread.chain(broken).collect();
        for ((kind, name), places) in &self.places {
            let mut places = places.iter();
            let Some(first) = places.next() else { continue };
            for place in places {
                failures.push(Failure {
                    kind: Some(*kind),
                    name: Some(name.clone()),
                    origin: Some(self.origin(place)),
                    is_secret: *kind == Kind::Secret,
                    column: None,
                    message: format!(
                        "{kind:?} {name} is already defined in {}, which counts; remove one of them",
                        at(&self.origin(first))
                    ),
                });
            }
        }
        failures.sort();
        failures
    }

    fn origin(&self, place: &Place) -> Origin {
        Origin { file: name_of(&place.0), line: self.files[&place.0].entries[place.1].line }
    }
}

fn at(origin: &Origin) -> String {
    format!("{}:{}", origin.file, origin.line)
}

/// Finds the files of a root that are read.
pub fn list_root(root: &Path, present: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    let metadata =
        std::fs::metadata(root).map_err(|error| format!("cannot be read: {error}; its last objects stay"))?;
    if !metadata.is_dir() {
        // A file that was named is read whatever its name.
        present.insert(root.to_owned());
        return Ok(());
    }
    let list = std::fs::read_dir(root)
        .map_err(|error| format!("the folder cannot be read: {error}; its last objects stay"))?;
    for entry in list {
        let path = entry
            .map_err(|error| format!("the folder cannot be read: {error}; its last objects stay"))?
            .path();
        if is_manifest(&path) && path.metadata().is_ok_and(|metadata| metadata.is_file()) {
            if present.len() == MAX_FILES {
                return Err(format!("more than {MAX_FILES} files; put more documents into each"));
            }
            present.insert(path);
        }
    }
    Ok(())
}

enum Found {
    Text(Option<Stamp>, String),
    AsKnown,
    /// Nothing there, or no file: a folder, a pipe (opening it would wait for its writer).
    NoFile,
}

fn read_file(path: &Path, known: Option<Stamp>) -> std::io::Result<Found> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Ok(Found::NoFile),
        Ok(metadata) if known == Some(Stamp::of(&metadata)) => return Ok(Found::AsKnown),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::NoFile),
        Err(error) => return Err(error),
    }
    let mut file = std::fs::File::open(path)?;
    // Of what is open now: the name may stand for another file by now.
    let stamp = Stamp::of(&file.metadata()?);
    if stamp.size > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 256 MiB; split it"));
    }
    let mut text = String::new();
    file.by_ref().take(MAX_FILE).read_to_string(&mut text)?;
    Ok(Found::Text(Some(stamp).filter(Stamp::settled), text))
}

fn parse(path: &Path, text: &str, old: &File) -> File {
    let mut known: HashMap<u64, Vec<&Entry>, FixedState> = HashMap::default();
    for entry in &old.entries {
        known.entry(entry.document).or_default().push(entry);
    }
    let name = name_of(path);
    let mut new = File::default();
    for document in snapshot::documents(text) {
        let fingerprint = hash(document.text.as_bytes());
        let whole = !old.broken.contains(&fingerprint);
        if let Some(entries) = known.get(&fingerprint).filter(|_| whole) {
            new.entries.extend(entries.iter().map(|entry| moved(entry, document.line)));
            continue;
        }
        let origin = Origin { file: Arc::clone(&name), line: document.line };
        for object in snapshot::read(document.text, &origin) {
            match object {
                Ok(object) => new.entries.push(Entry {
                    key: key(&object),
                    document: fingerprint,
                    line: document.line,
                    object,
                }),
                Err(mut failure) => {
                    if failure.origin.as_ref().is_some_and(|origin| origin.line == document.line) {
                        failure.column = failure.column.map(|column| column + document.column - 1);
                    }
                    new.failures.push(failure);
                    new.broken.insert(fingerprint);
                }
            }
        }
    }
    if !new.failures.is_empty() {
        let said: BTreeSet<Key> = new.entries.iter().map(|entry| entry.key.clone()).collect();
        // One of these may be what the unreadable document is about.
        let stay: Vec<Entry> =
            old.entries.iter().filter(|entry| !said.contains(&entry.key)).cloned().collect();
        if let Some(told) = told(&stay) {
            new.failures.iter_mut().for_each(|failure| failure.message += &told);
        }
        new.entries.extend(stay);
    }
    new
}

/// That objects are served although the file does not say them now.
fn told(stay: &[Entry]) -> Option<String> {
    let (first, others) = stay.split_first()?;
    let (kind, name) = &first.key;
    let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
    Some(format!("; until it can be read, this stays of what the file said before: {kind:?} {name}{more}"))
}

/// The same object on another line.
fn moved(entry: &Entry, line: u32) -> Entry {
    let mut moved = entry.clone();
    if moved.line != line {
        moved.line = line;
        let origin = match &mut moved.object {
            Object::GatewayRoute(manifest)
            | Object::GatewayBackend(manifest)
            | Object::GatewayPolicy(manifest) => &mut manifest.origin,
            Object::Service(service) => &mut service.origin,
            Object::Secret(_)
            | Object::ConfigMap(_)
            | Object::EndpointSlice(_)
            | Object::Namespace(_)
            | Object::ReferenceGrant(_) => return moved,
        };
        if let Some(origin) = origin {
            origin.line = line;
        }
    }
    moved
}

fn key(object: &Object) -> Key {
    match object {
        Object::GatewayRoute(manifest) => (Kind::GatewayRoute, manifest.name.clone()),
        Object::GatewayBackend(manifest) => (Kind::GatewayBackend, manifest.name.clone()),
        Object::GatewayPolicy(manifest) => (Kind::GatewayPolicy, manifest.name.clone()),
        Object::Secret(secret) => (Kind::Secret, secret.name.clone()),
        Object::ConfigMap(map) => (Kind::ConfigMap, map.name.clone()),
        Object::Service(service) => (Kind::Service, service.name.clone()),
        Object::EndpointSlice(slice) => (Kind::EndpointSlice, slice.name.clone()),
        Object::Namespace(namespace) => (Kind::Namespace, ObjectName::new("", Arc::clone(&namespace.name))),
        Object::ReferenceGrant(grant) => (Kind::ReferenceGrant, grant.name.clone()),
    }
}

fn failure_at(path: &Path, message: String) -> Failure {
    Failure { origin: Some(Origin { file: name_of(path), line: 1 }), message, ..Failure::default() }
}

fn name_of(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let mut hasher = FixedState::with_seed(0x5eed).build_hasher();
    hasher.write(bytes);
    hasher.finish()
}
