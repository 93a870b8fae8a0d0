//! What processes hold, take and give back, against what the kernel says of them.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use ebpfmetrics::{
    MemProbe, MemUsage, Probe as _, Process,
    mem::{MemPeaks, MemSnapshot},
};
use ebpfmetrics_suite::{MemStatus, SwapFile, Workload, smaps_rollup, statm_size, support};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

fn probe() -> MemProbe {
    MemProbe::builder().address_space(true).load().unwrap()
}

fn worker() -> Workload {
    let mut worker = Workload::start(WORKLOAD, &["memory"]);
    // What a process takes when it first does something is not of the test.
    worker.ask("map 0 64");
    worker.ask("touch 0");
    worker.ask("faults");
    worker
}

fn row(snapshot: &MemSnapshot, pid: u32) -> &Process<MemUsage> {
    snapshot.process(pid).unwrap_or_else(|| panic!("no row of {pid}"))
}

fn usage(snapshot: &MemSnapshot, pid: u32) -> MemUsage {
    row(snapshot, pid).usage
}

/// How much `/proc/PID/status` may be off itself: kernels before 6.2 leave up to 64
/// pages with each thread, and then until 6.17 or so up to 64 with each CPU.
fn slack_of_status() -> u64 {
    let parts = std::thread::available_parallelism().unwrap().get().max(4) as u64;
    parts * 64 * PAGE
}

/// Compares each gauge with status, statm and smaps_rollup. Returns what differs.
fn differences(usage: &MemUsage, status: &MemStatus, pid: u32) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, ours: Option<u64>, kernel: u64, slack: u64| {
        if ours.is_none_or(|ours| ours.abs_diff(kernel) > slack) {
            differences.push(format!("{what}: {ours:?}, kernel {kernel}"));
        }
    };
    let slack = slack_of_status();
    compare("virtual", usage.virtual_bytes, status.size, 0);
    compare("virtual, statm", usage.virtual_bytes, statm_size(pid), 0);
    compare("virtual high water", usage.virtual_high_water_bytes, status.peak, 0);
    compare("page tables", usage.page_table_bytes, status.page_tables, 0);
    compare("locked", usage.locked_bytes, status.locked, 0);
    compare("anon", usage.resident_anon_bytes, status.anon, slack);
    compare("file", usage.resident_file_bytes, status.file, slack);
    compare("shmem", usage.resident_shmem_bytes, status.shmem, slack);
    compare("high water", usage.resident_high_water_bytes, status.high_water, slack);
    if let Some(hugetlb) = status.hugetlb {
        compare("hugetlb", usage.hugetlb_bytes, hugetlb, 0);
    }
    // Counted page by page, so exact. Hugetlb is in neither, and so are the kernel's
    // own pages (vdso) that some kernels count here.
    if let Some((resident, swap)) = smaps_rollup(pid) {
        compare("resident, smaps_rollup", usage.resident_bytes, resident, 0);
        compare("swap, smaps_rollup", usage.swap_bytes, swap, 0);
    }
    differences
}

