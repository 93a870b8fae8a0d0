// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * CPU time per process.
 *
 * Ledger: the kernel keeps the exact CPU time of every task. An iterator reads
 * it at the snapshot, and the release of a process hands over its last totals:
 * nothing runs per context switch.
 *
 * SchedSwitch: on every switch the task that leaves is charged what it ran
 * since it came. The amount is the growth of the scheduler's own
 * sum_exec_runtime, which leaves out time stolen by a hypervisor and spares the
 * 45 ns of a clock.
 */
#include "watch.h"

EBPFMETRICS_LICENSE;

/* Names and order are those of `LOSSES` in ebpfmetrics/src/probes/cpu/record.rs. */
enum cpu_loss {
	CPU_LOSS_EXIT_STATE_FULL, /* `ending` full: waits and migrations of dead threads missing */
	CPU_LOSS_SWITCH_UNMATCHED, /* a switch to this task was never seen: its slice is missing */
	CPU_LOSS_SWITCH_TABLE_FULL, /* `overflow` full: a slice is missing */
	CPU_LOSS_WATCH_TABLE_FULL, /* `watched` full: a process of a tree, and what it starts */
	CPU_LOSSES,
};

DEFINE_LOSSES(CPU_LOSSES)

/* Set before loading. */
const volatile bool account_switches = false;
const volatile u32 slot_mask = 0; /* entries of `slots` less one: a power of two less one */
/*
 * Where the per-CPU variables runqueues, root_cpuacct_cpuusage and steal_time lie
 * in the per-CPU area, from the kernel's BTF: their distance leads from the one to
 * the other. 0 where the BTF does not say.
 */
const volatile u64 runqueues_offset = 0;
const volatile u64 cpuacct_offset = 0;
const volatile u64 steal_time_offset = 0;

enum record_kind {
	RECORD_TASK = 1,
	RECORD_CPU = 2,
};

enum task_flags {
	TASK_RUNNING_NOW = 1 << 0, /* running_raw_ns is set */
	TASK_SWITCHED_IN = 1 << 1, /* switched_in_ns is set */
	TASK_HAS_RUN_QUEUE_WAIT = 1 << 2,
};

/*
 * One task. dead_* are the totals of threads of the same process that have been
 * released before; user space adds up what belongs together.
 */
struct cpu_task_record {
	struct record_head head;
	struct task_about about;
	u64 sum_exec_ns;
	u64 dead_sum_exec_ns;
	/*
	 * For a task on a CPU: now, on the clock of BPF, less the moment when
	 * sum_exec_ns was last brought up to date, on the clock of the scheduler.
	 * User space knows how far these clocks are apart.
	 */
	u64 running_raw_ns;
	u64 running_at_ns; /* that moment, CLOCK_MONOTONIC */
	u64 charged_ns; /* SchedSwitch: of the whole process */
	u64 switched_in_ns; /* SchedSwitch: sum_exec_ns when this task came on its CPU */
	u64 user_ns;
	u64 system_ns;
	u64 dead_user_ns;
	u64 dead_system_ns;
	u64 voluntary_switches;
	u64 involuntary_switches;
	u64 dead_voluntary_switches;
	u64 dead_involuntary_switches;
	u64 run_queue_wait_ns;
	u64 migrations;
	u64 dead_run_queue_wait_ns;
	u64 dead_migrations;
	u64 ended_ns; /* CLOCK_MONOTONIC */
	u32 cpu;
	u32 flags;
};

enum cpu_flags {
	CPU_HAS_IDLE = 1 << 0,
	CPU_IDLE_LACKS_CLOCK_OFFSET = 1 << 1, /* user space adds BPF's clock less the scheduler's */
	CPU_IDLE_HOLDS_INTERRUPTED = 1 << 2, /* user space takes interrupted_ns out */
};

struct cpu_cpu_record {
	struct record_head head;
	u32 cpu;
	u32 flags;
	u64 now_ns;
	u64 idle_ns; /* only differences mean anything */
	u64 interrupted_ns; /* interrupts and stolen time, as far as the kernel accounts them */
};

/*
 * What the dead threads of a process leave behind until the process itself is
 * released: the kernel sums up their time in signal_struct, but not their waits
 * and migrations. `last` is the process as its last thread exits, for what can
 * no longer be read at the release (the parent may be gone) and for kernels that
 * do not report the release.
 */
