//! Tensors that lie on a chip between programs, and the sockets by which they come and go.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Room that is made at a time when there is none left: making some lets go of all traces.
pub(super) const GROUP: usize = 8;

/// How many free places there are for each kind of tensor that nobody has reserved. Who sends reserves one first.
#[derive(Default)]
pub(super) struct Rooms(Mutex<HashMap<TensorSpec, usize>>);

impl Rooms {
    fn free(&self) -> MutexGuard<'_, HashMap<TensorSpec, usize>> {
        // A poisoned table is still a table of numbers.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was one.
    pub(super) fn reserve(&self, spec: TensorSpec) -> bool {
        match self.free().get_mut(&spec) {
            Some(free) if *free > 0 => {
                *free -= 1;
                true
            }
            _ => false,
        }
    }

    pub(super) fn give_back(&self, spec: TensorSpec, places: usize) {
        *self.free().entry(spec).or_default() += places;
    }
}

/// What lies on a chip between programs.
#[derive(Default)]
pub(super) struct Places {
    taken: HashMap<PlaceId, Result<(TensorSpec, Tensor), ChipError>>,
    /// All that are not taken, reserved or not.
    free: Vec<(TensorSpec, Tensor)>,
    pub(super) rooms: Arc<Rooms>,
    /// What has run before. The first time TT-NN allocates memory for kernels that stays, where a trace could write.
    known: HashSet<Move>,
}

/// What moves tensors outside of programs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Move {
    Copy(TensorSpec),
    Widen(TensorSpec, TensorSpec),
    Send(TensorSpec, ChipId),
    Receive(TensorSpec, ChipId),
}

impl OnChip {
    /// The chip's free places, for those that send to it.
    pub(super) fn rooms(&self) -> &Arc<Rooms> {
        &self.places.rooms
    }

    /// Lets go of traces where something runs for the first time.
    fn before(&mut self, what: Move) {
        if self.places.known.insert(what) {
            self.drop_traces();
        }
    }

    /// Leaves what a program's tensor holds in a place of its own.
    pub(super) fn keep(&mut self, id: ProgramId, value: ValueId, place: PlaceId) -> Result<(), ChipError> {
        let spec = self.spec(id, value)?;
        // Others may reserve what is made before this does.
        while !self.places.rooms.reserve(spec) {
            self.make_room(spec, GROUP)?;
        }
        let into = self.room(spec)?;
        self.before(Move::Copy(spec));
        match self.with(id, value, |tensor| ops::copy(tensor, &into)) {
            Ok(()) => drop(self.places.taken.insert(place, Ok((spec, into)))),
            Err(error) => {
                self.set_free(spec, into);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends what a program's tensor holds. Returns at once; the chips wait for each other.
    pub(super) fn send(&mut self, id: ProgramId, value: ValueId, to: ChipId) -> Result<(), ChipError> {
        self.before(Move::Send(self.spec(id, value)?, to));
        let way = self.ways.out.get(&to).ok_or_else(|| self.no_way(to))?;
        self.with(id, value, |tensor| way.send(tensor))
    }

    /// Sends what lies in a place.
    pub(super) fn send_kept(&mut self, place: PlaceId, to: ChipId) -> Result<(), ChipError> {
        self.before(Move::Send(self.kept(place)?.0, to));
        let way = self.ways.out.get(&to).ok_or_else(|| self.no_way(to))?;
        let (spec, tensor) = self.kept(place)?;
        way.send(tensor).map_err(|error| self.between(&format!("sending {spec} to chip {to}"), &error))
    }

    /// Receives what another chip has sent into a place that was reserved. Who uses it later hears when that failed.
    pub(super) fn receive(&mut self, place: PlaceId, spec: TensorSpec, from: ChipId) {
        self.before(Move::Receive(spec, from));
        let received = self.room(spec).and_then(|into| {
            let way = self.ways.into.get(&from).ok_or_else(|| self.no_way(from))?;
            let place = || format!("receiving {spec} from chip {from}");
            way.receive(&into).map_err(|error| self.between(&place(), &error))?;
            Ok((spec, into))
        });
        self.places.taken.insert(place, received);
    }

    /// Overwrites a program's input with what lies in a place, and zeros in rows that it does not have.
    pub(super) fn fill(&mut self, id: ProgramId, input: ValueId, place: PlaceId) -> Result<(), ChipError> {
        let (found, expected) = (self.kept(place)?.0, self.spec(id, input)?);
        let missing = expected.shape[2] - found.shape[2];
        self.before(if missing == 0 { Move::Copy(found) } else { Move::Widen(found, expected) });
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

    /// Makes room for so many more tensors, or as many as there is memory for.
    pub(super) fn make_room(&mut self, spec: TensorSpec, tensors: usize) -> Result<(), ChipError> {
        // A replay writes where its passing tensors lay, which TT-NN gives away again.
        self.drop_traces();
        for made in 0..tensors {
            let room = match zeros(&self.mesh, spec) {
                Err(_) if made > 0 => return Ok(()),
                // The chip may be full of room for what is no longer asked for.
                Err(_) if self.give_up_rooms() => zeros(&self.mesh, spec),
                made => made,
            };
            let room = room.map_err(|error| self.between(&format!("room for {spec}"), &error))?;
            self.set_free(spec, room);
        }
        Ok(())
    }

    /// Frees the memory of all places that nobody holds or has reserved; whether there were any.
    pub(super) fn give_up_rooms(&mut self) -> bool {
        let mut unused = std::mem::take(&mut *self.places.rooms.free());
        let before = self.places.free.len();
        self.places.free.retain(|(spec, _)| match unused.get_mut(spec) {
            Some(count) if *count > 0 => {
                *count -= 1;
                false
            }
            _ => true,
        });
        self.places.free.len() < before
    }

    /// Nobody holds what lies in a place any more.
    pub(super) fn release(&mut self, place: PlaceId) {
        if let Some(Ok((spec, room))) = self.places.taken.remove(&place) {
            self.set_free(spec, room);
        }
    }

    fn set_free(&mut self, spec: TensorSpec, room: Tensor) {
        self.places.free.push((spec, room));
        self.places.rooms.give_back(spec, 1);
    }

    /// The room of a place that was reserved.
    fn room(&mut self, spec: TensorSpec) -> Result<Tensor, ChipError> {
        match self.places.free.iter().position(|(free, _)| *free == spec) {
            Some(at) => Ok(self.places.free.swap_remove(at).1),
            None => Err(self.between_failed("a tensor's place", format!("no room is left for {spec}"))),
        }
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
