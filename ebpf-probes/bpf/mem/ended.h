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

/* The highest of something in a window; windows are told apart by their epoch. */
struct mem_peak_record {
	u64 epoch;
	u64 pages;
	u64 previous_pages; /* in the epoch before; 0 if nothing happened in it */
};

/*
 * What events have shown of a process. The counters are exact because each event takes
 * what the one before it left, in one instruction. A walk writes it as it is.
 */
struct mem_tracked_record {
	struct record_head head;
	u64 process_start_ns;
	u32 tgid;
	u32 padding;
	struct mem_peak_record resident_set;
	struct mem_peak_record virtual_space;
	u64 space; /* the address space: exec takes a new one */
	u64 earlier_pages; /* the highest resident set of the address spaces before it */
	u64 virtual_pages; /* its size at the last event */
	/* what it contributes to the sum of the filter: the number of the count in the upper
	 * half, pages in the lower; by the lowest bit of the number */
	u64 counted[2];
	u64 allocations;
	u64 allocated_pages;
	u64 deallocations;
	u64 deallocated_pages;
};

struct mem_ended_record {
	struct mem_faults_record faults;
	struct mem_tracked_record tracked; /* process_start_ns 0: not tracked */
	/* 0: not known, where the kernel takes the memory away first */
	u64 resident_high_water_pages;
	u64 virtual_high_water_pages;
	u64 execs; /* that led to its last address space; 0: not known */
	u64 is_shared; /* 1 if another process owns its address space */
	u64 oom_kills; /* 1 if the kernel chose it */
};

/* Counters of ended processes together. */
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
