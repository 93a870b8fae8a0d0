//! What probes are made of, for probes in other crates.
//!
//! The probes of this library use nothing else. A probe consists of
//!
//! 1. **a BPF object**, compiled by its author against the headers of the crate
//!    `ebpf-probes` (`task.h` has the head of records, the identity of tasks and the
//!    joint walk; `compat.h` an accessor per difference between kernels). It keeps
//!    counts in maps, tells of each task in an iterator that ends in `HAND_ON(ctx)`, and
//!    of each process that ends in a final record;
//! 2. **mirrors** of its records, made with [`record!`](crate::record);
//! 3. **decoding**, as pure functions: [`Records`] of a walk to a [`Reading`] per process,
//!    [`sum_up`] to add up threads;
//! 4. **a ledger**: [`Ledger`] knows windows, baselines, processes that come and go and
//!    final records that never come, for any [`Totals`];
//! 5. **a driver**: [`Loader`] and [`Object`] load, attach and read; [`Probe`](crate::Probe)
//!    and [`TaskProbe`] are implemented on top, and with them the probe has snapshots,
//!    windows, streams, joins and groups.
//!
//! [`conformance`] has the tests that every probe has to pass. `docs/custom-probe.md` of the
//! repository goes through all of it with a probe in a crate of its own.
//!
//! # Names in the object
//!
//! Programs and maps are named as their author likes, but for these, which the parts above
//! look for:
//!
//! | name | is | read by |
//! |---|---|---|
//! | `losses` | `DEFINE_LOSSES(NUMBER)`: counts per CPU by cause | [`Object::losses`] |
//! | `ending` | hash of a record by [`ProcessKey`]: set when the last thread of a process exits, deleted at its release | [`Ledger::read`] |
//! | `exited` | hash of a record by [`ProcessKey`]: the final record, set at the release, taken by user space | [`Ledger::read`] |
//! | `folded` | per-CPU array with one element: the sum of those that `exited` had no room for | [`Ledger::read`] |
//! | `stream`, `next_iterator` | of `task.h`: which probe of a joint walk it is, and who is next | the walk |

pub mod conformance;

pub use crate::{
    error::{MAX_EXITED, check_option},
    ledger::{Decode, Ending, Folded, Known, Ledger, Reading, TaskTotals, Totals, sum_up},
    loader::{Loader, Object},
    preflight::in_initial_pid_namespace,
    record::Record,
    records::{RecordBuffer, Records, cast, invalid},
    task::{ProcessKey, RecordHead, TaskAbout},
    walk::{Read, TaskProbe, UsageOf, Walk, Windows, read_alone},
};
