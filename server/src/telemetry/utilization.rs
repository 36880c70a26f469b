//! How much of the last seconds chips were busy.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tensact::topology::ChipId;
use tokio::time::Instant;

/// What "lately" is.
const WINDOW: Duration = Duration::from_secs(10);

/// Samples that are closer than this are not kept.
const RESOLUTION: Duration = Duration::from_millis(500);

/// Shares of the last 10 s, from totals that are looked at every now and then. What a chip did counts when it has done it,
/// so a pass that takes longer than the time between two looks shows up late, and a share is never above 1.
#[derive(Debug, Default)]
pub(super) struct Utilization {
    /// The oldest is the one that shares are counted from.
    samples: VecDeque<(Instant, BTreeMap<ChipId, Duration>)>,
    shares: BTreeMap<ChipId, f64>,
}

impl Utilization {
    /// Takes how long chips were busy since the start.
    pub(super) fn sample(&mut self, now: Instant, busy: &BTreeMap<ChipId, Duration>) {
        while self.samples.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.samples.pop_front();
        }
        let before = self.samples.front();
        let share = |chip: &ChipId, busy: Duration| {
            let (at, before) = before?;
            let before = before.get(chip).copied().unwrap_or_default();
            let share = busy.saturating_sub(before).as_secs_f64() / (now - *at).as_secs_f64();
            share.is_finite().then(|| share.min(1.0))
        };
        self.shares = busy.iter().map(|(chip, busy)| (*chip, share(chip, *busy).unwrap_or(0.0))).collect();
        if self.samples.back().is_none_or(|(at, _)| *at + RESOLUTION <= now) {
            self.samples.push_back((now, busy.clone()));
        }
    }

    /// The share of every chip.
    pub(super) fn shares(&self) -> &BTreeMap<ChipId, f64> {
        &self.shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHIP: ChipId = ChipId(3);

    #[test]
    fn a_share_is_that_of_the_last_ten_seconds() {
        let (start, mut utilization) = (Instant::now(), Utilization::default());
        let mut share = |at: f64, busy: f64| {
            let busy = [(CHIP, Duration::from_secs_f64(busy))].into();
            utilization.sample(start + Duration::from_secs_f64(at), &busy);
            utilization.shares()[&CHIP]
        };
        assert_eq!(share(0.0, 0.0), 0.0);
        assert_eq!(share(0.0, 0.0), 0.0, "nothing can be said about no time");
        assert_eq!(share(1.0, 0.5), 0.5);
        // Looks that follow each other closely are answered from the same past.
        assert_eq!(share(1.25, 0.5), 0.4);
        assert_eq!(share(2.0, 1.5), 0.75);
        for at in 3..=12 {
            share(f64::from(at), 1.5);
        }
        assert_eq!(share(12.0, 1.5), 0.0, "what was before is over");
        assert_eq!(share(13.0, 2.5), 0.1);
        assert_eq!(share(14.0, 20.0), 1.0, "a long pass counts at its end");
    }
}
