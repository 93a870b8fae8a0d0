//! Cost of having the probe: the time to load and attach it, the memory of the process
//! that holds it, and that of its maps in the kernel.
//!
//! Every sample is a process of its own, as a program loads its probes once.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

mod support;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use ebpfmetrics::{
    CpuProbe, Kernel, MemProbe, Probe as _, ProbeSet,
    cpu::{CpuAccounting, CpuProbeBuilder},
};
use procfs::process::Process;
use support::{Helper, Quartiles, Role, process_cpu_ns, role, serve};

const SAMPLES: usize = 21;

/// The figures of a sample, with a target if there is one.
const FIGURES: [(&str, &str); 13] = [
    ("load and attach, wall", "ms, target 100"),
    ("load and attach, CPU", "ms"),
    ("  of it reading the kernel's BTF", "ms"),
    ("  of it relocating, verifying, attaching", "ms"),
    ("  of it giving memory back", "ms"),
    ("a second probe on the same Kernel, CPU", "ms"),
    ("three probes on one Kernel, CPU", "ms, target 100"),
    ("one of each kind on one Kernel, CPU", "ms, target 100"),
    ("a set of both on the same Kernel, CPU", "ms"),
    ("resident memory before", "MiB"),
    ("resident memory with the probe", "MiB, target 12"),
    ("  highest while loading", "MiB"),
    ("kernel memory of its maps", "MiB, target 8"),
];

fn main() -> Result<()> {
    match role() {
        Role::Bench => bench(),
        Role::Helper(accounting) => load(match accounting.as_str() {
            "switches" => CpuAccounting::SchedSwitch,
            _ => CpuAccounting::Ledger,
        }),
        Role::None => Ok(()),
    }
}

fn bench() -> Result<()> {
    println!("loading the CPU probe: median (quartiles) of {SAMPLES} fresh processes");
    let mut samples = [const { Vec::new() }; 2];
    for _ in 0..SAMPLES {
        for (role, samples) in ["ledger", "switches"].into_iter().zip(&mut samples) {
            samples.push(Helper::start(role)?.ask::<f64, { FIGURES.len() }>(0)?);
        }
    }
    println!("{:42} {:>26} {:>26}", "", "Ledger", "SchedSwitch");
    for (index, (figure, unit)) in FIGURES.iter().enumerate() {
        let [ledger, switches] =
            samples.each_ref().map(|samples| Quartiles::of(samples.iter().map(|all| all[index])));
        println!("{figure:42} {ledger:>26.1} {switches:>26.1} {unit}");
    }
    Ok(())
}

fn load(accounting: CpuAccounting) -> Result<()> {
    let builder = CpuProbe::builder().accounting(accounting);
    serve(move |_| {
        let before_mib = memory_mib()?.0;
        let start = Instant::now();
        let mut moments = vec![process_cpu_ns()];
        let mut moment = || moments.push(process_cpu_ns());
        let kernel = Kernel::read()?;
        moment();
        let mut probe = builder.clone().load_on(&kernel)?;
        moment();
        drop(kernel);
        moment();
        let wall_ms = start.elapsed().as_secs_f64() * 1e3;
        let (resident_mib, highest_mib) = memory_mib()?;

        let before = process_cpu_ns();
        let kernel = Kernel::read()?;
        let first = builder.clone().load_on(&kernel)?;
        let between = process_cpu_ns();
        let second = builder.clone().load_on(&kernel)?;
        let second_ms = (process_cpu_ns() - between) as f64 / 1e6;
        let third = builder.clone().load_on(&kernel)?;
        drop(kernel);
        let three_ms = (process_cpu_ns() - before) as f64 / 1e6;

        let before = process_cpu_ns();
        let kernel = Kernel::read()?;
        let cpu = builder.clone().load_on(&kernel)?;
        let mem = MemProbe::builder().load_on(&kernel)?;
        let each_ms = (process_cpu_ns() - before) as f64 / 1e6;

        let before = process_cpu_ns();
        let set = load_set(builder.clone(), &kernel)?;
        let set_ms = (process_cpu_ns() - before) as f64 / 1e6;
        drop(kernel);

        let snapshot = probe.snapshot()?;
        ensure!(
            snapshot.process(std::process::id()).is_some_and(|me| !me.usage.cpu_time.is_zero()),
            "the probe does not count: its time means nothing"
        );
        let map_mib = probe.health()?.map_bytes as f64 / f64::from(1 << 20);
        drop((first, second, third, cpu, mem, set));
        let part = |from: usize, to: usize| (moments[to] - moments[from]) as f64 / 1e6;
        let figures: [f64; FIGURES.len()] = [
            wall_ms,
            part(0, 3),
            part(0, 1),
            part(1, 2),
            part(2, 3),
            second_ms,
            three_ms,
            each_ms,
            set_ms,
            before_mib,
            resident_mib,
            highest_mib,
            map_mib,
        ];
        Ok(figures.map(|figure| figure.to_string()).join(" "))
    })
}

fn load_set(cpu: CpuProbeBuilder, kernel: &Kernel) -> Result<ProbeSet> {
    let mut set = ProbeSet::builder().build_on(kernel)?;
    set.add_on(cpu, kernel)?;
    set.add_on(MemProbe::builder(), kernel)?;
    Ok(set)
}

/// Resident memory now and at its highest.
fn memory_mib() -> Result<(f64, f64)> {
    let status = Process::myself()?.status()?;
    let mib = |kib: Option<u64>| kib.map(|kib| kib as f64 / 1024.0).context("no VmRSS");
    Ok((mib(status.vmrss)?, mib(status.vmhwm)?))
}
