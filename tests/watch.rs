//! Probes that watch some processes only.

use std::{collections::BTreeSet, fs, path::PathBuf, process, thread::sleep, time::Duration};

use ebpfmetrics::{
    CgroupHierarchy, Cgroups, CpuAccounting, CpuProbe, CpuSnapshot, DiskProbe, ErrorKind, Joined,
    Kernel, MemProbe, Probe as _, SlabProbe, Watch,
};
use ebpfmetrics_suite::{
    LoopDevice, QuietVolume, Workload, adopt_orphans, directory_on_disk, poll, process_cpu_ns,
    schedstat, settle, wait_for,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

#[test]
fn listed_processes_alone_have_rows_and_theirs_are_right() {
    for accounting in [CpuAccounting::Ledger, CpuAccounting::SchedSwitch] {
        let watched = Workload::start(WORKLOAD, &["spin", "2"]);
        let other = Workload::start(WORKLOAD, &["spin", "1"]);
        let watch = Watch::Processes(vec![watched.pid(), 4_000_000]);
        let mut probe = CpuProbe::builder().accounting(accounting).watch(watch).load().unwrap();
        let before = schedstat(watched.pid()).unwrap().cpu_ns;
        probe.reset().unwrap();
        sleep(Duration::from_millis(300));
        watched.stop();
        let snapshot = probe.snapshot().unwrap();
        let after = schedstat(watched.pid()).unwrap().cpu_ns;
        let pids: Vec<_> = snapshot.processes.iter().map(|row| row.id.pid).collect();
        assert_eq!(pids, [watched.pid()], "{accounting:?}");
        let ours = snapshot.processes[0].usage.cpu_time.as_nanos() as u64;
        // before was as of the last tick of each thread
        let most = after - before;
        assert!(ours <= most && ours + 40_000_000 >= most, "{ours}, schedstat {most}");
        assert!(!snapshot.cpus.is_empty(), "CPUs are told all the same");
        drop(other);
    }
}

#[test]
fn a_tree_is_watched_with_what_it_starts_and_what_ends() {
    let mut watched = Workload::start(WORKLOAD, &["memory"]);
    let stranger = Workload::start(WORKLOAD, &["spin", "1"]);
    let watch = Watch::Tree(watched.pid());
    let cpu = CpuProbe::builder().watch(watch.clone()).load().unwrap();
    let memory = MemProbe::builder().address_space(true).watch(watch).load().unwrap();
    let mut probe = Joined::new((cpu, memory)).unwrap();
    let mut children = Vec::new();
    for _ in 0..5 {
        let answer = watched.ask("child-touch 2000");
        children.push(answer.split_whitespace().next().unwrap().parse::<u32>().unwrap());
    }
    let all_ended = poll(Duration::from_secs(8), || {
        let snapshot = probe.snapshot().unwrap();
        let ended = |pid: &u32| {
            let row = snapshot.processes().find(|row| row.id.pid == *pid);
            row.is_some_and(|row| {
                let (cpu, memory) = row.rows;
                cpu.is_some_and(|row| row.info.exited) && memory.is_some_and(|row| row.info.exited)
            })
        };
        children.iter().all(ended).then_some(snapshot)
    });
    let snapshot = all_ended.expect("all children, with their ends");
    for process in snapshot.processes() {
        let known = process.id.pid == watched.pid() || children.contains(&process.id.pid);
        assert!(known, "{process:?} is nobody's");
    }
    let (_, memory) = &snapshot.parts;
    for child in &children {
        let peak = memory.process(*child).unwrap().usage.resident_peak_bytes.unwrap();
        assert!(peak >= 2000 << 10, "{peak}");
    }
    drop(stranger);
}

/// Waits until processes show with their ends.
fn ended(probe: &mut CpuProbe, pids: &[u32]) -> CpuSnapshot {
    let all = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        let ended = |pid: &u32| snapshot.process(*pid).is_some_and(|row| row.info.exited);
        pids.iter().all(ended).then_some(snapshot)
    });
    all.expect("the ends of all")
}

/// Final records are exact to what rusage cuts, a us twice, but for those that a machine
/// hides: then the last steps are missing.
fn assert_used(snapshot: &CpuSnapshot, ours: Duration, truth_ns: u64) {
    let ours_ns = ours.as_nanos() as u64;
    let context = format!("{ours_ns} ns, rusage {truth_ns} ns, {:?}", snapshot.losses);
    println!("{context}");
    let lost = snapshot.losses.get("exit_record_missing") > Some(0);
    let slack = if lost { 2_000_000 } else { 2_000 };
    assert!(ours_ns.abs_diff(truth_ns) <= slack, "{context}");
}

