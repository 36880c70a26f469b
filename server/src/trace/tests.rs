//! What is written is read back; what is not whole, or not a trace, is said to be so.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::NamedTempFile;
use tensact::simulate::{FaultName, PlannedFaults, Scenario, Simulation, Watch};
use tensact::telemetry::{Activity, Doing, Entry, Listener, Outcome};
use tensact::topology::{ChipId, Deployment, ModelSizes, Variant};

use super::*;

/// A vision tower that is dealt out, a prefix of two slices, and an expert: with transfers of every kind.
const SPLIT: &str = r#"
board = "loudbox-bh"
checkpoint = "pi05_base"
[batching]
max_requests = 2
max_in_flight = 3
[[pipeline]]
[[pipeline.stage]]
kind = "vision"
chips = [0, 2]
split = "cameras"
[[pipeline.stage]]
kind = "prefix"
layers = "0..9"
chips = [1]
[[pipeline.stage]]
kind = "prefix"
layers = "9..18"
chips = [3]
[[pipeline.stage]]
kind = "expert"
chips = [5]
"#;

/// Records that were journaled, and the file that was written of them.
struct Journaled {
    records: Vec<Record>,
    file: NamedTempFile,
    written: Written,
}

/// Runs robots on a deployment, and journals it to memory and to a file.
fn journaled(faults: &[FaultName]) -> Journaled {
    let deployment = Deployment::parse("test.toml", SPLIT).unwrap();
    let sizes = ModelSizes::base(Variant::Pi05);
    let simulation = Simulation::new(&deployment, &sizes).unwrap();
    let placement = deployment.placement(&sizes, deployment.load_board().unwrap().arch()).placement;
    let duration = Duration::from_secs(1);
    let faults = PlannedFaults::draw(faults, &placement, duration, 5);
    let deadline = Some(Duration::from_millis(300));
    let scenario =
        Scenario { robots: 4, rate_hz: Some(10.0), duration, requests: None, deadline, mixed: true, seed: 3 };

    let file = NamedTempFile::new().unwrap();
    let run = Run::new("a test", Subject::board("loudbox-bh", "emulated", &placement));
    let recording = Recording::start(file.path(), file.reopen().unwrap(), &run, Full::Wait).unwrap();
    let mut listener = recording.listener();
    let records: Arc<Mutex<Vec<Record>>> = Arc::default();
    let taken = Arc::clone(&records);
    let journal: Listener = Box::new(move |entry| {
        listener(entry);
        taken.lock().unwrap().push(match entry {
            Entry::Activity(activity) => Record::Activity(Arc::clone(activity)),
            Entry::Request(request) => Record::Request(Arc::clone(request)),
        });
    });
    let watch = Watch { journal: Some(journal), ..Watch::default() };
    simulation.run(&scenario, &faults, watch).unwrap();
    let written = recording.finish().unwrap();
    let records = std::mem::take(&mut *records.lock().unwrap());
    Journaled { records, file, written }
}

fn read(path: &Path) -> (Vec<Record>, Ending) {
    let mut file = TraceFile::open(path).unwrap();
    let records = file.by_ref().map(Result::unwrap).collect();
    (records, file.ending().unwrap())
}

/// Every error of a file with this text: of its opening, or of its first bad line.
fn refused(text: &str) -> String {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let error = match TraceFile::open(file.path()) {
        Ok(mut file) => file.find_map(Result::err).unwrap_or_else(|| panic!("accepted: {text}")),
        Err(error) => error,
    };
    let message = error.to_string();
    assert!(message.starts_with(&file.path().display().to_string()), "{message}");
    message
}

/// The first two lines of a file.
const HEAD: &str = r#"[
{"ph":"M","name":"tensact","pid":1,"tid":0,"ts":0,"args":{"format":1,"version":"0","command":"","of":"board","board":"b","chips_are":"","chips":[]}},
"#;

/// A file with these lines behind its beginning.
fn with(lines: &str) -> String {
    format!("{HEAD}{lines},\n]\n")
}

