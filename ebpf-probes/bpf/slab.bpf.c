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
#include "watch.h"
#include "compat_slab.h"

EBPFMETRICS_LICENSE;

/* Names and order are those of `LOSSES` in ebpfmetrics/src/probes/slab/record.rs. */
enum slab_loss {
	SLAB_LOSS_PROCESS_TABLE_FULL, /* `overflow` full: an allocation or free is missing */
	SLAB_LOSS_ADDRESS_MAP_FULL, /* `addresses` full: the free of this one will be unknown */
	SLAB_LOSS_ADDRESS_MAP_BUSY, /* as full, but because an interrupt came between */
	SLAB_LOSS_EXIT_STATE_FULL, /* `ending` full: little is known of a process that ended */
	SLAB_LOSS_WATCH_TABLE_FULL, /* `watched` full: a process of a tree, and what it starts */
	SLAB_LOSSES,
};

DEFINE_LOSSES(SLAB_LOSSES)

/* Set before loading. */
const volatile bool track_addresses = false;
const volatile u32 slot_mask = 0; /* entries of `slots` less one: a power of two less one */

enum record_kind {
	RECORD_PROCESS = 1,
};

struct slab_counters_record {
	u64 allocations;
	u64 allocated_bytes;
	u64 frees;
	/* with addresses: of its frees */
	u64 freed_bytes;
	u64 unknown_frees; /* nothing is known of what was freed */
	u64 cross_process_frees; /* another process had allocated it */
	/* with addresses: of its allocations */
	u64 released_bytes; /* freed, by whomever */
	u64 freed_by_others;
	u64 unseen_frees; /* told by no tracepoint, noticed when the address came again */
	u64 untracked_bytes; /* not in `addresses` */
};

/* A process: alive, at its exit, or ended. */
struct slab_process_record {
	struct record_head head;
	struct task_about about;
	struct slab_counters_record counters;
	u64 ended_ns; /* CLOCK_MONOTONIC */
};

/* What is counted of one process, by several CPUs: atomic adds. */
struct slab_tally_record {
	struct slab_counters_record counters;
	u32 born; /* tells processes apart that had the same signal_struct and pid */
	u32 ended_threads;
};

/*
 * The tally of a process, in the slot of its pid modulo the size. The slot
 * belongs to whoever claimed it first, until the release of that process; a
 * process that finds another there goes to `overflow`.
 */
struct slab_slot {
	u64 signal;
	u32 tgid;
	u32 padding;
	u64 claims;
	struct slab_tally_record tally;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* 16,384 of 112 bytes, set by user space */
	__type(key, u32);
	__type(value, struct slab_slot);
} slots SEC(".maps");

struct slab_owner {
	u64 signal;
	u32 tgid;
	u32 padding;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* a quarter of `slots` */
	__type(key, struct slab_owner);
	__type(value, struct slab_tally_record);
} overflow SEC(".maps");

/* What happened while a CPU was idle. Per-CPU; nested interrupts make it atomic adds. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct slab_tally_record);
} idle SEC(".maps");

/*
 * What has been allocated and by whom, by address; sized by user space. An
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
} addresses SEC(".maps");

/*
 * 8,192 processes between exit and release (an RCU grace period after somebody
 * waited for them). Written by the last thread of each.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, struct slab_process_record);
} ending SEC(".maps");

/*
 * Final records since user space last collected them; sized by user space. Each
 * is written once, at the release of its process.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, struct slab_process_record);
} exited SEC(".maps");

/* The sum of the final records that `exited` had no room for. Per-CPU: one writer each. */
struct slab_folded_record {
	u64 processes;
	struct slab_counters_record counters;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct slab_folded_record);
} folded SEC(".maps");

/*
 * Who runs. signal_struct stays with a process through exec and with each thread
 * to its very last step; the kernel reuses it after the release, with the pid it
 * tells a stranger even then. Only compared and stored: it may be a pointer that
 * the verifier lets nobody compute with.
 */
struct slab_who {
	u64 signal;
	u32 tgid; /* 0: nobody, the CPU is idle */
	u32 born;
	bool unwatched; /* then only the pid is known */
};

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
	listed = bpf_map_lookup_elem(&watched, &tgid);
	is_it = listed && *listed == start_ns;
	if (last)
		*last = process | is_it;
	return is_it;
}

