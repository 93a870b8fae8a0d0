// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Identity and lifecycle of processes, once per set of probes: the walk over all tasks,
 * forks, exits and releases, the filter and the final records. Each built-in probe adds its
 * part in its section.h; the verifier removes the parts of probes that are not in the set.
 *
 * Adding or removing a probe loads new handlers on the same maps. The dispatchers stay
 * attached and jump to the current handlers, so no event is missed or handled twice.
 */
#include "probe.h"
#include "process/cgroups.h"
#include "process/ended.h"
#include "process/ends.h"
#include "process/moves.h"
#include "process/walk.h"

EBPFMETRICS_LICENSE;

/* Names and order become `ProcessLoss` in Rust. */
enum process_loss {
	PROCESS_LOSS_ENDED_TABLE_FULL, /* `ended` full: a process is only in `overflow` */
	PROCESS_LOSS_CREATOR_TABLE_FULL, /* `creators` full: the creator of a process is unknown */
	PROCESS_LOSS_FILTER_TABLE_FULL, /* `filtered` full: a process and its children are missing */
	PROCESS_LOSS_CGROUP_PATH_MISSING, /* `removed_cgroups` full: a path is unknown */
	PROCESS_LOSS_CGROUP_MOVE_MISSING, /* `cgroup_parts` full: usage is shown in the new cgroup */
	PROCESS_LOSSES,
};

DEFINE_LOSSES(process, PROCESS_LOSSES)

/*
 * A process, its pid in the reader's PID namespace, and its parent. User space sets up the
 * filter with it.
 */
struct process_parent_record {
	struct record_head head;
	u32 reader_pid;
	u32 padding;
	struct process_key process;
	struct process_key parent;
};

SEC("iter/task")
int process_parents(struct bpf_iter__task *ctx)
{
	struct process_parent_record r = {.head =
					      RECORD_HEAD(SECTION_PROCESS, PROCESS_KIND_PARENT, r)};
	struct task_struct *task = ctx->task, *reader = (void *)bpf_get_current_task();

	if (!task || task->pid != task->tgid)
		return 0;
	/* the iterator shows the tasks of the reader's namespace and of those below it */
	r.reader_pid = pid_at_level(task, BPF_CORE_READ(reader, thread_pid, level));
	r.process = process_key_of_leader(task);
	r.parent.tgid = BPF_CORE_READ(task, real_parent, tgid);
	r.parent.start_ns = BPF_CORE_READ(task, real_parent, group_leader, start_boottime);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

/* How a process began. */
struct process_creator_record {
	struct process_key creator;
	u64 cgroup_id;
};

/*
 * The creators of processes that were started since user space last read and deleted the
 * entries. Allocated as used; 16,384 entries; each is written once. A process gets another
 * parent when its own ends, but its creator stays the same.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct process_key);
	__type(value, struct process_creator_record);
} creators SEC(".maps");

/*
 * The handlers of the lifecycle tracepoints. One array each: since 6.12 all programs of an
 * array must have the same arguments (28ead3eaabc1).
 */
#define DEFINE_HANDLER(name)                                                                       \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY);                                             \
		__uint(max_entries, 1);                                                            \
		__type(key, u32);                                                                  \
		__type(value, u32);                                                                \
	} name SEC(".maps")

DEFINE_HANDLER(fork_handler);
DEFINE_HANDLER(exit_handler);
DEFINE_HANDLER(release_handler);

