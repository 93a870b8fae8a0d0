// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What happens to processes, told the moment it happens.
 *
 * Only the programs that are asked for are loaded.
 */
#include "events.h"
#include "compat_mm.h"

EBPFMETRICS_LICENSE;

/* Names and order are those of `LOSSES` in ebpfmetrics/src/probes/events/record.rs. */
enum events_loss {
	/* told, but without what only the exit knows: the parent, the user, the cgroup */
	EVENTS_LOSS_EXIT_STATE_MISSING,
	EVENTS_LOSS_ABOVE_TABLE_FULL, /* `above` full: a crossing is not told */
	EVENTS_LOSSES,
};

DEFINE_LOSSES(EVENTS_LOSSES)

/* Set before loading. */
const volatile bool tell_exited = false;
const volatile bool tell_oom_kills = false;
const volatile u64 threshold_pages = 0;
const volatile u64 rearm_pages = 0; /* below this a process may cross the threshold again */

/* What the exit of a process knows and its release does not. */
struct events_ending_record {
	struct task_about about;
	u64 ended_ns; /* CLOCK_MONOTONIC */
};

/*
 * Processes between exit and release (an RCU grace period, or as long as nobody
 * waits for them); with exits told, 8,192 entries, allocated at loading. Written
 * by the last thread of each. The oldest goes where there is no room: a machine
 * that does not show a release does not fill it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct process_key);
	__type(value, struct events_ending_record);
} ending SEC(".maps");

/*
 * Processes above the threshold, of which that has been told; 8,192 entries,
 * allocated as used. Written by all CPUs: who inserts first tells.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, u8);
} above SEC(".maps");

/*
 * How many those are: mostly none, which spares all others a look for themselves.
 * Written with the table: atomic adds.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} above_count SEC(".maps");

static __always_inline void count_above(s64 change)
{
	u32 zero = 0;
	u64 *count = bpf_map_lookup_elem(&above_count, &zero);

	if (count)
		__sync_fetch_and_add(count, change);
}

static __always_inline void forget_above(struct process_key *key)
{
	if (!bpf_map_delete_elem(&above, key))
		count_above(-1);
}

/* A process is made; its first thread has not run yet. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(events_fork, struct task_struct *parent, struct task_struct *child)
{
	struct events_event_record r = {.time_ns = bpf_ktime_get_ns()};

	/* of these the BTF would else not tell */
	TELL_BTF(struct events_event_record);
	TELL_BTF(enum events_loss);
	TELL_BTF(enum event_kind);
	if (child->pid == child->tgid && read_about_at_exit(&r.about, child))
		tell(&r, sizeof(r), EVENT_KIND_STARTED);
	return 0;
}

/* It has a new name and a new address space. Further arguments differ by kernel. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(events_exec, struct task_struct *task)
{
	struct events_event_record r = {.time_ns = bpf_ktime_get_ns()};

	if (read_about_at_exit(&r.about, task))
		tell(&r, sizeof(r), EVENT_KIND_EXECUTED);
	return 0;
}

/* The last thread of a process exits, in its own context. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(events_exit, struct task_struct *task)
{
	struct events_event_record r = {.time_ns = bpf_ktime_get_ns()};
	struct events_ending_record last = {.ended_ns = r.time_ns};
	struct process_key key;

	if (task->signal->live.counter != 0)
		return 0;
	read_about_at_exit(&r.about, task);
	key.start_ns = r.about.process_start_ns;
	key.tgid = r.about.tgid;
	key.padding = 0;
	if (threshold_pages)
		forget_above(&key);
	if (tell_exited) {
		last.about = r.about;
		bpf_map_update_elem(&ending, &key, &last, BPF_ANY);
	}
	if (tell_oom_kills && task->signal->oom_mm)
		tell(&r, sizeof(r), EVENT_KIND_OOM_KILLED);
	return 0;
}

/* As wait(2) tells the parent. */
static __always_inline s32 exit_status_of(struct task_struct *leader)
{
	struct signal_struct *signal = leader->signal;

	return signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : leader->exit_code;
}

/*
 * A process is released: its totals are final, and the probes that were attached
 * before have written them. Only the leader counts, it is the last of its process.
 */
SEC("tp_btf/sched_process_free")
int BPF_PROG(events_free, struct task_struct *task)
{
	struct process_key key = {.start_ns = task->start_boottime, .tgid = task->tgid};
	struct events_event_record r = {};
	struct events_ending_record *last;

	if (task->pid != task->tgid)
		return 0;
	last = bpf_map_lookup_elem(&ending, &key);
	if (last) {
		r.about = last->about;
		r.time_ns = last->ended_ns;
		bpf_map_delete_elem(&ending, &key);
	} else {
		r.time_ns = bpf_ktime_get_ns();
		count_loss(EVENTS_LOSS_EXIT_STATE_MISSING);
	}
	read_about_released(&r.about, task);
	r.exit_status = exit_status_of(task);
	tell(&r, sizeof(r), EVENT_KIND_EXITED);
	return 0;
}

/* The resident set of a process has grown to the threshold, or shrunk from it. */
static __noinline void cross(struct mm_struct *mm, u64 pages)
{
	struct task_struct *owner = mm->owner, *leader;
	struct events_event_record r = {};
	struct process_key key = {};
	u8 told = 1;
	long error;

	/* not while it is being made by fork or exec, or torn down */
	if (!owner || owner->mm != mm || (owner->flags & PF_EXITING))
		return;
	leader = owner->group_leader;
	key.start_ns = leader->start_boottime;
	key.tgid = owner->tgid;
	if (bpf_map_lookup_elem(&above, &key)) {
		if (pages < rearm_pages)
			forget_above(&key);
		return;
	}
	if (pages < threshold_pages)
		return;
	error = bpf_map_update_elem(&above, &key, &told, BPF_NOEXIST);
	if (error == -17) /* EEXIST: another CPU was first */
		return;
	if (error) {
		count_loss(EVENTS_LOSS_ABOVE_TABLE_FULL);
		return;
	}
	count_above(1);
	r.time_ns = bpf_ktime_get_ns();
	r.resident_pages = pages;
	if (read_about_at_exit(&r.about, leader))
		tell(&r, sizeof(r), EVENT_KIND_MEMORY_THRESHOLD);
}

/*
 * The kernel has changed a page count. The counts of CPUs (before 6.2: of
 * threads) are folded into the common ones every 32 to 64 pages: the crossing is
 * told that much late.
 */
SEC("tp_btf/rss_stat")
int BPF_PROG(events_resident, struct mm_struct *mm, int member)
{
	u32 zero = 0;
	u64 *any, pages;

	if (member == MM_SWAPENTS)
		return 0;
	pages = folded_resident_pages(mm);
	if (pages < threshold_pages) {
		/* a process below is of interest if it may have been above */
		any = bpf_map_lookup_elem(&above_count, &zero);
		if (pages >= rearm_pages || !any || !*any)
			return 0;
	}
	cross(mm, pages);
	return 0;
}
