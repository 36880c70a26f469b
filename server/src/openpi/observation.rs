//! From a robot's message to an observation and what it asks for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tensact::Start;
use tensact::runtime::Tensor;
use tensact::runtime::model::flow::Steps;
use tensact::runtime::observation::{Image, Layout, Observation};
use tensact::runtime::preprocess::Preprocessor;
use tensact::topology::ModelSizes;

use super::rtc::{Rtc, rtc};
use crate::wire::{Array, Map, Value, shortened};

/// Longest name of a robot or a request, in bytes.
pub(super) const NAME_MAX: usize = 256;

/// Longest instruction, in bytes; policies read some two hundred tokens.
const PROMPT_MAX: usize = 16 << 10;

/// Problems of one message that are named.
const PROBLEMS_MAX: usize = 20;

/// Unknown keys of one message that are named.
const UNKNOWN_MAX: usize = 64;

/// How far floats of an image may be outside [0, 1], as filters leave them.
const ROUNDING: f32 = 1e-3;

/// How the server names robots that do not name themselves.
pub(super) const UNNAMED: &str = "connection ";

/// Longest deadline, a day.
const DEADLINE_MAX_MS: f64 = 86_400_000.0;

/// What a robot's message asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    /// What the robot sees.
    pub observation: Observation,
    /// Seed or noise.
    pub start: Start,
    /// Denoising steps.
    pub steps: Option<Steps>,
    /// Time to answer, from the arrival of the message on.
    pub deadline: Option<Duration>,
    /// The robot's name.
    pub robot: Option<Arc<str>>,
    /// Real-time chunking.
    pub rtc: Option<Rtc>,
    /// Given back with the answer.
    pub request_id: Option<String>,
    /// The span that the robot asks from (W3C Trace Context).
    pub traceparent: Option<String>,
    /// Keys that mean nothing here.
    pub unknown: Vec<String>,
}

/// What is wrong with a message: all of it, unless that is a lot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct BadObservation(pub Vec<String>);

/// Reads messages for one robot and policy.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'p> {
    /// Knows the robot's keys.
    pub preprocessor: &'p Preprocessor,
    /// The policy's sizes.
    pub sizes: &'p ModelSizes,
    /// Most pixels of an image.
    pub image_pixels: usize,
}

/// A message while it is read.
#[derive(Default)]
struct Reading {
    asked: Asked,
    state: BTreeMap<String, Vec<f32>>,
    /// Place of the prompt's key among those that are read, and the prompt.
    prompt: Option<(usize, String)>,
    /// Cameras that an image was read for, and its key.
    cameras: BTreeMap<String, String>,
    problems: Vec<String>,
}

impl Reading {
    /// Keeps a value, or what is wrong with it.
    fn keep<T>(&mut self, key: &str, read: Result<T, String>) -> Option<T> {
        if let Err(reason) = &read
            && self.problems.len() < PROBLEMS_MAX
        {
            self.problems.push(format!("`{}`: {reason}", shortened(key)));
        }
        read.ok()
    }
}

