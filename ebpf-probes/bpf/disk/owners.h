/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Which processes dirtied a file: they are charged when it is written back. */
#ifndef EBPFMETRICS_DISK_OWNERS_H
#define EBPFMETRICS_DISK_OWNERS_H

#include "compat_block.h"
#include "disk/row.h"
#include "disk/slow_io.h"

/* A process that dirtied pages of a file, and how many of them are not written yet. */
struct disk_owner {
	u64 start_ns;
	u32 tgid;
	u32 credit;
};

#define OWNERS 4

/*
 * The last owners of a file. If several CPUs dirty it and write it back at once, an update
 * of a credit may be lost. Credits only decide between several owners of one file.
 */
struct disk_file {
	u32 guard; /* of the inode: addresses are reused */
	u32 last; /* the owner that dirtied it last */
	struct disk_owner owners[OWNERS];
};

/*
 * Files by the address of their mapping: 32,768 files, about 4 MiB, sized by user space.
 * When it is full, the file that was dirtied longest ago is removed. If it still had to be
 * written, that is counted as owner_unseen.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, u64);
	__type(value, struct disk_file);
} disk_files SEC(".maps");

/* Charges a write-back to an owner of its file; false if the file is unknown. */
static __always_inline bool charge_owner(u64 mapping, u32 bytes, struct disk_row_key *key)
{
	struct disk_file *file = bpf_map_lookup_elem(&disk_files, &mapping);
	u32 pages = (bytes + 4095) >> 12, chosen;
	struct disk_owner *owner;

	if (!file)
		return false;
	chosen = file->last % OWNERS;
	if (file->owners[chosen].credit < pages) {
		u32 most = file->owners[chosen].credit;

		for (u32 i = 0; i < OWNERS; i++) {
			if (file->owners[i].credit > most) {
				most = file->owners[i].credit;
				chosen = i;
			}
		}
	}
	owner = &file->owners[chosen % OWNERS];
	owner->credit = owner->credit > pages ? owner->credit - pages : 0;
	key->start_ns = owner->start_ns;
	key->tgid = owner->tgid;
	return true;
}

static __always_inline bool is_owner(const struct disk_owner *owner, const struct process_key *key)
{
	return owner->tgid == key->tgid && owner->start_ns == key->start_ns;
}

static __always_inline void set_owner(struct disk_owner *owner, struct process_key *key, u32 pages)
{
	owner->start_ns = key->start_ns;
	owner->tgid = key->tgid;
	owner->credit = pages;
	if (slow_io_ns)
		remember(key);
}

/* The running process has dirtied pages of a file. */
static __always_inline void dirty(struct current_process *current, struct address_space *mapping,
				  u32 pages)
{
	struct disk_file *file, fresh = {};
	u64 key = (u64)mapping, number;
	struct inode *inode = mapping->host;
	u32 i, poorest = 0;

	number = inode->i_ino;
	number ^= number >> 32 ^ inode->i_generation;
	file = bpf_map_lookup_elem(&disk_files, &key);
	if (!file || file->guard != (u32)number) {
		fresh.guard = number;
		set_owner(&fresh.owners[0], &current->key, pages);
		bpf_map_update_elem(&disk_files, &key, &fresh, BPF_ANY);
		return;
	}
	i = file->last % OWNERS;
	if (is_owner(&file->owners[i], &current->key)) {
		file->owners[i].credit += pages;
		return;
	}
	/*
	 * Kernel threads dirty pages again before they write them: those belong to the process
	 * that dirtied them first. The threads of loop and nfsd do write on their own.
	 */
	if (current->flags & PF_KTHREAD && !(current->flags & PF_LOCAL_THROTTLE))
		return;
	for (i = 0; i < OWNERS; i++) {
		if (is_owner(&file->owners[i], &current->key)) {
			file->owners[i].credit += pages;
			file->last = i;
			return;
		}
		if (file->owners[i].credit < file->owners[poorest % OWNERS].credit)
			poorest = i;
	}
	i = poorest % OWNERS;
	set_owner(&file->owners[i], &current->key, pages);
	file->last = i;
}

#endif
