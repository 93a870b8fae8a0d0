//! What counting every system call costs, as the probe of `examples/custom_probe` does:
//! a program that makes the cheapest of calls, in turns without and with a watcher.
//!
//! Times are CPU times of that program.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

mod support;

use std::{fmt, process};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use custom_probe::SyscallProbe;
use ebpfmetrics::{Kernel, Probe as _};
use support::{
    Helper, Quartiles, Role, Statistics, process_cpu_ns, role, serve,
    tools::{CLANG, empty, is_there, programs_of},
};

const ROUNDS: usize = 31;
/// The best of these counts: other work on the machine can only disturb.
const PARTS: usize = 5;
const CALLS: usize = 100_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watcher {
    Nobody,
    /// Programs that do nothing, at the same two tracepoints.
    Empty,
    Probe,
}

impl fmt::Display for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nobody => "nobody (two equal runs)",
            Self::Empty => "two empty programs",
            Self::Probe => "SyscallProbe",
        })
    }
}

/// Who watches, for as long as the value lives.
enum Watching {
    Nobody,
    Empty { _programs: Box<Ebpf> },
    Probe(Box<SyscallProbe>),
}

impl Watching {
    fn start(watcher: Watcher, kernel: &Kernel) -> Result<Self> {
        const PROGRAMS: [(&str, &str); 2] =
            [("empty_enter", "sys_enter"), ("empty_leave", "sys_exit")];
        Ok(match watcher {
            Watcher::Nobody => Self::Nobody,
            Watcher::Empty => {
                Self::Empty { _programs: Box::new(empty("empty_syscall.bpf.c", &PROGRAMS)?) }
            }
            Watcher::Probe => Self::Probe(Box::new(SyscallProbe::builder().load_on(kernel)?)),
        })
    }
}

struct Row {
    watcher: Watcher,
    ns: Vec<f64>,
    more: Vec<f64>,
    program_ns: Vec<f64>,
}

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(_) => serve(calls),
        Role::None => Ok(()),
    }
}

/// The helper's side: CPU ns for so many calls.
fn calls(calls: usize) -> Result<String> {
    let before = process_cpu_ns();
    for _ in 0..calls {
        std::hint::black_box(std::os::unix::process::parent_id());
    }
    Ok((process_cpu_ns() - before).to_string())
}

fn bench() -> Result<()> {
    let kernel = Kernel::read()?;
    let mut watchers = vec![Watcher::Nobody, Watcher::Probe];
    if is_there(CLANG) {
        watchers.insert(1, Watcher::Empty);
    } else {
        println!("SKIPPED empty programs: there is no {CLANG} here");
    }
    let row = |watcher| Row { watcher, ns: Vec::new(), more: Vec::new(), program_ns: Vec::new() };
    let mut rows: Vec<_> = watchers.into_iter().map(row).collect();
    let mut helper = Helper::start("calls")?;
    let mut before = ns_per_call(&mut helper)?;
    for _ in 0..ROUNDS {
        for row in &mut rows {
            let mut watching = Watching::start(row.watcher, &kernel)?;
            let with = ns_per_call(&mut helper)?;
            row.program_ns.push(program_ns(&mut helper)?);
            if let Watching::Probe(probe) = &mut watching {
                counts(probe, &mut helper)?;
            }
            drop(watching);
            let after = ns_per_call(&mut helper)?;
            row.ns.push(with);
            row.more.push(with - (before + after) / 2.0);
            before = after;
        }
    }
    println!(
        "one call of getppid: medians (quartiles) of {ROUNDS} rounds\n{:24} {:>22} {:>22} {:>22}",
        "watcher", "CPU ns", "ns more than without", "ns in programs"
    );
    for row in &rows {
        let of = |values: &Vec<f64>| Quartiles::of(values.iter().copied());
        let Row { watcher, ns, more, program_ns } = row;
        println!("{watcher:24} {:22.0} {:22.0} {:22.0}", of(ns), of(more), of(program_ns));
    }
    Ok(())
}

fn ns_per_call(helper: &mut Helper) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..PARTS {
        let [ns] = helper.ask::<u64, 1>(CALLS)?;
        best = best.min(ns as f64 / CALLS as f64);
    }
    Ok(best)
}

/// The ns per run of all programs that are at system calls, by the kernel's statistics
/// (which cost something themselves: hence not in the runs that are timed). Fails if they
/// are not at all calls.
fn program_ns(helper: &mut Helper) -> Result<f64> {
    let _statistics = Statistics::enable()?;
    let before = programs_of(process::id())?;
    let [_] = helper.ask::<u64, 1>(CALLS)?;
    let mut sum = 0.0;
    for (id, now) in programs_of(process::id())? {
        let before = before.get(&id).copied().unwrap_or_default();
        let runs = now.runs - before.runs;
        // others are at the ends of processes
        if runs > CALLS as u64 / 10 {
            ensure!(runs >= CALLS as u64 * 99 / 100, "a program ran {runs} times");
            sum += (now.time_ns - before.time_ns) as f64 / runs as f64;
        }
    }
    Ok(sum)
}

/// Fails if the probe does not see the calls.
fn counts(probe: &mut SyscallProbe, helper: &mut Helper) -> Result<()> {
    probe.reset()?;
    let [_] = helper.ask::<u64, 1>(CALLS)?;
    let snapshot = probe.snapshot()?;
    let row = snapshot.process(helper.pid());
    let calls = row.context("no row")?.usage.calls;
    ensure!(calls >= CALLS as u64, "{calls} calls, not {CALLS}");
    Ok(())
}
