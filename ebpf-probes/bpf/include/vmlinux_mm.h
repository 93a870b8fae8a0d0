/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The kernel types of memory management; see vmlinux.h. */
#ifndef EBPFMETRICS_VMLINUX_MM_H
#define EBPFMETRICS_VMLINUX_MM_H

#include "vmlinux.h"

/* include/linux/mm_types_task.h: kinds of pages of a process */
enum {
	MM_FILEPAGES,
	MM_ANONPAGES,
	MM_SWAPENTS,
	MM_SHMEMPAGES,
	NR_MM_COUNTERS,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	long counter;
} atomic_long_t;

struct percpu_counter {
	s64 count;
	s32 *counters; /* per CPU, not yet in `count` */
};

struct mm_struct {
	unsigned long hiwater_rss;
	unsigned long hiwater_vm;
	unsigned long total_vm;
	unsigned long locked_vm;
	atomic_long_t pgtables_bytes;
	atomic_long_t hugetlb_usage; /* CONFIG_HUGETLB_PAGE */
	struct task_struct *owner; /* CONFIG_MEMCG */
	struct percpu_counter rss_stat[NR_MM_COUNTERS];
};

/* Before 6.2 (f1a7941243c1 "mm: convert mm's rss stats into percpu_counter"). */
struct mm_rss_stat___old {
	atomic_long_t count[NR_MM_COUNTERS];
};

struct mm_struct___old {
	struct mm_rss_stat___old rss_stat;
};

struct task_rss_stat___old {
	int count[NR_MM_COUNTERS]; /* of this thread, not yet in the counts of the mm */
};

struct task_struct___old {
	struct task_rss_stat___old rss_stat;
};

struct bpf_array {
	void *pptrs[1];
};

#pragma clang attribute pop

#endif
