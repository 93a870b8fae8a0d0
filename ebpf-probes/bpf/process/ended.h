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
	ENDED_EXITED = 1 << 0, /* its last thread has exited: `info` and `ended_ns` are set */
	ENDED_RELEASED = 1 << 1, /* the kernel has freed it: these are its final counters */
};

struct process_ended_record {
	struct record_head head;
	struct process_info_record info;
	u64 ended_ns; /* CLOCK_MONOTONIC, at the exit of the last thread */
	u64 task; /* the leader's address, to read it between exit and release */
	u64 signal;
	u32 threads; /* that have exited */
	u32 flags;
	struct cpu_ended_record cpu;
	struct mem_ended_record mem;
	struct disk_ended_record disk;
	struct slab_ended_record slab;
};

/*
 * One entry per process that has lost a thread, from the exit of its first thread until
 * user space has read its final counters. Allocated as used, sized by user space. Written
 * by exiting threads of one process on several CPUs (atomic adds), then by the last
 * thread, then by the release. A process that finds no room is added to `overflow` at its
 * release.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* 32,768 by default */
	__type(key, struct process_key);
	__type(value, struct process_ended_record);
} ended SEC(".maps");

/* The sum of the final records that `ended` had no room for. Per CPU: one writer each. */
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
