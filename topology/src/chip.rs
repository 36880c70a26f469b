//! What one chip is: its architecture, cores, memories and arithmetic rate, with the source of every number.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Number of a chip on its board, as the cluster descriptor and the deployment file write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChipId(pub u32);

impl fmt::Display for ChipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Architecture of a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// Tenstorrent Wormhole B0.
    Wormhole,
    /// Tenstorrent Blackhole.
    Blackhole,
    /// The host's processor, seen as one chip.
    Host,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Arch::Wormhole => "wormhole",
            Arch::Blackhole => "blackhole",
            Arch::Host => "host",
        })
    }
}

/// How weights are stored on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightDtype {
    /// Two bytes a weight.
    Bf16,
    /// Tenstorrent's block float: one byte a weight and one shared exponent byte for 16 of them.
    Bfp8B,
    /// Four bytes a weight.
    F32,
}

impl WeightDtype {
    /// Bytes that `elements` weights take.
    pub fn bytes(self, elements: u64) -> u64 {
        match self {
            WeightDtype::Bf16 => 2 * elements,
            WeightDtype::Bfp8B => elements + elements.div_ceil(16),
            WeightDtype::F32 => 4 * elements,
        }
    }

    /// The name used in files: `bf16`, `bfp8_b` or `f32`.
    pub fn name(self) -> &'static str {
        match self {
            WeightDtype::Bf16 => "bf16",
            WeightDtype::Bfp8B => "bfp8_b",
            WeightDtype::F32 => "f32",
        }
    }
}

impl fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Passes of the multiplier over the mantissas: more passes, more bits, fewer operations a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fidelity {
    /// One pass: enough for `bfp8_b` weights.
    LoFi,
    /// Two passes.
    HiFi2,
    /// Four passes.
    HiFi4,
}

impl Fidelity {
    /// Multiplier passes, by which the peak rate is divided.
    pub fn passes(self) -> f64 {
        match self {
            Fidelity::LoFi => 1.0,
            Fidelity::HiFi2 => 2.0,
            Fidelity::HiFi4 => 4.0,
        }
    }

    /// The fidelity that the cost model assumes for weights of a dtype.
    ///
    /// `bfp8_b` at LoFi is what the published Blackhole latencies imply (their slope with cameras is above the
    /// HiFi2 peak); `bf16` at HiFi2 gives the published "about 60 % slower".
    pub fn of(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::Bfp8B => Fidelity::LoFi,
            WeightDtype::Bf16 => Fidelity::HiFi2,
            WeightDtype::F32 => Fidelity::HiFi4,
        }
    }
}

/// L1 of a core that the runtime keeps: 1.43 of 1.57 MB are for tensors and buffers
/// (tt-metal `models/experimental/pi0_5/docs/L1_PLACEMENT_FINDINGS.md`).
const L1_RESERVED_BYTES: u64 = 140_000;

/// Static circular buffers of a core while a vision or prefix matmul runs, same source; weights cannot lie there.
const L1_BUFFERS_BYTES: u64 = 730_000;

/// The same while only the expert runs: an estimate, its MLP is a quarter as wide.
const L1_EXPERT_BUFFERS_BYTES: u64 = 180_000;

/// Facts of one chip.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChipSpec {
    /// Architecture.
    pub arch: Arch,
    /// Cores that programs may use: harvested and dispatch cores are not among them.
    pub cores: u32,
    /// Clock of the cores.
    pub clock_ghz: f64,
    /// Operations (a multiply and an add are two) of one core and cycle at the fastest fidelity.
    pub flop_per_core_cycle: f64,
    /// Bytes of one network-on-chip port and cycle; how fast a core gets at the tiles of others.
    pub noc_bytes_per_cycle: f64,
    /// Local memory of one core; 0 on the host, which has none to place things in.
    pub l1_bytes_per_core: u64,
    /// Memory for weights, KV cache and activations.
    pub dram_bytes: u64,
    /// Bandwidth of that memory, in 10⁹ bytes per second.
    pub dram_gb_per_s: f64,
}

impl ChipSpec {
    /// Peak matrix rate in 10¹² operations a second for weights of a dtype.
    pub fn peak_tflops(&self, dtype: WeightDtype) -> f64 {
        let fastest = f64::from(self.cores) * self.clock_ghz * self.flop_per_core_cycle / 1e3;
        match (self.arch, dtype) {
            // AVX-512 multiplies pairs of bf16 in the time of one f32.
            (Arch::Host, WeightDtype::F32) => fastest / 2.0,
            (Arch::Host, _) => fastest,
            _ => fastest / Fidelity::of(dtype).passes(),
        }
    }

