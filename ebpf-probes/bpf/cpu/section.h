/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The CPU probe's part of the walk and of final records. */
#ifndef EBPFMETRICS_CPU_SECTION_H
#define EBPFMETRICS_CPU_SECTION_H

#include "process/ended.h"
#include "process/sections.h"
#include "cpu/maps.h"

/* Set before loading. */
const volatile bool cpu_on = false;
const volatile bool cpu_account_switches = false;
/*
 * Offsets of the per-CPU variables runqueues, root_cpuacct_cpuusage, steal_time and
 * kernel_cpustat in the per-CPU area, from the kernel's BTF. Their differences lead from one
 * variable to another. 0 if the BTF does not have the variable.
 */
const volatile u64 cpu_runqueues_offset = 0;
const volatile u64 cpu_cpuacct_offset = 0;
const volatile u64 cpu_steal_time_offset = 0;
const volatile u64 cpu_ticks_offset = 0;

enum cpu_kind {
	CPU_KIND_TASK = 1,
	CPU_KIND_CPU = 2, /* about a CPU, not about a task */
};

enum cpu_task_flags {
	CPU_TASK_RUNNING = 1 << 0, /* running_raw_ns is set */
	CPU_TASK_SWITCHED_IN = 1 << 1, /* switched_in_ns is set */
	CPU_TASK_HAS_RUN_QUEUE_WAIT = 1 << 2,
	CPU_TASK_WAITING = 1 << 3, /* queued_raw_ns is set */
};

/*
 * One task. `dead` are the totals of threads of the same process that were released before;
 * user space adds them up.
 */
struct cpu_task_record {
	struct record_head head;
	struct cpu_totals_record own;
	struct cpu_totals_record dead; /* charged_ns: of the whole process */
	/*
	 * For a task on a CPU: the current time on BPF's clock minus the time of the last update
	 * of sum_exec_ns on the scheduler's clock. User space subtracts the offset between these
	 * clocks.
	 */
	u64 running_raw_ns;
	u64 arrived_raw_ns; /* the same, since it was switched in */
	u64 queued_raw_ns; /* the same, since it began to wait for a CPU */
	u64 read_at_ns; /* CLOCK_MONOTONIC; set if it runs or waits */
	u64 switched_in_ns; /* SchedSwitch: sum_exec_ns when it was switched in */
	u32 cpu;
	u32 flags;
};

enum cpu_cpu_flags {
	CPU_CPU_HAS_IDLE = 1 << 0,
	CPU_CPU_IDLE_LACKS_CLOCK_OFFSET = 1 << 1, /* add BPF's clock minus the scheduler's */
	CPU_CPU_IDLE_HOLDS_INTERRUPTED = 1 << 2, /* subtract interrupted_ns */
	CPU_CPU_HAS_TICKS = 1 << 3, /* irq_ns and the fields after it are set */
};

struct cpu_cpu_record {
	struct record_head head;
	u32 cpu;
	u32 flags;
	u64 now_ns;
	u64 idle_ns; /* only differences are meaningful */
	u64 interrupted_ns; /* interrupts and stolen time, as far as the kernel accounts for them */
	/* what the kernel adds up at ticks */
	u64 irq_ns;
	u64 softirq_ns;
	u64 steal_ns;
	u64 guest_ns; /* also in the time of tasks */
};

static __always_inline u64 cpu_charged_to(u64 owner, u32 tgid)
{
	u32 index = tgid & cpu_slot_mask;
	struct cpu_slot *slot = bpf_map_lookup_elem(&cpu_slots, &index);
	u64 *more = bpf_map_lookup_elem(&cpu_overflow, &owner), charged = 0;

	if (slot && slot->owner == owner)
		charged = slot->charged_ns;
	if (more)
		charged += *more;
	return charged;
}

static __always_inline void cpu_forget(u64 owner, u32 tgid)
{
	u32 index = tgid & cpu_slot_mask;
	struct cpu_slot *slot = bpf_map_lookup_elem(&cpu_slots, &index);

	if (slot && slot->owner == owner) {
		slot->charged_ns = 0;
		*(volatile u64 *)&slot->owner = 0;
		*(volatile u64 *)&slot->claims = 0;
	}
	bpf_map_delete_elem(&cpu_overflow, &owner);
}