struct cpu_ending_record {
	u64 run_queue_wait_ns;
	u64 migrations;
	u32 threads;
	u32 last_is_set;
	struct cpu_task_record last;
};

/*
 * 8,192 entries, allocated as used: processes that lost a thread and processes
 * between exit and release (an RCU grace period). Written by exiting threads of
 * one process on several CPUs: atomic adds.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, struct cpu_ending_record);
} ending SEC(".maps");

/*
 * Final records since user space last collected them, allocated as used; sized
 * by user space. Each is written once, at the release of its process.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, struct cpu_task_record);
} exited SEC(".maps");

/* The sum of the final records that `exited` had no room for. Per-CPU: one writer each. */
struct cpu_folded_record {
	u64 processes;
	u64 sum_exec_ns;
	u64 charged_ns;
	u64 user_ns;
	u64 system_ns;
	u64 voluntary_switches;
	u64 involuntary_switches;
	u64 run_queue_wait_ns;
	u64 migrations;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu_folded_record);
} folded SEC(".maps");

/*
 * SchedSwitch: what runs on a CPU, and its sum_exec_runtime when it came. One
 * cache line per CPU, written by that CPU alone, read by the iterator; `primed`
 * is written by the iterator alone, before the first switch on that CPU.
 */
struct cpu_current {
	u64 sum_exec_ns;
	u64 signal; /* 0: no switch seen here yet */
	u32 tid;
	u32 primed_tid;
	u64 primed_sum_exec_ns;
	u64 padding[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* possible CPUs */
	__type(key, u32);
	__type(value, struct cpu_current);
} current_tasks SEC(".maps");

/*
 * SchedSwitch: the time charged to a process, in the slot of its pid modulo the
 * size. The slot belongs to whoever claimed it first; a process that finds
 * another there goes to `overflow`. Threads of one process add from several CPUs:
 * atomic adds.
 */
struct cpu_slot {
	u64 owner;
	u64 charged_ns;
	u64 claims;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* 32,768 with SchedSwitch */
	__type(key, u32);
	__type(value, struct cpu_slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* 8,192 with SchedSwitch */
	__type(key, u64);
	__type(value, u64);
} overflow SEC(".maps");

/*
 * Names a process for as long as it lives, threads and exec included, at the
 * price of one load. The kernel reuses a signal_struct after the release, with
 * the pid it tells a stranger even then.
 */
static __always_inline u64 owner_of(u64 signal, u32 tgid)
{
	return signal ^ ((u64)tgid << 40);
}

static __always_inline u64 signal_of(struct task_struct *task)
{
	u64 signal = 0;

	bpf_probe_read_kernel(&signal, sizeof(signal), &task->signal);
	return signal;
}

static __always_inline void charge_overflow(u64 owner, u64 ns)
{
	u64 zero = 0, *charged;

	charged = bpf_map_lookup_elem(&overflow, &owner);
	if (!charged) {
		bpf_map_update_elem(&overflow, &owner, &zero, BPF_NOEXIST);
		charged = bpf_map_lookup_elem(&overflow, &owner);
	}
	if (charged)
		__sync_fetch_and_add(charged, ns);
	else
		count_loss(CPU_LOSS_SWITCH_TABLE_FULL);
}

/*
 * Takes a free slot. 5.10 has no compare-and-swap for BPF: whoever raises
 * `claims` to exactly one has won; if two raise it at once both lose, and both
 * are counted in `overflow`.
 */
static __always_inline bool claim(struct cpu_slot *slot, u64 owner)
{
	if (slot->owner)
		return false;
	__sync_fetch_and_add(&slot->claims, 1);
	if (*(volatile u64 *)&slot->claims != 1)
		return false;
	*(volatile u64 *)&slot->owner = owner;
	return true;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(cpu_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u32 cpu = bpf_get_smp_processor_id(), tid = prev->pid, tgid = prev->tgid, came_tid, index;
	struct cpu_current *current = bpf_map_lookup_elem(&current_tasks, &cpu);
	struct cpu_slot *slot;
	u64 came_with, signal, owner, ran;

	if (!current)
		return 0;
	came_with = current->sum_exec_ns;
	came_tid = current->tid;
	signal = current->signal;
	current->sum_exec_ns = next->se.sum_exec_runtime;
	current->tid = next->pid;
	/* stored as a pointer, loaded as a number: a pointer cannot be computed with */
	*(struct signal_struct **)&current->signal = next->signal;

	if (!tgid) /* idle */
		return 0;
	if (watch_mode != WATCH_ALL && !is_watched(prev))
		return 0;
	if (came_tid != tid || !signal) {
		if (!signal && current->primed_tid == tid) {
			came_with = current->primed_sum_exec_ns;
		} else if (is_fair(prev) && has_sum_at_pick()) {
			/* a switch that some kernels hide: the scheduler itself remembers */
			/* by helper: the compiler would merge a load with that above, of a map */
			bpf_core_read(&came_with, sizeof(came_with),
				      &prev->se.prev_sum_exec_runtime);
		} else {
			count_loss(CPU_LOSS_SWITCH_UNMATCHED);
			return 0;
		}
		signal = signal_of(prev);
	}
	ran = prev->se.sum_exec_runtime - came_with;
	owner = owner_of(signal, tgid);

	index = tgid & slot_mask;
	slot = bpf_map_lookup_elem(&slots, &index);
	if (slot && (slot->owner == owner || claim(slot, owner)))
		__sync_fetch_and_add(&slot->charged_ns, ran);
	else
		charge_overflow(owner, ran);
	return 0;
}

static __always_inline u64 charged_to(u64 owner, u32 tgid)
{
	u32 index = tgid & slot_mask;
	struct cpu_slot *slot = bpf_map_lookup_elem(&slots, &index);
	u64 *more = bpf_map_lookup_elem(&overflow, &owner), charged = 0;

	if (slot && slot->owner == owner)
		charged = slot->charged_ns;
	if (more)
		charged += *more;
	return charged;
}

static __always_inline void forget_charges(u64 owner, u32 tgid)
{
	u32 index = tgid & slot_mask;
	struct cpu_slot *slot = bpf_map_lookup_elem(&slots, &index);

	if (slot && slot->owner == owner) {
		slot->charged_ns = 0;
		*(volatile u64 *)&slot->owner = 0;
		*(volatile u64 *)&slot->claims = 0;
	}
	bpf_map_delete_elem(&overflow, &owner);
}

/* What lies at another offset of the per-CPU area of the same CPU. */
static __always_inline u64 beside_run_queue(struct cfs_rq *cfs_rq, u64 offset)
{
	u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &cfs_rq->rq);
	return address + offset - runqueues_offset;
}

/* What KVM tells a guest of a CPU, the beginning of its kvm_steal_time: an interface. */
struct stolen_time {
	u64 ns;
	u32 version;
	u32 flags;
	u8 preempted;
	u8 padding[7];
};

/*
 * Time that the hypervisor took from a CPU since the scheduler last looked: not the
 * running task's, and the scheduler will leave it out at its next look. All of the
 * time since then, if the hypervisor has taken the CPU away right now.
 */
static __always_inline u64 read_unseen_steal(struct cfs_rq *cfs_rq)
{
	u64 seen = has_seen_steal() ? cfs_rq->rq->prev_steal_time_rq : 0;
	struct stolen_time steal = {};

	/* it has never looked: without the account of stolen time it does not */
	if (!steal_time_offset || !seen ||
	    bpf_probe_read_kernel(&steal, sizeof(steal),
				  (void *)beside_run_queue(cfs_rq, steal_time_offset)))
		return 0;
	return steal.preempted & 1 ? ~0ULL >> 1 : steal.ns - seen;
}

/* The time since the scheduler last brought sum_exec_runtime of a running task up to date. */
static __always_inline void read_running(struct cpu_task_record *r, struct task_struct *task)
{
	struct rq *rq = task->se.cfs_rq->rq;

	r->cpu = rq->cpu;
	if (rq->curr != task)
		return;
	/*
	 * Sum and start must belong together: read again if an update came between. Whether
	 * it still runs is asked last, for this CPU may be held up here for long.
	 */
	for (int i = 0; i < 3; i++) {
		u64 start = *(volatile u64 *)&task->se.exec_start;
		u64 task_clock = *(volatile u64 *)&rq->clock_task;
		u64 behind = *(volatile u64 *)&rq->clock - task_clock;

		r->sum_exec_ns = *(volatile u64 *)&task->se.sum_exec_runtime;
		r->running_at_ns = bpf_ktime_get_ns();
		r->running_raw_ns =
		    r->running_at_ns - behind - start - read_unseen_steal(task->se.cfs_rq);
		if (!is_running(task, rq))
			break;
		if (*(volatile u64 *)&task->se.exec_start == start &&
		    *(volatile u64 *)&rq->clock_task == task_clock) {
			r->flags |= TASK_RUNNING_NOW;
			return;
		}
	}
	r->sum_exec_ns = *(volatile u64 *)&task->se.sum_exec_runtime;
}

/* What SchedSwitch knows of a task, and of a task that it has not seen switch yet. */
static __always_inline void read_charges(struct cpu_task_record *r, struct task_struct *task)
{
	u32 cpu = r->cpu, tid = task->pid;
	struct cpu_current *current;

	r->charged_ns = charged_to(owner_of(signal_of(task), task->tgid), task->tgid);
	if (!(r->flags & TASK_RUNNING_NOW))
		return;
	current = bpf_map_lookup_elem(&current_tasks, &cpu);
	if (!current)
		return;
	if (!current->signal && !current->primed_tid) {
		current->primed_sum_exec_ns = r->sum_exec_ns;
		*(volatile u32 *)&current->primed_tid = tid;
	}
	if (current->signal && current->tid == tid)
		r->switched_in_ns = current->sum_exec_ns;
	else if (!current->signal && current->primed_tid == tid)
		r->switched_in_ns = current->primed_sum_exec_ns;
	else if (is_fair(task) && has_sum_at_pick()) /* its switch was hidden */
		bpf_core_read(&r->switched_in_ns, sizeof(r->switched_in_ns),
			      &task->se.prev_sum_exec_runtime);
	else
		return;
	r->flags |= TASK_SWITCHED_IN;
}

/* False for a thread whose leader is gone already: it is being released. */
static __always_inline bool read_task(struct cpu_task_record *r, struct task_struct *task,
				      bool exiting)
{
	struct signal_struct *signal = task->signal;
	struct cpu_ending_record *dead;

	if (exiting ? !read_about_at_exit(&r->about, task) : !read_about(&r->about, task))
		return false;
	r->head = RECORD_HEAD(RECORD_TASK, *r);
	r->sum_exec_ns = task->se.sum_exec_runtime;
	r->user_ns = task->utime;
	r->system_ns = task->stime;
	r->voluntary_switches = task->nvcsw;
	r->involuntary_switches = task->nivcsw;
	if (has_run_queue_wait())
		r->flags |= TASK_HAS_RUN_QUEUE_WAIT;
	/* an exiting thread leaves its waits and migrations in `ending`: not twice */
	if (!(task->flags & PF_EXITING)) {
		if (has_run_queue_wait())
			r->run_queue_wait_ns = task->sched_info.run_delay;
		r->migrations = task->se.nr_migrations;
	}
	r->dead_sum_exec_ns = signal->sum_sched_runtime;
	r->dead_user_ns = signal->utime;
	r->dead_system_ns = signal->stime;
	r->dead_voluntary_switches = signal->nvcsw;
	r->dead_involuntary_switches = signal->nivcsw;
	if (r->dead_sum_exec_ns || (task->flags & PF_EXITING)) {
		struct process_key key = {
		    .start_ns = r->about.process_start_ns,
		    .tgid = r->about.tgid,
		};

		dead = bpf_map_lookup_elem(&ending, &key);
		if (dead) {
			r->dead_run_queue_wait_ns = dead->run_queue_wait_ns;
			r->dead_migrations = dead->migrations;
		}
	}
	return true;
}

/*
 * Idle time of a CPU: all that is not a task, where the scheduler keeps the time
 * of its tasks. A task that is just being switched in is current before its
 * arrival is noted, and until then it still stands as queued: read again.
 */
static __always_inline void read_idle_from_run_queue(struct cpu_cpu_record *r, struct rq *rq)
{
	for (int i = 0; i < 8; i++) {
		u64 tasks = *(volatile u64 *)&rq->rq_cpu_time;
		struct task_struct *task = rq->curr;

		r->now_ns = bpf_ktime_get_ns();
		if (!task->pid) {
			r->idle_ns = r->now_ns - tasks;
			r->flags = CPU_HAS_IDLE;
		} else if (!task->sched_info.last_queued) {
			r->idle_ns = task->sched_info.last_arrival - tasks;
			r->flags = CPU_HAS_IDLE | CPU_IDLE_LACKS_CLOCK_OFFSET;
		} else {
			continue;
		}
		if (*(volatile u64 *)&rq->rq_cpu_time == tasks)
			return;
	}
	r->flags = 0;
}

/*
 * The same from the time that the scheduler charged to all tasks of a CPU. It
 * charges no interrupts and no stolen time: these are still in the idle time here.
 */
static __always_inline void read_idle_from_cpuacct(struct cpu_cpu_record *r, struct cfs_rq *cfs_rq)
{
	struct rq *rq = cfs_rq->rq;
	u64 address = beside_run_queue(cfs_rq, cpuacct_offset), charged = 0, again = 0;

	for (int i = 0; i < 3; i++) {
		struct task_struct *task = rq->curr;

		if (bpf_probe_read_kernel(&charged, sizeof(charged), (void *)address))
			return;
		r->now_ns = bpf_ktime_get_ns();
		r->flags = CPU_HAS_IDLE | CPU_IDLE_HOLDS_INTERRUPTED;
		if (!task->pid) {
			r->idle_ns = r->now_ns - charged;
		} else {
			r->idle_ns = task->se.exec_start + r->interrupted_ns - charged;
			r->flags |= CPU_IDLE_LACKS_CLOCK_OFFSET;
		}
		bpf_probe_read_kernel(&again, sizeof(again), (void *)address);
		if (again == charged)
			return;
	}
}

/* Every CPU has one cpuhp/N thread that never leaves it, and with it a way to its run queue. */
static __always_inline bool stands_for_cpu(struct task_struct *task)
{
	return (task->flags & PF_KTHREAD) && task->comm[0] == 'c' && task->comm[1] == 'p' &&
	       task->comm[2] == 'u' && task->comm[3] == 'h' && task->comm[4] == 'p' &&
	       task->comm[5] == '/';
}

SEC("iter/task")
int cpu_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct cpu_task_record r = {};

