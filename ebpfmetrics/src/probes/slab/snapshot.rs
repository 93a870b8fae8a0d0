use std::sync::Arc;

use super::decode::Totals;
use crate::{
    Losses, ProcessId, ProcessInfo, Provenance, Usage, Window,
    ledger::{Folded, Known},
};

/// Kernel slab memory that was allocated and freed on behalf of every process in a
/// window.
///
/// All counters are of [`window`](SlabSnapshot::window);
/// [`outstanding_bytes`](SlabProcess::outstanding_bytes) is as of its end.
/// Nothing is left out: each allocation and each free is in one of
/// [`processes`](SlabSnapshot::processes), [`folded`](SlabSnapshot::folded) and
/// [`idle`](SlabSnapshot::idle), or in [`losses`](SlabSnapshot::losses).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SlabSnapshot {
    /// The time that the counters are of.
    pub window: Window,
    /// Processes in ascending order of [`ProcessId`], exited ones included.
    /// Those that lived and died between two snapshots are there too.
    pub processes: Vec<SlabProcess>,
    /// Processes that exited beyond the bound of
    /// [`SlabProbeBuilder::max_exited`](super::SlabProbeBuilder::max_exited),
    /// together.
    pub folded: SlabFolded,
    /// What interrupts did that came while a CPU was idle: nobody's.
    pub idle: SlabUsage,
    /// What could not be counted.
    pub losses: Losses,
    /// Where the figures come from on this kernel.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub provenance: Arc<Provenance>,
}

impl SlabSnapshot {
    /// The sum over all processes, with those that have exited, and idle CPUs.
    pub fn total(&self) -> SlabUsage {
        let rows = self.processes.iter().map(|process| process.usage);
        rows.fold(self.folded.usage.plus(&self.idle), |sum, usage| sum.plus(&usage))
    }
}

crate::process_rows!(SlabSnapshot: SlabProcess: SlabUsage);

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SlabProcess {
    /// Who it is, for all time.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub id: ProcessId,
    /// Its name, its parent, whether it has exited and more.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: ProcessInfo,
    /// What the allocator did on its behalf in the window.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: SlabUsage,
    /// Allocated on its behalf since the probe was loaded and not freed yet, by
    /// whomever; of a process that has exited, what it left behind. With the
    /// address map, else `None`.
    ///
    /// Frees that no tracepoint tells (see [`SlabUsage::unseen_frees`]) are missed
    /// until the address is handed out again: until then this is too high.
    pub outstanding_bytes: Option<u64>,
}

impl SlabProcess {
    pub(super) fn new(known: &Known<Totals>, addresses: bool) -> Self {
        Self {
            id: known.id,
            info: known.info,
            usage: SlabUsage::new(&known.counters(), addresses),
            outstanding_bytes: addresses.then_some(known.gauges.bytes),
        }
    }
}

/// Processes that exited, counted together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SlabFolded {
    /// How many.
    pub processes: u64,
    /// What the allocator did on their behalf in the window.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub usage: SlabUsage,
}

impl SlabFolded {
    pub(super) fn new(folded: &Folded<Totals>, addresses: bool) -> Self {
        Self {
            processes: folded.processes,
            usage: SlabUsage::new(&folded.totals, addresses),
        }
    }
}

