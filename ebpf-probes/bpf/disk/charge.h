/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Adds completed operations to their rows. */
#ifndef EBPFMETRICS_DISK_CHARGE_H
#define EBPFMETRICS_DISK_CHARGE_H

#include "disk/in_flight.h"
#include "disk/slow_io.h"

/* An operation or a part of it has completed. `bytes` are not yet in a row unless `counted`. */
static __always_inline void charge(struct disk_in_flight *io, u32 bytes, bool counted, bool failed,
				   bool done)
{
	struct disk_row_record *row = row_of_operation(io);
	u64 now, queue_ns, device_ns;
	u32 bucket;

	if (!row)
		return;
	if (!counted)
		__sync_fetch_and_add(&row->bytes, bytes);
	if (failed)
		__sync_fetch_and_add(&row->errors, 1);
	if (!done)
		return;
	now = bpf_ktime_get_ns();
	/* never issued: a flush with nothing to do, or a device without a queue */
	queue_ns = io->issued_ns ? io->issued_ns - io->started_ns : 0;
	device_ns = now - io->started_ns - queue_ns;
	/* the clocks of two CPUs may differ by some ns */
	if ((s64)queue_ns < 0)
		queue_ns = 0;
	if ((s64)device_ns < 0)
		device_ns = 0;
	if (queue_ns)
		__sync_fetch_and_add(&row->queue_ns, queue_ns);
	__sync_fetch_and_add(&row->device_ns, device_ns);
	if (slow_io_ns && queue_ns + device_ns >= slow_io_ns)
		send_slow_io(io, bytes, queue_ns, device_ns);
	bucket = bucket_of(queue_ns);
	if (bucket < LATENCY_BUCKETS)
		__sync_fetch_and_add(&row->queue_buckets[bucket], 1);
	bucket = bucket_of(device_ns);
	if (bucket < LATENCY_BUCKETS)
		__sync_fetch_and_add(&row->device_buckets[bucket], 1);
}

/*
 * Counts an operation whose start was not seen, for its device alone: the totals of devices
 * stay complete.
 */
static __noinline void charge_unattributed(u32 device, u32 command, u32 bytes, u32 done)
{
	u32 operation = command & REQ_OP_MASK, index;
	struct disk_row_key key = {
	    .device = device,
	    .class = DISK_UNATTRIBUTED,
	    .operation = operation == REQ_OP_DISCARD ? DISK_DISCARD : operation & 1,
	};
	struct disk_row_record *row;

	index = find_row(&key);
	row = bpf_map_lookup_elem(&disk_rows, &index);
	if (!index || !row) {
		count_disk_loss(DISK_LOSS_ROW_TABLE_FULL);
		return;
	}
	__sync_fetch_and_add(&row->bytes, bytes);
	if (done)
		__sync_fetch_and_add(&row->unseen, 1);
}

#endif
