//! The normal form of paths: the one spelling under which requests are matched and forwarded.
//!
//! RFC 3986 section 6.2.2: unreserved characters decoded, triplets in upper case, dot segments gone. Beyond it: `//` is
//! one slash (a backend that merges slashes would otherwise see a path that another rule guards), characters that may
//! not stand in a path are encoded, and what servers read in different ways is refused.
//!
//! Invariants: `normal_form(normal_form(x)) == normal_form(x)`; a path in normal form is borrowed, never copied; the
//! result is ASCII, begins with a slash and holds no `//`.

use std::borrow::Cow;
use std::sync::Arc;

/// Why a path has no normal form. As a request it is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNormal {
    #[error("a path begins with '/'")]
    NotAbsolute,
    #[error("'%' is followed by two hexadecimal digits")]
    BadTriplet,
    #[error("an encoded slash (%2F) is read differently by different servers; it is not allowed")]
    EncodedSlash,
    #[error("a backslash, encoded or not, is taken for a slash by some servers; it is not allowed")]
    Backslash,
    #[error("a NUL or another control character is not allowed")]
    Control,
    #[error("the path leads above its root by '..'")]
    AboveRoot,
    #[error("a segment like '..;x' is taken for '..' by some servers; it is not allowed")]
    DotParameter,
    #[error("an overlong UTF-8 encoding is not allowed")]
    Overlong,
    #[error("'?' and '#' end a path; write them as %3F and %23")]
    Delimiter,
}

/// A path in normal form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NormalPath(Arc<str>);

impl NormalPath {
    /// # Errors
    /// `text` has no normal form.
    pub fn new(text: &str) -> Result<Self, NotNormal> {
        Ok(Self(normal_form(text)?.into()))
    }

    /// The same without a slash at the end: `/` is the empty path.
    pub(super) fn without_trailing_slash(self) -> Self {
        match self.0.strip_suffix('/') {
            Some(shorter) => Self(shorter.into()),
            None => self,
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The normal form of a path (without query). Linear in its length; no allocation when it is normal already.
///
/// # Errors
/// The path is malformed, or means different things to different servers.
pub fn normal_form(path: &str) -> Result<Cow<'_, str>, NotNormal> {
    if !path.starts_with('/') {
        return Err(NotNormal::NotAbsolute);
    }
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let spelled = respell(path.as_bytes())?;
    remove_dot_segments(&spelled).map(Cow::Owned)
}

/// Whether nothing has to be looked at more closely. Saying no costs time only.
fn is_normal(path: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        match CLASSES[usize::from(byte)] {
            Class::Plain => at += 1,
            Class::Slash if path.get(at + 1) == Some(&b'/') || starts_with_dots(&path[at + 1..]) => {
                return false;
            }
            Class::Slash => at += 1,
            Class::Percent => match triplet(&path[at..]) {
                Some(value)
                    if !is_unreserved(value)
                        && !matches!(value, 0 | b'/' | b'\\')
                        && !is_overlong(value, triplet(&path[at + 3..]))
                        && !path[at + 1..at + 3].iter().any(u8::is_ascii_lowercase) =>
                {
                    at += 3;
                }
                _ => return false,
            },
            Class::Other => return false,
        }
    }
    true
}

/// Whether a segment that begins here is `.` or `..`, alone or with a parameter.
fn starts_with_dots(rest: &[u8]) -> bool {
    let dots = rest.iter().take(3).take_while(|byte| **byte == b'.').count();
    matches!(dots, 1 | 2) && matches!(rest.get(dots), None | Some(b'/' | b';'))
}

/// Decodes and encodes what has to be, and merges slashes.
fn respell(path: &[u8]) -> Result<Vec<u8>, NotNormal> {
    let mut out = Vec::with_capacity(path.len() + 16);
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        at += 1;
        match CLASSES[usize::from(byte)] {
            Class::Plain => out.push(byte),
            Class::Slash if out.last() == Some(&b'/') => {}
            Class::Slash => out.push(byte),
            Class::Percent => {
                let value = triplet(&path[at - 1..]).ok_or(NotNormal::BadTriplet)?;
                at += 2;
                match value {
                    0 => return Err(NotNormal::Control),
                    b'/' => return Err(NotNormal::EncodedSlash),
                    b'\\' => return Err(NotNormal::Backslash),
                    _ if is_overlong(value, triplet(&path[at..])) => return Err(NotNormal::Overlong),
                    _ if is_unreserved(value) => out.push(value),
                    _ => push_triplet(&mut out, value),
                }
            }
            Class::Other => match byte {
                b'?' | b'#' => return Err(NotNormal::Delimiter),
                b'\\' => return Err(NotNormal::Backslash),
                0..0x20 | 0x7F => return Err(NotNormal::Control),
                _ => push_triplet(&mut out, byte),
            },
        }
    }
    Ok(out)
}

/// RFC 3986 section 5.2.4, on a path without `//`; a path above the root is refused instead of cut.
fn remove_dot_segments(path: &[u8]) -> Result<String, NotNormal> {
    let path = std::str::from_utf8(path).expect("respell lets only ASCII through");
    let mut out = String::with_capacity(path.len());
    let mut ends_in_slash = false;
    for segment in path.split('/').skip(1) {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                let parent = out.rfind('/').ok_or(NotNormal::AboveRoot)?;
                out.truncate(parent);
            }
            _ if segment.starts_with(".;") || segment.starts_with("..;") => {
                return Err(NotNormal::DotParameter);
            }
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if ends_in_slash {
        out.push('/');
    }
    Ok(out)
}

