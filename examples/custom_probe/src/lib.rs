//! A probe in a crate of its own: system calls per process.
//!
//! It has its own BPF object and uses nothing but the public API of `ebpfmetrics`. With that
//! it has windows, intervals, filters, groups and deltas, and joins sets, as any built-in
//! probe. `docs/custom-probe.md` explains it.
//!
//! ```no_run
//! use custom_probe::SyscallProbe;
//! use ebpfmetrics::Probe;
//!
//! let mut probe = SyscallProbe::builder().load()?;
//! std::thread::sleep(std::time::Duration::from_secs(1));
//! let second = probe.reset()?;
//! for process in &second.processes {
//!     let calls = second.window.per_second(process.usage.calls);
//!     println!("{} {}: {calls} calls per second", process.id, process.info.comm);
//! }
//! # Ok::<(), ebpfmetrics::Error>(())
//! ```

mod record;

use std::ops::AddAssign;

use ebpfmetrics::{
    Kernel, ProcessId, Result, Usage,
    kit::{Collector, Loading, Object, Requirements, SetOptions, Single, Span, check_option},
    snapshot::{LossCause, LossScope, ProbeSnapshot, Source},
};

use crate::record::SyscallsCountsRecord;
pub use crate::record::SyscallsLoss;

/// ELF is read in place, which takes 8-byte alignment.
#[repr(C, align(8))]
struct Aligned<T>(T);

static OBJECT: &[u8] = &Aligned(*include_bytes!("../objects/syscalls.bpf.o")).0;

/// Counts the system calls of every process, and those that fail.
///
/// **It slows down every system call of the machine** by some 330 ns, of which 170 are the
/// kernel's way through two tracepoints with programs that do nothing: `getppid` takes
/// 520 ns instead of 220 (Linux 6.18 in a virtual machine, `benches/syscall_cost.rs`). Load
/// it for a question, not for good.
///
/// * **Source**: the tracepoints `raw_syscalls:sys_enter` and `sys_exit`.
/// * **Units**: counts, of what happened since the probe was loaded.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Losses**: [`SyscallsLoss`], and `run_skipped`: since 6.2 the kernel skips a program
///   that is under way on the same CPU.
pub type SyscallProbe = Single<Syscalls>;

/// The system calls of every process in a window.
pub type SyscallSnapshot = ProbeSnapshot<SyscallUsage, ()>;

/// System calls, counted since a window began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyscallUsage {
    /// Calls that began, of all threads. `raw_syscalls:sys_enter`. One that the kernel
    /// restarts after a signal counts again; what the kernel serves without being entered
    /// (vDSO, io_uring) is no call.
    #[doc(alias = "sys_enter")]
    pub calls: u64,
    /// Calls that ended with an error, those interrupted by a signal included.
    /// `raw_syscalls:sys_exit` with a result of -4095 to -1. If a call began before the
    /// window, its error may be in the window without the call.
    #[doc(alias = "sys_exit")]
    pub errors: u64,
}

impl AddAssign<&Self> for SyscallUsage {
    fn add_assign(&mut self, more: &Self) {
        self.calls += more.calls;
        self.errors += more.errors;
    }
}

impl Usage for SyscallUsage {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(earlier.calls),
            errors: self.errors.saturating_sub(earlier.errors),
        }
    }
}

ebpfmetrics::usage_operators!(SyscallUsage);

/// Options of a [`SyscallProbe`].
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct SyscallProbeBuilder {
    processes: u32,
    set: SetOptions,
}

impl SyscallProbeBuilder {
    /// How many processes can be counted at a time; the calls of those beyond are the loss
    /// `process_table_full`. 16,384 by default; the kernel memory is allocated at loading.
    pub fn processes(mut self, processes: u32) -> Self {
        self.processes = processes;
        self
    }
}

impl Default for SyscallProbeBuilder {
    fn default() -> Self {
        Self { processes: 16_384, set: SetOptions::default() }
    }
}

ebpfmetrics::probe_builder!(SyscallProbeBuilder, Syscalls);

/// What the probe is, for the library.
pub struct Syscalls {
    object: Object,
}

impl Collector for Syscalls {
    const NAME: &'static str = "syscalls";
    const COUNTS: Option<&'static str> = Some("syscalls_counts");

    type Options = SyscallProbeBuilder;
    type Counters = SyscallsCountsRecord;
    type Gauges = ();
    type Usage = SyscallUsage;
    type System = ();
    type Loss = SyscallsLoss;

    fn requirements() -> Requirements {
        Requirements { tracepoints: ["sys_enter", "sys_exit"].into(), ..Default::default() }
    }

    fn load(options: SyscallProbeBuilder, loading: &Loading<'_>) -> Result<Self> {
        check_option(Self::NAME, "processes", options.processes, 1..=1 << 22)?;
        let object = loading
            .object(Self::NAME, OBJECT)
            .map_max_entries("syscalls_counts", options.processes)
            .load(loading.kernel)?;
        Ok(Self { object })
    }

    fn attach(&mut self, kernel: &Kernel) -> Result<()> {
        // ends of calls last: no error without its call
        self.object.attach("syscalls_enter", "sys_enter", kernel)?;
        self.object.attach("syscalls_leave", "sys_exit", kernel)
    }

    fn object(&self) -> Option<&Object> {
        Some(&self.object)
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        Some(&mut self.object)
    }

    fn usage(
        &self,
        _: ProcessId,
        counters: &SyscallsCountsRecord,
        _: Option<&()>,
        _: Span,
    ) -> SyscallUsage {
        SyscallUsage { calls: counters.calls, errors: counters.errors }
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("calls", "tp_btf/sys_enter"),
            Source::new("errors", "tp_btf/sys_exit: a result of -4095 to -1"),
        ]
    }
}

impl LossCause for SyscallsLoss {
    const PROBE: &'static str = Syscalls::NAME;
    const ALL: &'static [Self] = Self::ALL;

    fn scope(self) -> LossScope {
        LossScope::Processes
    }
}
