//! Values to messages.

use std::borrow::Cow;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::{Array, Value};

/// Writes a msgpack message; arrays are openpi's.
pub fn write_msgpack(value: &Value<'_>) -> Vec<u8> {
    rmp_serde::to_vec(value)
        .expect("values have no part that msgpack cannot hold, and memory takes all bytes")
}

/// Bytes as msgpack writes them; in JSON, which has none, a list of numbers.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => match i64::try_from(*value) {
                Ok(value) => serializer.serialize_i64(value),
                Err(_) => serializer.serialize_u64(u64::try_from(*value).unwrap_or(u64::MAX)),
            },
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => Bytes(bytes).serialize(serializer),
            Self::List(list) => serializer.collect_seq(list),
            Self::Map(map) => serializer.collect_map(map),
            Self::Array(array) => array.serialize(serializer),
            Self::Unreadable(_) => serializer.serialize_unit(),
        }
    }
}

impl Serialize for Array<'_> {
    /// openpi's array with keys of bytes, which its client insists on; in JSON nested lists of numbers.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return nested(self.shape(), &self.to_f64(), self.dtype().is_float()).serialize(serializer);
        }
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry(&Bytes(b"__ndarray__"), &true)?;
        map.serialize_entry(&Bytes(b"data"), &Bytes(self.data()))?;
        map.serialize_entry(&Bytes(b"dtype"), &self.dtype().to_string())?;
        map.serialize_entry(&Bytes(b"shape"), self.shape())?;
        map.end()
    }
}

fn nested(shape: &[usize], values: &[f64], float: bool) -> Value<'static> {
    match shape {
        [] if float => Value::Float(values.first().copied().unwrap_or_default()),
        [] => Value::Integer(values.first().copied().unwrap_or_default() as i128),
        [rows, inner @ ..] => {
            let width = values.len().checked_div(*rows).unwrap_or(0);
            Value::List((0..*rows).map(|row| nested(inner, &values[row * width..][..width], float)).collect())
        }
    }
}

impl From<serde_json::Value> for Value<'static> {
    fn from(json: serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Nil,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(value) => Self::Integer(value.into()),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::Text(text.into()),
            serde_json::Value::Array(list) => Self::List(list.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(map) => {
                Self::Map(map.into_iter().map(|(key, value)| (Cow::Owned(key), value.into())).collect())
            }
        }
    }
}
