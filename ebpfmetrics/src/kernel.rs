use std::{collections::BTreeSet, fmt, io};

use crate::{
    CgroupHierarchy, Error, ErrorKind, Requirements, Result,
    btf::Btf,
    sys::{self, Contents},
};

pub(crate) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's own description of itself (BTF), read once.
///
/// Reading it takes some 2 ms and, for as long as it is held, less than 1 MiB;
/// before Linux 6.15, which lends what it has, some 5 ms and 5 MiB more. Builders
/// read it themselves; who loads several probes reads it once, hands it to all of
/// them, and drops it.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, Kernel};
///
/// let kernel = Kernel::read()?;
/// let process_times = CpuProbe::builder().load_on(&kernel)?;
/// let thread_times = CpuProbe::builder().threads(true).load_on(&kernel)?;
/// drop(kernel);
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
pub struct Kernel {
    btf: Option<Btf<Contents>>,
    cgroup_hierarchy: CgroupHierarchy,
    /// The controller's number, -1 for the unified hierarchy.
    cgroup_hierarchy_number: i32,
}

impl Kernel {
    /// Reads `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    /// [`ErrorKind::BtfMissing`] if the kernel was built without
    /// `CONFIG_DEBUG_INFO_BTF`.
    pub fn read() -> Result<Self> {
        Self::parse(Contents::read(BTF_PATH))
    }

    fn parse(bytes: io::Result<Contents>) -> Result<Self> {
        let bytes = bytes.map_err(|error| {
            Error::new(
                ErrorKind::BtfMissing,
                format!(
                    "cannot read {BTF_PATH}: eBPF programs are fitted to the kernel by its BTF; \
                     use a kernel built with CONFIG_DEBUG_INFO_BTF=y (every large distribution's \
                     since 2021), and mount /sys in a container"
                ),
            )
            .with_source(error)
        })?;
        let btf = Btf::parse(bytes).ok_or_else(|| {
            Error::new(ErrorKind::BtfMissing, format!("{BTF_PATH} is not BTF as known here"))
        })?;
        let mounted = CgroupHierarchy::mounted();
        // a controller that the BTF does not know of is no reason not to measure
        let known = number_of(&mounted, &btf).map(|number| (mounted, number));
        let (cgroup_hierarchy, cgroup_hierarchy_number) =
            known.unwrap_or((CgroupHierarchy::Unified, UNIFIED));
        Ok(Self { btf: Some(btf), cgroup_hierarchy, cgroup_hierarchy_number })
    }

    pub(crate) fn btf(&self) -> &Btf<Contents> {
        self.btf.as_ref().expect("there until drop")
    }

    /// The hierarchy that the cgroup ids of probes loaded on this are of:
    /// [`CgroupHierarchy::mounted`] unless set.
    pub fn cgroup_hierarchy(&self) -> &CgroupHierarchy {
        &self.cgroup_hierarchy
    }

    /// Sets the hierarchy that cgroup ids are of.
    ///
    /// ```no_run
    /// use ebpfmetrics::{CgroupHierarchy, Cgroups, CpuProbe, Kernel};
    ///
    /// let kernel = Kernel::read()?.with_cgroup_hierarchy(CgroupHierarchy::controller("memory"))?;
    /// let probe = CpuProbe::builder().load_on(&kernel)?;
    /// let paths = Cgroups::of(kernel.cgroup_hierarchy());
    /// # Ok::<(), ebpfmetrics::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the kernel has no such controller.
    pub fn with_cgroup_hierarchy(mut self, hierarchy: CgroupHierarchy) -> Result<Self> {
        let number = number_of(&hierarchy, self.btf()).ok_or_else(|| {
            let text = format!("this kernel has no cgroup controller {hierarchy}");
            Error::new(ErrorKind::InvalidOption, text)
        });
        self.cgroup_hierarchy_number = number?;
        self.cgroup_hierarchy = hierarchy;
        Ok(self)
    }

    pub(crate) fn cgroup_hierarchy_number(&self) -> i32 {
        self.cgroup_hierarchy_number
    }

    /// Whether the kernel has a tracepoint that programs can attach to by type.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.btf().tracepoint(name).is_some()
    }

    /// How many arguments a tracepoint hands to programs; `None` if the kernel does
    /// not have it. Kernels add arguments and take them away.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        self.btf().tracepoint_arguments(name)
    }

    /// Whether the kernel has an iterator such as `task`.
    pub fn has_iterator(&self, name: &str) -> bool {
        self.btf().iterator(name).is_some()
    }

    /// Where variables lie in the kernel's per-CPU area, in the order of the names; `None`
    /// for those that the BTF does not list.
    pub(crate) fn per_cpu_offsets<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        self.btf().per_cpu_offsets(names)
    }

    /// Of some hooks those that this kernel lacks.
    pub(crate) fn missing(&self, needs: &Requirements) -> BTreeSet<&'static str> {
        let tracepoints = needs.tracepoints.iter().filter(|name| !self.has_tracepoint(name));
        let iterators = needs.iterators.iter().filter(|name| !self.has_iterator(name));
        tracepoints.chain(iterators).copied().collect()
    }
}

/// `UNIFIED_HIERARCHY`
const UNIFIED: i32 = -1;

/// What the kernel side calls a hierarchy: the number of its controller.
fn number_of(hierarchy: &CgroupHierarchy, btf: &Btf<Contents>) -> Option<i32> {
    let Some(controller) = hierarchy.enumerator() else { return Some(UNIFIED) };
    let controllers = btf.enumerators("cgroup_subsys_id")?;
    let number = controllers.into_iter().find(|(name, _)| *name == controller)?.1;
    Some(number as i32)
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.btf = None;
        sys::trim_heap();
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_says_which_and_what_to_do() {
        let error = Kernel::parse(Err(io::ErrorKind::NotFound.into())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BtfMissing);
        let text = error.to_string();
        assert!(text.contains(BTF_PATH) && text.contains("CONFIG_DEBUG_INFO_BTF"), "{text}");
    }

    #[test]
    fn a_hierarchy_is_known_by_its_controllers_number() {
        let with = |name| Kernel::read().unwrap().with_cgroup_hierarchy(name);
        assert_eq!(with(CgroupHierarchy::Unified).unwrap().cgroup_hierarchy_number(), UNIFIED);
        let number =
            |name| with(CgroupHierarchy::controller(name)).unwrap().cgroup_hierarchy_number();
        assert!(number("memory") >= 0 && number("blkio") >= 0);
        assert_ne!(number("memory"), number("pids"));
        let error = with(CgroupHierarchy::controller("none")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
    }

    #[test]
    fn a_broken_file_is_no_panic() {
        let error = Kernel::parse(Ok(Contents::Copied(vec![1, 2, 3]))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BtfMissing);
    }
}
