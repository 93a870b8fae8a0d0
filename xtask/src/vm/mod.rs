//! `cargo xtask vm`: runs the test suite on other kernels.
//!
//! Fetches Debian's kernels (`kernels`), builds the test binaries (`suite`), packs
//! them into an initramfs (`pack`), boots each kernel (`matrix`) in QEMU (`machine`),
//! reads the output of the tests (`output`), evaluates it (`verdict`) and prints it (`report`).

mod apt;
mod arch;
mod catalog;
mod cross;
mod disk;
mod initramfs;
mod kernels;
mod machine;
mod matrix;
mod mirror;
mod modules;
mod options;
mod output;
mod pack;
mod report;
mod scratch;
mod suite;
mod support;
mod tools;
mod turn;
mod verdict;
mod version;

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::{
    arch::Arch, catalog::Kernel, cross::Toolchain, kernels::Store, machine::Logs, matrix::Matrix,
    options::Options, report::Outcome, scratch::Scratch, suite::Cross,
};

const SUPPORT: &str = "docs/support.md";

#[derive(clap::Args)]
pub(crate) struct Args {
    // Boxed, because the other commands have almost no arguments.
    #[command(flatten)]
    options: Box<Options>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = &*args.options;
    let missing = if options.arch == Arch::Arm64 { cross::missing() } else { Vec::new() };
    tools::require(options.arch, missing)?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let cache = workspace.join(".cache/vm");
    let kernels = choose(options, catalog::kernels(options.arch)?)?;
    let stop = stop_on_signals()?;

    let cached = Store::new(&cache.join("kernels"), options.mirror.as_deref()).ensure(&kernels)?;
    let Toolchain { busybox, cross } = toolchain(options, &cache)?;
    let manifest = options.manifest_path.clone().unwrap_or_else(|| workspace.join("Cargo.toml"));
    let suite = suite::build(&suite::Build {
        manifest: &manifest,
        package: &options.package,
        targets: &options.test,
        cross,
    })?;

    let scratch = Scratch::new(&cache.join("tmp"))?;
    let scratch = scratch.path();
    let initramfs = scratch.join("initramfs");
    pack::pack(options, &suite, &busybox, scratch, &initramfs)?;

    let matrix =
        Matrix { options, logs: cache.join("logs"), scratch, initramfs: &initramfs, stop: &stop };
    let machines: Vec<_> = kernels.iter().zip(&cached).collect();
    if options.shell {
        return matrix.shell(machines[machines.len() - 1]);
    }
    let _turn = turn::take(&cache, &stop)?;
    let outcomes = matrix.run(&machines);
    if options.run.is_some() {
        return finish_command(&outcomes);
    }
    report::summary(&outcomes);
    finish(options, &workspace, &outcomes, machines.len())
}

fn toolchain(options: &Options, cache: &Path) -> Result<Toolchain> {
    match options.arch {
        Arch::Amd64 => {
            let busybox = tools::find("busybox").context("busybox not found")?;
            Ok(Toolchain { busybox, cross: Cross::default() })
        }
        Arch::Arm64 => cross::prepare(&cache.join("arm64"), options.mirror.as_deref()),
    }
}

fn choose(options: &Options, mut kernels: Vec<Kernel>) -> Result<Vec<Kernel>> {
    let all: Vec<_> = kernels.iter().map(|kernel| kernel.series.to_string()).collect();
    for wanted in &options.kernel {
        ensure!(
            kernels.iter().any(|kernel| kernel.series == *wanted),
            "xtask/kernels.toml has no kernel {wanted}; it has {}",
            all.join(", ")
        );
    }
    if !options.kernel.is_empty() {
        kernels.retain(|kernel| options.kernel.contains(&kernel.series));
    }
    if options.oldest_newest {
        kernels.drain(1..kernels.len().saturating_sub(1).max(1));
    }
    let is_part =
        kernels.len() != all.len() || options.filter.is_some() || !options.test.is_empty();
    ensure!(
        options.arch == Arch::Amd64 || !(options.write_support || options.check_support),
        "{SUPPORT} covers amd64 only"
    );
    ensure!(
        !(options.write_support && is_part),
        "--write-support needs all kernels and all tests: omit options that select a part"
    );
    Ok(kernels)
}

/// After a signal the run stops its machines and removes its files.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Prints the output of `--run`. Fails if the command failed on any kernel.
fn finish_command(outcomes: &[Outcome]) -> Result<()> {
    let mut failed = Vec::new();
    for outcome in outcomes {
        let output = report::read(&Logs::in_directory(&outcome.logs).output);
        let output = output.rsplit_once("\nVM-EXIT ").map_or(output.as_str(), |(text, _)| text);
        println!("==== {} ====\n{}", outcome.series, output.trim_end());
        if outcome.run.exit != Some(0) {
            let status = outcome.run.exit.map_or("no exit code".into(), |exit| exit.to_string());
            failed.push(format!("{} ({status})", outcome.series));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed on {}", failed.join(", ")) }
}

fn finish(
    options: &Options,
    workspace: &Path,
    outcomes: &[Outcome],
    expected: usize,
) -> Result<()> {
    let bad: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    let series: Vec<_> = bad.iter().map(|outcome| outcome.series.to_string()).collect();
    ensure!(bad.is_empty(), "failed on {}", series.join(", "));
    ensure!(outcomes.len() == expected, "interrupted");

    let mut table = support::Table::default();
    for outcome in outcomes {
        table.add(outcome.series, &outcome.run.support);
    }
    let file = workspace.join(SUPPORT);
    if options.write_support {
        table.write(&file)?;
        println!("wrote {SUPPORT}");
    }
    if options.check_support {
        table.check(&file)?;
        println!("{SUPPORT} matches the results of these kernels");
    }
    Ok(())
}
