//! JSON bodies in expressions. A part that is only moved is an opaque piece of the text; it becomes a value of CEL when
//! something looks at it, and a number only where it is held exactly. And the way back: values as JSON text.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fault::{Meter, Why};
use super::value::{List, Map, Value};
use crate::message::{Piece, PieceKind};

impl<'v> Value<'v> {
    /// What a piece of JSON is worth. A number that neither an int nor a double holds exactly stays what it is, and no
    /// operation takes it.
    pub(super) fn opened(self, meter: &mut Meter) -> Result<Self, Why> {
        let Self::Raw(piece) = self else { return Ok(self) };
        Ok(match piece.kind() {
            PieceKind::Null => Self::Null,
            PieceKind::Bool(value) => Self::Bool(value),
            PieceKind::Number => number(piece.text()).unwrap_or(Self::Raw(piece)),
            PieceKind::Text => text(piece, meter)?,
            PieceKind::Object => Self::Map(Map::Raw(piece)),
            PieceKind::List => {
                let mut items = Vec::new();
                for item in piece.parts().map_err(|_| Why::TooExpensive)? {
                    meter.spend(1)?;
                    items.push(Self::Raw(item));
                }
                Self::List(List::Made(Rc::from(items)))
            }
        })
    }
}

/// The number whose shortest text is this one.
fn number<'v>(text: &str) -> Option<Value<'v>> {
    if let Ok(value) = text.parse::<i64>()
        && value.to_string() == text
    {
        return Some(Value::Int(value));
    }
    if let Ok(value) = text.parse::<u64>() {
        return Some(Value::Uint(value));
    }
    let value: f64 = text.parse().ok()?;
    let is_shortest = value.is_finite()
        && (value.to_string() == text
            || serde_json::to_string(&value).is_ok_and(|shortest| shortest == text));
    is_shortest.then_some(Value::Double(value))
}

fn text<'v>(piece: Piece<'v>, meter: &mut Meter) -> Result<Value<'v>, Why> {
    let quoted = piece.text();
    let inside = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    meter.spend_search(quoted.len())?;
    if !inside.contains('\\') {
        return Ok(Value::borrowed(inside));
    }
    meter.spend_bytes(quoted.len())?;
    // Half a surrogate pair is well-formed and no text.
    serde_json::from_str::<String>(quoted).map(Value::text).map_err(|_| Why::NotText)
}

/// The member of an object. One that stands twice has no single value.
pub(super) fn member<'v>(object: Piece<'v>, name: &str, meter: &mut Meter) -> Result<Option<Value<'v>>, Why> {
    let mut found = None;
    for (key, value) in members(object)? {
        meter.spend(1)?;
        if is_called(key, name, meter)? {
            if found.is_some() {
                return Err(Why::SeveralMembers);
            }
            found = Some(Value::Raw(value));
        }
    }
    Ok(found)
}

/// The names of an object's members, each once.
pub(super) fn keys<'v>(object: Piece<'v>, meter: &mut Meter) -> Result<Vec<Value<'v>>, Why> {
    let mut keys = Vec::new();
    let mut known = std::collections::HashSet::<String, foldhash::fast::RandomState>::default();
    for (key, _) in members(object)? {
        meter.spend(2)?;
        let key = text(key, meter)?;
        if let Value::Text(name) = &key {
            meter.spend_bytes(name.as_str().len())?;
            if !known.insert(name.as_str().to_owned()) {
                return Err(Why::SeveralMembers);
            }
        }
        keys.push(key);
    }
    Ok(keys)
}

fn members<'v>(object: Piece<'v>) -> Result<impl Iterator<Item = (Piece<'v>, Piece<'v>)> + use<'v>, Why> {
    let mut parts = object.parts().map_err(|_| Why::TooExpensive)?;
    Ok(std::iter::from_fn(move || Some((parts.next()?, parts.next()?))))
}

fn is_called(key: Piece<'_>, name: &str, meter: &mut Meter) -> Result<bool, Why> {
    let quoted = key.text();
    meter.spend_search(quoted.len())?;
    if quoted.contains('\\') {
        return Ok(matches!(text(key, meter)?, Value::Text(text) if text.as_str() == name));
    }
    Ok(quoted.get(1..quoted.len().saturating_sub(1)) == Some(name))
}

/// Writes a value as JSON text; `out` grows to `most` bytes at most. Pieces of JSON are written as they came.
pub(super) fn write(value: &Value<'_>, out: &mut Vec<u8>, most: usize, meter: &mut Meter) -> Result<(), Why> {
    match value {
        Value::Raw(piece) => out.extend_from_slice(within(piece.text(), out.len(), most)?.as_bytes()),
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Uint(value) => out.extend_from_slice(value.to_string().as_bytes()),
        // JSON knows no others.
        Value::Double(value) if value.is_finite() => plain(value, out)?,
        Value::Double(_) => return Err(Why::NoJson),
        Value::Text(text) => plain(within(text.as_str(), out.len(), most)?, out)?,
        Value::Bytes(bytes) => plain(&STANDARD.encode(bytes.as_slice()), out)?,
        Value::Timestamp(at) => plain(&at.to_string(), out)?,
        Value::Duration(duration) => plain(&super::moments::duration_text(*duration), out)?,
        Value::Network(network) => plain(&network.to_string(), out)?,
        Value::Type(_) => return Err(Why::NoJson),
        Value::List(list) => {
            out.push(b'[');
            for index in 0..list.len() {
                meter.spend(1)?;
                if index > 0 {
                    out.push(b',');
                }
                write(&list.at(index), out, most, meter)?;
            }
            out.push(b']');
        }
        Value::Map(Map::Raw(piece)) => {
            out.extend_from_slice(within(piece.text(), out.len(), most)?.as_bytes());
        }
        Value::Map(map) => {
            out.push(b'{');
            for (index, key) in map.keys(meter)?.into_iter().enumerate() {
                let member = map.get(&key, meter)?.ok_or(Why::NoSuchKey)?;
                let Value::Text(name) = key.opened(meter)? else { return Err(Why::NoJson) };
                if index > 0 {
                    out.push(b',');
                }
                plain(within(name.as_str(), out.len(), most)?, out)?;
                out.push(b':');
                write(&member, out, most, meter)?;
            }
            out.push(b'}');
        }
    }
    if out.len() > most { Err(Why::TooLong) } else { Ok(()) }
}

fn plain(value: &(impl serde::Serialize + ?Sized), out: &mut Vec<u8>) -> Result<(), Why> {
    serde_json::to_writer(out, value).map_err(|_| Why::NoJson)
}

fn within(text: &str, used: usize, most: usize) -> Result<&str, Why> {
    if used + text.len() > most { Err(Why::TooLong) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::RawJson;

    #[test]
    fn to_look_at_a_long_name_again_and_again_has_its_price() {
        let json = format!("{{\"{}\": 1, \"name\": 2}}", "x".repeat(900_000));
        let raw = RawJson::new(json).expect("JSON");
        let mut meter = Meter::new();
        let looks = (0..).take_while(|_| member(raw.root(), "name", &mut meter).is_ok()).count();
        assert!((1..10).contains(&looks), "{looks}");
    }
}
