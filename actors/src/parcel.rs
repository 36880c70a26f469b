//! What goes over an edge, how heavy it is, and over which wire.

use std::sync::Arc;
use std::time::Duration;

use tensact_topology::ChipId;

use crate::edge::Outbox;
use crate::seat::EdgeCosts;
use crate::telemetry::Transport;
use crate::ticket::Ticket;

/// What travels over an edge.
pub(crate) struct Parcel<T> {
    pub(crate) content: T,
    pub(crate) load: Load,
}

/// How heavy a parcel is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) wire: Wire,
    pub(crate) bytes: u64,
    /// Time that its transfer takes on an emulated board.
    pub(crate) takes: Duration,
}

/// What an edge goes over: a chip of either end, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wire {
    pub(crate) from: ChipId,
    pub(crate) to: ChipId,
    pub(crate) transport: Transport,
}

/// What an edge carries belongs to a ticket.
pub(crate) trait Content {
    fn ticket(&self) -> &Arc<Ticket>;

    /// The denoising step that it is for, if it is for one.
    fn step(&self) -> Option<usize> {
        None
    }

    /// Bytes of its tensors where they lie: padded to tiles on a chip.
    fn bytes(&self) -> u64;
}

/// An edge out of a slice, and what a transfer over it takes on an emulated board.
pub(crate) struct Way<T> {
    pub(crate) outbox: Outbox<T>,
    pub(crate) wire: Wire,
    pub(crate) costs: Option<EdgeCosts>,
}

impl<T> Clone for Way<T> {
    fn clone(&self) -> Self {
        Self { outbox: self.outbox.clone(), wire: self.wire, costs: self.costs.clone() }
    }
}

impl<T> Way<T> {
    pub(crate) fn load(&mut self, content: &impl Content, images: usize) -> Load {
        let (wire, bytes) = (self.wire, content.bytes());
        match &mut self.costs {
            Some(costs) => {
                let (takes, bytes) = costs.transfer(content.ticket(), images);
                Load { wire, bytes, takes }
            }
            None => Load { wire, bytes, takes: Duration::ZERO },
        }
    }
}
