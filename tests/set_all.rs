//! Sets of the built-in probes with each other.

use std::{collections::BTreeSet, thread::sleep, time::Duration};

use ebpfmetrics::{CpuProbe, DiskProbe, MemProbe, Probe as _, ProbeSet, SlabProbe};
use ebpfmetrics_suite::{FailAt, Failing, MemStatus, Workload, schedstat};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

#[test]
fn each_figure_is_right_in_every_order() {
    for reversed in [false, true] {
        let mut probes = ProbeSet::new().unwrap();
        let (cpu, mem, disk, slab) = if reversed {
            let slab = probes.add(SlabProbe::builder()).unwrap();
            let disk = probes.add(DiskProbe::builder()).unwrap();
            let mem = probes.add(MemProbe::builder()).unwrap();
            (probes.add(CpuProbe::builder()).unwrap(), mem, disk, slab)
        } else {
            let cpu = probes.add(CpuProbe::builder()).unwrap();
            let mem = probes.add(MemProbe::builder()).unwrap();
            let disk = probes.add(DiskProbe::builder()).unwrap();
            (cpu, mem, disk, probes.add(SlabProbe::builder()).unwrap())
        };
        let work = Workload::start(WORKLOAD, &["spin", "3"]);
        sleep(Duration::from_millis(300));
        work.stop();
        let snapshot = probes.snapshot().unwrap();
        let row = snapshot.process(work.pid()).unwrap();
        let cpu_ns = row[cpu].cpu_time.as_nanos() as u64;
        assert_eq!(cpu_ns, schedstat(work.pid()).unwrap().cpu_ns, "{:?}", row[cpu]);
        let status = MemStatus::of(work.pid()).unwrap();
        assert_eq!(row[mem].virtual_bytes, Some(status.size));
        assert!(row[slab].allocations > 0 && row.get(disk).is_some());
        assert_eq!(row.info.comm, "workload");

        // every process of every probe, once
        let ids: Vec<_> = snapshot.processes().map(|row| row.id).collect();
        assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
        // losses, sources and programs of all of them
        let causes =
            ["ended_table_full", "track_table_full", "row_table_full", "exit_record_missing"];
        for cause in causes {
            assert!(snapshot.losses.get(cause).is_some(), "{cause} in {:?}", snapshot.losses);
        }
        for metric in ["cpu_time", "resident_bytes", "busy"] {
            assert!(snapshot.provenance().any(|it| it.source(metric).is_some()), "{metric}");
        }
        let cost = probes.cost().unwrap();
        assert_eq!(probes.health().unwrap().programs, cost.programs.len());
        let of = |program: &str| program.split('_').next().unwrap().to_owned();
        let objects: BTreeSet<_> = cost.programs.iter().map(|it| of(&it.program)).collect();
        assert!(objects.is_superset(&["process", "mem", "disk", "slab"].map(String::from).into()));
    }
}

/// Probes come and go; each has all that happened while it was there.
#[test]
fn built_in_probes_come_and_go() {
    let mut probes = ProbeSet::new().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "2"]);
    let mut memory = Workload::start(WORKLOAD, &["memory"]);
    let mut faults =
        || -> u64 { memory.ask("faults").split_whitespace().next().unwrap().parse().unwrap() };
    let (mut cpu_ns, mut end) = (0, probes.snapshot().unwrap().window.start_ns);
    for change in 0..5 {
        let mem = probes.add(MemProbe::builder()).unwrap();
        let disk = probes.add(DiskProbe::builder()).unwrap();
        let before = faults();
        let slab = probes.add(SlabProbe::builder()).unwrap();
        probes.remove(disk).unwrap();
        let after = faults();
        let snapshot = probes.reset().unwrap();
        assert_eq!(snapshot.window.start_ns, end, "change {change}");
        end = snapshot.window.end_ns;
        cpu_ns += snapshot.process(work.pid()).unwrap()[cpu].cpu_time.as_nanos() as u64;
        assert!(snapshot.processes().all(|row| row.get(disk).is_none() && row.get(slab).is_some()));
        let counted: u64 = snapshot.processes().map(|row| row[mem].minor_faults).sum();
        assert!(counted >= after - before, "{counted}");
        probes.remove(slab).unwrap();
        probes.remove(mem).unwrap();
    }
    work.stop();
    let snapshot = probes.reset().unwrap();
    cpu_ns += snapshot.process(work.pid()).unwrap()[cpu].cpu_time.as_nanos() as u64;
    assert_eq!(cpu_ns, schedstat(work.pid()).unwrap().cpu_ns);
}

/// A reset that fails in another probe keeps the peaks of the window, which the kernel side
/// keeps per window.
#[test]
fn a_reset_that_fails_keeps_peaks() {
    const SPIKE_KIB: u64 = 8 << 10;
    for is_first in [false, true] {
        let mut probes = ProbeSet::new().unwrap();
        let failing = Failing::default();
        if is_first {
            probes.add(failing.clone()).unwrap();
        }
        let cpu = probes.add(CpuProbe::builder()).unwrap();
        let mem = probes.add(MemProbe::builder()).unwrap();
        if !is_first {
            probes.add(failing.clone()).unwrap();
        }
        let mut start = probes.reset().unwrap().window.end_ns;
        for places in [[FailAt::BeginWalk, FailAt::EndWalk], [FailAt::EndWalk, FailAt::BeginWalk]] {
            let work = Workload::start(WORKLOAD, &["spin", "1"]);
            let mut memory = Workload::start(WORKLOAD, &["memory"]);
            memory.ask(&format!("spike {SPIKE_KIB} 20"));
            for place in places {
                failing.fail_at(place);
                let error = probes.reset().unwrap_err();
                assert!(error.to_string().contains("on purpose"), "{error}");
                // smaller, in what the kernel side takes for the next window
                memory.ask("spike 1000 1");
            }
            failing.fail_at(FailAt::Nowhere);
            work.stop();
            let faults = memory.ask("faults");
            let truth: u64 = faults.split_whitespace().next().unwrap().parse().unwrap();
            let so_far = probes.snapshot().unwrap();
            let snapshot = probes.reset().unwrap();
            for snapshot in [&so_far, &snapshot] {
                assert_eq!(snapshot.window.start_ns, start, "{places:?}");
                // both began in the window: all that they ever did is in it
                let cpu_time = snapshot.process(work.pid()).unwrap()[cpu].cpu_time;
                assert_eq!(cpu_time.as_nanos() as u64, schedstat(work.pid()).unwrap().cpu_ns);
                let usage = &snapshot.process(memory.pid()).unwrap()[mem];
                let peak = usage.resident_peak_bytes.unwrap();
                assert!(peak >= SPIKE_KIB << 10, "{places:?}: {peak}");
                assert_eq!(usage.minor_faults, truth);
            }
            start = snapshot.window.end_ns;
            // the next window has nothing of it
            let next = probes.snapshot().unwrap();
            assert_eq!(next.window.start_ns, start);
            assert_eq!(next.process(work.pid()).unwrap()[cpu].cpu_time, Duration::ZERO);
            let peak = next.process(memory.pid()).unwrap()[mem].resident_peak_bytes.unwrap();
            assert!(peak < SPIKE_KIB << 10, "{places:?}: {peak} in the next window");
        }
    }
}
