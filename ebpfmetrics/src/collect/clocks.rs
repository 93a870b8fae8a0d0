//! The clocks that times of running tasks are on.

use crate::{
    error::Result,
    kernel::{monotonic_ns, thread_cpu_time_ns},
    object::Object,
    record::ProcessClocksRecord,
};

/// How far BPF's clock is ahead of the scheduler's.
///
/// Asking for one's own CPU time makes the scheduler update itself between the two
/// readings of our clock. A tick before its clock is read makes the difference too small,
/// never too large: take the largest.
pub(super) fn scheduler_offset(base: &Object) -> Result<Option<u64>> {
    /// More than a test run takes: the reader is in a time namespace.
    const NAMESPACE_NS: u64 = 100_000_000;
    let mut offset = None;
    for _ in 0..8 {
        let before = monotonic_ns();
        thread_cpu_time_ns();
        let after = monotonic_ns();
        base.test_run("process_read_clocks")?;
        let clocks: ProcessClocksRecord = base.array_element("clocks", 0)?;
        if clocks.is_set == 0 {
            return Ok(None);
        }
        let ahead = clocks.monotonic_ns.wrapping_sub(after);
        let namespace_ns = match (ahead as i64).unsigned_abs() < NAMESPACE_NS {
            true => 0,
            false => ahead,
        };
        let middle = (before + (after - before) / 2).wrapping_add(namespace_ns);
        // compared as signed: either clock may be ahead
        offset = offset.max(Some(middle.wrapping_sub(clocks.scheduler_ns) as i64));
    }
    Ok(offset.map(|offset| offset as u64))
}
