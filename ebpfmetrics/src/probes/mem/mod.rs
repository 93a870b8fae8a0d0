//! Memory that processes hold, their peaks, page faults, and changes of the address space.

mod cgroup;
mod collector;
mod decode;
mod fallback;
mod gauges;
mod options;
mod proportional;
mod sum;
mod system;
mod usage;

pub use cgroup::CgroupMemory;
pub use collector::{Mem, MemCounters};
pub use gauges::MemGauges;
pub use options::{MemPeaks, MemProbeBuilder};
pub use proportional::ProportionalMemory;
pub use system::{FilteredMemory, MachineMemory, MemSystem};
pub use usage::{MemSource, MemUsage};

pub use crate::record::MemLoss;
use crate::{
    set::Single,
    snapshot::{ProbeSnapshot, Process},
};

/// Measures the memory of every process in the kernel: what it holds, its peaks between two
/// reads, and how its address space grows and shrinks.
///
/// * **Source**: the walk over all tasks reads gauges and page faults; the tracepoint
///   `rss_stat` brings peaks of the resident set, `mmap_lock_released` and
///   `sched_process_fork` changes of the address space, `sched_process_exit` and
///   `sched_process_free` processes that end in between. The fields of [`MemUsage`] name
///   their kernel fields.
/// * **Units**: bytes. Gauges are exact to the page.
/// * **Kernel**: Linux 5.10 with BTF. The address space is followed by default where that is
///   cheap, see [`address_space`](MemProbeBuilder::address_space).
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) reports in advance.
/// * **Scope**: all processes of the machine if the reader is in the initial PID namespace.
///   The figures of processes that the walk does not show come from `/proc/PID/status`;
///   [`MemUsage::source`] says so.
///
/// Dropping the probe detaches its programs and frees its maps.
///
/// ```no_run
/// use std::{thread::sleep, time::Duration};
/// use ebpfmetrics::{MemProbe, Probe};
///
/// let mut probe = MemProbe::builder().load()?;
/// loop {
///     sleep(Duration::from_secs(1));
///     for process in &probe.reset()?.processes {
///         let (now, peak) = (process.usage.resident_bytes, process.usage.resident_peak_bytes);
///         println!("{:>7} {:<15} {now:?} now, {peak:?} peak", process.id, process.info.comm);
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
pub type MemProbe = Single<Mem>;

/// What every process holds at the end of a window, and what it did in the window.
pub type MemSnapshot = ProbeSnapshot<MemUsage, MemSystem>;

impl MemSnapshot {
    /// The sum over all processes, including those that have exited: [`sum`](Self::sum). Address
    /// spaces that several processes share count once, see [`MemUsage`].
    pub fn total(&self) -> MemUsage {
        self.sum()
    }

    /// Processes that the kernel killed in the window because memory ran out.
    pub fn oom_killed(&self) -> impl Iterator<Item = &Process<MemUsage>> {
        self.processes.iter().filter(|process| process.usage.oom_kills > 0)
    }
}
