//! Durations as Gateway API writes them (GEP-2257): `1h30m`, `250ms`; at most four parts, no fractions, no signs.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The pattern of GEP-2257, as it stands in the CRD.
const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// A span of time with millisecond resolution. `0s` is zero; fields that give zero a meaning say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(std::time::Duration);

/// What was found where a duration was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a duration; write it like 250ms, 5s or 1m30s")]
pub struct InvalidDuration {
    found: String,
}

impl Duration {
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    pub const fn from_secs(secs: u64) -> Self {
        Self(std::time::Duration::from_secs(secs))
    }

    pub const fn std(self) -> std::time::Duration {
        self.0
    }

    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| InvalidDuration { found: text.chars().take(64).collect() })
    }
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.as_bytes();
    let mut millis = 0u64;
    for part in 0.. {
        if rest.is_empty() {
            return (part > 0).then_some(Duration::from_millis(millis));
        }
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if part == 4 || digits == 0 || digits > 5 {
            return None;
        }
        let number = rest[..digits].iter().fold(0u64, |n, b| n * 10 + u64::from(b - b'0'));
        rest = &rest[digits..];
        let (unit, length) = match rest {
            [b'm', b's', ..] => (1, 2),
            [b's', ..] => (1_000, 1),
            [b'm', ..] => (60_000, 1),
            [b'h', ..] => (3_600_000, 1),
            _ => return None,
        };
        millis += number * unit;
        rest = &rest[length..];
    }
    None
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_millis();
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, name) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")] {
            if left >= unit {
                write!(f, "{}{name}", left / unit)?;
                left %= unit;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": PATTERN, "maxLength": 24})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_gep_2257_allows() {
        for (text, millis) in
            [("0s", 0), ("250ms", 250), ("1m30s", 90_000), ("1h", 3_600_000), ("99999h", 359_996_400_000)]
        {
            assert_eq!(text.parse(), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_what_it_forbids() {
        for text in ["", "5", "s", "-1s", "1.5s", "1us", "100000s", "1s1s1s1s1s", " 1s", "1 s", "1S"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn prints_what_it_reads() {
        for text in ["0s", "250ms", "1m30s", "1h2m3s4ms"] {
            assert_eq!(text.parse::<Duration>().expect("valid").to_string(), text);
        }
    }
}
