//! Lists of chips as a deployment file writes them.

use serde::Deserialize;

use crate::stage::parse_range;

/// More chips, or copies, than any machine has.
const CHIPS_MAX: u32 = 4096;

/// `[0, 1]` or `"0..2"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected chips as [0, 1, 2] or as \"0..3\"")]
pub(super) enum Chips {
    List(Vec<u32>),
    Range(String),
}

impl Chips {
    pub(super) fn list(&self) -> Result<Vec<u32>, String> {
        match self {
            Chips::List(list) if list.is_empty() => Err("no chip is named".to_owned()),
            Chips::List(list) => Ok(list.clone()),
            Chips::Range(text) => match parse_range(text) {
                Some((start, end)) if start < end && end <= CHIPS_MAX => Ok((start..end).collect()),
                _ => Err(format!("`{text}` is no range of chips")),
            },
        }
    }
}

/// `[[0, 1], [2, 3]]`, or `"0..32"` for one chip each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected copies as [[0, 1], [2, 3]] or as \"0..32\"")]
pub(super) enum Copies {
    Lists(Vec<Chips>),
    Range(String),
}

impl Copies {
    pub(super) fn lists(&self) -> Result<Vec<Vec<u32>>, String> {
        match self {
            Copies::Lists(lists) if lists.is_empty() || lists.len() > CHIPS_MAX as usize => {
                Err(format!("{} copies", lists.len()))
            }
            Copies::Lists(lists) => lists.iter().map(Chips::list).collect(),
            Copies::Range(text) => {
                Ok(Chips::Range(text.clone()).list()?.into_iter().map(|chip| vec![chip]).collect())
            }
        }
    }
}
