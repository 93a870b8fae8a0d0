//! Cgroups: ids and paths in every hierarchy, and groups against the kernel's own books.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Barrier,
    thread::{self, sleep},
    time::Duration,
};

use ebpfmetrics::{
    Cgroups, CpuProbe, ErrorKind, Filter, MemProbe, Probe as _, ProbeSet,
    cpu::CpuSnapshot,
    group::{group_by, group_by_cgroup},
    process::CgroupHierarchy,
};
use ebpfmetrics_suite::{Workload, emulated, poll, skip};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// What a workload finds in mounts of its own, or why it cannot mount them.
fn default_where(mounts: &[&str]) -> Result<String, String> {
    let arguments: Vec<_> = ["cgroups"].iter().chain(mounts).copied().collect();
    let line = Workload::start_without_waiting(WORKLOAD, &arguments).line();
    assert_ne!(line, "", "the workload says on standard error what is wrong");
    match line.strip_prefix("no ") {
        Some(reason) => Err(reason.to_owned()),
        None => Ok(line),
    }
}

#[test]
fn ids_are_of_the_unified_hierarchy_where_that_is_mounted() {
    assert_eq!(default_where(&["unified"]).as_deref(), Ok("unified"));
}

/// Not that of memory: whoever has it in v1 takes it from the unified hierarchy, for a
/// while. Kernels may have controllers without v1; one that is in use in the
/// unified hierarchy cannot be mounted.
fn first_of_v1() -> Option<&'static str> {
    let all = ["pids", "freezer", "devices"];
    let mounted = |name: &&str| default_where(&[&format!("{name}={name}")]) == Ok(name.to_string());
    all.into_iter().find(mounted)
}

#[test]
fn ids_are_of_a_controllers_hierarchy_where_v1_alone_is_mounted() {
    if first_of_v1().is_none() {
        skip("v1_alone", "this kernel mounts no controller of cgroup v1");
    }
}

#[test]
fn on_hybrid_hosts_the_caller_chooses() {
    let Some(name) = first_of_v1() else {
        return skip("hybrid", "this kernel mounts no controller of cgroup v1");
    };
    let v1 = format!("{name}={name}");
    assert_eq!(default_where(&[&v1, "unified"]).as_deref(), Ok("unified"));
}

/// A cgroup that the kernel keeps the CPU time of. Removed when dropped, once its
/// processes are gone.
struct Accounted {
    directory: PathBuf,
    hierarchy: CgroupHierarchy,
}

