//! What ends, waits or is read late is in the right window, once, and no figure exceeds its
//! window.

use std::{collections::HashMap, thread::sleep, time::Duration};

use ebpfmetrics::{
    CpuProbe, Probe as _, ProcessId,
    cpu::{CpuAccounting, CpuSnapshot},
};
use ebpfmetrics_suite::{
    Workload, emulated, fork_with_pid, poll, process_cpu_ns, room_for_tasks, wait_for,
    wait_for_settled,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

fn burn(ms: u64) {
    let start = process_cpu_ns(std::process::id()).unwrap();
    while process_cpu_ns(std::process::id()).unwrap() - start < ms * 1_000_000 {}
}

/// Cases 01 and 28: a child that was just waited for, 20 of 20.
#[test]
fn a_child_that_was_waited_for_has_its_row_at_once() {
    for accounting in [CpuAccounting::Ledger, CpuAccounting::SchedSwitch] {
        let mut probe = CpuProbe::builder().accounting(accounting).load().unwrap();
        for round in 0..20 {
            // in the odd rounds the child has left its CPU before it is waited for
            let is_settled = round % 2 == 1;
            let pid = fork_with_pid(None, || burn(40)).unwrap();
            let truth_ns = if is_settled { wait_for_settled(pid) } else { wait_for(pid) }.unwrap();
            let snapshot = probe.reset().unwrap();
            let row = snapshot.process(pid);
            let row = row.unwrap_or_else(|| panic!("{accounting:?} {round}: no row"));
            let ours_ns = row.usage.cpu_time.as_nanos() as u64;
            assert!(row.info.exited, "{row:?}");
            // A machine that hides its first process hides some last switches too.
            let hides = probe.health().unwrap().degraded.iter().any(|it| it.feature == "process 1");
            if hides && accounting == CpuAccounting::SchedSwitch {
                continue;
            }
            // what an emulated machine takes from the rusage to the end of the child
            let moments_ns = if emulated() && !is_settled { 10_000_000 } else { 0 };
            let least = truth_ns - truth_ns / 100;
            let most = truth_ns + truth_ns / 100 + moments_ns;
            assert!(
                (least..=most).contains(&ours_ns),
                "{accounting:?} {round}: {ours_ns} ns, rusage {truth_ns} ns"
            );
            assert_eq!(snapshot.losses.get("exit_record_missing"), Some(0));
        }
    }
}

/// The last slice of a command that is read while it runs (case 01).
#[test]
fn a_command_that_is_read_while_it_runs_adds_up() {
    let mut probe = CpuProbe::builder().load().unwrap();
    for ms in [15, 130, 310] {
        let reader = std::thread::spawn(move || {
            let mut rows: HashMap<ProcessId, Duration> = HashMap::new();
            let mut take = |snapshot: CpuSnapshot| {
                for row in &snapshot.processes {
                    *rows.entry(row.id).or_default() += row.usage.cpu_time;
                }
            };
            for _ in 0..12 {
                sleep(Duration::from_millis(50));
                take(probe.reset().unwrap());
            }
            (probe, rows)
        });
        let mut work = Workload::start(WORKLOAD, &["children", "1", &(ms * 1000).to_string()]);
        let truth_ns: u64 = work.line().parse().unwrap();
        let (read, rows) = reader.join().unwrap();
        probe = read;
        let of_it = rows.iter().filter(|(_, time)| {
            time.as_nanos().abs_diff(u128::from(truth_ns)) <= u128::from(truth_ns) / 100
        });
        assert!(of_it.count() >= 1, "no process used {truth_ns} ns: {rows:?}");
    }
}

/// Sums the rows of the children of a process over windows until it says what they used.
fn read_until_reaped(work: &mut Workload, probe: &mut CpuProbe, window: Duration) -> u64 {
    work.tell("go");
    let mut line = String::new();
    let mut ours_ns = 0;
    let mut rows: HashMap<ProcessId, u64> = HashMap::new();
    let pid = work.pid();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| work.line());
        let mut after = 0;
        while after < 5 {
            sleep(window);
            after += u32::from(reader.is_finished());
            let snapshot = probe.reset().unwrap();
            let length = snapshot.window.duration();
            let children = snapshot.processes.iter();
            for row in children.filter(|row| row.info.creator.is_some_and(|it| it.pid == pid)) {
                assert!(row.usage.cpu_time <= length, "{row:?} in {length:?}");
                ours_ns += row.usage.cpu_time.as_nanos() as u64;
                *rows.entry(row.id).or_default() += row.usage.cpu_time.as_nanos() as u64;
            }
            assert_eq!(snapshot.losses.get("exit_record_missing"), Some(0));
        }
        line = reader.join().unwrap();
    });
    let truth_ns: u64 = line.parse().unwrap();
    // rusage cuts to us, twice per child
    assert!(
        ours_ns >= truth_ns && ours_ns <= truth_ns + truth_ns / 100 + rows.len() as u64 * 2_000,
        "{ours_ns} ns in {} rows, rusage {truth_ns} ns",
        rows.len()
    );
    rows.len() as u64
}

/// Case 30: the children's time was reported again when they were reaped.
#[test]
fn children_that_are_reaped_late_are_reported_once() {
    for (window, pause_ms) in [(1000, "25"), (20, "5")] {
        let mut probe = CpuProbe::builder().load().unwrap();
        let mut work =
            Workload::start_without_waiting(WORKLOAD, &["reap-late", "60", "20000", pause_ms]);
        let window = Duration::from_millis(window);
        assert_eq!(work.line(), "ended");
        // their windows have passed before they are reaped
        let mut before = HashMap::new();
        for _ in 0..3 {
            sleep(Duration::from_millis(1000));
            for row in probe.reset().unwrap().processes {
                *before.entry(row.id).or_insert(Duration::ZERO) += row.usage.cpu_time;
            }
        }
        let again = again_after(&mut work, &mut probe, window, &before);
        assert!(again < 60 * 50_000, "{again} ns reported again");
    }
}

