//! A trace file, line by line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tensact::telemetry::{Activity, Attempt, Member, RequestTrace};

use super::event::{
    ACTIVITY, ActivityArgs, Asked, CLIENT, END, Event, FORMAT, HELD, Head, LEFT_OUT, LeftOut, REQUEST, RUN,
    RequestArgs, Run, Written, moment,
};

/// Longest line that is read.
const LINE_MAX: u64 = 16 << 20;
/// Requests that may be under way; of more, the oldest are not waited for.
const OPEN: usize = 1 << 16;

/// A trace file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceFileError {
    /// The file itself.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It is something else.
    #[error("{}: this is no trace file of Tensact: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What shows it.
        reason: String,
    },
    /// A line of it.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, from 1 on.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// Something that a file says.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// What chips did, in the order in which it ended.
    Activity(Arc<Activity>),
    /// What became of a request, behind its activities.
    Request(Arc<RequestTrace>),
    /// What a robot waited for.
    Asked(Asked),
    /// Something is missing here.
    LeftOut(LeftOut),
}

/// How a file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As it should.
    Whole(Written),
    /// In or behind this line: whoever wrote it has not come to its end.
    Cut {
        /// From 1 on.
        line: u64,
    },
}

/// Reads a trace file; nothing of it is kept but what belongs to requests that have not ended.
pub struct TraceFile {
    path: PathBuf,
    lines: BufReader<File>,
    line: u64,
    run: Run,
    open: BTreeMap<u64, Vec<(u32, Arc<Activity>)>>,
    written: Option<Written>,
    ending: Option<Ending>,
}

/// A line as it stands in the file.
enum Text {
    Line(Vec<u8>),
    /// The last one, without an end.
    Rest(Vec<u8>),
    End,
}

impl TraceFile {
    /// Opens a file and reads what it is about.
    ///
    /// # Errors
    /// When it cannot be read, or is not a trace file of this version.
    pub fn open(path: &Path) -> Result<Self, TraceFileError> {
        let io = |source| TraceFileError::Io { path: path.into(), source };
        let foreign = |reason: &str| TraceFileError::Foreign { path: path.into(), reason: reason.into() };
        let mut lines = BufReader::new(File::open(path).map_err(io)?);
        let mut read = || read_line(&mut lines).map_err(io);
        match read()? {
            Text::Line(line) if line.trim_ascii() == b"[" => {}
            Text::End => return Err(foreign("it is empty")),
            _ => return Err(foreign("expected `[` alone on the first line")),
        }
        let first = match read()? {
            Text::Line(line) | Text::Rest(line) => line,
            Text::End => return Err(foreign("it ends behind its first line")),
        };
        let event = event::<Run>(&first)
            .map_err(|error| foreign(&format!("line 2 does not say what it holds: {error}")))?;
        let run = event.args.filter(|_| event.name == RUN);
        let run = run.ok_or_else(|| foreign("line 2 does not say what it holds"))?;
        if run.format != FORMAT {
            let version = &run.version;
            let reason =
                format!("Tensact {version} wrote it as format {}, this one reads {FORMAT}", run.format);
            return Err(foreign(&reason));
        }
        let (open, written, ending) = Default::default();
        Ok(Self { path: path.into(), lines, line: 2, run, open, written, ending })
    }

    /// What the file holds.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// How it ended, once everything was read.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// The next record; none behind the last.
    fn advance(&mut self) -> Result<Option<Record>, TraceFileError> {
        while self.ending.is_none() {
            let read = read_line(&mut self.lines);
            self.line += 1;
            let (text, last) =
                match read.map_err(|source| TraceFileError::Io { path: self.path.clone(), source })? {
                    Text::Line(text) => (text, false),
                    Text::Rest(text) => (text, true),
                    Text::End => (Vec::new(), true),
                };
            let text = text.trim_ascii();
            if text == b"]" {
                let written =
                    self.written.ok_or_else(|| self.wrong("the list ends without its last event".into()))?;
                self.ending = Some(Ending::Whole(written));
                return Ok(None);
            }
            if last {
                // Whatever the last line still holds is whole only if it can be read.
                self.ending = Some(Ending::Cut { line: self.line });
                return Ok(self.record(text).ok().flatten());
            }
            match self.record(text) {
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => {}
                Err(reason) => return Err(self.wrong(reason)),
            }
        }
        Ok(None)
    }

    fn wrong(&self, reason: String) -> TraceFileError {
        TraceFileError::Line { path: self.path.clone(), line: self.line, reason }
    }

