//! Those who watch the context switches of the machine.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use ebpfmetrics::{CpuProbe, Probe as _, cpu::CpuAccounting};

use crate::{
    ping_pong::{PingPong, Run},
    support::tools::{CLANG, Program, Tool, empty, is_there, programs_of},
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

    /// The tool that it is, if it is one.
    fn command(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Bpftrace => Some(&["bpftrace", "-e", BPFTRACE]),
            Self::Cpudist => Some(&["cpudist", "-P", "3600", "1"]),
            _ => None,
        }
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
        if tool.is_empty() || is_there(tool) {
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
    Tool(Tool),
}

impl Watcher {
    pub(crate) fn start(kind: Kind) -> Result<Self> {
        let probe = |accounting| CpuProbe::builder().accounting(accounting).load();
        let owner = match kind {
            Kind::Nobody => Owner::Nobody,
            Kind::Ledger => Owner::Probe(Box::new(probe(CpuAccounting::Ledger)?)),
            Kind::SchedSwitch => Owner::Probe(Box::new(probe(CpuAccounting::SchedSwitch)?)),
            Kind::Empty => {
                Owner::Ebpf { _object: empty("empty.bpf.c", &[("empty_switch", "sched_switch")])? }
            }
            Kind::Bpftrace | Kind::Cpudist => {
                let command = kind.command().context("not a tool")?;
                Owner::Tool(Tool::start(command).with_context(|| kind.to_string())?)
            }
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
