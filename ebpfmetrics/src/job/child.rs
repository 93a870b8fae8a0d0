use std::{
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::builder::system_error;
use crate::error::Result;

/// The command of a job. It is killed if it is dropped before [`release`](Self::release).
pub(super) struct JobChild {
    child: Child,
    /// `None` if it had ended, and nobody has to wait for it.
    pidfd: Option<OwnedFd>,
    has_ended: bool,
    status: Option<ExitStatus>,
    kill_on_drop: bool,
}

impl JobChild {
    pub(super) fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.spawn().map_err(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            system_error(&format!("cannot start the command {program}"), error)
        })?;
        let pid = child.id();
        let mut this =
            Self { child, pidfd: None, has_ended: false, status: None, kill_on_drop: true };
        let pid = Pid::from_raw(pid as i32).unwrap_or(Pid::INIT);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => this.pidfd = Some(fd),
            Err(Errno::SRCH) => {} // SIGCHLD is ignored, and it has ended already
            Err(error) => return Err(system_error("cannot follow the command", error.into())),
        }
        Ok(this)
    }

    /// Lets the command go on if this is dropped.
    pub(super) fn release(&mut self) {
        self.kill_on_drop = false;
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn get_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(super) fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    pub(super) fn has_ended(&mut self) -> Result<bool> {
        if self.has_ended {
            return Ok(true);
        }
        match self.child.try_wait() {
            Ok(None) => return Ok(false),
            Ok(status) => self.status = status,
            // the kernel or another part of the caller has reaped it
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {}
            Err(error) => return Err(system_error("cannot wait for the command", error)),
        }
        self.has_ended = true;
        Ok(true)
    }

    /// Waits until it has ended, or for this time.
    pub(super) fn wait_timeout(&mut self, timeout: Duration) -> Result<bool> {
        /// Its end can be seen a moment before it can be waited for.
        const MOMENT: Duration = Duration::from_millis(1);
        let start = Instant::now();
        loop {
            if self.has_ended()? {
                return Ok(true);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            let is_over = match &self.pidfd {
                None => true,
                Some(fd) => {
                    let left = Timespec::try_from(left).ok();
                    match poll(&mut [PollFd::new(fd, PollFlags::IN)], left.as_ref()) {
                        Ok(ready) => ready > 0,
                        Err(Errno::INTR) => false,
                        Err(error) => {
                            return Err(system_error("cannot wait for the command", error.into()));
                        }
                    }
                }
            };
            if is_over && !self.has_ended()? {
                sleep(MOMENT.min(left));
            }
        }
    }
}

impl Drop for JobChild {
    fn drop(&mut self) {
        if self.kill_on_drop {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
