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

/* CONFIG_TASK_XACCT, which CONFIG_TASK_IO_ACCOUNTING needs; without it there are no records. */
static __always_inline bool has_char_accounting(void)
{
	return bpf_core_field_exists(((struct task_io_accounting *)0)->rchar);
}

/* CONFIG_TASK_IO_ACCOUNTING */
static __always_inline bool has_io_accounting(void)
{
	return bpf_core_field_exists(((struct task_io_accounting *)0)->write_bytes);
}

static __always_inline void disk_read_totals(struct disk_totals_record *totals,
					     struct task_struct *task)
{
	totals->read_chars = task->ioac.rchar;
	totals->written_chars = task->ioac.wchar;
	totals->read_calls = task->ioac.syscr;
	totals->write_calls = task->ioac.syscw;
	if (has_io_accounting()) {
		totals->dirtied_bytes = task->ioac.write_bytes;
		totals->cancelled_bytes = task->ioac.cancelled_write_bytes;
	}
}

static __always_inline void disk_walk_task(struct bpf_iter__task *ctx, struct task_struct *task,
					   struct process_ended_record *dead)
{
	struct disk_task_record r = {.head = RECORD_HEAD(SECTION_DISK, DISK_KIND_TASK, r)};

	if (!has_char_accounting())
		return;
	/* an exiting thread leaves its counters in `ended`: not twice */
	if (!(task->flags & PF_EXITING))
		disk_read_totals(&r.own, task);
	if (dead)
		r.dead = dead->disk.totals;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

/* A thread exits: the kernel mixes its counters with those of reaped children. */
static __always_inline void disk_thread_exit(struct process_ended_record *ended,
					     struct task_struct *task)
{
	struct disk_totals_record *sum = &ended->disk.totals, own = {};

	if (!has_char_accounting())
		return;
	disk_read_totals(&own, task);
	__sync_fetch_and_add(&sum->dirtied_bytes, own.dirtied_bytes);
	__sync_fetch_and_add(&sum->cancelled_bytes, own.cancelled_bytes);
	__sync_fetch_and_add(&sum->read_chars, own.read_chars);
	__sync_fetch_and_add(&sum->written_chars, own.written_chars);
	__sync_fetch_and_add(&sum->read_calls, own.read_calls);
	__sync_fetch_and_add(&sum->write_calls, own.write_calls);
	if (task->pid == task->tgid)
		ended->disk.leader = own;
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
	struct disk_totals_record *sum, *before, now = {};

	if (!ended || !has_char_accounting() || !(ended->flags & ENDED_EXITED))
		return;
	sum = &ended->disk.totals;
	before = &ended->disk.leader;
	disk_read_totals(&now, task);
	sum->dirtied_bytes += now.dirtied_bytes - before->dirtied_bytes;
	sum->cancelled_bytes += now.cancelled_bytes - before->cancelled_bytes;
	sum->read_chars += now.read_chars - before->read_chars;
	sum->written_chars += now.written_chars - before->written_chars;
	sum->read_calls += now.read_calls - before->read_calls;
	sum->write_calls += now.write_calls - before->write_calls;
}

#endif