/// The byte that a triplet at the beginning of `text` stands for.
pub(super) fn triplet(text: &[u8]) -> Option<u8> {
    let &[b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

fn push_triplet(out: &mut Vec<u8>, value: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend([b'%', DIGITS[usize::from(value >> 4)], DIGITS[usize::from(value & 15)]]);
}

/// `%C0%AE` and its like: some decoders make a dot or a slash of them.
fn is_overlong(lead: u8, next: Option<u8>) -> bool {
    matches!(
        (lead, next),
        (0xC0 | 0xC1, Some(0x80..=0xBF)) | (0xE0, Some(0x80..=0x9F)) | (0xF0, Some(0x80..=0x8F))
    )
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[derive(Clone, Copy)]
enum Class {
    /// May stand in a segment as it is: RFC 3986's pchar.
    Plain,
    Slash,
    Percent,
    Other,
}

static CLASSES: [Class; 256] = classes();

const fn classes() -> [Class; 256] {
    let mut table = [Class::Other; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = match byte {
            b'/' => Class::Slash,
            b'%' => Class::Percent,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' => {
                Class::Plain
            }
            _ if is_unreserved(byte) => Class::Plain,
            _ => Class::Other,
        };
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spells_equal_paths_alike() {
        for (path, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/%61%2Db", "/a-b"),
            ("/%7euser", "/~user"),
            ("/a%c3%a9", "/a%C3%A9"),
            ("/é x", "/%C3%A9%20x"),
            ("/a//b///c", "/a/b/c"),
            ("//", "/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/a//../b", "/b"),
            ("/pub/%2e%2e/admin", "/admin"),
            ("/pub/%2E./admin", "/admin"),
            ("/pub../admin", "/pub../admin"),
            ("/.../x", "/.../x"),
            ("/.well-known/x", "/.well-known/x"),
            ("/..a/.b", "/..a/.b"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a%3Bb%25", "/a%3Bb%25"),
            ("/{x}|\"^`<>", "/%7Bx%7D%7C%22%5E%60%3C%3E"),
            ("/%3f%23", "/%3F%23"),
        ] {
            assert_eq!(normal_form(path).as_deref(), Ok(normal), "{path}");
        }
    }

    #[test]
    fn refuses_what_servers_read_in_different_ways() {
        for (path, why) in [
            ("", NotNormal::NotAbsolute),
            ("a", NotNormal::NotAbsolute),
            ("*", NotNormal::NotAbsolute),
            ("/%", NotNormal::BadTriplet),
            ("/%4", NotNormal::BadTriplet),
            ("/%zz", NotNormal::BadTriplet),
            ("/%+1", NotNormal::BadTriplet),
            ("/%u002e", NotNormal::BadTriplet),
            ("/pub%2f..%2fadmin", NotNormal::EncodedSlash),
            ("/a%2Fb", NotNormal::EncodedSlash),
            ("/a%5cb", NotNormal::Backslash),
            ("/a\\b", NotNormal::Backslash),
            ("/a%00", NotNormal::Control),
            ("/a\tb", NotNormal::Control),
            ("/..", NotNormal::AboveRoot),
            ("/a/../../b", NotNormal::AboveRoot),
            ("/pub/..;/admin", NotNormal::DotParameter),
            ("/pub/.;x/admin", NotNormal::DotParameter),
            ("/pub/%2e%2e;/admin", NotNormal::DotParameter),
            ("/%c0%ae%c0%ae/admin", NotNormal::Overlong),
            ("/%e0%80%af", NotNormal::Overlong),
            ("/%F0%80%80%AF", NotNormal::Overlong),
            ("/a?b", NotNormal::Delimiter),
            ("/a#b", NotNormal::Delimiter),
        ] {
            assert_eq!(normal_form(path), Err(why), "{path}");
        }
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        for path in
            ["/", "/a/b-c_d~e.f/", "/.well-known/acme-challenge/x", "/a%20b/%C3%A9", "/a:b@c;d=e,f!$&'()*+"]
        {
            assert!(matches!(normal_form(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_normal_form_of_a_normal_form_is_itself(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("/".to_owned()), Just(".".to_owned()), Just("..".to_owned()), Just("%2e".to_owned()),
                    Just("//".to_owned()), Just(";".to_owned()), Just("%C3".to_owned()), Just("%e0".to_owned()),
                    "[a-z%]{1,3}", "%[0-9a-fA-F]{2}", "\\PC{0,2}",
                ], 0..12)
        ) {
            let path = format!("/{}", parts.concat());
            if let Ok(once) = normal_form(&path) {
                prop_assert!(once.is_ascii() && once.starts_with('/') && !once.contains("//"));
                prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."));
                prop_assert!(is_normal(once.as_bytes()));
                prop_assert_eq!(normal_form(&once), Ok(Cow::Borrowed(&*once)));
            }
        }
    }
}
