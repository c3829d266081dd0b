//! The regular expressions of `matches()`: literal, compiled once, linear in time, bounded in size.

use regex::{Regex, RegexBuilder};

/// Bytes of one pattern.
const MAX_PATTERN: usize = 1024;
/// Sizes of compiled patterns in bytes, and the steps that 16 bytes of text cost with one that is no larger: in the
/// worst case the time for each byte grows with the size.
const PROGRAMS: &[(usize, usize)] = &[(16 << 10, 1), (48 << 10, 4), (128 << 10, 16)];
const MAX_AUTOMATON: usize = 128 << 10;
const MAX_NESTING: u32 = 50;

#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// Steps for 16 bytes.
    cost: usize,
}

impl Pattern {
    /// # Errors
    /// One line of what is wrong.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATTERN {
            return Err(format!("the pattern has {} bytes, at most {MAX_PATTERN} are allowed", text.len()));
        }
        let mut refused = String::new();
        for (size, cost) in PROGRAMS {
            match build(text, *size) {
                Ok(regex) => return Ok(Self { regex, cost: *cost }),
                Err(message) => refused = message,
            }
        }
        Err(refused)
    }

    /// Matches anywhere in the text, as CEL has it.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// Steps that looking at so much text costs.
    pub const fn cost(&self, bytes: usize) -> usize {
        bytes.saturating_mul(self.cost) / 16
    }
}

fn build(text: &str, size: usize) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .size_limit(size)
        .dfa_size_limit(MAX_AUTOMATON)
        .nest_limit(MAX_NESTING)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            format!("not a regular expression that is supported: {reason}")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_patterns_cost_more() {
        let cost = |text: &str| Pattern::new(text).map(|pattern| pattern.cost(1600));
        assert_eq!(cost("^/orders/[0-9]+$"), Ok(100));
        assert_eq!(cost(r"^[^@]+@example\.com$"), Ok(100));
        assert_eq!(cost(r"^\w+@\w+$"), Ok(1600));
        assert!(cost(r"\w{40}").is_err() && cost("(a{1000}){1000}").is_err());
        assert!(cost(&"a".repeat(MAX_PATTERN + 1)).is_err());
    }
}
