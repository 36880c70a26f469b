//! What the server tells about itself: metrics for Prometheus, and all of it over OTLP if it is asked for.

pub(crate) mod metrics;
mod observed;
pub(crate) mod otlp;
pub(crate) mod passes;
#[cfg(test)]
mod tests;
pub(crate) mod traces;
mod utilization;

/// Attributes of metrics and spans.
pub(crate) mod attribute {
    pub(crate) const ATTEMPT: &str = "tensact.attempt";
    pub(crate) const BATCH_SIZE: &str = "tensact.batch_size";
    pub(crate) const BYTES: &str = "tensact.bytes";
    pub(crate) const CAMERAS: &str = "tensact.cameras";
    pub(crate) const CHIP: &str = "tensact.chip";
    pub(crate) const CHIPS: &str = "tensact.chips";
    pub(crate) const ERROR_TYPE: &str = "error.type";
    pub(crate) const FROM: &str = "tensact.from";
    pub(crate) const LAYERS: &str = "tensact.layers";
    pub(crate) const LINK: &str = "tensact.link";
    pub(crate) const MEMORY: &str = "tensact.memory";
    pub(crate) const OUTCOME: &str = "tensact.outcome";
    pub(crate) const PART: &str = "tensact.part";
    pub(crate) const PIPELINE: &str = "tensact.pipeline";
    pub(crate) const ROBOT: &str = "tensact.robot";
    pub(crate) const STAGE: &str = "tensact.stage";
    pub(crate) const STEP: &str = "tensact.step";
    pub(crate) const TO: &str = "tensact.to";
    pub(crate) const TRANSPORT: &str = "tensact.transport";
    pub(crate) const WAIT_REASON: &str = "tensact.wait.reason";
}