/// What the slab allocator of the kernel did while a process ran, in a window.
///
/// This is *kernel* memory: file and socket structures, buffers of pipes and
/// packets, page tables' bookkeeping, names of files. The process did not ask for
/// it and does not own it; it was running when it was allocated or freed. What is
/// allocated while one process runs is often freed while another does, or an
/// interrupt: the difference of allocations and frees is therefore not what the
/// process holds. [`outstanding_bytes`](SlabProcess::outstanding_bytes) is.
///
/// Figures that are `None` need
/// [`SlabProbeBuilder::address_map`](super::SlabProbeBuilder::address_map).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SlabUsage {
    /// Objects allocated. `kmem:kmalloc`, `kmem:kmem_cache_alloc`, and before 6.1
    /// their `_node` forms. Bulk allocations (`kmem_cache_alloc_bulk`) have no
    /// tracepoint and are not in here; failed ones neither.
    #[doc(alias = "kmalloc")]
    pub allocations: u64,
    /// Bytes allocated, as the allocator hands them out: `bytes_alloc` of the
    /// tracepoints, the size of the cache, which is more than was asked for.
    #[doc(alias = "bytes_alloc")]
    pub allocated_bytes: u64,
    /// Objects freed while it ran, whoever had them allocated. `kmem:kfree` and
    /// `kmem:kmem_cache_free`; `kfree(NULL)` does not count, nor do bulk frees
    /// (`kmem_cache_free_bulk`, and with it most of `kfree_rcu`), which have no
    /// tracepoint.
    #[doc(alias = "kfree")]
    pub frees: u64,
    /// The bytes of these frees, but for [`unknown_frees`](Self::unknown_frees).
    pub freed_bytes: Option<u64>,
    /// Of `frees`, those of which nothing is known: allocated before the probe was
    /// loaded, in bulk, or when the map was full.
    pub unknown_frees: Option<u64>,
    /// Of `frees`, those of what had been allocated while another process ran, or
    /// a CPU was idle. The same free counts in
    /// [`freed_by_others`](Self::freed_by_others) of that process.
    pub cross_process_frees: Option<u64>,
    /// Of what was allocated on its behalf, bytes that were freed, by whomever.
    pub released_bytes: Option<u64>,
    /// Of what was allocated on its behalf, objects freed while another process
    /// ran, or a CPU was idle. Those freed after its end are not counted anywhere
    /// but in the other's `cross_process_frees`.
    pub freed_by_others: Option<u64>,
    /// Of what was allocated on its behalf, objects that were freed without a
    /// tracepoint (in bulk), as far as that showed: their addresses were handed
    /// out again. Their bytes are in `released_bytes` from then on.
    pub unseen_frees: Option<u64>,
    /// Bytes allocated on its behalf when the map had no room: in
    /// `allocated_bytes`, but never in `released_bytes` or `outstanding_bytes`.
    pub untracked_bytes: Option<u64>,
}

impl SlabUsage {
    pub(super) fn new(totals: &Totals, addresses: bool) -> Self {
        let tracked = |figure| addresses.then_some(figure);
        Self {
            allocations: totals.allocations,
            allocated_bytes: totals.allocated_bytes,
            frees: totals.frees,
            freed_bytes: tracked(totals.freed_bytes),
            unknown_frees: tracked(totals.unknown_frees),
            cross_process_frees: tracked(totals.cross_process_frees),
            released_bytes: tracked(totals.released_bytes),
            freed_by_others: tracked(totals.freed_by_others),
            unseen_frees: tracked(totals.unseen_frees),
            untracked_bytes: tracked(totals.untracked_bytes),
        }
    }

    /// The sum of both; what only one of them has is taken as it is.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let both = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        Self {
            allocations: self.allocations + other.allocations,
            allocated_bytes: self.allocated_bytes + other.allocated_bytes,
            frees: self.frees + other.frees,
            freed_bytes: both(self.freed_bytes, other.freed_bytes),
            unknown_frees: both(self.unknown_frees, other.unknown_frees),
            cross_process_frees: both(self.cross_process_frees, other.cross_process_frees),
            released_bytes: both(self.released_bytes, other.released_bytes),
            freed_by_others: both(self.freed_by_others, other.freed_by_others),
            unseen_frees: both(self.unseen_frees, other.unseen_frees),
            untracked_bytes: both(self.untracked_bytes, other.untracked_bytes),
        }
    }
}

impl Usage for SlabUsage {
    fn plus(&self, other: &Self) -> Self {
        SlabUsage::plus(self, other)
    }

    fn since(&self, earlier: &Self) -> Self {
        let mapped = |now: Option<u64>, before: Option<u64>| {
            now.map(|now| now.saturating_sub(before.unwrap_or_default()))
        };
        Self {
            allocations: self.allocations.saturating_sub(earlier.allocations),
            allocated_bytes: self.allocated_bytes.saturating_sub(earlier.allocated_bytes),
            frees: self.frees.saturating_sub(earlier.frees),
            freed_bytes: mapped(self.freed_bytes, earlier.freed_bytes),
            unknown_frees: mapped(self.unknown_frees, earlier.unknown_frees),
            cross_process_frees: mapped(self.cross_process_frees, earlier.cross_process_frees),
            released_bytes: mapped(self.released_bytes, earlier.released_bytes),
            freed_by_others: mapped(self.freed_by_others, earlier.freed_by_others),
            unseen_frees: mapped(self.unseen_frees, earlier.unseen_frees),
            untracked_bytes: mapped(self.untracked_bytes, earlier.untracked_bytes),
        }
    }
}
