//! From records to counters and gauges. Pure: no system access.

use super::{
    collector::MemCounters,
    gauges::{Held, Marks, MemGauges},
};
use crate::{
    collect::collector::{Record, invalid_record},
    error::Result,
    process::ProcessId,
    record::{
        MemEndedRecord, MemFaultsRecord, MemHeldRecord, MemPeakRecord, MemTaskRecord,
        MemTrackedRecord, mem_held_flags, mem_kind,
    },
};

/// Kinds of pages, in the order of the kernel.
pub(super) const PAGE_KINDS: usize = 4;
pub(super) const FILE: usize = 0;
pub(super) const ANON: usize = 1;
pub(super) const SWAP: usize = 2;
pub(super) const SHMEM: usize = 3;

/// How the kernel side was set up, and the window that is being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    pub(super) page_bytes: u64,
    /// The epochs of the window: one, and another for each reset that failed. During a reset
    /// the kernel side is one ahead.
    pub(super) first_epoch: u64,
    pub(super) last_epoch: u64,
    pub(super) tracks_resident: bool,
    pub(super) tracks_space: bool,
}

/// The records of one process in a walk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    pub(super) held: Option<MemHeldRecord>,
    pub(super) tracked: Option<MemTrackedRecord>,
    pub(super) unfolded: [i64; PAGE_KINDS],
}

impl Parts {
    /// Takes a record about a task of the process. Returns it if it counts faults.
    pub(super) fn add<'a>(&mut self, record: Record<'a>) -> Result<Option<&'a MemTaskRecord>> {
        match u32::from(record.kind) {
            mem_kind::TASK => {
                let record: &MemTaskRecord = record.get()?;
                let unfolded = self.unfolded.iter_mut().zip(record.unfolded_pages);
                unfolded.for_each(|(sum, pages)| *sum += i64::from(pages));
                return Ok(Some(record));
            }
            mem_kind::HELD => {
                // once the leader has exited each thread sends it
                let held = *record.get()?;
                self.held.get_or_insert(held);
            }
            mem_kind::TRACKED => self.tracked = Some(*record.get()?),
            _ => return Err(invalid_record("of unknown kind")),
        }
        Ok(None)
    }

    fn owner(&self) -> Option<ProcessId> {
        let held = self.held.as_ref().filter(|held| held.owner_tgid != 0)?;
        Some(ProcessId { pid: held.owner_tgid, start_time_ns: held.owner_start_ns })
    }
}

/// Places of the processes that run in the address space of another, each with the place of
/// its owner.
pub(super) fn guests(ids: &[ProcessId], parts: &[Parts]) -> Vec<(usize, usize)> {
    (parts.iter().zip(ids).enumerate())
        .filter_map(|(guest, (part, id))| {
            let owner = part.owner().filter(|owner| owner != id)?;
            Some((guest, ids.binary_search(&owner).ok()?))
        })
        .collect()
}

/// Processes that share an address space have added too little to it each: all of them hold
/// all of it.
pub(super) fn share_unfolded(guests: &[(usize, usize)], parts: &mut [Parts]) {
    for &(guest, owner) in guests {
        let pages = parts[guest].unfolded;
        parts[owner].unfolded.iter_mut().zip(pages).for_each(|(to, from)| *to += from);
    }
    for &(guest, owner) in guests {
        parts[guest].unfolded = parts[owner].unfolded;
    }
}

impl Context {
    /// The highest in the window that events have shown.
    pub(super) fn peak(&self, peak: &MemPeakRecord) -> u64 {
        let of_window = |epoch, pages| match epoch {
            Some(epoch) if (self.first_epoch..=self.last_epoch).contains(&epoch) => pages,
            _ => 0,
        };
        let before = of_window(peak.epoch.checked_sub(1), peak.previous_pages);
        of_window(Some(peak.epoch), peak.pages).max(before) * self.page_bytes
    }

    /// The peaks of an address space in the window that events have shown; 0 without events.
    fn peaks(&self, tracked: Option<&MemTrackedRecord>, held: Held) -> Marks {
        let resident = tracked.map_or(0, |tracked| self.peak(&tracked.resident_set));
        let size = tracked.map_or(0, |tracked| self.peak(&tracked.virtual_space));
        Marks {
            resident: self.tracks_resident.then_some(resident.max(held.resident())),
            virtual_bytes: self.tracks_space.then_some(size.max(held.virtual_bytes)),
        }
    }

