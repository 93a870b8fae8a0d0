// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Kernel slab memory that is allocated and freed on behalf of each process: for
 * system calls, page faults and whatever else the kernel does while it runs.
 * Interrupts are charged to the process they interrupt, as the kernel has no
 * other name for them; what hits an idle CPU is counted apart.
 *
 * The hooks run inside of the allocator, so nothing here may allocate: all maps
 * are preallocated. They are raw tracepoints because the typed ones refuse
 * `const void *ptr` before 6.16 (1271a40eeafa "bpf: Allow access to const void
 * pointer arguments in tracing programs"); a run costs the same.
 *
 * An interrupt may come while a hook runs. Before 6.2 its own allocations are
 * then counted, all counters being atomic; since then the kernel skips a program
 * that is under way on the same CPU, and counts the skip for us to tell
 * (05b24ff9b2cf "bpf: Prevent bpf program recursion for raw tracepoint probes").
 */
#include "filter.h"
#include "compat_slab.h"
#include "slab/maps.h"

EBPFMETRICS_LICENSE;

/* What happened while a CPU was idle. Per-CPU; nested interrupts make it atomic adds. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct slab_tally_record);
} slab_idle SEC(".maps");

/*
 * What has been allocated and by which process, by address; sized by user space. An
 * address is in one hand at a time: entries have one writer.
 */
struct slab_address {
	u64 signal; /* 0: while a CPU was idle */
	u32 tgid;
	u32 born;
	u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, u64);
	__type(value, struct slab_address);
} slab_addresses SEC(".maps");

/*
 * The process that ran on a CPU when a hook asked last, and in the lowest bit whether it
 * is listed, which never changes: most events need no look into the list. One writer
 * each, whole words.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} asked_last SEC(".maps");

static __always_inline bool is_listed(u32 tgid, u64 start_ns)
{
	u64 process = (start_ns ^ (u64)tgid << 40) << 1, *last, *listed;
	bool is_it;
	u32 zero = 0;

	last = bpf_map_lookup_elem(&asked_last, &zero);
	if (last && (*last & ~1ULL) == process)
		return *last & 1;
	listed = bpf_map_lookup_elem(&filtered, &tgid);
	is_it = listed && *listed == start_ns;
	if (last)
		*last = process | is_it;
	return is_it;
}

/* Who runs now, by `rarely` as for FOLLOW(). */
static __always_inline bool slab_outside_filter(bool rarely, struct task_struct *task, u32 tgid)
{
	if (filter_mode == FILTER_ALL || !tgid)
		return false;
	if (filter_mode == FILTER_CGROUP)
		return !is_in_filter_cgroup(rarely, task);
	return !is_listed(tgid, FOLLOW(rarely, task, group_leader, start_boottime));
}

static __always_inline void slab_read_current(struct slab_process *process)
{
	if (has_current_task_btf()) {
		struct task_struct *task = (void *)bpf_get_current_task_btf();

		process->tgid = task->tgid;
		process->outside = slab_outside_filter(false, task, process->tgid);
		if (process->outside)
			return;
		process->signal = (u64)task->signal;
		if (slab_track_addresses)
			process->born = task->group_leader->start_boottime;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();

		process->tgid = bpf_get_current_pid_tgid() >> 32;
		process->outside = slab_outside_filter(true, task, process->tgid);
		if (process->outside)
			return;
		bpf_core_read(&process->signal, sizeof(process->signal), &task->signal);
		if (slab_track_addresses)
			process->born = BPF_CORE_READ(task, group_leader, start_boottime);
	}
	if (!process->tgid)
		process->signal = process->born = 0;
}

/*
 * Takes a free slot. 5.10 has no compare-and-swap for BPF: any process raises
 * `claims` to exactly one has won; if two raise it at once both lose, and both
 * are counted in `overflow`.
 */
static __always_inline bool claim(struct slab_slot *slot, const struct slab_process *process)
{
	if (slot->claims)
		return false;
	__sync_fetch_and_add(&slot->claims, 1);
	if (*(volatile u64 *)&slot->claims != 1) {
		__sync_fetch_and_add(&slot->claims, -1);
		return false;
	}
	slot->tally.born = process->born;
	*(volatile u32 *)&slot->tgid = process->tgid;
	*(volatile u64 *)&slot->signal = process->signal;
	return true;
}

static __noinline struct slab_tally_record *enter_overflow(const struct slab_process *process)
{
	struct slab_owner owner = {.signal = process->signal, .tgid = process->tgid};
	struct slab_tally_record *tally = bpf_map_lookup_elem(&slab_overflow, &owner);
	struct slab_tally_record none = {.born = process->born};

	if (tally)
		return tally;
	bpf_map_update_elem(&slab_overflow, &owner, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&slab_overflow, &owner);
}

/* Where to count what is done on behalf of somebody process runs. */
static __always_inline struct slab_tally_record *tally_of(const struct slab_process *process)
{
	u32 index = process->tgid & slab_slot_mask, zero = 0;
	struct slab_slot *slot;

	if (!process->tgid)
		return bpf_map_lookup_elem(&slab_idle, &zero);
	slot = bpf_map_lookup_elem(&slab_slots, &index);
	if (slot && (slab_holds(slot, process) || claim(slot, process)))
		return &slot->tally;
	return enter_overflow(process);
}

/* Where to count what happened to an allocation, if its process still lives. */
static __always_inline struct slab_tally_record *tally_of_allocator(const struct slab_process *process)
{
	u32 index = process->tgid & slab_slot_mask, zero = 0;
	struct slab_tally_record *tally;
	struct slab_slot *slot;

	if (!process->tgid)
		return bpf_map_lookup_elem(&slab_idle, &zero);
	slot = bpf_map_lookup_elem(&slab_slots, &index);
	if (slot && slab_holds(slot, process))
		tally = &slot->tally;
	else
		tally = slab_in_overflow(process);
	return tally && tally->born == process->born ? tally : NULL;
}