impl Reader<'_> {
    /// Reads a message.
    ///
    /// # Errors
    /// Names everything that is wrong with it at once, by key.
    pub fn read(&self, message: Value<'_>) -> Result<Asked, BadObservation> {
        let Value::Map(map) = message else {
            return Err(BadObservation(vec![format!(
                "expected a map of an observation, not {}",
                message.kind()
            )]));
        };
        let mut reading = Reading::default();
        self.entries("", map, &mut reading);
        let Reading { mut asked, mut state, prompt, mut problems, .. } = reading;
        asked.observation.prompt = prompt.map(|(_, text)| text);
        // A part that could not be read has been named already.
        if problems.is_empty() {
            match self.preprocessor.join_state(|key| state.remove(key)) {
                Ok(state) => asked.observation.state = state,
                Err(error) => problems.extend(error.problems.iter().map(ToString::to_string)),
            }
        }
        if problems.is_empty() { Ok(asked) } else { Err(BadObservation(problems)) }
    }

    /// All entries of a map, and of the maps in it: `images: {top: …}` is `images/top`.
    fn entries(&self, within: &str, map: Map<'_>, reading: &mut Reading) {
        for (key, value) in map {
            let key = format!("{within}{key}");
            match value {
                Value::Map(inner) if key == "rtc" => {
                    let rtc = rtc(inner, self.sizes.horizon * self.preprocessor.action_dims());
                    reading.asked.rtc = reading.keep(&key, rtc).or(reading.asked.rtc.take());
                }
                Value::Map(inner) => self.entries(&format!("{key}/"), inner, reading),
                // As good as left out.
                Value::Nil => {}
                value if !self.option(&key, &value, reading) => self.part(key, value, reading),
                _ => {}
            }
        }
    }

    /// A part of the observation itself.
    fn part(&self, key: String, value: Value<'_>, reading: &mut Reading) {
        let profile = self.preprocessor.profile();
        let prompt = profile.prompt.keys.iter().position(|known| *known == key);
        if let Some(place) = prompt {
            let text = reading.keep(&key, text(&value, PROMPT_MAX));
            let sooner = reading.prompt.as_ref().is_none_or(|(other, _)| place < *other);
            if let Some(text) = text.filter(|_| sooner) {
                reading.prompt = Some((place, text));
            }
        } else if profile.state.iter().flat_map(|part| &part.keys).any(|known| *known == key) {
            if let Some(values) = reading.keep(&key, vector(&value, self.preprocessor.state_bounds().1)) {
                reading.state.insert(key, values);
            }
        } else if let Ok(camera) = self.preprocessor.camera(&key) {
            let image = match reading.cameras.insert(camera.to_owned(), key.clone()) {
                // Before it is decoded.
                Some(first) => Err(format!("`{first}` is camera `{camera}` already; send one of them")),
                None => self.image(value),
            };
            if let Some(image) = reading.keep(&key, image) {
                reading.asked.observation.images.insert(key, image);
            }
        } else if !self.preprocessor.ignores(&key) && reading.asked.unknown.len() < UNKNOWN_MAX {
            reading.asked.unknown.push(shortened(&key));
        }
    }

    /// Values in [0, 1] or bytes, as HWC or CHW; or a PNG or JPEG file, in text as base64.
    fn image(&self, value: Value<'_>) -> Result<Image, String> {
        let file =
            |bytes: &[u8]| Image::decode_within(bytes, self.image_pixels).map_err(|error| error.to_string());
        match value {
            Value::Array(array) => self.pixels(array),
            Value::Bytes(bytes) => file(&bytes),
            Value::Text(text) => {
                let data = match text.strip_prefix("data:").and_then(|url| url.split_once(";base64,")) {
                    Some((_, data)) => data,
                    None => &text,
                };
                let bytes = BASE64_STANDARD.decode(data).map_err(|error| format!("no base64: {error}"))?;
                file(&bytes)
            }
            other => Err(format!("expected an image, not {}", other.kind())),
        }
    }

    fn pixels(&self, array: Array<'_>) -> Result<Image, String> {
        // As openpi's policies read it: planes if there are three, else pixels.
        let (layout, height, width) = match *array.shape() {
            [3, height, width] => (Layout::Chw, height, width),
            [height, width, 3] => (Layout::Hwc, height, width),
            _ => return Err(format!("expected [height, width, 3] or [3, height, width], not {array}")),
        };
        if height.saturating_mul(width) > self.image_pixels {
            let most = self.image_pixels;
            return Err(format!("an image of {height}x{width} pixels; at most {most} pixels are taken"));
        }
        let image = if array.dtype().is_float() {
            let range = -ROUNDING..=1.0 + ROUNDING;
            let near = |value: f32| if range.contains(&value) { value.clamp(0.0, 1.0) } else { value };
            Image::from_f32(layout, height, width, array.to_f32().into_iter().map(near).collect())
        } else {
            let dtype = array.dtype();
            let bytes = array.into_u8().ok_or_else(|| {
                format!("expected bytes (|u1) or floats in [0, 1], not an image of dtype {dtype}")
            })?;
            Image::from_u8(layout, height, width, bytes)
        };
        image.map_err(|error| error.to_string())
    }
}

