//! Tests that every probe has to pass, for its author to call.
//!
//! They need the privilege that loading needs, and run for real: call them from a test.
//! Each panics with what is wrong.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use crate::{
    Error, Joined, Kernel, Probe, ProcessRow, ProcessRows, Result, Snapshot, Usage, bpf, delta,
    kit::{Read, Record, RecordBuffer, TaskProbe},
    walk::Walk,
};

/// All of the below that a probe with rows of processes has to pass.
///
/// `load` loads a new probe on a kernel at hand. `work` does, in this very process,
/// something that the probe counts, and `count` tells how much of it a usage holds.
///
/// # Panics
/// With what is wrong.
pub fn check<P>(
    load: impl Fn(&Kernel) -> Result<P>,
    work: impl Fn(),
    count: impl Fn(&<<P::Snapshot as ProcessRows>::Row as ProcessRow>::Usage) -> u64,
) where
    P: TaskProbe<Snapshot: ProcessRows>,
{
    let kernel = Kernel::read().expect("the kernel has BTF");
    let load = || load(&kernel).unwrap_or_else(|error| panic!("loading: {error}"));
    leaves_nothing(load);
    counts(load(), &work, &count);
    windows(load(), &work, &count);
    rows(load());
    failed_resets(load(), &work, &count);
    joins(load(), load(), &work, &count);
    intervals(load(), &work, &count);
}

/// The layouts of records as the object's own BTF has them, so that the two sides cannot
/// drift apart: each as `(C_NAME, size, FIELDS)` of its [`Record`].
///
/// # Panics
/// Where a record is not in the object or a field is elsewhere.
pub fn check_layout<R: Record>(object: &[u8]) {
    let (size, fields) = crate::loader::layout(object, R::C_NAME)
        .unwrap_or_else(|| panic!("no struct {} in the BTF of the object", R::C_NAME));
    assert_eq!(size, size_of::<R>(), "size of {}", R::C_NAME);
    let offsets: Vec<_> =
        R::FIELDS.iter().map(|(name, offset, _)| ((*name).to_owned(), *offset)).collect();
    assert_eq!(fields, offsets, "fields of {}", R::C_NAME);
}

/// The names of losses as the object's own BTF has them: `enum NAME_loss` of
/// [`losses`](crate::kit::Object::losses), where cause `x` is called `NAME_LOSS_X`.
///
/// # Panics
/// Where a name or its place differs.
pub fn check_losses(object: &[u8], enumeration: &str, losses: &[&str]) {
    let found = crate::loader::enumerators(object, enumeration)
        .unwrap_or_else(|| panic!("no enum {enumeration} in the BTF of the object"));
    let prefix = format!("{}_", enumeration.to_uppercase());
    let mut in_c: Vec<_> = found
        .iter()
        .filter_map(|(name, value)| Some((*value, name.strip_prefix(&prefix)?.to_lowercase())))
        .collect();
    in_c.sort();
    let in_rust: Vec<_> = (0..).zip(losses.iter().map(|name| (*name).to_owned())).collect();
    assert_eq!(in_c, in_rust, "enumerators of {enumeration}");
}

fn read<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("reading: {error}"))
}

fn own_count<S: ProcessRows>(
    snapshot: &S,
    count: &impl Fn(&<S::Row as ProcessRow>::Usage) -> u64,
) -> u64 {
    let me = std::process::id();
    let row = snapshot.rows().iter().rfind(|row| row.id().pid == me);
    count(row.expect("a row of this process").usage())
}

