/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* compat.h for the slab allocator: one accessor per difference between kernels. */
#ifndef EBPFMETRICS_COMPAT_SLAB_H
#define EBPFMETRICS_COMPAT_SLAB_H

#include "vmlinux_slab.h"
#include "common.h"

/*
 * How the tracepoints of allocations tell the size; set before loading, for
 * the number of arguments alone does not tell which they are.
 */
enum size_told {
	/* 5.10: (call_site, ptr, bytes_req, bytes_alloc, ..) */
	SIZE_FOURTH,
	/* 5.19 to 6.0: (call_site, ptr, cache, bytes_req, bytes_alloc, ..), b347aa7b5747
	 * "mm/tracing: add 'accounted' entry into output of allocation tracepoints" */
	SIZE_FIFTH,
	/* since 6.1: kmalloc as in 5.10, kmem_cache_alloc(call_site, ptr, cache, ..), 2c1d697fb8ba
	 * "mm/slab_common: drop kmem_alloc & avoid dereferencing fields when not using" */
	SIZE_OF_CACHE,
};

const volatile u32 size_told = SIZE_OF_CACHE;

/*
 * The size that kmalloc() handed out. `args` are those of the tracepoint. In
 * assembler, or the compiler makes one load of the two, at an address that it
 * computes, which is refused.
 */
static __always_inline u64 kmalloc_bytes(const u64 *args)
{
	u64 bytes;

	if (size_told == SIZE_FIFTH)
		asm volatile("%0 = *(u64 *)(%1 + 32)" : "=r"(bytes) : "r"(args) : "memory");
	else
		asm volatile("%0 = *(u64 *)(%1 + 24)" : "=r"(bytes) : "r"(args) : "memory");
	return bytes;
}

/* The size that kmem_cache_alloc() handed out. */
static __always_inline u64 cache_bytes(const u64 *args)
{
	struct kmem_cache *cache;
	u32 bytes = 0;

	if (size_told != SIZE_OF_CACHE)
		return kmalloc_bytes(args);
	cache = (void *)args[2];
	bpf_core_read(&bytes, sizeof(bytes), &cache->size);
	return bytes;
}

/*
 * bpf_get_current_task_btf(), whose result can be read directly, came in 5.11
 * (3ca1032ab7ab "bpf: Implement get_current_task_btf").
 */
static __always_inline bool has_current_task_btf(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf);
}

#endif
