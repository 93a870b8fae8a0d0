use std::{fs, io, path::Path};

use crate::error::{Error, ErrorKind, Result};

/// Memory of a cgroup as the kernel charges it: each page once, to the cgroup that touched it
/// first, with page cache and kernel memory, and with the cgroups below it.
///
/// `None` where the kernel has no such file: without the memory controller, in the root of cgroup
/// v2, and for the peak in cgroup v2 before Linux 5.19.
///
/// ```no_run
/// use ebpfmetrics::{mem::CgroupMemory, process::CgroupHierarchy};
///
/// let hierarchy = CgroupHierarchy::controller("memory"); // or CgroupHierarchy::Unified
/// if let Some(directory) = hierarchy.directory("/system.slice".as_ref()) {
///     let memory = CgroupMemory::read(&directory)?;
///     println!("{:?} bytes now, {:?} at most", memory.current_bytes, memory.peak_bytes);
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct CgroupMemory {
    /// Charged now. `memory.current`; in cgroup v1 `memory.usage_in_bytes`, which is exact to some
    /// 64 pages per CPU.
    #[doc(alias = "memory.current")]
    #[doc(alias = "memory.usage_in_bytes")]
    pub current_bytes: Option<u64>,
    /// The most that was charged since the cgroup was created, or since the peak was last reset.
    /// `memory.peak`; in cgroup v1 `memory.max_usage_in_bytes`.
    #[doc(alias = "memory.peak")]
    #[doc(alias = "memory.max_usage_in_bytes")]
    pub peak_bytes: Option<u64>,
}

impl CgroupMemory {
    /// Reads a cgroup by its directory, see
    /// [`CgroupHierarchy::directory`](crate::process::CgroupHierarchy::directory).
    ///
    /// # Errors
    /// There is no such directory (the source is an [`io::Error`] of kind
    /// [`NotFound`](io::ErrorKind::NotFound)), or the files cannot be read.
    pub fn read(directory: &Path) -> Result<Self> {
        let read = || {
            fs::metadata(directory)?;
            Ok(Self {
                current_bytes: first_of(directory, "memory.current", "memory.usage_in_bytes")?,
                peak_bytes: first_of(directory, "memory.peak", "memory.max_usage_in_bytes")?,
            })
        };
        read().map_err(|error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::System,
            };
            let text = format!("cannot read the cgroup {}: {error}", directory.display());
            Error::new(kind, text).with_source(error)
        })
    }
}

/// The number in one of two files; `None` if there is neither.
fn first_of(directory: &Path, v2: &str, v1: &str) -> io::Result<Option<u64>> {
    for name in [v2, v1] {
        match fs::read_to_string(directory.join(name)) {
            Ok(text) => return text.trim().parse().map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
