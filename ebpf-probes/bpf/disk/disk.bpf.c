// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Block I/O per process and device, charged to who caused it.
 *
 * A request is charged where it begins: there the submitter still runs. Of
 * buffered writes the submitter is a thread of the kernel, so who dirties pages is
 * noted per file, and the write-back of a file is charged to its note. Where a
 * request completes, some stranger runs: that only brings the figures.
 *
 * Operations and bytes are those of /proc/diskstats: counted at completion, and
 * requests, not the bios that were merged into them.
 */
#include "events.h"
#include "watch.h"
#include "compat_block.h"

EBPFMETRICS_LICENSE;

/* Names and order are those of `LOSSES` in ebpfmetrics/src/probes/disk/record.rs. */
enum disk_loss {
	DISK_LOSS_ROW_TABLE_FULL, /* `rows` full: an operation stands in the row of its device */
	DISK_LOSS_PROCESS_TABLE_FULL, /* `processes` full: no name or no final dirtied bytes */
	DISK_LOSS_IN_FLIGHT_TABLE_FULL, /* `collided` full: as start_unseen */
	DISK_LOSS_START_LATE, /* first seen when issued: charged to who did that, queue time 0 */
	DISK_LOSS_START_UNSEEN, /* who began an operation is not known, nor how long it took */
	DISK_LOSS_COMPLETION_UNSEEN, /* counted when its request came again; its time is not known */
	DISK_LOSS_OWNER_UNSEEN, /* a write-back whose file has no note stands with its device */
	DISK_LOSS_WATCH_TABLE_FULL, /* `watched` full: a process of a tree, and what it starts */
	DISK_LOSSES,
};

DEFINE_LOSSES(DISK_LOSSES)

/* Set before loading: whether the kernel has block_io_start (6.5). */
const volatile bool has_io_start = true;

/*
 * Operations that take at least so long are told as events. With 0 none is: the
 * verifier removes the code for it, and the maps of events need not be there.
 */
const volatile u64 slow_io_ns = 0;

enum disk_operation {
	DISK_READ,
	DISK_WRITE,
	DISK_FLUSH,
	DISK_DISCARD,
};

/* Who an operation is charged to, and how sure that is. */
enum disk_class {
	DISK_DIRECT, /* who submitted it */
	DISK_WRITE_BACK, /* who dirtied the file */
	DISK_METADATA, /* who dirtied the block, or submitted it */
	DISK_SWAP, /* who needed the memory */
	DISK_JOURNAL, /* the journal's thread */
	DISK_KERNEL, /* a thread of the kernel */
	DISK_UNATTRIBUTED, /* nobody: what found no row, or began unseen */
};

/* Three words, compared as such. */
struct disk_row_key {
	u64 start_ns; /* of the process */
	u32 tgid;
	u32 device; /* dev_t: a disk or a partition */
	u32 class;
	u32 operation;
};

#define LATENCY_BUCKETS 24

/*
 * What a process did on a device in one class and by one operation, in four cache
 * lines. A completed operation is in one bucket of each histogram; operations are
 * the sum of the buckets and the unseen.
 */
struct disk_row_record {
	struct disk_row_key key;
	u64 bytes;
	u64 queue_ns;
	u64 device_ns;
	u32 errors;
	u32 unseen;
	u32 queue_buckets[LATENCY_BUCKETS];
	u32 device_buckets[LATENCY_BUCKETS];
};

/*
 * Rows, 8,192 of 256 bytes (2 MiB), sized by user space. Completions of one row
 * come on several CPUs: atomic adds. Row 0 stands for none.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, u32);
	__type(value, struct disk_row_record);
} rows SEC(".maps");

/* Where a row stands; allocated as used. Written when an operation is the first of its kind. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct disk_row_key);
	__type(value, u32);
} row_of SEC(".maps");

/*
 * Rows free to take: filled by user space, which also gives back the rows of
 * processes that are gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 8192);
	__type(value, u32);
} free_rows SEC(".maps");

/* Rows kept back for what finds no other, one per device and operation. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 128);
	__type(value, u32);
} spare_rows SEC(".maps");

/*
 * The rows that a CPU used last: spares most operations the 50 ns of a hash. What
 * an interrupt tears here is noticed at completion, where the row is compared.
 */
struct disk_recent_row {
	struct disk_row_key key;
	u32 row;
	u32 padding;
};

