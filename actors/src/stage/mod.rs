//! Stage actors: each runs one slice of a stage on its chips.
//!
//! A stage pulls tensors from its edges when it can use them, so that batches form from what waits and a full edge holds
//! its sender up; its mailbox is for control alone. Every piece of work ends at a boundary (a pass, a denoising
//! step, a layer that follows) where control is heard and requests that have ended are let go; a pass of the prefix is
//! given up between layers when nobody waits for it any more.
//!
//! When a stage fails, everything it held ends with the cause, its supervisor starts it again with the same weights and
//! edges, and the scheduler decides what becomes of the requests.

mod denoise;
mod prefix;
mod step;
mod vision;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use kameo::actor::{Actor, ActorRef, WeakActorRef};
use kameo::error::{ActorStopReason, PanicError};
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::message::{Context, Message};
use tokio::sync::watch;

pub(crate) use denoise::{Denoise, DenoiseArgs};
pub(crate) use prefix::{Prefix, PrefixArgs, Prefixed, PrefixedContent};
pub(crate) use step::{CacheLayer, StepWork};
pub(crate) use vision::{Image, Images, Vision, VisionArgs, VisionNext, grouped};

use crate::scheduler::StageFailed;
use crate::seat::{Seat, StageFault};
use crate::ticket::{End, Ticket};

/// What a stage does between two looks at its mailbox.
pub(crate) trait Work: Send + 'static {
    /// What its actor and thread are called.
    const NAME: &'static str;

    fn seat(&self) -> &Seat;

    /// Waits until there may be something to do. Dropping the future loses nothing.
    fn ready(&mut self) -> impl Future<Output = ()> + Send;

    /// Does what can be done up to the next boundary.
    fn work(&mut self) -> impl Future<Output = Result<(), StageFault>> + Send;

    /// Lets go of requests that have ended.
    fn sweep(&mut self);

    /// Gives up what it computes.
    fn at_work(&mut self) -> Vec<Arc<Ticket>>;

    /// Gives up everything else that it holds.
    fn surrender(&mut self) -> Vec<Arc<Ticket>>;
}

/// The actor around a slice.
pub(crate) struct Stage<W> {
    work: W,
    closed: watch::Receiver<bool>,
}

impl<W: Work> Actor for Stage<W> {
    type Args = W;
    type Error = StageFault;

    fn name() -> &'static str {
        W::NAME
    }

    async fn on_start(work: W, _: ActorRef<Self>) -> Result<Self, StageFault> {
        let closed = work.seat().home.watch();
        Ok(Self { work, closed })
    }

    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, StageFault> {
        loop {
            tokio::select! {
                biased;
                _ = self.closed.wait_for(|closed| *closed) => return Ok(None),
                signal = mailbox.recv() => return Ok(signal),
                () = self.work.ready() => {}
            }
            self.work.work().await?;
        }
    }

    async fn on_panic(
        &mut self,
        _: WeakActorRef<Self>,
        error: PanicError,
    ) -> Result<ControlFlow<ActorStopReason>, StageFault> {
        let seat = self.work.seat();
        let fault = error.with_downcast_ref(StageFault::clone).unwrap_or_else(|| {
            seat.fault(format!("panicked: {}", error.with_str(str::to_owned).unwrap_or_default()))
        });
        let (cause, home): (Arc<str>, _) = (fault.to_string().into(), Arc::clone(&seat.home));
        let (place, recorder) = (seat.place, Arc::clone(&seat.recorder));
        let at_work = self.work.at_work();
        recorder.failed(place, &cause, at_work.len());
        // Who fails again and again may be at fault itself: that says nothing about the device.
        let counts = !at_work.iter().any(|ticket| ticket.alone);
        home.tell(StageFailed { place, cause: Arc::clone(&cause), counts });
        at_work.iter().for_each(|ticket| ticket.end(End::Failed(Arc::clone(&cause))));
        for ticket in self.work.surrender() {
            ticket.end(End::Disturbed(Arc::clone(&cause)));
        }
        Ok(ControlFlow::Break(ActorStopReason::Panicked(error)))
    }
}

/// Requests have ended elsewhere: let go of them.
pub(crate) struct Sweep;

impl<W: Work> Message<Sweep> for Stage<W> {
    type Reply = ();

    async fn handle(&mut self, _: Sweep, _: &mut Context<Self, ()>) {
        self.work.sweep();
    }
}

/// Takes the next batch off a queue: at most `most`, and a request that must run alone by itself.
fn next_batch<T>(queue: &mut VecDeque<T>, most: usize, ticket: impl Fn(&T) -> &Arc<Ticket>) -> Vec<T> {
    let Some(first) = queue.front() else { return Vec::new() };
    let count = if ticket(first).alone {
        1
    } else {
        queue.iter().take(most).take_while(|item| !ticket(item).alone).count()
    };
    queue.drain(..count).collect()
}
