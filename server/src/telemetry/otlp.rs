//! Where telemetry is sent, besides `/metrics` and the log: OpenTelemetry's own environment variables, read once at start.
//! Nothing is sent unless they name a collector or ask for one. Exporters work on threads of their own: a collector that is
//! slow or gone costs telemetry, not answers.

mod exporters;

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Uri};
use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use percent_encoding::percent_decode_str;

use super::traces::Sampling;

/// The service's name unless it is given another.
const SERVICE: &str = "tensact";

/// Telemetry cannot be sent as the environment says.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// A variable is no good. What it holds may be a secret, so `wrong` says only what may be said.
    #[error("{variable}: {wrong}; expected {expected}")]
    Variable {
        /// Its name.
        variable: String,
        /// What is wrong with it.
        wrong: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Certificates cannot be used.
    #[error("{variable}: {}: {source}; expected a PEM file with certificates", path.display())]
    Certificates {
        /// The variable that names the file.
        variable: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An exporter cannot be made.
    #[error("the exporter of {signal} cannot be made: {source}")]
    Exporter {
        /// Of what.
        signal: &'static str,
        /// Why.
        source: ExporterBuildError,
    },
    /// The HTTP client cannot be made.
    #[error("no HTTP client to send {signal} with: {reason}")]
    Client {
        /// What would be sent.
        signal: &'static str,
        /// Why.
        reason: String,
    },
}

/// Metrics that are sent, and how often.
#[derive(Debug)]
pub(crate) struct MetricExport {
    pub(crate) exporter: MetricExporter,
    pub(crate) interval: Duration,
}

/// Who this is, and what is sent where.
#[derive(Debug)]
pub struct Otlp {
    pub(crate) resource: Resource,
    pub(crate) spans: Option<SpanExporter>,
    pub(crate) sampling: Sampling,
    pub(crate) metrics: Option<MetricExport>,
}

impl Default for Otlp {
    /// Nothing is sent.
    fn default() -> Self {
        let sampling = Sampling::default();
        Self { resource: resource(SERVICE.into(), Vec::new()), spans: None, sampling, metrics: None }
    }
}

impl Otlp {
    /// What the environment says: `OTEL_SDK_DISABLED`, `OTEL_{TRACES,METRICS}_EXPORTER`, `OTEL_EXPORTER_OTLP_*`,
    /// `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_TRACES_SAMPLER{,_ARG}`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`. Must be called within a tokio
    /// runtime, on which gRPC is spoken.
    ///
    /// # Errors
    /// Says which variable is no good, and what it may be.
    pub fn from_env() -> Result<Self, OtlpError> {
        Self::read(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// The same from elsewhere.
    pub(crate) fn read(get: &dyn Fn(&str) -> Option<String>) -> Result<Self, OtlpError> {
        let variables = Variables(get);
        let resource = variables.resource()?;
        let disabled =
            variables.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let wanted = |signal| Ok(!disabled && variables.wants(signal)?);
        let spans = match wanted(Signal::Traces)? {
            true => Some(variables.settings(Signal::Traces)?.spans()?),
            false => None,
        };
        let metrics = match wanted(Signal::Metrics)? {
            true => Some(MetricExport {
                exporter: variables.settings(Signal::Metrics)?.metrics(variables.temporality()?)?,
                interval: variables.milliseconds("OTEL_METRIC_EXPORT_INTERVAL")?.unwrap_or(INTERVAL),
            }),
            false => None,
        };
        Ok(Self { resource, spans, sampling: Sampling::read(get)?, metrics })
    }
}

/// Time between two exports of metrics unless told otherwise.
const INTERVAL: Duration = Duration::from_secs(60);

/// Time for an export, repetitions included, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Traces => "traces",
            Signal::Metrics => "metrics",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

/// How one signal is sent.
#[derive(Debug)]
struct Settings {
    signal: Signal,
    protocol: Protocol,
    /// With the signal's path, where that is usual.
    endpoint: Uri,
    timeout: Duration,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// PEM certificates, and the variable that names their file.
    certificates: Option<(String, PathBuf)>,
}

/// The environment. A variable that is empty is not set.
struct Variables<'e>(&'e dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, variable: &str) -> Option<String> {
        (self.0)(variable).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// What a signal's own variable says, or else the one of all signals; with the variable's name.
    fn of(&self, signal: Signal, what: &str) -> Option<(String, String)> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.name().to_uppercase());
        [own, format!("OTEL_EXPORTER_OTLP_{what}")].into_iter().find_map(|variable| {
            let value = self.get(&variable)?;
            Some((variable, value))
        })
    }

    fn wants(&self, signal: Signal) -> Result<bool, OtlpError> {
        let variable = format!("OTEL_{}_EXPORTER", signal.name().to_uppercase());
        match self.get(&variable).as_deref() {
            None => Ok(self.of(signal, "ENDPOINT").is_some()),
            Some("otlp") => Ok(true),
            Some("none") => Ok(false),
            Some(other) => Err(wrong(variable, is(other), "otlp or none")),
        }
    }

    fn settings(&self, signal: Signal) -> Result<Settings, OtlpError> {
        let protocol = match self.of(signal, "PROTOCOL") {
            None => Protocol::Http,
            Some((_, value)) if value == "http/protobuf" => Protocol::Http,
            Some((_, value)) if value == "grpc" => Protocol::Grpc,
            Some((variable, value)) => return Err(wrong(variable, is(&value), "grpc or http/protobuf")),
        };
        if let Some((variable, value)) = self.of(signal, "COMPRESSION")
            && value != "none"
        {
            return Err(wrong(variable, is(&value), "none: nothing is compressed"));
        }
        let headers = match self.of(signal, "HEADERS") {
            Some((variable, value)) => headers(&variable, &value)?,
            None => Vec::new(),
        };
        Ok(Settings {
            signal,
            protocol,
            endpoint: self.endpoint(signal, protocol)?,
            timeout: match self.of(signal, "TIMEOUT") {
                Some((variable, _)) => self.milliseconds(&variable)?.unwrap_or(TIMEOUT),
                None => TIMEOUT,
            },
            headers,
            certificates: self
                .of(signal, "CERTIFICATE")
                .map(|(variable, path)| (variable, Path::new(&path).to_owned())),
        })
    }

    fn endpoint(&self, signal: Signal, protocol: Protocol) -> Result<Uri, OtlpError> {
        let default = match protocol {
            Protocol::Grpc => "http://localhost:4317",
            Protocol::Http => "http://localhost:4318",
        };
        let (variable, mut endpoint) = self
            .of(signal, "ENDPOINT")
            .unwrap_or_else(|| ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), default.into()));
        let expected = "an address such as http://localhost:4318, or 4317 for grpc";
        let text = endpoint.clone();
        // Over HTTP, the endpoint of all signals is a folder, and that of one signal is the whole address.
        if protocol == Protocol::Http && variable == "OTEL_EXPORTER_OTLP_ENDPOINT" {
            endpoint = format!("{}/v1/{}", endpoint.trim_end_matches('/'), signal.name());
        }
        match endpoint.parse::<Uri>() {
            Ok(uri) if uri.host().is_none() || !matches!(uri.scheme_str(), Some("http" | "https")) => Err(
                wrong(variable, format!("{} names no server by http:// or https://", is(&text)), expected),
            ),
            Ok(uri) => Ok(uri),
            Err(error) => Err(wrong(variable, format!("{}, {error}", is(&text)), expected)),
        }
    }

    fn milliseconds(&self, variable: &str) -> Result<Option<Duration>, OtlpError> {
        let Some(value) = self.get(variable) else { return Ok(None) };
        match value.parse() {
            Ok(ms) if ms > 0 => Ok(Some(Duration::from_millis(ms))),
            _ => Err(wrong(variable, is(&value), "a whole number of milliseconds above 0")),
        }
    }

    fn temporality(&self) -> Result<Temporality, OtlpError> {
        let variable = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        let Some(value) = self.get(variable) else { return Ok(Temporality::Cumulative) };
        value.parse().map_err(|()| wrong(variable, is(&value), "cumulative, delta or lowmemory"))
    }

    fn resource(&self) -> Result<Resource, OtlpError> {
        let variable = "OTEL_RESOURCE_ATTRIBUTES";
        let attributes = match self.get(variable) {
            Some(list) => pairs(variable, &list)?,
            None => Vec::new(),
        };
        let named =
            attributes.iter().find(|(name, _)| name == "service.name").map(|(_, value)| value.clone());
        let name = self.get("OTEL_SERVICE_NAME").or(named).unwrap_or_else(|| SERVICE.into());
        Ok(resource(name, attributes))
    }
}

