/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Differences between kernels in memory management; see compat.h. */
#ifndef EBPFMETRICS_COMPAT_MM_H
#define EBPFMETRICS_COMPAT_MM_H

#include "vmlinux_mm.h"
#include "common.h"

/*
 * Before 6.2 the pages that an address space holds are plain numbers, with up to
 * 64 per thread beside them; since then they are per-CPU counters.
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

/* What a thread has not handed in yet; 0 where threads keep nothing. */
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

/* Resident pages as far as they have been folded into the common counters. */
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
