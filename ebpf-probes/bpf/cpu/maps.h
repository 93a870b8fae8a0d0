/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Counters of the SchedSwitch hook, for the object `cpu` and for the walk. */
#ifndef EBPFMETRICS_CPU_MAPS_H
#define EBPFMETRICS_CPU_MAPS_H

#include "common.h"

/* Names and order become `CpuLoss` in Rust. */
enum cpu_loss {
	CPU_LOSS_SWITCH_UNMATCHED, /* the switch to a task was not seen: its slice is missing */
	CPU_LOSS_SWITCH_TABLE_FULL, /* `cpu_overflow` full: a slice is missing */
	CPU_LOSSES,
};

DEFINE_LOSSES(cpu, CPU_LOSSES)

/* Entries of `cpu_slots` less one: a power of two less one. Set before loading. */
const volatile u32 cpu_slot_mask = 0;

/*
 * The task that runs on a CPU, and its sum_exec_runtime when it was switched in. One cache
 * line per CPU, written by that CPU only and read by the walk. The `primed` fields are written
 * by the walk only, before the first switch on that CPU.
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
 * the process that claimed it first, until its release. A process that finds its slot taken
 * is counted in `cpu_overflow`. Threads of one process add from several CPUs: atomic adds.
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
 * Identifies a process for its whole life, through exec and for all threads, at the cost of
 * one load. The kernel reuses a signal_struct after the release; the pid distinguishes the
 * new process.
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
