//! Commands of jobs, and a caller of a job.

use std::{fs, process::Command, time::Duration};

use clap::Subcommand;
use ebpfmetrics::Job;
use ebpfmetrics_suite as suite;

use super::{spin_for, tell};

#[derive(Subcommand)]
pub(crate) enum JobWork {
    /// Spins for so many ms.
    Burn { ms: u64 },
    /// A child that spins for so many ms; then tells its rusage in ns.
    Spin { ms: u64 },
    /// A child that starts so many others, each a spin of so many us; then tells the rusage
    /// of all of these in ns.
    Children { count: u32, spin_us: u64 },
    /// Starts a job that spins for so many ms, and prints its report.
    Watch {
        ms: u64,
        /// The kernel then discards the exit status.
        #[arg(long)]
        ignore_sigchld: bool,
    },
    /// The same in a PID namespace of its own.
    WatchInNamespace { ms: u64 },
    /// Fails to start a job, and tells how many descriptors of eBPF are left.
    Missing,
}

pub(crate) fn work(work: JobWork) -> anyhow::Result<()> {
    match work {
        JobWork::Burn { ms } => spin_for(Duration::from_millis(ms)),
        JobWork::Spin { ms } => {
            return run_and_tell(&|| spin_for(Duration::from_millis(ms)));
        }
        JobWork::Children { count, spin_us } => {
            let spin = || spin_for(Duration::from_micros(spin_us));
            return run_and_tell(&|| {
                for _ in 0..count {
                    suite::fork_and_wait(None, spin).expect("a child");
                }
            });
        }
        JobWork::Watch { ms, ignore_sigchld } => {
            if ignore_sigchld {
                #[expect(unsafe_code, reason = "no safe wrapper among the dependencies")]
                // SAFETY: SIG_IGN is no function. No other thread depends on SIGCHLD.
                unsafe {
                    libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                }
            }
            return watch(ms);
        }
        JobWork::Missing => {
            assert!(Job::spawn(&mut Command::new("/no/such/command")).is_err());
            let links = fs::read_dir("/proc/self/fd")?.flatten();
            let links = links.filter_map(|entry| fs::read_link(entry.path()).ok());
            let left = links.filter(|link| link.to_string_lossy().contains("bpf")).count();
            return Ok(tell(&format!("{left} descriptors"))?);
        }
        JobWork::WatchInNamespace { ms } => {
            return suite::in_pid_namespace(true, || watch(ms).expect("a report"));
        }
    }
    Ok(())
}

/// The rusage of a child and of its children.
fn run_and_tell(child: &dyn Fn()) -> anyhow::Result<()> {
    suite::fork_and_wait(None, child)?;
    Ok(tell(&suite::rusage_of_children().cpu_ns.to_string())?)
}

fn watch(ms: u64) -> anyhow::Result<()> {
    let mut job =
        Job::spawn(Command::new("/proc/self/exe").args(["job", "burn", &ms.to_string()]))?;
    let report = job.finish(Duration::from_secs(20))?;
    Ok(tell(&serde_json::to_string(&report)?)?)
}
