//! The conformance suite finds what can be wrong with a probe: this one, broken on purpose.
//! What it finds does not depend on the kernel.

use std::{fs::File, mem::forget};

use custom_probe::{SyscallProbe, SyscallProcess, SyscallSnapshot};
use ebpfmetrics::{
    Cost, Health, Probe, Requirements, Result,
    kit::{Object, Read, TaskProbe, Walk, conformance, read_alone},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    LeaksDescriptors,
    LeaksPrograms,
    CountsTwice,
    CountsHalf,
    NeverResets,
    GoesBack,
    LosesAtReset,
    ForgetsTheEnd,
    CountsTheEndTwice,
    ToldForEver,
    ToldTwice,
}

struct Broken {
    probe: SyscallProbe,
    fault: Fault,
    read: Read,
    reads: u64,
    dead: Vec<SyscallProcess>,
}

impl Broken {
    fn breaks(&mut self, snapshot: &mut SyscallSnapshot) {
        self.reads += 1;
        let rows = &mut snapshot.processes;
        let usages = rows.iter_mut().map(|row| (row.info.exited, &mut row.usage));
        match self.fault {
            Fault::CountsTwice => usages.for_each(|(_, usage)| usage.calls *= 2),
            Fault::CountsHalf => usages.for_each(|(_, usage)| usage.calls /= 2),
            Fault::GoesBack if self.reads == 6 => usages.for_each(|(_, usage)| usage.calls /= 3),
            Fault::LosesAtReset if self.read == Read::Reset && self.reads > 20 => {
                usages.for_each(|(_, usage)| usage.calls -= usage.calls / 100);
            }
            Fault::CountsTheEndTwice => {
                usages.filter(|(exited, _)| *exited).for_each(|(_, usage)| usage.calls *= 2)
            }
            Fault::ForgetsTheEnd => rows.retain(|row| !row.info.exited),
            Fault::ToldForEver => {
                rows.retain(|row| self.dead.iter().all(|dead| dead.id != row.id));
                rows.extend(self.dead.iter().cloned());
                rows.sort_by_key(|row| row.id);
                self.dead = rows.iter().filter(|row| row.info.exited).cloned().collect();
            }
            Fault::ToldTwice => {
                let again: Vec<_> = rows.iter().filter(|row| row.info.exited).cloned().collect();
                rows.extend(again);
                rows.sort_by_key(|row| row.id);
            }
            Fault::LeaksDescriptors => forget(File::open("/dev/null")),
            _ => {}
        }
    }
}

impl Probe for Broken {
    type Snapshot = SyscallSnapshot;

    const NAME: &'static str = SyscallProbe::NAME;

    fn requirements() -> Requirements {
        SyscallProbe::requirements()
    }

    fn snapshot(&mut self) -> Result<SyscallSnapshot> {
        read_alone(self, Read::Snapshot)
    }

    fn reset(&mut self) -> Result<SyscallSnapshot> {
        read_alone(self, Read::Reset)
    }

    fn health(&self) -> Result<Health> {
        self.probe.health()
    }

    fn cost(&self) -> Result<Cost> {
        self.probe.cost()
    }
}

impl TaskProbe for Broken {
    fn iterator(&self) -> &'static str {
        self.probe.iterator()
    }

    fn object(&self) -> &Object {
        self.probe.object()
    }

    fn object_mut(&mut self) -> &mut Object {
        self.probe.object_mut()
    }

    fn before_walk(&mut self, read: Read) -> Result<()> {
        self.read = read;
        self.probe.before_walk(read)
    }

    fn after_walk(&mut self, walk: &Walk<'_>) -> Result<SyscallSnapshot> {
        let mut snapshot = self.probe.after_walk(walk)?;
        self.breaks(&mut snapshot);
        Ok(snapshot)
    }

    fn end_window(&mut self) {
        if self.fault != Fault::NeverResets {
            self.probe.end_window();
        }
    }
}

fn check(fault: Fault) {
    let load = |kernel: &_| {
        if fault == Fault::LeaksPrograms {
            forget(SyscallProbe::builder().load_on(kernel)?);
        }
        let probe = SyscallProbe::builder().load_on(kernel)?;
        Ok(Broken { probe, fault, read: Read::Snapshot, reads: 0, dead: Vec::new() })
    };
    let work = || {
        for _ in 0..20_000 {
            std::hint::black_box(std::os::unix::process::parent_id());
        }
        20_000..=20_020
    };
    conformance::check(load, work, |usage| usage.calls);
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
    twice: CountsTwice, "too much";
    half: CountsHalf, "too little";
    no_reset: NeverResets, "too much";
    back: GoesBack, "back to";
    lossy_reset: LosesAtReset, "too little";
    no_end: ForgetsTheEnd, "the end of a process is not told";
    end_twice: CountsTheEndTwice, "too much";
    for_ever: ToldForEver, "in the window after its end";
    told_twice: ToldTwice, "is there twice";
}
