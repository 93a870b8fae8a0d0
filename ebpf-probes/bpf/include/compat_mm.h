/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Differences between kernels in memory management; see compat.h. */
#ifndef EBPFMETRICS_COMPAT_MM_H
#define EBPFMETRICS_COMPAT_MM_H

#include "vmlinux_mm.h"
#include "common.h"

/*
 * Before 6.2 the page counts of an address space are plain numbers, and each thread keeps up to
 * 64 pages that are not added yet. Since 6.2 they are per-CPU counters.
 */
static __always_inline bool has_plain_page_counts(void)
{
	return bpf_core_type_exists(struct mm_rss_stat___old);
}

static __always_inline bool has_mm_owner(void)
{
	return bpf_core_field_exists(((struct mm_struct *)0)->owner);
}

static __always_inline bool has_hugetlb_usage(void)
{
	return bpf_core_field_exists(((struct mm_struct *)0)->hugetlb_usage);
}

static __always_inline void read_plain_page_counts(struct mm_struct *mm, s64 *counts)
{
	struct mm_struct___old *old = (void *)mm;

	bpf_probe_read_kernel(counts, NR_MM_COUNTERS * sizeof(*counts),
			      __builtin_preserve_access_index(&old->rss_stat.count));
}

/* Pages that a thread has not added to its address space yet. 0 since 6.2. */
static __always_inline void read_thread_page_counts(struct task_struct *task, s32 *counts)
{
	struct task_struct___old *old = (void *)task;

	if (has_plain_page_counts() && bpf_core_field_exists(old->rss_stat.count))
		bpf_probe_read_kernel(counts, NR_MM_COUNTERS * sizeof(*counts),
				      __builtin_preserve_access_index(&old->rss_stat.count));
}

static __always_inline u64 not_negative(s64 value)
{
	return value > 0 ? value : 0;
}

/* Resident pages without the parts that threads or CPUs have not added yet. */
static __always_inline u64 folded_resident_pages(struct mm_struct *mm)
{
	if (has_plain_page_counts()) {
		s64 counts[NR_MM_COUNTERS] = {};

		read_plain_page_counts(mm, counts);
		return not_negative(counts[MM_FILEPAGES]) + not_negative(counts[MM_ANONPAGES]) +
		       not_negative(counts[MM_SHMEMPAGES]);
	}
	return not_negative(mm->rss_stat[MM_FILEPAGES].count) +
	       not_negative(mm->rss_stat[MM_ANONPAGES].count) +
	       not_negative(mm->rss_stat[MM_SHMEMPAGES].count);
}

#endif
