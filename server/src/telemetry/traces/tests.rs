//! A collector that speaks gRPC, and collectors that do not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tensact::runtime::checkpoint::synth::SynthSize;
use tensact::topology::{Deployment, ModelSizes, Variant};
use tensact::{Options, Pipeline};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status, transport};

use super::*;
use crate::auth::ApiKeys;
use crate::config::Config;
use crate::failure::Failure;
use crate::openpi::Answer;
use crate::serving::{Caller, Format, Serving};
use crate::telemetry::otlp::Otlp;
use crate::tests::robot::{image, observation, with};
use crate::wire::{Value, write_msgpack};

/// What a collector got.
type Got = Arc<Mutex<Vec<Span>>>;

struct Collector(Got);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans;
        let spans = spans.into_iter().flat_map(|spans| spans.scope_spans).flat_map(|spans| spans.spans);
        locked(&self.0).extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on a free port.
async fn collector() -> (SocketAddr, Got) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, got) = (listener.local_addr().unwrap(), Got::default());
    let service = TraceServiceServer::new(Collector(Arc::clone(&got)));
    let server = transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, got)
}

/// A server of three slices on four emulated chips, two requests in a pass and cameras dealt out to two chips, whose spans go to a collector, if there is one.
async fn server(collector: Option<SocketAddr>, sampler: &str) -> Arc<Serving> {
    let variables = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
        ("OTEL_METRICS_EXPORTER", "none".into()),
        ("OTEL_TRACES_SAMPLER", sampler.into()),
    ]);
    let endpoint = collector.map(|address| format!("http://{address}"));
    let otlp = Otlp::from_variables(&|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => endpoint.clone(),
        name => variables.get(name).cloned(),
    });
    let serving = Serving::new(Config::default(), ApiKeys::default(), otlp.unwrap());
    let deployment = Deployment::parse("test", DEPLOYMENT).unwrap();
    let sizes: ModelSizes = SynthSize::Tiny.sizes(Variant::Pi0);
    serving.load(Pipeline::emulated(&deployment, &sizes, &Options::default()).await.unwrap());
    serving
}

const DEPLOYMENT: &str = r#"
board = "quietbox-bh"
checkpoint = ""
[batching]
max_requests = 2
max_in_flight = 8
[[pipeline]]
[[pipeline.stage]]
kind = "vision"
chips = [0, 2]
split = "cameras"
[[pipeline.stage]]
kind = "prefix"
chips = [1]
[[pipeline.stage]]
kind = "expert"
chips = [3]
"#;

