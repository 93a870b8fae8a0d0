/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The memory part of a final record. */
#ifndef EBPFMETRICS_MEM_ENDED_H
#define EBPFMETRICS_MEM_ENDED_H

#include "common.h"

struct mem_faults_record {
	u64 minor;
	u64 major;
	u64 dead_minor; /* of threads of the process that have been released */
	u64 dead_major;
};

/* The maximum of a value in a window. The epoch identifies the window. */
struct mem_peak_record {
	u64 epoch;
	u64 pages;
	u64 previous_pages; /* maximum in the epoch before; 0 if there were no events in it */
};

/*
 * What the hooks have counted for a process. The counters are exact because each event takes
 * the result of the one before it in one instruction. A walk writes this record unchanged.
 */
struct mem_tracked_record {
	struct record_head head;
	u64 process_start_ns;
	u32 tgid;
	u32 padding;
	struct mem_peak_record resident_set;
	struct mem_peak_record virtual_space;
	u64 space; /* address of its mm: exec creates a new one */
	u64 virtual_pages; /* its size at the last event */
	u64 allocations;
	u64 allocated_pages;
	u64 deallocations;
	u64 deallocated_pages;
};

struct mem_ended_record {
	struct mem_faults_record faults;
	struct mem_tracked_record tracked; /* process_start_ns is 0: not tracked */
	u64 resident_high_water_pages; /* 0 up to 6.12, where the memory is gone by then */
	u64 virtual_high_water_pages;
	u64 oom_kills; /* 1 if the OOM killer chose it */
};

/* Sum of the counters of ended processes. */
struct mem_totals_record {
	u64 minor_faults;
	u64 major_faults;
	u64 allocations;
	u64 allocated_pages;
	u64 deallocations;
	u64 deallocated_pages;
	u64 oom_kills;
};

#endif
