//! Faults of emulated chips, each at its moment.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tensact_topology::Placement;

use crate::clock::Moment;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum FaultKind {
    /// The stage panics.
    Crash,
    /// The device reports an error.
    Error,
    /// The next computation takes so much longer.
    Stall(Duration),
    /// Computations take `factor` times as long for a while.
    Slow {
        /// How many times as long.
        factor: f64,
        /// For how long.
        lasts: Duration,
    },
    /// Nothing can be sent for a while.
    LinkDown(Duration),
}

/// Slower than that is as good as stalled.
const SLOWDOWN_MAX: f64 = 1e6;

/// The faults of one slice.
#[derive(Debug, Default)]
pub(crate) struct SliceFaults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    coming: VecDeque<(Moment, FaultKind)>,
    slow: Option<(f64, Moment)>,
    down: Option<Moment>,
}

impl SliceFaults {
    /// Faults at their moments.
    pub(crate) fn new(mut coming: Vec<(Moment, FaultKind)>) -> Self {
        coming.sort_by_key(|(at, _)| *at);
        Self(Mutex::new(State { coming: coming.into(), slow: None, down: None }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next fault whose moment has come; each is given once.
    pub(crate) fn due(&self, now: Moment) -> Option<FaultKind> {
        let mut state = self.state();
        let (at, kind) = state.coming.front().copied().filter(|(at, _)| *at <= now)?;
        state.coming.pop_front();
        match kind {
            FaultKind::Slow { factor, lasts } => state.slow = Some((factor, at + lasts)),
            FaultKind::LinkDown(lasts) => state.down = Some(at + lasts),
            FaultKind::Crash | FaultKind::Error | FaultKind::Stall(_) => {}
        }
        Some(kind)
    }

    /// How many times as long computations take.
    pub(crate) fn slowdown(&self, now: Moment) -> f64 {
        // A factor that is not a number slows nothing down.
        self.state()
            .slow
            .filter(|(_, until)| now < *until)
            .map_or(1.0, |(factor, _)| factor.clamp(1.0, SLOWDOWN_MAX))
    }

    pub(crate) fn link_down(&self, now: Moment) -> bool {
        self.state().down.is_some_and(|until| now < until)
    }
}

/// The kinds of faults, for people to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // as in FaultKind
pub enum FaultName {
    Crash,
    Error,
    Stall,
    Slow,
    Link,
}

impl FaultName {
    /// All of them.
    pub const ALL: [FaultName; 5] =
        [FaultName::Crash, FaultName::Error, FaultName::Stall, FaultName::Slow, FaultName::Link];
}

impl std::str::FromStr for FaultName {
    type Err = NoSuchFault;

    fn from_str(word: &str) -> Result<Self, NoSuchFault> {
        Ok(match word {
            "crash" => Self::Crash,
            "error" => Self::Error,
            "stall" => Self::Stall,
            "slow" => Self::Slow,
            "link" => Self::Link,
            _ => return Err(NoSuchFault(word.into())),
        })
    }
}

/// A word that names no [`FaultName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a fault: expected crash, error, stall, slow or link")]
pub struct NoSuchFault(String);

/// One fault: when, where, what.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fault {
    /// Simulated time.
    pub at: Duration,
    /// Pipeline of the deployment.
    pub pipeline: usize,
    /// Its slice, counted in the order in which an observation meets them.
    pub slice: usize,
    /// What goes wrong.
    pub kind: FaultKind,
}

/// All faults of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct PlannedFaults(pub Vec<Fault>);

impl PlannedFaults {
    /// Draws as many faults of these kinds as asked for, spread over a placement and a time.
    pub fn draw(kinds: &[FaultName], placement: &Placement, duration: Duration, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let slices: Vec<(usize, usize)> = placement
            .pipelines
            .iter()
            .enumerate()
            .flat_map(|(pipeline, slices)| (0..slices.slices.len()).map(move |slice| (pipeline, slice)))
            .collect();
        if slices.is_empty() {
            return Self::default();
        }
        let milliseconds =
            |random: &mut ChaCha8Rng, from, to| Duration::from_millis(random.random_range(from..to));
        let mut faults: Vec<Fault> = kinds
            .iter()
            .map(|name| {
                let (pipeline, slice) = slices[random.random_range(0..slices.len())];
                let at = duration.mul_f64(random.random());
                let kind = match name {
                    FaultName::Crash => FaultKind::Crash,
                    FaultName::Error => FaultKind::Error,
                    FaultName::Stall => FaultKind::Stall(milliseconds(&mut random, 10, 3000)),
                    FaultName::Slow => FaultKind::Slow {
                        factor: random.random_range(2.0..8.0),
                        lasts: milliseconds(&mut random, 100, 3000),
                    },
                    FaultName::Link => FaultKind::LinkDown(milliseconds(&mut random, 1, 500)),
                };
                Fault { at, pipeline, slice, kind }
            })
            .collect();
        faults.sort_by_key(|fault| (fault.at, fault.pipeline, fault.slice));
        Self(faults)
    }

    pub(crate) fn by_slice(&self) -> BTreeMap<(usize, usize), Arc<SliceFaults>> {
        let mut lists: BTreeMap<(usize, usize), Vec<(Moment, FaultKind)>> = BTreeMap::new();
        for Fault { at, pipeline, slice, kind } in &self.0 {
            lists.entry((*pipeline, *slice)).or_default().push((*at, *kind));
        }
        lists.into_iter().map(|(place, list)| (place, Arc::new(SliceFaults::new(list)))).collect()
    }
}
