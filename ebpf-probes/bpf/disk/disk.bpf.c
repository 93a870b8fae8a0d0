// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Block I/O per process and device, charged to the process that caused it.
 *
 * The submitter of a request is taken when it begins, because then it still runs. Buffered
 * writes are submitted by kernel threads, so the process that dirties a page is kept, and its
 * write-back is charged to it. A completion runs in the context of any process.
 *
 * Operations and bytes are those of /proc/diskstats: counted at completion, by request and
 * not by the bios that were merged into it.
 */
#include "disk/attribution.h"
#include "disk/charge.h"
#include "disk/in_flight.h"
#include "disk/slow_io.h"

EBPFMETRICS_LICENSE;

/* Whether the kernel has block_io_start (6.5). Set before loading. */
const volatile bool has_io_start = true;

/* Written by user space once everything is attached; read only if something is missing. */
struct disk_control_record {
	u64 attached_ns; /* CLOCK_MONOTONIC */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct disk_control_record);
} disk_control SEC(".maps");

/* An operation begins, in the context of its submitter. */
static __always_inline struct disk_in_flight *begin(u64 request, struct bio *bio, u32 device,
						    u32 command, u32 bytes, bool settles)
{
	struct disk_row_key key = {.device = device};
	struct current_process current = {};
	struct disk_in_flight *io;
	bool of_owners;

	if ((command & REQ_OP_MASK) >= REQ_OP_PASSTHROUGH)
		return NULL;
	read_submitter(&current);
	of_owners = classify(&key, &current, bio, command, bytes);
	io = take_slot(request, settles);
	if (!io)
		return io;
	if (slow_io_ns && key.tgid == current.key.tgid)
		remember(&current.key);
	io->row = of_owners ? ROW_OF_OWNERS : recent_row(&key);
	io->key = key;
	io->bytes = bytes;
	if (slow_io_ns)
		io->completed_bytes = 0;
	io->issued_ns = 0;
	io->started_ns = bpf_ktime_get_ns();
	return io;
}

/* Whether a request without a start began before the probe was attached. */
static __always_inline bool began_before_attach(struct request *request)
{
	u32 zero = 0;
	struct disk_control_record *c = bpf_map_lookup_elem(&disk_control, &zero);

	return c && (!c->attached_ns || request->start_time_ns < c->attached_ns);
}

/* Requests since 6.5: block_io_start runs once for each, with its first bio. */

SEC("tp_btf/block_io_start")
int BPF_PROG(disk_start, struct request *request)
{
	begin(number_of(request), request->bio, request_device(request), request->cmd_flags,
	      request->__data_len, true);
	return 0;
}

/* Begins an operation that is identified by its bio. */
static __noinline struct disk_in_flight *begin_bio(struct bio *bio, u64 number)
{
	return begin(number, bio, bio_device(bio), bio->bi_opf, bio->bi_iter.bi_size, false);
}

/*
 * Requests before 6.5: the submitter is seen when a bio gets a request, but not which
 * request. Until that is issued, the operation is identified by its first bio.
 */

/* At that time the same bio may be in flight on a device without requests. */
static __always_inline u64 bio_number(struct bio *bio)
{
	return number_of(bio) | 1;
}

SEC("tp_btf/block_getrq")
int BPF_PROG(disk_get_request, struct bio *bio)
{
	begin_bio(bio, bio_number(bio));
	return 0;
}

/* Before 5.13 (eb6f7f7cd3af removed the queue from block_getrq). */
SEC("tp_btf/block_getrq")
int BPF_PROG(disk_get_request_of_queue, struct request_queue *queue, struct bio *bio)
{
	begin_bio(bio, bio_number(bio));
	return 0;
}

/* A request whose start was not seen: mostly the submitter issues it. */
static __noinline struct disk_in_flight *begin_late(struct request *request, u64 number)
{
	struct disk_in_flight *io = begin(number, request->bio, request_device(request),
					  request->cmd_flags, request->__data_len, true);

	if (io && !began_before_attach(request))
		count_disk_loss(DISK_LOSS_START_LATE);
	return io;
}

/* The bio of a request that has an operation: others may have been merged in front of it. */
static __noinline u64 number_of_bio_in_flight(struct request *request)
{
	struct bio *bio = request->bio;

	for (int i = 0; i < 8 && bio; i++) {
		u64 number = bio_number(bio);

		if (find(number))
			return number;
		bio = bio->bi_next;
	}
	return 0;
}

