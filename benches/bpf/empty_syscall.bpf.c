/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What it costs to be attached to system calls and do nothing. */
#define SEC(name) __attribute__((section(name), used))

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("tp_btf/sys_enter")
int empty_enter(void *ctx)
{
	return 0;
}

SEC("tp_btf/sys_exit")
int empty_leave(void *ctx)
{
	return 0;
}