/// A record as a file has it: of what a request was in the middle of when it was given up, nothing had been written.
fn in_the_file(record: &Record, all: &[Record]) -> Record {
    let Record::Request(request) = record else { return record.clone() };
    let ended = |activity: &Arc<Activity>| {
        let same =
            |record: &Record| matches!(record, Record::Activity(ended) if Arc::ptr_eq(ended, activity));
        all.iter().any(same)
    };
    let mut request = (**request).clone();
    request.attempts.iter_mut().for_each(|attempt| attempt.activities.retain(&ended));
    Record::Request(Arc::new(request))
}

#[test]
fn what_was_journaled_is_read_back() {
    let faults = ["stall", "crash", "error"].map(|name| name.parse().unwrap());
    let Journaled { records, file, written } = journaled(&faults);
    let count = |wanted: fn(&Record) -> bool| records.iter().filter(|record| wanted(record)).count() as u64;
    assert!(records.iter().any(|record| matches!(record, Record::Activity(activity)
        if activity.doing == Doing::Stall)));
    assert!(records.iter().any(|record| matches!(record, Record::Activity(activity)
        if activity.chips.is_empty())));
    assert!(records.iter().any(|record| matches!(record, Record::Request(request)
        if request.attempts.len() > 1 && request.outcome == Outcome::Done)));
    let expected = Written {
        activities: count(|record| matches!(record, Record::Activity(_))),
        requests: count(|record| matches!(record, Record::Request(_))),
        left_out: LeftOut::default(),
    };
    let (read, ending) = read(file.path());
    assert!(expected.activities > 1000 && expected.requests > 30);
    assert_eq!((written, ending), (expected, Ending::Whole(expected)));
    assert_eq!(read.len(), records.len());
    for (read, journaled) in read.iter().zip(&records) {
        assert!(*read == in_the_file(journaled, &records), "{read:?}");
    }
}

#[test]
fn a_file_that_was_cut_is_read_up_to_the_cut() {
    let Journaled { records, file, .. } = journaled(&[]);
    let whole = std::fs::read(file.path()).unwrap();
    let (whole_records, _) = read(file.path());
    assert_eq!(whole_records.len(), records.len());
    let lines = whole.iter().filter(|byte| **byte == b'\n').count();
    for kept in [whole.len() - 2, whole.len() - 3, whole.len() - 40, whole.len() / 2, whole.len() / 3, 3000] {
        file.as_file().set_len(kept as u64).unwrap();
        let (read, ending) = read(file.path());
        let line = whole[..kept].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        assert_eq!(ending, Ending::Cut { line }, "{kept} of {} bytes", whole.len());
        assert!(line as usize <= lines);
        assert_eq!(read, records[..read.len()], "{kept}");
        // At least every second line is a record or belongs to one of the requests.
        assert!(kept < 5000 || !read.is_empty());
    }
}

#[test]
fn arrows_lead_from_senders_to_receivers() {
    let Journaled { records, .. } = journaled(&[]);
    let mut ways = std::collections::BTreeSet::new();
    for record in &records {
        let Record::Request(request) = record else { continue };
        for attempt in &request.attempts {
            let on = |(chip, began): (ChipId, Duration)| {
                let here = |activity: &&Arc<_>| {
                    let activity: &tensact::telemetry::Activity = activity;
                    activity.chips.contains(&chip) && activity.began == began && activity.ended > began
                };
                attempt.activities.iter().find(here).map(|activity| activity.doing.name())
            };
            for arrow in arrows::arrows(&attempt.activities) {
                assert!(arrow.from.1 <= arrow.to.1);
                assert_eq!(on(arrow.from), Some("send"));
                assert_eq!(on(arrow.to), Some("receive"));
                ways.insert((arrow.from.0.0, arrow.to.0.0));
            }
        }
    }
    assert_eq!(ways.into_iter().collect::<Vec<_>>(), [(0, 1), (1, 3), (1, 5), (2, 1), (3, 5)]);
}