    fn held(&self, record: &MemHeldRecord, parts: &Parts) -> Held {
        let bytes = |kind: usize| {
            (record.resident_pages[kind] + parts.unfolded[kind]).max(0) as u64 * self.page_bytes
        };
        let has = |flag| record.flags & flag != 0;
        Held {
            virtual_bytes: record.virtual_pages * self.page_bytes,
            resident_anon: bytes(ANON),
            resident_file: bytes(FILE),
            resident_shmem: bytes(SHMEM),
            swap: bytes(SWAP),
            page_tables: record.page_table_bytes,
            locked: record.locked_pages * self.page_bytes,
            hugetlb: has(mem_held_flags::HAS_HUGETLB)
                .then_some(record.hugetlb_pages * self.page_bytes),
            owner: parts.owner(),
        }
    }

    pub(super) fn tracked_counters(&self, tracked: &MemTrackedRecord) -> MemCounters {
        MemCounters {
            allocations: tracked.allocations,
            allocated_bytes: tracked.allocated_pages * self.page_bytes,
            deallocations: tracked.deallocations,
            deallocated_bytes: tracked.deallocated_pages * self.page_bytes,
            ..MemCounters::default()
        }
    }

    /// The gauges of a process in a walk. `owner` has the records of the process that owns
    /// its address space, if that is another.
    pub(super) fn gauges(
        &self,
        parts: &Parts,
        owner: Option<&Parts>,
        kernel_thread: bool,
        is_older: bool,
    ) -> MemGauges {
        let mut gauges = MemGauges {
            follows_resident: self.tracks_resident,
            follows_virtual: self.tracks_space,
            may_be_older: is_older,
            ..MemGauges::default()
        };
        let Some(record) = &parts.held else {
            // What is no kernel thread and has no address space is a zombie: it holds nothing.
            if !kernel_thread {
                gauges.held = Some(Held::default());
                gauges.is_final = true;
                if parts.tracked.is_some() {
                    gauges.peak = self.peaks(parts.tracked.as_ref(), Held::default());
                }
                gauges.peak = known(gauges.peak);
            }
            return gauges;
        };
        let held = self.held(record, parts);
        // events of an address space are in the entry of its owner; after exec the entry may
        // still be of the old one
        let tracked = owner.unwrap_or(parts).tracked.as_ref();
        let tracked = tracked.filter(|tracked| tracked.space == record.space);
        // the kernel moves its marks when something shrinks, not when it grows
        let mark = |pages: u64, now: u64| Some((pages * self.page_bytes).max(now));
        gauges.held = Some(held);
        gauges.execs = Some(record.execs);
        gauges.peak = self.peaks(tracked, held);
        gauges.high_water = Marks {
            resident: mark(record.resident_high_water_pages, held.resident()),
            virtual_bytes: mark(record.virtual_high_water_pages, held.virtual_bytes),
        };
        gauges.may_be_older |= owner.is_some();
        gauges.changing = record.flags & mem_held_flags::CHANGING != 0;
        gauges
    }

    /// The gauges of a process at its end.
    pub(super) fn gauges_at_end(
        &self,
        record: &MemEndedRecord,
        tracked: Option<&MemTrackedRecord>,
        is_older: bool,
    ) -> MemGauges {
        let mark = |pages: u64| Some(pages * self.page_bytes).filter(|bytes| *bytes != 0);
        let mut peak = self.peaks(tracked, Held::default());
        // It ended after the reset that is being read began: its share of the next window
        // belongs to this row too.
        let late = |peak: &MemPeakRecord| match peak.epoch > self.last_epoch {
            true => mark(peak.pages),
            false => None,
        };
        if let Some(tracked) = tracked {
            peak = peak.max(Marks {
                resident: late(&tracked.resident_set).filter(|_| self.tracks_resident),
                virtual_bytes: late(&tracked.virtual_space).filter(|_| self.tracks_space),
            });
        }
        MemGauges {
            held: Some(Held::default()),
            execs: Some(record.execs).filter(|execs| *execs != 0),
            peak: known(peak),
            high_water: Marks {
                resident: mark(record.resident_high_water_pages),
                virtual_bytes: mark(record.virtual_high_water_pages),
            },
            follows_resident: self.tracks_resident,
            follows_virtual: self.tracks_space,
            may_be_older: is_older || record.is_shared != 0,
            is_final: true,
            ..MemGauges::default()
        }
    }
}

/// A process that has ended held something before: 0 means that no event was seen.
fn known(marks: Marks) -> Marks {
    Marks {
        resident: marks.resident.filter(|bytes| *bytes != 0),
        virtual_bytes: marks.virtual_bytes.filter(|bytes| *bytes != 0),
    }
}

/// Of a task itself, and of the dead threads of its process.
pub(super) fn faults(record: &MemFaultsRecord) -> (MemCounters, MemCounters) {
    let counters = |minor_faults, major_faults| MemCounters {
        minor_faults,
        major_faults,
        ..MemCounters::default()
    };
    (counters(record.minor, record.major), counters(record.dead_minor, record.dead_major))
}

#[cfg(test)]
mod tests;
