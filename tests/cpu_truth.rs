//! CPU time, waits and switches against what the kernel says of the same processes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::Duration,
};

use ebpfmetrics::{
    CpuProbe, CpuUsage, Probe as _,
    cpu::{CpuAccounting, CpuSnapshot},
};
use ebpfmetrics_suite::{
    Kernel, Workload, cpu_columns, emulated, hidden_tasks_ns, kernel, monotonic_ns, needs_kernel,
    proc_stat, process_cpu_ns, schedstat, schedstat_of_thread, status_field, stolen_unseen_ns,
    support, thread_cpu_ns, thread_ids, total_idle,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const BOTH: [CpuAccounting; 2] = [CpuAccounting::Ledger, CpuAccounting::SchedSwitch];

fn probe(accounting: CpuAccounting) -> CpuProbe {
    CpuProbe::builder().accounting(accounting).load().unwrap()
}

fn usage(snapshot: &CpuSnapshot, pid: u32) -> CpuUsage {
    snapshot.process(pid).unwrap_or_else(|| panic!("no row of {pid}")).usage
}

fn cpu_ns(snapshot: &CpuSnapshot, pid: u32) -> u64 {
    usage(snapshot, pid).cpu_time.as_nanos() as u64
}

/// Of a process that was stopped, by the scheduler's own figure: the ledger to the
/// ns, the switches within 0.1 % and 2 us.
fn assert_equals_schedstat(accounting: CpuAccounting, arguments: &[&str], run: Duration) {
    let mut probe = probe(accounting);
    let work = Workload::start(WORKLOAD, arguments);
    sleep(run);
    work.stop();
    let truth = schedstat(work.pid()).unwrap();
    let snapshot = probe.snapshot().unwrap();
    let ours = usage(&snapshot, work.pid());
    let ours_ns = ours.cpu_time.as_nanos() as u64;

    let allowed = match accounting {
        CpuAccounting::Ledger => 0,
        _ => truth.cpu_ns / 1000 + 2000,
    };
    let context =
        format!("{arguments:?} {accounting:?}: {ours:?}, {truth:?}, {:?}", snapshot.losses);
    assert!(truth.cpu_ns > 1_000_000, "{context}: did nothing");
    assert!(ours_ns.abs_diff(truth.cpu_ns) <= allowed, "{context}");
    assert_eq!(ours.run_queue_wait.unwrap().as_nanos() as u64, truth.wait_ns, "{context}");
    if accounting == CpuAccounting::Ledger {
        assert_eq!(ours.user + ours.system, ours.cpu_time, "{context}");
    }
    assert_eq!(ours.voluntary_switches, status_field(work.pid(), "voluntary_ctxt_switches"));
    assert_eq!(ours.involuntary_switches, status_field(work.pid(), "nonvoluntary_ctxt_switches"));
}

#[test]
fn a_spinner_equals_schedstat() {
    for accounting in BOTH {
        assert_equals_schedstat(accounting, &["spin", "1"], Duration::from_millis(1500));
    }
}

#[test]
fn a_many_threaded_burner_equals_schedstat() {
    for accounting in BOTH {
        assert_equals_schedstat(accounting, &["spin", "16"], Duration::from_millis(1500));
    }
}

#[test]
fn a_sleeper_that_wakes_a_thousand_times_a_second_equals_schedstat() {
    for accounting in BOTH {
        assert_equals_schedstat(accounting, &["wake", "1000"], Duration::from_millis(1500));
    }
}

#[test]
fn switching_threads_equal_schedstat() {
    for accounting in BOTH {
        assert_equals_schedstat(accounting, &["ping-pong", "2"], Duration::from_millis(800));
    }
}

/// A thread's own CPU clock forces the scheduler to update its books, so it must
/// not be read before the snapshot: what the snapshot says of a moment is compared
/// with what the clock says right after, less the time in between.
#[test]
fn a_running_spinner_is_right_at_this_very_moment() {
    let mut probe = CpuProbe::builder().threads(true).load().unwrap();
    let before_spinner = thread_ids();
    let stop = Arc::new(AtomicBool::new(false));
    let spinner = thread::spawn({
        let stop = Arc::clone(&stop);
        move || while !stop.load(Ordering::Relaxed) {}
    });
    let tid = *thread_ids().difference(&before_spinner).next().unwrap();
    sleep(Duration::from_millis(100));

    let (mut errors_ns, mut corrections_ns) = (Vec::new(), Vec::new());
    while errors_ns.len() < 200 {
        sleep(Duration::from_micros(3000 + errors_ns.len() as u64 * 137 % 2000));
        let raw = schedstat_of_thread(tid);
        let snapshot = probe.snapshot().unwrap();
        let row = snapshot.system.threads.iter().find(|thread| thread.id.tid == tid).unwrap();
        let before = monotonic_ns();
        let clock = thread_cpu_ns(tid).unwrap();
        let after = monotonic_ns();
        // Only if it ran all the time: else the time in between is not its own.
        let Some(at) = row.running_at_ns else { continue };
        let ours = row.usage.cpu_time.as_nanos() as i64;
        let truth = clock as i64 - (before.midpoint(after) - at) as i64;
        errors_ns.push(ours - truth);
        corrections_ns.push(ours - raw as i64);
    }
    stop.store(true, Ordering::Relaxed);
    spinner.join().unwrap();

    let median = |values: &mut Vec<i64>| {
        values.sort_by_key(|value| value.abs());
        values[values.len() / 2].abs()
    };
    let (error, correction) = (median(&mut errors_ns), median(&mut corrections_ns));
    println!("median error {error} ns, of a median correction of {correction} ns");
    let limit = if emulated() { 50_000 } else { 5000 };
    assert!(error <= limit, "{error} ns at the median; {errors_ns:?}");
    assert!(correction > 10 * error, "nothing was corrected: {correction} ns");
}

/// What is told of a running thread is never taken back, so it must not be ahead of its
/// clock: not by what a hypervisor took from its CPU, nor by the time in which the
/// scheduler looks for another task. Threads that crowd the CPUs, read while they run.
#[test]
fn nothing_is_told_before_it_is_spent() {
    let mut probe = CpuProbe::builder().threads(true).load().unwrap();
    let before_spinners = thread_ids();
    let stop = Arc::new(AtomicBool::new(false));
    let spinners: Vec<_> = (0..3)
        .map(|nap| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    (0..20_000).for_each(|_| std::hint::spin_loop());
                    if nap == 2 {
                        sleep(Duration::from_micros(200));
                    }
                }
            })
        })
        .collect();
    let tids: Vec<_> = thread_ids().difference(&before_spinners).copied().collect();
    let (mut ahead_ns, mut running) = (Vec::new(), 0);
    for _ in 0..2000 {
        sleep(Duration::from_micros(700));
        let snapshot = probe.snapshot().unwrap();
        for &tid in &tids {
            let clock = thread_cpu_ns(tid).unwrap();
            let row = snapshot.system.threads.iter().find(|thread| thread.id.tid == tid).unwrap();
            running += usize::from(row.running_at_ns.is_some());
            ahead_ns.push(row.usage.cpu_time.as_nanos() as i64 - clock as i64);
        }
    }
    stop.store(true, Ordering::Relaxed);
    spinners.into_iter().for_each(|spinner| spinner.join().unwrap());
    ahead_ns.sort_unstable();
    println!("ahead by {:?} ns at most; {running} times read while it ran", ahead_ns.last());
    assert!(running > 100, "{running} times");
    // Where a hypervisor takes CPUs, it does not tell of each time.
    let few = ahead_ns.len() / if emulated() || stolen_unseen_ns() > 0 { 20 } else { 500 };
    let most = ahead_ns[ahead_ns.len() - 1 - few];
    assert!(most < 50_000, "{most} ns ahead, {few} looks of {} more", ahead_ns.len());
}

