// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * System calls per process, counted where they begin and where they end. Nothing
 * here is known to ebpfmetrics: it compiles against the headers of ebpf-probes.
 */
#include "task.h"

EBPFMETRICS_LICENSE;

/* Names and order are those of `LOSSES` in src/record.rs. */
enum syscalls_loss {
	SYSCALLS_LOSS_PROCESS_TABLE_FULL, /* `counts` full: a call or an error is missing */
	SYSCALLS_LOSS_EXIT_STATE_FULL, /* `ending` full: little is known of a process that ended */
	SYSCALLS_LOSSES,
};

DEFINE_LOSSES(SYSCALLS_LOSSES)

enum record_kind {
	RECORD_PROCESS = 1,
};

/* A process: alive, at its exit, or ended. */
struct syscalls_process_record {
	struct record_head head;
	struct task_about about;
	u64 calls;
	u64 errors;
	u64 ended_ns; /* CLOCK_MONOTONIC */
};

struct syscalls_count {
	u64 calls;
	u64 errors;
	u64 ended_threads;
};

/*
 * By process, from its first call that the probe sees to its release; sized by user
 * space, preallocated. Threads of one process add from several CPUs: atomic adds.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct process_key);
	__type(value, struct syscalls_count);
} counts SEC(".maps");

/*
 * 8,192 processes between exit and release (an RCU grace period after somebody
 * waited for them), allocated as used. Written by the last thread of each.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, struct syscalls_process_record);
} ending SEC(".maps");

/*
 * Final records since user space last collected them, allocated as used; sized by
 * user space. Each is written once, at the release of its process.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct process_key);
	__type(value, struct syscalls_process_record);
} exited SEC(".maps");

/* The sum of the final records that `exited` had no room for. Per-CPU: one writer each. */
struct syscalls_folded_record {
	u64 processes;
	u64 calls;
	u64 errors;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct syscalls_folded_record);
} folded SEC(".maps");

/* Where to count what a process does; counts the loss where there is no room. */
static __always_inline struct syscalls_count *count_of(const struct process_key *key)
{
	static const struct syscalls_count none;
	struct syscalls_count *count = bpf_map_lookup_elem(&counts, key);

	if (count)
		return count;
	bpf_map_update_elem(&counts, key, &none, BPF_NOEXIST);
	count = bpf_map_lookup_elem(&counts, key);
	if (!count)
		count_loss(SYSCALLS_LOSS_PROCESS_TABLE_FULL);
	return count;
}

static __always_inline struct syscalls_count *count_of_current(void)
{
	/* bpf_get_current_task_btf() came in 5.11 */
	struct task_struct *task = (void *)bpf_get_current_task();
	struct process_key key = {
	    .start_ns = BPF_CORE_READ(task, group_leader, start_boottime),
	    .tgid = bpf_get_current_pid_tgid() >> 32,
	};

	return count_of(&key);
}

struct pt_regs;

SEC("tp_btf/sys_enter")
int BPF_PROG(syscalls_enter, struct pt_regs *regs, long id)
{
	struct syscalls_count *count = count_of_current();

	if (count)
		__sync_fetch_and_add(&count->calls, 1);
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(syscalls_leave, struct pt_regs *regs, long result)
{
	struct syscalls_count *count;

	if (result >= 0 || result < -4095) /* MAX_ERRNO */
		return 0;
	count = count_of_current();
	if (count)
		__sync_fetch_and_add(&count->errors, 1);
	return 0;
}

/* Puts into a record what was counted; tells how many of its threads have ended. */
static __always_inline u32 read_count(struct syscalls_process_record *r,
				      const struct process_key *key)
{
	struct syscalls_count *count = bpf_map_lookup_elem(&counts, key);

	if (!count)
		return 0;
	/* an error is counted after its call: read first, there are never more of them */
	r->errors = *(volatile u64 *)&count->errors;
	r->calls = *(volatile u64 *)&count->calls;
	return count->ended_threads;
}

SEC("iter/task")
int syscalls_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct syscalls_process_record r = {};
	struct process_key key = {};

	if (!task)
		return 0;
	/* counted by process: its leader stands for it */
	if (task->pid != task->tgid || !read_about(&r.about, task))
		HAND_ON(ctx);
	r.head = RECORD_HEAD(RECORD_PROCESS, r);
	key.start_ns = r.about.process_start_ns;
	key.tgid = r.about.tgid;
	read_count(&r, &key);
	if (is_being_released(task))
		HAND_ON(ctx);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	HAND_ON(ctx);
}

/*
 * A thread exits, in its own context, and makes no more calls. The last one leaves
 * behind who the process was.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(syscalls_exit, struct task_struct *task)
{
	struct process_key key = process_key_of(task);
	struct syscalls_count *count = count_of(&key);
	struct syscalls_process_record r = {};

	if (count)
		__sync_fetch_and_add(&count->ended_threads, 1);
	if (task->signal->live.counter != 0)
		return 0;
	read_about_at_exit(&r.about, task);
	r.head = RECORD_HEAD(RECORD_PROCESS, r);
	read_count(&r, &key);
	r.ended_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&ending, &key, &r, BPF_ANY))
		count_loss(SYSCALLS_LOSS_EXIT_STATE_FULL);
	return 0;
}

/*
 * A task is released, some ms after its last switch, in whatever context RCU runs.
 * The leader is the last of its process to be released: this is the final record.
 */
SEC("tp_btf/sched_process_free")
int BPF_PROG(syscalls_release, struct task_struct *task)
{
	struct process_key key = {.start_ns = task->start_boottime, .tgid = task->tgid};
	struct syscalls_process_record r = {};
	struct syscalls_process_record *last;
	u32 zero = 0;

	/* of this the BTF would else not tell */
	TELL_BTF(enum syscalls_loss);
	if (task->pid != task->tgid)
		return 0;
	last = bpf_map_lookup_elem(&ending, &key);
	if (last)
		r = *last;
	r.head = RECORD_HEAD(RECORD_PROCESS, r);
	read_about_released(&r.about, task);
	r.about.threads = read_count(&r, &key);
	if (!r.ended_ns)
		r.ended_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&exited, &key, &r, BPF_ANY)) {
		struct syscalls_folded_record *f = bpf_map_lookup_elem(&folded, &zero);

		if (f) {
			f->processes += 1;
			f->calls += r.calls;
			f->errors += r.errors;
		}
	}
	bpf_map_delete_elem(&counts, &key);
	bpf_map_delete_elem(&ending, &key);
	return 0;
}
