//! Intervals, blocking and as streams.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::Poll,
    thread::sleep,
    time::{Duration, Instant},
};

use ebpfmetrics::{
    CpuProbe, CpuUsage, DiskProbe, DiskUsage, Handle, Interval, Kernel, MemProbe, MemUsage, Probe,
    ProbeSet, Snapshot, Window,
    cpu::{CpuSnapshot, CpuSystem},
    disk::DiskSystem,
    intervals::IntervalStream,
    mem::MemSystem,
};
use ebpfmetrics_suite::{
    LoopDevice, Workload, directory_on_disk, loaded_objects, poll, schedstat, settle,
};
use futures_core::Stream;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// One test counts the descriptors of this process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn ticks_do_not_drift() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Stops a process after it has run for a while. While it runs, its reported time may be ahead
/// by what a hypervisor took. Reported time is never taken back; after a while it is exceeded.
fn run_on_and_stop(work: &Workload) {
    let cpu_ns = || schedstat(work.pid()).unwrap().cpu_ns;
    let enough = cpu_ns() + 50_000_000;
    poll(Duration::from_secs(30), || (cpu_ns() >= enough).then_some(())).expect("it runs");
    work.stop();
}

/// For a process that was stopped.
#[track_caller]
fn assert_complete(total: Duration, pid: u32) {
    assert_eq!(total.as_nanos() as u64, schedstat(pid).unwrap().cpu_ns);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

/// The window of a snapshot, and the CPU time of a process in it.
type CpuTime<P> = Box<dyn Fn(&<P as Probe>::Snapshot, u32) -> (Window, Duration)>;

/// A stream whose windows touch, with the CPU time of a process in them.
struct Measured<P: Probe> {
    /// `None` only between its end and its next start.
    stream: Option<IntervalStream<P>>,
    cpu_time: CpuTime<P>,
    intervals: u64,
    sum: Duration,
    end: Option<u64>,
}

impl<P: Probe> Measured<P> {
    fn new(
        probe: P,
        every: Duration,
        cpu_time: impl Fn(&P::Snapshot, u32) -> (Window, Duration) + 'static,
    ) -> Self {
        let (stream, cpu_time) = (Some(probe.stream(every)), Box::new(cpu_time));
        Self { stream, cpu_time, intervals: 0, sum: Duration::ZERO, end: None }
    }

    async fn next(&mut self) -> P::Snapshot {
        let item = next(self.stream.as_mut().unwrap()).await;
        item.expect("streams do not end").unwrap().snapshot
    }

    fn take(&mut self, snapshot: &P::Snapshot, pid: u32) {
        let (window, cpu_time) = (self.cpu_time)(snapshot, pid);
        assert!(self.end.is_none_or(|end| end == window.start_ns), "intervals touch");
        self.end = Some(window.end_ns);
        self.intervals += 1;
        self.sum += cpu_time;
    }

    /// Ends it, whatever it is doing.
    async fn end(&mut self, pid: u32) -> P {
        let (probe, under_way) = self.stream.take().unwrap().into_inner().await.unwrap();
        if let Some(interval) = under_way {
            self.take(&interval.unwrap().snapshot, pid);
        }
        probe
    }

    async fn restart(&mut self, every: Duration, pid: u32) {
        let probe = self.end(pid).await;
        self.stream = Some(probe.stream(every));
    }

    /// Sum and number of its windows, including the last one.
    async fn total(mut self, pid: u32) -> (Duration, u64) {
        let mut probe = self.end(pid).await;
        let last = probe.reset().unwrap();
        self.take(&last, pid);
        // dropped in the middle of a read
        let mut again = probe.stream(Duration::from_millis(10));
        tokio::time::sleep(Duration::from_millis(30)).await;
        poll_fn(|cx| {
            let _ = Pin::new(&mut again).poll_next(cx);
            Poll::Ready(())
        })
        .await;
        (self.sum, self.intervals)
    }
}

/// The ids of the programs that this process holds.
fn programs() -> BTreeSet<u32> {
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = infos.filter_map(|info| std::fs::read_to_string(info.path()).ok());
    let id = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("prog_id:").map(str::to_owned));
        line.map(|id| id.trim().parse().unwrap())
    };
    texts.filter_map(id).collect()
}

/// Number of threads that tokio has started.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("tokio")).count()
}

