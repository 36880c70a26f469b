//! A journal's entries as lines of a trace file.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use tensact::telemetry::{Activity, Doing, RequestTrace, TraceId};
use tensact::topology::{ChipId, StageKind};

use super::arrows::{Arrow, arrows};
use super::event::{
    ACTIVITY, ARROW, ActivityArgs, Asked, BOARD, Bare, CLIENT, END, Event, FIRST_TRACK, HELD, Id, LEFT_OUT,
    LeftOut, PART, REQUEST, REQUESTS, ROBOTS, RUN, RequestArgs, Run, SHARED, Subject, Written, micros,
};

/// Writes a trace file from its beginning to its end, and remembers nothing of what it wrote.
pub struct TraceWriter<W: Write> {
    out: W,
    empty: bool,
    /// Numbers of arrows and of what was held up.
    ids: u64,
    written: Written,
}

/// Name of a process or track.
#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
}

/// Place of a process or track among the others.
#[derive(Serialize)]
struct Place {
    sort_index: u32,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(out: W, run: &Run) -> io::Result<Self> {
        let mut writer = Self { out, empty: true, ids: 0, written: Written::default() };
        writer.line(&Event { args: Some(run), ..Event::new("M", RUN, BOARD) })?;
        match &run.subject {
            Subject::Board { board, chips, .. } => {
                writer.process(BOARD, &format!("board {board}"))?;
                for held in chips {
                    let name = format!("chip {} · {}", held.chip, held.slices);
                    writer.track(BOARD, track(held.chip), &name)?;
                }
                writer.process(REQUESTS, "requests")?;
            }
            Subject::Robots { server, robots } => {
                writer.process(ROBOTS, &format!("robots of {server}"))?;
                for robot in 0..*robots {
                    writer.track(ROBOTS, track_of_robot(robot), &format!("robot {robot}"))?;
                }
            }
        }
        Ok(writer)
    }

    /// Writes an activity down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn activity(&mut self, activity: &Activity) -> io::Result<()> {
        self.written.activities += 1;
        let (name, ts) = (name(activity), micros(activity.began));
        let args = Some(ActivityArgs::from(activity));
        let Some((chip, others)) = activity.chips.split_first() else {
            let id = self.id();
            let id2 = || Some(Id { local: id.as_str().into() });
            let (begin, end) = (Event::new("b", &*name, REQUESTS), Event::new("e", &*name, REQUESTS));
            self.line(&Event { cat: HELD.into(), id2: id2(), ts, args, ..begin })?;
            return self.line(&Bare { cat: HELD.into(), id2: id2(), ts: micros(activity.ended), ..end });
        };
        let dur = Some(micros(activity.ended.saturating_sub(activity.began)));
        let (cat, tid) = (ACTIVITY.into(), track(*chip));
        self.line(&Event { cat, tid, ts, dur, args, ..Event::new("X", &*name, BOARD) })?;
        for chip in others {
            let (cat, tid) = (SHARED.into(), track(*chip));
            self.line(&Bare { cat, tid, ts, dur, ..Event::new("X", &*name, BOARD) })?;
        }
        Ok(())
    }

    /// Writes a request that has ended down, behind its activities.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn request(&mut self, request: &RequestTrace) -> io::Result<()> {
        self.written.requests += 1;
        let args = Some(RequestArgs::from(request));
        let id = async_id(request.trace, request.number);
        let id2 = || Some(Id { local: id.as_str().into() });
        let (cat, ts) = (REQUEST, micros(request.arrived));
        self.line(&Event { cat: cat.into(), id2: id2(), ts, args, ..Event::new("b", REQUEST, REQUESTS) })?;
        for (name, began, ended) in parts(request) {
            if began < ended {
                let begin = Event::new("b", &*name, REQUESTS);
                self.line(&Bare { cat: cat.into(), id2: id2(), ts: micros(began), ..begin })?;
                let end = Event::new("e", &*name, REQUESTS);
                self.line(&Bare { cat: cat.into(), id2: id2(), ts: micros(ended), ..end })?;
            }
        }
        let end = Event::new("e", REQUEST, REQUESTS);
        self.line(&Bare { cat: cat.into(), id2: id2(), ts: micros(request.ended), ..end })?;
        request
            .attempts
            .iter()
            .flat_map(|attempt| arrows(&attempt.activities))
            .try_for_each(|arrow| self.arrow(arrow))
    }

    fn arrow(&mut self, Arrow { from, to }: Arrow) -> io::Result<()> {
        let id = self.id();
        for ((chip, at), ph, bp) in [(from, "s", ""), (to, "f", "e")] {
            let (cat, id, bp) = (ARROW.into(), Some(id.as_str().into()), bp.into());
            let (tid, ts) = (track(chip), micros(at));
            self.line(&Bare { cat, id, bp, tid, ts, ..Event::new(ph, ARROW, BOARD) })?;
        }
        Ok(())
    }

    /// Writes down what a robot waited for.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn asked(&mut self, asked: &Asked) -> io::Result<()> {
        self.written.requests += 1;
        let tid = track_of_robot(asked.robot);
        let (ts, dur) = (micros(asked.began), Some(micros(asked.took)));
        let event = Event::new("X", &*asked.outcome, ROBOTS);
        self.line(&Event { cat: CLIENT.into(), tid, ts, dur, args: Some(asked), ..event })?;
        // Of what the server does not account for, half is taken to have passed before.
        let took = asked.took.as_secs_f64() * 1e3;
        let known: f64 = asked.parts.iter().map(|(_, ms)| ms).sum();
        let mut from = (took - known).max(0.0) / 2.0;
        for (name, ms) in &asked.parts {
            let until = (from + ms).min(took);
            if until > from {
                let [from, until] = [from, until].map(|ms| Duration::from_secs_f64(ms / 1e3).min(asked.took));
                let (ts, dur) = (micros(asked.began + from), Some(micros(until - from)));
                self.line(&Bare { cat: PART.into(), tid, ts, dur, ..Event::new("X", &**name, ROBOTS) })?;
            }
            from = until;
        }
        Ok(())
    }

    /// Says that so much is missing here.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn left_out(&mut self, at: Duration, left_out: LeftOut) -> io::Result<()> {
        let LeftOut { activities, requests } = &mut self.written.left_out;
        *activities += left_out.activities;
        *requests += left_out.requests;
        let event = Event::new("i", LEFT_OUT, REQUESTS);
        self.line(&Event { ts: micros(at), s: "g".into(), args: Some(left_out), ..event })
    }

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<Written> {
        let written = self.written;
        self.line(&Event { args: Some(written), ..Event::new("M", END, BOARD) })?;
        self.out.write_all(b"\n]\n")?;
        self.out.flush()?;
        Ok(written)
    }

    fn process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        self.line(&Event { args: Some(Name { name }), ..Event::new("M", "process_name", pid) })?;
        let args = Some(Place { sort_index: pid });
        self.line(&Event { args, ..Event::new("M", "process_sort_index", pid) })
    }

    fn track(&mut self, pid: u32, tid: u32, name: &str) -> io::Result<()> {
        self.line(&Event { tid, args: Some(Name { name }), ..Event::new("M", "thread_name", pid) })?;
        let args = Some(Place { sort_index: tid });
        self.line(&Event { tid, args, ..Event::new("M", "thread_sort_index", pid) })
    }

    fn id(&mut self) -> String {
        self.ids += 1;
        self.ids.to_string()
    }

    fn line<A: Serialize>(&mut self, event: &Event<'_, A>) -> io::Result<()> {
        let before: &[u8] = if self.empty { b"[\n" } else { b",\n" };
        self.empty = false;
        self.out.write_all(before)?;
        serde_json::to_writer(&mut self.out, event).map_err(io::Error::from)
    }
}

