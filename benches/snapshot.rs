//! CPU time of one reading of all processes: snapshots of the probes beside the crates
//! that read `/proc`, in turns, with many processes alive.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

mod support;

use std::{cell::RefCell, collections::HashSet, hint::black_box, rc::Rc};

use anyhow::{Result, ensure};
use ebpfmetrics::{CpuProbe, Kernel, MemProbe, Probe, ProbeSet, snapshot::Rows};
use procfs::Current as _;
use support::{Helper, Quartiles, Role, process_cpu_ns, role, swarm};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

const ROUNDS: usize = 15;

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(_) => swarm::run(),
        Role::None => Ok(()),
    }
}

fn bench() -> Result<()> {
    let mut swarm = Helper::start("swarm")?;
    println!("snapshot of all processes: CPU time, median (quartiles) of {ROUNDS} rounds in turns");
    for sleepers in [500, 5_000, 20_000] {
        let needed = sleepers as u64 * (160 << 10);
        if procfs::Meminfo::current()?.mem_available.is_some_and(|free| free < needed) {
            println!("SKIPPED {sleepers} processes: they take {} MiB of memory", needed >> 20);
            continue;
        }
        let [first, last] = swarm.ask(sleepers)?;
        let mut readers = readers()?;
        let mut times = vec![Vec::new(); readers.len()];
        let mut processes = 0;
        for round in 0..=ROUNDS {
            for (reader, times) in readers.iter_mut().zip(&mut times) {
                let before = process_cpu_ns();
                let pids = black_box((reader.read)()?);
                let time = process_cpu_ns() - before;
                let seen: HashSet<u32> = pids.into_iter().collect();
                let found = seen.iter().filter(|pid| (first..=last).contains(*pid)).count();
                ensure!(
                    found >= sleepers,
                    "{} sees {found} of {sleepers} processes: its time means nothing",
                    reader.name
                );
                processes = processes.max(seen.len());
                if round > 0 {
                    times.push(time as f64 / 1e6);
                }
            }
        }
        println!("\n{processes} processes");
        let times: Vec<_> = times.into_iter().map(Quartiles::of).collect();
        for (reader, time) in readers.iter().zip(&times) {
            println!(
                "  {:36} {time:26.2} ms {:7.2} us per process {:6.1} x",
                reader.name,
                time.median() * 1e3 / processes as f64,
                time.median() / times[0].median(),
            );
        }
    }
    Ok(())
}

/// Reads what `name` says of all processes, with their names, and returns their pids.
struct Reader {
    name: &'static str,
    read: Box<dyn FnMut() -> Result<Vec<u32>>>,
}

/// Reads a probe, which others may read too.
fn read<P: Probe<Snapshot: Rows>>(probe: &Rc<RefCell<P>>) -> Result<Vec<u32>> {
    let snapshot = black_box(probe.borrow_mut().snapshot()?);
    Ok(snapshot.rows().map(|row| row.id.pid).collect())
}

fn readers() -> Result<Vec<Reader>> {
    let kernel = Kernel::read()?;
    let mut set = ProbeSet::builder().build_on(&kernel)?;
    set.add_on(CpuProbe::builder(), &kernel)?;
    set.add_on(MemProbe::builder(), &kernel)?;
    let mut empty = ProbeSet::builder().build_on(&kernel)?;
    let cpu = Rc::new(RefCell::new(CpuProbe::builder().load_on(&kernel)?));
    let mem = Rc::new(RefCell::new(MemProbe::builder().load_on(&kernel)?));
    let (cpu_alone, mem_alone) = (Rc::clone(&cpu), Rc::clone(&mem));
    let read_set = |set: &mut ProbeSet| -> Result<Vec<u32>> {
        let snapshot = black_box(set.snapshot()?);
        Ok(snapshot.processes().map(|process| process.id.pid).collect())
    };
    let set = move || read_set(&mut set);
    let empty = move || read_set(&mut empty);
    let separately = move || {
        read(&cpu)?;
        read(&mem)
    };
    let mut system = System::new()?;
    let sysinfo = move || {
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        Ok(system.processes().keys().map(|pid| pid.as_u32()).collect())
    };
    Ok(vec![
        Reader { name: "a set of CpuProbe and MemProbe", read: Box::new(set) },
        Reader { name: "a set without probes", read: Box::new(empty) },
        Reader { name: "both, read separately", read: Box::new(separately) },
        Reader { name: "CpuProbe", read: Box::new(move || read(&cpu_alone)) },
        Reader { name: "MemProbe", read: Box::new(move || read(&mem_alone)) },
        Reader { name: "procfs: stat, status", read: Box::new(|| proc(false)) },
        Reader { name: "procfs: stat, status, schedstat", read: Box::new(|| proc(true)) },
        Reader { name: "sysinfo: CPU, memory", read: Box::new(sysinfo) },
    ])
}

/// `schedstat` has the time exact to the ns, of the first thread only.
fn proc(schedstat: bool) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for process in procfs::process::all_processes()?.flatten() {
        let (Ok(stat), Ok(status)) = (process.stat(), process.status()) else { continue };
        black_box((&stat.comm, stat.utime, stat.stime, stat.minflt));
        black_box((status.voluntary_ctxt_switches, status.vmsize, status.vmrss, status.vmhwm));
        if schedstat && let Ok(schedstat) = process.schedstat() {
            black_box(schedstat.sum_exec_runtime);
        }
        pids.push(process.pid as u32);
    }
    Ok(pids)
}
