/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The slab part of a final record. */
#ifndef EBPFMETRICS_SLAB_ENDED_H
#define EBPFMETRICS_SLAB_ENDED_H

#include "common.h"

struct slab_counters_record {
	u64 allocations;
	u64 allocated_bytes;
	u64 frees;
	/* with addresses: of its frees */
	u64 freed_bytes;
	u64 unknown_frees; /* nothing is known of the object that was freed */
	u64 cross_process_frees; /* another process had allocated it */
	/* with addresses: of its allocations */
	u64 released_bytes; /* freed, by any process */
	u64 freed_by_others;
	u64 unseen_frees; /* no tracepoint fired; noticed when the address was reused */
	u64 untracked_bytes; /* not in `slab_addresses` */
};

struct slab_ended_record {
	struct slab_counters_record counters;
};

#endif
