use bytemuck::{Zeroable, bytes_of};

use super::*;
use crate::record::RecordHead;

const EPOCH: u64 = 7;
const SPACE: u64 = 0xffff_0000;
const CONTEXT: Context = Context {
    page_bytes: 4096,
    first_epoch: EPOCH,
    last_epoch: EPOCH,
    tracks_resident: true,
    tracks_space: true,
};

fn id(pid: u32) -> ProcessId {
    ProcessId { pid, start_time_ns: 1000 }
}

fn held(tgid: u32, anon: i64) -> MemHeldRecord {
    MemHeldRecord {
        space: SPACE,
        execs: 3,
        virtual_pages: 50,
        virtual_high_water_pages: 60,
        resident_pages: [1, anon, 2, 3],
        resident_high_water_pages: 20,
        page_table_bytes: 777,
        locked_pages: 4,
        hugetlb_pages: 5,
        owner_start_ns: 1000,
        owner_tgid: tgid,
        ..MemHeldRecord::zeroed()
    }
}

fn tracked(tgid: u32, epoch: u64, pages: u64, previous_pages: u64) -> MemTrackedRecord {
    MemTrackedRecord {
        head: RecordHead::zeroed(),
        process_start_ns: 1000,
        tgid,
        space: SPACE,
        resident_set: MemPeakRecord { epoch, pages, previous_pages },
        allocations: 1,
        allocated_pages: 2,
        deallocations: 3,
        deallocated_pages: 4,
        ..MemTrackedRecord::zeroed()
    }
}

fn parts(held: MemHeldRecord, tracked: Option<MemTrackedRecord>) -> Parts {
    Parts { held: Some(held), tracked, ..Parts::default() }
}

fn gauges(parts: &Parts) -> MemGauges {
    CONTEXT.gauges(parts, None, false, false)
}

#[test]
fn every_figure_is_its_own() {
    let record = MemHeldRecord { flags: mem_held_flags::HAS_HUGETLB, ..held(5, 10) };
    let gauges = gauges(&parts(record, Some(tracked(5, EPOCH, 0, 0))));
    assert_eq!(
        gauges.held,
        Some(Held {
            virtual_bytes: 50 << 12,
            resident_file: 1 << 12,
            resident_anon: 10 << 12,
            swap: 2 << 12,
            resident_shmem: 3 << 12,
            page_tables: 777,
            locked: 4 << 12,
            hugetlb: Some(5 << 12),
            owner: Some(id(5)),
        })
    );
    let high_water = Marks { resident: Some(20 << 12), virtual_bytes: Some(60 << 12) };
    assert_eq!((gauges.high_water, gauges.execs), (high_water, Some(3)));
    assert_eq!(
        CONTEXT.tracked_counters(&tracked(5, EPOCH, 0, 0)),
        MemCounters {
            allocations: 1,
            allocated_bytes: 2 << 12,
            deallocations: 3,
            deallocated_bytes: 4 << 12,
            ..MemCounters::default()
        }
    );
}

fn task(minor: u64, unfolded: i32) -> MemTaskRecord {
    let faults = MemFaultsRecord { minor, ..MemFaultsRecord::zeroed() };
    MemTaskRecord { faults, unfolded_pages: [0, unfolded, 0, 0], ..MemTaskRecord::zeroed() }
}

fn added(records: &[(u32, &[u8])]) -> Parts {
    let mut parts = Parts::default();
    for (kind, bytes) in records {
        parts.add(Record { kind: *kind as u16, bytes }).unwrap();
    }
    parts
}

#[test]
fn what_threads_have_not_added_is_held_too_in_any_order() {
    let parts = added(&[
        (mem_kind::TASK, bytes_of(&task(1, 4))),
        (mem_kind::HELD, bytes_of(&held(5, 10))),
        (mem_kind::TASK, bytes_of(&task(2, -3))),
    ]);
    assert_eq!(gauges(&parts).held.unwrap().resident_anon, 11 << 12);
    let record = task(2, 0);
    let record = Record { kind: mem_kind::TASK as u16, bytes: bytes_of(&record) };
    assert_eq!(Parts::default().add(record).unwrap().unwrap().faults.minor, 2);
    // less than nothing is nothing
    let parts = Parts { unfolded: [-9, 0, 0, 0], ..parts };
    assert_eq!(gauges(&parts).held.unwrap().resident_file, 0);
}

#[test]
fn once_the_leader_has_exited_the_first_thread_counts() {
    let parts = added(&[
        (mem_kind::HELD, bytes_of(&held(5, 10))),
        (mem_kind::HELD, bytes_of(&held(5, 12))),
    ]);
    assert_eq!(gauges(&parts).held.unwrap().resident_anon, 10 << 12);
}

#[test]
fn records_of_unexpected_kind_or_size_are_errors() {
    let record = held(5, 10);
    let add = |kind, bytes| Parts::default().add(Record { kind, bytes }).map(|_| ());
    assert!(add(9, bytes_of(&record)).is_err());
    assert!(add(mem_kind::TRACKED as u16, bytes_of(&record)).is_err());
    assert!(add(mem_kind::HELD as u16, bytes_of(&record)).is_ok());
}

