//! What is counted, and in which window.

use std::time::Duration;

use super::{Check, UsageOf, Worker, add, read, within};
use crate::{kit::ProbeBuilder, probe::Probe, snapshot::delta};

impl<B: ProbeBuilder, N: Fn() -> B, F: Fn(&UsageOf<B>) -> u64> Check<N, F> {
    /// Work is in the row of the process that did it and in the window in which it was done.
    pub(super) fn counts(&self) {
        let mut probe = self.load();
        let mut worker = Worker::start();
        read(probe.reset());
        let once = worker.work();
        within(self.count_of(&read(probe.reset()), &worker), &once);
        let idle = self.count_of(&read(probe.reset()), &worker);
        assert!(idle < *once.start(), "counted {idle} of a process that did nothing: too much");
        let mut more = worker.work();
        add(&mut more, &worker.work());
        add(&mut more, &worker.work());
        within(self.count_of(&read(probe.snapshot()), &worker), &more);
        within(self.count_of(&read(probe.reset()), &worker), &more);
    }

    /// Windows touch. Within one, counters never go back and add up.
    pub(super) fn windows(&self) {
        let mut probe = self.load();
        let mut worker = Worker::start();
        let mut end = read(probe.reset()).window.end_ns;
        for _ in 0..5 {
            worker.work();
            let first = read(probe.snapshot());
            assert_eq!(first.window.start_ns, end, "a snapshot moves the window");
            worker.work();
            let second = read(probe.snapshot());
            assert_eq!(second.window.start_ns, end, "a snapshot moves the window");
            assert!(second.window.end_ns > first.window.end_ns, "the window does not grow");
            for row in &first.processes {
                if let Some(later) = second.processes.iter().find(|later| later.id == row.id) {
                    let (before, now) = ((self.count)(&row.usage), (self.count)(&later.usage));
                    assert!(now >= before, "{} went from {before} back to {now}", row.id);
                    let (before, now) = ((self.count)(&row.total), (self.count)(&later.total));
                    assert!(now >= before, "{}: total went from {before} back to {now}", row.id);
                }
            }
            let (one, two) = (self.count_of(&first, &worker), self.count_of(&second, &worker));
            let between = delta(&first, &second);
            let mine = between.processes.iter().rfind(|row| row.id.pid == worker.pid());
            let mine = mine.map(|row| (self.count)(&row.usage));
            assert_eq!(mine, Some(two - one), "a delta is wrong");
            let last = read(probe.reset());
            assert_eq!(last.window.start_ns, end, "a reset moves the start of its window");
            assert!(self.count_of(&last, &worker) >= two, "a reset takes back what was reported");
            end = last.window.end_ns;
        }
    }

    /// All windows together have what a probe has that is never reset, and no more, although
    /// the resets come during the work.
    pub(super) fn conserves(&self) {
        let (mut windows, mut whole) = (self.load(), self.load());
        let mut worker = Worker::start();
        let mut reported = |worker: &Worker| self.count_of(&read(whole.snapshot()), worker);
        let begin = reported(&worker);
        read(windows.reset());
        let begin = begin..=reported(&worker);
        let (mut sum, mut work) = (0, 0..=0);
        for _ in 0..10 {
            worker.begin();
            sum += self.count_of(&read(windows.reset()), &worker);
            sum += self.count_of(&read(windows.reset()), &worker);
            add(&mut work, &worker.end());
        }
        let end = reported(&worker);
        sum += self.count_of(&read(windows.reset()), &worker);
        let end = end..=reported(&worker);
        within(sum, &work);
        // a clock may be some ns off while a process is running
        let slack = sum / 1000;
        let least = (end.start() - begin.end()).saturating_sub(slack);
        let most = end.end() - begin.start() + slack;
        assert!(sum >= least, "{sum} in all windows: too little, {least} without resets");
        assert!(sum <= most, "{sum} in all windows: too much, {most} without resets");
    }

    /// A consumer of intervals that comes late loses nothing.
    pub(super) fn intervals(&self) {
        let mut worker = Worker::start();
        let every = Duration::from_millis(20);
        let mut intervals = self.load().intervals(every);
        let mut next = || read(intervals.next().expect("intervals have no end"));
        let start = next().snapshot.window.end_ns;
        let work = worker.work();
        std::thread::sleep(5 * every);
        let late = next();
        assert!(late.missed_ticks >= 3, "{} ticks missed", late.missed_ticks);
        assert_eq!(late.snapshot.window.start_ns, start, "intervals do not touch");
        within(self.count_of(&late.snapshot, &worker), &work);
    }
}