impl Accounted {
    /// In the hierarchy of `cpuacct` where that is mounted, else in the unified one.
    fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts: Vec<Vec<_>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
        let v1 =
            mounts.iter().find(|m| m[2] == "cgroup" && m[3].split(',').any(|o| o == "cpuacct"));
        let v2 = mounts.iter().find(|m| m[2] == "cgroup2");
        let (mount, hierarchy) = match v1 {
            Some(mount) => (mount, CgroupHierarchy::controller("cpuacct")),
            None => (v2.expect("cgroups are mounted"), CgroupHierarchy::Unified),
        };
        let directory =
            PathBuf::from(mount[1]).join(format!("ebpfmetrics-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        Self { directory, hierarchy }
    }

    fn hold(&self, work: &Workload) {
        fs::write(self.directory.join("cgroup.procs"), work.pid().to_string()).unwrap();
    }

    /// By the kernel, to a ns (v1) or us (v2).
    fn used_ns(&self) -> u64 {
        if self.hierarchy == CgroupHierarchy::Unified {
            let stat = fs::read_to_string(self.directory.join("cpu.stat")).unwrap();
            let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
            return usage.unwrap().parse::<u64>().unwrap() * 1000;
        }
        let usage = fs::read_to_string(self.directory.join("cpuacct.usage")).unwrap();
        usage.trim().parse().unwrap()
    }
}

impl Drop for Accounted {
    fn drop(&mut self) {
        poll(Duration::from_secs(10), || match self.directory.exists() {
            true => fs::remove_dir(&self.directory).ok(),
            false => Some(()),
        });
    }
}

/// Runs a short command in a cgroup.
fn run_in(directory: &Path) -> u32 {
    let script = "echo 0 > \"$1\"/cgroup.procs && exec true";
    let mut child = Command::new("sh").args(["-c", script, "sh"]).arg(directory).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    child.id()
}

/// Cgroups that are made, used and removed between two reads: below each other, with bytes that
/// are not UTF-8, and (in v1) with names that change.
#[test]
fn rows_of_ended_processes_have_the_path_of_a_cgroup_that_was_removed() {
    let top = Accounted::new("removed");
    let mut probe = CpuProbe::builder().cgroup_hierarchy(top.hierarchy.clone()).load().unwrap();
    let mut set = ProbeSet::builder().cgroup_hierarchy(top.hierarchy.clone()).build().unwrap();
    set.add(MemProbe::builder()).unwrap();
    let below_top =
        |path: &Path| Path::new("/").join(top.directory.file_name().unwrap()).join(path);
    let mut truth = Vec::new();
    for name in [&b"a"[..], b"b c", b"\xff\xfe", b"d/e/f", &[b'x'; 200]] {
        let path = Path::new(OsStr::from_bytes(name));
        let directory = top.directory.join(path);
        fs::create_dir_all(&directory).unwrap();
        let id = fs::metadata(&directory).unwrap().ino();
        truth.push((run_in(&directory), id, below_top(path)));
        for made in path.ancestors().filter(|made| made.parent().is_some()) {
            let removed = || fs::remove_dir(top.directory.join(made)).ok();
            poll(Duration::from_secs(10), removed).expect("it is empty");
        }
    }
    if top.hierarchy != CgroupHierarchy::Unified {
        let (old, new) = (top.directory.join("old"), top.directory.join("new"));
        fs::create_dir_all(old.join("in")).unwrap();
        let id = fs::metadata(old.join("in")).unwrap().ino();
        truth.push((run_in(&old.join("in")), id, below_top(Path::new("new/in"))));
        fs::rename(&old, &new).unwrap();
        for directory in [new.join("in"), new] {
            poll(Duration::from_secs(10), || fs::remove_dir(&directory).ok()).expect("it is empty");
        }
    }
    // before a read, after it, and in the window after that
    for reset in 0..2 {
        let (single, several) = (probe.cgroups().unwrap(), set.cgroups().unwrap());
        for (_, id, path) in &truth {
            assert_eq!(single.path(*id), Some(&**path), "{reset}");
            assert_eq!(several.path(*id), Some(&**path), "{reset}");
            assert_eq!(single.id(path), Some(*id));
        }
        if reset == 0 {
            let (rows, more) = (probe.reset().unwrap(), set.reset().unwrap());
            for (pid, id, _) in &truth {
                assert_eq!(rows.process(*pid).unwrap().info.cgroup_id, Some(*id));
                assert_eq!(more.process(*pid).unwrap().info.cgroup_id, Some(*id));
            }
            // one by the test of a long path, at the same time
            assert!(rows.losses.get("cgroup_path_missing") <= Some(1));
        }
    }
    // those of other hierarchies have other ids
    assert_eq!(probe.cgroups().unwrap().path(1), Some(Path::new("/")));
}

/// The kernel cuts the path of a cgroup that is deep below others.
#[test]
fn a_path_that_is_too_long_is_unknown_and_counted() {
    let top = Accounted::new("long");
    let mut probe = CpuProbe::builder().cgroup_hierarchy(top.hierarchy.clone()).load().unwrap();
    let name = "x".repeat(220);
    let directories: Vec<_> = (0..5)
        .scan(top.directory.clone(), |directory, _| {
            directory.push(&name);
            Some(directory.clone())
        })
        .collect();
    let make = |directory: &PathBuf| {
        fs::create_dir(directory).unwrap();
        fs::metadata(directory).unwrap().ino()
    };
    let ids: Vec<_> = directories.iter().map(make).collect();
    directories.iter().rev().for_each(|directory| fs::remove_dir(directory).unwrap());
    let cgroups = probe.cgroups().unwrap();
    let known: Vec<_> = ids.iter().map(|id| cgroups.path(*id).is_some()).collect();
    assert_eq!(known, [true, true, true, true, false]);
    assert_eq!(probe.snapshot().unwrap().losses.get("cgroup_path_missing"), Some(1));
}

/// Two cgroups, and processes in them that spin, wake up, start threads and children that
/// end. Both ends of the window are at moments when all of them are stopped: nothing is
/// under way that the one counts and the other not yet.
#[test]
fn groups_by_cgroup_are_what_the_kernel_says_of_the_cgroups() {
    const CHILDREN: u32 = 100;
    let (one, other) = (Accounted::new("one"), Accounted::new("other"));
    let spin = Workload::start(WORKLOAD, &["spin", "2"]);
    let wake = Workload::start(WORKLOAD, &["wake", "200"]);
    let threads = Workload::start(WORKLOAD, &["threads", "500"]);
    let mut parent = Workload::start(WORKLOAD, &["memory"]);
    let stop = || [&spin, &wake, &threads].map(Workload::stop);
    stop();
    one.hold(&spin);
    one.hold(&parent);
    other.hold(&wake);
    other.hold(&threads);
    let mut probe = CpuProbe::builder().cgroup_hierarchy(one.hierarchy.clone()).load().unwrap();
    assert_eq!(*probe.cgroup_hierarchy(), one.hierarchy);
    let ids = Cgroups::of(probe.cgroup_hierarchy());
    let id = |group: &Accounted| {
        ids.id(PathBuf::from("/").join(group.directory.file_name().unwrap())).unwrap()
    };
    let ids = [id(&one), id(&other)];
    probe.reset().unwrap();
    let before = [one.used_ns(), other.used_ns()];
    for work in [&spin, &wake, &threads] {
        work.resume();
    }
    for _ in 0..CHILDREN {
        parent.ask("child-touch 400");
    }
    sleep(Duration::from_millis(500));
    stop();
    // The releases of the children, or the time after which one that is hidden is given up.
    let group = id(&one);
    let snapshot = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        let groups = group_by(&snapshot, |row| row.info.cgroup_id);
        let ended = groups.groups.get(&group).map_or(0, |group| group.exited);
        (ended >= CHILDREN as usize).then_some(snapshot)
    });
    let snapshot = snapshot.expect("all children end");
    let truth = [one.used_ns() - before[0], other.used_ns() - before[1]];

    let groups = group_by(&snapshot, |row| row.info.cgroup_id);
    assert_eq!(groups.sum().cpu_time, snapshot.sum().cpu_time);
    let missing = snapshot.losses.get("exit_record_missing").unwrap();
    for ((id, truth), ended) in ids.iter().zip(truth).zip([u64::from(CHILDREN), 0]) {
        let group = &groups.groups[id];
        let ours = group.usage.cpu_time.as_nanos() as u64;
        let context = format!(
            "{:?}: {ours} ns, the kernel {truth} ns, {} exited, {:?}",
            one.hierarchy, group.exited, snapshot.losses
        );
        println!("{context}");
        // The cgroup is charged with the last steps of a process or thread too, after its
        // time was added to that of its process: those of children, and of the threads.
        let last_steps_ns = if emulated() { 400_000 } else { 20_000 };
        let threads_ended = truth / 500_000;
        let most = ended.max(threads_ended) * last_steps_ns;
        // of these the last slice may be missing: only where a machine hides releases
        let hides = probe.health().unwrap().degraded.iter().any(|it| it.feature == "process 1");
        let unseen = if hides { missing } else { 0 };
        assert!(ours <= truth + 2_000 + truth / 1000, "{context}");
        assert!(ours + most + unseen * 5_000_000 + truth / 1000 >= truth, "{context}");
        assert!(truth > 5_000_000, "{context}");
    }
}

