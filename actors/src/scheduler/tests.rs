//! Admission, order and failures on emulated chips, in simulated time.

use std::sync::Arc;
use std::time::Duration;

use tensact_runtime::Tensor;
use tensact_runtime::model::ModelInput;
use tensact_runtime::model::flow::{Steps, noise};
use tensact_runtime::policy::Sample;
use tensact_topology::{Deployment, ModelSizes, Variant};

use crate::Refusal;
use crate::devices::{Arithmetic, Devices};
use crate::engine::{Engine, Pending};
use crate::simulate::{Fault, FaultKind, PlannedFaults, Simulation};

/// One chip that takes a request at a time, 54 ms each; two observations may wait.
const ONE: &str = r#"
board = "p150a"
checkpoint = "pi05_base"
[batching]
max_requests = 1
max_in_flight = 1
[admission]
queue = 2
[[pipeline]]
chips = [0]
"#;

/// Two such chips.
fn two() -> String {
    ONE.replace("p150a", "quietbox-bh").replace("chips = [0]", "copies = \"0..2\"")
}

async fn engine(text: &str, faults: Vec<Fault>) -> Engine {
    let deployment = Deployment::parse("test.toml", text).unwrap();
    let simulation = Simulation::new(&deployment, &ModelSizes::base(Variant::Pi05)).unwrap();
    let devices = Devices::load(&simulation.placement, &simulation.sizes, &Arithmetic::Digests).unwrap();
    Engine::start(simulation.blueprint(&PlannedFaults(faults), devices, None)).await
}

