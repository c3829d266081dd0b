//! Decimal numbers as JSON writes them, compared exactly: no digit is lost in a double, and 19.99 is a multiple of 0.01.

use std::cmp::Ordering;

/// Longer texts are no numbers here.
const MOST: usize = 64;

/// 0.d₁d₂d₃… × 10^exponent. One number has one form: no digit at either end is zero, and zero has no digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decimal {
    is_negative: bool,
    exponent: i64,
    count: usize,
    /// Zeros behind the last one.
    digits: [u8; MOST],
}

impl Decimal {
    /// RFC 8259 section 6; what no double holds is none.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MOST || !text.parse::<f64>().ok()?.is_finite() {
            return None;
        }
        let (is_negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, power) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, i64::from(power.parse::<i32>().ok()?)),
            None => (unsigned, 0),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (mantissa, ""),
        };
        let is_plain = whole == "0" || !whole.is_empty() && !whole.starts_with('0');
        let mut digits = [0; MOST];
        let (mut count, mut zeros) = (0, 0);
        for byte in whole.bytes().chain(fraction.bytes()) {
            match byte {
                b'0' if count == 0 => zeros += 1,
                b'0'..=b'9' => {
                    digits[count] = byte - b'0';
                    count += 1;
                }
                _ => return None,
            }
        }
        while count > 0 && digits[count - 1] == 0 {
            count -= 1;
        }
        let exponent = if count == 0 { 0 } else { power + length(whole.len()) - zeros };
        is_plain.then_some(Self { is_negative: is_negative && count > 0, exponent, count, digits })
    }

    /// Whether it is some whole number times `step`, which has at most 19 digits and is not zero.
    pub fn is_multiple_of(&self, step: &Self) -> bool {
        let power = (self.exponent - length(self.count)) - (step.exponent - length(step.count));
        if self.count == 0 {
            return true;
        }
        // Its last digit is not zero: it is no multiple of anything times ten.
        let Ok(mut power) = u64::try_from(power) else { return false };
        let by = step.digits().fold(0_u128, |sum, digit| sum * 10 + u128::from(digit));
        // Both factors are less than 2^64.
        let mut left = self.digits().fold(0, |rest, digit| (rest * 10 + u128::from(digit)) % by);
        let mut ten = 10 % by;
        while power > 0 {
            if power & 1 == 1 {
                left = left * ten % by;
            }
            ten = ten * ten % by;
            power >>= 1;
        }
        left == 0
    }

    pub const fn is_positive(&self) -> bool {
        !self.is_negative && self.count > 0
    }

    fn digits(&self) -> impl Iterator<Item = u8> {
        self.digits.into_iter().take(self.count)
    }

    fn compare_size(&self, other: &Self) -> Ordering {
        match (self.count, other.count) {
            (0, _) | (_, 0) => self.count.cmp(&other.count),
            _ => self.exponent.cmp(&other.exponent).then_with(|| self.digits.cmp(&other.digits)),
        }
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.is_negative, other.is_negative) {
            (false, false) => self.compare_size(other),
            (true, true) => other.compare_size(self),
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn length(count: usize) -> i64 {
    i64::try_from(count).expect("at most 64")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap_or_else(|| panic!("{text:?} is a number"))
    }

    #[test]
    fn one_number_has_one_form() {
        for (one, other) in [
            ("0", "-0.00e7"),
            ("1", "1.0"),
            ("10", "1e1"),
            ("0.01", "1E-2"),
            ("-120", "-1.2e+2"),
            ("100000000000000000000", "1e20"),
        ] {
            assert_eq!(decimal(one), decimal(other));
        }
        assert_ne!(decimal("9007199254740993"), decimal("9007199254740992"), "a double has no such digits");
    }

    #[test]
    fn what_json_does_not_write_is_none() {
        for text in [
            "", "-", "+1", "01", "-01", "00", ".5", "1.", "1.e1", "1e", "1e+", "1e1.5", "0x1", "1_0", " 1",
            "1 ", "inf", "nan", "NaN", "infinity", "1e999", "--1", "1,5", "e5", "1e+-5", "١",
        ] {
            assert_eq!(Decimal::parse(text), None, "{text:?}");
        }
        assert_eq!(Decimal::parse(&"1".repeat(65)), None);
        assert!(Decimal::parse(&"1".repeat(64)).is_some());
    }

    #[test]
    fn multiples_are_found_exactly() {
        for (number, step, is_multiple) in [
            ("19.99", "0.01", true),
            ("0.3", "0.1", true),
            ("0.35", "0.1", false),
            ("7", "0.5", true),
            ("7.25", "0.5", false),
            ("-9", "3", true),
            ("10", "3", false),
            ("0", "0.7", true),
            ("1e308", "7", false),
            ("7e300", "0.07", true),
            ("5", "10", false),
            ("20", "10", true),
            ("1e-300", "1e300", false),
            ("36893488147419103230", "18446744073709551615", true),
            ("36893488147419103231", "18446744073709551615", false),
        ] {
            assert_eq!(decimal(number).is_multiple_of(&decimal(step)), is_multiple, "{number} {step}");
        }
    }

    proptest! {
        #[test]
        fn decimals_are_ordered_and_divided_like_whole_numbers(a: i64, b in 1_i64..5000, places in 0_usize..5) {
            // The same two numbers, and the same two divided by a power of ten.
            let scaled = |number: i64| decimal(&format!("{number}e-{places}"));
            prop_assert_eq!(scaled(a).cmp(&scaled(b)), a.cmp(&b));
            prop_assert_eq!(scaled(a).is_multiple_of(&scaled(b)), a % b == 0);
            prop_assert_eq!(scaled(a).is_positive(), a > 0);
        }

        #[test]
        fn json_s_own_parser_takes_the_same_texts(text in "-?[0-9]{0,4}(\\.[0-9]{0,3})?([eE][-+]?[0-9]{0,3})?") {
            let json = serde_json::from_str::<f64>(&text).ok().filter(|number| number.is_finite());
            let found = Decimal::parse(&text);
            prop_assert_eq!(found.is_some(), json.is_some());
        }
    }
}
