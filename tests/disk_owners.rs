//! Buffered writes are charged to the process that dirtied the pages, whichever writes them.

use std::{fs, path::Path, thread, time::Duration};

use ebpfmetrics::{
    CpuProbe, DiskProbe, DiskUsage, MemProbe, Probe as _, ProbeSet, Process,
    disk::{DiskCounters, DiskSnapshot},
};
use ebpfmetrics_suite::{
    LoopDevice, Mounted, QuietVolume, Workload, Zram, directory_on_disk, poll, settle, skip,
    support,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const MIB: u64 = 1 << 20;

fn disk_work(arguments: &[&str]) -> Workload {
    Workload::start(WORKLOAD, &[&["disk"], arguments].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn process(snapshot: &DiskSnapshot, pid: u32) -> &Process<DiskUsage> {
    snapshot.process(pid).unwrap_or_else(|| panic!("no row of {pid}"))
}

fn written_back(snapshot: &DiskSnapshot, pid: u32) -> u64 {
    process(snapshot, pid).usage.by_class.write_back.written_bytes
}

/// What files' pages wrote on a device, whoever is charged.
fn all_written_back(snapshot: &DiskSnapshot, device: &str) -> u64 {
    snapshot.device(device).unwrap().by_class.write_back.written_bytes
}

/// At least so many percent of a device's written file pages.
#[track_caller]
fn assert_share(what: &str, ours: u64, all: u64, expected: u64, percent: f64) {
    println!("{what}: {ours} of {all} bytes charged right, {expected} written");
    // some completions come late on machines that hide events
    assert!(
        all as f64 >= expected as f64 * 0.99,
        "{what}: {all} bytes on the device of {expected}"
    );
    let share = ours as f64 / all as f64 * 100.0;
    assert!(share >= percent, "{what}: {ours} of {all} bytes charged right, {share:.1} %");
}

/// Runs work on a quiet volume until all is written, and has somebody else write it.
fn snapshot_of(volume: &str, probe: &mut DiskProbe, work: &mut [&mut Workload]) -> DiskSnapshot {
    settle(volume);
    probe.reset().unwrap();
    for one in work {
        one.go();
    }
    settle(volume); // by sync(2), in this process
    probe.snapshot().unwrap()
}

#[test]
fn a_writer_is_charged_and_not_who_syncs() {
    let Some(volume) = QuietVolume::new("a_writer") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut writer = disk_work(&["write", text(&volume.path().join("file")), "67108864"]);
    let mut syncer = disk_work(&["sync"]);
    let snapshot = snapshot_of(volume.device(), &mut probe, &mut [&mut writer, &mut syncer]);
    let ours = written_back(&snapshot, writer.pid());
    assert_share("writer", ours, all_written_back(&snapshot, volume.device()), 64 * MIB, 99.0);
    let me = std::process::id();
    for other in [syncer.pid(), me] {
        let other = process(&snapshot, other);
        assert_eq!(other.usage.by_class.write_back, DiskCounters::default(), "{other:#?}");
        assert_eq!(other.usage.by_class.foreground.written_bytes, 0, "{other:#?}");
    }
    assert_eq!(snapshot.losses.get("owner_unseen"), Some(0));
}

#[test]
fn a_writer_through_a_mapping_is_charged() {
    let Some(volume) = QuietVolume::new("mmap") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut writer = disk_work(&["mmap-write", text(&volume.path().join("file")), "33554432"]);
    let snapshot = snapshot_of(volume.device(), &mut probe, &mut [&mut writer]);
    let ours = written_back(&snapshot, writer.pid());
    assert_share("mmap", ours, all_written_back(&snapshot, volume.device()), 32 * MIB, 99.0);
}

#[test]
fn a_writer_of_many_small_files_is_charged() {
    let Some(volume) = QuietVolume::new("small_files") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut writer = disk_work(&["small-files", text(volume.path()), "5000", "3000"]);
    let snapshot = snapshot_of(volume.device(), &mut probe, &mut [&mut writer]);
    let ours = written_back(&snapshot, writer.pid());
    assert_share("small", ours, all_written_back(&snapshot, volume.device()), 5000 * 3000, 99.0);
}

#[test]
fn writers_of_two_files_are_told_apart() {
    let Some(volume) = QuietVolume::new("two_files") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let file = |name: &str| volume.path().join(name);
    let mut one = disk_work(&["write", text(&file("one")), "50331648"]);
    let mut other = disk_work(&["write", text(&file("other")), "16777216"]);
    settle(volume.device());
    probe.reset().unwrap();
    // both at once
    one.tell("go");
    other.tell("go");
    assert_eq!((one.line(), other.line()), ("done".into(), "done".into()));
    settle(volume.device());
    let snapshot = probe.snapshot().unwrap();
    let all = all_written_back(&snapshot, volume.device());
    for (writer, bytes) in [(&one, 48 * MIB), (&other, 16 * MIB)] {
        let ours = written_back(&snapshot, writer.pid());
        println!("{ours} of {bytes}, {all} in all");
        assert!(ours.abs_diff(bytes) <= all / 100, "{ours} of {bytes}, {all} in all");
    }
}

#[test]
fn writers_of_one_file_are_told_apart() {
    let Some(volume) = QuietVolume::new("one_file") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let file = volume.path().join("file");
    fs::write(&file, vec![1; 64 * MIB as usize]).unwrap();
    let file = text(&file);
    let bytes = "67108864";
    // every fourth piece by each; pieces are larger than the folios of any kernel,
    // for a folio is dirty as a whole
    let mut quarter = disk_work(&["write-share", file, bytes, "0", "4"]);
    let mut rest: Vec<_> =
        ["1", "2", "3"].map(|first| disk_work(&["write-share", file, bytes, first, "4"])).into();
    let mut all: Vec<_> = std::iter::once(&mut quarter).chain(&mut rest).collect();
    let snapshot = snapshot_of(volume.device(), &mut probe, &mut all);
    let all = all_written_back(&snapshot, volume.device());
    assert!(all >= 64 * MIB * 99 / 100, "{all}");
    let shares: Vec<_> = std::iter::once(&quarter)
        .chain(&rest)
        .map(|writer| written_back(&snapshot, writer.pid()) as f64 / all as f64)
        .collect();
    println!("{shares:.3?} of {all}");
    // requests of several writers' neighbouring pages go to one of them as a whole
    assert!(shares.iter().all(|share| (0.15..0.35).contains(share)), "{shares:.3?}");
    assert!(shares.iter().sum::<f64>() > 0.99, "{shares:.3?}");
}

/// Its row then has the totals of all probes since it began, and nothing new of the others.
#[test]
fn a_writer_that_is_gone_keeps_its_totals() {
    let Some(volume) = QuietVolume::new("totals") else { return };
    let mut set = ProbeSet::new().unwrap();
    let cpu = set.add(CpuProbe::builder()).unwrap();
    let mem = set.add(MemProbe::builder()).unwrap();
    let disk = set.add(DiskProbe::builder()).unwrap();
    let file = volume.path().join("file");
    let mut writer = disk_work(&["write", text(&file), "16777216", "--exit"]);
    writer.go();
    writer.wait();
    let end = poll(Duration::from_secs(10), || {
        let snapshot = set.reset().unwrap();
        let row = snapshot.process(writer.pid()).filter(|row| row.info.exited)?;
        Some((row.total(cpu).cpu_time, row.total(mem).minor_faults))
    });
    let end = end.expect("the end of the writer");
    assert!(end.0 > Duration::ZERO && end.1 > 0, "{end:?}");
    // the kernel has released it, and it has left the table
    thread::sleep(Duration::from_millis(2500));
    set.reset().unwrap();
    set.reset().unwrap();
    settle(volume.device());
    let snapshot = set.snapshot().unwrap();
    let row = snapshot.process(writer.pid()).expect("a row of its write-back");
    assert!(row[disk].total.written_bytes > 0, "{row:?}");
    let total = (row.total(cpu).cpu_time, row.total(mem).minor_faults);
    assert!(total.0 >= end.0 && total.1 >= end.1, "{total:?} after {end:?}");
    assert_eq!((row[cpu].cpu_time, row[mem].minor_faults), (Duration::ZERO, 0));
}

#[test]
fn a_writer_that_is_gone_is_still_charged_by_name() {
    let Some(volume) = QuietVolume::new("gone") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let file = volume.path().join("file");
    let mut writer = disk_work(&["write", text(&file), "16777216", "--exit"]);
    settle(volume.device());
    probe.reset().unwrap();
    writer.go();
    writer.wait();
    let pid = writer.pid();
    // its end is told, in a window in which nothing of it need have been written
    let ended = poll(Duration::from_secs(10), || {
        let snapshot = probe.snapshot().unwrap();
        snapshot.process(pid).filter(|row| row.info.exited).cloned()
    });
    let ended = ended.expect("the end of the writer");
    assert_eq!(ended.info.comm, "workload");
    assert!(ended.usage.dirtied_bytes.unwrap() >= 16 * MIB, "{ended:#?}");
    let before = probe.reset().unwrap();
    let written = process(&before, pid).usage.by_class.write_back.written_bytes;
    settle(volume.device());
    let after = probe.snapshot().unwrap();
    let row = process(&after, pid);
    let all = written + row.usage.by_class.write_back.written_bytes;
    println!("{written} bytes written before, {all} in all");
    assert!(all >= 16 * MIB * 99 / 100, "{row:#?}");
    assert_eq!((row.id, row.info.comm), (ended.id, ended.info.comm));
    assert!(row.info.exited && row.info.parent == ended.info.parent, "{row:#?}");
    support("disk.write_back_after_exit", true, "");
}

#[test]
fn what_is_removed_before_it_is_written_is_dirtied_only() {
    let Some(volume) = QuietVolume::new("removed") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let file = volume.path().join("file");
    let mut writer = disk_work(&["write", text(&file), "8388608", "--remove"]);
    let snapshot = snapshot_of(volume.device(), &mut probe, &mut [&mut writer]);
    let row = process(&snapshot, writer.pid());
    let dirtied = row.usage.dirtied_bytes.unwrap();
    assert!(dirtied >= 8 * MIB, "{row:#?}");
    let written = row.usage.by_class.write_back.written_bytes;
    let cancelled = row.usage.cancelled_bytes.unwrap();
    println!("{dirtied} dirtied, {cancelled} cancelled, {written} written");
    // the kernel may have begun to write
    assert!(cancelled + written >= 8 * MIB && cancelled <= dirtied, "{row:#?}");
    assert!(cancelled >= 6 * MIB, "{row:#?}");
}

/// On a file system that has to be made for it.
fn on_file_system(kind: &str, bytes: u64, options: &[&str]) {
    if !Mounted::can_be_made(kind, kind) {
        return;
    }
    let Some(files) = directory_on_disk(kind) else { return };
    let device = LoopDevice::new(files.path(), bytes);
    let Some(mounted) = Mounted::new(kind, &device.path(), kind, options) else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut writer = disk_work(&["write", text(&mounted.path().join("file")), "67108864"]);
    let mut mapper = disk_work(&["mmap-write", text(&mounted.path().join("map")), "16777216"]);
    let snapshot = snapshot_of(device.name(), &mut probe, &mut [&mut writer, &mut mapper]);
    // metadata of btrfs is no file; its data may be written by threads of its own
    let written = snapshot.device(device.name()).unwrap();
    println!("{:#?}", written.by_class);
    for (work, bytes) in [(&writer, 64 * MIB), (&mapper, 16 * MIB)] {
        let ours = written_back(&snapshot, work.pid());
        assert!(ours >= bytes * 99 / 100 && ours <= bytes * 102 / 100, "{kind}: {ours} of {bytes}");
    }
}

#[test]
fn writers_on_xfs_are_charged() {
    on_file_system("xfs", 400 * MIB, &["-q", "-f"]);
}

#[test]
fn writers_on_btrfs_are_charged() {
    on_file_system("btrfs", 400 * MIB, &["-q", "-f"]);
}

#[test]
fn swap_is_a_class_of_its_own() {
    const BYTES: u64 = 16 * MIB;
    let Some(device) = Zram::new("swap", 64 * MIB) else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let Some(_swap) = ebpfmetrics_suite::Swap::on("swap", &device.path()) else { return };
    let mut work = disk_work(&["page-out", &BYTES.to_string()]);
    settle(&device.name());
    probe.reset().unwrap();
    work.go();
    let snapshot = probe.snapshot().unwrap();
    let row = snapshot.device(&device.name()).unwrap();
    println!("{:#?}", row.by_class);
    if row.usage.written_bytes == 0 {
        skip("swap", "this kernel keeps pages out of swap (MADV_PAGEOUT)");
        return;
    }
    assert_eq!(row.by_class.swap.written_bytes, row.usage.written_bytes, "{row:#?}");
    // it swaps its own pages out and in again
    let mine = process(&snapshot, work.pid());
    assert!(mine.usage.by_class.swap.written_bytes >= BYTES * 9 / 10, "{mine:#?}");
    assert!(mine.usage.by_class.foreground.read_bytes >= BYTES * 9 / 10, "{mine:#?}");
    support("disk.swap", true, "");
}

#[test]
fn an_unlinked_file_that_is_closed_by_the_exit_is_cancelled() {
    let Some(files) = directory_on_disk("closed_by_the_exit") else { return };
    let file = files.path().join("file");
    let mut probe = DiskProbe::builder().load().unwrap();
    let script = format!("exec 3>{0}; rm {0}; exec head -c 8388608 /dev/zero >&3", text(&file));
    let mut child = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
    child.wait().unwrap();
    // known at the release, which comes some ms after the end
    let row = poll(Duration::from_secs(10), || {
        let row = probe.snapshot().unwrap().process(child.id()).cloned();
        row.filter(|row| row.usage.cancelled_bytes >= Some(6 * MIB))
    });
    let row = row.expect("the cancelled bytes");
    assert!(row.usage.cancelled_bytes <= row.usage.dirtied_bytes, "{row:#?}");
}
