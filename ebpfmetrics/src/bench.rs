//! For the benches of this repository: the user side of a set, with walks from memory.

use bytemuck::Zeroable as _;

use crate::{
    collect::harness::Harness,
    cpu::{Cpu, CpuSystem, CpuUsage},
    error::Result,
    record::{
        CpuTaskRecord, ProcessProcessRecord, ProcessWalkRecord, RecordHead, cpu_kind,
        cpu_task_flags, process_flags, process_kind, section_number,
    },
    snapshot::{Handle, Snapshot},
};

const SECOND_NS: u64 = 1_000_000_000;
/// When the synthetic machine had all its processes.
const STARTED_NS: u64 = 1000 * SECOND_NS;

/// A set with a CPU probe that reads [`walk`]s.
pub struct UserSide {
    harness: Harness,
    /// Handle of the CPU probe.
    pub cpu: Handle<CpuUsage, CpuSystem>,
}

impl Default for UserSide {
    fn default() -> Self {
        let mut harness = Harness::new();
        let cpu = harness.add(Cpu::without_kernel(), section_number::CPU as u16);
        Self { harness, cpu }
    }
}

impl UserSide {
    /// Copies the records of a walk, as `read(2)` does.
    ///
    /// # Errors
    /// None.
    pub fn fill(&mut self, walk: &[u8]) -> Result<()> {
        self.harness.fill(walk)
    }

    /// Splits the records into tasks.
    ///
    /// # Errors
    /// A record is invalid.
    pub fn decode(&mut self) -> Result<()> {
        self.harness.decode()
    }

    /// Brings the process table and the columns of the probes up to date.
    ///
    /// # Errors
    /// A record is invalid.
    pub fn update(&mut self) -> Result<()> {
        self.harness.update()
    }

    /// Makes the snapshot of the set.
    pub fn snapshot(&self) -> Snapshot {
        self.harness.snapshot()
    }

    /// Ends the window.
    pub fn end_window(&mut self) {
        self.harness.end_window();
    }
}

/// The records of a walk over processes with one thread each, as the kernel writes them. Each
/// is the child of the one with half its number.
///
/// `second` is the time of the walk. Of 100 processes, `active` use 1 ms in each second.
pub fn walk(processes: u32, second: u64, active: u32) -> Vec<u8> {
    let now_ns = STARTED_NS + second * SECOND_NS;
    let mut bytes = Vec::new();
    let record = ProcessWalkRecord {
        head: head::<ProcessWalkRecord>(section_number::PROCESS, process_kind::WALK),
        monotonic_ns: now_ns,
        boottime_ns: now_ns,
    };
    bytes.extend_from_slice(bytemuck::bytes_of(&record));
    for number in 1..=processes {
        let start_ns = |number: u32| u64::from(number) * 1000;
        let mut process = ProcessProcessRecord::zeroed();
        process.head = head::<ProcessProcessRecord>(section_number::PROCESS, process_kind::PROCESS);
        process.task = 0xffff_8880_0000_0000 + u64::from(number) * 0x2000;
        let info = &mut process.info;
        (info.tgid, info.process_start_ns) = (number, start_ns(number));
        (info.parent_tgid, info.parent_start_ns) = (number / 2, start_ns(number / 2));
        info.cgroup_id = u64::from(number % 50 + 1);
        info.uid = number % 10;
        info.namespace_pid = number;
        info.threads = 1;
        info.flags = process_flags::HAS_OWNER | process_flags::HAS_SCHEDULING;
        info.state = 1;
        info.comm[..7].copy_from_slice(b"process");
        bytes.extend_from_slice(bytemuck::bytes_of(&process));

        let mut task = CpuTaskRecord::zeroed();
        task.head = head::<CpuTaskRecord>(section_number::CPU, cpu_kind::TASK);
        task.flags = cpu_task_flags::HAS_RUN_QUEUE_WAIT;
        let used = 1000 + if number % 100 < active { second } else { 0 };
        task.own.sum_exec_ns = used * 1_000_000;
        task.own.user_ns = used * 700_000;
        task.own.system_ns = used * 300_000;
        task.own.voluntary_switches = used * 3;
        task.own.run_queue_wait_ns = used * 10_000;
        bytes.extend_from_slice(bytemuck::bytes_of(&task));
    }
    bytes
}

fn head<T>(section: u32, kind: u32) -> RecordHead {
    RecordHead { section: section as u16, kind: kind as u16, size: size_of::<T>() as u32 }
}
