//! Real-time chunking in a robot's message.

use tensact::runtime::Tensor;
use tensact::runtime::model::flow::WeightSchedule;

use super::observation::{NAME_MAX, rows, text, whole};
use crate::wire::{Map, Value};

/// Largest guidance weight unless a robot names another; LeRobot's default.
const MAX_GUIDANCE_WEIGHT: f32 = 10.0;

/// Real-time chunking, as a robot asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rtc {
    /// What is still being executed.
    pub previous: Previous,
    /// Actions that will be executed while the answer is computed.
    pub delay: Option<usize>,
    /// Actions that will be executed before the next chunk takes over.
    pub execution_horizon: Option<usize>,
    /// How the weight of the previous chunk falls.
    pub schedule: WeightSchedule,
    /// Largest guidance weight.
    pub max_weight: f32,
}

/// What is still being executed.
#[derive(Debug, Clone, PartialEq)]
pub enum Previous {
    /// Actions that the robot has not executed yet, `[≤ horizon, robot dims]`.
    Sent(Tensor),
    /// What the last answer holds behind so many executed actions.
    Remembered {
        /// Executed actions of it.
        executed: usize,
    },
}

impl Rtc {
    /// Whether it relies on what the server remembers.
    pub fn is_remembered(&self) -> bool {
        matches!(self.previous, Previous::Remembered { .. })
    }
}

/// Real-time chunking whose previous chunk has at most so many values.
pub(super) fn rtc(mut map: Map<'_>, most: usize) -> Result<Rtc, String> {
    let mut take = |key: &str| map.remove(key).filter(|value| *value != Value::Nil);
    let count = |key: &str, value: Option<Value<'_>>| {
        value
            .map(|value| whole(&value).map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
            .transpose()
            .map_err(|reason| format!("`{key}`: {reason}"))
    };
    let delay = count("inference_delay", take("inference_delay"))?;
    let previous = match (take("prev_chunk"), count("executed", take("executed"))?) {
        (Some(previous), None) => {
            if delay.is_none() {
                return Err(
                    "`inference_delay` is missing: the actions executed while an answer is computed".into()
                );
            }
            Previous::Sent(rows(&previous, most).map_err(|reason| format!("`prev_chunk`: {reason}"))?)
        }
        (None, Some(executed)) => Previous::Remembered { executed },
        _ => return Err("expected either `prev_chunk` or `executed`".into()),
    };
    let schedule = match take("prefix_attention_schedule") {
        None => WeightSchedule::default(),
        Some(value) => schedule(&value).map_err(|reason| format!("`prefix_attention_schedule`: {reason}"))?,
    };
    let max_weight = match take("max_guidance_weight") {
        None => MAX_GUIDANCE_WEIGHT,
        Some(value) => value
            .number()
            .map(|weight| weight as f32)
            .filter(|weight| *weight > 0.0 && weight.is_finite())
            .ok_or("`max_guidance_weight`: expected a number above 0")?,
    };
    let execution_horizon = count("execution_horizon", take("execution_horizon"))?;
    Ok(Rtc { previous, delay, execution_horizon, schedule, max_weight })
}

fn schedule(value: &Value<'_>) -> Result<WeightSchedule, String> {
    let name = text(value, NAME_MAX)?.to_ascii_lowercase();
    Ok(match name.as_str() {
        "linear" => WeightSchedule::Linear,
        "exp" => WeightSchedule::Exp,
        "ones" => WeightSchedule::Ones,
        "zeros" => WeightSchedule::Zeros,
        _ => return Err("expected linear, exp, ones or zeros".into()),
    })
}
