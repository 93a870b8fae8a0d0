use std::time::Duration;

use super::rows::SPARE_ROWS;
use crate::{
    error::{Error, ErrorKind, Result},
    options::check_option,
    set::SetOptions,
};

/// `PLACES` of a set in `disk/owners.h`.
const RANGES_PER_SET: u32 = 7;

/// Options of a [`DiskProbe`](super::DiskProbe).
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded until load()"]
pub struct DiskProbeBuilder {
    rows: u32,
    in_flight: u32,
    dirty_ranges: u32,
    slow_io: Option<Duration>,
    slow_io_buffer_bytes: u32,
    pub(super) set: SetOptions,
}

impl DiskProbeBuilder {
    /// Number of rows: one per process, device, class and kind of operation. Rows of processes
    /// that have ended are reused after a few reads. Operations that find no row are counted
    /// for their device alone ([`unattributed`](super::DiskSystem::unattributed)), and as the
    /// loss [`RowTableFull`](super::DiskLoss::RowTableFull). 8,192 by default, 250 bytes of
    /// kernel memory each.
    pub fn rows(mut self, rows: u32) -> Self {
        self.rows = rows;
        self
    }

    /// Slots for requests in flight, rounded up to a power of two. 1,024 more requests may
    /// share a slot; beyond that, requests are counted as the loss
    /// [`InFlightTableFull`](super::DiskLoss::InFlightTableFull). 8,192 by default, 64 bytes
    /// of kernel memory each.
    pub fn in_flight(mut self, requests: u32) -> Self {
        self.in_flight = requests;
        self
    }

    /// Number of ranges of 64 pages with dirty pages whose owners are known, rounded up to 7
    /// times a power of two. A small file takes one range. When there are more, the range that
    /// became dirty longest ago is forgotten; the write-back of its pages is then counted as
    /// the loss [`OwnerUnseen`](super::DiskLoss::OwnerUnseen). 114,688 by default: 28 GiB, or
    /// as many small files. 28 bytes of kernel memory each; a third of it is for as many pages
    /// of ranges that several processes write.
    pub fn dirty_ranges(mut self, ranges: u32) -> Self {
        self.dirty_ranges = ranges;
        self
    }

    /// Sends an event for every operation that takes at least this long from its submission to
    /// its completion (queue and device together). [`Events`](crate::Events) reads them.
    ///
    /// Operations whose start or completion was not seen have no event; they are counted as
    /// losses. Events wait in the buffer until there is a reader. Without this option no code
    /// runs for it and there is no buffer; with it, a program on `sched_process_exec` keeps
    /// the names of processes, and a table of 8,192 names takes 1.2 MiB of kernel memory.
    pub fn slow_io(mut self, limit: Duration) -> Self {
        self.slow_io = Some(limit);
        self
    }

    /// Size of the buffer for [`slow_io`](Self::slow_io) and for all other events of its
    /// reader, rounded up to a power of two and to whole pages. 1 MiB by default. An event
    /// takes up to 176 bytes. Events that find no room are counted.
    pub fn slow_io_buffer_bytes(mut self, bytes: u32) -> Self {
        self.slow_io_buffer_bytes = bytes;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        for (option, entries) in [
            ("rows", self.rows),
            ("in_flight", self.in_flight),
            ("dirty_ranges", self.dirty_ranges),
        ] {
            check_option("disk", option, entries, 1..=1 << 22)?;
        }
        if self.slow_io.is_some_and(|limit| limit.is_zero()) {
            let text = "disk: option slow_io must be more than 0";
            return Err(Error::new(ErrorKind::InvalidOption, text));
        }
        check_option("disk", "slow_io_buffer_bytes", self.slow_io_buffer_bytes, 1..=1 << 30)
    }

    /// Rows in the kernel's table: row 0 means none, then come the spare rows.
    pub(super) fn row_count(&self) -> u32 {
        1 + SPARE_ROWS + self.rows
    }

    pub(super) fn free_rows(&self) -> u32 {
        self.rows
    }

    /// At least two: the slot is in the upper bits of a product.
    pub(super) fn slots(&self) -> u32 {
        self.in_flight.next_power_of_two().max(2)
    }

    /// log2 of the number of sets of ranges.
    pub(super) fn range_bits(&self) -> u32 {
        self.dirty_ranges.div_ceil(RANGES_PER_SET).next_power_of_two().ilog2()
    }

    /// The limit of slow I/O in ns; 0 for none.
    pub(super) fn slow_io_ns(&self) -> u64 {
        let ns = |limit: Duration| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.slow_io.map_or(0, ns)
    }

    pub(super) fn ring_bytes(&self) -> u32 {
        let page = rustix::param::page_size() as u32;
        self.slow_io_buffer_bytes.next_power_of_two().max(page)
    }
}

impl Default for DiskProbeBuilder {
    fn default() -> Self {
        Self {
            rows: 8192,
            in_flight: 8192,
            dirty_ranges: RANGES_PER_SET << 14,
            slow_io: None,
            slow_io_buffer_bytes: 1 << 20,
            set: SetOptions::default(),
        }
    }
}
