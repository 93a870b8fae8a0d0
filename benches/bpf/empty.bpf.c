/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What it costs to be attached and do nothing. */
#define SEC(name) __attribute__((section(name), used))

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("tp_btf/sched_switch")
int empty_switch(void *ctx)
{
	return 0;
}

SEC("tp_btf/rss_stat")
int empty_resident(void *ctx)
{
	return 0;
}

SEC("tp_btf/mmap_lock_released")
int empty_space(void *ctx)
{
	return 0;
}
