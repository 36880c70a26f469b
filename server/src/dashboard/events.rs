//! The stream of events. Ticks are made once for all pages, and only while somebody looks.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender, channel};
use tokio::time::{MissedTickBehavior, interval};

use super::board::Hello;
use super::tick::Tick;
use crate::serving::Serving;

/// Time between two ticks.
const PERIOD: Duration = Duration::from_millis(500);

/// Ticks that a slow page may be behind before it misses some.
const BEHIND: usize = 8;

/// Sends ticks to all pages.
pub(crate) struct Hub {
    ticks: Sender<Arc<str>>,
    ticking: AtomicBool,
}

impl Default for Hub {
    fn default() -> Self {
        Self { ticks: channel(BEHIND).0, ticking: AtomicBool::new(false) }
    }
}

impl Hub {
    /// Ticks from now on, which are made as long as anybody receives them.
    fn follow(serving: &Arc<Serving>) -> Receiver<Arc<str>> {
        let hub = &serving.hub;
        let receiver = hub.ticks.subscribe();
        if !hub.ticking.swap(true, Ordering::AcqRel) {
            let serving = Arc::clone(serving);
            serving.tasks.clone().spawn(async move { serving.hub.tick(&serving).await });
        }
        receiver
    }

    async fn tick(&self, serving: &Serving) {
        let Some(policy) = serving.stop.run_until_cancelled(serving.loaded()).await else { return };
        let pipeline = &policy.pipeline;
        let journal = pipeline.journal();
        let mut cursor = journal.end();
        let mut moments = interval(PERIOD);
        moments.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while serving.stop.run_until_cancelled(moments.tick()).await.is_some() {
            let tick = Tick::new(pipeline, journal, &mut cursor).await;
            let text = serde_json::to_string(&tick).unwrap_or_default();
            if self.ticks.send(text.into()).is_err() {
                self.ticking.store(false, Ordering::Release);
                // Somebody may have come between the two.
                if self.ticks.receiver_count() == 0 || self.ticking.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        }
    }
}

/// `GET /dashboard/events`: `hello` once the policy is loaded, then a `tick` twice a second until the server stops.
pub(super) async fn events(
    State(serving): State<Arc<Serving>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = Hub::follow(&serving);
    let stop = serving.stop.clone();
    let hello = {
        let serving = Arc::clone(&serving);
        async move {
            let hello = Hello::new(&serving.loaded().await.pipeline, serving.run.clone());
            Event::default().event("hello").json_data(hello).unwrap_or_default()
        }
    };
    let ticks = stream::unfold(ticks, async |mut ticks| {
        loop {
            match ticks.recv().await {
                Ok(tick) => return Some((Event::default().event("tick").data(&*tick), ticks)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let events = stream::once(hello).chain(ticks).map(Ok);
    Sse::new(events.take_until(stop.cancelled_owned())).keep_alive(KeepAlive::default())
}
