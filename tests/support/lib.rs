//! What the tests and their workloads share: oracles, children that cannot be
//! left behind, and honest skips.
#![expect(missing_docs, reason = "not published")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod child;
mod disk;
mod failing;
mod machine;
mod memory;
mod memory_limit;
mod oracle;
mod privilege;
mod slab_trace;
mod slab_work;
mod swap;

pub use child::{
    ChildrenUsage, Unchecked, Workload, adopt_orphans, be_nice, become_real_time, die_with,
    die_with_parent, exit_thread, fork, fork_and_wait, fork_with_pid, in_pid_namespace, pin_to_cpu,
    rusage_of_children, wait_for, wait_for_settled, wait_until_off_cpu, wait_without_reaping,
};
pub use disk::{
    Diskstats, LoopDevice, Mounted, NullBlk, QuietVolume, Swap, Zram, device_id, device_name,
    device_of, directory_on_disk, discard, diskstats, load_module, settle, skip, sync,
};
pub use failing::{FailAt, Failing, NoUsage};
pub use machine::{
    Kernel, emulated, hides_first_process, kernel, needs_kernel, poll, room_for_tasks, support,
};
pub use memory::{MemStatus, smaps_rollup, statm_size};
pub use memory_limit::MemoryLimit;
pub use oracle::{
    LoadedObjects, ProcStat, ProgramStatistics, Schedstat, cpu_columns, hidden_tasks_ns,
    loaded_objects, monotonic_ns, proc_stat, process_cpu_ns, schedstat, schedstat_of_thread,
    status_field, stolen_unseen_ns, thread_cpu_ns, thread_ids, total_idle,
};
pub use privilege::{
    Capability, Overlay, become_effective_user, become_user, enter_time_namespace, hide_directory,
    keep_capabilities, limit_memlock, mount_cgroups,
};
pub use slab_trace::{SlabEvent, SlabTrace};
pub use slab_work::{run_slab_command, skipped, slab_usage, wait_until_asleep};
pub use swap::SwapFile;
