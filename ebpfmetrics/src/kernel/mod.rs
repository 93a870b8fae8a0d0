//! The running kernel: its BTF and hooks, CPUs, clocks and descriptors.

use std::{collections::BTreeSet, fmt, io};

use self::btf::Btf;
use crate::error::{Error, ErrorKind, Result};

pub(crate) mod btf;
pub(crate) mod checks;
mod clocks;
mod contents;
mod cpus;
mod descriptors;
mod namespaces;
mod requirements;
mod tracefs;

pub(crate) use self::{
    clocks::{monotonic_ns, thread_cpu_time_ns},
    contents::{Contents, trim_heap},
    cpus::{OnlineCpus, possible_cpus},
    descriptors::{fd_info, wait_readable},
    tracefs::tracepoint_id,
};
pub use self::{namespaces::in_initial_pid_namespace, requirements::Requirements};

pub(crate) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel, described by its BTF (its own type information).
///
/// Reading it takes about 2 ms, and it uses less than 1 MiB of memory. Kernels before 6.15 cannot
/// map their BTF, so it is copied: about 5 ms and 5 MiB more.
///
/// `load()` and `add()` read it themselves. To load several probes, read it once, pass it to
/// `load_on` or `add_on`, and drop it.
///
/// ```no_run
/// use ebpfmetrics::{CpuProbe, Kernel};
///
/// let kernel = Kernel::read()?;
/// let processes = CpuProbe::builder().load_on(&kernel)?;
/// let threads = CpuProbe::builder().threads(true).load_on(&kernel)?;
/// drop(kernel);
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
pub struct Kernel {
    /// `None` only during drop.
    btf: Option<Btf<Contents>>,
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
            let text = format!(
                "cannot read {BTF_PATH} ({error}): eBPF programs are relocated against the \
                 kernel's BTF; use a kernel built with CONFIG_DEBUG_INFO_BTF=y (all large \
                 distributions since 2021), and mount /sys in containers"
            );
            Error::new(ErrorKind::BtfMissing, text).with_source(error)
        })?;
        let btf = Btf::parse(bytes).ok_or_else(|| {
            let text = format!("{BTF_PATH} is truncated or in an unknown format");
            Error::new(ErrorKind::BtfMissing, text)
        })?;
        Ok(Self { btf: Some(btf) })
    }

    pub(crate) fn btf(&self) -> &Btf<Contents> {
        self.btf.as_ref().expect("there until drop")
    }

    /// Whether the kernel has a tracepoint that BTF-typed programs can attach to.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.btf().tracepoint(name).is_some()
    }

    /// Number of arguments that a tracepoint passes to programs; `None` if the kernel does
    /// not have it. The number differs between kernel versions.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        self.btf().tracepoint_arguments(name)
    }

    /// Whether the kernel has a BPF iterator such as `task`.
    pub fn has_iterator(&self, name: &str) -> bool {
        self.btf().iterator(name).is_some()
    }

    /// Offsets of variables in the kernel's per-CPU area, in the order of the names. `None`
    /// for a variable that the BTF does not list.
    pub(crate) fn per_cpu_offsets<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        self.btf().per_cpu_offsets(names)
    }

    /// Names and values of an enum of the kernel, in declaration order.
    pub(crate) fn enumerators(&self, name: &str) -> Option<Vec<(String, u32)>> {
        self.btf().enumerators(name)
    }

    /// The required hooks that this kernel lacks.
    pub(crate) fn missing(&self, requirements: &Requirements) -> BTreeSet<&'static str> {
        let tracepoints = requirements.tracepoints.iter().filter(|name| !self.has_tracepoint(name));
        let iterators = requirements.iterators.iter().filter(|name| !self.has_iterator(name));
        tracepoints.chain(iterators).copied().collect()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.btf = None;
        trim_heap();
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
    fn an_unreadable_file_is_named_with_a_remedy() {
        let error = Kernel::parse(Err(io::ErrorKind::NotFound.into())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BtfMissing);
        let text = error.to_string();
        assert!(text.contains(BTF_PATH) && text.contains("CONFIG_DEBUG_INFO_BTF"), "{text}");
    }

    #[test]
    fn a_broken_file_does_not_panic() {
        let error = Kernel::parse(Ok(Contents::Copied(vec![1, 2, 3]))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BtfMissing);
    }

    #[test]
    fn missing_hooks_are_listed() {
        let requirements = Requirements {
            tracepoints: ["sched_switch", "no_tracepoint"].into(),
            iterators: ["task", "no_iterator"].into(),
        };
        let missing = Kernel::read().unwrap().missing(&requirements);
        assert_eq!(missing, ["no_iterator", "no_tracepoint"].into());
    }

    #[test]
    fn enums_of_the_kernel_have_their_names_and_values() {
        let controllers = Kernel::read().unwrap().enumerators("cgroup_subsys_id").unwrap();
        assert!(controllers.iter().any(|(name, _)| name == "memory_cgrp_id"), "{controllers:?}");
    }
}
