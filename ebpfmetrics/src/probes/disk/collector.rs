//! Dirtied bytes from the records of tasks, operations from the rows in the kernel.

use std::{sync::Arc, time::Instant};

use bytemuck::Zeroable;

use super::{
    assemble,
    charges::Charges,
    describe,
    device::DiskDeviceId,
    devices::{DeviceBook, Reading as DeviceReading, any_without_requests},
    hooks::Hooks,
    options::DiskProbeBuilder,
    rows::{RowTable, SPARE_ROWS},
    slow_io_buffer::SlowIoBuffer,
    system::DiskSystem,
    totals::{DiskTotals, IoAccounting},
    usage::DiskUsage,
};
use crate::{
    collect::{
        Loading, WalkPart,
        collector::{
            Collector, Ended, Read, Reading, Readings, Record, Span, Task, WalkTimes,
            invalid_record,
        },
    },
    error::Result,
    kernel::{Kernel, Requirements},
    object::Object,
    probe::Degraded,
    process::ProcessId,
    record::{
        DiskControlRecord, DiskLoss, DiskRowKey, DiskRowRecord, DiskTaskRecord,
        ProcessOverflowRecord, ProcessPartRecord, disk_kind, section_number,
    },
    snapshot::{LossCause, LossScope, Source, Window},
};

/// The disk probe: what [`DiskProbe`](super::DiskProbe) measures, alone or in a set.
pub struct Disk {
    object: Object,
    hooks: Hooks,
    /// Attached once there is a device without requests.
    bios_attached: bool,
    accounting: IoAccounting,
    row_count: u32,
    rows: RowTable,
    charges: Charges,
    devices: DeviceBook,
    walk_began: Instant,
    /// The kernel knows when the probe was attached.
    is_attached: bool,
    /// The buffer of slow I/O events; its reader has it too.
    pub(super) slow_io: Option<Arc<SlowIoBuffer>>,
}

impl Disk {
    fn attach_bios(&mut self) -> Result<()> {
        // without /sys, as if there were such a device
        if !self.bios_attached && any_without_requests().unwrap_or(true) {
            self.hooks.attach_bios(&mut self.object)?;
            self.bios_attached = true;
        }
        Ok(())
    }

    fn read_rows(&mut self) -> Result<()> {
        let Self { object, row_count, rows, charges, devices, .. } = self;
        let used = rows.len();
        each_rows(object, *row_count, used, |first, read| {
            rows.take_in(first, read, |key, figures| {
                let device = DiskDeviceId::from_record(key.device);
                charges.add(key, figures, || devices.carries(device));
            })
        })?;
        for (key, _) in self.charges.window() {
            self.devices.add(DiskDeviceId::from_record(key.device));
        }
        Ok(())
    }

    /// Frees rows of processes that are gone.
    fn free_rows(&mut self, is_alive: impl Fn(&ProcessId) -> bool) -> Result<()> {
        let retired = self.rows.retire(is_alive);
        self.object.delete_batch::<DiskRowKey>("disk_row_of", &retired.keys)?;
        let free: DiskRowRecord = Zeroable::zeroed();
        for place in retired.places {
            self.object.set_array_element("disk_rows", place, free)?;
            self.object.push("disk_free_rows", place)?;
        }
        Ok(())
    }
}

/// Reads the kernel's table in pieces, until one has no row in use and lies behind the `used`
/// places. `take` gets the place of the first row of a piece, and returns whether any is in
/// use.
fn each_rows(
    object: &Object,
    row_count: u32,
    used: usize,
    mut take: impl FnMut(u32, &[DiskRowRecord]) -> bool,
) -> Result<()> {
    const AT_ONCE: usize = 512;
    let mut first = 1;
    while first < row_count {
        let rows: Vec<DiskRowRecord> = object.array_elements("disk_rows", first, AT_ONCE)?;
        let any = take(first, &rows);
        first += rows.len().max(1) as u32;
        if !any && first as usize >= used && first > SPARE_ROWS + 1 {
            break;
        }
    }
    Ok(())
}

impl Collector for Disk {
    const NAME: &'static str = "disk";
    const SECTION: Option<u16> = Some(section_number::DISK as u16);

    type Options = DiskProbeBuilder;
    type Counters = DiskTotals;
    type Gauges = ();
    type Usage = DiskUsage;
    type System = DiskSystem;
    type Loss = DiskLoss;

    fn requirements() -> Requirements {
        Requirements {
            tracepoints: ["block_rq_complete", "block_rq_issue", "block_rq_merge"].into(),
            iterators: ["task"].into(),
        }
    }

