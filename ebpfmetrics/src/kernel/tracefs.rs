use std::{fs, io};

/// The id of a tracepoint for `perf_event_open`, from tracefs.
pub(crate) fn tracepoint_id(category: &str, tracepoint: &str) -> io::Result<u64> {
    let read = |tracefs| fs::read_to_string(format!("{tracefs}/events/{category}/{tracepoint}/id"));
    let id = read("/sys/kernel/tracing").or_else(|_| read("/sys/kernel/debug/tracing"))?;
    id.trim().parse().map_err(io::Error::other)
}