#[test]
fn every_gauge_of_every_quiet_process_equals_what_the_kernel_says() {
    let mut probe = probe();
    let mut workers: Vec<_> = (0..8).map(|_| worker()).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 3 << 20]).unwrap();
    for (number, worker) in workers.iter_mut().enumerate() {
        // a figure of its own for every gauge of every one
        let kib = 1000 + 137 * number;
        worker.ask(&format!("map 1 {}", 4 * kib));
        worker.ask("touch 1");
        worker.ask(&format!("map-shared 2 {}", 2 * kib));
        worker.ask("touch 2");
        worker.ask(&format!("map-file 3 {}", file.path().display()));
        worker.ask("read 3");
        worker.ask(&format!("map 4 {}", 16 + 4 * number));
        worker.ask("lock 4");
        worker.ask(&format!("map 5 {}", 8 * kib));
        worker.ask("thread-touch 5");
        worker.ask("drop-pages 1");
    }
    for worker in &workers {
        worker.stop();
    }
    let mut checked = 0;
    let mut wrong = Vec::new();
    // All processes of the machine, as far as they do not change meanwhile.
    let before = statuses();
    let snapshot = probe.snapshot().unwrap();
    for (pid, status) in before {
        let quiet = MemStatus::of(pid) == Some(status) && pid != std::process::id();
        if snapshot.process(pid).is_none() || !quiet {
            continue;
        }
        let found = differences(&usage(&snapshot, pid), &status, pid);
        // once more, so that one that just changed and changed back is not blamed
        if !found.is_empty() && MemStatus::of(pid) == Some(status) {
            let again = probe.snapshot().unwrap();
            let found = differences(&usage(&again, pid), &status, pid);
            if !found.is_empty() && MemStatus::of(pid) == Some(status) {
                wrong.push((pid, row(&again, pid).info.comm, found));
            }
        }
        checked += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > workers.len(), "{checked} processes compared");
    for worker in &workers {
        let usage = usage(&snapshot, worker.pid());
        let status = MemStatus::of(worker.pid()).unwrap();
        assert_eq!(differences(&usage, &status, worker.pid()), Vec::<String>::new());
        for (what, bytes) in [
            ("anon", usage.resident_anon_bytes),
            ("file", usage.resident_file_bytes),
            ("shmem", usage.resident_shmem_bytes),
            ("locked", usage.locked_bytes),
            ("page tables", usage.page_table_bytes),
        ] {
            assert!(bytes.unwrap() > 0, "{what} of {usage:?}");
        }
    }
}

fn statuses() -> Vec<(u32, MemStatus)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, MemStatus::of(pid)?))).collect()
}

#[test]
fn a_process_that_began_before_the_probe_is_right_at_once() {
    let mut worker = worker();
    worker.ask("map 1 10000");
    worker.ask("touch 1");
    worker.stop();
    let mut probe = probe();
    let snapshot = probe.snapshot().unwrap();
    let status = MemStatus::of(worker.pid()).unwrap();
    assert_eq!(
        differences(&usage(&snapshot, worker.pid()), &status, worker.pid()),
        Vec::<String>::new()
    );
}

#[test]
fn a_running_process_lies_between_two_readings_of_the_kernel() {
    let mut probe = probe();
    let mut worker = worker();
    worker.ask("map 1 400000");
    // grows all the time, and nothing shrinks
    worker.tell("touch 1");
    let mut inside = 0;
    let start = Instant::now();
    while inside < 20 && start.elapsed() < Duration::from_secs(20) {
        let before = smaps_rollup(worker.pid()).unwrap().0;
        let ours = usage(&probe.snapshot().unwrap(), worker.pid()).resident_bytes.unwrap();
        let after = smaps_rollup(worker.pid()).unwrap().0;
        assert!(ours >= before && ours <= after, "{before} {ours} {after}");
        inside += 1;
    }
    assert_eq!(inside, 20);
}

/// Does something and compares counts and bytes with what was asked for, and the
/// sum with statm.
#[track_caller]
fn assert_space(
    probe: &mut MemProbe,
    worker: &mut Workload,
    command: &str,
    (taken, taken_bytes): (u64, u64),
    (given, given_bytes): (u64, u64),
) {
    let pid = worker.pid();
    probe.reset().unwrap();
    let base = statm_size(pid);
    worker.ask(command);
    let size = statm_size(pid);
    let usage = usage(&probe.snapshot().unwrap(), pid);
    let ours = (
        (usage.allocations.unwrap(), usage.allocated_bytes.unwrap()),
        (usage.deallocations.unwrap(), usage.deallocated_bytes.unwrap()),
    );
    assert_eq!(ours, ((taken, taken_bytes), (given, given_bytes)), "{command}");
    assert_eq!(base + taken_bytes - given_bytes, size, "{command}: statm");
    assert_eq!(usage.virtual_bytes, Some(size), "{command}");
}

