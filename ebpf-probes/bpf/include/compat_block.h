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

/* How many bytes of its current vector a bio has completed. The field has a new name in 7.3. */
static __always_inline u32 vector_done(struct bio *bio)
{
	struct bio___offset *new = (void *)bio;
	u32 done = 0;

	if (bpf_core_field_exists(new->bi_iter.bi_offset))
		bpf_core_read(&done, sizeof(done), &new->bi_iter.bi_offset);
	else
		bpf_core_read(&done, sizeof(done), &bio->bi_iter.bi_bvec_done);
	return done;
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
static __always_inline u64 head_by_info(u64 page, u64 info)
{
	if (!(info & 1))
		return page;
	/* no page lies in the topmost 4 GiB of addresses, so such a value is a mask */
	return ~info >> 32 ? info - 1 : page & info;
}

static __always_inline u64 head_of_page(u64 page)
{
	u64 info = 0;

	if (bpf_core_field_exists(((struct page___info *)0)->compound_info))
		bpf_core_read(&info, sizeof(info), &((struct page___info *)page)->compound_info);
	else
		bpf_core_read(&info, sizeof(info), &((struct page___head *)page)->compound_head);
	return head_by_info(page, info);
}

/*
 * What is needed of the pages of a file. They are read as a whole, because each read costs
 * some 20 ns: all of it is in the first five words.
 */
struct file_page {
	u64 head; /* the first page of its folio; the rest is of that one */
	u64 mapping;
	u64 index;
	u64 flags;
};

/* A field of a struct that was read as a whole. */
#define FIELD_OF(words, type, ...) (*(type *)((void *)(words) + bpf_core_field_offset(__VA_ARGS__)))

static __always_inline void read_file_page(struct file_page *of, u64 page)
{
	u64 words[5] = {}, info;

	bpf_probe_read_kernel(words, sizeof(words), (void *)page);
	if (bpf_core_field_exists(((struct page___info *)0)->compound_info))
		info = FIELD_OF(words, u64, struct page___info, compound_info);
	else
		info = FIELD_OF(words, u64, struct page___head, compound_head);
	of->head = head_by_info(page, info);
	if (of->head != page)
		bpf_probe_read_kernel(words, sizeof(words), (void *)of->head);
	of->mapping = FIELD_OF(words, u64, struct page, mapping);
	if (bpf_core_field_exists(((struct folio *)0)->index))
		of->index = FIELD_OF(words, u64, struct folio, index);
	else
		of->index = FIELD_OF(words, u64, struct page, index);
	if (bpf_core_field_exists(((struct page___memdesc_flags *)0)->flags.f))
		of->flags = FIELD_OF(words, u64, struct page___memdesc_flags, flags.f);
	else
		of->flags = FIELD_OF(words, u64, struct page___flags, flags);
}

#endif
