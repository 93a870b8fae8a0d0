//! The records of a walk: read once, then split into tasks.

use std::{io, ops::Range};

use super::collector::invalid_record;
use crate::{
    error::{Error, ErrorKind, Result},
    process::{Comm, ProcessId, ProcessInfo, ProcessState, SchedulingPolicy, ThreadId},
    record::{
        ProcessEndedRecord, ProcessInfoRecord, ProcessKey, ProcessProcessRecord,
        ProcessSettledRecord, ProcessThreadRecord, ProcessWalkRecord, RecordHead, process_flags,
        process_kind, section_number,
    },
};

/// What an iterator wrote, aligned for records of 8-byte fields. Keeps its memory from walk
/// to walk.
#[derive(Debug, Default)]
pub(super) struct RecordBuffer {
    words: Vec<u64>,
    length: usize,
}

/// A record by its place in the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) head: RecordHead,
    at: usize,
}

impl RecordBuffer {
    /// The kernel returns at most this much per read.
    const PIECE: usize = 32 << 10;

    /// Replaces the contents with all that an iterator writes.
    pub(super) fn fill(&mut self, file: &mut impl io::Read) -> Result<()> {
        self.length = 0;
        loop {
            if self.words.len() * 8 < self.length + Self::PIECE {
                let words = (self.words.len() * 2).max(2 * Self::PIECE / 8);
                self.words.resize(words, 0);
            }
            let free = &mut bytemuck::cast_slice_mut(&mut self.words)[self.length..];
            match file.read(free) {
                Ok(0) => return Ok(()),
                Ok(length) => self.length += length,
                // after a long stretch without output, so that other tasks can run
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let text = "cannot read the records of the walk";
                    return Err(Error::new(ErrorKind::System, text).with_source(error));
                }
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length]
    }

    /// The bytes of a record.
    pub(super) fn get(&self, record: Placed) -> &[u8] {
        &self.bytes()[record.at..record.at + record.head.size as usize]
    }

    /// All records, in the order in which they were written.
    pub(super) fn records(&self) -> impl Iterator<Item = Result<Placed>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = &self.bytes()[at..];
            if rest.is_empty() {
                return None;
            }
            let record = head(rest, at);
            at = record.as_ref().map_or(self.length, |r| r.at + r.head.size as usize);
            Some(record)
        })
    }
}

fn head(rest: &[u8], at: usize) -> Result<Placed> {
    const HEAD: usize = size_of::<RecordHead>();
    let head = rest.first_chunk::<HEAD>().ok_or_else(|| invalid_record("that is truncated"))?;
    let head: RecordHead = bytemuck::cast(*head);
    match head.size as usize {
        size if size < HEAD => Err(invalid_record("smaller than its head")),
        size if size > rest.len() => Err(invalid_record("that is truncated")),
        size if size % 8 != 0 => Err(invalid_record("of a size that is no multiple of 8")),
        _ => Ok(Placed { head, at }),
    }
}

/// A task of a walk, with its records in [`Walked::records`].
#[derive(Clone, Debug)]
pub(super) struct WalkedTask {
    pub(super) process: ProcessId,
    pub(super) is_leader: bool,
    pub(super) thread: ThreadId,
    pub(super) address: u64,
    pub(super) comm: Comm,
    pub(super) cgroup_id: u64,
    pub(super) records: Range<usize>,
}

/// All that a walk showed.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) monotonic_ns: u64,
    pub(super) boottime_ns: u64,
    /// Processes in ascending order of id.
    pub(super) processes: Vec<(ProcessId, ProcessInfo)>,
    /// Zombies whose counters will not change any more.
    pub(super) settled: Vec<ProcessId>,
    pub(super) tasks: Vec<WalkedTask>,
    /// Records of the probes, in the order of their tasks.
    pub(super) records: Vec<Placed>,
    /// Records of the probes about the machine.
    pub(super) system: Vec<Placed>,
}

impl Walked {
    fn clear(&mut self) {
        *self = Self {
            processes: std::mem::take(&mut self.processes),
            settled: std::mem::take(&mut self.settled),
            tasks: std::mem::take(&mut self.tasks),
            records: std::mem::take(&mut self.records),
            system: std::mem::take(&mut self.system),
            ..Self::default()
        };
        self.processes.clear();
        self.settled.clear();
        self.tasks.clear();
        self.records.clear();
        self.system.clear();
    }

