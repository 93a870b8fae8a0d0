/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The rows of the disk probe: I/O counters per process, device, class and operation. */
#ifndef EBPFMETRICS_DISK_ROW_H
#define EBPFMETRICS_DISK_ROW_H

#include "common.h"
#include "vmlinux_block.h"

/* Names and order become `DiskLoss` in Rust. */
enum disk_loss {
	DISK_LOSS_ROW_TABLE_FULL, /* `disk_rows` full: counted for the device, or not at all */
	DISK_LOSS_IN_FLIGHT_TABLE_FULL, /* `disk_collided` full: leads to start_unseen */
	DISK_LOSS_START_LATE, /* first seen when issued: charged to the issuer, queue time 0 */
	DISK_LOSS_START_UNSEEN, /* the process and the duration of an operation are unknown */
	DISK_LOSS_COMPLETION_UNSEEN, /* counted when its request was reused; duration unknown */
	DISK_LOSS_OWNER_UNSEEN, /* some bytes of a write are of an unknown process: its device's */
	DISK_LOSSES,
};

DEFINE_LOSSES(disk, DISK_LOSSES)

enum disk_operation {
	DISK_READ,
	DISK_WRITE,
	DISK_FLUSH,
	DISK_DISCARD,
};

/* Which process an operation is charged to, and how certain that is. */
enum disk_class {
	DISK_FOREGROUND, /* the submitter */
	DISK_WRITE_BACK, /* the process that dirtied the pages */
	DISK_METADATA, /* the process that dirtied the block, or the submitter */
	DISK_SWAP, /* the process that needed memory */
	DISK_JOURNAL, /* the thread of the journal */
	DISK_KERNEL, /* a kernel thread */
	DISK_UNATTRIBUTED, /* no process: it found no row, or its start was not seen */
};

/* Three words, compared as such. */
struct disk_row_key {
	u64 start_ns; /* of the process */
	u32 tgid;
	u32 device; /* dev_t of a disk or a partition */
	u32 class;
	u32 operation;
};

#define LATENCY_BUCKETS 24

/*
 * The operations of one kind that a process did on a device, in four cache lines. Each
 * completed operation is in one bucket of each histogram. The number of operations is the
 * sum of a histogram plus `unseen`.
 */
struct disk_row_record {
	struct disk_row_key key;
	u64 bytes;
	u64 queue_ns;
	u64 device_ns;
	u32 errors;
	u32 unseen; /* duration unknown */
	u32 queue_buckets[LATENCY_BUCKETS];
	u32 device_buckets[LATENCY_BUCKETS];
};

/*
 * 8,192 rows of 248 bytes (about 2 MiB), sized by user space. Operations of one row complete on
 * several CPUs: atomic adds. Row 0 means none.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, u32);
	__type(value, struct disk_row_record);
} disk_rows SEC(".maps");

/* The index of a row by its key; allocated as used. Written at the first operation of a kind. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct disk_row_key);
	__type(value, u32);
} disk_row_of SEC(".maps");

/* Free rows. Filled by user space, which returns the rows of processes that are gone. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 8192);
	__type(value, u32);
} disk_free_rows SEC(".maps");

/* Rows reserved for unattributed operations, one per device and operation. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 128);
	__type(value, u32);
} disk_spare_rows SEC(".maps");

/*
 * The rows that a CPU used last: saves most operations a hash lookup of 50 ns. An
 * interrupt in the middle of an update can mix two entries. The completion notices that,
 * because it compares the key of the row.
 */
struct disk_recent_row {
	struct disk_row_key key;
	u32 row;
	u32 padding;
};

#define RECENT_ROWS 16

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT_ROWS);
	__type(key, u32);
	__type(value, struct disk_recent_row);
} disk_recent_rows SEC(".maps");

static __always_inline bool same_row(const struct disk_row_key *one,
				     const struct disk_row_key *other)
{
	const u64 *a = (const u64 *)one, *b = (const u64 *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* Assigns a row from a stack to a key; 0 if the stack is empty. */
static __always_inline u32 take_row(void *stack, const struct disk_row_key *key)
{
	struct disk_row_record *row;
	u32 index, *winner;

	if (bpf_map_pop_elem(stack, &index))
		return 0;
	row = bpf_map_lookup_elem(&disk_rows, &index);
	if (!row)
		return 0;
	row->key = *key;
	if (!bpf_map_update_elem(&disk_row_of, key, &index, BPF_NOEXIST))
		return index;
	/* another CPU was faster, or memory is short */
	winner = bpf_map_lookup_elem(&disk_row_of, key);
	bpf_map_push_elem(stack, &index, BPF_ANY);
	return winner ? *winner : 0;
}

/*
 * The row of a key, or 0. If all rows are taken, the key is changed to that of the
 * device's row for unattributed operations. An operation that begins unattributed and
 * finds no row is counted as a loss by the caller.
 */
static __noinline u32 find_row(struct disk_row_key *key)
{
	u32 *known = bpf_map_lookup_elem(&disk_row_of, key), index;

	if (known)
		return *known;
	if (key->class != DISK_UNATTRIBUTED) {
		index = take_row(&disk_free_rows, key);
		if (index)
			return index;
		count_disk_loss(DISK_LOSS_ROW_TABLE_FULL);
		key->start_ns = 0;
		key->tgid = 0;
		key->class = DISK_UNATTRIBUTED;
		known = bpf_map_lookup_elem(&disk_row_of, key);
		if (known)
			return *known;
	}
	return take_row(&disk_spare_rows, key);
}

/* find_row() with a cache. */
static __always_inline u32 recent_row(struct disk_row_key *key)
{
	u32 index = (key->tgid ^ key->device ^ key->operation ^ key->class << 2) % RECENT_ROWS;
	struct disk_recent_row *recent = bpf_map_lookup_elem(&disk_recent_rows, &index);
	u32 row;

	if (recent && same_row(&recent->key, key))
		return recent->row;
	row = find_row(key);
	if (recent && row) {
		recent->key = *key;
		recent->row = row;
	}
	return row;
}

/* 0: under 1,024 ns; i: under 2^(10 + i) ns; the last: everything above. */
static __always_inline u32 bucket_of(u64 ns)
{
	u64 left = ns >> 10;
	u32 bucket = 0;

	if (left >> (LATENCY_BUCKETS - 2))
		return LATENCY_BUCKETS - 1;
	if (left >> 16) {
		bucket += 16;
		left >>= 16;
	}
	if (left >> 8) {
		bucket += 8;
		left >>= 8;
	}
	if (left >> 4) {
		bucket += 4;
		left >>= 4;
	}
	if (left >> 2) {
		bucket += 2;
		left >>= 2;
	}
	/* 0, 1, 2 or 3 is left: 0, 1, 2, 2 bits */
	return bucket + (left > 1 ? 2 : left);
}

#endif
