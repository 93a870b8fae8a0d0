/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Selects the processes that a set measures: all, a list, a tree of processes, or a cgroup.
 * For a process outside the filter a program does nothing but this check.
 *
 * The object `process` keeps the filter up to date; all objects of a set share its maps.
 */
#ifndef EBPFMETRICS_FILTER_H
#define EBPFMETRICS_FILTER_H

#include "process.h"

enum filter_mode {
	FILTER_ALL = 0,
	FILTER_LISTED = 1,
	FILTER_TREE = 2, /* the listed processes and all their descendants */
	FILTER_CGROUP = 3, /* a cgroup and the cgroups below it */
};

/* Set before loading. */
const volatile u32 filter_mode = FILTER_ALL;
const volatile u64 filter_cgroup = 0; /* its id, in `cgroup_hierarchy` */

/*
 * The listed processes by pid, with their start times because pids are reused. Written by
 * user space when the set is created, then at forks and releases. Allocated as used; holds
 * 16,384 processes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* 16,384 with a list */
	__type(key, u32);
	__type(value, u64);
} filtered SEC(".maps");

/*
 * A cache of cgroups: the id shifted left by one, and in the lowest bit whether the cgroup is
 * inside the filter's cgroup, which never changes. An element holds the last id that hashed
 * to it. Written by all CPUs, whole words.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* KNOWN_CGROUPS with a cgroup */
	__type(key, u32);
	__type(value, u64);
} known_cgroups SEC(".maps");

#define KNOWN_CGROUPS 256

/* The maximum number of levels between a cgroup and the filter's cgroup. */
#define CGROUP_DEPTH 16

/* Whether a cgroup, which has this id, is the filter's cgroup or below it. */
static __always_inline bool is_below_filter_cgroup(struct cgroup *group, u64 id)
{
	u32 slot = id % KNOWN_CGROUPS;
	u64 *known;
	bool inside = false;

	known = bpf_map_lookup_elem(&known_cgroups, &slot);
	if (!known)
		return false;
	if (*known >> 1 == id)
		return *known & 1;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CGROUP_DEPTH && group && !inside; i++) {
		inside = BPF_CORE_READ(group, kn, id) == filter_cgroup;
		group = BPF_CORE_READ(group, self.parent, cgroup);
	}
	*known = id << 1 | inside;
	return inside;
}

/* Whether a task is in the filter's cgroup. `rarely` is a constant, as for FOLLOW(). */
static __always_inline bool is_in_filter_cgroup(bool rarely, struct task_struct *task)
{
	struct cgroup *group = cgroup_of(rarely, task);

	return is_below_filter_cgroup(group, cgroup_id(rarely, group));
}

/*
 * Whether the process of a task, which is alive and has this pid, is in the filter. Reads by
 * helpers: for programs that run rarely, and for any pointer to a task.
 */
static __always_inline bool passes_filter_as(struct task_struct *task, u32 tgid)
{
	u64 *listed;

	if (filter_mode == FILTER_ALL)
		return true;
	if (filter_mode == FILTER_CGROUP)
		return is_in_filter_cgroup(true, task);
	listed = bpf_map_lookup_elem(&filtered, &tgid);
	return listed && *listed == BPF_CORE_READ(task, group_leader, start_boottime);
}

/* The same, for trusted pointers; reads directly where it can. */
static __always_inline bool passes_filter(struct task_struct *task)
{
	if (filter_mode == FILTER_ALL)
		return true;
	if (filter_mode == FILTER_CGROUP)
		return is_in_filter_cgroup(false, task);
	return passes_filter_as(task, task->tgid);
}

#endif
