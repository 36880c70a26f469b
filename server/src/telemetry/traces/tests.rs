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
use tensact::runtime::checkpoint::synth::SynthSize;
use tensact::runtime::observation::Observation;
use tensact::telemetry::Outcome;
use tensact::topology::{Deployment, ModelSizes, Variant};
use tensact::{Options, Pipeline, Request};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status, transport};

use super::*;
use crate::telemetry::otlp::Otlp;

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

/// What sends spans to a collector.
fn traces(address: SocketAddr, sampler: &str) -> Traces {
    let variables = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".into()),
        ("OTEL_METRICS_EXPORTER", "none".into()),
        ("OTEL_TRACES_SAMPLER", sampler.into()),
    ]);
    let get = |name: &str| variables.get(name).cloned();
    let Otlp { resource, spans, .. } = Otlp::read(&get).unwrap();
    Traces::new(spans.unwrap(), &resource, Sampling::read(&get).unwrap())
}

/// Four slices on four chips, two requests in a pass.
const DEPLOYMENT: &str = r#"
board = "quietbox-bh"
checkpoint = ""
[batching]
max_requests = 2
max_in_flight = 8
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

async fn pipeline() -> Pipeline {
    let deployment = Deployment::parse("test", DEPLOYMENT).unwrap();
    let sizes: ModelSizes = SynthSize::Tiny.sizes(Variant::Pi0);
    Pipeline::emulated(&deployment, &sizes, &Options::default()).await.unwrap()
}

/// Requests through a pipeline, as a server sends them.
async fn serve(pipeline: &Arc<Pipeline>, traces: &Arc<Traces>, requests: usize) -> Vec<TraceContext> {
    let journal = Arc::clone(pipeline.journal());
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..requests {
        let (pipeline, traces, journal) = (Arc::clone(pipeline), Arc::clone(traces), Arc::clone(&journal));
        asking.spawn(async move {
            let parent = (number % 2 == 0).then(|| format!("00-{:032x}-{:016x}-01", number + 1, number + 1));
            let context = TraceContext::new(parent.as_deref(), None);
            let arrived = SystemTime::now();
            let observation =
                Observation { state: vec![0.0; 8], prompt: Some("go".into()), ..Observation::default() };
            let request = Request { trace: Some(context.trace), ..Request::default() };
            pipeline.infer(observation, request).await.unwrap();
            let ended = Ended {
                context: context.clone(),
                name: "observation",
                robot: Some("arm".into()),
                outcome: Outcome::Done.name(),
                problem: None,
                arrived,
                read: arrived + Duration::from_micros(1),
                answered: SystemTime::now(),
            };
            traces.ended(ended, Some(&journal));
            context
        });
        // As many at a time as may wait.
        while asking.len() >= 32 {
            asking.join_next().await;
        }
    }
    // Whoever is done is known by the journal.
    asking.join_all().await;
    journal.requests().iter().map(|request| context_of(request)).collect()
}

fn context_of(request: &RequestTrace) -> TraceContext {
    TraceContext { trace: request.trace, span: 1.into(), parent: None }
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
    let (pipeline, traces) = (Arc::new(pipeline().await), Arc::new(traces(address, "always_on")));
    let contexts = serve(&pipeline, &traces, 1000).await;
    assert_eq!(contexts.len(), 1000);
    let sent = Arc::clone(&traces);
    tokio::task::spawn_blocking(move || sent.shut_down(Duration::from_secs(60))).await.unwrap();

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
        assert_eq!((called("vision").len(), called("prefix").len()), (1, 1));
        let mut stepped: Vec<usize> = called("denoise step")
            .iter()
            .map(|span| text(span, "tensact.step").unwrap().parse().unwrap())
            .collect();
        stepped.sort_unstable();
        assert_eq!(stepped, (0..steps).collect::<Vec<_>>());
        for send in called("send") {
            assert!(text(send, "tensact.bytes").unwrap().parse::<u64>().unwrap() > 0);
            assert_eq!(text(send, "tensact.transport").as_deref(), Some("socket"));
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
        let traces = Arc::new(address.map_or_else(Traces::default, |address| traces(address, "always_on")));
        assert_eq!(traces.is_on(), address.is_some());
        let pipeline = Arc::new(pipeline().await);
        // As a request that waited for a collector would not be answered in its time.
        let served = tokio::time::timeout(Duration::from_secs(60), serve(&pipeline, &traces, 200)).await;
        assert_eq!(served.unwrap().len(), 200);
        let end = tokio::task::spawn_blocking(move || traces.shut_down(Duration::from_millis(200)));
        tokio::time::timeout(Duration::from_secs(60), end).await.unwrap().unwrap();
    }
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
    let fast = Duration::from_millis(10);
    let none = sampling("always_off", "").unwrap().slow(Some(Duration::from_millis(100)));
    let wants = |outcome, took| none.wants(&TraceContext::new(None, None), "observation", outcome, took);
    assert!(!wants("done", fast) && !wants("superseded", fast) && !wants("bad_request", fast));
    assert!(wants("done", Duration::from_millis(101)) && wants("failed", fast) && wants("expired", fast));

    let default = Sampling::default();
    assert!(default.wants(&TraceContext::new(None, None), "observation", "done", fast));
    assert!(default.wants(&parent("01"), "observation", "done", fast));
    assert!(!default.wants(&parent("00"), "observation", "done", fast), "the caller decides");
    let half = sampling("traceidratio", "0.5").unwrap();
    let wanted =
        (0..1000).filter(|_| half.wants(&TraceContext::new(None, None), "observation", "done", fast)).count();
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
