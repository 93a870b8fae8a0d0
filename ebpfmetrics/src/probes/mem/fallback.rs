//! Processes that the iterator does not show, from `/proc`.

use std::fs;

use procfs::process::{Process, all_processes};

use super::decode::{Gauges, Held, HighWater, Totals};
use crate::{Comm, ProcessId, ProcessInfo, ledger::Reading};

/// Where `/proc` knows more than the iterator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fallback {
    /// Nowhere.
    None,
    /// The first process: some kernels keep it from eBPF.
    First,
    /// All processes outside of the reader's PID namespace, where `/proc` is that of
    /// the initial one.
    Outside,
}

impl Fallback {
    /// Whether this reader needs one, once it has seen what the iterator shows.
    pub(super) fn needed(in_initial_namespace: bool, sees_first: bool) -> Self {
        match (in_initial_namespace, sees_first) {
            (true, true) => Self::None,
            (true, false) => Self::First,
            (false, _) if proc_is_initial() => Self::Outside,
            (false, _) => Self::None,
        }
    }

    /// Adds what is missing to processes in ascending order of id, and keeps that.
    pub(super) fn complete(self, processes: &mut Vec<Reading<Totals>>) {
        let known = processes.len();
        let has = |pid: i32| {
            processes[..known].binary_search_by_key(&(pid as u32), |reading| reading.id.pid).is_ok()
        };
        let more: Vec<_> = match self {
            Self::None => return,
            Self::First if has(1) => return,
            Self::First => Process::new(1).ok().as_ref().and_then(read).into_iter().collect(),
            Self::Outside => {
                let all = all_processes().into_iter().flatten().flatten();
                all.filter(|process| !has(process.pid)).filter_map(|process| read(&process)).collect()
            }
        };
        processes.extend(more);
        processes.sort_by_key(|reading| reading.id);
    }
}

/// Whether `/proc` shows the processes of the initial PID namespace: there 2 is a
/// thread of the kernel. (Some machines let nobody look at 1.)
fn proc_is_initial() -> bool {
    fs::read_link("/proc/2/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

/// `None` if it is gone.
fn read(process: &Process) -> Option<Reading<Totals>> {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let stat = process.stat().ok()?;
    let status = process.status().ok()?;
    let bytes = |kib: Option<u64>| kib.unwrap_or_default() * 1024;
    let mut comm = [0; 16];
    for (to, from) in comm.iter_mut().zip(stat.comm.bytes().take(15)) {
        *to = from;
    }
    let kernel_thread = stat.flags & PF_KTHREAD != 0;
    let held = Held {
        virtual_bytes: bytes(status.vmsize),
        resident_anon: bytes(status.rssanon),
        resident_file: bytes(status.rssfile),
        resident_shmem: bytes(status.rssshmem),
        swap: bytes(status.vmswap),
        page_tables: bytes(status.vmpte),
        locked: bytes(status.vmlck),
        hugetlb: status.hugetlbpages.map(|kib| kib * 1024),
        high_water: HighWater {
            resident: bytes(status.vmhwm),
            virtual_bytes: bytes(status.vmpeak),
        },
        owner: None,
    };
    let ticks_per_second = procfs::ticks_per_second();
    Some(Reading {
        id: ProcessId {
            pid: stat.pid as u32,
            start_time_ns: stat.starttime * (1_000_000_000 / ticks_per_second),
        },
        info: ProcessInfo {
            comm: Comm::from_bytes(comm),
            // its start time would take another look
            parent: None,
            namespace_pid: status.nspid.and_then(|pids| pids.last().copied()).unwrap_or(stat.pid)
                as u32,
            uid: status.ruid,
            cgroup_id: None,
            threads: stat.num_threads as u32,
            kernel_thread,
            exited: false,
        },
        totals: Totals {
            minor_faults: stat.minflt,
            major_faults: stat.majflt,
            ..Totals::default()
        },
        gauges: Gauges::from_procfs((!kernel_thread).then_some(held)),
    })
}
