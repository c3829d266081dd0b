//! The chunked coding of an answer's body (RFC 9112, 7.1).

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::head::MAX_FIELDS;

/// Bytes of one line with a chunk's size and what extends it.
const MAX_LINE: usize = 4 << 10;
/// Of a body's lines beyond what its sizes take: extensions are of no use to anybody.
const MAX_EXTENSIONS: usize = 16 << 10;
/// Bytes of trailers.
const MAX_TRAILERS: usize = 16 << 10;

/// Where in the coding the next byte stands.
#[derive(Debug, Default)]
pub struct Chunks {
    at: At,
    extended: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    Data(u64),
    /// The line's end behind a chunk.
    DataEnd,
    Trailers,
    End,
}

/// What is at hand is not of the coding.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed: {0}")]
pub struct Malformed(&'static str);

/// What was taken off a body.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// It is over.
    End,
    /// More has to be read.
    More,
}

impl Chunks {
    pub fn is_over(&self) -> bool {
        self.at == At::End
    }

    /// # Errors
    /// From there on nothing can be read any more.
    pub fn take(&mut self, read: &mut BytesMut) -> Result<Piece, Malformed> {
        loop {
            match &mut self.at {
                At::Size => {
                    let Some(line) = line(read, MAX_LINE)? else { return Ok(Piece::More) };
                    let (size, digits) = size(&line)?;
                    self.extended += line.len() - digits;
                    if self.extended > MAX_EXTENSIONS {
                        return Err(Malformed("too many extensions"));
                    }
                    self.at = if size == 0 { At::Trailers } else { At::Data(size) };
                }
                At::Data(left) => {
                    if read.is_empty() {
                        return Ok(Piece::More);
                    }
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                    *left -= length as u64;
                    if *left == 0 {
                        self.at = At::DataEnd;
                    }
                    let data = read.split_to(length).freeze();
                    // If the coding ends right behind it, the end is known with it.
                    self.skips_end(read);
                    return Ok(Piece::Data(data));
                }
                At::DataEnd => match &read[..] {
                    [b'\r', b'\n', ..] => {
                        read.advance(2);
                        self.at = At::Size;
                    }
                    [] | [b'\r'] => return Ok(Piece::More),
                    _ => return Err(Malformed("a chunk is longer than its size")),
                },
                At::Trailers => {
                    let Some(trailers) = trailers(read)? else { return Ok(Piece::More) };
                    self.at = At::End;
                    return Ok(if trailers.is_empty() { Piece::End } else { Piece::Trailers(trailers) });
                }
                At::End => return Ok(Piece::End),
            }
        }
    }

    fn skips_end(&mut self, read: &mut BytesMut) {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        if self.at == At::DataEnd && read.starts_with(END) {
            read.advance(END.len());
            self.at = At::End;
        }
    }
}

/// A line without its end. CR and LF end it and stand nowhere else.
fn line(read: &mut BytesMut, most: usize) -> Result<Option<Bytes>, Malformed> {
    let Some(end) = read.iter().take(most).position(|byte| *byte == b'\n') else {
        return if read.len() < most { Ok(None) } else { Err(Malformed("a line is too long")) };
    };
    let line = read.split_to(end + 1).freeze();
    match line.strip_suffix(b"\r\n") {
        Some(text) if !text.contains(&b'\r') => Ok(Some(line.slice(..text.len()))),
        _ => Err(Malformed("a line does not end with CR and LF alone")),
    }
}

/// A chunk's size, and how many digits tell it.
fn size(line: &[u8]) -> Result<(u64, usize), Malformed> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    if !(rest.is_empty() || rest.starts_with(b";")) {
        return Err(Malformed("a size is followed by what is no extension"));
    }
    // 16 digits fit into 64 bits.
    let text = std::str::from_utf8(&line[..digits]).ok().filter(|text| (1..=16).contains(&text.len()));
    let size = text.and_then(|text| u64::from_str_radix(text, 16).ok());
    Ok((size.ok_or(Malformed("a chunk has no size"))?, digits))
}

fn has_bare_ends(lines: &[u8]) -> bool {
    let mut before = 0;
    lines.iter().any(|byte| std::mem::replace(&mut before, *byte) != b'\r' && *byte == b'\n')
}

