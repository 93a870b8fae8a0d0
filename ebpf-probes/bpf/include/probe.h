/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The header for probes, in this repository or in another crate.
 *
 * The set owns the identity of processes, their start and end, and the filter. A probe has its
 * own hooks. Its counters are
 *
 *  - in a map by `struct process_key`, to which its hooks add, or
 *  - in fields of the kernel, which a program SEC("iter/task") reads: for each task of the
 *    walk it writes records and ends with CALL_NEXT(ctx).
 *
 * The hooks check passes_filter(). What they cannot measure they count with the function of
 * DEFINE_LOSSES().
 */
#ifndef EBPFMETRICS_PROBE_H
#define EBPFMETRICS_PROBE_H

#include "process.h"
#include "filter.h"

/* The section of the probe's records in a walk. Set before loading. */
const volatile u16 own_section = 0;

/*
 * The program of the next probe in a walk; empty for the last one. Written by user space when
 * probes are added and removed. A tail call costs some ns per task, a separate walk some
 * 100 ns.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} next_program SEC(".maps");

/* Ends a program of the walk: continues with the next probe, if there is one. */
#define CALL_NEXT(ctx)                                                                             \
	do {                                                                                       \
		bpf_tail_call(ctx, &next_program, 0);                                              \
		return 0;                                                                          \
	} while (0)

#endif
