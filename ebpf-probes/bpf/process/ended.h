/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The final record of a process: its identity, and one part per built-in probe. */
#ifndef EBPFMETRICS_ENDED_H
#define EBPFMETRICS_ENDED_H

#include "process.h"
#include "cpu/ended.h"
#include "disk/ended.h"
#include "mem/ended.h"
#include "slab/ended.h"

enum ended_flags {
	ENDED_EXITED = 1 << 0, /* the last thread has exited: `info` and `ended_ns` are set */
	ENDED_RELEASED = 1 << 1, /* the kernel has released it: the counters are final */
};

struct process_ended_record {
	struct record_head head;
	struct process_info_record info;
	u64 ended_ns; /* CLOCK_MONOTONIC, at the exit of the last thread */
	u64 task; /* address of the leader, to read it between exit and release */
	u64 signal; /* address of its signal_struct */
	u32 threads; /* number that have exited */
	u32 flags;
	struct cpu_ended_record cpu;
	struct mem_ended_record mem;
	struct disk_ended_record disk;
	struct slab_ended_record slab;
};

/*
 * One entry per process of which a thread has exited, from the first such exit until user
 * space has read the final counters and deletes the entry. Allocated as used, sized by user
 * space. Exiting threads of one process write on several CPUs (atomic adds), then the last
 * thread, then the release. A process without an entry is added to `overflow` at its
 * release.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* 32,768 by default */
	__type(key, struct process_key);
	__type(value, struct process_ended_record);
} ended SEC(".maps");

/* What user space reads only if it has changed. */
enum process_change {
	PROCESS_CHANGE_ENDED = 0, /* a process exited or was released */
	PROCESS_CHANGE_CGROUP_REMOVED = 1,
	PROCESS_CHANGE_MOVE_BEGUN = 2, /* of a thread to another cgroup */
	PROCESS_CHANGE_MOVE_DONE = 3,
	PROCESS_CHANGES,
};

/* How often it changed. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PROCESS_CHANGES);
	__type(key, u32);
	__type(value, u64);
} changes SEC(".maps");

static __always_inline void count_change(u32 change)
{
	u64 *n = bpf_map_lookup_elem(&changes, &change);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* Sum of the final records that `ended` had no room for. Per CPU: one writer each. */
struct process_overflow_record {
	u64 processes;
	struct cpu_totals_record cpu;
	struct mem_totals_record mem;
	struct disk_totals_record disk;
	struct slab_counters_record slab;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct process_overflow_record);
} overflow SEC(".maps");

#endif
