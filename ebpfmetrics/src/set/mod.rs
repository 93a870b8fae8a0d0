//! Sets of probes, and single probes.

mod builder;
mod single;

use std::fmt;

pub use builder::{ProbeBuilder, ProbeSetBuilder, SetOptions};
pub use single::Single;

use crate::{
    collect::{
        SharedFilter,
        collector::{Collector, Read},
        engine::Engine,
    },
    error::Result,
    kernel::{Kernel, checks},
    probe::{Cost, Health, Probe},
    process::{CgroupHierarchy, Cgroups, ProcessId},
    snapshot::{Handle, Snapshot, Usage},
};

/// The handle of a builder's probe.
pub type HandleOf<B> = Handle<
    <<B as ProbeBuilder>::Collector as Collector>::Usage,
    <<B as ProbeBuilder>::Collector as Collector>::System,
>;

/// Several probes that are read together: one window, one walk over all tasks, one row per
/// process.
///
/// Probes can be added and removed while the set runs. Adding or removing a probe does not
/// change the window or the counters of the others.
///
/// ```no_run
/// use std::time::Duration;
/// use ebpfmetrics::{CpuProbe, MemProbe, Probe, ProbeSet};
///
/// let mut probes = ProbeSet::new()?;
/// let cpu = probes.add(CpuProbe::builder())?;
/// let mem = probes.add(MemProbe::builder())?;
/// std::thread::sleep(Duration::from_secs(1));
/// let snapshot = probes.reset()?;
/// for process in snapshot.processes() {
///     println!(
///         "{} {} {:.1} % {:?}",
///         process.id,
///         process.info.comm,
///         process[cpu].percent_of_one_cpu(snapshot.window),
///         process[mem].resident_peak_bytes,
///     );
/// }
/// probes.remove(mem)?;
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
///
/// A set without probes lists the processes.
///
/// * **Source**: a BPF iterator over all tasks; the tracepoints `sched_process_fork`,
///   `sched_process_exit`, `sched_process_free`, `cgroup_attach_task` and `cgroup_rmdir`, however
///   many probes the set has.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Kernel memory**: up to 0.9 KiB per process that has ended since the last read, see
///   [`max_ended`](ProbeSetBuilder::max_ended).
#[must_use = "dropping it detaches the probes"]
pub struct ProbeSet {
    engine: Engine,
}

impl ProbeSet {
    /// Creates a set that measures all processes. It has no probes yet.
    ///
    /// # Errors
    /// What the machine lacks, by [`ErrorKind`](crate::ErrorKind); the text says how to fix it.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Options of a set, such as a filter.
    pub fn builder() -> ProbeSetBuilder {
        ProbeSetBuilder::default()
    }

    /// Loads and attaches a probe. It counts from now on. Its first window ends with the current
    /// window of the set.
    ///
    /// # Errors
    /// The options are invalid, the set already has a built-in probe of this kind, or the machine
    /// lacks something. The set is then unchanged.
    pub fn add<B: ProbeBuilder>(&mut self, probe: B) -> Result<HandleOf<B>> {
        let kernel = read_kernel()?;
        self.add_on(probe, &kernel)
    }

    /// Like [`add`](Self::add), with a description of the kernel that was read before.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_on<B: ProbeBuilder>(
        &mut self,
        mut probe: B,
        kernel: &Kernel,
    ) -> Result<HandleOf<B>> {
        if let Some(options) = probe.set_options() {
            options.check_default()?;
        }
        let added = self.engine.add::<B::Collector>(probe, kernel);
        added.map_err(|error| {
            checks::explain(error, B::Collector::NAME, &B::Collector::requirements())
        })
    }

    /// Detaches a probe and frees its maps. Its usage since the last reset is lost; to keep it, take
    /// a snapshot before.
    ///
    /// # Errors
    /// The probe is not in this set, or the kernel does not load the programs for the remaining
    /// probes. The set is then unchanged.
    pub fn remove<U, S>(&mut self, probe: Handle<U, S>) -> Result<()> {
        let kernel = read_kernel()?;
        self.engine.remove(probe.id(), &kernel)
    }

    /// Names of the probes, in the order in which they were added.
    pub fn probes(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.engine.probes()
    }

    /// The hierarchy that cgroup ids belong to.
    pub fn cgroup_hierarchy(&self) -> &CgroupHierarchy {
        self.engine.cgroup_hierarchy()
    }

    /// Identity of a process by its pid in the caller's PID namespace. In a container these pids
    /// differ from those of the rows, which are of the initial PID namespace.
    /// [`Snapshot::row`](crate::Snapshot::row) finds its row.
    ///
    /// Finds live processes and zombies; `None` if there is none with this pid. Reads the list of
    /// all processes.
    ///
    /// ```no_run
    /// use ebpfmetrics::{CpuProbe, Probe, ProbeSet};
    ///
    /// let mut set = ProbeSet::new()?;
    /// let cpu = set.add(CpuProbe::builder())?;
    /// let child = std::process::Command::new("make").spawn().expect("make is installed");
    /// let id = set.process_id(child.id())?;
    /// let snapshot = set.reset()?;
    /// if let Some(row) = id.and_then(|id| snapshot.row(id)) {
    ///     println!("{:?}", row[cpu].cpu_time);
    /// }
    /// # Ok::<(), ebpfmetrics::Error>(())
    /// ```
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn process_id(&self, pid: u32) -> Result<Option<ProcessId>> {
        self.engine.process_of(pid)
    }

    /// Reads the paths of all cgroups in the hierarchy of the set: those that exist, and those that
    /// were removed while the set was loaded, so that rows of ended processes have a path too.
    ///
    /// The path of a removed cgroup is the one at its removal, from the root of the hierarchy (in a
    /// cgroup namespace as well). The set keeps the last 4,096. If more are removed in a window, or
    /// a path is longer than 1,022 bytes, the path is unknown and is counted as the loss
    /// `cgroup_path_missing`.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn cgroups(&self) -> Result<Cgroups> {
        self.engine.cgroups()
    }

    /// Usage of an ended process since it began, from one probe. Use it when
    /// [`Events`](crate::Events) reports that a process has exited. Figures that the probe itself
    /// counts begin when the probe is loaded.
    ///
    /// `None` if the process has not been released yet, or if a snapshot has been taken since: the
    /// snapshot then has its usage.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn final_usage<U: Usage, S>(
        &self,
        probe: Handle<U, S>,
        process: ProcessId,
    ) -> Result<Option<U>> {
        self.engine.final_usage(probe.id(), process)
    }

    pub(crate) fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    pub(crate) fn shared_filter(&self) -> &SharedFilter {
        self.engine.shared_filter()
    }

    pub(crate) fn collector<C: Collector>(&self, probe: Handle<C::Usage, C::System>) -> Option<&C> {
        self.engine.collector(probe.id())
    }
}

impl Probe for ProbeSet {
    type Snapshot = Snapshot;

    fn snapshot(&mut self) -> Result<Snapshot> {
        self.engine.snapshot(Read::Snapshot)
    }

    fn reset(&mut self) -> Result<Snapshot> {
        self.engine.snapshot(Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        self.engine.health()
    }

    fn cost(&self) -> Result<Cost> {
        self.engine.cost()
    }
}

impl AsRef<Self> for ProbeSet {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl fmt::Debug for ProbeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeSet")
            .field("probes", &self.probes().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Reads the description of the kernel; an error says what the machine lacks.
pub(crate) fn read_kernel() -> Result<Kernel> {
    Kernel::read()
        .map_err(|error| checks::explain(error, "set", &crate::collect::engine::requirements()))
}