#[test]
fn what_is_no_trace_file_is_refused() {
    assert!(refused("").contains("it is empty"));
    assert!(refused("{\"traceEvents\":[]}").contains("expected `[`"));
    assert!(refused("[\n").contains("ends behind its first line"));
    assert!(refused("[\n{\"ph\":\"X\"}\n]\n").contains("line 2 does not say what it holds"));
    let newer = with("{}").replace("\"format\":1", "\"format\":2");
    assert!(refused(&newer).contains("as format 2, this one reads 1"), "{}", refused(&newer));
    assert!(refused("\u{0}\u{1}\n\u{2}").contains("expected `[`"));
    let missing = TraceFile::open(Path::new("no/such.json")).err().unwrap().to_string();
    assert!(missing.starts_with("no/such.json: "), "{missing}");
}

#[test]
fn a_wrong_line_is_named() {
    let activity =
        r#"{"ph":"X","name":"","cat":"activity","pid":1,"tid":1000,"ts":1,"dur":2,"args":{"kind":"pass",
        "cameras":1,"pipeline":0,"slice":0,"stage":"expert","layers":"0..1","chips":[0],
        "members":[{"trace":"00000000000000000000000000000001","request":0,"attempt":1}]}}"#
            .replace("\n        ", "");
    let request =
        r#"{"ph":"b","name":"request","cat":"request","id2":{"local":"1"},"pid":2,"tid":0,"ts":1,"args":{
        "trace":"00000000000000000000000000000001","number":0,"outcome":"done","submitted":2,
        "attempts":[{"pipeline":0,"dispatched":3}],"ended":4}}"#
            .replace("\n        ", "");
    let good = with(&format!("{activity},\n{request}"));
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(good.as_bytes()).unwrap();
    let records: Vec<_> = TraceFile::open(file.path()).unwrap().collect();
    // The list ends without its last event, which is said behind everything that it holds.
    assert_eq!(records.len(), 3);
    assert!(records[2].as_ref().unwrap_err().to_string().contains("line 5: the list ends without"));

    for (text, from, to, reason) in [
        (&activity, "\"ts\":1", "\"ts\":-1", "-1 is no time"),
        (&activity, "\"ts\":1", "\"ts\":1e300", "is no time"),
        (&activity, "\"dur\":2,", "", "how long it took"),
        (&activity, "\"attempt\":1", "\"attempt\":0", "attempt 0"),
        (&activity, "0..1", "1..0", "layers"),
        (&activity, "\"kind\":\"pass\"", "\"kind\":\"dance\"", "dance"),
        (&activity, "00000000000000000000000000000001", "1", "32 hexadecimal digits"),
        (&request, "\"ended\":4", "\"ended\":2", "not in this order"),
        (&request, "\"submitted\":2", "\"submitted\":0", "not in this order"),
        (&request, "done", "gone", "gone"),
        (&request, "}", "", "EOF"),
    ] {
        let broken = text.replacen(from, to, 1);
        assert_ne!(&broken, text);
        let message = refused(&with(&broken));
        assert!(message.contains("line 3: ") && message.contains(reason), "{reason:?} not in {message}");
    }
}

#[test]
fn a_summary_adds_up() {
    let Journaled { records, .. } = journaled(&["crash".parse().unwrap()]);
    let mut summary = Summary::default();
    for record in &records {
        let path = summary.add(record);
        if let (Record::Request(request), Some(path)) = (record, path) {
            let rows = rows(request, &path);
            let sum: f64 = rows.iter().map(|row| row.ms).sum();
            assert!((sum - request.latency().as_secs_f64() * 1e3).abs() < 1e-6);
            assert!(rows.len() <= path.len());
        }
    }
    let parts = summary.parts().unwrap();
    let sum = parts.preprocess_ms + parts.queue_ms + parts.vision_ms + parts.prefix_ms + parts.denoise_ms;
    let sum = sum + parts.transfers_ms + parts.waits_ms;
    assert!(parts.queue_ms > 0.0 && parts.waits_ms > 0.0, "{parts:?}");
    assert!((sum - summary.latencies().unwrap().mean).abs() < 1e-6, "{parts:?}");
    for (chip, share) in summary.chips() {
        assert!((share.busy() + share.idle - 1.0).abs() < 1e-9 && share.idle >= 0.0, "{chip}: {share:?}");
    }
    let (slowest, _) = summary.slowest().unwrap();
    assert_eq!(slowest.latency().as_secs_f64() * 1e3, summary.latencies().unwrap().max);
}

