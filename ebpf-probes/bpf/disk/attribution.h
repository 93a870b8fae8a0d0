/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Which process an operation is charged to, and in which class. */
#ifndef EBPFMETRICS_DISK_ATTRIBUTION_H
#define EBPFMETRICS_DISK_ATTRIBUTION_H

#include "filter.h"
#include "compat_block.h"
#include "disk/submitter.h"

/*
 * The running process. One outside the filter becomes process 0: its I/O is counted for
 * the device, so that the totals of devices are complete.
 */
static __always_inline void read_submitter(struct current_process *current)
{
	read_current(current);
	if (passes_filter_as((void *)bpf_get_current_task(), current->key.tgid))
		return;
	current->key.start_ns = 0;
	current->key.tgid = 0;
}

static __always_inline bool is_journal_thread(void)
{
	char comm[16] = {};

	bpf_get_current_comm(comm, sizeof(comm));
	return comm[0] == 'j' && comm[1] == 'b' && comm[2] == 'd' && comm[3] == '2';
}

/*
 * Sets process, class and operation in the key of an operation's row. True if the owners of
 * its pages are charged: the process that syncs or flushes now did not cause the write.
 */
static __always_inline bool classify(struct disk_row_key *key, struct current_process *current,
				     struct bio *bio, u32 command, u32 bytes)
{
	u32 operation = command & REQ_OP_MASK;
	u32 class;

	key->start_ns = current->key.start_ns;
	key->tgid = current->key.tgid;
	/* the groups of /proc/diskstats: operations with odd numbers write */
	key->operation = operation == REQ_OP_DISCARD ? DISK_DISCARD : operation & 1;
	/* what fsync requests; /proc/diskstats counts it as a write */
	if (operation == REQ_OP_FLUSH ||
	    (operation == REQ_OP_WRITE && !bytes && REQUEST_FLAG(command, __REQ_PREFLUSH)))
		key->operation = DISK_FLUSH;
	key->class = DISK_FOREGROUND;
	if (current->flags & PF_KTHREAD)
		key->class = is_journal_thread() ? DISK_JOURNAL : DISK_KERNEL;
	if (key->operation > DISK_WRITE)
		return false;
	if (REQUEST_FLAG(command, __REQ_SWAP)) {
		key->class = DISK_SWAP;
		return false;
	}
	class = operation == REQ_OP_WRITE && bio && bytes ? class_written_back(bio) : 0;
	if (class) {
		key->class = class;
		key->start_ns = 0;
		key->tgid = 0;
		return true;
	}
	if (key->class == DISK_KERNEL && bio && bytes) {
		struct process_key process = {};

		switch (submitter_of(bio, current->flags, &process)) {
		case SUBMITTED_FOR_PROCESS:
			key->class = DISK_FOREGROUND;
			key->start_ns = process.start_ns;
			key->tgid = process.tgid;
			return false;
		case SUBMITTED_FOR_UNKNOWN:
			key->start_ns = 0;
			key->tgid = 0;
			if (filter_mode == FILTER_ALL)
				count_disk_loss(DISK_LOSS_OWNER_UNSEEN);
			break;
		}
	}
	if (REQUEST_FLAG(command, __REQ_META) && key->class != DISK_JOURNAL)
		key->class = DISK_METADATA;
	return false;
}

#endif
