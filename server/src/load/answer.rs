//! What a server answers, as far as the load generator looks at it.

use std::borrow::Cow;
use std::sync::OnceLock;

use serde::Serialize;

use super::groups::line;
use crate::wire::{Map, Value, read_msgpack};

/// What the server says of itself when a robot connects. Servers of others say little or nothing of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the names say it
pub struct Metadata {
    pub version: Option<String>,
    pub variant: Option<String>,
    pub profile: Option<String>,
    pub cameras: Vec<String>,
    pub state_dims: Option<usize>,
    pub action_dims: Option<usize>,
    pub horizon: Option<usize>,
}

impl Metadata {
    /// Reads the first message of a server.
    ///
    /// # Errors
    /// When it is no map.
    pub(super) fn read(message: &[u8]) -> Result<Self, String> {
        let map = match read_msgpack(message) {
            Ok(Value::Map(map)) => map,
            Ok(other) => return Err(format!("the metadata is {}: expected a map", other.kind())),
            Err(error) => return Err(error.to_string()),
        };
        let Some(Value::Map(ours)) = map.get("tensact") else { return Ok(Self::default()) };
        let text = |key: &str| ours.get(key).and_then(as_text).map(|text| line(&text));
        let size =
            |key: &str| ours.get(key).and_then(Value::whole).and_then(|size| usize::try_from(size).ok());
        let cameras = match ours.get("cameras") {
            Some(Value::List(cameras)) => cameras.iter().filter_map(as_text).collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            version: text("version"),
            variant: text("variant"),
            profile: text("profile"),
            cameras,
            state_dims: size("state_dims"),
            action_dims: size("action_dims"),
            horizon: size("horizon"),
        })
    }
}

fn as_text(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.to_string()),
        _ => None,
    }
}

/// Times that a server says of one answer, in milliseconds, if it says them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ServerTimes {
    /// Vision tower, prefix and denoising.
    pub(super) model: Option<f64>,
    /// From the observation in the pipeline to the actions.
    pub(super) pipeline: Option<f64>,
    /// The server's engine as openpi measures it.
    pub(super) engine: Option<f64>,
}

/// What a server says of one answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Said {
    pub(super) times: ServerTimes,
    /// Parts of the inference, in their order, in milliseconds.
    pub(super) parts: Vec<(Cow<'static, str>, f64)>,
    /// Its name of the request.
    pub(super) trace_id: Option<String>,
}

/// Parts of an inference as the server names them, in their order.
const PARTS: [&str; 5] = ["preprocess", "queue", "vision", "prefix", "denoise"];

impl Said {
    fn read(answer: &Map<'_>) -> Self {
        let part =
            |part: &'static str| Some((Cow::from(part), time(answer, "timing", &format!("{part}_ms"))?));
        Self {
            times: ServerTimes::read(answer),
            parts: PARTS.into_iter().filter_map(part).collect(),
            trace_id: answer.get("trace_id").and_then(as_text).map(|text| line(&text)),
        }
    }
}

/// A time that stands in a map of an answer.
fn time(answer: &Map<'_>, map: &str, key: &str) -> Option<f64> {
    match answer.get(map) {
        Some(Value::Map(map)) => {
            map.get(key).and_then(Value::number).filter(|time| time.is_finite() && *time >= 0.0)
        }
        _ => None,
    }
}

impl ServerTimes {
    fn read(answer: &Map<'_>) -> Self {
        let time = |map: &str, key: &str| time(answer, map, key);
        let stages = ["vision_ms", "prefix_ms", "denoise_ms"].map(|stage| time("timing", stage));
        // openpi's server knows the sum only.
        let model = stages.into_iter().sum::<Option<f64>>().or_else(|| time("policy_timing", "infer_ms"));
        Self { model, pipeline: time("timing", "total_ms"), engine: time("server_timing", "infer_ms") }
    }
}