	if (!task)
		return 0;
	if (is_watched(task) && read_task(&r, task, false)) {
		if (has_run_queue())
			read_running(&r, task);
		if (account_switches)
			read_charges(&r, task);
		if (!is_being_released(task))
			bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	}
	if (has_run_queue() && stands_for_cpu(task)) {
		struct cfs_rq *cfs_rq = task->se.cfs_rq;
		struct cpu_cpu_record c = {.head = RECORD_HEAD(RECORD_CPU, c)};
		u64 task_clock = *(volatile u64 *)&cfs_rq->rq->clock_task;

		c.cpu = cfs_rq->rq->cpu;
		c.interrupted_ns = cfs_rq->rq->clock - task_clock;
		if (has_run_queue_cpu_time())
			read_idle_from_run_queue(&c, cfs_rq->rq);
		else if (cpuacct_offset)
			read_idle_from_cpuacct(&c, cfs_rq);
		bpf_seq_write(ctx->meta->seq, &c, sizeof(c));
	}
	HAND_ON(ctx);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(watch_fork, struct task_struct *parent, struct task_struct *child)
{
	if (!watch_child(parent, child))
		count_loss(CPU_LOSS_WATCH_TABLE_FULL);
	return 0;
}

/*
 * A leader that ended before its last thread is in nobody's sums until its release,
 * which some machines do not show.
 */
static __always_inline void add_waiting_leader(struct cpu_task_record *r, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;

	if (task->pid == task->tgid)
		return;
	r->sum_exec_ns += leader->se.sum_exec_runtime;
	r->user_ns += leader->utime;
	r->system_ns += leader->stime;
	r->voluntary_switches += leader->nvcsw;
	r->involuntary_switches += leader->nivcsw;
}

/*
 * A thread exits, in its own context: group_leader and real_parent are safe
 * here. Its time still grows, and the kernel adds that up itself.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(cpu_exit, struct task_struct *task)
{
	static const struct cpu_ending_record none;
	struct process_key key = process_key_of(task);
	struct cpu_ending_record *dead;

	if (!is_watched_as(task, task->tgid))
		return 0;
	dead = bpf_map_lookup_elem(&ending, &key);
	if (!dead) {
		bpf_map_update_elem(&ending, &key, &none, BPF_NOEXIST);
		dead = bpf_map_lookup_elem(&ending, &key);
		if (!dead) {
			count_loss(CPU_LOSS_EXIT_STATE_FULL);
			return 0;
		}
	}
	if (has_run_queue_wait())
		__sync_fetch_and_add(&dead->run_queue_wait_ns, task->sched_info.run_delay);
	__sync_fetch_and_add(&dead->migrations, task->se.nr_migrations);
	__sync_fetch_and_add(&dead->threads, 1);
	if (task->signal->live.counter == 0) {
		read_task(&dead->last, task, true);
		add_waiting_leader(&dead->last, task);
		dead->last.ended_ns = bpf_ktime_get_ns();
		dead->last_is_set = 1;
	}
	return 0;
}

static __always_inline void fold(struct cpu_task_record *r)
{
	u32 zero = 0;
	struct cpu_folded_record *f = bpf_map_lookup_elem(&folded, &zero);

	if (!f)
		return;
	f->processes += 1;
	f->sum_exec_ns += r->dead_sum_exec_ns;
	f->charged_ns += r->charged_ns;
	f->user_ns += r->dead_user_ns;
	f->system_ns += r->dead_system_ns;
	f->voluntary_switches += r->dead_voluntary_switches;
	f->involuntary_switches += r->dead_involuntary_switches;
	f->run_queue_wait_ns += r->dead_run_queue_wait_ns;
	f->migrations += r->dead_migrations;
}

/*
 * A task is released, some ms after its last switch, in whatever context RCU
 * runs: pointers to other tasks may be stale, signal_struct is still there. Only
 * the leader counts, it is the last of its process to be released, and by then
 * signal_struct holds the totals of all threads.
 */
SEC("tp_btf/sched_process_free")
int BPF_PROG(cpu_free, struct task_struct *task)
{
	struct process_key key = {.start_ns = task->start_boottime, .tgid = task->tgid};
	struct signal_struct *signal = task->signal;
	struct cpu_task_record r = {};
	struct cpu_ending_record *dead;
	u64 charged_ns = 0;

	if (task->pid != task->tgid)
		return 0;
	forget_watched(task);
	dead = bpf_map_lookup_elem(&ending, &key);
	if (account_switches) {
		u64 owner = owner_of(signal_of(task), key.tgid);

		charged_ns = charged_to(owner, key.tgid);
		forget_charges(owner, key.tgid);
	}
	if (!dead && watch_mode != WATCH_ALL)
		return 0;
	if (dead) {
		if (dead->last_is_set)
			r = dead->last;
		r.dead_run_queue_wait_ns = dead->run_queue_wait_ns;
		r.dead_migrations = dead->migrations;
		r.about.threads = dead->threads;
	}
	r.head = RECORD_HEAD(RECORD_TASK, r);
	read_about_released(&r.about, task);
	if (has_run_queue_wait())
		r.flags |= TASK_HAS_RUN_QUEUE_WAIT;
	if (!r.ended_ns)
		r.ended_ns = bpf_ktime_get_ns();
	r.sum_exec_ns = r.user_ns = r.system_ns = 0;
	r.voluntary_switches = r.involuntary_switches = 0;
	r.run_queue_wait_ns = r.migrations = 0;
	r.dead_sum_exec_ns = signal->sum_sched_runtime;
	r.dead_user_ns = signal->utime;
	r.dead_system_ns = signal->stime;
	r.dead_voluntary_switches = signal->nvcsw;
	r.dead_involuntary_switches = signal->nivcsw;
	r.charged_ns = charged_ns;
	if (bpf_map_update_elem(&exited, &key, &r, BPF_ANY))
		fold(&r);
	bpf_map_delete_elem(&ending, &key);
	return 0;
}

/*
 * Where the clock of BPF and the clock of the scheduler stand, seen by the
 * caller itself right after it made the scheduler bring its own time up to
 * date. Run by user space, attached to nothing.
 */
struct cpu_clocks_record {
	u64 scheduler_ns;
	u64 set;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu_clocks_record);
} clocks SEC(".maps");

SEC("raw_tp/cpu_clocks")
int cpu_clocks(void *ctx)
{
	/* bpf_get_current_task_btf() came in 5.11 */
	struct task_struct *task = (void *)bpf_get_current_task();
	u32 zero = 0;
	struct cpu_clocks_record *c = bpf_map_lookup_elem(&clocks, &zero);
	struct rq *rq;
	u64 task_clock;

	/* of these the BTF would else not tell */
	TELL_BTF(struct cpu_cpu_record);
	TELL_BTF(enum cpu_loss);
	if (!c || !has_run_queue())
		return 0;
	rq = BPF_CORE_READ(task, se.cfs_rq, rq);
	task_clock = BPF_CORE_READ(rq, clock_task);
	c->scheduler_ns =
	    BPF_CORE_READ(task, se.exec_start) + BPF_CORE_READ(rq, clock) - task_clock;
	c->set = 1;
	return 0;
}
