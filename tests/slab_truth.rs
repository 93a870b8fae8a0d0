//! Slab allocations and frees against the kernel's own tracer.

use std::{collections::HashMap, thread::sleep, time::Duration};

use ebpfmetrics::{ErrorKind, Probe as _, SlabProbe, SlabSnapshot, SlabUsage, Window};
use ebpfmetrics_suite::{SlabEvent, SlabTrace, Workload, loaded_objects, poll, support};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// Frees that wait for RCU, and final records, which do too.
const SETTLED: Duration = Duration::from_millis(2500);

fn usage(snapshot: &SlabSnapshot, pid: u32) -> SlabUsage {
    snapshot.process(pid).unwrap_or_else(|| panic!("no row of {pid}")).usage
}

fn outstanding(probe: &mut SlabProbe, pid: u32) -> u64 {
    probe.snapshot().unwrap().process(pid).unwrap().outstanding_bytes.unwrap()
}

/// Waits until a process waits for input, and has left its CPU.
fn asleep(pid: u32) {
    let waits = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('S').then_some(())
    };
    assert!(poll(Duration::from_secs(10), waits).is_some(), "{pid} does not sleep");
    sleep(Duration::from_millis(20));
}

/// Has a workload do something, from sleep to sleep.
fn have_done(work: &mut Workload, what: &str) {
    work.tell(what);
    assert_eq!(work.line(), "done");
    asleep(work.pid());
}

/// What the tracer saw of a thread in a window.
#[derive(Debug, Default, PartialEq, Eq)]
struct Traced {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
}

fn traced(events: &[SlabEvent], window: Window, is: impl Fn(u32) -> bool) -> Traced {
    let mut sum = Traced::default();
    let in_window = |at| (window.start_ns..window.end_ns).contains(&at);
    for event in events.iter().filter(|event| is(event.tid) && in_window(event.at_ns)) {
        match event.allocated_bytes {
            Some(bytes) => {
                sum.allocations += 1;
                sum.allocated_bytes += bytes;
            }
            None => sum.frees += 1,
        }
    }
    sum
}

fn counted(usage: SlabUsage) -> Traced {
    Traced {
        allocations: usage.allocations,
        allocated_bytes: usage.allocated_bytes,
        frees: usage.frees,
    }
}

/// Equal, but for what the kernel kept from us by its own account.
fn assert_traced(ours: SlabUsage, truth: &Traced, snapshot: &SlabSnapshot) {
    let ours = counted(ours);
    let skipped = snapshot.losses.get("event_skipped").unwrap();
    let context = format!("ours {ours:?}, traced {truth:?}, {:?}", snapshot.losses);
    if skipped == 0 {
        assert_eq!(&ours, truth, "{context}");
    }
    let within = |ours: u64, truth: u64| (truth.saturating_sub(skipped)..=truth).contains(&ours);
    assert!(within(ours.allocations, truth.allocations), "{context}");
    assert!(within(ours.frees, truth.frees), "{context}");
    assert!(ours.allocated_bytes <= truth.allocated_bytes, "{context}");
}

#[test]
fn counts_and_bytes_equal_those_of_the_tracer() {
    for builder in [SlabProbe::builder(), SlabProbe::builder().address_map(100_000)] {
        let trace = SlabTrace::start();
        let mut probe = builder.load().unwrap();
        let mut work = Workload::start(WORKLOAD, &["slab"]);
        asleep(work.pid());
        let mut snapshots = Vec::new();
        for (what, least) in [("pipes 500", 1500), ("sockets 300", 1200), ("hold 200", 600)] {
            probe.reset().unwrap();
            have_done(&mut work, what);
            snapshots.push((what, least, probe.snapshot().unwrap()));
        }
        let events = trace.stop();
        for (what, least, snapshot) in &snapshots {
            let ours = usage(snapshot, work.pid());
            let truth = traced(&events, snapshot.window, |tid| tid == work.pid());
            println!("{what}: {ours:?}");
            assert!(truth.allocations >= *least, "{what}: traced {truth:?}");
            assert_traced(ours, &truth, snapshot);
        }
    }
}
