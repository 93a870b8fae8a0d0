use super::{
    super::testing::{Count, KernelRead, TestSet, WalkBytes, end, id, read_at, settled},
    ending::RELEASE_TIMEOUT_NS,
    *,
};

mod histories;
mod unseen;

const SECOND: u64 = 1_000_000_000;

/// Counts of processes. Tasks are given as (tgid, tid, own, dead); processes start at
/// tgid * 1000.
fn sums(tasks: &[(u32, u32, u64, u64)]) -> Vec<(u32, u64)> {
    let mut set = TestSet::new(9);
    set.read(read_at(1_000_000, &[]));
    let mut walk = WalkBytes::at(2_000_000);
    for &(tgid, tid, own, dead) in tasks {
        let process = id(tgid, u64::from(tgid) * 1000);
        match tgid == tid {
            true => walk.leader(process),
            false => walk.thread(process, tid),
        }
        walk.count(own, dead);
    }
    set.read(KernelRead { walk, ..KernelRead::default() });
    set.rows().iter().map(|row| (row.id.pid, row.count)).collect()
}

fn with_ends(mut read: KernelRead, ends: &[End]) -> KernelRead {
    read.ends = ends.to_vec();
    read
}

fn with_overflow(mut read: KernelRead, processes: u64, count: u64) -> KernelRead {
    read.overflow = (processes, count);
    read
}

/// A set that has read a machine without processes at 1 ns.
fn begun(max_exited: usize) -> TestSet {
    let mut set = TestSet::new(max_exited);
    set.read(read_at(1, &[]));
    set.reset();
    set
}

#[test]
fn threads_and_dead_threads_add_up() {
    let tasks = [(10, 10, 5, 100), (11, 11, 7, 0), (10, 12, 20, 100), (10, 13, 30, 100)];
    assert_eq!(sums(&tasks), [(10, 155), (11, 7)]);
}

#[test]
fn a_thread_that_exits_during_the_walk_counts_once_at_most() {
    // 12 (20 ns) was read, exited, and its time joined the dead of 13.
    assert_eq!(sums(&[(10, 10, 5, 0), (10, 12, 20, 0), (10, 13, 30, 20)]), [(10, 55)]);
    // 12 exited before it was read.
    assert_eq!(sums(&[(10, 10, 5, 0), (10, 13, 30, 20)]), [(10, 50)]);
}

#[test]
fn a_thread_may_come_before_its_leader() {
    assert_eq!(sums(&[(10, 3, 20, 0), (5, 5, 1, 0), (10, 10, 5, 0)]), [(5, 1), (10, 25)]);
}

#[test]
fn a_thread_without_leader_is_left_out() {
    assert_eq!(sums(&[(10, 12, 20, 0)]), []);
    assert_eq!(sums(&[(9, 9, 1, 0), (10, 12, 20, 0), (11, 11, 2, 0)]), [(9, 1), (11, 2)]);
}

#[test]
fn counters_start_at_the_baseline_and_never_go_back() {
    let mut set = TestSet::new(9);
    set.read(read_at(100, &[(1, 10, 100), (5, 50, 7)]));
    set.reset();
    set.read(read_at(101, &[(1, 10, 130), (5, 50, 7), (9, 90, 4)]));
    assert_eq!(set.short_rows(), [(1, 10, 30, false), (5, 50, 0, false), (9, 90, 4, false)]);
    set.read(read_at(102, &[(1, 10, 120), (5, 50, 9), (9, 90, 4)]));
    assert_eq!(set.short_rows(), [(1, 10, 30, false), (5, 50, 2, false), (9, 90, 4, false)]);
    let totals: Vec<_> = set.rows().iter().map(|row| row.total).collect();
    assert_eq!(totals, [130, 9, 4]);
}