#define ADD(counter, amount) __sync_fetch_and_add(&(counter), amount)

/*
 * Notes process allocated what. If the address is there already, its free was not
 * seen: bulk frees have no tracepoint, and kfree_rcu() is one.
 */
static __noinline int remember(u64 address, u64 bytes, const struct slab_process *process)
{
	struct slab_address entry = {
	    .signal = process->signal,
	    .tgid = process->tgid,
	    .born = process->born,
	    .bytes = bytes,
	};
	struct slab_tally_record *tally;
	struct slab_address *before;
	int error;

	error = bpf_map_update_elem(&slab_addresses, &address, &entry, BPF_NOEXIST);
	if (!error)
		return 0;
	before = bpf_map_lookup_elem(&slab_addresses, &address);
	if (before) {
		struct slab_process allocator = {
		    .signal = before->signal,
		    .tgid = before->tgid,
		    .born = before->born,
		};

		tally = before->bytes ? tally_of_allocator(&allocator) : NULL;
		if (tally) {
			ADD(tally->counters.released_bytes, before->bytes);
			ADD(tally->counters.unseen_frees, 1);
		}
		*before = entry;
		return 0;
	}
	count_slab_loss(error == -E2BIG ? SLAB_LOSS_ADDRESS_MAP_FULL : SLAB_LOSS_ADDRESS_MAP_BUSY);
	tally = tally_of_allocator(process);
	if (tally)
		ADD(tally->counters.untracked_bytes, bytes);
	return 0;
}

/*
 * Looks up process allocated what is freed, and settles it with both; with the
 * allocator alone if process frees it is not watched.
 */
static __noinline int settle(u64 address, const struct slab_process *process)
{
	struct slab_tally_record *freer = process->outside ? NULL : tally_of(process), *tally;
	struct slab_process allocator = {};
	struct slab_address *entry;
	u64 bytes;

	entry = bpf_map_lookup_elem(&slab_addresses, &address);
	if (!entry || !entry->bytes) {
		if (freer)
			ADD(freer->counters.unknown_frees, 1);
		return 0;
	}
	allocator.signal = entry->signal;
	allocator.tgid = entry->tgid;
	allocator.born = entry->born;
	bytes = entry->bytes;
	if (bpf_map_delete_elem(&slab_addresses, &address))
		entry->bytes = 0; /* an interrupt held its bucket: settled, though still there */
	if (freer)
		ADD(freer->counters.freed_bytes, bytes);
	if (freer && allocator.signal == process->signal && allocator.tgid == process->tgid &&
	    allocator.born == process->born) {
		ADD(freer->counters.released_bytes, bytes);
		return 0;
	}
	if (freer)
		ADD(freer->counters.cross_process_frees, 1);
	tally = tally_of_allocator(&allocator);
	if (tally) {
		ADD(tally->counters.released_bytes, bytes);
		ADD(tally->counters.freed_by_others, 1);
	}
	return 0;
}

static __always_inline int on_alloc(u64 address, u64 bytes)
{
	struct slab_tally_record *tally;
	struct slab_process process = {};

	if (address <= ZERO_SIZE_PTR) /* failed */
		return 0;
	slab_read_current(&process);
	if (process.outside)
		return 0;
	tally = tally_of(&process);
	if (tally) {
		ADD(tally->counters.allocations, 1);
		ADD(tally->counters.allocated_bytes, bytes);
	} else {
		count_slab_loss(SLAB_LOSS_PROCESS_TABLE_FULL);
	}
	if (slab_track_addresses)
		remember(address, bytes, &process);
	return 0;
}

static __always_inline int on_free(u64 address)
{
	struct slab_tally_record *tally;
	struct slab_process process = {};

	if (address <= ZERO_SIZE_PTR) /* kfree(NULL) is common, and frees nothing */
		return 0;
	slab_read_current(&process);
	if (!process.outside) {
		tally = tally_of(&process);
		if (tally)
			ADD(tally->counters.frees, 1);
		else
			count_slab_loss(SLAB_LOSS_PROCESS_TABLE_FULL);
	}
	if (slab_track_addresses)
		settle(address, &process);
	return 0;
}

SEC("raw_tp/kmalloc")
int slab_kmalloc(const u64 *args)
{
	return on_alloc(args[1], kmalloc_bytes(args));
}

SEC("raw_tp/kmem_cache_alloc")
int slab_cache_alloc(const u64 *args)
{
	return on_alloc(args[1], cache_bytes(args));
}

/*
 * The same for kernels processe verifier lets it read `ptr` (see above): it reads the
 * size without a helper.
 */
SEC("tp_btf/kmem_cache_alloc")
int BPF_PROG(slab_cache_btf, unsigned long call_site, const void *ptr, struct kmem_cache *cache)
{
	return on_alloc((u64)ptr, cache->size);
}

/* Before 6.1 (11e9734bcb6a "mm/slab_common: unify NUMA and UMA version of tracepoints"). */
SEC("raw_tp/kmalloc_node")
int slab_kmalloc_node(const u64 *args)
{
	return on_alloc(args[1], kmalloc_bytes(args));
}

SEC("raw_tp/kmem_cache_alloc_node")
int slab_cache_node(const u64 *args)
{
	return on_alloc(args[1], cache_bytes(args));
}

SEC("raw_tp/kfree")
int slab_kfree(const u64 *args)
{
	return on_free(args[1]);
}

SEC("raw_tp/kmem_cache_free")
int slab_cache_free(const u64 *args)
{
	return on_free(args[1]);
}
