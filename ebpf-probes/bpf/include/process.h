/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The identity of processes and threads. */
#ifndef EBPFMETRICS_PROCESS_H
#define EBPFMETRICS_PROCESS_H

#include "common.h"
#include "compat.h"

#define UNIFIED_HIERARCHY (-1)

/*
 * The hierarchy that cgroup ids belong to: the hierarchy of a controller, by the number of the
 * controller in the kernel (cgroup v1), or the unified hierarchy (v2). Set before loading.
 */
const volatile s32 cgroup_hierarchy = UNIFIED_HIERARCHY;

/*
 * The cgroup of a task. `rarely` is a constant, as for FOLLOW(); it must be true for pointers
 * that cannot be loaded from. The cgroup of a v1 controller is read by helpers in any case.
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

enum process_flags {
	PROCESS_KERNEL_THREAD = 1 << 0,
	PROCESS_HAS_OWNER = 1 << 1, /* uid and cgroup_id are set */
	PROCESS_HAS_SCHEDULING = 1 << 2, /* state, policy, nice and cpu are set */
	PROCESS_HAS_EXITED = 1 << 3, /* only in `disk_names` */
	PROCESS_IS_SETTLED = 1 << 4, /* a zombie that has left its CPU: its counters are final */
};

/* Attributes of a process that do not depend on a probe. */
struct process_info_record {
	u64 process_start_ns; /* CLOCK_BOOTTIME */
	u64 parent_start_ns;
	u64 cgroup_id;
	u32 tgid;
	u32 parent_tgid;
	u32 uid;
	u32 namespace_pid;
	u32 threads;
	u32 flags;
	u32 state; /* TASK_* | EXIT_* of the leader */
	u32 policy;
	s32 nice;
	u32 cpu;
	char comm[16];
};

/* The scheduling state of a task: what `ps` shows as state, class, nice value and CPU. */
static __always_inline void read_scheduling(struct process_info_record *info,
					    struct task_struct *task)
{
	struct task_struct___state *before_5_14 = (void *)task;
	struct task_struct___cpu *before_5_16 = (void *)task;

	if (bpf_core_field_exists(task->__state))
		info->state = task->__state;
	else
		bpf_core_read(&info->state, sizeof(info->state), &before_5_14->state);
	info->state |= task->exit_state;
	info->policy = task->policy;
	info->nice = task->static_prio - 120;
	if (bpf_core_field_exists(task->thread_info.cpu))
		info->cpu = task->thread_info.cpu;
	else
		bpf_core_read(&info->cpu, sizeof(info->cpu), &before_5_16->cpu);
	info->flags |= PROCESS_HAS_SCHEDULING;
	if (info->state & TASK_DEAD && info->threads == 1 && !is_on_cpu(task))
		info->flags |= PROCESS_IS_SETTLED;
}

/* User, cgroup and kind of a task. They stay readable until it is freed. */
static __always_inline void read_owner(bool rarely, struct process_info_record *info,
				       struct task_struct *task)
{
	info->uid = FOLLOW(rarely, task, real_cred, uid.val);
	info->cgroup_id = cgroup_id(rarely, cgroup_of(rarely, task));
	info->flags |= PROCESS_HAS_OWNER;
	if (task->flags & PF_KTHREAD)
		info->flags |= PROCESS_KERNEL_THREAD;
}

/*
 * Reads the attributes of a task's process. False if the leader is gone: then the task is being
 * released. `rarely` is a constant, as for FOLLOW().
 */
static __always_inline bool read_process(bool rarely, struct process_info_record *info,
					 struct task_struct *task)
{
	struct task_struct *leader = FOLLOW(rarely, task, group_leader);
	struct task_struct *parent = FOLLOW(rarely, task, real_parent);

	if (FOLLOW(rarely, leader, tgid) != task->tgid)
		return false;
	info->tgid = task->tgid;
	info->process_start_ns = FOLLOW(rarely, leader, start_boottime);
	info->threads = FOLLOW(rarely, task, signal, nr_threads);
	info->parent_tgid = FOLLOW(rarely, parent, tgid);
	info->parent_start_ns = FOLLOW(rarely, parent, group_leader, start_boottime);
	info->namespace_pid = namespace_pid(rarely, task, info->tgid);
	read_owner(rarely, info, task);
	__builtin_memcpy(info->comm, task->comm, sizeof(info->comm));
	return true;
}

/* The key of a task's process, while its leader is safe to read. */
static __always_inline struct process_key process_key_of(struct task_struct *task)
{
	struct process_key key = {
	    .start_ns = task->group_leader->start_boottime,
	    .tgid = task->tgid,
	};

	return key;
}

/* The key of a process from its leader, which may be about to be freed. */
static __always_inline struct process_key process_key_of_leader(struct task_struct *leader)
{
	struct process_key key = {.start_ns = leader->start_boottime, .tgid = leader->tgid};

	return key;
}

/*
 * Whether a task is being released. Its usage may then already be in the totals of its process
 * and must not count twice. Check last: the release may begin while the task is being read.
 */
static __always_inline bool is_being_released(struct task_struct *task)
{
	return *(volatile int *)&task->exit_state & EXIT_DEAD;
}

#endif
