//! Names of header fields that only the gateway may set.

use std::fmt;

/// A set of names, in which all spellings of a name that some backend reads alike are one: many read `_` as `-`, some
/// every other sign, and case never counts (RFC 9110 section 5.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservedHeaders(Box<[Box<str>]>);

impl ReservedHeaders {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the set holds a spelling of this name.
    pub fn hold(&self, name: &str) -> bool {
        self.0.binary_search_by(|own| own.bytes().cmp(name.bytes().map(plain))).is_ok()
    }
}

impl<'a> FromIterator<&'a str> for ReservedHeaders {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        let mut names: Vec<Box<str>> = names.into_iter().map(|name| plain_name(name).into()).collect();
        names.sort_unstable();
        names.dedup();
        Self(names.into())
    }
}

impl fmt::Display for ReservedHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// Whether some backend reads both as one name.
pub fn is_same_field(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().map(plain).eq(other.bytes().map(plain))
}

/// The one spelling that stands for all: lower case, every sign a hyphen.
pub fn plain_name(name: &str) -> String {
    name.bytes().map(|byte| char::from(plain(byte))).collect()
}

fn plain(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_in_every_spelling_and_no_other_is() {
        let held: ReservedHeaders = ["x-user-id", "X_User.Id", "x-tier"].into_iter().collect();
        assert_eq!(held.to_string(), "x-tier x-user-id");
        for name in ["x-user-id", "X-USER-ID", "x_user_id", "x.user~id", "x-tier"] {
            assert!(held.hold(name), "{name}");
        }
        assert!(is_same_field("x_user.id", "X-User-Id") && !is_same_field("x-user--id", "x-user-id"));
        for name in ["x-user", "x-user-idx", "xuser-id", "x-user--id", ""] {
            assert!(!held.hold(name), "{name}");
        }
    }
}
