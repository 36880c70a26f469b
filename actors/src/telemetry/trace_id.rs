//! The name of a request for everything outside.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names a request's trace, as W3C Trace Context does: 16 bytes, not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// The name with this value; zero names nothing.
    pub fn new(value: u128) -> Option<Self> {
        (value != 0).then_some(Self(value))
    }

    /// A name for the request with this number, the same in every run: simulations can be replayed.
    pub(crate) fn of_number(number: u64) -> Self {
        let high = u128::from(mixed(number.wrapping_mul(2)));
        let low = u128::from(mixed(number.wrapping_mul(2).wrapping_add(1)));
        Self((high << 64 | low).max(1))
    }

    /// Whether it begins or ends with these digits.
    pub fn is_called(self, digits: &str) -> bool {
        let (text, digits) = (self.to_string(), digits.to_ascii_lowercase());
        text.starts_with(&digits) || text.ends_with(&digits)
    }

    /// Its value.
    pub fn value(self) -> u128 {
        self.0
    }

    /// Its last eight digits, which tell the requests of some seconds apart: those that W3C Trace Context wants to be random.
    pub fn label(self) -> String {
        format!("{:08x}", self.0 as u32)
    }
}

/// SplitMix64's output function (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): a bijection
/// that leaves nothing of the order of its arguments.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// A span that requests are asked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentSpan {
    /// Its trace.
    pub trace: TraceId,
    /// Its own id; no other request may be asked from it.
    pub span: u64,
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for TraceId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected 32 hexadecimal digits that are not all zero";
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(EXPECTED);
        }
        u128::from_str_radix(text, 16).ok().and_then(Self::new).ok_or(EXPECTED)
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
