//! Fields that go into a request's head as it is written, behind its first line. Most are the same for all requests of
//! a client's connection: as bytes they cost one entry of a `writev`, as fields each would be hashed, stored, counted
//! and encoded again on every request.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Room for one field of a request's own.
const OWN: usize = 64;

/// Whole lines of a head: those that requests share, and one of this request's own.
#[derive(Clone, Debug)]
pub struct HeadLines {
    shared: Bytes,
    own: [u8; OWN],
    own_len: usize,
}

/// Lines in the making. Values are proven when they come, so that no line can end before its end.
#[derive(Debug, Default)]
pub struct SharedLines(BytesMut);

impl SharedLines {
    pub fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.0.reserve(name.as_str().len() + value.len() + 4);
        self.0.put_slice(name.as_str().as_bytes());
        self.0.put_slice(b": ");
        self.0.put_slice(value.as_bytes());
        self.0.put_slice(b"\r\n");
    }

    pub fn freeze(self) -> Bytes {
        self.0.freeze()
    }
}

impl HeadLines {
    /// `shared` is of [`SharedLines`]. A value that no field can have, or that is too long for its room, is left out.
    pub fn new(shared: Bytes, name: &'static str, value: &[u8]) -> Self {
        let (mut own, mut len) = ([0; OWN], 0);
        let fits = name.len() + value.len() + 4 <= OWN;
        // Without an early end, which would keep it from taking many bytes at once.
        let is_text = value.iter().fold(true, |is, byte| is & matches!(byte, b' '..=b'~'));
        if fits && is_text {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                own[len..len + part.len()].copy_from_slice(part);
                len += part.len();
            }
        }
        Self { shared, own, own_len: len }
    }

    /// As fields of a head that is not written by lines.
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        let lines = self
            .shared
            .split(|byte| *byte == b'\n')
            .chain(self.own[..self.own_len].split(|byte| *byte == b'\n'));
        for line in lines {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let Some(colon) = line.windows(2).position(|pair| pair == b": ") else { continue };
            let name = HeaderName::from_bytes(&line[..colon]);
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&line[colon + 2..])) {
                headers.append(name, value);
            }
        }
    }

    /// As they stand in a head.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.shared, &self.own[..self.own_len]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole() {
        let mut shared = SharedLines::default();
        shared.add(&HeaderName::from_static("a"), &HeaderValue::from_static("1"));
        let lines = HeadLines::new(shared.freeze(), "id", b"xyz");
        assert_eq!(lines.parts().concat(), b"a: 1\r\nid: xyz\r\n");
        let mut fields = HeaderMap::new();
        lines.add_to(&mut fields);
        let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
        assert_eq!(fields, [("a", &b"1"[..]), ("id", b"xyz")]);
    }

    #[test]
    fn a_value_that_could_end_its_line_is_left_out() {
        assert_eq!(HeadLines::new(Bytes::new(), "id", b"a\r\nx: y").parts(), [b""; 2]);
        assert_eq!(HeadLines::new(Bytes::new(), "id", &[b'a'; 80]).parts(), [b""; 2]);
    }
}
