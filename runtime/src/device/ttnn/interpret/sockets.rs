//! Ways between the chips of a board.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::Held;
use crate::device::ttnn::program::{SocketId, TensorSpec};

/// What was sent and not yet received, oldest first.
#[derive(Default)]
pub(super) struct Sockets {
    queues: Mutex<BTreeMap<SocketId, VecDeque<(TensorSpec, Held)>>>,
}

impl Sockets {
    pub(super) fn send(&self, socket: SocketId, spec: TensorSpec, held: Held) {
        // A poisoned table is still a table of whole tensors.
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.entry(socket).or_default().push_back((spec, held));
    }

    /// The oldest tensor on its way, which must be what the receiver has room for, wherever either end keeps it.
    pub(super) fn receive(&self, socket: SocketId, into: TensorSpec) -> Result<Held, String> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        match queues.get_mut(&socket).and_then(VecDeque::pop_front) {
            None => Err(format!("nothing was sent over socket {}: run the sender first", socket.0)),
            Some((spec, held)) if spec.in_memory(into.memory) == into => Ok(held),
            Some((spec, _)) => Err(format!("socket {} brings {spec}, expected {into}", socket.0)),
        }
    }
}
