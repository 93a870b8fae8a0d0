/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What every probe shares: the key of a process and the counting of losses. */
#ifndef EBPFMETRICS_COMMON_H
#define EBPFMETRICS_COMMON_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* The kernel hands the helpers that the probes need to GPL programs only. */
#define EBPFMETRICS_LICENSE char LICENSE[] SEC("license") = "Dual MIT/GPL"

/* A pid comes back after its process is gone; with the start time it never does. */
struct process_key {
	u64 start_ns; /* start_boottime of the group leader */
	u32 tgid;
	u32 padding;
};

/* Puts a type into the object's BTF that no map and no function there mentions. */
#define TELL_BTF(type) asm volatile("" ::"r"(bpf_core_type_id_local(type)))

/*
 * Counts what a probe could not count: one slot per cause, named by the enum
 * of the probe and by the same names in its Rust module. Per-CPU, so that an
 * increment needs no atomic; an interrupt between load and store could lose one
 * of two losses, never hide that there were any.
 */
#define DEFINE_LOSSES(count)                                                                       \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, count);                                                        \
		__type(key, u32);                                                                  \
		__type(value, u64);                                                                \
	} losses SEC(".maps");                                                                     \
                                                                                                   \
	static __always_inline void count_loss(u32 cause)                                          \
	{                                                                                          \
		u64 *n = bpf_map_lookup_elem(&losses, &cause);                                     \
		if (n)                                                                             \
			*n += 1;                                                                   \
	}

#endif
