//! Sets of probes: one walk and one program per lifecycle tracepoint for all of them; they
//! come and go at run time. With the CPU probe and probes of other crates.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Mutex, MutexGuard},
    thread::sleep,
    time::Duration,
};

use custom_probe::SyscallProbe;
use ebpfmetrics::{CpuProbe, ErrorKind, Filter, Probe as _, ProbeSet};
use ebpfmetrics_suite::{FailAt, Failing, Workload, schedstat};
use task_probe::{TaskProbe, TaskUsage};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// One test at a time: some look at all that this process has open.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The tracepoints that this process has programs attached to, with their numbers.
fn attached() -> BTreeMap<String, usize> {
    let mut attached = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("tp_name:"));
        if let Some(name) = name {
            *attached.entry(name.trim().to_owned()).or_default() += 1;
        }
    }
    attached
}

fn oom_score_adj(pid: u32) -> i64 {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    text.trim().parse().unwrap()
}

/// What the walk has to show of a process, from `/proc`.
fn settings(pid: u32) -> TaskUsage {
    let slack = fs::read_to_string(format!("/proc/{pid}/timerslack_ns")).unwrap();
    TaskUsage {
        threads: fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() as u64,
        oom_score_adj: Some(oom_score_adj(pid)),
        timer_slack: Some(Duration::from_nanos(slack.trim().parse().unwrap())),
    }
}

fn call(times: u64) {
    for _ in 0..times {
        std::hint::black_box(std::os::unix::process::parent_id());
    }
}

#[test]
fn lifecycle_tracepoints_have_one_program_however_many_probes() {
    let _alone = alone();
    let lifecycle = [
        "cgroup_attach_task",
        "cgroup_rmdir",
        "sched_process_exit",
        "sched_process_fork",
        "sched_process_free",
    ];
    let one_each: BTreeMap<_, _> = lifecycle.map(|name| (name.to_owned(), 1)).into();
    assert_eq!(attached(), BTreeMap::new());
    let mut probes = ProbeSet::new().unwrap();
    assert_eq!(attached(), one_each);
    probes.add(CpuProbe::builder()).unwrap();
    probes.add(TaskProbe::builder()).unwrap();
    probes.add(TaskProbe::builder()).unwrap();
    assert_eq!(attached(), one_each);
    let calls = probes.add(SyscallProbe::builder()).unwrap();
    let mut more = one_each.clone();
    more.extend(["sys_enter", "sys_exit"].map(|name| (name.to_owned(), 1)));
    assert_eq!(attached(), more);
    probes.remove(calls).unwrap();
    assert_eq!(attached(), one_each);
    drop(probes);
    assert_eq!(attached(), BTreeMap::new());
}

#[test]
fn each_figure_is_right() {
    let _alone = alone();
    let mut probes = ProbeSet::new().unwrap();
    let settings_first = probes.add(TaskProbe::builder()).unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let calls = probes.add(SyscallProbe::builder()).unwrap();
    let settings_last = probes.add(TaskProbe::builder()).unwrap();
    assert!(probes.probes().eq(["tasks", "cpu", "syscalls", "tasks"]));
    let work = Workload::start(WORKLOAD, &["spin", "3"]);
    fs::write(format!("/proc/{}/oom_score_adj", work.pid()), "345").unwrap();
    probes.reset().unwrap();
    call(10_000);
    sleep(Duration::from_millis(300));
    work.stop();

    let snapshot = probes.reset().unwrap();
    let row = snapshot.process(work.pid()).unwrap();
    assert_eq!(row.info.comm, "workload");
    assert_eq!(row.total(cpu).cpu_time.as_nanos() as u64, schedstat(work.pid()).unwrap().cpu_ns);
    assert!(row[cpu].cpu_time > Duration::ZERO, "{:?}", row[cpu]);
    assert_eq!(row[settings_first], settings(work.pid()));
    assert_eq!(row[settings_last], row[settings_first]);
    assert_eq!(row[settings_first].oom_score_adj, Some(345));
    assert!(snapshot.process(std::process::id()).unwrap()[calls].calls >= 10_000);
    for view in [snapshot.of(settings_first), snapshot.of(settings_last)] {
        let alive = view.to_snapshot().processes.into_iter().filter(|row| !row.info.exited);
        let unknown: Vec<_> = alive.filter(|row| row.usage.threads == 0).collect();
        // process 1 may be hidden
        assert!(unknown.iter().all(|row| row.id.pid == 1), "{unknown:?}");
    }
    // every process once
    let ids: Vec<_> = snapshot.processes().map(|row| row.id).collect();
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
    // losses and sources of the set and of all probes
    for cause in ["ended_table_full", "exit_record_missing", "process_table_full"] {
        assert!(snapshot.losses.get(cause).is_some(), "{cause} in {:?}", snapshot.losses);
    }
    assert_eq!(snapshot.provenance().filter_map(|it| it.source("cpu_time")).count(), 1);
    let health = probes.health().unwrap();
    assert_eq!(health.programs, probes.cost().unwrap().programs.len());
    // what a program of threads and closures needs
    fn moves<T: Send + 'static>(_: T) {}
    moves(probes);
}