/// Reads an answer. The first sets the `shape` that actions have from then on.
///
/// # Errors
/// When it holds no actions that a robot could execute.
pub(super) fn read(message: &[u8], shape: &OnceLock<Vec<usize>>) -> Result<Said, String> {
    let map = match read_msgpack(message).map_err(|error| error.to_string())? {
        Value::Map(map) => map,
        other => return Err(format!("the answer is {}: expected a map", other.kind())),
    };
    let actions = map.get("actions").ok_or("the answer has no `actions`")?;
    let (found, values) =
        actions.numbers().ok_or_else(|| format!("`actions` is {}: expected numbers", actions.kind()))?;
    if found.len() != 2 || values.is_empty() {
        return Err(format!("`actions` has the shape {found:?}: expected rows and columns"));
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Err("`actions` holds values that are not finite".into());
    }
    let expected = shape.get_or_init(|| found.clone());
    if *expected != found {
        return Err(format!("`actions` has the shape {found:?}, others have {expected:?}"));
    }
    Ok(Said::read(&map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Array, write_msgpack};

    fn actions(shape: &[usize], values: &[f32]) -> Value<'static> {
        Value::Array(Array::of_f32(shape, values).unwrap())
    }

    fn times(entries: &[(&'static str, f64)]) -> Value<'static> {
        Value::map(entries.iter().map(|(key, time)| (*key, Value::Float(*time))))
    }

    fn read_value(value: &Value<'_>, shape: &OnceLock<Vec<usize>>) -> Result<ServerTimes, String> {
        read(&write_msgpack(value), shape).map(|said| said.times)
    }

    #[test]
    fn all_times_are_found() {
        let answer = Value::map([
            ("actions", actions(&[1, 2], &[0.0, 1.0])),
            ("server_timing", times(&[("infer_ms", 9.0), ("prev_total_ms", 20.0)])),
            ("policy_timing", times(&[("infer_ms", 7.5)])),
            (
                "timing",
                times(&[("vision_ms", 1.0), ("prefix_ms", 2.0), ("denoise_ms", 4.0), ("total_ms", 8.0)]),
            ),
        ]);
        let expected = ServerTimes { model: Some(7.0), pipeline: Some(8.0), engine: Some(9.0) };
        assert_eq!(read_value(&answer, &OnceLock::new()), Ok(expected));
    }

    #[test]
    fn parts_and_the_name_are_found() {
        let answer = Value::map([
            ("actions", actions(&[1, 1], &[0.0])),
            ("trace_id", Value::text("3f2a")),
            ("timing", times(&[("queue_ms", 1.0), ("vision_ms", 2.5), ("total_ms", 8.0)])),
        ]);
        let said = read(&write_msgpack(&answer), &OnceLock::new()).unwrap();
        assert_eq!(said.trace_id.as_deref(), Some("3f2a"));
        assert_eq!(said.parts, [("queue".into(), 1.0), ("vision".into(), 2.5)]);
    }

    #[test]
    fn times_that_are_missing_or_senseless_are_absent() {
        let answer =
            |timing: Value<'static>| Value::map([("actions", actions(&[1, 1], &[0.0])), ("timing", timing)]);
        let read = |timing| read_value(&answer(timing), &OnceLock::new());
        let partial = times(&[("vision_ms", 1.0), ("prefix_ms", 2.0), ("total_ms", f64::NAN)]);
        assert_eq!(read(partial), Ok(ServerTimes::default()));
        assert_eq!(read(Value::text("fast")), Ok(ServerTimes::default()));
    }

    #[test]
    fn a_server_that_knows_only_the_sum_is_understood() {
        let answer = Value::map([
            ("actions", actions(&[1, 1], &[0.0])),
            ("policy_timing", times(&[("infer_ms", 7.5)])),
        ]);
        let expected = ServerTimes { model: Some(7.5), ..ServerTimes::default() };
        assert_eq!(read_value(&answer, &OnceLock::new()), Ok(expected));
    }

    #[test]
    fn actions_that_no_robot_can_execute_are_bad() {
        let shape = OnceLock::from(vec![1, 2]);
        let bad = |value: Value<'_>| read_value(&value, &shape).unwrap_err();
        let of = |actions| bad(Value::map([("actions", actions)]));
        assert!(bad(Value::Nil).contains("expected a map"));
        assert!(bad(Value::map([])).contains("no `actions`"));
        assert!(of(Value::text("left")).contains("is text"));
        assert!(of(actions(&[2], &[0.0, 0.0])).contains("rows and columns"));
        assert!(of(actions(&[0, 2], &[])).contains("rows and columns"));
        assert!(of(actions(&[1, 2], &[0.0, f32::INFINITY])).contains("not finite"));
        assert!(of(actions(&[2, 2], &[0.0; 4])).contains("others have [1, 2]"));
        assert!(read(b"\xc1", &shape).unwrap_err().contains("cannot be read"));
        assert!(read_value(&Value::map([("actions", actions(&[1, 2], &[0.0; 2]))]), &shape).is_ok());
    }

    #[test]
    fn metadata_of_others_is_no_hindrance() {
        let read = |value: Value<'_>| Metadata::read(&write_msgpack(&value));
        assert_eq!(read(Value::map([("reset_pose", Value::List(Vec::new()))])), Ok(Metadata::default()));
        assert_eq!(read(Value::map([("tensact", Value::text("yes"))])), Ok(Metadata::default()));
        assert!(read(Value::Integer(3)).unwrap_err().contains("expected a map"));
        let ours = Value::map([
            ("cameras", Value::List(vec![Value::text("base"), Value::Integer(1)])),
            ("state_dims", Value::Integer(8)),
            ("horizon", Value::Integer(-1)),
            ("variant", Value::text("pi05")),
        ]);
        let expected = Metadata {
            cameras: vec!["base".into()],
            state_dims: Some(8),
            variant: Some("pi05".into()),
            ..Metadata::default()
        };
        assert_eq!(read(Value::map([("tensact", ours)])), Ok(expected));
    }
}
