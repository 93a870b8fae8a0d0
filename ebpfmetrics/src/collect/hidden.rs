//! Processes that the walk does not show, from `/proc`.

use std::fs;

use procfs::process::{Process, all_processes};

use crate::process::{Comm, ProcessId, ProcessInfo, TICK_NS};

/// Where `/proc` knows more than the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// Nowhere.
    None,
    /// The first process: some machines hide it from eBPF.
    First,
    /// All processes outside of the reader's PID namespace, where `/proc` is that of the
    /// initial one.
    Outside,
}

impl Hidden {
    /// Whether this reader needs it, by what the walk shows.
    pub(super) fn needed(in_initial_namespace: bool, shows_first: bool) -> Self {
        match (in_initial_namespace, shows_first) {
            (true, true) => Self::None,
            (true, false) => Self::First,
            (false, _) if proc_is_initial() => Self::Outside,
            (false, _) => Self::None,
        }
    }

    /// Adds what is missing to the processes of a walk, in ascending order of id; returns the
    /// ids of the added processes.
    pub(super) fn complete(self, processes: &mut Vec<(ProcessId, ProcessInfo)>) -> Vec<ProcessId> {
        let has =
            |pid: i32| processes.binary_search_by_key(&(pid as u32), |(id, _)| id.pid).is_ok();
        let hidden: Vec<_> = match self {
            Self::None => return Vec::new(),
            Self::First if has(1) => return Vec::new(),
            Self::First => Process::new(1).ok().as_ref().and_then(read).into_iter().collect(),
            Self::Outside => {
                let all = all_processes().into_iter().flatten().flatten();
                all.filter(|process| !has(process.pid)).filter_map(|it| read(&it)).collect()
            }
        };
        let ids = hidden.iter().map(|(id, _)| *id).collect();
        processes.extend(hidden);
        processes.sort_by_key(|(id, _)| *id);
        ids
    }
}

/// Whether `/proc` shows the processes of the initial PID namespace: there 2 is a kernel
/// thread. (Some machines let no process look at 1.)
fn proc_is_initial() -> bool {
    fs::read_link("/proc/2/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

/// `None` if it is gone.
fn read(process: &Process) -> Option<(ProcessId, ProcessInfo)> {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let stat = process.stat().ok()?;
    let status = process.status().ok()?;
    let start_time_ns = stat.starttime * TICK_NS;
    let mut comm = [0; 16];
    // by itself: `stat` is text, and the name may not be
    let name = fs::read(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
    for (to, from) in comm.iter_mut().zip(name.iter().take(15).filter(|byte| **byte != b'\n')) {
        *to = *from;
    }
    let namespace_pid = status.nspid.and_then(|pids| pids.last().copied()).unwrap_or(stat.pid);
    // without its parent, whose start time would take another look
    let info = ProcessInfo {
        comm: Comm::from_bytes(comm),
        namespace_pid: namespace_pid as u32,
        uid: Some(status.ruid),
        threads: stat.num_threads as u32,
        kernel_thread: stat.flags & PF_KTHREAD != 0,
        nice: i8::try_from(stat.nice).ok(),
        last_cpu: stat.processor.and_then(|cpu| u32::try_from(cpu).ok()),
        ..ProcessInfo::default()
    };
    Some((ProcessId { pid: stat.pid as u32, start_time_ns }, info))
}
