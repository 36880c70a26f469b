//! What robots send: images of noise, a state and an instruction under the keys of a profile.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tensact::runtime::config::OPENPI_CAMERAS;
use tensact::runtime::preprocess::Profile;

use super::answer::Metadata;
use crate::wire::{Array, Value, write_msgpack};

/// Longest side of an image.
pub const IMAGE_SIDE_MAX: usize = 4096;

/// Width of a state that neither profile nor server say: what the published policies take.
const STATE_DIMS: usize = 32;

/// Widest state that a server may ask for.
const STATE_DIMS_MAX: usize = 1024;

/// Successive images differ by this many rows.
const SHIFTS: usize = 16;

/// What every observation holds.
#[derive(Debug, Clone)]
pub struct Content {
    /// What the robot calls its cameras and state; unless given, as the server says, or `generic`.
    pub profile: Option<Profile>,
    /// Height and width of its images, up to [`IMAGE_SIDE_MAX`].
    pub image_side: usize,
    /// The instruction.
    pub prompt: String,
    /// Denoising steps, if not the server's.
    pub steps: Option<u32>,
    /// Time to answer.
    pub deadline: Option<Duration>,
    /// Seed of images and states.
    pub seed: u64,
}

impl Content {
    /// The profile of robots of this server.
    pub(super) fn profile(&self, metadata: &Metadata) -> Profile {
        let of_server = || Profile::named(metadata.profile.as_deref()?).ok();
        self.profile
            .clone()
            .or_else(of_server)
            .unwrap_or_else(|| Profile::named("generic").expect("the generic profile comes with the program"))
    }
}

/// Makes the observations of one robot.
#[derive(Debug)]
pub(super) struct Observer {
    cameras: Vec<String>,
    state: Vec<(String, usize)>,
    /// Dimensions of an image: rows first, or colours first for a robot that sends them so.
    image: [usize; 3],
    prompt: (String, String),
    steps: Option<u32>,
    deadline_ms: Option<f64>,
    /// Noise of which every image is a part.
    noise: Vec<u8>,
    random: ChaCha8Rng,
    made: usize,
}

impl Observer {
    /// `robot` makes noise of its own.
    pub(super) fn new(content: &Content, metadata: &Metadata, robot: usize) -> Self {
        let Content { image_side, prompt, steps, deadline, seed, .. } = content;
        let profile = content.profile(metadata);
        let side = (*image_side).clamp(1, IMAGE_SIDE_MAX);
        let of_server = || match metadata.cameras.as_slice() {
            [] => OPENPI_CAMERAS.map(String::from).to_vec(),
            cameras => cameras.to_vec(),
        };
        let of_profile = || profile.cameras.values().map(|camera| camera.key.clone()).collect();
        let rest = metadata.state_dims.unwrap_or(STATE_DIMS).min(STATE_DIMS_MAX);
        let state = profile.state.iter().filter_map(|part| {
            let key = part.keys.first()?;
            Some((key.clone(), part.dims.unwrap_or(rest)))
        });
        let mut random = ChaCha8Rng::seed_from_u64(*seed);
        random.set_stream(robot as u64);
        let mut noise = vec![0; (side + SHIFTS) * side * 3];
        random.fill(&mut noise[..]);
        Self {
            cameras: if profile.cameras.is_empty() { of_server() } else { of_profile() },
            state: state.collect(),
            // openpi's ALOHA robots send colours first.
            image: if profile.name == "aloha" { [3, side, side] } else { [side, side, 3] },
            prompt: (profile.prompt.keys.first().cloned().unwrap_or_else(|| "prompt".into()), prompt.clone()),
            steps: *steps,
            deadline_ms: deadline.map(|deadline| deadline.as_secs_f64() * 1e3),
            noise,
            random,
            made: 0,
        }
    }

    /// The next observation, with another image and another state than the one before.
    pub(super) fn next(&mut self) -> Vec<u8> {
        let states: Vec<Vec<f32>> =
            self.state.iter().map(|(_, dims)| (0..*dims).map(|_| self.random.random()).collect()).collect();
        let observation = self.value(&states);
        let message = write_msgpack(&observation);
        self.made += 1;
        message
    }

