/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Differences between kernels for the slab hooks; see compat.h. */
#ifndef EBPFMETRICS_COMPAT_SLAB_H
#define EBPFMETRICS_COMPAT_SLAB_H

#include "vmlinux_slab.h"
#include "common.h"

/*
 * bpf_get_current_task_btf(), whose result can be read directly, came in 5.11
 * (3ca1032ab7ab "bpf: Implement get_current_task_btf").
 */
static __always_inline bool has_current_task_btf(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf);
}

#endif
