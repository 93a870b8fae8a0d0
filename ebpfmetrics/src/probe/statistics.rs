use std::os::fd::OwnedFd;

use crate::{error::Result, object::enable_statistics};

/// Makes the kernel measure how often all BPF programs run and how long they take, until it
/// is dropped.
///
/// Every program of the machine then reads a clock twice per run. Needs `CAP_SYS_ADMIN` and
/// Linux 5.8.
///
/// ```no_run
/// use ebpfmetrics::{Events, probe::Statistics};
///
/// let events = Events::builder().started(true).load()?;
/// let statistics = Statistics::enable()?;
/// std::thread::sleep(std::time::Duration::from_secs(1));
/// drop(statistics);
/// for program in events.cost()?.programs {
///     println!("{}: {:?} ns per run", program.program, program.ns_per_run());
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[must_use = "dropping it turns the statistics off"]
#[derive(Debug)]
pub struct Statistics {
    _fd: OwnedFd,
}

impl Statistics {
    /// Turns the statistics on.
    ///
    /// # Errors
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied) without `CAP_SYS_ADMIN`;
    /// [`System`](crate::ErrorKind::System) if the kernel is too old.
    pub fn enable() -> Result<Self> {
        Ok(Self { _fd: enable_statistics()? })
    }
}
