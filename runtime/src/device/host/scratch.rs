//! Memory for what lives between two products, used again and again: pages that the system has to hand out anew cost
//! more than what is computed on them.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pages::Pages;

/// Words that are kept for the next user at most: what the MLP of a prefix of four requests takes.
const KEPT_WORDS: usize = 64 << 20;
/// How many times larger than what is asked for a piece may be.
const LARGER: usize = 4;

/// Pieces of memory that nobody uses at present, the latest last.
#[derive(Default)]
pub(in crate::device) struct ScratchPool(Mutex<Vec<Pages>>);

impl ScratchPool {
    /// That many words with whatever an earlier user has left in them.
    pub(in crate::device) fn take(self: &Arc<Self>, words: usize) -> Scratch {
        let mut free = self.free();
        let fitting = (0..free.len())
            .filter(|&index| (words..=words.saturating_mul(LARGER)).contains(&free[index].len()))
            .min_by_key(|&index| free[index].len());
        let piece = fitting.map(|index| free.remove(index));
        drop(free);
        Scratch { piece: piece.unwrap_or_else(|| Pages::new(words)), words, pool: Arc::clone(self) }
    }

    fn give_back(&self, piece: Pages) {
        let mut free = self.free();
        free.push(piece);
        let mut kept: usize = free.iter().map(|piece| piece.len()).sum();
        let surplus = free
            .iter()
            .take_while(|piece| {
                let too_much = kept > KEPT_WORDS;
                kept -= piece.len();
                too_much
            })
            .count();
        let surplus: Vec<Pages> = free.drain(..surplus).collect();
        // Pages go back to the system without the lock.
        drop(free);
        drop(surplus);
    }

    /// A poisoned list is still a list of whole pieces.
    fn free(&self) -> MutexGuard<'_, Vec<Pages>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of memory, given back when it is dropped.
pub(in crate::device) struct Scratch {
    piece: Pages,
    words: usize,
    pool: Arc<ScratchPool>,
}

impl Deref for Scratch {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.piece[..self.words]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.piece[..self.words]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::replace(&mut self.piece, Pages::none()));
    }
}

/// Row-major values on such a piece, with whatever an earlier user has left in them until they are written.
pub(in crate::device) struct Values(Scratch);

impl Values {
    pub(in crate::device) fn unwritten(pool: &Arc<ScratchPool>, count: usize) -> Self {
        Self(pool.take(count))
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Values {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(pool: &ScratchPool) -> Vec<usize> {
        pool.free().iter().map(|piece| piece.len()).collect()
    }

    #[test]
    fn a_piece_is_used_again_by_whoever_needs_about_as_much() {
        let pool = Arc::<ScratchPool>::default();
        pool.take(1000)[0] = 7;
        assert_eq!(kept(&pool), [1000]);
        assert_eq!(pool.take(300)[0], 7);
        assert!(
            pool.take(200).iter().all(|word| *word == 0),
            "a small user leaves the large piece to others"
        );
        assert!(pool.take(1001).iter().all(|word| *word == 0), "a piece does not grow");
        assert_eq!(kept(&pool), [1000, 200, 1001]);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_when_too_much_is_kept() {
        let pool = Arc::<ScratchPool>::default();
        let pieces = [KEPT_WORDS / 2, KEPT_WORDS / 4, KEPT_WORDS / 2].map(|words| pool.take(words));
        drop(pieces);
        assert_eq!(kept(&pool), [KEPT_WORDS / 4, KEPT_WORDS / 2]);
        drop(pool.take(2 * KEPT_WORDS));
        assert!(kept(&pool).is_empty());
    }
}
