//! What a reader of events gets.

use std::process::ExitStatus;

use crate::{ProcessId, ProcessInfo, SlowIo};

/// Something that happened to a process.
///
/// What happened to one process comes in its order: started, executed, crossings of
/// the memory threshold, killed, exited. What it wrote may reach the device, and be
/// slow, after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "event", rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Event {
    /// It was made, by fork, vfork or clone, and has not run yet; it still has the name
    /// of its maker. Threads are not told. `sched_process_fork`.
    #[doc(alias = "fork")]
    ProcessStarted {
        /// Which.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
    },
    /// It runs another program now and has its name. `sched_process_exec`.
    #[doc(alias = "exec")]
    ProcessExecuted {
        /// Which.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
    },
    /// It is gone and waited for, and its totals are final: told some 16 ms after its
    /// last thread exited, which its time is of. `sched_process_free`.
    #[doc(alias = "exit")]
    ProcessExited {
        /// Which.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
        /// What its parent was told by wait(2).
        #[cfg_attr(feature = "serde", serde(serialize_with = "wait_status"))]
        exit_status: ExitStatus,
    },
    /// Its resident set has grown to the threshold; once, until it has shrunk by an
    /// eighth of the threshold and grown again. `rss_stat`.
    #[doc(alias = "rss_stat")]
    MemoryThreshold {
        /// Which.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
        /// Its resident set at that moment, up to 64 pages per CPU (before 6.2: per
        /// thread) off.
        resident_bytes: u64,
    },
    /// The kernel has killed it for want of memory, and its last thread exits.
    /// `signal_struct::oom_mm`.
    #[doc(alias = "oom")]
    OomKilled {
        /// Which.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
    },
    /// A device took at least as long for an operation as
    /// [`slow_io`](crate::DiskProbeBuilder::slow_io) says, and is done. `block_rq_complete`,
    /// `block_bio_complete`.
    SlowIo {
        /// Who is charged with it, and when it was done; `None` where nobody is. The name
        /// is that of when the process began to do I/O, or of its last exec since.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: Option<ProcessEvent>,
        /// What it was.
        #[cfg_attr(feature = "serde", serde(flatten))]
        io: SlowIo,
    },
    /// Here events are missing: the buffer was full.
    Lost {
        /// How many.
        events: u64,
    },
}

impl Event {
    /// To which process it happened; `None` for [`Lost`](Event::Lost), and for I/O that
    /// nobody is charged with.
    pub fn process(&self) -> Option<&ProcessEvent> {
        match self {
            Self::ProcessStarted { process }
            | Self::ProcessExecuted { process }
            | Self::ProcessExited { process, .. }
            | Self::MemoryThreshold { process, .. }
            | Self::OomKilled { process } => Some(process),
            Self::SlowIo { process, .. } => process.as_ref(),
            Self::Lost { .. } => None,
        }
    }
}

/// When something happened, and to which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProcessEvent {
    /// When, in ns of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Who it is, for all time.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ProcessId,
    /// Its name, its parent and more, as of then.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: ProcessInfo,
}

#[cfg(feature = "serde")]
fn wait_status<S: serde::Serializer>(status: &ExitStatus, serializer: S) -> Result<S::Ok, S::Error> {
    use std::os::unix::process::ExitStatusExt as _;
    serializer.serialize_i32(status.into_raw())
}
