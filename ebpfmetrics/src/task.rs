//! What all records about tasks begin with: `ebpf-probes/bpf/include/task.h`.

use crate::{Comm, Error, ErrorKind, ProcessId, ProcessInfo, Result, ThreadId, record};

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

/// What an iterator wrote, record by record: the kind of each, as its head has it, and its
/// bytes with the head, for [`cast`]. A record that is cut short is an
/// [`InvalidRecord`](ErrorKind::InvalidRecord), and the last.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    stream: u16,
}

impl<'a> Records<'a> {
    /// Those of one probe, of all that a walk wrote; from a walk, take
    /// [`Walk::records`](crate::kit::Walk::records).
    pub fn new(bytes: &'a [u8], stream: u16) -> Self {
        Self { bytes, stream }
    }

    /// At most so many records of a size.
    pub fn capacity<T>(&self) -> usize {
        self.bytes.len() / size_of::<T>()
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.bytes.is_empty() {
            let Some(head) = self.bytes.first_chunk::<{ size_of::<RecordHead>() }>() else {
                self.bytes = &[];
                return Some(Err(invalid("without head")));
            };
            let head: RecordHead = bytemuck::cast(*head);
            let size = head.size as usize;
            if size < size_of::<RecordHead>() || size > self.bytes.len() {
                self.bytes = &[];
                return Some(Err(invalid("cut short")));
            }
            let (record, rest) = self.bytes.split_at(size);
            self.bytes = rest;
            if head.stream == self.stream {
                return Some(Ok((head.kind, record)));
            }
        }
        None
    }
}

/// A record of [`Records`] as what it is.
///
/// # Errors
/// [`ErrorKind::InvalidRecord`] if it is of another size.
pub fn cast<T: bytemuck::AnyBitPattern>(record: &[u8]) -> Result<&T> {
    bytemuck::try_from_bytes(record).map_err(|_| invalid("of unexpected size"))
}

/// The error for a record that the probe does not understand.
pub fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidRecord, format!("the kernel side wrote a record {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u16, stream: u16, body: &[u8]) -> Vec<u8> {
        let size = (size_of::<RecordHead>() + body.len()) as u32;
        [bytemuck::bytes_of(&RecordHead { kind, stream, size }), body].concat()
    }

    #[test]
    fn each_probe_gets_its_own() {
        let bytes = [record(1, 7, b"aaaa"), record(2, 8, b""), record(3, 7, b"bb")].concat();
        let of = |stream| -> Vec<_> {
            Records::new(&bytes, stream)
                .map(|r| r.map(|(kind, r)| (kind, r.len())).unwrap())
                .collect()
        };
        assert_eq!(of(7), [(1, 12), (3, 10)]);
        assert_eq!(of(8), [(2, 8)]);
        assert_eq!(of(9), []);
    }

    #[test]
    fn garbage_is_an_error_and_ends() {
        let whole = record(1, 7, b"aaaa");
        for length in 1..whole.len() {
            let mut records = Records::new(&whole[..length], 7);
            assert!(records.next().unwrap().is_err(), "{length}");
            assert!(records.next().is_none());
        }
        let endless = RecordHead { kind: 1, stream: 7, size: 0 };
        assert!(Records::new(bytemuck::bytes_of(&endless), 7).next().unwrap().is_err());
    }
}
