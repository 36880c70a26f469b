//! What the thread of a chip holds: its part of the mesh, weights, and programs with their tensors and traces.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use tensact_topology::ChipId;
use ttnn_sys::{DataType, Layout, Memory, Mesh, Tensor, Trace, ops};

use super::call::{self, call};
use super::kept::{Places, Ways};
use crate::device::ttnn::chip::ChipError;
use crate::device::ttnn::packed::Values;
use crate::device::ttnn::program::{self, Dtype, Origin, Program, Recipe, TensorSpec, ValueId};
use crate::device::ttnn::weights::Weights;

/// A loaded program of a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ProgramId(u64);

/// A tensor of a loaded program.
pub(super) enum Slot {
    /// Shared with other programs.
    Weight(Arc<Tensor>),
    /// Stays where it is as long as the program is loaded: inputs, and results that outlive their segment.
    Kept(Tensor),
    /// Between the call that makes it and the last that reads it.
    Passing(Option<Tensor>),
}

impl Slot {
    pub(super) fn tensor(&self) -> Option<&Tensor> {
        match self {
            Slot::Weight(tensor) => Some(tensor),
            Slot::Kept(tensor) => Some(tensor),
            Slot::Passing(tensor) => tensor.as_ref(),
        }
    }
}

pub(super) struct Loaded {
    pub(super) program: Arc<Program>,
    pub(super) slots: Vec<Slot>,
    /// One per segment, once captured.
    traces: Vec<Option<Trace>>,
}

/// A chip, on its own thread.
pub(super) struct OnChip {
    pub(super) chip: ChipId,
    pub(super) mesh: Mesh,
    pub(super) ways: Ways,
    pub(super) places: Places,
    weights: Arc<Weights>,
    uploaded: HashMap<String, Weak<Tensor>>,
    pub(super) programs: HashMap<ProgramId, Loaded>,
    next: u64,
    /// Whether segments are captured: mock chips and slow dispatch have no traces.
    traced: bool,
}

/// Whether a chip gives back what it is given, added to nothing.
pub(super) fn answers(mesh: &Mesh) -> ttnn_sys::Result<bool> {
    let values: Vec<f32> = (0..1024).map(|i| (i % 256) as f32).collect();
    let shape = [1, 1, 32, 32];
    let upload =
        |values: &[f32]| Tensor::from_f32(mesh, values, &shape, DataType::Bf16, Layout::Tile, Memory::Dram);
    let sum = ops::add(&upload(&values)?, &upload(&[0.0; 1024])?, ttnn_sys::Activation::None)?;
    Ok(sum.to_f32()? == values)
}

impl OnChip {
    pub(super) fn new(chip: ChipId, mesh: Mesh, ways: Ways, weights: Arc<Weights>) -> Self {
        let slow = std::env::var_os("TT_METAL_SLOW_DISPATCH_MODE").is_some_and(|value| !value.is_empty());
        Self {
            chip,
            mesh,
            ways,
            places: Places::default(),
            weights,
            uploaded: HashMap::new(),
            programs: HashMap::new(),
            next: 0,
            traced: !slow && super::mocked().is_none(),
        }
    }

    /// Uploads weights, makes room for everything that stays, and runs every segment once on zeros, so that its kernels
    /// are compiled and what cannot run is known before a request comes.
    pub(super) fn load(&mut self, program: &Arc<Program>) -> Result<ProgramId, ChipError> {
        self.load_once(program).or_else(|error| {
            // The chip may be full of room for tensors that are no longer asked for.
            if self.give_up_rooms() { self.load_once(program) } else { Err(error) }
        })
    }

