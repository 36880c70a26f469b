//! What the command line prints of boards and checks, as a table or as JSON.

use serde::Serialize;

use crate::check::{Finding, Severity, check_deployment};
use crate::cost::{CostModel, PipelineCost, Program};
use crate::{Arch, Board, Calibration, Deployment, ModelSizes, Preset, WeightDtype};

/// One line about a board.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BoardSummary {
    /// Name to use in a deployment file.
    pub name: String,
    /// What it is.
    pub title: String,
    /// Architecture.
    pub arch: Arch,
    /// Chips.
    pub chips: usize,
    /// Rows and columns of the mesh.
    pub mesh: Option<(u32, u32)>,
    /// Usable cores of a chip.
    pub cores_per_chip: u32,
    /// L1 of a chip's usable cores.
    pub l1_bytes_per_chip: u64,
    /// DRAM of a chip.
    pub dram_bytes_per_chip: u64,
    /// DRAM bandwidth of a chip.
    pub dram_gb_per_s_per_chip: f64,
    /// Peak of a chip with `bfp8_b` weights.
    pub bfp8_b_tflops_per_chip: f64,
    /// Peak of a chip with `bf16` weights.
    pub bf16_tflops_per_chip: f64,
    /// Pairs of linked chips.
    pub links: usize,
    /// Ethernet lanes of the thinnest link.
    pub lanes: Option<u32>,
    /// PCIe lanes of each chip that has its own.
    pub pcie_lanes: Vec<u32>,
    /// The program that estimates for this board assume.
    pub program: Program,
}

impl BoardSummary {
    /// All presets.
    pub fn presets() -> Vec<Self> {
        Preset::ALL.iter().map(|preset| Self::new(&preset.board(), preset.title())).collect()
    }

    /// A board with a title; facts of its chips are those of the first.
    pub fn new(board: &Board, title: &str) -> Self {
        let spec = board.chips().first().map(|chip| chip.spec);
        let peak = |dtype| spec.map_or(0.0, |spec| spec.peak_tflops(dtype));
        Self {
            name: board.name.clone(),
            title: title.to_owned(),
            arch: board.arch(),
            chips: board.chips().len(),
            mesh: board.shape,
            cores_per_chip: spec.map_or(0, |spec| spec.cores),
            l1_bytes_per_chip: spec.map_or(0, |spec| spec.l1_bytes()),
            dram_bytes_per_chip: spec.map_or(0, |spec| spec.dram_bytes),
            dram_gb_per_s_per_chip: spec.map_or(0.0, |spec| spec.dram_gb_per_s),
            bfp8_b_tflops_per_chip: peak(WeightDtype::Bfp8B),
            bf16_tflops_per_chip: peak(WeightDtype::Bf16),
            links: board.links().len(),
            lanes: board.links().iter().map(|link| link.lanes).min(),
            pcie_lanes: board.chips().iter().filter_map(|chip| chip.pcie).map(|pcie| pcie.lanes).collect(),
            program: Program::for_arch(board.arch()),
        }
    }
}

/// A checked deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    /// Name of the board.
    pub board: String,
    /// What is wrong, all at once.
    pub findings: Vec<Finding>,
    /// Estimated latency of the slowest pipeline; none when the deployment cannot run.
    pub latency_ms: Option<f64>,
    /// Estimated requests per second of all pipelines; none when the deployment cannot run.
    pub requests_per_s: Option<f64>,
    /// Estimate of each pipeline, with its slices and edges.
    pub pipelines: Vec<PipelineCost>,
}

impl CheckReport {
    /// Checks a deployment of a policy on a board, and estimates it when it can run.
    pub fn new(deployment: &Deployment, board: &Board, sizes: &ModelSizes) -> Self {
        let findings = check_deployment(deployment, board, sizes);
        let mut report = Self {
            board: board.name.clone(),
            findings,
            latency_ms: None,
            requests_per_s: None,
            pipelines: Vec::new(),
        };
        if report.runs() {
            let model = CostModel::new(board, sizes, deployment.request(sizes), Calibration::shipped());
            let placement = deployment.placement(sizes, board.arch()).placement;
            report.pipelines =
                placement.pipelines.iter().filter_map(|pipeline| model.pipeline(pipeline)).collect();
            report.latency_ms = report.pipelines.iter().map(|cost| cost.latency_ms).reduce(f64::max);
            report.requests_per_s = Some(report.pipelines.iter().map(|cost| cost.requests_per_s).sum());
        }
        report
    }

    /// Whether nothing stands against running it; warnings do not.
    pub fn runs(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Error)
    }
}
