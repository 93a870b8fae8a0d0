//! What the disk probe promises beside its figures: windows, bounds, losses, JSON.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use ebpfmetrics::{
    CpuProbe, DiskProbe, DiskProcess, DiskSnapshot, ErrorKind, Joined, Kernel, Probe as _,
    ProcessId,
};
use ebpfmetrics_suite::{
    LoopDevice, QuietVolume, Workload, device_id, directory_on_disk, diskstats, loaded_objects,
    poll, settle,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

fn disk_work(arguments: &[&str]) -> Workload {
    Workload::start(WORKLOAD, &[&["disk"], arguments].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// As in `disk_truth`: on such machines some completions come late or never.
fn allowed(snapshot: &DiskSnapshot, truth: u64) -> u64 {
    if snapshot.process(1).is_none() { truth / 200 + 3 } else { 0 }
}

#[track_caller]
fn assert_reads(what: &str, ours: u64, truth: u64, snapshot: &DiskSnapshot) {
    let least = truth - allowed(snapshot, truth).min(truth);
    assert!((least..=truth).contains(&ours), "{what}: {ours} of {truth}; {:?}", snapshot.losses);
}

/// What a process read on one device: it may also have to read its own program.
fn reads(snapshot: &DiskSnapshot, pid: u32, device: &LoopDevice) -> u64 {
    snapshot.process(pid).map_or(0, |row| reads_of(row, device))
}

fn reads_of(row: &DiskProcess, device: &LoopDevice) -> u64 {
    let id = device_id(device.name());
    let on_it = row.usage.devices.iter().filter(|on| (on.device.major, on.device.minor) == id);
    on_it.map(|on| on.total.reads).sum()
}

#[test]
fn windows_touch_and_counters_start_again() {
    let Some(files) = directory_on_disk("windows_touch") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut end = probe.reset().unwrap().window.end_ns;
    for count in [100_u64, 50, 0, 7] {
        let mut work = disk_work(&["direct", text(&device.path()), &count.to_string(), "0"]);
        probe.snapshot().unwrap();
        work.go();
        settle(device.name());
        let first = probe.snapshot().unwrap();
        let second = probe.reset().unwrap();
        assert_eq!(second.window.start_ns, end);
        end = second.window.end_ns;
        let pid = work.pid();
        assert_reads("reads", reads(&first, pid, &device), count, &first);
        assert!(reads(&second, pid, &device) >= reads(&first, pid, &device), "{second:#?}");
        let after = probe.snapshot().unwrap();
        assert_eq!((after.window.start_ns, reads(&after, pid, &device)), (end, 0));
    }
}

#[test]
fn readers_and_resets_at_once_lose_nothing() {
    const READS: u64 = 3000;
    let Some(files) = directory_on_disk("readers_and_resets") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let probe = Arc::new(Mutex::new(DiskProbe::builder().load().unwrap()));
    let path = device.path();
    let mut work = disk_work(&["direct", text(&path), &READS.to_string(), "0", "4096", "2"]);
    let pid = work.pid();
    let worker = thread::spawn(move || {
        work.go();
        work
    });
    let reader = {
        let probe = Arc::clone(&probe);
        thread::spawn(move || {
            let mut last: HashMap<ProcessId, u64> = HashMap::new();
            let mut window = 0;
            for _ in 0..200 {
                let snapshot = probe.lock().unwrap().snapshot().unwrap();
                if window != snapshot.window.start_ns {
                    window = snapshot.window.start_ns;
                    last.clear();
                }
                for row in &snapshot.processes {
                    let now = row.usage.total.operations();
                    let before = last.insert(row.id, now).unwrap_or_default();
                    assert!(now >= before, "{row:#?} had {before}");
                }
                thread::sleep(Duration::from_millis(2));
            }
        })
    };
    let mut sum = 0;
    while !worker.is_finished() {
        sum += reads(&probe.lock().unwrap().reset().unwrap(), pid, &device);
        thread::sleep(Duration::from_millis(10));
    }
    reader.join().unwrap();
    let _work = worker.join().unwrap();
    settle(device.name());
    let last = probe.lock().unwrap().reset().unwrap();
    assert_reads("all windows", sum + reads(&last, pid, &device), 2 * READS, &last);
}

#[test]
fn two_probes_agree_and_one_outlives_the_other() {
    let Some(files) = directory_on_disk("two_probes") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let kernel = Kernel::read().unwrap();
    let mut one = DiskProbe::builder().load_on(&kernel).unwrap();
    let mut other = DiskProbe::builder().load_on(&kernel).unwrap();
    drop(kernel);
    let mut work = disk_work(&["direct", text(&device.path()), "200", "0"]);
    work.go();
    settle(device.name());
    assert_reads(
        "one",
        reads(&one.reset().unwrap(), work.pid(), &device),
        200,
        &one.snapshot().unwrap(),
    );
    drop(one);
    let snapshot = other.snapshot().unwrap();
    assert_reads("other", reads(&snapshot, work.pid(), &device), 200, &snapshot);
}

#[test]
fn joined_with_the_cpu_probe_it_sees_the_same() {
    let Some(files) = directory_on_disk("joined") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let kernel = Kernel::read().unwrap();
    let probes = (
        CpuProbe::builder().load_on(&kernel).unwrap(),
        DiskProbe::builder().load_on(&kernel).unwrap(),
    );
    let mut joined = Joined::new(probes).unwrap();
    let mut work = disk_work(&["direct", text(&device.path()), "100", "20"]);
    work.go();
    settle(device.name());
    let snapshot = joined.snapshot().unwrap();
    let (cpu, disk) = (&snapshot.parts.0, &snapshot.parts.1);
    assert_eq!(cpu.window, disk.window);
    assert_reads("reads", reads(disk, work.pid(), &device), 100, disk);
    assert_eq!(disk.process(work.pid()).unwrap().usage.dirtied_bytes, Some(20 * 4096));
    assert!(cpu.process(work.pid()).unwrap().usage.cpu_time > Duration::ZERO);
}

#[test]
fn a_reused_pid_gives_two_rows() {
    let Some(files) = directory_on_disk("reused_pid") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut work = disk_work(&["reuse-pid", text(&device.path()), "30", "50"]);
    work.tell("go");
    let pid: u32 = work.line().parse().unwrap();
    assert_eq!(work.line(), "done");
    settle(device.name());
    let ended = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        let rows = snapshot.processes.iter().filter(|row| row.id.pid == pid && row.info.exited);
        (rows.count() == 2).then_some(snapshot)
    });
    let snapshot = ended.expect("the ends of both");
    let rows: Vec<_> = snapshot.processes.iter().filter(|row| row.id.pid == pid).collect();
    assert!(rows[0].id < rows[1].id, "{rows:#?}");
    for (row, truth) in rows.iter().zip([30, 50]) {
        assert_reads("reads", reads_of(row, &device), truth, &snapshot);
        assert_eq!(row.info.comm, "workload");
    }
}

#[test]
fn without_rows_devices_stay_exact_and_the_loss_is_told() {
    let Some(files) = directory_on_disk("without_rows") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let mut probe = DiskProbe::builder().rows(1).load().unwrap();
    let before = settle(device.name());
    probe.reset().unwrap();
    for _ in 0..3 {
        disk_work(&["direct", text(&device.path()), "40", "20"]).go();
    }
    let truth = settle(device.name()).since(&before);
    let snapshot = probe.snapshot().unwrap();
    let row = snapshot.device(device.name()).unwrap();
    assert_reads("reads", row.usage.reads, truth.reads, &snapshot);
    assert_reads("writes", row.usage.writes + row.usage.flushes, truth.writes, &snapshot);
    assert!(row.unattributed.reads > 0 && snapshot.unattributed.operations() > 0, "{row:#?}");
    let full = snapshot.losses.get("row_table_full").unwrap();
    assert!(full >= row.unattributed.reads, "{full}; {row:#?}");
    assert_eq!(snapshot.losses.check().unwrap_err().kind(), ErrorKind::MapFull);
}

#[test]
fn rows_of_the_dead_are_used_again() {
    let Some(files) = directory_on_disk("rows_of_the_dead") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let mut probe = DiskProbe::builder().rows(400).load().unwrap();
    // beside it the whole machine takes rows
    let mut sum = 0;
    for _ in 0..8 {
        let mut work = disk_work(&["children", text(&device.path()), "60", "3"]);
        work.go();
        settle(device.name());
        // a row leaves the index after two reads without change, and is free after two more
        for _ in 0..8 {
            probe.snapshot().unwrap();
        }
        let snapshot = probe.reset().unwrap();
        let children = snapshot
            .processes
            .iter()
            .filter(|row| row.info.parent.is_some_and(|parent| parent.pid == work.pid()));
        sum += children.map(|row| reads_of(row, &device)).sum::<u64>();
        assert_eq!(snapshot.losses.get("row_table_full"), Some(0), "{:?}", snapshot.losses);
    }
    let snapshot = probe.snapshot().unwrap();
    assert_reads("all children", sum, 8 * 60 * 3, &snapshot);
}

#[test]
fn requests_that_share_a_slot_are_told_apart() {
    let Some(files) = directory_on_disk("share_a_slot") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let mut probe = DiskProbe::builder().in_flight(1).load().unwrap();
    let mut work = disk_work(&["direct", text(&device.path()), "300", "0", "4096", "6"]);
    let before = settle(device.name());
    probe.reset().unwrap();
    work.go();
    let truth = settle(device.name()).since(&before);
    let snapshot = probe.snapshot().unwrap();
    assert_reads(
        "device",
        snapshot.device(device.name()).unwrap().usage.reads,
        truth.reads,
        &snapshot,
    );
    assert_reads("process", reads(&snapshot, work.pid(), &device), 1800, &snapshot);
}

#[test]
fn a_forgotten_owner_is_told_and_not_guessed() {
    let Some(volume) = QuietVolume::new("forgotten_owner") else { return };
    let mut probe = DiskProbe::builder().dirty_files(32).load().unwrap();
    let mut work = disk_work(&["small-files", text(volume.path()), "3000", "3000"]);
    let before = settle(volume.device());
    probe.reset().unwrap();
    work.go();
    let truth = settle(volume.device()).since(&before);
    let snapshot = probe.snapshot().unwrap();
    let row = snapshot.device(volume.device()).unwrap();
    let slack = allowed(&snapshot, truth.written_bytes);
    assert!(row.usage.written_bytes.abs_diff(truth.written_bytes) <= slack, "{row:#?}, {truth:?}");
    assert!(snapshot.losses.get("owner_unseen").unwrap() > 0, "{:?}", snapshot.losses);
    for row in snapshot.processes.iter().filter(|r| r.usage.by_class.write_back.writes > 0) {
        println!("{} {}: {:?}", row.id, row.info.comm, row.usage.by_class.write_back);
    }
    // what this process syncs is not its own
    let me = snapshot.process(std::process::id()).unwrap();
    assert_eq!(me.usage.by_class.write_back.written_bytes, 0, "{me:#?}");
    assert!(row.unattributed.written_bytes > 0, "{row:#?}");
}

#[test]
fn json_has_units_in_its_names() {
    let Some(files) = directory_on_disk("json") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut work = disk_work(&["direct", text(&device.path()), "10", "5"]);
    work.go();
    settle(device.name());
    let snapshot = probe.snapshot().unwrap();
    let json = serde_json::to_value(&snapshot).unwrap();
    let processes = json["processes"].as_array().unwrap();
    let process = processes.iter().find(|row| row["pid"] == work.pid()).unwrap();
    for field in [
        "start_time_ns",
        "reads",
        "writes",
        "read_bytes",
        "written_bytes",
        "flushes",
        "discards",
        "errors",
        "dirtied_bytes",
        "cancelled_bytes",
    ] {
        assert!(process[field].is_u64(), "{field} in {process:#}");
    }
    assert_eq!(process["comm"], "workload");
    assert_eq!(process["exited"], false);
    assert_eq!(process["by_class"]["direct"]["reads"], process["reads"]);
    let devices = json["devices"].as_array().unwrap();
    let row = devices.iter().find(|row| row["name"] == device.name()).unwrap();
    assert!(row["major"].is_u64() && row["minor"].is_u64() && row["stacked"] == true, "{row:#}");
    assert!(row["busy_ns"].is_u64() && row["latencies"][0]["queue"]["total_ns"].is_u64());
    for field in ["window", "unattributed", "folded", "losses"] {
        assert!(json[field].is_object(), "{field}");
    }
}

#[test]
fn options_without_sense_are_refused() {
    for builder in [
        DiskProbe::builder().rows(0),
        DiskProbe::builder().in_flight(0),
        DiskProbe::builder().dirty_files(u32::MAX),
        DiskProbe::builder().max_processes(0),
    ] {
        assert_eq!(builder.load().unwrap_err().kind(), ErrorKind::InvalidOption);
    }
}

#[test]
fn nothing_is_left_behind() {
    let before = loaded_objects();
    let probe = DiskProbe::builder().load().unwrap();
    let health = probe.health().unwrap();
    assert!(health.degraded.is_empty(), "{health:?}");
    println!("{} bytes of maps", health.map_bytes);
    // kernels before 6.4 tell the size of maps at their fullest
    assert!(health.map_bytes < 11 << 20, "{health:?}");
    drop(probe);
    let gone = poll(Duration::from_secs(10), || {
        let now = loaded_objects();
        (now.programs.is_subset(&before.programs) && now.maps.is_subset(&before.maps)).then_some(())
    });
    assert!(gone.is_some(), "{before:?}, now {:?}", loaded_objects());
}

#[test]
fn the_probe_stays_out_of_what_it_measures() {
    // reading figures reads no disk
    let Some(files) = directory_on_disk("stays_out") else { return };
    let device = LoopDevice::new(files.path(), 4 << 20);
    let mut probe = DiskProbe::builder().load().unwrap();
    let before = settle(device.name());
    for _ in 0..20 {
        probe.snapshot().unwrap();
    }
    assert_eq!(diskstats(device.name()), before);
    assert!(fs::metadata(device.path()).is_ok());
}