/// What is reported of children after they have been reported.
fn again_after(
    work: &mut Workload,
    probe: &mut CpuProbe,
    window: Duration,
    before: &HashMap<ProcessId, Duration>,
) -> u64 {
    work.tell("go");
    let pid = work.pid();
    let mut again = 0;
    let mut rows: HashMap<ProcessId, Duration> = HashMap::new();
    let truth_ns: u64 = std::thread::scope(|scope| {
        let reader = scope.spawn(|| work.line());
        let mut after = 0;
        while after < 4 {
            sleep(window);
            after += u32::from(reader.is_finished());
            let snapshot = probe.reset().unwrap();
            assert_eq!(snapshot.losses.get("exit_record_missing"), Some(0));
            for row in snapshot.processes {
                if row.info.parent.is_some_and(|parent| parent.pid == pid) {
                    again += row.usage.cpu_time.as_nanos() as u64;
                    *rows.entry(row.id).or_default() += row.usage.cpu_time;
                }
            }
        }
        reader.join().unwrap().parse().unwrap()
    });
    let sum: Duration = rows.iter().map(|(id, time)| *time + before[id]).sum();
    let sum = sum.as_nanos() as u64;
    assert_eq!(rows.len(), 60);
    assert!(sum.abs_diff(truth_ns) <= truth_ns / 100, "{sum} ns, rusage {truth_ns} ns");
    again
}

#[test]
fn two_thousand_zombies_are_reported_once() {
    let mut probe = CpuProbe::builder().load().unwrap();
    let mut work = Workload::start_without_waiting(WORKLOAD, &["reap-late", "2000", "300", "0"]);
    assert_eq!(work.line(), "ended");
    // all are zombies of the first window
    let rows = read_until_reaped(&mut work, &mut probe, Duration::from_millis(20));
    assert_eq!(rows, 2000);
}

/// Case 05: a wait in progress counts in the window in which it goes on.
#[test]
fn a_process_that_starves_waits_in_every_window() {
    let mut work = Workload::start_without_waiting(WORKLOAD, &["starving"]);
    let pid: u32 = work.line().parse().unwrap();
    let mut probe = CpuProbe::builder().load().unwrap();
    sleep(Duration::from_millis(300));
    probe.reset().unwrap();
    for _ in 0..15 {
        sleep(Duration::from_millis(200));
        let snapshot = probe.reset().unwrap();
        let usage = snapshot.process(pid).unwrap().usage;
        let (window, wait) = (snapshot.window.duration(), usage.run_queue_wait.unwrap());
        assert!(wait <= window, "{wait:?} in {window:?}");
        let sum = wait + usage.cpu_time;
        assert!(sum.abs_diff(window) < window / 20, "{usage:?} in {window:?}");
    }
}

/// Case 24: the time of a task is read after the window's end, by a reader that is preempted.
#[test]
fn one_busy_thread_among_sleepers_stays_within_its_window() {
    let mut probe = CpuProbe::builder().threads(true).load().unwrap();
    let work = Workload::start(WORKLOAD, &["among", &room_for_tasks(8000).to_string()]);
    let _load = Workload::start(WORKLOAD, &["spin", "3"]);
    probe.reset().unwrap();
    let (mut sum, mut first) = (Duration::ZERO, None);
    let mut busiest = 0.0_f64;
    for _ in 0..30 {
        sleep(Duration::from_millis(100));
        let snapshot = probe.reset().unwrap();
        let row = snapshot.process(work.pid()).unwrap();
        let window = snapshot.window.duration();
        for thread in &snapshot.system.threads {
            assert!(thread.usage.cpu_time <= window, "{thread:?} in {window:?}");
        }
        assert!(row.usage.cpu_time <= window, "{row:?} in {window:?}");
        assert!(row.usage.run_queue_wait.unwrap() <= window, "{row:?} in {window:?}");
        busiest = busiest.max(row.usage.percent_of_one_cpu(snapshot.window));
        first.get_or_insert(row.total.cpu_time - row.usage.cpu_time);
        sum += row.usage.cpu_time;
    }
    work.stop();
    let end = poll(Duration::from_secs(2), || {
        let row = probe.reset().unwrap().process(work.pid()).unwrap().clone();
        sum += row.usage.cpu_time;
        let truth = Duration::from_nanos(process_cpu_ns(work.pid()).unwrap());
        (sum + first.unwrap() == truth).then_some(())
    });
    assert!(end.is_some(), "{sum:?} is not all that it used; busiest {busiest:.1} %");
}

/// What a process left behind is read until its release. Where a machine hides the release
/// the memory is soon another's: one read in twenty was garbage, cut to the window.
#[test]
fn sleepers_that_are_killed_together_have_used_little() {
    let mut probe = CpuProbe::builder().load().unwrap();
    let work = Workload::start(WORKLOAD, &["among", &room_for_tasks(8000).to_string()]);
    let pid = work.pid();
    work.kill();
    sleep(Duration::from_millis(1500));
    // others take the memory
    let mut others = Workload::start(WORKLOAD, &["children", "1000", "20"]);
    others.line();
    // where CPUs are emulated, they spin long for the lock that all of them exit under
    let most = Duration::from_millis(if emulated() { 400 } else { 20 });
    for _ in 0..2 {
        let snapshot = probe.reset().unwrap();
        for row in snapshot.processes {
            if row.info.creator.is_some_and(|creator| creator.pid == pid) {
                assert!(row.usage.cpu_time < most, "{row:?}");
            }
        }
        sleep(Duration::from_millis(2500));
    }
}
