//! The field `Date` of answers, written once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use http::HeaderValue;

/// A worker's.
#[derive(Debug, Default)]
pub struct DateField(RefCell<Option<Second>>);

#[derive(Debug)]
struct Second {
    begins: SystemTime,
    value: HeaderValue,
}

impl DateField {
    pub fn at(&self, now: SystemTime) -> HeaderValue {
        let mut known = self.0.borrow_mut();
        if let Some(second) = &*known
            && now.duration_since(second.begins).is_ok_and(|since| since < Duration::from_secs(1))
        {
            return second.value.clone();
        }
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let begins = SystemTime::UNIX_EPOCH + Duration::from_secs(since_epoch.as_secs());
        let value = HeaderValue::try_from(httpdate::fmt_http_date(begins)).expect("a date is text");
        *known = Some(Second { begins, value: value.clone() });
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_of_its_second_whichever_way_the_clock_goes() {
        let field = DateField::default();
        let at = |millis: u64| field.at(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        for (millis, expected) in [
            (784_111_777_000, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_777_999, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_778_000, "Sun, 06 Nov 1994 08:49:38 GMT"),
            (784_111_779_500, "Sun, 06 Nov 1994 08:49:39 GMT"),
            (784_111_777_500, "Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            assert_eq!(at(millis), expected, "{millis}");
        }
    }
}