    /// L1 of all usable cores.
    pub fn l1_bytes(&self) -> u64 {
        u64::from(self.cores) * self.l1_bytes_per_core
    }

    /// L1 that resident weights may take on a chip that runs the expert only, or other stages too.
    pub fn l1_for_weights_bytes(&self, expert_only: bool) -> u64 {
        let buffers = if expert_only { L1_EXPERT_BUFFERS_BYTES } else { L1_BUFFERS_BYTES };
        u64::from(self.cores) * self.l1_bytes_per_core.saturating_sub(L1_RESERVED_BYTES + buffers)
    }

    /// The same chip with another number of usable cores (a harvested part, or a restricted grid).
    pub fn with_cores(self, cores: u32) -> Self {
        Self { cores, ..self }
    }

    /// A Wormhole chip with its usual 64 usable cores and 12 GB of DRAM.
    pub fn wormhole() -> Self {
        Self {
            arch: Arch::Wormhole,
            cores: 64, // n150 and n300: 8×8 after the dispatch row; docs.tenstorrent.com aibs/wormhole
            clock_ghz: 1.0, // docs.tenstorrent.com aibs/wormhole/specifications
            flop_per_core_cycle: 4096.0, // 262 TFLOPS FP8 / 64 cores / 1 GHz, same page
            noc_bytes_per_cycle: 32.0, // 256-bit NoC; tt-metal tech reports
            l1_bytes_per_core: 1_499_136, // worker_l1_size of the soc descriptor, tt-umd
            dram_bytes: 12_000_000_000, // 12 GB per ASIC, same page
            dram_gb_per_s: 288.0, // same page
        }
    }

    /// A Blackhole chip as on a p150a: 130 usable cores and 32 GB of DRAM.
    pub fn blackhole() -> Self {
        Self {
            arch: Arch::Blackhole,
            cores: 130, // 14×10 less one dispatch column; tt-metal models/experimental/pi0_5/p150/README.md
            clock_ghz: 1.35, // AICLK held in the same README
            flop_per_core_cycle: 4096.0, // 5.4 TFLOPS LoFi per core, rounded; tt-metal tech_reports/GEMM_FLOPS
            noc_bytes_per_cycle: 64.0,   // 512-bit NoC; tt-metal tech reports
            l1_bytes_per_core: 1_572_864, // worker_l1_size of the soc descriptor, tt-umd
            dram_bytes: 32_000_000_000,  // docs.tenstorrent.com aibs/blackhole/specifications
            dram_gb_per_s: 512.0,        // same page
        }
    }

    /// The machine that PyTorch's figures were measured on: two Zen 4 cores with AVX512-BF16 and 24 GB.
    pub fn host() -> Self {
        Self {
            arch: Arch::Host,
            cores: 2,                   // the measuring machine; use more for a larger one
            clock_ghz: 3.62,            // from 231.7 GFLOP/s of `vdpbf16ps` on one core
            flop_per_core_cycle: 64.0,  // one 512-bit `vdpbf16ps`: 32 multiply-adds
            noc_bytes_per_cycle: 64.0,  // a cache line; does not enter a host estimate
            l1_bytes_per_core: 0,       // caches are not placed by hand
            dram_bytes: 24_000_000_000, // the measuring machine
            dram_gb_per_s: 31.0,        // measured 28 to 34 on two cores
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_the_published_ones() {
        let n150 = ChipSpec::wormhole();
        assert!((n150.peak_tflops(WeightDtype::Bfp8B) - 262.0).abs() < 1.0);
        let p150 = ChipSpec::blackhole().with_cores(120);
        // 664 TFLOPS BFP8 is quoted for the p150.
        assert!((p150.peak_tflops(WeightDtype::Bfp8B) - 664.0).abs() < 1.0);
        assert!((p150.peak_tflops(WeightDtype::Bf16) - 332.0).abs() < 1.0);
    }

    #[test]
    fn a_block_of_sixteen_shares_an_exponent() {
        assert_eq!(WeightDtype::Bfp8B.bytes(1024), 1088);
        assert_eq!(WeightDtype::Bf16.bytes(3), 6);
    }
}
