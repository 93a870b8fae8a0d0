use std::{io, ops::AddAssign};

use procfs::{
    ProcError,
    process::{Process, SmapsRollup},
};
use rustix::io::Errno;

use crate::{
    error::{Error, ErrorKind, Result},
    process::ProcessId,
};

/// Memory of a process in which each page counts by its share: a page that five processes map
/// counts a fifth for each of them. Sums over processes count a page once.
///
/// This is not part of snapshots, because it is expensive: the kernel walks the page tables of the
/// process to answer, and holds the lock on its address space for reading meanwhile. Measured on
/// the development machine: 0.1 ms for a small process, and 34 ms per GiB that is resident in pages
/// of 4 KiB (0.2 ms in huge pages).
///
/// * **Source**: `/proc/PID/smaps_rollup`.
/// * **Capabilities**: the permission to trace the process, `CAP_SYS_PTRACE` for those of other
///   users.
/// * **Shared address spaces**: a process that
///   [shares its memory](super::MemUsage::shares_memory_with) has the same figures as the owner. Leave
///   it out of a sum.
/// * **Not included**: pages of hugetlbfs, and memory that no process maps, such as page cache.
///
/// ```no_run
/// use ebpfmetrics::{ErrorKind, Filter, MemProbe, Probe, mem::ProportionalMemory};
///
/// let mut probe = MemProbe::builder().filter(Filter::tree(std::process::id())).load()?;
/// let mut sum = ProportionalMemory::default();
/// for process in &probe.snapshot()?.processes {
///     if process.usage.shares_memory_with.is_none() {
///         match ProportionalMemory::of(process.id) {
///             Ok(memory) => sum += memory,
///             Err(error) if error.kind() == ErrorKind::NoSuchProcess => {} // it has ended
///             Err(error) => return Err(error),
///         }
///     }
/// }
/// println!("{} bytes", sum.proportional_bytes);
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct ProportionalMemory {
    /// Proportional set size: resident pages, each divided by the number of mappings. `Pss`.
    #[doc(alias = "Pss")]
    pub proportional_bytes: u64,
    /// The part without a file behind it. `Pss_Anon`.
    #[doc(alias = "Pss_Anon")]
    pub proportional_anon_bytes: u64,
    /// The part that maps files. `Pss_File`.
    #[doc(alias = "Pss_File")]
    pub proportional_file_bytes: u64,
    /// The part that is shared memory and tmpfs. `Pss_Shmem`.
    #[doc(alias = "Pss_Shmem")]
    pub proportional_shmem_bytes: u64,
    /// Swapped out, by share. `SwapPss`.
    #[doc(alias = "SwapPss")]
    pub proportional_swap_bytes: u64,
    /// Resident pages that no other process maps: what its end would free. `Private_Clean` and
    /// `Private_Dirty`.
    #[doc(alias = "Uss")]
    #[doc(alias = "Private_Dirty")]
    pub private_bytes: u64,
    /// All resident pages, as in [`MemUsage`](super::MemUsage::resident_bytes). In sums a sum of
    /// resident sets. `Rss`.
    #[doc(alias = "Rss")]
    pub resident_bytes: u64,
}

impl ProportionalMemory {
    /// Reads the memory of a process. A zombie and a kernel thread have none: 0.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchProcess`] if it has ended, also if another process has its pid by now or
    /// if the reader's PID namespace does not show it; [`ErrorKind::PermissionDenied`] if the
    /// reader may not trace it.
    pub fn of(process: ProcessId) -> Result<Self> {
        let gone = || no_such_process(process);
        let fail = |error| explain(process, error);
        let (directory, stat) = process.open().map_err(fail)?.ok_or_else(gone)?;
        if stat.vsize > 0 {
            return directory.smaps_rollup().map(Self::from_rollup).map_err(fail);
        }
        // a kernel thread, a zombie, or a process whose first thread has ended before the others
        for task in directory.tasks().map_err(fail)?.flatten() {
            let path = format!("/proc/{}/task/{}", process.pid, task.tid);
            let thread = Process::new_with_root(path.into());
            let rollup = thread.and_then(|thread| match thread.stat()?.vsize {
                0 => Ok(None),
                _ => thread.smaps_rollup().map(Some),
            });
            match rollup {
                Ok(Some(rollup)) => {
                    return directory.stat().map(|_| Self::from_rollup(rollup)).map_err(fail);
                }
                Ok(None) => {}
                Err(error) if is_gone(&error) => {} // the thread alone, perhaps
                Err(error) => return Err(fail(error)),
            }
        }
        directory.stat().map(|_| Self::default()).map_err(fail)
    }
}

impl ProportionalMemory {
    fn from_rollup(rollup: SmapsRollup) -> Self {
        let map = rollup.memory_map_rollup.into_iter().next();
        let map = map.map(|map| map.extension.map).unwrap_or_default();
        let bytes = |name: &str| map.get(name).copied().unwrap_or_default();
        Self {
            proportional_bytes: bytes("Pss"),
            proportional_anon_bytes: bytes("Pss_Anon"),
            proportional_file_bytes: bytes("Pss_File"),
            proportional_shmem_bytes: bytes("Pss_Shmem"),
            proportional_swap_bytes: bytes("SwapPss"),
            private_bytes: bytes("Private_Clean") + bytes("Private_Dirty"),
            resident_bytes: bytes("Rss"),
        }
    }
}

impl AddAssign<&Self> for ProportionalMemory {
    fn add_assign(&mut self, more: &Self) {
        self.proportional_bytes += more.proportional_bytes;
        self.proportional_anon_bytes += more.proportional_anon_bytes;
        self.proportional_file_bytes += more.proportional_file_bytes;
        self.proportional_shmem_bytes += more.proportional_shmem_bytes;
        self.proportional_swap_bytes += more.proportional_swap_bytes;
        self.private_bytes += more.private_bytes;
        self.resident_bytes += more.resident_bytes;
    }
}

crate::usage_operators!(ProportionalMemory);

fn is_gone(error: &ProcError) -> bool {
    match error {
        ProcError::NotFound(_) => true,
        ProcError::Io(error, _) => error.raw_os_error() == Some(Errno::SRCH.raw_os_error()),
        _ => false,
    }
}

fn no_such_process(process: ProcessId) -> Error {
    let text = format!("process {process} has ended, or the reader's PID namespace hides it");
    Error::new(ErrorKind::NoSuchProcess, text)
}

fn explain(process: ProcessId, error: ProcError) -> Error {
    if is_gone(&error) {
        return no_such_process(process);
    }
    if let ProcError::PermissionDenied(_) = error {
        let text = format!(
            "no permission to read /proc/{process}/smaps_rollup: CAP_SYS_PTRACE is required for \
             processes of other users"
        );
        return Error::new(ErrorKind::PermissionDenied, text).with_source(error);
    }
    let text = format!("cannot read /proc/{process}/smaps_rollup: {error}");
    Error::new(ErrorKind::System, text).with_source(io::Error::other(error))
}
