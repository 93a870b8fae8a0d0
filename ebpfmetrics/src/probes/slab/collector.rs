//! From the hooks' counters to slab usage.

use bytemuck::{Pod, Zeroable};

use super::{SlabProbeBuilder, SlabSystem, SlabUsage, options::Sizes};
use crate::{
    collect::{
        Loading, WalkPart,
        collector::{
            Collector, Ended, Reading, Readings, Record, Span, Task, WalkTimes, invalid_record,
        },
        counters,
    },
    error::{ErrorKind, Result},
    kernel::{Kernel, Requirements},
    object::Object,
    process::ProcessId,
    record::{
        ProcessOverflowRecord, SlabCountersRecord, SlabLoss, SlabProcessRecord, SlabTallyRecord,
        section_number, slab_kind, slab_size_source,
    },
    snapshot::{LossCause, LossScope, Source, Window},
};

/// The slab probe: what [`SlabProbe`](super::SlabProbe) measures, alone or in a set.
pub struct Slab {
    object: Object,
    sizes: Sizes,
    size_source: u32,
    has_node_tracepoints: bool,
    idle: SlabCounters,
    idle_baseline: SlabCounters,
}

/// Counters since the probe was loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SlabCounters {
    pub(super) allocations: u64,
    pub(super) allocated_bytes: u64,
    pub(super) frees: u64,
    pub(super) freed_bytes: u64,
    pub(super) unknown_frees: u64,
    pub(super) cross_process_frees: u64,
    pub(super) released_bytes: u64,
    pub(super) freed_by_others: u64,
    pub(super) unseen_frees: u64,
    pub(super) untracked_bytes: u64,
}

/// Memory allocated since the probe was loaded and not freed yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabGauges {
    outstanding_bytes: u64,
}

/// Programs and their tracepoints. Frees first: an object whose allocation is seen must not
/// be freed unseen.
const FREES: &[(&str, &str)] = &[("slab_kfree", "kfree"), ("slab_cache_free", "kmem_cache_free")];

/// The `node` forms were merged into the others in 6.1.
const ALLOCATIONS: &[(&str, &str)] = &[
    ("slab_kmalloc", "kmalloc"),
    ("slab_kmalloc_node", "kmalloc_node"),
    ("slab_cache_node", CACHE_NODE),
];

const CACHE: &str = "kmem_cache_alloc";
const CACHE_NODE: &str = "kmem_cache_alloc_node";

impl From<&SlabCountersRecord> for SlabCounters {
    fn from(record: &SlabCountersRecord) -> Self {
        Self {
            allocations: record.allocations,
            allocated_bytes: record.allocated_bytes,
            frees: record.frees,
            freed_bytes: record.freed_bytes,
            unknown_frees: record.unknown_frees,
            cross_process_frees: record.cross_process_frees,
            released_bytes: record.released_bytes,
            freed_by_others: record.freed_by_others,
            unseen_frees: record.unseen_frees,
            untracked_bytes: record.untracked_bytes,
        }
    }
}

impl SlabCounters {
    /// Bytes of the address map that are not freed.
    fn outstanding_bytes(&self) -> u64 {
        // Counters are read one after another: a free in between may be ahead.
        let gone = self.released_bytes.saturating_add(self.untracked_bytes);
        self.allocated_bytes.saturating_sub(gone)
    }

    #[cfg(test)]
    pub(super) fn numbered(first: u64) -> Self {
        let mut counters = Self::default();
        let fields = bytemuck::cast_slice_mut(bytemuck::bytes_of_mut(&mut counters));
        fields.iter_mut().zip(first..).for_each(|(field, value)| *field = value);
        counters
    }
}

fn reading(record: &SlabCountersRecord) -> Reading<Slab> {
    let counters = SlabCounters::from(record);
    let gauges = SlabGauges { outstanding_bytes: counters.outstanding_bytes() };
    Reading { counters, gauges }
}