#[test]
fn every_taking_and_giving_back_of_address_space_is_counted() {
    let mut probe = probe();
    let mut worker = worker();
    let mut check = |command: &str, taken, given| {
        assert_space(&mut probe, &mut worker, command, taken, given);
    };
    check("map 1 128", (1, 128 << 10), (0, 0));
    check("map-many 100 1000 8", (1000, 1000 * (8 << 10)), (0, 0));
    check("unmap-many 100 1000", (0, 0), (1000, 1000 * (8 << 10)));
    check("brk 50 12", (50, 50 * (12 << 10)), (0, 0));
    check("unbrk 600", (0, 0), (1, 600 << 10));
    check("remap 1 4096", (1, (4096 - 128) << 10), (0, 0));
    check("remap 1 64", (0, 0), (1, (4096 - 64) << 10));
    check("touch 1", (0, 0), (0, 0));
    check("map-shared 2 256", (1, 256 << 10), (0, 0));
    check("unmap 2", (0, 0), (1, 256 << 10));
}

#[test]
fn a_stack_that_grows_takes_address_space() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    probe.reset().unwrap();
    let base = statm_size(pid);
    worker.ask("stack 2048");
    // 5.10 learns of it at the next system call that changes the address space
    worker.ask("map 1 64");
    let size = statm_size(pid);
    let usage = usage(&probe.snapshot().unwrap(), pid);
    let (taken, given) = (usage.allocated_bytes.unwrap(), usage.deallocated_bytes.unwrap());
    assert!(taken >= (2048 - 256) << 10, "{usage:?}");
    assert_eq!(base + taken - given, size, "{usage:?}");
}

#[test]
fn a_spike_between_two_reads_is_not_missed() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    // The highest ever, so that the kernel's own mark does not help with the rest.
    worker.ask(&format!("spike {} 1", 600 << 10));
    probe.reset().unwrap();
    let base = MemStatus::of(pid).unwrap().resident();
    for spike in [512 * MIB, 256 * MIB, 64 * MIB] {
        // a reader of /proc at the same interval, which reads at both ends
        let mut proc_peak = MemStatus::of(pid).unwrap().resident();
        let start = Instant::now();
        sleep(Duration::from_millis(200));
        worker.ask(&format!("spike {} 50", spike >> 10));
        sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
        proc_peak = proc_peak.max(MemStatus::of(pid).unwrap().resident());
        let window = probe.reset().unwrap();
        let usage = usage(&window, pid);
        let peak = usage.resident_peak_bytes.unwrap();
        println!("{} MiB: peak {peak}, /proc {proc_peak}", spike / MIB);
        let truth = base + spike;
        assert!(peak.abs_diff(truth) <= truth / 100, "{peak}, took {truth}: {usage:?}");
        assert!(usage.virtual_peak_bytes.unwrap() >= spike, "{usage:?}");
        assert!(proc_peak < base + spike / 10, "the reader of /proc saw {proc_peak}");
    }
    // Nothing happened: the peak is what it holds.
    let usage = usage(&probe.reset().unwrap(), pid);
    assert_eq!(usage.resident_peak_bytes, usage.resident_bytes);
    assert_eq!(usage.virtual_peak_bytes, usage.virtual_bytes);
}

#[test]
fn a_page_exact_peak_is_exact() {
    let mut probe = MemProbe::builder().peaks(MemPeaks::PageExact).load().unwrap();
    let exact = probe.health().unwrap().degraded.iter().all(|it| it.feature != "page-exact peaks");
    support("mem.page_exact_peaks", exact, "tp_btf/rss_stat with this CPU's part");
    let mut worker = worker();
    let pid = worker.pid();
    worker.ask(&format!("spike {} 1", 64 << 10));
    for pages in [1, 5, 63, 1000] {
        probe.reset().unwrap();
        let base = usage(&probe.snapshot().unwrap(), pid).resident_bytes.unwrap();
        worker.ask(&format!("spike {} 1", pages * 4));
        let peak = usage(&probe.snapshot().unwrap(), pid).resident_peak_bytes.unwrap();
        let truth = base + pages * PAGE;
        // What other CPUs have not handed in: as far as it ran there before.
        let slack = if exact { 64 * PAGE } else { slack_of_status() };
        println!("{pages} pages: {} off", peak as i64 - truth as i64);
        assert!(peak.abs_diff(truth) <= slack, "{peak}, {truth} for {pages} pages");
    }
}