    fn record(&mut self, text: &[u8]) -> Result<Option<Record>, String> {
        let head: Head<'_> = parse(text)?;
        match (&*head.ph, &*head.cat, &*head.name) {
            ("X", ACTIVITY, _) | ("b", HELD, _) => self.activity(text).map(Some),
            ("b", REQUEST, REQUEST) => self.request(text).map(Some),
            ("X", CLIENT, _) => asked(text).map(Some),
            ("i", _, LEFT_OUT) => payload(text).map(|(_, left_out)| Some(Record::LeftOut(left_out))),
            ("M", _, END) => {
                self.written = Some(payload(text)?.1);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn activity(&mut self, text: &[u8]) -> Result<Record, String> {
        let (event, args) = payload::<ActivityArgs>(text)?;
        let began = moment(event.ts)?;
        let ended = match (event.dur, args.ended) {
            (Some(dur), _) => began + moment(dur)?,
            (None, Some(ended)) => moment(ended)?,
            (None, None) => return Err("it does not say how long it took".into()),
        };
        if ended < began {
            return Err("it ends before it begins".into());
        }
        let ActivityArgs { doing, pipeline, slice, stage, layers, chips, members, .. } = args;
        let members: Vec<Member> = members.into_iter().map(Member::from).collect();
        if members.iter().any(|member| member.attempt == 0) {
            return Err("attempt 0: expected them to be counted from 1".into());
        }
        let chips = chips.into();
        let activity = Activity { pipeline, slice, stage, layers, chips, doing, began, ended, members };
        let activity = Arc::new(activity);
        for member in &activity.members {
            let open = self.open.entry(member.request).or_default();
            open.push((member.attempt, Arc::clone(&activity)));
        }
        while self.open.len() > OPEN {
            self.open.pop_first();
        }
        Ok(Record::Activity(activity))
    }

    fn request(&mut self, text: &[u8]) -> Result<Record, String> {
        let (event, args) = payload::<RequestArgs>(text)?;
        let RequestArgs { trace, number, robot, outcome, submitted, deadline, attempts, ended } = args;
        let attempt = |args: super::event::AttemptArgs| {
            let dispatched = moment(args.dispatched)?;
            Ok(Attempt { pipeline: args.pipeline, dispatched, activities: Vec::new() })
        };
        let mut request = RequestTrace {
            trace,
            span: None,
            number,
            robot: robot.map(Arc::from),
            arrived: moment(event.ts)?,
            submitted: moment(submitted)?,
            deadline: deadline.map(moment).transpose()?,
            attempts: attempts.into_iter().map(attempt).collect::<Result<_, String>>()?,
            ended: moment(ended)?,
            outcome,
        };
        let moments = [request.arrived, request.submitted];
        let moments = moments.into_iter().chain(request.attempts.iter().map(|attempt| attempt.dispatched));
        if !moments.chain([request.ended]).is_sorted() {
            return Err("the request's arrival, hand-in, dispatches and end are not in this order".into());
        }
        for (attempt, activity) in self.open.remove(&number).into_iter().flatten() {
            if let Some(attempt) = request.attempts.get_mut(attempt as usize - 1) {
                attempt.activities.push(activity);
            }
        }
        Ok(Record::Request(Arc::new(request)))
    }
}

impl Iterator for TraceFile {
    type Item = Result<Record, TraceFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.advance();
        if record.is_err() {
            // Nothing is read behind a mistake.
            self.ending = Some(Ending::Cut { line: self.line });
        }
        record.transpose()
    }
}

fn asked(text: &[u8]) -> Result<Record, String> {
    let (event, args) = payload::<Asked>(text)?;
    let took = event.dur.ok_or("it does not say how long it took")?;
    if args.parts.iter().any(|(_, ms)| !(0.0..=1e12).contains(ms)) {
        return Err("a part of it has no time".into());
    }
    Ok(Record::Asked(Asked { began: moment(event.ts)?, took: moment(took)?, ..args }))
}

/// An event and its payload.
fn payload<A: DeserializeOwned>(text: &[u8]) -> Result<(Event<'_, ()>, A), String> {
    let mut event = event::<A>(text)?;
    let args = event.args.take().ok_or("it has no `args`")?;
    let Event { ph, name, cat, id, id2, pid, tid, ts, dur, bp, s, .. } = event;
    Ok((Event { ph, name, cat, id, id2, pid, tid, ts, dur, bp, s, args: None }, args))
}

fn event<A: DeserializeOwned>(text: &[u8]) -> Result<Event<'_, A>, String> {
    parse(text)
}

/// A line without the comma behind it.
fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    let text = text.trim_ascii();
    let text = text.strip_suffix(b",").unwrap_or(text);
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

fn read_line(lines: &mut BufReader<File>) -> io::Result<Text> {
    let mut text = Vec::new();
    lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut text)?;
    match text.last() {
        None => Ok(Text::End),
        Some(b'\n') => Ok(Text::Line(text)),
        Some(_) if text.len() as u64 == LINE_MAX => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than 16 MiB"))
        }
        Some(_) => Ok(Text::Rest(text)),
    }
}