fn track(ChipId(chip): ChipId) -> u32 {
    FIRST_TRACK.saturating_add(chip)
}

fn track_of_robot(robot: usize) -> u32 {
    FIRST_TRACK.saturating_add(u32::try_from(robot).unwrap_or(u32::MAX))
}

/// Clients may give a name to several requests.
fn async_id(trace: TraceId, number: u64) -> String {
    format!("{trace}.{number}")
}

/// What a slice on a track is called.
fn name(activity: &Activity) -> String {
    let Activity { stage, layers, .. } = activity;
    let mut steps = activity.members.iter().filter_map(|member| member.step);
    match activity.doing {
        Doing::Pass { .. } | Doing::Layer { .. } if *stage == StageKind::Expert => match steps.next() {
            Some(step) if steps.all(|other| other == step) => format!("step {step} · {layers}"),
            Some(_) => format!("steps · {layers}"),
            None => format!("{stage} {layers}"),
        },
        Doing::Pass { .. } | Doing::Layer { .. } => format!("{stage} {layers}"),
        Doing::Send { to, .. } => format!("send to {to}"),
        Doing::Receive { from, .. } => format!("receive from {from}"),
        Doing::Upload => "upload".into(),
        Doing::Blocked { to } => format!("blocked by {to}"),
        Doing::Stall => "stall".into(),
    }
}

/// Parts of a request's life, one after the other.
fn parts(request: &RequestTrace) -> Vec<(String, Duration, Duration)> {
    let dispatches: Vec<Duration> = request.attempts.iter().map(|attempt| attempt.dispatched).collect();
    let ends = dispatches.iter().skip(1).chain([&request.ended]);
    let queued = dispatches.first().copied().unwrap_or(request.ended);
    let mut parts = vec![
        ("preprocess".to_owned(), request.arrived, request.submitted),
        ("queue".to_owned(), request.submitted, queued),
    ];
    for (index, (attempt, ended)) in request.attempts.iter().zip(ends).enumerate() {
        let name = format!("pipeline {}, attempt {}", attempt.pipeline, index + 1);
        parts.push((name, attempt.dispatched, *ended));
    }
    parts
}
