//! What the slab probe promises beside correct counts: bounds, losses, filters, sets, cost.

use std::{collections::BTreeSet, time::Duration};

use ebpfmetrics::{
    CpuProbe, ErrorKind, Filter, Kernel, Probe, ProbeSet, Process, SlabProbe, SlabUsage,
    cpu::CpuAccounting,
    group::group_by,
    probe::Statistics,
    slab::{SlabLoss, SlabSnapshot},
    snapshot::delta,
};
use ebpfmetrics_suite::{
    Workload, loaded_objects, poll, run_slab_command, skipped, slab_usage, support,
    wait_until_asleep,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// Processes are released within this time.
const SETTLED: Duration = Duration::from_secs(5);

#[test]
fn processes_beyond_the_bound_are_counted_together() {
    let mut probe = SlabProbe::builder().max_exited(20).load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["children", "200", "20"]);
    work.line();
    let of_work = |row: &&Process<SlabUsage>| {
        row.info.exited && row.info.parent.is_some_and(|parent| parent.pid == work.pid())
    };
    let all = poll(SETTLED, || {
        let snapshot = probe.snapshot().unwrap();
        let listed = snapshot.processes.iter().filter(of_work).count() as u64;
        let overflow = &snapshot.overflow;
        // what a process frees after its last thread exited is added until its release
        let settled = overflow.usage.frees >= 20 * overflow.processes;
        (listed + overflow.processes >= 200 && settled).then_some(listed)
    });
    let listed = all.expect("200 processes that ended, with what they freed");
    assert!(listed <= 20, "{listed}");
}

#[test]
fn a_full_address_map_is_a_loss() {
    let mut probe = SlabProbe::builder().address_map(64).load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["slab"]);
    run_slab_command(&mut work, "hold 300");
    let snapshot = probe.snapshot().unwrap();
    let full = snapshot.losses.get(SlabLoss::AddressMapFull).unwrap();
    assert!(full > 800, "{:?}", snapshot.losses);
    let row = snapshot.process(work.pid()).unwrap();
    assert!(row.usage.untracked_bytes.unwrap() > 300 * 1000, "{row:?}");
    assert!(row.usage.outstanding_bytes.unwrap() < 64 * 8192, "{row:?}");
    let error = snapshot.losses.check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MapFull);
    assert!(error.to_string().contains("address_map_full"), "{error}");
    // what it had no room for is not known when it is freed
    let before = row.usage.unknown_frees.unwrap();
    run_slab_command(&mut work, "drop");
    let after = slab_usage(&probe.snapshot().unwrap(), work.pid()).unknown_frees.unwrap();
    assert!(after > before + 300, "{before} to {after}");
}

#[test]
fn frees_of_older_allocations_are_unknown() {
    let mut work = Workload::start(WORKLOAD, &["slab"]);
    run_slab_command(&mut work, "hold 300");
    let mut probe = SlabProbe::builder().address_map(100_000).load().unwrap();
    run_slab_command(&mut work, "drop");
    let snapshot = probe.snapshot().unwrap();
    let row = snapshot.process(work.pid()).unwrap();
    // the rings of pages of 300 pipes at the least
    assert!(row.usage.unknown_frees.unwrap() >= 300, "{row:?}");
    assert!(row.usage.unknown_frees.unwrap() <= row.usage.frees, "{row:?}");
    assert!(row.usage.outstanding_bytes.unwrap() < 100_000, "{row:?}");
}

#[test]
fn a_full_table_is_a_loss() {
    let mut probe = SlabProbe::builder().table_entries(1).load().unwrap();
    let mut works = [(); 4].map(|()| Workload::start(WORKLOAD, &["slab"]));
    for work in &mut works {
        run_slab_command(work, "pipes 100");
    }
    let snapshot = probe.reset().unwrap();
    let lost = snapshot.losses.get(SlabLoss::ProcessTableFull).unwrap();
    assert!(lost > 1000, "{:?}", snapshot.losses);
    assert_eq!(snapshot.losses.check().unwrap_err().kind(), ErrorKind::MapFull);
    assert!(probe.reset().unwrap().losses.get(SlabLoss::ProcessTableFull).unwrap() < lost);
}

/// The probe's programs in the kernel and their maps, by id: others may come and go.
fn programs_and_maps() -> (BTreeSet<u32>, BTreeSet<u32>) {
    let loaded = aya::programs::loaded_programs().flatten();
    let ours: Vec<_> = loaded
        .filter(|program| program.name_as_str().is_some_and(|name| name.starts_with("slab_")))
        .collect();
    // one that goes away while it is listed is an error, and gone
    let maps = ours.iter().filter_map(|program| program.map_ids().ok().flatten()).flatten();
    (ours.iter().map(|program| program.id()).collect(), maps.collect())
}

