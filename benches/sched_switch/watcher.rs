//! Those who watch the context switches of the machine.

use std::{
    collections::BTreeMap,
    fmt, fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use ebpfmetrics::{CpuAccounting, CpuProbe, Probe as _};

use crate::{
    ping_pong::{PingPong, Run},
    support::{CLANG, Empty},
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody: how far two equal runs lie apart.
    Nobody,
    /// The probe as it is unless told otherwise.
    Ledger,
    /// A program that does nothing.
    Empty,
    /// The probe with a program at each switch.
    SchedSwitch,
    /// CPU time per process with bpftrace.
    Bpftrace,
    /// The nearest of the bcc tools: a histogram of times on the CPU per process.
    Cpudist,
}

const BPFTRACE: &str = "tracepoint:sched:sched_switch { \
     if (@start[cpu]) { @ns[args->prev_pid] = sum(nsecs - @start[cpu]); } \
     @start[cpu] = nsecs; }";

impl Kind {
    pub(crate) fn has_program(self) -> bool {
        !matches!(self, Self::Nobody | Self::Ledger)
    }

    /// The tool, where it finds the tracepoints: mounted for it alone if need be.
    fn command(self) -> Option<Command> {
        const MOUNTED: &str = "[ -e /sys/kernel/debug/tracing/events ] || \
             mount -t debugfs debugfs /sys/kernel/debug; exec \"$@\"";
        let tool: &[&str] = match self {
            Self::Bpftrace => &["bpftrace", "-e", BPFTRACE],
            Self::Cpudist => &["cpudist", "-P", "3600", "1"],
            _ => return None,
        };
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", MOUNTED, "sh"]).args(tool);
        Some(command)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "nobody (two equal runs)",
            Self::Ledger => "CpuProbe, Ledger",
            Self::Empty => "empty tp_btf program",
            Self::SchedSwitch => "CpuProbe, SchedSwitch",
            Self::Bpftrace => "bpftrace, sum per process",
            Self::Cpudist => "libbpf-tools cpudist -P",
        })
    }
}

/// All watchers that can be had here; says which cannot.
pub(crate) fn available() -> Vec<Kind> {
    let mut kinds = vec![Kind::Nobody, Kind::Ledger];
    for (kind, tool) in [
        (Kind::Empty, CLANG),
        (Kind::SchedSwitch, ""),
        (Kind::Bpftrace, "bpftrace"),
        (Kind::Cpudist, "cpudist"),
    ] {
        let there = || Command::new(tool).arg("--version").output().is_ok();
        if tool.is_empty() || there() {
            kinds.push(kind);
        } else {
            println!("SKIPPED {kind}: there is no {tool} here");
        }
    }
    kinds
}

/// Watches until it is dropped.
pub(crate) struct Watcher {
    kind: Kind,
    owner: Owner,
}

enum Owner {
    Nobody,
    Probe(Box<CpuProbe>),
    Ebpf { _object: Ebpf },
    Tool(Child),
}

/// By the kernel's statistics.
#[derive(Clone, Copy, Default)]
pub(crate) struct Program {
    pub(crate) runs: u64,
    pub(crate) time_ns: u64,
}

impl Watcher {
    pub(crate) fn start(kind: Kind) -> Result<Self> {
        let probe = |accounting| CpuProbe::builder().accounting(accounting).load();
        let owner = match kind {
            Kind::Nobody => Owner::Nobody,
            Kind::Ledger => Owner::Probe(Box::new(probe(CpuAccounting::Ledger)?)),
            Kind::SchedSwitch => Owner::Probe(Box::new(probe(CpuAccounting::SchedSwitch)?)),
            Kind::Empty => Owner::Ebpf {
                _object: Empty::compile()?.attach(&[("empty_switch", "sched_switch")])?,
            },
            Kind::Bpftrace | Kind::Cpudist => Owner::Tool(start_tool(kind)?),
        };
        Ok(Self { kind, owner })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Lets them play, and if the watcher is our probe has it say how long: if
    /// that is not what they say themselves then its cost means nothing.
    pub(crate) fn during(
        &mut self,
        game: &mut PingPong,
        play: impl FnOnce(&mut PingPong) -> Result<Run>,
    ) -> Result<Run> {
        let Owner::Probe(probe) = &mut self.owner else { return play(game) };
        probe.reset()?;
        let run = play(game)?;
        let snapshot = probe.snapshot()?;
        let rows = game.pids().map(|pid| snapshot.process(pid));
        let counted: Duration = rows.iter().flatten().map(|row| row.usage.cpu_time).sum();
        let share = counted.as_nanos() as f64 / run.cpu_ns as f64;
        ensure!(
            (0.999..1.05).contains(&share),
            "{} counted {counted:?}, the processes themselves {} ns",
            self.kind,
            run.cpu_ns
        );
        Ok(run)
    }

    /// The programs that it holds, by id.
    pub(crate) fn programs(&self) -> Result<BTreeMap<u32, Program>> {
        match &self.owner {
            Owner::Nobody => Ok(BTreeMap::new()),
            Owner::Probe(_) | Owner::Ebpf { .. } => programs_of(std::process::id()),
            Owner::Tool(tool) => programs_of(tool.id()),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Owner::Tool(tool) = &mut self.owner {
            let _ = tool.kill();
            let _ = tool.wait();
        }
    }
}

fn start_tool(kind: Kind) -> Result<Child> {
    let mut command = kind.command().context("not a tool")?;
    let mut tool = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let start = Instant::now();
    while programs_of(tool.id()).unwrap_or_default().is_empty() {
        let ended = tool.try_wait()?;
        if ended.is_some() || start.elapsed() > Duration::from_secs(20) {
            let _ = tool.kill();
            anyhow::bail!("{kind} does not start: {ended:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    // loaded; it still has to attach: whether it did shows in its count of runs
    thread::sleep(Duration::from_millis(500));
    Ok(tool)
}

fn programs_of(process: u32) -> Result<BTreeMap<u32, Program>> {
    let mut programs = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{process}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        let value = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.strip_prefix(':')?.trim().parse().ok()
        };
        if let (Some(id), Some(runs), Some(time_ns)) =
            (value("prog_id"), value("run_cnt"), value("run_time_ns"))
        {
            programs.insert(id as u32, Program { runs, time_ns });
        }
    }
    Ok(programs)
}
