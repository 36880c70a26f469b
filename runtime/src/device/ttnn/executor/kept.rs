//! Tensors that lie on a chip between programs, and the sockets by which they come and go.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use tensact_topology::ChipId;
use ttnn_sys::{Receiver, Sender, Tensor, ops};

use super::on_chip::{OnChip, ProgramId, Slot, zeros};
use crate::device::ttnn::chip::ChipError;
use crate::device::ttnn::program::{TensorSpec, ValueId};

/// Socket ends of a chip, by the chip at the other end.
#[derive(Default)]
pub(super) struct Ways {
    pub(super) out: BTreeMap<ChipId, Sender>,
    pub(super) into: BTreeMap<ChipId, Receiver>,
}

/// A tensor's place on a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PlaceId(u64);

impl PlaceId {
    /// One that nothing lies in.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What lies on a chip between programs. Room that was made once stays, because a trace must never find another tensor
/// where it writes.
#[derive(Default)]
pub(super) struct Places {
    taken: HashMap<PlaceId, Result<(TensorSpec, Tensor), ChipError>>,
    free: Vec<(TensorSpec, Tensor)>,
}

impl OnChip {
    /// Leaves what a program's tensor holds in a place of its own.
    pub(super) fn keep(&mut self, id: ProgramId, value: ValueId, place: PlaceId) -> Result<(), ChipError> {
        let spec = self.spec(id, value)?;
        let into = self.room(spec)?;
        let copied = self.with(id, value, |tensor| ops::copy(tensor, &into));
        self.put(place, copied.map(|()| (spec, into)))
    }

    /// Puts a tensor in its place, or the reason why there is none, which is given back as well.
    fn put(
        &mut self,
        place: PlaceId,
        made: Result<(TensorSpec, Tensor), ChipError>,
    ) -> Result<(), ChipError> {
        let outcome = made.as_ref().map(|_| ()).map_err(ChipError::clone);
        self.places.taken.insert(place, made);
        outcome
    }

    /// Sends what a program's tensor holds. Returns at once; the chips wait for each other.
    pub(super) fn send(&mut self, id: ProgramId, value: ValueId, to: ChipId) -> Result<(), ChipError> {
        let way = self.ways.out.get(&to).ok_or_else(|| self.no_way(to))?;
        self.with(id, value, |tensor| way.send(tensor))
    }

    /// Sends what lies in a place.
    pub(super) fn send_kept(&mut self, place: PlaceId, to: ChipId) -> Result<(), ChipError> {
        let way = self.ways.out.get(&to).ok_or_else(|| self.no_way(to))?;
        let (spec, tensor) = self.kept(place)?;
        way.send(tensor).map_err(|error| self.between(&format!("sending {spec} to chip {to}"), &error))
    }

    /// Receives what another chip sends. Who uses the place later hears when that failed.
    pub(super) fn receive(&mut self, place: PlaceId, spec: TensorSpec, from: ChipId) {
        let received = self.room(spec).and_then(|into| {
            let way = self.ways.into.get(&from).ok_or_else(|| self.no_way(from))?;
            let place = || format!("receiving {spec} from chip {from}");
            way.receive(&into).map_err(|error| self.between(&place(), &error))?;
            Ok((spec, into))
        });
        let _ = self.put(place, received);
    }

    /// Overwrites a program's input with what lies in a place, and zeros in rows that it does not have.
    pub(super) fn fill(&mut self, id: ProgramId, input: ValueId, place: PlaceId) -> Result<(), ChipError> {
        let (found, expected) = (self.kept(place)?.0, self.spec(id, input)?);
        let missing = expected.shape[2] - found.shape[2];
        let rest = match missing {
            0 => None,
            rows => {
                let [a, b, _, width] = expected.shape;
                let spec = TensorSpec { shape: [a, b, rows, width], ..found };
                Some(zeros(&self.mesh, spec).map_err(|error| self.between("zeros behind a tensor", &error))?)
            }
        };
        let (_, kept) = self.kept(place)?;
        self.with(id, input, |into| match &rest {
            None => ops::copy(kept, into),
            Some(rest) => ops::copy(&ops::concat(&[kept, rest], 2)?, into),
        })
    }

    pub(super) fn read_kept(&mut self, place: PlaceId) -> Result<Vec<f32>, ChipError> {
        let (spec, tensor) = self.kept(place)?;
        tensor.to_f32().map_err(|error| self.between(&format!("reading {spec}"), &error))
    }

    /// Makes room for so many more tensors.
    pub(super) fn make_room(&mut self, spec: TensorSpec, tensors: usize) -> Result<(), ChipError> {
        for _ in 0..tensors {
            let room = self.allocate(spec)?;
            self.places.free.push((spec, room));
        }
        Ok(())
    }

    /// Nobody holds what lies in a place any more.
    pub(super) fn release(&mut self, place: PlaceId) {
        if let Some(Ok(room)) = self.places.taken.remove(&place) {
            self.places.free.push(room);
        }
    }

    fn room(&mut self, spec: TensorSpec) -> Result<Tensor, ChipError> {
        match self.places.free.iter().position(|(free, _)| *free == spec) {
            Some(at) => Ok(self.places.free.swap_remove(at).1),
            None => self.allocate(spec),
        }
    }

    fn allocate(&mut self, spec: TensorSpec) -> Result<Tensor, ChipError> {
        self.drop_traces();
        zeros(&self.mesh, spec).map_err(|error| self.between(&format!("room for {spec}"), &error))
    }

    fn kept(&self, place: PlaceId) -> Result<&(TensorSpec, Tensor), ChipError> {
        match self.places.taken.get(&place) {
            Some(Ok(kept)) => Ok(kept),
            Some(Err(error)) => Err(error.clone()),
            None => Err(self.between_failed("a tensor's place", "nothing lies there".into())),
        }
    }

    /// What a program's tensor is, which stays where it is between runs.
    fn spec(&self, id: ProgramId, value: ValueId) -> Result<TensorSpec, ChipError> {
        let loaded = self.programs.get(&id).ok_or_else(|| self.unknown(id))?;
        match loaded.slots[value.index()] {
            Slot::Kept(_) => Ok(loaded.program.value(value).spec),
            Slot::Weight(_) | Slot::Passing(_) => Err(self.unknown(id)),
        }
    }

    fn no_way(&self, to: ChipId) -> ChipError {
        self.between_failed("its sockets", format!("none of them is connected to chip {to}"))
    }

    fn between(&self, place: &str, error: &ttnn_sys::Error) -> ChipError {
        self.between_failed(place, error.to_string())
    }

    fn between_failed(&self, place: &str, message: String) -> ChipError {
        let (program, place) = ("between slices".into(), place.into());
        ChipError::Failed { chip: self.chip.0, program, place, message }
    }
}