#[test]
fn a_spinner_that_ran_long_before_shows_in_full() {
    for accounting in BOTH {
        let work = Workload::start(WORKLOAD, &["spin", "1"]);
        sleep(Duration::from_millis(500));
        let before_load = process_cpu_ns(work.pid()).unwrap();
        let mut probe = probe(accounting);
        let after_load = process_cpu_ns(work.pid()).unwrap();
        sleep(Duration::from_millis(1000));
        let before = process_cpu_ns(work.pid()).unwrap();
        let snapshot = probe.snapshot().unwrap();
        let ours = cpu_ns(&snapshot, work.pid());
        let after = process_cpu_ns(work.pid()).unwrap();
        // The window began somewhere between before_load and after_load.
        let (least, most) = (before - after_load, after - before_load);
        let slack = most / 1000 + 20_000 + stolen_unseen_ns();
        assert!(
            (least.saturating_sub(slack)..=most + slack).contains(&ours),
            "{accounting:?}: {ours} not in {least}..{most}, {:?}",
            snapshot.losses
        );
    }
}

#[test]
fn both_ways_to_account_agree() {
    let (mut ledger, mut switches) =
        (probe(CpuAccounting::Ledger), probe(CpuAccounting::SchedSwitch));
    let works = [["spin", "3"], ["wake", "1000"], ["ping-pong", "2"], ["threads", "300"]]
        .map(|arguments| Workload::start(WORKLOAD, &arguments));
    sleep(Duration::from_secs(2));
    for work in &works {
        work.stop();
    }
    let (by_ledger, by_switches) = (ledger.snapshot().unwrap(), switches.snapshot().unwrap());
    for work in &works {
        let a = cpu_ns(&by_ledger, work.pid());
        let b = cpu_ns(&by_switches, work.pid());
        let allowed = a / 1000 + 2000;
        // The last steps of a thread, after it handed in its time, only switches
        // see: some us each, of threads that live 300 us.
        // Emulated, these steps take as long as the rest.
        let last_steps = if emulated() { a } else { a / 5 };
        let dying = if work.pid() == works[3].pid() { last_steps } else { 0 };
        assert!(
            a <= b + allowed && b <= a + allowed + dying,
            "{}: ledger {a}, switches {b}, {:?}",
            by_ledger.process(work.pid()).unwrap().info.comm,
            by_switches.losses
        );
    }
}