#[test]
fn a_process_that_comes_late_counts_from_then_on() {
    let table = ProcessTable::new(9, true, true);
    let mut set = TestSet::with(table, Count::default());
    set.read(read_at(10 * SECOND, &[(1, 10, 100)]));
    // 2 was there before; 3 had just begun to start
    let just = 10 * SECOND - 1_000_000;
    set.read(read_at(11 * SECOND, &[(1, 10, 110), (2, 20, 70), (3, just, 5)]));
    let counts = |set: &TestSet| set.rows().iter().map(|r| (r.id.pid, r.count)).collect::<Vec<_>>();
    assert_eq!(counts(&set), [(1, 110), (2, 0), (3, 5)]);
    set.read(read_at(12 * SECOND, &[(1, 10, 110), (2, 20, 75), (3, just, 5)]));
    assert_eq!(counts(&set)[1], (2, 5));
    // and ended before the next walk: it was there at the first, but not in the filter
    let start = 10 * SECOND + 500_000_000;
    let ends = [end(id(5, start), 1000, true)];
    set.read(with_ends(read_at(13 * SECOND, &[(1, 10, 110)]), &ends));
    assert_eq!(*set.short_rows().last().unwrap(), (5, start, 0, true));
}

#[test]
fn a_reused_pid_is_another_process() {
    let mut set = begun(9);
    set.read(read_at(50, &[(5, 50, 7)]));
    set.read(read_at(60, &[(5, 60, 1)]));
    assert_eq!(set.read(with_ends(read_at(61, &[(5, 60, 1)]), &[end(id(5, 50), 8, true)])), [5]);
    assert_eq!(set.short_rows(), [(5, 50, 8, true), (5, 60, 1, false)]);
}

#[test]
fn a_process_that_vanished_keeps_its_row_until_its_record_comes() {
    let mut set = begun(9);
    set.read(read_at(60, &[(5, 50, 7)]));
    set.read(read_at(61, &[]));
    assert_eq!(set.short_rows(), [(5, 50, 7, false)]);
    assert_eq!(set.reset(), [0_u32; 0]);
    set.read(with_ends(read_at(62, &[]), &[end(id(5, 50), 11, true)]));
    assert_eq!(set.short_rows(), [(5, 50, 4, true)]);
    assert_eq!(set.reset(), [5]);
    set.read(read_at(63, &[]));
    assert_eq!(set.short_rows(), []);
}

#[test]
fn a_process_between_two_reads_shows_in_full() {
    let mut set = begun(9);
    let ends = [end(id(5, 50), 11, true), end(id(4, 40), 1, true)];
    set.read(with_ends(read_at(60, &[]), &ends));
    assert_eq!(set.short_rows(), [(4, 40, 1, true), (5, 50, 11, true)]);
}

#[test]
fn a_process_that_ended_before_the_first_walk_is_not_of_the_window() {
    let mut set = TestSet::new(9);
    set.read(read_at(55, &[(4, 40, 7)]));
    set.reset();
    let ends = [4, 5, 6].map(|pid| end(id(pid, u64::from(pid) * 10), u64::from(pid) + 5, true));
    let gone = set.read(with_ends(read_at(70, &[]), &ends));
    assert_eq!(set.short_rows(), [(4, 40, 2, true), (6, 60, 11, true)]);
    assert_eq!(gone, [4, 5, 6]);
}

#[test]
fn past_the_bound_ended_processes_are_counted_together() {
    for (bound, listed, together) in [(0, 0, 3), (1, 1, 2), (2, 2, 1), (3, 3, 0), (100, 3, 0)] {
        let mut set = begun(bound);
        let ends = [1, 2, 3].map(|pid| end(id(pid, u64::from(pid) * 10), 100, false));
        set.read(with_ends(read_at(60, &[]), &ends));
        assert_eq!((set.rows().len(), set.overflow().0), (listed, together));
        // more comes at the release: of the same processes
        let ends = [1, 2, 3].map(|pid| end(id(pid, u64::from(pid) * 10), 110, true));
        set.read(with_ends(read_at(61, &[]), &ends));
        assert_eq!((set.rows().len(), set.overflow().0), (listed, together));
        let in_rows: u64 = set.rows().iter().map(|row| row.count).sum();
        assert_eq!(in_rows + set.overflow().1, 330);
    }
}

