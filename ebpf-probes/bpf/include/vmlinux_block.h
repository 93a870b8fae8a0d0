/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The kernel types of block I/O and of the page cache; see vmlinux.h. */
#ifndef EBPFMETRICS_VMLINUX_BLOCK_H
#define EBPFMETRICS_VMLINUX_BLOCK_H

#include "vmlinux.h"

/* include/linux/sched.h */
#define PF_LOCAL_THROTTLE 0x00100000 /* writes on behalf of others: loop, nfsd */

/* include/uapi/linux/stat.h */
#define S_IFMT 0170000
#define S_IFREG 0100000

/* include/linux/blk_types.h: unchanged since 5.10 */
#define REQ_OP_MASK 0xff
#define REQ_OP_WRITE 1
#define REQ_OP_FLUSH 2
#define REQ_OP_DISCARD 3
#define REQ_OP_PASSTHROUGH 32 /* and above: commands of drivers, not I/O */

/* Enumerators that only some kernels have or that have different values. */
enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158,
};

enum req_flag_bits {
	__REQ_META = 12,
	__REQ_PREFLUSH = 18,
	__REQ_SWAP = 24,
};

enum pageflags {
	PG_writeback = 1,
	PG_head = 6,
};

#define BPF_MAP_TYPE_STACK 23

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block;

struct inode {
	u16 i_mode;
	unsigned long i_ino;
	u32 i_generation;
};

struct address_space {
	struct inode *host;
};

/* since 5.16: one or more pages that belong together */
struct folio {
	unsigned long index;
};

/* The number of its pages, by name: 7b230db3b8d3 "mm: folio_nr_pages", 6.14. */
struct folio___pages {
	unsigned int _nr_pages;
};

struct folio___folio_pages {
	unsigned int _folio_nr_pages;
};

struct page {
	struct address_space *mapping;
	unsigned long index;
};

struct page___flags {
	unsigned long flags;
};

/* 6.18 */
typedef struct {
	unsigned long f;
} memdesc_flags_t;

struct page___memdesc_flags {
	memdesc_flags_t flags;
};

struct folio___flags {
	unsigned long flags;
};

struct folio___memdesc_flags {
	memdesc_flags_t flags;
};

struct page___head {
	unsigned long compound_head;
};

/* 7.1 */
struct page___info {
	unsigned long compound_info;
};

struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
};

struct bvec_iter {
	unsigned int bi_size;
	unsigned int bi_idx;
	unsigned int bi_bvec_done;
};

/* 7.3 */
struct bvec_iter___offset {
	unsigned int bi_offset;
};

struct bio___offset {
	struct bvec_iter___offset bi_iter;
};

/* who has an anonymous page: the memory areas that may map it, in a tree */
struct rb_node {
	struct rb_node *rb_right;
	struct rb_node *rb_left;
};

struct rb_root {
	struct rb_node *rb_node;
};

struct rb_root_cached {
	struct rb_root rb_root;
};

struct anon_vma {
	struct rb_root_cached rb_root;
};

struct mm_struct___owner {
	struct task_struct *owner; /* CONFIG_MEMCG */
};

struct vm_area_struct {
	struct mm_struct *vm_mm;
	struct anon_vma *anon_vma; /* of pages that are new in this area */
};

struct anon_vma_chain {
	struct vm_area_struct *vma;
	struct rb_node rb;
};

struct block_device_operations {
	void *submit_bio;
};

struct gendisk {
	int major;
	int first_minor;
	const struct block_device_operations *fops;
};

struct block_device {
	u32 bd_dev;
	struct gendisk *bd_disk;
};

/* a block cgroup on a device */
struct blkcg_gq {
	struct blkcg_gq *parent;
};

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	unsigned int bi_opf;
	u8 bi_status;
	struct bvec_iter bi_iter;
	struct blkcg_gq *bi_blkg; /* CONFIG_BLK_CGROUP */
	struct bio_vec *bi_io_vec;
};

/* before 5.12 */
struct bio___disk {
	struct gendisk *bi_disk;
};

struct request_queue {
	struct gendisk *disk;
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	struct bio *bio;
	u64 start_time_ns;
};

struct device {
	u32 devt;
};

/* a partition, before 5.11 */
struct hd_struct {
	struct device __dev;
};

/* before 5.11 */
struct request___disk {
	struct gendisk *rq_disk;
	struct hd_struct *part;
};

#pragma clang attribute pop

#endif
