//! The parts of a probe, for probes in other crates.
//!
//! A probe is a BPF object and an implementation of [`Collector`], which says what the object
//! counts and how records become public figures. All else comes from the set that the probe
//! is loaded into, be it a set of one: the identity of processes, their start and end,
//! windows and baselines, the filter, losses, and the one walk over all tasks that each
//! snapshot makes. A probe attaches nothing to the start or the end of processes.
//!
//! There are two ways to measure, and a probe may use both:
//!
//! * **Sum up events.** Hooks add to a hash map by `struct process_key`.
//!   [`Collector::COUNTS`] is the name of the map. The set reads the map at each snapshot and
//!   deletes the entries of processes that have ended. Nothing is lost when a process ends:
//!   its counts are read once more after its last thread has exited. This needs no walk
//!   program and no record. Example: system calls per process (`examples/custom_probe`).
//! * **Read the kernel's fields.** A program in the section `iter/task` continues the walk
//!   for each task. It writes records about the task at hand and ends with `CALL_NEXT(ctx)`.
//!   [`Collector::walk_part`] names it, [`Collector::task_record`] takes the records. Nothing
//!   runs between snapshots, and what a process does after the last walk that showed it is
//!   not known, so this is for gauges. Example: OOM scores (`examples/task_probe`).
//!
//! # A probe consists of
//!
//! | part | contents |
//! |---|---|
//! | `bpf/NAME.bpf.c` | hooks and maps; includes `probe.h` of the crate `ebpf-probes` (its directory is `ebpf_probes::INCLUDE`) |
//! | `objects/NAME.bpf.o` | the compiled object, committed, so that users need no compiler |
//! | `src/record.rs` | the structs and causes of losses that both sides use, generated from the object |
//! | a usage | the public figures of a process: a struct that implements [`Usage`](crate::Usage) |
//! | a builder | the options, with a field of type [`SetOptions`], and [`probe_builder!`](crate::probe_builder) |
//! | a collector | a struct with the loaded [`Object`], which implements [`Collector`] |
//! | aliases | `pub type NetProbe = Single<Net>` ([`Single`]) and `ProbeSnapshot<NetUsage, ()>` |
//!
//! # Names in the object
//!
//! | name | where | meaning |
//! |---|---|---|
//! | `NAME_losses` | map | `DEFINE_LOSSES(NAME, N)` makes it. `NAME` is [`Collector::NAME`] |
//! | `enum NAME_loss` | `NAME_LOSS_X` | causes of losses, in the order of the map; `x` in snapshots |
//! | any, such as `NAME_counts` | map | [`Collector::COUNTS`]: from `struct process_key` to a struct of `u64` |
//! | `..._record`, `..._key` | structs | generated into `src/record.rs`, if a map or a function uses them or `EMIT_BTF` names them |
//! | `own_section` | constant | `probe.h` declares it, [`Loading::object`] sets it: the section of records in `RECORD_HEAD(own_section, KIND, r)` |
//! | `next_program` | map | `probe.h` declares it, the set fills it in: the next program of the walk, for `CALL_NEXT` |
//! | `filter_mode`, `filter_cgroup`, `filtered`, `known_cgroups` | constants and maps | `filter.h` declares them for `passes_filter()`, [`Loading::object`] sets them |
//! | `cgroup_hierarchy` | constant | `process.h` declares it, [`Loading::object`] sets it |
//!
//! # Rules
//!
//! * Every hook asks `passes_filter()`, or `passes_filter_as()` for a pointer that is not
//!   typed, before it counts. Rows of other processes are not shown, but their counts would be
//!   added to the overflow.
//! * What a hook cannot count it counts as a loss.
//! * Counters only grow. Threads of one process run on several CPUs: add atomically.
//! * The process with pid 0 is the idle task of a CPU. It has no row.
//!
//! `docs/custom-probe.md` writes a probe step by step. The feature `conformance` adds tests
//! that every probe has to pass, `kit::conformance`.

#[cfg(feature = "conformance")]
pub mod conformance;

#[cfg(feature = "serde")]
pub use crate::snapshot::Json;
pub use crate::{
    collect::{
        Loading, WalkPart,
        collector::{
            Collector, Progress, Read, Reading, Readings, Record, Span, Task, WalkTimes,
            invalid_record,
        },
        counters::{self, Counters},
    },
    kernel::{Requirements, in_initial_pid_namespace},
    object::{MapHandle, Object, ObjectLoader},
    options::check_option,
    record::{ProcessInfoRecord, ProcessKey, RecordHead},
    set::{HandleOf, ProbeBuilder, SetOptions, Single},
    snapshot::NoLoss,
};
