//! What a process pays for having its memory watched: page faults, `mmap`, `fork`,
//! `exec`, a plain system call and a compiler, in turns without and with a watcher.
//!
//! Times are CPU times of the process that works and of those that it starts: what
//! the programs at the tracepoints take is charged to them, what else the machine
//! does is not.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../support/mod.rs"]
mod support;

mod watcher;
mod work;

use std::{
    collections::{BTreeMap, HashSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebpfmetrics::{MemUsage, Process, ProcessId, mem::MemSnapshot};
use support::{Quartiles, Role, Statistics, role};
use watcher::{Kind, Programs, Watcher, Watchers};
use work::{Run, Work, Worker};

const ROUNDS: usize = 15;
const ROUNDS_PER_STATISTICS: usize = 3;

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(work) => work::serve(&work),
        Role::None => Ok(()),
    }
}

/// All measurements of one kind of work.
struct Row {
    work: Work,
    alone_ns: Vec<f64>,
    /// One for each kind of watcher.
    cells: Vec<Cell>,
}

impl Row {
    fn new(work: Work, kinds: &[Kind]) -> Self {
        let cells = kinds.iter().map(|_| Cell::default()).collect();
        Self { work, alone_ns: Vec::new(), cells }
    }
}

/// Of one kind of watcher.
#[derive(Default)]
struct Cell {
    /// With the watcher, by the mean of the runs without one before and after.
    ratios: Vec<f64>,
    added_ns: Vec<f64>,
    /// By the kernel's statistics.
    programs: BTreeMap<String, Vec<Share>>,
}

impl Cell {
    fn add_programs(&mut self, shares: BTreeMap<String, Share>) {
        for (program, share) in shares {
            self.programs.entry(program).or_default().push(share);
        }
    }
}

/// What a program did for an operation of the work.
#[derive(Clone, Copy)]
struct Share {
    runs_per_operation: f64,
    ns_per_run: f64,
}

fn bench() -> Result<()> {
    let watchers = Watchers::new()?;
    let kinds = watchers.available();
    let mut workers = Worker::start_all()?;
    let mut rows: Vec<Row> = workers.iter().map(|worker| Row::new(worker.work(), &kinds)).collect();
    for round in 0..ROUNDS {
        for (worker, row) in workers.iter_mut().zip(&mut rows) {
            let mut before = worker.play()?.ns_per_operation;
            for (&kind, cell) in kinds.iter().zip(&mut row.cells) {
                let mut watcher = watchers.start(kind)?;
                settle();
                let with = watched(&mut watcher, worker)
                    .with_context(|| format!("{kind}, {}: its cost means nothing", row.work))?;
                if round % ROUNDS_PER_STATISTICS == 0 {
                    cell.add_programs(shares(&watcher, worker)?);
                }
                drop(watcher);
                settle();
                let after = worker.play()?.ns_per_operation;
                let without = (before + after) / 2.0;
                cell.ratios.push(with / without);
                cell.added_ns.push(with - without);
                row.alone_ns.push(after);
                before = after;
            }
        }
    }
    println!(
        "CPU time with a watcher by without: medians (quartiles) of {ROUNDS} rounds; run time of\n\
         programs by the kernel's statistics, their own cost included"
    );
    for row in rows {
        let alone_ns = Quartiles::of(row.alone_ns);
        println!("\n{}: {alone_ns:.0} ns of CPU each without a watcher", row.work);
        for (&kind, cell) in kinds.iter().zip(&row.cells) {
            report(kind, cell, alone_ns.median());
        }
    }
    Ok(())
}

fn report(kind: Kind, cell: &Cell, alone_ns: f64) {
    let programs: Vec<_> =
        cell.programs.iter().map(|(name, shares)| (name, summed(shares))).collect();
    let together = programs.iter().fold(0.0, |sum, (_, (runs, ns))| sum + runs * ns.median());
    println!(
        "  {:36} {:22.3} {:>+9.0} ns; its programs {together:.0} ns, {:.1} %",
        kind.to_string(),
        Quartiles::of(cell.ratios.iter().copied()),
        Quartiles::of(cell.added_ns.iter().copied()).median(),
        together / alone_ns * 100.0,
    );
    for (program, (runs, ns)) in programs.iter().filter(|(_, (runs, _))| *runs >= 0.005) {
        println!("    {program:34} {runs:8.2} runs of {ns:.0} ns");
    }
}

/// Runs per operation where the rest of the machine did least, and ns per run.
fn summed(shares: &[Share]) -> (f64, Quartiles) {
    let runs = shares.iter().map(|share| share.runs_per_operation).fold(f64::INFINITY, f64::min);
    (runs, Quartiles::of(shares.iter().map(|share| share.ns_per_run)))
}

/// A process is released some ms after its end, an RCU grace period.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(700);
const TRIES: usize = 5;

/// After this the probe no longer waits for the release of a process, which else
/// would show among those of the next try.
const OVERDUE: Duration = Duration::from_millis(2200);

/// What was attached or detached last is done with.
fn settle() {
    thread::sleep(Duration::from_millis(30));
}

