/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Sizes of allocations. Where the tracepoints have them differs between kernels. */
#ifndef EBPFMETRICS_SLAB_SIZES_H
#define EBPFMETRICS_SLAB_SIZES_H

#include "vmlinux_slab.h"
#include "common.h"

/* Where the tracepoints of allocations have the size. */
enum slab_size_source {
	/* 5.10: (call_site, ptr, bytes_req, bytes_alloc, ..) */
	SLAB_SIZE_SOURCE_FOURTH_ARGUMENT,
	/*
	 * 5.19 to 6.0: (call_site, ptr, cache, bytes_req, bytes_alloc, ..), b347aa7b5747
	 * "mm/tracing: add 'accounted' entry into output of allocation tracepoints"
	 */
	SLAB_SIZE_SOURCE_FIFTH_ARGUMENT,
	/*
	 * Since 6.1: kmalloc as in 5.10, kmem_cache_alloc(call_site, ptr, cache, ..),
	 * 2c1d697fb8ba "mm/slab_common: drop kmem_alloc & avoid dereferencing fields when
	 * not using"
	 */
	SLAB_SIZE_SOURCE_CACHE,
};

/* Set before loading: the number of arguments alone does not determine it. */
const volatile enum slab_size_source size_source = SLAB_SIZE_SOURCE_CACHE;

/*
 * The size that kmalloc() returned. `args` are the arguments of the tracepoint. Inline
 * assembly, because the compiler would merge the two loads into one at a computed address,
 * which the verifier refuses.
 */
static __always_inline u64 kmalloc_bytes(const u64 *args)
{
	u64 bytes;

	if (size_source == SLAB_SIZE_SOURCE_FIFTH_ARGUMENT)
		asm volatile("%0 = *(u64 *)(%1 + 32)" : "=r"(bytes) : "r"(args) : "memory");
	else
		asm volatile("%0 = *(u64 *)(%1 + 24)" : "=r"(bytes) : "r"(args) : "memory");
	return bytes;
}

/* The size that kmem_cache_alloc() returned. */
static __always_inline u64 cache_bytes(const u64 *args)
{
	struct kmem_cache *cache;
	u32 bytes = 0;

	if (size_source != SLAB_SIZE_SOURCE_CACHE)
		return kmalloc_bytes(args);
	cache = (void *)args[2];
	bpf_core_read(&bytes, sizeof(bytes), &cache->size);
	return bytes;
}

#endif
