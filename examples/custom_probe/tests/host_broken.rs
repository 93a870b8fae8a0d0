//! The conformance suite finds what can be wrong with a probe: this one, broken on purpose.
//! What it finds does not depend on the kernel.

use std::{collections::HashMap, fs::File, mem::forget, thread, time::Duration};

use custom_probe::{SyscallUsage, Syscalls, SyscallsLoss};
use ebpfmetrics::{
    Kernel, ProcessId, Result,
    kit::{
        Collector, Loading, Object, ObjectLoader, ProbeBuilder, Progress, Read, Reading, Readings,
        Requirements, SetOptions, Span, WalkTimes, conformance, counters,
    },
    snapshot::Source,
};

type Counts = <Syscalls as Collector>::Counters;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    LeaksDescriptors,
    LeaksPrograms,
    StartsThreads,
    NamesNoSource,
    CountsTwice,
    CountsHalf,
    ReportsTotals,
    GoesBack,
    LosesAtReset,
    ForgetsTheEnd,
    CountsTheEndTwice,
    IgnoresTheFilter,
    EndsWindowsEarly,
}

#[repr(C, align(8))]
struct Aligned<T>(T);

static OBJECT: &[u8] = &Aligned(*include_bytes!("../objects/syscalls.bpf.o")).0;

struct BrokenBuilder {
    fault: Fault,
    set: SetOptions,
}

impl ProbeBuilder for BrokenBuilder {
    type Collector = Broken;

    fn set_options(&mut self) -> Option<&mut SetOptions> {
        Some(&mut self.set)
    }
}

struct Broken {
    object: Object,
    fault: Fault,
    walks: u64,
    read: Read,
    /// As of the last walk.
    totals: HashMap<ProcessId, Counts>,
    /// At the start of the window.
    baselines: HashMap<ProcessId, Counts>,
}

fn attach(object: &mut Object, kernel: &Kernel) -> Result<()> {
    object.attach("syscalls_enter", "sys_enter", kernel)?;
    object.attach("syscalls_leave", "sys_exit", kernel)
}

impl Collector for Broken {
    const NAME: &'static str = Syscalls::NAME;
    const COUNTS: Option<&'static str> = Syscalls::COUNTS;

    type Options = BrokenBuilder;
    type Counters = Counts;
    type Gauges = ();
    type Usage = SyscallUsage;
    type System = ();
    type Loss = SyscallsLoss;

    fn requirements() -> Requirements {
        Syscalls::requirements()
    }

    fn load(options: BrokenBuilder, loading: &Loading<'_>) -> Result<Self> {
        let load = |loader: ObjectLoader| {
            loader.map_max_entries("syscalls_counts", 16_384).load(loading.kernel)
        };
        let fault = options.fault;
        if fault == Fault::LeaksPrograms {
            let mut object = load(loading.object(Self::NAME, OBJECT))?;
            attach(&mut object, loading.kernel)?;
            forget(object);
        }
        let object = match fault {
            Fault::IgnoresTheFilter => load(ObjectLoader::new(Self::NAME, OBJECT))?,
            _ => load(loading.object(Self::NAME, OBJECT))?,
        };
        let (totals, baselines) = (HashMap::new(), HashMap::new());
        Ok(Self { object, fault, walks: 0, read: Read::Snapshot, totals, baselines })
    }

    fn attach(&mut self, kernel: &Kernel) -> Result<()> {
        attach(&mut self.object, kernel)
    }

    fn object(&self) -> Option<&Object> {
        Some(&self.object)
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        Some(&mut self.object)
    }

    fn begin_walk(&mut self, read: Read) -> Result<()> {
        if self.read == Read::Reset {
            self.baselines.clone_from(&self.totals);
        }
        self.read = read;
        self.walks += 1;
        if self.fault == Fault::LeaksDescriptors {
            forget(File::open("/dev/null"));
        }
        if self.fault == Fault::StartsThreads {
            thread::spawn(|| thread::sleep(Duration::from_secs(60)));
        }
        Ok(())
    }

    fn end_walk(&mut self, _: &WalkTimes, processes: &mut Readings<'_, Self>) -> Result<()> {
        let ended = processes.readings.iter_mut().zip(processes.seen).filter(|(_, seen)| !**seen);
        match self.fault {
            Fault::ForgetsTheEnd => ended.for_each(|(reading, _)| *reading = Reading::default()),
            Fault::CountsTheEndTwice => ended.for_each(|(reading, _)| reading.counters.calls *= 2),
            _ => {}
        }
        let readings = processes.readings.iter().map(|reading| reading.counters);
        self.totals = processes.ids.iter().copied().zip(readings).collect();
        Ok(())
    }

    fn advance(&self, progress: &Progress<'_, Self>, now: &Reading<Self>) -> Counts {
        let mut next = counters::max(progress.last, &now.counters);
        if self.fault == Fault::GoesBack && self.walks == 5 && self.read == Read::Snapshot {
            next.calls /= 3;
        }
        next
    }

    fn usage(
        &self,
        process: ProcessId,
        counters: &Counts,
        _: Option<&()>,
        span: Span,
    ) -> SyscallUsage {
        let mut counters = *counters;
        match self.fault {
            Fault::CountsTwice => counters.calls *= 2,
            Fault::CountsHalf => counters.calls /= 2,
            Fault::LosesAtReset if self.read == Read::Reset && self.walks > 20 => {
                counters.calls -= counters.calls / 100;
            }
            Fault::ReportsTotals => counters = *self.totals.get(&process).unwrap_or(&counters),
            Fault::EndsWindowsEarly if span == Span::Window => {
                if let (Some(total), before) =
                    (self.totals.get(&process), self.baselines.get(&process))
                {
                    counters = before.map_or(*total, |before| counters::subtract(total, before));
                }
            }
            _ => {}
        }
        SyscallUsage { calls: counters.calls, errors: counters.errors }
    }

    fn sources(&self) -> Vec<Source> {
        match self.fault {
            Fault::NamesNoSource => Vec::new(),
            _ => vec![Source::new("calls", "tp_btf/sys_enter")],
        }
    }
}

fn check(fault: Fault) {
    let work = || {
        for _ in 0..20_000 {
            std::hint::black_box(std::os::unix::process::parent_id());
        }
        20_000..=20_020
    };
    let builder = || BrokenBuilder { fault, set: SetOptions::default() };
    conformance::check(builder, work, |usage| usage.calls);
}

macro_rules! is_found {
    ($($name:ident: $fault:ident, $found:literal;)*) => {$(
        #[test]
        #[should_panic(expected = $found)]
        fn $name() {
            check(Fault::$fault);
        }
    )*};
}

is_found! {
    descriptors: LeaksDescriptors, "a read leaves descriptors open";
    programs: LeaksPrograms, "programs in health, and loaded";
    threads: StartsThreads, "a probe starts threads";
    sources: NamesNoSource, "no figure has a source";
    twice: CountsTwice, "too much";
    half: CountsHalf, "too little";
    totals: ReportsTotals, "too much";
    back: GoesBack, "back to";
    lossy_reset: LosesAtReset, "too little";
    no_end: ForgetsTheEnd, "too little";
    end_twice: CountsTheEndTwice, "too much";
    no_filter: IgnoresTheFilter, "something outside the filter is counted";
    early_window: EndsWindowsEarly, "too little";
}
