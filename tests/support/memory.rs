//! What the kernel says itself of the memory of a process.

use std::fs;

use procfs::process::Process;

/// `/proc/PID/status`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemStatus {
    pub size: u64,
    pub peak: u64,
    pub anon: u64,
    pub file: u64,
    pub shmem: u64,
    pub high_water: u64,
    pub swap: u64,
    pub page_tables: u64,
    pub locked: u64,
    pub hugetlb: Option<u64>,
}

impl MemStatus {
    /// `None` if the process is gone or has no memory of its own.
    pub fn of(pid: u32) -> Option<Self> {
        let status = Process::new(pid as i32).ok()?.status().ok()?;
        Some(Self {
            size: status.vmsize? << 10,
            peak: status.vmpeak? << 10,
            anon: status.rssanon? << 10,
            file: status.rssfile? << 10,
            shmem: status.rssshmem? << 10,
            high_water: status.vmhwm? << 10,
            swap: status.vmswap? << 10,
            page_tables: status.vmpte? << 10,
            locked: status.vmlck? << 10,
            hugetlb: status.hugetlbpages.map(|kib| kib << 10),
        })
    }

    pub fn resident(&self) -> u64 {
        self.anon + self.file + self.shmem
    }
}

/// Size of the address space by `/proc/PID/statm`.
pub fn statm_size(pid: u32) -> u64 {
    Process::new(pid as i32).unwrap().statm().unwrap().size * rustix::param::page_size() as u64
}

/// Resident and swapped out bytes by `/proc/PID/smaps_rollup`, which walks the page
/// tables and counts; `None` if there is nothing to walk.
pub fn smaps_rollup(pid: u32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    };
    Some((figure("Rss:")?, figure("Swap:")?))
}
