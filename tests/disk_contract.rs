//! Windows, bounds, losses and JSON of the disk probe.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use ebpfmetrics::{
    CpuProbe, DiskProbe, DiskUsage, ErrorKind, Filter, Kernel, Probe as _, ProbeSet, Process,
    ProcessId,
    disk::{DiskDevice, DiskSnapshot},
    group::group_by,
};
use ebpfmetrics_suite::{
    LoopDevice, QuietVolume, Workload, device_id, directory_on_disk, diskstats,
    hides_first_process, loaded_objects, poll, settle, skip,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

fn disk_work(arguments: &[&str]) -> Workload {
    Workload::start(WORKLOAD, &[&["disk"], arguments].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// As in `disk_truth`: completions that a machine hides or the kernel skips.
fn allowed(snapshot: &DiskSnapshot, truth: u64) -> u64 {
    let hidden = if hides_first_process() { truth / 200 + 3 } else { 0 };
    hidden + snapshot.losses.get("run_skipped").unwrap()
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

fn reads_of(row: &Process<DiskUsage>, device: &LoopDevice) -> u64 {
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
fn in_a_set_with_the_cpu_probe_it_sees_the_same() {
    let Some(files) = directory_on_disk("joined") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let kernel = Kernel::read().unwrap();
    let mut probes = ProbeSet::builder().build_on(&kernel).unwrap();
    let cpu = probes.add_on(CpuProbe::builder(), &kernel).unwrap();
    let disk = probes.add_on(DiskProbe::builder(), &kernel).unwrap();
    probes.reset().unwrap();
    let mut work = disk_work(&["direct", text(&device.path()), "100", "20"]);
    work.go();
    settle(device.name());
    let snapshot = probes.snapshot().unwrap();
    let row = snapshot.processes().find(|row| row.id.pid == work.pid()).unwrap();
    let on_it = row[disk]
        .devices
        .iter()
        .find(|on| (on.device.major, on.device.minor) == device_id(device.name()));
    let least = if hides_first_process() { 96 } else { 100 };
    assert!((least..=100).contains(&on_it.unwrap().total.reads), "{on_it:?}");
    assert_eq!(row[disk].dirtied_bytes, Some(20 * 4096));
    assert!(row[cpu].cpu_time > Duration::ZERO);
    assert!(snapshot[disk].device(device.name()).is_some());
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
fn without_rows_devices_stay_exact_and_the_loss_is_counted() {
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
    assert!(
        row.unattributed.reads > 0 && snapshot.system.unattributed.operations() > 0,
        "{row:#?}"
    );
    let full = snapshot.losses.get("row_table_full").unwrap();
    assert!(full >= row.unattributed.reads, "{full}; {row:#?}");
    assert_eq!(snapshot.losses.check().unwrap_err().kind(), ErrorKind::MapFull);
}

#[test]
fn rows_of_ended_processes_are_reused() {
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
fn a_forgotten_owner_is_counted_and_not_guessed() {
    let Some(volume) = QuietVolume::new("forgotten_owner") else { return };
    let mut probe = DiskProbe::builder().dirty_ranges(32).load().unwrap();
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
    assert_eq!(process["by_class"]["foreground"]["reads"], process["reads"]);
    let devices = json["system"]["devices"].as_array().unwrap();
    let row = devices.iter().find(|row| row["name"] == device.name()).unwrap();
    assert!(row["major"].is_u64() && row["minor"].is_u64() && row["stacked"] == true, "{row:#}");
    assert!(row["busy_ns"].is_u64() && row["latencies"][0]["queue"]["total_ns"].is_u64());
    for object in [&json["window"], &json["overflow"], &json["system"]["unattributed"]] {
        assert!(object.is_object(), "{object}");
    }
    assert_eq!(process["total"]["reads"], process["reads"]);
    assert_eq!(serde_json::from_value::<DiskSnapshot>(json).unwrap(), snapshot);
}

#[test]
fn options_without_sense_are_refused() {
    for builder in [
        DiskProbe::builder().rows(0),
        DiskProbe::builder().in_flight(0),
        DiskProbe::builder().dirty_ranges(u32::MAX),
        DiskProbe::builder().slow_io(Duration::ZERO),
        DiskProbe::builder().slow_io_buffer_bytes(0),
    ] {
        assert_eq!(builder.load().unwrap_err().kind(), ErrorKind::InvalidOption);
    }
}

#[test]
fn nothing_is_left_behind() {
    let before = loaded_objects();
    let probe = DiskProbe::builder().load().unwrap();
    let health = probe.health().unwrap();
    let degraded = health.degraded.iter().filter(|it| it.feature != "process 1");
    assert_eq!(degraded.count(), 0, "{health:?}");
    println!("{} bytes of maps", health.map_bytes);
    // kernels before 6.4 report the size of full maps, with 32,768 ended processes
    assert!(health.map_bytes < 48 << 20, "{health:?}");
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

/// Runs `read` while a process reads a device directly, until it is done.
fn while_reading(device: &LoopDevice, mut read: impl FnMut()) {
    let mut work = disk_work(&["direct", text(&device.path()), "20000", "0", "4096", "2"]);
    work.tell("go");
    let done = Arc::new(Mutex::new(false));
    let waiter = {
        let done = Arc::clone(&done);
        thread::spawn(move || {
            assert_eq!(work.line(), "done");
            *done.lock().unwrap() = true;
        })
    };
    while !*done.lock().unwrap() {
        read();
    }
    waiter.join().unwrap();
}

fn device<'a>(snapshot: &'a DiskSnapshot, device: &LoopDevice) -> &'a DiskDevice {
    snapshot.device(device.name()).unwrap()
}

#[test]
fn busy_time_is_unknown_while_the_statistics_of_a_device_are_off() {
    let Some(files) = directory_on_disk("busy_is_unknown") else { return };
    let loop_device = LoopDevice::new(files.path(), 16 << 20);
    let statistics = format!("/sys/block/{}/queue/iostats", loop_device.name());
    let mut probe = DiskProbe::builder().load().unwrap();
    let work = || disk_work(&["direct", text(&loop_device.path()), "100", "0"]).go();
    fs::write(&statistics, "0").unwrap();
    probe.reset().unwrap();
    work();
    let off = probe.reset().unwrap();
    fs::write(&statistics, "1").unwrap();
    work();
    let partly = probe.reset().unwrap();
    work();
    let on = probe.reset().unwrap();
    for (snapshot, is_known) in [(&off, false), (&partly, false), (&on, true)] {
        let row = device(snapshot, &loop_device);
        assert!(row.usage.reads >= 96 && !row.removed, "{row:#?}");
        assert_eq!(row.busy.is_some(), is_known, "{row:#?}");
    }
}

#[test]
fn busy_time_never_exceeds_its_window() {
    let Some(files) = directory_on_disk("busy_in_window") else { return };
    let loop_device = LoopDevice::new(files.path(), 16 << 20);
    let mut probe = DiskProbe::builder().load().unwrap();
    let (mut windows, mut busy, mut sum) = (0, Duration::ZERO, Duration::ZERO);
    while_reading(&loop_device, || {
        thread::sleep(Duration::from_millis(20));
        let snapshot = probe.reset().unwrap();
        let Some(row) = snapshot.device(loop_device.name()) else { return };
        let window = snapshot.window.duration();
        assert!(row.busy.unwrap() <= window, "{:?} of {window:?}", row.busy);
        windows += 1;
        busy += row.busy.unwrap();
        sum += window;
    });
    println!("{windows} windows, busy {busy:?} of {sum:?}");
    assert!(windows > 3 && busy > sum / 2, "{windows} windows, {busy:?} of {sum:?}");
}

#[test]
fn dirtied_bytes_do_not_include_children_and_stay_known() {
    const BYTES: u64 = 64 << 20;
    let Some(files) = directory_on_disk("dirtied_by_children") else { return };
    let file = files.path().join("file");
    let script = format!(
        "read x; sh -c 'dd if=/dev/zero of={0} bs=1M count=64 conv=fsync status=none; :'; :; \
         echo done; read x",
        text(&file)
    );
    let mut child = std::process::Command::new("sh")
        .args(["-c", &script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut probe = DiskProbe::builder().filter(Filter::tree(child.id())).load().unwrap();
    let mut go = |text: &[u8]| std::io::Write::write_all(child.stdin.as_mut().unwrap(), text);
    go(b"go\n").unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    let check = |snapshot: &DiskSnapshot| {
        let of = |comm: &str| {
            let rows = snapshot.processes.iter().filter(|row| row.info.comm == comm);
            rows.map(|row| row.usage.dirtied_bytes.unwrap()).sum::<u64>()
        };
        let sum = snapshot.sum().dirtied_bytes.unwrap();
        assert!((BYTES..BYTES + (1 << 20)).contains(&sum), "{snapshot:#?}");
        assert!(of("dd") >= BYTES && of("sh") < 1 << 20, "{snapshot:#?}");
        let groups = group_by(snapshot, |row| Some(row.info.comm));
        assert!(groups.groups.values().all(|group| group.usage.dirtied_bytes.is_some()));
    };
    check(&probe.snapshot().unwrap());
    go(b"end\n").unwrap();
    child.wait().unwrap();
    // all of the filter's processes have ended
    let ended = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        snapshot.processes.iter().all(|row| row.info.exited).then_some(snapshot)
    });
    check(&ended.expect("the end of all"));
    let none = DiskProbe::builder().filter(Filter::tree(std::process::id())).load();
    assert!(none.unwrap().snapshot().unwrap().sum().dirtied_bytes.is_some());
}

#[test]
fn totals_grow_from_window_to_window_and_after_the_end() {
    let Some(volume) = QuietVolume::new("totals_grow") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let file = volume.path().join("file");
    let mut work = disk_work(&["write", text(&file), "8388608", "--exit"]);
    let pid = work.pid();
    settle(volume.device());
    probe.reset().unwrap();
    work.go();
    work.wait();
    let mut last = DiskUsage::default();
    for round in 0..6 {
        if round == 3 {
            settle(volume.device());
        }
        let snapshot = probe.reset().unwrap();
        let Some(row) = snapshot.process(pid) else { continue };
        let (total, before) = (&row.total, &last);
        assert!(total.total.written_bytes >= before.total.written_bytes, "{row:#?}");
        assert!(total.dirtied_bytes >= before.dirtied_bytes, "{row:#?} had {before:#?}");
        assert!(total.total.written_bytes >= row.usage.total.written_bytes, "{row:#?}");
        last = total.clone();
    }
    if hides_first_process() && last.total.written_bytes < 8 << 20 {
        skip("totals_grow", "this machine hides completions");
        return;
    }
    assert!(
        last.total.written_bytes >= 8 << 20 && last.dirtied_bytes >= Some(8 << 20),
        "{last:#?}"
    );
}

#[test]
fn the_final_usage_of_a_process_has_its_operations() {
    let Some(files) = directory_on_disk("final_usage") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut work = disk_work(&["direct", text(&device.path()), "100", "20"]);
    work.tell("go");
    assert_eq!(work.line(), "done");
    let snapshot = probe.snapshot().unwrap();
    let id = snapshot.process(work.pid()).unwrap().id;
    work.kill();
    let usage = poll(Duration::from_secs(10), || probe.final_usage(id).unwrap());
    let usage = usage.expect("its release");
    let least = if hides_first_process() { 95 } else { 100 };
    assert!((least..=100).contains(&usage.devices.iter().map(|on| on.total.reads).max().unwrap()));
    assert_eq!(usage.dirtied_bytes, Some(20 * 4096), "{usage:#?}");
}