fn resource(name: String, attributes: Vec<(String, String)>) -> Resource {
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)))
        .with_attribute(KeyValue::new("service.name", name))
        .build()
}

fn headers(variable: &str, list: &str) -> Result<Vec<(HeaderName, HeaderValue)>, OtlpError> {
    let header = |(name, value): (String, String)| {
        let header = HeaderName::try_from(&name).ok().zip(HeaderValue::try_from(value).ok());
        let what = || format!("`{name}` and its value are no HTTP header");
        header.ok_or_else(|| wrong(variable, what(), PAIRS))
    };
    pairs(variable, list)?.into_iter().map(header).collect()
}

const PAIRS: &str = "name=value,name=value with %XX for special characters";

/// A list of names and values. Errors do not repeat the values.
fn pairs(variable: &str, list: &str) -> Result<Vec<(String, String)>, OtlpError> {
    let pair = |(number, entry): (usize, &str)| {
        let decoded = |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
        let pair = entry.split_once('=').and_then(|(name, value)| Some((decoded(name)?, decoded(value)?)));
        pair.filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| wrong(variable, format!("entry {} names no value", number + 1), PAIRS))
    };
    // A comma at the end is nothing.
    list.trim_end_matches(',').split(',').enumerate().map(pair).collect()
}

fn is(value: &str) -> String {
    format!("it is `{value}`")
}

fn wrong(variable: impl Into<String>, wrong: String, expected: &'static str) -> OtlpError {
    OtlpError::Variable { variable: variable.into(), wrong, expected }
}