    /// Splits the records of a walk into tasks. `is_system` says which records of the probes
    /// are about the machine.
    pub(super) fn read(
        &mut self,
        buffer: &RecordBuffer,
        is_system: impl Fn(RecordHead) -> bool,
    ) -> Result<()> {
        self.clear();
        for record in buffer.records() {
            let record = record?;
            if record.head.section != section_number::PROCESS as u16 {
                if is_system(record.head) {
                    self.system.push(record);
                } else {
                    self.records.push(record);
                    if let Some(task) = self.tasks.last_mut() {
                        task.records.end = self.records.len();
                    }
                }
                continue;
            }
            let bytes = buffer.get(record);
            match u32::from(record.head.kind) {
                process_kind::WALK => {
                    let walk: &ProcessWalkRecord = cast(bytes)?;
                    (self.monotonic_ns, self.boottime_ns) = (walk.monotonic_ns, walk.boottime_ns);
                }
                process_kind::PROCESS => self.add_process(cast(bytes)?),
                process_kind::THREAD => self.add_thread(cast(bytes)?),
                // the last task is being released: its counters may be in its process already
                process_kind::VOID => {
                    if let Some(task) = self.tasks.pop() {
                        self.records.truncate(task.records.start);
                        if task.is_leader {
                            self.processes.pop();
                            self.settled.pop_if(|id| *id == task.process);
                        }
                    }
                }
                _ => return Err(invalid_record("of unknown kind")),
            }
        }
        // The kernel walks in the order of pids, so leaders come sorted, but for pids that
        // were reused in between.
        if !self.processes.is_sorted_by_key(|(id, _)| *id) {
            self.processes.sort_by_key(|(id, _)| *id);
        }
        self.processes.dedup_by_key(|(id, _)| *id);
        Ok(())
    }

    fn add_process(&mut self, record: &ProcessProcessRecord) {
        let id = record.info.id();
        self.processes.push((id, record.info.info()));
        if record.info.flags & process_flags::IS_SETTLED != 0 {
            self.settled.push(id);
        }
        let at = self.records.len();
        self.tasks.push(WalkedTask {
            process: id,
            is_leader: true,
            thread: ThreadId { tid: id.pid, start_time_ns: id.start_time_ns },
            address: record.task,
            comm: Comm::from_bytes(record.info.comm),
            cgroup_id: record.info.cgroup_id,
            records: at..at,
        });
    }

    fn add_thread(&mut self, record: &ProcessThreadRecord) {
        let at = self.records.len();
        self.tasks.push(WalkedTask {
            process: ProcessId { pid: record.tgid, start_time_ns: record.process_start_ns },
            is_leader: false,
            thread: ThreadId { tid: record.tid, start_time_ns: record.thread_start_ns },
            address: record.task,
            comm: Comm::from_bytes(record.comm),
            cgroup_id: record.cgroup_id,
            records: at..at,
        });
    }
}

/// A process between its exit and the removal of its final record.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) id: ProcessId,
    /// Its key in the kernel.
    pub(super) key: ProcessKey,
    pub(super) record: Box<ProcessEndedRecord>,
    pub(super) settled: Option<ProcessSettledRecord>,
}

/// Reads the iteration over final records, in ascending order of id.
pub(super) fn read_ends(buffer: &RecordBuffer) -> Result<Vec<End>> {
    let mut ends: Vec<End> = Vec::new();
    for record in buffer.records() {
        let record = record?;
        let bytes = buffer.get(record);
        match (u32::from(record.head.section), u32::from(record.head.kind)) {
            (section_number::PROCESS, process_kind::ENDED) => {
                let record: &ProcessEndedRecord = cast(bytes)?;
                let id = record.info.id();
                ends.push(End { id, key: id.into(), record: Box::new(*record), settled: None });
            }
            (section_number::PROCESS, process_kind::SETTLED) => {
                let settled: &ProcessSettledRecord = cast(bytes)?;
                if let Some(end) = ends.last_mut().filter(|end| end.id == settled.key.id()) {
                    end.settled = Some(*settled);
                }
            }
            _ => return Err(invalid_record("of unknown kind")),
        }
    }
    ends.sort_by_key(|end| end.id);
    ends.dedup_by_key(|end| end.id);
    Ok(ends)
}

fn cast<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Result<&T> {
    bytemuck::try_from_bytes(bytes).map_err(|_| invalid_record("of unexpected size"))
}

impl ProcessKey {
    /// The process.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.tgid, start_time_ns: self.start_ns }
    }
}

impl From<ProcessId> for ProcessKey {
    fn from(id: ProcessId) -> Self {
        Self { start_ns: id.start_time_ns, tgid: id.pid, padding: 0 }
    }
}

impl ProcessInfoRecord {
    /// The process.
    pub(crate) fn id(&self) -> ProcessId {
        ProcessId { pid: self.tgid, start_time_ns: self.process_start_ns }
    }

