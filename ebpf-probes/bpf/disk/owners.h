/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Which process dirtied each page of a file: it is charged when the page is written back.
 *
 * A range is 64 pages of a file. It has the process that dirtied them and a bit for each page
 * that this process dirtied. A range that several processes dirtied has an entry for each
 * page. A page without a bit is of an unknown owner: it became dirty before the probe was
 * attached, or its range was replaced. An owner is never derived from other pages.
 *
 * Nothing is removed when a page is written or truncated: a page that becomes dirty again gets
 * its new owner then.
 */
#ifndef EBPFMETRICS_DISK_OWNERS_H
#define EBPFMETRICS_DISK_OWNERS_H

#include "compat_block.h"
#include "filter.h"
#include "disk/row.h"
#include "disk/slow_io.h"

#define RANGE_BITS 6
#define RANGE_PAGES (1 << RANGE_BITS)
#define PLACES 7 /* of a set */
#define NEXT 7 /* behind them: the number of the place that is replaced next */
#define MAX_RANGES 128 /* of a folio */

/*
 * Ranges, by a hash of the file and the number of the range. A range lies in one of the seven
 * places of its set. A new one replaces the oldest of a full set; its pages that are not
 * written yet are then counted as owner_unseen. 16,384 sets of 128 bytes (2 MiB), sized by user
 * space. Two CPUs that write to one place at once may lose one of the ranges.
 */
struct disk_range_set {
	u64 entries[PLACES + 1]; /* tag << 32 | owner; NEXT */
	u64 pages[PLACES + 1]; /* a bit for each page that is known */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, struct disk_range_set);
} disk_ranges SEC(".maps");

/* Pages of ranges with several owners, in the same way: as many sets, of 64 bytes (1 MiB). */
struct disk_page_set {
	u64 entries[PLACES + 1];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, struct disk_page_set);
} disk_pages SEC(".maps");

/* log2 of the number of sets. Set before loading. */
const volatile u32 range_bits = 14;

/* An owner as it is in ranges: a hash of its process_key. */
#define OWNER_NONE 0
#define OWNER_SEVERAL 1 /* the range has entries for its pages */
#define OWNER_OUTSIDE 2 /* the filter: process 0 */
#define OWNERS_RESERVED 8

/*
 * The processes by their number in ranges. 16,384 processes, about 1.5 MiB; the one that dirtied
 * and wrote nothing for longest is removed, and its pages are then of an unknown owner. So are
 * those of two processes with the same hash.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, struct process_key);
} disk_owners SEC(".maps");

/*
 * Nonzero once a range, a page or an owner was replaced. Until then, with a filter, a page of
 * an unknown owner belongs to a process outside of it: it is not counted as a loss.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} disk_replaced SEC(".maps");

static __always_inline void note_replaced(void)
{
	u32 zero = 0, *replaced = bpf_map_lookup_elem(&disk_replaced, &zero);

	if (replaced && !*replaced)
		*replaced = 1;
}

/* Whether a page of an unknown owner is a loss. */
static __always_inline bool unknown_is_loss(void)
{
	u32 zero = 0, *replaced;

	if (filter_mode == FILTER_ALL)
		return true;
	replaced = bpf_map_lookup_elem(&disk_replaced, &zero);
	return !replaced || *replaced;
}

#define GOLDEN 0x9E3779B97F4A7C15ULL

/*
 * The key of the first range of a file; the others follow. Addresses are reused, so the key
 * has the number and the generation of the inode too.
 */
static __always_inline u64 file_key(u64 mapping, u64 ino, u32 generation)
{
	u64 key = (mapping ^ (ino << 40 ^ ino << 20 ^ (u64)generation << 8)) * GOLDEN;

	return key ^ key >> 29;
}

/* The key of the first page of a range; the others follow. */
static __always_inline u64 first_page_key(u64 range)
{
	u64 key = range * GOLDEN;

	return key ^ key >> 31;
}

static __always_inline struct disk_range_set *range_set_of(u64 range)
{
	u32 index = range & ((1U << range_bits) - 1);

	return bpf_map_lookup_elem(&disk_ranges, &index);
}

static __always_inline struct disk_page_set *page_set_of(u64 page)
{
	u32 index = page & ((1U << range_bits) - 1);

	return bpf_map_lookup_elem(&disk_pages, &index);
}

