//! Filters and the figures that are charged to processes: peaks and I/O.

use std::{process, time::Duration};

use ebpfmetrics::{CpuProbe, DiskProbe, Filter, MemProbe, Probe as _, ProbeSet};
use ebpfmetrics_suite::{LoopDevice, QuietVolume, Workload, directory_on_disk, poll, settle};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

#[test]
fn a_tree_has_the_peaks_of_what_it_starts() {
    let mut listed = Workload::start(WORKLOAD, &["memory"]);
    let stranger = Workload::start(WORKLOAD, &["spin", "1"]);
    let mut probes = ProbeSet::builder().filter(Filter::tree(listed.pid())).build().unwrap();
    probes.add(CpuProbe::builder()).unwrap();
    let mem = probes.add(MemProbe::builder().address_space(true)).unwrap();
    let mut children = Vec::new();
    for _ in 0..5 {
        let answer = listed.ask("child-touch 2000");
        children.push(answer.split_whitespace().next().unwrap().parse::<u32>().unwrap());
    }
    let all_ended = poll(Duration::from_secs(8), || {
        let snapshot = probes.snapshot().unwrap();
        let ended = |pid: &u32| snapshot.process(*pid).is_some_and(|row| row.info.exited);
        children.iter().all(ended).then_some(snapshot)
    });
    let snapshot = all_ended.expect("all children, with their ends");
    for process in snapshot.processes() {
        let known = process.id.pid == listed.pid() || children.contains(&process.id.pid);
        assert!(known, "{} is not in the tree", process.id);
    }
    for child in &children {
        let peak = snapshot.process(*child).unwrap()[mem].resident_peak_bytes.unwrap();
        assert!(peak >= 2000 << 10, "{peak}");
    }
    drop(stranger);
}

#[test]
fn devices_are_not_filtered() {
    let Some(files) = directory_on_disk("watch") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let on = |work: &str, count: &str| {
        let path = device.path();
        Workload::start(WORKLOAD, &["disk", work, path.to_str().unwrap(), count, "20"])
    };
    let (mut listed, mut other) = (on("direct", "100"), on("direct", "300"));
    let filter = Filter::tree(listed.pid());
    let mut probe = DiskProbe::builder().filter(filter).load().unwrap();
    let before = settle(device.name());
    probe.reset().unwrap();
    listed.go();
    other.go();
    let truth = settle(device.name()).since(&before);
    let snapshot = probe.snapshot().unwrap();
    let rows: Vec<_> = snapshot.processes.iter().map(|row| row.id.pid).collect();
    assert_eq!(rows, [listed.pid()]);
    let row = snapshot.device(device.name()).unwrap();
    // its program may have to be read in from another device
    let used = &snapshot.processes[0].usage.devices;
    let ours = used.iter().find(|used| used.device == row.id).unwrap().total;
    let context = format!("{ours:?}, {row:#?}, {truth:?}, {:?}", snapshot.losses);
    // completions that a machine hides are settled later
    let hidden = snapshot.losses.total();
    let near = |ours: u64, truth: u64| ours <= truth && ours + hidden + truth / 100 >= truth;
    assert!(near(ours.reads, 100) && near(ours.writes, 20), "{context}");
    assert_eq!(row.usage.reads, ours.reads + row.unattributed.reads, "{context}");
    assert!(near(row.usage.reads, truth.reads), "{context}");
    assert!(near(row.usage.writes + row.usage.flushes, truth.writes), "{context}");
    // the process is not known, the class is
    assert_eq!(row.by_class.foreground.reads, row.usage.reads, "{context}");
}

/// The process that writes pages back is not the one that dirtied them.
#[test]
fn buffered_writes_are_charged_to_owners_in_the_filter_only() {
    let Some(volume) = QuietVolume::new("watch_owners") else { return };
    let writer = |name: &str, bytes: &str| {
        let file = volume.path().join(name);
        Workload::start(WORKLOAD, &["disk", "write", file.to_str().unwrap(), bytes])
    };
    let (mut listed, mut other) = (writer("one", "8388608"), writer("other", "33554432"));
    let filter = Filter::processes([listed.pid(), process::id()]);
    let mut probe = DiskProbe::builder().filter(filter).load().unwrap();
    settle(volume.device());
    probe.reset().unwrap();
    listed.go();
    other.go();
    settle(volume.device()); // by sync(2), in this process
    let snapshot = probe.snapshot().unwrap();
    let written =
        |pid: u32| snapshot.process(pid).map(|row| row.usage.by_class.write_back.written_bytes);
    let row = snapshot.device(volume.device()).unwrap();
    let context = format!("{row:#?}, {:#?}, {:?}", snapshot.processes, snapshot.losses);
    assert_eq!((written(process::id()), written(other.pid())), (Some(0), None), "{context}");
    let ours = written(listed.pid()).unwrap();
    // a large folio becomes dirty as a whole, by the process that comes first
    assert!(ours.abs_diff(8 << 20) <= 1 << 20, "{context}");
    assert!(row.by_class.write_back.written_bytes >= 39 << 20, "{context}");
    assert!(row.unattributed.written_bytes >= 31 << 20, "{context}");
    assert_eq!(snapshot.losses.get("owner_unseen"), Some(0), "{context}");
}