fn process_record(record: Record<'_>) -> Result<Reading<Slab>> {
    if u32::from(record.kind) != slab_kind::PROCESS {
        return Err(invalid_record("of unknown kind"));
    }
    Ok(reading(&record.get::<SlabProcessRecord>()?.counters))
}

/// Sum of what happened on each CPU while it was idle.
fn sum_of_cpus(cpus: &[SlabTallyRecord]) -> SlabCounters {
    let of_cpu = cpus.iter().map(|cpu| SlabCounters::from(&cpu.counters));
    of_cpu.fold(SlabCounters::default(), |sum, cpu| counters::add(&sum, &cpu))
}

/// Where the tracepoints of this kernel have the size.
fn size_source_of(has_node_tracepoints: bool, kmalloc_arguments: Option<usize>) -> u32 {
    match (has_node_tracepoints, kmalloc_arguments) {
        (false, _) => slab_size_source::CACHE,
        (true, Some(..=5)) => slab_size_source::FOURTH_ARGUMENT,
        (true, _) => slab_size_source::FIFTH_ARGUMENT,
    }
}

impl Slab {
    fn has_addresses(&self) -> bool {
        self.sizes.addresses.is_some()
    }

    /// Attaches the typed program, which is cheaper, where the kernel accepts it: since 6.16
    /// the verifier does, and only it can say.
    fn attach_cache_alloc(&mut self, kernel: &Kernel) -> Result<()> {
        if self.size_source == slab_size_source::CACHE {
            match self.object.attach("slab_cache_btf", CACHE, kernel) {
                Err(error) if error.kind() == ErrorKind::VerifierRejected => {}
                result => return result,
            }
        }
        self.object.attach_raw_tracepoint("slab_cache_alloc", CACHE)
    }
}

impl Collector for Slab {
    const NAME: &'static str = "slab";
    const SECTION: Option<u16> = Some(section_number::SLAB as u16);

    type Options = SlabProbeBuilder;
    type Counters = SlabCounters;
    type Gauges = SlabGauges;
    type Usage = SlabUsage;
    type System = SlabSystem;
    type Loss = SlabLoss;

    fn requirements() -> Requirements {
        Requirements {
            tracepoints: ["kfree", "kmalloc", CACHE, "kmem_cache_free"].into(),
            iterators: ["task"].into(),
        }
    }

    fn load(options: SlabProbeBuilder, loading: &Loading<'_>) -> Result<Self> {
        let sizes = options.sizes()?;
        let kernel = loading.kernel;
        let has_node_tracepoints = kernel.has_tracepoint(CACHE_NODE);
        let size_source =
            size_source_of(has_node_tracepoints, kernel.tracepoint_arguments("kmalloc"));
        let object = loading
            .object(Self::NAME, ebpf_probes::SLAB)
            .override_global("slab_track_addresses", u8::from(sizes.addresses.is_some()))
            .override_global("slab_slot_mask", sizes.slots - 1)
            .override_global("size_source", size_source)
            .map_max_entries("slab_slots", sizes.slots)
            .map_max_entries("slab_overflow", sizes.overflow)
            .map_max_entries("slab_addresses", sizes.addresses.unwrap_or(1))
            .load(kernel)?;
        Ok(Self {
            object,
            sizes,
            size_source,
            has_node_tracepoints,
            idle: SlabCounters::default(),
            idle_baseline: SlabCounters::default(),
        })
    }

    fn attach(&mut self, kernel: &Kernel) -> Result<()> {
        for (program, tracepoint) in FREES.iter().chain(ALLOCATIONS) {
            if kernel.has_tracepoint(tracepoint) {
                self.object.attach_raw_tracepoint(program, tracepoint)?;
            }
        }
        self.attach_cache_alloc(kernel)
    }

    fn object(&self) -> Option<&Object> {
        Some(&self.object)
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        Some(&mut self.object)
    }

