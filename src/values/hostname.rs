//! Hostnames as routes name them: `api.example.com`, or `*.example.com` for every name below it, at any depth.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A lower-case DNS name (RFC 1123), exact or with one leading wildcard label. A wildcard has two labels after the star.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hostname {
    Exact(Arc<str>),
    /// The part after `*.`
    Wildcard(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a hostname: {why}")]
pub struct InvalidHostname {
    found: String,
    why: &'static str,
}

impl Hostname {
    /// Whether `host` (lower case, without port) is this name or lies under this wildcard.
    pub fn covers(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Wildcard(suffix) => host
                .strip_suffix(&**suffix)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty()),
        }
    }

    /// Whether every name that `other` stands for is covered by this one.
    pub fn covers_all_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Exact(_), Self::Wildcard(_)) => false,
            (Self::Wildcard(_), Self::Exact(b)) => self.covers(b),
            (Self::Wildcard(a), Self::Wildcard(b)) => a == b || self.covers(b),
        }
    }
}

impl FromStr for Hostname {
    type Err = InvalidHostname;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |why| Err(InvalidHostname { found: text.chars().take(253).collect(), why });
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if name.is_empty() || text.len() > 253 {
            return fail("it has 1 to 253 characters");
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > 63 {
                return fail("each label has 1 to 63 characters");
            }
            if !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
                return fail(
                    "labels are lower-case letters, digits and '-'; '*' may only be the whole first label",
                );
            }
            if label.starts_with('-') || label.ends_with('-') {
                return fail("a label does not begin or end with '-'");
            }
        }
        if name.parse::<std::net::Ipv4Addr>().is_ok() {
            return fail("an IP address is not a hostname");
        }
        if wildcard {
            if !name.contains('.') {
                return fail("a wildcard needs two labels after the star");
            }
            return Ok(Self::Wildcard(name.into()));
        }
        Ok(Self::Exact(name.into()))
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Hostname {
        text.parse().expect(text)
    }

    #[test]
    fn wildcards_cover_any_depth_but_not_the_apex() {
        let star = name("*.shop.example");
        assert!(star.covers("a.shop.example") && star.covers("a.b.shop.example"));
        assert!(
            !star.covers("shop.example") && !star.covers("xshop.example") && !star.covers(".shop.example")
        );
        assert!(
            star.covers_all_of(&name("*.m.shop.example")) && !name("*.m.shop.example").covers_all_of(&star)
        );
    }

    #[test]
    fn refuses_what_is_no_name() {
        for text in [
            "",
            "*",
            "*.example",
            "a..b",
            "A.example",
            "-a.example",
            "a-.example",
            "a.*.example",
            "10.0.0.1",
            "a_b.example",
            "a.example.",
        ] {
            assert!(text.parse::<Hostname>().is_err(), "{text}");
        }
    }
}