#[test]
fn the_overflow_of_the_kernel_does_not_count_known_processes_twice() {
    let mut set = TestSet::new(9);
    set.read(read_at(60, &[(5, 50, 1000)]));
    set.reset();
    set.read(read_at(61, &[(5, 50, 1010)]));
    // 5 ends at 1020, beside two that nobody saw, of 3 ns each
    set.read(with_overflow(read_at(62, &[]), 3, 1026));
    assert_eq!(set.short_rows(), [(5, 50, 10, false)]);
    assert_eq!(set.overflow(), (0, 0), "held back: it is not known who is in it");
    set.read(with_overflow(read_at(63 + RELEASE_TIMEOUT_NS, &[]), 3, 1026));
    assert_eq!(set.short_rows(), [(5, 50, 10, true)]);
    assert_eq!(set.overflow(), (2, 16));
    assert_eq!(set.missing(), 0);
    // the next window has neither, and nothing is left to match
    set.reset();
    set.read(with_overflow(read_at(64 + 2 * RELEASE_TIMEOUT_NS, &[]), 3, 1026));
    assert_eq!((set.short_rows(), set.overflow(), set.missing()), (vec![], (0, 0), 0));
}

/// The old rule matched any process that was gone with any growth of the sum: it subtracted
/// 1,010 from 3, and reported the 1,020 of the process again when they came.
#[test]
fn the_overflow_of_others_is_not_mistaken_for_that_of_a_known_process() {
    let mut set = begun(9);
    set.read(read_at(60, &[(5, 50, 1010)]));
    set.read(with_overflow(read_at(61, &[]), 1, 3));
    set.read(with_overflow(read_at(62, &[]), 2, 1023));
    set.read(with_overflow(read_at(63 + RELEASE_TIMEOUT_NS, &[]), 2, 1023));
    set.read(with_overflow(read_at(64 + 2 * RELEASE_TIMEOUT_NS, &[]), 2, 1023));
    assert_eq!(set.short_rows(), [(5, 50, 1010, true)]);
    assert_eq!((set.overflow(), set.missing()), ((1, 13), 0));
}

#[test]
fn overflow_without_known_processes_is_reported_at_once() {
    let mut set = begun(9);
    set.read(with_overflow(read_at(60, &[(4, 40, 1)]), 2, 30));
    assert_eq!(set.overflow(), (2, 30));
    set.read(with_overflow(read_at(61, &[(4, 40, 1)]), 3, 37));
    assert_eq!(set.overflow(), (3, 37));
    set.reset();
    assert_eq!(set.overflow(), (0, 0));
}

#[test]
fn a_process_that_still_has_a_record_is_not_in_the_overflow() {
    let mut set = begun(9);
    set.read(read_at(60, &[(5, 50, 10)]));
    let ends = [end(id(5, 50), 10, false)];
    set.read(with_overflow(with_ends(read_at(61, &[]), &ends), 1, 3));
    assert_eq!(set.short_rows(), [(5, 50, 10, true)]);
    assert_eq!(set.overflow(), (1, 3));
}

/// In the old design some probes had no records of some processes. Now every process has one
/// and is settled by it at once, or waits.
#[test]
fn a_process_ends_at_once_if_its_record_is_there() {
    let mut set = begun(9);
    set.read(read_at(61, &[(5, 50, 7), (6, 60, 8)]));
    set.read(with_ends(read_at(62, &[]), &[end(id(5, 50), 7, true)]));
    assert_eq!(set.short_rows(), [(5, 50, 7, true), (6, 60, 8, false)]);
    assert_eq!(set.missing(), 0);
}

/// Case 30: it was reported again, with all of its life, when the record came.
#[test]
fn a_record_that_comes_after_the_process_was_settled_is_not_reported_again() {
    let mut set = begun(9);
    set.read(read_at(60, &[(5, 50, 1000)]));
    set.read(read_at(61, &[]));
    set.read(read_at(62 + RELEASE_TIMEOUT_NS, &[]));
    assert_eq!(set.short_rows(), [(5, 50, 1000, true)]);
    set.reset();
    let late = [end(id(5, 50), 1001, true)];
    assert_eq!(set.read(with_ends(read_at(63 + RELEASE_TIMEOUT_NS, &[]), &late)), [5]);
    assert_eq!((set.short_rows(), set.overflow()), (vec![], (0, 0)));
}

