//! Jobs: a command with everything that it starts, and what they use together.
//!
//! A job measures from the first instruction of the command. It includes processes that end
//! between two reads, double forks, and processes that go on after the command has ended.
//!
//! ```no_run
//! use std::{process::Command, time::Duration};
//! use ebpfmetrics::job::Job;
//!
//! let mut job = Job::spawn(Command::new("make").arg("-j4"))?;
//! while !job.wait_timeout(Duration::from_secs(1))? {
//!     let so_far = job.usage()?;
//!     println!("{} processes, {:?}", so_far.processes, so_far.cpu.map(|cpu| cpu.cpu_time));
//! }
//! let report = job.finish(Duration::from_secs(10))?;
//! if let (Some(cpu), Some(disk)) = (report.cpu, report.disk) {
//!     println!("{:?} user, {:?} system", cpu.user, cpu.system);
//!     println!("{} bytes read, {} written", disk.total.read_bytes, disk.total.written_bytes);
//! }
//! if let Some(peak) = report.memory.and_then(|memory| memory.resident_sum_peak_bytes) {
//!     println!("{peak} bytes at most, all processes together");
//! }
//! println!("{:?}, complete: {}", report.exit_status, report.is_complete);
//! # Ok::<(), ebpfmetrics::Error>(())
//! ```

mod builder;
mod child;
mod report;

use std::{
    collections::HashSet,
    fmt,
    process::{Child, Command, ExitStatus},
    thread::sleep,
    time::{Duration, Instant},
};

pub use builder::{JobBuilder, Need};
pub use report::{JobMemory, JobReport, LargestProcess};

use self::child::JobChild;
use crate::{
    error::Result,
    kernel::in_initial_pid_namespace,
    probe::{Degraded, Probe as _},
    probes::{
        cpu::{CpuProbeBuilder, CpuUsage},
        disk::{DiskProbeBuilder, DiskUsage},
        mem::MemProbeBuilder,
    },
    process::ProcessId,
    set::{HandleOf, ProbeSet},
    snapshot::{Rows as _, SetProcess, Snapshot},
};

/// A command that runs, with everything that it starts. See the [module](self) for an example.
///
/// Each of [`usage`](Self::usage), [`reset`](Self::reset) and [`finish`](Self::finish) reads the
/// kernel and adds to the totals. Read at least every few seconds if the job starts thousands of
/// processes: the kernel keeps a limited number of ended processes between two reads
/// ([`ProbeSetBuilder::max_ended`](crate::ProbeSetBuilder::max_ended)); what it has no room for
/// is counted as a loss.
///
/// Dropping a job detaches the probes. The command goes on, as with [`Child`].
///
/// * **Source**: a [`ProbeSet`] whose filter begins with the caller and goes on without it.
/// * **Kernel, capabilities**: those of the probes.
/// * **Scope**: descendants of the command, by who created them.
#[must_use = "dropping it detaches the probes"]
pub struct Job {
    set: ProbeSet,
    cpu: Option<HandleOf<CpuProbeBuilder>>,
    mem: Option<HandleOf<MemProbeBuilder>>,
    disk: Option<HandleOf<DiskProbeBuilder>>,
    missing: Vec<Degraded>,
    caller: ProcessId,
    /// The process of the command, once it is known.
    root: Option<ProcessId>,
    /// The caller, and what it started besides the command while it was in the filter.
    excluded: HashSet<ProcessId>,
    child: JobChild,
    started: Instant,
    /// When the job began, `CLOCK_BOOTTIME`.
    began_ns: u64,
    /// Processes in the filter that began before the job, and those that are not part of it.
    not_counted: u64,
    /// Some of the latter were in the filter while a read went on: what the processes in the
    /// filter held together is not what the job held.
    had_strays: bool,
    /// From the start to the end of the command.
    wall_time: Option<Duration>,
    totals: JobReport,
}

impl Job {
    /// Starts a command with CPU, memory and disk probes.
    ///
    /// # Errors
    /// As [`JobBuilder::spawn`].
    pub fn spawn(command: &mut Command) -> Result<Self> {
        Self::builder().spawn(command)
    }

    /// Options of a job, such as which probes it has.
    pub fn builder() -> JobBuilder {
        JobBuilder::default()
    }

