//! What a request must get, computed straight through.

use tensact_topology::{ModelSizes, Variant};

use super::digest::Digest;
use super::expert::run_state;
use crate::Tensor;
use crate::model::{KeyValue, ModelInput};
use crate::policy::Sample;

/// The actions `[horizon, action_dim]` that emulated chips give for a sample that fits the sizes, wherever their layers
/// are: every stage as a whole, without slices, caches or messages.
pub fn answer(sizes: &ModelSizes, sample: &Sample) -> Tensor {
    let entries = entries(sizes, &sample.input);
    let mut x = sample.noise.clone();
    for step in sample.steps.iter() {
        let start = Digest::of_tensor(&x);
        let actions = (entries.iter().enumerate())
            .fold(start, |actions, (layer, entry)| actions.action_layer(layer, step, entry));
        let mut velocity = actions.velocity(sizes);
        if let Some(guidance) = &sample.guidance {
            guidance.bend(step, &x, &mut velocity);
        }
        step.advance(&mut x, &velocity);
    }
    x
}

/// Keys and values of every layer, with those of π0's state token.
fn entries(sizes: &ModelSizes, input: &ModelInput) -> Vec<KeyValue> {
    let images = (input.images.iter().flatten())
        .map(|image| (0..sizes.vision.layers).fold(Digest::of_tensor(image), Digest::vision_layer));
    let mut prefix = Digest::of_prefix(images, &input.tokens);
    let mut state = (sizes.variant == Variant::Pi0).then(|| Digest::of_state(&input.state));
    (0..sizes.vlm.layers)
        .map(|layer| {
            let [keys, values] = prefix.keys_values(layer).map(Digest::tensor);
            let mut entry = KeyValue { keys, values };
            prefix = prefix.prefix_layer(layer);
            state = state.map(|state| run_state(state, layer, &mut entry));
            entry
        })
        .collect()
}
