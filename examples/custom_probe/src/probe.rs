//! The driver: loads, attaches, reads.

use std::sync::Arc;

use ebpfmetrics::{
    Cost, Degraded, Health, Kernel, Probe, Provenance, Requirements, Result, Source,
    kit::{
        Decode, Ledger, Loader, MAX_EXITED, Object, Read, TaskProbe, Walk, Windows, check_option,
        in_initial_pid_namespace, read_alone,
    },
};

use crate::{
    OBJECT, SyscallFolded, SyscallProcess, SyscallSnapshot, SyscallUsage, decode,
    record::{FoldedRecord, LOSSES, ProcessRecord},
};

/// Counts the system calls of every process, and those that fail.
///
/// **It slows every system call of the machine** by some 330 ns, of which 170 are the
/// kernel's way through two tracepoints with programs that do nothing: `getppid` takes
/// 520 ns instead of 220 (Linux 6.18 in a virtual machine, `benches/syscall_cost.rs`). Load
/// it for a question, not for good.
///
/// * **Where it comes from**: the tracepoints `raw_syscalls:sys_enter` and `sys_exit`;
///   `sched_process_exit` and `sched_process_free` for processes that end; a BPF
///   iterator over all tasks (`iter/task`) for who is there at the snapshot.
/// * **Units**: counts, of what happened since the probe was loaded.
/// * **Kernel**: Linux 5.10 with BTF.
/// * **Capabilities**: `CAP_BPF` and `CAP_PERFMON`, or root.
/// * **Losses**: `process_table_full`, `exit_state_full`, `exit_record_missing`, and
///   `run_skipped`: since 6.2 the kernel skips a program that is under way on the
///   same CPU.
/// * **Scope**: all processes of the machine, if the reader is in the initial PID
///   namespace; else those of its own namespace, and of the others those that exit
///   while the probe is there.
#[must_use = "dropping it detaches the probe"]
pub struct SyscallProbe {
    object: Object,
    sees_all: bool,
    windows: Windows,
    ledger: Ledger<SyscallUsage>,
    provenance: Arc<Provenance>,
}

/// Options of a [`SyscallProbe`].
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct SyscallProbeBuilder {
    max_exited: u32,
    processes: u32,
}

impl SyscallProbeBuilder {
    /// How many exited processes are listed one by one between two snapshots, and in a
    /// window; those beyond are counted together. 8,192 unless set.
    pub fn max_exited(mut self, processes: u32) -> Self {
        self.max_exited = processes;
        self
    }

    /// How many processes can be counted at a time; the calls of those beyond are the
    /// loss `process_table_full`. 16,384 unless set; kernel memory is taken at loading.
    pub fn processes(mut self, processes: u32) -> Self {
        self.processes = processes;
        self
    }

    /// Loads and attaches the probe. Its first window starts here.
    ///
    /// # Errors
    /// What is missing, by [`ErrorKind`](ebpfmetrics::ErrorKind), and what to do about it, in the text.
    pub fn load(self) -> Result<SyscallProbe> {
        let kernel = Loader::kernel(SyscallProbe::NAME, SyscallProbe::requirements())?;
        self.load_on(&kernel)
    }

    /// As [`load`](Self::load), with the description of the kernel at hand.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on(self, kernel: &Kernel) -> Result<SyscallProbe> {
        check_option(SyscallProbe::NAME, "max_exited", self.max_exited, MAX_EXITED)?;
        check_option(SyscallProbe::NAME, "processes", self.processes, 1..=1 << 22)?;
        let mut object = Loader::new(SyscallProbe::NAME, SyscallProbe::requirements(), OBJECT)
            .entries("counts", self.processes)
            .entries("exited", self.max_exited.max(1))
            .load(kernel)?;
        object.load_iterator("syscalls_tasks", "task", kernel)?;
        // Ends of processes first: whoever is counted is forgotten in the end.
        object.attach("syscalls_release", "sched_process_free", kernel)?;
        object.attach("syscalls_exit", "sched_process_exit", kernel)?;
        // Ends of calls last: no error without its call.
        object.attach("syscalls_enter", "sys_enter", kernel)?;
        object.attach("syscalls_leave", "sys_exit", kernel)?;
        SyscallProbe::start(object, &self)
    }
}

impl SyscallProbe {
    /// The options of a probe.
    pub fn builder() -> SyscallProbeBuilder {
        SyscallProbeBuilder { max_exited: 8192, processes: 16_384 }
    }

    fn start(object: Object, options: &SyscallProbeBuilder) -> Result<Self> {
        let source = |metric, source| Source { metric, source: Some(source) };
        let sources = vec![
            source("calls", "tp_btf/sys_enter"),
            source("errors", "tp_btf/sys_exit: a result of -4095 to -1"),
            source("exited", "tp_btf/sched_process_free"),
        ];
        let mut probe = Self {
            object,
            sees_all: in_initial_pid_namespace(),
            windows: Windows::begin(),
            ledger: Ledger::begin(options.max_exited as usize),
            provenance: Arc::new(Provenance::new(Self::NAME, sources)),
        };
        read_alone(&mut probe, Read::Reset)?;
        Ok(probe)
    }
}

impl Probe for SyscallProbe {
    type Snapshot = SyscallSnapshot;

    const NAME: &'static str = "syscalls";

    fn requirements() -> Requirements {
        Requirements {
            tracepoints: ["sched_process_exit", "sched_process_free", "sys_enter", "sys_exit"]
                .into(),
            iterators: ["task"].into(),
        }
    }

    fn snapshot(&mut self) -> Result<SyscallSnapshot> {
        read_alone(self, Read::Snapshot)
    }

    fn reset(&mut self) -> Result<SyscallSnapshot> {
        read_alone(self, Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        let mut health = self.object.health()?;
        health.degraded.extend(Degraded::unless_all_seen(self.sees_all));
        Ok(health)
    }

    fn cost(&self) -> Result<Cost> {
        self.object.cost()
    }
}

impl TaskProbe for SyscallProbe {
    fn iterator(&self) -> &'static str {
        "syscalls_tasks"
    }

    fn object(&self) -> &Object {
        &self.object
    }

    fn object_mut(&mut self) -> &mut Object {
        &mut self.object
    }

    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<SyscallSnapshot> {
        let live = decode::decode(walk.records(&self.object))?;
        let decode = Decode::<_, ProcessRecord, ProcessRecord, FoldedRecord> {
            ending: &decode::ending,
            ended: &decode::reading,
            folded: &decode::folded,
        };
        self.ledger.read(&self.object, (live, walk.end_ns), self.sees_all, decode)?;

        let lost = self.object.losses(LOSSES)?;
        let missing = ("exit_record_missing", self.ledger.exit_record_missing);
        let processes = self.ledger.processes().into_iter().map(|known| SyscallProcess {
            id: known.id,
            info: known.info,
            usage: known.counters(),
        });
        let folded = self.ledger.folded();
        Ok(SyscallSnapshot {
            window: self.windows.at(walk),
            processes: processes.collect(),
            folded: SyscallFolded::new(folded.processes, folded.totals),
            losses: self.windows.losses(lost, [missing]),
            provenance: Arc::clone(&self.provenance),
        })
    }

    fn end_window(&mut self) {
        self.windows.end();
        self.ledger.rebase();
    }
}

impl std::fmt::Debug for SyscallProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyscallProbe").finish_non_exhaustive()
    }
}