/// In a hierarchy of cgroup v1 a controller has paths; in the unified one it is none of its own.
#[test]
fn a_controller_without_a_hierarchy_is_an_error() {
    let v1: BTreeSet<String> = fs::read_to_string("/proc/self/cgroup")
        .unwrap()
        .lines()
        .flat_map(|line| line.split(':').nth(1).unwrap().split(',').map(str::to_owned))
        .collect();
    for name in ["memory", "cpuacct", "net_cls", "perf_event", "hugetlb", "io", "no such"] {
        let exists = v1.contains(if name == "io" { "blkio" } else { name });
        for hierarchy in
            [CgroupHierarchy::controller(name), CgroupHierarchy::Controller(name.into())]
        {
            let set = ProbeSet::builder().cgroup_hierarchy(hierarchy).build();
            match set {
                Ok(set) => {
                    assert!(exists, "{name}");
                    assert!(!set.cgroups().unwrap().is_empty(), "{name}");
                }
                Err(error) => {
                    assert!(!exists, "{name}: {error}");
                    assert_eq!(error.kind(), ErrorKind::InvalidOption);
                    assert!(error.to_string().contains(name), "{error}");
                }
            }
        }
    }
}

/// Two cgroups in which processes can be moved, with their ids.
struct Pair {
    groups: [Accounted; 2],
    ids: [u64; 2],
}

