//! A cgroup with little memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ebpfmetrics::process::CgroupHierarchy;

use crate::poll;

/// Removed when dropped, once its processes are gone.
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    /// By cgroup v2 where it has the memory controller, else by v1.
    pub fn new(bytes: u64) -> io::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        // tests of one process run in parallel
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("ebpfmetrics-{}-{number}", std::process::id());
        let unified = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(unified.join("cgroup.controllers"));
        if controllers.is_ok_and(|controllers| controllers.contains("memory")) {
            fs::write(unified.join("cgroup.subtree_control"), "+memory")?;
            let this = Self::make(unified.join(name))?;
            fs::write(this.0.join("memory.max"), bytes.to_string())?;
            let _ = fs::write(this.0.join("memory.swap.max"), "0");
            return Ok(this);
        }
        let this = Self::make(unified.join("memory").join(name))?;
        fs::write(this.0.join("memory.limit_in_bytes"), bytes.to_string())?;
        let _ = fs::write(this.0.join("memory.memsw.limit_in_bytes"), bytes.to_string());
        Ok(this)
    }

    fn make(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn hierarchy(&self) -> CgroupHierarchy {
        match self.0.join("memory.limit_in_bytes").exists() {
            true => CgroupHierarchy::controller("memory"),
            false => CgroupHierarchy::Unified,
        }
    }

    /// Moves a process out again.
    pub fn release(&self, pid: u32) -> io::Result<()> {
        let parent = self.0.parent().unwrap_or(&self.0);
        fs::write(parent.join("cgroup.procs"), pid.to_string())
    }

    pub fn hold(&self, pid: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        poll(Duration::from_secs(10), || fs::remove_dir(&self.0).ok());
    }
}
