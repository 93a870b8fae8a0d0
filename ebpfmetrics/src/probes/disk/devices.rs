//! Block devices by the kernel's own files: names, stacking, busy time.

use std::{collections::BTreeMap, fs, io, path::PathBuf, time::Duration};

use super::device::DiskDeviceId;

/// All block devices that have been used.
#[derive(Debug, Default)]
pub(super) struct DeviceBook {
    known: BTreeMap<DiskDeviceId, KnownDevice>,
    /// The others, as of the last read.
    unused: BTreeMap<DiskDeviceId, Line>,
    was_read: bool,
}

#[derive(Clone, Debug)]
pub(super) struct KnownDevice {
    pub(super) name: String,
    /// The disk that it is a partition of.
    pub(super) partition_of: Option<DiskDeviceId>,
    /// It lies on other block devices, or on a file.
    pub(super) stacked: bool,
    /// Other block devices lie on it.
    pub(super) carries: bool,
    pub(super) removed: bool,
    last: Line,
    busy: Busy,
}

/// When `/proc/diskstats` was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Length of the window that ends here.
    pub(super) window_ns: u64,
    /// Time from the end of the window to the read, at most.
    pub(super) late_ns: u64,
}

/// Busy time of a device in ns. It is monotonic, and never more than the window.
#[derive(Clone, Copy, Debug, Default)]
struct Busy {
    /// What the kernel has counted since the device was first seen.
    counted_ns: u64,
    /// The part of it that is reported.
    reported_ns: u64,
    /// The part of it that was reported when the window began.
    baseline_ns: u64,
    /// The kernel counted at every read of the window.
    is_known: bool,
    /// The kernel counted at the last read.
    is_counting: bool,
}

impl Busy {
    /// The longest tick of any kernel: busy time grows in ticks.
    const TICK_NS: u64 = 10_000_000;

    /// Takes in a read. What exceeds the window came after its end and is reported in the
    /// next. More than that does not: old kernels count a long operation when it ends.
    fn advance(&mut self, grown_ms: u64, reading: Reading) {
        self.counted_ns = self.counted_ns.saturating_add(grown_ms.saturating_mul(1_000_000));
        let most = self.baseline_ns.saturating_add(reading.window_ns);
        self.reported_ns = self.counted_ns.min(most).max(self.reported_ns);
        let after = reading.late_ns.saturating_add(Self::TICK_NS);
        self.counted_ns = self.counted_ns.min(self.reported_ns.saturating_add(after));
    }

    fn set_counting(&mut self, is_counting: bool) {
        self.is_counting = is_counting;
        self.is_known &= is_counting;
    }

    fn rebase(&mut self) {
        self.baseline_ns = self.reported_ns;
        self.is_known = self.is_counting;
    }

    fn in_window(&self) -> Duration {
        Duration::from_nanos(self.reported_ns.saturating_sub(self.baseline_ns))
    }
}

/// The fields of a line of `/proc/diskstats` that are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    device: DiskDeviceId,
    name: String,
    /// Operations of all kinds, to see whether any were added.
    operations: u64,
    /// Wraps at 32 bits.
    busy_ms: u32,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let device = DiskDeviceId {
            major: fields.next()?.parse().ok()?,
            minor: fields.next()?.parse().ok()?,
        };
        let name = fields.next()?.to_owned();
        let figures: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        let figure = |index: usize| figures.get(index).copied();
        let (discards, flushes) = (figure(11).unwrap_or(0), figure(15).unwrap_or(0));
        let more = [figure(4)?, discards, flushes];
        Some(Self {
            device,
            name,
            operations: more.into_iter().fold(figure(0)?, u64::saturating_add),
            busy_ms: figure(9)? as u32,
        })
    }
}

/// Access to `/sys`, replaced in tests.
pub(super) trait Sysfs {
    /// Reads how a device lies among others.
    fn describe(&self, device: &mut KnownDevice);
    /// Whether the kernel counts the busy time of a device.
    fn is_counting(&self, device: &KnownDevice) -> bool;
}

impl DeviceBook {
    /// Reads the current state. Without `/proc` or `/sys`, devices have only their numbers.
    pub(super) fn refresh(&mut self, reading: Reading) {
        let text = fs::read_to_string("/proc/diskstats").unwrap_or_default();
        self.take_in(&text, reading, &RealSysfs);
    }

