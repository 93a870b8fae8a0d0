/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What processes used in the cgroups that they or their threads have left.
 *
 * The kernel's counters do not say in which cgroup something was used. When a thread moves,
 * its counters are added to the sum of the cgroup that it leaves, and subtracted from the
 * sum of the one that it enters. The usage in a cgroup is then this sum plus the counters of
 * the threads that are there now. User space reads both, and the process has the rest where
 * it is now. A thread that exits moves to the cgroup of its process. Nothing is stored for
 * processes that do not move.
 */
#ifndef EBPFMETRICS_PROCESS_MOVES_H
#define EBPFMETRICS_PROCESS_MOVES_H

#include "filter.h"
#include "process/cgroups.h"
#include "process/ended.h"

enum process_cgroup {
	PROCESS_CGROUP_FIRST = 0, /* where it was before its first move; user space knows it */
};

/* With a filter: all cgroups outside. */
#define CGROUP_OUTSIDE (~0ULL)

/* At most so many threads of a process are followed: 16,384. */
#define MOVED_ROUNDS 128
#define MOVED_THREADS_PER_ROUND 128

struct process_part_key {
	struct process_key process;
	u64 cgroup_id;
};

/* Usage in a cgroup; modulo 2^64, because the sum of an entered cgroup is negative. */
struct process_part_record {
	struct cpu_totals_record cpu;
	struct disk_totals_record disk;
	u64 minor_faults;
	u64 major_faults;
};

/*
 * The sums. Until user space deletes those of processes that have ended. Allocated as used;
 * 16,384 entries. A move that finds no room is counted: the usage then stays with the cgroup
 * that the process moves to. Several CPUs write: atomic adds.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* 16,384 */
	__type(key, struct process_part_key);
	__type(value, struct process_part_record);
} cgroup_parts SEC(".maps");

/*
 * The cgroups of processes that have moved, and of their threads that are in another cgroup
 * than the process. Keyed by tid and start time. Processes until their release, threads
 * until their exit. User space adds the threads that were in another cgroup when the set was
 * loaded. Allocated as used; 16,384 entries. Full: as `cgroup_parts`.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* 16,384 */
	__type(key, struct process_key);
	__type(value, u64);
} cgroup_places SEC(".maps");

static __always_inline void add_part(struct process_part_record *sum,
				     const struct process_part_record *more, u64 sign)
{
	const u64 *from = (const void *)more;
	u64 *to = (void *)sum;

#pragma clang loop unroll(full)
	for (u32 i = 0; i < sizeof(*sum) / sizeof(u64); i++) {
		u64 add = from[i] * sign;

		/* of a known 0 the compiler would make an atomic "or", which 5.10 does not have */
		asm volatile("" : "+r"(add));
		__sync_fetch_and_add(&to[i], add);
	}
}

static __always_inline struct process_part_record *part_of(const struct process_part_key *key)
{
	static const struct process_part_record none;
	struct process_part_record *part = bpf_map_lookup_elem(&cgroup_parts, key);

	if (part)
		return part;
	bpf_map_update_elem(&cgroup_parts, key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&cgroup_parts, key);
}

/* Moves usage of a process from one cgroup to another; whether there was room. */
static __always_inline bool move_usage(const struct process_key *process, u64 from, u64 to,
				       const struct process_part_record *usage)
{
	struct process_part_key left = {.process = *process, .cgroup_id = from};
	struct process_part_key entered = {.process = *process, .cgroup_id = to};
	struct process_part_record *a, *b;

	if (from == to)
		return true;
	a = part_of(&left);
	b = part_of(&entered);
	if (!a || !b)
		return false;
	add_part(a, usage, 1);
	add_part(b, usage, -1);
	return true;
}

