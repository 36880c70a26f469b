//! Programs run by TT-NN: one thread for each chip, which owns its submesh, its weights and what runs there.

mod call;
mod on_chip;

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tensact_topology::{Arch, Board, ChipId};
use ttnn_sys::{Mesh, MeshOptions, MeshShape};

use super::chip::{Chip, ChipError, LoadedProgram};
use super::program::{Program, ValueId, check};
use super::weights::Weights;
use on_chip::{OnChip, ProgramId};

/// DRAM of each chip that is set apart for the commands of traces: a guess at what a chip's programs take. A segment for
/// which there is no room runs call by call.
const TRACE_BYTES: usize = 256 << 20;

/// TT-NN reads from this variable which chips it should pretend to have.
const MOCK: &str = "TT_METAL_MOCK_CLUSTER_DESC_PATH";

/// The board of a deployment could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// TT-NN does not open it.
    #[error("the board `{board}` does not open: {source}")]
    Ttnn {
        /// The board.
        board: String,
        /// What TT-NN says.
        source: ttnn_sys::Error,
    },
    /// The chips are of another kind.
    #[error(
        "the deployment is for the board `{board}` of {expected} chips, and this machine has {found}: name this \
         machine's board (`tensact boards`)"
    )]
    OtherChips {
        /// The board.
        board: String,
        /// Its chips.
        expected: Arch,
        /// Chips of this machine.
        found: String,
    },
    /// The board has no such chip.
    #[error("the board `{board}` has no chip {chip}")]
    NoSuchChip {
        /// The board.
        board: String,
        /// The chip.
        chip: ChipId,
    },
    /// What was written to a chip was not read back.
    #[error("chip {chip} gave back other numbers than it was given: reset it (`tt-smi -r`) and try again")]
    Unhealthy {
        /// The chip.
        chip: ChipId,
    },
    /// A chip has no thread.
    #[error("chip {chip}: cannot start its thread: {source}")]
    Thread {
        /// The chip.
        chip: ChipId,
        /// Why not.
        source: std::io::Error,
    },
}

/// A chip of an opened board. The board closes when the last of its chips and programs is gone.
pub struct TtnnChip {
    id: ChipId,
    jobs: Option<Sender<Job>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Job = Box<dyn FnOnce(&mut OnChip) + Send>;

/// The description of chips that TT-NN will pretend to have: then everything is checked and nothing computed, and results
/// are zeros.
pub fn mocked() -> Option<PathBuf> {
    std::env::var_os(MOCK).filter(|path| !path.is_empty()).map(PathBuf::from)
}

impl TtnnChip {
    /// Opens a board and gives these of its chips, in the same order, each with a thread of its own.
    ///
    /// # Errors
    /// When TT-NN does not open the board, its chips are others than the deployment's, or one does not answer right.
    pub fn open(
        board: &Board,
        chips: &[ChipId],
        weights: &Arc<Weights>,
    ) -> Result<Vec<Arc<Self>>, OpenError> {
        let ttnn = |source| OpenError::Ttnn { board: board.name.clone(), source };
        let (rows, cols) = board.rows_and_columns();
        let shape = MeshShape { rows, cols };
        let options = MeshOptions { trace_region_size: TRACE_BYTES, ..MeshOptions::new(shape) };
        let mesh = Mesh::open(&options).map_err(ttnn)?;
        let fits = matches!(
            (board.arch(), mesh.arch()),
            (Arch::Wormhole, ttnn_sys::Arch::Wormhole) | (Arch::Blackhole, ttnn_sys::Arch::Blackhole)
        );
        if !fits {
            let found = format!("{:?}", mesh.arch()).to_lowercase();
            return Err(OpenError::OtherChips { board: board.name.clone(), expected: board.arch(), found });
        }
        chips.iter().map(|chip| Self::start(&mesh, board, *chip, Arc::clone(weights))).collect()
    }

