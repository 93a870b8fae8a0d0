/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The memory probe's part of the walk and of final records. */
#ifndef EBPFMETRICS_MEM_SECTION_H
#define EBPFMETRICS_MEM_SECTION_H

#include "process/ended.h"
#include "mem/maps.h"

/* Set before loading. */
const volatile bool mem_on = false;

/* One task. */
struct mem_task_record {
	struct record_head head;
	struct mem_faults_record faults;
	s32 unfolded_pages[NR_MM_COUNTERS]; /* held, but not in the common counters yet */
	u64 oom_kills; /* 1 if the kernel chose its process */
};

enum mem_held_flags {
	MEM_HELD_HAS_HUGETLB = 1 << 0,
	MEM_HELD_CHANGING = 1 << 1, /* the address space was replaced while it was read */
};

/*
 * What a process holds, in pages unless a unit is given. Follows the record of the leader
 * or, if the leader has exited before them, those of the other threads.
 */
struct mem_held_record {
	struct record_head head;
	u64 space; /* the address of its mm */
	u64 execs; /* that led to it: another mm may have the same address */
	u64 virtual_pages;
	u64 virtual_high_water_pages;
	s64 resident_pages[NR_MM_COUNTERS]; /* file, anonymous, swapped out, shared */
	u64 resident_high_water_pages; /* as far as the kernel has noted it */
	u64 page_table_bytes;
	u64 locked_pages;
	u64 hugetlb_pages;
	u64 owner_start_ns;
	u32 owner_tgid;
	u32 flags;
};

/* All page counts of an address space, with the parts that CPUs have not added yet. */
struct mem_unfolded {
	u64 addresses[NR_MM_COUNTERS];
	s64 pages[NR_MM_COUNTERS];
	bool together; /* allocated as one block (6.6+): one read per CPU instead of four */
};

static long mem_add_unfolded(u32 cpu, struct mem_unfolded *all)
{
	u64 *offset = bpf_map_lookup_elem(&mem_cpu_offsets, &cpu);
	s32 part[NR_MM_COUNTERS] = {};

	if (!offset || !*offset)
		return 0;
	if (all->together) {
		bpf_probe_read_kernel(part, sizeof(part), (void *)(all->addresses[0] + *offset));
	} else {
		for (int i = 0; i < NR_MM_COUNTERS; i++)
			bpf_probe_read_kernel(&part[i], sizeof(part[i]),
					      (void *)(all->addresses[i] + *offset));
	}
	for (int i = 0; i < NR_MM_COUNTERS; i++)
		all->pages[i] += part[i];
	return 0;
}

static __always_inline void mem_begin_unfolded(struct mem_unfolded *all, u32 kind,
					       struct percpu_counter *counter)
{
	all->pages[kind] = counter->count;
	bpf_core_read(&all->addresses[kind], sizeof(all->addresses[kind]), &counter->counters);
}

static __always_inline void mem_read_resident(struct mem_held_record *held, struct mm_struct *mm,
					      bool plain)
{
	struct mem_unfolded all = {};

	if (plain) {
		read_plain_page_counts(mm, held->resident_pages);
		return;
	}
	/* one by one: the distance of elements is the kernel's, only constants are relocated */
	mem_begin_unfolded(&all, MM_FILEPAGES, &mm->rss_stat[MM_FILEPAGES]);
	mem_begin_unfolded(&all, MM_ANONPAGES, &mm->rss_stat[MM_ANONPAGES]);
	mem_begin_unfolded(&all, MM_SWAPENTS, &mm->rss_stat[MM_SWAPENTS]);
	mem_begin_unfolded(&all, MM_SHMEMPAGES, &mm->rss_stat[MM_SHMEMPAGES]);
	all.together = all.addresses[1] - all.addresses[0] == sizeof(s32) &&
		       all.addresses[2] - all.addresses[0] == 2 * sizeof(s32) &&
		       all.addresses[3] - all.addresses[0] == 3 * sizeof(s32);
	bpf_loop(mem_possible_cpus, mem_add_unfolded, &all, 0);
	__builtin_memcpy(held->resident_pages, all.pages, sizeof(held->resident_pages));
}

/* Counts a process that a walk meets, and its address space. */
static __always_inline void mem_count_walked(struct task_struct *task, struct mm_struct *mm,
					     u64 process_start_ns, s64 *resident, bool plain)
{
	struct mem_tracked_record *t;
	u64 pages = not_negative(resident[MM_FILEPAGES]) + not_negative(resident[MM_ANONPAGES]) +
		    not_negative(resident[MM_SHMEMPAGES]);

	if (!mem_is_counted(task))
		return;
	t = mem_track(task->tgid, process_start_ns, mm, mm->total_vm, task->signal->maxrss);
	if (t)
		mem_count(t, pages, !plain);
}

