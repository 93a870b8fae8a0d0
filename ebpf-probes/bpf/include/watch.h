/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Whom a probe watches: everybody, some processes with all that they start, or a
 * cgroup. Who is not watched costs a look here and no more.
 */
#ifndef EBPFMETRICS_WATCH_H
#define EBPFMETRICS_WATCH_H

#include "task.h"

enum watch_mode {
	WATCH_ALL = 0,
	WATCH_LISTED = 1,
	WATCH_TREES = 2, /* the listed, and all that they start from here on */
	WATCH_CGROUP = 3, /* and those below it */
};

/* Set before loading. */
const volatile u32 watch_mode = WATCH_ALL;
const volatile u64 watched_cgroup = 0; /* its id in the unified hierarchy */

/*
 * The listed, by pid, with their start times, for pids come back. Written by user
 * space when the probe is loaded, then by processes that start others and at their
 * release; allocated as used. 16,384 processes at a time.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* 16,384 with a list */
	__type(key, u32);
	__type(value, u64);
} watched SEC(".maps");

/* A cgroup lies at most so deep below the one that is watched. */
#define CGROUP_DEPTH 16

static __always_inline bool is_in_watched_cgroup(struct task_struct *task)
{
	struct cgroup *group = BPF_CORE_READ(task, cgroups, dfl_cgrp);

	for (int i = 0; i < CGROUP_DEPTH && group; i++) {
		if (BPF_CORE_READ(group, kn, id) == watched_cgroup)
			return true;
		group = BPF_CORE_READ(group, self.parent, cgroup);
	}
	return false;
}

static __always_inline bool is_listed(u32 tgid, u64 start_ns)
{
	u64 *listed = bpf_map_lookup_elem(&watched, &tgid);

	if (!listed)
		return false;
	if (!*listed) /* listed by user space, which does not know it to the ns */
		*listed = start_ns;
	return *listed == start_ns;
}

/* By its pid and start time, where these are at hand. */
static __always_inline bool is_watched_as(struct task_struct *task, u32 tgid, u64 start_ns)
{
	switch (watch_mode) {
	case WATCH_ALL:
		return true;
	case WATCH_CGROUP:
		return is_in_watched_cgroup(task);
	default:
		return is_listed(tgid, start_ns);
	}
}

/* Of a task that is alive: its leader is looked at. */
static __always_inline bool is_watched(struct task_struct *task)
{
	if (watch_mode == WATCH_ALL)
		return true;
	return is_watched_as(task, task->tgid, BPF_CORE_READ(task, group_leader, start_boottime));
}

/* A process is released: its pid is free for others. */
static __always_inline void forget_watched(struct task_struct *leader)
{
	u32 tgid = leader->tgid;

	if (watch_mode == WATCH_LISTED || watch_mode == WATCH_TREES)
		bpf_map_delete_elem(&watched, &tgid);
}

/* Only loaded for trees: what a watched process starts is watched. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(watch_fork, struct task_struct *parent, struct task_struct *child)
{
	u64 start_ns = child->start_boottime;
	u32 tgid = child->tgid;

	if (child->tgid != parent->tgid && is_watched(parent))
		bpf_map_update_elem(&watched, &tgid, &start_ns, BPF_ANY);
	return 0;
}

#endif
