//! Memory of several processes: what they hold together at one instant.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::Duration,
};

use ebpfmetrics::{
    Filter, Job, MemProbe, MemUsage, Probe as _,
    group::{ProcessTree, group_by},
    job::Need,
    mem::{FilteredMemory, MemPeaks, MemSnapshot},
};
use ebpfmetrics_suite::{Kernel, MemStatus, Workload, kernel, smaps_rollup};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const MIB: u64 = 1 << 20;

fn worker() -> Workload {
    let mut worker = Workload::start(WORKLOAD, &["memory"]);
    worker.ask("map 0 64");
    worker.ask("faults");
    worker
}

fn probe(filter: Filter) -> MemProbe {
    MemProbe::builder().filter(filter).load().unwrap()
}

fn filtered(snapshot: &MemSnapshot) -> FilteredMemory {
    snapshot.system.filtered.expect("there is a filter")
}

/// Resident bytes by the kernel's own count of the page tables.
fn resident(pids: impl IntoIterator<Item = u32>) -> u64 {
    pids.into_iter().map(|pid| smaps_rollup(pid).unwrap().0).sum()
}

/// How much the peak of so many processes may be off: what CPUs (before 6.2: threads) have not
/// added yet of two kinds of pages.
fn slack(processes: u64) -> u64 {
    processes * 2 * 64 * 4096 * if kernel() < Kernel(6, 2) { 2 } else { 1 }
}

#[track_caller]
fn assert_close(ours: u64, truth: u64, slack: u64) {
    println!("{ours}, truth {truth}: off by {}", ours as i64 - truth as i64);
    assert!(ours.abs_diff(truth) <= slack, "{ours}, truth {truth}, may be off by {slack}");
}

/// Case 08.
#[test]
fn peaks_one_after_another_do_not_add_up() {
    let mut worker = worker();
    let mut probe = probe(Filter::tree(worker.pid()));
    probe.reset().unwrap();
    for _ in 0..17 {
        worker.ask(&format!("child-touch {}", 25 << 10));
    }
    let own = resident([worker.pid()]);
    let snapshot = probe.reset().unwrap();
    let peak = filtered(&snapshot).resident_sum_peak_bytes;
    // a child has a copy of what its parent has
    assert!((25 * MIB + own - slack(2)..25 * MIB + 2 * own + slack(2)).contains(&peak), "{peak}");
    assert_eq!(snapshot.sum().resident_peak_bytes, None);
    // nothing of it is left
    let after = filtered(&probe.reset().unwrap());
    assert_close(after.resident_sum_peak_bytes, own, slack(1));
    assert_eq!(after.resident_sum_high_water_bytes, peak);
}

