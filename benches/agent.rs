//! Cost of an agent that reads CPU, memory and disk once a second: with many sleeping
//! processes, and while many short processes start and end.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

mod support;

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ebpfmetrics::{CpuProbe, DiskProbe, Intervals, Kernel, MemProbe, Probe as _, ProbeSet};
use support::{Helper, Quartiles, Role, Statistics, process_cpu_ns, role, serve, swarm};

const EVERY: Duration = Duration::from_secs(1);
const INTERVALS: usize = 15;

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(role) if role == "storm" => storm(),
        Role::Helper(_) => swarm::run(),
        Role::None => Ok(()),
    }
}

fn bench() -> Result<()> {
    let mut swarm = Helper::start("swarm")?;
    println!("CPU, memory and disk in one set, each second; medians (quartiles) of {INTERVALS}");
    for sleepers in [0, 1_000, 10_000] {
        let _pids: [u32; 2] = swarm.ask(sleepers)?;
        let mut agent = load()?.intervals(EVERY);
        agent.next().context("no end")??;
        println!("\n{sleepers} processes that sleep");
        quiet(&mut agent)?;
        in_a_storm(agent)?;
    }
    Ok(())
}

fn load() -> Result<ProbeSet> {
    let kernel = Kernel::read()?;
    let mut probes = ProbeSet::builder().build_on(&kernel)?;
    probes.add_on(CpuProbe::builder(), &kernel)?;
    probes.add_on(MemProbe::builder(), &kernel)?;
    probes.add_on(DiskProbe::builder(), &kernel)?;
    probes.reset()?;
    Ok(probes)
}

fn quiet(agent: &mut Intervals<ProbeSet>) -> Result<()> {
    let mut times = Vec::new();
    let mut rows = 0;
    for _ in 0..INTERVALS {
        let before = process_cpu_ns();
        let interval = agent.next().context("no end")??;
        rows = interval.snapshot.processes().len();
        times.push((process_cpu_ns() - before) as f64 / 1e6);
    }
    let time = Quartiles::of(times);
    println!("  reading {rows} processes: {time:.2} ms, {:.2} % of one CPU", time.median() / 10.0);
    Ok(())
}

fn in_a_storm(mut agent: Intervals<ProbeSet>) -> Result<()> {
    let statistics = Statistics::enable()?;
    let mut storm = Helper::start("storm")?;
    let (mut times, mut ended, mut lost) = (Vec::new(), 0, 0);
    agent.next().context("no end")??;
    let programs = |agent: &mut Intervals<ProbeSet>| -> Result<f64> {
        let cost = agent.probe().cost()?;
        let events = cost
            .programs
            .iter()
            .filter(|it| !it.program.starts_with("process_walk") && it.program != "process_ends");
        Ok(events.map(|program| program.run_time.as_nanos() as f64).sum())
    };
    let before = programs(&mut agent)?;
    // it forks on its own CPU time, so that the agent's intervals do not matter
    let storming = std::thread::spawn(move || -> Result<[u64; 2]> { storm.ask(INTERVALS) });
    while !storming.is_finished() {
        let before = process_cpu_ns();
        let interval = agent.next().context("no end")??;
        let snapshot = &interval.snapshot;
        ended += snapshot.processes().filter(|process| process.info.exited).count() as u64;
        ended += snapshot.overflow_processes();
        lost += snapshot.losses.total();
        times.push((process_cpu_ns() - before) as f64 / 1e6);
    }
    let [forks, spent_ns] = storming.join().expect("it does not panic")?;
    ensure!(forks > 1000, "{forks} processes are no storm");
    let after = programs(&mut agent)?;
    let time = Quartiles::of(times);
    let health = agent.probe().health()?;
    let resident = procfs::process::Process::myself()?.status()?.vmrss.unwrap_or_default();
    println!(
        "  storm of {forks} processes, {:.0} us of CPU time each: programs {:.2} us each; {ended} \
         ends reported, {lost} losses; reading {time:.2} ms, {:.2} % of one CPU",
        spent_ns as f64 / forks as f64 / 1e3,
        (after - before) / forks as f64 / 1e3,
        time.median() / 10.0,
    );
    println!(
        "  resident {:.1} MiB, kernel memory of maps {:.1} MiB",
        resident as f64 / 1024.0,
        health.map_bytes as f64 / f64::from(1 << 20)
    );
    drop(statistics);
    Ok(())
}

/// Starts `true` again and again for so many seconds; answers with how many, and what
/// they used of CPU time, with this process.
fn storm() -> Result<()> {
    serve(|seconds| {
        let start = std::time::Instant::now();
        let mut forks = 0_u64;
        while start.elapsed() < Duration::from_secs(seconds as u64) {
            let status = Command::new("true").stdin(Stdio::null()).status()?;
            ensure!(status.success(), "{status}");
            forks += 1;
        }
        let times = procfs::process::Process::myself()?.stat()?;
        let ticks = times.utime + times.stime + (times.cutime + times.cstime) as u64;
        Ok(format!("{forks} {}", ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second()))
    })
}
