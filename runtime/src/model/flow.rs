//! Flow matching: Euler integration from noise to actions, and real-time chunking.

use std::num::NonZeroU16;

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use tensact_topology::ModelSizes;

use crate::Tensor;

/// How many denoising steps integrate one chunk: 1 to [`Steps::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Steps(NonZeroU16);

/// A number of denoising steps that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{count} denoising steps cannot be: expected 1 to {}", Steps::MAX)]
pub struct BadSteps {
    count: usize,
}

impl Steps {
    /// Most steps that are accepted. The published policies use 5 to 10.
    pub const MAX: usize = 1000;

    /// This many steps.
    ///
    /// # Errors
    /// When it is none, or more than [`Steps::MAX`].
    pub fn new(count: usize) -> Result<Self, BadSteps> {
        u16::try_from(count)
            .ok()
            .filter(|_| count <= Self::MAX)
            .and_then(NonZeroU16::new)
            .map(Self)
            .ok_or(BadSteps { count })
    }

    /// The number.
    pub fn count(self) -> usize {
        self.0.get().into()
    }

    /// All steps in order, from noise to actions.
    pub fn iter(self) -> impl Iterator<Item = Step> {
        (0..self.0.get()).map(move |index| Step { index, of: self })
    }
}

/// One denoising step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    index: u16,
    of: Steps,
}

impl Step {
    /// Counted from 0.
    pub fn index(self) -> usize {
        self.index.into()
    }

    /// Of how many.
    pub fn of(self) -> Steps {
        self.of
    }

    /// Flow time at its beginning: 1 is noise, 0 is actions. `1 - index / of`, as LeRobot computes it.
    pub fn time(self) -> f32 {
        let dt = -1.0 / self.of.count() as f64;
        (1.0 + self.index() as f64 * dt) as f32
    }

    /// One Euler step along the velocity `v`: `x -= v / of`, in f32.
    ///
    /// # Panics
    /// When `x` and `v` differ in size.
    pub fn advance(self, x: &mut Tensor, v: &Tensor) {
        assert_eq!(x.shape(), v.shape(), "a velocity has the shape of the actions it moves");
        let dt = (-1.0 / self.of.count() as f64) as f32;
        x.data_mut().iter_mut().zip(v.data()).for_each(|(x, v)| *x += dt * v);
    }
}

/// Standard normal noise to start from, `[horizon, action_dim]`. The same seed gives the same noise on every machine.
pub fn noise(sizes: &ModelSizes, seed: u64) -> Tensor {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut tensor = Tensor::zeros([sizes.horizon, sizes.action_dim]);
    tensor.data_mut().fill_with(|| StandardNormal.sample(&mut rng));
    tensor
}

/// How the weight of the previous chunk falls from 1 to 0 over the horizon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightSchedule {
    /// 1 during the delay, then linear to 0 at the end of the execution horizon.
    #[default]
    Linear,
    /// Like linear, but `l (e^l - 1) / (e - 1)`.
    Exp,
    /// 1 up to the end of the execution horizon.
    Ones,
    /// 1 during the delay, 0 after it.
    Zeros,
}

/// Real-time chunking: guidance towards the actions that are executed while this chunk is computed
/// (arXiv 2506.07339, in the form of LeRobot's `modeling_rtc.py`, which needs no gradient).
#[derive(Debug, Clone, PartialEq)]
pub struct Guidance {
    /// What the previous chunk still holds, `[≤ horizon, action_dim]` in model units.
    pub previous: Tensor,
    /// Actions that will have been executed when this chunk arrives.
    pub delay: usize,
    /// Actions that will be executed before the next chunk takes over.
    pub execution_horizon: usize,
    /// How its weight falls.
    pub schedule: WeightSchedule,
    /// Largest guidance weight; 10 unless there is a reason.
    pub max_weight: f32,
}

impl Guidance {
    /// Weight of each action of a chunk of `horizon` actions.
    pub fn weights(&self, horizon: usize) -> Vec<f32> {
        let end = self.execution_horizon.min(self.previous.rows()).min(horizon);
        let start = self.delay.min(end);
        let between = (end - start) as f32;
        (0..horizon)
            .map(|i| match (i < start, i < end) {
                (true, _) => 1.0,
                (_, false) => 0.0,
                _ => {
                    // The inner points of linspace(1, 0, end - start + 2).
                    let linear = 1.0 - (i - start + 1) as f32 / (between + 1.0);
                    match self.schedule {
                        WeightSchedule::Linear => linear,
                        WeightSchedule::Exp => linear * linear.exp_m1() / (std::f32::consts::E - 1.0),
                        WeightSchedule::Ones => 1.0,
                        WeightSchedule::Zeros => 0.0,
                    }
                }
            })
            .collect()
    }

    /// Bends the velocity `v [horizon, action_dim]` at `x` towards the previous chunk.
    pub fn bend(&self, step: Step, x: &Tensor, v: &mut Tensor) {
        let time = step.time();
        let strength = self.strength(time);
        let width = x.width();
        let weights = self.weights(x.rows());
        for (row, weight) in weights.into_iter().enumerate().filter(|(_, weight)| *weight != 0.0) {
            for column in 0..width {
                let previous = if row < self.previous.rows() && column < self.previous.width() {
                    self.previous.row(row)[column]
                } else {
                    0.0
                };
                let at = row * width + column;
                let end = x.data()[at] - time * v.data()[at];
                v.data_mut()[at] -= strength * (previous - end) * weight;
            }
        }
    }

    /// `min((1-τ)/τ · ((1-τ)² + τ²)/(1-τ)², max)` with `τ = 1 - time`.
    fn strength(&self, time: f32) -> f32 {
        let tau = 1.0 - time;
        let left = (1.0 - tau).powi(2);
        let strength = (1.0 - tau) / tau * ((left + tau * tau) / left);
        if strength.is_finite() { strength.min(self.max_weight) } else { self.max_weight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn steps_are_bounded() {
        assert!(Steps::new(0).is_err() && Steps::new(1001).is_err() && Steps::new(usize::MAX).is_err());
        let times: Vec<f32> = Steps::new(4).unwrap().iter().map(Step::time).collect();
        assert_eq!(times, [1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn a_constant_velocity_is_integrated_exactly() {
        let mut x = Tensor::new([1, 2], vec![3.0, -1.0]).unwrap();
        let v = Tensor::new([1, 2], vec![2.0, 0.5]).unwrap();
        Steps::new(8).unwrap().iter().for_each(|step| step.advance(&mut x, &v));
        assert_eq!(x.data(), [1.0, -1.5]);
    }

    proptest! {
        #[test]
        fn weights_never_rise_and_end_with_what_is_executed(
            delay in 0usize..20, execution in 0usize..20, rest in 0usize..20, horizon in 1usize..20,
            schedule in prop_oneof![
                Just(WeightSchedule::Linear), Just(WeightSchedule::Exp),
                Just(WeightSchedule::Ones), Just(WeightSchedule::Zeros)],
        ) {
            let guidance = Guidance {
                previous: Tensor::zeros([rest, 3]), delay, execution_horizon: execution, schedule, max_weight: 10.0,
            };
            let weights = guidance.weights(horizon);
            prop_assert!(weights.windows(2).all(|pair| pair[0] >= pair[1]));
            prop_assert!(weights.iter().all(|weight| (0.0..=1.0).contains(weight)));
            prop_assert!(weights.iter().skip(execution.min(rest)).all(|weight| *weight == 0.0));
        }
    }
}
