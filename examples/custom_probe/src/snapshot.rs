use std::sync::Arc;

use ebpfmetrics::{Losses, ProcessId, ProcessInfo, Provenance, Usage, Window, kit::Totals};

/// The system calls of every process in a window.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SyscallSnapshot {
    /// The time that the counters are of.
    pub window: Window,
    /// Processes in ascending order of [`ProcessId`], exited ones included.
    pub processes: Vec<SyscallProcess>,
    /// Processes that exited beyond the bound of
    /// [`SyscallProbeBuilder::max_exited`](crate::SyscallProbeBuilder::max_exited),
    /// together.
    pub folded: SyscallFolded,
    /// What could not be counted.
    pub losses: Losses,
    /// Where the figures come from on this kernel.
    pub provenance: Arc<Provenance>,
}

ebpfmetrics::process_rows!(SyscallSnapshot: SyscallProcess: SyscallUsage);

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyscallProcess {
    /// Who it is, for all time.
    pub id: ProcessId,
    /// Its name, its parent, whether it has exited and more.
    pub info: ProcessInfo,
    /// Its system calls in the window.
    pub usage: SyscallUsage,
}

/// Processes that exited, counted together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyscallFolded {
    /// How many.
    pub processes: u64,
    /// Their system calls in the window.
    pub usage: SyscallUsage,
}

impl SyscallFolded {
    pub(crate) fn new(processes: u64, usage: SyscallUsage) -> Self {
        Self { processes, usage }
    }
}

/// System calls, counted since a window began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyscallUsage {
    /// Calls that began, of all threads. `raw_syscalls:sys_enter`. One that the
    /// kernel restarts after a signal counts again; what the kernel serves without
    /// being entered (vDSO, io_uring) is no call.
    #[doc(alias = "sys_enter")]
    pub calls: u64,
    /// Calls that ended with an error, those interrupted by a signal included.
    /// `raw_syscalls:sys_exit` with a result of -4095 to -1. Of a call that began
    /// before the window, the error can be in it alone.
    #[doc(alias = "sys_exit")]
    pub errors: u64,
}

/// What the ledger keeps of a process since its start, and what a row shows of the
/// window, is the same pair here.
impl Totals for SyscallUsage {
    type Gauges = ();

    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self { calls: f(self.calls, other.calls), errors: f(self.errors, other.errors) }
    }
}

impl Usage for SyscallUsage {
    fn plus(&self, other: &Self) -> Self {
        Totals::plus(self, other)
    }

    fn since(&self, earlier: &Self) -> Self {
        self.minus(earlier)
    }
}