/// What stands behind the last chunk, up to the empty line; `None`: that has not come yet.
fn trailers(read: &mut BytesMut) -> Result<Option<HeaderMap>, Malformed> {
    if read.starts_with(b"\r\n") {
        read.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(&read[..read.len().min(MAX_TRAILERS)], &mut fields) {
        Ok(httparse::Status::Complete((length, _))) if has_bare_ends(&read[..length]) => {
            Err(Malformed("a line does not end with CR and LF alone"))
        }
        Ok(httparse::Status::Complete((length, parsed))) => {
            let mut trailers = HeaderMap::with_capacity(parsed.len());
            for field in parsed {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) else {
                    return Err(Malformed("a trailer that is no field"));
                };
                trailers.append(name, value);
            }
            read.advance(length);
            Ok(Some(trailers))
        }
        Ok(httparse::Status::Partial) if read.len() < MAX_TRAILERS => Ok(None),
        Ok(httparse::Status::Partial) => Err(Malformed("too many trailers")),
        Err(_) => Err(Malformed("a trailer that is no field")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Its data, its trailers, what is left behind it.
    type Whole = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// All of a body that comes in such pieces.
    fn all(text: &[u8], step: usize) -> Result<Whole, &'static str> {
        let (mut chunks, mut read) = (Chunks::default(), BytesMut::new());
        let (mut data, mut trailers) = (Vec::new(), None);
        for piece in text.chunks(step) {
            read.extend_from_slice(piece);
            loop {
                match chunks.take(&mut read).map_err(|malformed| malformed.0)? {
                    Piece::Data(bytes) => data.extend_from_slice(&bytes),
                    Piece::Trailers(fields) => trailers = Some(fields),
                    Piece::End | Piece::More => break,
                }
            }
        }
        if chunks.is_over() { Ok((data, trailers, read.to_vec())) } else { Err("not over") }
    }

    #[test]
    fn however_it_is_cut_a_body_is_the_same_and_what_follows_it_stays() {
        let text = b"3\r\nabc\r\n0A ; x=\"y\"\r\n0123456789\r\n000\r\nx: 1\r\nY: 2\r\n\r\nnext";
        for step in 1..=text.len() {
            let (data, trailers, rest) = all(text, step).expect("well-formed");
            let trailers = trailers.expect("two");
            assert_eq!((&data[..], &rest[..]), (&b"abc0123456789"[..], &b"next"[..]), "{step}");
            assert_eq!((trailers.len(), &trailers["y"]), (2, &HeaderValue::from_static("2")));
        }
        for step in 1..=9 {
            let (data, trailers, rest) = all(b"1\r\nx\r\n0\r\n\r\n", step).expect("well-formed");
            assert_eq!((&data[..], trailers, rest.len()), (&b"x"[..], None, 0), "{step}");
        }
    }

    #[test]
    fn the_end_is_known_with_the_last_data_that_brings_it() {
        let (mut chunks, mut read) = (Chunks::default(), BytesMut::from("2\r\nab\r\n0\r\n\r\n"));
        assert_eq!(chunks.take(&mut read), Ok(Piece::Data(Bytes::from_static(b"ab"))));
        assert!(chunks.is_over() && read.is_empty());
    }

    #[test]
    fn what_is_not_of_the_coding_is_refused() {
        let long = "x".repeat(MAX_LINE);
        for (text, why) in [
            ("x\r\n", "a size is followed by what is no extension"),
            ("\r\n", "a chunk has no size"),
            ("-1\r\n", "a size is followed by what is no extension"),
            ("0x1\r\n", "a size is followed by what is no extension"),
            ("1 2\r\n", "a size is followed by what is no extension"),
            ("11112222333344445\r\n", "a chunk has no size"),
            ("1\na\r\n", "a line does not end with CR and LF alone"),
            ("1;a\rb\r\na\r\n", "a line does not end with CR and LF alone"),
            ("1\r\nab\r\n", "a chunk is longer than its size"),
            ("1\r\na\n0\r\n\r\n", "a chunk is longer than its size"),
            (&format!("1;{long}\r\n"), "a line is too long"),
            ("0\r\n\n", "a line does not end with CR and LF alone"),
            ("0\r\nx: 1\n\r\n", "a line does not end with CR and LF alone"),
            ("0\r\nx\r\n\r\n", "a trailer that is no field"),
            (&format!("0\r\n{}", "x: 1\r\n".repeat(MAX_FIELDS + 1)), "a trailer that is no field"),
            (&format!("0\r\nx: {}", "y".repeat(MAX_TRAILERS)), "too many trailers"),
            (&format!("1;{}\r\na\r\n", &long[100..]).repeat(5), "too many extensions"),
        ] {
            assert_eq!(all(text.as_bytes(), text.len()), Err(why), "{text:.40}");
        }
        assert_eq!(all(b"5\r\nabc", 7), Err("not over"));
        assert_eq!(all(b"0\r\n", 3), Err("not over"));
    }

    proptest! {
        #[test]
        fn what_is_chunked_comes_out_as_it_was(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            step in 1_usize..400,
        ) {
            let mut coded = Vec::new();
            for piece in &pieces {
                coded.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                coded.extend_from_slice(piece);
                coded.extend_from_slice(b"\r\n");
            }
            coded.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(all(&coded, step), Ok((pieces.concat(), None, Vec::new())));
        }

        #[test]
        fn any_bytes_are_read_alike_however_they_are_cut(
            text in prop::collection::vec(prop::sample::select(&b"0123aF;= \t\r\n\r\n\r\nx:"[..]), 0..120),
            step in 1_usize..20,
        ) {
            let whole = all(&text, text.len().max(1));
            let cut = all(&text, step);
            prop_assert_eq!(whole.is_ok(), cut.is_ok());
            if let (Ok(whole), Ok(cut)) = (whole, cut) {
                prop_assert_eq!(whole, cut);
            }
        }
    }
}
