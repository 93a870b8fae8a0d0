//! Memory of processes that end, begin again, share and change.

use std::{thread::sleep, time::Duration};

use ebpfmetrics::{MemPeaks, MemProbe, MemProcess, MemSnapshot, MemSource, Probe as _};
use ebpfmetrics_suite::{
    MemStatus, MemoryLimit, Workload, poll, smaps_rollup, statm_size, support,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const MIB: u64 = 1 << 20;

fn probe() -> MemProbe {
    MemProbe::builder().address_space(true).load().unwrap()
}

fn worker() -> Workload {
    let mut worker = Workload::start(WORKLOAD, &["memory"]);
    worker.ask("map 0 64");
    worker.ask("faults");
    worker
}

/// The final row of a process; it comes an RCU grace period after the end, or, where
/// a machine hides it, by a time-out of 2 s.
fn final_row(probe: &mut MemProbe, pid: u32) -> MemProcess {
    let find = |probe: &mut MemProbe| {
        let rows = probe.snapshot().unwrap().processes;
        rows.into_iter().find(|row| row.info.exited && row.id.pid == pid)
    };
    let row = poll(Duration::from_secs(8), || find(probe));
    row.unwrap_or_else(|| panic!("no final row of {pid}"))
}

#[test]
fn a_process_that_lived_and_died_between_two_reads_has_its_peak_and_faults() {
    let mut probe = probe();
    let mut worker = worker();
    for mib in [64, 8, 1] {
        probe.reset().unwrap();
        let answer = worker.ask(&format!("child-touch {}", mib << 10));
        let numbers: Vec<u64> =
            answer.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let (pid, minor) = (numbers[0] as u32, numbers[1]);
        let row = final_row(&mut probe, pid);
        let peak = row.usage.resident_peak_bytes.unwrap();
        println!("{mib} MiB: peak {peak}, {} faults, rusage {minor}", row.usage.minor_faults);
        // It touched so much, beside the few pages of a forked process.
        assert!(peak >= mib * MIB && peak <= mib * MIB + 4 * MIB, "{peak}: {row:?}");
        assert!(row.usage.virtual_peak_bytes.unwrap() >= mib * MIB, "{row:?}");
        // rusage was read by the child itself, which faults on its last steps too
        let last_steps = 0..=64;
        assert!(last_steps.contains(&(row.usage.minor_faults - minor)), "{row:?}");
        assert_eq!(row.info.comm, "workload");
        assert_eq!(row.info.parent.unwrap().pid, worker.pid());
        assert_eq!(row.usage.resident_bytes, Some(0), "it holds nothing any more");
        assert!(row.usage.allocated_bytes.unwrap() >= mib * MIB, "{row:?}");
    }
}

#[test]
fn exec_begins_a_new_address_space_and_the_sum_still_holds() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    worker.ask("map 1 100000");
    worker.ask("touch 1");
    probe.reset().unwrap();
    let base = statm_size(pid);
    worker.ask("exec");
    worker.ask("map 1 1000");
    let snapshot = probe.snapshot().unwrap();
    let usage = snapshot.process(pid).unwrap().usage;
    let size = statm_size(pid);
    let (taken, given) = (usage.allocated_bytes.unwrap(), usage.deallocated_bytes.unwrap());
    assert_eq!(base + taken - given, size, "{usage:?}");
    assert!(given >= base, "all of the old one was given back: {usage:?}");
    // The peak is that of the process, the mark of the kernel that of the new program.
    assert!(usage.resident_peak_bytes.unwrap() >= 100_000 << 10, "{usage:?}");
    assert!(usage.resident_high_water_bytes.unwrap() < 50_000 << 10, "{usage:?}");
}

#[test]
fn a_forked_process_is_followed_from_its_first_step() {
    let mut probe = probe();
    let mut worker = worker();
    worker.ask("map 1 20000");
    probe.reset().unwrap();
    let answer = worker.ask("child-touch 4000");
    let pid = answer.split_whitespace().next().unwrap().parse().unwrap();
    let row = final_row(&mut probe, pid);
    assert_eq!(row.usage.allocated_bytes.unwrap(), 4000 << 10, "{row:?}");
    assert_eq!(row.usage.allocations, Some(1), "{row:?}");
    assert_eq!(row.usage.deallocations, Some(0), "exit does not count: {row:?}");
}