/* Of a range or a page: with the number of its set, 32 bits and more of its key. */
static __always_inline u32 tag_of(u64 key)
{
	return (u32)(key >> range_bits) ?: 1;
}

/* Of a place, what the verifier has to know: that it is less than 8. */
static __always_inline u32 in_set(u32 place)
{
	asm volatile("%0 &= 7" : "+r"(place));
	return place;
}

/*
 * The place of a tag in a set; PLACES if it is not there. Without branches: the verifier would
 * follow what comes next for each place.
 */
static __always_inline u32 place_of(const u64 *entries, u32 tag)
{
	u64 place = PLACES;

#pragma unroll
	for (u32 i = 0; i < PLACES; i++) {
		u64 differs = entries[i] >> 32 ^ tag, is_here = (differs - 1) >> 63;

		asm volatile("" : "+r"(is_here));
		place = (place & (is_here - 1)) | (i * is_here);
	}
	return in_set(place);
}

/* The place for a new entry: the oldest one. */
static __always_inline u32 place_of_oldest(u64 *entries)
{
	u32 place = in_set(entries[NEXT]);

	if (place >= PLACES)
		place = 0;
	if ((u32)entries[in_set(place)])
		note_replaced();
	entries[NEXT] = place + 1;
	return in_set(place);
}

/* An entry is in use: it is not the next one to be replaced. */
static __always_inline void keep_place(u64 *entries, u32 place)
{
	if (entries[NEXT] == place)
		entries[NEXT] = place + 1;
}

/* The owner of a page of a range with several owners. */
static __always_inline u32 owner_in_pages(u64 page)
{
	struct disk_page_set *set = page_set_of(page);
	u32 place;

	if (!set)
		return OWNER_NONE;
	place = place_of(set->entries, tag_of(page));
	return place < PLACES ? (u32)set->entries[place] : OWNER_NONE;
}

/* Sets the owner of a page of a range with several owners. A function that is verified once. */
__noinline int disk_set_page(u64 page, u32 owner)
{
	struct disk_page_set *set = page_set_of(page);
	u32 tag = tag_of(page), place;

	if (!set)
		return 0;
	place = place_of(set->entries, tag);
	if (place >= PLACES) {
		place = place_of_oldest(set->entries);
	} else {
		keep_place(set->entries, place);
	}
	set->entries[place] = (u64)tag << 32 | owner;
	return 0;
}

static __always_inline u64 bits_of_pages(u32 first, u32 count)
{
	return (count >= RANGE_PAGES ? ~0ULL : (1ULL << (count & 63)) - 1) << (first & 63);
}

enum dirty_flags {
	DIRTY_IF_UNKNOWN = 1 << 0, /* by a kernel thread: keeps the owner of a page that has one */
	DIRTY_IN_WRITE_BACK = 1 << 1, /* the pages are being written, for their last owner */
};

/* A page of a range with several owners becomes dirty. A function that is verified once. */
__noinline int disk_mark_page(u64 page, u32 owner, u32 flags, u32 is_known)
{
	if (!is_known && flags & DIRTY_IN_WRITE_BACK)
		return 0;
	if (is_known && flags & DIRTY_IF_UNKNOWN)
		return 0;
	if (is_known && flags & DIRTY_IN_WRITE_BACK && owner_in_pages(page) != owner) {
		note_replaced();
		owner = OWNER_NONE;
	}
	return disk_set_page(page, owner);
}

/*
 * `count` pages from the page `first` of a range become dirty. Returns 1 if the owner has to be
 * in `disk_owners`.
 */
