//! Slow I/O: operations that take longer than a limit are reported as events.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    path::Path,
    time::Duration,
};

use ebpfmetrics::{
    DiskProbe, Error, ErrorKind, Event, Events, Filter, Probe as _, ProbeSet,
    disk::{
        DiskClass, DiskCounters, DiskDevice, DiskOperation, DiskProbeBuilder, DiskSnapshot, SlowIo,
    },
    events::ProcessEvent,
    histogram::Histogram,
};
use ebpfmetrics_suite::{
    LoopDevice, NullBlk, QuietVolume, Workload, Zram, device_id, directory_on_disk, discard,
    settle, support,
};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// With these limits every operation is slow, or none.
const ALL: Duration = Duration::from_nanos(1);
const NONE: Duration = Duration::from_secs(3600);

fn disk_work(arguments: &[&str]) -> Workload {
    Workload::start(WORKLOAD, &[&["disk"], arguments].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn load(builder: DiskProbeBuilder) -> (DiskProbe, Events) {
    let disk = builder.slow_io_buffer_bytes(16 << 20).load().unwrap();
    let events = Events::builder().slow_io(&disk).unwrap().load().unwrap();
    (disk, events)
}

type Reported = (Option<ProcessEvent>, SlowIo);

/// The events of one device. None may be lost.
fn events_of(events: &mut Events, device: &str) -> Vec<Reported> {
    let of = |event| match event {
        Event::SlowIo { process, io } => {
            ((io.device.major, io.device.minor) == device_id(device)).then_some((process, io))
        }
        other => panic!("{other:?}"),
    };
    events.drain().filter_map(of).collect()
}

/// Adds up the operations as a snapshot does.
fn summed<'a>(reported: impl IntoIterator<Item = &'a Reported>) -> DiskCounters {
    reported.into_iter().fold(DiskCounters::default(), |mut sum, (_, io)| {
        match io.operation {
            DiskOperation::Read => {
                (sum.reads, sum.read_bytes) = (sum.reads + 1, sum.read_bytes + io.bytes)
            }
            DiskOperation::Write => {
                (sum.writes, sum.written_bytes) = (sum.writes + 1, sum.written_bytes + io.bytes);
            }
            DiskOperation::Flush => sum.flushes += 1,
            _ => {
                (sum.discards, sum.discarded_bytes) =
                    (sum.discards + 1, sum.discarded_bytes + io.bytes);
            }
        }
        sum
    })
}

/// A machine can hide the start or the end of an operation from eBPF. The operation is then
/// counted without its time, and not reported.
fn hidden(snapshot: &DiskSnapshot) -> u64 {
    let lost = |cause| snapshot.losses.get(cause).unwrap();
    ["start_unseen", "completion_unseen", "run_skipped"].map(lost).iter().sum()
}

/// Every operation that the snapshot counted and timed was reported once, with the same bytes
/// and times. The kernel counted the same.
#[track_caller]
fn assert_all(
    reported: &[Reported],
    device: &str,
    snapshot: &DiskSnapshot,
    truth: (u64, u64, u64),
) {
    let row: &DiskDevice = snapshot.device(device).unwrap();
    let (sum, unseen) = (summed(reported), hidden(snapshot));
    println!("{device}: {sum:?}, {unseen} unseen");
    if unseen == 0 {
        assert_eq!(sum, row.usage, "{row:#?}");
    }
    let timed: u64 = row.latencies.iter().map(|latency| latency.device.count()).sum();
    assert_eq!(reported.len() as u64, timed, "{row:#?}");
    for latency in &row.latencies {
        let of = || reported.iter().filter(|(_, io)| io.operation == latency.operation);
        let queue: Duration = of().map(|(_, io)| io.queue_time).sum();
        let busy: Duration = of().map(|(_, io)| io.device_time).sum();
        assert_eq!((queue, busy), (latency.queue.total(), latency.device.total()), "{latency:#?}");
    }
    let (reads, writes, discards) = truth;
    let least = |truth: u64| truth - unseen.min(truth);
    assert!((least(reads)..=reads).contains(&sum.reads), "{sum:?}, {truth:?}");
    let written = sum.writes + sum.flushes;
    assert!((least(writes)..=writes).contains(&written), "{sum:?}, {truth:?}");
    assert!((least(discards)..=discards).contains(&sum.discards), "{sum:?}, {truth:?}");
}

#[test]
fn every_operation_is_reported_once_if_the_limit_is_below_all() {
    let Some(files) = directory_on_disk("every_operation_is_reported") else { return };
    let device = LoopDevice::new(files.path(), 64 << 20);
    settle(device.name());
    let (mut disk, mut events) = load(DiskProbe::builder().slow_io(ALL));
    let before = settle(device.name());
    events.drain().count();
    disk.reset().unwrap();
    let mut work = disk_work(&["direct", text(&device.path()), "500", "300", "4096", "4"]);
    work.go();
    let file = OpenOptions::new().write(true).open(device.path()).unwrap();
    for _ in 0..10 {
        file.sync_all().unwrap();
    }
    drop(file);
    discard(&device.path(), 1 << 20, 4 << 20).unwrap();
    let truth = settle(device.name()).since(&before);
    let snapshot = disk.snapshot().unwrap();
    let reported = events_of(&mut events, device.name());
    assert_all(&reported, device.name(), &snapshot, (truth.reads, truth.writes, truth.discards));
    assert!(truth.reads >= 2000 && truth.writes >= 1200 && truth.discards >= 1, "{truth:?}");

    let mine = |(process, _): &&Reported| process.is_some_and(|it| it.id.pid == work.pid());
    let process = snapshot.process(work.pid()).unwrap();
    let there = process.usage.devices.iter();
    let there = there.filter(|on| (on.device.major, on.device.minor) == device_id(device.name()));
    let there = there.map(|on| on.total).next().unwrap();
    if hidden(&snapshot) == 0 {
        assert_eq!(summed(reported.iter().filter(mine)), there);
        assert_eq!((there.reads, there.writes), (2000, 1200));
    }
    for (process, io) in reported.iter().filter(mine) {
        let process = process.unwrap();
        assert!(process.info.comm == "workload", "{process:?}");
        assert_eq!(process.info.parent.unwrap().pid, std::process::id());
        assert!(!process.info.exited);
        assert_eq!((io.class, io.bytes), (Some(DiskClass::Foreground), 4096));
        assert_eq!(process.time_ns, io.submitted_ns + io.time().as_nanos() as u64);
        let window = snapshot.window;
        assert!(window.start_ns <= io.submitted_ns && process.time_ns <= window.end_ns, "{io:?}");
    }
    assert_eq!(events.losses().unwrap().total(), 0);
    support("events.slow_io", true, "ring buffer");
}

#[test]
fn nothing_is_reported_below_the_limit() {
    let Some(files) = directory_on_disk("nothing_is_reported_below") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let (mut disk, mut events) = load(DiskProbe::builder().slow_io(NONE));
    let mut work = disk_work(&["direct", text(&device.path()), "300", "200"]);
    work.go();
    settle(device.name());
    assert!(disk.snapshot().unwrap().device(device.name()).unwrap().usage.operations() >= 450);
    assert_eq!(events.drain().count(), 0);
    assert!(!events.wait(Duration::ZERO).unwrap());
}

#[test]
fn all_io_of_a_slow_device_is_reported_and_the_slow_io_of_a_fast_one() {
    let slow = [("irqmode", "2"), ("completion_nsec", "40000000")];
    let Some(slow) = NullBlk::new("slow", &slow) else { return };
    let Some(fast) = NullBlk::new("fast", &[]) else { return };
    let limit = Duration::from_millis(20);
    let (mut disk, mut events) = load(DiskProbe::builder().slow_io(limit));
    settle(slow.name());
    settle(fast.name());
    let mut one = disk_work(&["direct", text(&slow.path()), "30", "20"]);
    let mut other = disk_work(&["direct", text(&fast.path()), "2000", "1000", "4096", "2"]);
    settle(slow.name());
    disk.reset().unwrap();
    events.drain().count();
    one.go();
    other.go();
    settle(slow.name());
    let snapshot = disk.snapshot().unwrap();
    let mut all: Vec<_> = events.drain().collect();
    let of = |device: &str, all: &[Event]| -> Vec<Reported> {
        let mine = |event: &Event| match *event {
            Event::SlowIo { process, io } => {
                ((io.device.major, io.device.minor) == device_id(device)).then_some((process, io))
            }
            _ => None,
        };
        all.iter().filter_map(mine).collect()
    };
    let (of_slow, of_fast) = (of(slow.name(), &all), of(fast.name(), &all));
    all.retain(|event| matches!(event, Event::Lost { .. }));
    assert!(all.is_empty(), "{all:?}");

    let sum = summed(&of_slow);
    println!("slow {sum:?}, fast {} of 6000", of_fast.len());
    assert_eq!((sum.reads, sum.writes), (30, 20));
    assert!(of_slow.iter().all(|(process, _)| process.unwrap().id.pid == one.pid()));
    for (_, io) in &of_slow {
        assert!(io.device_time >= Duration::from_millis(40), "{io:?}");
    }
    // the limit is for queue and device together, so one of them took at least half of it
    let half = |histogram: &Histogram| -> u64 {
        let long =
            histogram.buckets().filter(|bucket| bucket.below.is_none_or(|below| below > limit / 2));
        long.map(|bucket| bucket.count).sum()
    };
    let row = snapshot.device(fast.name()).unwrap();
    assert!(row.usage.operations() >= 6000, "{row:#?}");
    let most: u64 = row.latencies.iter().map(|it| half(&it.queue) + half(&it.device)).sum();
    assert!(of_fast.len() as u64 <= most, "{of_fast:#?}, {row:#?}");
    assert!(of_fast.iter().all(|(_, io)| io.time() >= limit), "{of_fast:#?}");
}

#[test]
fn bios_of_a_device_without_requests_are_reported() {
    let Some(device) = Zram::new("bios_are_reported", 64 << 20) else { return };
    let (mut disk, mut events) = load(DiskProbe::builder().slow_io(ALL));
    let before = settle(&device.name());
    disk.reset().unwrap();
    events.drain().count();
    let mut work = disk_work(&["direct", text(&device.path()), "300", "200"]);
    work.go();
    let truth = settle(&device.name()).since(&before);
    let snapshot = disk.snapshot().unwrap();
    let reported = events_of(&mut events, &device.name());
    assert_all(&reported, &device.name(), &snapshot, (truth.reads, truth.writes, truth.discards));
    assert!(reported.iter().all(|(_, io)| io.queue_time.is_zero()));
}

#[test]
fn write_back_is_charged_to_the_process_that_dirtied_the_pages_after_its_end() {
    let Some(volume) = QuietVolume::new("write_back_after_the_end") else { return };
    let file = volume.path().join("file");
    settle(volume.device());
    let (mut disk, mut events) = load(DiskProbe::builder().slow_io(ALL));
    let mut work = disk_work(&["write", text(&file), "16777216", "--exit"]);
    let pid = work.pid();
    work.go();
    work.wait();
    settle(volume.device());
    let snapshot = disk.snapshot().unwrap();
    let reported = events_of(&mut events, volume.device());
    let written = reported.iter().filter(|(process, io)| {
        process.is_some_and(|it| it.id.pid == pid) && io.class == Some(DiskClass::WriteBack)
    });
    let written: Vec<_> = written.copied().collect();
    let row = snapshot.process(pid).unwrap();
    println!("{} of {} operations, {:?}", written.len(), reported.len(), summed(&written));
    if hidden(&snapshot) == 0 {
        assert_eq!(summed(&written), row.usage.by_class.write_back);
        assert!(summed(&written).written_bytes >= 16 << 20, "{row:#?}");
    }
    assert!(written.iter().all(|(process, _)| process.unwrap().info.comm == "workload"));
    assert!(written.iter().any(|(process, _)| process.unwrap().info.exited), "{written:#?}");
}

#[test]
fn a_process_has_the_name_that_it_had_at_the_time() {
    let Some(files) = directory_on_disk("the_name_at_the_time") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    settle(device.name());
    let (_disk, mut events) = load(DiskProbe::builder().slow_io(ALL));
    let path = text(&device.path()).to_owned();
    let script = format!("read x < {path}; exec {WORKLOAD} disk direct {path} 20 0");
    let mut work = Workload::start("/bin/sh", &["-c", &script]);
    settle(device.name());
    let pid = work.pid();
    let names = |events: &mut Events| -> Vec<String> {
        let reported = events_of(events, device.name()).into_iter();
        let mine = reported.filter_map(|(process, _)| process.filter(|it| it.id.pid == pid));
        mine.map(|process| process.info.comm.to_string()).collect()
    };
    let before = names(&mut events);
    assert!(!before.is_empty() && before.iter().all(|name| name == "sh"), "{before:?}");
    work.go();
    settle(device.name());
    let after = names(&mut events);
    assert!((18..=20).contains(&after.len()), "{after:?}");
    assert!(after.iter().all(|name| name == "workload"), "{after:?}");
}

#[test]
fn events_that_find_no_room_are_counted() {
    let Some(files) = directory_on_disk("slow_io_finds_no_room") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    settle(device.name());
    let builder = DiskProbe::builder().slow_io(ALL).slow_io_buffer_bytes(1);
    let mut disk = builder.load().unwrap();
    let mut events = Events::builder().slow_io(&disk).unwrap().load().unwrap();
    let mut fill = disk_work(&["direct", text(&device.path()), "100", "0"]);
    fill.go();
    settle(device.name());
    let lost = |events: &Events| events.losses().unwrap().get("slow_io").unwrap();
    // the buffer is full from here on
    let a = lost(&events);
    disk.reset().unwrap();
    let b = lost(&events);
    let mut work = disk_work(&["direct", text(&device.path()), "1500", "500"]);
    work.go();
    settle(device.name());
    let c = lost(&events);
    let snapshot = disk.snapshot().unwrap();
    let d = lost(&events);
    let latencies = snapshot.system.devices.iter().filter(|device| device.partition_of.is_none());
    let latencies = latencies.flat_map(|device| &device.latencies);
    let timed: u64 = latencies.map(|latency| latency.device.count()).sum();
    println!("{timed} operations, {} to {} lost", c - b, d - a);
    assert!(timed >= 1900 && a > 0);
    assert!((c - b..=d - a).contains(&timed), "{timed}, {a} {b} {c} {d}");

    let mut delivered = 0;
    let mut reported_lost = 0;
    for event in events.drain() {
        match event {
            Event::SlowIo { .. } => delivered += 1,
            Event::Lost { events } => reported_lost += events,
            other => panic!("{other:?}"),
        }
    }
    // 4 KiB hold 23 of 176 bytes
    assert!((15..30).contains(&delivered), "{delivered}");
    assert!(reported_lost >= d, "{reported_lost} of {d} are reported");
    assert!(events.losses().unwrap().check().is_err());
}

/// Ids of the ring buffers that this process has open.
fn ring_buffers() -> HashSet<String> {
    let files = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    let rings = texts.filter(|text| text.lines().any(|line| line == "map_type:\t27"));
    let number =
        |text: String| text.lines().find_map(|line| Some(line.strip_prefix("map_id:")?.to_owned()));
    rings.filter_map(number).collect()
}

#[test]
fn it_costs_nothing_if_it_is_off() {
    let without = DiskProbe::builder().load().unwrap();
    assert_eq!(ring_buffers().len(), 0);
    let with = DiskProbe::builder().slow_io(NONE).load().unwrap();
    let (no, yes) = (without.health().unwrap(), with.health().unwrap());
    assert_eq!(yes.programs, no.programs + 1, "the program for exec");
    let rings = ring_buffers();
    assert_eq!(rings.len(), 1);
    let events = Events::builder().slow_io(&with).unwrap().load().unwrap();
    assert_eq!(ring_buffers(), rings, "one buffer for both");
    assert_eq!(events.health().unwrap().programs, 0);
    drop((with, events));
    assert_eq!(ring_buffers().len(), 0);
}

#[test]
fn a_probe_with_slow_io_has_one_reader_at_a_time() {
    let invalid = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
        println!("{error}");
    };
    invalid(DiskProbe::builder().slow_io(Duration::ZERO).load().unwrap_err());
    invalid(DiskProbe::builder().slow_io(NONE).slow_io_buffer_bytes(0).load().unwrap_err());
    let silent = DiskProbe::builder().load().unwrap();
    invalid(Events::builder().slow_io(&silent).unwrap_err());
    let disk = DiskProbe::builder().slow_io(NONE).load().unwrap();
    let builder = Events::builder().slow_io(&disk).unwrap();
    invalid(Events::builder().slow_io(&disk).unwrap_err());
    invalid(builder.buffer_bytes(4096).load().unwrap_err());
    let first = Events::builder().slow_io(&disk).unwrap().load().unwrap();
    invalid(Events::builder().slow_io(&disk).unwrap_err());
    drop(first);
    let mut again = Events::builder().started(true).slow_io(&disk).unwrap().load().unwrap();
    // other events still come after the probe is dropped
    drop(disk);
    std::process::Command::new("/bin/true").status().unwrap();
    assert!(again.wait(Duration::from_secs(5)).unwrap());
    let kinds: HashSet<_> = again.drain().map(|event| std::mem::discriminant(&event)).collect();
    assert_eq!(kinds.len(), 1, "nothing else");
}

