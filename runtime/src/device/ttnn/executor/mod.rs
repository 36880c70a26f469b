//! Programs run by TT-NN: one thread for each chip, which owns its submesh, its weights and what runs there.

mod call;
mod kept;
mod neighbours;
mod on_chip;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tensact_topology::{Arch, Board, ChipId};
use ttnn_sys::{Fabric, Mesh, MeshOptions, MeshShape};

use super::chip::{Chip, ChipError, Kept, LoadedProgram, check_fill, with_more_rows};
use super::program::{Program, ValueId, check};
use super::threads::{ChipThread, Ended};
use super::weights::Weights;
use kept::{PlaceId, Ways};
use neighbours::{KeptOnChip, Neighbour, Neighbours, ended};
use on_chip::{OnChip, ProgramId};

/// DRAM of each chip that is set apart for the commands of traces: a guess at what a chip's programs take. A segment for
/// which there is no room runs call by call.
const TRACE_BYTES: usize = 256 << 20;

/// What every core of a chip sets apart of its L1 for each socket that ends there: eight tiles of bf16, so that sending and
/// writing overlap. A guess, like the room for traces.
const SOCKET_BYTES: u32 = 16 << 10;

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
    /// Two chips are not connected.
    #[error(
        "chips {from} and {to} cannot be connected by a socket: {source}; transport = \"host\" hands tensors over on the host"
    )]
    Socket {
        /// The chip that would send.
        from: ChipId,
        /// The chip that would receive.
        to: ChipId,
        /// What TT-NN says.
        source: ttnn_sys::Error,
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
    thread: ChipThread<OnChip>,
    board: Arc<Neighbours>,
}

/// The description of chips that TT-NN will pretend to have: then everything is checked and nothing computed, and results
/// are zeros.
pub fn mocked() -> Option<PathBuf> {
    std::env::var_os(MOCK).filter(|path| !path.is_empty()).map(PathBuf::from)
}

impl TtnnChip {
    /// Opens a board and gives these of its chips, in the same order, each with a thread of its own. `sockets` are the ways
    /// by which one leaves tensors on another.
    ///
    /// # Errors
    /// When TT-NN does not open the board or connect chips, its chips are others than the deployment's, or one does not
    /// answer right.
    pub fn open(
        board: &Board,
        chips: &[ChipId],
        sockets: &BTreeSet<(ChipId, ChipId)>,
        weights: &Arc<Weights>,
    ) -> Result<Vec<Arc<Self>>, OpenError> {
        let ttnn = |source| OpenError::Ttnn { board: board.name.clone(), source };
        let (rows, cols) = board.rows_and_columns();
        let shape = MeshShape { rows, cols };
        let fabric = if sockets.is_empty() { Fabric::Disabled } else { Fabric::Line };
        let options = MeshOptions { trace_region_size: TRACE_BYTES, fabric, ..MeshOptions::new(shape) };
        let mesh = Mesh::open(&options).map_err(ttnn)?;
        let fits = matches!(
            (board.arch(), mesh.arch()),
            (Arch::Wormhole, ttnn_sys::Arch::Wormhole) | (Arch::Blackhole, ttnn_sys::Arch::Blackhole)
        );
        if !fits {
            let found = format!("{:?}", mesh.arch()).to_lowercase();
            return Err(OpenError::OtherChips { board: board.name.clone(), expected: board.arch(), found });
        }
        let parts = chips.iter().map(|chip| Ok((*chip, part(&mesh, board, *chip)?)));
        let parts: BTreeMap<ChipId, Mesh> = parts.collect::<Result<_, OpenError>>()?;
        let mut ways = connect(board, &parts, sockets)?;
        let neighbours = Arc::new(Neighbours::default());
        let start = |chip: &ChipId| {
            let (part, ways) = (parts[chip].clone(), ways.remove(chip).unwrap_or_default());
            let on_chip = OnChip::new(*chip, part, ways, Arc::clone(weights));
            let rooms = Arc::clone(on_chip.rooms());
            let thread = ChipThread::start(format!("chip {chip}"), on_chip)
                .map_err(|source| OpenError::Thread { chip: *chip, source })?;
            let neighbour = Neighbour { jobs: Arc::downgrade(thread.jobs()), rooms };
            Ok((Arc::new(Self { id: *chip, thread, board: Arc::clone(&neighbours) }), (*chip, neighbour)))
        };
        let (opened, all): (Vec<Arc<Self>>, BTreeMap<ChipId, Neighbour>) =
            chips.iter().map(start).collect::<Result<Vec<_>, OpenError>>()?.into_iter().unzip();
        // This is the only place where it is set.
        let _ = neighbours.chips.set(all);
        Ok(opened)
    }