/* The address of the variable at this offset in the per-CPU area of the same CPU. */
static __always_inline u64 cpu_beside_run_queue(struct cfs_rq *cfs_rq, u64 offset)
{
	u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &cfs_rq->rq);
	return address + offset - cpu_runqueues_offset;
}

/* What KVM reports to a guest about a CPU: the start of struct kvm_steal_time, which is ABI. */
struct stolen_time {
	u64 ns;
	u32 version;
	u32 flags;
	u8 preempted;
	u8 padding[7];
};

/*
 * Time that the hypervisor took from a CPU since the scheduler's last update. It is not time
 * of the running task; the scheduler leaves it out at its next update. Returns a value that
 * is larger than any time since then if the hypervisor has taken the CPU away right now.
 */
static __always_inline u64 cpu_unseen_steal(struct cfs_rq *cfs_rq)
{
	u64 seen = has_seen_steal() ? cfs_rq->rq->prev_steal_time_rq : 0;
	struct stolen_time steal = {};

	/* 0: the kernel does not account for stolen time */
	if (!cpu_steal_time_offset || !seen ||
	    bpf_probe_read_kernel(&steal, sizeof(steal),
				  (void *)cpu_beside_run_queue(cfs_rq, cpu_steal_time_offset)))
		return 0;
	return steal.preempted & 1 ? ~0ULL >> 1 : steal.ns - seen;
}

/* Reads the time that the scheduler has not added to sum_exec_runtime of a running task yet. */
static __always_inline void cpu_read_running(struct cpu_task_record *r, struct task_struct *task)
{
	struct rq *rq = task->se.cfs_rq->rq;
	u64 now;

	r->cpu = rq->cpu;
	if (rq->curr != task) {
		/* waits for a CPU since last_queued */
		if (has_run_queue_wait() && task->sched_info.last_queued) {
			r->read_at_ns = bpf_ktime_get_ns();
			r->queued_raw_ns = r->read_at_ns - task->sched_info.last_queued;
			r->flags |= CPU_TASK_WAITING;
		}
		return;
	}
	/*
	 * Sum and start must belong together: read again if an update came in between. Check
	 * last whether the task still runs, because this CPU may be interrupted here for long.
	 */
	for (int i = 0; i < 3; i++) {
		u64 start = *(volatile u64 *)&task->se.exec_start;
		u64 task_clock = *(volatile u64 *)&rq->clock_task;
		u64 behind = *(volatile u64 *)&rq->clock - task_clock;

		r->own.sum_exec_ns = *(volatile u64 *)&task->se.sum_exec_runtime;
		now = bpf_ktime_get_ns();
		r->read_at_ns = now;
		r->running_raw_ns = now - behind - start - cpu_unseen_steal(task->se.cfs_rq);
		if (has_run_queue_wait())
			r->arrived_raw_ns = now - *(volatile u64 *)&task->sched_info.last_arrival;
		if (!is_running(task, rq))
			break;
		if (*(volatile u64 *)&task->se.exec_start == start &&
		    *(volatile u64 *)&rq->clock_task == task_clock) {
			r->flags |= CPU_TASK_RUNNING;
			return;
		}
	}
	r->own.sum_exec_ns = *(volatile u64 *)&task->se.sum_exec_runtime;
}

/* The sum_exec_runtime with which a task was switched in, if it is on this CPU. */
static __always_inline bool cpu_read_current(struct cpu_current *current, u64 signal, u32 tid,
					     u64 *sum_exec_ns)
{
	if (*(volatile u32 *)&current->tid != tid || *(volatile u64 *)&current->signal != signal)
		return false;
	*sum_exec_ns = *(volatile u64 *)&current->sum_exec_ns;
	return *(volatile u32 *)&current->tid == tid;
}