#define RECENT_ROWS 16

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT_ROWS);
	__type(key, u32);
	__type(value, struct disk_recent_row);
} recent_rows SEC(".maps");

/* One operation on its way, in one cache line. */
struct disk_in_flight {
	u64 request; /* by number_of(); 0: free */
	struct disk_row_key key;
	u64 started_ns;
	u64 issued_ns; /* 0: not yet */
	u32 row;
	u32 bytes; /* not completed yet */
	u64 completed_bytes; /* of parts of it, where slow operations are told */
};

/*
 * 8,192 slots of 64 bytes (0.5 MiB), sized by user space, each for whichever request
 * has a number that falls on it and finds it free. Written by whoever starts,
 * issues and completes that request, one after the other.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, u32);
	__type(value, struct disk_in_flight);
} in_flight SEC(".maps");

/* log2 of the slots, set before loading. */
const volatile u32 in_flight_bits = 13;

/* Requests that found another in their slot; preallocated, some 0.1 MiB. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct disk_in_flight);
} collided SEC(".maps");

/* A process that dirtied pages of a file, and how many of them are not written yet. */
struct disk_owner {
	u64 start_ns;
	u32 tgid;
	u32 credit;
};

#define OWNERS 4

/*
 * Who dirtied a file. Dirtying and writing back on several CPUs may lose an update
 * of a credit, which only decides between several owners of one file.
 */
struct disk_file {
	u32 guard; /* of its inode: addresses are reused */
	u32 last; /* dirtied it last */
	struct disk_owner owners[OWNERS];
};

/*
 * By the address of a file's mapping: 32,768 files, some 4 MiB, sized by user
 * space. Past that the file that was dirtied longest ago is forgotten, which
 * shows as owner_unseen if it still had to be written.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, u64);
	__type(value, struct disk_file);
} files SEC(".maps");

enum disk_process_flags {
	DISK_PROCESS_EXITED = 1 << 0, /* `about` is that of its exit, at ended_ns */
	DISK_PROCESS_RELEASED = 1 << 1, /* the dirtied bytes are its final ones */
};

/*
 * A process that did I/O: who it was, for when it is gone before its pages are
 * written. From its first operation until user space takes its release.
 */
struct disk_process_record {
	struct task_about about;
	u64 dirtied_bytes;
	u64 cancelled_bytes;
	u64 ended_ns; /* CLOCK_MONOTONIC */
	u64 flags;
};

/* 8,192 entries, allocated as used; sized by user space. Each written by its own process. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, struct disk_process_record);
} processes SEC(".maps");

/* Set by user space once everything is attached; read only where something is amiss. */
struct disk_control_record {
	u64 attached_ns; /* CLOCK_MONOTONIC */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct disk_control_record);
} control SEC(".maps");

/*
 * An address as a number that can be computed with: how far it is from a map of
 * ours. Pointers cannot be shifted or multiplied, but subtracted; a helper that
 * reads the address from memory would take 10 ns.
 */
static __always_inline u64 number_of(const void *pointer)
{
	u32 zero = 0;
	void *base = bpf_map_lookup_elem(&in_flight, &zero);
	u64 number = (u64)pointer;

	if (!base)
		return 0;
	asm volatile("%0 -= %1" : "+r"(number) : "r"(base));
	return number;
}

static __always_inline struct disk_in_flight *slot_of(u64 request)
{
	/* Fibonacci hashing: requests lie at equal distances */
	u32 index = request * 0x9E3779B97F4A7C15ULL >> (64 - in_flight_bits);

	return bpf_map_lookup_elem(&in_flight, &index);
}

static __always_inline struct disk_in_flight *find(u64 request)
{
	struct disk_in_flight *slot = slot_of(request);

	if (!slot || slot->request == request)
		return slot;
	return bpf_map_lookup_elem(&collided, &request);
}

static __always_inline void forget(u64 request)
{
	struct disk_in_flight *slot = slot_of(request);

	if (slot && slot->request == request)
		*(volatile u64 *)&slot->request = 0;
	else
		bpf_map_delete_elem(&collided, &request);
}

/*
 * Who runs now. Who is not watched is nobody, and does what it does as nobody: devices
 * stay whole.
 */
static __always_inline void read_watched(struct current_process *current)
{
	read_current(current);
	if (watch_mode == WATCH_ALL ||
	    is_watched_as((void *)bpf_get_current_task(), current->key.tgid))
		return;
	current->key.start_ns = 0;
	current->key.tgid = 0;
}

