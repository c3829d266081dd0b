//! The methods of text. Places are counted in characters; what is made is paid for before it is made.

use std::rc::Rc;

use super::fault::{Meter, Why};
use super::value::{List, Text, Value};

type Made<'v> = Result<Value<'v>, Why>;

pub(super) fn starts_with<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Text(text), Value::Text(part)] = values else { return Err(Why::NoOverload) };
    meter.spend_bytes(part.as_str().len())?;
    Ok(Value::Bool(text.as_str().starts_with(part.as_str())))
}

pub(super) fn ends_with<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Text(text), Value::Text(part)] = values else { return Err(Why::NoOverload) };
    meter.spend_bytes(part.as_str().len())?;
    Ok(Value::Bool(text.as_str().ends_with(part.as_str())))
}

pub(super) fn contains<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Text(text), Value::Text(part)] = values else { return Err(Why::NoOverload) };
    meter.spend_bytes(text.as_str().len() + part.as_str().len())?;
    Ok(Value::Bool(text.as_str().contains(part.as_str())))
}

pub(super) fn lower<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Text(text)] = values else { return Err(Why::NoOverload) };
    meter.spend_bytes(text.as_str().len())?;
    if text.as_str().bytes().all(|byte| !byte.is_ascii_uppercase()) {
        return Ok(Value::Text(text.clone()));
    }
    Ok(Value::text(text.as_str().to_ascii_lowercase()))
}

pub(super) fn upper<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Text(text)] = values else { return Err(Why::NoOverload) };
    meter.spend_bytes(text.as_str().len())?;
    if text.as_str().bytes().all(|byte| !byte.is_ascii_lowercase()) {
        return Ok(Value::Text(text.clone()));
    }
    Ok(Value::text(text.as_str().to_ascii_uppercase()))
}

pub(super) fn trim<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Text(text)] = values else { return Err(Why::NoOverload) };
    meter.spend_bytes(text.as_str().len())?;
    // Unicode's White_Space, as the definition of the function has it.
    let start = text.as_str().len() - text.as_str().trim_start().len();
    let end = start + text.as_str().trim().len();
    Ok(text.slice(start..end))
}

pub(super) fn split<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let (text, separator, most) = match values {
        [Value::Text(text), Value::Text(separator)] => (text, separator.as_str(), usize::MAX),
        // A negative limit is none.
        [Value::Text(text), Value::Text(separator), Value::Int(most)] => {
            (text, separator.as_str(), usize::try_from(*most).unwrap_or(usize::MAX))
        }
        _ => return Err(Why::NoOverload),
    };
    meter.spend_bytes(text.as_str().len())?;
    let mut parts = Vec::new();
    if most == 0 {
        return Ok(Value::List(List::Made(Rc::from(parts))));
    }
    let (whole, mut start) = (text.as_str(), 0);
    loop {
        meter.spend(1)?;
        let rest = &whole[start..];
        let next = match separator.is_empty() {
            true => rest.chars().next().map(char::len_utf8).filter(|length| *length < rest.len()),
            false => rest.find(separator),
        };
        let end = match next {
            Some(next) if parts.len() + 1 < most => start + next,
            _ => {
                if !(separator.is_empty() && rest.is_empty()) {
                    parts.push(text.slice(start..whole.len()));
                }
                break;
            }
        };
        parts.push(text.slice(start..end));
        start = end + separator.len();
    }
    Ok(Value::List(List::Made(Rc::from(parts))))
}

pub(super) fn join<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let (list, separator) = match values {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::Text(separator)] => (list, separator.as_str()),
        _ => return Err(Why::NoOverload),
    };
    let mut joined = String::new();
    for index in 0..list.len() {
        let Value::Text(part) = list.at(index).opened(meter)? else { return Err(Why::NoOverload) };
        meter.spend(1)?;
        meter.spend_bytes(part.as_str().len() + separator.len())?;
        joined += if index == 0 { "" } else { separator };
        joined += part.as_str();
    }
    Ok(Value::text(joined))
}