#[test]
fn page_faults_equal_rusage() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    let counts = |line: String| -> Vec<u64> {
        line.split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    let before = counts(worker.ask("faults"));
    probe.reset().unwrap();
    worker.ask("map 1 4000");
    worker.ask("touch 1");
    worker.ask("thread-touch 1");
    worker.ask("map 2 400");
    worker.ask("thread-touch 2");
    let after = counts(worker.ask("faults"));
    let usage = usage(&probe.snapshot().unwrap(), pid);
    // as many as the pages, where no huge page serves many at once
    assert!(after[0] - before[0] >= 100, "{before:?} {after:?}");
    assert_eq!(usage.minor_faults, after[0] - before[0], "{usage:?}");
    assert_eq!(usage.major_faults, after[1] - before[1], "{usage:?}");
}

#[test]
fn a_loop_of_malloc_and_free_shows_its_peak_in_every_window() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    worker.ask("spike 200000 1");
    probe.reset().unwrap();
    let base = MemStatus::of(pid).unwrap().resident();
    for window in 1..=5 {
        let kib = 20_000 * window;
        for _ in 0..5 {
            worker.ask(&format!("spike {kib} 1"));
        }
        let usage = usage(&probe.reset().unwrap(), pid);
        let (peak, truth) = (usage.resident_peak_bytes.unwrap(), base + (kib << 10));
        assert!(peak.abs_diff(truth) <= truth / 100, "window {window}: {peak}, {truth}");
    }
}

#[test]
fn one_gibibyte_shows_as_such() {
    let free = procfs::Current::current().map(|info: procfs::Meminfo| info.mem_available.unwrap());
    // the machines have 1 GiB in all
    let mib = if free.unwrap() > 1400 * MIB { 1024 } else { 256 };
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    let before = usage(&probe.snapshot().unwrap(), pid);
    worker.ask(&format!("map 1 {}", mib << 10));
    worker.ask("touch 1");
    let usage = usage(&probe.snapshot().unwrap(), pid);
    let grown = |now: Option<u64>, before: Option<u64>| now.unwrap() - before.unwrap();
    // and a page or two of its own stack
    let resident = grown(usage.resident_anon_bytes, before.resident_anon_bytes);
    assert!((mib * MIB..=mib * MIB + 16 * PAGE).contains(&resident), "{resident}");
    assert_eq!(grown(usage.virtual_bytes, before.virtual_bytes), mib * MIB);
    assert!(usage.resident_peak_bytes.unwrap() >= usage.resident_bytes.unwrap());
}

#[test]
fn huge_pages_are_where_the_kernel_counts_them() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    let reserved = HugePages::reserve(4);
    if reserved.0 < 4 {
        panic!("no huge pages to be had: {} of 4", reserved.0);
    }
    worker.ask("map-huge 1 8192");
    worker.ask("touch 1");
    worker.ask("map 2 16384");
    worker.ask("transparent-huge 2");
    worker.ask("touch 2");
    worker.stop();
    let status = MemStatus::of(pid).unwrap();
    let usage = usage(&probe.snapshot().unwrap(), pid);
    assert_eq!(usage.hugetlb_bytes, Some(8 * MIB));
    assert!(usage.resident_anon_bytes.unwrap() >= 16 * MIB);
    assert_eq!(differences(&usage, &status, pid), Vec::<String>::new());
}

/// Pages of hugetlbfs, as many as the kernel could find; given back when dropped.
struct HugePages(u64);

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn reserve(pages: u64) -> Self {
        std::fs::write(Self::FILE, pages.to_string()).unwrap();
        Self(std::fs::read_to_string(Self::FILE).unwrap().trim().parse().unwrap())
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::FILE, "0");
    }
}

