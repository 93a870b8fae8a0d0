/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Which process an operation is charged to, and in which class. */
#ifndef EBPFMETRICS_DISK_ATTRIBUTION_H
#define EBPFMETRICS_DISK_ATTRIBUTION_H

#include "filter.h"
#include "compat_block.h"
#include "disk/owners.h"

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

/* The mapping of the first page of a write, if the page is being written back. */
static __always_inline u64 mapping_written_back(struct bio *bio)
{
	u64 vector = 0, page = 0, mapping = 0;

	/* as numbers: before 5.11 a pointer to a kernel type takes no variable offset */
	bpf_probe_read_kernel(&vector, sizeof(vector), &bio->bi_io_vec);
	if (!vector)
		return 0;
	vector += (u64)(bio->bi_iter.bi_idx & 0xffff) * bpf_core_type_size(struct bio_vec) +
		  bpf_core_field_offset(struct bio_vec, bv_page);
	if (bpf_probe_read_kernel(&page, sizeof(page), (void *)vector) || !page)
		return 0;
	page = head_of_page(page);
	bpf_core_read(&mapping, sizeof(mapping), &((struct page *)page)->mapping);
	/*
	 * O_DIRECT writes from the memory of a process: its page has no mapping, an anonymous
	 * one (bit 0), or that of a file which is not being written back now
	 */
	if (mapping & 3 || !PAGE_FLAG(page_flags(page), PG_writeback))
		return 0;
	return mapping;
}

/* Sets process, class and operation in the key of an operation's row. */
static __always_inline void classify(struct disk_row_key *key, struct current_process *current,
				     struct bio *bio, u32 command, u32 bytes)
{
	u32 operation = command & REQ_OP_MASK;
	u64 mapping;

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
		return;
	if (REQUEST_FLAG(command, __REQ_SWAP)) {
		key->class = DISK_SWAP;
		return;
	}
	if (operation == REQ_OP_WRITE && bio && bytes) {
		mapping = mapping_written_back(bio);
		if (mapping) {
			u16 mode = BPF_CORE_READ((struct address_space *)mapping, host, i_mode);

			key->class = (mode & S_IFMT) == S_IFREG ? DISK_WRITE_BACK : DISK_METADATA;
			if (!charge_owner(mapping, bytes, key)) {
				/* the process that syncs or flushes now did not cause it */
				key->start_ns = 0;
				key->tgid = 0;
				count_disk_loss(DISK_LOSS_OWNER_UNSEEN);
			}
			return;
		}
	}
	if (REQUEST_FLAG(command, __REQ_META) && key->class != DISK_JOURNAL)
		key->class = DISK_METADATA;
}

#endif