    /// What it says about the process, which is alive as far as the record shows.
    pub(crate) fn info(&self) -> ProcessInfo {
        let has = |flag| self.flags & flag != 0;
        let has_owner = has(process_flags::HAS_OWNER);
        let scheduled = has(process_flags::HAS_SCHEDULING);
        let parent = ProcessId { pid: self.parent_tgid, start_time_ns: self.parent_start_ns };
        let mut info = ProcessInfo {
            comm: Comm::from_bytes(self.comm),
            parent: (self.parent_tgid != 0).then_some(parent),
            namespace_pid: self.namespace_pid,
            uid: has_owner.then_some(self.uid),
            cgroup_id: (has_owner && self.cgroup_id != 0).then_some(self.cgroup_id),
            threads: self.threads,
            kernel_thread: has(process_flags::KERNEL_THREAD),
            ..ProcessInfo::default()
        };
        if scheduled {
            info.state = ProcessState::from_kernel(self.state, 0);
            info.nice = i8::try_from(self.nice).ok();
            info.policy = SchedulingPolicy::from_kernel(self.policy);
            info.last_cpu = Some(self.cpu);
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{KIND_SYSTEM, SECTION, WalkBytes, end, head, id, settled},
        *,
    };

    fn record(kind: u16, section: u16, body: &[u8]) -> Vec<u8> {
        let size = (size_of::<RecordHead>() + body.len()) as u32;
        [bytemuck::bytes_of(&RecordHead { section, kind, size }), body].concat()
    }

    /// Returns at most so many bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl io::Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = self.1.min(buffer.len());
            self.0.read(&mut buffer[..most])
        }
    }

    fn split(walk: &WalkBytes) -> Result<(Walked, RecordBuffer)> {
        let buffer = walk.buffer();
        let mut walked = Walked::default();
        walked.read(&buffer, |head| head.kind == KIND_SYSTEM)?;
        Ok((walked, buffer))
    }

    #[test]
    fn records_are_whole_whatever_the_pieces() {
        let bytes =
            [record(1, 7, b"aaaaaaaa"), record(2, 8, b""), record(3, 7, b"bbbbbbbb")].concat();
        let mut buffer = RecordBuffer::default();
        for most in [1, 7, 8, 9, 12, 13, 100, 3, 100] {
            buffer.fill(&mut Pieces(&bytes, most)).unwrap();
            let records: Vec<_> = buffer.records().map(Result::unwrap).collect();
            let records: Vec<_> = (records.iter())
                .map(|it| (it.head.section, it.head.kind, &buffer.get(*it)[8..]))
                .collect();
            assert_eq!(
                records,
                [(7, 1, &b"aaaaaaaa"[..]), (8, 2, &b""[..]), (7, 3, &b"bbbbbbbb"[..])]
            );
        }
        buffer.fill(&mut &record(4, 8, b"cccccccc")[..]).unwrap();
        assert_eq!(buffer.records().count(), 1, "the previous contents are gone");
    }

    #[test]
    fn what_exceeds_a_piece_is_read_whole() {
        let one = record(1, 7, &[5; 4088]);
        let mut buffer = RecordBuffer::default();
        buffer.fill(&mut &one.repeat(100)[..]).unwrap();
        assert!(buffer.records().all(|it| buffer.get(it.unwrap()) == one));
        assert_eq!(buffer.records().count(), 100);
    }

    #[test]
    fn garbage_is_an_error() {
        let whole = record(1, 7, b"aaaaaaaa");
        let mut buffer = RecordBuffer::default();
        let check = |buffer: &RecordBuffer| {
            let error = buffer.records().find_map(Result::err).expect("an error");
            assert_eq!(error.kind(), ErrorKind::InvalidRecord);
            let mut walked = Walked::default();
            assert!(walked.read(buffer, |_| false).is_err());
            assert!(read_ends(buffer).is_err());
        };
        for length in 1..whole.len() {
            buffer.fill(&mut &whole[..length]).unwrap();
            check(&buffer);
        }
        for size in [0, 7, 9, 12, u32::MAX] {
            let wrong = RecordHead { section: 7, kind: 1, size };
            buffer.fill(&mut &[bytemuck::bytes_of(&wrong), &[0; 8]].concat()[..]).unwrap();
            check(&buffer);
        }
        buffer.fill(&mut &whole[..]).unwrap();
        assert_eq!(buffer.records().count(), 1);
    }

    #[test]
    fn a_walk_is_split_into_tasks_with_their_records() {
        let mut walk = WalkBytes::at(70);
        walk.process(id(5, 50), 1);
        walk.count(2, 0);
        walk.system(9);
        walk.thread(id(5, 50), 6);
        walk.count(3, 0);
        walk.leader(id(8, 80));
        let (walked, buffer) = split(&walk).unwrap();
        assert_eq!((walked.monotonic_ns, walked.boottime_ns), (70, 70));
        assert_eq!(walked.processes.iter().map(|(id, _)| id.pid).collect::<Vec<_>>(), [5, 8]);
        let tasks: Vec<_> = (walked.tasks.iter())
            .map(|task| (task.thread.tid, task.process.pid, task.is_leader, task.records.len()))
            .collect();
        assert_eq!(tasks, [(5, 5, true, 2), (6, 5, false, 1), (8, 8, true, 0)]);
        assert_eq!((walked.records.len(), walked.system.len()), (3, 1));
        assert_eq!(buffer.get(walked.system[0])[8], 9);
        assert!(walked.records.iter().all(|it| it.head.section == SECTION));
    }

    #[test]
    fn a_task_that_is_being_released_is_left_out() {
        let mut walk = WalkBytes::at(70);
        walk.process(id(5, 50), 1);
        walk.thread(id(5, 50), 6);
        walk.count(3, 0);
        walk.void();
        walk.process(id(8, 80), 1);
        walk.void();
        walk.process(id(9, 90), 4);
        let (walked, _) = split(&walk).unwrap();
        assert_eq!(walked.processes.iter().map(|(id, _)| id.pid).collect::<Vec<_>>(), [5, 9]);
        let tasks: Vec<_> = walked.tasks.iter().map(|task| task.records.clone()).collect();
        assert_eq!(tasks, [0..1, 1..2]);
        assert_eq!(walked.records.len(), 2);
        let mut alone = WalkBytes::at(70);
        alone.void();
        assert!(split(&alone).unwrap().0.tasks.is_empty());
    }

    #[test]
    fn processes_are_sorted_and_unique_although_pids_wrap() {
        let mut walk = WalkBytes::at(70);
        walk.thread(id(9, 10), 3);
        for (pid, start) in [(9, 10), (5, 50), (5, 40), (9, 10)] {
            walk.leader(id(pid, start));
        }
        let (walked, _) = split(&walk).unwrap();
        let ids: Vec<_> = walked.processes.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [id(5, 40), id(5, 50), id(9, 10)]);
        assert!(!walked.tasks[0].is_leader, "a thread may come before its leader");
    }

    #[test]
    fn records_of_unexpected_kind_and_size_are_errors() {
        for kind in [0, process_kind::ENDED, 99] {
            let mut walk = WalkBytes::at(70);
            walk.push(&head::<RecordHead>(section_number::PROCESS as u16, kind));
            assert!(split(&walk).is_err(), "{kind}");
        }
        for kind in [process_kind::WALK, process_kind::PROCESS, process_kind::THREAD] {
            let mut walk = WalkBytes::default();
            walk.push(&head::<RecordHead>(section_number::PROCESS as u16, kind));
            assert!(split(&walk).is_err(), "{kind}");
        }
    }

    #[test]
    fn final_records_are_sorted_and_have_what_came_since_the_exit() {
        let (nine, five) = (end(id(9, 90), 1, false), end(id(5, 50), 2, true));
        let of_nine = settled(&nine, 3, 1).settled.unwrap();
        let mut bytes = WalkBytes::default();
        bytes.push(&*nine.record);
        bytes.push(&of_nine);
        bytes.push(&*five.record);
        bytes.push(&of_nine); // of another
        let ends = read_ends(&bytes.buffer()).unwrap();
        let ends: Vec<_> =
            ends.iter().map(|end| (end.id.pid, end.settled.map(|it| it.cpu.sum_exec_ns))).collect();
        assert_eq!(ends, [(5, None), (9, Some(3))]);
        let mut short = WalkBytes::default();
        short.push(&head::<RecordHead>(section_number::PROCESS as u16, process_kind::ENDED));
        assert!(read_ends(&short.buffer()).is_err());
    }

    #[test]
    fn unknown_owners_are_none() {
        let mut record = *end(id(5, 50), 0, true).record;
        let info = record.info.info();
        assert_eq!((info.uid, info.cgroup_id, info.parent), (None, None, None));
        record.info.flags = process_flags::HAS_OWNER | process_flags::HAS_SCHEDULING;
        (record.info.uid, record.info.cgroup_id, record.info.parent_tgid) = (0, 7, 4);
        let info = record.info.info();
        assert_eq!((info.uid, info.cgroup_id), (Some(0), Some(7)));
        assert_eq!(info.parent.map(|it| it.pid), Some(4));
        assert_eq!((info.nice, info.last_cpu), (Some(0), Some(0)));
    }
}
