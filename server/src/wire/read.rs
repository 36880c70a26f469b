//! Messages to values, within limits.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::io::ErrorKind;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{Map, Value, array};

/// Most values in one message; an array counts as its few parts.
pub const VALUES_MAX: usize = 65_536;

/// How deep maps and lists may nest.
pub const DEPTH_MAX: usize = 16;

/// Longest key, in bytes.
pub const KEY_MAX: usize = 256;

/// A message that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message cannot be read as {format}: {reason}")]
pub struct WireError {
    /// What it should have been.
    pub format: &'static str,
    /// What is wrong, with the keys that lead there.
    pub reason: String,
}

/// Reads a msgpack message, arrays of all dialects included.
///
/// # Errors
/// When it is damaged, goes on behind its end, holds too much or too deep, or arrays that cannot be used.
pub fn read_msgpack(message: &[u8]) -> Result<Value<'_>, WireError> {
    let error = |reason: String| WireError { format: "msgpack", reason };
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(message);
    let values = Cell::new(VALUES_MAX);
    let value = Seed { values: &values, depth: 0 }
        .deserialize(&mut deserializer)
        .map_err(|damage| error(damage.to_string()))?;
    match deserializer.deserialize_any(Nothing) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(end)) if end.kind() == ErrorKind::UnexpectedEof => {
            Ok(value)
        }
        _ => Err(error("there is more behind its end".into())),
    }
}

/// Reads a JSON message.
///
/// # Errors
/// As [`read_msgpack`].
pub fn read_json(message: &[u8]) -> Result<Value<'_>, WireError> {
    let error = |damage: serde_json::Error| WireError { format: "JSON", reason: damage.to_string() };
    let mut deserializer = serde_json::Deserializer::from_slice(message);
    let values = Cell::new(VALUES_MAX);
    let value = Seed { values: &values, depth: 0 }.deserialize(&mut deserializer).map_err(error)?;
    deserializer.end().map_err(error)?;
    Ok(value)
}

/// Takes no value, so that reading fails at once if there is one.
struct Nothing;

impl Visitor<'_> for Nothing {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

/// Reads one value; counts what is left of the message's allowance.
#[derive(Clone, Copy)]
struct Seed<'s> {
    values: &'s Cell<usize>,
    depth: usize,
}

impl Seed<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format!("values nest deeper than {DEPTH_MAX}")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        let left = self.values.get().checked_sub(1);
        let left = left.ok_or_else(|| D::Error::custom(format!("it holds more than {VALUES_MAX} values")))?;
        self.values.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value, list, map or numpy array")
    }

    fn visit_unit<E: Error>(self) -> Result<Value<'de>, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value<'de>, E> {
        Ok(Value::Float(value))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(text.to_owned().into()))
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Value<'de>, E> {
        Ok(Value::Bytes(bytes.into()))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Value<'de>, E> {
        Ok(Value::Bytes(bytes.to_vec().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Value<'de>, A::Error> {
        let seed = self.deeper()?;
        let mut list = Vec::new();
        while let Some(member) = members.next_element_seed(seed)? {
            list.push(member);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value<'de>, A::Error> {
        let seed = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(seed)? {
            let key = key_text(key).map_err(A::Error::custom)?;
            let value = entries
                .next_value_seed(seed)
                .map_err(|error| A::Error::custom(format!("`{}`: {error}", shortened(&key))))?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("key `{}` is there twice", shortened(&key))));
            }
            map.insert(key, value);
        }
        Ok(array::from_map(map))
    }
}

/// A key as text; numbers are keys in some programs.
fn key_text(key: Value<'_>) -> Result<Cow<'_, str>, String> {
    let text = match key {
        Value::Text(text) => text,
        Value::Bytes(Cow::Borrowed(bytes)) => {
            std::str::from_utf8(bytes).map_err(|_| "a key that is not UTF-8")?.into()
        }
        Value::Integer(number) => number.to_string().into(),
        other => return Err(format!("a key that is {}: expected text", other.kind())),
    };
    match text.len() {
        ..=KEY_MAX => Ok(text),
        length => Err(format!("a key of {length} bytes: at most {KEY_MAX} are read")),
    }
}

/// A key as it may stand in an error or in the log.
pub(crate) fn shortened(key: &str) -> String {
    const LONGEST: usize = 80;
    let plain = |letter: char| if letter.is_control() { '\u{fffd}' } else { letter };
    match key.char_indices().nth(LONGEST) {
        Some((end, _)) => key[..end].chars().map(plain).chain(['…']).collect(),
        None => key.chars().map(plain).collect(),
    }
}
