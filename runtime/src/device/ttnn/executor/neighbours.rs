//! How the chips of a board reach each other, and tensors that lie on them between programs.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use tensact_topology::ChipId;

use super::kept::{GROUP, PlaceId, Rooms};
use super::on_chip::OnChip;
use crate::device::ttnn::chip::{ChipError, Kept};
use crate::device::ttnn::program::TensorSpec;
use crate::device::ttnn::threads::{Ended, Jobs, Order, Side};

/// How to reach the chips of a board. Their threads end with their chips, not with this.
#[derive(Default)]
pub(super) struct Neighbours {
    pub(super) chips: OnceLock<BTreeMap<ChipId, Neighbour>>,
    order: Order,
}

/// A chip seen from others.
pub(super) struct Neighbour {
    pub(super) jobs: Weak<Jobs<OnChip>>,
    pub(super) rooms: Arc<Rooms>,
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
    fn chip(&self, chip: ChipId) -> Result<(Arc<Jobs<OnChip>>, &Rooms), ChipError> {
        let known = self.chips.get().and_then(|all| all.get(&chip));
        let open = known.and_then(|known| Some((known.jobs.upgrade()?, &*known.rooms)));
        open.ok_or_else(|| ended(chip, BETWEEN))
    }

    /// Runs something on a chip's thread and waits for it.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        chip: ChipId,
        job: impl FnOnce(&mut OnChip) -> Result<T, ChipError> + Send + 'static,
    ) -> Result<T, ChipError> {
        self.chip(chip)?.0.ask(job).unwrap_or_else(|Ended| Err(ended(chip, BETWEEN)))
    }

    /// Has one chip send a tensor that the other one keeps. There is room for it before anything is sent: a tensor that
    /// nobody receives would hold its sender up for ever. Nobody waits for it to arrive.
    pub(super) fn hand_over(
        &self,
        (from, to): (ChipId, ChipId),
        spec: TensorSpec,
        send: impl FnOnce(&mut OnChip) -> Result<(), ChipError> + Send + 'static,
    ) -> Result<KeptOnChip, ChipError> {
        let ((sender, _), (receiver, rooms)) = (self.chip(from)?, self.chip(to)?);
        while !rooms.reserve(spec) {
            self.ask(to, move |on_chip| on_chip.make_room(spec, GROUP))?;
        }
        let place = PlaceId::new();
        let receive = move |on_chip: &mut OnChip| on_chip.receive(place, spec, from);
        let sent = match self.order.hand_over(&sender, &receiver, send, receive) {
            Ok(sent) => sent,
            Err(Side::Sender) => Err(ended(from, BETWEEN)),
            Err(Side::Receiver) => Err(ended(to, BETWEEN)),
        };
        if let Err(error) = sent {
            rooms.give_back(spec, 1);
            return Err(error);
        }
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
