/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Events for slow operations. Without them the verifier removes all of this, and user
 * space creates neither the maps of events nor `disk_names`.
 */
#ifndef EBPFMETRICS_DISK_SLOW_IO_H
#define EBPFMETRICS_DISK_SLOW_IO_H

#include "disk/in_flight.h"
#include "disk/maps.h"
#include "events/ring.h"

/* Operations that take at least this long are sent as events; 0: none. Set before loading. */
const volatile u64 slow_io_ns = 0;

/*
 * Adds the running process to `disk_names`. By helpers: before 5.11 the current task is not
 * a pointer to load from.
 */
static __noinline int remember(struct process_key *key)
{
	struct process_info_record info = {.flags = PROCESS_HAS_OWNER};
	struct task_struct *task = (void *)bpf_get_current_task();

	if (!key->tgid || bpf_map_lookup_elem(&disk_names, key))
		return 0;
	info.process_start_ns = key->start_ns;
	info.tgid = key->tgid;
	info.threads = BPF_CORE_READ(task, signal, nr_threads);
	info.parent_tgid = BPF_CORE_READ(task, real_parent, tgid);
	info.parent_start_ns = BPF_CORE_READ(task, real_parent, group_leader, start_boottime);
	info.namespace_pid = namespace_pid(true, BPF_CORE_READ(task, group_leader), key->tgid);
	info.uid = BPF_CORE_READ(task, real_cred, uid.val);
	info.cgroup_id = cgroup_id(true, cgroup_of(true, task));
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		info.flags |= PROCESS_KERNEL_THREAD;
	bpf_probe_read_kernel(info.comm, sizeof(info.comm),
			      BPF_CORE_READ(task, group_leader, comm));
	bpf_map_update_elem(&disk_names, key, &info, BPF_NOEXIST);
	return 0;
}

/* Sends an operation with the last known name of its process. */
static __noinline int send_slow_io(struct disk_in_flight *io, u32 bytes, u64 queue_ns,
				   u64 device_ns)
{
	struct process_key key = {.start_ns = io->key.start_ns, .tgid = io->key.tgid};
	struct process_info_record *process = bpf_map_lookup_elem(&disk_names, &key);
	struct events_slow_io_record r = {
	    .queue_ns = queue_ns,
	    .device_ns = device_ns,
	    .bytes = io->completed_bytes + bytes,
	    .device = io->key.device,
	    .class = io->key.class,
	    .operation = io->key.operation,
	};

	if (process) {
		r.event.process = *process;
		if (process->flags & PROCESS_HAS_EXITED)
			r.event.flags = EVENT_PROCESS_ENDED;
	}
	r.event.process.process_start_ns = key.start_ns;
	r.event.process.tgid = key.tgid;
	r.event.time_ns = io->started_ns + queue_ns + device_ns;
	send_event(&r.event, sizeof(r), EVENT_KIND_SLOW_IO);
	return 0;
}

#endif
