//! Intervals one after another.

use std::{
    future::poll_fn,
    pin::Pin,
    thread::sleep,
    time::{Duration, Instant},
};

use ebpfmetrics::{CpuProbe, Joined, Kernel, MemProbe, Probe as _, Snapshot as _};
use ebpfmetrics_suite::{Workload, loaded_objects, poll, schedstat};
use futures_core::Stream;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

fn probes() -> (CpuProbe, MemProbe) {
    let kernel = Kernel::read().unwrap();
    let cpu = CpuProbe::builder().load_on(&kernel).unwrap();
    (cpu, MemProbe::builder().load_on(&kernel).unwrap())
}

#[test]
fn a_consumer_that_oversleeps_gets_one_longer_interval_and_loses_nothing() {
    let every = Duration::from_millis(100);
    let mut intervals = Joined::new(probes()).unwrap().intervals(every);
    let work = Workload::start(WORKLOAD, &["ping-pong", "1"]);
    let mut worker = Workload::start(WORKLOAD, &["memory"]);
    let faults = |worker: &mut Workload| -> u64 {
        worker.ask("faults").split_whitespace().next().unwrap().parse().unwrap()
    };
    // The first interval takes in what both did until here.
    let first = intervals.next().unwrap().unwrap();
    let mut end = first.snapshot.window.end_ns;
    let row = |pid: u32, parts: &(ebpfmetrics::CpuSnapshot, ebpfmetrics::MemSnapshot)| {
        (parts.0.process(pid).unwrap().usage, parts.1.process(pid).unwrap().usage)
    };
    let mut cpu_time = row(work.pid(), &first.snapshot.parts).0.cpu_time;
    let mut minor = row(worker.pid(), &first.snapshot.parts).1.minor_faults;
    let mut missed = 0;
    for round in 0..8 {
        worker.ask("map 1 4000");
        worker.ask("touch 1");
        worker.ask("unmap 1");
        if round == 4 {
            sleep(5 * every + every / 2);
        }
        let interval = intervals.next().unwrap().unwrap();
        let window = interval.snapshot.window;
        assert_eq!(window.start_ns, end, "intervals touch");
        end = window.end_ns;
        missed += interval.missed_ticks;
        if interval.missed_ticks >= 4 {
            assert!(window.duration() > 5 * every, "{window:?}");
        }
        cpu_time += row(work.pid(), &interval.snapshot.parts).0.cpu_time;
        minor += row(worker.pid(), &interval.snapshot.parts).1.minor_faults;
    }
    assert!(missed >= 4, "{missed} ticks missed");
    work.stop();
    let truth = faults(&mut worker);
    let last = intervals.next().unwrap().unwrap();
    cpu_time += row(work.pid(), &last.snapshot.parts).0.cpu_time;
    minor += row(worker.pid(), &last.snapshot.parts).1.minor_faults;
    assert_all_told(cpu_time, work.pid());
    assert_eq!(minor, truth);
    assert_eq!(last.snapshot.losses().get("exit_record_missing"), Some(0));
}

#[test]
fn ticks_do_not_drift() {
    let every = Duration::from_millis(50);
    let mut intervals = CpuProbe::builder().load().unwrap().intervals(every);
    let start = intervals.next().unwrap().unwrap().snapshot.window.end_ns;
    let mut ticks = 0;
    let mut end = start;
    for _ in 0..20 {
        let interval = intervals.next().unwrap().unwrap();
        ticks += 1 + interval.missed_ticks;
        end = interval.snapshot.window.end_ns;
    }
    // The last one is late by itself at most, as the first was.
    let off = (end - start) as i64 - (ticks * 50_000_000) as i64;
    assert!(off.abs() < 50_000_000, "off by {off} ns after {ticks} ticks");
    // and the probe goes on
    let mut probe = intervals.into_inner();
    assert_eq!(probe.snapshot().unwrap().window.start_ns, end);
}

/// Of a process that was stopped. What it was told to have while it ran is never taken
/// back: it may be ahead by an instant in which a hypervisor took the CPU.
#[track_caller]
fn assert_all_told(told: Duration, pid: u32) {
    let truth = Duration::from_nanos(schedstat(pid).unwrap().cpu_ns);
    let tick = Duration::from_millis(4);
    assert!((truth..truth + tick).contains(&told), "{told:?} told, schedstat {truth:?}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

#[test]
fn streams_of_different_intervals_run_side_by_side_and_leave_nothing() {
    let seconds = if std::env::var_os("EBPFMETRICS_LONG").is_some() { 60 } else { 6 };
    let before = loaded_objects();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    runtime().block_on(async {
        // the runtime's own come with its first blocking thread
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    });
    let open = descriptors();
    let mut ended = [0_u64; 3];
    let mut cpu_times = [Duration::ZERO; 3];
    let work = runtime().block_on(async {
        let kernel = Kernel::read().unwrap();
        let probe = || CpuProbe::builder().load_on(&kernel).unwrap();
        let mut fast = probe().stream(Duration::from_millis(100));
        let mut slow = probe().stream(Duration::from_millis(300));
        let memory = MemProbe::builder().load_on(&kernel).unwrap();
        let mut memory = memory.stream(Duration::from_millis(700));
        drop(kernel);
        let work = Workload::start(WORKLOAD, &["ping-pong", "1"]);
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut ends = [0_u64; 3];
        while Instant::now() < deadline {
            // Whatever is not ready is dropped here in the middle of waiting or reading.
            let (which, window, used) = tokio::select! {
                item = next(&mut fast) => {
                    let snapshot = item.unwrap().unwrap().snapshot;
                    (0, snapshot.window, snapshot.process(work.pid()).unwrap().usage.cpu_time)
                }
                item = next(&mut slow) => {
                    let snapshot = item.unwrap().unwrap().snapshot;
                    (1, snapshot.window, snapshot.process(work.pid()).unwrap().usage.cpu_time)
                }
                item = next(&mut memory) => {
                    (2, item.unwrap().unwrap().snapshot.window, Duration::ZERO)
                }
            };
            assert!(ends[which] == 0 || window.start_ns == ends[which], "intervals touch");
            ends[which] = window.end_ns;
            ended[which] += 1;
            cpu_times[which] += used;
        }
        work.stop();
        // given back, and started again at another pace
        let (probe, under_way) = fast.into_inner().await.unwrap();
        let rest = under_way.map(|interval| interval.unwrap().snapshot);
        let rest = rest.map(|snapshot| snapshot.process(work.pid()).unwrap().usage.cpu_time);
        cpu_times[0] += rest.unwrap_or_default();
        let mut again = probe.stream(Duration::from_millis(20));
        let last = next(&mut again).await.unwrap().unwrap().snapshot;
        cpu_times[0] += last.process(work.pid()).unwrap().usage.cpu_time;
        work
    });
    let truth = Duration::from_nanos(schedstat(work.pid()).unwrap().cpu_ns);
    assert_all_told(cpu_times[0], work.pid());
    assert!(cpu_times[1] <= truth && cpu_times[1] > truth / 2);
    assert!(ended[0] > ended[1] && ended[1] > ended[2], "{ended:?}");
    let left = poll(Duration::from_secs(10), || {
        let now = loaded_objects();
        let programs = now.programs.difference(&before.programs).count();
        (programs == 0 && descriptors() <= open + 3).then_some(())
    });
    drop(work);
    assert!(
        left.is_some(),
        "left: {:?}, {} descriptors of {open}",
        loaded_objects(),
        descriptors()
    );
}
