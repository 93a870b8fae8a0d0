//! From records to what processes hold, take and give back. Pure: no system access.

use super::record::{
    ANON, EndedRecord, FILE, FoldedRecord, HeldRecord, OOM_VICTIM, PAGE_KINDS, PeakRecord,
    ProcessRecord, RECORD_HELD, RECORD_PROCESS, RECORD_THREAD, RECORD_TRACKED, SHMEM, SWAP,
    ThreadRecord, TrackedRecord, held_flags,
};
use crate::{
    ProcessId, Result,
    ledger::{Ending, Folded, Reading, TaskTotals, Totals as _, sum_up},
    records::{Records, cast, invalid},
};

/// Counters since the start of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) minor_faults: u64,
    pub(super) major_faults: u64,
    pub(super) allocations: u64,
    pub(super) allocated_bytes: u64,
    pub(super) deallocations: u64,
    pub(super) deallocated_bytes: u64,
    /// 1 once the kernel has chosen it.
    pub(super) oom_kills: u64,
}

/// What a process has beside counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Gauges {
    /// `None`: a thread of the kernel.
    pub(super) held: Option<Held>,
    /// The highest in the window, as far as is known.
    pub(super) resident_peak_bytes: Option<u64>,
    pub(super) virtual_peak_bytes: Option<u64>,
    /// Whether events tell of peaks, so that without one there was none.
    follows_resident: bool,
    follows_virtual: bool,
    /// As of the start of the window; nothing if the process has begun since.
    start: HighWater,
    pub(super) from_procfs: bool,
    /// The kernel was changing it while it was read.
    changing: bool,
}

/// What an address space holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) virtual_bytes: u64,
    pub(super) resident_anon: u64,
    pub(super) resident_file: u64,
    pub(super) resident_shmem: u64,
    pub(super) swap: u64,
    pub(super) page_tables: u64,
    pub(super) locked: u64,
    pub(super) hugetlb: Option<u64>,
    pub(super) high_water: HighWater,
    pub(super) owner: Option<ProcessId>,
}

/// The highest since exec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HighWater {
    pub(super) resident: u64,
    pub(super) virtual_bytes: u64,
}

impl Held {
    pub(super) fn resident(&self) -> u64 {
        self.resident_anon + self.resident_file + self.resident_shmem
    }
}

impl crate::ledger::Totals for Totals {
    type Gauges = Gauges;

    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            minor_faults: f(self.minor_faults, other.minor_faults),
            major_faults: f(self.major_faults, other.major_faults),
            allocations: f(self.allocations, other.allocations),
            allocated_bytes: f(self.allocated_bytes, other.allocated_bytes),
            deallocations: f(self.deallocations, other.deallocations),
            deallocated_bytes: f(self.deallocated_bytes, other.deallocated_bytes),
            oom_kills: f(self.oom_kills, other.oom_kills),
        }
    }

    fn follow(before: &Gauges, mut now: Gauges) -> Gauges {
        if now.changing && before.held.is_some() {
            now.held = before.held;
        }
        now.start = before.start;
        now.resident_peak_bytes = now.resident_peak_bytes.max(before.resident_peak_bytes);
        now.virtual_peak_bytes = now.virtual_peak_bytes.max(before.virtual_peak_bytes);
        if let Some(held) = &now.held {
            // A mark of the kernel that has moved since the window began was reached in
            // it. Exec begins new ones. 0: gone with the memory.
            let moved = |mark: u64, start: u64| (mark != start && mark != 0).then_some(mark);
            let mark = held.high_water;
            now.resident_peak_bytes =
                now.resident_peak_bytes.max(moved(mark.resident, now.start.resident));
            now.virtual_peak_bytes =
                now.virtual_peak_bytes.max(moved(mark.virtual_bytes, now.start.virtual_bytes));
        }
        now
    }

    fn rebase(gauges: &mut Gauges) {
        let held = gauges.held.unwrap_or_default();
        gauges.start = held.high_water;
        let begin = |follows: bool, now| (follows && gauges.held.is_some()).then_some(now);
        gauges.resident_peak_bytes = begin(gauges.follows_resident, held.resident());
        gauges.virtual_peak_bytes = begin(gauges.follows_virtual, held.virtual_bytes);
    }
}

