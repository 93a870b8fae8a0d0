//! Several probes read as one.

use std::{collections::BTreeSet, thread::sleep, time::Duration};

use ebpfmetrics::{CpuProbe, Joined, Kernel, MemProbe, Probe as _, Snapshot as _, Statistics};
use ebpfmetrics_suite::{MemStatus, Workload, schedstat};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

fn probes() -> (CpuProbe, MemProbe) {
    let kernel = Kernel::read().unwrap();
    let cpu = CpuProbe::builder().load_on(&kernel).unwrap();
    (cpu, MemProbe::builder().load_on(&kernel).unwrap())
}

#[test]
fn one_walk_serves_all_and_each_figure_is_right() {
    let statistics = Statistics::enable().unwrap();
    let mut joined = Joined::new(probes()).unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "3"]);
    sleep(Duration::from_millis(300));
    work.stop();
    let runs = |joined: &Joined<_>| -> Vec<(String, u64)> {
        let programs = joined.cost().unwrap().programs;
        let iterators = programs.into_iter().filter(|it| it.program.contains("_tasks"));
        iterators.map(|it| (it.program, it.run_count)).collect()
    };
    let before = runs(&joined);
    let snapshot = joined.snapshot().unwrap();
    let after = runs(&joined);
    drop(statistics);

    // A program that is called by another's tail is not counted as a run of its own.
    let ran = |name: &str| {
        let of =
            |runs: &[(String, u64)]| runs.iter().find(|(it, _)| it.starts_with(name)).unwrap().1;
        of(&after) - of(&before)
    };
    assert!(ran("cpu_tasks") > 10, "{before:?} {after:?}");
    assert_eq!(ran("mem_tasks"), 0, "{before:?} {after:?}");

    let (cpu, mem) = &snapshot.parts;
    assert_eq!((cpu.window, mem.window), (snapshot.window, snapshot.window));
    let row = snapshot.processes().find(|row| row.id.pid == work.pid()).unwrap();
    let (of_cpu, of_mem) = (row.rows.0.unwrap(), row.rows.1.unwrap());
    assert_eq!(
        of_cpu.usage.cpu_time.as_nanos() as u64,
        schedstat(work.pid()).unwrap().cpu_ns,
        "{of_cpu:?}"
    );
    let status = MemStatus::of(work.pid()).unwrap();
    assert_eq!(of_mem.usage.virtual_bytes, Some(status.size));
    assert_eq!((of_cpu.id, of_cpu.info), (of_mem.id, of_mem.info));
    assert_eq!(row.info.comm, "workload");
}

#[test]
fn the_join_has_every_process_of_every_probe_once() {
    let mut joined = Joined::new(probes()).unwrap();
    let mut children = Workload::start(WORKLOAD, &["children", "100", "50"]);
    children.line();
    sleep(Duration::from_millis(200));
    let snapshot = joined.reset().unwrap();
    let ids: Vec<_> = snapshot.processes().map(|row| row.id).collect();
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
    let (cpu, mem) = &snapshot.parts;
    let all: BTreeSet<_> = (cpu.processes.iter().map(|row| row.id))
        .chain(mem.processes.iter().map(|row| row.id))
        .collect();
    assert_eq!(ids, all.into_iter().collect::<Vec<_>>());
    assert!(snapshot.losses().get("exit_record_missing").is_some());
    assert!(snapshot.losses().get("track_table_full").is_some());
}

#[test]
fn parted_probes_go_on_by_themselves() {
    let mut joined = Joined::new(probes()).unwrap();
    let end = joined.reset().unwrap().window.end_ns;
    let (mut cpu, mut mem) = joined.into_inner();
    let (of_cpu, of_mem) = (cpu.snapshot().unwrap(), mem.snapshot().unwrap());
    assert_eq!((of_cpu.window.start_ns, of_mem.window.start_ns), (end, end));
    let me = std::process::id();
    assert!(of_cpu.process(me).is_some() && of_mem.process(me).is_some());
    drop(mem);
    assert!(cpu.snapshot().unwrap().process(me).is_some());
    // two of a kind, and the other way round
    let mut twins = Joined::new((MemProbe::builder().load().unwrap(), cpu)).unwrap();
    let snapshot = twins.snapshot().unwrap();
    let row = snapshot.processes().find(|row| row.id.pid == me).unwrap();
    assert!(row.rows.0.is_some() && row.rows.1.is_some());
}