#[test]
fn layers_and_their_transfers_are_one_row() {
    let Journaled { records, .. } = journaled(&[]);
    let mut summary = Summary::default();
    let (mut passes, mut waited) = (Vec::new(), false);
    for record in &records {
        let path = summary.add(record);
        if let (Record::Request(request), Some(path)) = (record, path) {
            let rows = rows(request, &path);
            assert!(rows.len() < 30, "{rows:#?}");
            waited |= rows.windows(2).any(|pair| {
                pair[0].what.starts_with("wait for chip 5")
                    && pair[1].what.starts_with("denoising steps 0 to ")
            });
            passes.extend(rows.into_iter().map(|row| (row.times, row.what)));
        }
    }
    let whole = |(times, what): &(usize, String)| {
        *times == 9
            && what.starts_with("prefix layers 9..18 on chip 3; ")
            && what.contains(" ms of transfers with chip 5")
    };
    assert!(passes.iter().any(whole), "{passes:#?}");
    assert!(waited, "what is waited for behind a pass is a row of its own: {passes:#?}");
}

#[test]
fn what_does_not_fit_is_counted() {
    let mut bytes = Vec::new();
    let run = Run::new("a test", Subject::Robots { server: "ws://here".into(), robots: 1 });
    let mut writer = TraceWriter::new(&mut bytes, &run).unwrap();
    let lost = LeftOut { activities: 3, requests: 1 };
    writer.left_out(Duration::from_millis(5), lost).unwrap();
    let asked = Asked {
        robot: 0,
        began: Duration::from_millis(1),
        took: Duration::from_millis(10),
        outcome: "answered".into(),
        trace_id: Some("1".repeat(32)),
        parts: vec![("vision".into(), 2.0), ("denoise".into(), 4.5)],
    };
    writer.asked(&asked).unwrap();
    let written = writer.finish().unwrap();
    assert_eq!(written, Written { activities: 0, requests: 1, left_out: lost });
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let (records, ending) = read(file.path());
    assert_eq!(records, [Record::LeftOut(lost), Record::Asked(asked)]);
    assert_eq!(ending, Ending::Whole(written));
}

#[test]
fn nobody_waits_for_a_slow_disk() {
    // A pipe that nobody reads for now is as slow as a disk can be.
    let (mut disk, pipe) = std::io::pipe().unwrap();
    let run = Run::new("a test", Subject::board("b", "emulated", &Default::default()));
    let file = std::fs::File::from(std::os::fd::OwnedFd::from(pipe));
    let recording = Recording::start(Path::new("pipe"), file, &run, Full::LeaveOut).unwrap();
    let mut listener = recording.listener();
    let Journaled { records, .. } = journaled(&[]);
    let activities = records.iter().filter_map(|record| match record {
        Record::Activity(activity) => Some(activity),
        _ => None,
    });
    const TOLD: usize = 100_000;
    activities.cycle().take(TOLD).for_each(|activity| listener(Entry::Activity(activity)));
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        disk.read_to_end(&mut text).unwrap();
        text
    });
    let written = recording.finish().unwrap();
    let lost = written.left_out.activities;
    assert!(lost > 0 && written.activities + lost == TOLD as u64, "{written:?}");
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&reader.join().unwrap()).unwrap();
    let (records, ending) = read(file.path());
    assert_eq!(ending, Ending::Whole(written));
    let said = records.iter().filter_map(|record| match record {
        Record::LeftOut(left_out) => Some(left_out.activities),
        _ => None,
    });
    assert_eq!(said.sum::<u64>(), lost);
}