    fn take_in(&mut self, diskstats: &str, reading: Reading, sysfs: &dyn Sysfs) {
        let is_first = !std::mem::replace(&mut self.was_read, true);
        self.unused.clear();
        for device in self.known.values_mut() {
            device.removed = true;
        }
        for line in diskstats.lines().filter_map(Line::parse) {
            if line.operations == 0 && !self.known.contains_key(&line.device) {
                self.unused.insert(line.device, line);
                continue;
            }
            let device = (self.known.entry(line.device))
                .or_insert_with(|| KnownDevice::new(line.device, line.name.clone()));
            let is_new = device.last.name != line.name;
            device.removed = false;
            if is_new || device.last.operations != line.operations {
                device.name.clone_from(&line.name);
                sysfs.describe(device);
            }
            let grown_ms = match is_new {
                // it was first used after the last read
                true if !is_first => line.busy_ms,
                true => 0,
                // smaller: removed and added again
                false => match line.busy_ms.wrapping_sub(device.last.busy_ms) {
                    grown if grown > u32::MAX / 2 => line.busy_ms,
                    grown => grown,
                },
            };
            device.last = line;
            device.busy.advance(grown_ms.into(), reading);
            let is_counting = sysfs.is_counting(device);
            device.busy.set_counting(is_counting);
        }
    }

    /// The current state alone, without busy times.
    pub(super) fn read() -> Self {
        let mut book = Self::default();
        book.refresh(Reading { window_ns: 0, late_ns: 0 });
        book
    }

    /// Adds a device that the BPF programs have seen, unless it is known.
    pub(super) fn add(&mut self, device: DiskDeviceId) {
        self.add_from(device, &RealSysfs);
    }

    fn add_from(&mut self, id: DiskDeviceId, sysfs: &dyn Sysfs) {
        if self.known.contains_key(&id) {
            return;
        }
        let mut device = KnownDevice::new(id, id.to_string());
        match self.unused.remove(&id) {
            // its statistics are off, or it was first used after the read
            Some(line) => {
                device.name.clone_from(&line.name);
                device.last = line;
                sysfs.describe(&mut device);
                let is_counting = sysfs.is_counting(&device);
                device.busy.set_counting(is_counting);
            }
            None => device.removed = true,
        }
        self.known.insert(id, device);
    }

    #[cfg(test)]
    pub(super) fn add_unknown(&mut self, device: DiskDeviceId) {
        (self.known.entry(device)).or_insert_with(|| KnownDevice::new(device, device.to_string()));
    }

    #[cfg(test)]
    pub(super) fn partition(&mut self, partition: DiskDeviceId, of: DiskDeviceId) {
        self.known.entry(partition).and_modify(|device| device.partition_of = Some(of));
    }

    pub(super) fn get(&self, device: DiskDeviceId) -> Option<&KnownDevice> {
        self.known.get(&device)
    }

    /// Whether other devices are known to lie on it.
    pub(super) fn carries(&self, device: DiskDeviceId) -> bool {
        self.get(device).is_some_and(|device| device.carries)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownDevice> {
        self.known.values()
    }

    /// Starts a new window, and forgets devices that were removed.
    pub(super) fn end_window(&mut self) {
        self.known.retain(|_, device| !device.removed);
        self.known.values_mut().for_each(|device| device.busy.rebase());
    }
}

impl KnownDevice {
    fn new(device: DiskDeviceId, name: String) -> Self {
        Self {
            name,
            partition_of: None,
            stacked: false,
            carries: false,
            removed: false,
            last: Line { device, ..Line::default() },
            busy: Busy { is_known: true, ..Busy::default() },
        }
    }

    pub(super) fn id(&self) -> DiskDeviceId {
        self.last.device
    }

    /// Busy time in the window; `None` if it is unknown for a part of the window.
    pub(super) fn busy(&self) -> Option<Duration> {
        (self.busy.is_known && !self.removed).then(|| self.busy.in_window())
    }
}

struct RealSysfs;

impl Sysfs for RealSysfs {
    fn describe(&self, device: &mut KnownDevice) {
        let directory = directory(device.id());
        let has_any = |entry: &str| {
            fs::read_dir(directory.join(entry)).is_ok_and(|mut entries| entries.next().is_some())
        };
        device.partition_of = (directory.join("partition").exists())
            .then(|| fs::read_to_string(directory.join("../dev")).ok()?.parse().ok())
            .flatten();
        device.stacked = has_any("slaves") || directory.join("loop/backing_file").exists();
        device.carries = has_any("holders");
    }

    fn is_counting(&self, device: &KnownDevice) -> bool {
        let disk = device.partition_of.unwrap_or(device.id());
        let iostats = fs::read_to_string(directory(disk).join("queue/iostats"));
        iostats.map_or(true, |iostats| iostats.trim() != "0")
    }
}

fn directory(device: DiskDeviceId) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{device}"))
}

/// Whether a disk that is not empty handles bios without making requests of them: zram, dm,
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
mod tests;
