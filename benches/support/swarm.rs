//! Many processes that sleep.

use anyhow::{Result, bail};

use super::serve;

/// Grows to as many sleeping children as asked for, and answers with the range
/// that their pids lie in.
pub(crate) fn run() -> Result<()> {
    let mut swarm = Swarm { pid_max: None, children: Vec::new() };
    rustix::process::setsid()?; // a ^C is not for those who have to clean up
    serve(|sleepers| {
        swarm.allow(sleepers)?;
        while swarm.children.len() < sleepers {
            swarm.children.push(sleeper()?);
        }
        let pids = || swarm.children.iter().copied();
        Ok(format!("{} {}", pids().min().unwrap_or(0), pids().max().unwrap_or(0)))
    })
}

struct Swarm {
    /// What it was before we raised it.
    pid_max: Option<String>,
    children: Vec<libc::pid_t>,
}

const PID_MAX: &str = "/proc/sys/kernel/pid_max";

impl Swarm {
    fn allow(&mut self, processes: usize) -> Result<()> {
        let now = std::fs::read_to_string(PID_MAX)?;
        let needed = processes * 2 + 8192;
        if now.trim().parse::<usize>()? < needed {
            std::fs::write(PID_MAX, needed.to_string())?;
            self.pid_max.get_or_insert(now);
        }
        Ok(())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "fork() without exec() has no safe end")]
        for &child in &self.children {
            // SAFETY: these are our children, not yet waited for; takes no pointer.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        for &child in &self.children {
            let _ = rustix::process::waitpid(
                rustix::process::Pid::from_raw(child),
                rustix::process::WaitOptions::empty(),
            );
        }
        if let Some(pid_max) = &self.pid_max {
            let _ = std::fs::write(PID_MAX, pid_max);
        }
    }
}

/// A child that does nothing until it is killed.
pub(crate) fn sleeper() -> Result<libc::pid_t> {
    #[expect(unsafe_code, reason = "20,000 exec() would take a minute")]
    // SAFETY: this process has one thread; the child only makes system calls.
    unsafe {
        match libc::fork() {
            -1 => bail!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
            child => Ok(child),
        }
    }
}
