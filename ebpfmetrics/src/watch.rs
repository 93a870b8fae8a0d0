//! Whom a probe watches: the user side of `ebpf-probes/bpf/include/watch.h`.

use std::collections::{HashMap, HashSet};

use crate::{
    Error, ErrorKind, Kernel, Result,
    ledger::{Ledger, Totals},
    loader::{Loader, Object},
    record,
    records::{RecordBuffer, cast},
    task::{ProcessKey, RecordHead},
};

/// Whom a probe watches, decided in the kernel: who is not watched has no row, and costs
/// a fifth to a tenth per snapshot and at its end. Hooks that are cheap (a context switch,
/// a page, a slab allocation) cost as much as before; `docs/benchmarks.md` has figures.
///
/// What a snapshot says of all processes (totals, `folded`) is then of the watched alone.
/// What it says of the machine is not filtered: idle and interrupted time of CPUs, all
/// figures of block devices, slab allocations on idle CPUs.
///
/// ```no_run
/// use ebpfmetrics::{Cgroups, CpuProbe, Watch};
///
/// let make = std::process::Command::new("make").spawn().expect("make is there");
/// let build = CpuProbe::builder().watch(Watch::Tree(make.id())).load()?;
/// let system = Cgroups::read().id("/system.slice").expect("systemd runs here");
/// let services = CpuProbe::builder().watch(Watch::Cgroup(system)).load()?;
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Watch {
    /// Every process of the machine.
    #[default]
    All,
    /// These processes, as long as they live: by pid, of those who live when the probe is
    /// loaded, others are left out. At most 16,384.
    Processes(Vec<u32>),
    /// A process with all that descends from it when the probe is loaded, as far as
    /// parents show, and all that these start from then on, however deep; they stay
    /// watched when their parents end. At most 16,384 at a time: past this a process and
    /// what it starts are not watched, and it is counted as the loss `watch_table_full`.
    Tree(u32),
    /// A cgroup and those at most 15 levels below it, by its id, see
    /// [`Cgroups::id`](crate::Cgroups::id), in the
    /// [hierarchy](crate::Kernel::cgroup_hierarchy) that the probe is loaded with. An id
    /// that no cgroup has is nobody's.
    ///
    /// Who moves in is watched from then on: of a process that was there before the last
    /// snapshot, what it did until it is first seen does not count. Who moves out ends
    /// here as who exits without a final record does: its row says `exited`, and the loss
    /// `exit_record_missing` counts it, for what it did since the last snapshot is not
    /// known.
    Cgroup(u64),
}

/// `enum watch_mode`
const LISTED: u32 = 1;
const TREES: u32 = 2;
const CGROUP: u32 = 3;
/// Room for that many processes at a time.
const LARGEST: u32 = 16_384;
/// `KNOWN_CGROUPS`
const KNOWN_CGROUPS: u32 = 256;

record! {
    /// A process that is there, and its parent.
    pub(crate) struct WatchProcessRecord = "watch_process_record" {
        head: RecordHead,
        process: ProcessKey,
        parent: ProcessKey,
    }
}

impl Watch {
    /// Tells an object that includes `watch.h`, before it is loaded.
    pub fn configure(&self, loader: Loader) -> Loader {
        match self {
            Self::All => loader,
            Self::Processes(_) => loader.global("watch_mode", LISTED).entries("watched", LARGEST),
            Self::Tree(_) => loader.global("watch_mode", TREES).entries("watched", LARGEST),
            Self::Cgroup(id) => loader
                .global("watch_mode", CGROUP)
                .global("watched_cgroup", *id)
                .entries("known_cgroups", KNOWN_CGROUPS),
        }
    }

    /// A ledger with room for so many exited processes, for a probe that watches these.
    pub fn ledger<T: Totals>(&self, max_exited: u32) -> Ledger<T> {
        let mut ledger = Ledger::begin(max_exited as usize);
        ledger.admits_late = matches!(self, Self::Cgroup(_));
        ledger
    }

    /// Begins to watch: after the programs at the end of processes are attached, before
    /// all others.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if there is nobody to watch, or too many; where the
    /// kernel refuses.
    pub fn begin(&self, object: &mut Object, kernel: &Kernel) -> Result<()> {
        match self {
            Self::All | Self::Cgroup(_) => Ok(()),
            Self::Processes(pids) => {
                let pids: HashSet<_> = pids.iter().copied().collect();
                object.load_iterator("watch_tasks", "task", kernel)?;
                let mut listed = walk(object)?;
                listed.retain(|process| pids.contains(&process.process.tgid));
                list(object, listed.iter().map(|process| process.process))
            }
            Self::Tree(root) => {
                // Whom the listed start from here on is listed by the kernel side. Who is
                // there already is looked for until there is nobody new: the others may
                // have started somebody in between.
                object.load_iterator("watch_tasks", "task", kernel)?;
                object.attach("watch_fork", "sched_process_fork", kernel)?;
                let mut listed = HashSet::new();
                loop {
                    let family = family(*root, &walk(object)?);
                    if family.is_subset(&listed) && !listed.is_empty() {
                        return Ok(());
                    }
                    list(object, family.iter().copied())?;
                    listed.extend(family);
                }
            }
        }
    }
}