__noinline int disk_mark(u64 range, u32 first, u32 count, u32 owner, u32 flags)
{
	struct disk_range_set *set = range_set_of(range);
	u64 bits = bits_of_pages(first, count), known, first_page;
	u32 tag = tag_of(range), place, before;

	if (!set)
		return 0;
	place = place_of(set->entries, tag);
	if (place >= PLACES) {
		if (flags & DIRTY_IN_WRITE_BACK)
			return 0;
		place = place_of_oldest(set->entries);
		set->entries[place] = 0;
		set->pages[place] = bits;
		set->entries[place] = (u64)tag << 32 | owner;
		return 1;
	}
	keep_place(set->entries, place);
	before = set->entries[place];
	known = set->pages[place];
	if (before == owner) {
		/* who is being charged for pages in write-back that are not known stays unknown */
		if (bits & ~known && !(flags & DIRTY_IN_WRITE_BACK))
			__sync_fetch_and_add(&set->pages[place], bits & ~known);
		return 0;
	}
	if (flags & DIRTY_IF_UNKNOWN && (bits & known) == bits)
		return 0;
	if (flags & DIRTY_IN_WRITE_BACK && before != OWNER_SEVERAL) {
		/* the write-back under way is of another process: neither it nor the next is known */
		note_replaced();
		set->pages[place] = known & ~bits;
		return 0;
	}
	first_page = first_page_key(range);
	if (before != OWNER_SEVERAL) {
		if (!(known & ~bits) && !(known && flags & DIRTY_IF_UNKNOWN)) {
			set->pages[place] = bits;
			set->entries[place] = (u64)tag << 32 | owner;
			return 1;
		}
		for (u32 i = 0; i < RANGE_PAGES; i++) {
			if (known >> i & 1)
				disk_set_page(first_page + i, before);
		}
		set->entries[place] = (u64)tag << 32 | OWNER_SEVERAL;
	}
	for (u32 i = 0; i < RANGE_PAGES && i < count; i++) {
		u32 page = (first + i) & 63;

		disk_mark_page(first_page + page, owner, flags, known >> page & 1);
	}
	if (bits & ~known && !(flags & DIRTY_IN_WRITE_BACK))
		__sync_fetch_and_add(&set->pages[place], bits & ~known);
	return 1;
}

static __always_inline u32 owner_of_process(const struct process_key *key)
{
	u64 hash = (key->start_ns ^ (u64)key->tgid << 42) * GOLDEN;
	u32 owner = hash >> 32;

	if (!key->tgid)
		return OWNER_OUTSIDE;
	return owner < OWNERS_RESERVED ? owner + OWNERS_RESERVED : owner;
}

/* Makes the process of an owner known. */
static __noinline void add_owner(struct process_key *key)
{
	struct process_key *known;
	u32 owner = owner_of_process(key);

	if (owner == OWNER_OUTSIDE)
		return;
	if (slow_io_ns)
		remember(key);
	known = bpf_map_lookup_elem(&disk_owners, &owner);
	if (!known) {
		bpf_map_update_elem(&disk_owners, &owner, key, BPF_ANY);
	} else if (known->start_ns != key->start_ns || known->tgid != key->tgid) {
		/* two processes with one hash: neither is charged */
		known->start_ns = 0;
		known->tgid = 0;
		note_replaced();
	}
}

/* The process of an owner; false if it is not known. Process 0 is outside the filter. */
static __always_inline bool process_of_owner(u32 owner, struct disk_row_key *key)
{
	struct process_key *process;

	key->start_ns = 0;
	key->tgid = 0;
	if (owner == OWNER_OUTSIDE)
		return true;
	process = bpf_map_lookup_elem(&disk_owners, &owner);
	if (!process || !process->tgid)
		return false;
	key->start_ns = process->start_ns;
	key->tgid = process->tgid;
	return true;
}

/* The running process has dirtied `count` pages of a file, from the page `index`. */
static __always_inline void dirty(struct current_process *current, u64 file, u64 index, u32 count,
				  bool in_write_back)
{
	u32 owner = owner_of_process(&current->key), flags = 0, unknown = 0;

	/*
	 * Kernel threads dirty pages again before they write them: those belong to the process
	 * that dirtied them first. The threads of loop and nfsd do write on their own.
	 */
	if (current->flags & PF_KTHREAD && !(current->flags & PF_LOCAL_THROTTLE))
		flags |= DIRTY_IF_UNKNOWN;
	if (in_write_back)
		flags |= DIRTY_IN_WRITE_BACK;
	for (u32 i = 0; i < MAX_RANGES && count; i++) {
		u32 first = index & (RANGE_PAGES - 1), part = RANGE_PAGES - first;

		if (part > count)
			part = count;
		unknown |= disk_mark(file + (index >> RANGE_BITS), first, part, owner, flags);
		index += part;
		count -= part;
	}
	if (unknown)
		add_owner(&current->key);
}

#endif
