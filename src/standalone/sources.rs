//! The files that findings point into, read again to show where in them.
//!
//! Invariant: no more is read and parsed than was said; what is beyond it has the line of its object.

use std::collections::HashMap;
use std::sync::Arc;

use crate::snapshot::{Origin, Place, documents, find};

#[derive(Debug)]
pub struct Sources {
    texts: HashMap<Arc<str>, Option<Text>>,
    /// So many bytes may still be read or parsed.
    left: u64,
}

#[derive(Debug)]
struct Text {
    text: String,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl Sources {
    /// Files and documents of so many bytes in all.
    pub fn up_to(bytes: u64) -> Self {
        Self { texts: HashMap::new(), left: bytes }
    }

    /// Where a field of the object that stands there is, or what is nearest around it. `None`: nothing of it is found.
    pub fn field(&mut self, origin: &Origin, path: &str) -> Option<Place> {
        let left = self.read(&origin.file);
        let text = self.text(&origin.file)?;
        let first = origin.line as usize;
        let document = documents(text.rest(first)?).next().filter(|document| document.line == 1)?;
        let (length, before) = (document.text.len() as u64, document.column as usize - 1);
        if length > left {
            return None;
        }
        let found = find(document.text, path);
        self.left -= length;
        found.map(|place| Place {
            line: first + place.line - 1,
            column: place.column + if place.line == 1 { before } else { 0 },
            width: place.width,
        })
    }

    pub fn line(&mut self, file: &Arc<str>, line: usize) -> Option<&str> {
        self.read(file);
        self.text(file)?.rest(line)?.lines().next()
    }

    /// How much is left when the file has been read.
    fn read(&mut self, file: &Arc<str>) -> u64 {
        if !self.texts.contains_key(file) {
            let length = std::fs::metadata(&**file).map_or(u64::MAX, |metadata| metadata.len());
            let text = if length <= self.left { Text::of(file) } else { None };
            self.left -= text.as_ref().map_or(0, |_| length);
            self.texts.insert(Arc::clone(file), text);
        }
        self.left
    }

    fn text(&self, file: &Arc<str>) -> Option<&Text> {
        self.texts.get(file)?.as_ref()
    }
}

impl Text {
    fn of(file: &str) -> Option<Self> {
        let text = std::fs::read_to_string(file).ok()?;
        // As the manifests are read.
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        Some(Self { text, lines })
    }

    /// All from this line on, from 1.
    fn rest(&self, line: usize) -> Option<&str> {
        self.text.get(*self.lines.get(line.checked_sub(1)?)?..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\u{feff}a: 1\n---\n# two\nb:\n  c: 2\n--- {d: [3, 4]}\n---\ne: 5\n";

    fn sources(bytes: u64) -> (tempfile::TempDir, Sources, impl Fn(u32) -> Origin) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, TEXT).expect("written");
        let file: Arc<str> = file.to_string_lossy().into();
        (folder, Sources::up_to(bytes), move |line| Origin { file: Arc::clone(&file), line })
    }

    #[test]
    fn a_field_is_found_in_its_document() {
        let (_folder, mut sources, at) = sources(u64::MAX);
        for (line, path, place) in [
            (1, "a", Some((1, 4, 1))),
            (4, "b.c", Some((5, 6, 1))),
            (4, "b.nobody", Some((4, 1, 1))),
            (6, "d[1]", Some((6, 13, 1))),
            (8, "e", Some((8, 4, 1))),
            // No document begins there, or ever did.
            (3, "b.c", None),
            (99, "e", None),
        ] {
            let found = sources.field(&at(line), path).map(|place| (place.line, place.column, place.width));
            assert_eq!(found, place, "{path} of line {line}");
        }
        assert_eq!(sources.line(&at(1).file, 6), Some("--- {d: [3, 4]}"));
        assert_eq!(sources.line(&at(1).file, 99), None);
    }

    #[test]
    fn no_more_is_read_and_parsed_than_was_said() {
        let (_folder, mut few, at) = sources(TEXT.len() as u64 - 1);
        assert_eq!((few.field(&at(1), "a"), few.line(&at(1).file, 1)), (None, None));
        // The file, and one of its documents, and not two.
        let (_folder, mut enough, at) = sources(TEXT.len() as u64 + 6);
        assert!(enough.field(&at(1), "a").is_some());
        assert_eq!(enough.field(&at(8), "e"), None);
        assert_eq!(enough.line(&at(1).file, 1), Some("a: 1"));
    }
}