#[test]
fn what_is_swapped_out_is_held_elsewhere() {
    // the machines have a disk for this; elsewhere where the tests are built
    let volume = std::path::Path::new("/mnt/vol");
    let directory = if volume.is_dir() { volume } else { env!("CARGO_TARGET_TMPDIR").as_ref() };
    let _swap = SwapFile::new(directory, 64 << 20).expect("a swap file on a disk");
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    worker.ask("map 1 30000");
    worker.ask("touch 1");
    let before = usage(&probe.snapshot().unwrap(), pid);
    worker.ask("page-out 1");
    worker.stop();
    let usage = usage(&probe.snapshot().unwrap(), pid);
    let swapped = usage.swap_bytes.unwrap() - before.swap_bytes.unwrap();
    assert!(swapped > 20_000 << 10, "{usage:?}");
    let status = MemStatus::of(pid).unwrap();
    assert_eq!(differences(&usage, &status, pid), Vec::<String>::new());
    // and back, by faults of one kind or the other
    worker.resume();
    let faults = |worker: &mut Workload| -> Vec<u64> {
        worker.ask("faults").split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    let start = faults(&mut worker);
    probe.reset().unwrap();
    worker.ask("read 1");
    let end = faults(&mut worker);
    let after = self::usage(&probe.snapshot().unwrap(), pid);
    assert_eq!(after.swap_bytes, before.swap_bytes, "{after:?}");
    let told = (after.minor_faults, after.major_faults);
    assert_eq!(told, (end[0] - start[0], end[1] - start[1]), "{after:?}");
    assert!(told.0 + told.1 > 0);
}

#[test]
fn threads_of_the_kernel_have_no_memory_and_totals_count_once() {
    let mut probe = probe();
    let mut worker = worker();
    worker.ask("map 1 100000");
    worker.ask("touch 1");
    let alone = probe.snapshot().unwrap();
    let pid = worker.pid();
    let child: u32 = worker.ask("share").parse().unwrap();
    let snapshot = probe.snapshot().unwrap();
    let kernel = snapshot.processes.iter().find(|row| row.info.kernel_thread).unwrap();
    assert_eq!(kernel.usage.resident_bytes, None);
    assert_eq!(kernel.usage.virtual_bytes, None);
    assert_eq!(kernel.usage.resident_peak_bytes, None);

    let (ours, theirs) = (row(&snapshot, pid), row(&snapshot, child));
    assert_eq!(theirs.usage.shares_memory_with, Some(ours.id));
    assert_eq!(ours.usage.shares_memory_with, None);
    assert_eq!(theirs.usage.resident_bytes, ours.usage.resident_bytes);
    let sum = |snapshot: &MemSnapshot| snapshot.total().resident_bytes.unwrap();
    // others of the machine come and go; the 100 MB must not be there twice
    assert!(sum(&snapshot).abs_diff(sum(&alone)) < 60_000 << 10);
    assert!(sum(&snapshot) >= ours.usage.resident_bytes.unwrap());
    // the child is of the worker's address space: it goes with it
    drop(worker);
    #[expect(unsafe_code, reason = "kill(2) of a grandchild that the worker named")]
    // SAFETY: no memory is involved.
    unsafe {
        libc::kill(child as libc::pid_t, libc::SIGKILL);
    }
}

#[test]
fn metrics_that_this_kernel_gives() {
    let probe = MemProbe::builder().load().unwrap();
    // the set may lack other things, such as process 1
    let degraded = probe.health().unwrap().degraded;
    let by_default = degraded.iter().all(|it| !it.feature.contains("allocations"));
    drop(probe);
    let mut probe = self::probe();
    let snapshot = probe.snapshot().unwrap();
    for source in &snapshot.provenance.sources {
        if source.metric.contains(' ') {
            continue; // a process, not a metric
        }
        let metric = format!("mem.{}", source.metric);
        support(&metric, source.source.is_some(), source.source.as_deref().unwrap_or("-"));
        assert!(source.source.is_some(), "{metric}");
    }
    support("mem.address_space_by_default", by_default, "mmap_lock_released with two arguments");
}
