//! Block I/O of processes and devices.

mod assemble;
mod charges;
mod class;
mod collector;
mod counters;
mod describe;
mod device;
mod devices;
mod hooks;
mod latency;
mod options;
mod rows;
mod slow_io;
mod slow_io_buffer;
mod slow_io_reader;
mod system;
mod totals;
mod usage;

pub use class::{DiskClass, DiskOperation};
pub use collector::Disk;
pub use counters::{DiskByClass, DiskCounters};
pub use device::{DiskDevice, DiskDeviceId};
pub use latency::DiskLatency;
pub use options::DiskProbeBuilder;
pub use slow_io::SlowIo;
#[allow(unused_imports, reason = "for the events")]
pub(crate) use slow_io_buffer::SlowIoBuffer;
pub use system::DiskSystem;
pub use usage::{DiskDeviceUsage, DiskUsage};

pub use crate::record::DiskLoss;
use crate::{set::Single, snapshot::ProbeSnapshot};

/// Measures the disk I/O of every process in the kernel: operations, bytes and latencies, per
/// process and device. Buffered writes are charged to the process that dirtied the pages.
///
/// * **Source**: the tracepoints `block_io_start` (before Linux 6.5 `block_getrq`),
///   `block_rq_issue`, `block_rq_merge`, `block_rq_complete` and `writeback_dirty_folio`
///   (before 5.16 `writeback_dirty_page`); if there are devices without requests (zram, LVM,
///   RAID), also `block_bio_queue` and `block_bio_complete`; the walk over all tasks and
///   `sched_process_exit` for dirtied bytes; `/proc/diskstats` and `/sys` for names and busy
///   time.
/// * **Exact**: operations and bytes of a device equal the growth of `/proc/diskstats`, whose
///   writes include flushes. The reads and direct writes of a process equal what it did. For
///   written pages the class says how certain the process is, see [`DiskClass`].
/// * **Units**: bytes and counts; times are [`Duration`](std::time::Duration)s in
///   [`Histogram`](crate::histogram::Histogram)s with buckets that double from 1,024 ns.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Errors**: as [`preflight`](crate::preflight()) reports in advance.
/// * **Scope**: all processes and devices of the machine. In a PID namespace other than the
///   initial one, processes outside of it have no dirtied bytes while they live.
///
/// Dropping the probe detaches its programs and frees its maps.
///
/// ```no_run
/// use std::{thread::sleep, time::Duration};
/// use ebpfmetrics::{DiskProbe, Probe};
///
/// let mut probe = DiskProbe::builder().load()?;
/// loop {
///     sleep(Duration::from_secs(1));
///     let second = probe.reset()?;
///     for process in second.processes.iter().filter(|p| p.usage.total.operations() > 0) {
///         let (read, written) = (process.usage.total.read_bytes, process.usage.total.written_bytes);
///         println!("{:>7} {:<15} {read:>12} {written:>12}", process.id.pid, process.info.comm);
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
pub type DiskProbe = Single<Disk>;

/// The disk usage of every process in a window, and the devices.
///
/// A counter counts the operations that completed in the window. Each operation is counted for
/// its process and for its device: `processes` and
/// [`system.unattributed`](DiskSystem::unattributed) together equal the
/// [`system.devices`](DiskSystem::devices) that carry no other device.
///
/// Processes that ended before the window and whose pages were written in it have a row too.
pub type DiskSnapshot = ProbeSnapshot<DiskUsage, DiskSystem>;
