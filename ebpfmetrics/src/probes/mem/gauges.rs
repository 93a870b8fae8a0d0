//! What a process holds, and its peaks from walk to walk. Pure: no system access.

use crate::process::ProcessId;

/// What a process has beside counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemGauges {
    /// `None`: a kernel thread.
    pub(super) held: Option<Held>,
    /// Execs that led to the address space: with the same number it is the same. `None`: not
    /// known, no reason to think that it changed.
    pub(super) execs: Option<u64>,
    /// The highest in the window.
    pub(super) peak: Marks,
    /// The highest since exec.
    pub(super) high_water: Marks,
    /// As of the start of the window; nothing if the address space has begun since.
    pub(super) start: Marks,
    /// Whether events show peaks, so that without one there was none.
    pub(super) follows_resident: bool,
    pub(super) follows_virtual: bool,
    pub(super) from_procfs: bool,
    /// Marks of an address space seen for the first time may be older than the window.
    pub(super) may_be_older: bool,
    /// The kernel was changing it while it was read.
    pub(super) changing: bool,
    /// Read from a final record.
    pub(super) is_final: bool,
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
    pub(super) owner: Option<ProcessId>,
}

impl Held {
    pub(super) fn resident(&self) -> u64 {
        self.resident_anon + self.resident_file + self.resident_shmem
    }
}

/// The highest resident set and size of an address space, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) resident: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
}

impl Marks {
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            virtual_bytes: self.virtual_bytes.max(other.virtual_bytes),
        }
    }

    /// Marks that have moved since: what they show was reached since.
    fn moved_since(self, start: Self) -> Self {
        let moved = |now: Option<u64>, start: Option<u64>| now.filter(|_| now > start);
        Self {
            resident: moved(self.resident, start.resident),
            virtual_bytes: moved(self.virtual_bytes, start.virtual_bytes),
        }
    }

    fn is_below(self, other: Self) -> bool {
        self.resident < other.resident || self.virtual_bytes < other.virtual_bytes
    }
}

impl MemGauges {
    /// The gauges of a process after those of the previous reading.
    pub(super) fn follow(before: &Self, mut now: Self) -> Self {
        if now.changing && before.held.is_some() {
            return before.clone();
        }
        let is_first = before.held.is_none();
        let is_same = match (before.execs, now.execs) {
            (Some(before), Some(now)) => before == now,
            // the marks of /proc fall at exec alone
            _ => !(now.from_procfs && now.high_water.is_below(before.high_water)),
        };
        now.start = match (is_first, is_same) {
            (true, _) if now.may_be_older => now.high_water,
            (false, true) => before.start,
            _ => Marks::default(),
        };
        let moved = now.high_water.moved_since(now.start);
        if now.is_final {
            // the kernel may have taken the memory away before it noted its mark
            now.high_water = now.high_water.max(now.peak);
        }
        now.peak = now.peak.max(moved);
        if is_same && !is_first {
            now.peak = now.peak.max(before.peak);
            now.high_water = now.high_water.max(before.high_water);
            now.execs = now.execs.or(before.execs);
        }
        now
    }