    fn load_once(&mut self, program: &Arc<Program>) -> Result<ProgramId, ChipError> {
        // A replay writes where its own passing tensors lay, which TT-NN gives away again: nothing that stays may be
        // allocated while a trace is there. They are captured anew when they are next run.
        self.drop_traces();
        let freed: BTreeSet<ValueId> = program.calls().flat_map(|call| call.frees.iter().copied()).collect();
        let mut slots = Vec::with_capacity(program.values.len());
        for (id, value) in program.ids() {
            let made = match &value.origin {
                Origin::Weight(recipe) => self.weight(&program.name, &value.name, recipe, value.spec)?,
                Origin::Call if freed.contains(&id) => Slot::Passing(None),
                Origin::Input | Origin::Buffer | Origin::Call => {
                    Slot::Kept(zeros(&self.mesh, value.spec).map_err(|error| {
                        self.failed(program, &format!("room for `{}`", value.name), &error)
                    })?)
                }
            };
            slots.push(made);
        }
        let traces = program.segments.iter().map(|_| None).collect();
        let mut loaded = Loaded { program: Arc::clone(program), slots, traces };
        for segment in 0..program.segments.len() {
            run_calls(self.chip, &self.mesh, &mut loaded, segment)?;
        }
        self.synchronize(program)?;
        let id = ProgramId(self.next);
        self.next += 1;
        self.programs.insert(id, loaded);
        Ok(id)
    }

    pub(super) fn unload(&mut self, id: ProgramId) {
        self.programs.remove(&id);
        self.uploaded.retain(|_, tensor| tensor.strong_count() > 0);
    }

    pub(super) fn write(&mut self, id: ProgramId, input: ValueId, values: &[f32]) -> Result<(), ChipError> {
        self.with(id, input, |tensor| tensor.write_f32(values))
    }

    pub(super) fn write_numbers(
        &mut self,
        id: ProgramId,
        input: ValueId,
        numbers: &[u32],
    ) -> Result<(), ChipError> {
        self.with(id, input, |tensor| tensor.write_u32(numbers))
    }

    pub(super) fn read(&mut self, id: ProgramId, value: ValueId) -> Result<Vec<f32>, ChipError> {
        self.with(id, value, Tensor::to_f32)
    }

    /// Replays the segment's trace, which is captured when it runs for the first time; runs call by call where there can be
    /// none.
    pub(super) fn run(&mut self, id: ProgramId, segment: usize) -> Result<(), ChipError> {
        let Some(loaded) = self.programs.get(&id) else { return Err(self.unknown(id)) };
        if loaded.program.segments.get(segment).is_some_and(|segment| segment.calls.is_empty()) {
            return Ok(());
        }
        let untraced = loaded.traces.get(segment).is_some_and(Option::is_none);
        if self.traced && untraced && self.capture(id, segment)?.is_none() {
            // The room for traces is full: those that are there can be captured again when they are needed.
            self.drop_traces();
            if self.capture(id, segment)?.is_none() {
                self.traced = false;
            }
        }
        let (chip, mesh) = (self.chip, self.mesh.clone());
        let Some(loaded) = self.programs.get_mut(&id) else { return Err(self.unknown(id)) };
        match loaded.traces.get(segment) {
            Some(Some(trace)) => trace
                .execute(false)
                .map_err(|error| failed(chip, &loaded.program, &format!("segment {segment}"), &error)),
            _ => run_calls(chip, &mesh, loaded, segment),
        }
    }

    /// Captures a segment; nothing when TT-NN has no room for it.
    fn capture(&mut self, id: ProgramId, segment: usize) -> Result<Option<()>, ChipError> {
        let (chip, mesh) = (self.chip, self.mesh.clone());
        let Some(loaded) = self.programs.get_mut(&id) else { return Err(self.unknown(id)) };
        let mut refused = None;
        let captured = Trace::capture(&mesh, || {
            refused = run_calls(chip, &mesh, loaded, segment).err();
            Ok(())
        });
        if let Some(refused) = refused {
            return Err(refused);
        }
        Ok(captured.ok().map(|(trace, ())| loaded.traces[segment] = Some(trace)))
    }

    pub(super) fn drop_traces(&mut self) {
        for loaded in self.programs.values_mut() {
            loaded.traces.iter_mut().for_each(|trace| *trace = None);
        }
    }

