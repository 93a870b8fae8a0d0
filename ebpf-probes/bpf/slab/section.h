/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The slab probe's part of the walk and of final records. */
#ifndef EBPFMETRICS_SLAB_SECTION_H
#define EBPFMETRICS_SLAB_SECTION_H

#include "process/ended.h"
#include "process/sections.h"
#include "slab/maps.h"

/* Set before loading. */
const volatile bool slab_on = false;

enum slab_kind {
	SLAB_KIND_PROCESS = 1,
};

/* The counters of a process. Only its leader has this record. */
struct slab_process_record {
	struct record_head head;
	struct slab_counters_record counters;
};

/* Identifies a process by its leader. */
static __always_inline void slab_read_process(struct slab_process *process,
					      struct task_struct *leader)
{
	bpf_probe_read_kernel(&process->signal, sizeof(process->signal), &leader->signal);
	process->tgid = leader->tgid;
	if (slab_track_addresses)
		process->born = leader->start_boottime;
}

static __always_inline void slab_add_counters(struct slab_counters_record *sum,
					      const struct slab_counters_record *more)
{
	sum->allocations += more->allocations;
	sum->allocated_bytes += more->allocated_bytes;
	sum->frees += more->frees;
	sum->freed_bytes += more->freed_bytes;
	sum->unknown_frees += more->unknown_frees;
	sum->cross_process_frees += more->cross_process_frees;
	sum->released_bytes += more->released_bytes;
	sum->freed_by_others += more->freed_by_others;
	sum->unseen_frees += more->unseen_frees;
	sum->untracked_bytes += more->untracked_bytes;
}

/* Reads all that was counted for a process. */
static __always_inline void slab_read_counters(struct slab_counters_record *counters,
					       const struct slab_process *process)
{
	u32 index = process->tgid & slab_slot_mask;
	struct slab_slot *slot = bpf_map_lookup_elem(&slab_slots, &index);
	struct slab_tally_record *more = slab_in_overflow(process);

	if (slot && slab_holds(slot, process))
		*counters = slot->tally.counters;
	if (more)
		slab_add_counters(counters, &more->counters);
}

/* Frees the slot and the overflow entry of a process. */
static __always_inline void slab_forget(const struct slab_process *process)
{
	struct slab_owner owner = {.signal = process->signal, .tgid = process->tgid};
	u32 index = process->tgid & slab_slot_mask;
	struct slab_slot *slot = bpf_map_lookup_elem(&slab_slots, &index);

	if (slot && slab_holds(slot, process)) {
		*(volatile u64 *)&slot->signal = 0;
		*(volatile u32 *)&slot->tgid = 0;
		__builtin_memset(&slot->tally, 0, sizeof(slot->tally));
		__sync_fetch_and_add(&slot->claims, -1);
	}
	bpf_map_delete_elem(&slab_overflow, &owner);
}

static __always_inline void slab_walk_task(struct bpf_iter__task *ctx, struct task_struct *task)
{
	struct slab_process_record r = {.head = RECORD_HEAD(SECTION_SLAB, SLAB_KIND_PROCESS, r)};
	struct slab_process process = {};

	if (task->pid != task->tgid)
		return;
	slab_read_process(&process, task);
	slab_read_counters(&r.counters, &process);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

/*
 * The last thread of a process exits. What the kernel frees on its behalf from here on is
 * added at the release.
 */
static __always_inline void slab_last_exit(struct process_ended_record *ended,
					   struct task_struct *task)
{
	struct slab_process process = {};

	slab_read_process(&process, task->group_leader);
	slab_read_counters(&ended->slab.counters, &process);
}

/* A process is released: from here on nothing is charged to it. */
static __always_inline void slab_release(struct process_ended_record *ended,
					 struct slab_counters_record *overflow,
					 struct task_struct *leader)
{
	struct slab_process process = {};
	struct slab_counters_record counters = {};

	slab_read_process(&process, leader);
	slab_read_counters(&counters, &process);
	slab_forget(&process);
	if (ended)
		ended->slab.counters = counters;
	else if (overflow)
		slab_add_counters(overflow, &counters);
}

#endif
