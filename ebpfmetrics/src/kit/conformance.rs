//! Tests that every probe has to pass, for its author to call.
//!
//! They need the privilege that loading needs and `CAP_SYS_ADMIN` (to list what is in the
//! kernel), and run for real: call them from a test. Each panics with what is wrong.

mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::RangeInclusive,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    Error, Joined, Kernel, Probe, ProcessId, ProcessRow, ProcessRows, Result, Snapshot, bpf, delta,
    kit::{Read, Record, RecordBuffer, TaskProbe, UsageOf},
    walk::Walk,
};
use worker::{Role, Worker};

/// All that a probe with rows of processes has to pass:
///
/// * **load**: what it needs is there, it starts no thread, and [`Health`](crate::Health)
///   and [`Cost`](crate::Cost) know its programs;
/// * **count**: what a process does is in its row, neither less nor twice; of one that
///   does nothing there is nothing;
/// * **reset**: windows touch, counters begin again, and never go back within one; a reset
///   that fails in another probe of the walk ends none;
/// * **conserve**: all windows together have what a second probe has that is never reset,
///   whatever happens during a reset; [`delta`] and [`Intervals`](crate::Intervals) too;
/// * **processes**: who is who, each once, with its end and its final count, whether
///   it was seen alive or not; gone from the next window;
/// * **join**: two in one walk count what each counts alone;
/// * **detach**: reads and the end of the probe leave no descriptor, program or map.
///
/// `load` loads a new probe on a kernel at hand. `work` does something that the probe
/// counts and returns how much of it there was, from what to what, as known by other means
/// than the probe; it runs in a process of its own, which does nothing else but ask for
/// the next piece of work (a read and a write). `count` tells how much of it a usage holds.
///
/// The checks are made in a process of their own, for which the calling program is started
/// once more: call it once in a test, and let nothing with an effect come before. Works in
/// the initial PID namespace only.
///
/// ```no_run
/// use ebpfmetrics::{MemProbe, kit::conformance};
///
/// #[test]
/// fn conformance() {
///     let load = |kernel: &_| MemProbe::builder().load_on(kernel);
///     let work = || {
///         drop(std::hint::black_box(vec![1_u8; 64 << 20]));
///         10..=17_000 // pages, or huge ones
///     };
///     conformance::check(load, work, |usage| usage.minor_faults);
/// }
/// ```
///
/// # Panics
/// With what is wrong.
pub fn check<P>(
    load: impl Fn(&Kernel) -> Result<P>,
    work: impl Fn() -> RangeInclusive<u64>,
    count: impl Fn(&UsageOf<P>) -> u64,
) where
    P: TaskProbe<Snapshot: ProcessRows>,
{
    match worker::role() {
        Role::Author => worker::check_apart(),
        Role::Worker => worker::serve(work),
        Role::Checker => worker::make(|| {
            let kernel = Kernel::read().expect("the kernel has BTF");
            let load = || load(&kernel).unwrap_or_else(|error| panic!("loading: {error}"));
            leaves_nothing(load);
            counts(load(), &count);
            windows(load(), &count);
            conserves(load(), load(), &count);
            rows(load());
            ends(load(), &count);
            failed_resets(load(), &count);
            joins(load(), load(), &count);
            intervals(load(), &count);
        }),
    }
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

/// The rows of a pid.
fn rows_of<S: ProcessRows>(snapshot: &S, pid: u32) -> impl Iterator<Item = &S::Row> {
    snapshot.rows().iter().filter(move |row| row.id().pid == pid)
}

/// What one process did, as counted.
fn count_of<S: ProcessRows>(
    snapshot: &S,
    worker: &Worker,
    count: &impl Fn(&<S::Row as ProcessRow>::Usage) -> u64,
) -> u64 {
    let row = rows_of(snapshot, worker.pid()).last();
    count(row.expect("no row of a process that is alive").usage())
}

fn within(counted: u64, work: &RangeInclusive<u64>) {
    assert!(*work.start() > 0, "there has to be something to count");
    assert!(counted >= *work.start(), "counted {counted} of {work:?}: too little");
    assert!(counted <= *work.end(), "counted {counted} of {work:?}: too much");
}

fn add(sum: &mut RangeInclusive<u64>, more: &RangeInclusive<u64>) {
    *sum = sum.start() + more.start()..=sum.end().saturating_add(*more.end());
}

/// Reads until there is what is looked for.
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

/// A probe that is dropped takes its programs, maps and descriptors with it, and reads
/// leave none behind.
fn leaves_nothing<P: Probe>(load: impl Fn() -> P) {
    drop(load()); // what the first use in a process takes is not the probe's
    let (before, threads) = (descriptors(), threads_of_this());
    let mut probe = load();
    let (programs, maps) = (ids("prog_id:"), ids("map_id:"));
    let health = read(probe.health());
    assert!(!programs.is_empty() && !maps.is_empty(), "no programs or no maps are loaded");
    assert_eq!(health.programs, programs.len(), "programs in health, and loaded");
    assert_eq!(read(probe.cost()).programs.len(), programs.len(), "programs in cost, and loaded");
    assert!(health.map_bytes > 0, "maps take no memory");
    let listed = programs.is_subset(&bpf::program_ids()) && maps.is_subset(&bpf::map_ids());
    assert!(listed, "the kernel does not list what is loaded: is CAP_SYS_ADMIN missing?");

    read(probe.snapshot());
    let during = descriptors();
    for _ in 0..10 {
        read(probe.snapshot());
        read(probe.reset());
    }
    assert_eq!(descriptors(), during, "a read leaves descriptors open");
    assert_eq!(threads_of_this(), threads, "a probe starts threads");
    drop(probe);
    assert_eq!(descriptors(), before, "a dropped probe leaves descriptors open");
    // freed after an RCU grace period
    until("a dropped probe leaves programs or maps in the kernel", || {
        let gone = programs.is_disjoint(&bpf::program_ids()) && maps.is_disjoint(&bpf::map_ids());
        gone.then_some(())
    });
}

/// What is open here, by number.
fn descriptors() -> BTreeMap<u32, String> {
    let target = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        // that of the listing itself is closed by now
        Some((number, fs::read_link(entry.path()).ok()?.display().to_string()))
    };
    let entries: Vec<_> = list("/proc/self/fd");
    entries.into_iter().filter_map(target).collect()
}