#[test]
fn streams_of_different_intervals_run_side_by_side_and_leave_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let long = std::env::var_os("EBPFMETRICS_LONG").is_some();
    let duration = Duration::from_secs(if long { 60 } else { 6 });
    let ms = Duration::from_millis;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let open = descriptors();
    let runtime = runtime();
    let (totals, restarts, loaded) = runtime.block_on(async {
        let kernel = Kernel::read().unwrap();
        let cpu = || CpuProbe::builder().load_on(&kernel).unwrap();
        let of = |snapshot: &CpuSnapshot, pid| {
            (snapshot.window, snapshot.process(pid).unwrap().usage.cpu_time)
        };
        let mut set = ProbeSet::builder().build_on(&kernel).unwrap();
        let of_set = set.add_on(CpuProbe::builder(), &kernel).unwrap();
        let mut fast = Measured::new(cpu(), ms(100), of);
        let mut slow = Measured::new(cpu(), ms(300), of);
        let mut set = Measured::new(set, ms(700), move |snapshot, pid| {
            (snapshot.window, snapshot.process(pid).unwrap()[of_set].cpu_time)
        });
        drop(kernel);
        let work = Workload::start(WORKLOAD, &["ping-pong", "1"]);
        let _load = Workload::start(WORKLOAD, &["spin", "2"]);
        let pid = work.pid();
        let deadline = Instant::now() + duration;
        let (mut restarts, mut next_restart) = (0_u32, Instant::now() + ms(1500));
        let open = descriptors();
        let loaded = programs();
        assert!(loaded.len() > 15, "{loaded:?}");
        while Instant::now() < deadline {
            // Futures that are not ready are dropped here, while they wait or read.
            tokio::select! {
                snapshot = fast.next() => fast.take(&snapshot, pid),
                snapshot = slow.next() => slow.take(&snapshot, pid),
                snapshot = set.next() => set.take(&snapshot, pid),
            }
            if Instant::now() >= next_restart {
                match restarts % 3 {
                    0 => fast.restart(ms(90 + u64::from(restarts % 20)), pid).await,
                    1 => slow.restart(ms(300), pid).await,
                    _ => set.restart(ms(700), pid).await,
                }
                restarts += 1;
                next_restart = Instant::now() + ms(1500);
            }
        }
        assert!(threads() > 0, "reads are on threads of the runtime");
        // a read in progress has one descriptor open
        let now = descriptors();
        assert!((open..=open + 3).contains(&now), "{now} descriptors, {open} at first");
        run_on_and_stop(&work);
        let totals = [fast.total(pid).await, slow.total(pid).await, set.total(pid).await];
        for (cpu_time, _) in totals {
            assert_complete(cpu_time, pid);
        }
        (totals, restarts, loaded)
    });
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    drop(runtime);
    let [fast, slow, set] = totals.map(|(_, intervals)| intervals);
    assert!(fast > slow && slow > set, "{totals:?}");
    assert!(restarts >= duration.as_secs() as u32 / 3, "{restarts} restarts");
    let left = || {
        let programs = loaded_objects().programs.intersection(&loaded).count();
        (programs, descriptors(), threads())
    };
    let gone = poll(Duration::from_secs(10), || (left() == (0, open, 0)).then_some(()));
    assert!(gone.is_some(), "programs, descriptors, threads: {:?}, before {:?}", left(), (open, 0));
    println!("intervals {fast}, {slow}, {set}; {restarts} restarts; {totals:?}");
}

/// Bytes of a writer, past the page cache.
const BLOCK: u64 = 4096;

