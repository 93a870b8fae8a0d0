/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * One accessor per difference between kernels, each with the change that made
 * it. Probes read through these and never ask for a version.
 */
#ifndef EBPFMETRICS_COMPAT_H
#define EBPFMETRICS_COMPAT_H

#include "common.h"

/*
 * Without CONFIG_SCHED_INFO (neither SCHEDSTATS nor TASK_DELAY_ACCT) a task has
 * no run queue wait.
 */
static __always_inline bool has_run_queue_wait(void)
{
	return bpf_core_field_exists(((struct sched_info *)0)->run_delay);
}

/*
 * The run queue that a task stands on. cfs_rq->rq is there with
 * CONFIG_FAIR_GROUP_SCHED, and holds for tasks of every scheduling class.
 */
static __always_inline bool has_run_queue(void)
{
	return bpf_core_field_exists(((struct cfs_rq *)0)->rq);
}

/*
 * Whether a task is of the fair class, which keeps prev_sum_exec_runtime: the
 * CPU time that the task had when it was picked to run.
 */
static __always_inline bool is_fair(struct task_struct *task)
{
	return task->prio >= 100; /* MAX_RT_PRIO */
}

static __always_inline bool has_sum_at_pick(void)
{
	return bpf_core_field_exists(((struct sched_entity *)0)->prev_sum_exec_runtime);
}

/*
 * Whether time goes on its books. A task that has gone to sleep stays current while
 * the scheduler looks for another, which may take long, and is not charged for that.
 */
static __always_inline bool is_running(struct task_struct *task, struct rq *rq)
{
	u32 queued = 0;

	/* by helper: it is one byte in 7.x */
	bpf_core_read(&queued, bpf_core_field_size(task->on_rq), &task->on_rq);
	if (rq->curr != task || !queued)
		return false;
	/* since 6.12 it may sleep and stay queued */
	return !bpf_core_field_exists(task->se.sched_delayed) ||
	       !*(volatile unsigned char *)&task->se.sched_delayed;
}

/* The time of all tasks on a run queue: CONFIG_SCHEDSTATS. */
static __always_inline bool has_run_queue_cpu_time(void)
{
	return bpf_core_field_exists(((struct rq *)0)->rq_cpu_time);
}

/* What the scheduler knows of stolen time: CONFIG_PARAVIRT_TIME_ACCOUNTING. */
static __always_inline bool has_seen_steal(void)
{
	return bpf_core_field_exists(((struct rq *)0)->prev_steal_time_rq);
}

/*
 * FOLLOW(rarely, task, cred, uid.val) is task->cred->uid.val; rarely by helper, some
 * 10 ns per pointer. A pointer that is loaded directly costs 0.85 ms when the program
 * is loaded, where the verifier looks for names by going through all of the kernel's
 * BTF (6.2 up to 6.18; 6.19 sorts it): for programs that run once per process.
 */
#define FOLLOW(rarely, task, ...)                                                                  \
	((rarely) ? BPF_CORE_READ(task, __VA_ARGS__) : ___arrow(task, __VA_ARGS__))

/*
 * The pid of a task in its own PID namespace, `tid` being that in the initial one;
 * `rarely` as for FOLLOW(). `numbers` is an array of one in 5.10 and a flexible array
 * since 6.5 (b69f0aeb0689 "pid: Replace struct pid 1-element array with flex-array"),
 * whose elements a relocation cannot reach: step over it by hand, with the address
 * as a number, for before 5.11 a pointer to a kernel type takes no variable offset.
 */
static __always_inline u32 namespace_pid(bool rarely, struct task_struct *task, u32 tid)
{
	struct pid *pid = FOLLOW(rarely, task, thread_pid);
	u64 address = 0;
	u32 nr = 0;

	if (!pid || !FOLLOW(rarely, pid, level)) /* none, or the initial namespace */
		return tid;
	bpf_probe_read_kernel(&address, sizeof(address), &task->thread_pid);
	address += bpf_core_field_offset(struct pid, numbers) +
		   (u64)FOLLOW(rarely, pid, level) * bpf_core_type_size(struct upid) +
		   bpf_core_field_offset(struct upid, nr);
	bpf_probe_read_kernel(&nr, sizeof(nr), (void *)address);
	return nr;
}

#endif