/* Who runs now, by `rarely` as for FOLLOW(). */
static __always_inline bool is_unwatched(bool rarely, struct task_struct *task, u32 tgid)
{
	if (watch_mode == WATCH_ALL || !tgid)
		return false;
	if (watch_mode == WATCH_CGROUP)
		return !is_in_watched_cgroup(rarely, task);
	return !is_listed(tgid, FOLLOW(rarely, task, group_leader, start_boottime));
}

static __always_inline void read_who(struct slab_who *who)
{
	if (has_current_task_btf()) {
		struct task_struct *task = (void *)bpf_get_current_task_btf();

		who->tgid = task->tgid;
		who->unwatched = is_unwatched(false, task, who->tgid);
		if (who->unwatched)
			return;
		who->signal = (u64)task->signal;
		if (track_addresses)
			who->born = task->group_leader->start_boottime;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();

		who->tgid = bpf_get_current_pid_tgid() >> 32;
		who->unwatched = is_unwatched(true, task, who->tgid);
		if (who->unwatched)
			return;
		bpf_core_read(&who->signal, sizeof(who->signal), &task->signal);
		if (track_addresses)
			who->born = BPF_CORE_READ(task, group_leader, start_boottime);
	}
	if (!who->tgid)
		who->signal = who->born = 0;
}

static __always_inline bool holds(struct slab_slot *slot, const struct slab_who *who)
{
	return slot->signal == who->signal && slot->tgid == who->tgid;
}

/*
 * Takes a free slot. 5.10 has no compare-and-swap for BPF: whoever raises
 * `claims` to exactly one has won; if two raise it at once both lose, and both
 * are counted in `overflow`.
 */
static __always_inline bool claim(struct slab_slot *slot, const struct slab_who *who)
{
	if (slot->claims)
		return false;
	__sync_fetch_and_add(&slot->claims, 1);
	if (*(volatile u64 *)&slot->claims != 1) {
		__sync_fetch_and_add(&slot->claims, -1);
		return false;
	}
	slot->tally.born = who->born;
	*(volatile u32 *)&slot->tgid = who->tgid;
	*(volatile u64 *)&slot->signal = who->signal;
	return true;
}

static __always_inline struct slab_tally_record *in_overflow(const struct slab_who *who)
{
	struct slab_owner owner = {.signal = who->signal, .tgid = who->tgid};

	return bpf_map_lookup_elem(&overflow, &owner);
}

static __noinline struct slab_tally_record *enter_overflow(const struct slab_who *who)
{
	struct slab_owner owner = {.signal = who->signal, .tgid = who->tgid};
	struct slab_tally_record *tally = bpf_map_lookup_elem(&overflow, &owner);
	struct slab_tally_record none = {.born = who->born};

	if (tally)
		return tally;
	bpf_map_update_elem(&overflow, &owner, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&overflow, &owner);
}

/* Where to count what is done on behalf of somebody who runs. */
static __always_inline struct slab_tally_record *tally_of(const struct slab_who *who)
{
	u32 index = who->tgid & slot_mask, zero = 0;
	struct slab_slot *slot;

	if (!who->tgid)
		return bpf_map_lookup_elem(&idle, &zero);
	slot = bpf_map_lookup_elem(&slots, &index);
	if (slot && (holds(slot, who) || claim(slot, who)))
		return &slot->tally;
	return enter_overflow(who);
}

/* Where to count what happened to an allocation, if its process still lives. */
static __always_inline struct slab_tally_record *tally_of_allocator(const struct slab_who *who)
{
	u32 index = who->tgid & slot_mask, zero = 0;
	struct slab_tally_record *tally;
	struct slab_slot *slot;

	if (!who->tgid)
		return bpf_map_lookup_elem(&idle, &zero);
	slot = bpf_map_lookup_elem(&slots, &index);
	if (slot && holds(slot, who))
		tally = &slot->tally;
	else
		tally = in_overflow(who);
	return tally && tally->born == who->born ? tally : NULL;
}

#define ADD(counter, amount) __sync_fetch_and_add(&(counter), amount)

/*
 * Notes who allocated what. If the address is there already, its free was not
 * seen: bulk frees have no tracepoint, and kfree_rcu() is one.
 */
