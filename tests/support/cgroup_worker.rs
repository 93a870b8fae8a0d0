//! Hierarchies of cgroups, in mounts of their own, and what probes say of a process in
//! them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use ebpfmetrics::{Cgroups, CpuProbe, Filter, Probe as _, ProbeSet, process::CgroupHierarchy};
use ebpfmetrics_suite::{Workload, mount_cgroups, poll};

/// A cgroup, removed when dropped, once its processes are gone.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        poll(Duration::from_secs(10), || fs::remove_dir(&self.0).ok());
    }
}

/// Mounts these, puts a process into a cgroup of its own of each, and compares what
/// probes say of it, by each hierarchy, with `/proc/PID/cgroup`. Tells which is the
/// default, or `no` and why if they cannot be mounted here.
pub(crate) fn work(mounts: &[String]) -> anyhow::Result<()> {
    let mounts: Vec<_> = mounts
        .iter()
        .map(|mount| mount.split_once('=').map_or((&**mount, None), with_controller))
        .collect();
    if let Err(error) = mount_cgroups(&mounts) {
        crate::tell(&format!("no {error}"))?;
        return Ok(());
    }
    let groups: Vec<_> = mounts
        .iter()
        .map(|(name, _)| {
            let of = Path::new("/sys/fs/cgroup").join(name);
            let group = of.join(format!("ebpfmetrics-{}-{name}", std::process::id()));
            fs::create_dir(&group).map(|()| Group(group))
        })
        .collect::<io::Result<_>>()?;
    let (inside, outside) = (spin(), spin());
    for group in &groups {
        fs::write(group.0.join("cgroup.procs"), inside.pid().to_string())?;
    }
    for (_, controller) in &mounts {
        let hierarchy = controller.map_or(CgroupHierarchy::Unified, CgroupHierarchy::controller);
        check(&hierarchy, &inside, &outside).with_context(|| hierarchy.to_string())?;
    }
    let default = ProbeSet::new()?.cgroup_hierarchy().clone();
    ensure!(Cgroups::read().len() == Cgroups::of(&default).len());
    drop((inside, outside, groups));
    crate::tell(&default.to_string())?;
    Ok(())
}

fn with_controller<'a>((name, controller): (&'a str, &'a str)) -> (&'a str, Option<&'a str>) {
    (name, Some(controller))
}

fn spin() -> Workload {
    Workload::start("/proc/self/exe", &["spin", "1"])
}

fn check(hierarchy: &CgroupHierarchy, inside: &Workload, outside: &Workload) -> anyhow::Result<()> {
    let mut set = ProbeSet::builder().cgroup_hierarchy(hierarchy.clone()).build()?;
    set.add(CpuProbe::builder())?;
    let snapshot = set.snapshot()?;
    let cgroups = Cgroups::of(hierarchy);
    let mut ids = Vec::new();
    for process in [inside, outside] {
        let truth = path_of(process.pid(), hierarchy)?;
        let row = snapshot.processes().find(|row| row.id.pid == process.pid());
        let id = row.context("no row")?.info.cgroup_id.context("no cgroup")?;
        ensure!(cgroups.path(id) == Some(&truth), "{:?}, not {truth:?}", cgroups.path(id));
        ensure!(cgroups.id(&truth) == Some(id), "{id}, not {:?}", cgroups.id(&truth));
        ids.push(id);
    }
    ensure!(ids[0] != ids[1]);
    let mut probe = CpuProbe::builder()
        .cgroup_hierarchy(hierarchy.clone())
        .filter(Filter::cgroup(ids[0]))
        .load()?;
    let rows: Vec<_> = probe.snapshot()?.processes.iter().map(|row| row.id.pid).collect();
    ensure!(rows == [inside.pid()], "{rows:?}");
    Ok(())
}

/// What the kernel says: `NUMBER:CONTROLLERS:PATH`.
fn path_of(pid: u32, hierarchy: &CgroupHierarchy) -> anyhow::Result<PathBuf> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let is_it = |controllers: &str| match hierarchy {
        CgroupHierarchy::Unified => controllers.is_empty(),
        other => controllers.split(',').any(|name| name == other.to_string()),
    };
    let mut fields = lines.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    let line = fields.find(|fields| is_it(fields[1])).context("not in /proc/PID/cgroup")?;
    Ok(line[2].into())
}