/// Case 30: the timeout was counted from the exit.
#[test]
fn a_child_that_is_reaped_late_is_reported_once() {
    let mut set = begun(9);
    let zombie = [settled(&end(id(5, 50), 30, false), 31, 1)];
    let mut sum = 0;
    for now in [1, 2, 3, 4, 5].map(|second| second * SECOND) {
        set.read(with_ends(read_at(now, &[(5, 50, 31)]), &zombie));
        assert_eq!(set.missing(), 0);
        sum += set.rows().iter().map(|row| row.count).sum::<u64>();
        set.reset();
    }
    assert_eq!(sum, 31);
    set.read(with_ends(read_at(6 * SECOND, &[]), &[settled(&zombie[0], 31, 0)]));
    assert_eq!(set.short_rows(), [(5, 50, 0, true)], "the window of its end shows it");
    set.reset();
    set.read(with_ends(read_at(7 * SECOND, &[]), &[end(id(5, 50), 31, true)]));
    assert_eq!(set.short_rows(), []);
    assert_eq!(set.reset(), [5]);
}

/// Cases 01 and 28: its release comes later and is not waited for.
#[test]
fn a_process_that_has_just_ended_has_its_row_with_all_its_time() {
    let mut set = begun(9);
    let ends = [settled(&end(id(5, 50), 199, false), 200, 0)];
    set.read(with_ends(read_at(60, &[]), &ends));
    assert_eq!(set.short_rows(), [(5, 50, 200, true)]);
    assert_eq!(set.reset(), [0_u32; 0]);
    // the release says no more: no row, and it leaves
    let released = [end(id(5, 50), 200, true)];
    assert_eq!(set.read(with_ends(read_at(61, &[]), &released)), [5]);
    assert_eq!(set.short_rows(), []);
    assert_eq!(set.reset(), [5]);
    set.read(read_at(62, &[]));
    assert_eq!(set.short_rows(), []);
}

#[test]
fn what_a_release_adds_is_reported_in_its_window() {
    let mut set = begun(9);
    set.read(with_ends(read_at(60, &[]), &[end(id(5, 50), 199, false)]));
    assert_eq!(set.short_rows(), [(5, 50, 199, true)]);
    set.reset();
    set.read(with_ends(read_at(61, &[]), &[end(id(5, 50), 200, true)]));
    assert_eq!(set.short_rows(), [(5, 50, 1, true)]);
    assert_eq!(set.rows()[0].total, 200);
}

#[test]
fn a_process_that_began_after_the_walk_is_of_the_next_window() {
    let mut set = begun(9);
    let ends = [end(id(6, 61), 5, true)];
    assert_eq!(set.read(with_ends(read_at(60, &[(5, 60, 1), (7, 62, 1)]), &ends)), [0_u32; 0]);
    assert_eq!(set.short_rows(), [(5, 60, 1, false)]);
    set.reset();
    assert_eq!(set.read(with_ends(read_at(70, &[(5, 60, 1), (7, 62, 3)]), &ends)), [6]);
    assert_eq!(set.short_rows(), [(5, 60, 0, false), (6, 61, 5, true), (7, 62, 3, false)]);
}

#[test]
fn what_exceeds_a_window_is_reported_later_even_after_the_release() {
    let table = ProcessTable::new(9, false, true);
    let mut set = TestSet::with(table, Count { most_per_window: Some(10), ..Count::default() });
    set.read(read_at(1, &[]));
    set.reset();
    let ends = [end(id(5, 50), 25, true)];
    for (now, count, gone) in [(60, 10, vec![]), (61, 10, vec![]), (62, 5, vec![5])] {
        assert_eq!(set.read(with_ends(read_at(now, &[]), &ends)), gone);
        assert_eq!(set.short_rows(), [(5, 50, count, true)]);
        set.reset();
    }
    // also if the release is never seen
    let ends = [settled(&end(id(6, 62), 25, false), 25, 0)];
    let mut sum = 0;
    for now in [1, 2, 3, 4].map(|step| 100 + step * (RELEASE_TIMEOUT_NS + 1)) {
        set.read(with_ends(read_at(now, &[]), &ends));
        sum += set.rows().iter().map(|row| row.count).sum::<u64>();
        set.reset();
    }
    assert_eq!(sum, 25);
}

