//! Memory for what lives between two products, used again and again: pages that the system has to hand out anew cost
//! more than what is computed on them.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Pieces that are kept for the next user.
const KEPT: usize = 16;

/// Pieces of memory that nobody uses at present.
#[derive(Default)]
pub(in crate::device) struct ScratchPool(Mutex<Vec<Vec<u32>>>);

impl ScratchPool {
    /// That many words with whatever an earlier user has left in them.
    pub(in crate::device) fn take(self: &Arc<Self>, words: usize) -> Scratch {
        let mut free = self.free();
        // The smallest that is large enough; else the largest, which grows.
        let fitting = free.iter().position(|piece| piece.capacity() >= words);
        let piece = fitting.or(free.len().checked_sub(1)).map(|index| free.remove(index));
        drop(free);
        let mut piece = piece.unwrap_or_default();
        piece.resize(words, 0);
        Scratch { piece, pool: Arc::clone(self) }
    }

    /// The pieces, by growing size. A poisoned list is still a list of whole pieces.
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of memory, given back when it is dropped.
pub(in crate::device) struct Scratch {
    piece: Vec<u32>,
    pool: Arc<ScratchPool>,
}

impl Deref for Scratch {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.piece
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.piece
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let piece = std::mem::take(&mut self.piece);
        let mut free = self.pool.free();
        let index = free.partition_point(|other| other.capacity() < piece.capacity());
        free.insert(index, piece);
        if free.len() > KEPT {
            free.remove(0);
        }
    }
}