impl Reader<'_> {
    /// Reads one of the optional keys; false if it is none.
    fn option(&self, key: &str, value: &Value<'_>, reading: &mut Reading) -> bool {
        match key {
            "seed" => {
                if let Some(seed) = reading.keep(key, whole(value)) {
                    // Noise says more than a seed.
                    if matches!(reading.asked.start, Start::Seed(_)) {
                        reading.asked.start = Start::Seed(seed);
                    }
                }
            }
            "noise" => {
                let shape = [self.sizes.horizon, self.sizes.action_dim];
                let noise = rows(value, shape[0] * shape[1]).and_then(|noise| match noise.shape() == shape {
                    true => Ok(noise),
                    false => Err(format!("expected {shape:?} numbers, not {:?}", noise.shape())),
                });
                if let Some(noise) = reading.keep(key, noise) {
                    reading.asked.start = Start::Noise(noise);
                }
            }
            "num_steps" => {
                let steps = whole(value).and_then(|count| {
                    Steps::new(usize::try_from(count).unwrap_or(usize::MAX))
                        .map_err(|error| error.to_string())
                });
                reading.asked.steps = reading.keep(key, steps);
            }
            "deadline_ms" => reading.asked.deadline = reading.keep(key, milliseconds(value)),
            "robot_id" => {
                let robot = name(value).and_then(|robot| match robot.starts_with(UNNAMED) {
                    true => Err(format!("names that begin with `{UNNAMED}` are for robots without one")),
                    false => Ok(robot),
                });
                reading.asked.robot = reading.keep(key, robot).map(Arc::from);
            }
            "request_id" => reading.asked.request_id = reading.keep(key, name(value)),
            "traceparent" => reading.asked.traceparent = reading.keep(key, name(value)),
            "rtc" => {
                reading.keep::<()>(key, Err(format!("expected a map, not {}", value.kind())));
            }
            _ => return false,
        }
        true
    }
}

/// Text of at most so many bytes.
pub(super) fn text(value: &Value<'_>, most: usize) -> Result<String, String> {
    let text = match value {
        Value::Text(text) => text,
        Value::Bytes(bytes) => std::str::from_utf8(bytes).map_err(|_| "bytes that are not UTF-8 text")?,
        other => return Err(format!("expected text, not {}", other.kind())),
    };
    match text.len() {
        length if length > most => Err(format!("text of {length} bytes: at most {most} are read")),
        _ => Ok(text.to_owned()),
    }
}

fn name(value: &Value<'_>) -> Result<String, String> {
    let text = text(value, NAME_MAX)?;
    match text.is_empty() || text.contains(char::is_control) {
        true => Err("expected a name without control characters".into()),
        false => Ok(text),
    }
}

pub(super) fn whole(value: &Value<'_>) -> Result<u64, String> {
    value.whole().ok_or_else(|| match value.number() {
        Some(number) => format!("expected a whole number from 0 on, not {number}"),
        None => format!("expected a whole number, not {}", value.kind()),
    })
}

fn milliseconds(value: &Value<'_>) -> Result<Duration, String> {
    match value.number() {
        Some(ms) if ms > 0.0 && ms <= DEADLINE_MAX_MS => Ok(Duration::from_secs_f64(ms / 1e3)),
        Some(ms) => Err(format!("{ms} ms cannot be kept: expected more than 0 and at most a day")),
        None => Err(format!("expected milliseconds, not {}", value.kind())),
    }
}

/// Shape and values of at most so many numbers, which are counted before they are converted.
fn numbers(value: &Value<'_>, most: usize) -> Result<(Vec<usize>, Vec<f32>), String> {
    match value.count() {
        count if count > most => {
            Err(format!("{} is too long: at most {most} numbers are read", value.kind()))
        }
        _ => value.numbers().ok_or_else(|| format!("expected numbers, not {}", value.kind())),
    }
}

/// One number, or numbers in a row.
fn vector(value: &Value<'_>, most: usize) -> Result<Vec<f32>, String> {
    match numbers(value, most)? {
        (shape, values) if shape.len() <= 1 => Ok(values),
        (shape, _) => Err(format!("expected numbers in a row, not of shape {shape:?}")),
    }
}

/// At least one row of at least one number.
pub(super) fn rows(value: &Value<'_>, most: usize) -> Result<Tensor, String> {
    let (shape, values) = numbers(value, most)?;
    match *shape {
        [rows, width] if rows > 0 && width > 0 => {
            Tensor::new(shape, values).map_err(|error| error.to_string())
        }
        _ => Err(format!("expected rows of numbers, not of shape {shape:?}")),
    }
}
