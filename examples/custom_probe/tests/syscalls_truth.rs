//! The figures against those of the kernel's own tracer (`raw_syscalls:sys_enter` and
//! `sys_exit` through ftrace), and against calls whose number is known.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use custom_probe::{SyscallProbe, SyscallSnapshot, SyscallUsage};
use ebpfmetrics::{ErrorKind, Filter, Probe as _, Process};
use support::{Caller, Trace, Traced};

fn row(snapshot: &SyscallSnapshot, pid: u32) -> Option<Process<SyscallUsage>> {
    snapshot.processes.iter().rfind(|row| row.id.pid == pid).cloned()
}

/// Snapshots until there is what is looked for.
fn until<T>(probe: &mut SyscallProbe, found: impl Fn(&SyscallSnapshot) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let snapshot = probe.snapshot().unwrap();
        if let Some(found) = found(&snapshot) {
            return found;
        }
        assert!(Instant::now() < deadline, "{:?}", snapshot.losses);
        sleep(Duration::from_millis(20));
    }
}

/// Equal, but for what the kernel says that it skipped (7.x does).
#[track_caller]
fn assert_traced(usage: SyscallUsage, traced: Traced, snapshot: &SyscallSnapshot) {
    let skipped = snapshot.losses.get("run_skipped").unwrap();
    let near = |counted: u64, traced: u64| counted <= traced && traced <= counted + skipped;
    let equal = near(usage.calls, traced.calls) && near(usage.errors, traced.errors);
    assert!(equal, "{usage:?}, {traced:?}, {skipped} runs skipped");
}

/// A live process, which is idle whenever it is looked at: equal to the tracer.
#[test]
fn live_counts_are_the_tracers() {
    let mut caller = Caller::start();
    let mut probe = SyscallProbe::builder().load().unwrap();
    let trace = Trace::start();
    probe.reset().unwrap();
    for (good, bad) in [(3000, 200), (500, 7), (0, 0)] {
        caller.work(1, good, bad);
        let traced = trace.read(&[caller.pid()]);
        let snapshot = probe.snapshot().unwrap();
        let usage = row(&snapshot, caller.pid()).unwrap().usage;
        assert_traced(usage, traced, &snapshot);
        assert!(traced.calls >= good + bad && traced.errors >= bad, "{traced:?}");
    }
    assert_eq!(trace.read(&[caller.pid()]).errors, 207);
}

/// A process from its first to its last call, with threads that come and go.
#[test]
fn final_counts_are_the_tracers() {
    let mut caller = Caller::start();
    let parent = caller.pid();
    let mut probe = SyscallProbe::builder().load().unwrap();
    let trace = Trace::start();
    caller.fork();
    let threads = caller.work(4, 1000, 30);
    let pid = caller.pid();
    caller.end();
    let (last, snapshot) = until(&mut probe, |snapshot| {
        let last = row(snapshot, pid).filter(|row| row.info.exited)?;
        Some((last, snapshot.clone()))
    });
    let usage = last.usage;
    let traced = trace.read(&threads);
    assert_traced(usage, traced, &snapshot);
    assert!(traced.calls > 4120 && traced.errors >= 120, "{traced:?}");
    assert_eq!((last.info.threads, last.info.parent.unwrap().pid), (4, parent));
    assert_eq!(last.info.comm, "caller");
}

/// Processes that no snapshot showed alive have a row or are counted together, and nothing
/// is lost.
#[test]
fn short_lives_are_conserved() {
    const LIVES: u64 = 60;
    const CALLS: u64 = 100;
    for max_exited in [8192, 5] {
        let mut probe = SyscallProbe::builder().max_exited(max_exited).load().unwrap();
        for _ in 0..LIVES {
            let mut caller = Caller::start();
            caller.work(1, CALLS, 1);
            caller.end();
        }
        // others end too: they may take a row
        let (own, together, usage) = until(&mut probe, |snapshot| {
            let ours = snapshot.processes.iter().filter(|row| row.info.comm == "caller");
            let ended: Vec<_> = ours.filter(|row| row.info.exited).collect();
            let together = &snapshot.overflow;
            let all = ended.len() as u64 + together.processes >= LIVES;
            let sum: u64 = ended.iter().map(|row| row.usage.calls).sum();
            all.then(|| (ended.len() as u64, together.processes, sum + together.usage.calls))
        });
        assert_eq!(together > 0, max_exited == 5, "{own} and {together}");
        let least = (own + together).min(LIVES) * (CALLS + 1);
        assert!(usage >= least, "{usage} in {own} and {together}");
    }
}

/// A process that has made no call that the probe saw has a row with zeros.
#[test]
fn a_process_without_counts_has_a_row() {
    let caller = Caller::start();
    let mut probe = SyscallProbe::builder().load().unwrap();
    let row = row(&probe.snapshot().unwrap(), caller.pid()).unwrap();
    assert_eq!((row.usage, row.total), Default::default());
}

/// A tree is measured from its start; nothing else is.
#[test]
fn a_filter_works_in_the_hooks() {
    let mut caller = Caller::start();
    let parent = caller.pid();
    let filter = Filter::tree(parent);
    let mut probe = SyscallProbe::builder().filter(filter).load().unwrap();
    let trace = Trace::start();
    caller.fork();
    let threads = caller.work(2, 1000, 10);
    let traced = trace.read(&threads);
    let snapshot = probe.snapshot().unwrap();
    assert_traced(row(&snapshot, caller.pid()).unwrap().usage, traced, &snapshot);
    assert!(traced.calls >= 2020, "{traced:?}");
    let pids: Vec<_> = snapshot.processes.iter().map(|row| row.id.pid).collect();
    assert!(pids.len() == 2 && pids.contains(&parent), "{pids:?}");
    assert_eq!(snapshot.overflow.usage, SyscallUsage::default());
}

/// Entries of processes that have ended are deleted, also of those that found no room among
/// the final records.
#[test]
fn a_small_table_serves_many_lives() {
    for max_ended in [32_768, 1] {
        let builder = SyscallProbe::builder().processes(256).max_ended(max_ended);
        let mut probe = builder.filter(Filter::tree(std::process::id())).load().unwrap();
        let mut calls = 0;
        for life in 1..=600 {
            assert!(Command::new("/bin/true").status().unwrap().success());
            if life % 20 == 0 {
                let snapshot = probe.reset().unwrap();
                assert_eq!(snapshot.losses.get("process_table_full"), Some(0), "life {life}");
                let rows = snapshot.processes.iter().map(|row| row.usage.calls);
                calls += rows.sum::<u64>() + snapshot.overflow.usage.calls;
            }
        }
        assert!(calls > 600 * 10, "{calls}");
    }
}

/// What finds no room is a loss.
#[test]
fn a_full_table_is_a_loss() {
    let mut probe = SyscallProbe::builder().processes(1).load().unwrap();
    let mut callers = [Caller::start(), Caller::start()];
    callers.iter_mut().for_each(|caller| drop(caller.work(1, 1000, 0)));
    let losses = probe.reset().unwrap().losses;
    assert!(losses.get("process_table_full").unwrap() >= 1000, "{losses:?}");
    assert_eq!(losses.check().unwrap_err().kind(), ErrorKind::MapFull);
    // of that window alone: what others do in a short one is less, sooner or later
    let deadline = Instant::now() + Duration::from_secs(20);
    while probe.reset().unwrap().losses.total() >= losses.total() {
        assert!(Instant::now() < deadline, "{losses:?} is reported again and again");
    }
    let none = SyscallProbe::builder().processes(0).load().unwrap_err();
    assert_eq!(none.kind(), ErrorKind::InvalidOption);
}
