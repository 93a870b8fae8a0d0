//! Where the figures come from on this kernel, and what is missing.

use super::{hooks::Hooks, totals::IoAccounting};
use crate::{probe::Degraded, snapshot::Source};

pub(super) fn sources(hooks: &Hooks, accounting: IoAccounting) -> Vec<Source> {
    let when = |known, metric, source: &'static str| match known {
        true => Source::new(metric, source),
        false => Source::missing(metric),
    };
    let start = match hooks.start {
        Some((_, "block_io_start")) => "tp_btf/block_io_start",
        Some(_) => "tp_btf/block_getrq",
        None => "tp_btf/block_rq_issue",
    };
    let owner = match hooks.dirty {
        Some((_, "writeback_dirty_folio")) => "tp_btf/writeback_dirty_folio",
        _ => "tp_btf/writeback_dirty_page",
    };
    vec![
        Source::new("operations", "tp_btf/block_rq_complete, block_bio_complete"),
        Source::new("bytes", "tp_btf/block_rq_complete, block_bio_complete"),
        Source::new("errors", "tp_btf/block_rq_complete, block_bio_complete"),
        Source::new("foreground", start),
        when(hooks.dirty.is_some(), "write_back", owner),
        Source::new("queue", "own clock, from the start to block_rq_issue"),
        Source::new("device", "own clock, from block_rq_issue to block_rq_complete"),
        when(accounting.bytes, "dirtied_bytes", "iter/task: task->ioac.write_bytes"),
        when(accounting.bytes, "cancelled_bytes", "iter/task: task->ioac.cancelled_write_bytes"),
        when(accounting.chars, "read_chars", "iter/task: task->ioac.rchar"),
        when(accounting.chars, "written_chars", "iter/task: task->ioac.wchar"),
        when(accounting.chars, "read_calls", "iter/task: task->ioac.syscr"),
        when(accounting.chars, "write_calls", "iter/task: task->ioac.syscw"),
        Source::new("busy", "/proc/diskstats: io_ticks"),
    ]
}

pub(super) fn degraded(hooks: &Hooks, accounting: IoAccounting) -> Vec<Degraded> {
    let degraded = [
        Degraded::when(
            !accounting.bytes,
            "dirtied_bytes",
            "the kernel lacks CONFIG_TASK_IO_ACCOUNTING",
        ),
        Degraded::when(!accounting.chars, "read_chars", "the kernel lacks CONFIG_TASK_XACCT"),
        Degraded::when(
            hooks.dirty.is_none(),
            "write_back",
            "the kernel has no tracepoint for pages that become dirty: write-back is charged \
             to kernel threads",
        ),
        Degraded::when(
            hooks.start.is_none(),
            "foreground",
            "the kernel has neither block_io_start nor block_getrq: operations are charged to \
             the process that issues them, which is another one for 1 to 2 % of them",
        ),
    ];
    degraded.into_iter().flatten().collect()
}
