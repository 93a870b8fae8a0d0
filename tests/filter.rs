//! Filters: probes and sets that measure some processes only.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{self, Command},
    thread::sleep,
    time::Duration,
};

use ebpfmetrics::{
    Cgroups, CpuProbe, CpuUsage, ErrorKind, Event, Events, Filter, Probe as _, ProbeSet, Snapshot,
    cpu::{CpuAccounting, CpuSnapshot, CpuSystem},
    process::CgroupHierarchy,
    snapshot::Handle,
};
use ebpfmetrics_suite::{
    Workload, adopt_orphans, poll, process_cpu_ns, schedstat, wait_for_settled,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

type CpuHandle = Handle<CpuUsage, CpuSystem>;

fn pids_of(snapshot: &Snapshot) -> BTreeSet<u32> {
    snapshot.processes().map(|row| row.id.pid).collect()
}

/// A machine that hides process 1 from eBPF also hides what an idle CPU does on its address
/// space, such as releases.
fn hides_events() -> bool {
    let degraded = ProbeSet::new().unwrap().health().unwrap().degraded;
    degraded.iter().any(|it| it.feature == "process 1")
}

#[test]
fn listed_processes_alone_have_rows_and_theirs_are_right() {
    for accounting in [CpuAccounting::Ledger, CpuAccounting::SchedSwitch] {
        let listed = Workload::start(WORKLOAD, &["spin", "2"]);
        let other = Workload::start(WORKLOAD, &["spin", "1"]);
        let filter = Filter::processes([listed.pid()]);
        let mut probe = CpuProbe::builder().accounting(accounting).filter(filter).load().unwrap();
        let before = schedstat(listed.pid()).unwrap().cpu_ns;
        probe.reset().unwrap();
        sleep(Duration::from_millis(300));
        listed.stop();
        let snapshot = probe.snapshot().unwrap();
        let after = schedstat(listed.pid()).unwrap().cpu_ns;
        let pids: Vec<_> = snapshot.processes.iter().map(|row| row.id.pid).collect();
        assert_eq!(pids, [listed.pid()], "{accounting:?}");
        let ours = snapshot.processes[0].usage.cpu_time.as_nanos() as u64;
        // before was as of the last tick of each thread
        let most = after - before;
        assert!(ours <= most && ours + 40_000_000 >= most, "{ours}, schedstat {most}");
        assert!(!snapshot.system.cpus.is_empty(), "CPUs are not filtered");
        drop(other);
    }
}

#[test]
fn a_tree_in_a_set_has_what_it_starts_and_what_ends() {
    let mut root = Workload::start(WORKLOAD, &["memory"]);
    let _stranger = Workload::start(WORKLOAD, &["spin", "1"]);
    let mut probes = ProbeSet::builder().filter(Filter::tree(root.pid())).build().unwrap();
    let mut children = BTreeSet::new();
    let mut child = |root: &mut Workload| {
        let answer = root.ask("child-touch 2000");
        children.insert(answer.split_whitespace().next().unwrap().parse::<u32>().unwrap());
    };
    // a probe that is added later has the filter of the set
    child(&mut root);
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    for _ in 0..5 {
        child(&mut root);
    }
    let all_ended = poll(Duration::from_secs(8), || {
        let snapshot = probes.snapshot().unwrap();
        let ended = |pid: &u32| snapshot.process(*pid).is_some_and(|row| row.info.exited);
        children.iter().all(ended).then_some(snapshot)
    });
    let snapshot = all_ended.expect("all children, with their ends");
    children.insert(root.pid());
    assert_eq!(pids_of(&snapshot), children);
    assert!(snapshot.process(root.pid()).unwrap()[cpu].cpu_time > Duration::ZERO);
}

/// The way to measure a command completely.
#[test]
fn a_tree_from_this_process_misses_no_child() {
    let filter = Filter::tree(process::id());
    let mut probe = CpuProbe::builder().filter(filter.clone()).load().unwrap();
    let mut probes = ProbeSet::builder().filter(filter).build().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let run = |_| {
        let pid = Command::new("/bin/true").spawn().unwrap().id();
        (pid, wait_for_settled(pid).unwrap())
    };
    let children: Vec<_> = (0..200).map(run).collect();
    let pids: Vec<_> = children.iter().map(|(pid, _)| *pid).collect();
    let snapshot = ended(&mut probe, &pids);
    for (pid, truth_ns) in children {
        assert_used(&snapshot, snapshot.process(pid).unwrap().usage.cpu_time, truth_ns);
    }
    let snapshot = probes.snapshot().unwrap();
    let found =
        |pid: &&u32| snapshot.process(**pid).is_some_and(|row| !row[cpu].cpu_time.is_zero());
    assert_eq!(pids.iter().filter(found).count(), pids.len());
}

/// Waits for the ends of processes.
fn ended(probe: &mut CpuProbe, pids: &[u32]) -> CpuSnapshot {
    let all = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        let ended = |pid: &u32| snapshot.process(*pid).is_some_and(|row| row.info.exited);
        pids.iter().all(ended).then_some(snapshot)
    });
    let snapshot = all.expect("the ends of all");
    if !hides_events() {
        return snapshot;
    }
    // a release that is not seen is counted as missing after 2 s
    sleep(Duration::from_millis(2500));
    probe.snapshot().unwrap()
}

