/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Charges the bytes of a completed write to the owners of its pages.
 *
 * The block layer merges what lies side by side on the device: a request has bios of several
 * files, and a bio has pages of several processes. Each piece is charged to the process that
 * dirtied it. The pages cannot be truncated until the write has completed.
 */
#ifndef EBPFMETRICS_DISK_PAGES_H
#define EBPFMETRICS_DISK_PAGES_H

#include "disk/in_flight.h"
#include "disk/owners.h"

/* log2 of the size of a page. Set before loading. */
const volatile u32 page_bits = 12;

/*
 * The pieces of a request are charged in rounds, which the verifier checks once: 4,096 pieces,
 * 16 MiB in folios of 4 KiB. What lies behind them is of an unknown owner.
 */
#define ROUNDS 64
#define PIECES_PER_ROUND 64

/* Where a walk over the pages of a write is; the bytes of one owner are charged at once. */
struct disk_walk {
	u32 busy; /* an interrupt may complete another write */
	u32 left; /* bytes of the write, then of the bio, then of the vector */
	u32 bio_left;
	u32 vector_left;
	u64 bio;
	u64 vector;
	u64 page;
	u32 offset; /* in the page */
	u32 written_back; /* the pages of this bio are */
	u64 mapping; /* of the last page, its key and its class */
	u64 file;
	u32 class;
	u32 place; /* of the last range */
	u64 range;
	u64 known;
	u32 range_owner;
	/* the piece, and the pieces before it of the same owner */
	u32 owner;
	u32 owner_class;
	u32 owner_bytes;
	u32 submitter_known; /* of bios that are not written back */
	u32 lost; /* some bytes were of an unknown owner */
	u32 first_row; /* of the first piece */
	u32 padding;
	struct disk_row_key submitter;
	struct disk_row_key first;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct disk_walk);
} disk_walks SEC(".maps");

static __always_inline struct disk_walk *current_walk(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&disk_walks, &zero);
}

/* Not an owner: charged to the submitter. */
#define OWNER_SUBMITTER 3

static __always_inline u64 next_bio(u64 bio)
{
	struct bio *next = NULL;

	bpf_core_read(&next, sizeof(next), &((struct bio *)bio)->bi_next);
	return (u64)next;
}

/* The address of a vector of a bio. */
static __always_inline u64 vector_of(u64 bio, u32 index)
{
	struct bio_vec *vectors = NULL;

	bpf_core_read(&vectors, sizeof(vectors), &((struct bio *)bio)->bi_io_vec);
	return (u64)vectors + (u64)(index & 0xffff) * bpf_core_type_size(struct bio_vec);
}

/*
 * The mapping of a page that is being written back, by the first page of its folio; or 0. An
 * O_DIRECT write is from the memory of a process: its pages have no mapping, an anonymous one
 * (bit 0), or that of a file which is not being written back now.
 */
static __always_inline u64 mapping_written_back(u64 head)
{
	u64 mapping = 0;

	bpf_core_read(&mapping, sizeof(mapping), &((struct page *)head)->mapping);
	if (mapping & 3 || !PAGE_FLAG(page_flags(head), PG_writeback))
		return 0;
	return mapping;
}

static __always_inline u32 class_of_mapping(u64 mapping)
{
	u16 mode = BPF_CORE_READ((struct address_space *)mapping, host, i_mode);

	return (mode & S_IFMT) == S_IFREG ? DISK_WRITE_BACK : DISK_METADATA;
}

/* The class of a bio whose first page is being written back; 0 if it is not. */
static __always_inline u32 class_written_back(struct bio *bio)
{
	u64 page = 0, mapping;

	if (bpf_core_read(&page, sizeof(page),
			  &((struct bio_vec *)vector_of((u64)bio, bio->bi_iter.bi_idx))->bv_page) ||
	    !page)
		return 0;
	mapping = mapping_written_back(head_of_page(page));
	return mapping ? class_of_mapping(mapping) : 0;
}

