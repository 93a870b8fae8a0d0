/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The walk over processes that have ended. */
#ifndef EBPFMETRICS_PROCESS_ENDS_H
#define EBPFMETRICS_PROCESS_ENDS_H

#include "process/walk.h"

/*
 * Counters of a process between its exit and its release, as the kernel has them now. The
 * process disappears from the walk an RCU grace period before its final record is written.
 * Meanwhile this record has the counters that the final record will have.
 */
struct process_settled_record {
	struct record_head head;
	struct process_key key;
	struct cpu_totals_record cpu;
	u64 minor_faults;
	u64 major_faults;
	u64 threads; /* not released yet: 0 or the leader */
};

static __always_inline bool is_still(struct task_struct *task, u64 signal,
				     const struct process_key *key)
{
	/* A task that has been freed still has its key until its memory is used again. Its
	 * signal_struct was freed with it, and may be anything by now. */
	return BPF_CORE_READ(task, usage.refs.counter) > 0 &&
	       BPF_CORE_READ(task, tgid) == (int)key->tgid &&
	       BPF_CORE_READ(task, start_boottime) == key->start_ns && signal_of(task) == signal;
}

/*
 * Reads a process that has exited, by the addresses that were stored at its exit. They stay
 * valid until its release. If the release was missed the memory may have been reused; the
 * key shows whether it still belongs to the process.
 */
static __always_inline void write_settled(struct bpf_iter__bpf_map_elem *ctx,
					  struct task_struct *task, struct signal_struct *signal,
					  const struct process_key *key)
{
	struct process_settled_record r = {
	    .head = RECORD_HEAD(SECTION_PROCESS, PROCESS_KIND_SETTLED, r)};

	if (!is_still(task, (u64)signal, key))
		return;
	r.key = *key;
	r.threads = BPF_CORE_READ(signal, nr_threads);
	if (cpu_on && cpu_account_switches) {
		r.cpu.charged_ns = cpu_charged_to(cpu_owner((u64)signal, key->tgid), key->tgid);
		r.cpu.charged_ns += cpu_last_slice(task, (u64)signal);
	}
	r.cpu.sum_exec_ns = BPF_CORE_READ(signal, sum_sched_runtime);
	r.cpu.user_ns = BPF_CORE_READ(signal, utime);
	r.cpu.system_ns = BPF_CORE_READ(signal, stime);
	r.cpu.voluntary_switches = BPF_CORE_READ(signal, nvcsw);
	r.cpu.involuntary_switches = BPF_CORE_READ(signal, nivcsw);
	r.minor_faults = BPF_CORE_READ(signal, min_flt);
	r.major_faults = BPF_CORE_READ(signal, maj_flt);
	if (r.threads) {
		r.cpu.sum_exec_ns += BPF_CORE_READ(task, se.sum_exec_runtime);
		r.cpu.user_ns += BPF_CORE_READ(task, utime);
		r.cpu.system_ns += BPF_CORE_READ(task, stime);
		r.cpu.voluntary_switches += BPF_CORE_READ(task, nvcsw);
		r.cpu.involuntary_switches += BPF_CORE_READ(task, nivcsw);
		r.minor_faults += BPF_CORE_READ(task, min_flt);
		r.major_faults += BPF_CORE_READ(task, maj_flt);
	}
	/* released while it was read: its final record has the counters */
	if ((int)r.threads != BPF_CORE_READ(signal, nr_threads) ||
	    !is_still(task, (u64)signal, key))
		return;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

/* Iterates over `ended`: writes each record and, before the release, the counters now. */
SEC("iter/bpf_map_elem")
int process_ends(struct bpf_iter__bpf_map_elem *ctx)
{
	struct process_ended_record *record = ctx->value;
	struct process_key *at = ctx->key, key;

	if (!record || !at)
		return 0;
	key = *at;
	if (!(record->flags & ENDED_EXITED))
		return 0;
	bpf_seq_write(ctx->meta->seq, record, sizeof(*record));
	if (!(record->flags & ENDED_RELEASED))
		write_settled(ctx, (void *)record->task, (void *)record->signal, &key);
	return 0;
}

#endif
