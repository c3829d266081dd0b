//! JSON that is passed on as it came: known to be one document in UTF-8, looked into only where somebody asks.
//!
//! Invariants: a document is well-formed, so that it can stand inside another one and nothing of it ends up outside; the
//! index is made at most once, without recursion, and is bounded.
//!
//! Not here: members that stand twice and numbers that no number holds. Whoever moves a document moves them with it;
//! whoever looks into it must judge them.

use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::value::RawValue;

/// Objects, arrays, texts, numbers and so on of a document that is looked into, the names of members included.
const MAX_NODES: usize = 200_000;
/// Objects and arrays of such a document, one inside the other.
const MAX_DEPTH: usize = 128;

/// One JSON document.
pub struct RawJson {
    text: String,
    /// Without blanks at both ends.
    span: Range<usize>,
    index: OnceLock<Option<Box<[Node]>>>,
}

/// What is no JSON document in UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one JSON document in UTF-8")]
pub struct NotJson;

/// A value inside of a document.
#[derive(Clone, Copy)]
pub struct Piece<'j> {
    json: &'j RawJson,
    node: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    Null,
    Bool(bool),
    Number,
    Text,
    List,
    Object,
}

/// The document has more values, or is nested deeper, than what is looked into may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

/// In the order of the text: what is inside of a value follows it.
#[derive(Clone, Copy, Debug)]
struct Node {
    start: u32,
    end: u32,
    /// The node behind it and all that is in it.
    next: u32,
}

impl RawJson {
    /// # Errors
    /// It is none.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, NotJson> {
        let text = String::from_utf8(Vec::from(bytes.into())).map_err(|_| NotJson)?;
        // Places in it are 32 bits.
        u32::try_from(text.len()).map_err(|_| NotJson)?;
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        let start = text.bytes().take_while(is_blank).count();
        let end = text.len() - text.bytes().rev().take_while(is_blank).count();
        let span = start..end.max(start);
        // Reads all of it and makes nothing of it.
        serde_json::from_str::<&RawValue>(&text[span.clone()]).map_err(|_| NotJson)?;
        Ok(Self { text, span, index: OnceLock::new() })
    }

    /// The document's text, without blanks around it.
    pub fn as_str(&self) -> &str {
        &self.text[self.span.clone()]
    }

    /// The whole document as a value.
    pub const fn root(&self) -> Piece<'_> {
        Piece { json: self, node: 0 }
    }

    /// An object with these members, in this order: names that need no escaping, each with a document's text.
    pub fn object<'m>(members: impl Iterator<Item = (&'m str, &'m str)> + Clone) -> Vec<u8> {
        let size: usize = members.clone().map(|(name, text)| name.len() + text.len() + 4).sum();
        let mut object = Vec::with_capacity(size + 2);
        for (name, text) in members {
            object.extend_from_slice(if object.is_empty() { b"{\"" } else { b",\"" });
            object.extend_from_slice(name.as_bytes());
            object.extend_from_slice(b"\":");
            object.extend_from_slice(text.as_bytes());
        }
        object.extend_from_slice(if object.is_empty() { b"{}" } else { b"}" });
        object
    }

    /// Makes ready for being looked into, which costs about as much as reading it did.
    pub fn prepare(&self) {
        self.index();
    }

    /// Bytes that this takes beside the text.
    pub fn index_size(&self) -> usize {
        self.index.get().and_then(Option::as_deref).map_or(0, size_of_val)
    }

    fn index(&self) -> Option<&[Node]> {
        self.index.get_or_init(|| index(self.as_str())).as_deref()
    }
}

impl<'j> Piece<'j> {
    /// The text of the value, as it came.
    pub fn text(self) -> &'j str {
        let json = self.json;
        match self.node {
            0 => json.as_str(),
            node => match json.index().and_then(|nodes| nodes.get(node)) {
                Some(node) => &json.as_str()[node.start as usize..node.end as usize],
                // Other nodes are handed out by the index alone.
                None => "null",
            },
        }
    }

    pub fn kind(self) -> PieceKind {
        match self.text().as_bytes().first() {
            Some(b'{') => PieceKind::Object,
            Some(b'[') => PieceKind::List,
            Some(b'"') => PieceKind::Text,
            Some(b't') => PieceKind::Bool(true),
            Some(b'f') => PieceKind::Bool(false),
            Some(b'n') | None => PieceKind::Null,
            Some(_) => PieceKind::Number,
        }
    }

    /// What stands directly in a list; in an object names and values by turns; in anything else nothing.
    ///
    /// # Errors
    /// The document is too large to be looked into.
    pub fn parts(self) -> Result<impl Iterator<Item = Self> + use<'j>, TooMuch> {
        let nodes = self.json.index().ok_or(TooMuch)?;
        let end = nodes[self.node].next as usize;
        let mut at = self.node + 1;
        Ok(std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let part = Self { json: self.json, node: at };
            at = nodes[at].next as usize;
            Some(part)
        }))
    }
}