#[test]
fn the_end_of_a_process_is_reported_by_all_probes() {
    let _alone = alone();
    let mut probes = ProbeSet::new().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let calls = probes.add(SyscallProbe::builder()).unwrap();
    let settings = probes.add(TaskProbe::builder()).unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "2"]);
    let pid = work.pid();
    let alive = probes.snapshot().unwrap();
    let id = alive.process(pid).unwrap().id;
    sleep(Duration::from_millis(100));
    work.kill();
    let snapshot = probes.snapshot().unwrap();
    let row = snapshot.process(pid).unwrap();
    assert!(row.info.exited && row.id == id, "{:?}", row.info);
    let before = alive.process(pid).unwrap();
    assert!(row[cpu].cpu_time > before[cpu].cpu_time, "{:?}", row[cpu]);
    assert!(row[calls].calls >= before[calls].calls && row[calls].calls > 0, "{:?}", row[calls]);
    assert_eq!(row[settings], before[settings], "gauges are the last known");
    probes.reset().unwrap();

    // read at its end, by event
    let short = Workload::start(WORKLOAD, &["spin", "1"]);
    let id = probes.snapshot().unwrap().process(short.pid()).unwrap().id;
    short.kill();
    let final_usage = ebpfmetrics_suite::poll(Duration::from_secs(10), || {
        Some((probes.final_usage(cpu, id).unwrap()?, probes.final_usage(calls, id).unwrap()?))
    });
    let (of_cpu, of_calls) = final_usage.unwrap();
    let snapshot = probes.snapshot().unwrap();
    let row = snapshot.process(id.pid).unwrap();
    assert_eq!((row.total(cpu).cpu_time, row.total(calls)), (of_cpu.cpu_time, &of_calls));
}

/// 30 changes: the CPU time of a busy process in all windows together is what the scheduler
/// says, to the ns; so are system calls, from below.
#[test]
fn changes_of_a_set_lose_no_window_and_no_counters() {
    let _alone = alone();
    let mut probes = ProbeSet::new().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let calls = probes.add(SyscallProbe::builder()).unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "2"]);
    let (mut tasks, mut failing) = (Vec::new(), Vec::new());
    let mut end = probes.snapshot().unwrap().window.start_ns;
    let (mut cpu_ns, mut made) = (0, 0);
    for change in 0..30 {
        match change % 5 {
            0 | 1 => tasks.push(probes.add(TaskProbe::builder()).unwrap()),
            2 => failing.push(probes.add(Failing::default()).unwrap()),
            3 => probes.remove(tasks.remove(0)).unwrap(),
            _ => probes.remove(failing.remove(0)).unwrap(),
        }
        call(1000);
        let snapshot = probes.reset().unwrap();
        assert_eq!(snapshot.window.start_ns, end, "change {change}");
        end = snapshot.window.end_ns;
        cpu_ns += snapshot.process(work.pid()).unwrap()[cpu].cpu_time.as_nanos() as u64;
        made += snapshot.process(std::process::id()).unwrap()[calls].calls;
        for &handle in &tasks {
            let settings = snapshot.process(work.pid()).unwrap()[handle];
            assert_eq!(settings.threads, 2, "change {change}");
        }
    }
    work.stop();
    let snapshot = probes.reset().unwrap();
    cpu_ns += snapshot.process(work.pid()).unwrap()[cpu].cpu_time.as_nanos() as u64;
    assert_eq!(cpu_ns, schedstat(work.pid()).unwrap().cpu_ns);
    assert!(made >= 30_000, "{made} calls");
}

