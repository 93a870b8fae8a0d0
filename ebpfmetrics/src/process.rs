use std::{borrow::Cow, fmt, time::Duration};

/// A process, for all time: its pid and when it started.
///
/// A pid comes back after its process is gone, the pair never does. The pid is
/// that of the initial PID namespace (the kernel's `task_struct::tgid`), the
/// start time is on `CLOCK_BOOTTIME` (`task_struct::start_boottime` of the group
/// leader); field 22 of `/proc/PID/stat` is the same in units of 10 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ProcessId {
    /// The process id in the initial PID namespace.
    #[doc(alias = "tgid")]
    pub pid: u32,
    /// Start time in ns since boot, suspend included.
    #[doc(alias = "start_boottime")]
    pub start_time_ns: u64,
}

impl ProcessId {
    /// Start time since boot, suspend included.
    pub fn start_time(&self) -> Duration {
        Duration::from_nanos(self.start_time_ns)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.fmt(f)
    }
}

/// What is known of a process beside what a probe measures; gauges, as of the end
/// of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its name; exec changes it.
    pub comm: Comm,
    /// Its parent; `None` for those that the kernel itself started, and for a
    /// process whose exit was not seen.
    #[doc(alias = "ppid")]
    pub parent: Option<ProcessId>,
    /// Its pid in its own PID namespace.
    pub namespace_pid: u32,
    /// The user it runs as (real user id in the initial user namespace).
    pub uid: u32,
    /// The cgroup it is in, of the [hierarchy](crate::Kernel::cgroup_hierarchy) that the
    /// probe was loaded with: the inode of its directory, 1 for the root. See
    /// [`Cgroups`](crate::Cgroups) for its path.
    pub cgroup_id: Option<u64>,
    /// Threads alive, or the number of threads that exited if the process has.
    pub threads: u32,
    /// A thread of the kernel itself.
    pub kernel_thread: bool,
    /// Ended and waited for: these are its final counters. Told in one window.
    pub exited: bool,
}

/// A thread, for all time: its thread id and when it started.
///
/// The thread id is the kernel's `task_struct::pid` in the initial PID
/// namespace, the start time its own on `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ThreadId {
    /// The thread id in the initial PID namespace.
    pub tid: u32,
    /// Start time in ns since boot, suspend included.
    pub start_time_ns: u64,
}

/// The name of a process or thread as the kernel keeps it: at most 15 bytes.
///
/// From `task_struct::comm`, changed by exec and `PR_SET_NAME`.
///
/// ```
/// use ebpfmetrics::Comm;
///
/// let comm = Comm::from_bytes(*b"kworker/0:1\0\0\0\0\0");
/// assert_eq!(comm, "kworker/0:1");
/// assert_eq!(comm.to_string(), "kworker/0:1");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comm([u8; 16]);

impl Comm {
    /// Wraps the kernel's field: the name ends at the first NUL.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The name without the NUL, in whatever encoding its owner chose.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// The name as text, with a replacement character for what is not UTF-8.
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.as_bytes())
    }
}

impl PartialEq<&str> for Comm {
    fn eq(&self, other: &&str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_string_lossy())
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string_lossy(), f)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Comm {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
