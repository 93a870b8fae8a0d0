/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The stream of events: one ring buffer for all CPUs, all kinds and all objects
 * that tell, so that what happened comes in its order and one reader has it all.
 *
 * Several objects tell into one stream where user space loads them with the maps
 * below shared. An object that may tell and is not asked to is loaded without them.
 */
#ifndef EBPFMETRICS_EVENTS_H
#define EBPFMETRICS_EVENTS_H

#include "task.h"

/* Names and order are those of `KINDS` in ebpfmetrics/src/probes/events/record.rs. */
enum event_kind {
	EVENT_KIND_STARTED,
	EVENT_KIND_EXECUTED,
	EVENT_KIND_EXITED,
	EVENT_KIND_MEMORY_THRESHOLD,
	EVENT_KIND_OOM_KILLED,
	EVENT_KIND_SLOW_IO,
	EVENT_KINDS,
};

/* What every event begins with, and all that most have. */
struct events_event_record {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u64 lost_before; /* of all kinds, since loading */
	struct task_about about;
	u64 resident_pages;
	u32 kind;
	s32 exit_status; /* as wait(2) has it */
};

struct events_slow_io_record {
	struct events_event_record event; /* at its completion, about who is charged */
	u64 queue_ns;
	u64 device_ns;
	u64 bytes;
	u32 device; /* dev_t */
	u32 class;
	u32 operation;
	u32 padding;
};

/* Sized by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

/*
 * Events that found no room. Their sum is told with the next that does, so that the
 * reader knows where in the stream they are missing.
 */
struct events_lost_record {
	u64 all;
	u64 by_kind[EVENT_KINDS];
};

/* Written by all CPUs, when the buffer is full: atomic adds. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct events_lost_record);
} lost SEC(".maps");

/* Tells an event, or a record of `size` bytes that begins with one. */
static __always_inline void tell(struct events_event_record *r, u64 size, enum event_kind kind)
{
	u32 zero = 0;
	struct events_lost_record *missing = bpf_map_lookup_elem(&lost, &zero);

	if (!missing)
		return;
	r->kind = kind;
	r->lost_before = missing->all;
	if (!bpf_ringbuf_output(&ring, r, size, 0))
		return;
	__sync_fetch_and_add(&missing->by_kind[kind], 1);
	__sync_fetch_and_add(&missing->all, 1);
}

#endif
