//! Timestamps and durations. Time zones are UTC and fixed offsets: rules about who may pass do not hang on a database
//! that changes.

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

use super::fault::{Meter, Why};
use super::value::Value;

type Made<'v> = Result<Value<'v>, Why>;

/// Units of a duration's text in nanoseconds; longer names first.
const UNITS: &[(&str, i128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// CEL's range in seconds: ten thousand years.
const MAX_SECONDS: u64 = 315_576_000_000;
const FIRST_YEAR: i16 = 1;

pub(super) fn timestamp<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let at: Timestamp = match values {
        [Value::Timestamp(at)] => *at,
        [Value::Text(text)] => text.as_str().parse().map_err(|_| Why::BadValue)?,
        [Value::Int(seconds)] => Timestamp::from_second(*seconds).map_err(|_| Why::Overflow)?,
        _ => return Err(Why::NoOverload),
    };
    timestamp_in_range(at)
}

pub(super) fn timestamp_in_range<'v>(at: Timestamp) -> Made<'v> {
    if Offset::UTC.to_datetime(at).year() < FIRST_YEAR {
        Err(Why::Overflow)
    } else {
        Ok(Value::Timestamp(at))
    }
}

pub(super) fn duration<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    match values {
        [Value::Duration(duration)] => Ok(Value::Duration(*duration)),
        [Value::Text(text)] => parse_duration(text.as_str()).map(Value::Duration),
        _ => Err(Why::NoOverload),
    }
}

fn parse_duration(text: &str) -> Result<SignedDuration, Why> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return Err(Why::BadValue);
    }
    let mut total = 0i128;
    while !rest.is_empty() {
        if rest == "0" {
            break;
        }
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(Why::BadValue)?;
        let (number, unit) = rest.split_at(digits);
        let (name, worth) = UNITS.iter().find(|(name, _)| unit.starts_with(name)).ok_or(Why::BadValue)?;
        total = total.checked_add(nanoseconds(number, *worth)?).ok_or(Why::Overflow)?;
        rest = &unit[name.len()..];
    }
    let total = if is_negative { -total } else { total };
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).map_err(|_| Why::Overflow)?;
    if seconds.unsigned_abs() > 2 * MAX_SECONDS {
        return Err(Why::Overflow);
    }
    let nanoseconds = i32::try_from(total.rem_euclid(1_000_000_000)).map_err(|_| Why::Overflow)?;
    duration_in_range(SignedDuration::new(seconds, nanoseconds))
}

pub(super) fn duration_in_range(duration: SignedDuration) -> Result<SignedDuration, Why> {
    let is_in_range = duration.as_secs().unsigned_abs() <= MAX_SECONDS;
    if is_in_range { Ok(duration) } else { Err(Why::Overflow) }
}

fn nanoseconds(number: &str, worth: i128) -> Result<i128, Why> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() > 20 {
        return Err(Why::BadValue);
    }
    let mut sum = match whole {
        "" => 0,
        whole => whole.parse::<i128>().map_err(|_| Why::BadValue)?.checked_mul(worth).ok_or(Why::Overflow)?,
    };
    let mut unit = worth;
    for digit in fraction.bytes() {
        if !digit.is_ascii_digit() {
            return Err(Why::BadValue);
        }
        unit /= 10;
        sum += i128::from(digit - b'0') * unit;
    }
    Ok(sum)
}

/// In seconds.
pub(super) fn duration_text(duration: SignedDuration) -> String {
    let sign = if duration.is_negative() { "-" } else { "" };
    let fraction = format!("{:09}", duration.subsec_nanos().unsigned_abs());
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}s", duration.as_secs().unsigned_abs())
}

pub(super) fn year<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    part(values, |at| at.year().into())
}

pub(super) fn month<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    part(values, |at| i64::from(at.month()) - 1)
}

pub(super) fn date<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    part(values, |at| at.day().into())
}

pub(super) fn day_of_month<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    part(values, |at| i64::from(at.day()) - 1)
}

pub(super) fn day_of_week<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    part(values, |at| at.weekday().to_sunday_zero_offset().into())
}

pub(super) fn day_of_year<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    part(values, |at| i64::from(at.day_of_year()) - 1)
}

pub(super) fn hours<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    match values {
        [Value::Duration(duration)] => Ok(Value::Int(duration.as_secs() / 3600)),
        _ => part(values, |at| at.hour().into()),
    }
}

pub(super) fn minutes<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    match values {
        [Value::Duration(duration)] => Ok(Value::Int(duration.as_secs() / 60)),
        _ => part(values, |at| at.minute().into()),
    }
}

pub(super) fn seconds<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    match values {
        [Value::Duration(duration)] => Ok(Value::Int(duration.as_secs())),
        _ => part(values, |at| at.second().into()),
    }
}

pub(super) fn milliseconds<'v>(_: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    match values {
        [Value::Duration(duration)] => Ok(Value::Int((duration.subsec_nanos() / 1_000_000).into())),
        _ => part(values, |at| i64::from(at.subsec_nanosecond()) / 1_000_000),
    }
}

/// What a clock shows there.
fn part<'v>(values: &[Value<'v>], of: impl Fn(DateTime) -> i64) -> Made<'v> {
    let (at, offset) = match values {
        [Value::Timestamp(at)] => (at, Offset::UTC),
        [Value::Timestamp(at), Value::Text(zone)] => (at, offset(zone.as_str()).ok_or(Why::BadValue)?),
        _ => return Err(Why::NoOverload),
    };
    Ok(Value::Int(of(offset.to_datetime(*at))))
}

fn offset(zone: &str) -> Option<Offset> {
    if matches!(zone, "UTC" | "Z") {
        return Some(Offset::UTC);
    }
    let (sign, rest) = match zone.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, zone.strip_prefix('+').unwrap_or(zone)),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let number = |text: &str, most: i32| {
        let is_two_digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i32>().ok().filter(|value| is_two_digits && *value <= most)
    };
    Offset::from_seconds(sign * (number(hours, 23)? * 3600 + number(minutes, 59)? * 60)).ok()
}
