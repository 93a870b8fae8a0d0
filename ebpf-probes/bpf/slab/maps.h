/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Slab counters per process, for the object `slab` and for the walk. */
#ifndef EBPFMETRICS_SLAB_MAPS_H
#define EBPFMETRICS_SLAB_MAPS_H

#include "slab/ended.h"

/* Names and order become `SlabLoss` in Rust. */
enum slab_loss {
	SLAB_LOSS_PROCESS_TABLE_FULL, /* `slab_overflow` full: an event was not counted */
	SLAB_LOSS_ADDRESS_MAP_FULL, /* `slab_addresses` full: an allocation is untracked */
	SLAB_LOSS_ADDRESS_MAP_BUSY, /* an interrupt held `slab_addresses`: untracked too */
	SLAB_LOSSES,
};

DEFINE_LOSSES(slab, SLAB_LOSSES)

/* Set before loading. */
const volatile bool slab_track_addresses = false;
const volatile u32 slab_slot_mask = 0; /* entries of `slab_slots` less one */

/* What is counted for one process. Several CPUs add: atomic operations. */
struct slab_tally_record {
	struct slab_counters_record counters;
	u32 born; /* low half of the start time: distinguishes processes with equal owners */
	u32 padding;
};

/*
 * The tally of a process, in the slot of its pid modulo the size. A slot belongs to the
 * process that claimed it first, until the release of that process. A process that finds
 * its slot taken is counted in `slab_overflow`.
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
	__uint(max_entries, 1); /* 16,384 by default, 112 bytes each */
	__type(key, u32);
	__type(value, struct slab_slot);
} slab_slots SEC(".maps");

struct slab_owner {
	u64 signal;
	u32 tgid;
	u32 padding;
};

/* Preallocated: the hooks cannot allocate. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* a quarter of `slab_slots` */
	__type(key, struct slab_owner);
	__type(value, struct slab_tally_record);
} slab_overflow SEC(".maps");

/*
 * A process. Its signal_struct stays the same through exec and until its last thread is
 * released. Afterwards the kernel reuses it; the pid distinguishes the new process.
 * `signal` is only compared and stored: the verifier may refuse arithmetic on it.
 */
struct slab_process {
	u64 signal;
	u32 tgid; /* 0: none, the CPU is idle */
	u32 born; /* with the address map */
	bool outside; /* outside the filter: only `tgid` is set */
};

static __always_inline bool slab_holds(struct slab_slot *slot, const struct slab_process *process)
{
	return slot->signal == process->signal && slot->tgid == process->tgid;
}

static __always_inline struct slab_tally_record *
slab_in_overflow(const struct slab_process *process)
{
	struct slab_owner owner = {.signal = process->signal, .tgid = process->tgid};

	return bpf_map_lookup_elem(&slab_overflow, &owner);
}

#endif