/// The observation with a second image.
fn two_cameras(observation: Value<'static>) -> Value<'static> {
    let Value::Map(mut map) = observation else { unreachable!("observations are maps") };
    map.insert("images/left_wrist".into(), image(1));
    Value::Map(map)
}

/// As a robot's connection asks.
async fn answer(serving: &Arc<Serving>, message: &Value<'_>) -> Result<Answer, Failure> {
    let (message, mut context) = (write_msgpack(message).into(), TraceContext::new(None, None));
    serving.answer(message, Format::Msgpack, &Caller::default(), "observation", &mut context).await
}

/// Asks for actions so many times, every other time within a trace that has the request's number.
async fn ask(serving: &Arc<Serving>, requests: usize) {
    let mut asking = JoinSet::new();
    for number in 1..=requests {
        let serving = Arc::clone(serving);
        asking.spawn(async move {
            let parent = format!("00-{number:032x}-{number:016x}-01");
            let message = match number % 2 {
                0 => with(0, "traceparent", Value::text(parent)),
                _ => observation(0),
            };
            let message = two_cameras(message);
            answer(&serving, &message).await.unwrap();
        });
        // As many at a time as may wait.
        while asking.len() >= 32 {
            asking.join_next().await.unwrap().unwrap();
        }
    }
    asking.join_all().await;
}

/// Sends what is left.
async fn end(serving: &Arc<Serving>, grace: Duration) {
    let serving = Arc::clone(serving);
    let end = tokio::task::spawn_blocking(move || serving.traces.shut_down(grace));
    tokio::time::timeout(Duration::from_secs(60), end).await.unwrap().unwrap();
}

fn text(span: &Span, name: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_every_span_of_a_thousand_requests() {
    let (address, got) = collector().await;
    let serving = server(Some(address), "always_on").await;
    ask(&serving, 1000).await;
    end(&serving, Duration::from_secs(30)).await;

    let mut by_trace: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
    for span in locked(&got).drain(..) {
        by_trace.entry(span.trace_id.clone()).or_default().push(span);
    }
    assert_eq!(by_trace.len(), 1000);
    let steps = SynthSize::Tiny.sizes(Variant::Pi0).steps;
    let all: BTreeSet<(Vec<u8>, Vec<u8>)> =
        by_trace.values().flatten().map(|span| (span.trace_id.clone(), span.span_id.clone())).collect();
    let mut in_company = 0;
    for (trace, spans) in &by_trace {
        let ids: BTreeMap<&[u8], &Span> = spans.iter().map(|span| (&*span.span_id, span)).collect();
        assert_eq!(ids.len(), spans.len(), "a span stands for one thing");
        let called = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
        let [root] = called("observation")[..] else { panic!("one span is the server's") };
        let number = u128::from_be_bytes(trace.clone().try_into().unwrap());
        match number {
            1..=1000 => assert_eq!(root.parent_span_id, (number as u64).to_be_bytes()),
            _ => assert!(root.parent_span_id.is_empty()),
        }
        let [attempt] = called("pipeline")[..] else { panic!("one attempt") };
        assert_eq!(attempt.parent_span_id, root.span_id);
        for name in ["vision", "prefix", "denoise step", "send", "receive", "wait"] {
            assert!(called(name).iter().all(|span| span.parent_span_id == attempt.span_id), "{name}");
        }
        for name in ["read", "preprocess"] {
            assert!(called(name).iter().all(|span| span.parent_span_id == root.span_id), "{name}");
        }
        // Two images, on two chips.
        assert_eq!((called("vision").len(), called("prefix").len(), called("upload").len()), (2, 1, 1));
        let mut stepped: Vec<usize> = called("denoise step")
            .iter()
            .map(|span| text(span, "tensact.step").unwrap().parse().unwrap())
            .collect();
        stepped.sort_unstable();
        assert_eq!(stepped, (0..steps).collect::<Vec<_>>());
        for send in called("send") {
            assert!(text(send, "tensact.bytes").unwrap().parse::<u64>().unwrap() > 0);
            // Chip 2 and chip 1 share no link.
            let by = if text(send, "tensact.stage").as_deref() == Some("vision") { "host" } else { "socket" };
            assert_eq!(text(send, "tensact.transport").as_deref(), Some(by));
        }
        for span in spans {
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
            for link in &span.links {
                in_company += 1;
                assert!(all.contains(&(link.trace_id.clone(), link.span_id.clone())), "{} links", span.name);
            }
        }
        assert_eq!(text(root, "tensact.outcome").as_deref(), Some("done"));
    }
    assert!(in_company > 0, "some batches have two members");
}

#[tokio::test(flavor = "multi_thread")]
async fn collectors_that_hang_or_are_gone_hold_nothing_up() {
    // One takes connections and says nothing; nobody listens where the other was.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let addresses = [Some(silent.local_addr().unwrap()), Some(gone), None];
    for address in addresses {
        let serving = server(address, "always_on").await;
        assert_eq!(serving.traces.is_on(), address.is_some());
        // Were a request to wait for a collector, this would not end.
        tokio::time::timeout(Duration::from_secs(60), ask(&serving, 200)).await.unwrap();
        end(&serving, Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_requests_that_nobody_sampled_those_that_failed_are_sent() {
    let (address, got) = collector().await;
    let serving = server(Some(address), "always_off").await;
    ask(&serving, 3).await;
    let hopeless = with(0, "deadline_ms", Value::Float(1e-3));
    assert!(answer(&serving, &hopeless).await.is_err());
    end(&serving, Duration::from_secs(30)).await;
    let roots: Vec<Span> = locked(&got).drain(..).filter(|span| span.name == "observation").collect();
    let [root] = &roots[..] else { panic!("{} requests were sent", roots.len()) };
    let outcome = text(root, "tensact.outcome").unwrap();
    assert!(["expired", "deadline_impossible"].contains(&&*outcome), "{outcome}");
    assert_eq!(text(root, "error.type"), Some(outcome));
    assert_eq!(root.status.as_ref().unwrap().code, i32::from(StatusCode::Error));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_trace_are_told_apart() {
    let (address, got) = collector().await;
    let serving = server(Some(address), "always_on").await;
    let parent = || Value::text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let mut asking = JoinSet::new();
    for number in 0..20 {
        let (serving, parent) = (Arc::clone(&serving), parent());
        asking.spawn(async move {
            let bad = number == 7;
            let message = with(0, "traceparent", parent);
            let message = if bad { with(0, "state", Value::Nil) } else { message };
            assert_eq!(answer(&serving, &message).await.is_err(), bad);
        });
    }
    asking.join_all().await;
    end(&serving, Duration::from_secs(30)).await;
    let spans: Vec<Span> = locked(&got).drain(..).collect();
    let ids: BTreeSet<&[u8]> = spans.iter().map(|span| &*span.span_id).collect();
    assert_eq!(ids.len(), spans.len());
    let steps = SynthSize::Tiny.sizes(Variant::Pi0).steps;
    for root in spans.iter().filter(|span| span.name == "observation") {
        let attempts: Vec<&Span> = spans
            .iter()
            .filter(|span| span.name == "pipeline" && span.parent_span_id == root.span_id)
            .collect();
        let done = text(root, "tensact.outcome").as_deref() == Some("done");
        assert_eq!(attempts.len(), usize::from(done));
        for attempt in attempts {
            let below = spans.iter().filter(|span| span.parent_span_id == attempt.span_id);
            assert_eq!(below.filter(|span| span.name == "denoise step").count(), steps);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_given_up_is_told_with_what_was_done_for_it() {
    let (address, got) = collector().await;
    let serving = server(Some(address), "always_off").await;
    let pipeline = Arc::clone(&serving.policy().unwrap().pipeline);
    let (asked, message) = (Arc::clone(&serving), observation(0));
    let asking = tokio::spawn(async move { answer(&asked, &message).await.map(drop) });
    while pipeline.stats().await.pipelines[0].in_flight == 0 {
        tokio::task::yield_now().await;
    }
    asking.abort();
    assert!(asking.await.is_err());
    pipeline.drain().await;
    end(&serving, Duration::from_secs(30)).await;
    let spans: Vec<Span> = locked(&got).drain(..).collect();
    let root = spans.iter().find(|span| span.name == "observation").unwrap();
    assert_eq!(text(root, "tensact.outcome").as_deref(), Some("cancelled"));
    assert!(spans.iter().any(|span| span.name == "pipeline" && span.parent_span_id == root.span_id));
}

#[test]
fn whoever_was_slow_failed_or_late_is_wanted() {
    let sampling = |sampler: &str, argument: &str| {
        let (sampler, argument) = (sampler.to_owned(), argument.to_owned());
        Sampling::read(&move |name| {
            Some(if name.ends_with("ARG") { argument.clone() } else { sampler.clone() })
        })
    };
    let parent =
        |sampled: &str| TraceContext::new(Some(&format!("00-{:032x}-{:016x}-{sampled}", 7, 9)), None);
    let (new, fast) = (|| TraceContext::new(None, None), Duration::from_millis(10));
    let ended = |context, outcome, took: Duration, late| Ended {
        context,
        name: "observation",
        robot: None,
        outcome,
        problem: None,
        arrived: SystemTime::UNIX_EPOCH,
        read: SystemTime::UNIX_EPOCH,
        answered: SystemTime::UNIX_EPOCH + took,
        late,
    };
    let none = sampling("always_off", "").unwrap().slow(Some(Duration::from_millis(100)));
    let wants = |outcome, took, late| none.wants(&ended(new(), outcome, took, late));
    for outcome in ["done", "superseded", "queue_full", "bad_request"] {
        assert!(!wants(outcome, fast, false), "{outcome}");
    }
    for outcome in ["failed", "expired", "deadline_impossible", "out_of_service", "cancelled"] {
        assert!(wants(outcome, fast, false), "{outcome}");
    }
    assert!(wants("done", Duration::from_millis(101), false) && wants("done", fast, true));

    let default = |context| Sampling::default().wants(&ended(context, "done", fast, false));
    assert!(default(new()) && default(parent("01")));
    assert!(!default(parent("00")), "the caller decides");
    let half = sampling("traceidratio", "0.5").unwrap();
    let wanted = (0..1000).filter(|_| half.wants(&ended(new(), "done", fast, false))).count();
    assert!((350..650).contains(&wanted), "{wanted} of 1000");

    for (sampler, argument, told) in [
        ("sometimes", "", "OTEL_TRACES_SAMPLER: it is `sometimes`"),
        ("traceidratio", "2", "OTEL_TRACES_SAMPLER_ARG: it is `2`"),
        ("parentbased_traceidratio", "half", "OTEL_TRACES_SAMPLER_ARG: it is `half`"),
    ] {
        assert!(sampling(sampler, argument).unwrap_err().to_string().starts_with(told), "{sampler}");
    }
}

#[test]
fn a_parent_that_cannot_be_read_is_none() {
    for parent in ["", "00-1-2-01", "00-00000000000000000000000000000000-0000000000000001-01", "ü"] {
        let context = TraceContext::new(Some(parent), None);
        assert!(context.parent.is_none(), "{parent}");
    }
    let context = TraceContext::new(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), None);
    assert_eq!(context.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(context.parent.unwrap().span_id().to_string(), "b7ad6b7169203331");
}