/// Final records are exact to 2 us, because rusage is cut to 1 us twice. If the machine hides
/// an exit, the last steps are missing.
fn assert_used(snapshot: &CpuSnapshot, ours: Duration, truth_ns: u64) {
    let ours_ns = ours.as_nanos() as u64;
    let context = format!("{ours_ns} ns, rusage {truth_ns} ns, {:?}", snapshot.losses);
    println!("{context}");
    let lost = snapshot.losses.get("exit_record_missing") > Some(0);
    let slack = if lost { 2_000_000 } else { 2_000 };
    assert!(ours_ns.abs_diff(truth_ns) <= slack, "{context}");
}

/// The parent of each ends first. The new parent is not in the tree.
#[test]
fn orphans_stay_in_their_tree() {
    adopt_orphans();
    let mut root = Workload::start(WORKLOAD, &["orphans", "30"]);
    let mut probe = CpuProbe::builder().filter(Filter::tree(root.pid())).load().unwrap();
    let mut known = BTreeSet::from([root.pid()]);
    let mut truth = Vec::new();
    for _ in 0..5 {
        let answer = root.ask("go");
        let pids: Vec<u32> = answer.split(' ').map(|pid| pid.parse().unwrap()).collect();
        let &[parent, orphan] = pids.as_slice() else { panic!("{answer}") };
        known.extend([parent, orphan]);
        // once its parent has ended it is a child of this process
        let used_ns = poll(Duration::from_secs(10), || wait_for_settled(orphan).ok());
        truth.push((orphan, used_ns.expect("its end")));
    }
    let orphans: Vec<_> = truth.iter().map(|(pid, _)| *pid).collect();
    let snapshot = ended(&mut probe, &orphans);
    for (orphan, truth_ns) in truth {
        let row = snapshot.process(orphan).unwrap();
        assert!(truth_ns >= 30_000_000);
        assert_used(&snapshot, row.usage.cpu_time, truth_ns);
    }
    let rows: BTreeSet<_> = snapshot.processes.iter().map(|row| row.id.pid).collect();
    assert_eq!(rows, known);
}

/// The first process is released when its pid is in use again.
#[test]
fn a_pid_that_is_reused_in_a_tree_has_two_rows() {
    let filter = Filter::tree(process::id());
    let mut probe = CpuProbe::builder().filter(filter).load().unwrap();
    let mut work = Workload::start_without_waiting(WORKLOAD, &["reuse-pid", "40", "90"]);
    let (pid, used_ns) = reused(&work.line());
    let snapshot = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        let rows = snapshot.processes.iter().filter(|row| row.id.pid == pid && row.info.exited);
        (rows.count() == 2).then_some(snapshot)
    });
    let snapshot = snapshot.expect("both");
    let rows = snapshot.processes.iter().filter(|row| row.id.pid == pid);
    for (row, truth_ns) in rows.zip(used_ns) {
        assert_used(&snapshot, row.usage.cpu_time, truth_ns);
    }
}

/// `PID FIRST_NS SECOND_NS`
fn reused(line: &str) -> (u32, [u64; 2]) {
    let figures: Vec<u64> = line.split(' ').map(|figure| figure.parse().unwrap()).collect();
    let &[pid, first_ns, second_ns] = figures.as_slice() else { panic!("{line}") };
    (pid as u32, [first_ns, second_ns])
}

#[test]
fn a_process_that_reuses_the_pid_of_a_listed_process_is_not_measured() {
    let mut work = Workload::start_without_waiting(WORKLOAD, &["reuse-pid", "6000", "90"]);
    let children = format!("/proc/{0}/task/{0}/children", work.pid());
    let child = poll(Duration::from_secs(10), || {
        fs::read_to_string(&children).unwrap().trim().parse::<u32>().ok()
    });
    let filter = Filter::processes([child.expect("the first")]);
    let mut probe = CpuProbe::builder().filter(filter).load().unwrap();
    let (pid, [first_ns, _]) = reused(&work.line());
    assert_eq!(Some(pid), child);
    let snapshot = ended(&mut probe, &[pid]);
    assert_eq!(snapshot.processes.len(), 1, "{:?}", snapshot.processes);
    // it had run for a while when the probe was loaded
    let ours_ns = snapshot.processes[0].usage.cpu_time.as_nanos() as u64;
    assert!(ours_ns > 0 && ours_ns <= first_ns, "{ours_ns}, rusage {first_ns}");
}