/// Has the work done and the watcher say what it saw of it; ns per operation. Done
/// again where the machine hides the release of processes.
fn watched(watcher: &mut Watcher, worker: &mut Worker) -> Result<f64> {
    for _ in 0..TRIES {
        watcher.reset()?;
        let run = worker.play()?;
        let start = Instant::now();
        while start.elapsed() < RELEASE_TIMEOUT {
            let Some(snapshot) = watcher.snapshot()? else { return Ok(run.ns_per_operation) };
            let seen = Seen::new(&snapshot, worker)?;
            seen.check(worker.work(), &run)?;
            if seen.knows_children(&run) {
                return Ok(run.ns_per_operation);
            }
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(OVERDUE);
    }
    bail!("it does not see all children")
}

/// What the probe tells of a worker and of all that it started.
struct Seen<'a> {
    worker: &'a Process<MemUsage>,
    children: u64,
    child_faults: u64,
}

/// What answering and being asked may take beside the work.
const SLACK: u64 = 16;

impl<'a> Seen<'a> {
    fn new(snapshot: &'a MemSnapshot, worker: &Worker) -> Result<Self> {
        let worker = snapshot.process(worker.pid()).context("it does not see the worker")?;
        let descendants = descendants(snapshot, worker.id);
        let rows = || snapshot.processes.iter().filter(|row| descendants.contains(&row.id));
        Ok(Self {
            worker,
            children: rows().filter(|row| row.info.parent == Some(worker.id)).count() as u64,
            child_faults: rows().map(|row| row.usage.minor_faults).sum(),
        })
    }

    fn check(&self, work: Work, run: &Run) -> Result<()> {
        let usage = &self.worker.usage;
        let is = |what: &str, told: u64, truth: u64| {
            let range = truth..=truth + SLACK;
            ensure!(range.contains(&told), "{told} {what} of {truth}");
            Ok(())
        };
        is("minor faults", usage.minor_faults, run.faults)?;
        if let Some(maps) = run.maps {
            usage.allocations.map_or(Ok(()), |told| is("allocations", told, maps))?;
            usage.deallocations.map_or(Ok(()), |told| is("deallocations", told, maps))?;
        }
        if let (Work::Touch, Some(peak)) = (work, usage.resident_peak_bytes) {
            ensure!(peak >= work::REGION_BYTES as u64, "a peak of {peak} bytes");
        }
        let (told, truth) = (self.child_faults, run.child_faults);
        ensure!(told <= truth, "{told} faults of children, they had {truth}");
        Ok(())
    }

    fn knows_children(&self, run: &Run) -> bool {
        let nearly = |told: u64, truth: u64| told >= work::nearly_all(truth);
        nearly(self.children, run.children) && nearly(self.child_faults, run.child_faults)
    }
}

fn descendants(snapshot: &MemSnapshot, of: ProcessId) -> HashSet<ProcessId> {
    let mut found = HashSet::from([of]);
    loop {
        let before = found.len();
        let rows = snapshot.processes.iter();
        let born = rows.filter(|row| row.info.parent.is_some_and(|parent| found.contains(&parent)));
        let born: Vec<_> = born.map(|row| row.id).collect();
        found.extend(born);
        if found.len() == before {
            found.remove(&of);
            return found;
        }
    }
}

/// Time per run of the watcher's programs, by the kernel's statistics (which cost
/// something themselves: hence not in the runs that are timed), and how often they
/// ran, for others on the machine too.
fn shares(watcher: &Watcher, worker: &mut Worker) -> Result<BTreeMap<String, Share>> {
    let _statistics = Statistics::enable()?;
    for _ in 0..TRIES {
        let before = watcher.programs()?;
        if before.is_empty() {
            return Ok(BTreeMap::new());
        }
        let run = worker.play()?;
        let start = Instant::now();
        while start.elapsed() < RELEASE_TIMEOUT {
            let after = watcher.programs()?;
            if released(&before, &after) >= work::nearly_all(run.children) {
                return shares_of(worker.work(), &run, &before, &after);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    bail!("it does not see the release of all processes")
}

/// How many processes have been released; any number if the watcher does not look.
fn released(before: &Programs, after: &Programs) -> u64 {
    const RELEASE: &str = "process_on_release";
    let runs = |programs: &Programs| programs.get(RELEASE).map(|program| program.runs);
    runs(after).zip(runs(before)).map_or(u64::MAX, |(after, before)| after - before)
}

fn shares_of(
    work: Work,
    run: &Run,
    before: &Programs,
    after: &Programs,
) -> Result<BTreeMap<String, Share>> {
    let mut shares = BTreeMap::new();
    for (program, now) in after {
        let then = before.get(program).copied().unwrap_or_default();
        let (count, time) = (now.runs - then.runs, now.time - then.time);
        let least = run.events_at_least(work, program);
        ensure!(
            count >= least,
            "{program} ran {count} times of {least} during {work}: its cost means nothing"
        );
        if count > 0 {
            shares.insert(
                program.clone(),
                Share {
                    runs_per_operation: count as f64 / run.operations as f64,
                    ns_per_run: time.as_nanos() as f64 / count as f64,
                },
            );
        }
    }
    Ok(shares)
}
