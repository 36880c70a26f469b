//! Meshes of chips: opening, dividing and closing them.

use crate::{
    CoreGrid, Error, Result, Tensor,
    bridge::ffi,
    error, gate,
    library::{self, OpenMesh},
    tensor,
};
use cxx::{Exception, UniquePtr};
use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Rows and columns of chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MeshShape {
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
}

impl MeshShape {
    /// How many chips that is.
    pub fn chips(self) -> usize {
        self.rows as usize * self.cols as usize
    }
}

impl fmt::Display for MeshShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.rows, self.cols)
    }
}

/// A generation of chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Wormhole B0.
    Wormhole,
    /// Blackhole.
    Blackhole,
    /// One that this crate knows nothing of.
    Other,
}

impl Arch {
    pub(crate) fn named(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "wormhole_b0" => Self::Wormhole,
            "blackhole" => Self::Blackhole,
            _ => Self::Other,
        }
    }
}

/// How chips talk to each other. Sockets need one; it takes Ethernet cores and some L1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fabric {
    /// They do not.
    #[default]
    Disabled,
    /// Along rows and columns.
    Line,
    /// Along rows and columns that close into rings.
    Ring,
    /// Between any two chips.
    Mesh,
}

/// How a mesh is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MeshOptions {
    /// Rows and columns.
    pub shape: MeshShape,
    /// Bytes of each core's L1 that are set apart for small buffers.
    pub l1_small_size: usize,
    /// Bytes of each chip's DRAM that are set apart for traces.
    pub trace_region_size: usize,
    /// Whether commands are dispatched from Ethernet cores, where TT-NN can do that, instead of worker cores.
    pub ethernet_dispatch: bool,
    /// How chips talk to each other.
    pub fabric: Fabric,
}

impl MeshOptions {
    /// A mesh of this shape with TT-NN's defaults: nothing set apart, commands from worker cores, no fabric.
    pub fn new(shape: MeshShape) -> Self {
        Self {
            shape,
            l1_small_size: 0,
            trace_region_size: 0,
            ethernet_dispatch: false,
            fabric: Fabric::Disabled,
        }
    }
}

/// A mesh of chips, or a part of one. Cloning it gives another handle to the same mesh.
///
/// The mesh closes when the last handle, tensor, trace, event and socket of it is gone; a part keeps the whole
/// open. Calls from several threads take turns on one mesh and run side by side on different ones.
#[derive(Clone)]
pub struct Mesh(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    shape: MeshShape,
    facts: ffi::MeshFacts,
    /// The mesh that this is a part of, and where in it.
    parent: Option<(Mesh, Region)>,
    /// What makes this the process's only mesh; only the whole has it.
    _open: Option<OpenMesh>,
}

struct State {
    raw: UniquePtr<ffi::Mesh>,
    purpose: Purpose,
}

impl State {
    fn take_work(&mut self, operation: &'static str) -> Result<()> {
        match self.purpose {
            Purpose::Divided(_) => Err(Error::Divided { operation }),
            Purpose::Undecided | Purpose::Work => {
                self.purpose = Purpose::Work;
                Ok(())
            }
        }
    }
}

/// TT-NN gives a mesh and each of its submeshes an allocator over the same memory, so only one side may be used.
enum Purpose {
    Undecided,
    Work,
    Divided(Vec<Region>),
}

#[derive(Clone, Copy, PartialEq)]
struct Region {
    row: u32,
    col: u32,
    shape: MeshShape,
}

impl Region {
    fn overlaps(&self, other: &Self) -> bool {
        let apart = |a: u32, len_a: u32, b: u32, len_b: u32| {
            a.saturating_add(len_a) <= b || b.saturating_add(len_b) <= a
        };
        !apart(self.row, self.shape.rows, other.row, other.shape.rows)
            && !apart(self.col, self.shape.cols, other.col, other.shape.cols)
    }
}

// SAFETY: a MeshDevice is bound to no thread; TT-NN's only thread-local state is the number of the command queue,
// which is 0 everywhere because meshes are opened with one. The pointer is only used under `Inner::state`'s lock.
unsafe impl Send for ffi::Mesh {}

impl Mesh {
    /// Opens the chips of this machine.
    ///
    /// # Errors
    /// Where the library is not the one the program was built for, there is no chip or too few of them, another
    /// process holds one, this process has a mesh open, or TT-NN refuses.
    pub fn open(options: &MeshOptions) -> Result<Self> {
        let shape = options.shape;
        let open = library::prepare(shape, options.fabric)?;
        let refused = |exception: Exception| Error::Open { shape, message: error::message(&exception) };
        let raw = ffi::open_mesh(&options.into()).map_err(refused)?;
        let facts = ffi::mesh_facts(&raw).map_err(refused)?;
        Ok(Self::new(raw, shape, facts, None, Some(open)))
    }

    /// A part of this mesh that starts at `(row, col)`. Parts must not overlap; this mesh itself takes no work
    /// from then on.
    ///
    /// # Errors
    /// Where this mesh has had work, the part overlaps another one, or TT-NN refuses, for example because it does
    /// not lie within this mesh.
    pub fn submesh(&self, shape: MeshShape, (row, col): (u32, u32)) -> Result<Self> {
        const OPERATION: &str = "submesh";
        let refused = |exception: Exception| Error::operation(OPERATION, &exception);
        let region = Region { row, col, shape };
        let _gate = gate::pass();
        let mut state = self.state();
        match &state.purpose {
            Purpose::Undecided => {}
            Purpose::Work => return Err(Error::InUse),
            Purpose::Divided(parts) if parts.iter().any(|part| part.overlaps(&region)) => {
                return Err(Error::Overlap { shape, row, col });
            }
            Purpose::Divided(_) => {}
        }
        let raw = ffi::submesh(&state.raw, shape.rows, shape.cols, row, col).map_err(refused)?;
        let facts = ffi::mesh_facts(&raw).map_err(refused)?;
        match &mut state.purpose {
            Purpose::Divided(parts) => parts.push(region),
            purpose => *purpose = Purpose::Divided(vec![region]),
        }
        drop(state);
        Ok(Self::new(raw, shape, facts, Some((self.clone(), region)), None))
    }