    /// Makes the totals of the probes that are loaded 0 instead of unknown.
    fn begin(&mut self) {
        self.child.release();
        self.totals.cpu = self.cpu.map(|_| CpuUsage::default());
        self.totals.memory = self.mem.map(|_| JobMemory::default());
        self.totals.disk = self.disk.map(|_| DiskUsage::default());
    }

    /// Whether the command itself still runs. Processes that it started may go on after it.
    ///
    /// # Errors
    /// The operating system does not answer.
    pub fn is_running(&mut self) -> Result<bool> {
        let has_ended = self.child.has_ended()?;
        self.note_end(has_ended)?;
        Ok(!has_ended)
    }

    /// Waits until the command has ended, or until the time is over. Returns whether it has
    /// ended.
    ///
    /// # Errors
    /// The operating system does not answer.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<bool> {
        let has_ended = self.child.wait_timeout(timeout)?;
        self.note_end(has_ended)?;
        Ok(has_ended)
    }

    /// Exit status of the command, once [`is_running`](Self::is_running) or
    /// [`wait_timeout`](Self::wait_timeout) has noticed its end; see
    /// [`JobReport::exit_status`].
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.status()
    }

    /// The command, to use its pipes or to kill it.
    pub fn child(&mut self) -> &mut Child {
        self.child.get_mut()
    }

    /// What the job has used so far.
    ///
    /// # Errors
    /// The kernel cannot be read. The totals stay as they are.
    pub fn usage(&mut self) -> Result<JobReport> {
        self.reset()?;
        Ok(self.report())
    }

    /// Reads the processes of the job in the window since the last read, with their usage from
    /// each probe. The totals of the job go on.
    ///
    /// # Errors
    /// The kernel cannot be read. The totals stay as they are.
    pub fn reset(&mut self) -> Result<Snapshot> {
        self.note_end(false)?;
        let mut snapshot = self.set.reset()?;
        let strays = self.find_strays(&snapshot);
        if !strays.is_empty() {
            let alive = strays.iter().filter(|row| !row.info.exited).map(|row| row.id);
            let alive: Vec<_> = alive.collect();
            snapshot.retain(|id| !self.excluded.contains(&id));
            self.set.engine_mut().exclude(&alive)?;
        }
        self.add(&snapshot);
        Ok(snapshot)
    }

    /// Waits until all processes of the job have ended and the kernel has nothing more to add
    /// to their counters, or until the time is over, and returns the totals.
    /// [`JobReport::is_complete`] says which. Reads about once per second.
    ///
    /// Can be called again for more time. Closes the standard input of the command, if that is
    /// a pipe, as [`Child::wait`] does.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn finish(&mut self, timeout: Duration) -> Result<JobReport> {
        const BETWEEN_READS: Duration = Duration::from_secs(1);
        drop(self.child().stdin.take());
        let start = Instant::now();
        // The kernel releases a process some ms after its end.
        let mut pause = Duration::from_millis(4);
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let has_ended = self.wait_timeout(left.min(BETWEEN_READS))?;
            self.reset()?;
            self.totals.is_complete = has_ended && self.set.engine_mut().is_settled()?;
            let left = timeout.saturating_sub(start.elapsed());
            if self.totals.is_complete || left.is_zero() {
                return Ok(self.report());
            }
            if has_ended {
                sleep(pause.min(left));
                pause = (pause * 2).min(BETWEEN_READS / 10);
            }
        }
    }

    /// Handle of the CPU probe, for the snapshots of [`reset`](Self::reset).
    pub fn cpu(&self) -> Option<HandleOf<CpuProbeBuilder>> {
        self.cpu
    }

    /// Handle of the memory probe.
    pub fn mem(&self) -> Option<HandleOf<MemProbeBuilder>> {
        self.mem
    }

    /// Handle of the disk probe.
    pub fn disk(&self) -> Option<HandleOf<DiskProbeBuilder>> {
        self.disk
    }

    /// Optional probes that could not be loaded, with the reason.
    pub fn missing_probes(&self) -> &[Degraded] {
        &self.missing
    }

    /// Notes how long the command ran, while the kernel's record of its end exists.
    fn note_end(&mut self, has_ended: bool) -> Result<()> {
        if self.wall_time.is_none() {
            let lifetime = match self.root {
                Some(root) => self.set.engine_mut().lifetime_ns(root)?,
                None => None,
            };
            let now = has_ended.then(|| self.started.elapsed());
            self.wall_time = lifetime.map(Duration::from_nanos).or(now);
        }
        Ok(())
    }

    fn is_root(&self, row: &SetProcess<'_>) -> bool {
        match self.root {
            Some(root) => row.id == root,
            None => {
                let pid = match in_initial_pid_namespace() {
                    true => row.id.pid,
                    false => row.info.namespace_pid,
                };
                row.info.creator == Some(self.caller) && pid == self.child.pid()
            }
        }
    }

    /// Finds the rows of processes that are in the filter and not part of the job: those that
    /// the caller started in other threads while it started the command, and their children.
    fn find_strays<'a>(&mut self, snapshot: &'a Snapshot) -> Vec<SetProcess<'a>> {
        if self.root.is_none() {
            self.root = snapshot.processes().find(|row| self.is_root(row)).map(|row| row.id);
        }
        loop {
            let known = self.excluded.len();
            for row in snapshot.processes() {
                let creator = row.info.creator;
                let is_stray = creator.is_some_and(|creator| self.excluded.contains(&creator));
                if is_stray && !self.is_root(&row) && self.excluded.insert(row.id) {
                    self.had_strays = true;
                    self.not_counted += u64::from(row.id.start_time_ns > self.began_ns);
                }
            }
            // pids wrap around: a child can come before its parent
            if self.excluded.len() == known {
                break;
            }
        }
        snapshot.processes().filter(|row| self.excluded.contains(&row.id)).collect()
    }

    /// Takes processes that other threads of the caller started meanwhile out of the filter.
    /// Most have not reached their exec and do not count yet.
    fn exclude_strays(&mut self) -> Result<()> {
        let Some(root) = self.root else { return Ok(()) };
        let started = self.set.engine_mut().creators()?;
        let mut strays = Vec::new();
        loop {
            let known = strays.len();
            for &(process, creator) in &started {
                let is_stray = self.excluded.contains(&creator) && process != root;
                if is_stray && self.excluded.insert(process) {
                    strays.push(process);
                }
            }
            if strays.len() == known {
                break;
            }
        }
        self.not_counted += strays.len() as u64;
        self.set.engine_mut().exclude(&strays)
    }

    fn add(&mut self, snapshot: &Snapshot) {
        let totals = &mut self.totals;
        totals.losses += &snapshot.losses;
        totals.without_final_record = totals.losses.get("exit_record_missing").unwrap_or_default();
        totals.processes = self.set.engine_mut().started().saturating_sub(self.not_counted);
        let alive = snapshot.processes().filter(|row| !row.info.exited);
        totals.still_running = alive.count() as u64;
        if let (Some(cpu), Some(sum)) = (self.cpu, &mut totals.cpu) {
            snapshot.processes().for_each(|row| *sum += &row[cpu]);
            *sum += snapshot.of(cpu).overflow().usage;
        }
        if let (Some(disk), Some(sum)) = (self.disk, &mut totals.disk) {
            snapshot.processes().for_each(|row| *sum += &row[disk]);
            *sum += snapshot.of(disk).overflow().usage;
        }
        if let (Some(mem), Some(sum)) = (self.mem, &mut totals.memory) {
            let view = snapshot.of(mem);
            sum.add(&view.rows().collect::<Vec<_>>(), &view.overflow().usage);
            let filtered = view.system().filtered.filter(|_| !self.had_strays);
            let peak = filtered.map(|filtered| filtered.resident_sum_peak_bytes);
            sum.resident_sum_peak_bytes = peak.max(sum.resident_sum_peak_bytes);
            if self.had_strays {
                sum.resident_sum_peak_bytes = None;
            }
        }
    }

    fn report(&self) -> JobReport {
        JobReport {
            wall_time: self.wall_time.unwrap_or_else(|| self.started.elapsed()),
            exit_status: self.child.status(),
            ..self.totals.clone()
        }
    }
}

/// The set that measures the job.
impl AsRef<ProbeSet> for Job {
    fn as_ref(&self) -> &ProbeSet {
        &self.set
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("root", &self.root).finish_non_exhaustive()
    }
}