fn threads_of_this() -> usize {
    list("/proc/self/task").len()
}

/// The ids of the programs or maps that are open here.
fn ids(field: &str) -> BTreeSet<u32> {
    let infos = list("/proc/self/fdinfo").into_iter();
    let infos = infos.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let id = |info: String| info.lines().find_map(|l| l.strip_prefix(field)?.trim().parse().ok());
    infos.filter_map(id).collect()
}

fn list(directory: impl AsRef<Path>) -> Vec<fs::DirEntry> {
    fs::read_dir(directory).expect("/proc is there").flatten().collect()
}

/// Work shows, in the row of who did it and in the window in which it was done.
fn counts<P: Probe<Snapshot: ProcessRows>>(mut probe: P, count: &impl Fn(&UsageOf<P>) -> u64) {
    let mut worker = Worker::start();
    read(probe.reset());
    let once = worker.work();
    within(count_of(&read(probe.reset()), &worker, count), &once);
    let idle = count_of(&read(probe.reset()), &worker, count);
    assert!(idle < *once.start(), "counted {idle} of a process that did nothing");
    let mut more = worker.work();
    add(&mut more, &worker.work());
    add(&mut more, &worker.work());
    within(count_of(&read(probe.snapshot()), &worker, count), &more);
    within(count_of(&read(probe.reset()), &worker, count), &more);
}

