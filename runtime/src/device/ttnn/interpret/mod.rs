//! Programs run on the host with the chip's rounding, call by call: the reference that a chip is held against.
//!
//! Every result is computed in f32 and rounded once, to the dtype that the program declares. Factors of a product are as
//! they are stored; how many passes the matrix engine would take for them makes no difference here. Tensors have their
//! logical shapes: what fills tiles up on a chip does not exist.

mod attention;
mod kept;
mod ops;
mod rearrange;
mod sockets;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use tensact_topology::ChipId;

use super::chip::{Chip, ChipError, Kept, LoadedProgram, check_fill, with_more_rows};
use super::packed::Packed;
use super::program::{Call, Op, Origin, Program, Segment, TensorSpec, ValueId, check};
use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::device::host::{ComputeDtype, HostDevice, NoThreads};
use sockets::Sockets;

/// A chip of a board that is interpreted on the host. All chips of a board share threads, weights and sockets.
pub struct Interpreter {
    id: ChipId,
    board: Arc<Board>,
}

struct Board {
    weights: Weights,
    sockets: Sockets,
    moves: Mutex<BTreeSet<(ChipId, ChipId)>>,
}

impl Board {
    /// Takes down that a tensor went from one chip to another.
    fn moved(&self, from: ChipId, to: ChipId) {
        if from != to {
            // A poisoned set is still a set of whole ways.
            self.moves.lock().unwrap_or_else(PoisonError::into_inner).insert((from, to));
        }
    }
}

impl Interpreter {
    /// Chip 0 of a board with the weights of one checkpoint, on that many threads; as many as there are cores when `None`.
    ///
    /// # Errors
    /// When threads cannot be had.
    pub fn new(checkpoint: &Checkpoint, threads: Option<NonZeroUsize>) -> Result<Arc<Self>, NoThreads> {
        let device = HostDevice::new(threads, ComputeDtype::F32)?;
        Ok(Self::with_weights(Weights::new(device, checkpoint)))
    }

    /// Chip 0 of a board with these weights, on the threads that make them.
    pub fn with_weights(weights: Weights) -> Arc<Self> {
        Arc::new(Self {
            id: ChipId(0),
            board: Arc::new(Board { weights, sockets: Sockets::default(), moves: Mutex::default() }),
        })
    }

    /// Another chip of the same board: what one sends the other receives.
    pub fn chip(&self, id: ChipId) -> Arc<Self> {
        Arc::new(Self { id, board: Arc::clone(&self.board) })
    }

