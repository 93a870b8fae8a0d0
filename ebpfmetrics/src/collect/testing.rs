//! A probe with one counter, and reads of an imagined kernel, for unit tests.

use std::any::Any;

use bytemuck::{NoUninit, Pod, Zeroable};

use super::{
    collector::{
        Collector, Ended, Progress, Reading, Record, Span, Task, WalkTimes, invalid_record,
    },
    column::{Column, RowSource},
    loading::Loading,
    moves::Moves,
    table::{Observed, ProcessTable},
    typed_column::TypedColumn,
    walk::{End, RecordBuffer, Walked},
};
use crate::{
    error::Result,
    kernel::{Kernel, Requirements},
    object::Object,
    process::{ProcessId, ProcessInfo},
    record::{
        ProcessCreatorRecord, ProcessEndedRecord, ProcessKey, ProcessOverflowRecord,
        ProcessProcessRecord, ProcessSettledRecord, ProcessThreadRecord, ProcessWalkRecord,
        RecordHead, ended_flags, process_flags, process_kind, section_number,
    },
    snapshot::{
        Source, TypedPart,
        testing::{Counter, TestLoss},
    },
};

/// The section of the probe, and the kinds of its records.
pub(super) const SECTION: u16 = 20;
pub(super) const KIND_TASK: u16 = 1;
pub(super) const KIND_SYSTEM: u16 = 2;

/// Counts one thing.
#[derive(Clone, Debug, Default)]
pub(super) struct Count {
    /// What exceeds this in a window is reported in the next.
    pub(super) most_per_window: Option<u64>,
    pub(super) system: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct CountRecord {
    head: RecordHead,
    own: u64,
    dead: u64,
}

impl Collector for Count {
    const NAME: &'static str = "test";

    type Options = ();
    type Counters = u64;
    type Gauges = ();
    type Usage = Counter;
    type System = u64;
    type Loss = TestLoss;

    fn requirements() -> Requirements {
        Requirements::default()
    }

    fn load(_: (), _: &Loading<'_>) -> Result<Self> {
        Ok(Self::default())
    }

    fn attach(&mut self, _: &Kernel) -> Result<()> {
        Ok(())
    }

    fn object(&self) -> Option<&Object> {
        None
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        None
    }

    fn is_system_record(kind: u16) -> bool {
        kind == KIND_SYSTEM
    }

    fn system_record(&mut self, _: u16, record: &[u8], _: &WalkTimes) -> Result<()> {
        self.system = Record { kind: KIND_SYSTEM, bytes: record }.get::<CountRecord>()?.own;
        Ok(())
    }

    fn task_record(
        &mut self,
        _: &Task,
        record: Record<'_>,
        _: &WalkTimes,
        reading: &mut Reading<Self>,
    ) -> Result<()> {
        if record.kind != KIND_TASK {
            return Err(invalid_record("of unknown kind"));
        }
        let record: &CountRecord = record.get()?;
        reading.add_task(&record.own, &record.dead);
        Ok(())
    }

    fn advance(&self, progress: &Progress<'_, Self>, now: &Reading<Self>) -> u64 {
        let most = self.most_per_window.unwrap_or(u64::MAX);
        now.counters.min(progress.baseline.saturating_add(most)).max(*progress.last)
    }

    fn ended(&self, ended: &Ended<'_>) -> Option<Reading<Self>> {
        let settled = ended.settled.map_or(0, |settled| settled.cpu.sum_exec_ns);
        let counters = ended.record.cpu.totals.sum_exec_ns.max(settled);
        Some(Reading { counters, gauges: () })
    }

    fn overflow(record: &ProcessOverflowRecord) -> u64 {
        record.cpu.sum_exec_ns
    }

    fn usage(&self, _: ProcessId, counters: &u64, _: Option<&()>, _: Span) -> Counter {
        Counter::of(*counters)
    }

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
}

pub(super) fn id(pid: u32, start_time_ns: u64) -> ProcessId {
    ProcessId { pid, start_time_ns }
}

pub(crate) fn head<T>(section: u16, kind: u32) -> RecordHead {
    RecordHead { section, kind: kind as u16, size: size_of::<T>() as u32 }
}

/// Writes the records of a walk.
#[derive(Clone, Debug, Default)]
pub(super) struct WalkBytes(pub(crate) Vec<u8>);

impl WalkBytes {
    pub(super) fn at(now_ns: u64) -> Self {
        let head = head::<ProcessWalkRecord>(section_number::PROCESS as u16, process_kind::WALK);
        let mut bytes = Self::default();
        bytes.push(&ProcessWalkRecord { head, monotonic_ns: now_ns, boottime_ns: now_ns });
        bytes
    }

