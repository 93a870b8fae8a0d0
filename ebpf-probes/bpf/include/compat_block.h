/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Differences between kernels in block I/O and the page cache; see compat.h. */
#ifndef EBPFMETRICS_COMPAT_BLOCK_H
#define EBPFMETRICS_COMPAT_BLOCK_H

#include "common.h"
#include "vmlinux_block.h"

/*
 * The running process. bpf_get_current_task_btf(), whose result can be read directly, came
 * in 5.11 (3ca1032ab7ab "bpf: Implement get_current_task_btf").
 */
struct current_process {
	struct process_key key;
	u32 flags;
};

static __always_inline void read_current(struct current_process *process)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)) {
		struct task_struct *task = (void *)bpf_get_current_task_btf();

		process->key.start_ns = task->group_leader->start_boottime;
		process->key.tgid = task->tgid;
		process->flags = task->flags;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();

		process->key.start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
		process->key.tgid = BPF_CORE_READ(task, tgid);
		process->flags = BPF_CORE_READ(task, flags);
	}
}

static __always_inline u32 disk_device(struct gendisk *disk)
{
	return disk ? (u32)disk->major << 20 | disk->first_minor : 0;
}

/*
 * The disk of a request, as dev_t. It moved from the request to its queue in 5.17
 * (f3fa33acca9f "block: remove the ->rq_disk field in struct request").
 */
static __always_inline u32 request_disk(struct request *request)
{
	struct request___disk *old = (void *)request;

	if (bpf_core_field_exists(old->rq_disk))
		return disk_device(old->rq_disk);
	return disk_device(request->q->disk);
}

/*
 * Whether a bio names its disk or partition. Before 5.12 it had a disk and a partition
 * number, which was reset on the way to the driver (309dca309fc3 "block: store a
 * block_device pointer in struct bio").
 */
static __always_inline bool bio_names_partition(void)
{
	return bpf_core_field_exists(((struct bio *)0)->bi_bdev);
}

static __always_inline u32 bio_device(struct bio *bio)
{
	struct bio___disk *old = (void *)bio;

	if (bio_names_partition())
		return bio->bi_bdev->bd_dev;
	return disk_device(old->bi_disk);
}

static __always_inline struct gendisk *bio_disk(struct bio *bio)
{
	struct bio___disk *old = (void *)bio;

	if (bio_names_partition())
		return bio->bi_bdev->bd_disk;
	return old->bi_disk;
}

/*
 * The disk or partition of a request. If bios do not name it (see above), the request does
 * once the kernel accounts for it.
 */
static __always_inline u32 request_device(struct request *request)
{
	struct bio *bio = request->bio;

	if (bio_names_partition()) {
		if (bio)
			return bio->bi_bdev->bd_dev;
	} else {
		struct hd_struct *partition = ((struct request___disk *)request)->part;

		if (partition)
			return partition->__dev.devt;
	}
	return request_disk(request);
}

/* A bit of a request's flags; several moved more than once. */
#define REQUEST_FLAG(command, bit) ((command) >> bpf_core_enum_value(enum req_flag_bits, bit) & 1)

/* A bit of a page's flags; most moved in 6.12. */
#define PAGE_FLAG(flags, bit) ((flags) >> bpf_core_enum_value(enum pageflags, bit) & 1)

/*
 * The flags of a page or folio, by its address. They became a struct of their own in
 * 6.18 (53fbef56e07d "mm: introduce memdesc_flags_t").
 */
static __always_inline u64 page_flags(u64 page)
{
	struct page___memdesc_flags *now = (void *)page;
	struct page___flags *before = (void *)page;
	unsigned long flags = 0;

	if (bpf_core_field_exists(now->flags.f))
		bpf_core_read(&flags, sizeof(flags), &now->flags.f);
	else
		bpf_core_read(&flags, sizeof(flags), &before->flags);
	return flags;
}

/* The same, for trusted pointers. */
static __always_inline u64 folio_flags(struct folio *folio)
{
	struct folio___memdesc_flags *now = (void *)folio;

	if (bpf_core_field_exists(now->flags.f))
		return now->flags.f;
	return ((struct folio___flags *)folio)->flags;
}

/*
 * The number of pages of a folio with these flags. The field got its present name in 6.14 and the previous
 * one in 5.18. It is set only in folios of more than one page.
 */
static __always_inline u32 folio_pages(void *folio, u64 flags)
{
	struct folio___pages *now = folio;
	struct folio___folio_pages *before = folio;
	u32 pages = 0;

	if (!PAGE_FLAG(flags, PG_head))
		return 1;
	if (bpf_core_field_exists(now->_nr_pages))
		bpf_core_read(&pages, sizeof(pages), &now->_nr_pages);
	else if (bpf_core_field_exists(before->_folio_nr_pages))
		bpf_core_read(&pages, sizeof(pages), &before->_folio_nr_pages);
	return pages ?: 1;
}

/*
 * The first page of the folio or compound page that a page belongs to. The field holds its
 * address plus one. Since 7.1, if the size of struct page is a power of two, it holds a mask
 * for the page's own address instead.
 */
static __always_inline u64 head_of_page(u64 page)
{
	u64 head = 0;

	if (bpf_core_field_exists(((struct page___info *)0)->compound_info))
		bpf_core_read(&head, sizeof(head), &((struct page___info *)page)->compound_info);
	else
		bpf_core_read(&head, sizeof(head), &((struct page___head *)page)->compound_head);
	if (!(head & 1))
		return page;
	/* no page lies in the topmost 4 GiB of addresses, so such a value is a mask */
	return ~head >> 32 ? head - 1 : page & head;
}

/* The place in its file of a page that is the first of its folio, by its address. */
static __always_inline u64 index_of_head(u64 head)
{
	unsigned long index = 0;

	if (bpf_core_field_exists(((struct folio *)0)->index))
		bpf_core_read(&index, sizeof(index), &((struct folio *)head)->index);
	else
		bpf_core_read(&index, sizeof(index), &((struct page *)head)->index);
	return index;
}

#endif