/*
 * SchedSwitch: the slice of a process that has exited but has not left its CPU yet. It is
 * charged when it leaves. Call it after cpu_charged_to(): a switch in between then leaves the
 * slice out until the next read, and never counts it twice.
 */
static __always_inline u64 cpu_last_slice(struct task_struct *task, u64 signal)
{
	struct cpu_current *current;
	u64 came_with = 0, sum;
	u32 cpu;

	if (!has_run_queue())
		return 0;
	cpu = BPF_CORE_READ(task, se.cfs_rq, rq, cpu);
	current = bpf_map_lookup_elem(&cpu_current_tasks, &cpu);
	sum = BPF_CORE_READ(task, se.sum_exec_runtime);
	if (!current || !cpu_read_current(current, signal, BPF_CORE_READ(task, pid), &came_with))
		return 0;
	return sum > came_with ? sum - came_with : 0;
}

/* SchedSwitch: reads what was charged to the process, and since when the task runs. */
static __always_inline void cpu_read_charges(struct cpu_task_record *r, struct task_struct *task)
{
	u32 cpu = r->cpu, tid = task->pid;
	struct cpu_current *current;

	r->dead.charged_ns = cpu_charged_to(cpu_owner(signal_of(task), task->tgid), task->tgid);
	if (!(r->flags & CPU_TASK_RUNNING))
		return;
	current = bpf_map_lookup_elem(&cpu_current_tasks, &cpu);
	if (!current)
		return;
	if (!current->signal && !current->primed_tid) {
		current->primed_sum_exec_ns = r->own.sum_exec_ns;
		*(volatile u32 *)&current->primed_tid = tid;
	}
	r->flags |= CPU_TASK_SWITCHED_IN;
	if (cpu_read_current(current, signal_of(task), tid, &r->switched_in_ns))
		return;
	if (!current->signal && current->primed_tid == tid)
		r->switched_in_ns = current->primed_sum_exec_ns;
	else if (is_fair(task) && has_sum_at_pick()) /* its switch was hidden */
		bpf_core_read(&r->switched_in_ns, sizeof(r->switched_in_ns),
			      &task->se.prev_sum_exec_runtime);
	else
		r->flags &= ~CPU_TASK_SWITCHED_IN;
}

/* Reads the sums over dead threads that the kernel keeps. */
static __always_inline void cpu_read_dead(struct cpu_totals_record *dead,
					  struct signal_struct *signal)
{
	dead->sum_exec_ns = signal->sum_sched_runtime;
	dead->user_ns = signal->utime;
	dead->system_ns = signal->stime;
	dead->voluntary_switches = signal->nvcsw;
	dead->involuntary_switches = signal->nivcsw;
}

static __always_inline void cpu_walk_task(struct bpf_iter__task *ctx, struct task_struct *task,
					  struct process_ended_record *dead)
{
	struct cpu_task_record r = {.head = RECORD_HEAD(SECTION_CPU, CPU_KIND_TASK, r)};

