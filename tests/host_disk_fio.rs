//! Direct I/O against fio's own report, and devices under fio against
//! `/proc/diskstats`. Where fio is installed; `disk_truth` does the same with work of
//! our own.

use std::{path::Path, process::Command};

use ebpfmetrics::{
    DiskProbe, Probe as _,
    disk::{DiskCounters, DiskSnapshot},
};
use ebpfmetrics_suite::{
    LoopDevice, Mounted, device_id, directory_on_disk, hides_first_process, settle, skip,
};

struct Report {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

fn has_fio(test: &str) -> bool {
    let there = Command::new("fio").arg("--version").output().is_ok();
    if !there {
        skip(test, "fio is not installed");
    }
    there
}

fn fio(file: &Path, arguments: &[&str]) -> Report {
    let output = Command::new("fio")
        .args(["--name=job", "--output-format=json", "--size=32m", "--bs=4k", "--norandommap"])
        .arg(format!("--filename={}", file.display()))
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // it may say something first
    let json = serde_json::from_str::<serde_json::Value>(&text[text.find('{').unwrap()..]).unwrap();
    let figure = |direction: &str, field: &str| json["jobs"][0][direction][field].as_u64().unwrap();
    Report {
        reads: figure("read", "total_ios"),
        writes: figure("write", "total_ios"),
        read_bytes: figure("read", "io_bytes"),
        written_bytes: figure("write", "io_bytes"),
    }
}

/// What all processes of a name did on a device.
fn of(snapshot: &DiskSnapshot, comm: &str, device: &str) -> DiskCounters {
    let id = device_id(device);
    let named = snapshot.processes.iter().filter(|process| process.info.comm == comm);
    let rows = named.flat_map(|process| &process.usage.devices);
    let there = rows.filter(|on| (on.device.major, on.device.minor) == id);
    there.map(|on| on.total).sum()
}

#[track_caller]
fn close(what: &str, ours: u64, truth: u64) {
    println!("{what}: {ours}, in truth {truth}");
    // machines that hide their first process hide some completions too
    let hidden = if hides_first_process() { truth / 200 + 3 } else { 0 };
    assert!((truth - hidden.min(truth)..=truth).contains(&ours), "{what}: {ours} of {truth}");
}

fn direct(test: &str, arguments: &[&str]) {
    if !has_fio(test) {
        return;
    }
    let Some(files) = directory_on_disk(test) else { return };
    let device = LoopDevice::new(files.path(), 32 << 20);
    let mut probe = DiskProbe::builder().load().unwrap();
    let before = settle(device.name());
    probe.reset().unwrap();
    let all = [&["--direct=1", "--rw=randrw", "--io_size=16m"], arguments].concat();
    let report = fio(&device.path(), &all);
    let truth = settle(device.name()).since(&before);
    let snapshot = probe.snapshot().unwrap();
    let ours = of(&snapshot, "fio", device.name());
    let row = snapshot.device(device.name()).unwrap().usage;
    // udev and the like read, too: fio's own report is of fio alone
    close("fio's writes", ours.writes, report.writes);
    close("fio's written bytes", ours.written_bytes, report.written_bytes);
    assert!(ours.reads >= report.reads - report.reads / 200, "{ours:?}, {}", report.reads);
    assert!(ours.read_bytes >= report.read_bytes - report.read_bytes / 200, "{ours:?}");
    close("reads", row.reads, truth.reads);
    close("read bytes", row.read_bytes, truth.read_bytes);
    close("writes", row.writes + row.flushes, truth.writes);
    close("written bytes", row.written_bytes, truth.written_bytes);
}

#[test]
fn psync() {
    direct("fio_psync", &["--ioengine=psync"]);
}

#[test]
fn libaio_at_depth_32() {
    direct("fio_libaio", &["--ioengine=libaio", "--iodepth=32"]);
}

#[test]
fn io_uring() {
    const TEST: &str = "fio_io_uring";
    let forbidden = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    if forbidden.is_ok_and(|value| value.trim() != "0") {
        skip(TEST, "io_uring is turned off here");
        return;
    }
    direct(TEST, &["--ioengine=io_uring", "--iodepth=32"]);
}

#[test]
fn buffered_and_fsync() {
    const TEST: &str = "fio_buffered";
    if !has_fio(TEST) || !Mounted::can_be_made(TEST, "ext4") {
        return;
    }
    let Some(files) = directory_on_disk(TEST) else { return };
    let device = LoopDevice::new(files.path(), 128 << 20);
    let Some(mounted) = Mounted::ext4(TEST, &device.path()) else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let before = settle(device.name());
    probe.reset().unwrap();
    let report =
        fio(&mounted.path().join("file"), &["--rw=randwrite", "--fsync=64", "--io_size=16m"]);
    let truth = settle(device.name()).since(&before);
    let snapshot = probe.snapshot().unwrap();
    let row = &snapshot.device(device.name()).unwrap();
    close("reads", row.usage.reads, truth.reads);
    close("writes", row.usage.writes + row.usage.flushes, truth.writes);
    close("written bytes", row.usage.written_bytes, truth.written_bytes);
    let written_back = row.by_class.write_back.written_bytes;
    let fio = snapshot.processes.iter().filter(|process| process.info.comm == "fio");
    let right: u64 = fio.map(|process| process.usage.by_class.write_back.written_bytes).sum();
    println!("{right} of {written_back} bytes charged right, {} written", report.written_bytes);
    assert!(right as f64 >= written_back as f64 * 0.99, "{right} of {written_back}");
}
