//! The `tensact` command line.

mod cli;

use clap::Parser;

fn main() -> miette::Result<()> {
    cli::Cli::parse().run()
}
