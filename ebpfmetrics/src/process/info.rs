use super::{Comm, ProcessId};

/// Attributes of a process that do not depend on the probe.
///
/// The values are those at the end of the window. For a process that has exited they
/// are the values at its exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Name of the process. exec changes it.
    pub comm: Comm,
    /// Current parent. A process whose parent has exited gets another parent. `None` for
    /// processes that the kernel started, and when the parent is not known.
    #[doc(alias = "ppid")]
    pub parent: Option<ProcessId>,
    /// Process that forked this one. It stays the same when the parent changes. `None`
    /// when the probe did not see the fork.
    pub creator: Option<ProcessId>,
    /// Process id in the PID namespace of the process.
    pub namespace_pid: u32,
    /// Real user id, in the initial user namespace. `None` when it is not known.
    pub uid: Option<u32>,
    /// Cgroup of the process in the [hierarchy](super::CgroupHierarchy) that the probe
    /// uses: the inode of the cgroup's directory, 1 for the root. [`Cgroups`](super::Cgroups)
    /// finds its path.
    pub cgroup_id: Option<u64>,
    /// Number of live threads. For a process that has exited, the number of threads that
    /// exited with it.
    pub threads: u32,
    /// Whether this is a kernel thread.
    pub kernel_thread: bool,
    /// Whether the process has ended and its parent has waited for it. It has a row in the
    /// window of its end. It has another row in a later window only if the kernel has added
    /// usage since, or a probe has (such as write-back to a disk).
    pub exited: bool,
    /// State of the main thread.
    pub state: ProcessState,
    /// Nice value of the main thread, -20 to 19.
    pub nice: Option<i8>,
    /// Scheduling policy of the main thread.
    pub policy: Option<SchedulingPolicy>,
    /// CPU that the main thread last ran on.
    pub last_cpu: Option<u32>,
}

/// State of a process, as `ps` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum ProcessState {
    /// Running or ready to run.
    Running,
    /// Waits and can be interrupted by a signal.
    Sleeping,
    /// Waits and cannot be interrupted, usually for a disk.
    DiskSleep,
    /// Stopped by a signal.
    Stopped,
    /// Stopped by a debugger.
    Traced,
    /// Has exited, but its parent has not waited for it yet.
    Zombie,
    /// Has exited and is being removed.
    Dead,
    /// A kernel thread that waits for work and does not count towards the load.
    Idle,
    /// A kernel thread that is parked, for example because its CPU is offline.
    Parked,
    /// Not known, or not a state of this list.
    #[default]
    #[cfg_attr(feature = "serde", serde(other))]
    Unknown,
}

impl ProcessState {
    /// State from `task_struct::__state` and `task_struct::exit_state`, with the rules of
    /// the kernel's `task_state_index()`.
    pub fn from_kernel(state: u32, exit_state: u32) -> Self {
        const UNINTERRUPTIBLE: u32 = 0x2;
        // TASK_UNINTERRUPTIBLE | TASK_NOLOAD
        const IDLE: u32 = 0x402;
        const REPORTED: u32 = 0x7f;
        // TASK_RTLOCK_WAIT | TASK_FROZEN
        const REPORTED_AS_DISK_SLEEP: u32 = 0x9000;

        if state & REPORTED_AS_DISK_SLEEP != 0 {
            return Self::DiskSleep;
        }
        if state & IDLE == IDLE {
            return Self::Idle;
        }
        // the highest bit counts
        match (state | exit_state) & REPORTED {
            0 => Self::Running,
            1 => Self::Sleeping,
            UNINTERRUPTIBLE..0x4 => Self::DiskSleep,
            0x4..0x8 => Self::Stopped,
            0x8..0x10 => Self::Traced,
            0x10..0x20 => Self::Dead,
            0x20..0x40 => Self::Zombie,
            _ => Self::Parked,
        }
    }

    /// Letter that `ps` prints for the state, `?` if it is unknown.
    pub fn letter(self) -> char {
        match self {
            Self::Running => 'R',
            Self::Sleeping => 'S',
            Self::DiskSleep => 'D',
            Self::Stopped => 'T',
            Self::Traced => 't',
            Self::Zombie => 'Z',
            Self::Dead => 'X',
            Self::Idle => 'I',
            Self::Parked => 'P',
            Self::Unknown => '?',
        }
    }
}

/// Scheduling policy, see `sched(7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum SchedulingPolicy {
    /// `SCHED_OTHER`, the default.
    Other,
    /// `SCHED_FIFO`.
    Fifo,
    /// `SCHED_RR`.
    RoundRobin,
    /// `SCHED_BATCH`.
    Batch,
    /// `SCHED_IDLE`.
    Idle,
    /// `SCHED_DEADLINE`.
    Deadline,
    /// `SCHED_EXT`: a scheduler written in BPF.
    Ext,
}

impl SchedulingPolicy {
    /// Policy from `task_struct::policy`. `None` for a number that is not a known policy.
    pub fn from_kernel(policy: u32) -> Option<Self> {
        Some(match policy {
            0 => Self::Other,
            1 => Self::Fifo,
            2 => Self::RoundRobin,
            3 => Self::Batch,
            5 => Self::Idle,
            6 => Self::Deadline,
            7 => Self::Ext,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_those_of_ps() {
        let letter = |state, exit_state| ProcessState::from_kernel(state, exit_state).letter();
        for (state, exit_state, expected) in [
            (0, 0, 'R'),
            (1, 0, 'S'),
            (2, 0, 'D'),
            (4, 0, 'T'),
            (8, 0, 't'),
            (0, 0x10, 'X'),
            (0, 0x20, 'Z'),
            (0x80, 0x20, 'Z'), // TASK_DEAD with EXIT_ZOMBIE
            (0x80, 0x10, 'X'),
            (0x40, 0, 'P'),
            (0x402, 0, 'I'),
            (0x102, 0, 'D'),  // TASK_KILLABLE
            (0x104, 0, 'T'),  // TASK_STOPPED
            (0x2001, 0, 'S'), // freezable sleep
            (0x8000, 0, 'D'), // frozen
            (0x1000, 0, 'D'), // waits for an rtmutex
        ] {
            assert_eq!(letter(state, exit_state), expected, "{state:#x} {exit_state:#x}");
        }
        assert_eq!(ProcessState::default().letter(), '?');
    }

    #[test]
    fn policies_have_the_numbers_of_the_kernel() {
        assert_eq!(SchedulingPolicy::from_kernel(0), Some(SchedulingPolicy::Other));
        assert_eq!(SchedulingPolicy::from_kernel(7), Some(SchedulingPolicy::Ext));
        assert_eq!(SchedulingPolicy::from_kernel(4), None);
        assert_eq!(SchedulingPolicy::from_kernel(8), None);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn info_round_trips_through_json() {
        let info = ProcessInfo {
            comm: "make".into(),
            parent: Some(ProcessId { pid: 1, start_time_ns: 2 }),
            uid: Some(1000),
            cgroup_id: Some(u64::MAX),
            state: ProcessState::DiskSleep,
            nice: Some(-20),
            policy: Some(SchedulingPolicy::RoundRobin),
            exited: true,
            ..ProcessInfo::default()
        };
        let json = serde_json::to_string(&info).unwrap();
        assert!(
            json.contains(r#""state":"disk_sleep","nice":-20,"policy":"round_robin""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<ProcessInfo>(&json).unwrap(), info);
        // a newer version may know more states, an older one fewer fields
        let read: ProcessInfo = serde_json::from_str(r#"{"state":"dreaming"}"#).unwrap();
        assert_eq!(read, ProcessInfo::default());
    }
}