/* Moves to a vector of the bio. */
static __always_inline void enter_vector(struct disk_walk *w, u64 vector, u32 done)
{
	u64 words[2] = {}, page;
	u32 length, offset;

	bpf_probe_read_kernel(words, sizeof(words), (void *)vector);
	page = FIELD_OF(words, u64, struct bio_vec, bv_page);
	length = FIELD_OF(words, u32, struct bio_vec, bv_len);
	offset = FIELD_OF(words, u32, struct bio_vec, bv_offset) + done;
	w->vector = vector;
	w->vector_left = length > done ? length - done : 0;
	w->page = page + (u64)(offset >> page_bits) * bpf_core_type_size(struct page);
	w->offset = offset & ((1U << page_bits) - 1);
}

/* Moves to a bio, of which these bytes are written, from `done` in one of its vectors. */
static __always_inline void enter_bio(struct disk_walk *w, u64 bio, u32 index, u32 done, u32 bytes)
{
	w->bio = bio;
	w->bio_left = bytes;
	enter_vector(w, vector_of(bio, index), done);
	w->written_back = !!mapping_written_back(head_of_page(w->page));
}

/* Charges the bytes of one owner. A function that is verified once. */
__noinline int disk_charge_owner(u32 device)
{
	struct disk_walk *w = current_walk();
	struct disk_row_key key = {.device = device, .operation = DISK_WRITE};
	struct disk_row_record *row;
	u32 index;

	if (!w || !w->owner_bytes)
		return 0;
	key.class = w->owner_class;
	if (w->owner == OWNER_SUBMITTER) {
		key.start_ns = w->submitter.start_ns;
		key.tgid = w->submitter.tgid;
		w->lost |= !w->submitter_known;
	} else if (w->owner == OWNER_NONE) {
		w->lost |= unknown_is_loss();
	} else {
		w->lost |= !process_of_owner(w->owner, &key);
	}
	index = recent_row(&key);
	row = bpf_map_lookup_elem(&disk_rows, &index);
	if (row && !same_row(&row->key, &key)) {
		index = find_row(&key);
		row = bpf_map_lookup_elem(&disk_rows, &index);
	}
	if (index && row)
		__sync_fetch_and_add(&row->bytes, w->owner_bytes);
	if (!w->first.device) {
		w->first = key;
		w->first_row = index;
	}
	w->owner_bytes = 0;
	return 0;
}

/* The owner of the page at w->page and of the pages behind it in the same folio. */
static __always_inline u32 owner_of_page(struct disk_walk *w, u32 *pages)
{
	struct file_page of;
	u64 mapping, index, range;
	u32 place, before, first, left;

	/* only the pages of a bio as a whole are written back or not */
	read_file_page(&of, w->page);
	mapping = of.mapping;
	before = (u32)(w->page - of.head) / bpf_core_type_size(struct page);
	index = of.index + before;
	if (mapping & 3 || !mapping)
		return OWNER_NONE;
	if (mapping != w->mapping) {
		struct inode *inode = BPF_CORE_READ((struct address_space *)mapping, host);

		w->mapping = mapping;
		w->class = class_of_mapping(mapping);
		w->file = file_key(mapping, BPF_CORE_READ(inode, i_ino),
				   BPF_CORE_READ(inode, i_generation));
		w->range = 0;
	}
	range = w->file + (index >> RANGE_BITS);
	if (range != w->range) {
		struct disk_range_set *set = range_set_of(range);

		w->range = range;
		w->range_owner = OWNER_NONE;
		w->known = 0;
		if (set) {
			place = place_of(set->entries, tag_of(range));
			if (place < PLACES) {
				w->range_owner = set->entries[place];
				w->known = set->pages[place];
			}
		}
	}
	first = index & (RANGE_PAGES - 1);
	/* what is left of the folio, the vector and the range */
	left = folio_pages((void *)of.head, of.flags) - before;
	if (left > 1 && left <= 1U << 20) {
		u32 in_vector = (w->offset + w->vector_left + (1U << page_bits) - 1) >> page_bits;

		if (left > in_vector)
			left = in_vector;
		if (left > RANGE_PAGES - first)
			left = RANGE_PAGES - first;
		*pages = left;
	}
	/* a folio becomes dirty as a whole: all its pages are of one owner */
	if (!(w->known >> first & 1))
		return OWNER_NONE;
	if (w->range_owner == OWNER_SEVERAL)
		return owner_in_pages(first_page_key(range) + first);
	return w->range_owner;
}