#[test]
fn user_and_system_time_equal_proc_stat() {
    let mut probe = probe(CpuAccounting::Ledger);
    let work = Workload::start(WORKLOAD, &["ping-pong", "2"]);
    sleep(Duration::from_millis(1500));
    work.stop();
    let ours = usage(&probe.snapshot().unwrap(), work.pid());
    let truth = proc_stat(work.pid());
    // /proc/PID/stat cuts to 10 ms
    for (name, ours, ticks) in
        [("user", ours.user, truth.user_ticks), ("system", ours.system, truth.system_ticks)]
    {
        let ticks_ns = u128::from(ticks) * 10_000_000;
        assert!(
            ours.as_nanos().abs_diff(ticks_ns) <= 11_000_000,
            "{name}: {ours:?}, /proc/PID/stat says {ticks} ticks"
        );
    }
}

#[test]
fn a_row_says_who_it_is() {
    let mut probe = CpuProbe::builder().threads(true).load().unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "3"]);
    let snapshot = probe.snapshot().unwrap();
    let row = snapshot.process(work.pid()).unwrap();
    assert_eq!(row.info.comm, "workload");
    assert_eq!(row.id.start_time_ns / 10_000_000, proc_stat(work.pid()).start_ticks);
    assert_eq!(row.info.parent.unwrap().pid, std::process::id());
    assert_eq!(row.info.namespace_pid, work.pid());
    assert_eq!(row.info.uid, Some(0));
    assert_eq!(row.info.threads, 3);
    assert!(!row.info.exited && !row.info.kernel_thread);
    let own = snapshot.process(std::process::id()).unwrap();
    assert_eq!(row.info.parent.unwrap(), own.id);
    let threads: Vec<_> =
        snapshot.system.threads.iter().filter(|thread| thread.process == row.id).collect();
    assert_eq!(threads.len(), 3);
    assert!(threads.iter().any(|thread| thread.id.tid == work.pid()));
    // kthreadd, the parent of all kernel threads
    let kthreadd = snapshot.process(2).unwrap();
    assert!(kthreadd.info.kernel_thread && kthreadd.info.parent.is_none());
    // The directory of a cgroup has the id as its inode.
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    if let Some(path) = cgroup.lines().find_map(|line| line.strip_prefix("0::")) {
        use std::os::unix::fs::MetadataExt as _;
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|mount| std::path::Path::new(mount).join("cgroup.procs").exists())
            .expect("a cgroup v2 mount");
        let inode = std::fs::metadata(format!("{mount}{path}")).unwrap().ino();
        assert_eq!(own.info.cgroup_id, Some(inode));
    }
}