impl Gauges {
    /// Of a process that no program of the probe has seen.
    pub(super) fn from_procfs(held: Option<Held>) -> Self {
        Self { held, from_procfs: true, ..Self::default() }
    }
}

/// How the kernel side was set up, and the window that is being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    pub(super) page_bytes: u64,
    /// The epochs of the window: one, and another for each reset that failed. At a reset
    /// the kernel side is one ahead.
    pub(super) first_epoch: u64,
    pub(super) last_epoch: u64,
    pub(super) tracks_resident: bool,
    pub(super) tracks_space: bool,
}

impl Context {
    /// The highest in the window that events have told.
    fn peak(&self, peak: &PeakRecord) -> u64 {
        let of_window = |epoch, pages| match epoch {
            Some(epoch) if (self.first_epoch..=self.last_epoch).contains(&epoch) => pages,
            _ => 0,
        };
        let before = of_window(peak.epoch.checked_sub(1), peak.previous_pages);
        of_window(Some(peak.epoch), peak.pages).max(before) * self.page_bytes
    }

    fn held(&self, record: &HeldRecord, unfolded: [i64; PAGE_KINDS]) -> Held {
        let bytes = |kind: usize| {
            (record.resident_pages[kind] + unfolded[kind]).max(0) as u64 * self.page_bytes
        };
        let has = |flag| record.flags & flag != 0;
        let mut held = Held {
            virtual_bytes: record.virtual_pages * self.page_bytes,
            resident_anon: bytes(ANON),
            resident_file: bytes(FILE),
            resident_shmem: bytes(SHMEM),
            swap: bytes(SWAP),
            page_tables: record.page_table_bytes,
            locked: record.locked_pages * self.page_bytes,
            hugetlb: has(held_flags::HAS_HUGETLB).then_some(record.hugetlb_pages * self.page_bytes),
            high_water: HighWater::default(),
            owner: (record.owner_tgid != 0).then_some(ProcessId {
                pid: record.owner_tgid,
                start_time_ns: record.owner_start_ns,
            }),
        };
        // The kernel moves its marks when something shrinks, not when it grows.
        let mark = |pages: u64, now: u64| (pages * self.page_bytes).max(now);
        held.high_water = HighWater {
            resident: mark(record.resident_high_water_pages, held.resident()),
            virtual_bytes: mark(record.virtual_high_water_pages, held.virtual_bytes),
        };
        held
    }

    fn totals(&self, tracked: &TrackedRecord) -> Totals {
        Totals {
            allocations: tracked.allocations,
            allocated_bytes: tracked.allocated_pages * self.page_bytes,
            deallocations: tracked.deallocations,
            deallocated_bytes: tracked.deallocated_pages * self.page_bytes,
            ..Totals::default()
        }
    }

    fn gauges(&self, held: Option<Held>, tracked: Option<&TrackedRecord>) -> Gauges {
        let peak = |follows: bool, now: u64, of: fn(&TrackedRecord) -> &PeakRecord| {
            let told = tracked.map_or(0, |tracked| self.peak(of(tracked)));
            (follows && held.is_some()).then_some(told.max(now))
        };
        let now = held.unwrap_or_default();
        Gauges {
            held,
            resident_peak_bytes: peak(self.tracks_resident, now.resident(), |t| &t.resident_set),
            virtual_peak_bytes: peak(self.tracks_space, now.virtual_bytes, |t| &t.virtual_space),
            follows_resident: self.tracks_resident,
            follows_virtual: self.tracks_space,
            ..Gauges::default()
        }
    }