#[test]
fn nothing_is_left_after_drop() {
    let (before, _) = programs_and_maps();
    let probe = SlabProbe::builder().address_map(1000).load().unwrap();
    let (programs, maps) = programs_and_maps();
    let programs: BTreeSet<_> = programs.difference(&before).copied().collect();
    assert!(programs.len() >= 4 && maps.len() >= 6, "{programs:?} {maps:?}");
    drop(probe);
    // freed after an RCU grace period
    let gone = poll(Duration::from_secs(10), || {
        let now = loaded_objects();
        (now.programs.is_disjoint(&programs) && now.maps.is_disjoint(&maps)).then_some(())
    });
    assert!(gone.is_some(), "left behind of {programs:?} and {maps:?}: {:?}", loaded_objects());
}

/// The maps of the CPU probe are preallocated, but those of the set allocate in its programs,
/// under their own locks: the slab hooks run there too.
#[test]
fn it_counts_inside_of_other_programs_that_allocate() {
    let kernel = Kernel::read().unwrap();
    let mut slab = SlabProbe::builder().address_map(50_000).load_on(&kernel).unwrap();
    let mut cpu = CpuProbe::builder()
        .accounting(CpuAccounting::SchedSwitch)
        .switch_table_entries(1)
        .load_on(&kernel)
        .unwrap();
    let mut works = [(); 3].map(|()| Workload::start(WORKLOAD, &["children", "300", "20"]));
    for work in &mut works {
        work.line();
        cpu.snapshot().unwrap();
        let row = slab_usage(&slab.snapshot().unwrap(), work.pid());
        // a process takes a task, its credentials, signals, memory map and more
        assert!(row.allocations > 300 * 5, "{row:?}");
    }
}

#[test]
fn it_works_in_a_set_with_another_probe() {
    let mut probes = ProbeSet::new().unwrap();
    let cpu = probes.add(CpuProbe::builder()).unwrap();
    let slab = probes.add(SlabProbe::builder()).unwrap();
    let mut work = Workload::start(WORKLOAD, &["slab"]);
    wait_until_asleep(work.pid());
    let earlier = probes.reset().unwrap();
    run_slab_command(&mut work, "pipes 100");
    let later = probes.snapshot().unwrap();
    assert_eq!(later.window.start_ns, earlier.window.end_ns);
    let row = later.process(work.pid()).unwrap();
    assert!(row[cpu].cpu_time > Duration::ZERO);
    let first = row[slab];
    assert!(first.allocations >= 300, "{first:?}");

    probes.remove(cpu).unwrap();
    run_slab_command(&mut work, "pipes 100");
    let (later, now) = (later.of(slab).to_snapshot(), probes.snapshot().unwrap());
    let now = now.of(slab).to_snapshot();
    let growth = delta(&later, &now);
    let row = growth.processes.iter().find(|row| row.id.pid == work.pid()).unwrap();
    assert_eq!(row.usage.allocations, slab_usage(&now, work.pid()).allocations - first.allocations);
    let by_user = group_by(&now, |row| row.info.uid);
    assert_eq!(by_user.sum() + now.system.idle, now.sum_with_idle());
}

#[test]
fn health_cost_and_options() {
    let statistics = Statistics::enable().unwrap();
    let mut probe = SlabProbe::builder().load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["slab"]);
    run_slab_command(&mut work, "pipes 300");
    let counted = slab_usage(&probe.snapshot().unwrap(), work.pid());
    let cost = probe.cost().unwrap();
    drop(statistics);
    let runs = |name: &str| {
        let program = cost.programs.iter().find(|program| program.program == name);
        let ns = program.and_then(|program| program.ns_per_run());
        assert!(ns.is_none_or(|ns| (1.0..100_000.0).contains(&ns)), "{program:?}");
        program.map_or(0, |program| program.run_count)
    };
    let cache_alloc = ["slab_cache_btf", "slab_cache_alloc"].map(runs).iter().sum::<u64>();
    assert!(runs("slab_kmalloc") + cache_alloc > counted.allocations / 2, "{cost:?}");
    assert!(runs("slab_kfree") + runs("slab_cache_free") >= counted.frees, "{cost:?}");
    assert!(runs("process_walk") + runs("process_walk_plain") > 10, "{cost:?}");

    let bytes = |probe: &SlabProbe| probe.health().unwrap().map_bytes;
    let plain = bytes(&probe);
    // Kernels before 6.4 tell what maps take when they are full: 34 MiB.
    assert!((1 << 20..40 << 20).contains(&plain), "{plain}");
    assert!(probe.health().unwrap().degraded.iter().all(|it| it.feature == "process 1"));
    let mapped = bytes(&SlabProbe::builder().address_map(100_000).load().unwrap());
    let entry = (mapped - plain) as f64 / 100_000.0;
    println!("{plain} bytes of maps, {mapped} with 100,000 addresses: {entry} each");
    // Kernels before 6.4 report only the keys and values of a map: 32 bytes.
    assert!((30.0..130.0).contains(&entry), "{entry} bytes each");

    for builder in [
        SlabProbe::builder().table_entries(0),
        SlabProbe::builder().address_map(0),
        SlabProbe::builder().max_exited(u32::MAX),
        SlabProbe::builder().max_ended(0),
    ] {
        assert_eq!(builder.load().unwrap_err().kind(), ErrorKind::InvalidOption);
    }
}