    /// A weight on this chip: there already, or uploaded now.
    fn weight(
        &mut self,
        program: &str,
        name: &str,
        recipe: &Recipe,
        spec: TensorSpec,
    ) -> Result<Slot, ChipError> {
        let key = format!("{spec} {recipe:?}");
        if let Some(known) = self.uploaded.get(&key).and_then(Weak::upgrade) {
            return Ok(Slot::Weight(known));
        }
        let wrong =
            |reason: String| ChipError::Weight { program: program.into(), weight: name.into(), reason };
        let packed = self.weights.get(recipe, spec).map_err(|error| wrong(error.to_string()))?;
        let shape = spec.shape.map(|n| n as u32);
        let (layout, memory) = (call::layout(spec.layout), call::memory(spec.memory));
        let uploaded = match packed.values() {
            Values::Bf16(values) => Tensor::from_bf16(&self.mesh, values, &shape, layout, memory),
            Values::Bfp8B(words) => Tensor::from_bfp8_words(&self.mesh, words, &shape, memory),
            Values::F32(values) => {
                Tensor::from_f32(&self.mesh, values, &shape, DataType::F32, layout, memory)
            }
        };
        let tensor = Arc::new(uploaded.map_err(|error| wrong(error.to_string()))?);
        self.uploaded.insert(key, Arc::downgrade(&tensor));
        Ok(Slot::Weight(tensor))
    }

    /// Does something with a tensor that is there between runs.
    pub(super) fn with<T>(
        &self,
        id: ProgramId,
        value: ValueId,
        what: impl FnOnce(&Tensor) -> ttnn_sys::Result<T>,
    ) -> Result<T, ChipError> {
        let Some(loaded) = self.programs.get(&id) else { return Err(self.unknown(id)) };
        let name = &loaded.program.value(value).name;
        match loaded.slots[value.index()].tensor() {
            Some(tensor) => {
                what(tensor).map_err(|error| self.failed(&loaded.program, &format!("`{name}`"), &error))
            }
            None => Err(self.unknown(id)),
        }
    }

    fn synchronize(&self, program: &Program) -> Result<(), ChipError> {
        self.mesh.synchronize().map_err(|error| self.failed(program, "its first run", &error))
    }

    fn failed(&self, program: &Program, place: &str, error: &ttnn_sys::Error) -> ChipError {
        failed(self.chip, program, place, error)
    }

    pub(super) fn unknown(&self, id: ProgramId) -> ChipError {
        ChipError::Failed {
            chip: self.chip.0,
            program: format!("number {}", id.0),
            place: "its place".into(),
            message: "no such program, segment or tensor is loaded".into(),
        }
    }
}

fn failed(chip: ChipId, program: &Program, place: &str, error: &ttnn_sys::Error) -> ChipError {
    ChipError::Failed {
        chip: chip.0,
        program: program.name.clone(),
        place: place.into(),
        message: error.to_string(),
    }
}

/// A tensor of zeros.
pub(super) fn zeros(mesh: &Mesh, spec: program::TensorSpec) -> ttnn_sys::Result<Tensor> {
    let shape = spec.shape.map(|n| n as u32);
    let count = spec.shape.iter().product();
    let (layout, memory) = (call::layout(spec.layout), call::memory(spec.memory));
    match spec.dtype {
        Dtype::U32 => Tensor::from_u32(mesh, &vec![0; count], &shape, layout, memory),
        dtype => Tensor::from_f32(mesh, &vec![0.0; count], &shape, call::dtype(dtype), layout, memory),
    }
}

/// The calls of a segment, one by one.
fn run_calls(chip: ChipId, mesh: &Mesh, loaded: &mut Loaded, segment: usize) -> Result<(), ChipError> {
    let program = Arc::clone(&loaded.program);
    let Some(segment) = program.segments.get(segment) else { return Ok(()) };
    for (index, step) in segment.calls.iter().enumerate() {
        call(mesh, &program, step, &mut loaded.slots).map_err(|error| {
            let place = format!("segment `{}`, call {index} ({})", segment.name, step.op.name());
            ChipError::Failed {
                chip: chip.0,
                program: program.name.clone(),
                place,
                message: error.to_string(),
            }
        })?;
    }
    Ok(())
}
