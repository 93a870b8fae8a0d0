//! What every probe promises: windows, baselines, losses, independence, and that
//! nothing is left behind.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::Duration,
};

use ebpfmetrics::{
    CpuProbe, CpuUsage, ErrorKind, Kernel, Probe, Process, ProcessId,
    cpu::{CpuAccounting, CpuSnapshot},
};
use ebpfmetrics_suite::{ProgramStatistics, Workload, loaded_objects, poll, schedstat};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

#[test]
fn windows_touch_and_counters_start_again() {
    let mut probe = CpuProbe::builder().load().unwrap();
    let work = Workload::start(WORKLOAD, &["spin", "1"]);
    let mut sum = Duration::ZERO;
    // Of the running, schedstat is as of the last tick: never ahead, and at most
    // 10 ms behind.
    let earliest = schedstat(work.pid()).unwrap().cpu_ns;
    let mut end = probe.reset().unwrap().window.end_ns;
    let latest = schedstat(work.pid()).unwrap().cpu_ns + 10_000_000;
    for _ in 0..10 {
        sleep(Duration::from_millis(50));
        let snapshot = probe.reset().unwrap();
        assert_eq!(snapshot.window.start_ns, end);
        assert!(snapshot.window.end_ns > end);
        end = snapshot.window.end_ns;
        sum += snapshot.process(work.pid()).unwrap().usage.cpu_time;
    }
    work.stop();
    let last = probe.reset().unwrap();
    sum += last.process(work.pid()).unwrap().usage.cpu_time;
    let total = schedstat(work.pid()).unwrap().cpu_ns;
    let sum_ns = sum.as_nanos() as u64;
    assert!(
        (total.saturating_sub(latest)..=total - earliest).contains(&sum_ns),
        "{sum_ns} of {total}, from between {earliest} and {latest}"
    );
    let after = probe.reset().unwrap();
    assert_eq!(after.process(work.pid()).unwrap().usage.cpu_time, Duration::ZERO);
}

#[test]
fn readers_and_resets_at_once_lose_nothing() {
    for accounting in [CpuAccounting::Ledger, CpuAccounting::SchedSwitch] {
        readers_and_resets(accounting);
    }
}

/// Readers see no counter go back within a window; what the resets hand out adds
/// up to all there was.
fn readers_and_resets(accounting: CpuAccounting) {
    let probe = CpuProbe::builder().accounting(accounting).load().unwrap();
    let cpus = thread::available_parallelism().unwrap().get();
    let work = Workload::start(WORKLOAD, &["ping-pong", &cpus.to_string()]);
    let probe = Arc::new(Mutex::new(probe));
    let stop = Arc::new(AtomicBool::new(false));

    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (probe, stop) = (Arc::clone(&probe), Arc::clone(&stop));
            thread::spawn(move || {
                let mut last: HashMap<ProcessId, Duration> = HashMap::new();
                let mut window = 0;
                let mut read = 0;
                while !stop.load(Ordering::Relaxed) {
                    let snapshot = probe.lock().unwrap().snapshot().unwrap();
                    if window != snapshot.window.start_ns {
                        window = snapshot.window.start_ns;
                        last.clear();
                    }
                    for row in &snapshot.processes {
                        let now = row.usage.cpu_time;
                        let before = last.insert(row.id, now).unwrap_or_default();
                        assert!(now >= before, "{row:?} had {before:?}");
                    }
                    read += 1;
                    thread::yield_now();
                }
                read
            })
        })
        .collect();

    let pid = work.pid();
    let mut sum = Duration::ZERO;
    for _ in 0..40 {
        sleep(Duration::from_millis(50));
        let snapshot = probe.lock().unwrap().reset().unwrap();
        sum += snapshot.process(pid).map_or(Duration::ZERO, |row| row.usage.cpu_time);
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 10);
    }
    work.stop();
    let last = probe.lock().unwrap().reset().unwrap();
    sum += last.process(pid).unwrap().usage.cpu_time;
    let truth = Duration::from_nanos(schedstat(pid).unwrap().cpu_ns);
    let allowed = match accounting {
        CpuAccounting::Ledger => Duration::ZERO,
        _ => truth / 1000 + Duration::from_micros(2),
    };
    assert!(sum.abs_diff(truth) <= allowed, "{accounting:?}: {sum:?}, schedstat {truth:?}");
}

