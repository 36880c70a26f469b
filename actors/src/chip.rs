//! Chips as resources: each does one thing at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tensact_topology::ChipId;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Who goes first when several slices of a pipeline wait for a chip they share.
///
/// A denoising batch that is full is finished before anything new is begun. While it has room, vision and prefix go
/// first, so that requests join it: the chip is busy either way, and a fuller batch takes less time per request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Ahead of all others.
    First,
    /// After those.
    Next,
    /// When nobody else waits.
    Last,
}

/// A chip, shared by the slices that are placed on it.
pub(crate) struct Chip {
    id: ChipId,
    turn: Arc<Mutex<()>>,
    /// How many wait with rank `First` and `Next`. Only a hint to those behind them: the mutex alone keeps the turn.
    ahead: [AtomicUsize; 2],
}

impl Chip {
    pub(crate) fn new(id: ChipId) -> Arc<Self> {
        Arc::new(Self { id, turn: Arc::default(), ahead: Default::default() })
    }

    /// Waits for the chip; the mutex is fair, so equals take turns.
    async fn turn(&self, rank: Rank) -> OwnedMutexGuard<()> {
        let _waiting = self.ahead.get(rank as usize).map(Waiting::new);
        loop {
            let turn = Arc::clone(&self.turn).lock_owned().await;
            if !self.ahead.iter().take(rank as usize).any(|ahead| ahead.load(Ordering::Relaxed) > 0) {
                return turn;
            }
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The chips of one slice, in the order of their numbers, in which they are always taken: so no two slices wait for
/// each other.
#[derive(Clone)]
pub(crate) struct Chips(Vec<Arc<Chip>>, Arc<[ChipId]>);

impl Chips {
    pub(crate) fn new(mut chips: Vec<Arc<Chip>>) -> Self {
        chips.sort_by_key(|chip| chip.id);
        let ids = chips.iter().map(|chip| chip.id).collect();
        Self(chips, ids)
    }

    pub(crate) fn ids(&self) -> &Arc<[ChipId]> {
        &self.1
    }

    /// Waits until all of them are free, and takes them.
    pub(crate) async fn take(&self, rank: Rank) -> Turn {
        let mut held = Vec::with_capacity(self.0.len());
        for chip in &self.0 {
            held.push(chip.turn(rank).await);
        }
        Turn { _held: held }
    }
}

/// Exclusive use of a slice's chips, until dropped.
pub(crate) struct Turn {
    _held: Vec<OwnedMutexGuard<()>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::yield_now;

    #[tokio::test]
    async fn better_ranks_go_first_and_equals_in_order() {
        let chips = Chips::new(vec![Chip::new(ChipId(0))]);
        let busy = chips.take(Rank::Last).await;
        let (log, order) = flume::unbounded();
        let mut waiting = Vec::new();
        for (name, rank) in
            [("step", Rank::Last), ("prefix", Rank::Next), ("vision", Rank::Next), ("full", Rank::First)]
        {
            let (chips, log) = (chips.clone(), log.clone());
            waiting.push(tokio::spawn(async move {
                let _turn = chips.take(rank).await;
                yield_now().await;
                log.send(name).unwrap();
            }));
            yield_now().await;
        }
        drop((busy, log));
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(order.into_iter().collect::<Vec<_>>(), ["full", "prefix", "vision", "step"]);
    }

    #[tokio::test]
    async fn slices_that_share_chips_never_wait_for_each_other() {
        let [a, b] = [ChipId(0), ChipId(1)].map(Chip::new);
        let one = Chips::new(vec![Arc::clone(&a), Arc::clone(&b)]);
        let other = Chips::new(vec![b, a]);
        let tasks = (0..20).map(|i| {
            let chips = if i % 2 == 0 { one.clone() } else { other.clone() };
            tokio::spawn(async move {
                let _turn = chips.take(Rank::Next).await;
                yield_now().await;
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    }
}
