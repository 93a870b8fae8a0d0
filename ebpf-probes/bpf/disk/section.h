/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The disk probe's part of the walk and of final records: the kernel's I/O accounting. */
#ifndef EBPFMETRICS_DISK_SECTION_H
#define EBPFMETRICS_DISK_SECTION_H

#include "disk/maps.h"
#include "process/ended.h"
#include "process/sections.h"

/* Set before loading. */
const volatile bool disk_on = false;
const volatile bool disk_names_on = false; /* with slow I/O events */

enum disk_kind {
	DISK_KIND_TASK = 1,
};

/* One task; `dead` are the sums of threads of its process that have exited. */
struct disk_task_record {
	struct record_head head;
	struct disk_totals_record own;
	struct disk_totals_record dead;
};

/* CONFIG_TASK_IO_ACCOUNTING; without it there are no records. */
static __always_inline bool has_io_accounting(void)
{
	return bpf_core_field_exists(((struct task_io_accounting *)0)->write_bytes);
}

static __always_inline void disk_walk_task(struct bpf_iter__task *ctx, struct task_struct *task,
					   struct process_ended_record *dead)
{
	struct disk_task_record r = {.head = RECORD_HEAD(SECTION_DISK, DISK_KIND_TASK, r)};

	if (!has_io_accounting())
		return;
	/* an exiting thread leaves its bytes in `ended`: not twice */
	if (!(task->flags & PF_EXITING)) {
		r.own.dirtied_bytes = task->ioac.write_bytes;
		r.own.cancelled_bytes = task->ioac.cancelled_write_bytes;
	}
	if (dead)
		r.dead = dead->disk.totals;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

/* A thread exits: the kernel mixes its bytes with those of reaped children. */
static __always_inline void disk_thread_exit(struct process_ended_record *ended,
					     struct task_struct *task)
{
	struct disk_totals_record *totals = &ended->disk.totals;

	if (!has_io_accounting())
		return;
	__sync_fetch_and_add(&totals->dirtied_bytes, task->ioac.write_bytes);
	__sync_fetch_and_add(&totals->cancelled_bytes, task->ioac.cancelled_write_bytes);
	if (task->pid == task->tgid) {
		ended->disk.leader.dirtied_bytes = task->ioac.write_bytes;
		ended->disk.leader.cancelled_bytes = task->ioac.cancelled_write_bytes;
	}
}

/* The last thread exits: slow I/O events from now on report that the process has exited. */
static __always_inline void disk_last_exit(struct process_key *key)
{
	struct process_info_record *info = NULL;

	if (disk_names_on)
		info = bpf_map_lookup_elem(&disk_names, key);
	if (info)
		info->flags |= PROCESS_HAS_EXITED;
}

/*
 * The leader is released. An exiting task closes its files after the exit hook, and takes
 * back the dirty pages of those that are unlinked.
 */
static __always_inline void disk_release(struct process_ended_record *ended,
					 struct task_struct *task)
{
	struct disk_ended_record *disk;

	if (!ended || !has_io_accounting() || !(ended->flags & ENDED_EXITED))
		return;
	disk = &ended->disk;
	disk->totals.dirtied_bytes += task->ioac.write_bytes - disk->leader.dirtied_bytes;
	disk->totals.cancelled_bytes +=
	    task->ioac.cancelled_write_bytes - disk->leader.cancelled_bytes;
}

#endif