/// The same of a job that is never read in between.
#[test]
fn the_peak_of_a_job_is_that_of_one_instant() {
    let held = vec![1_u8; 200 << 20]; // of the caller
    let mut command = Command::new(WORKLOAD);
    command.arg("memory").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut job = Job::builder().disk(Need::Off).cpu(Need::Off).spawn(&mut command).unwrap();
    let (child, mut line) = (job.child(), String::new());
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut output = BufReader::new(output);
    let mut ask = |command: &str| {
        writeln!(input, "{command}").unwrap();
        line.clear();
        output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    assert_eq!(ask("faults"), "ready");
    for _ in 0..10 {
        ask(&format!("child-touch {}", 25 << 10));
    }
    // the answers to these are the next lines
    ask(&format!("hold 3 {}", 20 << 10));
    assert_eq!(ask("release").split(' ').count(), 3);
    drop(input);
    let report = job.finish(Duration::from_secs(20)).unwrap();
    assert!(report.is_complete, "{report:?}");
    let memory = report.memory.unwrap();
    let peak = memory.resident_sum_peak_bytes.unwrap();
    assert!((60 * MIB..80 * MIB).contains(&peak), "{memory:?}");
    assert_eq!(held[4096], 1);
}

#[test]
fn memory_that_is_held_at_the_same_time_adds_up() {
    let mut workers = [worker(), worker()];
    let pids = workers.each_ref().map(Workload::pid);
    let mut probe = probe(Filter::processes(pids));
    let base = resident(pids);
    probe.reset().unwrap();
    workers[0].ask("map 1 102400");
    workers[0].ask("touch 1");
    workers[1].ask("spike 51200 1");
    workers[0].ask("unmap 1");
    workers[1].ask("spike 61440 1");
    let first = filtered(&probe.reset().unwrap());
    assert_close(first.resident_sum_peak_bytes, base + 150 * MIB, slack(2));
    // the next window begins with nothing of it
    workers[1].ask("spike 20480 1");
    let second = filtered(&probe.reset().unwrap());
    assert_close(second.resident_sum_peak_bytes, base + 20 * MIB, slack(2));
    assert_eq!(second.resident_sum_high_water_bytes, first.resident_sum_peak_bytes);
    // a window without an event
    workers[0].ask("map 1 10240");
    workers[0].ask("touch 1");
    probe.reset().unwrap();
    let quiet = probe.reset().unwrap();
    let peak = filtered(&quiet).resident_sum_peak_bytes;
    assert_close(peak, resident(pids), slack(2));
    if kernel() >= Kernel(6, 2) {
        assert_eq!(Some(peak), quiet.sum().resident_bytes, "to the page");
    }
}

#[test]
fn the_sum_needs_a_filter_and_peaks() {
    let mut all = MemProbe::builder().load().unwrap();
    assert_eq!(all.snapshot().unwrap().system.filtered, None);
    let filter = Filter::tree(std::process::id());
    let mut off = MemProbe::builder().peaks(MemPeaks::Off).filter(filter).load().unwrap();
    let snapshot = off.snapshot().unwrap();
    assert_eq!(snapshot.system.filtered, None);
    let source = |metric: &str| snapshot.provenance.sources.iter().find(|it| it.metric == metric);
    assert!(source("peak of the filter").unwrap().source.is_none());
}

/// Cases 10 and 08: of an address space that several processes share.
#[test]
fn a_shared_address_space_counts_once() {
    let mut worker = worker();
    let pid = worker.pid();
    let mut of_tree = probe(Filter::tree(pid));
    let mut of_all = MemProbe::builder().load().unwrap();
    let mut tree = ProcessTree::of(pid);
    tree.group(&of_tree.reset().unwrap());
    worker.ask("map 1 102400");
    let guests: Vec<u32> = (0..3).map(|_| worker.ask("share").parse().unwrap()).collect();
    worker.ask("touch 1");
    let snapshot = of_tree.reset().unwrap();
    let truth = resident([pid]);
    // each row has what its process holds
    for pid in guests.iter().copied().chain([pid]) {
        let usage = snapshot.process(pid).unwrap().usage;
        assert_eq!(usage.resident_bytes, Some(truth));
        assert!(usage.resident_peak_bytes.unwrap() >= 100 * MIB);
    }
    let by_comm = group_by(&snapshot, |row| Some(row.info.comm.to_string()));
    let by_pid = group_by(&snapshot, |row| Some(row.id.pid));
    let of_tree_by_parents = tree.group(&snapshot);
    assert_eq!(of_tree_by_parents.members(), 4);
    let group = &by_comm.groups["workload"];
    assert_eq!(group.members(), 4);
    let rows = snapshot.processes.iter().map(|row| &row.usage);
    for (sum, what) in [
        (of_tree_by_parents.usage, "tree"),
        (of_tree_by_parents.total, "tree, total"),
        (group.usage, "group"),
        (group.total, "group, total"),
        (by_comm.sum(), "all groups"),
        (by_pid.sum(), "all groups of one"),
        (snapshot.sum(), "snapshot"),
        (snapshot.total(), "total"),
        (rows.sum::<MemUsage>(), "rows"),
    ] {
        assert_eq!(sum.resident_bytes, Some(truth), "{what}");
    }
    assert_close(filtered(&snapshot).resident_sum_peak_bytes, truth, slack(1));
    let machine = of_all.snapshot().unwrap();
    let twice: u64 = machine.processes.iter().filter_map(|row| row.usage.resident_bytes).sum();
    let guests_have: u64 = (machine.processes.iter())
        .filter(|row| row.usage.shares_memory_with.is_some())
        .filter_map(|row| row.usage.resident_bytes)
        .sum();
    assert!(guests_have >= 300 * MIB);
    for sum in [machine.sum(), machine.total(), group_by(&machine, |row| row.info.uid).sum()] {
        assert_eq!(sum.resident_bytes, Some(twice - guests_have));
    }
}

#[test]
fn exec_replaces_what_a_process_held() {
    let mut workers = [worker(), worker()];
    let pids = workers.each_ref().map(Workload::pid);
    workers[0].ask("map 1 102400");
    workers[0].ask("touch 1");
    let mut probe = probe(Filter::processes(pids));
    probe.reset().unwrap();
    let before = resident(pids);
    workers[0].ask("exec");
    workers[1].ask("spike 81920 1");
    let peak = filtered(&probe.reset().unwrap()).resident_sum_peak_bytes;
    assert_close(peak, before, slack(3));
    // and in a window that does not begin with it
    workers[0].ask("map 1 51200");
    workers[1].ask("spike 81920 1");
    let peak = filtered(&probe.reset().unwrap()).resident_sum_peak_bytes;
    assert_close(peak, resident(pids) + 80 * MIB, slack(3));
}

/// Errors must not add up between two reads: the peak after thousands of processes is as exact
/// as that after none.
#[test]
fn the_sum_does_not_drift() {
    for peaks in [MemPeaks::Folded, MemPeaks::PageExact] {
        let mut worker = worker();
        let filter = Filter::tree(worker.pid());
        let mut probe = MemProbe::builder().peaks(peaks).filter(filter).load().unwrap();
        for rounds in [0, 25, 250] {
            probe.reset().unwrap();
            worker.ask(&format!("churn {rounds} {}", 8 << 20 >> 10));
            let pids = worker.ask(&format!("hold 4 {}", 30 << 10));
            let pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
            let truth = resident(pids.iter().copied().chain([worker.pid()]));
            worker.ask("release");
            let snapshot = probe.reset().unwrap();
            println!("{peaks:?}, {rounds} rounds, {:?}", snapshot.losses.total());
            assert_close(filtered(&snapshot).resident_sum_peak_bytes, truth, slack(5));
        }
        // at rest
        let rest = probe.reset().unwrap();
        let own = MemStatus::of(worker.pid()).unwrap().resident();
        assert_close(filtered(&rest).resident_sum_peak_bytes, own, slack(1));
    }
}

/// One whose process moved into the filter's cgroup, or out of it.
#[test]
fn what_moves_between_cgroups_counts_where_it_is() {
    let limit = ebpfmetrics_suite::MemoryLimit::new(900 * MIB).expect("a memory cgroup");
    let mut workers = [worker(), worker()];
    let pids = workers.each_ref().map(Workload::pid);
    let id = std::os::unix::fs::MetadataExt::ino(&fs::metadata(limit.path()).unwrap());
    let hierarchy = limit.hierarchy();
    let builder = MemProbe::builder().filter(Filter::cgroup(id)).cgroup_hierarchy(hierarchy);
    let mut probe = builder.load().unwrap();
    assert_eq!(filtered(&probe.reset().unwrap()).resident_sum_peak_bytes, 0);
    for worker in &mut workers {
        worker.ask("map 1 51200");
        worker.ask("touch 1");
    }
    limit.hold(pids[0]).unwrap();
    // it counts at the latest from its next page on
    workers[0].ask("spike 1024 1");
    let first = resident([pids[0]]);
    let peak = filtered(&probe.reset().unwrap()).resident_sum_peak_bytes;
    assert_close(peak, first + MIB, slack(1));
    // one comes, and one goes
    limit.hold(pids[1]).unwrap();
    probe.reset().unwrap();
    let both = filtered(&probe.reset().unwrap()).resident_sum_peak_bytes;
    assert_close(both, resident(pids), slack(2));
    limit.release(pids[0]).unwrap();
    probe.reset().unwrap();
    workers[1].ask("spike 10240 1");
    let peak = filtered(&probe.reset().unwrap()).resident_sum_peak_bytes;
    assert_close(peak, resident([pids[1]]) + 10 * MIB, slack(2));
}
