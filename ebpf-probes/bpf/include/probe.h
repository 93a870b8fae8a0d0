/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What a probe includes, in this repository or in another crate.
 *
 * The set that a probe joins owns the identity of processes, their start and end, and
 * the filter. A probe has hooks of its own and keeps its counts
 *
 *  - in a map by `struct process_key` (sum what happens to a process there), or
 *  - in the kernel's own fields, which a program SEC("iter/task") reads: for each task of
 *    the walk it writes records for that task and ends with CALL_NEXT(ctx).
 *
 * It asks passes_filter() in its hooks and counts what it cannot measure with
 * DEFINE_LOSSES().
 */
#ifndef EBPFMETRICS_PROBE_H
#define EBPFMETRICS_PROBE_H

#include "process.h"
#include "filter.h"

/* The section of the probe's records in a walk. Set before loading. */
const volatile u16 own_section = 0;

/*
 * The program of the next probe in a walk; empty at the end. Written by user space when
 * probes are added and removed. A tail call costs some ns, a walk of its own some 100 ns
 * per task.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} next_program SEC(".maps");

/* Ends a program of the walk: goes on with the next probe, if there is one. */
#define CALL_NEXT(ctx)                                                                             \
	do {                                                                                       \
		bpf_tail_call(ctx, &next_program, 0);                                              \
		return 0;                                                                          \
	} while (0)

#endif
