use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in ns, the clock of `bpf_ktime_get_ns()`.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// CPU time of the calling thread. Reading it makes the scheduler update the accounting of
/// this CPU; callers use it for that side effect.
pub(crate) fn thread_cpu_time_ns() -> u64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
