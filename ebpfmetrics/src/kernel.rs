use std::{collections::BTreeSet, fmt, io};

use crate::{
    Error, ErrorKind, Requirements, Result,
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
        Ok(Self { btf: Some(btf) })
    }

    pub(crate) fn btf(&self) -> &Btf<Contents> {
        self.btf.as_ref().expect("there until drop")
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
    fn a_broken_file_is_no_panic() {
        let error = Kernel::parse(Ok(Contents::Copied(vec![1, 2, 3]))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BtfMissing);
    }
}
