//! Rules that hold for every snapshot, whatever the machine does: nothing exceeds its window,
//! and windows add up to totals. The reader is preempted, and windows have any length.
//!
//! `EBPFMETRICS_SOAK_SECONDS` sets how long a test runs; 8 s by default.

use std::{
    collections::HashMap,
    fs::File,
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use ebpfmetrics::{
    CpuProbe, CpuUsage, DiskProbe, DiskUsage, Handle, MemProbe, MemUsage, Probe as _, ProbeSet,
    ProcessId, Snapshot, cpu::CpuSystem, disk::DiskSystem, mem::MemSystem,
};
use ebpfmetrics_suite::{Workload, room_for_tasks};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

const TIMES: [fn(&CpuUsage) -> Duration; 3] = [|it| it.cpu_time, |it| it.user, |it| it.system];

/// What the rules compare from window to window.
#[derive(Clone, Copy, Default)]
struct Total {
    cpu: CpuUsage,
    faults: u64,
    disk_bytes: u64,
}

struct Rules {
    probes: ProbeSet,
    cpu: Handle<CpuUsage, CpuSystem>,
    mem: Handle<MemUsage, MemSystem>,
    disk: Handle<DiskUsage, DiskSystem>,
    /// The children of this process have one thread.
    forks_singles: Option<u32>,
    singles: usize,
    totals: HashMap<ProcessId, Total>,
    /// CPU time of all rows, and the length of all windows.
    sum: (Duration, Duration),
}

impl Rules {
    fn new() -> Self {
        let mut probes = ProbeSet::new().unwrap();
        let cpu = probes.add(CpuProbe::builder().threads(true)).unwrap();
        let mem = probes.add(MemProbe::builder()).unwrap();
        let disk = probes.add(DiskProbe::builder()).unwrap();
        probes.reset().unwrap();
        Self {
            probes,
            cpu,
            mem,
            disk,
            forks_singles: None,
            singles: 0,
            totals: HashMap::new(),
            sum: Default::default(),
        }
    }

    /// Reads a window and checks it.
    fn check(&mut self) {
        let snapshot = self.probes.reset().unwrap();
        let window = snapshot.window.duration();
        self.check_machine(&snapshot, window);
        let cpus = snapshot[self.cpu].online_cpus as u32;
        let mut totals = HashMap::new();
        for row in snapshot.processes() {
            let usage = &row[self.cpu];
            let context = || format!("{usage:?} of {:?} in {window:?}", row.info);
            assert!(usage.cpu_time <= window * cpus, "{}", context());
            assert_eq!(usage.user + usage.system, usage.cpu_time, "{}", context());
            if row.info.creator.is_some_and(|it| Some(it.pid) == self.forks_singles) {
                self.singles += 1;
                assert!(usage.cpu_time <= window, "{}", context());
                assert!(usage.run_queue_wait.unwrap_or_default() <= window, "{}", context());
            }
            self.sum.0 += usage.cpu_time;
            let total = Total {
                cpu: *row.total(self.cpu),
                faults: row.total(self.mem).minor_faults,
                disk_bytes: row.total(self.disk).total.written_bytes,
            };
            if let Some(before) = self.totals.get(&row.id) {
                let context = || format!("{} after {:?}, {:?}", context(), before.cpu, total.cpu);
                let [cpu_time, user, system] = TIMES.map(|time| {
                    assert!(time(&total.cpu) >= time(&before.cpu), "{}", context());
                    time(&total.cpu) - time(&before.cpu)
                });
                let grown = (cpu_time, user, system);
                assert_eq!(grown, (usage.cpu_time, usage.user, usage.system), "{}", context());
                assert_eq!(total.faults - before.faults, row[self.mem].minor_faults);
                let written = row[self.disk].total.written_bytes;
                assert_eq!(total.disk_bytes - before.disk_bytes, written);
            }
            totals.insert(row.id, total);
        }
        // of processes that have ended for good nothing more comes
        self.totals = totals;
        self.sum.0 += snapshot.of(self.cpu).overflow().usage.cpu_time;
        self.sum.1 += window * cpus;
    }

    fn check_machine(&self, snapshot: &Snapshot, window: Duration) {
        let mut of_process: HashMap<ProcessId, Duration> = HashMap::new();
        for thread in &snapshot[self.cpu].threads {
            assert!(thread.usage.cpu_time <= window, "{thread:?} in {window:?}");
            let wait = thread.usage.run_queue_wait.unwrap_or_default();
            assert!(wait <= window, "{thread:?} in {window:?}");
            *of_process.entry(thread.process).or_default() += thread.usage.cpu_time;
        }
        for row in snapshot.processes() {
            let threads = of_process.get(&row.id).copied().unwrap_or_default();
            let of_it = snapshot[self.cpu].threads.iter().filter(|it| it.process == row.id);
            assert!(
                threads <= row[self.cpu].cpu_time,
                "{threads:?} of {:?} in {window:?}, {:?}, {:#?}",
                row[self.cpu],
                row.info,
                of_it.collect::<Vec<_>>()
            );
        }
        for cpu in &snapshot[self.cpu].cpus {
            for time in [cpu.irq, cpu.softirq, cpu.steal, cpu.guest].into_iter().flatten() {
                assert!(time <= window, "{cpu:?} in {window:?}");
            }
            // the walk reads it some time after the window's end
            let idle = cpu.idle.unwrap_or_default();
            assert!(idle <= window + window / 10 + Duration::from_millis(20), "{cpu:?} {window:?}");
        }
        for device in &snapshot[self.disk].devices {
            let busy = device.busy.unwrap_or_default();
            assert!(busy <= window, "{device:?} in {window:?}");
        }
    }

    fn run(mut self) {
        let seconds = std::env::var("EBPFMETRICS_SOAK_SECONDS").ok();
        let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(8);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        while Instant::now() < end {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            // from none to 256 ms, short ones as often as long ones
            let below_us = 1 << (seed % 19);
            sleep(Duration::from_micros((seed >> 32) % below_us));
            self.check();
        }
        assert!(self.singles > 100 || self.forks_singles.is_none(), "{} ended", self.singles);
        let (busy, capacity) = self.sum;
        assert!(busy <= capacity, "{busy:?} of {capacity:?}");
        assert!(busy >= capacity / 4, "the machine was not loaded: {busy:?} of {capacity:?}");
    }
}

/// More tasks that run than CPUs, processes that come and go, a real-time task that takes a
/// fifth of the reader's CPU.
#[test]
fn nothing_exceeds_its_window_on_a_loaded_machine() {
    let mut rules = Rules::new();
    let _many = Workload::start(WORKLOAD, &["among", &room_for_tasks(500).to_string()]);
    let _spin = Workload::start(WORKLOAD, &["spin", "3"]);
    let _real_time = Workload::start(WORKLOAD, &["real-time", "4", "20"]);
    let short = Workload::start(WORKLOAD, &["children", "1000000", "300"]);
    rules.forks_singles = Some(short.pid());
    rules.run();
}

/// Writes and syncs at the same time.
#[test]
fn nothing_exceeds_its_window_while_disks_are_busy() {
    let rules = Rules::new();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = tempfile::tempfile().unwrap();
            while !is_over.load(Ordering::Relaxed) {
                write_and_sync(&mut file);
            }
        });
        let _threads = Workload::start(WORKLOAD, &["threads-come-and-go", "70"]);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rules.run()));
        is_over.store(true, Ordering::Relaxed);
        run.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn write_and_sync(file: &mut File) {
    use std::io::Seek as _;
    file.rewind().unwrap();
    file.write_all(&vec![7; 1 << 20]).unwrap();
    file.sync_data().unwrap();
}
