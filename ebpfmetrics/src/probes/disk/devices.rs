//! What the kernel says of block devices outside of eBPF: names, what lies on what,
//! and how long each was busy.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use super::snapshot::DiskDeviceId;

/// All block devices that have done something.
#[derive(Debug, Default)]
pub(super) struct DeviceBook {
    known: BTreeMap<DiskDeviceId, KnownDevice>,
}

#[derive(Clone, Debug)]
pub(super) struct KnownDevice {
    pub(super) name: String,
    /// The disk that it is a partition of.
    pub(super) partition_of: Option<DiskDeviceId>,
    /// Lies on other block devices, or on a file.
    pub(super) stacked: bool,
    /// Other block devices lie on it.
    pub(super) carries: bool,
    pub(super) removed: bool,
    last: Line,
    busy_ms: u64,
}

/// One line of `/proc/diskstats`, as far as it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    device: DiskDeviceId,
    name: String,
    /// Operations of all kinds; only whether they change counts.
    operations: u64,
    /// Wraps at 32 bits.
    busy_ms: u32,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let device =
            DiskDeviceId { major: fields.next()?.parse().ok()?, minor: fields.next()?.parse().ok()? };
        let name = fields.next()?.to_owned();
        let figures: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        let figure = |index: usize| figures.get(index).copied();
        let more = figure(11).unwrap_or(0) + figure(15).unwrap_or(0); // discards, flushes
        Some(Self {
            device,
            name,
            operations: figure(0)? + figure(4)? + more,
            busy_ms: figure(9)? as u32,
        })
    }
}

impl DeviceBook {
    /// Brings it up to date. Without `/proc` or `/sys` devices have numbers only.
    pub(super) fn refresh(&mut self) {
        let text = fs::read_to_string("/proc/diskstats").unwrap_or_default();
        self.take_in(&text, KnownDevice::ask_sysfs);
    }

    fn take_in(&mut self, diskstats: &str, ask: impl Fn(&mut KnownDevice)) {
        for device in self.known.values_mut() {
            device.removed = true;
        }
        for line in diskstats.lines().filter_map(Line::parse) {
            if line.operations == 0 && !self.known.contains_key(&line.device) {
                continue;
            }
            let device = self.known.entry(line.device).or_insert_with(|| KnownDevice {
                busy_ms: u64::from(line.busy_ms),
                ..KnownDevice::named(line.device, line.name.clone())
            });
            device.removed = false;
            let is_new = device.last.device != line.device || device.last.name != line.name;
            if is_new || device.last.operations != line.operations {
                device.name.clone_from(&line.name);
                ask(device);
            }
            if !is_new {
                let grown = line.busy_ms.wrapping_sub(device.last.busy_ms);
                // counted from zero again: removed and added in between
                let grown = if grown > u32::MAX / 2 { line.busy_ms } else { grown };
                device.busy_ms += u64::from(grown);
            }
            device.last = line;
        }
    }

    /// Adds a device that only the kernel side has seen.
    pub(super) fn add(&mut self, device: DiskDeviceId) {
        self.known
            .entry(device)
            .or_insert_with(|| KnownDevice { removed: true, ..KnownDevice::named(device, device.to_string()) });
    }

    #[cfg(test)]
    pub(super) fn partition(&mut self, partition: DiskDeviceId, of: DiskDeviceId) {
        self.add(partition);
        self.known.entry(partition).and_modify(|device| device.partition_of = Some(of));
    }

    pub(super) fn get(&self, device: DiskDeviceId) -> Option<&KnownDevice> {
        self.known.get(&device)
    }

    /// Whether other devices lie on it, as far as is known.
    pub(super) fn carries(&self, device: DiskDeviceId) -> bool {
        self.get(device).is_some_and(|device| device.carries)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownDevice> {
        self.known.values()
    }

    /// How long each was busy since boot, as far as that was seen.
    pub(super) fn busy_ms(&self) -> BTreeMap<DiskDeviceId, u64> {
        self.known.iter().map(|(id, device)| (*id, device.busy_ms)).collect()
    }

    /// Forgets those that are gone.
    pub(super) fn rebase(&mut self) {
        self.known.retain(|_, device| !device.removed);
    }
}

impl KnownDevice {
    fn named(device: DiskDeviceId, name: String) -> Self {
        Self {
            name,
            partition_of: None,
            stacked: false,
            carries: false,
            removed: false,
            last: Line { device, ..Line::default() },
            busy_ms: 0,
        }
    }

    pub(super) fn id(&self) -> DiskDeviceId {
        self.last.device
    }

