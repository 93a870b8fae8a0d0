//! CPU time, switches, waits and migrations of processes; idle time of CPUs.

mod collector;
mod counters;
mod cpus;
mod options;
mod system;
mod threads;
mod usage;

pub use collector::Cpu;
pub use options::{CpuAccounting, CpuProbeBuilder};
pub use system::{CpuSystem, CpuThread, CpuTime};
pub use usage::CpuUsage;

pub use crate::record::CpuLoss;
use crate::{set::Single, snapshot::ProbeSnapshot};

/// Measures the CPU time of every process in the kernel.
///
/// * **Source**: the walk over all tasks reads the scheduler's counters; the tracepoints
///   `sched_process_exit` and `sched_process_free` bring those of processes that end in
///   between; with [`CpuAccounting::SchedSwitch`] also `sched_switch`. The fields of
///   [`CpuUsage`] name their kernel fields.
/// * **Units**: times are [`Duration`](std::time::Duration)s, exact to the ns.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: [`preflight`](crate::preflight()) reports in advance what is missing.
/// * **Scope**: all processes of the machine if the reader is in the initial PID namespace.
///   Otherwise the processes of its own namespace, and those of other namespaces that start and
///   exit while the probe is loaded.
///
/// Dropping the probe detaches its programs and frees its maps.
///
/// ```no_run
/// use std::{thread::sleep, time::Duration};
/// use ebpfmetrics::{CpuProbe, Probe};
///
/// let mut probe = CpuProbe::builder().load()?;
/// loop {
///     sleep(Duration::from_secs(1));
///     let second = probe.reset()?;
///     for process in &second.processes {
///         let percent = process.usage.percent_of_one_cpu(second.window);
///         println!("{:>7} {:<15} {percent:6.1} %", process.id.pid, process.info.comm);
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
pub type CpuProbe = Single<Cpu>;

/// The CPU usage of every process in a window, and the CPUs themselves.
///
/// Nothing is left out: the CPU time of `processes` and `overflow`, the idle time and the
/// interruptions of [`system.cpus`](CpuSystem::cpus) add up to the length of the window times
/// the number of CPUs.
pub type CpuSnapshot = ProbeSnapshot<CpuUsage, CpuSystem>;
