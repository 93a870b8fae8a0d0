//! Memory of processes that end, begin again, share and change.

use std::{thread::sleep, time::Duration};

use ebpfmetrics::{
    CpuProbe, Filter, MemProbe, MemUsage, Probe as _, ProbeSet, Process,
    mem::{MemPeaks, MemSnapshot, MemSource},
};
use ebpfmetrics_suite::{
    Kernel, MemStatus, MemoryLimit, Workload, kernel, poll, smaps_rollup, statm_size, support,
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
fn final_row(probe: &mut MemProbe, pid: u32) -> Process<MemUsage> {
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
    // Peaks and marks are those of the new address space.
    assert!(usage.resident_peak_bytes.unwrap() < 50_000 << 10, "{usage:?}");
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
fn beyond_the_bound_the_exited_are_counted_together() {
    let mut worker = worker();
    let _busy = keep_cpus_busy();
    let filter = Filter::Tree(worker.pid());
    let probe = MemProbe::builder().address_space(true).max_exited(8).filter(filter);
    let mut probe = probe.load().unwrap();
    probe.reset().unwrap();
    let mut faults = 0;
    for _ in 0..40 {
        let answer = worker.ask("child-touch 400");
        faults += answer.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    }
    sleep(Duration::from_millis(2500));
    let snapshot = probe.reset().unwrap();
    let mine = |row: &&Process<MemUsage>| {
        row.info.exited && row.info.parent.is_some_and(|parent| parent.pid == worker.pid())
    };
    let listed: Vec<_> = snapshot.processes.iter().filter(mine).collect();
    assert!(listed.len() <= 8, "{} listed", listed.len());
    let counted = listed.len() as u64 + snapshot.overflow.processes;
    assert!((38..=40).contains(&counted), "{counted}: {:?}", snapshot.losses);
    let ours = snapshot.overflow.usage.minor_faults
        + listed.iter().map(|row| row.usage.minor_faults).sum::<u64>();
    assert!(ours >= faults * 95 / 100, "{ours} faults, rusage {faults}");
    assert!(snapshot.overflow.usage.allocated_bytes.unwrap() >= 30 * (400 << 10));
}

/// Where the first process of a machine is hidden from eBPF, so is what an idle CPU
/// works off on its address space: releases among it.
fn keep_cpus_busy() -> Option<Workload> {
    let snapshot = probe().snapshot().unwrap();
    let hides = snapshot.process(1).is_none_or(|row| row.usage.source == MemSource::Procfs);
    hides.then(|| Workload::start(WORKLOAD, &["spin", "2"]))
}

#[test]
fn a_process_that_ebpf_does_not_show_is_read_from_proc() {
    let mut probe = probe();
    let snapshot = probe.snapshot().unwrap();
    let first = snapshot.process(1).expect("every machine has a first process");
    let status = MemStatus::of(1).unwrap();
    let told = snapshot.provenance.sources.iter().any(|source| source.metric == "process 1");
    assert_eq!(told, first.usage.source == MemSource::Procfs);
    if first.usage.source == MemSource::Procfs {
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

/// Case 11: between `vfork` and exec a child runs in the memory of its parent.
#[test]
fn after_exec_peaks_are_those_of_the_new_address_space() {
    let mut probes = ProbeSet::new().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let mem = probes.add(MemProbe::builder()).unwrap();
    // without events of the address space too
    let mut alone = MemProbe::builder().address_space(false).load().unwrap();
    let mut worker = worker();
    worker.ask("map 1 300000");
    worker.ask("touch 1");
    let child: u32 = worker.ask("share-and-exec 400").parse().unwrap();
    let mut read = || {
        let set = probes.reset().unwrap();
        let row = set.processes().find(|row| row.id.pid == child).unwrap();
        assert!(row[cpu].cpu_time < Duration::from_secs(1));
        let of_set = row[mem];
        let of_probe = alone.reset().unwrap().process(child).unwrap().usage;
        [of_set, of_probe]
    };
    for usage in read() {
        assert_eq!(usage.shares_memory_with.unwrap().pid, worker.pid());
        assert!(usage.resident_peak_bytes.unwrap() >= 300_000 << 10, "{usage:?}");
        assert!(usage.resident_high_water_bytes.unwrap() >= 300_000 << 10, "{usage:?}");
    }
    let is_sleep = || {
        let comm = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap();
        (comm.trim() == "sleep").then_some(())
    };
    assert!(poll(Duration::from_secs(5), is_sleep).is_some());
    sleep(Duration::from_millis(200));
    let high_water = MemStatus::of(child).unwrap().high_water;
    for window in 0..2 {
        for usage in read() {
            assert_eq!(usage.shares_memory_with, None);
            let (peak, mark) =
                (usage.resident_peak_bytes.unwrap(), usage.resident_high_water_bytes);
            // before 6.2 the kernel's own mark lacks up to 64 pages of each of three kinds
            let slack = 2 * MIB;
            assert!(peak <= high_water + slack, "window {window}: {usage:?}, VmHWM {high_water}");
            assert!(peak > 0 && mark.unwrap().abs_diff(high_water) <= slack, "{usage:?}");
        }
    }
    kill(child);
}

/// Case 25: the kernel updates its marks when memory shrinks, and at exit it does not.
#[test]
fn the_high_water_mark_at_the_end_is_that_of_rusage() {
    let mut worker = worker();
    // so that other children of the machine take no room
    let filter = || Filter::Tree(worker.pid());
    let mut probes = ProbeSet::builder().filter(filter()).build().unwrap();
    probes.add(CpuProbe::builder()).unwrap();
    let mem = probes.add(MemProbe::builder()).unwrap();
    let mut alone = MemProbe::builder().filter(filter()).load().unwrap();
    let answer = worker.ask(&format!("child-touch {}", 300 << 10));
    let pid: u32 = answer.split_whitespace().next().unwrap().parse().unwrap();
    let truth = worker.ask("children-high-water").parse::<u64>().unwrap() << 10;
    let of_probe = final_row(&mut alone, pid);
    let snapshot = probes.snapshot().unwrap();
    let of_set = snapshot.processes().find(|row| row.id.pid == pid).unwrap();
    for usage in [of_probe.usage, of_set[mem]] {
        let mark = usage.resident_high_water_bytes.unwrap();
        assert!(mark.abs_diff(truth) <= MIB, "{mark}, rusage {truth}: {usage:?}");
        assert!(usage.resident_peak_bytes.unwrap().abs_diff(truth) <= MIB, "{usage:?}");
        // up to 6.12 the memory is gone at the exit: without events of the address space its
        // size is not known
        let virtual_mark = usage.virtual_high_water_bytes;
        assert!(virtual_mark.is_none_or(|mark| mark >= 300 * MIB), "{usage:?}");
        if kernel() >= Kernel(6, 13) {
            assert!(virtual_mark.is_some(), "{usage:?}");
        }
    }
}

/// As above, of a process that earlier reads have seen.
#[test]
fn marks_at_the_end_are_not_below_earlier_ones() {
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    worker.ask("spike 200000 1");
    worker.ask("map 1 1000");
    let before = probe.reset().unwrap().process(pid).unwrap().usage;
    drop(worker);
    let after = final_row(&mut probe, pid).usage;
    assert!(after.resident_high_water_bytes >= before.resident_high_water_bytes, "{after:?}");
    assert!(after.virtual_high_water_bytes >= before.virtual_high_water_bytes, "{after:?}");
    assert!(after.resident_peak_bytes.unwrap() < 100_000 << 10, "{after:?}");
}

/// Case 31: two processes with one memory, both killed for it.
#[test]
fn processes_that_share_memory_have_the_same_peak_when_they_are_killed() {
    let limit = MemoryLimit::new(64 * MIB).expect("a cgroup with a limit on memory");
    let mut probe = probe();
    let mut worker = worker();
    let pid = worker.pid();
    limit.hold(pid).unwrap();
    let child: u32 = worker.ask("share").parse().unwrap();
    worker.ask("map 1 200000");
    worker.tell("touch 1");
    assert_eq!(worker.line(), "", "the kernel kills both");
    drop(worker);
    let rows = [final_row(&mut probe, pid), final_row(&mut probe, child)];
    // the kernel chooses one, and kills both
    let kills: u64 = rows.iter().map(|row| row.usage.oom_kills).sum();
    assert_eq!(kills, 1, "{rows:?}");
    for row in &rows {
        let peak = row.usage.resident_peak_bytes.unwrap();
        assert!((60 * MIB..70 * MIB).contains(&peak), "{peak}: {row:?}");
        assert!(row.usage.resident_high_water_bytes.unwrap() >= 60 * MIB, "{row:?}");
    }
}

/// Peaks of different processes are not added.
#[test]
fn a_sum_of_processes_has_no_peak() {
    let mut probe = probe();
    let _worker = worker();
    let snapshot = probe.snapshot().unwrap();
    for sum in [snapshot.sum(), snapshot.total()] {
        assert_eq!((sum.resident_peak_bytes, sum.virtual_peak_bytes), (None, None));
        assert_eq!((sum.resident_high_water_bytes, sum.virtual_high_water_bytes), (None, None));
        assert!(sum.resident_bytes.unwrap() > MIB && sum.virtual_bytes.unwrap() > MIB);
    }
}

fn kill(pid: u32) {
    #[expect(unsafe_code, reason = "kill(2) of a grandchild that the worker named")]
    // SAFETY: no memory is involved.
    unsafe {
        libc::kill(pid as libc::pid_t, libc::SIGKILL);
    }
}
