//! What travels between robots and the server: a tree of values, as msgpack or as JSON.
//!
//! Numpy arrays and scalars are read in the three ways that clients write them in msgpack, and written in openpi's own
//! (`openpi_client/msgpack_numpy.py`).
//!
//! Invariant *bounded-messages*: nothing is allocated for what a message only claims to hold. Text, bytes and array data
//! are borrowed from it, and the number and depth of values are limited.

mod array;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;

pub use array::{Array, ArrayError, Dtype};
pub(crate) use read::shortened;
pub use read::{DEPTH_MAX, KEY_MAX, VALUES_MAX, WireError, read_json, read_msgpack};
pub use write::write_msgpack;

/// A map's values by their keys.
pub type Map<'a> = BTreeMap<Cow<'a, str>, Value<'a>>;

/// One value of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Nothing.
    Nil,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// Values in order.
    List(Vec<Value<'a>>),
    /// Values by name; names may be written as text, bytes or numbers.
    Map(Map<'a>),
    /// A numpy array.
    Array(Array<'a>),
    /// What says it is a numpy array, and is none that can be used. It harms nobody who does not need it.
    Unreadable(ArrayError),
}

impl<'a> Value<'a> {
    /// Text that is borrowed or owned.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    /// A map of these entries.
    pub fn map(entries: impl IntoIterator<Item = (&'a str, Value<'a>)>) -> Self {
        Self::Map(entries.into_iter().map(|(key, value)| (Cow::Borrowed(key), value)).collect())
    }

    /// What it is, for messages about values that should be something else.
    pub fn kind(&self) -> String {
        match self {
            Self::Nil => "nothing".into(),
            Self::Bool(_) => "true or false".into(),
            Self::Integer(_) | Self::Float(_) => "a number".into(),
            Self::Text(_) => "text".into(),
            Self::Bytes(_) => "bytes".into(),
            Self::List(list) => format!("a list of {}", list.len()),
            Self::Map(_) => "a map".into(),
            Self::Array(array) => array.to_string(),
            Self::Unreadable(error) => error.to_string(),
        }
    }

    /// How many numbers it holds, if they are numbers.
    pub fn count(&self) -> usize {
        match self {
            Self::Array(array) => array.shape().iter().fold(1, |count, dim| count.saturating_mul(*dim)),
            Self::List(list) => list.iter().map(Self::count).fold(0, usize::saturating_add),
            _ => 1,
        }
    }

    /// The value as a number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Bool(value) => Some(f64::from(u8::from(*value))),
            Self::Array(array) if array.shape().is_empty() => array.to_f64().first().copied(),
            _ => None,
        }
    }

    /// The value as a whole number from 0 on, if it is one.
    pub fn whole(&self) -> Option<u64> {
        match self {
            Self::Integer(value) => u64::try_from(*value).ok(),
            Self::Array(array) if array.shape().is_empty() => array.whole(),
            _ => None,
        }
    }

    /// Shape and values of an array, of (nested) lists of numbers, or of one number, whose shape is empty; [`Value::count`]
    /// tells how many there will be. `None` for anything else, and for lists whose members differ in length.
    pub fn numbers(&self) -> Option<(Vec<usize>, Vec<f32>)> {
        match self {
            Self::Array(array) => Some((array.shape().to_vec(), array.to_f32())),
            Self::List(list) => {
                let mut members = list.iter().map(Self::numbers);
                let Some(first) = members.next() else { return Some((vec![0], Vec::new())) };
                let (inner, mut values) = first?;
                for member in members {
                    let (shape, more) = member?;
                    if shape != inner {
                        return None;
                    }
                    values.extend(more);
                }
                Some(([&[list.len()], &inner[..]].concat(), values))
            }
            value => Some((Vec::new(), vec![value.number()? as f32])),
        }
    }
}
