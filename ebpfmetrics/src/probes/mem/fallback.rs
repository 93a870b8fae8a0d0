//! Memory of a process that the walk does not show, from `/proc`.

use procfs::process::Process;

use super::{
    collector::MemCounters,
    gauges::{Held, Marks, MemGauges},
};

/// `None` if it is gone.
pub(super) fn from_procfs(pid: u32) -> Option<(MemCounters, MemGauges)> {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    let status = process.status().ok()?;
    let counters = MemCounters {
        minor_faults: stat.minflt,
        major_faults: stat.majflt,
        ..MemCounters::default()
    };
    let bytes = |kib: Option<u64>| kib.unwrap_or_default() * 1024;
    let held = Held {
        virtual_bytes: bytes(status.vmsize),
        resident_anon: bytes(status.rssanon),
        resident_file: bytes(status.rssfile),
        resident_shmem: bytes(status.rssshmem),
        swap: bytes(status.vmswap),
        page_tables: bytes(status.vmpte),
        locked: bytes(status.vmlck),
        hugetlb: status.hugetlbpages.map(|kib| kib * 1024),
        owner: None,
    };
    let gauges = MemGauges {
        held: (stat.flags & PF_KTHREAD == 0).then_some(held),
        // absent for a zombie
        high_water: Marks {
            resident: status.vmhwm.map(|kib| kib * 1024),
            virtual_bytes: status.vmpeak.map(|kib| kib * 1024),
        },
        from_procfs: true,
        ..MemGauges::default()
    };
    Some((counters, gauges))
}
