/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The paths of cgroups that have been removed. */
#ifndef EBPFMETRICS_PROCESS_CGROUPS_H
#define EBPFMETRICS_PROCESS_CGROUPS_H

#include "process.h"

#define CGROUP_PATH_BYTES 1024 /* TRACE_CGROUP_PATH_LEN */

/* Keyed by the id of the cgroup. */
struct process_cgroup_path_record {
	u64 length; /* without the terminating 0 */
	char bytes[CGROUP_PATH_BYTES];
};

/*
 * Cgroups that were removed since user space last read and deleted the entries: each is
 * written once. User space finds the paths of other cgroups in the file system. Allocated as
 * used; 4,096 entries. A cgroup that finds no room is counted, and its path is unknown.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* 4,096 */
	__type(key, u64);
	__type(value, struct process_cgroup_path_record);
} removed_cgroups SEC(".maps");

/* A path is too large for the stack. The kernel holds a spin lock around the tracepoint. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct process_cgroup_path_record);
} cgroup_path SEC(".maps");

/* Whether a cgroup is in the hierarchy that cgroup ids belong to. `task` is any task. */
static __always_inline bool is_in_hierarchy(struct cgroup *group, struct task_struct *task)
{
	struct cgroup *other = cgroup_of(true, task);

	return BPF_CORE_READ(group, root) == BPF_CORE_READ(other, root);
}

/* Stores the path of a cgroup that is being removed; whether it is known. */
static __always_inline bool store_path(struct cgroup *group, const char *path)
{
	struct process_cgroup_path_record *record;
	u64 id = BPF_CORE_READ(group, kn, id);
	u32 zero = 0;
	long size;

	record = bpf_map_lookup_elem(&cgroup_path, &zero);
	if (!record)
		return false;
	size = bpf_probe_read_kernel_str(record->bytes, sizeof(record->bytes), path);
	if (size <= 1 || size >= CGROUP_PATH_BYTES) /* the kernel cuts a longer path */
		return false;
	record->length = size - 1;
	return !bpf_map_update_elem(&removed_cgroups, &id, record, BPF_ANY);
}

#endif