    fn load(options: DiskProbeBuilder, loading: &Loading<'_>) -> Result<Self> {
        options.check()?;
        let kernel = loading.kernel;
        let hooks = Hooks::of(kernel);
        let (slots, row_count) = (options.slots(), options.row_count());
        let (slow_io_ns, range_bits) = (options.slow_io_ns(), options.range_bits());
        let loader = loading
            .object(Self::NAME, ebpf_probes::DISK)
            .override_global("has_io_start", u8::from(hooks.start_is_request()))
            .override_global("in_flight_bits", slots.ilog2())
            .override_global("slow_io_ns", slow_io_ns)
            .map_max_entries("disk_in_flight", slots)
            .map_max_entries("disk_rows", row_count)
            .map_max_entries("disk_row_of", row_count)
            .map_max_entries("disk_free_rows", options.free_rows())
            .map_max_entries("disk_spare_rows", SPARE_ROWS)
            .override_global("page_bits", (rustix::param::page_size() as u32).ilog2())
            .override_global("range_bits", range_bits)
            .map_max_entries("disk_ranges", 1 << range_bits)
            .map_max_entries("disk_pages", 1 << range_bits);
        let loader = match slow_io_ns {
            0 => ["events_ring", "events_lost", "disk_names"]
                .into_iter()
                .fold(loader, |loader, map| loader.set_autocreate(map, false)),
            _ => loader
                .map_max_entries("events_ring", options.ring_bytes())
                .map_max_entries("disk_names", 8192),
        };
        let object = loader.load(kernel)?;
        // Rows are taken from the top: low places first, so that reads stay short.
        for place in (1..=SPARE_ROWS).rev() {
            object.push("disk_spare_rows", place)?;
        }
        for place in (1 + SPARE_ROWS..row_count).rev() {
            object.push("disk_free_rows", place)?;
        }
        let slow_io = match slow_io_ns {
            0 => None,
            _ => Some(SlowIoBuffer::of(&object)?),
        };
        Ok(Self {
            object,
            hooks,
            bios_attached: false,
            accounting: IoAccounting::of(kernel),
            row_count,
            rows: RowTable::default(),
            charges: Charges::default(),
            devices: DeviceBook::default(),
            walk_began: Instant::now(),
            is_attached: false,
            slow_io,
        })
    }

    fn attach(&mut self, kernel: &Kernel) -> Result<()> {
        if self.slow_io.is_some() {
            self.object.attach("disk_exec", "sched_process_exec", kernel)?;
        }
        self.hooks.attach(&mut self.object, kernel)?;
        self.attach_bios()
    }

    fn object(&self) -> Option<&Object> {
        Some(&self.object)
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        Some(&mut self.object)
    }

    fn walk_part(&self) -> Result<WalkPart> {
        let part = WalkPart::built_in("disk_on");
        Ok(match self.slow_io {
            None => part,
            Some(_) => part
                .with("disk_names_on", 1_u8)
                .sharing(vec![self.object.map_handle("disk_names")?]),
        })
    }

    fn begin_walk(&mut self, _: Read) -> Result<()> {
        self.walk_began = Instant::now();
        Ok(())
    }

    fn task_record(
        &mut self,
        _: &Task,
        record: Record<'_>,
        _: &WalkTimes,
        reading: &mut Reading<Self>,
    ) -> Result<()> {
        if u32::from(record.kind) != disk_kind::TASK {
            return Err(invalid_record("of unknown kind"));
        }
        let record: &DiskTaskRecord = record.get()?;
        reading.add_task(&DiskTotals::of(&record.own), &DiskTotals::of(&record.dead));
        Ok(())
    }

    fn end_walk(&mut self, walk: &WalkTimes, processes: &mut Readings<'_, Self>) -> Result<()> {
        if !self.is_attached {
            // by the kernel's own clock: this process may be in a time namespace
            let control = DiskControlRecord { attached_ns: walk.monotonic_ns };
            self.object.set_array_element("disk_control", 0, control)?;
            self.is_attached = true;
        }
        for &index in processes.hidden {
            if let Some(totals) = DiskTotals::from_procfs(processes.ids[index].pid) {
                processes.readings[index].counters = totals;
            }
        }
        self.attach_bios()?;
        self.devices.refresh(DeviceReading {
            window_ns: walk.monotonic_ns.saturating_sub(walk.window_start_ns),
            late_ns: u64::try_from(self.walk_began.elapsed().as_nanos()).unwrap_or(u64::MAX),
        });
        self.read_rows()?;
        let is_alive = |process: &ProcessId| processes.ids.binary_search(process).is_ok();
        self.charges.forget_ended(is_alive);
        self.free_rows(is_alive)
    }

    fn ended(&self, ended: &Ended<'_>) -> Option<Reading<Self>> {
        let counters = DiskTotals::of(&ended.record.disk.totals);
        Some(Reading { counters, gauges: () })
    }

