use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs, io,
};

use crate::{Error, ErrorKind, Requirements, Result, btf, loader::KernelBtf};

pub(crate) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's own description of itself (BTF), read once.
///
/// Reading it takes some 16 ms and, for as long as it is held, some 14 MiB.
/// Builders read it themselves; who loads several probes reads it once, hands it
/// to all of them, and drops it.
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
    btf: Option<KernelBtf>,
    run_queues_offset: Option<u64>,
    cpuacct_offset: Option<u64>,
    tracepoint_arguments: HashMap<String, usize>,
}

impl Kernel {
    /// Reads `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    /// [`ErrorKind::BtfMissing`] if the kernel was built without
    /// `CONFIG_DEBUG_INFO_BTF`.
    pub fn read() -> Result<Self> {
        Self::parse(fs::read(BTF_PATH))
    }

    fn parse(bytes: io::Result<Vec<u8>>) -> Result<Self> {
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
        let parsed = KernelBtf::parse(&bytes).map_err(|error| {
            Error::new(ErrorKind::BtfMissing, format!("{BTF_PATH} is not BTF as known here"))
                .with_source(error)
        })?;
        let found = btf::find(&bytes, ["runqueues", "root_cpuacct_cpuusage"]);
        let [run_queues_offset, cpuacct_offset] = found.per_cpu_offsets;
        Ok(Self {
            btf: Some(parsed),
            run_queues_offset,
            cpuacct_offset,
            tracepoint_arguments: found.tracepoint_arguments,
        })
    }

    pub(crate) fn btf(&self) -> &KernelBtf {
        self.btf.as_ref().expect("there until drop")
    }

    /// Whether the kernel has a tracepoint that programs can attach to by type.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.tracepoint_arguments(name).is_some()
    }

    /// How many arguments a tracepoint hands to programs; `None` if the kernel does
    /// not have it. Kernels add arguments and take them away.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        self.tracepoint_arguments.get(name).copied()
    }

    /// Whether the kernel has an iterator such as `task`.
    pub fn has_iterator(&self, name: &str) -> bool {
        self.btf().has_iterator(name)
    }

    /// Where the scheduler's and its accounting's per-CPU data lie: both or neither.
    pub(crate) fn run_queue_and_cpuacct_offsets(&self) -> Option<(u64, u64)> {
        self.run_queues_offset.zip(self.cpuacct_offset)
    }

    /// Of some hooks those that this kernel lacks.
    pub(crate) fn missing(&self, needs: &Requirements) -> BTreeSet<&'static str> {
        let tracepoints = needs.tracepoints.iter().filter(|name| !self.has_tracepoint(name));
        let iterators = needs.iterators.iter().filter(|name| !self.has_iterator(name));
        tracepoints.chain(iterators).copied().collect()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.btf = None;
        crate::sys::trim_heap();
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
    fn a_broken_file_is_no_panic() {
        let error = Kernel::parse(Ok(vec![1, 2, 3])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BtfMissing);
    }
}
