/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the slab hooks count per process, for the object `slab` and for the walk. */
#ifndef EBPFMETRICS_SLAB_MAPS_H
#define EBPFMETRICS_SLAB_MAPS_H

#include "slab/ended.h"

/* Names and order become `SlabLoss` in Rust. */
enum slab_loss {
	SLAB_LOSS_PROCESS_TABLE_FULL, /* `slab_overflow` full: an allocation or free is missing */
	SLAB_LOSS_ADDRESS_MAP_FULL, /* `slab_addresses` full: the free of this one will be unknown */
	SLAB_LOSS_ADDRESS_MAP_BUSY, /* as full, but because an interrupt came between */
	SLAB_LOSSES,
};

DEFINE_LOSSES(slab, SLAB_LOSSES)

/* Set before loading. */
const volatile bool slab_track_addresses = false;
const volatile u32 slab_slot_mask = 0; /* entries of `slab_slots` less one */

/* What is counted of one process, by several CPUs: atomic adds. */
struct slab_tally_record {
	struct slab_counters_record counters;
	u32 born; /* tells processes apart that had the same signal_struct and pid */
	u32 padding;
};

/*
 * The tally of a process, in the slot of its pid modulo the size. The slot
 * belongs to any process claimed it first, until the release of that process; a
 * process that finds another there goes to `overflow`.
 */
struct slab_slot {
	u64 signal;
	u32 tgid;
	u32 padding;
	u64 claims;
	struct slab_tally_record tally;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* 16,384 of 112 bytes, set by user space */
	__type(key, u32);
	__type(value, struct slab_slot);
} slab_slots SEC(".maps");

struct slab_owner {
	u64 signal;
	u32 tgid;
	u32 padding;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* a quarter of `slots` */
	__type(key, struct slab_owner);
	__type(value, struct slab_tally_record);
} slab_overflow SEC(".maps");

/*
 * A process. signal_struct stays with it through exec, and with each thread to its last
 * step. The kernel reuses it after the release; the pid tells the new process apart even
 * then. Only compared and stored: the verifier may not allow to compute with it.
 */
struct slab_process {
	u64 signal;
	u32 tgid; /* 0: none, the CPU is idle */
	u32 born;
	bool outside; /* outside the filter: then only the pid is known */
};

static __always_inline bool slab_holds(struct slab_slot *slot, const struct slab_process *process)
{
	return slot->signal == process->signal && slot->tgid == process->tgid;
}

static __always_inline struct slab_tally_record *slab_in_overflow(const struct slab_process *process)
{
	struct slab_owner owner = {.signal = process->signal, .tgid = process->tgid};

	return bpf_map_lookup_elem(&slab_overflow, &owner);
}

#endif
