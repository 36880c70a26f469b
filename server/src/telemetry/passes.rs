//! Passes of slices, put together from what a journal takes down.

use std::collections::HashMap;
use std::time::Duration;

use tensact::telemetry::{Activity, Doing};

use super::metrics::Metrics;

/// Passes that may have begun; those that were given up are forgotten at last.
const BEGUN: usize = 1 << 12;

/// Times of passes that are run layer by layer, until their last layer.
#[derive(Default)]
pub(crate) struct Passes(HashMap<(usize, usize, u64), Duration>);

impl Passes {
    /// Counts a pass that is done with this activity.
    pub(crate) fn take(&mut self, activity: &Activity, metrics: &Metrics) {
        let Activity { pipeline, slice, stage, doing, began, ended, members, .. } = activity;
        let took = *ended - *began;
        match doing {
            Doing::Pass { .. } => metrics.stage_pass(*stage, took, members.len()),
            Doing::Layer { last, .. } => {
                let first = members.first().map_or(0, |member| member.request);
                if self.0.len() >= BEGUN {
                    self.0.clear();
                }
                let so_far = self.0.entry((*pipeline, *slice, first)).or_default();
                *so_far += took;
                if *last && let Some(took) = self.0.remove(&(*pipeline, *slice, first)) {
                    metrics.stage_pass(*stage, took, members.len());
                }
            }
            _ => {}
        }
    }
}
