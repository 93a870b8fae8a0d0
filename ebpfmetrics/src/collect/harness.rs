//! The user side of a set without a kernel, for benches.

use super::{
    assemble::assemble,
    collector::{Collector, WalkTimes},
    column::{Columns, is_system_record},
    moves::Moves,
    table::{Observed, ProcessTable},
    typed_column::TypedColumn,
    walk::{RecordBuffer, Walked},
};
use crate::{
    error::Result,
    snapshot::{Handle, Losses, Snapshot, Window},
};

/// Takes in walks whose records come from memory. Each step is one of the engine's.
pub(crate) struct Harness {
    table: ProcessTable,
    columns: Columns,
    buffer: RecordBuffer,
    walked: Walked,
    window_start_ns: u64,
}

impl Harness {
    pub(crate) fn new() -> Self {
        Self {
            table: ProcessTable::new(8192, false, true),
            columns: Vec::new(),
            buffer: RecordBuffer::default(),
            walked: Walked::default(),
            window_start_ns: 0,
        }
    }

    pub(crate) fn add<C: Collector>(
        &mut self,
        collector: C,
        section: u16,
    ) -> Handle<C::Usage, C::System> {
        let handle = Handle::new();
        self.columns.push((handle.id(), Box::new(TypedColumn::new(collector, section))));
        handle
    }

    /// Takes the records as the kernel wrote them.
    pub(crate) fn fill(&mut self, mut records: &[u8]) -> Result<()> {
        self.buffer.fill(&mut records)
    }

    /// Splits the records into tasks.
    pub(crate) fn decode(&mut self) -> Result<()> {
        self.walked.read(&self.buffer, |head| is_system_record(&self.columns, head))
    }

    /// Brings the table and the columns up to date.
    pub(crate) fn update(&mut self) -> Result<()> {
        let walk = WalkTimes {
            window_start_ns: self.window_start_ns,
            monotonic_ns: self.walked.monotonic_ns,
            boottime_ns: self.walked.boottime_ns,
            scheduler_offset_ns: Some(0),
        };
        let observed = Observed {
            walked: &self.walked,
            buffer: &self.buffer,
            ends: &[],
            creators: Vec::new(),
            moves: &Moves::default(),
            overflow: &[],
            hidden: &[],
        };
        self.table.update(observed, &walk, &mut self.columns).map(drop)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let window = Window { start_ns: self.window_start_ns, end_ns: self.walked.monotonic_ns };
        assemble(window, &self.table, &self.columns, Losses::default())
    }

    pub(crate) fn end_window(&mut self) {
        self.window_start_ns = self.walked.monotonic_ns;
        self.table.rebase(&mut self.columns);
        for (_, column) in &mut self.columns {
            column.rebase(self.window_start_ns);
        }
    }
}
