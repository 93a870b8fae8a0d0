//! Cgroups: ids and paths in every hierarchy, and groups against the kernel's own books.

use std::{fs, path::PathBuf, thread::sleep, time::Duration};

use ebpfmetrics::{Cgroups, CpuProbe, Probe as _, group::group_by, process::CgroupHierarchy};
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
        poll(Duration::from_secs(10), || fs::remove_dir(&self.directory).ok());
    }
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
