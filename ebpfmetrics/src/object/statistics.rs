//! What the kernel reports about the programs and maps of an object.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use super::{bpf, object::Object, programs::Program};
use crate::{
    error::{Error, ErrorKind, Result},
    kernel::fd_info,
};

impl Object {
    /// Number of losses by cause since the object was loaded: for each of the first
    /// `causes` elements of a per-CPU array of `u64`, the sum over all CPUs.
    ///
    /// # Errors
    /// Those of [`per_cpu_element`](Self::per_cpu_element).
    pub fn losses(&self, map: &str, causes: usize) -> Result<Vec<u64>> {
        let sum = |cause| Ok(self.per_cpu_element::<u64>(map, cause as u32)?.iter().sum());
        (0..causes).map(sum).collect()
    }

    /// How often the kernel did not run an attached program because it was already running
    /// on the same CPU. Kernels before 5.12 do not report it.
    ///
    /// # Errors
    /// [`System`](ErrorKind::System) if the kernel refuses.
    pub fn recursion_misses(&self) -> Result<u64> {
        let attached = self.loaded().filter(|(_, program)| program.link.is_some());
        attached.map(|(name, program)| Ok(self.info(name, program)?.recursion_misses)).sum()
    }

    /// Memory of its maps in bytes, without those of other objects that it reuses.
    ///
    /// # Errors
    /// [`System`](ErrorKind::System) if the kernel does not report it.
    pub fn map_bytes(&self) -> Result<u64> {
        let own = self.maps.iter().filter(|(_, map)| !map.reused);
        let bytes = own.map(|(name, map)| {
            fd_info(map.handle.as_fd(), "memlock")
                .map_err(|error| self.map_failed("reading fdinfo", name, error))
        });
        bytes.sum()
    }

    /// Number of programs that are loaded.
    pub fn program_count(&self) -> usize {
        self.loaded().count()
    }

    /// Name, number of runs and run time of each loaded program. Both are counted only while
    /// [`Statistics`](crate::probe::Statistics) are enabled.
    ///
    /// # Errors
    /// [`System`](ErrorKind::System) if the kernel refuses.
    pub fn program_costs(&self) -> Result<Vec<(String, u64, Duration)>> {
        let cost = |(name, program): (&str, &Program)| {
            let info = self.info(name, program)?;
            Ok((name.to_owned(), info.run_count, Duration::from_nanos(info.run_time_ns)))
        };
        self.loaded().map(cost).collect()
    }

    fn info(&self, name: &str, program: &Program) -> Result<bpf::program::ProgramInfo> {
        let info = program.fd().and_then(bpf::program::program_info);
        info.map_err(|error| self.program_failed("BPF_OBJ_GET_INFO_BY_FD", name, error))
    }

    fn loaded(&self) -> impl Iterator<Item = (&str, &Program)> {
        let programs = self.programs.iter().map(|(name, program)| (name.as_str(), program));
        programs.filter(|(_, program)| program.is_loaded())
    }
}

/// Makes the kernel measure runs and run time of all programs until the result is dropped.
pub(crate) fn enable_statistics() -> Result<OwnedFd> {
    bpf::enable_statistics().map_err(|error| {
        let (kind, remedy) = match error.raw_os_error() {
            Some(libc::EPERM) => (ErrorKind::PermissionDenied, "; it needs CAP_SYS_ADMIN"),
            _ => (ErrorKind::System, "; it needs Linux 5.8 or newer"),
        };
        let text = format!("BPF_ENABLE_STATS failed: {error}{remedy}");
        Error::new(kind, text).with_source(error)
    })
}