pub(super) fn replace<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let (text, old, new, most) = match values {
        [Value::Text(text), Value::Text(old), Value::Text(new)] => (text, old, new, usize::MAX),
        [Value::Text(text), Value::Text(old), Value::Text(new), Value::Int(most)] => {
            (text, old, new, usize::try_from(*most).unwrap_or(usize::MAX))
        }
        _ => return Err(Why::NoOverload),
    };
    let (text, old, new) = (text.as_str(), old.as_str(), new.as_str());
    meter.spend_bytes(text.len())?;
    let times = text.matches(old).take(most).count();
    meter.spend_bytes(times.saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(Value::text(text.replacen(old, new, times)))
}

pub(super) fn substring<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let (text, from, to) = match values {
        [Value::Text(text), Value::Int(from)] => (text, *from, None),
        [Value::Text(text), Value::Int(from), Value::Int(to)] => (text, *from, Some(*to)),
        _ => return Err(Why::NoOverload),
    };
    meter.spend_bytes(text.as_str().len())?;
    let start = byte_of(text, from)?;
    let end = to.map_or(Ok(text.as_str().len()), |to| byte_of(text, to))?;
    if start > end { Err(Why::NoSuchIndex) } else { Ok(text.slice(start..end)) }
}

pub(super) fn char_at<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let [Value::Text(text), Value::Int(place)] = values else { return Err(Why::NoOverload) };
    meter.spend_bytes(text.as_str().len())?;
    let start = byte_of(text, *place)?;
    let length = text.as_str()[start..].chars().next().map_or(0, char::len_utf8);
    Ok(text.slice(start..start + length))
}

pub(super) fn index_of<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let (text, part, from) = match values {
        [Value::Text(text), Value::Text(part)] => (text, part, 0),
        [Value::Text(text), Value::Text(part), Value::Int(from)] => (text, part, *from),
        _ => return Err(Why::NoOverload),
    };
    meter.spend_bytes(text.as_str().len() + part.as_str().len())?;
    let start = byte_of(text, from)?;
    let found = text.as_str()[start..].find(part.as_str()).map(|found| start + found);
    Ok(place_of(text, found))
}

pub(super) fn last_index_of<'v>(meter: &mut Meter, values: &[Value<'v>]) -> Made<'v> {
    let (text, part, from) = match values {
        [Value::Text(text), Value::Text(part)] => (text, part, None),
        [Value::Text(text), Value::Text(part), Value::Int(from)] => (text, part, Some(*from)),
        _ => return Err(Why::NoOverload),
    };
    meter.spend_bytes(text.as_str().len() + part.as_str().len())?;
    let latest = from.map_or(Ok(text.as_str().len()), |from| byte_of(text, from))?;
    // The part may reach beyond the place where it is to begin; what begins there ends where a character does.
    let mut end = latest.saturating_add(part.as_str().len()).min(text.as_str().len());
    while !text.as_str().is_char_boundary(end) {
        end -= 1;
    }
    let found = text.as_str()[..end].rfind(part.as_str()).filter(|found| *found <= latest);
    Ok(place_of(text, found))
}

/// Where a character begins; the end for the one after the last.
fn byte_of(text: &Text<'_>, place: i64) -> Result<usize, Why> {
    let place = usize::try_from(place).map_err(|_| Why::NoSuchIndex)?;
    let text = text.as_str();
    let mut starts = text.char_indices().map(|(at, _)| at).chain(std::iter::once(text.len()));
    starts.nth(place).ok_or(Why::NoSuchIndex)
}

fn place_of<'v>(text: &Text<'_>, byte: Option<usize>) -> Value<'v> {
    let place = byte.map(|byte| text.as_str()[..byte].chars().count());
    Value::Int(place.and_then(|place| i64::try_from(place).ok()).unwrap_or(-1))
}
