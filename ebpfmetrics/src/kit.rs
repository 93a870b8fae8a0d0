//! The parts of a probe, for probes in other crates.

pub use crate::{
    collect::{
        Loading, WalkPart,
        collector::{
            Collector, Ended, Progress, Read, Reading, Readings, Record, Span, Task, WalkTimes,
            invalid_record,
        },
        counters::{self, Counters},
    },
    kernel::{Requirements, in_initial_pid_namespace},
    object::{MapHandle, Object, ObjectLoader},
    options::check_option,
    record::{ProcessKey, RecordHead},
    set::{HandleOf, ProbeBuilder, SetOptions, Single},
};