/* Puts the process that runs now into `processes`, unless it is there or nobody. */
static __noinline void remember(struct process_key *key)
{
	static const struct disk_process_record none;
	struct task_struct *task = (void *)bpf_get_current_task();
	struct disk_process_record *process;

	if (!key->tgid || bpf_map_lookup_elem(&processes, key))
		return;
	bpf_map_update_elem(&processes, key, &none, BPF_NOEXIST);
	process = bpf_map_lookup_elem(&processes, key);
	if (!process) {
		count_loss(DISK_LOSS_PROCESS_TABLE_FULL);
		return;
	}
	process->about.process_start_ns = key->start_ns;
	process->about.tgid = process->about.tid = process->about.namespace_pid = key->tgid;
	process->about.parent_tgid = BPF_CORE_READ(task, real_parent, tgid);
	process->about.parent_start_ns =
	    BPF_CORE_READ(task, real_parent, group_leader, start_boottime);
	process->about.uid = bpf_get_current_uid_gid();
	process->about.cgroup_id = cgroup_id(true, cgroup_of(true, task));
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		process->about.flags = ABOUT_KERNEL_THREAD;
	bpf_probe_read_kernel(process->about.comm, sizeof(process->about.comm),
			      BPF_CORE_READ(task, group_leader, comm));
}

