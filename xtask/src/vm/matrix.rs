//! Boots the selected kernels, several at a time, with the same initramfs.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    catalog::Kernel,
    disk, initramfs,
    kernels::Cached,
    machine::{Logs, Machine},
    modules,
    options::Options,
    output::Run,
    report::{self, Outcome},
    verdict::{self, Verdict},
};

/// Packed into every machine; tests load them with `modprobe`. Before 6.12 the
/// kernel itself asks for the compressor of zram, which no `depends` names.
const MODULES: [&str; 6] = ["loop", "overlay", "zram", "lzo_rle", "null_blk", "scsi_debug"];

pub(super) struct Matrix<'a> {
    pub(super) options: &'a Options,
    pub(super) logs: PathBuf,
    pub(super) scratch: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) stop: &'a AtomicBool,
}

impl Matrix<'_> {
    /// Runs all kernels, several at a time. Results are printed in the order of the list.
    pub(super) fn run(&self, machines: &[(&Kernel, &Cached)]) -> Vec<Outcome> {
        let waiting = Mutex::new(machines.iter().copied().collect::<VecDeque<_>>());
        let done = Mutex::new(Vec::new());
        let work = || {
            while !self.stop.load(Ordering::Relaxed) {
                let next = lock(&waiting).pop_front();
                let Some((kernel, cached)) = next else { break };
                let outcome = self.one(kernel, cached);
                if self.options.run.is_none() {
                    report::progress(&outcome);
                }
                lock(&done).push(outcome);
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.options.jobs.max(1) {
                scope.spawn(work);
            }
        });
        let mut outcomes = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|outcome| outcome.series);
        outcomes
    }

    /// Runs one kernel. An error on the host counts as a problem of this kernel; the others
    /// still run.
    fn one(&self, kernel: &Kernel, cached: &Cached) -> Outcome {
        let started = Instant::now();
        let logs = self.logs.join(kernel.arch.label(kernel.series));
        let (run, verdict) = self.boot(kernel, cached, &logs).unwrap_or_else(|error| {
            let problems = vec![format!("{error:#}")];
            (Run::default(), Verdict { problems, ..Default::default() })
        });
        Outcome {
            series: kernel.series,
            run,
            verdict,
            time: started.elapsed(),
            logs,
            substitute: cached.substitute.clone(),
        }
    }

    fn boot(&self, kernel: &Kernel, cached: &Cached, directory: &Path) -> Result<(Run, Verdict)> {
        fs::create_dir_all(directory)?;
        let logs = Logs::in_directory(directory);
        logs.clear()?;
        let limit = Duration::from_secs(self.options.timeout);
        let ending =
            self.with_machine(kernel, cached, |machine| machine.run(&logs, limit, self.stop))?;
        let run = Run::parse(&report::read(&logs.output));
        let console = report::read(&logs.console);
        let verdict = verdict::judge(&run, ending, self.options.timeout, &console);
        Ok((run, verdict))
    }

    pub(super) fn shell(&self, (kernel, cached): (&Kernel, &Cached)) -> Result<()> {
        let directory = self.logs.join(kernel.arch.label(kernel.series));
        fs::create_dir_all(&directory)?;
        let log = directory.join("shell.log");
        self.with_machine(kernel, cached, |machine| machine.interact(&log))?;
        println!("log: {}", log.display());
        Ok(())
    }

    /// Creates the files of one machine and removes them afterwards.
    fn with_machine<T>(
        &self,
        kernel: &Kernel,
        cached: &Cached,
        work: impl FnOnce(&Machine) -> Result<T>,
    ) -> Result<T> {
        let scratch = tempfile::tempdir_in(self.scratch)?;
        let names: Vec<_> = MODULES
            .iter()
            .map(|&name| name.to_owned())
            .chain(self.options.module.clone())
            .collect();
        let packed = scratch.path().join("modules");
        modules::pack(&cached.modules(), &names, scratch.path(), &packed)?;
        let initramfs = scratch.path().join("initramfs");
        initramfs::join(&[self.initramfs, &packed], &initramfs)?;
        work(&Machine {
            arch: kernel.arch,
            kernel: &cached.image(),
            initramfs: &initramfs,
            disks: &disk::make(scratch.path())?,
            mebibytes: self.options.memory,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
