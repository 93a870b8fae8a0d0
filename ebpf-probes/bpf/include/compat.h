/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * One accessor per difference between kernels, each with the change that introduced it.
 * Probes use these accessors and never check a kernel version.
 */
#ifndef EBPFMETRICS_COMPAT_H
#define EBPFMETRICS_COMPAT_H

#include "common.h"

/*
 * Without CONFIG_SCHED_INFO (neither SCHEDSTATS nor TASK_DELAY_ACCT) the kernel does not
 * measure the time that tasks wait for a CPU.
 */
static __always_inline bool has_run_queue_wait(void)
{
	return bpf_core_field_exists(((struct sched_info *)0)->run_delay);
}

/*
 * Whether cfs_rq->rq leads to the run queue of a task. It exists with
 * CONFIG_FAIR_GROUP_SCHED, and is valid for tasks of every scheduling class.
 */
static __always_inline bool has_run_queue(void)
{
	return bpf_core_field_exists(((struct cfs_rq *)0)->rq);
}

/*
 * Whether a task is of the fair class, which sets prev_sum_exec_runtime: the CPU time that
 * the task had when it was picked to run.
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
 * Whether a task is being charged for CPU time. A task that has gone to sleep stays current
 * while the scheduler looks for another task, which may take long. It is not charged for
 * that time.
 */
static __always_inline bool is_running(struct task_struct *task, struct rq *rq)
{
	u32 queued = 0;

	/* by helper: it is one byte in 7.x */
	bpf_core_read(&queued, bpf_core_field_size(task->on_rq), &task->on_rq);
	if (rq->curr != task || !queued)
		return false;
	/* since 6.12 a sleeping task may stay queued */
	return !bpf_core_field_exists(task->se.sched_delayed) ||
	       !*(volatile unsigned char *)&task->se.sched_delayed;
}

/* Whether a task may still be on a CPU: yes where the kernel, built for one CPU, does not say. */
static __always_inline bool is_on_cpu(struct task_struct *task)
{
	u32 on_cpu = 0;

	if (!bpf_core_field_exists(task->on_cpu))
		return true;
	/* by helper: it is one byte in 7.x */
	bpf_core_read(&on_cpu, bpf_core_field_size(task->on_cpu), &task->on_cpu);
	return on_cpu;
}

/* Whether a run queue has the CPU time of all its tasks: CONFIG_SCHEDSTATS. */
static __always_inline bool has_run_queue_cpu_time(void)
{
	return bpf_core_field_exists(((struct rq *)0)->rq_cpu_time);
}

/* Whether the scheduler accounts for stolen time: CONFIG_PARAVIRT_TIME_ACCOUNTING. */
static __always_inline bool has_seen_steal(void)
{
	return bpf_core_field_exists(((struct rq *)0)->prev_steal_time_rq);
}

/*
 * FOLLOW(rarely, task, cred, uid.val) is task->cred->uid.val. `rarely` is a constant. If it
 * is true, pointers are read by helpers, which costs some 10 ns each. If it is false, they are
 * loaded directly, which costs 0.85 ms each when the program is loaded: the verifier searches
 * all of the kernel's BTF for names (6.2 to 6.18; 6.19 sorts it). True is for programs that
 * run at most once per process.
 */
#define FOLLOW(rarely, task, ...)                                                                  \
	((rarely) ? BPF_CORE_READ(task, __VA_ARGS__) : ___arrow(task, __VA_ARGS__))

/*
 * The id of a task in the PID namespace of this level; 0 is the initial one. `numbers` is an array of one element in 5.10 and a flexible
 * array since 6.5 (b69f0aeb0689 "pid: Replace struct pid 1-element array with flex-array").
 * Relocations cannot access elements of a flexible array, so the address is computed here. It
 * is a number because before 5.11 pointers to kernel types cannot have variable offsets.
 */
static __always_inline u32 pid_at_level(struct task_struct *task, u32 level)
{
	u64 address = 0;
	u32 nr = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &task->thread_pid);
	address += bpf_core_field_offset(struct pid, numbers) +
		   (u64)level * bpf_core_type_size(struct upid) +
		   bpf_core_field_offset(struct upid, nr);
	bpf_probe_read_kernel(&nr, sizeof(nr), (void *)address);
	return nr;
}

/*
 * The id of a task in its own PID namespace. `tid` is its id in the initial one; `rarely` is a
 * constant, as for FOLLOW().
 */
static __always_inline u32 namespace_pid(bool rarely, struct task_struct *task, u32 tid)
{
	struct pid *pid = FOLLOW(rarely, task, thread_pid);

	if (!pid || !FOLLOW(rarely, pid, level)) /* none, or the initial namespace */
		return tid;
	return pid_at_level(task, FOLLOW(rarely, pid, level));
}

#endif
