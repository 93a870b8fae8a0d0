use std::{process::ExitStatus, time::Duration};

#[cfg(feature = "serde")]
use crate::snapshot::duration_ns;
use crate::{
    probes::{cpu::CpuUsage, disk::DiskUsage, mem::MemUsage},
    process::{Comm, ProcessId},
    snapshot::{Losses, Row},
};

/// What a [`Job`](super::Job) has used since its command was started.
///
/// The figures of a probe that is not part of the job are `None`. In JSON durations are in ns,
/// and the exit status is the number that `wait(2)` returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct JobReport {
    /// Time from the start of the command to its end, or until now. The time of processes that
    /// go on after the command is not included.
    #[cfg_attr(feature = "serde", serde(rename = "wall_time_ns", with = "duration_ns"))]
    pub wall_time: Duration,
    /// Exit status of the command. `None` while it runs. Also `None` if the kernel discarded
    /// the status, because the caller ignores `SIGCHLD` or something else in the caller waits
    /// for its children.
    #[cfg_attr(feature = "serde", serde(with = "wait_status"))]
    pub exit_status: Option<ExitStatus>,
    /// Whether all processes of the job have ended and their final counters are included.
    /// Data that they left in the page cache may still be written to a disk later.
    pub is_complete: bool,
    /// Number of processes that the job has started, with the command itself.
    pub processes: u64,
    /// Number of processes that had not been released when the kernel was read: they run, or
    /// wait to be reaped by their parents.
    pub still_running: u64,
    /// Number of processes that ended without a final record: the loss `exit_record_missing`.
    /// Their usage is included as of the last read.
    pub without_final_record: u64,
    /// CPU usage of all processes.
    pub cpu: Option<CpuUsage>,
    /// Memory of all processes.
    pub memory: Option<JobMemory>,
    /// Disk usage of all processes.
    pub disk: Option<DiskUsage>,
    /// What could not be counted.
    pub losses: Losses,
}

/// Memory of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct JobMemory {
    /// Peak memory of the whole job: the highest sum of the resident sets of all its processes at
    /// one instant, tracked in the kernel. It needs no reads in between. See
    /// [`FilteredMemory`](crate::mem::FilteredMemory) for how it is measured. It is a sum of
    /// resident sets: pages that several processes map count for each of them. The memory of the
    /// caller does not count, and neither does its copy in the command before the command's exec.
    ///
    /// `None` if other threads of the caller started processes at the same moment, and these
    /// could not be told apart in time.
    pub resident_sum_peak_bytes: Option<u64>,
    /// The process with the highest resident set, which is followed between two reads too.
    /// Processes without a row (the [overflow](crate::snapshot::Overflow)) are not considered.
    pub largest_process: Option<LargestProcess>,
    /// Page faults served without a disk.
    pub minor_faults: u64,
    /// Page faults that waited for a disk.
    pub major_faults: u64,
    /// Processes that the kernel killed because memory ran out.
    pub oom_kills: u64,
}

impl JobMemory {
    /// Adds a window: the processes with a row, and the others together.
    pub(super) fn add(&mut self, rows: &[Row<'_, MemUsage>], overflow: &MemUsage) {
        for usage in rows.iter().map(|row| row.usage).chain([overflow]) {
            self.minor_faults += usage.minor_faults;
            self.major_faults += usage.major_faults;
            self.oom_kills += usage.oom_kills;
        }
        for row in rows.iter().filter(|row| row.usage.shares_memory_with.is_none()) {
            let Some(resident_peak_bytes) = row.usage.resident_peak_bytes else { continue };
            let largest = self.largest_process.map_or(0, |largest| largest.resident_peak_bytes);
            if resident_peak_bytes > largest {
                let (id, comm) = (row.id, row.info.comm);
                self.largest_process = Some(LargestProcess { id, comm, resident_peak_bytes });
            }
        }
    }
}

/// The process of a job with the highest resident set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LargestProcess {
    /// Identity of the process.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ProcessId,
    /// Its name.
    pub comm: Comm,
    /// The highest resident set that it had.
    pub resident_peak_bytes: u64,
}

#[cfg(feature = "serde")]
mod wait_status {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(super) fn serialize<S: Serializer>(
        status: &Option<ExitStatus>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        status.map(ExitStatus::into_raw).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ExitStatus>, D::Error> {
        Ok(Option::<i32>::deserialize(deserializer)?.map(ExitStatus::from_raw))
    }
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn reports_round_trip_through_json() {
        let largest = LargestProcess {
            id: ProcessId { pid: 7, start_time_ns: 9 },
            comm: "cc1".into(),
            resident_peak_bytes: 4096,
        };
        let report = JobReport {
            wall_time: Duration::from_micros(3),
            exit_status: Some(ExitStatus::from_raw(0x200)),
            processes: 2,
            cpu: Some(CpuUsage::default()),
            memory: Some(JobMemory { largest_process: Some(largest), ..JobMemory::default() }),
            ..JobReport::default()
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["wall_time_ns"], &json["exit_status"]), (&3000.into(), &512.into()));
        assert_eq!(json["memory"]["largest_process"]["pid"], 7);
        assert!(json["disk"].is_null());
        assert_eq!(serde_json::from_value::<JobReport>(json).unwrap(), report);
        assert_eq!(serde_json::from_str::<JobReport>("{}").unwrap(), JobReport::default());
    }
}