/* Charges the next piece of a write; 0 at its end. A function that is verified once. */
__noinline int disk_charge_piece(u32 device)
{
	struct disk_walk *w = current_walk();
	u32 owner, bytes, class, pages = 1;

	if (!w || !w->left)
		return 0;
	if (!w->bio_left) {
		u64 bio = w->bio ? next_bio(w->bio) : 0;
		u32 size = 0, index = 0, done = 0;

		if (!bio)
			return 0;
		bpf_core_read(&size, sizeof(size), &((struct bio *)bio)->bi_iter.bi_size);
		bpf_core_read(&index, sizeof(index), &((struct bio *)bio)->bi_iter.bi_idx);
		done = vector_done((struct bio *)bio);
		enter_bio(w, bio, index, done, size);
		return 1;
	}
	if (!w->written_back) {
		owner = OWNER_SUBMITTER;
		class = w->submitter.class;
		bytes = w->bio_left;
	} else {
		if (!w->vector_left) {
			enter_vector(w, w->vector + bpf_core_type_size(struct bio_vec), 0);
			if (!w->vector_left)
				return 0;
		}
		owner = owner_of_page(w, &pages);
		class = w->class;
		bytes = (pages << page_bits) - w->offset;
		if (bytes > w->vector_left)
			bytes = w->vector_left;
		if (bytes > w->bio_left)
			bytes = w->bio_left;
		w->vector_left -= bytes;
		w->page += (u64)pages * bpf_core_type_size(struct page);
		w->offset = 0;
	}
	w->bio_left -= bytes;
	if (bytes > w->left)
		bytes = w->left;
	w->left -= bytes;
	if (owner != w->owner || class != w->owner_class) {
		disk_charge_owner(device);
		w->owner = owner;
		w->owner_class = class;
	}
	w->owner_bytes += bytes;
	return 1;
}

/* Charges pieces; 0 at the end of the write. A function that is verified once. */
__noinline int disk_charge_round(u32 device)
{
	for (u32 i = 0; i < PIECES_PER_ROUND; i++) {
		if (!disk_charge_piece(device))
			return 0;
	}
	return 1;
}

/*
 * Charges `bytes` of a write to the owners of its pages. They begin in a bio, of which `size`
 * bytes are written from `place`: the number of a vector << 32 | bytes of it to skip. `io`
 * gets the row of the first piece, where the operation is counted. False if another walk
 * was interrupted.
 */
static __noinline int charge_pages(struct disk_in_flight *io, u64 bio, u32 size, u64 place,
				   u32 bytes)
{
	struct disk_walk *w = current_walk();
	u32 device = io->key.device;

	if (!w || w->busy) {
		io->key.start_ns = 0;
		io->key.tgid = 0;
		io->row = 0;
		count_disk_loss(DISK_LOSS_OWNER_UNSEEN);
		return 0;
	}
	w->busy = 1;
	w->left = bytes;
	w->mapping = 0;
	w->owner_bytes = 0;
	w->lost = 0;
	w->first.device = 0;
	w->submitter = io->key;
	w->submitter_known = io->row != ROW_OF_OWNERS;
	enter_bio(w, bio, place >> 32, place, size);
	for (u32 i = 0; i < ROUNDS; i++) {
		if (!disk_charge_round(device))
			break;
	}
	disk_charge_owner(device);
	if (w->left) { /* more pieces than that */
		w->owner = OWNER_NONE;
		w->owner_class = io->key.class;
		w->owner_bytes = w->left;
		w->lost = 1;
		disk_charge_owner(device);
	}
	if (w->lost)
		count_disk_loss(DISK_LOSS_OWNER_UNSEEN);
	io->key = w->first;
	io->row = w->first_row;
	w->busy = 0;
	return 1;
}

#endif