    pub(super) fn push<T: NoUninit>(&mut self, record: &T) {
        self.0.extend_from_slice(bytemuck::bytes_of(record));
    }

    pub(super) fn leader(&mut self, id: ProcessId) {
        self.leader_with(id, 0);
    }

    /// One that waits to be reaped and has run for the last time.
    pub(super) fn settled_zombie(&mut self, id: ProcessId) {
        self.leader_with(id, process_flags::IS_SETTLED);
    }

    fn leader_with(&mut self, id: ProcessId, flags: u32) {
        let kind = process_kind::PROCESS;
        let mut record = ProcessProcessRecord {
            head: head::<ProcessProcessRecord>(section_number::PROCESS as u16, kind),
            ..ProcessProcessRecord::zeroed()
        };
        record.info.tgid = id.pid;
        record.info.process_start_ns = id.start_time_ns;
        record.info.parent_tgid = 1;
        record.info.flags = flags;
        record.info.comm[..4].copy_from_slice(b"task");
        self.push(&record);
    }

    pub(super) fn thread(&mut self, process: ProcessId, tid: u32) {
        let kind = process_kind::THREAD;
        self.push(&ProcessThreadRecord {
            head: head::<ProcessThreadRecord>(section_number::PROCESS as u16, kind),
            tgid: process.pid,
            process_start_ns: process.start_time_ns,
            tid,
            ..ProcessThreadRecord::zeroed()
        });
    }

    pub(super) fn void(&mut self) {
        self.push(&head::<RecordHead>(section_number::PROCESS as u16, process_kind::VOID));
    }

    pub(super) fn count(&mut self, own: u64, dead: u64) {
        let head = head::<CountRecord>(SECTION, KIND_TASK.into());
        self.push(&CountRecord { head, own, dead });
    }

    pub(super) fn system(&mut self, own: u64) {
        let head = head::<CountRecord>(SECTION, KIND_SYSTEM.into());
        self.push(&CountRecord { head, own, dead: 0 });
    }

    /// A process with one thread.
    pub(super) fn process(&mut self, id: ProcessId, own: u64) {
        self.leader(id);
        self.count(own, 0);
    }

    pub(super) fn buffer(&self) -> RecordBuffer {
        let mut buffer = RecordBuffer::default();
        buffer.fill(&mut &self.0[..]).unwrap();
        buffer
    }
}

/// The final record of a process: not released yet, or released.
pub(super) fn end(id: ProcessId, count: u64, is_released: bool) -> End {
    let mut record = Box::new(ProcessEndedRecord::zeroed());
    record.head = head::<ProcessEndedRecord>(section_number::PROCESS as u16, process_kind::ENDED);
    record.info.tgid = id.pid;
    record.info.process_start_ns = id.start_time_ns;
    record.cpu.totals.sum_exec_ns = count;
    record.flags = ended_flags::EXITED | if is_released { ended_flags::RELEASED } else { 0 };
    End { id, key: id.into(), record, settled: None }
}

/// What the kernel says of a process between its exit and its release.
pub(super) fn settled(end: &End, count: u64, threads: u64) -> End {
    let mut settled = ProcessSettledRecord::zeroed();
    settled.head =
        head::<ProcessSettledRecord>(section_number::PROCESS as u16, process_kind::SETTLED);
    settled.key = end.key;
    settled.cpu.sum_exec_ns = count;
    settled.threads = threads;
    End { settled: Some(settled), ..end.clone() }
}

/// A read of an imagined kernel.
#[derive(Debug, Default)]
pub(super) struct KernelRead {
    pub(super) walk: WalkBytes,
    pub(super) ends: Vec<End>,
    pub(super) creators: Vec<(ProcessKey, ProcessCreatorRecord)>,
    pub(super) moves: Moves,
    /// Processes, and what they counted.
    pub(super) overflow: (u64, u64),
}

/// As [`KernelRead::walk`], of processes with one thread.
pub(super) fn read_at(now_ns: u64, processes: &[(u32, u64, u64)]) -> KernelRead {
    let mut walk = WalkBytes::at(now_ns);
    for &(pid, start, count) in processes {
        walk.process(id(pid, start), count);
    }
    KernelRead { walk, ..KernelRead::default() }
}

/// A process table with one column, without a kernel.
pub(super) struct TestSet {
    pub(super) table: ProcessTable,
    columns: Vec<(u64, Box<dyn Column>)>,
    now_ns: u64,
}

/// A row: the process, its count in the window and since its start, and its information.
#[derive(Clone, Debug)]
pub(super) struct TestRow {
    pub(super) id: ProcessId,
    pub(super) count: u64,
    pub(super) total: u64,
    pub(super) info: ProcessInfo,
}

impl TestSet {
    pub(super) fn new(max_exited: usize) -> Self {
        Self::with(ProcessTable::new(max_exited, false, true), Count::default())
    }

