//! Whom a probe watches.

use std::collections::{HashMap, HashSet};

use procfs::process::all_processes;

use crate::{
    Kernel, Result,
    loader::{Loader, Object},
};

/// Whom a probe watches, decided in the kernel: who is not watched costs next to nothing,
/// per event and per snapshot, and has no row.
///
/// What a snapshot says of the whole (totals, `folded`) is then of the watched alone; idle
/// and interrupted time stay those of the CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Watch {
    /// Every process of the machine.
    #[default]
    All,
    /// These processes, as long as they live: by pid, of whoever has it when the probe is
    /// loaded. At most 16,384.
    Processes(Vec<u32>),
    /// A process and all that it has started and will start, however deep; children keep
    /// being watched when their parents end. At most 16,384 at a time.
    Tree(u32),
    /// A cgroup and those at most 15 levels below it, by its id in the unified hierarchy:
    /// see [`Cgroups::id`](crate::Cgroups::id). Who moves in or out is watched or not from
    /// then on.
    Cgroup(u64),
}

/// `enum watch_mode`
const LISTED: u32 = 1;
const TREES: u32 = 2;
const CGROUP: u32 = 3;
/// Room for that many processes at a time.
const LARGEST: u32 = 16_384;

impl Watch {
    /// Tells an object that includes `watch.h`, before it is loaded.
    pub fn configure(&self, loader: Loader) -> Loader {
        match self {
            Self::All => loader,
            Self::Processes(_) => loader.global("watch_mode", LISTED).entries("watched", LARGEST),
            Self::Tree(_) => loader.global("watch_mode", TREES).entries("watched", LARGEST),
            Self::Cgroup(id) => loader.global("watch_mode", CGROUP).global("watched_cgroup", *id),
        }
    }

    /// Begins to watch, before the other programs of the object are attached.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn begin(&self, object: &mut Object, kernel: &Kernel) -> Result<()> {
        match self {
            Self::All | Self::Cgroup(_) => Ok(()),
            Self::Processes(pids) => add(object, pids.iter().copied()),
            Self::Tree(root) => {
                // What is started from here on adds itself; who is there already is looked
                // for twice, for it may have started somebody in between.
                object.attach("watch_fork", "sched_process_fork", kernel)?;
                add(object, family(*root))?;
                add(object, family(*root))
            }
        }
    }
}

fn add(object: &mut Object, pids: impl IntoIterator<Item = u32>) -> Result<()> {
    /// The kernel side puts the start time of whoever has the pid.
    const WHOEVER: u64 = 0;
    let known: HashSet<u32> =
        object.read_all::<u32, u64>("watched")?.into_iter().map(|(pid, _)| pid).collect();
    let new = pids.into_iter().filter(|pid| !known.contains(pid));
    object.put_all("watched", &new.map(|pid| (pid, WHOEVER)).collect::<Vec<_>>())
}

/// A process and all that descend from it, as `/proc` has them now.
fn family(root: u32) -> HashSet<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in all_processes().into_iter().flatten().flatten() {
        if let Ok(stat) = process.stat() {
            children.entry(stat.ppid as u32).or_default().push(stat.pid as u32);
        }
    }
    let mut members = HashSet::from([root]);
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            if members.insert(child) {
                open.push(child);
            }
        }
    }
    members
}
