//! Other probes in the set, which come, go and fail.

use super::{
    Check, UsageOf, Worker, add,
    bystander::{self, Bystander},
    read, within,
};
use crate::{
    CpuProbe, CpuUsage, ProbeSet,
    kit::{Collector, HandleOf, ProbeBuilder},
    probe::Probe,
    probes::cpu::CpuSystem,
    snapshot::Handle,
};

/// A probe beside the one under test.
enum Other<B: ProbeBuilder> {
    Bystander(HandleOf<Bystander>),
    Cpu(Handle<CpuUsage, CpuSystem>),
    /// One more of the same kind: the walk has to come to it.
    Same(HandleOf<B>),
}

impl<B: ProbeBuilder, N: Fn() -> B, F: Fn(&UsageOf<B>) -> u64> Check<N, F> {
    fn add_other(&self, set: &mut ProbeSet, number: usize) -> Other<B> {
        let is_built_in = B::Collector::SECTION.is_some();
        let has_cpu = set.probes().any(|name| name == "cpu");
        match number % 3 {
            0 if !is_built_in => Other::Same(read(set.add_on((self.builder)(), &self.kernel))),
            1 if !has_cpu => Other::Cpu(read(set.add_on(CpuProbe::builder(), &self.kernel))),
            _ => Other::Bystander(read(set.add_on(Bystander::default(), &self.kernel))),
        }
    }

    /// A set that changes while a process works loses nothing and counts nothing twice.
    pub(super) fn changes_of_a_set(&self) {
        let mut set = read(ProbeSet::builder().build_on(&self.kernel));
        let mut others = vec![self.add_other(&mut set, 0)];
        let probe = read(set.add_on((self.builder)(), &self.kernel));
        let mut worker = Worker::start();
        let mut end = read(set.reset()).window.end_ns;
        let (mut sum, mut work) = (0, 0..=0);
        for change in 0..30 {
            worker.begin();
            // up to three of them, before and behind the probe
            match others.len() < 3 && change % 5 != 4 {
                true => others.push(self.add_other(&mut set, change)),
                false => match others.remove(change % others.len()) {
                    Other::Bystander(handle) => read(set.remove(handle)),
                    Other::Cpu(handle) => read(set.remove(handle)),
                    Other::Same(handle) => read(set.remove(handle)),
                },
            }
            let snapshot = read(set.reset());
            assert_eq!(snapshot.window.start_ns, end, "a change of the set moves the window");
            let view = snapshot.of(probe);
            end = snapshot.window.end_ns;
            sum += self.count_of(&view, &worker);
            add(&mut work, &worker.end());
        }
        sum += self.count_of(&read(set.reset()).of(probe), &worker);
        within(sum, &work);

        let same =
            (0..3).map(|number| self.add_other(&mut set, number)).find_map(|other| match other {
                Other::Same(handle) => Some(handle),
                _ => None,
            });
        read(set.reset());
        let work = worker.work();
        let snapshot = read(set.reset());
        for handle in same.into_iter().chain([probe]) {
            let view = snapshot.of(handle);
            within(self.count_of(&view, &worker), &work);
        }
    }

    /// A probe that cannot be added leaves the set as it was.
    pub(super) fn failed_changes_of_a_set(&self) {
        let mut set = read(ProbeSet::builder().build_on(&self.kernel));
        let probe = read(set.add_on((self.builder)(), &self.kernel));
        let mut worker = Worker::start();
        let end = read(set.reset()).window.end_ns;
        let mut work = worker.work();
        for place in
            [bystander::LOAD, bystander::ATTACH, bystander::BEGIN_WALK, bystander::END_WALK]
        {
            let failing = Bystander::default();
            failing.fail_at(place);
            let error = set.add_on(failing, &self.kernel).expect_err("a probe that fails");
            assert!(error.to_string().contains(bystander::FAILS), "{error}");
            assert!(set.probes().eq([B::Collector::NAME]), "a probe that failed is in the set");
            add(&mut work, &worker.work());
        }
        let snapshot = read(set.reset());
        assert_eq!(snapshot.window.start_ns, end, "a failed change of the set moves the window");
        within(self.count_of(&snapshot.of(probe), &worker), &work);
    }

    /// A reset that fails because of another probe, before or behind this one, ends no window.
    pub(super) fn failed_reads(&self) {
        for is_first in [false, true] {
            let mut set = read(ProbeSet::builder().build_on(&self.kernel));
            let other = Bystander::default();
            if is_first {
                read(set.add_on(other.clone(), &self.kernel));
            }
            let probe = read(set.add_on((self.builder)(), &self.kernel));
            if !is_first {
                read(set.add_on(other.clone(), &self.kernel));
            }
            let mut worker = Worker::start();
            let start = read(set.reset()).window.end_ns;
            let mut work = worker.work();
            let mut ended = Worker::start();
            let of_ended = ended.work();
            let pid = ended.pid();
            ended.exit();
            for place in [bystander::BEGIN_WALK, bystander::END_WALK, bystander::BEGIN_WALK] {
                other.fail_at(place);
                let error = set.reset().expect_err("a reset that fails");
                assert!(error.to_string().contains(bystander::FAILS), "{error}");
                add(&mut work, &worker.work());
            }
            other.fail_at(bystander::NEVER);
            let so_far = read(set.snapshot());
            let snapshot = read(set.reset());
            for snapshot in [&so_far, &snapshot] {
                assert_eq!(snapshot.window.start_ns, start, "a failed reset ends a window");
                within(self.count_of(&snapshot.of(probe), &worker), &work);
                let (_, last) = self.end_of(&snapshot.of(probe), pid);
                assert!(last >= *of_ended.start(), "counted {last} of {of_ended:?}: too little");
            }
            let idle = self.count_of(&read(set.reset()).of(probe), &worker);
            assert!(idle < *work.start(), "counted {idle} of a process that did nothing: too much");
        }
    }
}
