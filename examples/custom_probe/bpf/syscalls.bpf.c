// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * System calls per process, counted where they begin and where they end. Nothing here is
 * known to ebpfmetrics: it compiles against the headers of ebpf-probes.
 */
#include "probe.h"

EBPFMETRICS_LICENSE;

/* Names and order become `SyscallsLoss` in Rust. */
enum syscalls_loss {
	SYSCALLS_LOSS_PROCESS_TABLE_FULL, /* `syscalls_counts` full: a call or an error is missing */
	SYSCALLS_LOSSES,
};

DEFINE_LOSSES(syscalls, SYSCALLS_LOSSES)

/* System calls of a process. */
struct syscalls_counts_record {
	u64 calls;
	u64 errors;
};

/*
 * By process, from its first call that the probe sees; user space deletes the entry after
 * the process has ended. Sized by user space, preallocated. Threads of one process add from
 * several CPUs: atomic adds.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct process_key);
	__type(value, struct syscalls_counts_record);
} syscalls_counts SEC(".maps");

/* The counts of the running process; NULL if it is not measured or there is no room. */
static __always_inline struct syscalls_counts_record *counts_of_current(void)
{
	static const struct syscalls_counts_record none;
	/* bpf_get_current_task_btf() came in 5.11 */
	struct task_struct *task = (void *)bpf_get_current_task();
	struct process_key key = {.tgid = bpf_get_current_pid_tgid() >> 32};
	struct syscalls_counts_record *counts;

	if (!passes_filter_as(task, key.tgid))
		return NULL;
	key.start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	counts = bpf_map_lookup_elem(&syscalls_counts, &key);
	if (counts)
		return counts;
	bpf_map_update_elem(&syscalls_counts, &key, &none, BPF_NOEXIST);
	counts = bpf_map_lookup_elem(&syscalls_counts, &key);
	if (!counts)
		count_syscalls_loss(SYSCALLS_LOSS_PROCESS_TABLE_FULL);
	return counts;
}

struct pt_regs;

SEC("tp_btf/sys_enter")
int BPF_PROG(syscalls_enter, struct pt_regs *regs, long id)
{
	struct syscalls_counts_record *counts = counts_of_current();

	EMIT_BTF(enum syscalls_loss); /* no map and no function mentions it */
	if (counts)
		__sync_fetch_and_add(&counts->calls, 1);
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(syscalls_leave, struct pt_regs *regs, long result)
{
	struct syscalls_counts_record *counts;

	if (result >= 0 || result < -4095) /* MAX_ERRNO */
		return 0;
	counts = counts_of_current();
	if (counts)
		__sync_fetch_and_add(&counts->errors, 1);
	return 0;
}
