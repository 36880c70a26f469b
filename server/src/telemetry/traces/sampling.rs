//! Which requests are wanted.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::{SpanKind, TraceContextExt as _, TraceId as OtelTraceId};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample as _};

use super::Ended;
use crate::telemetry::otlp::OtlpError;

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// Outcomes of which every request is wanted. Requests that were refused to others' advantage, as overload does by hundreds, are
/// sampled like those that were answered.
const ALWAYS: [&str; 5] = ["failed", "expired", "deadline_impossible", "out_of_service", "cancelled"];

/// The rules.
#[derive(Debug, Clone)]
pub(crate) struct Sampling {
    sampler: Sampler,
    /// Requests that took longer are wanted in any case.
    slow: Option<Duration>,
}

impl Default for Sampling {
    /// All requests, unless their caller's trace is not sampled.
    fn default() -> Self {
        Self { sampler: Sampler::ParentBased(Box::new(Sampler::AlwaysOn)), slow: None }
    }
}

impl Sampling {
    /// What `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` say.
    ///
    /// # Errors
    /// Says which of the two is no good, and what it may be.
    pub(crate) fn read(get: &dyn Fn(&str) -> Option<String>) -> Result<Self, OtlpError> {
        let text = |name| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let Some(name) = text(SAMPLER) else { return Ok(Self::default()) };
        let (parent_based, plain) = match name.strip_prefix("parentbased_") {
            Some(plain) => (true, plain),
            None => (false, &*name),
        };
        let sampler = match plain {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(ratio(text(ARGUMENT))?),
            _ => {
                return Err(OtlpError::Variable {
                    variable: SAMPLER.into(),
                    wrong: format!("it is `{name}`"),
                    expected: "always_on, always_off or traceidratio, or one of them behind parentbased_",
                });
            }
        };
        let sampler = if parent_based { Sampler::ParentBased(Box::new(sampler)) } else { sampler };
        Ok(Self { sampler, ..Self::default() })
    }

    /// The same, with requests that took longer than this wanted in any case.
    pub(crate) fn slow(self, slow: Option<Duration>) -> Self {
        Self { slow, ..self }
    }

    /// Whether a request's spans are to be sent.
    pub(crate) fn wants(&self, ended: &Ended) -> bool {
        let Ended { context, name, outcome, late, .. } = ended;
        if *late || ALWAYS.contains(outcome) || self.slow.is_some_and(|slow| ended.took() > slow) {
            return true;
        }
        let parent = context.parent.clone().map(|parent| Context::new().with_remote_span_context(parent));
        let trace = OtelTraceId::from(context.trace.value());
        let sampled = self.sampler.should_sample(parent.as_ref(), trace, name, &SpanKind::Server, &[], &[]);
        sampled.decision == SamplingDecision::RecordAndSample
    }
}

/// All of them unless told otherwise.
fn ratio(argument: Option<String>) -> Result<f64, OtlpError> {
    let Some(argument) = argument else { return Ok(1.0) };
    argument.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| OtlpError::Variable {
        variable: ARGUMENT.into(),
        wrong: format!("it is `{argument}`"),
        expected: "a share of requests from 0 to 1",
    })
}