#[test]
fn a_leader_that_exits_before_its_threads_still_shows_what_they_hold() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    worker.ask("map 1 50000");
    worker.ask("touch 1");
    worker.ask("leader-exits");
    worker.ask("map 2 30000");
    worker.ask("touch 2");
    let snapshot = probe.snapshot().unwrap();
    let usage = snapshot.process(pid).unwrap().usage;
    // /proc/PID/status shows nothing any more, its smaps neither: only the threads know
    assert_eq!(smaps_rollup(pid), None);
    let resident = usage.resident_anon_bytes.unwrap();
    assert!((80_000 << 10..90_000 << 10).contains(&resident), "{usage:?}");
    assert!(usage.virtual_bytes.unwrap() > 80_000 << 10, "{usage:?}");
}

#[test]
fn a_zombie_holds_nothing() {
    let mut probe = probe();
    let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 0"]).spawn().unwrap();
    let pid = child.id();
    let zombie = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") Z ").then_some(())
    };
    assert!(poll(Duration::from_secs(5), zombie).is_some());
    let snapshot = probe.snapshot().unwrap();
    let row = snapshot.process(pid).unwrap();
    assert!(!row.info.exited && !row.info.kernel_thread);
    assert_eq!(row.usage.resident_bytes, Some(0));
    assert_eq!(row.usage.virtual_bytes, Some(0));
    child.wait().unwrap();
}

#[test]
fn who_was_killed_for_want_of_memory_is_told() {
    let limit = MemoryLimit::new(64 * MIB).expect("a cgroup with a limit on memory");
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    limit.hold(pid).unwrap();
    worker.ask("map 1 200000");
    worker.tell("touch 1");
    assert_eq!(worker.line(), "", "the kernel kills it");
    let row_pid = worker.pid();
    drop(worker);
    let row = final_row(&mut probe, row_pid);
    assert_eq!(row.usage.oom_kills, 1, "{row:?}");
    assert_eq!(row.info.comm, "workload");
    let snapshot = probe.reset().unwrap();
    let killed: Vec<_> = snapshot.oom_killed().map(|row| row.id.pid).collect();
    assert_eq!(killed, [pid]);
    assert_eq!(snapshot.total().oom_kills, 1);
    // told once
    let again = probe.reset().unwrap();
    assert_eq!(again.oom_killed().count(), 0);
    support("mem.oom_victim", true, "signal->oom_mm");
}

/// Counters of those beyond the bound are in the sum, in the kernel and here.
#[test]
fn beyond_the_bound_the_exited_are_folded() {
    let mut probe = MemProbe::builder().address_space(true).max_exited(8).load().unwrap();
    let mut worker = worker();
    let _busy = keep_cpus_busy(&mut probe);
    probe.reset().unwrap();
    let mut faults = 0;
    for _ in 0..40 {
        let answer = worker.ask("child-touch 400");
        faults += answer.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    }
    sleep(Duration::from_millis(2500));
    let snapshot = probe.reset().unwrap();
    let mine = |row: &&MemProcess| {
        row.info.exited && row.info.parent.is_some_and(|parent| parent.pid == worker.pid())
    };
    let listed: Vec<_> = snapshot.processes.iter().filter(mine).collect();
    assert!(listed.len() <= 8, "{} listed", listed.len());
    let counted = listed.len() as u64 + snapshot.folded.processes;
    // others of the machine end too
    assert!((38..80).contains(&counted), "{counted}: {:?}", snapshot.losses);
    let ours = snapshot.folded.usage.minor_faults
        + listed.iter().map(|row| row.usage.minor_faults).sum::<u64>();
    assert!(ours >= faults * 95 / 100, "{ours} faults, rusage {faults}");
    assert!(snapshot.folded.usage.allocated_bytes.unwrap() >= 30 * (400 << 10));
}

/// Where the first process of a machine is hidden from eBPF, so is what an idle CPU
/// works off on its address space: releases among it.
fn keep_cpus_busy(probe: &mut MemProbe) -> Option<Workload> {
    let snapshot = probe.snapshot().unwrap();
    let hides = snapshot.process(1).is_none_or(|row| row.source == MemSource::Procfs);
    hides.then(|| Workload::start(WORKLOAD, &["spin", "2"]))
}

