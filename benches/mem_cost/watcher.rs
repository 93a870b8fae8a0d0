//! Those who watch the memory of the machine.

use std::{collections::BTreeMap, fmt, process::Command, time::Duration};

use anyhow::Result;
use aya::Ebpf;
use ebpfmetrics::{
    CpuProbe, Events, Handle, Kernel, MemProbe, MemUsage, Probe as _, ProbeSet,
    mem::{MemPeaks, MemSnapshot, MemSystem},
};

use crate::support::{CLANG, Empty};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Nobody: how far two equal runs lie apart.
    Nobody,
    /// The probe as it is unless told otherwise.
    Default,
    /// With peaks to the page.
    PageExact,
    /// Without peaks.
    Space,
    /// Without the address space.
    Resident,
    /// Neither: gauges and faults, which need the ends of processes only.
    Ends,
    /// A set of two probes with default options.
    Set,
    /// Events of processes that hold more than nobody does.
    Threshold,
    /// Programs that do nothing, where those of the default are.
    Empty,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "nobody (two equal runs)",
            Self::Default => "MemProbe",
            Self::PageExact => "MemProbe, peaks page-exact",
            Self::Space => "MemProbe, peaks off",
            Self::Resident => "MemProbe, address space off",
            Self::Ends => "MemProbe, both off",
            Self::Set => "CpuProbe and MemProbe in a set",
            Self::Threshold => "Events, a memory threshold",
            Self::Empty => "empty tp_btf programs",
        })
    }
}

/// What it takes to start watchers again and again.
pub(crate) struct Watchers {
    kernel: Kernel,
    empty: Option<Empty>,
}

impl Watchers {
    pub(crate) fn new() -> Result<Self> {
        let has_clang = Command::new(CLANG).arg("--version").output().is_ok();
        let empty = has_clang.then(Empty::compile).transpose()?;
        Ok(Self { kernel: Kernel::read()?, empty })
    }

    /// All that can be had here; says which cannot.
    pub(crate) fn available(&self) -> Vec<Kind> {
        let mut kinds = vec![
            Kind::Nobody,
            Kind::Default,
            Kind::PageExact,
            Kind::Space,
            Kind::Resident,
            Kind::Ends,
            Kind::Set,
            Kind::Threshold,
        ];
        match self.empty {
            Some(_) => kinds.push(Kind::Empty),
            None => println!("SKIPPED {}: there is no {CLANG} here", Kind::Empty),
        }
        kinds
    }

    pub(crate) fn start(&self, kind: Kind) -> Result<Watcher> {
        let probe = |peaks, space| -> Result<Watcher> {
            let builder = MemProbe::builder().peaks(peaks).address_space(space);
            Ok(Watcher::Mem(Box::new(builder.load_on(&self.kernel)?)))
        };
        match (kind, &self.empty) {
            (Kind::Default, _) => {
                Ok(Watcher::Mem(Box::new(MemProbe::builder().load_on(&self.kernel)?)))
            }
            (Kind::PageExact, _) => probe(MemPeaks::PageExact, true),
            (Kind::Space, _) => probe(MemPeaks::Off, true),
            (Kind::Resident, _) => probe(MemPeaks::Folded, false),
            (Kind::Ends, _) => probe(MemPeaks::Off, false),
            (Kind::Set, _) => {
                let mut set = ProbeSet::builder().build_on(&self.kernel)?;
                set.add_on(CpuProbe::builder(), &self.kernel)?;
                let mem = set.add_on(MemProbe::builder(), &self.kernel)?;
                Ok(Watcher::Set(Box::new(set), mem))
            }
            (Kind::Threshold, _) => {
                let events = Events::builder().memory_threshold(1 << 40);
                Ok(Watcher::Events(Box::new(events.load_on(&self.kernel)?)))
            }
            (Kind::Empty, Some(empty)) => {
                let programs =
                    [("empty_resident", "rss_stat"), ("empty_space", "mmap_lock_released")];
                Ok(Watcher::Empty(empty.attach(&programs)?))
            }
            (Kind::Nobody | Kind::Empty, _) => Ok(Watcher::Nobody),
        }
    }
}

/// Watches until it is dropped.
pub(crate) enum Watcher {
    Nobody,
    Mem(Box<MemProbe>),
    Set(Box<ProbeSet>, Handle<MemUsage, MemSystem>),
    Events(Box<Events>),
    Empty(Ebpf),
}

/// By the kernel's statistics.
#[derive(Clone, Copy, Default)]
pub(crate) struct Program {
    pub(crate) runs: u64,
    pub(crate) time: Duration,
}

/// By name: that of its probe begins it.
pub(crate) type Programs = BTreeMap<String, Program>;

impl Watcher {
    pub(crate) fn reset(&mut self) -> Result<()> {
        match self {
            Self::Nobody | Self::Events(_) | Self::Empty(_) => {}
            Self::Mem(probe) => drop(probe.reset()?),
            Self::Set(set, _) => drop(set.reset()?),
        }
        Ok(())
    }

    pub(crate) fn snapshot(&mut self) -> Result<Option<MemSnapshot>> {
        Ok(match self {
            Self::Nobody | Self::Events(_) | Self::Empty(_) => None,
            Self::Mem(probe) => Some(probe.snapshot()?),
            Self::Set(set, mem) => Some(set.snapshot()?.of(*mem).to_snapshot()),
        })
    }

    pub(crate) fn programs(&self) -> Result<Programs> {
        let cost = match self {
            Self::Nobody => return Ok(Programs::new()),
            Self::Mem(probe) => probe.cost()?,
            Self::Set(set, _) => set.cost()?,
            Self::Events(events) => events.cost()?,
            Self::Empty(object) => return Ok(programs_of(object)),
        };
        let programs = cost.programs.into_iter();
        let programs = programs
            .filter(|it| !it.program.starts_with("process_walk") && it.program != "process_ends");
        Ok(programs
            .map(|cost| {
                (cost.program.into_owned(), Program { runs: cost.run_count, time: cost.run_time })
            })
            .collect())
    }
}

fn programs_of(object: &Ebpf) -> Programs {
    let loaded = object.programs().filter_map(|(name, program)| {
        let info = program.info().ok()?;
        let program = Program { runs: info.run_count(), time: info.run_time() };
        Some((name.to_owned(), program))
    });
    loaded.collect()
}