impl Pair {
    fn new(name: &str) -> Self {
        let groups = [1, 2].map(|index| Accounted::new(&format!("{name}-{index}")));
        let ids = [0, 1].map(|at: usize| fs::metadata(&groups[at].directory).unwrap().ino());
        Self { groups, ids }
    }

    /// CPU time by cgroup: ours and the kernel's.
    fn check(&self, snapshot: &CpuSnapshot, before: [u64; 2], slack_ns: u64) {
        let groups = group_by_cgroup(snapshot);
        for (at, before) in before.into_iter().enumerate() {
            let usage = groups.groups.get(&self.ids[at]).map(|group| group.usage.cpu_time);
            let ours = usage.unwrap_or_default().as_nanos() as u64;
            let truth = self.groups[at].used_ns() - before;
            println!("{at}: {ours} ns, the kernel {truth} ns");
            assert!(ours.abs_diff(truth) <= slack_ns + truth / 500, "{:?}", snapshot.losses);
        }
        assert_eq!(groups.sum().cpu_time, snapshot.sum().cpu_time);
    }

    fn used(&self) -> [u64; 2] {
        [self.groups[0].used_ns(), self.groups[1].used_ns()]
    }

    fn probe(&self, filter: Filter) -> CpuProbe {
        let hierarchy = self.groups[0].hierarchy.clone();
        CpuProbe::builder().cgroup_hierarchy(hierarchy).filter(filter).load().unwrap()
    }
}

/// On cgroup v2 the kernel rounds to 1 us. Here the difference is 0 if nothing ends.
fn slack(moves: u64) -> u64 {
    moves * if emulated() { 10_000_000 } else { 200_000 }
}

#[test]
fn usage_before_a_move_counts_where_it_was_used() {
    let pair = Pair::new("moved");
    let mut probe = pair.probe(Filter::All);
    for workload in [&["spin", "1"][..], &["spin", "40"]] {
        let work = Workload::start(WORKLOAD, workload);
        work.stop();
        pair.groups[0].hold(&work);
        probe.reset().unwrap();
        let before = pair.used();
        work.resume();
        for group in [1, 0, 1] {
            sleep(Duration::from_millis(150));
            pair.groups[group].hold(&work);
        }
        sleep(Duration::from_millis(100));
        work.stop();
        // in one window, and again in the next, which has nothing
        let snapshot = probe.reset().unwrap();
        pair.check(&snapshot, before, slack(4));
        let before = pair.used();
        pair.check(&probe.snapshot().unwrap(), before, slack(1));
        work.resume();
        pair.groups[0].hold(&work);
        sleep(Duration::from_millis(100));
        work.stop();
        pair.check(&probe.snapshot().unwrap(), before, slack(4));
    }
}

/// The process ends in the window in which it moves, and no walk shows it.
#[test]
fn a_process_that_moves_and_ends_in_one_window_is_divided() {
    let pair = Pair::new("ended");
    let mut probe = pair.probe(Filter::All);
    let before = pair.used();
    let script = "echo 0 > \"$1\"/cgroup.procs; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; \
        echo 0 > \"$2\"/cgroup.procs; while [ $i -lt 90000 ]; do i=$((i+1)); done";
    let directories = pair.groups.each_ref().map(|group| &group.directory);
    let mut child =
        Command::new("sh").args(["-c", script, "sh"]).args(directories).spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let ended = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        snapshot.process(pid).is_some_and(|row| row.info.exited).then_some(snapshot)
    });
    let snapshot = ended.expect("its end");
    assert_eq!(snapshot.process(pid).unwrap().info.cgroup_id, Some(pair.ids[1]));
    pair.check(&snapshot, before, slack(5));
}

