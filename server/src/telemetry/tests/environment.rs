//! What the environment may say about OTLP.

use crate::telemetry::otlp::{Otlp, OtlpError};

fn read(variables: &[(&str, &str)]) -> Result<Otlp, OtlpError> {
    Otlp::from_variables(&|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

/// Whether spans and metrics are sent.
fn sent(variables: &[(&str, &str)]) -> (bool, bool) {
    let otlp = read(variables).unwrap();
    (otlp.spans.is_some(), otlp.metrics.is_some())
}

#[tokio::test]
async fn nothing_is_sent_unless_asked_for() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
    assert_eq!(sent(&[]), (false, false));
    assert_eq!(sent(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_SERVICE_NAME", "x")]), (false, false));
    assert_eq!(sent(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), (false, false), "empty is not set");
    assert_eq!(sent(&[endpoint]), (true, true));
    assert_eq!(sent(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:1/x")]), (true, false));
    assert_eq!(sent(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://a:1/x")]), (false, true));
    assert_eq!(sent(&[("OTEL_METRICS_EXPORTER", "otlp")]), (false, true));
    assert_eq!(sent(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), (false, true));
    assert_eq!(sent(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), (false, false));
    assert_eq!(sent(&[endpoint, ("OTEL_SDK_DISABLED", "false")]), (true, true));
    assert_eq!(
        sent(&[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]),
        (true, false)
    );
}

#[tokio::test]
async fn what_is_no_good_is_named() {
    let pem = tempfile::NamedTempFile::new().unwrap();
    let on = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost:4318");
    for (variable, value, expected) in [
        ("OTEL_TRACES_EXPORTER", "console", "OTEL_TRACES_EXPORTER: it is `console`; expected otlp or none"),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "http/json",
            "OTEL_EXPORTER_OTLP_PROTOCOL: it is `http/json`; expected grpc or http/protobuf",
        ),
        (
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
            "tcp",
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: it is `tcp`; expected grpc or http/protobuf",
        ),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "localhost:4318",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: it is `localhost:4318` names no server by http:// or https://; \
             expected an address such as http://localhost:4318, or 4317 for grpc",
        ),
        (
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "10s",
            "OTEL_EXPORTER_OTLP_TIMEOUT: it is `10s`; expected a whole number of milliseconds above 0",
        ),
        (
            "OTEL_METRIC_EXPORT_INTERVAL",
            "0",
            "OTEL_METRIC_EXPORT_INTERVAL: it is `0`; expected a whole number of milliseconds above 0",
        ),
        (
            "OTEL_EXPORTER_OTLP_COMPRESSION",
            "gzip",
            "OTEL_EXPORTER_OTLP_COMPRESSION: it is `gzip`; expected none: nothing is compressed",
        ),
        (
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            "now",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: it is `now`; expected cumulative, delta or lowmemory",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "a=1,secret",
            "OTEL_EXPORTER_OTLP_HEADERS: entry 2 names no value; \
             expected name=value,name=value with %XX for special characters",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "sp ace=1",
            "OTEL_EXPORTER_OTLP_HEADERS: `sp ace` and its value are no HTTP header; \
             expected name=value,name=value with %XX for special characters",
        ),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "site",
            "OTEL_RESOURCE_ATTRIBUTES: entry 1 names no value; \
             expected name=value,name=value with %XX for special characters",
        ),
        (
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "/nowhere.pem",
            "OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere.pem: No such file or directory (os error 2); \
             expected a PEM file with certificates",
        ),
        (
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            pem.path().to_str().unwrap(),
            &format!(
                "OTEL_EXPORTER_OTLP_CERTIFICATE: {}: it holds no certificate; expected a PEM file with certificates",
                pem.path().display()
            ),
        ),
    ] {
        let error = read(&[on, (variable, value)]).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
    let error = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a b")]).unwrap_err().to_string();
    assert!(error.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: it is `http://a b`, "), "{error}");
}

#[tokio::test]
async fn certificates_are_taken_for_both_protocols() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("collector.pem");
    std::fs::write(&path, certificate.cert.pem()).unwrap();
    for protocol in ["grpc", "http/protobuf"] {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", path.to_str().unwrap()),
        ];
        assert_eq!(sent(&variables), (true, true));
        assert_eq!(sent(&variables[..2]), (true, true), "without one, the public authorities vouch");
    }
}

#[tokio::test]
async fn the_service_is_tensact_unless_it_is_named() {
    let name = |variables: &[(&str, &str)]| {
        let resource = read(variables).unwrap().resource;
        resource.get(&"service.name".into()).unwrap().to_string()
    };
    assert_eq!(name(&[]), "tensact");
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "site=hall%202, service.name=arms");
    assert_eq!(name(&[attributes]), "arms");
    assert_eq!(name(&[attributes, ("OTEL_SERVICE_NAME", "legs")]), "legs");
    let resource = read(&[attributes]).unwrap().resource;
    assert_eq!(resource.get(&"site".into()).unwrap().to_string(), "hall 2");
}
