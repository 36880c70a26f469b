//! Real-time chunking for robots that leave the bookkeeping to the server.

use std::collections::VecDeque;
use std::time::Duration;

use tensact::runtime::Tensor;
use tensact::{ActionChunk, Chunking};

use crate::config::{Robot, RtcMode};
use crate::openpi::{Previous, Rtc};

/// Answers whose latency says how long the next one may take.
const LATENCIES: usize = 10;

/// What the server remembers of a robot while it is connected.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    last: Option<Tensor>,
    latencies: VecDeque<Duration>,
}

/// A robot asks for chunking in a way that is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkingError {
    /// The server does not remember chunks.
    #[error("`rtc`: `executed` needs a server that remembers chunks (rtc = \"server\"); send `prev_chunk`")]
    NotRemembered,
    /// There is no connection by which the robot is known.
    #[error("`rtc`: `executed` needs a websocket, by which the server knows the robot; send `prev_chunk`")]
    NoConnection,
}

impl Memory {
    /// What guides the next chunk; nothing when no action of the last one is left.
    ///
    /// # Errors
    /// When the robot relies on a memory that the server does not keep.
    pub(crate) fn chunking(&self, rtc: Rtc, robot: &Robot) -> Result<Option<Chunking>, ChunkingError> {
        let Rtc { schedule, max_weight, .. } = rtc;
        let (previous, delay) = match rtc.previous {
            Previous::Sent(previous) => (previous, rtc.delay.unwrap_or(0)),
            Previous::Remembered { executed } => {
                if robot.rtc != RtcMode::Server {
                    return Err(ChunkingError::NotRemembered);
                }
                match self.rest(executed) {
                    Some(rest) => (rest, rtc.delay.unwrap_or_else(|| self.delay(robot.control_hz))),
                    None => return Ok(None),
                }
            }
        };
        let rows = previous.rows();
        let execution_horizon = rtc.execution_horizon.or(robot.execution_horizon).unwrap_or(rows);
        Ok(Some(Chunking { previous, delay, execution_horizon, schedule, max_weight }))
    }

    /// Remembers an answer and how long it took.
    pub(crate) fn remember(&mut self, chunk: &ActionChunk, took: Duration) {
        self.last = Some(chunk.actions.clone());
        self.latencies.push_back(took);
        if self.latencies.len() > LATENCIES {
            self.latencies.pop_front();
        }
    }

    /// The actions of the last chunk behind the executed ones.
    fn rest(&self, executed: usize) -> Option<Tensor> {
        let last = self.last.as_ref()?;
        let rows = last.rows().checked_sub(executed).filter(|rows| *rows > 0)?;
        Tensor::new([rows, last.width()], last.data()[executed * last.width()..].to_vec()).ok()
    }

    /// Actions that the robot executes during the slowest of the last answers.
    fn delay(&self, control_hz: Option<f64>) -> usize {
        let slowest = self.latencies.iter().max().copied().unwrap_or_default();
        (slowest.as_secs_f64() * control_hz.unwrap_or(0.0)).ceil() as usize
    }
}
