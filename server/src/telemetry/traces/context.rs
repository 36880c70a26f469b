//! Where a request's trace begins: here, or with its caller.

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use rand::RngExt as _;
use tensact::telemetry::{ParentSpan, TraceId};

/// The header, and the key of a message, in which callers name the span that they ask from (W3C Trace Context).
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// Characters of a `traceparent`, at least: shorter ones the library would fill up with zeros.
const LENGTH: usize = 55;

/// A request's trace.
#[derive(Debug, Clone)]
pub(crate) struct TraceContext {
    pub(crate) trace: TraceId,
    /// The server's own span.
    pub(crate) span: SpanId,
    /// The span that the caller asked from.
    pub(crate) parent: Option<SpanContext>,
}

/// What a caller sent.
struct Sent<'a> {
    parent: &'a str,
    state: Option<&'a str>,
}

impl Extractor for Sent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => Some(self.parent),
            TRACESTATE => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

impl TraceContext {
    /// A trace that goes on where the caller says, or a new one when it says nothing that can be read: what is wrong with a trace
    /// is no reason not to answer.
    pub(crate) fn new(parent: Option<&str>, state: Option<&str>) -> Self {
        let sent = parent.filter(|parent| parent.len() >= LENGTH).map(|parent| Sent { parent, state });
        let context = sent.map(|sent| TraceContextPropagator::new().extract(&sent));
        let parent = context.map(|context| context.span().span_context().clone());
        let parent = parent.filter(SpanContext::is_valid);
        let given = parent.as_ref().map(|parent| u128::from_be_bytes(parent.trace_id().to_bytes()));
        let mut random = rand::rng();
        let trace = TraceId::new(given.unwrap_or_else(|| random.random())).unwrap_or_else(|| {
            // Zero, once in 2^128 times.
            TraceId::new(1).expect("one is not zero")
        });
        Self { trace, span: SpanId::from(random.random::<u64>().max(1)), parent }
    }

    /// Goes on where a message says, unless the request's head has said so before.
    pub(crate) fn follow(&mut self, parent: &str) {
        if self.parent.is_none() {
            let Self { trace, parent, .. } = Self::new(Some(parent), None);
            if parent.is_some() {
                (self.trace, self.parent) = (trace, parent);
            }
        }
    }

    /// The server's span, as the pipeline knows it.
    pub(crate) fn own(&self) -> u64 {
        u64::from_be_bytes(self.span.to_bytes())
    }

    /// What a request is asked from.
    pub(crate) fn asks(&self) -> ParentSpan {
        ParentSpan { trace: self.trace, span: self.own() }
    }

    /// The same from the head of a request.
    pub(crate) fn of_headers(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        Self::new(text(TRACEPARENT), text(TRACESTATE))
    }
}