static __noinline int remember(u64 address, u64 bytes, const struct slab_who *who)
{
	struct slab_address entry = {
	    .signal = who->signal,
	    .tgid = who->tgid,
	    .born = who->born,
	    .bytes = bytes,
	};
	struct slab_tally_record *tally;
	struct slab_address *before;
	int error;

	error = bpf_map_update_elem(&addresses, &address, &entry, BPF_NOEXIST);
	if (!error)
		return 0;
	before = bpf_map_lookup_elem(&addresses, &address);
	if (before) {
		struct slab_who allocator = {
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
	count_loss(error == -E2BIG ? SLAB_LOSS_ADDRESS_MAP_FULL : SLAB_LOSS_ADDRESS_MAP_BUSY);
	tally = tally_of_allocator(who);
	if (tally)
		ADD(tally->counters.untracked_bytes, bytes);
	return 0;
}

/*
 * Looks up who allocated what is freed, and settles it with both; with the
 * allocator alone if who frees it is not watched.
 */
static __noinline int settle(u64 address, const struct slab_who *who)
{
	struct slab_tally_record *freer = who->unwatched ? NULL : tally_of(who), *tally;
	struct slab_who allocator = {};
	struct slab_address *entry;
	u64 bytes;

	entry = bpf_map_lookup_elem(&addresses, &address);
	if (!entry || !entry->bytes) {
		if (freer)
			ADD(freer->counters.unknown_frees, 1);
		return 0;
	}
	allocator.signal = entry->signal;
	allocator.tgid = entry->tgid;
	allocator.born = entry->born;
	bytes = entry->bytes;
	if (bpf_map_delete_elem(&addresses, &address))
		entry->bytes = 0; /* an interrupt held its bucket: settled, though still there */
	if (freer)
		ADD(freer->counters.freed_bytes, bytes);
	if (freer && allocator.signal == who->signal && allocator.tgid == who->tgid &&
	    allocator.born == who->born) {
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
	struct slab_who who = {};

	if (address <= ZERO_SIZE_PTR) /* failed */
		return 0;
	read_who(&who);
	if (who.unwatched)
		return 0;
	tally = tally_of(&who);
	if (tally) {
		ADD(tally->counters.allocations, 1);
		ADD(tally->counters.allocated_bytes, bytes);
	} else {
		count_loss(SLAB_LOSS_PROCESS_TABLE_FULL);
	}
	if (track_addresses)
		remember(address, bytes, &who);
	return 0;
}

static __always_inline int on_free(u64 address)
{
	struct slab_tally_record *tally;
	struct slab_who who = {};

	if (address <= ZERO_SIZE_PTR) /* kfree(NULL) is common, and frees nothing */
		return 0;
	read_who(&who);
	if (!who.unwatched) {
		tally = tally_of(&who);
		if (tally)
			ADD(tally->counters.frees, 1);
		else
			count_loss(SLAB_LOSS_PROCESS_TABLE_FULL);
	}
	if (track_addresses)
		settle(address, &who);
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
 * The same for kernels whose verifier lets it read `ptr` (see above): it reads the
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

/* A process as it lives, by number alone. */
static __always_inline void read_who_is(struct slab_who *who, struct task_struct *leader)
{
	bpf_probe_read_kernel(&who->signal, sizeof(who->signal), &leader->signal);
	who->tgid = leader->tgid;
	if (track_addresses)
		who->born = leader->start_boottime;
}

static __always_inline void add_counters(struct slab_counters_record *sum,
					 const struct slab_counters_record *more)
{
	sum->allocations += more->allocations;
	sum->allocated_bytes += more->allocated_bytes;
	sum->frees += more->frees;
	sum->freed_bytes += more->freed_bytes;
	sum->unknown_frees += more->unknown_frees;
	sum->cross_process_frees += more->cross_process_frees;
	sum->released_bytes += more->released_bytes;
	sum->freed_by_others += more->freed_by_others;
	sum->unseen_frees += more->unseen_frees;
	sum->untracked_bytes += more->untracked_bytes;
}

/* All that was counted of a process; tells how many of its threads have ended. */
static __always_inline u32 read_counters(struct slab_counters_record *counters,
					 const struct slab_who *who)
{
	u32 index = who->tgid & slot_mask, ended_threads = 0;
	struct slab_slot *slot = bpf_map_lookup_elem(&slots, &index);
	struct slab_tally_record *more = in_overflow(who);

	if (slot && holds(slot, who)) {
		*counters = slot->tally.counters;
		ended_threads = slot->tally.ended_threads;
	}
	if (more) {
		add_counters(counters, &more->counters);
		ended_threads += more->ended_threads;
	}
	return ended_threads;
}

static __always_inline void forget(const struct slab_who *who)
{
	struct slab_owner owner = {.signal = who->signal, .tgid = who->tgid};
	u32 index = who->tgid & slot_mask;
	struct slab_slot *slot = bpf_map_lookup_elem(&slots, &index);

	if (slot && holds(slot, who)) {
		*(volatile u64 *)&slot->signal = 0;
		*(volatile u32 *)&slot->tgid = 0;
		__builtin_memset(&slot->tally, 0, sizeof(slot->tally));
		__sync_fetch_and_add(&slot->claims, -1);
	}
	bpf_map_delete_elem(&overflow, &owner);
}

SEC("iter/task")
int slab_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct slab_process_record r = {};
	struct slab_who who = {};

	if (!task)
		return 0;
	/* counted by process: its leader stands for it */
	if (task->pid != task->tgid || !is_watched(task) || !read_about_at_exit(&r.about, task))
		HAND_ON(ctx);
	r.head = RECORD_HEAD(RECORD_PROCESS, r);
	read_who_is(&who, task);
	read_counters(&r.counters, &who);
	if (is_being_released(task))
		HAND_ON(ctx);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	HAND_ON(ctx);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(watch_fork, struct task_struct *parent, struct task_struct *child)
{
	if (!watch_child(parent, child))
		count_loss(SLAB_LOSS_WATCH_TABLE_FULL);
	return 0;
}

/*
 * A thread exits, in its own context. The last one leaves behind who the process
 * was; what the kernel frees from here on is still counted.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(slab_exit, struct task_struct *task)
{
	struct process_key key = process_key_of(task);
	struct slab_process_record r = {};
	struct slab_tally_record *tally;
	struct slab_who who = {};

	if (!is_watched_as(task, task->tgid))
		return 0;
	/* the leader may be gone soon, but not yet */
	read_who_is(&who, task);
	if (track_addresses)
		who.born = key.start_ns;
	tally = tally_of(&who);
	if (tally)
		ADD(tally->ended_threads, 1);
	if (task->signal->live.counter != 0)
		return 0;
	read_about_at_exit(&r.about, task);
	r.head = RECORD_HEAD(RECORD_PROCESS, r);
	read_counters(&r.counters, &who);
	r.ended_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&ending, &key, &r, BPF_ANY))
		count_loss(SLAB_LOSS_EXIT_STATE_FULL);
	return 0;
}

/*
 * A task is released, some ms after its last switch, in whatever context RCU
 * runs: pointers to other tasks may be stale, signal_struct is still there. The
 * leader is the last of its process to be released.
 */
SEC("tp_btf/sched_process_free")
int BPF_PROG(slab_release, struct task_struct *task)
{
	struct process_key key = {.start_ns = task->start_boottime, .tgid = task->tgid};
	struct slab_counters_record counters = {};
	struct slab_process_record r = {};
	struct slab_process_record *last;
	struct slab_who who = {};
	u32 zero = 0;

	if (task->pid != task->tgid)
		return 0;
	forget_watched(task);
	read_who_is(&who, task);
	last = bpf_map_lookup_elem(&ending, &key);
	if (!last && watch_mode != WATCH_ALL) {
		forget(&who); /* it may have been watched, in another cgroup */
		return 0;
	}
	if (last)
		r = *last;
	r.head = RECORD_HEAD(RECORD_PROCESS, r);
	read_about_released(&r.about, task);
	r.about.threads = read_counters(&counters, &who);
	r.counters = counters;
	if (!r.ended_ns)
		r.ended_ns = bpf_ktime_get_ns();
	forget(&who);
	if (bpf_map_update_elem(&exited, &key, &r, BPF_ANY)) {
		struct slab_folded_record *f = bpf_map_lookup_elem(&folded, &zero);

		if (f) {
			f->processes += 1;
			add_counters(&f->counters, &r.counters);
		}
	}
	bpf_map_delete_elem(&ending, &key);
	/* of this the BTF would else not tell */
	TELL_BTF(enum slab_loss);
	return 0;
}