SEC("tp_btf/sched_process_fork")
int process_on_fork(void *ctx)
{
	bpf_tail_call(ctx, &fork_handler, 0);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int process_on_exit(void *ctx)
{
	bpf_tail_call(ctx, &exit_handler, 0);
	return 0;
}

SEC("tp_btf/sched_process_free")
int process_on_release(void *ctx)
{
	bpf_tail_call(ctx, &release_handler, 0);
	return 0;
}

/* A child of a process in the filter is in it too. */
static __always_inline void add_to_filter(struct task_struct *parent, struct task_struct *child)
{
	u64 start_ns = child->start_boottime;
	u32 tgid = child->tgid;

	if (!passes_filter_as(parent, parent->tgid))
		return;
	if (bpf_map_update_elem(&filtered, &tgid, &start_ns, BPF_ANY))
		count_process_loss(PROCESS_LOSS_FILTER_TABLE_FULL);
}

/* A process is released. Its pid may already belong to another process that is listed. */
static __always_inline void remove_from_filter(struct task_struct *leader)
{
	u32 tgid = leader->tgid;
	u64 *listed;

	if (filter_mode != FILTER_LISTED && filter_mode != FILTER_TREE)
		return;
	listed = bpf_map_lookup_elem(&filtered, &tgid);
	if (listed && *listed == leader->start_boottime)
		bpf_map_delete_elem(&filtered, &tgid);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	struct process_creator_record how = {};
	struct process_key key;

	if (child->tgid == parent->tgid) {
		if (!place_new_thread(parent, child))
			count_process_loss(PROCESS_LOSS_CGROUP_MOVE_MISSING);
		return 0;
	}
	if (filter_mode == FILTER_TREE)
		add_to_filter(parent, child);
	if (!passes_filter_as(child, child->tgid))
		return 0;
	key = process_key_of_leader(child);
	how.creator = process_key_of(parent);
	how.cgroup_id = cgroup_id(true, cgroup_of(true, child));
	if (bpf_map_update_elem(&creators, &key, &how, BPF_ANY))
		count_process_loss(PROCESS_LOSS_CREATOR_TABLE_FULL);
	if (mem_on)
		mem_fork(child);
	return 0;
}

/* The entry of a process in `ended`, created if there is none. */
static __always_inline struct process_ended_record *ended_of(const struct process_key *key)
{
	static const struct process_ended_record none;
	struct process_ended_record *record = bpf_map_lookup_elem(&ended, key);

	if (record)
		return record;
	bpf_map_update_elem(&ended, key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&ended, key);
}

/* A thread exits, in its own context: group_leader and real_parent are safe here. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	struct process_key key = process_key_of(task);
	bool is_last = task->signal->live.counter == 0;
	struct process_ended_record *record;

	if (has_own_place(task)) {
		count_change(PROCESS_CHANGE_MOVE_BEGUN);
		if (!move_one_thread(task, 0, true))
			count_process_loss(PROCESS_LOSS_CGROUP_MOVE_MISSING);
		count_change(PROCESS_CHANGE_MOVE_DONE);
	}
	if (!passes_filter_as(task, task->tgid)) {
		if (mem_on && is_last)
			mem_forget(task); /* it may have been in the filter's cgroup before */
		return 0;
	}
	record = ended_of(&key);
	if (!record) {
		count_process_loss(PROCESS_LOSS_ENDED_TABLE_FULL);
		if (mem_on && is_last)
			mem_forget(task);
		return 0;
	}
	__sync_fetch_and_add(&record->threads, 1);
	if (cpu_on)
		cpu_thread_exit(record, task);
	if (disk_on)
		disk_thread_exit(record, task);
	if (!is_last)
		return 0;
	record->head = RECORD_HEAD(SECTION_PROCESS, PROCESS_KIND_ENDED, *record);
	read_process(true, &record->info, task);
	*(struct task_struct **)&record->task = task->group_leader;
	*(struct signal_struct **)&record->signal = task->signal;
	if (cpu_on)
		cpu_last_exit(record, task);
	if (disk_on)
		disk_last_exit(&key);
	if (mem_on)
		mem_last_exit(record, task, key.start_ns);
	if (slab_on)
		slab_last_exit(record, task);
	record->ended_ns = bpf_ktime_get_ns();
	/* stored, for two threads that exit at once may both be the last; the release is later */
	record->flags = ENDED_EXITED;
	count_change(PROCESS_CHANGE_ENDED);
	return 0;
}

/*
 * A task is released, some ms after its last switch, in the context of RCU. Pointers to
 * other tasks may be stale, but signal_struct is still valid. Only leaders are handled: the
 * leader is the last task of its process to be released, and by then signal_struct holds the
 * totals of all threads.
 */
SEC("tp_btf/sched_process_free")
int BPF_PROG(process_release, struct task_struct *task)
{
	struct process_key key = process_key_of_leader(task);
	struct process_overflow_record *sum = NULL;
	struct process_ended_record *record;
	u32 zero = 0;

	if (task->pid != task->tgid)
		return 0;
	remove_from_filter(task);
	forget_place(&key);
	record = bpf_map_lookup_elem(&ended, &key);
	if (!record && filter_mode == FILTER_ALL) {
		/* its exit was not seen, or found no room */
		record = ended_of(&key);
		if (!record)
			sum = bpf_map_lookup_elem(&overflow, &zero);
	}
	if (sum)
		sum->processes += 1;
	if (cpu_on)
		cpu_release(record, sum ? &sum->cpu : NULL, task);
	if (disk_on)
		disk_release(record, task);
	if (mem_on)
		mem_release(record, sum ? &sum->mem : NULL, task);
	if (slab_on)
		slab_release(record, sum ? &sum->slab : NULL, task);
	if (!record)
		return 0;
	if (!(record->flags & ENDED_EXITED)) {
		record->head = RECORD_HEAD(SECTION_PROCESS, PROCESS_KIND_ENDED, *record);
		record->info.tgid = key.tgid;
		record->info.process_start_ns = key.start_ns;
		record->info.namespace_pid = 0;
		read_owner(true, &record->info, task);
		record->ended_ns = bpf_ktime_get_ns();
	}
	__builtin_memcpy(record->info.comm, task->comm, sizeof(record->info.comm));
	record->info.threads = record->threads;
	record->flags = ENDED_EXITED | ENDED_RELEASED;
	count_change(PROCESS_CHANGE_ENDED);
	return 0;
}