    fn part(record: &ProcessPartRecord) -> Option<DiskTotals> {
        Some(DiskTotals::of(&record.disk))
    }

    fn own(record: Record<'_>, _: &WalkTimes) -> Result<Option<DiskTotals>> {
        let record: &DiskTaskRecord = record.get()?;
        Ok(Some(DiskTotals::of(&record.own)))
    }

    fn left(&mut self, process: ProcessId, counters: &DiskTotals) {
        self.charges.left(process, counters);
    }

    fn overflow(record: &ProcessOverflowRecord) -> DiskTotals {
        DiskTotals::of(&record.disk)
    }

    fn usage(
        &self,
        process: ProcessId,
        counters: &DiskTotals,
        gauges: Option<&()>,
        span: Span,
    ) -> DiskUsage {
        let mut usage = match (gauges, span) {
            // processes without a row: their operations are in rows of their own
            (None, _) => DiskUsage::default(),
            (_, Span::Window) => self.charges.in_window(process),
            (_, Span::Total) => self.charges.total(process),
        };
        self.accounting.complete(&mut usage, counters);
        usage
    }

    fn final_usage(&self, process: ProcessId, ended: &Reading<Self>) -> Result<DiskUsage> {
        let mut usage = self.charges.total(process);
        // of devices that no snapshot has seen yet it is not known what lies on them
        let mut fresh = None;
        each_rows(&self.object, self.row_count, self.rows.len(), |first, rows| {
            for (place, row) in (first..).zip(rows) {
                if row.key.process() == Some(process) {
                    let device = DiskDeviceId::from_record(row.key.device);
                    let carries = match self.devices.get(device) {
                        Some(device) => device.carries,
                        None => fresh.get_or_insert_with(DeviceBook::read).carries(device),
                    };
                    usage.charge(&row.key, &self.rows.since_taken_in(place, row), carries);
                }
            }
            rows.iter().any(|row| row.key.device != 0)
        })?;
        usage.devices.retain(|on| !on.total.is_zero());
        self.accounting.complete(&mut usage, &ended.counters);
        Ok(usage)
    }

    fn system(&self, _: Window) -> DiskSystem {
        DiskSystem {
            devices: assemble::devices(&self.devices, &self.charges),
            unattributed: self.charges.unattributed(),
        }
    }

    fn late_processes(&self) -> Vec<ProcessId> {
        // the set leaves out those that have a row anyway
        self.charges.active().collect()
    }

    fn end_window(&mut self) {
        self.charges.end_window();
        self.devices.end_window();
    }

    #[cfg(feature = "serde")]
    fn json() -> Option<crate::snapshot::Json<DiskUsage, DiskSystem>> {
        Some(crate::snapshot::Json::new())
    }

    fn sources(&self) -> Vec<Source> {
        describe::sources(&self.hooks, self.accounting)
    }

    fn degraded(&self) -> Vec<Degraded> {
        describe::degraded(&self.hooks, self.accounting)
    }
}

crate::probe_builder!(DiskProbeBuilder, Disk);

impl LossCause for DiskLoss {
    const PROBE: &'static str = "disk";
    const ALL: &'static [Self] = Self::ALL;

    fn scope(self) -> LossScope {
        match self {
            Self::RowTableFull => LossScope::Processes,
            Self::InFlightTableFull
            | Self::StartLate
            | Self::StartUnseen
            | Self::CompletionUnseen
            | Self::OwnerUnseen => LossScope::Machine,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::record::{DiskTotalsRecord, RecordHead};

    #[test]
    fn threads_and_dead_threads_add_up_each_in_its_own_counter() {
        let totals = |dirtied_bytes, write_calls| DiskTotalsRecord {
            dirtied_bytes,
            write_calls,
            ..DiskTotalsRecord::zeroed()
        };
        let task = |own, dead| DiskTaskRecord { head: RecordHead::zeroed(), own, dead };
        let tasks =
            [task(totals(1, 20), totals(300, 4000)), task(totals(2, 30), totals(300, 4000))];
        let mut reading = Reading::<Disk>::default();
        for task in &tasks {
            reading.add_task(&DiskTotals::of(&task.own), &DiskTotals::of(&task.dead));
        }
        let sum = DiskTotals { dirtied_bytes: 303, write_calls: 4050, ..DiskTotals::default() };
        assert_eq!(reading.counters, sum);
    }

    #[test]
    fn a_table_that_is_full_affects_processes_and_the_rest_the_machine() {
        let of_processes = DiskLoss::ALL.iter().filter(|it| it.scope() == LossScope::Processes);
        assert_eq!(of_processes.collect::<Vec<_>>(), [&DiskLoss::RowTableFull]);
    }
}