/// Who is there now.
fn walk(object: &mut Object) -> Result<Vec<WatchProcessRecord>> {
    let mut buffer = RecordBuffer::default();
    object.iterate("watch_tasks", &mut buffer)?;
    let records = buffer.of(object.stream());
    records.map(|(_, record)| cast::<WatchProcessRecord>(record).copied()).collect()
}

fn list(object: &mut Object, processes: impl Iterator<Item = ProcessKey>) -> Result<()> {
    let entries: Vec<(u32, u64)> = processes.map(|key| (key.tgid, key.start_ns)).collect();
    let invalid = |what: &str| Err(Error::new(ErrorKind::InvalidOption, what));
    match entries.len() {
        0 => invalid("nobody to watch: no such process"),
        many if many > LARGEST as usize => {
            invalid(&format!("at most {LARGEST} processes can be watched, not {many}"))
        }
        _ => object.put_all("watched", &entries),
    }
}

/// A process and all that descend from it.
fn family(root: u32, processes: &[WatchProcessRecord]) -> HashSet<ProcessKey> {
    let mut children: HashMap<ProcessKey, Vec<ProcessKey>> = HashMap::new();
    for &WatchProcessRecord { process, parent, .. } in processes {
        children.entry(parent).or_default().push(process);
    }
    let root = processes.iter().map(|it| it.process).find(|process| process.tgid == root);
    let mut members: HashSet<_> = root.into_iter().collect();
    let mut open: Vec<_> = root.into_iter().collect();
    while let Some(parent) = open.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            if members.insert(child) {
                open.push(child);
            }
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        os::unix::process::CommandExt as _,
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::Requirements;

    fn process(pid: u32, start_ns: u64, parent: (u32, u64)) -> WatchProcessRecord {
        let key = |(tgid, start_ns)| ProcessKey { start_ns, tgid, padding: 0 };
        let head = RecordHead { kind: 1, stream: 0, size: 0 };
        WatchProcessRecord { head, process: key((pid, start_ns)), parent: key(parent) }
    }

    #[test]
    fn a_family_goes_by_parents_and_their_starts() {
        let processes = [
            process(2, 50, (12, 40)), // pids have wrapped around
            process(10, 10, (1, 0)),
            process(12, 40, (10, 10)),
            process(13, 45, (10, 9)), // of another that had the pid
            process(20, 20, (1, 0)),
        ];
        let members = |root| {
            let mut pids: Vec<_> = family(root, &processes).iter().map(|key| key.tgid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(members(10), [2, 10, 12]);
        assert_eq!(members(20), [20]);
        assert_eq!(members(99), [0_u32; 0]);
    }

    /// A shell that starts processes when told to. Ends with them.
    struct Shell(Child);

    impl Drop for Shell {
        fn drop(&mut self) {
            let group = rustix::process::Pid::from_child(&self.0);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = self.0.wait();
        }
    }

    #[test]
    fn children_that_find_no_room_are_counted() {
        let start = "read go; for i in 1 2 3 4; do sleep 60 & done; echo started; wait";
        let mut shell = Command::new("sh");
        shell.args(["-c", start]).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = Shell(shell.spawn().unwrap());
        let kernel = Kernel::read().unwrap();
        let loader = Loader::new("test", Requirements::default(), ebpf_probes::CPU);
        let watch = Watch::Tree(shell.0.id());
        // the first size that is set holds
        let mut object = watch.configure(loader.entries("watched", 3)).load(&kernel).unwrap();
        watch.begin(&mut object, &kernel).unwrap();
        let watched = |object: &Object| object.read_all::<u32, u64>("watched").unwrap().len();
        assert_eq!(watched(&object), 1);
        writeln!(shell.0.stdin.as_mut().unwrap(), "go").unwrap();
        let mut line = String::new();
        BufReader::new(shell.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!((line.as_str(), watched(&object)), ("started\n", 3));
        let losses =
            ["exit_state_full", "switch_unmatched", "switch_table_full", "watch_table_full"];
        let losses = object.losses(&losses).unwrap();
        assert_eq!(losses[3], ("watch_table_full", 2), "{losses:?}");
    }

    #[test]
    fn more_than_there_is_room_for_is_an_error() {
        let kernel = Kernel::read().unwrap();
        let loader = Loader::new("test", Requirements::default(), ebpf_probes::CPU);
        let mut object = Watch::Tree(1).configure(loader).load(&kernel).unwrap();
        let keys = |count| (1..=count).map(|tgid| ProcessKey { start_ns: 1, tgid, padding: 0 });
        list(&mut object, keys(LARGEST)).unwrap();
        for wrong in [0, LARGEST + 1] {
            let error = list(&mut object, keys(wrong)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
        }
    }
}