	r.own.sum_exec_ns = task->se.sum_exec_runtime;
	r.own.user_ns = task->utime;
	r.own.system_ns = task->stime;
	r.own.voluntary_switches = task->nvcsw;
	r.own.involuntary_switches = task->nivcsw;
	if (has_run_queue_wait())
		r.flags |= CPU_TASK_HAS_RUN_QUEUE_WAIT;
	/* waits and migrations of an exiting thread are in `ended`: do not count them twice */
	if (!(task->flags & PF_EXITING)) {
		if (has_run_queue_wait())
			r.own.run_queue_wait_ns = task->sched_info.run_delay;
		r.own.migrations = task->se.nr_migrations;
	}
	cpu_read_dead(&r.dead, task->signal);
	if (dead) {
		r.dead.run_queue_wait_ns = dead->cpu.totals.run_queue_wait_ns;
		r.dead.migrations = dead->cpu.totals.migrations;
	}
	if (has_run_queue())
		cpu_read_running(&r, task);
	if (cpu_account_switches)
		cpu_read_charges(&r, task);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

/*
 * Idle time of a CPU: all time in which no task ran, on kernels whose scheduler keeps the
 * time of all tasks. A task that is being switched in becomes current before its arrival is
 * stored; until then it still counts as queued: read again.
 */
static __always_inline void cpu_idle_from_run_queue(struct cpu_cpu_record *r, struct rq *rq)
{
	for (int i = 0; i < 8; i++) {
		u64 tasks = *(volatile u64 *)&rq->rq_cpu_time;
		struct task_struct *task = rq->curr;

		r->now_ns = bpf_ktime_get_ns();
		if (!task->pid) {
			r->idle_ns = r->now_ns - tasks;
			r->flags = CPU_CPU_HAS_IDLE;
		} else if (!task->sched_info.last_queued) {
			r->idle_ns = task->sched_info.last_arrival - tasks;
			r->flags = CPU_CPU_HAS_IDLE | CPU_CPU_IDLE_LACKS_CLOCK_OFFSET;
		} else {
			continue;
		}
		if (*(volatile u64 *)&rq->rq_cpu_time == tasks)
			return;
	}
	r->flags = 0;
}

/*
 * The same, from the time that the scheduler charged to all tasks of a CPU. It does not
 * charge interrupts and stolen time, so the idle time still includes them here.
 */
static __always_inline void cpu_idle_from_cpuacct(struct cpu_cpu_record *r, struct cfs_rq *cfs_rq)
{
	struct rq *rq = cfs_rq->rq;
	u64 address = cpu_beside_run_queue(cfs_rq, cpu_cpuacct_offset), charged = 0, again = 0;

	for (int i = 0; i < 3; i++) {
		struct task_struct *task = rq->curr;

		if (bpf_probe_read_kernel(&charged, sizeof(charged), (void *)address))
			return;
		r->now_ns = bpf_ktime_get_ns();
		r->flags = CPU_CPU_HAS_IDLE | CPU_CPU_IDLE_HOLDS_INTERRUPTED;
		if (!task->pid) {
			r->idle_ns = r->now_ns - charged;
		} else {
			r->idle_ns = task->se.exec_start + r->interrupted_ns - charged;
			r->flags |= CPU_CPU_IDLE_LACKS_CLOCK_OFFSET;
		}
		bpf_probe_read_kernel(&again, sizeof(again), (void *)address);
		if (again == charged)
			return;
	}
}

/* A column of /proc/stat, in ns. False if it cannot be read. */
static __always_inline bool cpu_read_column(u64 *ns, u64 *columns, u32 column)
{
	return !bpf_probe_read_kernel(ns, sizeof(*ns), columns + column);
}

#define CPU_COLUMN(name) bpf_core_enum_value(enum cpu_usage_stat, CPUTIME_##name)

static __always_inline void cpu_read_ticks(struct cpu_cpu_record *r, struct cfs_rq *cfs_rq)
{
	u64 *columns, guest_nice;

	if (!cpu_ticks_offset)
		return;
	columns = (void *)(cpu_beside_run_queue(cfs_rq, cpu_ticks_offset) +
			   bpf_core_field_offset(struct kernel_cpustat, cpustat));
	if (!cpu_read_column(&r->irq_ns, columns, CPU_COLUMN(IRQ)) ||
	    !cpu_read_column(&r->softirq_ns, columns, CPU_COLUMN(SOFTIRQ)) ||
	    !cpu_read_column(&r->steal_ns, columns, CPU_COLUMN(STEAL)) ||
	    !cpu_read_column(&r->guest_ns, columns, CPU_COLUMN(GUEST)) ||
	    !cpu_read_column(&guest_nice, columns, CPU_COLUMN(GUEST_NICE)))
		return;
	r->guest_ns += guest_nice;
	r->flags |= CPU_CPU_HAS_TICKS;
}

/* Every CPU has one thread cpuhp/N that never leaves it. It leads to the run queue. */
static __always_inline bool cpu_has_run_queue_of(struct task_struct *task)
{
	return (task->flags & PF_KTHREAD) && task->comm[0] == 'c' && task->comm[1] == 'p' &&
	       task->comm[2] == 'u' && task->comm[3] == 'h' && task->comm[4] == 'p' &&
	       task->comm[5] == '/';
}

static __always_inline void cpu_walk_cpu(struct bpf_iter__task *ctx, struct task_struct *task)
{
	struct cfs_rq *cfs_rq;
	struct cpu_cpu_record r = {.head = RECORD_HEAD(SECTION_CPU, CPU_KIND_CPU, r)};
	u64 task_clock;

	if (!has_run_queue() || !cpu_has_run_queue_of(task))
		return;
	cfs_rq = task->se.cfs_rq;
	task_clock = *(volatile u64 *)&cfs_rq->rq->clock_task;
	r.cpu = cfs_rq->rq->cpu;
	r.interrupted_ns = cfs_rq->rq->clock - task_clock;
	if (has_run_queue_cpu_time())
		cpu_idle_from_run_queue(&r, cfs_rq->rq);
	else if (cpu_cpuacct_offset)
		cpu_idle_from_cpuacct(&r, cfs_rq);
	cpu_read_ticks(&r, cfs_rq);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

/* A thread exits. The kernel does not keep its waits and migrations. */
static __always_inline void cpu_thread_exit(struct process_ended_record *ended,
					    struct task_struct *task)
{
	if (has_run_queue_wait())
		__sync_fetch_and_add(&ended->cpu.totals.run_queue_wait_ns,
				     task->sched_info.run_delay);
	__sync_fetch_and_add(&ended->cpu.totals.migrations, task->se.nr_migrations);
}

static __always_inline void cpu_add_task(struct cpu_totals_record *sum, struct task_struct *task)
{
	sum->sum_exec_ns += task->se.sum_exec_runtime;
	sum->user_ns += task->utime;
	sum->system_ns += task->stime;
	sum->voluntary_switches += task->nvcsw;
	sum->involuntary_switches += task->nivcsw;
}

/*
 * The last thread exits: the best that is known until the release. Two threads that exit at
 * once may both be the last: each stores sums of its own, which are at most the truth.
 */
static __always_inline void cpu_last_exit(struct process_ended_record *ended,
					  struct task_struct *task)
{
	struct cpu_totals_record sum = {}, *totals = &ended->cpu.totals;

	cpu_read_dead(&sum, task->signal);
	cpu_add_task(&sum, task);
	/* a leader that exited before the last thread is in no sum until its release */
	if (task->pid != task->tgid)
		cpu_add_task(&sum, task->group_leader);
	totals->sum_exec_ns = sum.sum_exec_ns;
	totals->user_ns = sum.user_ns;
	totals->system_ns = sum.system_ns;
	totals->voluntary_switches = sum.voluntary_switches;
	totals->involuntary_switches = sum.involuntary_switches;
	if (cpu_account_switches)
		totals->charged_ns =
		    cpu_charged_to(cpu_owner(signal_of(task), task->tgid), task->tgid);
}

/* A process is released: signal_struct holds the times of all its threads. */
static __always_inline void cpu_release(struct process_ended_record *ended,
					struct cpu_totals_record *overflow,
					struct task_struct *leader)
{
	struct cpu_totals_record totals = {};

	cpu_read_dead(&totals, leader->signal);
	if (cpu_account_switches) {
		u64 owner = cpu_owner(signal_of(leader), leader->tgid);

		totals.charged_ns = cpu_charged_to(owner, leader->tgid);
		cpu_forget(owner, leader->tgid);
	}
	if (ended) {
		totals.run_queue_wait_ns = ended->cpu.totals.run_queue_wait_ns;
		totals.migrations = ended->cpu.totals.migrations;
		ended->cpu.totals = totals;
	} else if (overflow) {
		overflow->sum_exec_ns += totals.sum_exec_ns;
		overflow->charged_ns += totals.charged_ns;
		overflow->user_ns += totals.user_ns;
		overflow->system_ns += totals.system_ns;
		overflow->voluntary_switches += totals.voluntary_switches;
		overflow->involuntary_switches += totals.involuntary_switches;
	}
}

#endif