/* Writes what the process of a task holds; nothing for a kernel thread or a zombie. */
static __always_inline void mem_write_held(struct bpf_iter__task *ctx, struct task_struct *task,
					   u64 process_start_ns, bool plain)
{
	struct mem_held_record r = {.head = RECORD_HEAD(SECTION_MEM, MEM_KIND_HELD, r)};
	struct mm_struct *mm = task->mm, *still = 0;
	struct task_struct *owner;

	if (!mm || (task->flags & PF_KTHREAD))
		return;
	*(struct mm_struct **)&r.space = mm;
	r.execs = task->self_exec_id;
	r.virtual_pages = mm->total_vm;
	r.virtual_high_water_pages = mm->hiwater_vm;
	r.resident_high_water_pages = mm->hiwater_rss;
	r.page_table_bytes = mm->pgtables_bytes.counter;
	r.locked_pages = mm->locked_vm;
	if (has_hugetlb_usage()) {
		r.hugetlb_pages = mm->hugetlb_usage.counter;
		r.flags |= MEM_HELD_HAS_HUGETLB;
	}
	mem_read_resident(&r, mm, plain);
	owner = has_mm_owner() ? mem_owner_of(mm) : 0;
	if (owner) {
		r.owner_tgid = owner->tgid;
		r.owner_start_ns = owner->group_leader->start_boottime;
	}
	if (mem_track_address_space && r.owner_tgid == (u32)task->tgid)
		/* a start, if it has none */
		mem_track(task->tgid, process_start_ns, mm, r.virtual_pages, task->signal->maxrss);
	/* by helper: the compiler would reuse the value that was read above */
	bpf_core_read(&still, sizeof(still), &task->mm);
	if (mem_number(still) != mem_number(mm))
		r.flags |= MEM_HELD_CHANGING;
	else if (mem_sum_on && r.owner_tgid == (u32)task->tgid)
		mem_count_walked(task, mm, process_start_ns, r.resident_pages, plain);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

static __always_inline void mem_read_faults(struct mem_faults_record *faults,
					    struct task_struct *task)
{
	struct signal_struct *signal = task->signal;

	faults->minor = task->min_flt;
	faults->major = task->maj_flt;
	faults->dead_minor = signal->min_flt;
	faults->dead_major = signal->maj_flt;
}

static __always_inline bool mem_is_oom_victim(struct signal_struct *signal)
{
	return signal->oom_mm;
}

static __always_inline void mem_walk_task(struct bpf_iter__task *ctx, struct task_struct *task,
					  u64 process_start_ns, bool plain,
					  struct process_ended_record *dead)
{
	struct mem_tracked_record *tracked;
	u32 tgid = task->tgid;
	bool is_leader = task->pid == task->tgid;

	{
		struct mem_task_record r = {.head = RECORD_HEAD(SECTION_MEM, MEM_KIND_TASK, r)};

		mem_read_faults(&r.faults, task);
		read_thread_page_counts(task, r.unfolded_pages);
		r.oom_kills = mem_is_oom_victim(task->signal);
		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	}
	if (is_leader || !task->group_leader->mm)
		mem_write_held(ctx, task, process_start_ns, plain);
	if (!is_leader)
		return;
	tracked = bpf_map_lookup_elem(&mem_tracked, &tgid);
	if (tracked && tracked->process_start_ns == process_start_ns)
		bpf_seq_write(ctx->meta->seq, tracked, sizeof(*tracked));
	else if (dead && dead->mem.tracked.process_start_ns == process_start_ns) /* a zombie */
		bpf_seq_write(ctx->meta->seq, &dead->mem.tracked, sizeof(dead->mem.tracked));
}

/* A process begins with the address space of its parent: from there it is followed. */
static __always_inline void mem_fork(struct task_struct *child)
{
	struct mm_struct *mm = child->mm;
	struct mem_tracked_record *t;
	struct task_struct *owner;

	if (!mem_track_address_space && !mem_sum_on)
		return;
	owner = mm ? mem_owner_of(mm) : 0;
	if (!owner)
		return;
	t = mem_track(child->tgid, child->start_boottime, mm, mm->total_vm, 0);
	if (!mem_sum_on || !t || owner->tgid != child->tgid || !mem_is_counted(child))
		return;
	mem_count(t, mem_resident_here(mm), false); /* it does not run yet */
	mem_raise_sum(mem_current_epoch());
}

static __always_inline void mem_forget(struct task_struct *task)
{
	struct mem_tracked_record *t;
	u32 tgid = task->tgid;

	t = mem_sum_on ? bpf_map_lookup_elem(&mem_tracked, &tgid) : 0;
	if (t)
		mem_count(t, 0, false);
	bpf_map_delete_elem(&mem_tracked, &tgid);
}

/*
 * What an exiting process holds and has held. Another process may share its address space:
 * then the peaks are in the entry of the owner.
 */
static __always_inline void mem_read_last_space(struct mem_ended_record *r, struct mm_struct *mm,
						u32 tgid, u64 process_start_ns)
{
	struct task_struct *owner = has_mm_owner() ? mem_owner_of(mm) : 0;
	u64 now = mem_current_epoch(), pages = folded_resident_pages(mm);
	struct mem_tracked_record *of_owner, *t = &r->tracked;
	static const struct mem_peak_record none;

	if (t->space != mem_number(mm)) {
		t->head = RECORD_HEAD(SECTION_MEM, MEM_KIND_TRACKED, *t);
		t->process_start_ns = process_start_ns;
		t->tgid = tgid;
		t->resident_set = none;
		t->virtual_space = none;
		*(struct mm_struct **)&t->space = mm;
	}
	if (owner && owner->tgid != (int)tgid) {
		u32 owner_tgid = owner->tgid;

		r->is_shared = 1;
		of_owner = bpf_map_lookup_elem(&mem_tracked, &owner_tgid);
		if (of_owner && of_owner->space == mem_number(mm)) {
			t->resident_set = of_owner->resident_set;
			t->virtual_space = of_owner->virtual_space;
		}
	}
	mem_raise(&t->resident_set, now, pages);
	mem_raise(&t->virtual_space, now, mm->total_vm);
	r->resident_high_water_pages = mm->hiwater_rss > pages ? mm->hiwater_rss : pages;
	r->virtual_high_water_pages = mm->hiwater_vm > mm->total_vm ? mm->hiwater_vm : mm->total_vm;
}

/* The last thread of a process exits, in its own context. */
static __always_inline void mem_last_exit(struct process_ended_record *ended,
					  struct task_struct *task, u64 process_start_ns)
{
	u32 tgid = task->tgid;
	struct mem_tracked_record *tracked = bpf_map_lookup_elem(&mem_tracked, &tgid);
	u64 earlier_pages = ~0ULL, highest = task->signal->maxrss;
	struct mem_faults_record faults = {};
	struct mm_struct *mm = task->mm;

	/* summed up apart: two threads that exit at once may both be the last */
	mem_read_faults(&faults, task);
	if (task->pid != task->tgid) { /* its leader ended before it: in no sum yet */
		faults.minor += task->group_leader->min_flt;
		faults.major += task->group_leader->maj_flt;
	}
	ended->mem.faults = faults;
	if (tracked && tracked->process_start_ns == process_start_ns) {
		ended->mem.tracked = *tracked;
		earlier_pages = tracked->earlier_pages;
	}
	if (task->flags & PF_FORKNOEXEC)
		earlier_pages = 0;
	if (mm) { /* gone before this up to 6.12 */
		if (ended->mem.tracked.space != mem_number(mm) && !(task->flags & PF_FORKNOEXEC))
			earlier_pages = ~0ULL;
		mem_read_last_space(&ended->mem, mm, tgid, process_start_ns);
	}
	/* the kernel keeps the highest of all address spaces of a process */
	if (highest > earlier_pages && highest > ended->mem.resident_high_water_pages)
		ended->mem.resident_high_water_pages = highest;
	ended->mem.execs = task->self_exec_id;
	ended->mem.oom_kills = mem_is_oom_victim(task->signal);
	mem_forget(task);
}

/* A process is released: by now signal_struct holds the faults of all its threads. */
static __always_inline void mem_release(struct process_ended_record *ended,
					struct mem_totals_record *overflow,
					struct task_struct *leader)
{
	struct mem_faults_record faults = {};
	struct mem_tracked_record *tracked;
	u32 tgid = leader->tgid;

	/* its last steps after the exit may have been followed */
	tracked = bpf_map_lookup_elem(&mem_tracked, &tgid);
	if (tracked && tracked->process_start_ns == leader->start_boottime)
		mem_forget(leader);
	mem_read_faults(&faults, leader);
	if (ended) {
		/* the leader's own are among those of the dead by now */
		ended->mem.faults.minor = ended->mem.faults.major = 0;
		ended->mem.faults.dead_minor = faults.dead_minor;
		ended->mem.faults.dead_major = faults.dead_major;
		ended->mem.oom_kills = mem_is_oom_victim(leader->signal);
	} else if (overflow) {
		overflow->minor_faults += faults.dead_minor;
		overflow->major_faults += faults.dead_major;
		overflow->oom_kills += mem_is_oom_victim(leader->signal);
	}
}

#endif