    /// Processes in ascending order of id.
    pub(super) fn decode(&self, records: Records<'_>) -> Result<Vec<Reading<Totals>>> {
        let mut processes: Vec<Reading<Totals>> = Vec::new();
        let mut tasks: Vec<TaskTotals<Totals>> = Vec::new();
        // A thread may come before the leader of its process: put together at the end.
        let mut unfolded: Vec<(ProcessId, [i32; PAGE_KINDS])> = Vec::new();
        let mut held: Vec<&HeldRecord> = Vec::new();
        let mut tracked: Vec<&TrackedRecord> = Vec::new();
        for record in records {
            match record {
                (RECORD_PROCESS, record) => {
                    let record: &ProcessRecord = cast(record)?;
                    let id = record.about.process();
                    let (own, dead) = faults(&record.faults);
                    tasks.push(TaskTotals { process: id, is_leader: true, own, dead });
                    unfolded.push((id, record.unfolded_pages));
                    let oom_kills = u64::from(record.flags & OOM_VICTIM);
                    processes.push(Reading {
                        id,
                        info: record.about.info(),
                        totals: Totals { oom_kills, ..Totals::default() },
                        gauges: Gauges::default(),
                    });
                }
                (RECORD_THREAD, record) => {
                    let record: &ThreadRecord = cast(record)?;
                    let (process, (own, dead)) = (record.process(), faults(&record.faults));
                    tasks.push(TaskTotals { process, is_leader: false, own, dead });
                    unfolded.push((process, record.unfolded_pages));
                }
                (RECORD_HELD, record) => held.push(cast(record)?),
                (RECORD_TRACKED, record) => tracked.push(cast(record)?),
                _ => return Err(invalid("of unknown kind")),
            }
        }
        sum_up(&mut processes, tasks.into_iter());
        let ids: Vec<_> = processes.iter().map(|process| process.id).collect();
        let mut parts = vec![Parts::default(); processes.len()];
        let mut places = Places { ids: &ids, next: 0 };
        for (id, pages) in unfolded {
            if let Some(place) = places.of(id) {
                for (sum, pages) in parts[place].unfolded.iter_mut().zip(pages) {
                    *sum += i64::from(pages);
                }
            }
        }
        for record in held {
            if let Some(place) = places.of(record.process()) {
                parts[place].held.get_or_insert(record);
            }
        }
        for record in tracked {
            if let Some(place) = places.of(record.process()) {
                parts[place].tracked = Some(record);
            }
        }
        share_unfolded(&ids, &mut parts);
        for (process, parts) in processes.iter_mut().zip(parts) {
            let held = parts.held.map(|held| self.held(held, parts.unfolded));
            // What is no thread of the kernel and has no address space is a zombie: it
            // holds nothing.
            let held = held.or((!process.info.kernel_thread).then(Held::default));
            process.gauges = self.gauges(held, parts.tracked);
            process.gauges.changing =
                parts.held.is_some_and(|held| held.flags & held_flags::CHANGING != 0);
            if let Some(tracked) = parts.tracked {
                process.totals = process.totals.plus(&self.totals(tracked));
            }
        }
        Ok(processes)
    }

    /// The final record of a process.
    pub(super) fn ended(&self, record: &EndedRecord) -> Reading<Totals> {
        let id = record.about.process();
        let mark = |pages: u64| pages * self.page_bytes;
        let held = Held {
            high_water: HighWater {
                resident: mark(record.resident_high_water_pages),
                virtual_bytes: mark(record.virtual_high_water_pages),
            },
            ..Held::default()
        };
        let tracked = Some(&record.tracked).filter(|tracked| tracked.process() == id);
        let (own, dead) = faults(&record.faults);
        let mut totals = own.plus(&dead);
        totals.oom_kills = u64::from(record.flags & OOM_VICTIM);
        if let Some(tracked) = tracked {
            totals = totals.plus(&self.totals(tracked));
        }
        let mut gauges = self.gauges(Some(held), tracked);
        // It ended after the reset that is being read began: both windows' are its own.
        if let Some(tracked) = tracked.filter(|tracked| tracked.resident_set.epoch > self.last_epoch) {
            let late = self.tracks_resident.then_some(mark(tracked.resident_set.pages));
            gauges.resident_peak_bytes = gauges.resident_peak_bytes.max(late);
        }
        Reading { id, info: record.about.info(), totals, gauges }
    }

    /// A process between its exit and its release.
    pub(super) fn ending(&self, record: &EndedRecord) -> Ending<Totals> {
        Ending { ended_ns: record.ended_ns, last: self.ended(record) }
    }

    /// What one CPU folded of the processes that found no room.
    pub(super) fn folded(&self, record: &FoldedRecord) -> Folded<Totals> {
        let totals = Totals {
            minor_faults: record.minor_faults,
            major_faults: record.major_faults,
            allocations: record.allocations,
            allocated_bytes: record.allocated_pages * self.page_bytes,
            deallocations: record.deallocations,
            deallocated_bytes: record.deallocated_pages * self.page_bytes,
            oom_kills: record.oom_kills,
        };
        Folded { processes: record.processes, totals }
    }
}