/// A probe that is dropped takes its programs, maps and descriptors with it, and reads
/// leave none behind.
fn leaves_nothing<P: Probe>(load: impl Fn() -> P) {
    drop(load()); // what the first use in a process takes is not the probe's
    let (programs, open) = (bpf::program_ids(), descriptors());
    let mut probe = load();
    let loaded = read(probe.health()).programs;
    let new = bpf::program_ids().difference(&programs).count();
    assert!(loaded > 0 && new >= loaded, "{loaded} programs in health, {new} in the kernel");
    read(probe.snapshot());
    let during = descriptors();
    for _ in 0..10 {
        read(probe.snapshot());
        read(probe.reset());
    }
    assert_eq!(descriptors(), during, "a read leaves descriptors open");
    drop(probe);
    assert_eq!(descriptors(), open, "a dropped probe leaves descriptors open");
    let deadline = Instant::now() + Duration::from_secs(10);
    // freed after an RCU grace period; those of others come and go meanwhile
    let left = || bpf::program_ids().difference(&programs).count();
    while left() >= new {
        assert!(Instant::now() < deadline, "{} programs are still there", left());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default()
}

/// Work shows, in the row of who did it; none shows as none.
fn counts<P: Probe<Snapshot: ProcessRows>>(
    mut probe: P,
    work: &impl Fn(),
    count: &impl Fn(&<<P::Snapshot as ProcessRows>::Row as ProcessRow>::Usage) -> u64,
) {
    work();
    let once = own_count(&read(probe.reset()), count);
    assert!(once > 0, "work was not counted");
    work();
    work();
    let twice = own_count(&read(probe.reset()), count);
    assert!(twice > once, "counted {twice} for twice the work of {once}");
}

/// Windows touch, counters begin again, never go back, and add up.
fn windows<P: Probe<Snapshot: ProcessRows>>(
    mut probe: P,
    work: &impl Fn(),
    count: &impl Fn(&<<P::Snapshot as ProcessRows>::Row as ProcessRow>::Usage) -> u64,
) {
    let mut end = read(probe.reset()).window().end_ns;
    for _ in 0..5 {
        work();
        let first = read(probe.snapshot());
        assert_eq!(first.window().start_ns, end, "a snapshot moves the window");
        work();
        let second = read(probe.snapshot());
        let (one, two) = (own_count(&first, count), own_count(&second, count));
        assert!(two >= one && one > 0, "{one}, then {two} in one window");
        for row in first.rows() {
            if let Some(later) = second.rows().iter().find(|later| later.id() == row.id()) {
                let (before, now) = (count(row.usage()), count(later.usage()));
                assert!(now >= before, "{} went from {before} back to {now}", row.id());
            }
        }
        let between = delta(&first, &second);
        let mine = between.processes.iter().rfind(|row| row.id().pid == std::process::id());
        assert_eq!(mine.map(|row| count(row.usage())), Some(two - one), "a delta is off");
        let last = read(probe.reset());
        assert_eq!(last.window().start_ns, end);
        assert!(own_count(&last, count) >= two, "a reset takes back what was told");
        end = last.window().end_ns;
    }
}

/// Rows are sorted, each process is there once, and what is lost has a name.
fn rows<P: Probe<Snapshot: ProcessRows>>(mut probe: P) {
    let snapshot = read(probe.snapshot());
    let ids: Vec<_> = snapshot.rows().iter().map(ProcessRow::id).collect();
    assert!(ids.is_sorted(), "rows are not in the order of their ids");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "a process is there twice");
    assert!(snapshot.losses().iter().next().is_some(), "no loss has a name");
    assert!(!snapshot.provenance().sources.is_empty(), "no source is told");
    assert_eq!(snapshot.provenance().probe, P::NAME);
    let total =
        snapshot.rows().iter().fold(snapshot.folded_usage(), |sum, row| sum.plus(row.usage()));
    let none = <<P::Snapshot as ProcessRows>::Row as ProcessRow>::Usage::default();
    let _ = total.since(&none);
}

/// A reset that fails in another probe of the walk, before or after it, ends no window.
fn failed_resets<P: TaskProbe<Snapshot: ProcessRows>>(
    mut probe: P,
    work: &impl Fn(),
    count: &impl Fn(&<<P::Snapshot as ProcessRows>::Row as ProcessRow>::Usage) -> u64,
) {
    let start = read(probe.reset()).window().end_ns;
    work();
    read(TaskProbe::before_walk(&mut probe, Read::Reset));
    work();
    read(TaskProbe::before_walk(&mut probe, Read::Reset));
    let mut buffer = RecordBuffer::default();
    let walk = read(Walk::make(Some(&mut probe), &mut buffer));
    let failed = read(probe.after_walk(&walk));
    work();
    let snapshot = read(probe.reset());
    let windows = [failed.window(), snapshot.window()];
    assert_eq!(windows.map(|window| window.start_ns), [start; 2], "a failed reset ends a window");
    let (before, all) = (own_count(&failed, count), own_count(&snapshot, count));
    assert!(0 < before && before < all, "{before}, with more work {all}, after a failed reset");
}

/// Joined with another it shows the same, over one window.
fn joins<P: TaskProbe<Snapshot: ProcessRows>>(
    one: P,
    other: P,
    work: &impl Fn(),
    count: &impl Fn(&<<P::Snapshot as ProcessRows>::Row as ProcessRow>::Usage) -> u64,
) {
    let mut joined = read(Joined::new((one, other)));
    work();
    let snapshot = read(joined.reset());
    let (first, second) = (&snapshot.parts.0, &snapshot.parts.1);
    assert_eq!((first.window(), second.window()), (snapshot.window, snapshot.window));
    let (one, two) = (own_count(first, count), own_count(second, count));
    assert!(one > 0 && two > 0, "joined probes counted {one} and {two}");
    let (mut alone, _) = joined.into_inner();
    work();
    assert!(own_count(&read(alone.reset()), count) > 0, "a parted probe counts no more");
}

/// As intervals, nothing is lost by a consumer that comes late.
fn intervals<P: Probe<Snapshot: ProcessRows>>(
    probe: P,
    work: &impl Fn(),
    count: &impl Fn(&<<P::Snapshot as ProcessRows>::Row as ProcessRow>::Usage) -> u64,
) {
    let every = Duration::from_millis(20);
    let mut intervals = probe.intervals(every);
    let mut next = || read(intervals.next().expect("intervals without end"));
    let start = next().snapshot.window().end_ns;
    work();
    std::thread::sleep(5 * every);
    let late = next();
    assert!(late.missed_ticks >= 3, "{} ticks missed", late.missed_ticks);
    assert_eq!(late.snapshot.window().start_ns, start);
    assert!(own_count(&late.snapshot, count) > 0, "a late interval lost work");
}
