//! What a robot gets back.

use std::time::Duration;

use tensact::telemetry::TraceId;
use tensact::{ActionChunk, Timings};

use crate::wire::{Array, Value};

/// The answer to one observation.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The actions.
    pub chunk: ActionChunk,
    /// The request's own name.
    pub request_id: Option<String>,
    /// The name of its trace.
    pub trace: TraceId,
    /// From the arrival of the message to the actions.
    pub took: Duration,
    /// Of this, until the message was read.
    pub read: Duration,
    /// Time to answer, if it had one.
    pub deadline: Option<Duration>,
}

impl Answer {
    /// Whether it came after its deadline.
    pub(crate) fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| self.took > deadline)
    }

    /// What was left of [`Answer::took`] after denoising: back to robot units, and on the way between the parts.
    pub(crate) fn postprocess(&self) -> Duration {
        let Timings { preprocess_ms, queue_ms, vision_ms, prefix_ms, denoise_ms, .. } = self.chunk.timings;
        let before = preprocess_ms + queue_ms + vision_ms + prefix_ms + denoise_ms;
        let after = (self.took.saturating_sub(self.read)).as_secs_f64() - before / 1e3;
        Duration::try_from_secs_f64(after).unwrap_or_default()
    }

    /// As openpi's server sends it, with timings of ours. `previous` is how long the robot's last answer took, sending
    /// included. Only the actions are an array: openpi's `ActionChunkBroker` cuts every array into steps.
    pub fn value(&self, previous: Option<Duration>) -> Value<'_> {
        let ms = |name, duration: Duration| (name, Value::Float(duration.as_secs_f64() * 1e3));
        let Timings { preprocess_ms, queue_ms, vision_ms, prefix_ms, denoise_ms, total_ms } =
            self.chunk.timings;
        let timing = [
            ("queue_ms", queue_ms),
            ("preprocess_ms", preprocess_ms),
            ("vision_ms", vision_ms),
            ("prefix_ms", prefix_ms),
            ("denoise_ms", denoise_ms),
            ("total_ms", total_ms),
        ];
        let server =
            [Some(ms("infer_ms", self.took)), previous.map(|previous| ms("prev_total_ms", previous))];
        let policy = Value::Float(vision_ms + prefix_ms + denoise_ms);
        let actions = &self.chunk.actions;
        let actions = Array::of_f32(actions.shape(), actions.data()).map_or(Value::Nil, Value::Array);
        let warnings = self.chunk.warnings.iter().map(|warning| Value::text(warning.to_string()));
        let warnings: Vec<Value<'_>> = warnings.collect();
        let mut entries = vec![
            ("actions", actions),
            ("server_timing", Value::map(server.into_iter().flatten())),
            ("policy_timing", Value::map([("infer_ms", policy)])),
            ("timing", Value::map(timing.map(|(name, value)| (name, Value::Float(value))))),
        ];
        entries.push(("trace_id", Value::text(self.trace.to_string())));
        if let Some(id) = &self.request_id {
            entries.push(("request_id", Value::text(id.as_str())));
        }
        if !warnings.is_empty() {
            entries.push(("warnings", Value::List(warnings)));
        }
        Value::map(entries)
    }
}
