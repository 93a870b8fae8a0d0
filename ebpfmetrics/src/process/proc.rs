//! A process in `/proc`, by its id.

use std::fs;

use procfs::{
    ProcResult,
    process::{Process, Stat},
};

use super::{ProcessId, id::TICK_NS};

impl ProcessId {
    /// The directory of the process, with its `stat`. `None` if another process has the pid.
    ///
    /// The open directory stays that of the process: what is read in it is not of another one
    /// that gets the pid later.
    pub(crate) fn open(self) -> ProcResult<Option<(Process, Stat)>> {
        let Ok(pid) = i32::try_from(self.pid) else { return Ok(None) };
        let directory = Process::new(pid)?;
        let stat = directory.stat()?;
        // not procfs::ticks_per_second(): it panics in a process that has changed its user
        let start_ns = stat.starttime * TICK_NS;
        // A time namespace shifts start times, since 5.11. Rounding may then give the next tick.
        let offset_ns = boottime_offset_ns();
        let is_it = |offset_ns: i64| {
            let shown_ns = self.start_time_ns.saturating_add_signed(offset_ns);
            (shown_ns / TICK_NS).abs_diff(start_ns / TICK_NS) <= u64::from(offset_ns != 0)
        };
        Ok((is_it(0) || is_it(offset_ns)).then_some((directory, stat)))
    }
}

/// What a time namespace adds to `CLOCK_BOOTTIME`: 0 on a kernel without time namespaces.
fn boottime_offset_ns() -> i64 {
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    let line = offsets.lines().find_map(|line| line.strip_prefix("boottime"));
    let mut numbers = line.into_iter().flat_map(str::split_whitespace).map(str::parse::<i64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(seconds)), Some(Ok(ns))) => seconds.saturating_mul(1_000_000_000) + ns,
        _ => 0,
    }
}
