//! A workload that makes the kernel allocate, and its rows.

use std::{collections::BTreeSet, thread::sleep, time::Duration};

use ebpfmetrics::{SlabUsage, slab::SlabSnapshot};

use crate::{Workload, poll};

/// Waits until a process waits for input and has left its CPU.
pub fn wait_until_asleep(pid: u32) {
    let waits = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('S').then_some(())
    };
    assert!(poll(Duration::from_secs(20), waits).is_some(), "{pid} does not sleep");
    sleep(Duration::from_millis(20));
}

/// Lets a workload `slab` carry out a command, from sleep to sleep; returns its threads.
pub fn run_slab_command(work: &mut Workload, command: &str) -> BTreeSet<u32> {
    work.tell(command);
    let line = work.line();
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("done"), "{command}");
    wait_until_asleep(work.pid());
    words.map(|tid| tid.parse().unwrap()).chain([work.pid()]).collect()
}

/// The usage of a process that has a row.
pub fn slab_usage(snapshot: &SlabSnapshot, pid: u32) -> SlabUsage {
    snapshot.process(pid).unwrap_or_else(|| panic!("no row of {pid}")).usage
}

/// Events that the kernel did not run a program for.
pub fn skipped(snapshot: &SlabSnapshot) -> u64 {
    snapshot.losses.get("run_skipped").unwrap()
}