/// Windows touch, and within one counters never go back and add up.
fn windows<P: Probe<Snapshot: ProcessRows>>(mut probe: P, count: &impl Fn(&UsageOf<P>) -> u64) {
    let mut worker = Worker::start();
    let mut end = read(probe.reset()).window().end_ns;
    for _ in 0..5 {
        worker.work();
        let first = read(probe.snapshot());
        assert_eq!(first.window().start_ns, end, "a snapshot moves the window");
        worker.work();
        let second = read(probe.snapshot());
        assert_eq!(second.window().start_ns, end, "a snapshot moves the window");
        assert!(second.window().end_ns > first.window().end_ns, "the window does not grow");
        for row in first.rows() {
            if let Some(later) = second.rows().iter().find(|later| later.id() == row.id()) {
                let (before, now) = (count(row.usage()), count(later.usage()));
                assert!(now >= before, "{} went from {before} back to {now}", row.id());
            }
        }
        let (one, two) = (count_of(&first, &worker, count), count_of(&second, &worker, count));
        let between = delta(&first, &second);
        let mine = between.processes.iter().rfind(|row| row.id().pid == worker.pid());
        assert_eq!(mine.map(|row| count(row.usage())), Some(two - one), "a delta is off");
        let last = read(probe.reset());
        assert_eq!(last.window().start_ns, end, "a reset moves the start of its window");
        assert!(count_of(&last, &worker, count) >= two, "a reset takes back what was told");
        end = last.window().end_ns;
    }
}

/// All windows together have what a probe has that is never reset, and no more, though
/// the resets come while there is something to count.
fn conserves<P: Probe<Snapshot: ProcessRows>>(
    mut windows: P,
    mut whole: P,
    count: &impl Fn(&UsageOf<P>) -> u64,
) {
    let mut worker = Worker::start();
    let mut told = |worker: &Worker| count_of(&read(whole.snapshot()), worker, count);
    let begin = told(&worker);
    read(windows.reset());
    let begin = begin..=told(&worker);
    let (mut sum, mut work) = (0, 0..=0);
    for _ in 0..10 {
        worker.begin();
        sum += count_of(&read(windows.reset()), &worker, count);
        sum += count_of(&read(windows.reset()), &worker, count);
        add(&mut work, &worker.end());
    }
    let end = told(&worker);
    sum += count_of(&read(windows.reset()), &worker, count);
    let end = end..=told(&worker);
    within(sum, &work);
    // a clock may be some ns off where a process is running
    let slack = sum / 1000;
    let least = (end.start() - begin.end()).saturating_sub(slack);
    let most = end.end() - begin.start() + slack;
    assert!(sum >= least, "windows have {sum} together, a probe without resets {least}");
    assert!(sum <= most, "windows have {sum} together, a probe without resets {most}");
}

/// Rows are sorted, each process is there once and is who it is, and what is lost has a
/// name.
fn rows<P: Probe<Snapshot: ProcessRows>>(mut probe: P) {
    let worker = Worker::start();
    let snapshot = read(probe.snapshot());
    let ids: Vec<_> = snapshot.rows().iter().map(ProcessRow::id).collect();
    assert!(ids.is_sorted(), "rows are not in the order of their ids");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "a process is there twice");
    assert!(snapshot.losses().iter().next().is_some(), "no loss has a name");
    assert!(!snapshot.provenance().sources.is_empty(), "no source is told");
    assert_eq!(snapshot.provenance().probe, P::NAME);
    let row = rows_of(&snapshot, worker.pid()).last().expect("no row of a process that is alive");
    let (id, info) = (row.id(), row.info());
    assert!(!info.exited, "{id} is alive");
    let parent = info.parent.map(|parent| parent.pid);
    assert_eq!(parent, Some(std::process::id()), "the parent of {id}");
    let per_tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    let started = procfs::process::Process::new(worker.pid() as i32).and_then(|this| this.stat());
    let started = started.expect("/proc is there").starttime;
    assert_eq!(id.start_time_ns / per_tick_ns, started, "the start of {id}");
}