#[test]
fn threads_add_up_to_their_process() {
    let mut probe = CpuProbe::builder().threads(true).load().unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "4"]);
    sleep(Duration::from_millis(500));
    work.stop();
    let snapshot = probe.snapshot().unwrap();
    let row = snapshot.process(work.pid()).unwrap();
    let threads = snapshot.system.threads.iter().filter(|thread| thread.process == row.id);
    let sum = threads.fold(CpuUsage::default().cpu_time, |sum, t| sum + t.usage.cpu_time);
    assert_eq!(sum, row.usage.cpu_time);
}

/// Busy, idle and interrupted time make up the CPUs times the window.
fn assert_conserved(accounting: CpuAccounting, load: &[&[&str]]) {
    const WINDOW: Duration = Duration::from_secs(10);
    let works: Vec<_> = load.iter().map(|arguments| Workload::start(WORKLOAD, arguments)).collect();
    let mut probe = probe(accounting);
    probe.reset().unwrap();
    let hidden = |probe: &mut CpuProbe| {
        let snapshot = probe.snapshot().unwrap();
        hidden_tasks_ns(|pid| snapshot.process(pid).is_some()).remove(&1).unwrap_or(0)
    };
    let idle_before = total_idle();
    let hidden_before = hidden(&mut probe);
    sleep(WINDOW);
    let snapshot = probe.reset().unwrap();
    let hidden_ns = Duration::from_nanos(hidden(&mut probe) - hidden_before);
    let proc_idle = Duration::from_nanos(total_idle() - idle_before);
    drop(works);

    let capacity = snapshot.window.duration() * snapshot.system.online_cpus as u32;
    let (busy, idle) = (snapshot.sum().cpu_time, snapshot.idle().unwrap());
    let interrupted: Duration = snapshot.interrupted();
    let sum = busy + hidden_ns + idle + interrupted;
    let off = sum.abs_diff(capacity).as_secs_f64() / capacity.as_secs_f64();
    let mut most: Vec<_> = snapshot.processes.iter().collect();
    most.sort_by_key(|row| std::cmp::Reverse(row.usage.cpu_time));
    let most: Vec<_> = (most.iter().take(6))
        .map(|row| (row.id.pid, row.info.comm, row.info.exited, row.usage.cpu_time))
        .collect();
    let context = format!(
        "{accounting:?} {load:?}: busy {busy:?} hidden {hidden_ns:?} idle {idle:?} interrupted \
         {interrupted:?} = {sum:?} of {capacity:?}, off by {:.4} %; {:?}, most {most:?}",
        off * 100.0,
        snapshot.losses
    );
    println!("{context}");
    // The time stolen from tasks is in `interrupted`; what is stolen or spent in
    // interrupts on an idle CPU is there and in `idle`.
    let doubly = interrupted.as_secs_f64() / capacity.as_secs_f64();
    // An emulator lets its processors take turns of up to 100 ms: they are not all
    // at the same moment when they are read.
    let allowed = if emulated() { 0.005 } else { 0.001 };
    assert!(off <= allowed || (sum > capacity && off <= allowed + doubly), "{context}");
    // The kernel's own idle time, by the tick: without the interrupts on an idle
    // CPU, which a virtual machine makes long.
    let differs = idle.abs_diff(proc_idle).as_secs_f64() / capacity.as_secs_f64();
    assert!(differs <= 0.02 + doubly, "/proc/stat says idle {proc_idle:?}; {context}");
}

