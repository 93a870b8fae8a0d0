/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the memory hooks track per process, for the object `mem` and for the walk. */
#ifndef EBPFMETRICS_MEM_MAPS_H
#define EBPFMETRICS_MEM_MAPS_H

#include "compat_mm.h"
#include "mem/ended.h"
#include "mem/sum.h"
#include "process/sections.h"

/* Names and order become `MemLoss` in Rust. */
enum mem_loss {
	MEM_LOSS_TRACK_TABLE_FULL, /* `mem_tracked` full: peaks and address space missing */
	MEM_LOSSES,
};

DEFINE_LOSSES(mem, MEM_LOSSES)

enum mem_kind {
	MEM_KIND_TASK = 1,
	MEM_KIND_HELD = 2,
	MEM_KIND_TRACKED = 3,
};

/* Set before loading. */
const volatile bool mem_track_address_space = false;
const volatile u32 mem_possible_cpus = 1;

/* The window that user space has reached. Written by user space at a reset. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} mem_epoch SEC(".maps");

/*
 * Processes with events, by pid, allocated as used, sized by user space. Written by all
 * CPUs that a process runs on: counters by atomic operations. Of two peaks reached in the
 * same instant the lower may stay, by what one CPU can add meanwhile.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* 32,768 by default */
	__type(key, u32);
	__type(value, struct mem_tracked_record);
} mem_tracked SEC(".maps");

/*
 * Where each CPU's part of the per-CPU area lies, found once after loading: a per-CPU
 * counter of the kernel is at its address plus this.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* possible CPUs */
	__type(key, u32);
	__type(value, u64);
} mem_cpu_offsets SEC(".maps");

static __always_inline u64 mem_current_epoch(void)
{
	u32 zero = 0;
	u64 *now = bpf_map_lookup_elem(&mem_epoch, &zero);

	return now ? *now : 0;
}

/* A pointer as a number, to be compared but not followed. */
static __always_inline u64 mem_number(void *pointer)
{
	return (u64)pointer;
}

/* The entry of a process, created if there is none, and anew if the pid was reused. */
static __always_inline struct mem_tracked_record *
mem_track(u32 tgid, u64 start_ns, struct mm_struct *mm, u64 virtual_pages, u64 earlier_pages)
{
	struct mem_tracked_record *t = bpf_map_lookup_elem(&mem_tracked, &tgid);
	struct mem_tracked_record fresh = {
	    .head = RECORD_HEAD(SECTION_MEM, MEM_KIND_TRACKED, fresh),
	    .process_start_ns = start_ns,
	    .tgid = tgid,
	    .virtual_pages = virtual_pages,
	    .earlier_pages = earlier_pages,
	};

	if (t && t->process_start_ns == start_ns)
		return t;
	*(struct mm_struct **)&fresh.space = mm;
	if (t)
		mem_count(t, 0, false); /* its exit was not seen */
	if (bpf_map_update_elem(&mem_tracked, &tgid, &fresh, t ? BPF_EXIST : BPF_NOEXIST) && t) {
		count_mem_loss(MEM_LOSS_TRACK_TABLE_FULL);
		return 0;
	}
	t = bpf_map_lookup_elem(&mem_tracked, &tgid);
	if (!t)
		count_mem_loss(MEM_LOSS_TRACK_TABLE_FULL);
	return t;
}

/* What a CPU has not added to a counter yet. */
static __always_inline s64 mem_unfolded_on(struct percpu_counter *counter, u64 offset)
{
	u64 address = 0;
	s32 pages = 0;

	bpf_core_read(&address, sizeof(address), &counter->counters);
	bpf_probe_read_kernel(&pages, sizeof(pages), (void *)(address + offset));
	return pages;
}

/*
 * What is resident, with what this CPU has not added to the common counts yet. What other CPUs
 * have not added is missing.
 */
static __always_inline u64 mem_resident_here(struct mm_struct *mm)
{
	u32 cpu = bpf_get_smp_processor_id();
	s64 pages = folded_resident_pages(mm);
	u64 *offset;

	if (has_plain_page_counts())
		return pages;
	offset = bpf_map_lookup_elem(&mem_cpu_offsets, &cpu);
	if (!offset || !*offset)
		return pages;
	pages += mem_unfolded_on(&mm->rss_stat[MM_FILEPAGES], *offset);
	pages += mem_unfolded_on(&mm->rss_stat[MM_ANONPAGES], *offset);
	pages += mem_unfolded_on(&mm->rss_stat[MM_SHMEMPAGES], *offset);
	return not_negative(pages);
}

/*
 * The owner of an address space. It has none while fork or exec makes it and while it is
 * torn down: what changes then shows at the next event, since all figures are absolute.
 */
static __always_inline struct task_struct *mem_owner_of(struct mm_struct *mm)
{
	struct task_struct *owner = mm->owner;

	if (!owner || owner->mm != mm)
		return 0;
	return owner;
}

#endif
