/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The sum of the resident sets of all processes in the filter, and its peak: what they hold
 * together at one instant.
 *
 * Each address space counts once, with the process that owns it. The entry of a process has the
 * pages that it contributes, as an absolute number: whatever changes the number adds the
 * difference to the sum.
 *
 * So that no error can stay, each walk counts anew: while it adds the processes that it meets to
 * a second sum, events keep both up to date. When it ends the second sum is complete and takes
 * the place of the first.
 */
#ifndef EBPFMETRICS_MEM_SUM_H
#define EBPFMETRICS_MEM_SUM_H

#include "filter.h"
#include "mem/ended.h"

/* Set before loading: there is a filter, and peaks are measured. */
const volatile bool mem_sum_on = false;
/*
 * Set before loading: a process in the filter that does not count, and neither do its children
 * before they exec. The caller of a job.
 */
const volatile u32 mem_not_counted = 0;

struct mem_sum_record {
	u64 live; /* number of the count that is complete */
	u64 filling; /* number of the count that a walk adds to; `live` if there is none */
	u64 pages[2]; /* of both, by the lowest bit of the number */
};

/*
 * Written by all CPUs: pages by atomic operations, the numbers by the walk. Where the kernel has
 * no atomic exchange, two threads of a process that change a count in the same instant may
 * leave an error until the next walk.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct mem_sum_record);
} mem_sum SEC(".maps");

/* The highest sum that each CPU has seen right after it changed it. One writer each. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct mem_peak_record);
} mem_sum_peak SEC(".maps");

static __always_inline struct mem_sum_record *mem_sum_of_filter(void)
{
	u32 zero = 0;

	return mem_sum_on ? bpf_map_lookup_elem(&mem_sum, &zero) : 0;
}

/* Changes when a walk begins: what a CPU remembers of processes is then checked again. */
static __always_inline u64 mem_sum_number(void)
{
	struct mem_sum_record *sum = mem_sum_of_filter();

	return sum ? sum->filling : 0;
}

/* Whether what an address space holds is part of the sum. Its owner is in the filter. */
static __always_inline bool mem_is_counted(struct task_struct *owner)
{
	if (owner->flags & PF_EXITING) /* its exit was counted, or is about to be */
		return false;
	if (!mem_not_counted)
		return true;
	if (owner->tgid == (int)mem_not_counted)
		return false;
	return !(owner->flags & PF_FORKNOEXEC) || owner->real_parent->tgid != (int)mem_not_counted;
}

static __always_inline void mem_count_in(struct mem_sum_record *sum, u64 number,
					 struct mem_tracked_record *t, u64 pages, bool atomic)
{
	u64 *counted = &t->counted[number & 1], now = number << 32 | (u32)pages, before;

	if (atomic) {
		before = __sync_lock_test_and_set(counted, now);
	} else {
		before = *(volatile u64 *)counted;
		*(volatile u64 *)counted = now;
	}
	if ((u32)number == before >> 32)
		pages -= (u32)before;
	if (pages)
		__sync_fetch_and_add(&sum->pages[number & 1], pages);
}

/*
 * A process contributes so many pages from here on. `atomic` is a constant: where other CPUs may
 * change the same entry, and the kernel has the instruction (5.12).
 */
static __always_inline void mem_count(struct mem_tracked_record *t, u64 pages, bool atomic)
{
	struct mem_sum_record *sum = mem_sum_of_filter();
	u64 live, filling;

	if (!sum)
		return;
	live = *(volatile u64 *)&sum->live;
	filling = *(volatile u64 *)&sum->filling;
	mem_count_in(sum, live, t, pages, atomic);
	if (filling != live)
		mem_count_in(sum, filling, t, pages, atomic);
}

static __always_inline void mem_raise(struct mem_peak_record *peak, u64 now, u64 pages)
{
	if (peak->epoch != now) {
		peak->previous_pages = peak->epoch + 1 == now ? peak->pages : 0;
		peak->pages = pages;
		peak->epoch = now;
	} else if (pages > peak->pages) {
		peak->pages = pages;
	}
}

/* Notes the sum if it is higher than before. A walk does not: user space reads it at its end. */
static __always_inline void mem_raise_sum(u64 now)
{
	struct mem_sum_record *sum = mem_sum_of_filter();
	u32 zero = 0;
	struct mem_peak_record *peak = bpf_map_lookup_elem(&mem_sum_peak, &zero);
	s64 pages;

	if (!sum || !peak)
		return;
	pages = *(volatile s64 *)&sum->pages[*(volatile u64 *)&sum->live & 1];
	mem_raise(peak, now, pages > 0 ? pages : 0);
}

/* A walk begins. One that was broken off is not completed: its number is not used again. */
static __always_inline void mem_begin_sum(void)
{
	struct mem_sum_record *sum = mem_sum_of_filter();
	u64 next;

	if (!sum)
		return;
	next = sum->filling + (sum->filling == sum->live ? 1 : 2);
	*(volatile u64 *)&sum->pages[next & 1] = 0;
	*(volatile u64 *)&sum->filling = next;
}

/* A walk has met all processes. */
static __always_inline void mem_end_sum(void)
{
	struct mem_sum_record *sum = mem_sum_of_filter();

	if (sum)
		*(volatile u64 *)&sum->live = sum->filling;
}

#endif
