//! Every kernel of the host at the shapes of π0's base size: how fast it is, and what share that is of the peak.
//!
//! The peak is measured in the same run, in turn with the kernel: clocks and neighbours change from second to second.
//! For products and attention it is the rate of bare multiply-adds or bf16 dot products, whichever is higher; for the
//! others it is that of a copy of as many bytes, which rotation can surpass: it works in place, and a copy first fetches
//! what it overwrites. Shown are medians, and the ratio of medians.
//!
//! `cargo bench -p tensact-benches --bench kernels -- expert cold` measures the cases in whose names all words occur;
//! with `--json` every row is a line of JSON.

mod cases;

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tensact_runtime::device::host::measure;
use tensact_runtime::device::host::{ComputeDtype, HostDevice, Kernel};

use cases::{EVERY_KERNEL, Prepared, Work, cases};

/// How long the kernel and the peak run at least before they take turns.
const TURN: Duration = Duration::from_millis(20);
/// Turns of each; fewer, but not less than [`FEWEST_ROUNDS`], of what takes longer than [`ENOUGH`] together.
const ROUNDS: usize = 9;
const FEWEST_ROUNDS: usize = 3;
const ENOUGH: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Row {
    case: String,
    shape: String,
    kernel: String,
    threads: usize,
    seconds: f64,
    /// Billions a second.
    rate: f64,
    peak: f64,
    unit: &'static str,
    share: f64,
}

fn main() {
    let (options, words): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let json = options.iter().any(|option| option == "--json");
    if !json {
        println!(
            "{:<18} {:<34} {:<10} {:>7} {:>11} {:>8} {:>8} {:<7} {:>6}",
            "case", "shape", "kernel", "threads", "time", "rate", "peak", "unit", "share"
        );
    }
    let mut rows = Vec::new();
    for case in cases() {
        let name = format!("{} {} {:?}", case.name, case.shape, case.kernel);
        if !words.iter().all(|word| name.contains(word.as_str())) {
            continue;
        }
        let devices = devices(case.kernel);
        let mut prepared = (case.prepare)(&devices[0]);
        for device in &devices {
            let row = measure(&case.name, &case.shape, device, &mut prepared);
            print(&row, json);
            rows.push(row);
        }
    }
    if !json {
        compare_kernels(&rows);
    }
}

/// One with a single thread, and one with as many as there are cores.
fn devices(kernel: Kernel) -> Vec<Arc<HostDevice>> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = if cores > 1 { vec![1, cores] } else { vec![1] };
    let device = |threads| HostDevice::with_kernel(NonZeroUsize::new(threads), ComputeDtype::Bf16, kernel);
    threads.into_iter().map(|threads| device(threads).expect("a bench machine has threads")).collect()
}

fn measure(case: &str, shape: &str, device: &HostDevice, prepared: &mut Prepared) -> Row {
    let mut peak = Peak::new(prepared.work);
    let mut seconds = Vec::new();
    (prepared.call)(device);
    let began = Instant::now();
    for round in 0..ROUNDS {
        if round >= FEWEST_ROUNDS && began.elapsed() > ENOUGH {
            break;
        }
        peak.turn(device);
        seconds.push(measure::within(device, || seconds_per_call(|| (prepared.call)(device))));
    }
    let (seconds, peak) = (median(&mut seconds), peak.highest());
    let (work, unit) = match prepared.work {
        Work::Flops(flops) => (flops, "GFLOP/s"),
        Work::Bytes(bytes) => (bytes, "GB/s"),
    };
    let rate = work / seconds / 1e9;
    Row {
        case: case.into(),
        shape: shape.into(),
        kernel: format!("{:?}", device.kernel()),
        threads: device.threads(),
        seconds,
        rate,
        peak,
        unit,
        share: rate / peak,
    }
}

/// What a kernel is held against.
enum Peak {
    /// Rates of the arithmetic of this CPU's fastest kernels, in GFLOP/s.
    Arithmetic(Vec<(Kernel, Vec<f64>)>),
    /// Rates of a copy, in GB/s.
    Copy { from: Vec<f32>, to: Vec<f32>, rates: Vec<f64> },
}

impl Peak {
    fn new(work: Work) -> Self {
        match work {
            // The last but one is that of f32 where the last is that of bf16.
            Work::Flops(_) => Self::Arithmetic(
                Kernel::available().into_iter().rev().take(2).map(|kernel| (kernel, vec![])).collect(),
            ),
            Work::Bytes(bytes) => {
                let values = vec![1.0; bytes as usize / 2 / size_of::<f32>()];
                Self::Copy { from: values.clone(), to: values, rates: vec![] }
            }
        }
    }

    fn turn(&mut self, device: &HostDevice) {
        match self {
            Self::Arithmetic(kernels) => {
                let each = TURN / kernels.len() as u32;
                for (kernel, rates) in kernels {
                    rates.push(measure::peak_flops(device, *kernel, each) / 1e9);
                }
            }
            Self::Copy { from, to, rates } => {
                let bytes = 2 * size_of_val(&from[..]);
                let seconds = seconds_per_call(|| measure::copy(device, black_box(from), to));
                rates.push(bytes as f64 / seconds / 1e9);
            }
        }
    }

    fn highest(self) -> f64 {
        match self {
            Self::Arithmetic(kernels) => {
                kernels.into_iter().map(|(_, mut rates)| median(&mut rates)).fold(0.0, f64::max)
            }
            Self::Copy { mut rates, .. } => median(&mut rates),
        }
    }
}

/// Calls for the length of a turn, at least once.
fn seconds_per_call(mut call: impl FnMut()) -> f64 {
    let (began, mut calls) = (Instant::now(), 0);
    loop {
        call();
        calls += 1;
        let took = began.elapsed();
        if took >= TURN {
            return took.as_secs_f64() / f64::from(calls);
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(row: &Row, json: bool) {
    if json {
        println!("{}", serde_json::to_string(row).expect("names and numbers are JSON"));
        return;
    }
    let Row { case, shape, kernel, threads, seconds, rate, peak, unit, share } = row;
    let time = format!("{:.3} ms", seconds * 1e3);
    let share = 100.0 * share;
    println!(
        "{case:<18} {shape:<34} {kernel:<10} {threads:>7} {time:>11} {rate:>8.1} {peak:>8.1} {unit:<7} {share:>4.0} %"
    );
}

/// What share of the fastest one's speed each kernel has, by what each had of the peak of its time.
fn compare_kernels(rows: &[Row]) {
    let kernels: Vec<&Row> = rows.iter().filter(|row| row.case == EVERY_KERNEL).collect();
    if kernels.is_empty() {
        return;
    }
    println!("\n{:<34} {:<10} {:>7} {:>14}", "shape", "kernel", "threads", "of the fastest");
    for row in &kernels {
        let alike = kernels.iter().filter(|other| (&other.shape, other.threads) == (&row.shape, row.threads));
        let fastest = alike.map(|other| other.share).fold(0.0, f64::max);
        println!("{:<34} {:<10} {:>7} {:>14.2}", row.shape, row.kernel, row.threads, row.share / fastest);
    }
}
