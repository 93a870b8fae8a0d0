//! CPU time of the library's own code, without a kernel: from the records of a walk to
//! snapshots, deltas, groups and trees. The walks are synthetic.
//!
//! `cargo bench --bench user_space`, or with `-- --test` to run everything once.
#![expect(missing_docs, reason = "criterion's macros write public functions")]

use std::{
    future::poll_fn,
    hint::black_box,
    mem::take,
    pin::Pin,
    sync::{Arc, Mutex, mpsc::sync_channel},
    thread,
    time::Duration,
};

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use ebpfmetrics::{
    Intervals,
    bench::{UserSide, walk},
    cpu::CpuSnapshot,
    group::{ProcessTree, group_by},
    intervals::{EndWindow, IntervalStream},
    snapshot::delta,
};
use futures_core::Stream as _;
use rustix::time::{ClockId, clock_gettime};

const PROCESSES: [u32; 4] = [100, 1_000, 10_000, 50_000];

/// CPU time of this process: other work on the machine does not count.
struct CpuTime(WallTime);

fn now() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        now()
    }

    fn end(&self, start: Duration) -> Duration {
        now() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        self.0.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self.0.formatter()
    }
}

type Group<'a> = BenchmarkGroup<'a, CpuTime>;

/// Measures one step at each number of processes. `prepare` runs before every step and is not
/// counted; it gets the number of the step.
fn steps<S, R>(
    group: &mut Group<'_>,
    name: &str,
    start: impl Fn(u32) -> S,
    prepare: impl Fn(&mut S, u32, u64),
    step: impl Fn(&mut S) -> R,
) {
    for processes in PROCESSES {
        group.throughput(Throughput::Elements(processes.into()));
        group.bench_function(BenchmarkId::new(name, processes), |bencher| {
            let (mut state, mut number) = (start(processes), 1);
            bencher.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    number += 1;
                    prepare(&mut state, processes, number);
                    let start = now();
                    let result = black_box(step(&mut state));
                    spent += now() - start;
                    drop(result);
                }
                spent
            });
        });
    }
}

/// A set that has taken in one walk.
fn after_first_walk(processes: u32) -> UserSide {
    let mut side = UserSide::default();
    take_in(&mut side, &walk(processes, 1, 0));
    side.end_window();
    side
}

fn take_in(side: &mut UserSide, walk: &[u8]) {
    decoded(side, walk);
    side.update().expect("valid records");
}

fn decoded(side: &mut UserSide, walk: &[u8]) {
    side.fill(walk).expect("memory can be read");
    side.decode().expect("valid records");
}

/// A window in which 10 % of all processes were active.
fn after_a_window(processes: u32, second: u64) -> UserSide {
    let mut side = after_first_walk(processes);
    take_in(&mut side, &walk(processes, second, 10));
    side
}

fn snapshot(processes: u32, second: u64) -> CpuSnapshot {
    let side = after_a_window(processes, second);
    let snapshot = side.snapshot();
    snapshot.of(side.cpu).to_snapshot()
}

fn reading(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("walk");
    steps(
        &mut group,
        "decode",
        after_first_walk,
        |side, processes, number| side.fill(&walk(processes, number, 0)).expect("memory"),
        |side| side.decode().expect("valid records"),
    );
    for (name, active) in [("update, idle", 0), ("update, 10 % active", 10)] {
        steps(
            &mut group,
            name,
            after_first_walk,
            |side, processes, number| decoded(side, &walk(processes, number, active)),
            |side| side.update().expect("valid records"),
        );
    }
    steps(
        &mut group,
        "update, all new",
        |_| UserSide::default(),
        |side, processes, number| {
            *side = UserSide::default();
            decoded(side, &walk(processes, number, 0));
        },
        |side| side.update().expect("valid records"),
    );
    group.finish();
}

fn snapshots(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("snapshot");
    let start = |processes| after_a_window(processes, 2);
    steps(&mut group, "of a set", start, |_, _, _| {}, |side| side.snapshot());
    steps(
        &mut group,
        "of one probe",
        start,
        |_, _, _| {},
        |side| side.snapshot().of(side.cpu).to_snapshot(),
    );
    steps(&mut group, "end of the window", start, |_, _, _| {}, UserSide::end_window);
    let two = |processes| (snapshot(processes, 2), snapshot(processes, 3));
    steps(&mut group, "delta", two, |_, _, _| {}, |(before, now)| delta(before, now));
    let one = |processes| snapshot(processes, 2);
    steps(
        &mut group,
        "group_by cgroup",
        one,
        |_, _, _| {},
        |snapshot| group_by(snapshot, |row| row.info.cgroup_id),
    );
    let tree = |processes| {
        let (snapshot, mut tree) = (snapshot(processes, 2), ProcessTree::of(2));
        tree.group(&snapshot);
        (snapshot, tree)
    };
    steps(&mut group, "ProcessTree", tree, |_, _, _| {}, |(snapshot, tree)| tree.group(snapshot));
    group.finish();
}

/// Hands out a snapshot that the consumer puts back.
#[derive(Clone, Default)]
struct Replay(Arc<Mutex<CpuSnapshot>>);

impl Replay {
    fn of(processes: u32) -> Self {
        Self(Arc::new(Mutex::new(snapshot(processes, 2))))
    }

    fn put_back(&self, snapshot: CpuSnapshot) {
        *self.0.lock().expect("no panic") = snapshot;
    }
}

impl EndWindow for Replay {
    type Snapshot = CpuSnapshot;

    fn end_window(&mut self) -> ebpfmetrics::Result<CpuSnapshot> {
        Ok(take(&mut *self.0.lock().expect("no panic")))
    }
}

/// The shortest interval: every tick is overdue, so that only the handing over counts.
const AT_ONCE: Duration = Duration::from_nanos(1);

fn intervals(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("hand over");
    let blocking = |processes| {
        let replay = Replay::of(processes);
        (Intervals::new(replay.clone(), AT_ONCE), replay)
    };
    steps(
        &mut group,
        "iterator",
        blocking,
        |_, _, _| {},
        |(intervals, replay)| {
            let interval = intervals.next().expect("no end").expect("no error");
            replay.put_back(interval.snapshot);
        },
    );
    // to a thread and back
    let channel = |processes| {
        let (there, receiver) = sync_channel::<CpuSnapshot>(1);
        let (sender, back) = sync_channel(1);
        thread::spawn(move || receiver.iter().all(|snapshot| sender.send(snapshot).is_ok()));
        (there, back, snapshot(processes, 2))
    };
    steps(
        &mut group,
        "channel, there and back",
        channel,
        |_, _, _| {},
        |(there, back, snapshot)| {
            there.send(take(snapshot)).expect("the thread runs");
            *snapshot = back.recv().expect("the thread runs");
        },
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let stream = |processes| {
        let replay = Replay::of(processes);
        let _guard = runtime.enter();
        (IntervalStream::new(replay.clone(), AT_ONCE), replay)
    };
    steps(
        &mut group,
        "tokio stream",
        stream,
        |_, _, _| {},
        |(stream, replay)| {
            let next = poll_fn(|context| Pin::new(&mut *stream).poll_next(context));
            let interval = runtime.block_on(next).expect("no end").expect("no error");
            replay.put_back(interval.snapshot);
        },
    );
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime(WallTime))
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = reading, snapshots, intervals
}
criterion_main!(benches);
