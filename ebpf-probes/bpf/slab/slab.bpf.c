// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Counts kernel slab memory that is allocated and freed on behalf of each process, in system
 * calls, page faults and other work of the kernel while the process runs. An interrupt is
 * charged to the process that it interrupts, because the kernel does not record another
 * owner. Interrupts on an idle CPU are counted apart.
 *
 * The hooks run inside the allocator, so nothing here may allocate: all maps that are written
 * here are preallocated. The programs are raw tracepoints because typed ones cannot take
 * `const void *ptr` before 6.16 (1271a40eeafa "bpf: Allow access to const void pointer
 * arguments in tracing programs"). Both kinds cost the same per run.
 *
 * An interrupt may arrive while a hook runs. Before 6.2 its own allocations are then counted;
 * all counters are atomic. Since 6.2 the kernel skips a program that already runs on the same
 * CPU and counts the skips, which user space reports as the loss `run_skipped` (05b24ff9b2cf
 * "bpf: Prevent bpf program recursion for raw tracepoint probes").
 */
#include "filter.h"
#include "compat_slab.h"
#include "slab/maps.h"
#include "slab/sizes.h"

EBPFMETRICS_LICENSE;

/* Events on idle CPUs. Per CPU, but interrupts may nest: atomic adds. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct slab_tally_record);
} slab_idle SEC(".maps");

/* An allocation: its size and the process that it was made for. */
struct slab_address {
	u64 signal; /* 0: while a CPU was idle */
	u32 tgid;
	u32 born;
	u64 bytes; /* 0: freed, but the entry could not be deleted */
};

/*
 * Allocations that are not freed yet, by address. Preallocated. One writer per entry: an
 * address has one user at a time.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* option address_map */
	__type(key, u64);
	__type(value, struct slab_address);
} slab_addresses SEC(".maps");

/*
 * The process of the last event on each CPU, and in the lowest bit whether it is in the list
 * of the filter, which never changes for a process. Saves most lookups in the list. One
 * writer each, whole words.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} slab_last_process SEC(".maps");

static __always_inline bool is_listed(u32 tgid, u64 start_ns)
{
	u64 process = (start_ns ^ (u64)tgid << 40) << 1, *last, *listed;
	bool is_it;
	u32 zero = 0;

	last = bpf_map_lookup_elem(&slab_last_process, &zero);
	if (last && (*last & ~1ULL) == process)
		return *last & 1;
	listed = bpf_map_lookup_elem(&filtered, &tgid);
	is_it = listed && *listed == start_ns;
	if (last)
		*last = process | is_it;
	return is_it;
}

/* Whether the running process is outside the filter. `rarely` is a constant, as for FOLLOW(). */
static __always_inline bool slab_outside_filter(bool rarely, struct task_struct *task, u32 tgid)
{
	if (filter_mode == FILTER_ALL || !tgid)
		return false;
	if (filter_mode == FILTER_CGROUP)
		return !is_in_filter_cgroup(rarely, task);
	return !is_listed(tgid, FOLLOW(rarely, task, group_leader, start_boottime));
}

/* Reads the running process. */
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
 * Takes a free slot. 5.10 has no compare-and-swap for BPF: the process that raises `claims`
 * to exactly one wins. If two raise it at once both lose, and both are counted in
 * `slab_overflow`.
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

/* The entry of a process in `slab_overflow`, created if there is none. */
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

/* Where events of the running process are counted. NULL if the tables are full. */
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

/*
 * Where events of an allocation are counted that concern the process it was made for. NULL
 * if that process has been released.
 */
static __always_inline struct slab_tally_record *
tally_of_allocator(const struct slab_process *process)
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
 * Stores an allocation. If its address is stored already, the free of the object before was
 * not seen: bulk frees, among them most of kfree_rcu(), have no tracepoint.
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
 * Looks up the allocation of a freed object and counts the free for both processes: the one
 * that frees, unless it is outside the filter, and the one that allocated.
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
		entry->bytes = 0; /* an interrupt holds its bucket: mark it as freed */
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

	if (address <= ZERO_SIZE_PTR) /* kfree(NULL) is common and frees nothing */
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

/* For kernels whose verifier accepts `ptr` (see above): reads the size without a helper. */
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