static __always_inline bool same_row(const struct disk_row_key *one,
				     const struct disk_row_key *other)
{
	const u64 *a = (const u64 *)one, *b = (const u64 *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* Makes a row of those on a stack; 0 if none is left. */
static __always_inline u32 take_row(void *stack, const struct disk_row_key *key)
{
	struct disk_row_record *row;
	u32 index, *winner;

	if (bpf_map_pop_elem(stack, &index))
		return 0;
	row = bpf_map_lookup_elem(&rows, &index);
	if (!row)
		return 0;
	row->key = *key;
	if (!bpf_map_update_elem(&row_of, key, &index, BPF_NOEXIST))
		return index;
	/* another CPU was faster, or memory is short */
	winner = bpf_map_lookup_elem(&row_of, key);
	bpf_map_push_elem(stack, &index, BPF_ANY);
	return winner ? *winner : 0;
}

/*
 * The row of a key. Where all are taken, the key becomes that of the row that the
 * device has for such.
 */
static __noinline u32 find_row(struct disk_row_key *key)
{
	u32 *known = bpf_map_lookup_elem(&row_of, key), index;

	if (known)
		return *known;
	if (key->class != DISK_UNATTRIBUTED) {
		index = take_row(&free_rows, key);
		if (index)
			return index;
		count_loss(DISK_LOSS_ROW_TABLE_FULL);
		key->start_ns = 0;
		key->tgid = 0;
		key->class = DISK_UNATTRIBUTED;
		known = bpf_map_lookup_elem(&row_of, key);
		if (known)
			return *known;
	}
	return take_row(&spare_rows, key);
}

/* A row of `class` that the current process may be charged by; remembers the process. */
static __always_inline u32 recent_row(struct disk_row_key *key, struct process_key *current)
{
	u32 index = (key->tgid ^ key->device ^ key->operation ^ key->class << 2) % RECENT_ROWS;
	struct disk_recent_row *recent = bpf_map_lookup_elem(&recent_rows, &index);
	u32 row;

	if (recent && same_row(&recent->key, key))
		return recent->row;
	row = find_row(key);
	if (key->tgid == current->tgid)
		remember(current);
	if (recent && row) {
		recent->key = *key;
		recent->row = row;
	}
	return row;
}

static __always_inline bool is_journal_thread(void)
{
	char comm[16] = {};

	bpf_get_current_comm(comm, sizeof(comm));
	return comm[0] == 'j' && comm[1] == 'b' && comm[2] == 'd' && comm[3] == '2';
}

/* The mapping of the page that a write begins with, if the page is being written back. */
static __always_inline u64 mapping_written_back(struct bio *bio)
{
	u64 vector = 0, page = 0, mapping = 0;

	/* as numbers: before 5.11 a pointer to a kernel type takes no variable offset */
	bpf_probe_read_kernel(&vector, sizeof(vector), &bio->bi_io_vec);
	if (!vector)
		return 0;
	vector += (u64)(bio->bi_iter.bi_idx & 0xffff) * bpf_core_type_size(struct bio_vec) +
		  bpf_core_field_offset(struct bio_vec, bv_page);
	if (bpf_probe_read_kernel(&page, sizeof(page), (void *)vector) || !page)
		return 0;
	page = head_of_page(page);
	bpf_core_read(&mapping, sizeof(mapping), &((struct page *)page)->mapping);
	/*
	 * O_DIRECT writes out of a process's memory: no mapping, an anonymous one (bit
	 * 0), or that of a file which is not being written back now
	 */
	if (mapping & 3 || !PAGE_FLAG(page_flags(page), PG_writeback))
		return 0;
	return mapping;
}

/* Charges a write-back to an owner of its file; false if the file has no note. */
static __always_inline bool charge_owner(u64 mapping, u32 bytes, struct disk_row_key *key)
{
	struct disk_file *file = bpf_map_lookup_elem(&files, &mapping);
	u32 pages = (bytes + 4095) >> 12, chosen;
	struct disk_owner *owner;

	if (!file)
		return false;
	chosen = file->last % OWNERS;
	if (file->owners[chosen].credit < pages) {
		u32 most = file->owners[chosen].credit;

		for (u32 i = 0; i < OWNERS; i++) {
			if (file->owners[i].credit > most) {
				most = file->owners[i].credit;
				chosen = i;
			}
		}
	}
	owner = &file->owners[chosen % OWNERS];
	owner->credit = owner->credit > pages ? owner->credit - pages : 0;
	key->start_ns = owner->start_ns;
	key->tgid = owner->tgid;
	return true;
}

/* Who and what an operation is, into the key of its row. */
static __always_inline void classify(struct disk_row_key *key, struct current_process *current,
				     struct bio *bio, u32 command, u32 bytes)
{
	u32 operation = command & REQ_OP_MASK;
	u64 mapping;

	key->start_ns = current->key.start_ns;
	key->tgid = current->key.tgid;
	/* as the kernel groups them for /proc/diskstats: the odd ones write */
	key->operation = operation == REQ_OP_DISCARD ? DISK_DISCARD : operation & 1;
	/* what fsync asks for; /proc/diskstats has it among the writes */
	if (operation == REQ_OP_FLUSH ||
	    (operation == REQ_OP_WRITE && !bytes && REQUEST_FLAG(command, __REQ_PREFLUSH)))
		key->operation = DISK_FLUSH;
	key->class = DISK_DIRECT;
	if (current->flags & PF_KTHREAD)
		key->class = is_journal_thread() ? DISK_JOURNAL : DISK_KERNEL;
	if (key->operation > DISK_WRITE)
		return;
	if (REQUEST_FLAG(command, __REQ_SWAP)) {
		key->class = DISK_SWAP;
		return;
	}
	if (operation == REQ_OP_WRITE && bio && bytes) {
		mapping = mapping_written_back(bio);
		if (mapping) {
			u16 mode = BPF_CORE_READ((struct address_space *)mapping, host, i_mode);

			key->class = (mode & S_IFMT) == S_IFREG ? DISK_WRITE_BACK : DISK_METADATA;
			if (!charge_owner(mapping, bytes, key)) {
				/* whoever syncs or flushes now did not cause it */
				key->start_ns = 0;
				key->tgid = 0;
				count_loss(DISK_LOSS_OWNER_UNSEEN);
			}
			return;
		}
	}
	if (REQUEST_FLAG(command, __REQ_META) && key->class != DISK_JOURNAL)
		key->class = DISK_METADATA;
}

/*
 * Another operation begins with this request, so its completion was missed. Only
 * requests have it: a bio comes again as something else.
 */
static __always_inline void settle(struct disk_in_flight *io)
{
	struct disk_row_record *row = bpf_map_lookup_elem(&rows, &io->row);

	count_loss(DISK_LOSS_COMPLETION_UNSEEN);
	if (row && same_row(&row->key, &io->key)) {
		__sync_fetch_and_add(&row->unseen, 1);
		__sync_fetch_and_add(&row->bytes, io->bytes);
	}
}

/*
 * A slot for a request. Two that take a free slot at the very same time get mixed
 * up: then one is counted as start_unseen. (Compare-and-swap came after 5.10.)
 */
static __always_inline struct disk_in_flight *take_slot(u64 request, bool settles)
{
	static const struct disk_in_flight none;
	struct disk_in_flight *slot = slot_of(request);

	if (!slot)
		return slot;
	if (slot->request == request) {
		if (settles)
			settle(slot);
		return slot;
	}
	if (!slot->request) {
		*(volatile u64 *)&slot->request = request;
		if (*(volatile u64 *)&slot->request == request)
			return slot;
	}
	slot = bpf_map_lookup_elem(&collided, &request);
	if (slot) {
		if (settles)
			settle(slot);
		return slot;
	}
	if (bpf_map_update_elem(&collided, &request, &none, BPF_ANY))
		count_loss(DISK_LOSS_IN_FLIGHT_TABLE_FULL);
	return bpf_map_lookup_elem(&collided, &request);
}

/* An operation begins, in the context of who submits it. */
static __always_inline struct disk_in_flight *begin(u64 request, struct bio *bio, u32 device,
						    u32 command, u32 bytes, bool settles)
{
	struct disk_row_key key = {.device = device};
	struct current_process current = {};
	struct disk_in_flight *io;

	if ((command & REQ_OP_MASK) >= REQ_OP_PASSTHROUGH)
		return NULL;
	read_watched(&current);
	classify(&key, &current, bio, command, bytes);
	io = take_slot(request, settles);
	if (!io)
		return io;
	io->row = recent_row(&key, &current.key);
	io->key = key;
	io->bytes = bytes;
	if (slow_io_ns)
		io->completed_bytes = 0;
	io->issued_ns = 0;
	io->started_ns = bpf_ktime_get_ns();
	return io;
}

/* 0: under 1,024 ns; i: under 2^(10 + i) ns; the last: all above. */
static __always_inline u32 bucket_of(u64 ns)
{
	u64 left = ns >> 10;
	u32 bucket = 0;

	if (left >> (LATENCY_BUCKETS - 2))
		return LATENCY_BUCKETS - 1;
	if (left >> 16) {
		bucket += 16;
		left >>= 16;
	}
	if (left >> 8) {
		bucket += 8;
		left >>= 8;
	}
	if (left >> 4) {
		bucket += 4;
		left >>= 4;
	}
	if (left >> 2) {
		bucket += 2;
		left >>= 2;
	}
	/* 0, 1, 2 or 3 is left: 0, 1, 2, 2 bits */
	return bucket + (left > 1 ? 2 : left);
}

/* The row of an operation, found again if user space has given it to another. */
static __always_inline struct disk_row_record *row_of_operation(struct disk_in_flight *io)
{
	struct disk_row_record *row = bpf_map_lookup_elem(&rows, &io->row);
	struct disk_row_key key;
	u32 index;

	if (row && same_row(&row->key, &io->key))
		return row;
	key = io->key;
	index = find_row(&key);
	return index ? bpf_map_lookup_elem(&rows, &index) : NULL;
}

/* Tells an operation as an event, with the name that its process was last seen by. */
static __noinline void tell_slow_io(struct disk_in_flight *io, u32 bytes, u64 queue_ns,
				    u64 device_ns)
{
	struct process_key key = {.start_ns = io->key.start_ns, .tgid = io->key.tgid};
	struct disk_process_record *process = bpf_map_lookup_elem(&processes, &key);
	struct events_slow_io_record r = {
	    .queue_ns = queue_ns,
	    .device_ns = device_ns,
	    .bytes = io->completed_bytes + bytes,
	    .device = io->key.device,
	    .class = io->key.class,
	    .operation = io->key.operation,
	};

	if (process) {
		r.event.about = process->about;
		if (process->flags & DISK_PROCESS_EXITED)
			r.event.about.flags |= ABOUT_ENDED;
	}
	r.event.about.process_start_ns = key.start_ns;
	r.event.about.tgid = key.tgid;
	r.event.time_ns = io->started_ns + queue_ns + device_ns;
	tell(&r.event, sizeof(r), EVENT_KIND_SLOW_IO);
}

/* An operation, or a part of it, is done. */
static __always_inline void charge(struct disk_in_flight *io, u32 bytes, bool failed, bool done)
{
	struct disk_row_record *row = row_of_operation(io);
	u64 now, queue_ns, device_ns;
	u32 bucket;

	if (!row)
		return;
	__sync_fetch_and_add(&row->bytes, bytes);
	if (failed)
		__sync_fetch_and_add(&row->errors, 1);
	if (!done)
		return;
	now = bpf_ktime_get_ns();
	/* never issued: a flush that found nothing to do, or a device without a queue */
	queue_ns = io->issued_ns ? io->issued_ns - io->started_ns : 0;
	device_ns = now - io->started_ns - queue_ns;
	/* clocks of two CPUs may be some ns apart */
	if ((s64)queue_ns < 0)
		queue_ns = 0;
	if ((s64)device_ns < 0)
		device_ns = 0;
	if (queue_ns)
		__sync_fetch_and_add(&row->queue_ns, queue_ns);
	__sync_fetch_and_add(&row->device_ns, device_ns);
	if (slow_io_ns && queue_ns + device_ns >= slow_io_ns)
		tell_slow_io(io, bytes, queue_ns, device_ns);
	bucket = bucket_of(queue_ns);
	if (bucket < LATENCY_BUCKETS)
		__sync_fetch_and_add(&row->queue_buckets[bucket], 1);
	bucket = bucket_of(device_ns);
	if (bucket < LATENCY_BUCKETS)
		__sync_fetch_and_add(&row->device_buckets[bucket], 1);
}

/* What began unseen, for the device alone: its figures stay whole. */
static __noinline void charge_unattributed(u32 device, u32 command, u32 bytes, u32 done)
{
	u32 operation = command & REQ_OP_MASK, index;
	struct disk_row_key key = {
	    .device = device,
	    .class = DISK_UNATTRIBUTED,
	    .operation = operation == REQ_OP_DISCARD ? DISK_DISCARD : operation & 1,
	};
	struct disk_row_record *row;

	index = find_row(&key);
	row = bpf_map_lookup_elem(&rows, &index);
	if (!index || !row)
		return;
	__sync_fetch_and_add(&row->bytes, bytes);
	if (done)
		__sync_fetch_and_add(&row->unseen, 1);
}

/* Whether a request without a start was there before us. */
static __always_inline bool began_before_us(struct request *request)
{
	u32 zero = 0;
	struct disk_control_record *c = bpf_map_lookup_elem(&control, &zero);

	return c && (!c->attached_ns || request->start_time_ns < c->attached_ns);
}

/* Requests from 6.5 on: block_io_start comes once for each, with its first bio. */

SEC("tp_btf/block_io_start")
int BPF_PROG(disk_start, struct request *request)
{
	begin(number_of(request), request->bio, request_device(request), request->cmd_flags,
	      request->__data_len, true);
	return 0;
}

/* An operation that goes by its bio. */
static __noinline struct disk_in_flight *begin_bio(struct bio *bio, u64 number)
{
	return begin(number, bio, bio_device(bio), bio->bi_opf, bio->bi_iter.bi_size, false);
}

/*
 * Requests before 6.5: the submitter is seen where a bio gets a request, which
 * is not told which. Until that is issued, the operation goes by its first bio.
 */

/* The same bio may at that time be in flight on a device without requests. */
static __always_inline u64 on_its_way(struct bio *bio)
{
	return number_of(bio) | 1;
}

SEC("tp_btf/block_getrq")
int BPF_PROG(disk_get_request, struct bio *bio)
{
	begin_bio(bio, on_its_way(bio));
	return 0;
}

/* 5.10 (block_getrq lost its queue in eb6f7f7cd3af, 5.13) */
SEC("tp_btf/block_getrq")
int BPF_PROG(disk_get_request_of_queue, struct request_queue *queue, struct bio *bio)
{
	begin_bio(bio, on_its_way(bio));
	return 0;
}

/* A request whose start was not seen: who issues it is mostly who submitted it. */
static __noinline struct disk_in_flight *begin_late(struct request *request, u64 number)
{
	struct disk_in_flight *io = begin(number, request->bio, request_device(request),
					  request->cmd_flags, request->__data_len, true);

	if (io && !began_before_us(request))
		count_loss(DISK_LOSS_START_LATE);
	return io;
}

/* What goes by one of a request's bios: others may have been merged in front. */
static __noinline u64 number_of_bio_in_flight(struct request *request)
{
	struct bio *bio = request->bio;

	for (int i = 0; i < 8 && bio; i++) {
		u64 number = on_its_way(bio);

		if (find(number))
			return number;
		bio = bio->bi_next;
	}
	return 0;
}

/* Before 6.5: from here on the operation goes by its request. */
static __noinline struct disk_in_flight *adopt(struct request *request, u64 number)
{
	u64 bio = number_of_bio_in_flight(request);
	struct disk_in_flight *before = bio ? find(bio) : NULL, *io;
	struct disk_row_key key;
	u32 device;

	if (!before) /* a request that is made of another, for one */
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
			return; /* the device's own, for any number of fsyncs */
		io = has_io_start ? begin_late(request, number) : adopt(request, number);
		if (!io)
			return;
	}
	/* comes again for a request that the device sent back */
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

/* before 5.11, but for backports (a54895fa057c "block: remove the request_queue to argument request based tracepoints") */
SEC("tp_btf/block_rq_issue")
int BPF_PROG(disk_issue_of_queue, struct request_queue *queue, struct request *request)
{
	issue(request);
	return 0;
}

/* Absorbed by another: it never completes, and its bytes complete with the other. */
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

SEC("tp_btf/block_rq_complete")
int BPF_PROG(disk_complete, struct request *request, int error, unsigned int bytes)
{
	u64 number = number_of(request);
	struct disk_in_flight *io = find(number);
	bool done = bytes >= request->__data_len;
	u32 command = request->cmd_flags;

	if (!has_io_start && !io) {
		/* a flush that the block layer itself answers is never issued */
		number = number_of_bio_in_flight(request);
		io = number ? find(number) : NULL;
	}
	if (io) {
		charge(io, bytes, error & 0xff, done);
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
	if (!began_before_us(request))
		count_loss(DISK_LOSS_START_UNSEEN);
	charge_unattributed(request_device(request), command, bytes, done);
	return 0;
}

/* Devices without requests (zram, dm, md, pmem): by bio. Attached where there are any. */

static __always_inline void queue_bio(struct bio *bio)
{
	struct gendisk *disk = bio_disk(bio);
	struct disk_in_flight *io;

	if (!disk || !disk->fops->submit_bio)
		return;
	io = begin_bio(bio, number_of(bio));
	if (io)
		io->issued_ns = io->started_ns;
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(disk_queue_bio, struct bio *bio)
{
	queue_bio(bio);
	return 0;
}

/* before 5.13 (block_bio_queue lost its queue in eb6f7f7cd3af) */
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
	struct disk_in_flight *io = find(number);

	if (!io)
		return 0;
	charge(io, io->bytes, bio->bi_status, true);
	forget(number);
	return 0;
}

/* Pages become dirty, in the context of who did it. */

static __always_inline void dirty(struct address_space *mapping, u32 pages)
{
	struct current_process current = {};
	struct disk_file *file, fresh = {};
	u64 key = (u64)mapping, number;
	struct inode *inode = mapping->host;
	u32 i, poorest = 0;

	read_watched(&current);
	number = inode->i_ino;
	number ^= number >> 32 ^ inode->i_generation;
	file = bpf_map_lookup_elem(&files, &key);
	if (!file || file->guard != (u32)number) {
		fresh.guard = number;
		fresh.owners[0].start_ns = current.key.start_ns;
		fresh.owners[0].tgid = current.key.tgid;
		fresh.owners[0].credit = pages;
		bpf_map_update_elem(&files, &key, &fresh, BPF_ANY);
		remember(&current.key);
		return;
	}
	i = file->last % OWNERS;
	if (file->owners[i].tgid == current.key.tgid &&
	    file->owners[i].start_ns == current.key.start_ns) {
		file->owners[i].credit += pages;
		return;
	}
	/* the kernel dirties again what a process dirtied, to write it; loop and nfsd write */
	if (current.flags & PF_KTHREAD && !(current.flags & PF_LOCAL_THROTTLE))
		return;
	for (i = 0; i < OWNERS; i++) {
		if (file->owners[i].tgid == current.key.tgid &&
		    file->owners[i].start_ns == current.key.start_ns) {
			file->owners[i].credit += pages;
			file->last = i;
			return;
		}
		if (file->owners[i].credit < file->owners[poorest % OWNERS].credit)
			poorest = i;
	}
	i = poorest % OWNERS;
	file->owners[i].start_ns = current.key.start_ns;
	file->owners[i].tgid = current.key.tgid;
	file->owners[i].credit = pages;
	file->last = i;
	remember(&current.key);
}

SEC("tp_btf/writeback_dirty_folio")
int BPF_PROG(disk_dirty_folio, struct folio *folio, struct address_space *mapping)
{
	if (mapping)
		dirty(mapping, folio_pages(folio));
	return 0;
}

/* before 5.18 (203a31516616 "mm/writeback: Add __folio_mark_dirty()") */
SEC("tp_btf/writeback_dirty_page")
int BPF_PROG(disk_dirty_page, struct page *page, struct address_space *mapping)
{
	if (mapping)
		dirty(mapping, 1);
	return 0;
}

/* What tasks dirtied and took back, by the kernel's own accounting. */

enum record_kind {
	RECORD_TASK = 1,
};

enum disk_task_flags {
	DISK_TASK_HAS_IO_ACCOUNTING = 1 << 0,
};

/* One task; dead_* are the totals of threads of its process that have been released. */
struct disk_task_record {
	struct record_head head;
	struct task_about about;
	u64 dirtied_bytes;
	u64 cancelled_bytes;
	u64 dead_dirtied_bytes;
	u64 dead_cancelled_bytes;
	u64 flags;
};

SEC("iter/task")
int disk_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct disk_task_record r = {};

	/* of these the BTF would else not tell */
	TELL_BTF(struct disk_task_record);
	TELL_BTF(struct events_slow_io_record);
	TELL_BTF(enum disk_loss);
	if (!task)
		return 0;
	if (!is_watched(task) || !read_about(&r.about, task))
		HAND_ON(ctx);
	r.head = RECORD_HEAD(RECORD_TASK, r);
	if (has_io_accounting()) {
		r.flags |= DISK_TASK_HAS_IO_ACCOUNTING;
		r.dirtied_bytes = task->ioac.write_bytes;
		r.cancelled_bytes = task->ioac.cancelled_write_bytes;
		r.dead_dirtied_bytes = task->signal->ioac.write_bytes;
		r.dead_cancelled_bytes = task->signal->ioac.cancelled_write_bytes;
	}
	if (is_being_released(task))
		HAND_ON(ctx);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	HAND_ON(ctx);
}

static __always_inline bool did_io(struct task_struct *task)
{
	struct signal_struct *signal = task->signal;

	return has_io_accounting() &&
	       (task->ioac.write_bytes || task->ioac.cancelled_write_bytes ||
		signal->ioac.write_bytes || signal->ioac.cancelled_write_bytes);
}

/* It has a new name; only attached where names are told at once. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(disk_exec, struct task_struct *task)
{
	struct process_key key = process_key_of(task);
	struct disk_process_record *process = bpf_map_lookup_elem(&processes, &key);

	if (process)
		__builtin_memcpy(process->about.comm, task->comm, sizeof(process->about.comm));
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(watch_fork, struct task_struct *parent, struct task_struct *child)
{
	if (!watch_child(parent, child))
		count_loss(DISK_LOSS_WATCH_TABLE_FULL);
	return 0;
}

/*
 * The last thread of a process exits: what is known of the process is put in
 * order, for later its parent may be gone. Those without I/O leave nothing.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(disk_exit, struct task_struct *task)
{
	struct disk_process_record *process;
	struct process_key key;

	if (task->signal->live.counter)
		return 0;
	key = process_key_of(task);
	if (did_io(task) && is_watched_as(task, task->tgid))
		remember(&key);
	process = bpf_map_lookup_elem(&processes, &key);
	if (!process)
		return 0;
	read_about_at_exit(&process->about, task);
	process->ended_ns = bpf_ktime_get_ns();
	process->flags |= DISK_PROCESS_EXITED;
	return 0;
}

/* A process is released: signal_struct holds the totals of all its threads. */
SEC("tp_btf/sched_process_free")
int BPF_PROG(disk_free, struct task_struct *task)
{
	struct process_key key = {.start_ns = task->start_boottime, .tgid = task->tgid};
	struct signal_struct *signal = task->signal;
	struct disk_process_record *process;

	if (task->pid != task->tgid)
		return 0;
	forget_watched(task);
	process = bpf_map_lookup_elem(&processes, &key);
	if (!process)
		return 0;
	if (has_io_accounting()) {
		process->dirtied_bytes = signal->ioac.write_bytes;
		process->cancelled_bytes = signal->ioac.cancelled_write_bytes;
	}
	read_about_released(&process->about, task);
	if (!process->ended_ns)
		process->ended_ns = bpf_ktime_get_ns();
	process->flags |= DISK_PROCESS_EXITED | DISK_PROCESS_RELEASED;
	return 0;
}