fn sample(seed: u64) -> Sample {
    let sizes = ModelSizes::base(Variant::Pi05);
    let image = || Some(Tensor::zeros([3, 1, 1]));
    let input = ModelInput { images: vec![image(), image()], tokens: vec![1; 48], state: vec![0.0; 32] };
    Sample { input, noise: noise(&sizes, seed), steps: Steps::new(10).unwrap(), guidance: None }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn submit(engine: &Engine, deadline: Option<u64>) -> Pending {
    engine.submit(sample(0), None, deadline.map(ms))
}

fn fault(at: u64, pipeline: usize, slice: usize, kind: FaultKind) -> Fault {
    Fault { at: ms(at), pipeline, slice, kind }
}

/// When it was answered, and how.
async fn ended(engine: &Engine, pending: Pending) -> (Duration, Result<(), Refusal>) {
    let outcome = pending.outcome().await.map(drop);
    (engine.clock.now(), outcome)
}

#[tokio::test(start_paused = true)]
async fn the_earliest_deadline_goes_first() {
    let engine = engine(ONE, Vec::new()).await;
    let running = submit(&engine, None);
    let (late, soon) = (submit(&engine, Some(900)), submit(&engine, Some(300)));
    let ((first, _), (third, _), (second, _)) =
        tokio::join!(ended(&engine, running), ended(&engine, late), ended(&engine, soon));
    assert!(first < second && second < third, "{first:?} {second:?} {third:?}");
}

#[tokio::test(start_paused = true)]
async fn of_a_robots_waiting_observations_the_newest_is_kept() {
    let engine = engine(ONE, Vec::new()).await;
    let robot: Arc<str> = "arm".into();
    let [running, older, newer] =
        [0, 1, 2].map(|seed| engine.submit(sample(seed), Some(Arc::clone(&robot)), None));
    assert_eq!(older.outcome().await.unwrap_err(), Refusal::Superseded { robot });
    assert!(running.outcome().await.is_ok() && newer.outcome().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_refused_at_once_with_its_numbers() {
    let engine = engine(ONE, Vec::new()).await;
    let admitted = [(); 3].map(|()| submit(&engine, None));
    let (at, outcome) = ended(&engine, submit(&engine, None)).await;
    assert_eq!((at, outcome), (Duration::ZERO, Err(Refusal::QueueFull { waiting: 2, capacity: 2 })));
    for pending in admitted {
        assert!(pending.outcome().await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_cannot_be_met_is_refused_at_once() {
    let engine = engine(ONE, Vec::new()).await;
    let (at, outcome) = ended(&engine, submit(&engine, Some(20))).await;
    let Err(Refusal::DeadlineImpossible { deadline_ms, expected_ms, ahead: 0 }) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(at.is_zero() && deadline_ms == 20.0 && (40.0..60.0).contains(&expected_ms), "{expected_ms}");
    // 60 ms are enough for one, not for one that has to wait for another.
    let running = submit(&engine, Some(60));
    let outcome = submit(&engine, Some(60)).outcome().await;
    assert!(
        matches!(outcome, Err(Refusal::DeadlineImpossible { expected_ms, .. }) if expected_ms > 80.0),
        "{outcome:?}"
    );
    assert!(running.outcome().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_has_missed_its_deadline_is_dropped() {
    // The prefix takes ten times as long as the model says.
    let slow = FaultKind::Slow { factor: 10.0, lasts: Duration::from_secs(10) };
    let engine = engine(ONE, vec![fault(0, 0, 1, slow)]).await;
    let (at, outcome) = ended(&engine, submit(&engine, Some(70))).await;
    let missed = Refusal::Expired { deadline_ms: 70.0, boundary: "a pipeline" };
    assert_eq!((at, outcome), (ms(70), Err(missed)));
    engine.drain().await;
    // *no-late-start*: the expert never began.
    assert_eq!(engine.recorder.slices(0)[2].passes, 0);
}

#[tokio::test(start_paused = true)]
async fn requests_go_where_they_end_first() {
    // A chip by itself takes 54 ms; three in a chain take less for one request.
    let text = r#"
board = "quietbox-bh"
checkpoint = "pi05_base"
[batching]
max_in_flight = 4
[[pipeline]]
chips = [2]
[[pipeline]]
[[pipeline.stage]]
kind = "vision"
chips = [0]
[[pipeline.stage]]
kind = "prefix"
chips = [1]
[[pipeline.stage]]
kind = "expert"
chips = [3]
"#;
    let engine = engine(text, Vec::new()).await;
    let pending = [(); 4].map(|()| submit(&engine, None));
    tokio::task::yield_now().await;
    let in_flight: Vec<usize> =
        engine.look().await.unwrap().pipelines.iter().map(|(_, count)| *count).collect();
    assert_eq!(in_flight, [2, 2], "the chain first, then by turns");
    for pending in pending {
        assert!(pending.outcome().await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_keeps_failing_takes_its_pipeline_out_of_service() {
    let faults = (0..6).map(|_| fault(0, 0, 2, FaultKind::Error)).collect();
    let engine = engine(&two(), faults).await;
    for _ in 0..20 {
        let pending = [submit(&engine, None), submit(&engine, None)];
        for pending in pending {
            assert!(pending.outcome().await.is_ok());
        }
    }
    let seen = engine.look().await.unwrap();
    assert_eq!(seen.pipelines, [(false, 0), (true, 0)]);
    assert_eq!((seen.counts.done, seen.counts.failed), (40, 0));
}

#[tokio::test(start_paused = true)]
async fn without_a_pipeline_in_service_everything_is_refused_with_the_cause() {
    let faults = (0..20).map(|_| fault(0, 0, 0, FaultKind::Crash)).collect();
    let engine = engine(ONE, faults).await;
    // A request that fails three times is given up; a fifth request that fails says that it is the device.
    for request in 1..=5 {
        let cause = match submit(&engine, None).outcome().await.unwrap_err() {
            Refusal::Failed { attempts: 3, cause } if request < 5 => cause,
            Refusal::OutOfService { pipelines: 1, cause } if request == 5 => cause,
            other => panic!("request {request}: {other}"),
        };
        assert!(cause.contains("vision layers 0..27") && cause.contains("injected crash"), "{cause}");
    }
    let after = submit(&engine, None).outcome().await.unwrap_err();
    assert!(matches!(after, Refusal::OutOfService { .. }), "{after}");
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_does_not_answer_is_given_up() {
    let forever = FaultKind::Stall(Duration::from_secs(100_000));
    let engine = engine(&two(), vec![fault(0, 0, 1, forever)]).await;
    let (at, outcome) = ended(&engine, submit(&engine, None)).await;
    assert!(outcome.is_ok() && at < Duration::from_secs(2), "{outcome:?} after {at:?}");
    let alone = self::engine(ONE, vec![fault(0, 0, 1, forever)]).await;
    let pending = [submit(&alone, None), submit(&alone, None)];
    for pending in pending {
        let (at, outcome) = ended(&alone, pending).await;
        assert!(matches!(outcome, Err(Refusal::OutOfService { .. })), "{outcome:?}");
        assert!(at < Duration::from_secs(10), "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_was_admitted_and_takes_nothing_new() {
    let engine = engine(ONE, Vec::new()).await;
    let admitted = [(); 3].map(|()| submit(&engine, None));
    let (_, late) = tokio::join!(engine.drain(), async { submit(&engine, None).outcome().await });
    assert_eq!(late.unwrap_err(), Refusal::Closed);
    for pending in admitted {
        assert!(pending.outcome().await.is_ok());
    }
}