/// Who ends is told once, with a final count, and is forgotten with the window.
fn ends<P: Probe<Snapshot: ProcessRows>>(mut probe: P, count: &impl Fn(&UsageOf<P>) -> u64) {
    let mut worker = Worker::start();
    let pid = worker.pid();
    // to begin and to end takes something too
    let beginning = count_of(&read(probe.reset()), &worker, count);
    let mut work = worker.work();
    let mut sum = count_of(&read(probe.reset()), &worker, count);
    add(&mut work, &worker.work());
    let alive = count_of(&read(probe.snapshot()), &worker, count);
    add(&mut work, &worker.work());
    worker.exit();
    let (id, last) = end_of(&mut probe, pid, count);
    assert!(last >= alive, "went from {alive} back to {last} at the end");
    sum += last;
    add(&mut work, &(0..=beginning));
    within(sum, &work);
    let told = read(probe.reset());
    assert_eq!(rows_of(&told, pid).count(), 1, "{id} is not there once in the window of its end");
    let forgotten = rows_of(&read(probe.snapshot()), pid).all(|row| row.id() != id);
    assert!(forgotten, "{id} is told in the window after its end");

    let mut unseen = Worker::start();
    let mut work = unseen.work();
    let pid = unseen.pid();
    unseen.exit();
    let (_, last) = end_of(&mut probe, pid, count);
    add(&mut work, &(0..=beginning.saturating_mul(3)));
    within(last, &work);
}

/// The final row of a process.
fn end_of<P: Probe<Snapshot: ProcessRows>>(
    probe: &mut P,
    pid: u32,
    count: &impl Fn(&UsageOf<P>) -> u64,
) -> (ProcessId, u64) {
    until("the end of a process is not told", || {
        let snapshot = read(probe.snapshot());
        let mut rows = rows_of(&snapshot, pid).filter(|row| row.info().exited);
        let last = rows.next().map(|row| (row.id(), count(row.usage())));
        assert!(rows.next().is_none(), "a process that ended is there twice");
        last
    })
}

/// A reset that fails in another probe of the walk, before or after it, ends no window.
fn failed_resets<P: TaskProbe<Snapshot: ProcessRows>>(
    mut probe: P,
    count: &impl Fn(&UsageOf<P>) -> u64,
) {
    let mut worker = Worker::start();
    let start = read(probe.reset()).window().end_ns;
    worker.work();
    read(TaskProbe::before_walk(&mut probe, Read::Reset));
    worker.work();
    read(TaskProbe::before_walk(&mut probe, Read::Reset));
    let mut buffer = RecordBuffer::default();
    let walk = read(Walk::make(Some(&mut probe), &mut buffer));
    let failed = read(probe.after_walk(&walk));
    worker.work();
    let snapshot = read(probe.reset());
    let windows = [failed.window(), snapshot.window()];
    assert_eq!(windows.map(|window| window.start_ns), [start; 2], "a failed reset ends a window");
    let (before, all) = (count_of(&failed, &worker, count), count_of(&snapshot, &worker, count));
    assert!(0 < before && before < all, "{before}, with more work {all}, after a failed reset");
}

/// Joined with another it shows the same, over one window.
fn joins<P: TaskProbe<Snapshot: ProcessRows>>(
    one: P,
    other: P,
    count: &impl Fn(&UsageOf<P>) -> u64,
) {
    let mut worker = Worker::start();
    let mut joined = read(Joined::new((one, other)));
    let work = worker.work();
    let snapshot = read(joined.reset());
    let (first, second) = (&snapshot.parts.0, &snapshot.parts.1);
    assert_eq!((first.window(), second.window()), (snapshot.window, snapshot.window));
    within(count_of(first, &worker, count), &work);
    within(count_of(second, &worker, count), &work);
    let (mut alone, _) = joined.into_inner();
    let work = worker.work();
    within(count_of(&read(alone.reset()), &worker, count), &work);
}

/// As intervals, nothing is lost by a consumer that comes late.
fn intervals<P: Probe<Snapshot: ProcessRows>>(probe: P, count: &impl Fn(&UsageOf<P>) -> u64) {
    let mut worker = Worker::start();
    let every = Duration::from_millis(20);
    let mut intervals = probe.intervals(every);
    let mut next = || read(intervals.next().expect("intervals without end"));
    let start = next().snapshot.window().end_ns;
    let work = worker.work();
    std::thread::sleep(5 * every);
    let late = next();
    assert!(late.missed_ticks >= 3, "{} ticks missed", late.missed_ticks);
    assert_eq!(late.snapshot.window().start_ns, start, "intervals do not touch");
    within(count_of(&late.snapshot, &worker, count), &work);
}
