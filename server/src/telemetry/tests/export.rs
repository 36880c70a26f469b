//! Metrics over OTLP, to collectors that are there, and to one that is not.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::*;
use crate::telemetry::otlp::Otlp;

/// What a collector got: the header `x-key`, and the metrics.
type Got = (Option<String>, ExportMetricsServiceRequest);

struct Collector(mpsc::UnboundedSender<Got>);

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        let key = request.metadata().get("x-key").map(|value| value.to_str().unwrap().to_owned());
        let _ = self.0.send((key, request.into_inner()));
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

async fn grpc() -> (SocketAddr, mpsc::UnboundedReceiver<Got>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(MetricsServiceServer::new(Collector(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, receiver)
}

async fn http() -> (SocketAddr, mpsc::UnboundedReceiver<Got>) {
    async fn take(State(sender): State<mpsc::UnboundedSender<Got>>, headers: HeaderMap, body: Bytes) {
        let key = headers.get("x-key").map(|value| value.to_str().unwrap().to_owned());
        let _ = sender.send((key, prost::Message::decode(body).unwrap()));
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/metrics", post(take)).with_state(sender);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, receiver)
}

/// Metrics that go to a collector every `interval` milliseconds.
fn exporting(address: SocketAddr, protocol: &str, interval: u32) -> Metrics {
    let variables: BTreeMap<&str, String> = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.into()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b".into()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000".into()),
        ("OTEL_METRIC_EXPORT_INTERVAL", interval.to_string()),
        ("OTEL_TRACES_EXPORTER", "none".into()),
    ]
    .into();
    let otlp = Otlp::from_variables(&|name| variables.get(name).cloned()).unwrap();
    Metrics::new(otlp.resource, otlp.metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn collectors_get_all_that_prometheus_gets() {
    for protocol in ["grpc", "http/protobuf"] {
        let (address, mut collected) = if protocol == "grpc" { grpc().await } else { http().await };
        let metrics = exporting(address, protocol, 3_600_000);
        fill(&metrics);
        let text = metrics.text();
        tokio::task::spawn_blocking(move || metrics.shut_down()).await.unwrap();
        let (key, got) = collected.recv().await.unwrap();
        assert_eq!(key.as_deref(), Some("a b"), "{protocol}");
        let resource = got.resource_metrics[0].resource.as_ref().unwrap();
        assert!(format!("{resource:?}").contains("StringValue(\"tensact\")"), "{resource:?}");
        let names: Vec<&String> =
            got.resource_metrics[0].scope_metrics[0].metrics.iter().map(|metric| &metric.name).collect();
        // Beside what describes the service.
        let families = text.lines().filter(|line| line.starts_with("# TYPE")).count() - 1;
        assert_eq!(names.len(), families, "{protocol}: {names:?}\n{text}");
        for name in names {
            assert!(text.contains(&format!("# TYPE {}", name.replace('.', "_"))), "{protocol}: {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_takes_and_never_answers_holds_nobody_up() {
    // Connections are accepted by the operating system, and nobody reads them.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for protocol in ["grpc", "http/protobuf"] {
        let metrics = exporting(deaf.local_addr().unwrap(), protocol, 1);
        // The export has begun when the collector has a connection, and ends when that closes.
        let _connection = deaf.accept().unwrap();
        fill(&metrics);
        let text = metrics.text();
        assert!(text.contains("tensact_requests_total{tensact_outcome=\"done\"} 3"), "{protocol}: {text}");
        // Nobody waits for its thread.
        std::mem::forget(metrics);
    }
}