#[test]
fn two_probes_of_one_process_agree_and_one_outlives_the_other() {
    let kernel = Kernel::read().unwrap();
    let mut one = CpuProbe::builder().load_on(&kernel).unwrap();
    let mut other = CpuProbe::builder().load_on(&kernel).unwrap();
    drop(kernel);
    let work = Workload::start(WORKLOAD, &["spin", "1"]);
    let mut children = Workload::start(WORKLOAD, &["children", "200", "100"]);
    children.line();
    sleep(Duration::from_millis(300));
    // one takes its records away; the other must have its own
    one.reset().unwrap();
    one.reset().unwrap();
    work.stop();
    let figure = |probe: &mut CpuProbe| probe.snapshot().unwrap();
    let seen = figure(&mut other);
    let truth = schedstat(work.pid()).unwrap().cpu_ns;
    assert_eq!(seen.process(work.pid()).unwrap().usage.cpu_time.as_nanos() as u64, truth);
    let ended = |snapshot: &CpuSnapshot| {
        let mine = |row: &&Process<CpuUsage>| {
            row.info.exited && row.info.parent.is_some_and(|parent| parent.pid == children.pid())
        };
        snapshot.processes.iter().filter(mine).count()
    };
    let all = poll(Duration::from_secs(5), || (ended(&figure(&mut other)) == 200).then_some(()));
    assert!(all.is_some(), "{} of 200 ended", ended(&figure(&mut other)));
    drop(one);
    work.resume();
    sleep(Duration::from_millis(100));
    work.stop();
    let truth = schedstat(work.pid()).unwrap().cpu_ns;
    let seen = figure(&mut other);
    assert_eq!(seen.process(work.pid()).unwrap().usage.cpu_time.as_nanos() as u64, truth);
}

#[test]
fn probes_of_two_processes_agree() {
    let mut ours = CpuProbe::builder().load().unwrap();
    let mut other = Workload::start(WORKLOAD, &["hold-probe"]);
    let work = Workload::start(WORKLOAD, &["ping-pong", "2"]);
    sleep(Duration::from_millis(500));
    work.stop();
    let truth = schedstat(work.pid()).unwrap().cpu_ns;
    let ours = ours.snapshot().unwrap().process(work.pid()).unwrap().usage.cpu_time;
    assert_eq!(ours.as_nanos() as u64, truth);
    other.tell(&work.pid().to_string());
    let theirs: u64 = other.line().parse().unwrap();
    assert!(theirs.abs_diff(truth) <= truth / 1000 + 2000, "{theirs}, schedstat {truth}");
}

#[test]
fn nothing_is_left_after_drop_and_after_a_kill() {
    let before = loaded_objects();
    let probe = CpuProbe::builder().accounting(CpuAccounting::SchedSwitch).load().unwrap();
    let other = Workload::start(WORKLOAD, &["hold-probe"]);
    let during = loaded_objects();
    assert!(during.programs.difference(&before.programs).count() >= 22, "two probes of 11 each");
    assert!(during.maps.difference(&before.maps).count() >= 10);

    drop(probe);
    let halfway = poll(Duration::from_secs(5), || {
        let new = loaded_objects().programs.difference(&before.programs).count();
        (11..22).contains(&new).then_some(())
    });
    assert!(halfway.is_some(), "the other process's probe is to stay");
    other.kill();
    // freed after an RCU grace period
    let gone = poll(Duration::from_secs(10), || {
        let now = loaded_objects();
        let left = now.programs.difference(&before.programs).count()
            + now.maps.difference(&before.maps).count();
        (left == 0).then_some(())
    });
    assert!(gone.is_some(), "left behind: {:?}", loaded_objects());
}

#[test]
fn descriptors_are_given_back() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    drop(CpuProbe::builder().load().unwrap());
    let before = open();
    for _ in 0..3 {
        let mut probe = CpuProbe::builder().load().unwrap();
        let during = open();
        for _ in 0..20 {
            probe.snapshot().unwrap();
        }
        assert_eq!(open(), during, "a snapshot leaks");
    }
    assert_eq!(open(), before);
}

#[test]
fn a_table_that_is_too_small_is_counted_and_told() {
    let mut probe = CpuProbe::builder()
        .accounting(CpuAccounting::SchedSwitch)
        .switch_table_entries(1)
        .load()
        .unwrap();
    let _works = [1; 6].map(|_| Workload::start(WORKLOAD, &["wake", "500"]));
    sleep(Duration::from_millis(500));
    let snapshot = probe.reset().unwrap();
    let lost = snapshot.losses.get("switch_table_full").unwrap();
    assert!(lost > 100, "{:?}", snapshot.losses);
    let error = snapshot.losses.check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MapFull);
    assert!(error.to_string().contains("switch_table_full"), "{error}");
    // a window of its own
    let next = probe.reset().unwrap();
    assert!(next.losses.get("switch_table_full").unwrap() < lost);
}