#[test]
fn probes_leave_from_any_place_of_the_chain() {
    let _alone = alone();
    let mut probes = ProbeSet::new().unwrap();
    let first = probes.add(TaskProbe::builder()).unwrap();
    let calls = probes.add(SyscallProbe::builder()).unwrap();
    let middle = probes.add(TaskProbe::builder()).unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let last = probes.add(TaskProbe::builder()).unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "1"]);
    let check = |probes: &mut ProbeSet, handles: &[_]| {
        let snapshot = probes.snapshot().unwrap();
        let row = snapshot.process(work.pid()).unwrap();
        for &handle in handles {
            assert_eq!(row[handle], settings(work.pid()));
        }
        assert!(row.get(calls).is_some() && row[cpu].cpu_time > Duration::ZERO);
    };
    check(&mut probes, &[first, middle, last]);
    probes.remove(middle).unwrap();
    check(&mut probes, &[first, last]);
    probes.remove(first).unwrap();
    check(&mut probes, &[last]);
    let new = probes.add(TaskProbe::builder()).unwrap();
    check(&mut probes, &[last, new]);
    probes.remove(last).unwrap();
    check(&mut probes, &[new]);
    assert_eq!(probes.remove(last).unwrap_err().kind(), ErrorKind::InvalidOption);
    assert!(probes.snapshot().unwrap().get(last).is_none());
    probes.remove(new).unwrap();
    check(&mut probes, &[]);
}

