/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Shared by all objects: the key of a process, record heads and loss counters. */
#ifndef EBPFMETRICS_COMMON_H
#define EBPFMETRICS_COMMON_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* Some helpers that the probes need are available to GPL programs only. */
#define EBPFMETRICS_LICENSE char LICENSE[] SEC("license") = "Dual MIT/GPL"

/* Identifies a process: a pid can be reused, a pid with a start time cannot. */
struct process_key {
	u64 start_ns; /* start_boottime of the group leader */
	u32 tgid;
	u32 padding;
};

/* The head of every record that an iterator writes. */
struct record_head {
	u16 section; /* SECTION_PROCESS, or the section of a probe */
	u16 kind; /* numbered by the section */
	u32 size; /* of the whole record, head included */
};

#define RECORD_HEAD(section_id, kind_id, type)                                                     \
	((struct record_head){.section = section_id, .kind = kind_id, .size = sizeof(type)})

/* Adds a type to the object's BTF that no map and no function of it uses. */
#define EMIT_BTF(type) asm volatile("" ::"r"(bpf_core_type_id_local(type)))

/*
 * Counts what a probe could not measure: one element per cause, in the order of the
 * probe's `enum NAME_loss`. Per CPU, so an increment needs no atomic operation. If an
 * interrupt arrives between load and store, one of two losses may not be counted.
 */
#define DEFINE_LOSSES(name, count)                                                                 \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, count);                                                        \
		__type(key, u32);                                                                  \
		__type(value, u64);                                                                \
	} name##_losses SEC(".maps");                                                              \
                                                                                                   \
	static __always_inline void count_##name##_loss(u32 cause)                                 \
	{                                                                                          \
		u64 *n = bpf_map_lookup_elem(&name##_losses, &cause);                              \
		if (n)                                                                             \
			*n += 1;                                                                   \
	}

#endif