    /// Starts a new window.
    pub(super) fn rebase(&mut self) {
        self.start = self.high_water;
        let held = self.held.filter(|_| !self.from_procfs);
        self.peak = Marks {
            resident: held.filter(|_| self.follows_resident).map(|held| held.resident()),
            virtual_bytes: held.filter(|_| self.follows_virtual).map(|held| held.virtual_bytes),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(resident: u64) -> Marks {
        Marks { resident: Some(resident), virtual_bytes: Some(10 * resident) }
    }

    fn gauges(execs: u64, resident: u64, peak: u64, high_water: u64) -> MemGauges {
        MemGauges {
            held: Some(Held {
                resident_anon: resident,
                virtual_bytes: 10 * resident,
                ..Held::default()
            }),
            execs: Some(execs),
            peak: marks(peak),
            high_water: marks(high_water),
            follows_resident: true,
            follows_virtual: true,
            ..MemGauges::default()
        }
    }

    fn at_end(execs: Option<u64>, peak: Marks, high_water: Marks) -> MemGauges {
        MemGauges {
            held: Some(Held::default()),
            execs,
            peak,
            high_water,
            is_final: true,
            ..gauges(0, 0, 0, 0)
        }
    }

    /// Gauges at the start of a window.
    fn begun(mut gauges: MemGauges) -> MemGauges {
        gauges.rebase();
        gauges
    }

    #[test]
    fn a_peak_stays_until_the_window_ends() {
        let first = MemGauges::follow(&begun(gauges(1, 16, 16, 90)), gauges(1, 16, 80, 90));
        let mut second = MemGauges::follow(&first, gauges(1, 16, 30, 90));
        assert_eq!(second.peak, marks(80));
        second.rebase();
        assert_eq!(second.peak, marks(16));
    }

    #[test]
    fn a_mark_that_moved_was_reached_in_the_window() {
        let peak =
            |mark| MemGauges::follow(&begun(gauges(1, 16, 16, 20)), gauges(1, 16, 18, mark)).peak;
        assert_eq!(peak(20), marks(18));
        assert_eq!(peak(25), marks(25));
    }

    #[test]
    fn peaks_of_another_address_space_do_not_carry_over() {
        let before = MemGauges::follow(&begun(gauges(1, 300, 300, 300)), gauges(1, 300, 310, 320));
        let now = MemGauges::follow(&before, gauges(2, 2, 3, 4));
        assert_eq!((now.peak, now.high_water), (marks(4), marks(4)));
        let ended = MemGauges::follow(&before, at_end(Some(2), marks(3), Marks::default()));
        assert_eq!((ended.peak, ended.high_water), (marks(3), marks(3)));
    }

    #[test]
    fn marks_of_one_seen_late_are_not_of_the_window() {
        let late = MemGauges { may_be_older: true, ..gauges(1, 5, 5, 99) };
        let now = MemGauges::follow(&MemGauges::default(), late.clone());
        assert_eq!((now.peak, now.high_water), (marks(5), marks(99)));
        let new = MemGauges { may_be_older: false, ..late };
        assert_eq!(MemGauges::follow(&MemGauges::default(), new).peak, marks(99));
    }

    #[test]
    fn one_whose_address_space_is_being_replaced_keeps_what_was_known() {
        let changing = MemGauges { changing: true, ..gauges(2, 500, 500, 500) };
        let before = gauges(1, 10, 10, 10);
        assert_eq!(MemGauges::follow(&before, changing.clone()), before);
        assert!(MemGauges::follow(&MemGauges::default(), changing).held.is_some());
    }

    #[test]
    fn marks_at_the_end_are_never_below_earlier_ones_and_never_zero_by_default() {
        let before = begun(gauges(1, 300, 300, 300));
        // the kernel had not noted a mark, or the record was lost
        for execs in [Some(1), None] {
            let ended = MemGauges::follow(&before, at_end(execs, marks(280), Marks::default()));
            assert_eq!(ended.high_water, marks(300));
            assert_eq!(ended.held, Some(Held::default()));
        }
        let ended = MemGauges::follow(&before, at_end(Some(1), marks(280), marks(310)));
        assert_eq!((ended.peak, ended.high_water), (marks(310), marks(310)));
        // never seen alive
        let none = MemGauges::default();
        let ended = MemGauges::follow(&none, at_end(Some(1), marks(280), Marks::default()));
        assert_eq!((ended.peak, ended.high_water), (marks(280), marks(280)));
        let ended = MemGauges::follow(&none, at_end(None, Marks::default(), Marks::default()));
        assert_eq!((ended.peak, ended.high_water), (Marks::default(), Marks::default()));
        // the same record again
        assert_eq!(MemGauges::follow(&ended, ended.clone()), ended);
    }

    #[test]
    fn without_events_only_marks_show_peaks() {
        let quiet = |resident, mark| MemGauges {
            peak: Marks::default(),
            follows_resident: false,
            follows_virtual: false,
            ..gauges(1, resident, 0, mark)
        };
        let before = begun(quiet(5, 10));
        assert_eq!(before.peak, Marks::default());
        assert_eq!(MemGauges::follow(&before, quiet(7, 10)).peak, Marks::default());
        assert_eq!(MemGauges::follow(&before, quiet(7, 11)).peak, marks(11));
    }
}