#[test]
fn a_consumer_that_oversleeps_gets_one_longer_interval_and_loses_nothing() {
    let Some(files) = directory_on_disk("a_consumer_that_oversleeps") else { return };
    let device = LoopDevice::new(files.path(), 64 << 20);
    let kernel = Kernel::read().unwrap();
    let mut probes = ProbeSet::builder().build_on(&kernel).unwrap();
    let cpu = probes.add_on(CpuProbe::builder(), &kernel).unwrap();
    let mem = probes.add_on(MemProbe::builder(), &kernel).unwrap();
    let disk = probes.add_on(DiskProbe::builder(), &kernel).unwrap();
    drop(kernel);
    let before = settle(device.name());
    let every = Duration::from_millis(100);
    let sees_first = probes.health().unwrap().degraded.iter().all(|it| it.feature != "process 1");
    let mut intervals = probes.intervals(every);
    let work = Workload::start(WORKLOAD, &["ping-pong", "1"]);
    let mut worker = Workload::start(WORKLOAD, &["memory"]);
    const WRITES: u64 = 10_000;
    let path = device.path();
    let writes = ["disk", "direct", path.to_str().unwrap(), "0", &WRITES.to_string()];
    let mut writer = Workload::start(WORKLOAD, &writes);

    // All began in the first interval, so the sum has all that they did.
    let pids = [work.pid(), worker.pid(), writer.pid()];
    let mut sums = Sums { sees_first, ..Sums::default() };
    let mut end = None;
    let mut take = |interval: Interval<Snapshot>, sums: &mut Sums| {
        let snapshot = interval.snapshot;
        let window = snapshot.window;
        assert!(end.is_none_or(|end| end == window.start_ns), "intervals touch");
        end = Some(window.end_ns);
        sums.add(&snapshot, (cpu, mem, disk), pids, device.name());
        sums.missed_ticks += interval.missed_ticks;
        (window.duration(), interval.missed_ticks)
    };
    take(intervals.next().unwrap().unwrap(), &mut sums);
    writer.tell("go");
    for round in 0..8 {
        worker.ask("map 1 4000");
        worker.ask("touch 1");
        worker.ask("unmap 1");
        let oversleeps = round == 4;
        if oversleeps {
            sleep(5 * every + every / 2);
        }
        let (long, missed) = take(intervals.next().unwrap().unwrap(), &mut sums);
        assert!(!oversleeps || (long > 5 * every && missed >= 4), "{long:?}, {missed} missed");
    }
    assert_eq!(writer.line(), "done");
    run_on_and_stop(&work);
    let faults = worker.ask("faults");
    let written = settle(device.name()).since(&before).written_bytes;
    take(intervals.next().unwrap().unwrap(), &mut sums);

    assert_complete(sums.cpu_time, work.pid());
    assert_eq!(sums.minor_faults.to_string(), faults.split_whitespace().next().unwrap());
    // the kernel's own account, which misses no event
    assert_eq!((sums.accounted, proc_io(writer.pid())), (WRITES * BLOCK, WRITES * BLOCK));
    assert_eq!(written, WRITES * BLOCK, "no other process writes there");
    // some machines hide completions; new kernels skip some, which is reported
    let hidden = if sums.sees_first { 0 } else { WRITES / 200 + 3 };
    let least = (WRITES - hidden - sums.run_skipped) * BLOCK;
    for (of, bytes) in [("process", sums.written), ("device", sums.written_to_device)] {
        assert!((least..=WRITES * BLOCK).contains(&bytes), "{of}: {sums:?}");
    }
    assert!(!sums.sees_first || sums.exit_record_missing == 0, "{sums:?}");
    println!("{sums:?}");
}

type Handles =
    (Handle<CpuUsage, CpuSystem>, Handle<MemUsage, MemSystem>, Handle<DiskUsage, DiskSystem>);

/// The sums over intervals.
#[derive(Debug, Default)]
struct Sums {
    intervals: u64,
    missed_ticks: u64,
    cpu_time: Duration,
    minor_faults: u64,
    /// By the writer, as its requests were seen to be done.
    written: u64,
    written_to_device: u64,
    /// By the writer, as the kernel accounts for it.
    accounted: u64,
    run_skipped: u64,
    exit_record_missing: u64,
    sees_first: bool,
}

impl Sums {
    fn add(
        &mut self,
        snapshot: &Snapshot,
        (cpu, mem, disk): Handles,
        [work, worker, writer]: [u32; 3],
        device: &str,
    ) {
        let row = |pid| snapshot.process(pid).unwrap();
        let writer = &row(writer)[disk];
        let loss = |cause| snapshot.losses.get(cause).unwrap();
        self.intervals += 1;
        self.cpu_time += row(work)[cpu].cpu_time;
        self.minor_faults += row(worker)[mem].minor_faults;
        self.written += writer.total.written_bytes;
        self.written_to_device +=
            snapshot[disk].device(device).map_or(0, |row| row.usage.written_bytes);
        self.accounted += writer.dirtied_bytes.unwrap();
        self.run_skipped += loss("run_skipped");
        self.exit_record_missing += loss("exit_record_missing");
    }
}

/// `write_bytes` of a process.
fn proc_io(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.unwrap().parse().unwrap()
}
