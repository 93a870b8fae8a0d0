//! `cargo xtask vm`: the test suite on other kernels.
//!
//! Fetches Debian's kernels (`kernels`), builds the test binaries (`suite`), packs
//! them into an initramfs (`pack`), boots each kernel in QEMU (`machine`), reads
//! what the tests wrote (`output`), judges (`verdict`) and tells (`report`).

mod apt;
mod arch;
mod catalog;
mod disk;
mod initramfs;
mod kernels;
mod machine;
mod mirror;
mod options;
mod output;
mod pack;
mod report;
mod scratch;
mod suite;
mod support;
mod tools;
mod verdict;
mod version;

use std::{
    collections::VecDeque,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::{
    catalog::Kernel,
    kernels::{Cached, Store},
    machine::{Logs, Machine},
    options::Options,
    output::Run,
    report::Outcome,
    scratch::Scratch,
};

/// Packed into every machine; tests load them with `modprobe`. Before 6.12 the
/// kernel itself asks for the compressor of zram, which no `depends` names.
const MODULES: [&str; 5] = ["loop", "zram", "lzo_rle", "null_blk", "scsi_debug"];

const SUPPORT: &str = "docs/support.md";

#[derive(clap::Args)]
pub(crate) struct Args {
    // Boxed, for the other commands of xtask have next to no arguments.
    #[command(flatten)]
    options: Box<Options>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = &*args.options;
    tools::require(options.arch)?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let cache = workspace.join(".cache/vm");
    let kernels = choose(options, catalog::kernels(options.arch)?)?;
    let stop = stop_on_signals()?;

    let cached = Store::new(&cache.join("kernels"), options.mirror.as_deref()).ensure(&kernels)?;
    let manifest = options.manifest_path.clone().unwrap_or_else(|| workspace.join("Cargo.toml"));
    let suite = suite::build(&suite::Build {
        manifest: &manifest,
        package: &options.package,
        targets: &options.test,
        cross: suite::Cross::default(),
    })?;

    let scratch = Scratch::new(&cache.join("tmp"))?;
    let scratch = scratch.path();
    let initramfs = scratch.join("initramfs");
    let busybox = pack::busybox(options.arch).context("no busybox for the guest")?;
    pack::pack(options, &suite, &busybox, scratch, &initramfs)?;

    let matrix =
        Matrix { options, logs: cache.join("logs"), scratch, initramfs: &initramfs, stop: &stop };
    let machines: Vec<_> = kernels.iter().zip(&cached).collect();
    if options.shell {
        return matrix.shell(machines[machines.len() - 1]);
    }
    let outcomes = matrix.run(&machines);
    if options.run.is_some() {
        return finish_command(&outcomes);
    }
    report::summary(&outcomes);
    finish(options, &workspace, &outcomes, machines.len())
}

fn choose(options: &Options, mut kernels: Vec<Kernel>) -> Result<Vec<Kernel>> {
    let all: Vec<_> = kernels.iter().map(|kernel| kernel.series.to_string()).collect();
    for wanted in &options.kernel {
        ensure!(
            kernels.iter().any(|kernel| kernel.series == *wanted),
            "xtask/kernels.toml has no kernel {wanted}, only {}",
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
        !(options.write_support && is_part),
        "--write-support needs every kernel and every test"
    );
    Ok(kernels)
}

/// A signal ends the run in order: machines are killed, files removed.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

struct Matrix<'a> {
    options: &'a Options,
    logs: PathBuf,
    scratch: &'a Path,
    initramfs: &'a Path,
    stop: &'a AtomicBool,
}

impl Matrix<'_> {
    /// Every kernel, several at a time, told in the order of the list.
    fn run(&self, machines: &[(&Kernel, &Cached)]) -> Vec<Outcome> {
        let waiting = Mutex::new(machines.iter().copied().collect::<VecDeque<_>>());
        let done = Mutex::new(Vec::new());
        let work = || {
            while !self.stop.load(Ordering::Relaxed) {
                let next = lock(&waiting).pop_front();
                let Some((kernel, cached)) = next else { break };
                let outcome = self.one(kernel, cached);
                if self.options.run.is_none() {
                    report::progress(&outcome);
                }
                lock(&done).push(outcome);
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.options.jobs.max(1) {
                scope.spawn(work);
            }
        });
        let mut outcomes = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|outcome| outcome.series);
        outcomes
    }

    /// One kernel. An error of this side is that kernel's problem and does not
    /// keep the others from running.
    fn one(&self, kernel: &Kernel, cached: &Cached) -> Outcome {
        let started = Instant::now();
        let logs = self.logs.join(kernel.arch.label(kernel.series));
        let (run, verdict) = self.boot(kernel, cached, &logs).unwrap_or_else(|error| {
            let problems = vec![format!("{error:#}")];
            (Run::default(), verdict::Verdict { problems, ..Default::default() })
        });
        Outcome {
            series: kernel.series,
            run,
            verdict,
            time: started.elapsed(),
            logs,
            substitute: cached.substitute.clone(),
        }
    }

    fn boot(
        &self,
        kernel: &Kernel,
        cached: &Cached,
        directory: &Path,
    ) -> Result<(Run, verdict::Verdict)> {
        fs::create_dir_all(directory)?;
        let lock = File::create(directory.join("lock"))?;
        lock.try_lock().context("another run is using this kernel")?;
        let logs = Logs::in_directory(directory);
        let limit = Duration::from_secs(self.options.timeout);
        let ending =
            self.with_machine(kernel, cached, |machine| machine.run(&logs, limit, self.stop))?;
        let run = Run::parse(&report::read(&logs.output));
        let console = report::read(&logs.console);
        let verdict = verdict::judge(&run, ending, self.options.timeout, &console);
        Ok((run, verdict))
    }

    fn shell(&self, (kernel, cached): (&Kernel, &Cached)) -> Result<()> {
        let directory = self.logs.join(kernel.arch.label(kernel.series));
        fs::create_dir_all(&directory)?;
        let log = directory.join("shell.log");
        self.with_machine(kernel, cached, |machine| machine.interact(&log))?;
        println!("log: {}", log.display());
        Ok(())
    }

    /// Makes what one machine needs, and removes it afterwards.
    fn with_machine<T>(
        &self,
        kernel: &Kernel,
        cached: &Cached,
        work: impl FnOnce(&Machine) -> Result<T>,
    ) -> Result<T> {
        let scratch = tempfile::tempdir_in(self.scratch)?;
        let names: Vec<_> = MODULES
            .iter()
            .map(|&name| name.to_owned())
            .chain(self.options.module.clone())
            .collect();
        let modules = scratch.path().join("modules");
        initramfs::modules(&cached.modules(), &names, scratch.path(), &modules)?;
        let initramfs = scratch.path().join("initramfs");
        initramfs::join(&[self.initramfs, &modules], &initramfs)?;
        work(&Machine {
            arch: kernel.arch,
            kernel: &cached.image(),
            initramfs: &initramfs,
            disks: &disk::make(scratch.path())?,
            mebibytes: self.options.memory,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells what `--run` gave, and fails if it failed anywhere.
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
        println!("{SUPPORT} is what these kernels gave");
    }
    Ok(())
}
