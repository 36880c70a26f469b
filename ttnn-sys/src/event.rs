//! Events: how far a mesh has come.

use crate::{Mesh, Result, bridge::ffi};
use cxx::UniquePtr;
use std::fmt;

/// A point in the work of a mesh.
pub struct Event {
    raw: UniquePtr<ffi::Event>,
    mesh: Mesh,
}

// SAFETY: an event is an id and a queue's number; it is only used under the lock of its mesh.
unsafe impl Send for ffi::Event {}

impl Event {
    /// The point after everything that has been given to the mesh.
    ///
    /// # Errors
    /// Where TT-NN fails.
    pub fn record(mesh: &Mesh) -> Result<Self> {
        Ok(Self { raw: mesh.run("recording of an event", ffi::record_event)?, mesh: mesh.clone() })
    }

    /// Waits until the mesh has come there. Other threads' calls on the mesh wait with it.
    ///
    /// # Errors
    /// Where TT-NN fails.
    pub fn wait(&self) -> Result<()> {
        self.mesh.run("wait for an event", |_| ffi::wait_for_event(&self.raw))
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:?})", self.mesh)
    }
}
