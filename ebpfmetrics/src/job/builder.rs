use std::{
    collections::HashSet,
    process::{self, Command},
    time::Instant,
};

use super::{Job, JobReport, child::JobChild};
use crate::{
    error::{Error, ErrorKind, Result},
    kernel::Kernel,
    probe::{Degraded, Probe as _},
    probes::{cpu::CpuProbe, disk::DiskProbe, mem::MemProbe},
    process::ProcessId,
    set::{HandleOf, ProbeBuilder, ProbeSet, ProbeSetBuilder, read_kernel},
};

/// Whether a [`Job`] has a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Need {
    /// The job fails to start without it.
    #[default]
    Required,
    /// Where it cannot be loaded the job has no such figures, see
    /// [`Job::missing_probes`].
    Optional,
    /// It is not loaded.
    Off,
}

/// Options of a [`Job`].
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is started until spawn()"]
pub struct JobBuilder {
    cpu: Need,
    mem: Need,
    disk: Need,
    set: ProbeSetBuilder,
}

impl JobBuilder {
    /// Whether CPU usage is measured; required by default.
    pub fn cpu(mut self, need: Need) -> Self {
        self.cpu = need;
        self
    }

    /// Whether memory is measured; required by default.
    pub fn mem(mut self, need: Need) -> Self {
        self.mem = need;
        self
    }

    /// Whether disk usage is measured; required by default.
    pub fn disk(mut self, need: Need) -> Self {
        self.disk = need;
        self
    }

    /// Options of the set of probes, such as
    /// [`max_exited`](ProbeSetBuilder::max_exited). The job sets the filter itself.
    pub fn set(mut self, options: ProbeSetBuilder) -> Self {
        self.set = options;
        self
    }

    /// Loads the probes and starts the command.
    ///
    /// Every process that the command starts is part of the job, whatever its parent is later.
    /// The caller is not part of it, nor are other processes that it starts.
    ///
    /// # Errors
    /// What the machine lacks for a required probe, by [`ErrorKind`]; or the command cannot be
    /// started, with the error of [`Command::spawn`] as the source. Then no process of the job
    /// and no probe is left.
    pub fn spawn(self, command: &mut Command) -> Result<Job> {
        let kernel = read_kernel()?;
        let mut set = self.set.filter_by_caller(process::id()).build_on(&kernel)?;
        let mut missing = Vec::new();
        let cpu = add(&mut set, CpuProbe::builder(), self.cpu, "cpu", &kernel, &mut missing)?;
        let mem = add(&mut set, MemProbe::builder(), self.mem, "mem", &kernel, &mut missing)?;
        let disk = add(&mut set, DiskProbe::builder(), self.disk, "disk", &kernel, &mut missing)?;
        let caller = set.engine_mut().process_of(process::id())?.ok_or_else(caller_unknown)?;
        let excluded = exclude_others(&mut set, caller)?;
        set.reset()?; // the job begins here

        let engine = set.engine_mut();
        let (began_ns, not_counted) = (engine.walked_ns(), engine.started());
        let started = Instant::now();
        let child = JobChild::spawn(command)?;
        // from here on children of the caller are not added
        set.engine_mut().exclude(&[caller])?;
        let root = set.engine_mut().process_of(child.pid())?;
        let mut job = Job {
            set,
            cpu,
            mem,
            disk,
            missing,
            caller,
            root,
            excluded,
            child,
            started,
            began_ns,
            not_counted,
            had_strays: false,
            wall_time: None,
            totals: JobReport::default(),
        };
        job.exclude_strays()?;
        job.begin();
        Ok(job)
    }
}

fn add<B: ProbeBuilder>(
    set: &mut ProbeSet,
    probe: B,
    need: Need,
    name: &'static str,
    kernel: &Kernel,
    missing: &mut Vec<Degraded>,
) -> Result<Option<HandleOf<B>>> {
    if need == Need::Off {
        return Ok(None);
    }
    match set.add_on(probe, kernel) {
        Ok(handle) => Ok(Some(handle)),
        Err(error) if need == Need::Optional => {
            missing.extend(Degraded::when(true, name, error.to_string()));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn caller_unknown() -> Error {
    Error::new(ErrorKind::NoSuchProcess, "the kernel does not show the calling process")
}

/// Takes the descendants of the caller out of the filter. Returns them, with the caller.
fn exclude_others(set: &mut ProbeSet, caller: ProcessId) -> Result<HashSet<ProcessId>> {
    // One that starts another at the same time needs another round. The caller may start
    // processes all the time; these are sorted out later, by their creator.
    const ROUNDS: usize = 8;
    let mut excluded = HashSet::from([caller]);
    for _ in 0..ROUNDS {
        let rows = set.snapshot()?;
        let others: Vec<_> = rows.processes().filter(|row| row.id != caller).collect();
        excluded.extend(others.iter().map(|row| row.id));
        let alive = others.iter().filter(|row| !row.info.exited).map(|row| row.id);
        let alive: Vec<_> = alive.collect();
        if alive.is_empty() {
            break;
        }
        set.engine_mut().exclude(&alive)?;
    }
    Ok(excluded)
}

/// An error of the operating system.
pub(super) fn system_error(what: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::System, format!("{what}: {error}")).with_source(error)
}