/// What belongs to a process, collected from several records.
#[derive(Clone, Default)]
struct Parts<'a> {
    held: Option<&'a HeldRecord>,
    tracked: Option<&'a TrackedRecord>,
    unfolded: [i64; PAGE_KINDS],
}

/// Processes that share an address space have handed in too little each: all of it is
/// held by all of them.
fn share_unfolded(ids: &[ProcessId], parts: &mut [Parts<'_>]) {
    let owner = |part: &Parts<'_>| {
        part.held.map(|held| ProcessId {
            pid: held.owner_tgid,
            start_time_ns: held.owner_start_ns,
        })
    };
    let guests: Vec<(usize, usize)> = (parts.iter().zip(ids).enumerate())
        .filter_map(|(guest, (part, id))| {
            let owner = owner(part).filter(|owner| owner != id)?;
            Some((guest, ids.binary_search(&owner).ok()?))
        })
        .collect();
    let add = |to: &mut [i64; PAGE_KINDS], from: [i64; PAGE_KINDS]| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    };
    for &(guest, owner) in &guests {
        let pages = parts[guest].unfolded;
        add(&mut parts[owner].unfolded, pages);
    }
    for &(guest, owner) in &guests {
        parts[guest].unfolded = parts[owner].unfolded;
    }
}

/// Finds processes in a sorted list, quickly if they are asked for in its order.
struct Places<'a> {
    ids: &'a [ProcessId],
    next: usize,
}

impl Places<'_> {
    fn of(&mut self, id: ProcessId) -> Option<usize> {
        let place = match self.ids.get(self.next) {
            Some(next) if *next == id => self.next,
            _ => self.ids.binary_search(&id).ok()?,
        };
        self.next = place + 1;
        Some(place)
    }
}

