/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The process behind a bio that a kernel thread submits for it: throttled in a block cgroup,
 * or passed on by a device that lies on others. Direct I/O is from and to the memory of a
 * process, and its pages are pinned: the owner of that memory is the process.
 */
#ifndef EBPFMETRICS_DISK_SUBMITTER_H
#define EBPFMETRICS_DISK_SUBMITTER_H

#include "compat_block.h"
#include "filter.h"
#include "disk/pages.h"

/* Areas of memory that are searched for the one whose pages these are. */
#define MAX_AREAS 8

static __always_inline u64 area_of_node(u64 node)
{
	struct vm_area_struct *area = NULL;

	node -= bpf_core_field_offset(struct anon_vma_chain, rb);
	bpf_core_read(&area, sizeof(area), &((struct anon_vma_chain *)node)->vma);
	return (u64)area;
}

/*
 * The process that an anonymous page belongs to. After a fork the areas of several processes
 * may map a page; it is of the one that made it, where new pages of the area belong to the same
 * anon_vma. False if that is not found, or without CONFIG_MEMCG.
 */
static __always_inline bool owner_of_memory(u64 page, struct process_key *key)
{
	struct mm_struct___owner *mm = NULL;
	struct rb_node *node = NULL;
	struct task_struct *task;
	u64 mapping = 0;
	bool found = false;

	if (!bpf_core_field_exists(mm->owner))
		return false;
	bpf_core_read(&mapping, sizeof(mapping), &((struct page *)head_of_page(page))->mapping);
	if ((mapping & 3) != 1)
		return false;
	mapping -= 1;
	node = BPF_CORE_READ((struct anon_vma *)mapping, rb_root.rb_root.rb_node);
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_AREAS && node && !found; i++) {
		struct vm_area_struct *area = (void *)area_of_node((u64)node);

		found = area && (u64)BPF_CORE_READ(area, anon_vma) == mapping;
		if (found)
			mm = (void *)BPF_CORE_READ(area, vm_mm);
		node = BPF_CORE_READ(node, rb_left);
	}
	if (!found || !mm)
		return false;
	task = BPF_CORE_READ(mm, owner);
	if (!task)
		return false;
	key->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	key->tgid = BPF_CORE_READ(task, tgid);
	if (!passes_filter_as(task, key->tgid)) {
		key->start_ns = 0;
		key->tgid = 0;
	}
	return true;
}

/*
 * Whether a bio belongs to a block cgroup other than the root, where kernel threads are. Those
 * of loop devices do their own I/O in the cgroup of another process.
 */
static __always_inline bool is_for_cgroup(struct bio *bio, u32 flags)
{
	struct blkcg_gq *group = NULL;

	if (!bpf_core_field_exists(bio->bi_blkg) || flags & PF_LOCAL_THROTTLE)
		return false;
	bpf_core_read(&group, sizeof(group), &bio->bi_blkg);
	return group && BPF_CORE_READ(group, parent);
}

enum submitter {
	SUBMITTED_BY_ITSELF, /* by the kernel thread */
	SUBMITTED_FOR_PROCESS,
	SUBMITTED_FOR_UNKNOWN,
};

/* Finds the process for which a kernel thread submits a bio. */
static __noinline int submitter_of(struct bio *bio, u32 flags, struct process_key *key)
{
	struct bio_vec *vector = (void *)vector_of((u64)bio, bio->bi_iter.bi_idx);
	u64 page = 0;

	bpf_core_read(&page, sizeof(page), &vector->bv_page);
	if (page && owner_of_memory(page, key))
		return SUBMITTED_FOR_PROCESS;
	return is_for_cgroup(bio, flags) ? SUBMITTED_FOR_UNKNOWN : SUBMITTED_BY_ITSELF;
}

#endif