    pub(super) fn since(&self, before: &BTreeMap<DiskDeviceId, u64>) -> u64 {
        self.busy_ms - before.get(&self.id()).copied().unwrap_or(0).min(self.busy_ms)
    }

    fn ask_sysfs(&mut self) {
        let directory = sysfs(self.id());
        let holds_any = |entry: &str| {
            fs::read_dir(directory.join(entry)).is_ok_and(|mut entries| entries.next().is_some())
        };
        self.partition_of = (directory.join("partition").exists())
            .then(|| fs::read_to_string(directory.join("../dev")).ok()?.parse().ok())
            .flatten();
        self.stacked = holds_any("slaves") || directory.join("loop/backing_file").exists();
        self.carries = holds_any("holders");
    }
}

fn sysfs(device: DiskDeviceId) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{device}"))
}

/// Whether a disk of some size takes bios without making requests of them: zram, dm,
/// md, pmem and others without `/sys/block/NAME/mq`.
pub(super) fn any_without_requests() -> io::Result<bool> {
    for disk in fs::read_dir("/sys/block")?.flatten() {
        let size = fs::read_to_string(disk.path().join("size")).unwrap_or_default();
        if size.trim() != "0" && !disk.path().join("mq").exists() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SDA: DiskDeviceId = DiskDeviceId { major: 8, minor: 0 };
    const LOOP: DiskDeviceId = DiskDeviceId { major: 7, minor: 1 };

    fn line(device: DiskDeviceId, name: &str, reads: u64, busy_ms: u32) -> String {
        let (major, minor) = (device.major, device.minor);
        format!("{major:4} {minor:7} {name} {reads} 0 0 0 0 0 0 0 0 {busy_ms} 99 0 0 0 0 0 0\n")
    }

    fn busy(book: &DeviceBook, before: &BTreeMap<DiskDeviceId, u64>) -> u64 {
        book.get(SDA).unwrap().since(before)
    }

    #[test]
    fn a_line_of_today_and_one_of_an_old_kernel() {
        let today = "  259       3 nvme0n1p1 5 2 64 7 11 12 13 14 3 77 78 20 0 0 0 30 9";
        let line = Line::parse(today).unwrap();
        assert_eq!(line.device, DiskDeviceId { major: 259, minor: 3 });
        assert_eq!((line.name.as_str(), line.operations, line.busy_ms), ("nvme0n1p1", 66, 77));
        assert_eq!(Line::parse("8 0 sda 5 2 64 7 11 12 13 14 3 77 78").unwrap().operations, 16);
        assert_eq!(Line::parse(""), None);
        assert_eq!(Line::parse("8 0 sda 5 2"), None);
    }

    #[test]
    fn only_devices_that_did_something_and_busy_since_they_were_first_seen() {
        let mut book = DeviceBook::default();
        book.take_in(&(line(SDA, "sda", 1, 500) + &line(LOOP, "loop1", 0, 0)), |_| {});
        assert_eq!(book.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["sda"]);
        let before = book.busy_ms();
        book.take_in(&line(SDA, "sda", 2, 530), |_| {});
        assert_eq!(busy(&book, &before), 30);
    }

    #[test]
    fn busy_time_wraps_and_starts_again_with_the_device() {
        let mut book = DeviceBook::default();
        book.take_in(&line(SDA, "sda", 1, u32::MAX - 9), |_| {});
        let before = book.busy_ms();
        book.take_in(&line(SDA, "sda", 2, 10), |_| {});
        assert_eq!(busy(&book, &before), 20);
        book.take_in(&line(SDA, "sda", 1, 7), |_| {});
        assert_eq!(busy(&book, &before), 27);
    }

    #[test]
    fn a_removed_device_stays_for_the_window() {
        let mut book = DeviceBook::default();
        book.take_in(&line(SDA, "sda", 1, 0), |_| {});
        book.take_in("", |_| {});
        assert!(book.get(SDA).unwrap().removed);
        book.rebase();
        assert!(book.get(SDA).is_none());
        book.add(SDA);
        assert_eq!(book.get(SDA).unwrap().name, "8:0");
    }

    #[test]
    fn sysfs_is_asked_of_those_that_work() {
        let mut book = DeviceBook::default();
        let asked = std::cell::Cell::new(0);
        let mut take_in = |reads| {
            book.take_in(&line(SDA, "sda", reads, 0), |_| asked.set(asked.get() + 1));
            asked.get()
        };
        assert_eq!([take_in(1), take_in(1), take_in(2), take_in(2)], [1, 1, 2, 2]);
    }
}