#[test]
fn the_probe_of_a_set_reports_the_processes_of_its_filter() {
    let Some(files) = directory_on_disk("slow_io_of_a_set") else { return };
    let device = LoopDevice::new(files.path(), 16 << 20);
    let work = || disk_work(&["direct", text(&device.path()), "300", "200"]);
    let (mut listed, mut other) = (work(), work());
    settle(device.name());
    let filter = Filter::processes([listed.pid()]);
    let mut probes = ProbeSet::builder().filter(filter).build().unwrap();
    let builder = || DiskProbe::builder().slow_io(ALL).slow_io_buffer_bytes(16 << 20);
    let disk = probes.add(builder()).unwrap();
    let mut events = Events::builder().slow_io_of(&probes, disk).unwrap().load().unwrap();
    let error = Events::builder().slow_io_of(&probes, disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "one reader: {error}");
    listed.go();
    other.go();
    settle(device.name());
    let snapshot = probes.snapshot().unwrap().of(disk).to_snapshot();
    let reported = events_of(&mut events, device.name());
    let lost = hidden(&snapshot);
    // I/O of the other process is reported without a process, as the devices have it
    let (mine, others): (Vec<_>, Vec<_>) =
        reported.iter().partition(|(process, _)| process.is_some());
    assert!(mine.iter().all(|(process, _)| process.unwrap().id.pid == listed.pid()), "{mine:#?}");
    assert!(others.iter().all(|(_, io)| io.class.is_some()), "{others:#?}");
    let on = snapshot.process(listed.pid()).unwrap().usage.devices.iter();
    let on = on.filter(|on| (on.device.major, on.device.minor) == device_id(device.name()));
    let usage = on.map(|on| on.total).next().unwrap();
    println!("{} and {} operations, {lost} hidden; {usage:?}", mine.len(), others.len());
    assert!(usage.operations() <= 500 && usage.operations() + lost >= 500, "{usage:?}");
    if lost == 0 {
        assert_eq!(summed(&mine), usage);
        assert!(others.len() >= 500, "{others:#?}");
    }

    // the probe is removed and added again, and has another buffer
    probes.remove(disk).unwrap();
    let error = Events::builder().slow_io_of(&probes, disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    let disk = probes.add(builder()).unwrap();
    let again = Events::builder().slow_io_of(&probes, disk).unwrap().load().unwrap();
    assert_eq!(again.losses().unwrap().total(), 0);
    assert_eq!(events.drain().count(), 0);
}

#[test]
fn events_are_serialized_with_their_units() {
    let Some(files) = directory_on_disk("slow_io_is_serialized") else { return };
    let device = LoopDevice::new(files.path(), 1 << 20);
    let (_disk, mut events) = load(DiskProbe::builder().slow_io(ALL));
    fs::write(device.path(), [7; 4096]).unwrap();
    settle(device.name());
    let event =
        events.drain().find(|event| matches!(event, Event::SlowIo { process: Some(_), .. }));
    let json = serde_json::to_value(event.unwrap()).unwrap();
    println!("{json}");
    assert_eq!(json["event"], "slow_io");
    for number in [
        "time_ns",
        "pid",
        "submitted_ns",
        "major",
        "minor",
        "bytes",
        "queue_time_ns",
        "device_time_ns",
    ] {
        assert!(json[number].is_u64(), "{number} in {json}");
    }
}
