//! Passes of slices, put together from what a journal takes down.

use std::collections::BTreeMap;
use std::time::Duration;

use tensact::telemetry::{Activity, Doing};

use super::metrics::Metrics;

/// Passes that may have begun; those that were given up are forgotten at last.
const BEGUN: usize = 1 << 12;

/// Times of passes that are run layer by layer, until their last layer.
#[derive(Default)]
pub(crate) struct Passes(BTreeMap<Key, Duration>);

/// The first request of a pass, its attempt, and the slice.
type Key = (u64, u32, usize, usize);

impl Passes {
    /// Counts a pass that is done with this activity.
    pub(crate) fn take(&mut self, activity: &Activity, metrics: &Metrics) {
        let Activity { pipeline, slice, stage, doing, began, ended, members, .. } = activity;
        let took = *ended - *began;
        match doing {
            Doing::Pass { .. } => metrics.stage_pass(*stage, took, members.len()),
            Doing::Layer { last, .. } => {
                let (first, attempt) =
                    members.first().map_or((0, 0), |member| (member.request, member.attempt));
                let key = (first, attempt, *pipeline, *slice);
                if self.0.len() >= BEGUN {
                    self.0.pop_first();
                }
                *self.0.entry(key).or_default() += took;
                if *last && let Some(took) = self.0.remove(&key) {
                    metrics.stage_pass(*stage, took, members.len());
                }
            }
            _ => {}
        }
    }
}