    pub(super) fn with(table: ProcessTable, count: Count) -> Self {
        let mut set = Self { table, columns: Vec::new(), now_ns: 0 };
        set.add(count);
        set
    }

    pub(super) fn without_probe(max_exited: usize) -> Self {
        let table = ProcessTable::new(max_exited, false, true);
        Self { table, columns: Vec::new(), now_ns: 0 }
    }

    pub(super) fn add(&mut self, count: Count) {
        self.columns.push((1, Box::new(TypedColumn::new(count, SECTION))));
    }

    /// Starts the window of the probe that was added, as the engine does.
    pub(super) fn begin_column(&mut self) {
        let now_ns = self.now_ns;
        self.columns.iter_mut().for_each(|(_, column)| column.rebase(now_ns));
    }

    pub(super) fn try_read(&mut self, mut kernel: KernelRead) -> Result<Vec<ProcessKey>> {
        let buffer = kernel.walk.buffer();
        let mut walked = Walked::default();
        walked.read(&buffer, |head| Count::is_system_record(head.kind))?;
        kernel.ends.sort_by_key(|end| end.id);
        let mut overflow = ProcessOverflowRecord::zeroed();
        (overflow.processes, overflow.cpu.sum_exec_ns) = kernel.overflow;
        let walk = WalkTimes {
            monotonic_ns: walked.monotonic_ns,
            boottime_ns: walked.boottime_ns,
            ..WalkTimes::default()
        };
        let observed = Observed {
            walked: &walked,
            buffer: &buffer,
            ends: &kernel.ends,
            creators: kernel.creators,
            moves: &kernel.moves,
            overflow: &[overflow],
            hidden: &[],
        };
        let gone = self.table.update(observed, &walk, &mut self.columns)?;
        self.now_ns = walk.monotonic_ns;
        Ok(gone)
    }

    /// Takes in a read; returns the processes whose final records can be deleted.
    pub(super) fn read(&mut self, kernel: KernelRead) -> Vec<u32> {
        self.try_read(kernel).unwrap().iter().map(|key| key.tgid).collect()
    }

    /// Starts a new window; returns the processes that have left the table.
    pub(super) fn reset(&mut self) -> Vec<u32> {
        let gone = self.table.rebase(&mut self.columns);
        self.begin_column();
        gone.iter().map(|key| key.tgid).collect()
    }

    pub(super) fn part(&self) -> TypedPart<Counter, u64> {
        let sources: Vec<_> =
            self.table.rows().map(|(index, ..)| RowSource::Entry(index)).collect();
        let part = self.columns[0].1.part(&sources, self.table.ids(), self.now_ns);
        *(part as Box<dyn Any>).downcast().unwrap()
    }

    pub(super) fn rows(&self) -> Vec<TestRow> {
        let part = self.part();
        let figures = part.usages.into_iter();
        (self.table.rows().zip(figures))
            .map(|((_, id, info), (usage, total))| TestRow {
                id,
                count: usage.count,
                total: total.count,
                info,
            })
            .collect()
    }

    /// Rows as pid, start, count in the window, and whether it has exited.
    pub(super) fn short_rows(&self) -> Vec<(u32, u64, u64, bool)> {
        let row = |row: TestRow| (row.id.pid, row.id.start_time_ns, row.count, row.info.exited);
        self.rows().into_iter().map(row).collect()
    }

    /// Processes without a row, and what they counted.
    pub(super) fn overflow(&self) -> (u64, u64) {
        (self.table.overflow(), self.part().overflow.count)
    }

    pub(super) fn missing(&self) -> u64 {
        self.table.exit_record_missing()
    }
}