/* Adds the counters of a thread. Those that an exiting thread leaves in `ended`: `and_left`. */
static __always_inline void add_thread(struct process_part_record *sum, struct task_struct *task,
				       bool and_left)
{
	sum->cpu.sum_exec_ns += BPF_CORE_READ(task, se.sum_exec_runtime);
	sum->cpu.user_ns += BPF_CORE_READ(task, utime);
	sum->cpu.system_ns += BPF_CORE_READ(task, stime);
	sum->cpu.voluntary_switches += BPF_CORE_READ(task, nvcsw);
	sum->cpu.involuntary_switches += BPF_CORE_READ(task, nivcsw);
	sum->minor_faults += BPF_CORE_READ(task, min_flt);
	sum->major_faults += BPF_CORE_READ(task, maj_flt);
	if (!and_left && BPF_CORE_READ(task, flags) & PF_EXITING)
		return;
	if (has_run_queue_wait())
		sum->cpu.run_queue_wait_ns += BPF_CORE_READ(task, sched_info.run_delay);
	sum->cpu.migrations += BPF_CORE_READ(task, se.nr_migrations);
	if (bpf_core_field_exists(task->ioac.rchar)) {
		sum->disk.read_chars += BPF_CORE_READ(task, ioac.rchar);
		sum->disk.written_chars += BPF_CORE_READ(task, ioac.wchar);
		sum->disk.read_calls += BPF_CORE_READ(task, ioac.syscr);
		sum->disk.write_calls += BPF_CORE_READ(task, ioac.syscw);
	}
	if (bpf_core_field_exists(task->ioac.write_bytes)) {
		sum->disk.dirtied_bytes += BPF_CORE_READ(task, ioac.write_bytes);
		sum->disk.cancelled_bytes += BPF_CORE_READ(task, ioac.cancelled_write_bytes);
	}
}

/* Adds the counters of threads that are gone. They belong to the cgroup of the process. */
static __always_inline void add_dead_threads(struct process_part_record *sum,
					     struct signal_struct *signal,
					     const struct process_key *process)
{
	struct process_ended_record *dead = bpf_map_lookup_elem(&ended, process);

	sum->cpu.sum_exec_ns += BPF_CORE_READ(signal, sum_sched_runtime);
	sum->cpu.user_ns += BPF_CORE_READ(signal, utime);
	sum->cpu.system_ns += BPF_CORE_READ(signal, stime);
	sum->cpu.voluntary_switches += BPF_CORE_READ(signal, nvcsw);
	sum->cpu.involuntary_switches += BPF_CORE_READ(signal, nivcsw);
	sum->minor_faults += BPF_CORE_READ(signal, min_flt);
	sum->major_faults += BPF_CORE_READ(signal, maj_flt);
	if (!dead)
		return;
	sum->cpu.run_queue_wait_ns += dead->cpu.totals.run_queue_wait_ns;
	sum->cpu.migrations += dead->cpu.totals.migrations;
	sum->disk.dirtied_bytes += dead->disk.totals.dirtied_bytes;
	sum->disk.cancelled_bytes += dead->disk.totals.cancelled_bytes;
	sum->disk.read_chars += dead->disk.totals.read_chars;
	sum->disk.written_chars += dead->disk.totals.written_chars;
	sum->disk.read_calls += dead->disk.totals.read_calls;
	sum->disk.write_calls += dead->disk.totals.write_calls;
}

static __always_inline u64 place_or_first(const struct process_key *key)
{
	u64 *place = bpf_map_lookup_elem(&cgroup_places, key);

	return place ? *place : PROCESS_CGROUP_FIRST;
}

static __always_inline struct process_key thread_key_of(struct task_struct *task)
{
	struct process_key key = {
	    .start_ns = BPF_CORE_READ(task, start_boottime),
	    .tgid = BPF_CORE_READ(task, pid),
	};

	return key;
}

/*
 * A move of the leader of a process, or of all its threads. Moves are one after another,
 * because the kernel holds cgroup_mutex: one is enough, but the program may run on any CPU.
 */
struct move {
	struct process_key process;
	u64 from;
	u64 to;
	u64 node; /* in the list of threads */
	u64 end;
	u32 only_leader;
	u32 failed;
	struct process_part_record sum; /* of the threads that were where their process was */
	struct process_part_record thread;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct move);
} current_moves SEC(".maps");

static __always_inline struct move *current_move(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&current_moves, &zero);
}

