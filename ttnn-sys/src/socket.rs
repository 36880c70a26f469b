//! Mesh sockets: tensors from chip to chip, without the host.

use crate::{Error, Mesh, Result, Tensor, bridge::ffi};
use cxx::UniquePtr;
use std::fmt;

/// The end of a socket that sends.
pub struct Sender(End);

/// The end of a socket that receives.
pub struct Receiver(End);

struct End {
    raw: UniquePtr<ffi::Socket>,
    mesh: Mesh,
}

// SAFETY: as for tensors: bound to no thread, and only used under the lock of the end's mesh.
unsafe impl Send for ffi::Socket {}

/// A socket between two submeshes of the same shape: each chip of one is connected with the chip at the same place
/// in the other, through `buffer_bytes` of the receiving core's L1. The mesh they are parts of must have been opened with
/// a [`Fabric`](crate::Fabric) that connects those chips.
///
/// # Errors
/// Where TT-NN refuses, for example because there is no fabric.
pub fn socket_pair(from: &Mesh, to: &Mesh, buffer_bytes: u32) -> Result<(Sender, Receiver)> {
    const OPERATION: &str = "creation of a socket";
    if from.is(to) {
        return Err(Error::Operation {
            operation: OPERATION,
            message: "both ends are the same mesh".to_owned(),
        });
    }
    let pair = from.run_both(to, OPERATION, |from, to| ffi::socket_pair(from, to, buffer_bytes))?;
    let sender = Sender(End { raw: pair.sender(), mesh: from.clone() });
    let receiver = Receiver(End { raw: pair.receiver(), mesh: to.clone() });
    Ok((sender, receiver))
}

impl Sender {
    /// Sends a tensor of the sending mesh. Returns at once; the chips wait for each other.
    ///
    /// # Errors
    /// Where the tensor lies elsewhere, or TT-NN refuses.
    pub fn send(&self, tensor: &Tensor) -> Result<()> {
        self.0.run("send", tensor, |socket| ffi::send(tensor.raw(), socket))
    }
}

impl Receiver {
    /// Receives into a tensor of the receiving mesh, of the same shape, type and layout as the one that was sent.
    /// Returns at once; work on the tensor that is given later waits for it.
    ///
    /// # Errors
    /// Where the tensor lies elsewhere, or TT-NN refuses.
    pub fn receive(&self, tensor: &Tensor) -> Result<()> {
        self.0.run("receive", tensor, |socket| ffi::receive(tensor.raw(), socket))
    }
}

impl End {
    fn run(
        &self,
        operation: &'static str,
        tensor: &Tensor,
        work: impl FnOnce(&ffi::Socket) -> std::result::Result<(), cxx::Exception>,
    ) -> Result<()> {
        if !self.mesh.is(tensor.mesh()) {
            return Err(Error::OtherMesh { operation });
        }
        self.mesh.run(operation, |_| work(&self.raw))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.mesh.discard(&mut self.raw, true);
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender({:?})", self.0.mesh)
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver({:?})", self.0.mesh)
    }
}
