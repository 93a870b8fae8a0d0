//! Selects the processes that a set measures: the user side of `bpf/include/filter.h`.

use std::collections::{HashMap, HashSet};

use super::walk::RecordBuffer;
use crate::{
    error::{Error, ErrorKind, Result},
    object::{MapHandle, Object, ObjectLoader},
    process::ProcessId,
    record::{ProcessKey, ProcessParentRecord, filter_mode},
};

/// Selects which processes a set measures. The filter runs in the kernel: processes outside it
/// have no row, and cost less per snapshot and at their end.
///
/// Sums over a snapshot then cover the selected processes. Machine-wide figures are not filtered:
/// CPU times, block devices, slab allocations on idle CPUs. Cheap hooks (a context switch, a
/// page, a slab allocation) cost as much as without a filter.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, Filter, ProbeSet};
///
/// // children of this process that are started from now on are included
/// let mut probes = ProbeSet::builder().filter(Filter::tree(std::process::id())).build()?;
/// let cpu = probes.add(CpuProbe::builder())?;
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Filter {
    /// Every process of the machine.
    #[default]
    All,
    /// These processes, by their pids in the caller's PID namespace, as long as they live. At
    /// most 16,384.
    Processes(Vec<u32>),
    /// A process by its pid in the caller's PID namespace, its descendants when the set is created, and everything that these start
    /// from then on. Descendants stay in the filter when their parents end. At most 16,384
    /// at a time; a process beyond that and its children are not measured, and are counted
    /// as the loss `filter_table_full`.
    ///
    /// To measure a command completely, filter by the process that will start it
    /// (`std::process::id()`), and start it afterwards.
    Tree(u32),
    /// A cgroup and the cgroups at most 15 levels below it, by its id
    /// ([`Cgroups::id`](crate::Cgroups::id)) in the hierarchy of the set.
    ///
    /// A process is measured while its main thread is inside. What it uses outside does not count,
    /// however often it moves. A process that moves out is reported as exited, with its usage up
    /// to the move. A move that cannot be followed is counted as the loss `cgroup_move_missing`.
    Cgroup(u64),
}

/// The filter of a set, for objects that share its maps.
#[derive(Clone, Debug)]
pub(crate) struct SharedFilter {
    pub(super) filter: Filter,
    /// The kernel's number of the controller that cgroup ids belong to.
    pub(super) cgroup_hierarchy: i32,
    pub(super) maps: Vec<MapHandle>,
    /// A process in the filter that is no part of what is measured: the caller of a job, by its
    /// pid in the initial PID namespace.
    pub(super) caller: Option<u32>,
}

impl SharedFilter {
    /// Without a set: every process passes.
    pub(crate) fn all(cgroup_hierarchy: i32) -> Self {
        Self { filter: Filter::All, cgroup_hierarchy, maps: Vec::new(), caller: None }
    }

    /// Sets the filter in an object that includes `filter.h`.
    pub(crate) fn configure(&self, loader: ObjectLoader) -> ObjectLoader {
        let loader = loader
            .override_global_if_present("cgroup_hierarchy", self.cgroup_hierarchy)
            .reuse_maps(&self.maps);
        self.filter.configure(loader)
    }
}

/// Room for this many processes at a time.
pub(super) const MAX_PROCESSES: u32 = 16_384;
/// `KNOWN_CGROUPS`
const KNOWN_CGROUPS: u32 = 256;

impl Filter {
    /// [`Filter::Processes`]
    pub fn processes(pids: impl IntoIterator<Item = u32>) -> Self {
        Self::Processes(pids.into_iter().collect())
    }

    /// [`Filter::Tree`]
    pub fn tree(root: u32) -> Self {
        Self::Tree(root)
    }

    /// [`Filter::Cgroup`]
    pub fn cgroup(id: u64) -> Self {
        Self::Cgroup(id)
    }

    /// Sets the constants of the filter.
    pub(super) fn configure(&self, loader: ObjectLoader) -> ObjectLoader {
        let mode = |loader: ObjectLoader, mode: u32| {
            loader.override_global_if_present("filter_mode", mode)
        };
        match self {
            Self::All => loader,
            Self::Processes(_) => mode(loader, filter_mode::LISTED),
            Self::Tree(_) => mode(loader, filter_mode::TREE),
            Self::Cgroup(id) => {
                mode(loader, filter_mode::CGROUP).override_global_if_present("filter_cgroup", *id)
            }
        }
    }

    /// Sizes the maps of the filter, in the object that creates them.
    pub(super) fn size_maps(&self, loader: ObjectLoader, max_filtered: u32) -> ObjectLoader {
        match self {
            Self::All => loader,
            Self::Processes(_) | Self::Tree(_) => loader.map_max_entries("filtered", max_filtered),
            Self::Cgroup(_) => loader.map_max_entries("known_cgroups", KNOWN_CGROUPS),
        }
    }

    /// Whether processes come in that existed before: what they used until they are first
    /// seen is then not part of the window.
    pub(super) fn admits_late(&self) -> bool {
        matches!(self, Self::Cgroup(_))
    }

