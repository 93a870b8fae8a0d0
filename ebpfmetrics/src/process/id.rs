use std::{fmt, time::Duration};

/// Identifies a process for as long as the machine runs: its pid and its start time.
///
/// The kernel reuses a pid after its process has ended. It never reuses the pair.
/// The pid is the one in the initial PID namespace (`task_struct::tgid`). The start
/// time is on `CLOCK_BOOTTIME` (`task_struct::start_boottime` of the group leader);
/// field 22 of `/proc/PID/stat` shows it in units of 10 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProcessId {
    /// Process id in the initial PID namespace.
    #[doc(alias = "tgid")]
    pub pid: u32,
    /// Start time in ns since boot, including suspend.
    #[doc(alias = "start_boottime")]
    pub start_time_ns: u64,
}

/// Unit of start times in `/proc`: `USER_HZ`, which is 100 on x86-64 and arm64.
pub(crate) const TICK_NS: u64 = 10_000_000;

impl ProcessId {
    /// Start time since boot, including suspend.
    pub fn start_time(&self) -> Duration {
        Duration::from_nanos(self.start_time_ns)
    }

    /// The process by its start time as `/proc` has it, in units of 10 ms.
    pub(crate) fn rounded_to_ticks(self) -> Self {
        Self { start_time_ns: self.start_time_ns / TICK_NS * TICK_NS, ..self }
    }
}

/// Prints the pid.
impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.fmt(f)
    }
}

/// Identifies a thread for as long as the machine runs: its thread id and its start time.
///
/// The thread id is the one in the initial PID namespace (`task_struct::pid`). The
/// start time is the thread's own, on `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ThreadId {
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Start time in ns since boot, including suspend.
    pub start_time_ns: u64,
}

impl ThreadId {
    /// Start time since boot, including suspend.
    pub fn start_time(&self) -> Duration {
        Duration::from_nanos(self.start_time_ns)
    }
}

/// Prints the thread id.
impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tid.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_numbers_and_pad() {
        let id = ProcessId { pid: 42, start_time_ns: 7 };
        assert_eq!(format!("{id} {id:>5}"), "42    42");
        assert_eq!(format!("{:05}", ThreadId { tid: 42, start_time_ns: 7 }), "00042");
        assert_eq!(id.start_time(), Duration::from_nanos(7));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn ids_round_trip_through_json() {
        let id = ProcessId { pid: 42, start_time_ns: u64::MAX };
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, r#"{"pid":42,"start_time_ns":18446744073709551615}"#);
        assert_eq!(serde_json::from_str::<ProcessId>(&json).unwrap(), id);
        let id = ThreadId { tid: 43, start_time_ns: 8 };
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<ThreadId>(&json).unwrap(), id);
    }
}
