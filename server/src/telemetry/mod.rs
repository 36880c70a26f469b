//! What the server tells about itself: metrics for Prometheus, and all of it over OTLP if it is asked for.

pub(crate) mod metrics;
mod observed;
pub(crate) mod otlp;
#[cfg(test)]
mod tests;
mod utilization;

/// Attributes of metrics and spans.
pub(crate) mod attribute {
    pub(crate) const CHIP: &str = "tensact.chip";
    pub(crate) const LINK: &str = "tensact.link";
    pub(crate) const MEMORY: &str = "tensact.memory";
    pub(crate) const OUTCOME: &str = "tensact.outcome";
    pub(crate) const PART: &str = "tensact.part";
    pub(crate) const PIPELINE: &str = "tensact.pipeline";
    pub(crate) const STAGE: &str = "tensact.stage";
    pub(crate) const TRANSPORT: &str = "tensact.transport";
}
