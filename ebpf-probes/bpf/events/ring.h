/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The event stream: one ring buffer for all CPUs, kinds and objects, so that events keep
 * their order and one reader gets them all.
 *
 * Several objects write to one stream if user space loads them with the maps below shared.
 * An object that can send events but is not asked to is loaded without these maps.
 */
#ifndef EBPFMETRICS_EVENTS_RING_H
#define EBPFMETRICS_EVENTS_RING_H

#include "process.h"

/* Names and order become the kinds in Rust. */
enum event_kind {
	EVENT_KIND_STARTED,
	EVENT_KIND_EXECUTED,
	EVENT_KIND_EXITED,
	EVENT_KIND_MEMORY_THRESHOLD,
	EVENT_KIND_OOM_KILLED,
	EVENT_KIND_SLOW_IO,
	EVENT_KINDS,
};

enum events_flags {
	EVENT_PROCESS_ENDED = 1 << 0, /* the last thread has exited */
};

/* The fields that every event begins with. */
struct events_event_record {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u64 lost_before; /* events of all kinds, since loading */
	struct process_info_record process;
	u64 resident_pages; /* EVENT_KIND_MEMORY_THRESHOLD */
	u64 flags;
	u32 kind;
	s32 exit_status; /* as in wait(2); EVENT_KIND_EXITED */
};

/* An operation that has completed, and the process that it is charged to. */
struct events_slow_io_record {
	struct events_event_record event;
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
} events_ring SEC(".maps");

/*
 * Events that found no room. The next event that finds room carries their sum, so that the
 * reader knows where in the stream they are missing.
 */
struct events_lost_record {
	u64 all;
	u64 by_kind[EVENT_KINDS];
};

/* Written by all CPUs while the buffer is full: atomic adds. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct events_lost_record);
} events_lost SEC(".maps");

/* Sends an event, or a record of `size` bytes that begins with one. */
static __always_inline void send_event(struct events_event_record *r, u64 size,
				       enum event_kind kind)
{
	u32 zero = 0;
	struct events_lost_record *missing = bpf_map_lookup_elem(&events_lost, &zero);

	if (!missing)
		return;
	r->kind = kind;
	r->lost_before = missing->all;
	if (!bpf_ringbuf_output(&events_ring, r, size, 0))
		return;
	__sync_fetch_and_add(&missing->by_kind[kind], 1);
	__sync_fetch_and_add(&missing->all, 1);
}

#endif
