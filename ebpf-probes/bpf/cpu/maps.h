/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the hook of SchedSwitch counts, for the object `cpu` and for the walk. */
#ifndef EBPFMETRICS_CPU_MAPS_H
#define EBPFMETRICS_CPU_MAPS_H

#include "common.h"

/* Names and order become `CpuLoss` in Rust. */
enum cpu_loss {
	CPU_LOSS_SWITCH_UNMATCHED, /* a switch to this task was not seen: its slice is missing */
	CPU_LOSS_SWITCH_TABLE_FULL, /* `cpu_overflow` full: a slice is missing */
	CPU_LOSSES,
};

DEFINE_LOSSES(cpu, CPU_LOSSES)

/* Entries of `cpu_slots` less one: a power of two less one. Set before loading. */
const volatile u32 cpu_slot_mask = 0;

/*
 * What runs on a CPU, and its sum_exec_runtime when it was switched in. One cache line
 * per CPU, written by that CPU alone, read by the walk; `primed` is written by the walk
 * alone, before the first switch on that CPU.
 */
struct cpu_current {
	u64 sum_exec_ns;
	u64 signal; /* 0: no switch seen here yet */
	u32 tid;
	u32 primed_tid;
	u64 primed_sum_exec_ns;
	u64 padding[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* possible CPUs */
	__type(key, u32);
	__type(value, struct cpu_current);
} cpu_current_tasks SEC(".maps");

/*
 * The time charged to a process, in the slot of its pid modulo the size. A slot belongs to
 * the process that claimed it first; one that finds another there goes to `cpu_overflow`.
 * Threads of one process add from several CPUs: atomic adds.
 */
struct cpu_slot {
	u64 owner;
	u64 charged_ns;
	u64 claims;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* 32,768 with SchedSwitch */
	__type(key, u32);
	__type(value, struct cpu_slot);
} cpu_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* 8,192 with SchedSwitch */
	__type(key, u64);
	__type(value, u64);
} cpu_overflow SEC(".maps");

/*
 * Names a process for its whole life, threads and exec included, at the price of one
 * load. The kernel reuses a signal_struct after the release; the pid tells the new process
 * apart even then.
 */
static __always_inline u64 cpu_owner(u64 signal, u32 tgid)
{
	return signal ^ ((u64)tgid << 40);
}

static __always_inline u64 signal_of(struct task_struct *task)
{
	u64 signal = 0;

	bpf_probe_read_kernel(&signal, sizeof(signal), &task->signal);
	return signal;
}

#endif
