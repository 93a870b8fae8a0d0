/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The table of operations that have begun and are not complete. */
#ifndef EBPFMETRICS_DISK_IN_FLIGHT_H
#define EBPFMETRICS_DISK_IN_FLIGHT_H

#include "disk/row.h"

/* One operation, in one cache line. */
struct disk_in_flight {
	u64 request; /* by number_of(); 0: the slot is free */
	struct disk_row_key key;
	u64 started_ns;
	u64 issued_ns; /* 0: not yet */
	u32 row;
	u32 bytes; /* not completed yet */
	/*
	 * of completed parts, only with slow I/O events; of a bio: the number of its first vector
	 * << 32 | bytes of it to skip
	 */
	u64 completed_bytes;
};

/* Charged by the owners of its pages, which are looked up when it completes. */
#define ROW_OF_OWNERS (~0U)

/*
 * 8,192 slots of 64 bytes (0.5 MiB), sized by user space. A request takes the slot that
 * its number hashes to, if that is free. The start, issue and completion of the request
 * write it, one after the other.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, u32);
	__type(value, struct disk_in_flight);
} disk_in_flight SEC(".maps");

/* log2 of the number of slots. Set before loading. */
const volatile u32 in_flight_bits = 13;

/* Requests whose slot was taken by another; preallocated, about 0.1 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct disk_in_flight);
} disk_collided SEC(".maps");

/*
 * An address as a number that can be computed with: its distance from a map of this
 * object. The verifier forbids to shift or multiply pointers, but not to subtract them. A
 * helper that reads the address from memory would take 10 ns.
 */
static __always_inline u64 number_of(const void *pointer)
{
	u32 zero = 0;
	void *base = bpf_map_lookup_elem(&disk_in_flight, &zero);
	u64 number = (u64)pointer;

	if (!base)
		return 0;
	asm volatile("%0 -= %1" : "+r"(number) : "r"(base));
	return number;
}

static __always_inline struct disk_in_flight *slot_of(u64 request)
{
	/* Fibonacci hashing, because requests lie at equal distances */
	u32 index = request * 0x9E3779B97F4A7C15ULL >> (64 - in_flight_bits);

	return bpf_map_lookup_elem(&disk_in_flight, &index);
}

static __always_inline struct disk_in_flight *find(u64 request)
{
	struct disk_in_flight *slot = slot_of(request);

	if (!slot || slot->request == request)
		return slot;
	return bpf_map_lookup_elem(&disk_collided, &request);
}

static __always_inline void forget(u64 request)
{
	struct disk_in_flight *slot = slot_of(request);

	if (slot && slot->request == request)
		*(volatile u64 *)&slot->request = 0;
	else
		bpf_map_delete_elem(&disk_collided, &request);
}

/*
 * Counts an operation whose completion was missed: its request begins another one. Only
 * for requests, because a bio in flight may be queued again for another device.
 */
static __always_inline void settle(struct disk_in_flight *io)
{
	struct disk_row_record *row = bpf_map_lookup_elem(&disk_rows, &io->row);

	count_disk_loss(DISK_LOSS_COMPLETION_UNSEEN);
	if (row && same_row(&row->key, &io->key)) {
		__sync_fetch_and_add(&row->unseen, 1);
		__sync_fetch_and_add(&row->bytes, io->bytes);
	}
}

/*
 * A slot for a request. Two requests that take a free slot in the same instant overwrite
 * each other, and one of them becomes start_unseen: 5.10 has no compare-and-swap for BPF.
 */
static __always_inline struct disk_in_flight *take_slot(u64 request, bool settles)
{
	static const struct disk_in_flight none;
	struct disk_in_flight *slot = slot_of(request);

	if (!slot)
		return slot;
	if (slot->request == request) {
		if (settles)
			settle(slot);
		return slot;
	}
	if (!slot->request) {
		*(volatile u64 *)&slot->request = request;
		if (*(volatile u64 *)&slot->request == request)
			return slot;
	}
	slot = bpf_map_lookup_elem(&disk_collided, &request);
	if (slot) {
		if (settles)
			settle(slot);
		return slot;
	}
	if (bpf_map_update_elem(&disk_collided, &request, &none, BPF_ANY))
		count_disk_loss(DISK_LOSS_IN_FLIGHT_TABLE_FULL);
	return bpf_map_lookup_elem(&disk_collided, &request);
}

/* The row of an operation, looked up again if user space has given it to another key. */
static __always_inline struct disk_row_record *row_of_operation(struct disk_in_flight *io)
{
	struct disk_row_record *row = bpf_map_lookup_elem(&disk_rows, &io->row);
	struct disk_row_key key;
	u32 index;

	if (row && same_row(&row->key, &io->key))
		return row;
	key = io->key;
	index = find_row(&key);
	return index ? bpf_map_lookup_elem(&disk_rows, &index) : NULL;
}

#endif