/// Burns CPU time in a thread, in a cgroup of its own.
fn burn_in(group: &Accounted, threads_file: &str, time: Duration) {
    let thread = fs::read_link("/proc/thread-self").unwrap();
    let tid = thread.file_name().unwrap().as_bytes();
    fs::write(group.directory.join(threads_file), tid).unwrap();
    let used = || schedstat_of(&thread);
    let start = used();
    while used() - start < time.as_nanos() as u64 {}
}

fn schedstat_of(thread: &Path) -> u64 {
    let stat = fs::read_to_string(Path::new("/proc").join(thread).join("schedstat")).unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn threads_in_cgroups_of_their_own_have_their_own_usage() {
    let pair = Pair::new("threads");
    let file = match pair.groups[0].hierarchy {
        CgroupHierarchy::Unified => "cgroup.threads",
        _ => "tasks",
    };
    if file == "cgroup.threads" {
        for group in &pair.groups {
            if fs::write(group.directory.join("cgroup.type"), "threaded").is_err() {
                return skip("threaded_cgroups", "this cgroup cannot have threaded ones");
            }
        }
    }
    let (hold, held) = (Barrier::new(3), Barrier::new(3));
    thread::scope(|scope| {
        let worker = |at: usize| {
            let (pair, hold, held) = (&pair, &hold, &held);
            move || {
                let time = Duration::from_millis(100 * (at as u64 + 1));
                burn_in(&pair.groups[at], file, time);
                // starts in the cgroup of the thread that starts it, and ends
                thread::scope(|inner| {
                    inner.spawn(|| burn_in(&pair.groups[at], file, time));
                });
                hold.wait();
                held.wait();
            }
        };
        let mut probe = pair.probe(Filter::All);
        let before = pair.used();
        let threads = [0, 1].map(|at| scope.spawn(worker(at)));
        hold.wait();
        sleep(Duration::from_millis(50));
        pair.check(&probe.snapshot().unwrap(), before, slack(2));
        // a set that is loaded later finds them where they are
        let mut late = pair.probe(Filter::All);
        let before_late = pair.used();
        held.wait();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        sleep(Duration::from_millis(50));
        pair.check(&probe.reset().unwrap(), before, slack(4));
        pair.check(&late.snapshot().unwrap(), before_late, slack(4));
    });
}

#[test]
fn what_a_process_uses_outside_the_filters_cgroup_does_not_count() {
    let pair = Pair::new("filter");
    let inside = Filter::cgroup(pair.ids[0]);
    let mut probe = pair.probe(inside.clone());
    let work = Workload::start(WORKLOAD, &["spin", "3"]);
    sleep(Duration::from_millis(100));
    let check = |probe: &mut CpuProbe, before: u64, moves| {
        let snapshot = probe.reset().unwrap();
        let ours = snapshot.sum().cpu_time.as_nanos() as u64;
        let truth = pair.groups[0].used_ns() - before;
        println!("{ours} ns, the kernel {truth} ns");
        assert!(ours.abs_diff(truth) <= slack(moves) + truth / 500, "{ours} {truth} {snapshot:?}");
        assert_eq!(snapshot.losses.get("exit_record_missing"), Some(0));
        truth
    };
    // in, out and in again: in one window, and with a read at each step
    let mut before = pair.groups[0].used_ns();
    for reads in [false, true] {
        for group in [0, 1, 0, 1, 0] {
            pair.groups[group].hold(&work);
            sleep(Duration::from_millis(60));
            if reads {
                work.stop();
                before += check(&mut probe, before, 5);
                work.resume();
            }
        }
        work.stop();
        before += check(&mut probe, before, 5);
        work.resume();
    }
    sleep(Duration::from_millis(60));
    pair.groups[1].hold(&work);
    let pid = work.pid();
    drop(work);
    let snapshot = probe.snapshot().unwrap();
    assert!(snapshot.process(pid).unwrap().info.exited);
    check(&mut probe, before, 5);
    assert_eq!(probe.snapshot().unwrap().processes, []);
}
