//! Tests that every probe has to pass, for its author to call (feature `conformance`).
//!
//! They need the privilege that loading needs and `CAP_SYS_ADMIN` (to list what is in the
//! kernel). They load programs and measure: call them from a test. Each panics with what is
//! wrong.

mod bystander;
mod processes;
mod resources;
mod sets;
mod windows;
mod worker;

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::{Collector, ProbeBuilder, Single};
use crate::{
    error::Result,
    kernel::Kernel,
    process::ProcessId,
    snapshot::{Row, Rows},
};
use worker::{Role, Worker};

/// The usage of a builder's probe.
pub type UsageOf<B> = <<B as ProbeBuilder>::Collector as Collector>::Usage;

/// Checks everything that holds for any probe with figures of processes:
///
/// * **resources**: the probe loads, starts no thread, and [`Health`](crate::probe::Health)
///   and [`Cost`](crate::probe::Cost) list its programs; reads, changes of a set and the end
///   of the probe leave no descriptor, program or map behind;
/// * **count**: the work of a process is in its row, no less and not twice; a process that
///   does nothing has nothing;
/// * **windows**: they touch, counters begin again at a reset, and never go back within a
///   window; all windows together have what a second probe has that is never reset;
///   [`delta`](crate::snapshot::delta) and [`Intervals`](crate::Intervals) too;
/// * **processes**: each has one row and the right identity; a process that was waited for is
///   marked as exited in the next snapshot, with all that it did, and has no row in the next
///   window; the same if no snapshot showed it alive, or if there are more such processes
///   than rows; [`final_usage`](crate::ProbeSet::final_usage) agrees; nothing of a process
///   outside the [`Filter`](crate::Filter) is counted;
/// * **sets**: other probes that are added and removed change nothing; nor does one that
///   cannot be loaded; a read that fails because of another probe does not end the window.
///
/// `builder` makes the builder of a new probe. `work` does something that the probe counts
/// and returns how much of it there was, from what to what, as known by other means than the
/// probe. It runs in a process of its own, which does nothing else but wait for the next
/// piece of work (a read and a write). `count` is how much of it a usage has.
///
/// The checks run in a process of their own, for which the calling program is started again:
/// call this once in a test, and do nothing with an effect before. Works in the initial PID
/// namespace only.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, kit::conformance};
///
/// #[test]
/// fn conformance() {
///     let work = || {
///         let begin = cpu_time_ns();
///         while cpu_time_ns() < begin + 100_000_000 {}
///         100_000_000..=110_000_000
///     };
///     conformance::check(CpuProbe::builder, work, |usage| usage.cpu_time.as_nanos() as u64);
/// }
/// # fn cpu_time_ns() -> u64 { 0 }
/// ```
///
/// # Panics
/// With what is wrong.
pub fn check<B: ProbeBuilder>(
    builder: impl Fn() -> B,
    work: impl Fn() -> RangeInclusive<u64>,
    count: impl Fn(&UsageOf<B>) -> u64,
) {
    match worker::role() {
        Role::Author => worker::check_apart(),
        Role::Worker => worker::serve(work),
        Role::Checker => worker::run(|| {
            let kernel = Kernel::read().expect("the kernel has BTF");
            let check = Check { builder, count, kernel };
            check.leaves_nothing();
            check.counts();
            check.windows();
            check.conserves();
            check.intervals();
            check.rows();
            check.ends();
            check.many_ends();
            check.filters();
            check.changes_of_a_set();
            check.failed_changes_of_a_set();
            check.failed_reads();
        }),
    }
}

/// The probe under test.
struct Check<N, F> {
    builder: N,
    count: F,
    kernel: Kernel,
}

impl<B: ProbeBuilder, N: Fn() -> B, F: Fn(&UsageOf<B>) -> u64> Check<N, F> {
    fn load(&self) -> Single<B::Collector> {
        let loaded = Single::load_on((self.builder)(), &self.kernel);
        loaded.unwrap_or_else(|error| panic!("loading: {error}"))
    }

    /// What a living process did, as counted.
    fn count_of(&self, rows: &impl Rows<Usage = UsageOf<B>>, worker: &Worker) -> u64 {
        let row = rows_of(rows, worker.pid()).last();
        (self.count)(row.expect("no row of a living process").usage)
    }

    /// The row of a process that has ended.
    fn end_of(&self, rows: &impl Rows<Usage = UsageOf<B>>, pid: u32) -> (ProcessId, u64) {
        let mut rows = rows_of(rows, pid);
        let last = rows.next().expect("a process that has ended has no row");
        assert!(rows.next().is_none(), "a process that has ended is there twice");
        assert!(last.info.exited, "a process that has been waited for is not marked as exited");
        (last.id, (self.count)(last.usage))
    }
}

fn read<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("reading: {error}"))
}

/// The rows of a pid.
fn rows_of<R: Rows>(rows: &R, pid: u32) -> impl Iterator<Item = Row<'_, R::Usage>> {
    rows.rows().filter(move |row| row.id.pid == pid)
}

fn within(counted: u64, work: &RangeInclusive<u64>) {
    assert!(*work.start() > 0, "the work has to be something that is counted");
    assert!(counted >= *work.start(), "counted {counted} of {work:?}: too little");
    assert!(counted <= *work.end(), "counted {counted} of {work:?}: too much");
}

fn add(sum: &mut RangeInclusive<u64>, more: &RangeInclusive<u64>) {
    *sum = sum.start() + more.start()..=sum.end().saturating_add(*more.end());
}

/// Polls until there is what is looked for.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
