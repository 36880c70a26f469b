//! Constants of the cost model, and the programs they were measured with.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::workload::Savings;
use crate::{Arch, ChipSpec};

/// A way of running the policy on chips: how many operations it launches and what it leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// Plain operations, as published in early 2026; the only program published on Wormhole.
    OpByOp,
    /// Traced per stage, as published in June 2026.
    Traced,
    /// With fused expert kernels, as published from July 2026 on.
    Fused,
    /// The fused program without what feeds nothing.
    Tensact,
}

impl Program {
    /// The program that estimates for an architecture assume: what has been shown to run there.
    pub fn for_arch(arch: Arch) -> Self {
        match arch {
            Arch::Wormhole => Program::OpByOp,
            Arch::Blackhole | Arch::Host => Program::Tensact,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fitted {
    pub(crate) matmul_utilisation: f64,
    pub(crate) dram_efficiency: f64,
    pub(crate) launch_us: f64,
    pub(crate) launch_op_by_op_us: f64,
    pub(crate) line_collective_factor: f64,
    pub(crate) host_utilisation: f64,
    pub(crate) host_launch_us: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Published {
    pub(super) attention_utilisation: f64,
    pub(super) all_reduce_us: f64,
    pub(super) all_reduce_tokens: f64,
    pub(super) all_reduce_chips: f64,
    pub(crate) socket_gb_per_s: [f64; 2],
    pub(crate) point_to_point_gb_per_s: [f64; 2],
    pub(super) hop_us: f64,
    pub(super) host_bounce_gb_per_s: f64,
    pub(crate) request_io_ms: f64,
    pub(super) host_bounce_latency_ms: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProgramCounts {
    pub(super) vision: f64,
    pub(super) prefix: f64,
    pub(super) expert: f64,
    pub(super) savings: Savings,
}

/// Constants of the cost model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub(crate) fitted: Fitted,
    pub(crate) published: Published,
    program: BTreeMap<Program, ProgramCounts>,
}

impl Default for Calibration {
    fn default() -> Self {
        Self::shipped().clone()
    }
}

impl Calibration {
    /// Milliseconds until the images of a request are on a board.
    pub fn request_io_ms(&self) -> f64 {
        self.published.request_io_ms
    }

    /// The constants Tensact ships with.
    pub fn shipped() -> &'static Self {
        static SHIPPED: LazyLock<Calibration> = LazyLock::new(|| {
            toml::from_str(include_str!("../calibration.toml"))
                .expect("the calibration in the source tree is read by every test")
        });
        &SHIPPED
    }

    pub(super) fn counts(&self, program: Program) -> &ProgramCounts {
        self.program.get(&program).expect("the calibration has every program")
    }

    /// Microseconds of one operation: bound by how fast tiles move over the network on chip, so it scales with that.
    pub(super) fn launch_us(&self, program: Program, spec: &ChipSpec) -> f64 {
        let blackhole = ChipSpec::blackhole();
        let noc =
            blackhole.noc_bytes_per_cycle * blackhole.clock_ghz / (spec.noc_bytes_per_cycle * spec.clock_ghz);
        match (spec.arch, program) {
            (Arch::Host, _) => self.fitted.host_launch_us,
            (_, Program::OpByOp) => self.fitted.launch_op_by_op_us * noc,
            _ => self.fitted.launch_us * noc,
        }
    }
}
