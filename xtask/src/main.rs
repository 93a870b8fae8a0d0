//! Commands for contributors: `cargo xtask COMMAND`.

mod build_bpf;
mod public_api;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Commands for contributors to ebpfmetrics")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile the BPF objects and generate the Rust record types from them
    BuildBpf(build_bpf::Args),
    /// Write the public API of each published crate to its public-api.txt
    PublicApi(public_api::Args),
    /// Run the test suite on other kernels, in virtual machines
    Vm(vm::Args),
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::BuildBpf(args) => build_bpf::run(&args),
        Command::PublicApi(args) => public_api::run(&args),
        Command::Vm(args) => vm::run(&args),
    }
}
