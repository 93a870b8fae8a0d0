// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Settings of processes that the kernel keeps in its tasks. Nothing is attached: the program
 * runs as part of the walk that each snapshot makes.
 */
#include "probe.h"

EBPFMETRICS_LICENSE;

/* Fields that vmlinux.h does not declare; ___more is a second declaration of the same type. */
struct signal_struct___more {
	short oom_score_adj;
} __attribute__((preserve_access_index));

struct task_struct___more {
	u64 timer_slack_ns;
	struct signal_struct___more *signal;
} __attribute__((preserve_access_index));

enum tasks_kind {
	TASKS_KIND_TASK = 1,
};

/* One thread, for the process of the record before it. */
struct tasks_task_record {
	struct record_head head;
	u64 timer_slack_ns;
	s64 oom_score_adj;
};

SEC("iter/task")
int tasks_walk(struct bpf_iter__task *ctx)
{
	struct task_struct___more *task = (void *)ctx->task;
	struct tasks_task_record r = {.head = RECORD_HEAD(own_section, TASKS_KIND_TASK, r)};

	EMIT_BTF(enum tasks_kind);
	EMIT_BTF(struct tasks_task_record);
	if (!task)
		return 0;
	r.timer_slack_ns = BPF_CORE_READ(task, timer_slack_ns);
	r.oom_score_adj = BPF_CORE_READ(task, signal, oom_score_adj);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	CALL_NEXT(ctx);
}
