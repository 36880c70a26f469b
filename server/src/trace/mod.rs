//! Trace files: what chips did and what became of requests, to be opened in <https://ui.perfetto.dev> or read by
//! `tensact trace`.
//!
//! A file is Chrome's trace event JSON in its array form, one event on a line, so that it is written as things happen and
//! read line by line. Whatever was written before a crash can be read: the format lets the closing `]` be missing.
//! Times are microseconds since the pipeline's start, to the nanosecond.
//!
//! | module | holds |
//! |---|---|
//! | `event` | the lines of the format, as both sides know them |
//! | `write` | journal → lines |
//! | `arrows` | which slice a request went on to, across chips |
//! | `recording` | the thread that writes while others work |
//! | `read` | lines → activities and requests, equal to those that were journaled |
//! | `summary` | what a run's time was spent on, from what was read |
//! | `table` | a request's critical path, short enough to read |
//!
//! | event | stands for |
//! |---|---|
//! | `M` `tensact` | what the file holds, first; `M` `tensact end`: how much was written, last |
//! | `X` `activity` | an activity on a chip's track; on the tracks of its other chips, `X` `shared` |
//! | `b`, `e` `request` | a request from arrival to end, with its parts within; the outermost `b` says everything |
//! | `b`, `e` `held` | what held a request up without a chip |
//! | `s`, `f` `arrow` | from a slice to the one that took its work over |
//! | `i` `left out` | activities and requests that the disk was too slow for |
//! | `X` `client`, `X` `part` | what a robot of `bench-serve` waited for, with the server's own times within |

mod arrows;
mod event;
mod read;
mod recording;
mod summary;
mod table;
#[cfg(test)]
mod tests;
mod write;

pub use event::{Asked, Held, LeftOut, Run, Subject, Written};
pub use read::{Ending, Record, TraceFile, TraceFileError};
pub use recording::{Clients, Full, Recording};
pub use summary::{ChipShare, Parts, Summary, WaitShare};
pub use table::{Row, rows};
pub use write::TraceWriter;
