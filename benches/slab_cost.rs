//! What counting every slab allocation costs: programs that do little but have the
//! kernel allocate and free, in turns without and with a watcher.
//!
//! Times are CPU times of those programs: what the hooks take is charged to them,
//! what else the machine does is not.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

mod support;

use std::{
    fmt,
    fs::File,
    io::{self, BufRead as _, BufReader},
    os::unix::net::UnixDatagram,
    process::{self, Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use ebpfmetrics::{Kernel, Probe as _, SlabProbe, slab::SlabProbeBuilder};
use support::{Helper, Quartiles, Role, Statistics, process_cpu_ns, role, serve};

const ROUNDS: usize = 21;
/// The best of these counts: other work on the machine can only disturb.
const PARTS: usize = 5;
const OPERATIONS: usize = 4000;
const ADDRESSES: u32 = 500_000;

/// What the programs do over and over, and how many objects it takes at the least.
const WORKS: [(&str, u64); 3] = [("pipe", 3), ("open", 1), ("datagram", 2)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watcher {
    Nobody,
    Counts,
    AddressMap,
    /// The same counts by the usual tool, where it is installed.
    Bpftrace,
}

/// What `SlabProbe` counts without the address map. Where the tool finds the
/// tracepoints: mounted for it alone if need be.
const BPFTRACE: &str = r#"[ -e /sys/kernel/debug/tracing/events ] || mount -t debugfs debugfs /sys/kernel/debug
exec bpftrace -e '
BEGIN { printf("ready\n"); }
tracepoint:kmem:kmalloc, tracepoint:kmem:kmem_cache_alloc {
    @allocations[pid] = count(); @allocated_bytes[pid] = sum(args->bytes_alloc);
}
tracepoint:kmem:kfree, tracepoint:kmem:kmem_cache_free { @frees[pid] = count(); }'"#;

impl fmt::Display for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nobody => "nobody (two equal runs)",
            Self::Counts => "SlabProbe",
            Self::AddressMap => "SlabProbe, address map",
            Self::Bpftrace => "bpftrace, counts",
        })
    }
}

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(work) => serve(|operations| work_for(&work, operations)),
        Role::None => Ok(()),
    }
}

/// The helper's side: CPU ns for so many operations, and its pid.
fn work_for(work: &str, operations: usize) -> Result<String> {
    let (ours, theirs) = UnixDatagram::pair()?;
    let mut packet = [7; 100];
    let before = process_cpu_ns();
    for _ in 0..operations {
        match work {
            "pipe" => drop(io::pipe()?),
            "open" => drop(File::open("/dev/null")?),
            _ => {
                ours.send(&packet)?;
                theirs.recv(&mut packet)?;
            }
        }
    }
    Ok(format!("{} {}", process_cpu_ns() - before, process::id()))
}

struct Row {
    watcher: Watcher,
    ns: Vec<f64>,
    ratio: Vec<f64>,
    events: f64,
    program_ns: Vec<(String, f64)>,
}

