//! The identity of processes: user, parent, creator, threads, pids and clocks.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use ebpfmetrics::{CpuProbe, Filter, Probe as _, ProbeSet, group::ProcessTree};
use ebpfmetrics_suite::{Overlay, Workload, poll, room_for_tasks, skip};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// Case 06. The thread that calls exec gets the leader's id, and keeps its counters.
#[test]
fn threads_never_sum_to_more_than_a_process_that_one_of_them_executes() {
    let mut probe = CpuProbe::builder().threads(true).load().unwrap();
    let mut work = Workload::start_without_waiting(WORKLOAD, &["exec-by-thread", "200"]);
    let pid: u32 = work.line().parse().unwrap();
    let mut sum = Duration::ZERO;
    for window in 0..40 {
        sleep(Duration::from_millis(25));
        let is_reset = window % 2 == 0;
        let snapshot = if is_reset { probe.reset() } else { probe.snapshot() }.unwrap();
        let row = snapshot.process(pid).unwrap();
        let of_it = snapshot.system.threads.iter().filter(|thread| thread.process == row.id);
        let threads: Duration = of_it.map(|thread| thread.usage.cpu_time).sum();
        let length = snapshot.window.duration();
        let listed: Vec<_> =
            snapshot.system.threads.iter().filter(|it| it.process == row.id).collect();
        assert!(
            threads <= row.usage.cpu_time,
            "{window} {threads:?} of {row:?} {listed:?} {length:?}"
        );
        assert!(row.usage.cpu_time <= 2 * length, "{row:?} in {length:?}");
        sum += if is_reset { row.usage.cpu_time } else { Duration::ZERO };
    }
    assert_eq!(work.line(), "done");
    sleep(Duration::from_millis(50));
    let last = probe.reset().unwrap();
    let row = last.process(pid).unwrap();
    sum += row.usage.cpu_time;
    assert_eq!(sum, row.total.cpu_time);
    // the second spin counts the first: the clock of the process goes on
    assert!((Duration::from_millis(390)..Duration::from_millis(700)).contains(&sum), "{sum:?}");
}

/// Case 07. The parent is init or a subreaper by then; the creator is not.
#[test]
fn the_grandchild_of_a_double_fork_belongs_to_the_tree() {
    let mut work = Workload::start(WORKLOAD, &["double-fork", "300"]);
    let mut all = CpuProbe::builder().load().unwrap();
    let mut filtered = CpuProbe::builder().filter(Filter::tree(work.pid())).load().unwrap();
    let mut tree = ProcessTree::of(work.pid());
    tree.group(&all.reset().unwrap());
    let grandchild: u32 = work.ask("go").parse().unwrap();
    sleep(Duration::from_millis(1000));
    let snapshot = all.reset().unwrap();
    let group = tree.group(&snapshot);
    let row = snapshot.process(grandchild).unwrap();
    let creator = row.info.creator.unwrap();
    assert_ne!(row.info.parent.unwrap(), creator);
    let child = snapshot.processes.iter().find(|row| row.id == creator).unwrap();
    assert!(child.info.exited);
    assert_eq!(child.info.creator.unwrap().pid, work.pid());
    assert!(tree.contains(row.id) && tree.contains(creator));
    assert!(row.usage.cpu_time >= Duration::from_millis(250), "{row:?}");
    assert!(group.usage.cpu_time >= row.usage.cpu_time, "{group:?}");
    let in_kernel = filtered.reset().unwrap();
    let ids = |rows: &[ebpfmetrics::Process<ebpfmetrics::CpuUsage>]| {
        rows.iter().map(|row| row.id).filter(|id| tree.contains(*id)).collect::<Vec<_>>()
    };
    assert_eq!(ids(&in_kernel.processes), ids(&snapshot.processes));
    assert_eq!(in_kernel.process(grandchild).unwrap().info.creator, Some(creator));
}

/// Case 15. An overlay lends a caller the credentials of its mounter.
#[test]
fn the_user_of_a_process_on_an_overlay_is_its_own() {
    let overlay = match Overlay::mount() {
        Ok(overlay) => overlay,
        Err(error) => return skip("overlay_uid", &format!("no overlay file system: {error}")),
    };
    let directory = overlay.path();
    let directory = directory.to_str().unwrap();
    let work = Workload::start(WORKLOAD, &["on-overlay", directory]);
    let mut probe = CpuProbe::builder().load().unwrap();
    let mut wrong = 0;
    for _ in 0..60 {
        sleep(Duration::from_millis(7));
        let snapshot = probe.snapshot().unwrap();
        wrong += u32::from(snapshot.process(work.pid()).unwrap().info.uid != Some(1000));
    }
    assert_eq!(wrong, 0, "of 60 readings");
    work.kill();
}

