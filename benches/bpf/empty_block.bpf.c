/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What it costs to be attached to block I/O and do nothing. */
#define SEC(name) __attribute__((section(name), used))

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("tp_btf/block_io_start")
int empty_start(void *ctx)
{
	return 0;
}

SEC("tp_btf/block_rq_issue")
int empty_issue(void *ctx)
{
	return 0;
}

SEC("tp_btf/block_rq_complete")
int empty_complete(void *ctx)
{
	return 0;
}
