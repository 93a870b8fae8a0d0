//! What all records about tasks begin with: `ebpf-probes/bpf/include/task.h`.

use crate::{Comm, ProcessId, ProcessInfo, ThreadId, record};

/// `enum about_flags`
const KERNEL_THREAD: u32 = 1 << 0;
const ENDED: u32 = 1 << 1;

record! {
    /// The head of everything that an iterator writes, made with `RECORD_HEAD(KIND, RECORD)`:
    /// `kind` is by the probe's own count, `stream` is the probe in a joint walk.
    pub struct RecordHead = "record_head" {
        kind: u16,
        stream: u16,
        size: u32,
    }
}

record! {
    /// The key of a process in maps: a pid comes back, with the start time it never does.
    #[derive(PartialEq, Eq, Hash)]
    pub struct ProcessKey = "process_key" {
        start_ns: u64,
        tgid: u32,
        padding: u32,
    }
}

impl ProcessKey {
    /// The process.
    pub fn process(&self) -> ProcessId {
        ProcessId { pid: self.tgid, start_time_ns: self.start_ns }
    }
}

impl From<ProcessId> for ProcessKey {
    fn from(id: ProcessId) -> Self {
        Self { start_ns: id.start_time_ns, tgid: id.pid, padding: 0 }
    }
}

record! {
    /// Who a task is, and its process, as `read_about` and its kin fill it in.
    pub struct TaskAbout = "task_about" {
        process_start_ns: u64,
        thread_start_ns: u64,
        parent_start_ns: u64,
        cgroup_id: u64,
        tgid: u32,
        tid: u32,
        parent_tgid: u32,
        uid: u32,
        namespace_pid: u32,
        threads: u32,
        flags: u32,
        padding: u32,
        comm: [u8; 16],
    }
}

impl TaskAbout {
    /// The process that it belongs to.
    pub fn process(&self) -> ProcessId {
        ProcessId { pid: self.tgid, start_time_ns: self.process_start_ns }
    }

    /// The task itself.
    pub fn thread(&self) -> ThreadId {
        ThreadId { tid: self.tid, start_time_ns: self.thread_start_ns }
    }

    /// Whether it stands for its process.
    pub fn is_leader(&self) -> bool {
        self.tid == self.tgid
    }

    /// Whether its process is gone, as far as the record tells.
    pub(crate) fn has_ended(&self) -> bool {
        self.flags & ENDED != 0
    }

    /// Its name.
    pub fn comm(&self) -> Comm {
        Comm::from_bytes(self.comm)
    }

    /// What it says of the process; alive, until told otherwise.
    pub fn info(&self) -> ProcessInfo {
        ProcessInfo {
            comm: self.comm(),
            parent: (self.parent_tgid != 0).then_some(ProcessId {
                pid: self.parent_tgid,
                start_time_ns: self.parent_start_ns,
            }),
            namespace_pid: self.namespace_pid,
            uid: self.uid,
            cgroup_id: (self.cgroup_id != 0).then_some(self.cgroup_id),
            threads: self.threads,
            kernel_thread: self.flags & KERNEL_THREAD != 0,
            exited: false,
        }
    }
}
