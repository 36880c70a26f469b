//! Load for a policy server: many robots that send observations as `openpi-client` does, and what came back.
//!
//! ```no_run
//! # use std::num::NonZeroUsize;
//! # use std::sync::Arc;
//! # use std::time::Duration;
//! # use tensact::runtime::preprocess::Profile;
//! # use tensact_server::load::{self, Access, Content, Plan, Progress};
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let access = Access::new("ws://127.0.0.1:8000".parse()?, None, None, Duration::from_secs(10))?;
//! let content = Content {
//!     profile: Some(Profile::named("libero")?),
//!     image_side: 224,
//!     prompt: "pick up the red block".into(),
//!     steps: None,
//!     deadline: None,
//!     seed: 0,
//! };
//! let plan = Plan {
//!     robots: NonZeroUsize::MIN,
//!     rate: Some("10".parse()?),
//!     duration: Duration::from_secs(60),
//!     ..Plan::new(access, content)
//! };
//! let report = load::run(plan, Arc::new(Progress::default()), std::future::pending()).await?;
//! println!("{:.1} answers a second", report.throughput_per_s);
//! # Ok(())
//! # }
//! ```

mod answer;
mod connection;
mod endpoint;
mod groups;
mod histogram;
mod observation;
mod report;
mod robot;
mod shared;
mod tally;
#[cfg(test)]
mod tests;
mod ticks;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::sleep;

pub use answer::Metadata;
pub use connection::ConnectError;
pub use endpoint::{Access, AccessError, Endpoint, EndpointError};
pub use groups::Group;
pub use histogram::{HistogramError, histogram_svg};
pub use observation::{Content, IMAGE_SIDE_MAX};
pub use report::{Connections, Counts, Jitter, LatencyReport, Load, LoadReport};
pub use shared::Progress;
pub use ticks::{Rate, RateError};

use crate::trace::Clients;
use connection::Connection;
use groups::Groups;
use robot::Robot;
use shared::Shared;
use tally::Tally;

/// What robots do, and for how long.
#[derive(Clone)]
pub struct Plan {
    /// How they reach the server.
    pub access: Access,
    /// What they send.
    pub content: Content,
    /// How many there are; each has a connection of its own.
    pub robots: NonZeroUsize,
    /// How often each sends. A robot whose last observation is unanswered waits and skips its turn. Without a rate, each
    /// sends the next observation as soon as it is answered.
    pub rate: Option<Rate>,
    /// For how long they send.
    pub duration: Duration,
    /// Most observations of all together.
    pub requests: Option<u64>,
    /// How long answers are waited for after the last observation.
    pub grace: Duration,
    /// How long a robot without a connection waits before it tries again.
    pub pause: Duration,
    /// Who is told of every observation.
    pub trace: Option<Clients>,
}

impl Plan {
    /// One robot that sends as soon as it is answered, for a minute.
    pub fn new(access: Access, content: Content) -> Self {
        Self {
            access,
            content,
            robots: NonZeroUsize::MIN,
            rate: None,
            duration: Duration::from_secs(60),
            requests: None,
            grace: Duration::from_secs(60),
            pause: Duration::from_secs(1),
            trace: None,
        }
    }
}

/// A run that did not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not one robot could connect.
    #[error("no robot could connect to {endpoint}: {reason}")]
    Unreachable {
        /// The server.
        endpoint: Endpoint,
        /// What most of them met.
        reason: String,
    },
    /// It was ended before all robots had tried to connect.
    #[error("stopped while the robots were connecting to {0}")]
    Stopped(Endpoint),
}

/// Lets robots send observations to a server. The clock starts when all have tried to connect; `stop` ends the run
/// early, without waiting for answers.
///
/// # Errors
/// When nobody could connect, or the run was ended before.
pub async fn run(
    plan: Plan,
    progress: Arc<Progress>,
    stop: impl Future<Output = ()>,
) -> Result<LoadReport, LoadError> {
    tokio::pin!(stop);
    let attempts = tokio::select! {
        attempts = connect(&plan, &progress) => attempts?,
        () = &mut stop => return Err(LoadError::Stopped(plan.access.endpoint)),
    };
    let opened = attempts.iter().flatten().next();
    let metadata = opened.map_or_else(Metadata::default, |connection| connection.metadata.clone());

    let shared = Arc::new(Shared::new(plan, progress));
    let mut robots = JoinSet::new();
    for (number, attempt) in attempts.into_iter().enumerate() {
        robots.spawn(Robot::new(number, Arc::clone(&shared)).run(attempt));
    }
    let tallies = tallies(robots);
    tokio::pin!(tallies);
    let tallies = tokio::select! {
        tallies = &mut tallies => tallies,
        () = end(&shared, stop) => tallies.await,
    };
    Ok(LoadReport::new(&shared.plan, metadata, tallies))
}

/// Every robot's first attempt.
async fn connect(
    plan: &Plan,
    progress: &Progress,
) -> Result<Vec<Result<Connection, ConnectError>>, LoadError> {
    let attempts = join_all((0..plan.robots.get()).map(|_| async {
        let attempt = Connection::open(&plan.access).await;
        attempt.inspect(|_| progress.connected())
    }));
    let attempts = attempts.await;
    if attempts.iter().any(Result::is_ok) {
        return Ok(attempts);
    }
    let mut reasons = Groups::default();
    attempts.iter().flat_map(|attempt| attempt.as_ref().err()).for_each(|error| {
        reasons.add_line(&error.to_string());
    });
    let reason = reasons.top(1).pop().map_or_else(String::new, |group| group.message);
    Err(LoadError::Unreachable { endpoint: plan.access.endpoint.clone(), reason })
}

/// Ends a run when its time is over, or when somebody stops it.
async fn end(shared: &Shared, stop: impl Future<Output = ()>) {
    let time = async {
        tokio::select! {
            () = sleep(shared.plan.duration) => {}
            () = shared.no_more.cancelled() => {}
        }
        shared.stop_sending();
        sleep(shared.plan.grace).await;
    };
    tokio::select! {
        () = time => {}
        () = stop => {}
    }
    shared.stop();
}

async fn tallies(mut robots: JoinSet<Tally>) -> Vec<Tally> {
    let mut tallies = Vec::with_capacity(robots.len());
    while let Some(tally) = robots.join_next().await {
        match tally {
            Ok(tally) => tallies.push(tally),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!("robots are not aborted while they are waited for"),
            },
        }
    }
    tallies
}
