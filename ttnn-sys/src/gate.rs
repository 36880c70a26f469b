//! Keeps a query apart from everything else.
//!
//! While TT-NN counts what an operation would take, it neither allocates nor runs anything, for all threads of the
//! process. So every call into TT-NN passes this gate: many at a time, or one query alone.

use std::{
    cell::Cell,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

static GATE: RwLock<()> = RwLock::new(());

thread_local! {
    static IN_QUERY: Cell<bool> = const { Cell::new(false) };
}

/// Held during a call into TT-NN. `None` within a query, which holds the gate already.
pub(crate) fn pass() -> Option<RwLockReadGuard<'static, ()>> {
    (!IN_QUERY.get()).then(|| GATE.read().unwrap_or_else(PoisonError::into_inner))
}

/// Held during a query, by the thread that makes it.
pub(crate) struct Alone(#[expect(dead_code, reason = "held, never read")] RwLockWriteGuard<'static, ()>);

/// `None` within a query: they do not nest.
pub(crate) fn alone() -> Option<Alone> {
    if IN_QUERY.get() {
        return None;
    }
    let guard = GATE.write().unwrap_or_else(PoisonError::into_inner);
    IN_QUERY.set(true);
    Some(Alone(guard))
}

impl Drop for Alone {
    fn drop(&mut self) {
        IN_QUERY.set(false);
    }
}
