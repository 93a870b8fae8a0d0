//! Every written page is charged to the process that dirtied it, however pages of several
//! processes are put together in files, bios and requests.

use std::{path::Path, time::Duration};

use ebpfmetrics::{
    DiskProbe, Filter, Probe as _,
    disk::{DiskByClass, DiskCounters, DiskSnapshot},
};
use ebpfmetrics_suite::{
    LoopDevice, Mounted, QuietVolume, Workload, Zram, directory_on_disk, emulated, poll, settle,
    skip, support,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

fn disk_work(arguments: &[&str]) -> Workload {
    Workload::start(WORKLOAD, &[&["disk"], arguments].concat())
}

/// A writer of every `of`th block of a file.
fn writer_of_blocks(file: &Path, block: u64, first: u64, of: u64, count: u64) -> Workload {
    let numbers = [block, first, of, count].map(|number| number.to_string());
    let numbers = numbers.each_ref().map(String::as_str);
    disk_work(&[&["write-blocks", file.to_str().unwrap()][..], &numbers[..]].concat())
}

fn by_class(snapshot: &DiskSnapshot, pid: u32) -> DiskByClass {
    snapshot.process(pid).map(|row| row.usage.by_class).unwrap_or_default()
}

fn written_back(snapshot: &DiskSnapshot, pid: u32) -> u64 {
    by_class(snapshot, pid).write_back.written_bytes
}

/// All write, one after the other; then this process has everything written out.
fn written_by(probe: &mut DiskProbe, device: &str, writers: &mut [Workload]) -> DiskSnapshot {
    settle(device);
    probe.reset().unwrap();
    writers.iter_mut().for_each(Workload::go);
    settle(device);
    probe.snapshot().unwrap()
}

/// Each is charged what it wrote, and the process that syncs nothing.
#[track_caller]
fn assert_each(snapshot: &DiskSnapshot, device: &str, writers: &[Workload], bytes: u64) {
    let device = snapshot.device(device).unwrap();
    let each: Vec<_> = writers.iter().map(|writer| written_back(snapshot, writer.pid())).collect();
    let sum = device.by_class.write_back;
    println!("{each:?} of {bytes} each, {sum:?}");
    let missing = (bytes * writers.len() as u64).saturating_sub(sum.written_bytes);
    // completions that a machine hides come late
    assert!(missing <= bytes * writers.len() as u64 / 100, "{missing} of {device:#?}");
    for written in each {
        assert!(written.abs_diff(bytes) <= bytes / 100 + missing, "{written} of {bytes}");
    }
    assert_eq!(written_back(snapshot, std::process::id()), 0);
    // metadata may have been dirty before the probe was attached
    let unknown = device.unattributed.written_bytes;
    let most = device.by_class.metadata.written_bytes + missing;
    assert!(unknown <= most, "{unknown} bytes of unknown owners: {device:#?}");
}

#[test]
fn files_that_are_merged_into_one_request_are_charged_one_by_one() {
    let Some(volume) = QuietVolume::new("merged") else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let file = |number: u64| volume.path().join(number.to_string());
    let mut writers: Vec<_> =
        (0..40).map(|number| writer_of_blocks(&file(number), 16384, 0, 1, 1)).collect();
    let snapshot = written_by(&mut probe, volume.device(), &mut writers);
    assert_each(&snapshot, volume.device(), &writers, 16384);
    let requests = snapshot.device(volume.device()).unwrap().by_class.write_back.writes;
    let charged: u64 =
        writers.iter().map(|writer| by_class(&snapshot, writer.pid()).write_back.writes).sum();
    println!("{requests} requests for {} files", writers.len());
    assert!(requests < 40, "nothing was merged: {requests} requests");
    assert_eq!(charged, requests, "a request counts once");
    support("disk.merged_write_back", true, "");
}

#[test]
fn two_writers_of_thousands_of_small_files_are_told_apart() {
    let Some(volume) = QuietVolume::new("turns") else { return };
    let files = if emulated() { 500 } else { 15_000 };
    let mut probe = DiskProbe::builder().load().unwrap();
    let directories = ["one", "other"].map(|name| volume.path().join(name));
    let mut writers: Vec<_> = directories
        .iter()
        .map(|directory| {
            std::fs::create_dir(directory).unwrap();
            disk_work(&["small-files", directory.to_str().unwrap(), &files.to_string(), "4096"])
        })
        .collect();
    settle(volume.device());
    probe.reset().unwrap();
    writers.iter_mut().for_each(|writer| writer.tell("go"));
    writers.iter_mut().for_each(|writer| assert_eq!(writer.line(), "done"));
    settle(volume.device());
    assert_each(&probe.snapshot().unwrap(), volume.device(), &writers, files * 4096);
}

/// Writers of one file, each of its own blocks.
fn writers_of_one_file(volume: &Path, device: &str) {
    let mut probe = DiskProbe::builder().load().unwrap();
    let scale = if emulated() { 4 } else { 1 };
    // blocks in turns, and one part each
    for (number, block, count, in_turns) in [
        (8, 65536, 64, false),
        (8, 65536, 64, true),
        (8, 4096, 512, true),
        (40, 4096, 256, true),
        (40, 20480, 48, true),
        (40, 65536, 16, false),
    ] {
        let count = count / scale;
        let file = volume.join(format!("{number}-{block}-{in_turns}"));
        let mut writers: Vec<_> = (0..number)
            .map(|writer| match in_turns {
                true => writer_of_blocks(&file, block, writer, number, count),
                false => writer_of_blocks(&file, block, writer * count, 1, count),
            })
            .collect();
        let snapshot = written_by(&mut probe, device, &mut writers);
        println!("{number} writers of blocks of {block} bytes, in turns: {in_turns}");
        assert_each(&snapshot, device, &writers, block * count);
    }
}

#[test]
fn many_writers_of_one_file_are_told_apart() {
    let Some(volume) = QuietVolume::new("many_writers") else { return };
    writers_of_one_file(volume.path(), volume.device());
}

#[test]
fn many_writers_of_one_file_are_told_apart_on_a_device_without_requests() {
    let Some(device) = Zram::new("many_writers_zram", 256 << 20) else { return };
    if !Mounted::can_be_made("many_writers_zram", "ext4") {
        return;
    }
    let mounted = Mounted::new("many_writers_zram", &device.path(), "ext4", &["-q"]);
    let Some(mounted) = mounted else { return };
    writers_of_one_file(mounted.path(), &device.name());
}

#[test]
fn a_page_that_is_thrown_away_is_charged_to_nobody() {
    const BYTES: u64 = 24 << 20;
    let Some(volume) = QuietVolume::new("thrown_away") else { return };
    let file = volume.path().join("file");
    let mut probe = DiskProbe::builder().load().unwrap();
    let mut first = disk_work(&["truncate", file.to_str().unwrap(), &BYTES.to_string()]);
    let mut second = writer_of_blocks(&file, 4096, 1, 1, BYTES / 4096);
    settle(volume.device());
    probe.reset().unwrap();
    first.go();
    second.go();
    first.go();
    settle(volume.device());
    let snapshot = probe.snapshot().unwrap();
    let written = [&first, &second].map(|work| written_back(&snapshot, work.pid()));
    println!("{written:?}");
    assert_eq!(written[0], 4096, "its other pages were never written");
    assert!(written[1].abs_diff(BYTES) <= BYTES / 100, "{written:?}");
}

#[test]
fn pages_of_a_shared_file_that_are_forgotten_are_counted_and_not_guessed() {
    let Some(volume) = QuietVolume::new("forgotten_pages") else { return };
    // one set, with room for seven ranges and seven pages
    let mut probe = DiskProbe::builder().dirty_ranges(7).load().unwrap();
    let file = volume.path().join("file");
    let mut writers: Vec<_> =
        (0..3).map(|writer| writer_of_blocks(&file, 4096, writer, 3, 500)).collect();
    let snapshot = written_by(&mut probe, volume.device(), &mut writers);
    let device = snapshot.device(volume.device()).unwrap();
    let sum: u64 = writers.iter().map(|writer| written_back(&snapshot, writer.pid())).sum();
    println!("{sum} bytes charged, {:?}", device.unattributed);
    for writer in &writers {
        assert!(written_back(&snapshot, writer.pid()) <= 500 * 4096);
    }
    assert_eq!(written_back(&snapshot, std::process::id()), 0);
    assert!(device.unattributed.written_bytes > sum, "{device:#?}");
    assert!(snapshot.losses.get("owner_unseen").unwrap() > 0, "{:?}", snapshot.losses);
}

#[test]
fn what_was_dirty_before_is_no_loss_of_a_filtered_set() {
    let Some(volume) = QuietVolume::new("dirty_before") else { return };
    let file = volume.path().join("file");
    let mut before = writer_of_blocks(&file, 65536, 0, 1, 64);
    before.go();
    let idle = disk_work(&["sync"]);
    let mut filtered = DiskProbe::builder().filter(Filter::processes([idle.pid()])).load().unwrap();
    let mut all = DiskProbe::builder().load().unwrap();
    // with the pages before it in the same range, which are not its own
    let mut after = writer_of_blocks(&file, 4096, 16 * 64, 1, 1);
    after.go();
    settle(volume.device());
    let (few, all) = (filtered.snapshot().unwrap(), all.snapshot().unwrap());
    assert_eq!(few.losses.get("owner_unseen"), Some(0), "{:?}", few.losses);
    let written = all.device(volume.device()).unwrap().by_class.write_back.written_bytes;
    if written < 64 << 16 {
        println!("the kernel wrote the pages at once: {written} bytes left");
        return;
    }
    assert_eq!(written_back(&all, after.pid()), 4096);
    assert!(all.losses.get("owner_unseen").unwrap() > 0, "{:?}", all.losses);
}

/// A block cgroup with a limit of bytes written per second on a device; of either version.
struct Throttle(std::path::PathBuf);

impl Throttle {
    fn new(test: &str, device: &str, bytes_per_second: u64) -> Option<Self> {
        let number = std::fs::read_to_string(format!("/sys/class/block/{device}/dev")).unwrap();
        let number = number.trim();
        let version_1 = Path::new("/sys/fs/cgroup/blkio");
        let (parent, file, limit) = match version_1.exists() {
            true => (
                version_1,
                "blkio.throttle.write_bps_device",
                format!("{number} {bytes_per_second}"),
            ),
            false => {
                let parent = Path::new("/sys/fs/cgroup");
                let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+io");
                (parent, "io.max", format!("{number} wbps={bytes_per_second}"))
            }
        };
        let group = parent.join(format!("{test}-{}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&group) {
            skip(test, &format!("no block cgroup: {error}"));
            return None;
        }
        let this = Self(group);
        if let Err(error) = std::fs::write(this.0.join(file), limit) {
            skip(test, &format!("block cgroups have no limits: {error}"));
            return None;
        }
        Some(this)
    }

    fn add(&self, process: u32) {
        std::fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // it can be removed once its processes have left it
        poll(Duration::from_secs(5), || std::fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn throttled_direct_writes_are_charged_to_the_process_that_asked_for_them() {
    let Some(files) = directory_on_disk("throttled") else { return };
    let device = LoopDevice::new(files.path(), 32 << 20);
    // declared before the process: removed after its end
    let Some(throttle) = Throttle::new("throttled", device.name(), 4 << 20) else { return };
    let mut probe = DiskProbe::builder().load().unwrap();
    let path = device.path();
    let arguments = ["direct", path.to_str().unwrap(), "0", "24", "262144"];
    let mut work = disk_work(&arguments);
    throttle.add(work.pid());
    settle(device.name());
    probe.reset().unwrap();
    work.go();
    settle(device.name());
    let snapshot = probe.snapshot().unwrap();
    let ours = by_class(&snapshot, work.pid());
    let on = snapshot.device(device.name()).unwrap();
    println!("{ours:?}, {on:?}");
    assert!(on.usage.written_bytes >= 24 << 18, "{on:#?}");
    assert_eq!(ours.foreground.written_bytes, on.usage.written_bytes, "{on:#?}");
    assert_eq!(ours.kernel, DiskCounters::default());
    support("disk.throttled_direct_io", true, "");
}
