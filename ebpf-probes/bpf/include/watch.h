/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Whom a probe watches: everybody, some processes with all that they start, or a
 * cgroup. Who is not watched costs a look here and no more.
 *
 * A probe that includes this asks is_watched() in its programs, calls
 * forget_watched() at the release of a process, and has a program `watch_fork` at
 * sched_process_fork that calls watch_child() and counts what that has no room for.
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
const volatile u64 watched_cgroup = 0; /* its id, in the hierarchy that is set */

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

/*
 * Cgroups that were looked at: the id, shifted by one, and whether it is within the
 * watched one, which never changes. Each place belongs to the last id that fell on it;
 * written by all CPUs, whole words.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* KNOWN_CGROUPS with a cgroup */
	__type(key, u32);
	__type(value, u64);
} known_cgroups SEC(".maps");

#define KNOWN_CGROUPS 256

/* A cgroup lies at most so deep below the one that is watched. */
#define CGROUP_DEPTH 16

/* `rarely` is a constant, as for FOLLOW(). */
static __always_inline bool is_in_watched_cgroup(bool rarely, struct task_struct *task)
{
	struct cgroup *group = cgroup_of(rarely, task);
	u64 id = cgroup_id(rarely, group), *known;
	u32 place = id % KNOWN_CGROUPS;
	bool inside = false;

	known = bpf_map_lookup_elem(&known_cgroups, &place);
	if (!known)
		return false;
	if (*known >> 1 == id)
		return *known & 1;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CGROUP_DEPTH && group && !inside; i++) {
		inside = BPF_CORE_READ(group, kn, id) == watched_cgroup;
		group = BPF_CORE_READ(group, self.parent, cgroup);
	}
	*known = id << 1 | inside;
	return inside;
}

/*
 * A task of a process that is alive, with the pid of the process at hand. By helpers, for
 * programs that run rarely, and for any pointer to a task.
 */
static __always_inline bool is_watched_as(struct task_struct *task, u32 tgid)
{
	u64 *listed;

	if (watch_mode == WATCH_ALL)
		return true;
	if (watch_mode == WATCH_CGROUP)
		return is_in_watched_cgroup(true, task);
	listed = bpf_map_lookup_elem(&watched, &tgid);
	return listed && *listed == BPF_CORE_READ(task, group_leader, start_boottime);
}

static __always_inline bool is_watched(struct task_struct *task)
{
	if (watch_mode == WATCH_ALL)
		return true;
	if (watch_mode == WATCH_CGROUP)
		return is_in_watched_cgroup(false, task);
	return is_watched_as(task, task->tgid);
}

/* What a watched process starts is watched too; false if there is no room for it. */
static __always_inline bool watch_child(struct task_struct *parent, struct task_struct *child)
{
	u64 start_ns = child->start_boottime;
	u32 tgid = child->tgid;

	if (child->tgid == parent->tgid || !is_watched_as(parent, parent->tgid))
		return true;
	return !bpf_map_update_elem(&watched, &tgid, &start_ns, BPF_ANY);
}

/* A process is released. Its pid may be that of another by now, which is listed too. */
static __always_inline void forget_watched(struct task_struct *leader)
{
	u32 tgid = leader->tgid;
	u64 *listed;

	if (watch_mode != WATCH_LISTED && watch_mode != WATCH_TREES)
		return;
	listed = bpf_map_lookup_elem(&watched, &tgid);
	if (listed && *listed == leader->start_boottime)
		bpf_map_delete_elem(&watched, &tgid);
}

/* Who is there, and whose child: user space makes the list of it. */
struct watch_process_record {
	struct record_head head;
	struct process_key process;
	struct process_key parent;
};

enum watch_record_kind {
	RECORD_WATCH_PROCESS = 1,
};

/* Run by user space before the probe's own iterator, with none to hand on to. */
SEC("iter/task")
int watch_tasks(struct bpf_iter__task *ctx)
{
	struct watch_process_record r = {.head = RECORD_HEAD(RECORD_WATCH_PROCESS, r)};
	struct task_struct *task = ctx->task;

	/* of this the BTF would else not tell */
	TELL_BTF(struct watch_process_record);
	if (!task || task->pid != task->tgid)
		return 0;
	r.process.tgid = task->tgid;
	r.process.start_ns = task->start_boottime;
	r.parent.tgid = BPF_CORE_READ(task, real_parent, tgid);
	r.parent.start_ns = BPF_CORE_READ(task, real_parent, group_leader, start_boottime);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

#endif
