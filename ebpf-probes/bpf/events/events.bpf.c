// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Reports what happens to processes at the moment it happens. Independent of probe sets;
 * only the programs for the requested events are loaded.
 */
#include "filter.h"
#include "compat_mm.h"
#include "events/ring.h"

EBPFMETRICS_LICENSE;

/* Names and order become `EventsLoss` in Rust. */
enum events_loss {
	EVENTS_LOSS_EXIT_STATE_MISSING, /* an exit was sent without the parent of its process */
	EVENTS_LOSS_ABOVE_TABLE_FULL, /* `events_above` full: a crossing was not sent */
	EVENTS_LOSSES,
};

DEFINE_LOSSES(events, EVENTS_LOSSES)

/* Set before loading. */
const volatile bool report_exited = false;
const volatile bool report_oom_kills = false;
const volatile u64 threshold_pages = 0;
const volatile u64 rearm_pages = 0; /* below this a process may cross the threshold again */

/* What is known at the exit of a process, but not at its release. */
struct events_ending_record {
	struct process_info_record process;
	u64 ended_ns; /* CLOCK_MONOTONIC */
};

/*
 * Processes between exit and release: for an RCU grace period, or until the parent waits
 * for them. 8,192 entries if exits are reported, allocated at loading. Written by the last
 * thread of each. The oldest is replaced when it is full, so a machine that does not show
 * a release does not fill it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct process_key);
	__type(value, struct events_ending_record);
} events_ending SEC(".maps");

/*
 * Processes above the threshold that have been reported; 8,192 entries, allocated as used.
 * Written by all CPUs: the one that inserts first sends the event.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, u8);
} events_above SEC(".maps");

/*
 * How many entries `events_above` has: mostly none, which saves a lookup at each change of
 * a page count. Written together with the table: atomic adds.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} events_above_count SEC(".maps");

static __always_inline void count_above(s64 change)
{
	u32 zero = 0;
	u64 *count = bpf_map_lookup_elem(&events_above_count, &zero);

	if (count)
		__sync_fetch_and_add(count, change);
}

static __always_inline void forget_above(struct process_key *key)
{
	if (!bpf_map_delete_elem(&events_above, key))
		count_above(-1);
}

/* A process is created. Its first thread has not run yet. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(events_fork, struct task_struct *parent, struct task_struct *child)
{
	struct events_event_record r = {.time_ns = bpf_ktime_get_ns()};

	/* types that no map has: user space is generated from the BTF */
	EMIT_BTF(struct events_event_record);
	EMIT_BTF(enum process_flags);
	EMIT_BTF(enum events_flags);
	EMIT_BTF(enum events_loss);
	EMIT_BTF(enum event_kind);
	EMIT_BTF(enum filter_mode);
	if (child->pid != child->tgid || !passes_filter_as(child, child->tgid))
		return 0;
	if (read_process(true, &r.process, child))
		send_event(&r, sizeof(r), EVENT_KIND_STARTED);
	return 0;
}

/* A process has a new name and a new address space. Further arguments differ by kernel. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(events_exec, struct task_struct *task)
{
	struct events_event_record r = {.time_ns = bpf_ktime_get_ns()};

	if (passes_filter_as(task, task->tgid) && read_process(true, &r.process, task))
		send_event(&r, sizeof(r), EVENT_KIND_EXECUTED);
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
	key = process_key_of(task);
	if (threshold_pages)
		forget_above(&key); /* also if it has left the filter's cgroup */
	if (!passes_filter_as(task, task->tgid))
		return 0;
	read_process(true, &r.process, task);
	if (report_exited) {
		last.process = r.process;
		bpf_map_update_elem(&events_ending, &key, &last, BPF_ANY);
	}
	if (report_oom_kills && task->signal->oom_mm)
		send_event(&r, sizeof(r), EVENT_KIND_OOM_KILLED);
	return 0;
}

/* As in wait(2). */
static __always_inline s32 exit_status_of(struct task_struct *leader)
{
	struct signal_struct *signal = leader->signal;

	return signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : leader->exit_code;
}

/*
 * A process is released: its totals are final, and probes that were attached before this
 * have written them. Only the leader counts: it is the last of its process to be released.
 * Runs in the context of RCU, where pointers to other tasks may be stale.
 */
SEC("tp_btf/sched_process_free")
int BPF_PROG(events_free, struct task_struct *task)
{
	struct process_key key = process_key_of_leader(task);
	struct events_event_record r = {};
	struct events_ending_record *last;

	if (task->pid != task->tgid)
		return 0;
	last = bpf_map_lookup_elem(&events_ending, &key);
	if (last) {
		r.process = last->process;
		r.time_ns = last->ended_ns;
		bpf_map_delete_elem(&events_ending, &key);
	} else {
		/* only its exit shows whether it is in the filter */
		if (filter_mode != FILTER_ALL)
			return 0;
		r.process.process_start_ns = key.start_ns;
		r.process.tgid = key.tgid;
		read_owner(true, &r.process, task);
		r.time_ns = bpf_ktime_get_ns();
		count_events_loss(EVENTS_LOSS_EXIT_STATE_MISSING);
	}
	__builtin_memcpy(r.process.comm, task->comm, sizeof(r.process.comm));
	r.flags = EVENT_PROCESS_ENDED;
	r.exit_status = exit_status_of(task);
	send_event(&r, sizeof(r), EVENT_KIND_EXITED);
	return 0;
}

/* The resident set of a process has grown to the threshold, or shrunk from it. */
static __noinline void cross(struct mm_struct *mm, u64 pages)
{
	struct task_struct *owner = mm->owner, *leader;
	struct events_event_record r = {};
	struct process_key key = {};
	u8 is_above = 1;
	long error;

	/* not while fork or exec makes it, or while it is torn down */
	if (!owner || owner->mm != mm || (owner->flags & PF_EXITING))
		return;
	leader = owner->group_leader;
	key.start_ns = leader->start_boottime;
	key.tgid = owner->tgid;
	if (bpf_map_lookup_elem(&events_above, &key)) {
		if (pages < rearm_pages)
			forget_above(&key);
		return;
	}
	if (pages < threshold_pages || !passes_filter_as(owner, owner->tgid))
		return;
	error = bpf_map_update_elem(&events_above, &key, &is_above, BPF_NOEXIST);
	if (error == -17) /* EEXIST: another CPU was first */
		return;
	if (error) {
		count_events_loss(EVENTS_LOSS_ABOVE_TABLE_FULL);
		return;
	}
	count_above(1);
	r.time_ns = bpf_ktime_get_ns();
	r.resident_pages = pages;
	if (read_process(true, &r.process, leader))
		send_event(&r, sizeof(r), EVENT_KIND_MEMORY_THRESHOLD);
}

/*
 * The kernel has changed a page count. The counts of CPUs (before 6.2: of threads) are
 * added to the common ones every 32 to 64 pages, so a crossing is sent late by that much.
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
		/* a process below matters only if it may have been above */
		any = bpf_map_lookup_elem(&events_above_count, &zero);
		if (pages >= rearm_pages || !any || !*any)
			return 0;
	}
	cross(mm, pages);
	return 0;
}
