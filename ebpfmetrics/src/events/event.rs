use std::process::ExitStatus;

use crate::{
    probes::disk::SlowIo,
    process::{ProcessId, ProcessInfo},
};

/// Something that happened to a process.
///
/// The events of one process come in order: started, executed, crossings of the memory
/// threshold, killed, exited. I/O that it caused may complete after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(tag = "event", rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Event {
    /// A process was created by fork, vfork or clone. It has not run yet and still has the
    /// name of its creator. New threads are not reported. `sched_process_fork`.
    #[doc(alias = "fork")]
    ProcessStarted {
        /// The new process.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
    },
    /// A process runs another program and has its name. `sched_process_exec`.
    #[doc(alias = "exec")]
    ProcessExecuted {
        /// The process.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
    },
    /// A process has ended and was waited for. Its totals are final. The event comes about
    /// 16 ms after the last thread exited; its time is that of the exit.
    /// `sched_process_free`.
    #[doc(alias = "exit")]
    ProcessExited {
        /// The process, with [`exited`](ProcessInfo::exited) set.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
        /// The status that wait(2) returns to its parent. As a number in serialized form.
        #[cfg_attr(feature = "serde", serde(with = "wait_status"))]
        exit_status: ExitStatus,
    },
    /// The resident set of a process has grown to the threshold. Reported again only after
    /// it has shrunk by an eighth of the threshold and grown back. `rss_stat`.
    #[doc(alias = "rss_stat")]
    MemoryThreshold {
        /// The process.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
        /// Its resident set at that moment, exact to 64 pages per CPU (before Linux 6.2: per
        /// thread).
        resident_bytes: u64,
    },
    /// The kernel has killed a process because memory ran out, and its last thread exits.
    /// `signal_struct::oom_mm`.
    #[doc(alias = "oom")]
    OomKilled {
        /// The process.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: ProcessEvent,
    },
    /// An operation of a block device has completed and took at least as long as the limit of
    /// the disk probe. `block_rq_complete`, `block_bio_complete`.
    SlowIo {
        /// The process that is charged, with the time of the completion; `None` if none is.
        /// The name is from the first I/O of the process or its last exec since.
        #[cfg_attr(feature = "serde", serde(flatten))]
        process: Option<ProcessEvent>,
        /// The operation.
        #[cfg_attr(feature = "serde", serde(flatten))]
        io: SlowIo,
    },
    /// Events are missing here because the buffer was full.
    Lost {
        /// Number of missing events, of any process.
        events: u64,
    },
}

impl Event {
    /// The process that it happened to. `None` for [`Lost`](Event::Lost), and for I/O
    /// that no process is charged with.
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

/// The process of an event, and the time of the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ProcessEvent {
    /// Time of the event in ns of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// The process.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ProcessId,
    /// Its attributes at that time.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: ProcessInfo,
}

#[cfg(feature = "serde")]
mod wait_status {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        status: &ExitStatus,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_i32(status.into_raw())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<ExitStatus, D::Error> {
        i32::deserialize(deserializer).map(ExitStatus::from_raw)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "serde")]
    #[test]
    fn events_round_trip_through_json() {
        use std::os::unix::process::ExitStatusExt as _;

        use super::*;

        let mut process = ProcessEvent { time_ns: 77, ..ProcessEvent::default() };
        process.id = ProcessId { pid: 5, start_time_ns: 50 };
        process.info.comm = "make".into();
        process.info.parent = Some(ProcessId { pid: 4, start_time_ns: 40 });
        process.info.cgroup_id = Some(u64::MAX);
        let exit_status = ExitStatus::from_raw(7 << 8);
        for (event, start) in [
            (
                Event::ProcessStarted { process },
                r#"{"event":"process_started","time_ns":77,"pid":5,"start_time_ns":50,"comm":"make""#,
            ),
            (Event::ProcessExited { process, exit_status }, r#"{"event":"process_exited""#),
            (Event::MemoryThreshold { process, resident_bytes: 9 }, r#"{"event":"memory_thr"#),
            (Event::Lost { events: 3 }, r#"{"event":"lost","events":3}"#),
        ] {
            let json = serde_json::to_string(&event).unwrap();
            assert!(json.starts_with(start), "{json}");
            assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        }
    }
}
