//! Processes whose exit or release is not seen.

use super::*;

#[test]
fn a_record_that_never_comes_is_replaced_and_counted() {
    let mut set = begun(9);
    let ends =
        [5, 6, 7].map(|pid| end(id(pid, u64::from(pid) * 10), [9, 9, 3][pid as usize - 5], false));
    set.read(read_at(71, &[(5, 50, 7), (6, 60, 7)]));
    let read = |now| with_ends(read_at(now, &[(6, 60, 8)]), &ends);
    assert_eq!(set.read(read(72)), [0_u32; 0]);
    assert_eq!(set.read(read(72 + RELEASE_TIMEOUT_NS)), [0_u32; 0]);
    assert_eq!(set.missing(), 0);
    // 6 is a zombie and stays
    assert_eq!(set.read(read(73 + RELEASE_TIMEOUT_NS)), [5, 7]);
    assert_eq!(set.short_rows(), [(5, 50, 9, true), (6, 60, 8, false), (7, 70, 3, true)]);
    assert_eq!(set.missing(), 2);
}

#[test]
fn a_release_that_is_not_seen_is_no_loss_if_the_counters_were_read_after_it() {
    let mut set = begun(9);
    let ends = [settled(&end(id(5, 50), 9, false), 11, 0)];
    set.read(with_ends(read_at(72, &[]), &ends));
    assert_eq!(set.read(with_ends(read_at(73 + RELEASE_TIMEOUT_NS, &[]), &ends)), [5]);
    assert_eq!((set.short_rows(), set.missing()), (vec![(5, 50, 11, true)], 0));
    // they are gone with the release; having been read once is enough
    let ends = [settled(&end(id(6, 80), 9, false), 11, 0)];
    let now = 100 + RELEASE_TIMEOUT_NS;
    set.read(with_ends(read_at(now, &[]), &ends));
    let ends = [end(id(6, 80), 9, false)];
    assert_eq!(set.read(with_ends(read_at(now + 1 + RELEASE_TIMEOUT_NS, &[]), &ends)), [6]);
    assert_eq!((set.rows()[1].count, set.missing()), (11, 0));
}

fn zombie_at(now_ns: u64, count: u64) -> KernelRead {
    let mut walk = WalkBytes::at(now_ns);
    walk.settled_zombie(id(5, 50));
    walk.count(count, 0);
    KernelRead { walk, ..KernelRead::default() }
}

#[test]
fn a_zombie_that_was_read_needs_no_release() {
    let ends = [end(id(5, 50), 6, false)];
    let late = 62 + RELEASE_TIMEOUT_NS;
    let mut set = begun(9);
    set.read(with_ends(zombie_at(60, 7), &ends));
    set.read(with_ends(read_at(61, &[]), &ends));
    assert_eq!(set.read(with_ends(read_at(late, &[]), &ends)), [5]);
    assert_eq!((set.short_rows(), set.missing()), (vec![(5, 50, 7, true)], 0));
    // a walk does not show all that the record of an exit has
    let mut set = begun(9);
    set.read(zombie_at(60, 7));
    set.read(read_at(61, &[]));
    set.read(read_at(late, &[]));
    assert_eq!((set.short_rows(), set.missing()), (vec![(5, 50, 7, true)], 1));
    // it is being released while it is read: these counters are not of a zombie
    let mut set = begun(9);
    set.read(with_ends(read_at(60, &[(5, 50, 7)]), &ends));
    let mut released = zombie_at(61, 9);
    released.walk.void();
    set.read(with_ends(released, &ends));
    set.read(with_ends(read_at(late, &[]), &ends));
    assert_eq!((set.short_rows(), set.missing()), (vec![(5, 50, 7, true)], 1));
}

#[test]
fn a_zombie_with_time_of_a_later_window_needs_its_release() {
    for (reads, missing) in [(1, 1), (2, 0)] {
        let table = ProcessTable::new(9, false, true);
        let mut set = TestSet::with(table, Count { most_per_window: Some(10), ..Count::default() });
        set.read(read_at(1, &[]));
        set.reset();
        let ends = [end(id(5, 50), 6, false)];
        let mut sum = 0;
        let mut read = |set: &mut TestSet, read: KernelRead| {
            set.read(with_ends(read, &ends));
            sum += set.rows().iter().map(|row| row.count).sum::<u64>();
        };
        for walk in 0..reads {
            read(&mut set, zombie_at(60 + walk, 15));
            set.reset();
        }
        read(&mut set, read_at(70, &[]));
        set.reset();
        read(&mut set, read_at(71 + RELEASE_TIMEOUT_NS, &[]));
        assert_eq!((sum, set.missing()), (if missing == 1 { 10 } else { 15 }, missing));
    }
}

#[test]
fn a_process_of_which_nothing_comes_ends_with_what_was_known() {
    let mut set = begun(9);
    set.read(read_at(60, &[(5, 50, 7)]));
    set.read(read_at(61, &[]));
    set.read(read_at(61 + RELEASE_TIMEOUT_NS, &[]));
    assert_eq!((set.short_rows(), set.missing()), (vec![(5, 50, 7, false)], 0));
    set.read(read_at(62 + RELEASE_TIMEOUT_NS, &[]));
    assert_eq!((set.short_rows(), set.missing()), (vec![(5, 50, 7, true)], 1));
}