/// As case 15, on any file system: acting as another user is not being one.
#[test]
fn the_user_of_a_process_is_the_real_one() {
    let work = Workload::start(WORKLOAD, &["switch-user"]);
    let mut probe = ProbeSet::new().unwrap();
    let snapshot = probe.snapshot().unwrap();
    assert_eq!(snapshot.process(work.pid()).unwrap().info.uid, Some(0));
}

/// Case 23. What has ended is kept until it is read, however many zombies there are.
#[test]
fn exits_beside_ten_thousand_zombies_are_known() {
    let mut probe = CpuProbe::builder().load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["zombies", &room_for_tasks(10_000).to_string()]);
    probe.reset().unwrap();
    for _ in 0..2 {
        let late = work.ask("more");
        let snapshot = probe.reset().unwrap();
        let mut skipped = 0;
        for pid in late.split(' ').map(|pid| pid.parse::<u32>().unwrap()) {
            let Some(row) = snapshot.process(pid) else {
                // Its exit was not seen. Its row comes with the record of its release.
                let released = poll(Duration::from_secs(2), || {
                    probe.snapshot().unwrap().process(pid).map(|row| row.usage.cpu_time)
                });
                assert!(released >= Some(Duration::from_millis(2)), "{pid}: {released:?}");
                skipped += 1;
                continue;
            };
            assert!(row.info.exited);
            assert_eq!(row.info.uid, Some(1000));
            match row.info.parent {
                Some(parent) => assert_eq!(parent.pid, work.pid()),
                None => skipped += 1,
            }
            assert_eq!(row.info.creator.unwrap().pid, work.pid());
            assert!(row.info.cgroup_id.is_some());
            assert!(row.usage.cpu_time >= Duration::from_millis(2), "{row:?}");
        }
        // Since 7.0 a program can be preempted, and does not run within itself on that CPU.
        assert!(Some(skipped) <= snapshot.losses.get("run_skipped"), "{skipped} were not seen");
        assert_eq!(snapshot.losses.get("ended_table_full"), Some(0));
    }
}

/// Case 03. A reader in a time namespace has other clocks than the kernel's.
#[test]
fn a_reader_in_a_time_namespace_sees_all_that_ends() {
    let line = Workload::start_without_waiting(WORKLOAD, &["in-time-namespace", "1000"]).line();
    if let Some(reason) = line.strip_prefix("no ") {
        return skip("time_namespace", reason);
    }
    let figures: BTreeMap<&str, &str> =
        line.split(' ').filter_map(|figure| figure.split_once('=')).collect();
    assert_eq!(
        (figures["ended"], figures["right_start"], figures["in_window"]),
        ("40", "40", "40"),
        "{line}"
    );
    let (ours, truth): (u64, u64) =
        (figures["ours_ns"].parse().unwrap(), figures["truth_ns"].parse().unwrap());
    assert!(ours.abs_diff(truth) <= truth / 100 + 40_000, "{line}");
}

/// Case 21. A CPU that is offline is not idle.
#[test]
fn a_cpu_that_goes_offline_is_not_counted_as_idle() {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    struct Online;
    impl Drop for Online {
        fn drop(&mut self) {
            let _ = std::fs::write(ONLINE, "1");
        }
    }
    let mut probe = CpuProbe::builder().load().unwrap();
    let before = probe.snapshot().unwrap().system.online_cpus;
    let online = Online;
    if let Err(error) = std::fs::write(ONLINE, "0") {
        return skip("cpu_offline", &format!("{ONLINE}: {error}"));
    }
    probe.reset().unwrap();
    sleep(Duration::from_millis(1000));
    let snapshot = probe.reset().unwrap();
    assert_eq!(snapshot.system.online_cpus, before - 1);
    let one = snapshot.system.cpus.iter().find(|cpu| cpu.cpu == 1);
    let idle = one.and_then(|cpu| cpu.idle).unwrap_or_default();
    assert!(idle < Duration::from_millis(50), "{one:?}");
    drop(online);
    let back = poll(Duration::from_secs(2), || {
        (probe.snapshot().unwrap().system.online_cpus == before).then_some(())
    });
    assert!(back.is_some());
}
