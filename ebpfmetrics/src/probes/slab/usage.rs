use std::ops::AddAssign;

use super::collector::SlabCounters;
use crate::snapshot::{Usage, add_known, known_since};

/// Slab allocations and frees of the kernel while a process ran, over a window. Usages can be
/// added.
///
/// Slab memory is *kernel* memory: file and socket structures, buffers of pipes and packets,
/// bookkeeping of page tables, names of files. The process did not request it and does not
/// own it; it was running when the memory was allocated or freed. What is allocated while one
/// process runs is often freed while another one or an interrupt does. The difference of
/// allocations and frees is therefore not what the process holds;
/// [`outstanding_bytes`](Self::outstanding_bytes) is.
///
/// Values that are `None` need
/// [`SlabProbeBuilder::address_map`](super::SlabProbeBuilder::address_map).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct SlabUsage {
    /// Objects allocated. `kmem:kmalloc`, `kmem:kmem_cache_alloc`, and before Linux 6.1 their
    /// `_node` forms. Bulk allocations (`kmem_cache_alloc_bulk`) have no tracepoint and are
    /// not included; failed allocations are not included either.
    #[doc(alias = "kmalloc")]
    pub allocations: u64,
    /// Bytes allocated: `bytes_alloc` of the tracepoints, the object size of the cache. It is
    /// at least the size that was requested.
    #[doc(alias = "bytes_alloc")]
    pub allocated_bytes: u64,
    /// Objects freed while it ran, whichever process they were allocated for. `kmem:kfree`
    /// and `kmem:kmem_cache_free`. `kfree(NULL)` is not included, and neither are bulk frees
    /// (`kmem_cache_free_bulk`, including most of `kfree_rcu`), which have no tracepoint.
    #[doc(alias = "kfree")]
    pub frees: u64,
    /// Bytes of these frees, except [`unknown_frees`](Self::unknown_frees).
    pub freed_bytes: Option<u64>,
    /// The part of `frees` whose objects are not known: allocated before the probe was
    /// loaded, in bulk, or when the address map was full.
    pub unknown_frees: Option<u64>,
    /// The part of `frees` whose objects were allocated while another process ran or a CPU
    /// was idle. The same free counts in [`freed_by_others`](Self::freed_by_others) of that
    /// process.
    pub cross_process_frees: Option<u64>,
    /// Bytes allocated on its behalf that were freed, by any process.
    pub released_bytes: Option<u64>,
    /// Objects allocated on its behalf that were freed while another process ran or a CPU was
    /// idle. Frees after its end count only in `cross_process_frees` of the other process.
    pub freed_by_others: Option<u64>,
    /// Objects allocated on its behalf that were freed without a tracepoint (in bulk). They
    /// are noticed when their addresses are allocated again; from then on their bytes are in
    /// `released_bytes`.
    pub unseen_frees: Option<u64>,
    /// Bytes allocated on its behalf when the address map had no room: part of
    /// `allocated_bytes`, but never of `released_bytes` or `outstanding_bytes`.
    pub untracked_bytes: Option<u64>,
    /// Bytes allocated on its behalf since the probe was loaded and not freed yet, by any
    /// process. For a process that has exited, what it left behind. A gauge: as of the end of
    /// the window, whenever the memory was allocated. `None` also for processes that are only
    /// counted together.
    ///
    /// It is too high by the frees without a tracepoint that are not noticed yet, see
    /// [`unseen_frees`](Self::unseen_frees).
    pub outstanding_bytes: Option<u64>,
}

impl SlabUsage {
    /// From counters and, if they are known, the outstanding bytes.
    pub(super) fn new(
        counters: &SlabCounters,
        outstanding_bytes: Option<u64>,
        has_addresses: bool,
    ) -> Self {
        let tracked = |value| has_addresses.then_some(value);
        Self {
            allocations: counters.allocations,
            allocated_bytes: counters.allocated_bytes,
            frees: counters.frees,
            freed_bytes: tracked(counters.freed_bytes),
            unknown_frees: tracked(counters.unknown_frees),
            cross_process_frees: tracked(counters.cross_process_frees),
            released_bytes: tracked(counters.released_bytes),
            freed_by_others: tracked(counters.freed_by_others),
            unseen_frees: tracked(counters.unseen_frees),
            untracked_bytes: tracked(counters.untracked_bytes),
            outstanding_bytes: outstanding_bytes.filter(|_| has_addresses),
        }
    }
}