#[test]
fn those_that_share_an_address_space_hold_the_same_and_have_the_same_peak() {
    let ids = [id(5), id(6)];
    let owner =
        Parts { unfolded: [0, 2, 0, 0], ..parts(held(5, 10), Some(tracked(5, EPOCH, 99, 0))) };
    let guest =
        Parts { unfolded: [0, 3, 0, 0], ..parts(held(5, 10), Some(tracked(6, EPOCH, 0, 0))) };
    let mut parts = [owner, guest];
    let guests = guests(&ids, &parts);
    assert_eq!(guests, [(1, 0)]);
    share_unfolded(&guests, &mut parts);
    let owner = gauges(&parts[0]);
    let guest = CONTEXT.gauges(&parts[1], Some(&parts[0]), false, false);
    assert_eq!(owner.held.unwrap().resident_anon, 15 << 12);
    assert_eq!((guest.held, guest.peak), (owner.held, owner.peak));
    assert_eq!(guest.peak.resident, Some(99 << 12));
    // the mark of the address space may be older than the window
    assert!(guest.may_be_older && !owner.may_be_older);
    let guest = MemGauges::follow(&MemGauges::default(), guest);
    assert_eq!(guest.peak.resident, Some(99 << 12));
}

#[test]
fn events_of_another_address_space_are_not_of_this_one() {
    let before_exec = MemTrackedRecord { space: SPACE + 64, ..tracked(5, EPOCH, 99, 0) };
    assert_eq!(gauges(&parts(held(5, 10), Some(before_exec))).peak.resident, Some(14 << 12));
}

#[test]
fn a_zombie_holds_nothing_and_a_kernel_thread_has_none() {
    let kernel = CONTEXT.gauges(&Parts::default(), None, true, false);
    assert_eq!((kernel.held, kernel.peak), (None, Marks::default()));
    let zombie = gauges(&Parts::default());
    assert_eq!((zombie.held, zombie.peak), (Some(Held::default()), Marks::default()));
    // as it was before it ended
    let zombie = gauges(&Parts { tracked: Some(tracked(5, EPOCH, 33, 0)), ..Parts::default() });
    assert_eq!(zombie.peak.resident, Some(33 << 12));
    let before = gauges(&parts(held(5, 100), None));
    let zombie = MemGauges::follow(&before, gauges(&Parts::default()));
    assert_eq!(zombie.held, Some(Held::default()));
    assert_eq!((zombie.peak, zombie.high_water), (before.peak, before.high_water));
}

/// The peak of a process that holds 16 pages, whose mark stood at 20 when the window began.
fn peak(epoch: u64, pages: u64, previous_pages: u64, mark: u64) -> u64 {
    let mut before = gauges(&parts(held(5, 12), None));
    before.rebase();
    let record = MemHeldRecord { resident_high_water_pages: mark, ..held(5, 12) };
    let now = gauges(&parts(record, Some(tracked(5, epoch, pages, previous_pages))));
    MemGauges::follow(&before, now).peak.resident.unwrap() >> 12
}

#[test]
fn a_peak_is_of_its_window() {
    assert_eq!(peak(EPOCH, 18, 99, 20), 18);
    assert_eq!(peak(EPOCH, 3, 99, 20), 16, "never less than what is held");
    assert_eq!(peak(EPOCH + 1, 99, 17, 20), 17, "the next window has begun");
    assert_eq!(peak(EPOCH - 1, 99, 98, 20), 16, "nothing happened in this one");
    assert_eq!(peak(EPOCH, 18, 0, 25), 25, "the mark has moved");
}

#[test]
fn a_window_that_a_failed_reset_went_through_has_its_epochs() {
    let context = Context { first_epoch: EPOCH, last_epoch: EPOCH + 1, ..CONTEXT };
    let peak = |epoch, pages, previous_pages| {
        context.peak(&MemPeakRecord { epoch, pages, previous_pages }) >> 12
    };
    assert_eq!(peak(EPOCH, 18, 99), 18, "nothing happened since the reset that failed");
    assert_eq!(peak(EPOCH + 1, 17, 18), 18);
    assert_eq!(peak(EPOCH + 1, 19, 18), 19);
    assert_eq!(peak(EPOCH + 2, 99, 17), 17, "the next window has begun");
    assert_eq!(peak(EPOCH - 1, 99, 98), 0, "nothing happened in this one");
}

#[test]
fn the_final_record_has_the_peak_and_holds_nothing() {
    let record = MemEndedRecord {
        faults: MemFaultsRecord { minor: 1, major: 2, dead_minor: 30, dead_major: 40 },
        execs: 3,
        ..MemEndedRecord::zeroed()
    };
    let at_end =
        |tracked: Option<&MemTrackedRecord>| CONTEXT.gauges_at_end(&record, tracked, false);
    let gauges = at_end(Some(&tracked(5, EPOCH, 33, 0)));
    assert_eq!((gauges.held, gauges.execs), (Some(Held::default()), Some(3)));
    assert_eq!(gauges.peak.resident, Some(33 << 12));
    assert_eq!(gauges.high_water, Marks::default(), "not known is not 0");
    // after the reset that is being read: both windows are its own
    assert_eq!(at_end(Some(&tracked(5, EPOCH + 1, 44, 33))).peak.resident, Some(44 << 12));
    assert_eq!(at_end(Some(&tracked(5, EPOCH + 1, 22, 33))).peak.resident, Some(33 << 12));
    assert_eq!(at_end(None).peak, Marks::default());
    let (own, dead) = faults(&record.faults);
    assert_eq!((own.minor_faults, own.major_faults), (1, 2));
    assert_eq!((dead.minor_faults, dead.major_faults), (30, 40));
    // unless an exit was seen, nothing is known
    let none = CONTEXT.gauges_at_end(&MemEndedRecord::zeroed(), None, false);
    assert_eq!((none.execs, none.high_water), (None, Marks::default()));
}
