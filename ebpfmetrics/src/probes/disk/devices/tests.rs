use std::cell::Cell;

use super::*;

const SDA: DiskDeviceId = DiskDeviceId { major: 8, minor: 0 };
const LOOP: DiskDeviceId = DiskDeviceId { major: 7, minor: 1 };

const MS: u64 = 1_000_000;
const SECOND: Reading = Reading { window_ns: 1000 * MS, late_ns: 0 };

struct FakeSysfs {
    described: Cell<u32>,
    is_counting: Cell<bool>,
}

impl FakeSysfs {
    fn new() -> Self {
        Self { described: Cell::new(0), is_counting: Cell::new(true) }
    }
}

impl Sysfs for FakeSysfs {
    fn describe(&self, _: &mut KnownDevice) {
        self.described.set(self.described.get() + 1);
    }

    fn is_counting(&self, _: &KnownDevice) -> bool {
        self.is_counting.get()
    }
}

fn line(device: DiskDeviceId, name: &str, reads: u64, busy_ms: u32) -> String {
    let (major, minor) = (device.major, device.minor);
    format!("{major:4} {minor:7} {name} {reads} 0 0 0 0 0 0 0 0 {busy_ms} 99 0 0 0 0 0 0\n")
}

fn busy_ms(book: &DeviceBook, device: DiskDeviceId) -> Option<u128> {
    book.get(device).unwrap().busy().map(|busy| busy.as_millis())
}

#[test]
fn a_line_of_a_new_and_of_an_old_kernel() {
    let new = "  259       3 nvme0n1p1 5 2 64 7 11 12 13 14 3 77 78 20 0 0 0 30 9";
    let line = Line::parse(new).unwrap();
    assert_eq!(line.device, DiskDeviceId { major: 259, minor: 3 });
    assert_eq!((line.name.as_str(), line.operations, line.busy_ms), ("nvme0n1p1", 66, 77));
    assert_eq!(Line::parse("8 0 sda 5 2 64 7 11 12 13 14 3 77 78").unwrap().operations, 16);
    assert_eq!(Line::parse(""), None);
    assert_eq!(Line::parse("8 0 sda 5 2"), None);
}

#[test]
fn only_devices_that_were_used_and_busy_since_they_were_first_seen() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    let lines = line(SDA, "sda", 1, 500) + &line(LOOP, "loop1", 0, 0);
    book.take_in(&lines, SECOND, &sysfs);
    assert_eq!(book.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["sda"]);
    let lines = line(SDA, "sda", 2, 530) + &line(LOOP, "loop1", 3, 40);
    book.take_in(&lines, SECOND, &sysfs);
    assert_eq!((busy_ms(&book, SDA), busy_ms(&book, LOOP)), (Some(30), Some(40)));
}

#[test]
fn busy_time_wraps_and_starts_again_with_the_device() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    book.take_in(&line(SDA, "sda", 1, u32::MAX - 9), SECOND, &sysfs);
    book.take_in(&line(SDA, "sda", 2, 10), SECOND, &sysfs);
    assert_eq!(busy_ms(&book, SDA), Some(20));
    book.take_in(&line(SDA, "sda", 1, 7), SECOND, &sysfs);
    assert_eq!(busy_ms(&book, SDA), Some(27));
}

#[test]
fn busy_time_never_exceeds_its_window_and_adds_up() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    // windows of 100 ms, each read 7 ms after its end
    let window = |window_ns| Reading { window_ns, late_ns: 7 * MS };
    book.take_in(&line(SDA, "sda", 1, 1000), window(0), &sysfs);
    book.end_window();
    let mut sum = 0;
    for (reads, busy) in [1104, 1204, 1300, 1404, 1404].into_iter().enumerate() {
        let lines = line(SDA, "sda", 2 + reads as u64, busy);
        book.take_in(&lines, window(100 * MS), &sysfs);
        let busy = busy_ms(&book, SDA).unwrap();
        assert!(busy <= 100, "{busy}");
        sum += busy;
        book.end_window();
    }
    assert_eq!(sum, 404);
}

#[test]
fn busy_time_never_decreases_between_snapshots_of_a_window() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    book.take_in(&line(SDA, "sda", 1, 0), SECOND, &sysfs);
    book.end_window();
    let mut last = 0;
    for (window_ms, busy) in [(10, 12), (20, 20), (40, 20), (41, 41)] {
        let reading = Reading { window_ns: window_ms * MS, late_ns: 2 * MS };
        book.take_in(&line(SDA, "sda", 2, busy), reading, &sysfs);
        let busy = busy_ms(&book, SDA).unwrap();
        assert!(last <= busy && busy <= u128::from(window_ms), "{last} {busy}");
        last = busy;
    }
    assert_eq!(last, 41);
}

#[test]
fn an_operation_of_earlier_windows_does_not_fill_later_ones() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    let window = Reading { window_ns: 100 * MS, late_ns: MS };
    book.take_in(&line(SDA, "sda", 1, 0), window, &sysfs);
    book.end_window();
    // it took 3 s and was counted at its end
    book.take_in(&line(SDA, "sda", 2, 3000), window, &sysfs);
    assert_eq!(busy_ms(&book, SDA), Some(100));
    book.end_window();
    book.take_in(&line(SDA, "sda", 2, 3000), window, &sysfs);
    assert_eq!(busy_ms(&book, SDA), Some(11));
    book.end_window();
    book.take_in(&line(SDA, "sda", 2, 3000), window, &sysfs);
    assert_eq!(busy_ms(&book, SDA), Some(0));
}

#[test]
fn busy_time_is_unknown_while_statistics_are_off() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    let mut read = |counting, busy| {
        sysfs.is_counting.set(counting);
        book.take_in(&line(SDA, "sda", 1, busy), SECOND, &sysfs);
        let now = busy_ms(&book, SDA);
        let mut next = book.known[&SDA].busy;
        next.rebase();
        (now, next.is_known)
    };
    assert_eq!(read(true, 5), (Some(0), true));
    assert_eq!(read(false, 5), (None, false));
    // off for a part of the window
    assert_eq!(read(true, 5), (None, true));
    book.end_window();
    book.take_in(&line(SDA, "sda", 2, 9), SECOND, &sysfs);
    assert_eq!(busy_ms(&book, SDA), Some(4));
}

#[test]
fn a_device_without_statistics_has_its_name() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    sysfs.is_counting.set(false);
    book.take_in(&line(LOOP, "loop1", 0, 0), SECOND, &sysfs);
    book.add_from(LOOP, &sysfs);
    let device = book.get(LOOP).unwrap();
    assert_eq!((device.name.as_str(), device.removed, device.busy()), ("loop1", false, None));
    assert_eq!(sysfs.described.get(), 1);
}

#[test]
fn a_removed_device_stays_for_the_window() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    book.take_in(&line(SDA, "sda", 1, 0), SECOND, &sysfs);
    book.take_in("", SECOND, &sysfs);
    assert!(book.get(SDA).unwrap().removed && busy_ms(&book, SDA).is_none());
    book.end_window();
    assert!(book.get(SDA).is_none());
    book.add_from(SDA, &sysfs);
    assert_eq!(book.get(SDA).unwrap().name, "8:0");
}

#[test]
fn sysfs_is_read_for_devices_in_use() {
    let (mut book, sysfs) = (DeviceBook::default(), FakeSysfs::new());
    let mut take_in = |reads| {
        book.take_in(&line(SDA, "sda", reads, 0), SECOND, &sysfs);
        sysfs.described.get()
    };
    assert_eq!([take_in(1), take_in(1), take_in(2), take_in(2)], [1, 1, 2, 2]);
}
