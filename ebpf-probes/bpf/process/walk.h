/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The walk over all tasks: what they are, and the part of each built-in probe. */
#ifndef EBPFMETRICS_PROCESS_WALK_H
#define EBPFMETRICS_PROCESS_WALK_H

#include "probe.h"
#include "process/ended.h"
#include "cpu/section.h"
#include "disk/section.h"
#include "mem/section.h"
#include "slab/section.h"

/* Walk records of SECTION_PROCESS. */
enum process_kind {
	PROCESS_KIND_WALK = 1,
	PROCESS_KIND_PROCESS = 2,
	PROCESS_KIND_THREAD = 3,
	PROCESS_KIND_VOID = 4, /* the previous task is being released: ignore its records */
	PROCESS_KIND_ENDED = 5,
	PROCESS_KIND_SETTLED = 6,
	PROCESS_KIND_PARENT = 7,
};

/* The first record of a walk: when it began, by the kernel's own clocks. */
struct process_walk_record {
	struct record_head head;
	u64 monotonic_ns;
	u64 boottime_ns;
};

/* A process, written for its leader. The records of the probes for the leader follow. */
struct process_process_record {
	struct record_head head;
	u64 task; /* the leader's address: threads keep theirs when exec renames them */
	struct process_info_record info;
};

/* Another thread. The records of the probes for it follow. */
struct process_thread_record {
	struct record_head head;
	u64 task;
	u64 process_start_ns;
	u64 thread_start_ns;
	u64 cgroup_id;
	u32 tgid;
	u32 tid;
	char comm[16];
};

static __always_inline void write_void(struct bpf_iter__task *ctx)
{
	struct record_head head = {
	    .section = SECTION_PROCESS, .kind = PROCESS_KIND_VOID, .size = sizeof(head)};

	bpf_seq_write(ctx->meta->seq, &head, sizeof(head));
}

static __always_inline bool write_process(struct bpf_iter__task *ctx, struct task_struct *task)
{
	struct process_process_record r = {
	    .head = RECORD_HEAD(SECTION_PROCESS, PROCESS_KIND_PROCESS, r)};

	if (!read_process(false, &r.info, task))
		return false;
	read_scheduling(&r.info, task);
	*(struct task_struct **)&r.task = task;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return true;
}

static __always_inline bool write_thread(struct bpf_iter__task *ctx, struct task_struct *task)
{
	struct process_thread_record r = {.head =
					      RECORD_HEAD(SECTION_PROCESS, PROCESS_KIND_THREAD, r)};
	struct task_struct *leader = task->group_leader;

	if (leader->tgid != task->tgid) /* its leader is gone: it is being released */
		return false;
	*(struct task_struct **)&r.task = task;
	r.process_start_ns = leader->start_boottime;
	r.thread_start_ns = task->start_boottime;
	r.cgroup_id = cgroup_id(false, cgroup_of(false, task));
	r.tgid = task->tgid;
	r.tid = task->pid;
	__builtin_memcpy(r.comm, task->comm, sizeof(r.comm));
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return true;
}

/* The entry in `ended` of a task's process, if a thread of it has exited. */
static __always_inline struct process_ended_record *dead_threads_of(struct task_struct *task,
								    const struct process_key *key)
{
	if (!task->signal->sum_sched_runtime && !(task->flags & PF_EXITING))
		return NULL;
	return bpf_map_lookup_elem(&ended, key);
}

static __always_inline int walk(struct bpf_iter__task *ctx, bool plain)
{
	struct task_struct *task = ctx->task;
	struct process_ended_record *dead;
	struct process_key key;

	if (!task) {
		if (mem_on)
			mem_end_sum();
		return 0;
	}
	if (!ctx->meta->seq_num) {
		struct process_walk_record r = {
		    .head = RECORD_HEAD(SECTION_PROCESS, PROCESS_KIND_WALK, r),
		    .monotonic_ns = bpf_ktime_get_ns(),
		    .boottime_ns = bpf_ktime_get_boot_ns(),
		};

		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
		if (mem_on)
			mem_begin_sum();
	}
	if (cpu_on)
		cpu_walk_cpu(ctx, task);
	if (!passes_filter(task))
		return 0;
	if (task->pid == task->tgid ? !write_process(ctx, task) : !write_thread(ctx, task))
		return 0;
	key = process_key_of(task);
	dead = dead_threads_of(task, &key);
	if (cpu_on)
		cpu_walk_task(ctx, task, dead);
	if (disk_on)
		disk_walk_task(ctx, task, dead);
	if (slab_on)
		slab_walk_task(ctx, task);
	if (mem_on)
		mem_walk_task(ctx, task, key.start_ns, plain, dead);
	if (is_being_released(task)) {
		write_void(ctx);
		return 0;
	}
	CALL_NEXT(ctx);
}

SEC("iter/task")
int process_walk(struct bpf_iter__task *ctx)
{
	return walk(ctx, false);
}

/* Before 6.2: page counts are not per CPU, and the verifier may not know bpf_loop(). */
SEC("iter/task")
int process_walk_plain(struct bpf_iter__task *ctx)
{
	return walk(ctx, true);
}

#endif
