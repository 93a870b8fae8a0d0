//! The caller as the kernel knows it.

use std::process;

use crate::{
    collect::engine::Engine,
    error::{Error, ErrorKind, Result},
    kernel::{Kernel, in_initial_pid_namespace},
    probe::Probe as _,
    process::ProcessId,
    set::ProbeSet,
};

/// The caller's pid in the initial PID namespace.
pub(super) fn pid(kernel: &Kernel) -> Result<u32> {
    let own = process::id();
    if in_initial_pid_namespace() {
        return Ok(own);
    }
    let rows = ProbeSet::builder().build_on(kernel)?.snapshot()?;
    let same_pid: Vec<_> =
        rows.processes().filter(|row| row.info.namespace_pid == own).map(|row| row.id).collect();
    if let [only] = same_pid[..] {
        return Ok(only.pid);
    }
    // a process in a namespace below this one can have the same pid there
    let ticks = procfs::process::Process::myself().and_then(|own| own.stat());
    let start_ns =
        ticks.map_err(|_| unknown())?.starttime * (1_000_000_000 / procfs::ticks_per_second());
    let mut same = same_pid.iter().filter(|id| id.rounded_to_ticks().start_time_ns == start_ns);
    match (same.next(), same.next()) {
        (Some(only), None) => Ok(only.pid),
        _ => Err(unknown()),
    }
}

pub(super) fn unknown() -> Error {
    let text = "the kernel does not show the calling process: it runs in a PID namespace whose \
                pids are ambiguous; start the job from the initial PID namespace";
    Error::new(ErrorKind::NoSuchProcess, text)
}

/// A child of the caller, if its pid is that of the kernel and it has not been released.
pub(super) fn in_initial_namespace(pid: u32, engine: &Engine) -> Result<Option<ProcessId>> {
    match in_initial_pid_namespace() {
        true => engine.filtered(pid),
        false => Ok(None),
    }
}