/* Before 6.5: from here on the operation is identified by its request. */
static __noinline struct disk_in_flight *adopt(struct request *request, u64 number)
{
	u64 bio = number_of_bio_in_flight(request);
	struct disk_in_flight *before = bio ? find(bio) : NULL, *io;
	struct disk_row_key key;
	u32 device;

	if (!before) /* such as a request made from another */
		return begin_late(request, number);
	io = take_slot(number, true);
	if (!io)
		return io;
	io->row = before->row;
	io->key = before->key;
	io->started_ns = before->started_ns;
	if (slow_io_ns)
		io->completed_bytes = 0;
	io->issued_ns = 0;
	forget(bio);
	if (!bio_names_partition()) {
		device = request_device(request);
		if (device != io->key.device) {
			key = io->key;
			key.device = device;
			if (io->row != ROW_OF_OWNERS)
				io->row = find_row(&key);
			io->key = key;
		}
	}
	return io;
}

static __always_inline void issue(struct request *request)
{
	u64 number = number_of(request);
	struct disk_in_flight *io = find(number);

	if (!io) {
		if ((request->cmd_flags & REQ_OP_MASK) == REQ_OP_FLUSH)
			return; /* of the device, for any number of fsyncs */
		io = has_io_start ? begin_late(request, number) : adopt(request, number);
		if (!io)
			return;
	}
	/* runs again for a request that the device returned */
	if (!io->issued_ns)
		io->issued_ns = bpf_ktime_get_ns();
	io->bytes = request->__data_len; /* with what has been merged into it */
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(disk_issue, struct request *request)
{
	issue(request);
	return 0;
}

/*
 * Before 5.11 and its backports (a54895fa057c "block: remove the request_queue to argument
 * request based tracepoints").
 */
SEC("tp_btf/block_rq_issue")
int BPF_PROG(disk_issue_of_queue, struct request_queue *queue, struct request *request)
{
	issue(request);
	return 0;
}

/* Merged into another request: it never completes, and its bytes complete with the other. */
static __always_inline void merge(struct request *request)
{
	u64 number = number_of(request);
	struct disk_in_flight *io = find(number);

	if (io)
		forget(number);
	else if (!has_io_start && (number = number_of_bio_in_flight(request)))
		forget(number);
}

SEC("tp_btf/block_rq_merge")
int BPF_PROG(disk_merge, struct request *request)
{
	merge(request);
	return 0;
}

SEC("tp_btf/block_rq_merge")
int BPF_PROG(disk_merge_of_queue, struct request_queue *queue, struct request *request)
{
	merge(request);
	return 0;
}

/*
 * Charges a request or a part of it. What was merged into a write is charged bio by bio. Runs
 * before the bios are completed.
 */
static __always_inline void charge_request(struct disk_in_flight *io, struct request *request,
					   u32 bytes, bool failed, bool done)
{
	struct bio *bio = request->bio;
	struct disk_in_flight part;
	u64 place;

	if (!bytes || !bio || (request->cmd_flags & REQ_OP_MASK) != REQ_OP_WRITE ||
	    (io->row != ROW_OF_OWNERS && !bio->bi_next)) {
		charge(io, bytes, false, failed, done);
		return;
	}
	part = *io;
	place = (u64)bio->bi_iter.bi_idx << 32 | vector_done(bio);
	charge(&part, bytes, charge_pages(&part, (u64)bio, bio->bi_iter.bi_size, place, bytes),
	       failed, done);
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(disk_complete, struct request *request, int error, unsigned int bytes)
{
	u64 number = number_of(request);
	struct disk_in_flight *io = find(number);
	bool done = bytes >= request->__data_len;
	u32 command = request->cmd_flags;

	if (!has_io_start && !io) {
		/* a flush that the block layer answers by itself is never issued */
		number = number_of_bio_in_flight(request);
		io = number ? find(number) : NULL;
	}
	if (io) {
		charge_request(io, request, bytes, error & 0xff, done);
		if (done) {
			forget(number);
			return 0;
		}
		io->bytes -= bytes;
		if (slow_io_ns)
			io->completed_bytes += bytes;
		return 0;
	}
	/* the second completion of a write with a flush before or after it has no bytes */
	if (!bytes || (command & REQ_OP_MASK) == REQ_OP_FLUSH ||
	    (command & REQ_OP_MASK) >= REQ_OP_PASSTHROUGH)
		return 0;
	if (!began_before_attach(request))
		count_disk_loss(DISK_LOSS_START_UNSEEN);
	charge_unattributed(request_device(request), command, bytes, done);
	return 0;
}

/* Devices without requests (zram, dm, md, pmem): by bio. Attached if there are any. */

static __always_inline void queue_bio(struct bio *bio)
{
	struct gendisk *disk = bio_disk(bio);
	struct disk_in_flight *io;

	if (!disk || !disk->fops->submit_bio)
		return;
	io = begin_bio(bio, number_of(bio));
	if (!io)
		return;
	io->issued_ns = io->started_ns;
	/* a driver moves on in the bio as it writes it */
	io->completed_bytes = (u64)bio->bi_iter.bi_idx << 32 | vector_done(bio);
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(disk_queue_bio, struct bio *bio)
{
	queue_bio(bio);
	return 0;
}

/* Before 5.13 (eb6f7f7cd3af removed the queue from block_bio_queue). */
SEC("tp_btf/block_bio_queue")
int BPF_PROG(disk_queue_bio_of_queue, struct request_queue *queue, struct bio *bio)
{
	queue_bio(bio);
	return 0;
}

SEC("tp_btf/block_bio_complete")
int BPF_PROG(disk_complete_bio, struct request_queue *queue, struct bio *bio)
{
	u64 number = number_of(bio);
	struct disk_in_flight *io = find(number), whole;
	bool counted = false;

	if (!io)
		return 0;
	whole = *io;
	whole.completed_bytes = 0;
	if (io->row == ROW_OF_OWNERS && io->bytes)
		counted = charge_pages(&whole, (u64)bio, io->bytes, io->completed_bytes, io->bytes);
	charge(&whole, io->bytes, counted, bio->bi_status, true);
	forget(number);
	return 0;
}

/* Pages become dirty, in the context of the process that did it. */

/* An address as a number: the verifier forbids to compute with pointers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} disk_address SEC(".maps");

static __always_inline void mark_dirty(struct address_space *mapping, u64 index, u32 pages,
				       u64 flags)
{
	struct current_process current = {};
	u32 zero = 0;
	u64 *address = bpf_map_lookup_elem(&disk_address, &zero);
	struct inode *inode = mapping->host;

	if (!address)
		return;
	*(volatile u64 *)address = (u64)mapping;
	read_submitter(&current);
	dirty(&current, file_key(*(volatile u64 *)address, inode->i_ino, inode->i_generation),
	      index, pages, PAGE_FLAG(flags, PG_writeback));
}

SEC("tp_btf/writeback_dirty_folio")
int BPF_PROG(disk_dirty_folio, struct folio *folio, struct address_space *mapping)
{
	u64 flags;

	if (!mapping)
		return 0;
	flags = folio_flags(folio);
	mark_dirty(mapping, folio->index, folio_pages(folio, flags), flags);
	return 0;
}

/* Before 5.18 (203a31516616 "mm/writeback: Add __folio_mark_dirty()"). */
SEC("tp_btf/writeback_dirty_page")
int BPF_PROG(disk_dirty_page, struct page *page, struct address_space *mapping)
{
	if (mapping)
		mark_dirty(mapping, page->index, 1, ((struct page___flags *)page)->flags);
	return 0;
}

/* A process has a new name, and maybe a new user. Attached only with slow I/O events. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(disk_exec, struct task_struct *task)
{
	struct process_key key = process_key_of(task);
	struct process_info_record info = {};

	/* types that no map has: user space is generated from the BTF */
	EMIT_BTF(struct events_slow_io_record);
	EMIT_BTF(enum disk_loss);
	EMIT_BTF(enum disk_class);
	EMIT_BTF(enum disk_operation);
	if (!slow_io_ns || !bpf_map_lookup_elem(&disk_names, &key))
		return 0;
	if (read_process(true, &info, task))
		bpf_map_update_elem(&disk_names, &key, &info, BPF_EXIST);
	return 0;
}