    fn value(&self, states: &[Vec<f32>]) -> Value<'_> {
        let mut entries: Vec<(&str, Value<'_>)> = Vec::new();
        let mut images: Vec<(&str, Value<'_>)> = Vec::new();
        for (index, camera) in self.cameras.iter().enumerate() {
            // Paths such as `observation/image` are keys of the observation, plain names stand under `images`.
            let path = camera.contains(['/', '.']);
            let place = if path { &mut entries } else { &mut images };
            place.push((camera, self.picture(index)));
        }
        if !images.is_empty() {
            entries.push(("images", Value::map(images)));
        }
        for ((key, dims), state) in self.state.iter().zip(states) {
            let array = Array::of_f32(&[*dims], state).expect("as many values as dimensions were drawn");
            entries.push((key, Value::Array(array)));
        }
        entries.push((&self.prompt.0, Value::text(self.prompt.1.as_str())));
        entries.extend(self.steps.map(|steps| ("num_steps", Value::Integer(steps.into()))));
        entries.extend(self.deadline_ms.map(|deadline| ("deadline_ms", Value::Float(deadline))));
        Value::map(entries)
    }

    fn picture(&self, camera: usize) -> Value<'_> {
        let bytes: usize = self.image.iter().product();
        let row = (self.noise.len() - bytes) / SHIFTS;
        let from = (self.made + camera) % SHIFTS * row;
        let array = Array::of_u8(&self.image, &self.noise[from..][..bytes])
            .expect("the slice is as long as the dimensions say");
        Value::Array(array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Map, read_msgpack};

    fn content(profile: &str) -> Content {
        Content {
            profile: Some(Profile::named(profile).unwrap()),
            image_side: 8,
            prompt: "fold the towel".into(),
            steps: None,
            deadline: None,
            seed: 1,
        }
    }

    fn first(content: &Content, metadata: &Metadata) -> Vec<u8> {
        Observer::new(content, metadata, 0).next()
    }

    fn map<'a>(value: &Value<'a>) -> Map<'a> {
        match value {
            Value::Map(map) => map.clone(),
            other => panic!("{}", other.kind()),
        }
    }

    /// Keys with the shapes of arrays; members of `images` are written as paths.
    fn shapes(message: &[u8]) -> Vec<String> {
        let value = read_msgpack(message).unwrap();
        let mut shapes = Vec::new();
        for (key, value) in map(&value) {
            match value {
                Value::Map(images) => {
                    shapes
                        .extend(images.iter().map(|(name, image)| format!("{key}/{name}: {}", image.kind())));
                }
                value => shapes.push(format!("{key}: {}", value.kind())),
            }
        }
        shapes
    }

    #[test]
    fn each_robot_sends_what_its_profile_says() {
        let sent = |profile| shapes(&first(&content(profile), &Metadata::default()));
        let image = "an array of shape [8, 8, 3] and dtype |u1";
        assert_eq!(
            sent("libero"),
            [
                format!("observation/image: {image}"),
                "observation/state: an array of shape [8] and dtype <f4".into(),
                format!("observation/wrist_image: {image}"),
                "prompt: text".into(),
            ]
        );
        assert_eq!(
            sent("droid"),
            [
                format!("observation/exterior_image_1_left: {image}"),
                "observation/gripper_position: an array of shape [1] and dtype <f4".into(),
                "observation/joint_position: an array of shape [7] and dtype <f4".into(),
                format!("observation/wrist_image_left: {image}"),
                "prompt: text".into(),
            ]
        );
        let image = "an array of shape [3, 8, 8] and dtype |u1";
        assert_eq!(
            sent("aloha"),
            [
                format!("images/cam_high: {image}"),
                format!("images/cam_left_wrist: {image}"),
                format!("images/cam_right_wrist: {image}"),
                "prompt: text".into(),
                "state: an array of shape [14] and dtype <f4".into(),
            ]
        );
    }

    #[test]
    fn the_generic_robot_is_what_the_server_says() {
        let sent = |metadata: &Metadata| shapes(&first(&content("generic"), metadata));
        let image = "an array of shape [8, 8, 3] and dtype |u1";
        let metadata = Metadata { cameras: vec!["top".into()], state_dims: Some(6), ..Metadata::default() };
        assert_eq!(
            sent(&metadata),
            [
                format!("images/top: {image}"),
                "prompt: text".into(),
                "state: an array of shape [6] and dtype <f4".into()
            ]
        );
        let silent = sent(&Metadata::default());
        assert_eq!(silent.len(), 5);
        assert_eq!(silent[2], format!("images/right_wrist_0_rgb: {image}"));
        assert_eq!(silent[4], "state: an array of shape [32] and dtype <f4");
    }

    #[test]
    fn without_a_profile_the_server_says_which() {
        let of = |name: Option<&str>| {
            let metadata = Metadata { profile: name.map(Into::into), ..Metadata::default() };
            Content { profile: None, ..content("aloha") }.profile(&metadata).name
        };
        assert_eq!(of(Some("droid")), "droid");
        assert_eq!(of(Some("a profile of the user")), "generic");
        assert_eq!(of(None), "generic");
        assert_eq!(content("aloha").profile(&Metadata::default()).name, "aloha");
    }

    #[test]
    fn extensions_are_sent_when_they_are_wanted() {
        let plain = first(&content("libero"), &Metadata::default());
        let plain = read_msgpack(&plain).unwrap();
        assert!(!map(&plain).contains_key("num_steps") && !map(&plain).contains_key("deadline_ms"));

        let wanted =
            Content { steps: Some(4), deadline: Some(Duration::from_micros(1500)), ..content("libero") };
        let message = first(&wanted, &Metadata::default());
        let value = read_msgpack(&message).unwrap();
        assert_eq!(map(&value)["num_steps"], Value::Integer(4));
        assert_eq!(map(&value)["deadline_ms"], Value::Float(1.5));
        assert_eq!(map(&value)["prompt"], Value::text("fold the towel"));
    }

    #[test]
    fn the_seed_decides_and_no_two_observations_are_the_same() {
        let metadata = Metadata::default();
        let two = |seed, robot| {
            let content = Content { seed, ..content("libero") };
            let mut observer = Observer::new(&content, &metadata, robot);
            [observer.next(), observer.next()]
        };
        assert_eq!(two(1, 0), two(1, 0));
        let [a, b] = two(1, 0);
        let pictures = |message: &[u8]| {
            let value = read_msgpack(message).unwrap();
            (map(&value)["observation/image"].numbers(), map(&value)["observation/state"].numbers())
        };
        let (a, b) = (pictures(&a), pictures(&b));
        assert!(a.0 != b.0 && a.1 != b.1);
        assert_ne!(two(1, 0), two(2, 0));
        assert_ne!(two(1, 0), two(1, 1));
    }
}