    fn start(
        mesh: &Mesh,
        board: &Board,
        chip: ChipId,
        weights: Arc<Weights>,
    ) -> Result<Arc<Self>, OpenError> {
        let ttnn = |source| OpenError::Ttnn { board: board.name.clone(), source };
        let Some(place) = board.chips().iter().position(|other| other.id == chip) else {
            return Err(OpenError::NoSuchChip { board: board.name.clone(), chip });
        };
        // A board without a mesh is one row.
        let at = board.chips()[place].at.map_or((0, place as u32), |at| (at.row, at.col));
        let submesh = match board.chips().len() {
            1 => mesh.clone(),
            _ => mesh.submesh(MeshShape { rows: 1, cols: 1 }, at).map_err(ttnn)?,
        };
        if !on_chip::answers(&submesh).map_err(ttnn)? && mocked().is_none() {
            return Err(OpenError::Unhealthy { chip });
        }
        let (jobs, work) = channel::<Job>();
        let run = move || {
            let mut on_chip = OnChip::new(chip, submesh, weights);
            work.into_iter().for_each(|job| job(&mut on_chip));
        };
        let thread = std::thread::Builder::new()
            .name(format!("chip {chip}"))
            .spawn(run)
            .map_err(|source| OpenError::Thread { chip, source })?;
        Ok(Arc::new(Self { id: chip, jobs: Some(jobs), thread: Mutex::new(Some(thread)) }))
    }

    /// Runs something on the chip's thread and waits for it.
    fn ask<T: Send + 'static>(
        &self,
        program: &str,
        job: impl FnOnce(&mut OnChip) -> Result<T, ChipError> + Send + 'static,
    ) -> Result<T, ChipError> {
        let (answer, answered) = channel();
        let job: Job = Box::new(move |on_chip| {
            // Nobody is left to hear it when the asker's own thread is gone.
            let _ = answer.send(job(on_chip));
        });
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        let heard = if sent { answered.recv().ok() } else { None };
        heard.unwrap_or_else(|| {
            Err(ChipError::Failed {
                chip: self.id.0,
                program: program.into(),
                place: "its thread".into(),
                message:
                    "the thread of this chip has ended: it panicked in an earlier call; restart the server"
                        .into(),
            })
        })
    }
}

impl Drop for TtnnChip {
    fn drop(&mut self) {
        self.jobs = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Its tensors and its part of the mesh go with it, so that the board is closed when this returns.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Chip for TtnnChip {
    fn load(self: Arc<Self>, program: Arc<Program>) -> Result<Box<dyn LoadedProgram>, ChipError> {
        check(&program)?;
        let loading = Arc::clone(&program);
        let id = self.ask(&program.name, move |on_chip| on_chip.load(&loading))?;
        Ok(Box::new(OnThread { chip: self, id, program }))
    }
}

/// A program that is loaded on a chip, seen from other threads.
struct OnThread {
    chip: Arc<TtnnChip>,
    id: ProgramId,
    program: Arc<Program>,
}

impl OnThread {
    fn check(&self, input: ValueId, found: usize) -> Result<(), ChipError> {
        let value = self.program.value(input);
        let expected = value.spec.shape.iter().product();
        if found == expected {
            return Ok(());
        }
        let (program, input) = (self.program.name.clone(), value.name.clone());
        Err(ChipError::Input { program, input, expected, found })
    }
}

impl LoadedProgram for OnThread {
    fn program(&self) -> &Arc<Program> {
        &self.program
    }

    fn write(&mut self, input: ValueId, values: &[f32]) -> Result<(), ChipError> {
        self.check(input, values.len())?;
        let (id, values) = (self.id, values.to_vec());
        self.chip.ask(&self.program.name, move |on_chip| on_chip.write(id, input, &values))
    }

    fn write_numbers(&mut self, input: ValueId, numbers: &[u32]) -> Result<(), ChipError> {
        self.check(input, numbers.len())?;
        let (id, numbers) = (self.id, numbers.to_vec());
        self.chip.ask(&self.program.name, move |on_chip| on_chip.write_numbers(id, input, &numbers))
    }

    fn run(&mut self, segment: usize) -> Result<(), ChipError> {
        let id = self.id;
        self.chip.ask(&self.program.name, move |on_chip| on_chip.run(id, segment))
    }

    fn read(&mut self, value: ValueId) -> Result<Vec<f32>, ChipError> {
        let id = self.id;
        self.chip.ask(&self.program.name, move |on_chip| on_chip.read(id, value))
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        let id = self.id;
        // A chip whose thread has ended has nothing to unload.
        let _ = self.chip.ask(&self.program.name, move |on_chip| {
            on_chip.unload(id);
            Ok(())
        });
    }
}