#[test]
fn a_process_that_ebpf_does_not_show_is_read_from_proc() {
    let mut probe = probe();
    let snapshot = probe.snapshot().unwrap();
    let first = snapshot.process(1).expect("every machine has a first process");
    let status = MemStatus::of(1).unwrap();
    let told = snapshot.provenance.sources.iter().any(|source| source.metric == "process 1");
    assert_eq!(told, first.source == MemSource::Procfs);
    if first.source == MemSource::Procfs {
        assert_eq!(first.usage.virtual_bytes, Some(status.size));
        assert_eq!(first.usage.allocations, None);
        assert!(first.usage.resident_bytes.unwrap() > 0);
    }

    // the same for all processes outside of the reader's namespace
    let worker = worker();
    let mut reader =
        Workload::start_without_waiting(WORKLOAD, &["load", "pid-namespace-foreign-proc"]);
    let answer = reader.line();
    let resident: u64 = answer.split_whitespace().next().unwrap().parse().unwrap();
    assert!(resident > MIB, "{answer}");
    assert!(answer.contains(" Procfs ") && answer.contains("other PID namespaces"), "{answer}");
    drop(worker);
}

#[test]
fn peaks_may_be_left_out() {
    let mut probe = MemProbe::builder().peaks(MemPeaks::Off).address_space(false).load().unwrap();
    let mut worker = worker();
    let pid = worker.pid();
    worker.ask("spike 100000 1");
    let usage = |snapshot: MemSnapshot| snapshot.process(pid).unwrap().usage;
    // the highest ever: the kernel knows by itself
    let first = usage(probe.reset().unwrap());
    assert!(first.resident_peak_bytes.unwrap() >= 100_000 << 10, "{first:?}");
    worker.ask("spike 50000 1");
    let second = usage(probe.reset().unwrap());
    assert_eq!(second.resident_peak_bytes, None, "{second:?}");
    assert_eq!((second.virtual_peak_bytes, second.allocations), (None, None), "{second:?}");
    assert!(second.minor_faults > 0 && second.resident_bytes.unwrap() > 0);
}

#[test]
fn windows_touch_and_begin_with_what_is_held() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    worker.ask("map 1 40000");
    let before = worker.ask("faults");
    let mut faults = -before.split_whitespace().next().unwrap().parse::<i64>().unwrap();
    let mut end = probe.reset().unwrap().window.end_ns;
    for _ in 0..5 {
        worker.ask("touch 1");
        worker.ask("drop-pages 1");
        let snapshot = probe.reset().unwrap();
        assert_eq!(snapshot.window.start_ns, end);
        let usage = snapshot.process(pid).unwrap().usage;
        assert!(usage.resident_peak_bytes.unwrap() > 40_000 << 10, "{usage:?}");
        faults -= usage.minor_faults as i64;
        let idle = probe.reset().unwrap();
        end = idle.window.end_ns;
        let idle = idle.process(pid).unwrap().usage;
        assert_eq!(idle.resident_peak_bytes, idle.resident_bytes);
        assert_eq!((idle.minor_faults, idle.allocations), (0, Some(0)));
    }
    let after = worker.ask("faults");
    faults += after.split_whitespace().next().unwrap().parse::<i64>().unwrap();
    assert_eq!(faults, 0, "the windows have all there were");
}

#[test]
fn two_probes_do_not_disturb_each_other() {
    let mut one = probe();
    let mut other = probe();
    let mut worker = worker();
    let pid = worker.pid();
    other.reset().unwrap();
    worker.ask("spike 80000 1");
    for _ in 0..3 {
        one.reset().unwrap();
    }
    let peak = |probe: &mut MemProbe| {
        probe.snapshot().unwrap().process(pid).unwrap().usage.resident_peak_bytes.unwrap()
    };
    assert!(peak(&mut one) < 40_000 << 10);
    assert!(peak(&mut other) >= 80_000 << 10);
}

#[test]
fn a_table_that_is_too_small_is_counted() {
    let mut probe = MemProbe::builder().address_space(true).max_tracked(1).load().unwrap();
    let mut workers: Vec<_> = (0..4).map(|_| worker()).collect();
    for worker in &mut workers {
        worker.ask("spike 10000 1");
    }
    let snapshot = probe.reset().unwrap();
    assert!(snapshot.losses.get("track_table_full").unwrap() > 0, "{:?}", snapshot.losses);
    assert!(snapshot.losses.check().is_err());
}
