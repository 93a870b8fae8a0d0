//! Probes that watch some processes only.

use std::{fs, path::PathBuf, thread::sleep, time::Duration};

use ebpfmetrics::{
    Cgroups, CpuAccounting, CpuProbe, Joined, MemProbe, Probe as _, Statistics, Watch,
};
use ebpfmetrics_suite::{Workload, poll, schedstat};

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

/// Removed when dropped, once its processes are gone.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        poll(Duration::from_secs(10), || fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_cgroup_is_watched_with_those_below_it() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let mount = PathBuf::from(mount.expect("cgroup v2 is mounted").split(' ').nth(1).unwrap());
    let name = format!("ebpfmetrics-watch-{}", std::process::id());
    let outer = Cgroup(mount.join(&name));
    let inner = Cgroup(outer.0.join("inner"));
    fs::create_dir_all(&inner.0).unwrap();
    let inside = Workload::start(WORKLOAD, &["spin", "1"]);
    let deeper = Workload::start(WORKLOAD, &["spin", "1"]);
    let outside = Workload::start(WORKLOAD, &["spin", "1"]);
    fs::write(outer.0.join("cgroup.procs"), inside.pid().to_string()).unwrap();
    fs::write(inner.0.join("cgroup.procs"), deeper.pid().to_string()).unwrap();

    let id = Cgroups::read().id(&PathBuf::from("/").join(&name)).expect("it was just made");
    let mut probe = CpuProbe::builder().watch(Watch::Cgroup(id)).load().unwrap();
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

/// By the kernel's own statistics of one run: a walk that looks at one process of many
/// takes a part of the time of a walk that looks at all.
#[test]
fn what_is_not_watched_costs_little() {
    let statistics = Statistics::enable().unwrap();
    let _many: Vec<_> = (0..20).map(|_| Workload::start(WORKLOAD, &["spin", "8"])).collect();
    let me = std::process::id();
    let cost = |watch: Watch| {
        let mut probe = CpuProbe::builder().watch(watch).load().unwrap();
        for _ in 0..20 {
            probe.snapshot().unwrap();
        }
        let programs = probe.cost().unwrap().programs;
        let tasks = programs.into_iter().find(|it| it.program == "cpu_tasks").unwrap();
        tasks.ns_per_run().unwrap()
    };
    let (all, one) = (cost(Watch::All), cost(Watch::Processes(vec![me])));
    println!("{all:.0} ns per task, {one:.0} ns where one is watched");
    assert!(one < all * 0.7, "{one} of {all}");
    drop(statistics);
}