#[test]
fn a_probe_that_cannot_be_added_leaves_the_set_working() {
    let _alone = alone();
    let mut probes = ProbeSet::new().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let calls = probes.add(SyscallProbe::builder()).unwrap();
    let start = probes.reset().unwrap().window.end_ns;
    let work = Workload::start(WORKLOAD, &["spin", "1"]);
    call(10_000);
    let failing = Failing::default();
    failing.fail_at(FailAt::Attach);
    let errors = [
        (probes.add(SyscallProbe::builder().processes(0)).unwrap_err(), "processes"),
        (probes.add(CpuProbe::builder()).unwrap_err(), "already has a probe cpu"),
        (probes.add(SyscallProbe::builder().filter(Filter::tree(1))).unwrap_err(), "filter"),
        (probes.add(TaskProbe::builder().max_exited(1)).unwrap_err(), "max_exited"),
    ];
    for (error, text) in errors {
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(probes.add(failing).unwrap_err().kind(), ErrorKind::System);
    assert!(probes.probes().eq(["cpu", "syscalls"]));
    work.stop();
    let snapshot = probes.reset().unwrap();
    assert_eq!(snapshot.window.start_ns, start);
    let row = snapshot.process(work.pid()).unwrap();
    assert_eq!(row[cpu].cpu_time.as_nanos() as u64, schedstat(work.pid()).unwrap().cpu_ns);
    assert!(snapshot.process(std::process::id()).unwrap()[calls].calls >= 10_000);
}

#[test]
fn a_reset_that_fails_in_one_probe_ends_the_window_of_no_probe() {
    let _alone = alone();
    for is_first in [false, true] {
        let mut probes = ProbeSet::new().unwrap();
        let failing = Failing::default();
        if is_first {
            probes.add(failing.clone()).unwrap();
        }
        let cpu = probes.add(CpuProbe::builder()).unwrap();
        let calls = probes.add(SyscallProbe::builder()).unwrap();
        if !is_first {
            probes.add(failing.clone()).unwrap();
        }
        let mut start = probes.reset().unwrap().window.end_ns;
        for places in [[FailAt::BeginWalk, FailAt::EndWalk], [FailAt::EndWalk, FailAt::BeginWalk]] {
            let work = Workload::start(WORKLOAD, &["spin", "1"]);
            for place in places {
                call(10_000);
                failing.fail_at(place);
                let error = probes.reset().unwrap_err();
                assert!(error.to_string().contains("on purpose"), "{error}");
            }
            failing.fail_at(FailAt::Nowhere);
            work.stop();
            let so_far = probes.snapshot().unwrap();
            let snapshot = probes.reset().unwrap();
            for snapshot in [&so_far, &snapshot] {
                assert_eq!(snapshot.window.start_ns, start, "{places:?}");
                // it began in the window: all that it ever did is in it
                let cpu_time = snapshot.process(work.pid()).unwrap()[cpu].cpu_time;
                assert_eq!(cpu_time.as_nanos() as u64, schedstat(work.pid()).unwrap().cpu_ns);
                assert!(snapshot.process(std::process::id()).unwrap()[calls].calls >= 20_000);
            }
            start = snapshot.window.end_ns;
            // the next window has nothing of it
            let next = probes.snapshot().unwrap();
            assert_eq!(next.window.start_ns, start);
            let usage = next.process(work.pid()).unwrap()[cpu];
            assert_eq!(usage.cpu_time, Duration::ZERO);
        }
    }
}

#[test]
fn as_many_probes_as_the_kernel_follows_tail_calls() {
    let _alone = alone();
    let kernel = ebpfmetrics::Kernel::read().unwrap();
    let mut probes = ProbeSet::builder().build_on(&kernel).unwrap();
    let add = |probes: &mut ProbeSet| probes.add_on(TaskProbe::builder(), &kernel);
    let handles: Vec<_> = (0..33).map(|_| add(&mut probes).unwrap()).collect();
    let check = |probes: &mut ProbeSet| {
        let snapshot = probes.snapshot().unwrap();
        let row = snapshot.process(std::process::id()).unwrap();
        assert!(handles.iter().all(|&handle| row[handle] == settings(std::process::id())));
    };
    check(&mut probes);
    let error = add(&mut probes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("33"), "{error}");
    check(&mut probes);
}

#[test]
fn a_set_without_probes_lists_processes() {
    let _alone = alone();
    let mut probes = ProbeSet::new().unwrap();
    let first = probes.reset().unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "1"]);
    let pid = work.pid();
    let second = probes.snapshot().unwrap();
    assert_eq!(second.window.start_ns, first.window.end_ns);
    let row = second.process(pid).unwrap();
    let parent = row.info.parent.map(|parent| parent.pid);
    assert_eq!((row.info.comm.to_string(), parent), ("workload".into(), Some(std::process::id())));
    work.kill();
    assert!(probes.snapshot().unwrap().process(pid).unwrap().info.exited);
    assert_eq!((second.probes().count(), second.losses.of_processes()), (0, 0));
    assert!(probes.health().unwrap().programs > 0);
}

#[test]
fn a_set_has_intervals_and_probes_that_come_later() {
    let _alone = alone();
    let mut probes = ProbeSet::new().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let start = probes.reset().unwrap().window.end_ns;
    sleep(Duration::from_millis(20));
    let calls = probes.add(SyscallProbe::builder()).unwrap();
    let snapshot = probes.reset().unwrap();
    let (of_cpu, of_calls) =
        (snapshot.of(cpu).to_snapshot().window, snapshot.of(calls).to_snapshot().window);
    assert_eq!((of_cpu, of_cpu.start_ns), (snapshot.window, start));
    assert!(of_calls.start_ns > start && of_calls.end_ns == snapshot.window.end_ns);
    let mut end = snapshot.window.end_ns;
    let mut intervals = probes.intervals(Duration::from_millis(50));
    for _ in 0..3 {
        let snapshot = intervals.next().unwrap().unwrap().snapshot;
        assert_eq!(snapshot.window.start_ns, end);
        assert_eq!(snapshot.of(calls).to_snapshot().window, snapshot.window);
        end = snapshot.window.end_ns;
    }
    let mut probes = intervals.into_inner();
    probes.remove(cpu).unwrap();
    assert!(probes.snapshot().unwrap().process(std::process::id()).unwrap().get(calls).is_some());
}
