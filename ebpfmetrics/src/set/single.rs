use std::fmt;

use super::{ProbeBuilder, ProbeSet, ProbeSetBuilder};
use crate::{
    collect::collector::Collector,
    error::Result,
    kernel::Kernel,
    probe::{Cost, Health, Probe},
    process::{CgroupHierarchy, Cgroups, ProcessId},
    snapshot::{Handle, ProbeSnapshot},
};

/// A probe that is loaded by itself: a set with one probe, whose snapshots have the probe's
/// own type.
#[must_use = "dropping it detaches the probe"]
pub struct Single<C: Collector> {
    set: ProbeSet,
    probe: Handle<C::Usage, C::System>,
}

impl<C: Collector> Single<C> {
    /// Loads and attaches the probe. Its first window starts here.
    ///
    /// # Errors
    /// What the machine lacks, by [`ErrorKind`](crate::ErrorKind); the text says how to fix it.
    pub fn load<B: ProbeBuilder<Collector = C>>(builder: B) -> Result<Self> {
        let kernel = super::read_kernel()?;
        Self::load_on(builder, &kernel)
    }

    /// Like [`load`](Self::load), with a description of the kernel that was read before.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on<B: ProbeBuilder<Collector = C>>(
        mut builder: B,
        kernel: &Kernel,
    ) -> Result<Self> {
        let options = builder.set_options().map(std::mem::take).unwrap_or_default();
        let mut set = ProbeSetBuilder::from_options(options).build_on(kernel)?;
        let probe = set.add_on(builder, kernel)?;
        // the window of the probe is that of the set
        set.reset()?;
        Ok(Self { set, probe })
    }

    /// The hierarchy that cgroup ids belong to.
    pub fn cgroup_hierarchy(&self) -> &CgroupHierarchy {
        self.set.cgroup_hierarchy()
    }

    /// Identity of a process by its pid in the caller's PID namespace, see
    /// [`ProbeSet::process_id`].
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn process_id(&self, pid: u32) -> Result<Option<ProcessId>> {
        self.set.process_id(pid)
    }

    /// Reads the paths of cgroups, also of removed ones, see [`ProbeSet::cgroups`].
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn cgroups(&self) -> Result<Cgroups> {
        self.set.cgroups()
    }

    /// Usage of a process from its start to its end, see [`ProbeSet::final_usage`].
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn final_usage(&self, process: ProcessId) -> Result<Option<C::Usage>> {
        self.set.final_usage(self.probe, process)
    }

    pub(crate) fn collector(&self) -> Option<&C> {
        self.set.collector(self.probe)
    }
}

impl<C: Collector<Options: Default>> Single<C> {
    /// The options of the probe.
    pub fn builder() -> C::Options {
        C::Options::default()
    }
}

impl<C: Collector> Probe for Single<C> {
    type Snapshot = ProbeSnapshot<C::Usage, C::System>;

    fn snapshot(&mut self) -> Result<Self::Snapshot> {
        Ok(self.set.snapshot()?.into_single(self.probe))
    }

    fn reset(&mut self) -> Result<Self::Snapshot> {
        Ok(self.set.reset()?.into_single(self.probe))
    }

    fn health(&self) -> Result<Health> {
        self.set.health()
    }

    fn cost(&self) -> Result<Cost> {
        self.set.cost()
    }
}

/// The set that contains the probe.
impl<C: Collector> AsRef<ProbeSet> for Single<C> {
    fn as_ref(&self) -> &ProbeSet {
        &self.set
    }
}

impl<C: Collector> fmt::Debug for Single<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Single").field("probe", &C::NAME).finish_non_exhaustive()
    }
}
