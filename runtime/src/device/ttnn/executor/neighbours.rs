//! How the chips of a board reach each other, and tensors that lie on them between programs.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use tensact_topology::ChipId;

use super::kept::PlaceId;
use super::on_chip::OnChip;
use crate::device::ttnn::chip::{ChipError, Kept};
use crate::device::ttnn::program::TensorSpec;
use crate::device::ttnn::threads::{Ended, Jobs, Order};

/// The threads of all chips of a board. They end with their chips, not with this.
#[derive(Default)]
pub(super) struct Neighbours {
    pub(super) jobs: OnceLock<BTreeMap<ChipId, Weak<Jobs<OnChip>>>>,
    order: Order,
}

/// What is said of programs where there is none.
const BETWEEN: &str = "between slices";

pub(super) fn ended(chip: ChipId, program: &str) -> ChipError {
    ChipError::Failed {
        chip: chip.0,
        program: program.into(),
        place: "its thread".into(),
        message: "the thread of this chip has ended: it panicked in an earlier call; restart the server"
            .into(),
    }
}

impl Neighbours {
    fn jobs(&self, chip: ChipId) -> Result<Arc<Jobs<OnChip>>, ChipError> {
        let known = self.jobs.get().and_then(|all| all.get(&chip)).and_then(Weak::upgrade);
        known.ok_or_else(|| ended(chip, BETWEEN))
    }

    /// Runs something on a chip's thread and waits for it.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        chip: ChipId,
        job: impl FnOnce(&mut OnChip) -> Result<T, ChipError> + Send + 'static,
    ) -> Result<T, ChipError> {
        self.jobs(chip)?.ask(job).unwrap_or_else(|Ended| Err(ended(chip, BETWEEN)))
    }

    /// Has one chip send a tensor that the other one keeps. The receiver is told at once, so that the tensor leaves the
    /// sender whatever the receiver does next; nobody waits for it to arrive.
    pub(super) fn hand_over(
        &self,
        (from, to): (ChipId, ChipId),
        spec: TensorSpec,
        send: impl FnOnce(&mut OnChip) -> Result<(), ChipError> + Send + 'static,
    ) -> Result<KeptOnChip, ChipError> {
        let (sender, receiver) = (self.jobs(from)?, self.jobs(to)?);
        let place = PlaceId::new();
        let receive = move |on_chip: &mut OnChip, sent: Result<(), Option<ChipError>>| {
            // What was not sent is told to who asked for it.
            if sent.is_ok() {
                on_chip.receive(place, spec, from);
            }
        };
        let sent = self.order.hand_over(&sender, &receiver, send, receive);
        sent.unwrap_or_else(|Ended| Err(ended(from, BETWEEN)))?;
        Ok(KeptOnChip { chip: to, jobs: Arc::downgrade(&receiver), place, spec })
    }
}

/// A tensor in a place of its own on a chip.
pub(super) struct KeptOnChip {
    pub(super) chip: ChipId,
    pub(super) jobs: Weak<Jobs<OnChip>>,
    pub(super) place: PlaceId,
    pub(super) spec: TensorSpec,
}

impl Kept for KeptOnChip {
    fn spec(&self) -> TensorSpec {
        self.spec
    }

    fn read(&self) -> Result<Vec<f32>, ChipError> {
        let (place, gone) = (self.place, || ended(self.chip, BETWEEN));
        let jobs = self.jobs.upgrade().ok_or_else(gone)?;
        jobs.ask(move |on_chip| on_chip.read_kept(place)).unwrap_or_else(|Ended| Err(gone()))
    }
}

impl Drop for KeptOnChip {
    fn drop(&mut self) {
        let place = self.place;
        if let Some(jobs) = self.jobs.upgrade() {
            // A chip whose thread has ended keeps nothing.
            let _ = jobs.post(move |on_chip| on_chip.release(place));
        }
    }
}