    fn walk_part(&self) -> Result<WalkPart> {
        Ok(WalkPart::built_in("slab_on")
            .with("slab_track_addresses", u8::from(self.has_addresses()))
            .with("slab_slot_mask", self.sizes.slots - 1)
            .sharing(self.object.map_handles()))
    }

    fn task_record(
        &mut self,
        _: &Task,
        record: Record<'_>,
        _: &WalkTimes,
        reading: &mut Reading<Self>,
    ) -> Result<()> {
        *reading = process_record(record)?;
        Ok(())
    }

    fn end_walk(&mut self, _: &WalkTimes, _: &mut Readings<'_, Self>) -> Result<()> {
        let now = sum_of_cpus(&self.object.per_cpu_element("slab_idle", 0)?);
        self.idle = counters::max(&self.idle, &now);
        Ok(())
    }

    /// The counters at the exit, or at the release once that is recorded: the kernel frees
    /// memory on behalf of the process in between.
    fn ended(&self, ended: &Ended<'_>) -> Option<Reading<Self>> {
        Some(reading(&ended.record.slab.counters))
    }

    fn overflow(record: &ProcessOverflowRecord) -> SlabCounters {
        SlabCounters::from(&record.slab)
    }

    fn usage(
        &self,
        _: ProcessId,
        counters: &SlabCounters,
        gauges: Option<&SlabGauges>,
        _: Span,
    ) -> SlabUsage {
        let outstanding_bytes = gauges.map(|gauges| gauges.outstanding_bytes);
        SlabUsage::new(counters, outstanding_bytes, self.has_addresses())
    }

    fn system(&self, _: Window) -> SlabSystem {
        let in_window = counters::subtract(&self.idle, &self.idle_baseline);
        let outstanding_bytes = Some(self.idle.outstanding_bytes());
        SlabSystem { idle: SlabUsage::new(&in_window, outstanding_bytes, self.has_addresses()) }
    }

    fn end_window(&mut self) {
        self.idle_baseline = self.idle;
    }

    #[cfg(feature = "serde")]
    fn json() -> Option<crate::snapshot::Json<SlabUsage, SlabSystem>> {
        Some(crate::snapshot::Json::new())
    }

    fn sources(&self) -> Vec<Source> {
        let bytes = match self.size_source {
            slab_size_source::CACHE => "bytes_alloc of kmalloc, cache->size of kmem_cache_alloc",
            _ => "bytes_alloc of kmalloc(_node), kmem_cache_alloc(_node)",
        };
        let allocations = match self.has_node_tracepoints {
            true => "raw_tp/kmalloc(_node), kmem_cache_alloc(_node)",
            false => "raw_tp/kmalloc, kmem_cache_alloc",
        };
        // Since 6.1 kmem_cache_free has the cache and with it a size, but kfree does not: the
        // bytes of only some frees would not be a useful figure.
        let mapped = |metric, source| match self.has_addresses() {
            true => Source::new(metric, source),
            false => Source::missing(metric),
        };
        vec![
            Source::new("allocations", allocations),
            Source::new("allocated_bytes", bytes),
            Source::new("frees", "raw_tp/kfree, kmem_cache_free"),
            mapped("freed_bytes", "bytes of the allocation, by its address"),
            mapped("unknown_frees", "frees of addresses that are not in the map"),
            mapped("cross_process_frees", "frees of what another process allocated"),
            mapped("released_bytes", "frees by any process, by the address of the allocation"),
            mapped("freed_by_others", "frees by another process"),
            mapped("unseen_frees", "allocations at an address that was not freed"),
            mapped("untracked_bytes", "allocations that the map had no room for"),
            mapped("outstanding_bytes", "allocated_bytes - released_bytes - untracked_bytes"),
            Source::new("idle", "current is the idle task: interrupts"),
            Source::new("exited", "tp_btf/sched_process_free"),
        ]
    }
}

