//! `Accept-Encoding` as answers are told apart by it: which codings a client can unpack, however it spells that. Two clients
//! that can unpack the same may have each other's answers (RFC 9111 section 4.1); which of them they would rather have does
//! not count.

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

/// A client that names more is told apart by its own words.
const MOST: usize = 16;
/// Stands in no field: what was read looks like no client's own words.
const READ: u8 = 1;

#[derive(Clone, Copy)]
struct Named<'h> {
    coding: &'h [u8],
    /// With `q=0`.
    is_refused: bool,
}

/// What a request says, in order and without what changes nothing. `None`: it cannot be read for sure.
struct Accepted<'h> {
    named: [Named<'h>; MOST],
    count: usize,
}

/// Writes what the field says; whether it could be read.
pub fn write(bytes: &mut Vec<u8>, headers: &HeaderMap) -> bool {
    if !headers.contains_key(ACCEPT_ENCODING) {
        // A field that is missing is another thing than an empty one.
        return true;
    }
    let Some(accepted) = Accepted::of(headers) else { return false };
    bytes.push(READ);
    let all = &accepted.named[..accepted.count];
    let star = all.iter().find(|one| one.coding == b"*").map(|one| !one.is_refused);
    let identity = all.iter().find(|one| is(one.coding, b"identity"));
    for one in all {
        // A refusal means something where everything else is accepted.
        let counts =
            one.coding != b"*" && !is(one.coding, b"identity") && (!one.is_refused || star == Some(true));
        if counts {
            bytes.push(if one.is_refused { b'!' } else { b',' });
            bytes.extend(one.coding.iter().map(u8::to_ascii_lowercase));
        }
    }
    if star == Some(true) {
        bytes.extend_from_slice(b",*");
    }
    // It is accepted unless something says no.
    if identity.map_or(star == Some(false), |identity| identity.is_refused) {
        bytes.extend_from_slice(b"!identity");
    }
    true
}

impl<'h> Accepted<'h> {
    fn of(headers: &'h HeaderMap) -> Option<Self> {
        let mut accepted = Self { named: [Named { coding: b"", is_refused: false }; MOST], count: 0 };
        for value in headers.get_all(ACCEPT_ENCODING) {
            for member in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if !member.is_empty() {
                    accepted.take(named(member)?)?;
                }
            }
        }
        Some(accepted)
    }

    /// Puts one in its place by name.
    fn take(&mut self, new: Named<'h>) -> Option<()> {
        let lower = |coding: &'h [u8]| coding.iter().map(u8::to_ascii_lowercase);
        let known = &self.named[..self.count];
        let at = known.partition_point(|one| lower(one.coding).lt(lower(new.coding)));
        if let Some(same) = known.get(at).filter(|one| is(one.coding, new.coding)) {
            // Said twice, and otherwise: nobody knows what counts.
            return (same.is_refused == new.is_refused).then_some(());
        }
        if self.count == MOST {
            return None;
        }
        self.named.copy_within(at..self.count, at + 1);
        self.named[at] = new;
        self.count += 1;
        Some(())
    }
}

fn is(one: &[u8], other: &[u8]) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn named(member: &[u8]) -> Option<Named<'_>> {
    let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let coding = parts.next()?;
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._*".contains(byte);
    if coding.is_empty() || !coding.iter().all(is_token) {
        return None;
    }
    let is_refused = match parts.next() {
        None => false,
        Some(weight) => is_nothing(weight.strip_prefix(b"q=").or_else(|| weight.strip_prefix(b"Q="))?)?,
    };
    parts.next().is_none().then_some(Named { coding, is_refused })
}

/// A weight (RFC 9110 section 12.4.2), and whether it is 0.
fn is_nothing(weight: &[u8]) -> Option<bool> {
    let (whole, rest) = weight.split_first()?;
    let digits = match rest {
        [] => rest,
        [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return None,
    };
    let is_zero = digits.iter().all(|digit| *digit == b'0');
    match whole {
        b'0' => Some(is_zero),
        b'1' if is_zero => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// `None`: it is told apart by its own words.
    fn written(lines: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_str(line).expect("a value"));
        }
        let mut bytes = Vec::new();
        write(&mut bytes, &headers)
            .then(|| String::from_utf8(bytes).expect("text").replace(char::from(READ), ":"))
    }

    #[test]
    fn who_can_unpack_the_same_is_told_apart_by_no_spelling() {
        let same =
            ["br, gzip, zstd", "zstd,gzip ,br", "ZSTD;q=0.5, GZip; q=1.0, br;Q=0.001", "br, gzip, zstd, br"];
        let same: Vec<_> =
            same.iter().map(|line| written(&[line])).chain([written(&["gzip", "br, zstd"])]).collect();
        assert!(same.iter().all(|one| *one == Some(":,br,gzip,zstd".into())), "{same:?}");
        for plain in ["", "identity", "identity;q=0.5", "gzip;q=0", "br;q=0.000, identity", "identity, *;q=0"]
        {
            assert_eq!(written(&[plain]), Some(":".into()), "{plain}");
        }
    }

    #[test]
    fn who_cannot_unpack_the_same_is_told_apart() {
        let all = [
            &[][..],
            &[""],
            &["gzip"],
            &["x-gzip"],
            &["deflate"],
            &["gzip, deflate"],
            &["br, gzip"],
            &["*"],
            &["*, gzip;q=0"],
            &["*, identity;q=0"],
            &["identity;q=0"],
            &["gzip, identity;q=0"],
            &["gzip, gzip;q=0.1, *"],
        ];
        let told: std::collections::BTreeSet<_> = all.iter().map(|lines| written(lines)).collect();
        assert_eq!(told.len(), all.len(), "{told:?}");
        assert!(!told.contains(&None));
        assert_eq!(written(&["gzip, *;q=0"]), Some(":,gzip!identity".into()));
    }

    #[test]
    fn what_cannot_be_read_for_sure_is_left_as_it_is() {
        let many: Vec<_> = (0..MOST + 1).map(|number| format!("a{number}")).collect();
        for odd in [
            "gzip, gzip;q=0",
            "gzip;q=2",
            "gzip;q=",
            "gzip;q=0.0000",
            "gzip;level=1",
            "gz ip",
            "\"gzip\"",
            &many.join(","),
        ] {
            assert_eq!(written(&[odd]), None, "{odd}");
        }
    }
}
