/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The kernel types of the slab allocator; see vmlinux.h. */
#ifndef EBPFMETRICS_VMLINUX_SLAB_H
#define EBPFMETRICS_VMLINUX_SLAB_H

#include "vmlinux.h"

/* include/linux/slab.h: kmalloc(0) returns this. It and NULL are not objects. */
#define ZERO_SIZE_PTR 16

#define E2BIG 7

enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kmem_cache {
	unsigned int size; /* of an object, with metadata and padding */
};

#pragma clang attribute pop

#endif
