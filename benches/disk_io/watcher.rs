//! Those who watch the block I/O of the machine.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use ebpfmetrics::{DiskProbe, Events, Probe as _};

use crate::{
    Run,
    support::tools::{CLANG, Program, Tool, empty, is_there, programs_of},
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody: how far two equal runs lie apart.
    Nobody,
    /// Programs that do nothing, at the tracepoints of the probe.
    Empty,
    /// The probe.
    Probe,
    /// The probe, to tell slow operations; none is.
    NoneSlow,
    /// The probe, and every operation is slow; told to a reader who lets them gather.
    AllSlow,
    /// Operations, bytes and latency per process with bpftrace.
    Bpftrace,
    /// The nearest of the bcc tools: a histogram of latencies per disk.
    Biolatency,
}

const BPFTRACE: &str = "tracepoint:block:block_io_start { \
     @start[args->dev, args->sector] = nsecs; @process[args->dev, args->sector] = pid; } \
     tracepoint:block:block_rq_complete { \
     $start = @start[args->dev, args->sector]; \
     if ($start) { \
     $process = @process[args->dev, args->sector]; \
     @operations[$process, args->dev, args->rwbs] = count(); \
     @bytes[$process, args->dev, args->rwbs] = sum(args->nr_sector * 512); \
     @latency[$process, args->dev, args->rwbs] = hist(nsecs - $start); \
     delete(@start[args->dev, args->sector]); \
     delete(@process[args->dev, args->sector]); } }";

impl Kind {
    fn command(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Bpftrace => Some(&["bpftrace", "-e", BPFTRACE]),
            Self::Biolatency => Some(&["biolatency", "-D", "3600", "1"]),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "nobody (two equal runs)",
            Self::Empty => "three empty tp_btf programs",
            Self::Probe => "DiskProbe",
            Self::NoneSlow => "DiskProbe, slow I/O, none is",
            Self::AllSlow => "DiskProbe, slow I/O, all is",
            Self::Bpftrace => "bpftrace, per process",
            Self::Biolatency => "libbpf-tools biolatency -D",
        })
    }
}

/// All watchers that can be had here; says which cannot.
pub(crate) fn available() -> Vec<Kind> {
    let mut kinds = vec![Kind::Nobody, Kind::Probe, Kind::NoneSlow, Kind::AllSlow];
    for (kind, tool) in
        [(Kind::Empty, CLANG), (Kind::Bpftrace, "bpftrace"), (Kind::Biolatency, "biolatency")]
    {
        if is_there(tool) {
            kinds.push(kind);
        } else {
            println!("SKIPPED {kind}: there is no {tool} here");
        }
    }
    kinds
}

/// Room for the events of all reads of a run.
const EVENTS_BYTES: u32 = 256 << 20;

/// Watches until it is dropped.
pub(crate) struct Watcher {
    kind: Kind,
    owner: Owner,
}

enum Owner {
    Nobody,
    Probe(Box<(DiskProbe, Option<Events>)>),
    Ebpf { _object: Ebpf },
    Tool(Tool),
}

impl Watcher {
    pub(crate) fn start(kind: Kind) -> Result<Self> {
        let owner = match kind {
            Kind::Nobody => Owner::Nobody,
            Kind::Probe => Owner::Probe(Box::new((DiskProbe::builder().load()?, None))),
            Kind::NoneSlow | Kind::AllSlow => {
                let limit = if kind == Kind::AllSlow { 1 } else { u64::MAX };
                let disk = DiskProbe::builder()
                    .slow_io(Duration::from_nanos(limit))
                    .slow_io_buffer_bytes(EVENTS_BYTES)
                    .load()?;
                let events = Events::builder().slow_io(&disk)?.load()?;
                Owner::Probe(Box::new((disk, Some(events))))
            }
            Kind::Empty => Owner::Ebpf {
                _object: empty(
                    "empty_block.bpf.c",
                    &[
                        ("empty_start", "block_io_start"),
                        ("empty_issue", "block_rq_issue"),
                        ("empty_complete", "block_rq_complete"),
                    ],
                )?,
            },
            Kind::Bpftrace | Kind::Biolatency => {
                let command = kind.command().context("not a tool")?;
                Owner::Tool(Tool::start(command).with_context(|| kind.to_string())?)
            }
        };
        Ok(Self { kind, owner })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Lets fio read, and if the watcher is our probe has it say how much: if that is
    /// not what fio says then its cost means nothing.
    pub(crate) fn during(
        &mut self,
        device: &str,
        fio: impl FnOnce() -> Result<Run>,
    ) -> Result<Run> {
        let Owner::Probe(probe) = &mut self.owner else { return fio() };
        let (probe, events) = &mut **probe;
        probe.reset()?;
        let run = fio()?;
        let snapshot = probe.snapshot()?;
        let counted = snapshot.system.device(device).map_or(0, |device| device.usage.reads);
        let by_fio = snapshot.processes.iter().filter(|row| row.info.comm == "fio");
        let charged: u64 = by_fio.map(|row| row.usage.total.reads).sum();
        let share = |reads: u64| reads as f64 / run.reads as f64;
        ensure!(
            share(counted) > 0.99 && share(charged) > 0.99,
            "counted {counted}, charged {charged} to fio, which says {}; {:?}",
            run.reads,
            snapshot.losses
        );
        if let Some(events) = events {
            let told = events.drain().count() as u64;
            let (least, losses) =
                (if self.kind == Kind::AllSlow { counted } else { 0 }, events.losses()?);
            ensure!(told >= least && losses.total() == 0, "told {told} of {counted}; {losses:?}");
        }
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