fn bench() -> Result<()> {
    let kernel = Kernel::read()?;
    let mut watchers = vec![Watcher::Nobody, Watcher::Counts, Watcher::AddressMap];
    match Command::new("bpftrace").arg("--version").output() {
        Ok(_) => watchers.push(Watcher::Bpftrace),
        Err(error) => println!("without bpftrace: {error}"),
    }
    println!(
        "one operation: medians (quartiles) of {ROUNDS} rounds\n{:10} {:24} {:>22} {:>22} {:>7} {:>12}",
        "work", "watcher", "CPU ns", "CPU with / without", "events", "ns per event"
    );
    for (work, least) in WORKS {
        let row = |&watcher| Row {
            watcher,
            ns: Vec::new(),
            ratio: Vec::new(),
            events: 0.0,
            program_ns: Vec::new(),
        };
        let mut rows: Vec<_> = watchers.iter().map(row).collect();
        let mut helper = Helper::start(work)?;
        let mut before = operations(&mut helper)?;
        for round in 0..ROUNDS {
            for row in &mut rows {
                if row.watcher == Watcher::Bpftrace && round % 3 > 0 {
                    continue; // it takes seconds to start
                }
                let mut watching = Watching::start(row.watcher, &kernel)?;
                let with = operations(&mut helper)?;
                if let Watching::Probe(probe) = &mut watching {
                    row.events = events(probe, &mut helper, least)?;
                    if round == 0 {
                        row.program_ns = program_ns(probe, &mut helper)?;
                    }
                }
                drop(watching);
                let after = operations(&mut helper)?;
                row.ns.push(with);
                row.ratio.push(2.0 * with / (before + after));
                before = after;
            }
        }
        let without = Quartiles::of(rows[0].ns.iter().copied()).median();
        let events = rows[1].events;
        for row in &mut rows {
            if row.watcher == Watcher::Bpftrace {
                row.events = events;
            }
            let ns = Quartiles::of(row.ns.iter().copied());
            let per_event = match row.events {
                0.0 => "-".to_owned(),
                events => format!("{:.0}", (ns.median() - without) / events),
            };
            println!(
                "{work:10} {:24} {ns:22.0} {:22.3} {:7.1} {per_event:>12}",
                row.watcher,
                Quartiles::of(row.ratio.iter().copied()),
                row.events,
            );
        }
        for row in &rows {
            let programs = row.program_ns.iter().map(|(name, ns)| format!("{name} {ns:.0}"));
            if !row.program_ns.is_empty() {
                println!(
                    "{work:10} {:24} {}",
                    row.watcher,
                    programs.collect::<Vec<_>>().join(", ")
                );
            }
        }
    }
    Ok(())
}

/// Who watches, for as long as the value lives.
enum Watching {
    Nobody,
    Probe(Box<SlabProbe>),
    Tool(Child),
}

impl Watching {
    fn start(watcher: Watcher, kernel: &Kernel) -> Result<Self> {
        let probe = |builder: SlabProbeBuilder| -> Result<Self> {
            Ok(Self::Probe(Box::new(builder.load_on(kernel)?)))
        };
        match watcher {
            Watcher::Nobody => Ok(Self::Nobody),
            Watcher::Counts => probe(SlabProbe::builder()),
            Watcher::AddressMap => probe(SlabProbe::builder().address_map(ADDRESSES)),
            Watcher::Bpftrace => {
                let mut tool = Command::new("unshare")
                    .args(["--mount", "sh", "-c", BPFTRACE])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()?;
                let output = tool.stdout.take().context("no output")?;
                let this = Self::Tool(tool);
                let ready = BufReader::new(output)
                    .lines()
                    .any(|line| line.is_ok_and(|line| line == "ready"));
                ensure!(ready, "bpftrace does not start");
                Ok(this)
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Self::Tool(tool) = self {
            let _ = tool.kill();
            let _ = tool.wait();
        }
    }
}

/// CPU ns of one operation.
fn operations(helper: &mut Helper) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..PARTS {
        let [ns, _] = helper.ask::<u64, 2>(OPERATIONS)?;
        best = best.min(ns as f64 / OPERATIONS as f64);
    }
    Ok(best)
}

/// Allocations and frees per operation; fails if the probe does not see them.
fn events(probe: &mut SlabProbe, helper: &mut Helper, least: u64) -> Result<f64> {
    probe.reset()?;
    let [_, pid] = helper.ask::<u64, 2>(OPERATIONS)?;
    let snapshot = probe.snapshot()?;
    let usage = &snapshot.process(pid as u32).context("no row")?.usage;
    let expected = least * OPERATIONS as u64;
    ensure!(usage.allocations >= expected, "{usage:?}, not {expected} allocations");
    Ok((usage.allocations + usage.frees) as f64 / OPERATIONS as f64)
}

/// ns per run of each program, by the kernel's statistics (which cost something
/// themselves: hence not in the runs that are timed).
fn program_ns(probe: &SlabProbe, helper: &mut Helper) -> Result<Vec<(String, f64)>> {
    let _statistics = Statistics::enable()?;
    helper.ask::<u64, 2>(OPERATIONS)?;
    let programs = probe.cost()?.programs;
    let hooks = programs.into_iter().filter(|program| program.run_count as usize > OPERATIONS / 2);
    Ok(hooks
        .filter_map(|program| Some((program.program.to_string(), program.ns_per_run()?)))
        .collect())
}