/// A process that was gone when the probe was added, and whose exit had not been seen, was
/// reported with all of its life.
#[test]
fn a_probe_that_is_added_does_not_report_what_was_before() {
    let mut set = TestSet::without_probe(9);
    set.read(read_at(60, &[(4, 40, 70), (5, 50, 100), (6, 60, 100)]));
    set.table.rebase(&mut []);
    set.add(Count::default());
    // 5 is gone without a record, 6 with one
    let six = end(id(6, 60), 100, false);
    set.read(with_ends(read_at(61, &[(4, 40, 80)]), std::slice::from_ref(&six)));
    set.begin_column();
    let ends = [end(id(5, 50), 100, true), end(id(6, 60), 103, true)];
    set.read(with_ends(read_at(62, &[(4, 40, 85)]), &ends));
    assert_eq!(set.short_rows(), [(4, 40, 5, false), (5, 50, 0, true), (6, 60, 3, true)]);
}

#[test]
fn creators_stay_and_information_is_kept() {
    let mut set = begun(9);
    let creator = |child: (u32, u64), parent: (u32, u64)| {
        let creator = ProcessKey::from(id(parent.0, parent.1));
        (id(child.0, child.1).into(), ProcessCreatorRecord { creator, cgroup_id: 1 })
    };
    let mut read = read_at(60, &[(5, 50, 1)]);
    read.creators = vec![creator((5, 50), (4, 40)), creator((6, 55), (5, 50))];
    read.ends = vec![end(id(6, 55), 1, false)];
    set.read(read);
    let creators = |set: &TestSet| {
        set.rows().iter().map(|row| row.info.creator.map(|it| it.pid)).collect::<Vec<_>>()
    };
    assert_eq!(creators(&set), [Some(4), Some(5)]);
    // the final record knows little
    let ends = [end(id(5, 50), 1, true), end(id(6, 55), 1, true)];
    set.read(with_ends(read_at(61, &[]), &ends));
    assert_eq!(creators(&set), [Some(4), Some(5)]);
    let row = &set.rows()[0];
    assert_eq!(
        (row.info.comm.as_bytes(), row.info.parent.map(|it| it.pid)),
        (&b"task"[..], Some(1))
    );
    set.reset();
    assert_eq!(set.table.info(id(5, 50)).creator.map(|it| it.pid), Some(4));
    assert!(set.table.info(id(99, 1)).exited);
}

#[test]
fn a_reader_that_does_not_see_all_waits_for_the_release() {
    let table = ProcessTable::new(9, false, false);
    let mut set = TestSet::with(table, Count::default());
    set.read(read_at(1, &[]));
    set.reset();
    let ends = [settled(&end(id(5, 50), 9, false), 9, 1)];
    set.read(with_ends(read_at(60, &[]), &ends));
    set.reset();
    assert_eq!(set.read(with_ends(read_at(61 + RELEASE_TIMEOUT_NS, &[]), &ends)), [0_u32; 0]);
    assert_eq!((set.short_rows(), set.missing()), (vec![], 0));
    let ends = [end(id(5, 50), 10, true)];
    assert_eq!(set.read(with_ends(read_at(62 + RELEASE_TIMEOUT_NS, &[]), &ends)), [5]);
    assert_eq!(set.short_rows(), [(5, 50, 1, true)]);
}

#[test]
fn an_invalid_record_leaves_the_counters() {
    let mut set = begun(9);
    set.read(read_at(60, &[(5, 50, 7)]));
    let mut wrong = read_at(61, &[(5, 50, 9)]);
    wrong
        .walk
        .push(&super::super::testing::head::<RecordHeadAlone>(super::super::testing::SECTION, 9));
    assert!(set.try_read(wrong).is_err());
    assert_eq!(set.short_rows(), [(5, 50, 7, false)]);
    set.read(read_at(62, &[(5, 50, 9)]));
    assert_eq!(set.short_rows(), [(5, 50, 9, false)]);
}

type RecordHeadAlone = crate::record::RecordHead;

#[test]
fn records_of_the_machine_reach_the_probe() {
    let mut set = begun(9);
    let mut read = read_at(60, &[(5, 50, 7)]);
    read.walk.system(33);
    read.walk.count(1, 0); // of 5, whose records go on
    set.read(read);
    assert_eq!(set.short_rows(), [(5, 50, 8, false)]);
}
