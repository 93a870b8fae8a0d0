/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What every record about a task begins with, and how the iterators of several
 * probes share one walk over all tasks.
 */
#ifndef EBPFMETRICS_TASK_H
#define EBPFMETRICS_TASK_H

#include "common.h"
#include "compat.h"

/* Which probe of a joint walk writes: its number there. Set before loading. */
const volatile u16 stream = 0;

/* The head of everything that an iterator writes. */
struct record_head {
	u16 kind; /* by the probe's own count */
	u16 stream;
	u32 size; /* with the head */
};

#define RECORD_HEAD(kind_of_record, type)                                                          \
	((struct record_head){.kind = kind_of_record, .stream = stream, .size = sizeof(type)})

/*
 * The iterator of the next probe of a joint walk; empty outside of one. A tail
 * call costs some ns, a walk of its own some 100 ns per task. Written by user
 * space when probes are joined.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} next_iterator SEC(".maps");

/* Ends an iterator: hands the task to the next probe of a joint walk, if any. */
#define HAND_ON(ctx)                                                                               \
	do {                                                                                       \
		bpf_tail_call(ctx, &next_iterator, 0);                                             \
		return 0;                                                                          \
	} while (0)

#define UNIFIED_HIERARCHY (-1)

/*
 * Of which hierarchy of cgroups ids are: that of a controller, by its number in the
 * kernel (cgroup v1), or the unified one (v2). Set before loading.
 */
const volatile s32 cgroup_hierarchy = UNIFIED_HIERARCHY;

/*
 * The cgroup of a task. `rarely` is a constant, as for FOLLOW(), and true where the
 * pointer is not one that can be loaded from; a controller's is read by helpers.
 */
static __always_inline struct cgroup *cgroup_of(bool rarely, struct task_struct *task)
{
	struct cgroup_subsys_state *state = 0;
	u64 address;

	if (cgroup_hierarchy == UNIFIED_HIERARCHY)
		return FOLLOW(rarely, task, cgroups, dfl_cgrp);
	address = (u64)BPF_CORE_READ(task, cgroups) + bpf_core_field_offset(struct css_set, subsys);
	address += (u64)cgroup_hierarchy * sizeof(state);
	bpf_probe_read_kernel(&state, sizeof(state), (void *)address);
	return BPF_CORE_READ(state, cgroup);
}

/* The id of what cgroup_of() returned. */
static __always_inline u64 cgroup_id(bool rarely, struct cgroup *group)
{
	if (cgroup_hierarchy == UNIFIED_HIERARCHY)
		return FOLLOW(rarely, group, kn, id);
	return BPF_CORE_READ(group, kn, id);
}

enum about_flags {
	ABOUT_KERNEL_THREAD = 1 << 0,
	ABOUT_ENDED = 1 << 1, /* the whole process is gone: counters are its final totals */
};

/* Who a task is, and its process. */
struct task_about {
	u64 process_start_ns; /* CLOCK_BOOTTIME */
	u64 thread_start_ns;
	u64 parent_start_ns;
	u64 cgroup_id;
	u32 tgid;
	u32 tid;
	u32 parent_tgid;
	u32 uid;
	u32 namespace_pid;
	u32 threads;
	u32 flags;
	u32 padding;
	char comm[16];
};

/* Both of the below; `rarely` is a constant, as for FOLLOW(). */
static __always_inline bool read_about_if(bool rarely, struct task_about *about,
					  struct task_struct *task)
{
	struct task_struct *leader = FOLLOW(rarely, task, group_leader);
	struct task_struct *parent = FOLLOW(rarely, task, real_parent);

	if (FOLLOW(rarely, leader, tgid) != task->tgid)
		return false;
	about->tgid = task->tgid;
	about->tid = task->pid;
	about->process_start_ns = FOLLOW(rarely, leader, start_boottime);
	about->thread_start_ns = task->start_boottime;
	about->threads = FOLLOW(rarely, task, signal, nr_threads);
	about->parent_tgid = FOLLOW(rarely, parent, tgid);
	about->parent_start_ns = FOLLOW(rarely, parent, group_leader, start_boottime);
	about->uid = FOLLOW(rarely, task, cred, uid.val);
	about->cgroup_id = cgroup_id(rarely, cgroup_of(rarely, task));
	about->namespace_pid = namespace_pid(rarely, task, about->tid);
	if (task->flags & PF_KTHREAD)
		about->flags |= ABOUT_KERNEL_THREAD;
	__builtin_memcpy(about->comm, task->comm, sizeof(about->comm));
	return true;
}

/* False for a thread whose leader is gone already: it is being released. */
static __always_inline bool read_about(struct task_about *about, struct task_struct *task)
{
	return read_about_if(false, about, task);
}

/* The same, for programs that run once per process. */
static __always_inline bool read_about_at_exit(struct task_about *about, struct task_struct *task)
{
	return read_about_if(true, about, task);
}

/*
 * The same at the release of a process, in whatever context RCU runs: pointers
 * to other tasks may be stale, so the rest must have been read at its exit.
 */
static __always_inline void read_about_released(struct task_about *about,
						struct task_struct *leader)
{
	about->tgid = about->tid = leader->tgid;
	about->process_start_ns = about->thread_start_ns = leader->start_boottime;
	about->flags |= ABOUT_ENDED;
	__builtin_memcpy(about->comm, leader->comm, sizeof(about->comm));
}

/* The key of a task's process, while its leader is safe to look at. */
static __always_inline struct process_key process_key_of(struct task_struct *task)
{
	struct process_key key = {
	    .start_ns = task->group_leader->start_boottime,
	    .tgid = task->tgid,
	};

	return key;
}

/*
 * Being released: what it used may be in the totals of its process already and
 * must not count twice. To be asked last, for it may begin while one is reading.
 */
static __always_inline bool is_being_released(struct task_struct *task)
{
	return *(volatile int *)&task->exit_state & EXIT_DEAD;
}

#endif
