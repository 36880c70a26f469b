//! What the stages do while robots wait, on the error stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar};
use tensact::topology::StageKind;
use tensact::{Pipeline, SliceStats};

use crate::cli::progress;

/// How often it looks; a display needs no more.
const INTERVAL: Duration = Duration::from_millis(100);
/// Looks that a share is taken over. A pass is counted when it ends, and takes longer than an interval.
const WINDOW: usize = 10;

/// Bars for observations and stages.
pub(super) struct Live {
    bars: MultiProgress,
    pub(super) observations: ProgressBar,
}

impl Live {
    pub(super) fn new(observations: usize) -> Self {
        let bars = MultiProgress::new();
        let observations = bars.add(progress::count(observations, "observations"));
        Self { bars, observations }
    }

    /// Shows the stages until it is dropped; in a pipe there is nothing to show.
    pub(super) async fn watch(&self, pipeline: &Pipeline) -> Infallible {
        if self.bars.is_hidden() {
            return std::future::pending().await;
        }
        let mut stages: Vec<ProgressBar> = Vec::new();
        let mut looks: VecDeque<(Instant, Vec<f64>)> = VecDeque::new();
        loop {
            let slices: Vec<SliceStats> =
                pipeline.stats().await.pipelines.into_iter().flat_map(|pipeline| pipeline.slices).collect();
            for slice in slices.iter().skip(stages.len()) {
                stages.push(self.bars.add(progress::share(name(slice.stage))));
            }
            looks.push_back((Instant::now(), slices.iter().map(|slice| slice.busy_ms).collect()));
            if looks.len() > WINDOW {
                looks.pop_front();
            }
            if let (Some((from, before)), Some((to, after))) = (looks.front(), looks.back()) {
                let passed_ms = (*to - *from).as_secs_f64() * 1e3;
                let busy_ms = before.iter().zip(after).map(|(before, after)| after - before);
                for ((bar, slice), busy_ms) in stages.iter().zip(&slices).zip(busy_ms) {
                    let share = busy_ms / passed_ms.max(1.0);
                    bar.set_position((100.0 * share.min(1.0)).round() as u64);
                    bar.set_prefix(slice.running.to_string());
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    pub(super) fn clear(self) {
        // The bars are gone with the command in any case.
        let _ = self.bars.clear();
    }
}

/// A stage for people who have not read the code.
pub(super) fn name(stage: StageKind) -> &'static str {
    match stage {
        StageKind::Vision => "vision tower",
        StageKind::Prefix => "prefix",
        StageKind::Expert => "denoising",
    }
}
