/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Programs and maps for the unit tests of ebpfmetrics/src/object. */
#include "common.h"

EBPFMETRICS_LICENSE;

enum { CALLED, NOT_CALLED, FIRST, SECOND, COUNTS };

const volatile u8 step = 1;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, u64);
} test_losses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u64);
} numbers SEC(".maps");

struct {
	__uint(type, 23); /* BPF_MAP_TYPE_STACK, not in vmlinux.h */
	__uint(max_entries, 2);
	__uint(value_size, sizeof(u32));
} free_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(u32));
	__uint(value_size, sizeof(u32));
} handlers SEC(".maps");

static __always_inline int count(u32 index)
{
	u64 *n = bpf_map_lookup_elem(&counts, &index);
	if (n)
		__sync_fetch_and_add(n, step);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int dispatch(u64 *ctx)
{
	count(CALLED);
	bpf_tail_call(ctx, &handlers, 0);
	return count(NOT_CALLED);
}

SEC("tp_btf/sched_process_fork")
int first(u64 *ctx)
{
	return count(FIRST);
}

SEC("tp_btf/sched_process_fork")
int second(u64 *ctx)
{
	return count(SECOND);
}

SEC("raw_tp/test_run")
int lose(void *ctx)
{
	u32 cause = 1;
	u64 *n = bpf_map_lookup_elem(&test_losses, &cause);
	if (n)
		*n += 1;
	return 0;
}

SEC("iter/bpf_map_elem")
int dump(struct bpf_iter__bpf_map_elem *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	u32 *key = ctx->key;
	u64 *value = ctx->value;

	if (key && value) {
		bpf_seq_write(seq, key, sizeof(*key));
		bpf_seq_write(seq, value, sizeof(*value));
	}
	return 0;
}