/// Of a task itself, and of the dead threads of its process.
fn faults(record: &super::record::FaultsRecord) -> (Totals, Totals) {
    let totals = |minor_faults, major_faults| Totals {
        minor_faults,
        major_faults,
        ..Totals::default()
    };
    (totals(record.minor, record.major), totals(record.dead_minor, record.dead_major))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::{
        super::record::{FaultsRecord, held_flags},
        *,
    };
    use crate::{
        records::filled,
        task::{RecordHead, TaskAbout},
    };

    const STREAM: u16 = 3;
    const EPOCH: u64 = 7;
    const CONTEXT: Context =
        Context { page_bytes: 4096, first_epoch: EPOCH, last_epoch: EPOCH, tracks_resident: true, tracks_space: true };

    fn head<T>(kind: u16) -> RecordHead {
        RecordHead { kind, stream: STREAM, size: size_of::<T>() as u32 }
    }

    fn process(tgid: u32, minor: u64, dead_minor: u64) -> ProcessRecord {
        ProcessRecord {
            head: head::<ProcessRecord>(RECORD_PROCESS),
            about: TaskAbout { tgid, tid: tgid, process_start_ns: 1000, ..TaskAbout::zeroed() },
            faults: FaultsRecord { minor, dead_minor, ..FaultsRecord::zeroed() },
            ..ProcessRecord::zeroed()
        }
    }

    fn thread(tgid: u32, minor: u64, dead_minor: u64, unfolded: i32) -> ThreadRecord {
        ThreadRecord {
            head: head::<ThreadRecord>(RECORD_THREAD),
            process_start_ns: 1000,
            tgid,
            tid: 99,
            faults: FaultsRecord { minor, dead_minor, ..FaultsRecord::zeroed() },
            unfolded_pages: [0, unfolded, 0, 0],
        }
    }

    fn held(tgid: u32, anon: i64) -> HeldRecord {
        HeldRecord {
            head: head::<HeldRecord>(RECORD_HELD),
            process_start_ns: 1000,
            tgid,
            virtual_pages: 50,
            virtual_high_water_pages: 60,
            resident_pages: [1, anon, 2, 3],
            resident_high_water_pages: 20,
            page_table_bytes: 777,
            locked_pages: 4,
            hugetlb_pages: 5,
            owner_start_ns: 1000,
            owner_tgid: tgid,
            ..HeldRecord::zeroed()
        }
    }

    fn tracked(tgid: u32, epoch: u64, pages: u64, previous_pages: u64) -> TrackedRecord {
        TrackedRecord {
            head: head::<TrackedRecord>(RECORD_TRACKED),
            process_start_ns: 1000,
            tgid,
            resident_set: PeakRecord { epoch, pages, previous_pages },
            allocations: 1,
            allocated_pages: 2,
            deallocations: 3,
            deallocated_pages: 4,
            ..TrackedRecord::zeroed()
        }
    }

    fn decode(records: &[&[u8]]) -> Vec<Reading<Totals>> {
        CONTEXT.decode(filled(&records.concat()).unwrap().of(STREAM)).unwrap()
    }

    fn id(pid: u32) -> ProcessId {
        ProcessId { pid, start_time_ns: 1000 }
    }

    use bytemuck::bytes_of as bytes;

    #[test]
    fn every_figure_is_its_own() {
        let record = HeldRecord { flags: held_flags::HAS_HUGETLB, ..held(5, 10) };
        let rows = decode(&[bytes(&process(5, 11, 100)), bytes(&record), bytes(&tracked(5, EPOCH, 0, 0))]);
        assert_eq!(
            rows[0].gauges.held,
            Some(Held {
                virtual_bytes: 50 << 12,
                resident_file: 1 << 12,
                resident_anon: 10 << 12,
                swap: 2 << 12,
                resident_shmem: 3 << 12,
                page_tables: 777,
                locked: 4 << 12,
                hugetlb: Some(5 << 12),
                high_water: HighWater { resident: 20 << 12, virtual_bytes: 60 << 12 },
                owner: Some(id(5)),
            })
        );
        assert_eq!(
            rows[0].totals,
            Totals {
                minor_faults: 111,
                allocations: 1,
                allocated_bytes: 2 << 12,
                deallocations: 3,
                deallocated_bytes: 4 << 12,
                ..Totals::default()
            }
        );
    }

    #[test]
    fn what_threads_have_not_handed_in_is_held_too_wherever_they_come() {
        let rows = decode(&[
            bytes(&thread(5, 1, 0, 4)),
            bytes(&process(5, 10, 0)),
            bytes(&held(5, 10)),
            bytes(&thread(5, 2, 0, -3)),
        ]);
        assert_eq!(rows[0].gauges.held.unwrap().resident_anon, 11 << 12);
        assert_eq!(rows[0].totals.minor_faults, 13);
    }

    #[test]
    fn those_that_share_an_address_space_hold_the_same() {
        let guest = HeldRecord { owner_tgid: 5, ..held(6, 10) };
        let mut own = process(5, 0, 0);
        own.unfolded_pages[ANON] = 2;
        let mut other = process(6, 0, 0);
        other.unfolded_pages[ANON] = 3;
        let rows = decode(&[bytes(&own), bytes(&held(5, 10)), bytes(&other), bytes(&guest)]);
        let anon: Vec<_> = rows.iter().map(|row| row.gauges.held.unwrap().resident_anon).collect();
        assert_eq!(anon, [15 << 12, 15 << 12]);
        assert_eq!(rows[1].gauges.held.unwrap().owner, Some(id(5)));
    }

    #[test]
    fn a_leader_that_is_gone_leaves_it_to_the_first_thread_to_tell() {
        let rows = decode(&[
            bytes(&process(5, 0, 0)),
            bytes(&thread(5, 0, 0, 0)),
            bytes(&held(5, 10)),
            bytes(&held(5, 12)),
        ]);
        assert_eq!(rows[0].gauges.held.unwrap().resident_anon, 10 << 12);
    }

    #[test]
    fn a_zombie_holds_nothing_and_a_thread_of_the_kernel_has_none() {
        let mut kernel = process(2, 0, 0);
        kernel.about.flags = 1;
        let rows = decode(&[bytes(&kernel), bytes(&process(5, 0, 0))]);
        assert_eq!((rows[0].gauges.held, rows[0].gauges.resident_peak_bytes), (None, None));
        assert_eq!(rows[1].gauges.held, Some(Held::default()));
        assert_eq!(rows[1].gauges.resident_peak_bytes, Some(0));
    }

    /// What is told of a process that holds 16 pages and whose mark stood at 20 when
    /// the window began.
    fn peak(epoch: u64, pages: u64, previous_pages: u64, mark: u64) -> u64 {
        let rows = decode(&[bytes(&process(5, 0, 0)), bytes(&held(5, 12))]);
        let mut before = Totals::follow(&Gauges::default(), rows[0].gauges.clone());
        Totals::rebase(&mut before);
        let record = HeldRecord { resident_high_water_pages: mark, ..held(5, 12) };
        let rows = decode(&[
            bytes(&process(5, 0, 0)),
            bytes(&record),
            bytes(&tracked(5, epoch, pages, previous_pages)),
        ]);
        Totals::follow(&before, rows[0].gauges.clone()).resident_peak_bytes.unwrap() >> 12
    }

    #[test]
    fn a_peak_is_of_its_window() {
        assert_eq!(peak(EPOCH, 18, 99, 20), 18);
        assert_eq!(peak(EPOCH, 3, 99, 20), 16, "never less than what is held");
        assert_eq!(peak(EPOCH + 1, 99, 17, 20), 17, "the next window has begun");
        assert_eq!(peak(EPOCH - 1, 99, 98, 20), 16, "nothing happened in this one");
        assert_eq!(peak(EPOCH, 18, 0, 25), 25, "the mark has moved");
        assert_eq!(peak(EPOCH, 3, 0, 17), 17, "exec has begun a new one");
    }

    #[test]
    fn a_window_that_a_failed_reset_went_through_has_its_epochs() {
        let context = Context { first_epoch: EPOCH, last_epoch: EPOCH + 1, ..CONTEXT };
        let peak = |epoch, pages, previous_pages| {
            context.peak(&PeakRecord { epoch, pages, previous_pages }) >> 12
        };
        assert_eq!(peak(EPOCH, 18, 99), 18, "nothing happened since the reset that failed");
        assert_eq!(peak(EPOCH + 1, 17, 18), 18);
        assert_eq!(peak(EPOCH + 1, 19, 18), 19);
        assert_eq!(peak(EPOCH + 2, 99, 17), 17, "the next window has begun");
        assert_eq!(peak(EPOCH - 1, 99, 98), 0, "nothing happened in this one");
    }

    #[test]
    fn a_peak_that_was_told_stays_until_the_window_ends() {
        let gauges = |pages| {
            let rows = decode(&[
                bytes(&process(5, 0, 0)),
                bytes(&held(5, 12)),
                bytes(&tracked(5, EPOCH, pages, 0)),
            ]);
            rows[0].gauges.clone()
        };
        let first = Totals::follow(&Gauges::default(), gauges(90));
        let mut second = Totals::follow(&first, gauges(30));
        assert_eq!(second.resident_peak_bytes, Some(90 << 12));
        Totals::rebase(&mut second);
        assert_eq!(second.resident_peak_bytes, Some(16 << 12));
    }

    #[test]
    fn one_whose_address_space_is_being_replaced_keeps_what_was_told() {
        let rows = |flags, anon| {
            let record = HeldRecord { flags, ..held(5, anon) };
            decode(&[bytes(&process(5, 0, 0)), bytes(&record)])[0].gauges.clone()
        };
        let now = Totals::follow(&rows(0, 10), rows(held_flags::CHANGING, 500));
        assert_eq!(now.held.unwrap().resident_anon, 10 << 12);
    }

    #[test]
    fn the_final_record_has_the_peak_and_holds_nothing() {
        let record = EndedRecord {
            about: TaskAbout { tgid: 5, tid: 5, process_start_ns: 1000, ..TaskAbout::zeroed() },
            faults: FaultsRecord { minor: 1, major: 2, dead_minor: 30, dead_major: 40 },
            tracked: tracked(5, EPOCH, 33, 0),
            flags: OOM_VICTIM,
            ..EndedRecord::zeroed()
        };
        let row = CONTEXT.ended(&record);
        assert_eq!(row.gauges.held, Some(Held::default()));
        assert_eq!(row.gauges.resident_peak_bytes, Some(33 << 12));
        assert_eq!((row.totals.minor_faults, row.totals.major_faults), (31, 42));
        assert_eq!((row.totals.oom_kills, row.totals.allocations), (1, 1));
        // the record of another process with that pid
        let stranger =
            EndedRecord { tracked: TrackedRecord { process_start_ns: 1, ..record.tracked }, ..record };
        assert_eq!(CONTEXT.ended(&stranger).gauges.resident_peak_bytes, Some(0));
    }

    #[test]
    fn records_of_unexpected_kind_are_errors() {
        let unknown = RecordHead { kind: 9, stream: STREAM, size: 8 };
        assert!(CONTEXT.decode(filled(bytes(&unknown)).unwrap().of(STREAM)).is_err());
    }
}
