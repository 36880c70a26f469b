//! Work that computes beside the async threads.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// Runs what computes for a while, one piece for each core at a time: images take memory while they are decoded and
/// resized.
#[derive(Debug, Clone)]
pub struct Workers(Arc<Semaphore>);

impl Default for Workers {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(cores)))
    }
}

impl Workers {
    /// Runs a piece of work when it is its turn; `None` if it panics or the runtime ends. The turn is the work's own: it
    /// goes on, and ends, whether or not somebody still waits for it.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let turns = Arc::clone(&self.0);
        let task = async move {
            // Nobody closes the semaphore.
            let turn = turns.acquire_owned().await.ok()?;
            let work = move || {
                let _turn = turn;
                work()
            };
            tokio::task::spawn_blocking(work).await.ok()
        };
        AbortOnDropHandle::new(tokio::spawn(task)).await.ok()?
    }
}
