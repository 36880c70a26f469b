//! A rehearsal: a deployment's actors on threads of their own, in real time, with devices that compute nothing. What is
//! left is messages, hand-over and scheduling.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tensact_runtime::Tensor;
use tensact_runtime::model::ModelInput;
use tensact_runtime::model::flow::{Steps, noise};
use tensact_runtime::policy::Sample;
use tensact_topology::DeviceKind;

use super::Simulation;
use crate::clock::Clock;
use crate::devices::{Arithmetic, Devices};
use crate::engine::{Blueprint, Engine};
use crate::request::Refusal;
use crate::start::{StartError, needs_threads};

impl Simulation {
    /// Passes `requests` requests through the deployment, `outstanding` of them at a time; gives the time it took. Needs
    /// tokio's multi-threaded runtime.
    ///
    /// # Errors
    /// When actors cannot be started, or a request was refused because so many cannot wait.
    pub async fn rehearse(&self, requests: u64, outstanding: usize) -> Result<Duration, RehearsalError> {
        needs_threads()?;
        let mut simulation = self.clone();
        for slice in simulation.placement.pipelines.iter_mut().flat_map(|pipeline| &mut pipeline.slices) {
            slice.device = DeviceKind::Host;
        }
        let devices = Devices::load(&simulation.placement, &self.sizes, &Arithmetic::Nothing);
        let devices = devices.map_err(StartError::from)?;
        let blueprint = simulation.blueprint(&super::PlannedFaults::default(), devices, None);
        let blueprint =
            Blueprint { clock: Clock::real(), faults: BTreeMap::new(), on_threads: true, ..blueprint };
        let engine = Engine::start(blueprint).await;
        let image = || Some(Tensor::zeros([3, 1, 1]));
        let input = ModelInput {
            images: (0..self.request.cameras).map(|_| image()).collect(),
            tokens: vec![1],
            state: vec![0.0; self.sizes.state_dim],
        };
        let steps = Steps::new(self.request.steps).map_err(StartError::from)?;
        let sample = Sample { input, noise: noise(&self.sizes, 0), steps, guidance: None };
        let began = Instant::now();
        let mut waiting = VecDeque::with_capacity(outstanding);
        for _ in 0..requests {
            if waiting.len() >= outstanding.max(1)
                && let Some(oldest) = waiting.pop_front()
            {
                answered(oldest).await?;
            }
            waiting.push_back(engine.submit(sample.clone(), None, None));
        }
        for pending in waiting {
            answered(pending).await?;
        }
        let took = began.elapsed();
        engine.shut_down(Duration::from_secs(1)).await;
        Ok(took)
    }
}

async fn answered(pending: crate::engine::Pending) -> Result<(), RehearsalError> {
    pending.outcome().await?;
    Ok(())
}

/// A rehearsal came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// It could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A request was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}
