//! When a robot sends.

use std::str::FromStr;
use std::time::Duration;

/// Observations in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(f64);

/// A rate that no robot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected observations in a second, from 0.000001 to 1000000")]
pub struct RateError;

impl Rate {
    /// So many observations in a second.
    ///
    /// # Errors
    /// Below a millionth and above a million.
    pub fn new(per_second: f64) -> Result<Self, RateError> {
        if (1e-6..=1e6).contains(&per_second) { Ok(Self(per_second)) } else { Err(RateError) }
    }

    /// Observations in a second.
    pub fn per_second(self) -> f64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        text.parse().map_err(|_| RateError).and_then(Self::new)
    }
}

/// The moments at which one robot sends, counted from the start of the run.
#[derive(Debug)]
pub(super) struct Ticks {
    rate: f64,
    /// Part of a period by which this robot starts later than the first.
    phase: f64,
    next: u64,
}

impl Ticks {
    pub(super) fn new(rate: Rate, robot: usize, robots: usize) -> Self {
        Self { rate: rate.0, phase: robot as f64 / robots as f64, next: 0 }
    }

    /// When the next observation is to be sent.
    pub(super) fn due(&self) -> Duration {
        Duration::from_secs_f64((self.next as f64 + self.phase) / self.rate)
    }

    /// The next observation was sent.
    pub(super) fn take(&mut self) {
        self.next += 1;
    }

    /// Leaves out what was to be sent before `now`, and says how much that was.
    pub(super) fn skip_before(&mut self, now: Duration) -> u64 {
        let first = (now.as_secs_f64() * self.rate - self.phase).ceil().max(0.0) as u64;
        let skipped = first.saturating_sub(self.next);
        self.next += skipped;
        skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(robot: usize) -> Ticks {
        Ticks::new("10".parse().unwrap(), robot, 4)
    }

    #[test]
    fn starts_are_spread_over_a_period() {
        let starts: Vec<Duration> = (0..4).map(|robot| ticks(robot).due()).collect();
        assert_eq!(starts, [0, 25, 50, 75].map(Duration::from_millis));
    }

    #[test]
    fn what_passes_while_a_robot_waits_is_skipped() {
        let mut ticks = ticks(1);
        ticks.take();
        assert_eq!(ticks.due(), Duration::from_millis(125));
        assert_eq!(ticks.skip_before(Duration::from_millis(100)), 0, "it is still to come");
        assert_eq!(ticks.skip_before(Duration::from_millis(330)), 3, "125, 225, 325");
        assert_eq!(ticks.due(), Duration::from_millis(425));
        assert_eq!(ticks.skip_before(Duration::from_millis(330)), 0, "counted once");
    }

    #[test]
    fn rates_are_positive_numbers() {
        for wrong in ["0", "-1", "NaN", "inf", "1e7", "fast"] {
            assert_eq!(wrong.parse::<Rate>(), Err(RateError), "{wrong}");
        }
    }
}