    /// From which chips tensors went to which others without the host, since this was last asked.
    pub fn take_moves(&self) -> BTreeSet<(ChipId, ChipId)> {
        std::mem::take(&mut *self.board.moves.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn weight(&self, program: &Program, id: ValueId) -> Result<Option<Held>, ChipError> {
        let value = program.value(id);
        let Origin::Weight(recipe) = &value.origin else { return Ok(None) };
        let made = self.board.weights.get(recipe, value.spec);
        made.map(|weight| Some(Held::Weight(weight))).map_err(|error| ChipError::Weight {
            program: program.name.clone(),
            weight: value.name.clone(),
            reason: error.to_string(),
        })
    }
}

impl Chip for Interpreter {
    fn id(&self) -> ChipId {
        self.id
    }

    fn load(self: Arc<Self>, program: Arc<Program>) -> Result<Box<dyn LoadedProgram>, ChipError> {
        check(&program)?;
        let held = program.ids().map(|(id, _)| self.weight(&program, id)).collect::<Result<_, _>>()?;
        Ok(Box::new(Loaded { chip: self.id, board: Arc::clone(&self.board), program, held }))
    }
}

/// What a tensor holds.
#[derive(Clone)]
enum Held {
    /// Rounded to the tensor's dtype.
    Floats(Arc<Vec<f32>>),
    Numbers(Arc<Vec<u32>>),
    /// Decoded when it is used.
    Weight(Arc<Packed>),
}

struct Loaded {
    chip: ChipId,
    board: Arc<Board>,
    program: Arc<Program>,
    /// By the tensor's number; `None` before something is written, and after it is freed.
    held: Vec<Option<Held>>,
}

impl LoadedProgram for Loaded {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }

    fn write(&mut self, input: ValueId, values: &[f32]) -> Result<(), ChipError> {
        let spec = self.input(input, values.len(), true)?;
        let rounded = self.rounded(values.to_vec(), spec);
        self.held[input.index()] = Some(rounded);
        Ok(())
    }

    fn write_numbers(&mut self, input: ValueId, numbers: &[u32]) -> Result<(), ChipError> {
        self.input(input, numbers.len(), false)?;
        self.held[input.index()] = Some(Held::Numbers(Arc::new(numbers.to_vec())));
        Ok(())
    }

    fn run(&mut self, segment: usize) -> Result<(), ChipError> {
        let program = Arc::clone(&self.program);
        let Some(segment) = program.segments.get(segment) else {
            let count = program.segments.len();
            return Err(
                self.failed("run".into(), format!("there is no segment {segment}, but {count} of them"))
            );
        };
        for (index, call) in segment.calls.iter().enumerate() {
            self.call(call).map_err(|message| self.failed(place(segment, index, call), message))?;
        }
        Ok(())
    }

    fn read(&mut self, value: ValueId) -> Result<Vec<f32>, ChipError> {
        match self.floats(value) {
            Ok(floats) => Ok(floats.values.to_vec()),
            Err(message) => Err(self.failed("read".into(), message)),
        }
    }

    fn keep(&mut self, value: ValueId, on: ChipId) -> Result<Arc<dyn Kept>, ChipError> {
        let kept = match self.floats(value) {
            Ok(floats) => {
                kept::Floats { chip: on, spec: self.program.value(value).spec, values: floats.values }
            }
            Err(message) => return Err(self.failed("keep".into(), message)),
        };
        self.board.moved(self.chip, on);
        Ok(Arc::new(kept))
    }

    fn make_room(&mut self, _: ValueId, _: ChipId, _: usize) -> Result<(), ChipError> {
        Ok(())
    }

    fn fill(&mut self, input: ValueId, from: &dyn Kept) -> Result<(), ChipError> {
        check_fill(&self.program, input, from.spec())?;
        let (found, expected) = (from.spec(), self.program.value(input).spec);
        let (chip, values) = kept::values(from)?;
        chip.iter().for_each(|chip| self.board.moved(*chip, self.chip));
        let values = match found.shape == expected.shape {
            true => values,
            false => Arc::new(with_more_rows(&values, found, expected)),
        };
        self.held[input.index()] = Some(Held::Floats(values));
        Ok(())
    }
}

fn place(segment: &Segment, index: usize, call: &Call) -> String {
    format!("segment `{}`, call {index} ({})", segment.name, call.op.name())
}

/// A tensor of floats.
struct Floats {
    shape: [usize; 4],
    values: Arc<Vec<f32>>,
}

impl Floats {
    fn width(&self) -> usize {
        self.shape[3]
    }
}

impl Loaded {
    fn failed(&self, place: String, message: String) -> ChipError {
        ChipError::Failed { chip: self.chip.0, program: self.program.name.clone(), place, message }
    }

    /// The spec of an input of that many floats, or numbers.
    fn input(&self, id: ValueId, found: usize, floats: bool) -> Result<TensorSpec, ChipError> {
        let Some(value) = self.program.values.get(id.index()) else {
            return Err(self.failed("write".into(), format!("there is no value {}", id.index())));
        };
        if value.origin != Origin::Input || value.spec.dtype.is_float() != floats {
            let kind = if floats { "floats" } else { "numbers" };
            let message = format!("`{}` ({}) is no input of {kind}", value.name, value.spec);
            return Err(self.failed("write".into(), message));
        }
        let expected = value.spec.shape.iter().product();
        if found != expected {
            let (program, input) = (self.program.name.clone(), value.name.clone());
            return Err(ChipError::Input { program, input, expected, found });
        }
        Ok(value.spec)
    }

    fn held(&self, id: ValueId) -> Result<&Held, String> {
        let missing = || {
            let name = self.program.values.get(id.index()).map_or("?", |value| &value.name);
            format!("value {} ({name}) is not there: not written yet, or freed", id.index())
        };
        self.held.get(id.index()).and_then(Option::as_ref).ok_or_else(missing)
    }

    fn floats(&self, id: ValueId) -> Result<Floats, String> {
        let values = match self.held(id)? {
            Held::Floats(values) => Arc::clone(values),
            Held::Weight(weight) => Arc::new(weight.to_f32()),
            Held::Numbers(_) => return Err(format!("`{}` holds numbers", self.program.value(id).name)),
        };
        Ok(Floats { shape: self.program.value(id).spec.shape, values })
    }

    fn call(&mut self, call: &Call) -> Result<(), String> {
        match &call.op {
            Op::Copy { from, into } => self.held[into.index()] = Some(self.held(*from)?.clone()),
            Op::Send { value, socket } => {
                let spec = self.program.value(*value).spec;
                self.board.sockets.send(*socket, spec, self.held(*value)?.clone());
            }
            Op::Receive { into, socket } => {
                let spec = self.program.value(*into).spec;
                self.held[into.index()] = Some(self.board.sockets.receive(*socket, spec)?);
            }
            op => {
                let results = self.compute(op)?;
                for (id, values) in call.out.iter().zip(results) {
                    let rounded = self.rounded(values, self.program.value(*id).spec);
                    self.held[id.index()] = Some(rounded);
                }
            }
        }
        for id in &call.frees {
            self.held[id.index()] = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
