//! Digests of everything that led to a value: what an emulated chip has instead of the value.

use std::hash::{DefaultHasher, Hash, Hasher};

use tensact_topology::{ModelSizes, StageKind};

use crate::Tensor;
use crate::model::KeyValue;
use crate::model::flow::Step;

/// Width of a row that holds a digest.
pub(super) const WIDTH: usize = 4;

/// A row of hidden states: 64 bits as four integers below 65536, each exact in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Digest([f32; WIDTH]);

impl Hash for Digest {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.map(f32::to_bits).hash(hasher);
    }
}

/// Its keys are fixed, so digests are the same in every process.
fn hash(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

impl Digest {
    /// Of some parts, in order.
    fn of(parts: impl Hash) -> Self {
        let hash = hash(parts);
        Self([0, 16, 32, 48].map(|shift| f32::from((hash >> shift) as u16)))
    }

    /// Of any tensor: its shape and the bits of its values.
    pub(super) fn of_tensor(tensor: &Tensor) -> Self {
        Self::of((tensor.shape(), bytemuck::cast_slice::<f32, u8>(tensor.data())))
    }

    /// Of a robot state.
    pub(super) fn of_state(state: &[f32]) -> Self {
        Self::of(bytemuck::cast_slice::<f32, u8>(state))
    }

    /// Of the prefix of one observation.
    pub(super) fn of_prefix(images: impl Iterator<Item = Digest>, tokens: &[u32]) -> Self {
        images.fold(Self::of(tokens), |prefix, image| Self::of((prefix, image)))
    }

    /// The digest that a row `[WIDTH]` of hidden states is.
    pub(super) fn of_row(row: &[f32]) -> Self {
        Self(std::array::from_fn(|i| row[i]))
    }

    pub(super) fn row(self) -> [f32; WIDTH] {
        self.0
    }

    /// As hidden states `[1, WIDTH]`.
    pub(super) fn tensor(self) -> Tensor {
        Tensor::new([1, WIDTH], self.0.to_vec()).expect("a digest is one row")
    }

    /// An image behind a layer of the vision tower.
    pub(super) fn vision_layer(self, layer: usize) -> Self {
        Self::of((StageKind::Vision, layer, self))
    }

    /// A prefix behind a layer of the VLM.
    pub(super) fn prefix_layer(self, layer: usize) -> Self {
        Self::of((StageKind::Prefix, layer, self))
    }

    /// Keys and values of a layer, of the prefix or the state token in front of it.
    pub(super) fn keys_values(self, layer: usize) -> [Self; 2] {
        ["keys", "values"].map(|part| Self::of((part, layer, self)))
    }

    /// A state token behind a layer of the expert, where it sees `entry`.
    pub(super) fn state_layer(self, layer: usize, entry: &KeyValue) -> Self {
        Self::of(("state", layer, self, Self::of_entry(entry)))
    }

    /// Actions behind a layer of the expert, where they see `entry`.
    pub(super) fn action_layer(self, layer: usize, step: Step, entry: &KeyValue) -> Self {
        Self::of((StageKind::Expert, layer, step, self, Self::of_entry(entry)))
    }

    fn of_entry(KeyValue { keys, values }: &KeyValue) -> Self {
        Self::of((Self::of_tensor(keys), Self::of_tensor(values)))
    }

    /// The velocity `[horizon, action_dim]` of actions behind the last layer: multiples of 1/256 in [-1, 1].
    pub(super) fn velocity(self, sizes: &ModelSizes) -> Tensor {
        let mut random = hash(("velocity", self));
        let mut velocity = Tensor::zeros([sizes.horizon, sizes.action_dim]);
        velocity.data_mut().fill_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((random >> 32) % 513) as f32 / 256.0 - 1.0
        });
        velocity
    }
}
