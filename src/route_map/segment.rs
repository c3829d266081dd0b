//! The text of one path segment as the index holds it: short ones stand where the index lies, because each further place
//! in memory is a miss when there are thousands of routes.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};

/// As many bytes as fit into the room of a boxed text and its tag.
const INLINE: usize = 22;

#[derive(Clone, Debug)]
pub(super) enum SegmentText {
    Short { len: u8, bytes: [u8; INLINE] },
    Long(Box<str>),
}

impl SegmentText {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(text) => text.as_bytes(),
        }
    }
}

impl From<&str> for SegmentText {
    fn from(text: &str) -> Self {
        match u8::try_from(text.len()) {
            Ok(len) if text.len() <= INLINE => {
                let mut bytes = [0; INLINE];
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }
}

/// Looked up by its bytes: a `str` hashes otherwise.
impl Borrow<[u8]> for SegmentText {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq for SegmentText {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for SegmentText {}

impl Hash for SegmentText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_itself_short_or_long() {
        for text in ["", "a", "ä", &"x".repeat(22), &"x".repeat(23), &"é".repeat(11), &"x".repeat(300)] {
            let segment = SegmentText::from(text);
            assert_eq!(segment.as_bytes(), text.as_bytes());
            assert_eq!(segment, SegmentText::from(text));
        }
        assert_ne!(SegmentText::from("a"), SegmentText::from("b"));
        assert!(size_of::<SegmentText>() <= 24);
    }
}
