//! What lies inside a slice of one layer, before its block or behind it: the stage traits do not show it, the host's
//! slices do.

use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes};

use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::device::host::{ExpertSlice, HostDevice, VisionSlice};
use crate::device::{SliceError, StepInput, VisionStage};
use crate::model::flow::Step;
use crate::reference::ReferenceInputs;

/// The first and the last slice of the stages that embed and project, on the host.
pub(super) struct Inside {
    vision: [VisionSlice; 2],
    expert: [ExpertSlice; 2],
    /// π0.5's time condition of each step.
    pub(super) conditions: Vec<Vec<f32>>,
}

impl Inside {
    pub(super) fn load(
        device: &Arc<HostDevice>,
        checkpoint: &Checkpoint,
        inputs: &ReferenceInputs,
    ) -> Result<Self, SliceError> {
        let [vision, expert] = [checkpoint.sizes().vision.layers, checkpoint.sizes().expert.layers].map(ends);
        let tower = |range| VisionSlice::load(device, checkpoint, range);
        let decoder = |range| ExpertSlice::load(device, checkpoint, range);
        let conditions = |steps| ExpertSlice::conditions(device, checkpoint, steps);
        let steps = inputs.samples.first().map(|sample| sample.steps);
        Ok(Self {
            vision: [tower(vision[0])?, tower(vision[1])?],
            expert: [decoder(expert[0])?, decoder(expert[1])?],
            conditions: steps.map(conditions).unwrap_or_default(),
        })
    }

    /// Patch embeddings with positions `[patches, width]`, per image.
    pub(super) fn embeddings(&self, images: &[Tensor]) -> Result<Vec<Tensor>, SliceError> {
        images.iter().map(|image| Ok(self.vision[0].embed(&alone(image))?.member(0))).collect()
    }

    /// What the tower's last block gives, and that normalised, per image; out of what its slice takes.
    pub(super) fn tower_end(&self, inputs: &[Tensor]) -> Result<[Vec<Tensor>; 2], SliceError> {
        let [_, last] = &self.vision;
        let mut end = [Vec::new(), Vec::new()];
        for input in inputs {
            let input = alone(input);
            let hidden = if last.layers().start() == 0 { last.embed(&input)? } else { input };
            let hidden = last.blocks(hidden)?;
            end[1].push(last.normalise(&hidden)?.member(0));
            end[0].push(hidden.member(0));
        }
        Ok(end)
    }

    /// State tokens `[requests, width]` of π0.
    pub(super) fn state_tokens(&self, states: &[Tensor]) -> Result<Tensor, SliceError> {
        self.expert[0].state_tokens(states)
    }

    /// Action tokens `[requests × horizon, width]`.
    pub(super) fn action_tokens(&self, inputs: &[StepInput<'_>]) -> Result<Tensor, SliceError> {
        self.expert[0].action_tokens(&noisy(inputs))
    }

    /// What the expert's last block gives `[requests × horizon, width]`, and that normalised; out of what its slice takes.
    pub(super) fn expert_end(&self, inputs: &[StepInput<'_>]) -> Result<[Tensor; 2], SliceError> {
        let [_, last] = &self.expert;
        let hidden = last.blocks(last.action_tokens(&noisy(inputs))?, inputs)?;
        let steps: Vec<Step> = inputs.iter().map(|input| input.step).collect();
        let normed = last.normalise(&hidden, &steps)?;
        Ok([hidden, normed])
    }
}

fn noisy<'a>(inputs: &[StepInput<'a>]) -> Vec<(&'a Tensor, Step)> {
    inputs.iter().map(|input| (input.x, input.step)).collect()
}

/// The first and the last layer.
fn ends(layers: usize) -> [LayerRange; 2] {
    [0, layers - 1].map(|layer| LayerRange::new(layer, layer + 1).expect("a stage has layers"))
}

/// A tensor as the only one of its kind.
fn alone(tensor: &Tensor) -> Tensor {
    Tensor::stack(&[tensor]).expect("one tensor has one shape")
}

/// Why a tensor of this name is compared on the host alone, if it is.
pub(super) fn why_only_the_host_shows(name: &str, sizes: &ModelSizes) -> Option<&'static str> {
    let last_of_tower = format!(".layer{}", sizes.vision.layers - 1);
    let last_of_expert = format!("step0.layer{}.hidden_out", sizes.expert.layers - 1);
    let in_tower = name.starts_with("vision.")
        && [".embeddings", ".tower_out", &last_of_tower].iter().any(|part| name.ends_with(part));
    let in_expert = ["step0.suffix_embs", "step0.final_norm", &last_of_expert].contains(&name);
    if in_tower || in_expert {
        Some("inside a slice, which a chip does not give away")
    } else if name.ends_with(".adarms_cond") {
        Some("on a chip, time is part of the weights")
    } else {
        None
    }
}