/// The nodes of a well-formed document. `None`: there are too many, or too deep ones.
fn index(text: &str) -> Option<Box<[Node]>> {
    let bytes = text.as_bytes();
    let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    let mut nodes: Vec<Node> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at = match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' => {
                at += 1;
                continue;
            }
            b'}' | b']' => {
                let next = place(nodes.len());
                let node = &mut nodes[open.pop()?];
                (node.end, node.next) = (place(at + 1), next);
                at += 1;
                continue;
            }
            b'{' | b'[' => {
                open.push(nodes.len());
                if open.len() > MAX_DEPTH {
                    return None;
                }
                at + 1
            }
            b'"' => end_of_text(bytes, at + 1),
            _ => {
                let is_part =
                    |byte: &u8| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b':' | b'}' | b']');
                at + bytes[at..].iter().take_while(|byte| is_part(byte)).count()
            }
        };
        if nodes.len() >= MAX_NODES {
            return None;
        }
        nodes.push(Node { start: place(start), end: place(at), next: place(nodes.len() + 1) });
    }
    (!nodes.is_empty()).then(|| nodes.into())
}

/// The place behind the quote that ends a text.
fn end_of_text(bytes: &[u8], mut at: usize) -> usize {
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

/// Bodies may hold anybody's secrets.
impl fmt::Debug for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JSON of {} bytes", self.as_str().len())
    }
}

impl fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JSON of {} bytes", self.text().len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn read(text: &str) -> RawJson {
        RawJson::new(text.to_owned()).expect(text)
    }

    /// The document as serde_json would have it, made of pieces.
    fn rebuilt(piece: Piece<'_>) -> Value {
        let read = || serde_json::from_str(piece.text()).expect("a scalar");
        match piece.kind() {
            PieceKind::List => piece.parts().expect("small").map(rebuilt).collect(),
            PieceKind::Object => {
                let parts: Vec<_> = piece.parts().expect("small").collect();
                let member = |both: &[Piece<'_>]| {
                    (serde_json::from_str::<String>(both[0].text()).expect("a name"), rebuilt(both[1]))
                };
                Value::Object(parts.chunks(2).map(member).collect())
            }
            PieceKind::Null => Value::Null,
            PieceKind::Bool(value) => value.into(),
            PieceKind::Number | PieceKind::Text => read(),
        }
    }

    #[test]
    fn what_is_not_exactly_one_document_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "}",
            "1 2",
            "{}{}",
            "{}x",
            "nul",
            "01",
            "1.",
            "+1",
            ".5",
            "1e",
            "'a'",
            "\"a",
            "\"\u{1}\"",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{a:1}",
            "\u{feff}1",
            "\"\\x\"",
            "\"\\u12\"",
            "NaN",
            "1}, \"b\": {",
            "\u{a0}1",
        ] {
            assert_eq!(RawJson::new(text.to_owned()).err(), Some(NotJson), "{text:?}");
        }
        for bytes in [&b"\"\xff\""[..], b"\xff1", b"\xef\xbb\xbf{}", b"{\"\xc3\":1}"] {
            assert_eq!(RawJson::new(Bytes::from_static(bytes)).err(), Some(NotJson), "{bytes:?}");
        }
    }

    #[test]
    fn the_text_stays_as_it_came_but_for_blanks_around_it() {
        for text in
            ["1e400", "12345678901234567890123", "-0", "1.10", "{\"a\":1,\"a\":2}", "\"\\ud800\"", "[ 1 ]"]
        {
            assert_eq!(read(&format!(" \r\n{text}\t ")).as_str(), text);
        }
    }

    #[test]
    fn pieces_are_what_stands_there() {
        let text = r#" {"a": [1, {"b" :"}]\"," }, [ ], {}], "c":null,"\u0064\\":-1.5e+3 , "e":true} "#;
        let json = read(text);
        assert_eq!(rebuilt(json.root()), serde_json::from_str::<Value>(text).expect("JSON"));
        assert_eq!(read("7").root().parts().expect("small").count(), 0);
        assert_eq!(read("7").root().kind(), PieceKind::Number);
    }

    #[test]
    fn what_is_looked_into_says_what_it_takes() {
        let json = read("[1,2,3]");
        assert_eq!(json.index_size(), 0);
        json.prepare();
        assert_eq!(json.index_size(), 4 * size_of::<Node>());
    }

    #[test]
    fn too_much_is_moved_but_not_looked_into() {
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1));
        let wide = format!("[{}]", vec!["0"; MAX_NODES].join(","));
        for text in [deep, wide, "[".repeat(100_000) + &"]".repeat(100_000)] {
            let json = read(&text);
            assert_eq!((json.as_str(), json.root().kind()), (&*text, PieceKind::List));
            assert!(json.root().parts().is_err());
        }
        let fits = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert!(read(&fits).root().parts().is_ok());
    }

    #[test]
    fn nothing_of_a_document_is_in_debug_output() {
        let json = read("{\"password\":\"hunter2\"}");
        assert_eq!(format!("{json:?} {:?}", json.root()), "JSON of 22 bytes JSON of 22 bytes");
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\PC\"\\\\{}\\[\\]:,]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[\\PC\"\\\\]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_document_is_found_again(document in documents()) {
            for text in [document.to_string(), serde_json::to_string_pretty(&document).expect("JSON")] {
                prop_assert_eq!(&rebuilt(read(&text).root()), &document);
            }
        }

        #[test]
        fn any_text_is_taken_as_serde_takes_it(text in "[-0-9eE.,:{}\\[\\]\" \\\\tnua]{0,24}") {
            let taken = RawJson::new(text.clone()).is_ok();
            prop_assert_eq!(taken, serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok());
        }
    }
}
