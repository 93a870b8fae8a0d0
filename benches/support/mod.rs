//! What the benches share: helper processes, clocks, statistics.
#![allow(dead_code, unused_imports, reason = "each bench uses its part")]

mod empty;

pub(crate) mod swarm;
pub(crate) mod tools;

use std::{
    env,
    fmt::Display,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    str::FromStr,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

pub(crate) use empty::{CLANG, Empty};

/// What this program was started as.
pub(crate) enum Role {
    /// By `cargo bench`.
    Bench,
    /// By a bench, as one of its helpers.
    Helper(String),
    /// By `cargo test --benches` or by hand: nothing to do.
    None,
}

pub(crate) fn role() -> Role {
    const HELPER: &str = "--helper";
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [first, role] if first == HELPER => Role::Helper(role.clone()),
        all if all.iter().any(|argument| argument == "--bench") => Role::Bench,
        _ => Role::None,
    }
}

/// This program again, as a child that answers one line with one line. It ends
/// when its input does, so also when the bench dies in whatever way.
pub(crate) struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Helper {
    pub(crate) fn start(role: &str) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(["--helper", role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, input, output })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The numbers of its answer.
    pub(crate) fn ask<T: FromStr, const N: usize>(
        &mut self,
        question: impl Display,
    ) -> Result<[T; N]> {
        writeln!(self.input.as_ref().context("no input")?, "{question}")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "helper failed at {question}");
        let numbers: Vec<T> = answer.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        numbers.try_into().ok().with_context(|| format!("helper answered {answer:?}"))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// The other end of [`Helper`].
pub(crate) fn serve(mut answer: impl FnMut(usize) -> Result<String>) -> Result<()> {
    for question in io::stdin().lines() {
        let answer = answer(question?.parse()?)?;
        writeln!(io::stdout(), "{answer}")?;
    }
    Ok(())
}

/// Has the kernel count runs and run time of BPF programs until it is dropped.
pub(crate) struct Statistics {
    _fd: std::os::fd::OwnedFd,
}

impl Statistics {
    pub(crate) fn enable() -> Result<Self> {
        Ok(Self { _fd: aya::sys::enable_stats(aya::sys::Stats::RunTime)? })
    }
}

/// CPU time of this process. On a machine with other work the wall clock would
/// tell what that work does.
pub(crate) fn process_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Lets this process, and those that it starts, run on one CPU only.
pub(crate) fn pin_to_last_cpu() -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| allowed.is_set(cpu)).context("no CPU")?;
    let mut one = CpuSet::new();
    one.set(last);
    Ok(sched_setaffinity(None, &one)?)
}

/// The quantiles 25, 50 and 75 %.
#[derive(Clone, Copy)]
pub(crate) struct Quartiles(pub(crate) [f64; 3]);

impl Quartiles {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| {
            let position = (values.len() - 1) as f64 * quarter as f64 / 4.0;
            let (low, high) = (values[position.floor() as usize], values[position.ceil() as usize]);
            low + (high - low) * position.fract()
        };
        Self([at(1), at(2), at(3)])
    }

    pub(crate) fn median(self) -> f64 {
        self.0[1]
    }
}

impl Display for Quartiles {
    /// `median (first-third)`, to the right, with the precision and width asked for.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self([first, median, third]) = self;
        let p = f.precision().unwrap_or(1);
        let text = format!("{median:.p$} ({first:.p$}-{third:.p$})");
        write!(f, "{text:>width$}", width = f.width().unwrap_or(0))
    }
}