    /// Lists the processes that exist already. The fork handler is attached: it adds what
    /// they start from here on.
    pub(super) fn begin(&self, object: &Object) -> Result<()> {
        match self {
            Self::All | Self::Cgroup(_) => Ok(()),
            Self::Processes(pids) => {
                let pids: HashSet<_> = pids.iter().copied().collect();
                if pids.len() > MAX_PROCESSES as usize {
                    return Err(too_many(pids.len()));
                }
                let mut listed = parents(object)?;
                listed.retain(|it| pids.contains(&it.reader_pid));
                let found: HashSet<_> = listed.iter().map(|it| it.reader_pid).collect();
                match pids.iter().find(|pid| !found.contains(pid)) {
                    Some(&missing) => Err(no_such_process(missing)),
                    None if pids.is_empty() => {
                        let text = "the filter lists no process";
                        Err(Error::new(ErrorKind::InvalidOption, text))
                    }
                    None => list(object, listed.iter().map(|it| it.process)),
                }
            }
            Self::Tree(root) => {
                // Repeat until nothing is new: a process may have started another between
                // the walk and its own listing.
                let mut listed = HashSet::new();
                loop {
                    let family = family(*root, &parents(object)?);
                    if family.is_empty() && listed.is_empty() {
                        return Err(no_such_process(*root));
                    }
                    if family.is_subset(&listed) {
                        return Ok(());
                    }
                    list(object, family.difference(&listed).copied())?;
                    listed.extend(family);
                }
            }
        }
    }
}

fn no_such_process(pid: u32) -> Error {
    let text = format!(
        "no process has the pid {pid} that the filter names; pids are those of the caller's PID \
         namespace"
    );
    Error::new(ErrorKind::NoSuchProcess, text)
}

fn too_many(processes: usize) -> Error {
    let text = format!("a filter holds at most {MAX_PROCESSES} processes, got {processes}");
    Error::new(ErrorKind::InvalidOption, text)
}

/// All processes with their parents.
fn parents(object: &Object) -> Result<Vec<ProcessParentRecord>> {
    let mut buffer = RecordBuffer::default();
    buffer.fill(&mut object.iterate("process_parents")?)?;
    let cast = |record| {
        bytemuck::try_from_bytes(buffer.get(record))
            .copied()
            .map_err(|_| super::collector::invalid_record("of unexpected size"))
    };
    buffer.records().map(|record| cast(record?)).collect()
}

fn list(object: &Object, processes: impl Iterator<Item = ProcessKey>) -> Result<()> {
    let entries: Vec<(u32, u64)> = processes.map(|key| (key.tgid, key.start_ns)).collect();
    if entries.len() > MAX_PROCESSES as usize {
        return Err(too_many(entries.len()));
    }
    object.update_batch("filtered", &entries)
}

/// A process by its pid in the reader's PID namespace.
fn find(pid: u32, processes: &[ProcessParentRecord]) -> Option<ProcessKey> {
    processes.iter().find(|it| it.reader_pid == pid).map(|it| it.process)
}

/// A live process, or a zombie, by its pid in the reader's PID namespace.
pub(super) fn process_of(pid: u32, object: &Object) -> Result<Option<ProcessId>> {
    Ok(find(pid, &parents(object)?).map(|key| key.id()))
}

/// A process and all its descendants.
fn family(root: u32, processes: &[ProcessParentRecord]) -> HashSet<ProcessKey> {
    let mut children: HashMap<ProcessKey, Vec<ProcessKey>> = HashMap::new();
    for &ProcessParentRecord { process, parent, .. } in processes {
        children.entry(parent).or_default().push(process);
    }
    let root = find(root, processes);
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
    use crate::{
        collect::engine::{Engine, Options},
        kernel::Kernel,
        record::{ProcessLoss, RecordHead},
    };

    fn process(pid: u32, start_ns: u64, parent: (u32, u64)) -> ProcessParentRecord {
        let key = |(tgid, start_ns)| ProcessKey { start_ns, tgid, padding: 0 };
        let head = RecordHead { section: 0, kind: 7, size: 0 };
        ProcessParentRecord {
            head,
            reader_pid: pid % 100,
            padding: 0,
            process: key((pid, start_ns)),
            parent: key(parent),
        }
    }

    #[test]
    fn a_family_goes_by_parents_and_their_starts() {
        let processes = [
            process(2, 50, (12, 40)), // pids have wrapped around
            process(10, 10, (1, 0)),
            process(12, 40, (10, 10)),
            process(13, 45, (10, 9)), // of another that had the pid
            process(120, 20, (1, 0)),
        ];
        let members = |root| {
            let mut pids: Vec<_> = family(root, &processes).iter().map(|key| key.tgid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(members(10), [2, 10, 12]);
        assert_eq!(members(20), [120], "by the reader's pid");
        assert_eq!(members(99), [0_u32; 0]);
    }

    /// A shell that starts processes on a line of input. Ends with them.
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
        let options =
            Options { filter: Filter::tree(shell.0.id()), max_filtered: 3, ..Options::default() };
        let engine = Engine::load(options, &kernel).unwrap();
        let filtered = || {
            let all: Vec<(u32, u64)> = engine.base().lookup_batch("filtered").unwrap();
            all.len()
        };
        assert_eq!(filtered(), 1);
        writeln!(shell.0.stdin.as_mut().unwrap(), "go").unwrap();
        let mut line = String::new();
        BufReader::new(shell.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!((line.as_str(), filtered()), ("started\n", 3));
        let losses = engine.base().losses("process_losses", ProcessLoss::ALL.len()).unwrap();
        assert_eq!(losses, [0, 0, 2, 0, 0]);
    }

    #[test]
    fn more_than_there_is_room_for_is_an_error() {
        let kernel = Kernel::read().unwrap();
        for pids in [vec![], (1..=MAX_PROCESSES + 1).collect(), vec![u32::MAX]] {
            let kind = match pids.len() {
                1 => ErrorKind::NoSuchProcess,
                _ => ErrorKind::InvalidOption,
            };
            let options = Options { filter: Filter::processes(pids), ..Options::default() };
            assert_eq!(Engine::load(options, &kernel).err().unwrap().kind(), kind);
        }
    }
}