impl LossCause for SlabLoss {
    const PROBE: &'static str = "slab";
    const ALL: &'static [Self] = Self::ALL;

    fn scope(self) -> LossScope {
        LossScope::Processes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordHead;

    fn counters_record(first: u64) -> SlabCountersRecord {
        bytemuck::cast(SlabCounters::numbered(first))
    }

    fn process(kind: u32, first: u64) -> SlabProcessRecord {
        let size = size_of::<SlabProcessRecord>() as u32;
        let head = RecordHead { section: section_number::SLAB as u16, kind: kind as u16, size };
        SlabProcessRecord { head, counters: counters_record(first) }
    }

    fn decode(record: &SlabProcessRecord) -> Result<Reading<Slab>> {
        process_record(Record { kind: record.head.kind, bytes: bytemuck::bytes_of(record) })
    }

    #[test]
    fn every_counter_has_its_own_field() {
        let reading = decode(&process(slab_kind::PROCESS, 20)).unwrap();
        assert_eq!(reading.counters, SlabCounters::numbered(20));
        let expected = SlabCounters {
            allocations: 20,
            allocated_bytes: 21,
            frees: 22,
            freed_bytes: 23,
            unknown_frees: 24,
            cross_process_frees: 25,
            released_bytes: 26,
            freed_by_others: 27,
            unseen_frees: 28,
            untracked_bytes: 29,
        };
        assert_eq!(reading.counters, expected);
    }

    #[test]
    fn overflow_is_taken_from_its_part_of_the_record() {
        let mut record = ProcessOverflowRecord::zeroed();
        record.processes = 3;
        record.slab = counters_record(30);
        assert_eq!(Slab::overflow(&record), SlabCounters::numbered(30));
    }

    #[test]
    fn outstanding_is_neither_released_nor_untracked() {
        let outstanding = |allocated_bytes, released_bytes, untracked_bytes| {
            let counters = SlabCounters {
                allocated_bytes,
                released_bytes,
                untracked_bytes,
                ..SlabCounters::default()
            };
            reading(&bytemuck::cast(counters)).gauges.outstanding_bytes
        };
        assert_eq!(outstanding(1000, 300, 20), 680);
        assert_eq!(outstanding(1000, 1000, 0), 0);
        assert_eq!(outstanding(1000, 1064, 0), 0);
    }

    #[test]
    fn idle_is_the_sum_over_cpus() {
        let cpu = |first| SlabTallyRecord {
            counters: counters_record(first),
            ..SlabTallyRecord::zeroed()
        };
        assert_eq!(sum_of_cpus(&[]), SlabCounters::default());
        let sum = sum_of_cpus(&[cpu(100), cpu(1000)]);
        assert_eq!((sum.allocations, sum.untracked_bytes), (1100, 1118));
    }

    #[test]
    fn records_of_unexpected_kind_and_size_are_errors() {
        assert!(decode(&process(9, 1)).is_err());
        let short = process(slab_kind::PROCESS, 1).head;
        let record = Record { kind: short.kind, bytes: bytemuck::bytes_of(&short) };
        assert!(process_record(record).is_err());
    }

    #[test]
    fn the_size_source_follows_the_tracepoints() {
        assert_eq!(size_source_of(true, Some(5)), slab_size_source::FOURTH_ARGUMENT);
        assert_eq!(size_source_of(true, Some(6)), slab_size_source::FIFTH_ARGUMENT);
        assert_eq!(size_source_of(true, None), slab_size_source::FIFTH_ARGUMENT);
        assert_eq!(size_source_of(false, Some(6)), slab_size_source::CACHE);
    }

    #[test]
    fn losses_have_stable_names() {
        let names: Vec<_> = SlabLoss::ALL.iter().map(AsRef::as_ref).collect();
        assert_eq!(names, ["process_table_full", "address_map_full", "address_map_busy"]);
    }
}
