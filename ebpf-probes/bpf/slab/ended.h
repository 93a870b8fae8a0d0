/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The slab part of a final record. */
#ifndef EBPFMETRICS_SLAB_ENDED_H
#define EBPFMETRICS_SLAB_ENDED_H

#include "common.h"

/* Counters of one process. Those below `frees` need the address map. */
struct slab_counters_record {
	u64 allocations;
	u64 allocated_bytes;
	u64 frees;
	u64 freed_bytes; /* of `frees` */
	u64 unknown_frees; /* of `frees`: the object is not in the address map */
	u64 cross_process_frees; /* of `frees`: another process had allocated it */
	u64 released_bytes; /* of its allocations: freed, by any process */
	u64 freed_by_others; /* of its allocations: freed by another process */
	u64 unseen_frees; /* of its allocations: no tracepoint, noticed at the next use */
	u64 untracked_bytes; /* of its allocations: no room in the address map */
};

struct slab_ended_record {
	struct slab_counters_record counters;
};

#endif