#[test]
fn a_listed_process_stays_in_the_filter_after_exec_and_exits_of_threads() {
    let mut work = Workload::start(WORKLOAD, &["exec"]);
    let threads = Workload::start(WORKLOAD, &["threads", "300"]);
    for accounting in [CpuAccounting::Ledger, CpuAccounting::SchedSwitch] {
        let filter = Filter::processes([work.pid(), threads.pid()]);
        let mut probe = CpuProbe::builder().accounting(accounting).filter(filter).load().unwrap();
        if accounting == CpuAccounting::Ledger {
            work.tell("go");
            assert_eq!(work.line(), "spinning");
        }
        threads.stop();
        probe.reset().unwrap();
        let before = process_cpu_ns(threads.pid()).unwrap();
        threads.resume();
        sleep(Duration::from_millis(300));
        let used = || process_cpu_ns(threads.pid()).filter(|used| used - before > 10_000_000);
        poll(Duration::from_secs(20), used).expect("a busy machine lets it run too");
        threads.stop();
        let truth = process_cpu_ns(threads.pid()).unwrap() - before;
        let snapshot = probe.snapshot().unwrap();
        let row = snapshot.process(work.pid()).expect("the same process");
        assert_eq!(row.info.comm, "work-after");
        assert!(row.usage.cpu_time > Duration::ZERO);
        let ours = snapshot.process(threads.pid()).unwrap().usage.cpu_time.as_nanos() as u64;
        println!("{accounting:?}: {ours} ns, CPU clock {truth} ns");
        // the last steps of a thread are in no clock of its process: only switches see them
        let last_steps = if accounting == CpuAccounting::Ledger { 0.0 } else { 0.25 };
        let off = ours as f64 / truth as f64 - 1.0;
        assert!(truth > 10_000_000 && off >= -0.001 && off <= 0.001 + last_steps, "{off}");
    }
}

#[test]
fn a_filter_without_a_process_is_an_error() {
    let work = Workload::start(WORKLOAD, &["spin", "1"]);
    let (gone, alive) = (work.pid(), process::id());
    drop(work);
    let error = |filter: &Filter| {
        let of_probe = CpuProbe::builder().filter(filter.clone()).load().unwrap_err();
        let of_set = ProbeSet::builder().filter(filter.clone()).build().unwrap_err();
        assert_eq!(of_probe.to_string(), of_set.to_string());
        assert_eq!(of_probe.kind(), of_set.kind());
        of_set
    };
    for (filter, pid) in [
        (Filter::tree(gone), gone),
        (Filter::processes([gone]), gone),
        (Filter::processes([alive, gone]), gone),
        (Filter::tree(0), 0),
    ] {
        let error = error(&filter);
        assert_eq!(error.kind(), ErrorKind::NoSuchProcess, "{filter:?}");
        assert!(error.to_string().contains(&format!("pid {pid} ")), "{error}");
    }
    assert_eq!(error(&Filter::processes([])).kind(), ErrorKind::InvalidOption);
    // ids of cgroups are not reused: this cgroup never has a process
    let filter = Filter::cgroup(1 << 60);
    let mut probe = CpuProbe::builder().filter(filter).load().unwrap();
    assert!(probe.snapshot().unwrap().processes.is_empty());
}

/// Removed when dropped, once its processes are gone.
struct Cgroup(PathBuf);