    /// Runs something on the chip's thread and waits for it.
    fn ask<T: Send + 'static>(
        &self,
        program: &str,
        job: impl FnOnce(&mut OnChip) -> Result<T, ChipError> + Send + 'static,
    ) -> Result<T, ChipError> {
        self.thread.jobs().ask(job).unwrap_or_else(|Ended| Err(ended(self.id, program)))
    }
}

/// The part of the board that is one chip, which answers.
fn part(mesh: &Mesh, board: &Board, chip: ChipId) -> Result<Mesh, OpenError> {
    let ttnn = |source| OpenError::Ttnn { board: board.name.clone(), source };
    let Some(place) = board.chips().iter().position(|other| other.id == chip) else {
        return Err(OpenError::NoSuchChip { board: board.name.clone(), chip });
    };
    // A board without a mesh is one row.
    let at = board.chips()[place].at.map_or((0, place as u32), |at| (at.row, at.col));
    let part = match board.chips().len() {
        1 => mesh.clone(),
        _ => mesh.submesh(MeshShape { rows: 1, cols: 1 }, at).map_err(ttnn)?,
    };
    if !on_chip::answers(&part).map_err(ttnn)? && mocked().is_none() {
        return Err(OpenError::Unhealthy { chip });
    }
    Ok(part)
}

/// A pair of socket ends for each way, with the chips that they belong to.
fn connect(
    board: &Board,
    parts: &BTreeMap<ChipId, Mesh>,
    sockets: &BTreeSet<(ChipId, ChipId)>,
) -> Result<BTreeMap<ChipId, Ways>, OpenError> {
    let mut ways = BTreeMap::<ChipId, Ways>::new();
    for &(from, to) in sockets {
        let part =
            |chip| parts.get(&chip).ok_or_else(|| OpenError::NoSuchChip { board: board.name.clone(), chip });
        let (sender, receiver) = ttnn_sys::socket_pair(part(from)?, part(to)?, SOCKET_BYTES)
            .map_err(|source| OpenError::Socket { from, to, source })?;
        ways.entry(from).or_default().out.insert(to, sender);
        ways.entry(to).or_default().into.insert(from, receiver);
    }
    Ok(ways)
}

impl Chip for TtnnChip {
    fn id(&self) -> ChipId {
        self.id
    }

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

    fn keep(&mut self, value: ValueId, on: ChipId) -> Result<Arc<dyn Kept>, ChipError> {
        let (id, spec) = (self.id, self.program.value(value).spec);
        if on != self.chip.id {
            let send = move |on_chip: &mut OnChip| on_chip.send(id, value, on);
            return Ok(Arc::new(self.chip.board.hand_over((self.chip.id, on), spec, send)?));
        }
        let place = PlaceId::new();
        self.chip.ask(&self.program.name, move |on_chip| on_chip.keep(id, value, place))?;
        Ok(Arc::new(KeptOnChip { chip: on, jobs: Arc::downgrade(self.chip.thread.jobs()), place, spec }))
    }

    fn make_room(&mut self, value: ValueId, on: ChipId, tensors: usize) -> Result<(), ChipError> {
        let spec = self.program.value(value).spec;
        self.chip.board.ask(on, move |on_chip| on_chip.make_room(spec, tensors))
    }

    fn fill(&mut self, input: ValueId, from: &dyn Kept) -> Result<(), ChipError> {
        let (found, expected) = (from.spec(), self.program.value(input).spec);
        check_fill(&self.program, input, found)?;
        let Some(kept) = (from as &dyn Any).downcast_ref::<KeptOnChip>() else {
            return self.write(input, &with_more_rows(&from.read()?, found, expected));
        };
        let (id, place) = (self.id, kept.place);
        if kept.chip == self.chip.id {
            return self.chip.ask(&self.program.name, move |on_chip| on_chip.fill(id, input, place));
        }
        let to = self.chip.id;
        let send = move |on_chip: &mut OnChip| on_chip.send_kept(place, to);
        let fetched = self.chip.board.hand_over((kept.chip, to), found, send)?;
        let place = fetched.place;
        self.chip.ask(&self.program.name, move |on_chip| on_chip.fill(id, input, place))
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