    fn new(
        raw: UniquePtr<ffi::Mesh>,
        shape: MeshShape,
        facts: ffi::MeshFacts,
        parent: Option<(Self, Region)>,
        open: Option<OpenMesh>,
    ) -> Self {
        let state = Mutex::new(State { raw, purpose: Purpose::Undecided });
        Self(Arc::new(Inner { state, shape, facts, parent, _open: open }))
    }

    /// Rows and columns.
    pub fn shape(&self) -> MeshShape {
        self.0.shape
    }

    /// Generation of its chips.
    pub fn arch(&self) -> Arch {
        Arch::named(&self.0.facts.arch)
    }

    /// The cores of each chip that compute and store.
    pub fn grid(&self) -> CoreGrid {
        CoreGrid { x: self.0.facts.grid_x, y: self.0.facts.grid_y }
    }

    /// DRAM of each chip in bytes.
    pub fn dram_bytes(&self) -> u64 {
        self.0.facts.dram_bytes
    }

    /// L1 of each core in bytes, of which TT-NN itself takes a part.
    pub fn l1_bytes_per_core(&self) -> u32 {
        self.0.facts.l1_bytes_per_core
    }

    /// TT-NN's numbers of its chips, row by row.
    pub fn device_ids(&self) -> &[i32] {
        &self.0.facts.device_ids
    }

    /// Waits until all work that was given to the mesh is done.
    ///
    /// # Errors
    /// Where TT-NN fails, or the mesh is divided.
    pub fn synchronize(&self) -> Result<()> {
        self.run("synchronize", ffi::synchronize)
    }

    /// Whether two handles are of the same mesh.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Calls into TT-NN for work on this mesh.
    pub(crate) fn run<R>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&ffi::Mesh) -> std::result::Result<R, Exception>,
    ) -> Result<R> {
        let _gate = gate::pass();
        let mut state = self.state();
        state.take_work(operation)?;
        work(&state.raw).map_err(|exception| Error::operation(operation, &exception))
    }

    /// As [`Mesh::run`], for work that two different meshes take part in.
    pub(crate) fn run_both<R>(
        &self,
        other: &Self,
        operation: &'static str,
        work: impl FnOnce(&ffi::Mesh, &ffi::Mesh) -> std::result::Result<R, Exception>,
    ) -> Result<R> {
        let _gate = gate::pass();
        // Two threads that take the same two locks take them in the same order.
        let (mut first, mut second);
        if Arc::as_ptr(&self.0) < Arc::as_ptr(&other.0) {
            first = self.state();
            second = other.state();
        } else {
            second = other.state();
            first = self.state();
        }
        first.take_work(operation)?;
        second.take_work(operation)?;
        work(&first.raw, &second.raw).map_err(|exception| Error::operation(operation, &exception))
    }

    /// Calls into TT-NN for a new tensor on this mesh.
    pub(crate) fn make(
        &self,
        operation: &'static str,
        work: impl FnOnce(&ffi::Mesh) -> std::result::Result<UniquePtr<ffi::Tensor>, Exception>,
    ) -> Result<Tensor> {
        let parts = self.run(operation, |mesh| tensor::Parts::of(work(mesh)?))?;
        Ok(Tensor::new(parts, self))
    }

    /// Destroys what belongs to this mesh, which TT-NN must not do beside other work on it. What has memory on
    /// the chips waits for the end of a query.
    pub(crate) fn discard<T>(&self, owned: &mut UniquePtr<T>, has_memory: bool)
    where
        T: cxx::memory::UniquePtrTarget + 'static,
    {
        let mut owned = mem::replace(owned, UniquePtr::null());
        if has_memory && gate::in_query() {
            let mesh = self.clone();
            gate::after_query(move || mesh.discard(&mut owned, has_memory));
        } else {
            let _gate = gate::pass();
            let _state = self.state();
            drop(owned);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock comes from Rust and leaves nothing of TT-NN half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    /// A part is given back to its parent; the whole is closed. TT-NN wants one of the two closed, not both.
    fn drop(&mut self) {
        let _gate = gate::pass();
        let mut state = self.lock();
        if let Some((parent, region)) = &self.parent {
            let mut parent = parent.state();
            state.raw = UniquePtr::null();
            if let Purpose::Divided(parts) = &mut parent.purpose {
                parts.retain(|part| part != region);
            }
        } else {
            // Nobody is left who could be told that a chip did not stop cleanly; TT-NN's log says so.
            let _ = ffi::close_mesh(&state.raw);
            state.raw = UniquePtr::null();
            // `_open` gives the chips back.
        }
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mesh({} {:?}, chips {:?})", self.shape(), self.arch(), self.device_ids())
    }
}

impl From<&MeshOptions> for ffi::MeshOptions {
    fn from(options: &MeshOptions) -> Self {
        Self {
            rows: options.shape.rows,
            cols: options.shape.cols,
            l1_small_size: options.l1_small_size,
            trace_region_size: options.trace_region_size,
            ethernet_dispatch: options.ethernet_dispatch,
            fabric: match options.fabric {
                Fabric::Disabled => ffi::Fabric::Disabled,
                Fabric::Line => ffi::Fabric::Line,
                Fabric::Ring => ffi::Fabric::Ring,
                Fabric::Mesh => ffi::Fabric::Mesh,
            },
        }
    }
}