impl Cgroup {
    /// In the unified hierarchy, wherever that is mounted.
    fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let mount = mount.expect("cgroup v2 is mounted").split(' ').nth(1).unwrap();
        let this = Self(PathBuf::from(mount).join(format!("ebpfmetrics-{name}-{}", process::id())));
        fs::create_dir(&this.0).unwrap();
        this
    }

    fn hold(&self, work: &Workload) {
        fs::write(self.0.join("cgroup.procs"), work.pid().to_string()).unwrap();
    }

    fn filter(&self) -> Filter {
        let cgroups = Cgroups::of(&CgroupHierarchy::Unified);
        let path = PathBuf::from("/").join(self.0.file_name().unwrap());
        Filter::cgroup(cgroups.id(path).expect("it was just created"))
    }

    /// A set with this filter, and its CPU probe.
    fn set(&self) -> (ProbeSet, CpuHandle) {
        let set = ProbeSet::builder().filter(self.filter());
        let mut set = set.cgroup_hierarchy(CgroupHierarchy::Unified).build().unwrap();
        let cpu = set.add(CpuProbe::builder()).unwrap();
        (set, cpu)
    }

    fn probe(&self) -> CpuProbe {
        let probe = CpuProbe::builder().filter(self.filter());
        probe.cgroup_hierarchy(CgroupHierarchy::Unified).load().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        poll(Duration::from_secs(10), || fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_cgroup_is_measured_with_the_cgroups_below_it() {
    let outer = Cgroup::new("outer");
    let inner = Cgroup(outer.0.join("inner"));
    fs::create_dir(&inner.0).unwrap();
    let inside = Workload::start(WORKLOAD, &["spin", "1"]);
    let deeper = Workload::start(WORKLOAD, &["spin", "1"]);
    let outside = Workload::start(WORKLOAD, &["spin", "1"]);
    outer.hold(&inside);
    inner.hold(&deeper);

    let mut probe = outer.probe();
    let (mut set, cpu) = outer.set();
    let mut events = Events::builder().executed(true).exited(true).filter_of(&set).load().unwrap();
    let expected = BTreeSet::from([inside.pid(), deeper.pid()]);
    // three that spin on two CPUs: each comes to run sooner or later
    let all_ran = poll(Duration::from_secs(5), || {
        let snapshot = probe.snapshot().unwrap();
        let pids: BTreeSet<_> = snapshot.processes.iter().map(|row| row.id.pid).collect();
        assert_eq!(pids, expected);
        snapshot.processes.iter().all(|row| row.usage.cpu_time > Duration::ZERO).then_some(())
    });
    assert!(all_ran.is_some());
    let snapshot = set.snapshot().unwrap();
    assert_eq!(pids_of(&snapshot), expected);
    assert!(snapshot.processes().all(|row| row[cpu].cpu_time > Duration::ZERO));

    outside.kill();
    inside.kill();
    deeper.kill();
    let mut ended = BTreeSet::new();
    let all = poll(Duration::from_secs(5), || {
        for event in events.drain() {
            let Event::ProcessExited { process, .. } = event else { panic!("{event:?}") };
            ended.insert(process.id.pid);
        }
        (ended.len() == 2).then_some(())
    });
    assert!(ended.is_subset(&expected), "{ended:?}");
    assert!(all.is_some() || hides_events(), "{ended:?}");
    drop(inner);
}

#[test]
fn a_process_that_moves_into_a_cgroup_is_measured_from_then_on() {
    let group = Cgroup::new("moving");
    let stays = Workload::start(WORKLOAD, &["spin", "1"]);
    let moves = Workload::start(WORKLOAD, &["spin", "1"]);
    group.hold(&stays);
    let mut probe = group.probe();
    // long enough for its time outside to make a difference
    let outside = poll(Duration::from_secs(20), || {
        process_cpu_ns(moves.pid()).filter(|used| *used > 400_000_000)
    });
    assert!(outside.is_some());
    assert_eq!(probe.snapshot().unwrap().processes.len(), 1);

    group.hold(&moves);
    probe.snapshot().unwrap();
    moves.stop();
    let before = process_cpu_ns(moves.pid()).unwrap();
    let at_first = probe.snapshot().unwrap().process(moves.pid()).unwrap().usage.cpu_time;
    assert!(at_first < Duration::from_millis(300), "{at_first:?}");
    moves.resume();
    sleep(Duration::from_millis(200));
    moves.stop();
    let truth = process_cpu_ns(moves.pid()).unwrap() - before;
    let snapshot = probe.snapshot().unwrap();
    let ours = snapshot.process(moves.pid()).unwrap().usage.cpu_time - at_first;
    assert_eq!(ours.as_nanos() as u64, truth);

    // and it ends there when it moves out: nothing of it is missing
    moves.resume();
    fs::write(group.0.parent().unwrap().join("cgroup.procs"), moves.pid().to_string()).unwrap();
    let left = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        let row = snapshot.process(moves.pid()).unwrap();
        (row.info.exited && snapshot.losses.get("exit_record_missing") == Some(0)).then_some(())
    });
    assert!(left.is_some());
    drop((stays, moves));
}

/// Pids differ there, and users know those that their own namespace has.
#[test]
fn filters_and_lookups_take_the_pids_of_the_callers_namespace() {
    let line = Workload::start_without_waiting(WORKLOAD, &["filter-in-namespace"]).line();
    let child = line.rsplit_once('=').unwrap().1;
    let of_child = format!("listed={child} row={child} members=1 child={child}");
    assert_eq!(line, format!("own=1 tree=1,{child} {of_child}"));
}