impl AddAssign<&Self> for SlabUsage {
    fn add_assign(&mut self, more: &Self) {
        self.allocations += more.allocations;
        self.allocated_bytes += more.allocated_bytes;
        self.frees += more.frees;
        add_known(&mut self.freed_bytes, more.freed_bytes);
        add_known(&mut self.unknown_frees, more.unknown_frees);
        add_known(&mut self.cross_process_frees, more.cross_process_frees);
        add_known(&mut self.released_bytes, more.released_bytes);
        add_known(&mut self.freed_by_others, more.freed_by_others);
        add_known(&mut self.unseen_frees, more.unseen_frees);
        add_known(&mut self.untracked_bytes, more.untracked_bytes);
        add_known(&mut self.outstanding_bytes, more.outstanding_bytes);
    }
}

impl Usage for SlabUsage {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            allocations: self.allocations.saturating_sub(earlier.allocations),
            allocated_bytes: self.allocated_bytes.saturating_sub(earlier.allocated_bytes),
            frees: self.frees.saturating_sub(earlier.frees),
            freed_bytes: known_since(self.freed_bytes, earlier.freed_bytes),
            unknown_frees: known_since(self.unknown_frees, earlier.unknown_frees),
            cross_process_frees: known_since(self.cross_process_frees, earlier.cross_process_frees),
            released_bytes: known_since(self.released_bytes, earlier.released_bytes),
            freed_by_others: known_since(self.freed_by_others, earlier.freed_by_others),
            unseen_frees: known_since(self.unseen_frees, earlier.unseen_frees),
            untracked_bytes: known_since(self.untracked_bytes, earlier.untracked_bytes),
            outstanding_bytes: self.outstanding_bytes,
        }
    }
}

crate::usage_operators!(SlabUsage);

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(first: u64, has_addresses: bool) -> SlabUsage {
        let counters = SlabCounters::numbered(first);
        SlabUsage::new(&counters, Some(7), has_addresses)
    }

    #[test]
    fn values_that_need_the_address_map_are_unknown_without_it() {
        let plain = usage(100, false);
        assert_eq!((plain.allocations, plain.allocated_bytes, plain.frees), (100, 101, 102));
        let rest = SlabUsage { allocations: 0, allocated_bytes: 0, frees: 0, ..plain };
        assert_eq!(rest, SlabUsage::default());
        let mapped = usage(100, true);
        assert_eq!((mapped.freed_bytes, mapped.unknown_frees), (Some(103), Some(104)));
        assert_eq!((mapped.cross_process_frees, mapped.released_bytes), (Some(105), Some(106)));
        assert_eq!((mapped.freed_by_others, mapped.unseen_frees), (Some(107), Some(108)));
        assert_eq!((mapped.untracked_bytes, mapped.outstanding_bytes), (Some(109), Some(7)));
    }

    #[test]
    fn usages_add_up_and_gauges_are_not_subtracted() {
        let (one, two) = (usage(100, true), usage(1000, true));
        let sum = one + two;
        assert_eq!((sum.allocations, sum.untracked_bytes), (1100, Some(1118)));
        assert_eq!(sum.outstanding_bytes, Some(14));
        let since = sum.since(&one);
        assert_eq!(SlabUsage { outstanding_bytes: Some(7), ..since }, two);
        assert_eq!(since.outstanding_bytes, Some(14));
        let known = usage(1, true);
        assert_eq!((known + usage(1, false)).freed_bytes, known.freed_bytes);
        assert_eq!((usage(1, false) + known).freed_bytes, known.freed_bytes);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_keeps_every_value() {
        let mapped = usage(100, true);
        let json = serde_json::to_value(mapped).unwrap();
        assert_eq!((&json["freed_bytes"], &json["outstanding_bytes"]), (&103.into(), &7.into()));
        assert_eq!(serde_json::from_value::<SlabUsage>(json).unwrap(), mapped);
        assert_eq!(serde_json::from_str::<SlabUsage>("{}").unwrap(), SlabUsage::default());
    }
}
