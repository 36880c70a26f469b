//! Traces: work that was given once and is replayed without the host.

use crate::{Mesh, Result, bridge::ffi};

/// A captured sequence of operations on a mesh. It reads and writes the tensors that it was captured with, where they lie:
/// keep those that go in and come out, and write the inputs with [`Tensor::write_f32`](crate::Tensor::write_f32)
/// and its like.
///
/// While a trace lives, TT-NN may give memory that a tensor of the capture has given back to new tensors, which a
/// replay then overwrites: allocate before capturing.
#[derive(Debug)]
pub struct Trace {
    mesh: Mesh,
    id: u32,
}

impl Trace {
    /// Captures what `work` gives to the mesh. Everything in it must have run before, so that no kernel has to be
    /// compiled, and nothing in it may move data between host and chip. Work that other threads give to the same
    /// mesh meanwhile is captured as well.
    ///
    /// # Errors
    /// Where `work` fails, or TT-NN refuses, for example because
    /// [`trace_region_size`](crate::MeshOptions::trace_region_size) is too small.
    pub fn capture<T>(mesh: &Mesh, work: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let id = mesh.run("begin of a trace", ffi::begin_trace)?;
        let trace = Self { mesh: mesh.clone(), id };
        let result = work();
        // A capture has to end, also where the work failed.
        mesh.run("end of a trace", |mesh| ffi::end_trace(mesh, id))?;
        Ok((trace, result?))
    }

    /// Replays it; returns at once, or where `wait` is set, when it is done.
    ///
    /// # Errors
    /// Where TT-NN fails.
    pub fn execute(&self, wait: bool) -> Result<()> {
        self.mesh.run("execution of a trace", |mesh| ffi::execute_trace(mesh, self.id, wait))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // The trace is gone with its mesh at the latest.
        let _ = self.mesh.run("release of a trace", |mesh| ffi::release_trace(mesh, self.id));
    }
}
