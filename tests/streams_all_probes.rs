//! Intervals of a set with all built-in probes.

use std::{thread::sleep, time::Duration};

use ebpfmetrics::{
    CpuProbe, DiskProbe, Interval, Kernel, Losses, MemProbe, Probe as _, ProbeSet, Snapshot,
    cpu::CpuSnapshot, disk::DiskSnapshot, mem::MemSnapshot,
};
use ebpfmetrics_suite::{LoopDevice, Workload, directory_on_disk, poll, schedstat, settle};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

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
        let (cpu, mem, disk) = (snapshot.of(cpu), snapshot.of(mem), snapshot.of(disk));
        let parts = (cpu.to_snapshot(), mem.to_snapshot(), disk.to_snapshot());
        sums.add(&snapshot.losses, &parts, pids, device.name());
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
        losses: &Losses,
        (cpu, mem, disk): &(CpuSnapshot, MemSnapshot, DiskSnapshot),
        [work, worker, writer]: [u32; 3],
        device: &str,
    ) {
        let writer = &disk.process(writer).unwrap().usage;
        let loss = |cause| losses.get(cause).unwrap();
        self.intervals += 1;
        self.cpu_time += cpu.process(work).unwrap().usage.cpu_time;
        self.minor_faults += mem.process(worker).unwrap().usage.minor_faults;
        self.written += writer.total.written_bytes;
        self.written_to_device += disk.device(device).map_or(0, |row| row.usage.written_bytes);
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
