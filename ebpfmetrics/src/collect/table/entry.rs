//! One process of the table.

use super::super::walk::End;
use crate::{
    process::{ProcessId, ProcessInfo, ProcessState},
    record::ProcessCreatorRecord,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Alive,
    /// Not in the walk since this moment, `CLOCK_MONOTONIC`.
    Vanished {
        since_ns: u64,
    },
    Ended {
        since_ns: u64,
        shown: Shown,
        /// All that the kernel has said about it so far has been reported.
        is_complete: bool,
        /// The kernel has nothing more to say about it.
        is_final: bool,
    },
}

/// Where an ended process is in this window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Nowhere: it ended in an earlier window, and nothing was added.
    Nowhere,
    InRow,
    InOverflow,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: ProcessId,
    pub(super) info: ProcessInfo,
    pub(super) phase: Phase,
    /// Its counters were read after all its threads had run for the last time, and are reported.
    pub(super) is_settled: bool,
    /// It came into the filter after its start, and its counters start here.
    pub(super) is_late: bool,
    /// Where it was when the set first knew of it.
    pub(super) first_cgroup: Option<u64>,
    /// The cgroup that has what was not used elsewhere.
    pub(super) cgroup: Option<u64>,
    /// The last walk showed another cgroup, and the kernel side no move.
    pub(super) is_unconfirmed: bool,
    /// A move was not seen: the counters cannot be divided.
    pub(super) is_undivided: bool,
    /// It has left the filter's cgroup and may come back.
    pub(super) is_away: bool,
}

impl Entry {
    /// An entry of a process that no walk has shown yet.
    pub(super) fn new(id: ProcessId, now_ns: u64) -> Self {
        Self {
            id,
            info: ProcessInfo::default(),
            phase: Phase::Vanished { since_ns: now_ns },
            is_settled: false,
            is_late: false,
            first_cgroup: None,
            cgroup: None,
            is_unconfirmed: false,
            is_undivided: false,
            is_away: false,
        }
    }

    /// Takes in how the process began, if that has just become known.
    pub(super) fn begin(&mut self, creator: Option<(ProcessCreatorRecord, u8)>) {
        if let Some((record, _)) = creator {
            self.info.creator = Some(record.creator.id());
            self.first_cgroup = Some(record.cgroup_id).filter(|id| *id != 0);
        }
    }

    /// Takes in what a walk shows of the process, if it does.
    pub(super) fn follow(&mut self, alive: Option<ProcessInfo>, now_ns: u64) {
        match (alive, self.phase) {
            (Some(info), _) => {
                self.info = ProcessInfo { creator: self.info.creator, ..info };
                self.phase = Phase::Alive;
            }
            (None, Phase::Alive) => self.phase = Phase::Vanished { since_ns: now_ns },
            (None, _) => {}
        }
    }
}

/// What is known of a process after its end. A record of an exit that was not seen says
/// little.
pub(super) fn info_at_end(known: &ProcessInfo, end: &End) -> ProcessInfo {
    let mut info = end.record.info.info();
    info.parent = info.parent.or(known.parent);
    info.creator = known.creator;
    info.uid = info.uid.or(known.uid);
    info.cgroup_id = info.cgroup_id.or(known.cgroup_id);
    info.kernel_thread |= known.kernel_thread;
    info.nice = info.nice.or(known.nice);
    info.policy = info.policy.or(known.policy);
    info.last_cpu = info.last_cpu.or(known.last_cpu);
    if info.comm.as_bytes().is_empty() {
        info.comm = known.comm;
    }
    if info.namespace_pid == 0 {
        info.namespace_pid = known.namespace_pid;
    }
    info.threads = end.record.threads;
    info.state = ProcessState::Dead;
    info.exited = true;
    info
}
