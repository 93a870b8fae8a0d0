/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The map that the object `disk` and the disk part of process exits both use. */
#ifndef EBPFMETRICS_DISK_MAPS_H
#define EBPFMETRICS_DISK_MAPS_H

#include "process.h"

/*
 * The processes that may be charged, for slow I/O events: a process may be gone before its
 * pages are written. 8,192 entries with slow I/O, allocated at loading; the process that did
 * no I/O for longest is replaced. Written by the process itself.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct process_key);
	__type(value, struct process_info_record);
} disk_names SEC(".maps");

#endif