/// Each is started by a process that ends before it does, and has another parent then,
/// which is not in the tree.
#[test]
fn orphans_stay_in_their_tree() {
    adopt_orphans();
    let mut root = Workload::start(WORKLOAD, &["orphans", "30"]);
    let mut probe = CpuProbe::builder().watch(Watch::Tree(root.pid())).load().unwrap();
    let mut known = BTreeSet::from([root.pid()]);
    let mut truth = Vec::new();
    for _ in 0..5 {
        let answer = root.ask("go");
        let pids: Vec<u32> = answer.split(' ').map(|pid| pid.parse().unwrap()).collect();
        let &[parent, orphan] = pids.as_slice() else { panic!("{answer}") };
        known.extend([parent, orphan]);
        // once its parent has ended it is a child of this process
        let used_ns = poll(Duration::from_secs(10), || wait_for(orphan).ok());
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

/// The release of a process comes when its pid is that of another already.
#[test]
fn a_pid_that_comes_back_in_a_tree_is_watched_again() {
    let watch = Watch::Tree(process::id());
    let mut probe = CpuProbe::builder().watch(watch).load().unwrap();
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
fn who_gets_the_pid_of_a_listed_process_is_not_watched() {
    let mut work = Workload::start_without_waiting(WORKLOAD, &["reuse-pid", "1500", "90"]);
    let children = format!("/proc/{0}/task/{0}/children", work.pid());
    let child = poll(Duration::from_secs(10), || {
        fs::read_to_string(&children).unwrap().trim().parse::<u32>().ok()
    });
    let watch = Watch::Processes(vec![child.expect("the first")]);
    let mut probe = CpuProbe::builder().watch(watch).load().unwrap();
    let (pid, [first_ns, _]) = reused(&work.line());
    assert_eq!(Some(pid), child);
    let snapshot = ended(&mut probe, &[pid]);
    assert_eq!(snapshot.processes.len(), 1, "{:?}", snapshot.processes);
    // it had run for a while when the probe was loaded
    let ours_ns = snapshot.processes[0].usage.cpu_time.as_nanos() as u64;
    assert!(ours_ns > 0 && ours_ns <= first_ns, "{ours_ns}, rusage {first_ns}");
}

#[test]
fn exec_and_threads_that_end_stay_watched() {
    let mut work = Workload::start(WORKLOAD, &["exec"]);
    let threads = Workload::start(WORKLOAD, &["threads", "300"]);
    for accounting in [CpuAccounting::Ledger, CpuAccounting::SchedSwitch] {
        let watch = Watch::Processes(vec![work.pid(), threads.pid()]);
        let mut probe = CpuProbe::builder().accounting(accounting).watch(watch).load().unwrap();
        if accounting == CpuAccounting::Ledger {
            work.tell("go");
            assert_eq!(work.line(), "spinning");
        }
        threads.stop();
        probe.reset().unwrap();
        let before = process_cpu_ns(threads.pid()).unwrap();
        threads.resume();
        sleep(Duration::from_millis(300));
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
fn whom_nobody_can_watch_is_an_error() {
    let work = Workload::start(WORKLOAD, &["spin", "1"]);
    let nobody = work.pid();
    drop(work);
    for watch in [
        Watch::Tree(nobody),
        Watch::Processes(vec![]),
        Watch::Processes(vec![nobody]),
        Watch::Tree(0),
    ] {
        let error = CpuProbe::builder().watch(watch.clone()).load().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{watch:?}");
        assert!(error.to_string().contains("nobody to watch"), "{error}");
    }
    // ids of cgroups do not come back: nobody will ever be in there
    let mut probe = CpuProbe::builder().watch(Watch::Cgroup(1 << 60)).load().unwrap();
    assert!(probe.snapshot().unwrap().processes.is_empty());
}

#[test]
fn devices_stay_whole_where_few_are_watched() {
    let Some(files) = directory_on_disk("watch") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let on = |work: &str, count: &str| {
        let path = device.path();
        Workload::start(WORKLOAD, &["disk", work, path.to_str().unwrap(), count, "20"])
    };
    let (mut watched, mut other) = (on("direct", "100"), on("direct", "300"));
    let watch = Watch::Tree(watched.pid());
    let mut probe = DiskProbe::builder().watch(watch).load().unwrap();
    let before = settle(device.name());
    probe.reset().unwrap();
    watched.go();
    other.go();
    let truth = settle(device.name()).since(&before);
    let snapshot = probe.snapshot().unwrap();
    let rows: Vec<_> = snapshot.processes.iter().map(|row| row.id.pid).collect();
    assert_eq!(rows, [watched.pid()]);
    let row = snapshot.device(device.name()).unwrap();
    // its program may have to be read in from another device
    let used = &snapshot.processes[0].usage.devices;
    let ours = used.iter().find(|used| used.device == row.id).unwrap().total;
    let context = format!("{ours:?}, {row:#?}, {truth:?}, {:?}", snapshot.losses);
    // what a machine hides is settled later
    let hidden = snapshot.losses.total();
    let near = |ours: u64, truth: u64| ours <= truth && ours + hidden + truth / 100 >= truth;
    assert!(near(ours.reads, 100) && near(ours.writes, 20), "{context}");
    assert_eq!(row.usage.reads, ours.reads + row.unattributed.reads, "{context}");
    assert!(near(row.usage.reads, truth.reads), "{context}");
    assert!(near(row.usage.writes + row.usage.flushes, truth.writes), "{context}");
    // who it was is not known, what kind it was is
    assert_eq!(row.by_class.direct.reads, row.usage.reads, "{context}");
}

/// Who writes pages back is not who dirtied them, watched or not.
#[test]
fn buffered_writes_are_charged_to_watched_owners_alone() {
    let Some(volume) = QuietVolume::new("watch_owners") else { return };
    let writer = |name: &str, bytes: &str| {
        let file = volume.path().join(name);
        Workload::start(WORKLOAD, &["disk", "write", file.to_str().unwrap(), bytes])
    };
    let (mut watched, mut other) = (writer("one", "8388608"), writer("other", "33554432"));
    let watch = Watch::Processes(vec![watched.pid(), process::id()]);
    let mut probe = DiskProbe::builder().watch(watch).load().unwrap();
    settle(volume.device());
    probe.reset().unwrap();
    watched.go();
    other.go();
    settle(volume.device()); // by sync(2), in this process
    let snapshot = probe.snapshot().unwrap();
    let written =
        |pid: u32| snapshot.process(pid).map(|row| row.usage.by_class.write_back.written_bytes);
    let row = snapshot.device(volume.device()).unwrap();
    let context = format!("{row:#?}, {:#?}, {:?}", snapshot.processes, snapshot.losses);
    assert_eq!((written(process::id()), written(other.pid())), (Some(0), None), "{context}");
    let ours = written(watched.pid()).unwrap();
    // large folios become dirty as one, for who came first
    assert!(ours.abs_diff(8 << 20) <= 1 << 20, "{context}");
    assert!(row.by_class.write_back.written_bytes >= 39 << 20, "{context}");
    assert!(row.unattributed.written_bytes >= 31 << 20, "{context}");
    assert_eq!(snapshot.losses.get("owner_unseen"), Some(0), "{context}");
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

    /// Its id, and the kernel with its hierarchy.
    fn id(&self) -> (u64, Kernel) {
        let kernel =
            Kernel::read().unwrap().with_cgroup_hierarchy(CgroupHierarchy::Unified).unwrap();
        let cgroups = Cgroups::of(kernel.cgroup_hierarchy());
        let path = PathBuf::from("/").join(self.0.file_name().unwrap());
        (cgroups.id(path).expect("it was just made"), kernel)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        poll(Duration::from_secs(10), || fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_cgroup_is_watched_with_those_below_it() {
    let outer = Cgroup::new("outer");
    let inner = Cgroup(outer.0.join("inner"));
    fs::create_dir(&inner.0).unwrap();
    let inside = Workload::start(WORKLOAD, &["spin", "1"]);
    let deeper = Workload::start(WORKLOAD, &["spin", "1"]);
    let outside = Workload::start(WORKLOAD, &["spin", "1"]);
    outer.hold(&inside);
    inner.hold(&deeper);

    let (id, kernel) = outer.id();
    let mut probe = CpuProbe::builder().watch(Watch::Cgroup(id)).load_on(&kernel).unwrap();
    sleep(Duration::from_millis(100));
    let snapshot = probe.snapshot().unwrap();
    let mut pids: Vec<_> = snapshot.processes.iter().map(|row| row.id.pid).collect();
    pids.sort_unstable();
    let mut expected = [inside.pid(), deeper.pid()];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    assert!(snapshot.processes.iter().all(|row| row.usage.cpu_time > Duration::ZERO));
    drop((inside, deeper, outside));
    drop(inner);
}

#[test]
fn who_moves_into_a_cgroup_counts_from_then_on() {
    let group = Cgroup::new("moving");
    let stays = Workload::start(WORKLOAD, &["spin", "1"]);
    let moves = Workload::start(WORKLOAD, &["spin", "1"]);
    group.hold(&stays);
    let (id, kernel) = group.id();
    let mut probe = CpuProbe::builder().watch(Watch::Cgroup(id)).load_on(&kernel).unwrap();
    // long enough for what it does outside to tell
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

    // and ends there for who moves out
    moves.resume();
    fs::write(group.0.parent().unwrap().join("cgroup.procs"), moves.pid().to_string()).unwrap();
    let left = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        let row = snapshot.process(moves.pid()).unwrap();
        (row.info.exited && snapshot.losses.get("exit_record_missing") == Some(1)).then_some(())
    });
    assert!(left.is_some());
    drop((stays, moves));
}
