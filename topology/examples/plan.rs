//! Plans both policies for every board and prints the front of latency against throughput.

use std::time::Instant;

use tensact_topology::plan::{Goal, PlanRequest, plan};
use tensact_topology::{Calibration, ModelSizes, Preset, Variant};

fn main() {
    for preset in Preset::ALL {
        for variant in [Variant::Pi0, Variant::Pi05] {
            let (board, sizes) = (preset.board(), ModelSizes::base(variant));
            let start = Instant::now();
            let request = PlanRequest::new(&board, &sizes, Goal::Latency, Calibration::shipped());
            match plan(&request) {
                Ok(plan) => {
                    println!("{preset} {variant} (planned in {:.2} s)", start.elapsed().as_secs_f64());
                    plan.front.iter().for_each(|point| println!("  {point}"));
                }
                Err(refused) => println!("{refused}"),
            }
        }
    }
}
