//! The way from stages and tickets to their scheduler, as long as the engine is open.

use std::sync::{Mutex, PoisonError};

use kameo::actor::ActorRef;
use kameo::message::Message;
use tokio::sync::watch;

use crate::scheduler::Scheduler;

/// Shared by everything that an engine started. Closing it breaks the circle in which the scheduler, the stages it
/// supervises and their tickets hold each other, and wakes whoever waits on a full edge.
pub(crate) struct Home {
    scheduler: Mutex<Option<ActorRef<Scheduler>>>,
    closed: watch::Sender<bool>,
}

impl Home {
    pub(crate) fn new(scheduler: ActorRef<Scheduler>) -> Self {
        Self { scheduler: Mutex::new(Some(scheduler)), closed: watch::Sender::new(false) }
    }

    /// Tells the scheduler something; nobody hears it once the engine is closed. The scheduler's mailbox has no bound.
    pub(crate) fn tell<M: Send + 'static>(&self, message: M)
    where
        Scheduler: Message<M>,
    {
        let scheduler = self.scheduler.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(scheduler) = scheduler {
            let _ = scheduler.tell(message).try_send();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Sees when it is closed.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    /// Waits until it is closed.
    pub(crate) async fn closing(&self) {
        // The sender lives as long as `self`.
        let _ = self.watch().wait_for(|closed| *closed).await;
    }

    /// Stops the stages, wherever they wait; the scheduler may finish what is in its mailbox.
    pub(crate) fn close_gently(&self) {
        self.closed.send_replace(true);
    }

    /// Stops all actors.
    pub(crate) fn close(&self) {
        self.close_gently();
        let scheduler = self.scheduler.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(scheduler) = scheduler {
            scheduler.kill();
        }
    }
}