/* Follows the next thread; 0 after the last one. A function that is verified once. */
__noinline int process_move_thread(u32 round)
{
	struct move *move = current_move();
	struct task_struct *task;
	struct process_key key;
	u64 *place, next = 0;

	if (!move || move->node == move->end)
		return 0;
	task = (void *)(move->node - bpf_core_field_offset(struct task_struct, thread_node));
	bpf_probe_read_kernel(&next, sizeof(next), (void *)move->node); /* list_head.next */
	move->node = next;
	key = thread_key_of(task);
	if (key.tgid == move->process.tgid) {
		add_thread(&move->sum, task, false);
		return 1;
	}
	place = bpf_map_lookup_elem(&cgroup_places, &key);
	if (move->only_leader) { /* the others stay: from now on that is another cgroup */
		if (!place && bpf_map_update_elem(&cgroup_places, &key, &move->from, BPF_ANY))
			move->failed = true;
		return 1;
	}
	if (!place) {
		add_thread(&move->sum, task, false);
		return 1;
	}
	__builtin_memset(&move->thread, 0, sizeof(move->thread));
	add_thread(&move->thread, task, false);
	if (!move_usage(&move->process, *place, move->to, &move->thread))
		move->failed = true;
	bpf_map_delete_elem(&cgroup_places, &key);
	return 1;
}

/* Follows threads; 0 after the last one. A function that is verified once. */
__noinline int process_move_round(u32 round)
{
	for (u32 i = 0; i < MOVED_THREADS_PER_ROUND; i++) {
		if (!process_move_thread(round))
			return 0;
	}
	return 1;
}

/* Moves the leader of a process or all its threads; whether everything had room. */
static __always_inline bool move_process(struct task_struct *task, u64 to, bool only_leader)
{
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct move *move = current_move();

	if (!move)
		return false;
	__builtin_memset(move, 0, sizeof(*move));
	move->to = to;
	move->only_leader = only_leader;
	move->process = thread_key_of(BPF_CORE_READ(task, group_leader));
	move->from = place_or_first(&move->process);
	move->end = (u64)signal + bpf_core_field_offset(struct signal_struct, thread_head);
	bpf_probe_read_kernel(&move->node, sizeof(move->node), (void *)move->end);
	if (bpf_map_update_elem(&cgroup_places, &move->process, &to, BPF_ANY))
		return false;
	/* first: a thread that is released meanwhile is then missed, and not counted twice */
	add_dead_threads(&move->sum, signal, &move->process);
	for (u32 i = 0; i < MOVED_ROUNDS; i++) {
		if (!process_move_round(i))
			break;
	}
	return move_usage(&move->process, move->from, to, &move->sum) && move->node == move->end &&
	       !move->failed;
}

/* Moves a thread that is not the leader; whether there was room. */
static __always_inline bool move_one_thread(struct task_struct *task, u64 to, bool exits)
{
	struct process_key key = thread_key_of(task);
	struct process_key process = thread_key_of(BPF_CORE_READ(task, group_leader));
	u64 *own = bpf_map_lookup_elem(&cgroup_places, &key);
	u64 first = PROCESS_CGROUP_FIRST, home = place_or_first(&process);
	struct process_part_record usage = {};
	u64 from = own ? *own : home;

	if (exits)
		to = home;
	add_thread(&usage, task, exits);
	if (exits) {
		bpf_map_delete_elem(&cgroup_places, &key);
	} else {
		/* the process has an entry until its release, so that its parts are kept */
		bpf_map_update_elem(&cgroup_places, &process, &first, BPF_NOEXIST);
		if (bpf_map_update_elem(&cgroup_places, &key, &to, BPF_ANY))
			return false;
	}
	return move_usage(&process, from, to, &usage);
}

/* A thread starts in the cgroup of the thread that starts it. */
static __always_inline bool place_new_thread(struct task_struct *parent, struct task_struct *child)
{
	struct process_key key = {.start_ns = parent->start_boottime, .tgid = parent->pid};
	u64 *place;

	if (parent->pid == parent->tgid)
		return true;
	place = bpf_map_lookup_elem(&cgroup_places, &key);
	if (!place)
		return true;
	key.start_ns = child->start_boottime;
	key.tgid = child->pid;
	return !bpf_map_update_elem(&cgroup_places, &key, place, BPF_ANY);
}

static __always_inline bool has_own_place(struct task_struct *task)
{
	struct process_key key = {.start_ns = task->start_boottime, .tgid = task->pid};

	return task->pid != task->tgid && bpf_map_lookup_elem(&cgroup_places, &key);
}

/* A process is released. */
static __always_inline void forget_place(const struct process_key *process)
{
	bpf_map_delete_elem(&cgroup_places, process);
}

#endif
