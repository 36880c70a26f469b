//! Keeps a query apart from everything else.
//!
//! While TT-NN counts what an operation would take, it neither allocates nor runs anything, for all threads of the
//! process. So every call into TT-NN passes this gate: many at a time, or one query alone.

use std::{
    cell::{Cell, RefCell},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

static GATE: RwLock<()> = RwLock::new(());

thread_local! {
    static IN_QUERY: Cell<bool> = const { Cell::new(false) };
    static AFTER_QUERY: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

/// Whether this thread makes a query.
pub(crate) fn in_query() -> bool {
    IN_QUERY.get()
}

/// Puts off what a query would not do but believe done.
pub(crate) fn after_query(work: impl FnOnce() + 'static) {
    AFTER_QUERY.with_borrow_mut(|list| list.push(Box::new(work)));
}

/// Held during a call into TT-NN. `None` within a query, which holds the gate already.
pub(crate) fn pass() -> Option<RwLockReadGuard<'static, ()>> {
    (!in_query()).then(|| GATE.read().unwrap_or_else(PoisonError::into_inner))
}

/// Held during a query, by the thread that makes it.
pub(crate) struct Alone(Option<RwLockWriteGuard<'static, ()>>);

/// `None` within a query: they do not nest.
pub(crate) fn alone() -> Option<Alone> {
    if in_query() {
        return None;
    }
    let guard = GATE.write().unwrap_or_else(PoisonError::into_inner);
    IN_QUERY.set(true);
    Some(Alone(Some(guard)))
}

impl Drop for Alone {
    fn drop(&mut self) {
        IN_QUERY.set(false);
        self.0 = None;
        for work in AFTER_QUERY.take() {
            work();
        }
    }
}