#[test]
fn processes_that_share_a_place_in_the_table_are_told_apart() {
    let mut probe = CpuProbe::builder()
        .accounting(CpuAccounting::SchedSwitch)
        .switch_table_entries(512)
        .load()
        .unwrap();
    let works: Vec<_> = (0..24).map(|_| Workload::start(WORKLOAD, &["wake", "200"])).collect();
    // Most of these share a place: pids are far less than 512 apart only by chance.
    let mut children = Workload::start(WORKLOAD, &["children", "1200", "20"]);
    children.line();
    let late: Vec<_> = (0..24).map(|_| Workload::start(WORKLOAD, &["wake", "200"])).collect();
    sleep(Duration::from_millis(500));
    for work in works.iter().chain(&late) {
        work.stop();
    }
    let snapshot = probe.snapshot().unwrap();
    for work in works.iter().chain(&late) {
        let ours = snapshot.process(work.pid()).unwrap().usage.cpu_time.as_nanos() as u64;
        let truth = schedstat(work.pid()).unwrap().cpu_ns;
        assert!(
            ours.abs_diff(truth) <= truth / 1000 + 2000,
            "{}: {ours}, schedstat {truth}; {:?}",
            work.pid(),
            snapshot.losses
        );
    }
    assert_eq!(snapshot.losses.get("switch_table_full"), Some(0));
}

#[test]
fn health_and_cost_are_told() {
    let statistics = ProgramStatistics::enable();
    let mut probe = CpuProbe::builder().accounting(CpuAccounting::SchedSwitch).load().unwrap();
    let _work = Workload::start(WORKLOAD, &["ping-pong", "1"]);
    sleep(Duration::from_millis(200));
    probe.snapshot().unwrap();
    let cost = Probe::cost(&probe).unwrap();
    let of = |name: &str| cost.programs.iter().find(|p| p.program == name).unwrap().clone();
    assert!(of("cpu_switch").run_count > 100, "{cost:?}");
    assert!((1.0..100_000.0).contains(&of("cpu_switch").ns_per_run().unwrap()), "{cost:?}");
    let walks = cost.programs.iter().filter(|program| program.program.starts_with("process_walk"));
    assert!(walks.map(|walk| walk.run_count).sum::<u64>() > 10, "{cost:?}");
    drop(statistics);
    let health = Probe::health(&probe).unwrap();
    // three dispatchers and their handlers, removed cgroups, moves, the walk, the ends, parents,
    // clocks; the switch
    assert_eq!(health.programs, 13);
    // Kernels before 6.4 tell what maps take when they are full: 33 MiB.
    assert!((1 << 20..40 << 20).contains(&health.map_bytes), "{health:?}");
}

#[test]
fn json_has_the_units_in_the_names() {
    let mut probe = CpuProbe::builder().load().unwrap();
    sleep(Duration::from_millis(20));
    let snapshot = probe.reset().unwrap();
    let json = serde_json::to_value(&snapshot).unwrap();
    // some machines hide their first process, of which less is known
    let rows = json["processes"].as_array().unwrap();
    let row = rows.iter().find(|row| row["pid"] == std::process::id()).unwrap();
    for key in [
        "pid",
        "start_time_ns",
        "cpu_time_ns",
        "user_ns",
        "system_ns",
        "voluntary_switches",
        "involuntary_switches",
        "run_queue_wait_ns",
        "cgroup_id",
    ] {
        assert!(row[key].is_u64(), "{key} in {row}");
    }
    assert!(row["comm"].is_string() && row["exited"].is_boolean(), "{row}");
    assert!(json["window"]["start_ns"].as_u64() < json["window"]["end_ns"].as_u64());
    assert_eq!(json["system"]["cpus"].as_array().unwrap().len(), snapshot.system.online_cpus);
    assert!(json["system"]["cpus"][0]["idle_ns"].is_u64());
    assert_eq!(json["system"]["online_cpus"], snapshot.system.online_cpus);
    let losses = json["losses"].as_array().unwrap();
    let full = losses.iter().find(|loss| loss["cause"] == "ended_table_full").unwrap();
    assert_eq!((&full["probe"], &full["count"]), (&"process".into(), &0.into()));
    assert!(row["total"]["cpu_time_ns"].is_u64());
}