/*
 * A cgroup is removed. Nothing can find its path afterwards. It is the path at this moment:
 * a cgroup of v1 may have been renamed, and so may those above it.
 */
SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(process_on_cgroup_removal, struct cgroup *group, const char *path)
{
	if (!is_in_hierarchy(group, (void *)bpf_get_current_task()))
		return 0;
	if (!store_path(group, path))
		count_process_loss(PROCESS_LOSS_CGROUP_PATH_MISSING);
	count_change(PROCESS_CHANGE_CGROUP_REMOVED);
	return 0;
}

/*
 * A thread has moved to another cgroup, or a process with all its threads. The kernel holds
 * the mutex of cgroups: one move at a time.
 */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(process_on_move, struct cgroup *group, const char *path, struct task_struct *task,
	     bool all)
{
	bool has_room;
	u64 to;

	if (!is_in_hierarchy(group, task))
		return 0;
	to = BPF_CORE_READ(group, kn, id);
	if (filter_mode == FILTER_CGROUP) {
		if (!is_below_filter_cgroup(group, to))
			to = CGROUP_OUTSIDE;
	} else if (!passes_filter_as(task, task->tgid)) {
		return 0;
	}
	count_change(PROCESS_CHANGE_MOVE_BEGUN);
	if (all || task->pid == task->tgid)
		has_room = move_process(task, to, !all);
	else
		has_room = move_one_thread(task, to, false);
	if (!has_room)
		count_process_loss(PROCESS_LOSS_CGROUP_MOVE_MISSING);
	count_change(PROCESS_CHANGE_MOVE_DONE);
	return 0;
}

/*
 * BPF's clock and the scheduler's clock. User space runs the program that reads them, right
 * after it has made the scheduler update its clock; it is not attached to a hook.
 */
struct process_clocks_record {
	u64 scheduler_ns;
	u64 monotonic_ns; /* read here because user space may be in a time namespace */
	u64 is_set;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct process_clocks_record);
} clocks SEC(".maps");

SEC("raw_tp/process_clocks")
int process_read_clocks(void *ctx)
{
	/* bpf_get_current_task_btf() came in 5.11 */
	struct task_struct *task = (void *)bpf_get_current_task();
	u32 zero = 0;
	struct process_clocks_record *c = bpf_map_lookup_elem(&clocks, &zero);
	struct rq *rq;
	u64 task_clock;

	/* types that no map has; the Rust types are generated from the BTF */
	EMIT_BTF(struct process_walk_record);
	EMIT_BTF(struct process_process_record);
	EMIT_BTF(struct process_thread_record);
	EMIT_BTF(struct process_settled_record);
	EMIT_BTF(struct process_parent_record);
	EMIT_BTF(enum process_cgroup);
	EMIT_BTF(enum process_change);
	EMIT_BTF(enum process_flags);
	EMIT_BTF(enum process_kind);
	EMIT_BTF(enum section_number);
	EMIT_BTF(enum process_loss);
	EMIT_BTF(enum ended_flags);
	EMIT_BTF(enum filter_mode);
	EMIT_BTF(struct cpu_task_record);
	EMIT_BTF(struct cpu_cpu_record);
	EMIT_BTF(enum cpu_kind);
	EMIT_BTF(enum cpu_loss);
	EMIT_BTF(enum cpu_task_flags);
	EMIT_BTF(enum cpu_cpu_flags);
	EMIT_BTF(struct mem_task_record);
	EMIT_BTF(struct mem_held_record);
	EMIT_BTF(enum mem_kind);
	EMIT_BTF(enum mem_loss);
	EMIT_BTF(enum mem_held_flags);
	EMIT_BTF(struct disk_task_record);
	EMIT_BTF(enum disk_kind);
	EMIT_BTF(struct slab_process_record);
	EMIT_BTF(enum slab_kind);
	EMIT_BTF(enum slab_loss);
	if (!c || !has_run_queue())
		return 0;
	rq = BPF_CORE_READ(task, se.cfs_rq, rq);
	task_clock = BPF_CORE_READ(rq, clock_task);
	c->scheduler_ns =
	    BPF_CORE_READ(task, se.exec_start) + BPF_CORE_READ(rq, clock) - task_clock;
	c->monotonic_ns = bpf_ktime_get_ns();
	c->is_set = 1;
	return 0;
}
