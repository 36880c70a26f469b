//! One thing that is wrong with a deployment.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use crate::deployment::Deployment;
use crate::source::SourceError;

/// A rule every deployment keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// Every layer of every stage is on exactly one slice of a pipeline.
    CoveredOnce,
    /// Chips exist.
    ChipOnBoard,
    /// A chip serves one pipeline, and stands once in a slice.
    OwnChip,
    /// Weights, cache and activations fit the chip's memory.
    FitsMemory,
    /// What is to stay in L1 fits there.
    #[serde(rename = "fits-l1")]
    FitsL1,
    /// Edges go over links that are there.
    FabricCarries,
    /// No ring can fill up.
    NoDeadlock,
    /// The device computes with this form of weights.
    DtypeOnDevice,
    /// The device exists on this board.
    DeviceOnBoard,
    /// The chips of a slice can share it this way.
    SplitFits,
    /// Every edge holds at least two requests.
    EdgeHoldsTwo,
    /// Limits leave room for one request.
    LimitsPositive,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Invariant::CoveredOnce => "covered-once",
            Invariant::ChipOnBoard => "chip-on-board",
            Invariant::OwnChip => "own-chip",
            Invariant::FitsMemory => "fits-memory",
            Invariant::FitsL1 => "fits-l1",
            Invariant::FabricCarries => "fabric-carries",
            Invariant::NoDeadlock => "no-deadlock",
            Invariant::DtypeOnDevice => "dtype-on-device",
            Invariant::DeviceOnBoard => "device-on-board",
            Invariant::SplitFits => "split-fits",
            Invariant::EdgeHoldsTwo => "edge-holds-two",
            Invariant::LimitsPositive => "limits-positive",
        })
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It runs, slower than it could.
    Warning,
    /// It cannot run.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule that is broken.
    pub invariant: Invariant,
    /// How bad.
    pub severity: Severity,
    /// Which pipeline, counted from 0 with copies written out; none when it concerns the whole file.
    pub pipeline: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// Line in the deployment file; none for a placement that has no file.
    pub line: Option<usize>,
    /// Column there.
    pub column: Option<usize>,
    #[serde(skip)]
    pub(super) span: Range<usize>,
    #[serde(skip)]
    pub(super) slice: Option<usize>,
}

impl Finding {
    /// The finding as a diagnostic that shows the text of the file.
    pub fn diagnostic(&self, deployment: &Deployment) -> Box<SourceError> {
        deployment
            .error_at(self.span.clone(), format!("{} ({})", self.message, self.invariant))
            .with_help(self.help.clone())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        write!(f, "{}: {}", self.invariant, self.message)
    }
}

impl Finding {
    pub(super) fn error(
        invariant: Invariant,
        pipeline: Option<usize>,
        slice: Option<usize>,
        message: String,
        help: String,
    ) -> Self {
        Self {
            invariant,
            severity: Severity::Error,
            pipeline,
            message,
            help,
            line: None,
            column: None,
            span: 0..0,
            slice,
        }
    }
}