#[test]
fn time_is_conserved_on_an_idle_machine() {
    for accounting in BOTH {
        assert_conserved(accounting, &[]);
    }
}

#[test]
fn time_is_conserved_under_load() {
    for accounting in BOTH {
        assert_conserved(accounting, &[&["spin", "2"], &["wake", "1000"], &["ping-pong", "2"]]);
    }
}

#[test]
fn metrics_that_this_kernel_gives() {
    let mut probe = probe(CpuAccounting::Ledger);
    let work = Workload::start(WORKLOAD, &["spin", "2"]);
    sleep(Duration::from_millis(300));
    let snapshot = probe.snapshot().unwrap();
    let row = snapshot.process(work.pid()).unwrap();
    let cpu = &snapshot.system.cpus[0];
    let source = |metric: &str| snapshot.provenance.source(metric).unwrap_or("-");
    let metrics = [
        ("cpu_time", true),
        ("user", true),
        ("system", true),
        ("voluntary_switches", true),
        ("involuntary_switches", true),
        ("run_queue_wait", row.usage.run_queue_wait.is_some()),
        ("migrations", true),
        ("idle", snapshot.idle().is_some()),
        ("irq", cpu.irq.is_some()),
        ("softirq", cpu.softirq.is_some()),
        ("steal", cpu.steal.is_some()),
        ("guest", cpu.guest.is_some()),
        ("exited", true),
    ];
    for (metric, given) in metrics {
        support(&format!("cpu.{metric}"), given, source(metric));
        let since = if BY_TICK.contains(&metric) { HAS_TIMES_BY_TICK } else { Kernel(5, 10) };
        assert_eq!(given, kernel() >= since, "{metric} is known since {since}");
    }
    support(
        "cpu.cgroup_id",
        row.info.cgroup_id.is_some(),
        "iter/task: task->cgroups->dfl_cgrp->kn->id",
    );
    assert!(row.info.cgroup_id.is_some());
    let degraded = probe.health().unwrap().degraded;
    // some machines hide their first process
    let lacks_ticks = kernel() < HAS_TIMES_BY_TICK;
    let is_known = |feature: &str| feature == "process 1" || lacks_ticks && feature.contains("irq");
    assert!(degraded.iter().all(|it| is_known(&it.feature)), "{degraded:?}");
}

const BY_TICK: [&str; 4] = ["irq", "softirq", "steal", "guest"];
/// The BTF of Debian's 5.10 does not have the variable.
const HAS_TIMES_BY_TICK: Kernel = Kernel(5, 11);

/// Interrupts and stolen time of each CPU against the columns of `/proc/stat`.
#[test]
fn times_by_tick_equal_proc_stat() {
    let reason = "BTF with kernel_cpustat";
    if !needs_kernel("times_by_tick_equal_proc_stat", HAS_TIMES_BY_TICK, reason) {
        return;
    }
    let mut probe = CpuProbe::builder().load().unwrap();
    let _load = Workload::start(WORKLOAD, &["spin", "3"]);
    let ours = |snapshot: &CpuSnapshot| -> Vec<[Option<Duration>; 4]> {
        snapshot.system.cpus.iter().map(|it| [it.irq, it.softirq, it.steal, it.guest]).collect()
    };
    for ms in [15, 400, 1500] {
        let before = cpu_columns();
        probe.reset().unwrap();
        sleep(Duration::from_millis(ms));
        let snapshot = probe.snapshot().unwrap();
        let truth = cpu_columns();
        assert_eq!(ours(&snapshot).len(), truth.len());
        for ((ours, before), truth) in ours(&snapshot).iter().zip(before).zip(truth) {
            for ((ours, before), truth) in ours.iter().zip(before).zip(truth) {
                let ours = ours.unwrap();
                let truth = Duration::from_millis((truth - before) * 10);
                assert!(ours <= snapshot.window.duration(), "{ours:?}");
                // a column is cut to 10 ms, and read a moment before and after
                assert!(ours.abs_diff(truth) <= Duration::from_millis(25), "{ours:?} {truth:?}");
            }
        }
    }
}
