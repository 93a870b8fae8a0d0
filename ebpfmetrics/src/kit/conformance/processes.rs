//! Who has a row, and for how long.

use std::{collections::BTreeSet, ops::RangeInclusive};

use super::{Check, UsageOf, Worker, add, read, rows_of, until, within};
use crate::{
    Filter, ProbeSet,
    kit::{Collector, HandleOf, ProbeBuilder, ProcessKey},
    probe::Probe,
    set::ProbeSetBuilder,
};

impl<B: ProbeBuilder, N: Fn() -> B, F: Fn(&UsageOf<B>) -> u64> Check<N, F> {
    fn set(&self, options: ProbeSetBuilder) -> (ProbeSet, HandleOf<B>) {
        let mut set = read(options.build_on(&self.kernel));
        let probe = read(set.add_on((self.builder)(), &self.kernel));
        read(set.reset());
        (set, probe)
    }

    /// Rows are sorted, each process has one, with the right identity, and losses and sources
    /// have names.
    pub(super) fn rows(&self) {
        let mut probe = self.load();
        let worker = Worker::start();
        let snapshot = read(probe.snapshot());
        let ids: Vec<_> = snapshot.processes.iter().map(|row| row.id).collect();
        assert!(ids.is_sorted(), "rows are not in the order of their ids");
        assert_eq!(
            ids.iter().collect::<BTreeSet<_>>().len(),
            ids.len(),
            "a process is there twice"
        );
        assert!(snapshot.losses.iter().next().is_some(), "no loss has a name");
        assert!(!snapshot.provenance.sources.is_empty(), "no figure has a source");
        assert_eq!(snapshot.provenance.probe, B::Collector::NAME);
        let row = rows_of(&snapshot, worker.pid()).last().expect("no row of a living process");
        let (id, info) = (row.id, row.info);
        assert!(!info.exited, "{id} is alive");
        let parent = info.parent.map(|parent| parent.pid);
        assert_eq!(parent, Some(std::process::id()), "the parent of {id}");
        let per_tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        let started = procfs::process::Process::new(worker.pid() as i32);
        let started = started.and_then(|this| this.stat()).expect("/proc is mounted").starttime;
        assert_eq!(id.start_time_ns / per_tick_ns, started, "the start of {id}");
    }

