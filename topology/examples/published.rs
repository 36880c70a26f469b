//! Prints the table of predicted and published latencies, and the constants a fresh fit gives.

use tensact_topology::{Calibration, published};

fn main() {
    let calibration = Calibration::default();
    println!("{}", published::report(&calibration));
    println!("\nA fresh fit gives:\n{:#?}", published::fit(&calibration));
}
