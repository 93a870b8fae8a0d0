//! Kernel slab memory allocated and freed on behalf of processes.

mod collector;
mod options;
mod system;
mod usage;

pub use collector::Slab;
pub use options::SlabProbeBuilder;
pub use system::SlabSystem;
pub use usage::SlabUsage;

pub use crate::record::SlabLoss;
use crate::{set::Single, snapshot::ProbeSnapshot};

/// Counts the kernel slab memory that is allocated and freed on behalf of every process.
///
/// Slab memory is the kernel's own memory, not that of the process. It is counted at every
/// allocation and free of the whole machine: **50 to 120 ns each**, 170 to 280 ns with the
/// address map. A program that only makes system calls that allocate takes 13 to 26 % more
/// CPU time, with the address map 49 to 83 %. Load this probe to answer a question, not
/// permanently.
///
/// * **Source**: the tracepoints `kmalloc`, `kmem_cache_alloc`, `kfree` and
///   `kmem_cache_free`, before Linux 6.1 also `kmalloc_node` and `kmem_cache_alloc_node`. The
///   walk over all tasks reads the counters; `sched_process_exit` and `sched_process_free`
///   bring those of processes that end in between.
/// * **Attribution**: the process that runs is charged. The kernel does not record on whose
///   behalf it allocates: an interrupt is charged to the process that it interrupts, a kernel
///   thread is charged for its work for others, and interrupts on an idle CPU are counted
///   apart in [`SlabSystem::idle`].
/// * **Units**: counts and bytes. What happened before the probe was loaded is not known.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) reports in advance.
/// * **Kernel memory**: 2.5 MiB for the [table](SlabProbeBuilder::table_entries), and the
///   [address map](SlabProbeBuilder::address_map) if it is enabled. All of it is allocated
///   at loading, because the hooks run inside the allocator and cannot allocate.
/// * **Losses**: those of [`SlabLoss`], and `run_skipped`: since Linux 6.2 the kernel does not
///   run a program again for an interrupt that arrives while it runs on the same CPU.
/// * **Scope**: all processes of the machine if the reader is in the initial PID namespace.
///   Otherwise those of its own namespace, and of the others those that start and exit while
///   the probe is loaded.
///
/// Dropping the probe detaches its programs and frees its maps.
///
/// ```no_run
/// use std::{thread::sleep, time::Duration};
/// use ebpfmetrics::{Probe, SlabProbe};
///
/// let mut probe = SlabProbe::builder().address_map(200_000).load()?;
/// sleep(Duration::from_secs(1));
/// let second = probe.reset()?;
/// for process in &second.processes {
///     println!(
///         "{:>7} {:<15} {:8} allocations, {:10} bytes; {:10} bytes outstanding",
///         process.id.pid,
///         process.info.comm,
///         process.usage.allocations,
///         process.usage.allocated_bytes,
///         process.usage.outstanding_bytes.unwrap_or_default(),
///     );
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
pub type SlabProbe = Single<Slab>;

/// Kernel slab memory allocated and freed on behalf of every process in a window.
///
/// Nothing is left out: each allocation and each free is counted in one of `processes`,
/// `overflow` and [`system.idle`](SlabSystem::idle), or in `losses`.
pub type SlabSnapshot = ProbeSnapshot<SlabUsage, SlabSystem>;