#[test]
fn json_has_units_in_the_names_and_keeps_every_value() {
    let mut probe = SlabProbe::builder().load().unwrap();
    let snapshot = probe.snapshot().unwrap();
    let json = serde_json::to_value(&snapshot).unwrap();
    let row = &json["processes"][0];
    for key in ["pid", "start_time_ns", "allocations", "allocated_bytes", "frees"] {
        assert!(row[key].is_u64(), "{key} in {row}");
    }
    for key in ["freed_bytes", "outstanding_bytes", "cross_process_frees"] {
        assert!(row[key].is_null(), "{key} in {row}");
    }
    assert!(json["system"]["idle"]["frees"].is_u64());
    assert!(json["overflow"]["processes"].is_u64());
    assert_eq!(serde_json::from_value::<SlabSnapshot>(json).unwrap(), snapshot);
}

#[test]
fn metrics_that_this_kernel_gives() {
    let mut probe = SlabProbe::builder().address_map(10_000).load().unwrap();
    let mut work = Workload::start(WORKLOAD, &["slab"]);
    run_slab_command(&mut work, "pipes 100");
    let snapshot = probe.snapshot().unwrap();
    let row = slab_usage(&snapshot, work.pid());
    assert!(row.allocations > 0 && row.allocated_bytes > 0 && row.frees > 0, "{row:?}");
    assert!(row.freed_bytes.unwrap() > 0 && row.released_bytes.unwrap() > 0, "{row:?}");
    for source in &snapshot.provenance.sources {
        let metric = format!("slab.{}", source.metric);
        let known = source.source.as_deref();
        support(&metric, known.is_some(), known.unwrap_or("-"));
        assert!(source.source.is_some(), "{metric} should be known since 5.10");
    }
}

#[test]
fn allocations_outside_the_filter_are_not_counted() {
    let (mut inside, mut outside) =
        (Workload::start(WORKLOAD, &["slab"]), Workload::start(WORKLOAD, &["slab"]));
    let pid = inside.pid();
    let mut all = SlabProbe::builder().load().unwrap();
    let filter = Filter::processes([pid]);
    let mut few = SlabProbe::builder().address_map(100_000).filter(filter).load().unwrap();
    for work in [&mut outside, &mut inside] {
        run_slab_command(work, "pipes 500");
    }
    inside.stop();
    let (few, all) = (few.snapshot().unwrap(), all.snapshot().unwrap());
    let rows: Vec<_> = few.processes.iter().map(|row| row.id.pid).collect();
    assert_eq!(rows, [pid]);
    let (ours, truth) = (slab_usage(&few, pid), slab_usage(&all, pid));
    let context = format!("{ours:?} of {truth:?}, {:?}, {:?}", few.losses, all.losses);
    println!("{context}");
    assert!(truth.allocations + skipped(&all) >= 1500, "{context}");
    // Both have counted since before the work, the one that was loaded first a little more.
    // Either may have skipped events, and not the same.
    let near = |ours: u64, truth: u64, per_event: u64| {
        let (few, all) = (skipped(&few) * per_event, skipped(&all) * per_event);
        ours <= truth + all && ours + truth / 20 + few >= truth
    };
    const MAX_OBJECT_BYTES: u64 = 8192;
    assert!(near(ours.allocations, truth.allocations, 1), "{context}");
    assert!(near(ours.allocated_bytes, truth.allocated_bytes, MAX_OBJECT_BYTES), "{context}");
    assert!(near(ours.frees, truth.frees, 1), "{context}");
    assert!(slab_usage(&all, outside.pid()).allocations + skipped(&all) >= 1500, "{context}");
    // frees by others are counted for the process that allocated
    assert!(ours.outstanding_bytes.unwrap() < truth.allocated_bytes / 2, "{context}");
}