    /// A process that has been waited for has its row at once, with all that it did, and is
    /// forgotten with the window.
    pub(super) fn ends(&self) {
        let (mut set, probe) = self.set(ProbeSet::builder());
        let mut worker = Worker::start();
        let pid = worker.pid();
        // to begin and to end takes something too
        let beginning = self.count_of(&read(set.reset()).of(probe), &worker);
        let mut work = worker.work();
        let mut sum = self.count_of(&read(set.reset()).of(probe), &worker);
        add(&mut work, &worker.work());
        let alive = self.count_of(&read(set.snapshot()).of(probe), &worker);
        add(&mut work, &worker.work());
        worker.exit();
        let snapshot = read(set.snapshot());
        let (id, last) = self.end_of(&snapshot.of(probe), pid);
        assert!(last >= alive, "went from {alive} back to {last} at the end");
        add(&mut work, &(0..=beginning));
        sum += last;
        within(sum, &work);
        let (_, again) = self.end_of(&read(set.reset()).of(probe), pid);
        assert!(again >= last, "went from {last} back to {again} after the end");
        within(sum - last + again, &work);
        // its release is still to come
        let mut later = 0;
        for _ in 0..30 {
            let snapshot = read(set.reset());
            let view = snapshot.of(probe);
            later += rows_of(&view, pid).map(|row| (self.count)(row.usage)).sum::<u64>();
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        within(sum - last + again + later, &work);
        let forgotten = rows_of(&read(set.snapshot()).of(probe), pid).all(|row| row.id != id);
        assert!(forgotten, "{id} has a row in the windows after its end");
        self.has_no_entry(&mut set, probe, pid);

        let mut unseen = Worker::start();
        let mut work = unseen.work();
        let pid = unseen.pid();
        unseen.exit();
        let (_, last) = self.end_of(&read(set.reset()).of(probe), pid);
        add(&mut work, &(0..=beginning.saturating_mul(3)));
        within(last, &work);
        self.has_no_entry(&mut set, probe, pid);
        self.final_usage(&mut set, probe);
    }

    /// Nothing is kept of a process that has ended.
    fn has_no_entry(&self, set: &mut ProbeSet, probe: HandleOf<B>, pid: u32) {
        let Some(map) = B::Collector::COUNTS else { return };
        until("counts of a process that has ended are not deleted", || {
            read(set.reset());
            let object = set.collector::<B::Collector>(probe)?.object()?;
            let entries: Vec<(ProcessKey, <B::Collector as Collector>::Counters)> =
                read(object.lookup_batch(map));
            entries.iter().all(|(key, _)| key.tgid != pid).then_some(())
        });
    }

    /// The final usage is that of the row that the process gets.
    fn final_usage(&self, set: &mut ProbeSet, probe: HandleOf<B>) {
        let mut worker = Worker::start();
        let snapshot = read(set.reset());
        let id = snapshot.process(worker.pid()).expect("no row of a living process").id;
        let work = worker.work();
        assert!(read(set.final_usage(probe, id)).is_none(), "a living process has a final usage");
        worker.exit();
        let usage = until("a process that has ended has no final usage", || {
            read(set.final_usage(probe, id))
        });
        let at_end = (self.count)(&usage);
        assert!(at_end >= *work.start(), "the final usage is {at_end} of {work:?}: too little");
        let snapshot = read(set.snapshot());
        let row = snapshot.process(id.pid).expect("a process that has ended has no row");
        assert_eq!(
            (self.count)(row.total(probe)),
            at_end,
            "the total of a row, and the final usage"
        );
    }

    /// Nothing is lost of processes that no snapshot showed alive, also if there are more of
    /// them than rows or final records.
    pub(super) fn many_ends(&self) {
        const LIVES: u64 = 4;
        for options in [ProbeSet::builder().max_exited(1), ProbeSet::builder().max_ended(1)] {
            let (mut set, probe) = self.set(options);
            let mut work = 0..=0;
            let mut pids = BTreeSet::new();
            for _ in 0..LIVES {
                let mut worker = Worker::start();
                add(&mut work, &worker.work());
                pids.insert(worker.pid());
                worker.exit();
            }
            until("too little is counted of processes that have ended", || {
                let snapshot = read(set.snapshot());
                let view = snapshot.of(probe);
                let rows = snapshot.processes().filter(|row| pids.contains(&row.id.pid));
                let in_rows: u64 = rows.map(|row| (self.count)(&row[probe])).sum();
                let in_all = in_rows + (self.count)(&view.overflow().usage);
                (in_all >= *work.start()).then_some(())
            });
        }
    }

    /// Only processes that pass the filter are counted, in rows and in the overflow.
    pub(super) fn filters(&self) {
        let (mut inside, mut outside) = (Worker::start(), Worker::start());
        let filter = Filter::processes([inside.pid()]);
        let (mut set, probe) = self.set(ProbeSet::builder().filter(filter));
        let work: RangeInclusive<u64> = inside.work();
        outside.work();
        // so old that it cannot be a new process
        std::thread::sleep(std::time::Duration::from_millis(200));
        read(set.snapshot());
        let snapshot = read(set.reset());
        within(self.count_of(&snapshot.of(probe), &inside), &work);
        let all = snapshot.processes().len();
        assert_eq!(all, 1, "{all} processes have a row, one is inside the filter");
        let overflow = (self.count)(&snapshot.of(probe).overflow().usage);
        assert_eq!(overflow, 0, "something outside the filter is counted");
    }
}
