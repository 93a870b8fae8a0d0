// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Memory per process.
 *
 * What a process holds is in the kernel's own books, and an iterator reads it at
 * the snapshot: nothing runs for it in between. What only shows in between is
 * followed by events: the peak of the resident set whenever the kernel changes
 * its page counts, and the address space whenever the lock on it is released.
 */
#include "watch.h"
#include "compat_mm.h"

EBPFMETRICS_LICENSE;

/* Names and order are those of `LOSSES` in ebpfmetrics/src/probes/mem/record.rs. */
enum mem_loss {
	MEM_LOSS_TRACK_TABLE_FULL, /* `tracked` full: peaks and address space of a process missing */
	MEM_LOSS_EXIT_STATE_FULL, /* `ending` full: peak and name of a process that ended missing */
	MEM_LOSSES,
};

DEFINE_LOSSES(MEM_LOSSES)

/* Set before loading. */
const volatile bool track_address_space = false;
const volatile u32 possible_cpus = 1;

enum record_kind {
	RECORD_PROCESS = 1,
	RECORD_THREAD = 2,
	RECORD_HELD = 3,
	RECORD_TRACKED = 4,
};

struct mem_faults_record {
	u64 minor;
	u64 major;
	u64 dead_minor; /* of threads of the process that have been released */
	u64 dead_major;
};

enum process_flags {
	MEM_OOM_VICTIM = 1 << 0,
};

/* A process, told by its leader. */
struct mem_process_record {
	struct record_head head;
	struct task_about about;
	struct mem_faults_record faults;
	s32 unfolded_pages[NR_MM_COUNTERS]; /* held, but not in the common counters yet */
	u32 flags;
	u32 padding;
};

/* A thread that is not the leader of its process. */
struct mem_thread_record {
	struct record_head head;
	u64 process_start_ns;
	u32 tgid;
	u32 tid;
	struct mem_faults_record faults;
	s32 unfolded_pages[NR_MM_COUNTERS];
};

enum held_flags {
	HELD_HAS_HUGETLB = 1 << 0,
	HELD_CHANGING = 1 << 1, /* the address space was replaced while it was read */
};

/*
 * What a process holds, in pages where nothing else is said. Follows the record
 * of the process, or, if its leader has exited before them, those of threads.
 */
struct mem_held_record {
	struct record_head head;
	u64 process_start_ns;
	u32 tgid;
	u32 flags;
	u64 virtual_pages;
	u64 virtual_high_water_pages;
	s64 resident_pages[NR_MM_COUNTERS]; /* file, anonymous, swapped out, shared */
	u64 resident_high_water_pages; /* as far as the kernel has noted it */
	u64 page_table_bytes;
	u64 locked_pages;
	u64 hugetlb_pages;
	u64 owner_start_ns;
	u32 owner_tgid;
	u32 padding;
};

/* The highest of something in a window; windows are told apart by their epoch. */
struct mem_peak_record {
	u64 epoch;
	u64 pages;
	u64 previous_pages; /* in the epoch before; 0 if nothing happened in it */
};

/*
 * What events have told of a process. The counters are exact because each event
 * takes what the one before it left, in one instruction. Written to user space
 * as it is, behind the record of its process.
 */
struct mem_tracked_record {
	struct record_head head;
	u64 process_start_ns;
	u32 tgid;
	u32 padding;
	struct mem_peak_record resident_set;
	struct mem_peak_record virtual_space;
	u64 space; /* which address space: exec takes a new one */
	u64 virtual_pages; /* of it at the last event */
	u64 allocations;
	u64 allocated_pages;
	u64 deallocations;
	u64 deallocated_pages;
};

/* A process that has exited; whole once it is released. */
struct mem_ended_record {
	struct task_about about;
	struct mem_faults_record faults;
	struct mem_tracked_record tracked; /* process_start_ns 0: not tracked */
	u64 resident_high_water_pages; /* 0 where the kernel takes the memory away first */
	u64 virtual_high_water_pages;
	u64 ended_ns; /* CLOCK_MONOTONIC */
	u32 flags;
	u32 padding;
};

static const struct mem_ended_record none;

/* The window that user space has reached. Written by user space at a reset. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} epoch SEC(".maps");

/*
 * Processes with events, by pid, allocated as used; sized by user space. Written
 * by all CPUs that a process runs on: counters by atomic operations; of two
 * peaks told in the same instant the lower may stay, by what one CPU can add
 * meanwhile.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, u32);
	__type(value, struct mem_tracked_record);
} tracked SEC(".maps");

/*
 * The process that a CPU saw last and a peak that is known of it: most events
 * need no more than a look here. One writer each.
 */
struct mem_seen_record {
	u64 owner_start_ns;
	u64 epoch;
	u64 pages;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct mem_seen_record);
} seen SEC(".maps");

/* Between the exit of a process and its release. Written by its last thread. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, struct mem_ended_record);
} ending SEC(".maps");

/*
 * Final records since user space last collected them, allocated as used; sized
 * by user space. Each is written once, at the release of its process.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct process_key);
	__type(value, struct mem_ended_record);
} exited SEC(".maps");

/* The sum of the final records that `exited` had no room for. Per-CPU: one writer each. */
struct mem_folded_record {
	u64 processes;
	u64 minor_faults;
	u64 major_faults;
	u64 allocations;
	u64 allocated_pages;
	u64 deallocations;
	u64 deallocated_pages;
	u64 oom_kills;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct mem_folded_record);
} folded SEC(".maps");

/*
 * Where each CPU's part of the per-CPU area lies, found once after loading: a
 * per-CPU counter of the kernel is at its address plus this.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* possible CPUs */
	__type(key, u32);
	__type(value, u64);
} cpu_offsets SEC(".maps");

/* Something per-CPU of our own, of which both addresses can be told. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} landmark SEC(".maps");

static __always_inline u64 current_epoch(void)
{
	u32 zero = 0;
	u64 *now = bpf_map_lookup_elem(&epoch, &zero);

	return now ? *now : 0;
}

/* A pointer as a number: to be compared, not followed. */
static __always_inline u64 number(void *pointer)
{
	return (u64)pointer;
}

static __always_inline void raise(struct mem_peak_record *peak, u64 now, u64 pages)
{
	if (peak->epoch != now) {
		peak->previous_pages = peak->epoch + 1 == now ? peak->pages : 0;
		peak->pages = pages;
		peak->epoch = now;
	} else if (pages > peak->pages) {
		peak->pages = pages;
	}
}

/* The entry of a process, made if there is none; of a pid that came back, made anew. */
static __always_inline struct mem_tracked_record *track(u32 tgid, u64 start_ns,
							struct mm_struct *mm, u64 virtual_pages)
{
	struct mem_tracked_record *t = bpf_map_lookup_elem(&tracked, &tgid);
	struct mem_tracked_record fresh = {
	    .head = RECORD_HEAD(RECORD_TRACKED, fresh),
	    .process_start_ns = start_ns,
	    .tgid = tgid,
	    .virtual_pages = virtual_pages,
	};

	if (t && t->process_start_ns == start_ns)
		return t;
	*(struct mm_struct **)&fresh.space = mm;
	if (bpf_map_update_elem(&tracked, &tgid, &fresh, t ? BPF_EXIST : BPF_NOEXIST) && t) {
		count_loss(MEM_LOSS_TRACK_TABLE_FULL);
		return 0;
	}
	t = bpf_map_lookup_elem(&tracked, &tgid);
	if (!t)
		count_loss(MEM_LOSS_TRACK_TABLE_FULL);
	return t;
}

/*
 * Whose an address space is. Nobody's while it is being made by fork or exec and
 * while it is torn down: what changes then shows at the next event, as all
 * figures here are absolute.
 */
static __always_inline struct task_struct *owner_of(struct mm_struct *mm)
{
	struct task_struct *owner = mm->owner;

	if (!owner || owner->mm != mm)
		return 0;
	return owner;
}

static __always_inline void note_resident(struct mm_struct *mm, struct task_struct *owner,
					  struct mem_seen_record *last, u64 now, u64 pages)
{
	u64 start_ns = owner->group_leader->start_boottime;
	struct mem_tracked_record *t;

	if (!is_watched(owner)) {
		/* as if the peak were out of reach: no more looks at this one */
		last->owner_start_ns = owner->start_boottime;
		last->epoch = now;
		last->pages = ~0ULL >> 1;
		return;
	}
	t = track(owner->tgid, start_ns, mm, mm->total_vm);
	if (!t)
		return;
	raise(&t->resident_set, now, pages);
	last->owner_start_ns = owner->start_boottime;
	last->epoch = now;
	last->pages = t->resident_set.pages;
}

/*
 * The kernel has changed a page count. Most of these say nothing new: the counts
 * of CPUs (before 6.2: of threads) are folded into the common ones every 32 to 64
 * pages only, and what does not exceed the known peak does not matter.
 */
SEC("tp_btf/rss_stat")
int BPF_PROG(mem_resident, struct mm_struct *mm, int member)
{
	struct task_struct *owner = mm->owner;
	struct mem_seen_record *last;
	u64 pages, now;
	u32 zero = 0;

	if (member == MM_SWAPENTS || !owner)
		return 0;
	last = bpf_map_lookup_elem(&seen, &zero);
	if (!last)
		return 0;
	pages = folded_resident_pages(mm);
	now = current_epoch();
	if (last->owner_start_ns == owner->start_boottime && last->epoch == now &&
	    pages <= last->pages)
		return 0;
	if (owner->mm != mm)
		return 0;
	note_resident(mm, owner, last, now, pages);
	return 0;
}

static __always_inline s64 unfolded_on(struct percpu_counter *counter, u64 offset)
{
	u64 address = 0;
	s32 pages = 0;

	bpf_core_read(&address, sizeof(address), &counter->counters);
	bpf_probe_read_kernel(&pages, sizeof(pages), (void *)(address + offset));
	return pages;
}

/*
 * The same to the page, with what this CPU has not folded yet. What the other
 * CPUs have not is missing: some 30 pages each at most.
 */
SEC("tp_btf/rss_stat")
int BPF_PROG(mem_resident_exact, struct mm_struct *mm, int member)
{
	u32 zero = 0, cpu = bpf_get_smp_processor_id();
	struct task_struct *owner = mm->owner;
	struct mem_seen_record *last;
	u64 *offset, now;
	s64 pages;

	if (member == MM_SWAPENTS || !owner)
		return 0;
	last = bpf_map_lookup_elem(&seen, &zero);
	offset = bpf_map_lookup_elem(&cpu_offsets, &cpu);
	if (!last || !offset)
		return 0;
	pages = folded_resident_pages(mm);
	pages += unfolded_on(&mm->rss_stat[MM_FILEPAGES], *offset);
	pages += unfolded_on(&mm->rss_stat[MM_ANONPAGES], *offset);
	pages += unfolded_on(&mm->rss_stat[MM_SHMEMPAGES], *offset);
	now = current_epoch();
	if (last->owner_start_ns == owner->start_boottime && last->epoch == now &&
	    pages <= (s64)last->pages)
		return 0;
	if (owner->mm != mm)
		return 0;
	note_resident(mm, owner, last, now, not_negative(pages));
	return 0;
}

static __always_inline void count_change(struct mem_tracked_record *t, u64 before, u64 after)
{
	if (after > before) {
		__sync_fetch_and_add(&t->allocations, 1);
		__sync_fetch_and_add(&t->allocated_pages, after - before);
	} else if (after < before) {
		__sync_fetch_and_add(&t->deallocations, 1);
		__sync_fetch_and_add(&t->deallocated_pages, before - after);
	}
}

/* Exec has given all of the old address space back and taken a new one. */
static __always_inline void count_exec(struct mem_tracked_record *t, struct mm_struct *mm,
				       u64 pages)
{
	count_change(t, t->virtual_pages, 0);
	count_change(t, 0, pages);
	*(struct mm_struct **)&t->space = mm;
	t->virtual_pages = pages;
}

/*
 * The lock on an address space is being released: by whoever changed it, or by
 * one of many readers, of which several may find the same change at once.
 */
SEC("tp_btf/mmap_lock_released")
int BPF_PROG(mem_space, struct mm_struct *mm)
{
	struct task_struct *owner = owner_of(mm);
	struct mem_tracked_record *t;
	u64 pages, start_ns;
	u32 tgid;

	if (!owner)
		return 0;
	tgid = owner->tgid;
	pages = mm->total_vm;
	t = bpf_map_lookup_elem(&tracked, &tgid);
	if (t && t->space == number(mm) && t->virtual_pages == pages)
		return 0;
	start_ns = owner->group_leader->start_boottime;
	if (!is_watched(owner))
		return 0;
	if (!t || t->process_start_ns != start_ns) {
		t = track(tgid, start_ns, mm, pages);
		if (!t)
			return 0;
	}
	if (t->space != number(mm))
		count_exec(t, mm, pages);
	else
		count_change(t, __sync_lock_test_and_set(&t->virtual_pages, pages), pages);
	raise(&t->virtual_space, current_epoch(), pages);
	return 0;
}

/*
 * 5.10 has no such tracepoint: the system calls that change the address space
 * stand in for it. Its BPF has no exchange either: threads that change it in the
 * same instant may count as one.
 */
static __always_inline int space_after_syscall(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct mem_tracked_record *t;
	u64 pages, before, start_ns;
	u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!mm)
		return 0;
	pages = BPF_CORE_READ(mm, total_vm);
	start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	if (!is_watched_as(task, tgid, start_ns))
		return 0;
	t = track(tgid, start_ns, mm, pages);
	if (!t)
		return 0;
	before = t->virtual_pages;
	if (t->space != number(mm)) {
		count_exec(t, mm, pages);
	} else if (before != pages) {
		t->virtual_pages = pages;
		count_change(t, before, pages);
	}
	raise(&t->virtual_space, current_epoch(), pages);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_mmap")
int mem_after_mmap(void *ctx)
{
	return space_after_syscall();
}

SEC("tracepoint/syscalls/sys_exit_munmap")
int mem_after_munmap(void *ctx)
{
	return space_after_syscall();
}

SEC("tracepoint/syscalls/sys_exit_brk")
int mem_after_brk(void *ctx)
{
	return space_after_syscall();
}

SEC("tracepoint/syscalls/sys_exit_mremap")
int mem_after_mremap(void *ctx)
{
	return space_after_syscall();
}

/* A process begins with the address space of its parent: from there it is followed. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(mem_fork, struct task_struct *parent, struct task_struct *child)
{
	struct mm_struct *mm = child->mm;

	if (child->tgid == parent->tgid || !mm || !owner_of(mm))
		return 0;
	if (!is_watched(watch_mode == WATCH_TREES ? parent : child))
		return 0;
	track(child->tgid, child->start_boottime, mm, mm->total_vm);
	return 0;
}

/* Where each CPU's per-CPU area lies. Run by user space, attached to nothing. */
static long find_cpu_offset(u32 cpu, u64 *reference)
{
	void *here = bpf_map_lookup_percpu_elem(&landmark, &(u32){0}, cpu);
	u64 *offset = bpf_map_lookup_elem(&cpu_offsets, &cpu);

	if (!here || !offset)
		return 0;
	/* through a map: a pointer becomes a number that can be computed with */
	*(void *volatile *)offset = here;
	*offset = *(volatile u64 *)offset - *reference;
	return 0;
}

SEC("raw_tp/mem_cpu_offsets")
int mem_cpu_offsets(void *ctx)
{
	u64 *slot, map, reference = 0;
	u32 zero = 0;

	/* of these the BTF would else not tell */
	TELL_BTF(struct mem_process_record);
	TELL_BTF(struct mem_thread_record);
	TELL_BTF(struct mem_held_record);
	TELL_BTF(enum mem_loss);
	slot = bpf_map_lookup_elem(&cpu_offsets, &zero);
	if (!slot)
		return 0;
	*(void *volatile *)slot = &landmark;
	map = *(volatile u64 *)slot;
	*slot = 0;
	bpf_probe_read_kernel(&reference, sizeof(reference),
			      (void *)(map + bpf_core_field_offset(struct bpf_array, pptrs)));
	bpf_loop(possible_cpus, find_cpu_offset, &reference, 0);
	return 0;
}

/* The parts that CPUs have not folded yet, of all counters of an address space. */
struct unfolded {
	u64 addresses[NR_MM_COUNTERS];
	s64 pages[NR_MM_COUNTERS];
	bool together; /* allocated as one block (6.6+): one read per CPU instead of four */
};

static long add_unfolded(u32 cpu, struct unfolded *all)
{
	u64 *offset = bpf_map_lookup_elem(&cpu_offsets, &cpu);
	s32 part[NR_MM_COUNTERS] = {};

	if (!offset || !*offset)
		return 0;
	if (all->together) {
		bpf_probe_read_kernel(part, sizeof(part), (void *)(all->addresses[0] + *offset));
	} else {
		for (int i = 0; i < NR_MM_COUNTERS; i++)
			bpf_probe_read_kernel(&part[i], sizeof(part[i]),
					      (void *)(all->addresses[i] + *offset));
	}
	for (int i = 0; i < NR_MM_COUNTERS; i++)
		all->pages[i] += part[i];
	return 0;
}

static __always_inline void begin_unfolded(struct unfolded *all, u32 kind,
					   struct percpu_counter *counter)
{
	all->pages[kind] = counter->count;
	bpf_core_read(&all->addresses[kind], sizeof(all->addresses[kind]), &counter->counters);
}

static __always_inline void read_resident(struct mem_held_record *held, struct mm_struct *mm,
					  bool plain)
{
	struct unfolded all = {};

	if (plain) {
		read_plain_page_counts(mm, held->resident_pages);
		return;
	}
	/* one by one: the distance of elements is the kernel's, only constants are relocated */
	begin_unfolded(&all, MM_FILEPAGES, &mm->rss_stat[MM_FILEPAGES]);
	begin_unfolded(&all, MM_ANONPAGES, &mm->rss_stat[MM_ANONPAGES]);
	begin_unfolded(&all, MM_SWAPENTS, &mm->rss_stat[MM_SWAPENTS]);
	begin_unfolded(&all, MM_SHMEMPAGES, &mm->rss_stat[MM_SHMEMPAGES]);
	all.together = all.addresses[1] - all.addresses[0] == sizeof(s32) &&
		       all.addresses[2] - all.addresses[0] == 2 * sizeof(s32) &&
		       all.addresses[3] - all.addresses[0] == 3 * sizeof(s32);
	bpf_loop(possible_cpus, add_unfolded, &all, 0);
	__builtin_memcpy(held->resident_pages, all.pages, sizeof(held->resident_pages));
}

/* Tells what a task's process holds; false if there is nothing to tell. */
static __always_inline bool tell_held(struct bpf_iter__task *ctx, struct task_struct *task,
				      u64 process_start_ns, bool plain)
{
	struct mem_held_record r = {.head = RECORD_HEAD(RECORD_HELD, r)};
	struct mm_struct *mm = task->mm, *still = 0;
	struct task_struct *owner;

	if (!mm || (task->flags & PF_KTHREAD))
		return false;
	r.process_start_ns = process_start_ns;
	r.tgid = task->tgid;
	r.virtual_pages = mm->total_vm;
	r.virtual_high_water_pages = mm->hiwater_vm;
	r.resident_high_water_pages = mm->hiwater_rss;
	r.page_table_bytes = mm->pgtables_bytes.counter;
	r.locked_pages = mm->locked_vm;
	if (has_hugetlb_usage()) {
		r.hugetlb_pages = mm->hugetlb_usage.counter;
		r.flags |= HELD_HAS_HUGETLB;
	}
	read_resident(&r, mm, plain);
	owner = has_mm_owner() ? owner_of(mm) : 0;
	if (owner) {
		r.owner_tgid = owner->tgid;
		r.owner_start_ns = owner->group_leader->start_boottime;
	}
	if (track_address_space && r.owner_tgid == r.tgid)
		track(r.tgid, process_start_ns, mm, r.virtual_pages); /* a start, if it has none */
	/* by helper: the compiler would take it for what was read above */
	bpf_core_read(&still, sizeof(still), &task->mm);
	if (number(still) != number(mm))
		r.flags |= HELD_CHANGING;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return true;
}

static __always_inline void read_faults(struct mem_faults_record *faults, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;

	faults->minor = task->min_flt;
	faults->major = task->maj_flt;
	faults->dead_minor = signal->min_flt;
	faults->dead_major = signal->maj_flt;
}

static __always_inline bool is_oom_victim(struct signal_struct *signal)
{
	return signal->oom_mm;
}

/* What events have told. */
static __always_inline void tell_tracked(struct bpf_iter__task *ctx, u32 tgid)
{
	struct mem_tracked_record *t = bpf_map_lookup_elem(&tracked, &tgid);

	if (t)
		bpf_seq_write(ctx->meta->seq, t, sizeof(*t));
}

static __always_inline void tell_process(struct bpf_iter__task *ctx, struct task_struct *task,
					 bool plain)
{
	struct mem_process_record r = {.head = RECORD_HEAD(RECORD_PROCESS, r)};

	if (!read_about(&r.about, task))
		return;
	read_faults(&r.faults, task);
	read_thread_page_counts(task, r.unfolded_pages);
	if (is_oom_victim(task->signal))
		r.flags |= MEM_OOM_VICTIM;
	if (is_being_released(task))
		return;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	if (r.about.flags & ABOUT_KERNEL_THREAD)
		return;
	tell_held(ctx, task, r.about.process_start_ns, plain);
	tell_tracked(ctx, r.about.tgid);
}

static __always_inline void tell_thread(struct bpf_iter__task *ctx, struct task_struct *task,
					bool plain)
{
	struct mem_thread_record r = {.head = RECORD_HEAD(RECORD_THREAD, r)};
	struct task_struct *leader = task->group_leader;

	if (leader->tgid != task->tgid)
		return;
	r.process_start_ns = leader->start_boottime;
	r.tgid = task->tgid;
	r.tid = task->pid;
	read_faults(&r.faults, task);
	read_thread_page_counts(task, r.unfolded_pages);
	if (is_being_released(task))
		return;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	if (!leader->mm)
		tell_held(ctx, task, r.process_start_ns, plain);
}

static __always_inline int tell_task(struct bpf_iter__task *ctx, bool plain)
{
	struct task_struct *task = ctx->task;

	if (!task)
		return 0;
	if (!is_watched(task))
		HAND_ON(ctx);
	if (task->pid == task->tgid)
		tell_process(ctx, task, plain);
	else
		tell_thread(ctx, task, plain);
	HAND_ON(ctx);
}

SEC("iter/task")
int mem_tasks(struct bpf_iter__task *ctx)
{
	return tell_task(ctx, false);
}

/* Before 6.2; there the loop over CPUs of the other does not exist. */
SEC("iter/task")
int mem_tasks_plain(struct bpf_iter__task *ctx)
{
	return tell_task(ctx, true);
}

/* The last thread of a process exits, in its own context. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(mem_exit, struct task_struct *task)
{
	struct process_key key = process_key_of(task);
	struct mem_tracked_record *t;
	struct mem_ended_record *r;
	struct mm_struct *mm;
	u32 tgid = key.tgid;

	if (task->signal->live.counter != 0 || !is_watched(task))
		return 0;
	bpf_map_update_elem(&ending, &key, &none, BPF_ANY);
	r = bpf_map_lookup_elem(&ending, &key);
	t = bpf_map_lookup_elem(&tracked, &tgid);
	if (r) {
		read_about_at_exit(&r->about, task);
		read_faults(&r->faults, task);
		if (task->pid !=
		    task->tgid) { /* its leader ended before it: in nobody's sums yet */
			r->faults.minor += task->group_leader->min_flt;
			r->faults.major += task->group_leader->maj_flt;
		}
		if (t && t->process_start_ns == key.start_ns)
			r->tracked = *t;
		mm = task->mm;
		if (mm) { /* gone before this up to 6.12 */
			r->resident_high_water_pages = mm->hiwater_rss;
			r->virtual_high_water_pages = mm->hiwater_vm;
		}
		r->ended_ns = bpf_ktime_get_ns();
	} else {
		count_loss(MEM_LOSS_EXIT_STATE_FULL);
	}
	if (t)
		bpf_map_delete_elem(&tracked, &tgid);
	return 0;
}

static __always_inline void fold(const struct mem_ended_record *r, struct mem_faults_record *faults,
				 bool oom_victim)
{
	u32 zero = 0;
	struct mem_folded_record *f = bpf_map_lookup_elem(&folded, &zero);

	if (!f)
		return;
	f->processes += 1;
	f->minor_faults += faults->dead_minor;
	f->major_faults += faults->dead_major;
	f->oom_kills += oom_victim;
	if (!r)
		return;
	f->allocations += r->tracked.allocations;
	f->allocated_pages += r->tracked.allocated_pages;
	f->deallocations += r->tracked.deallocations;
	f->deallocated_pages += r->tracked.deallocated_pages;
}

/* A process is released: by now signal_struct holds the faults of all its threads. */
SEC("tp_btf/sched_process_free")
int BPF_PROG(mem_free, struct task_struct *task)
{
	struct process_key key = {.start_ns = task->start_boottime, .tgid = task->tgid};
	struct mem_faults_record faults = {};
	struct mem_ended_record *last, *r;
	bool oom_victim;

	if (task->pid != task->tgid)
		return 0;
	read_faults(&faults, task);
	faults.minor = faults.major = 0; /* they are among those of the dead */
	oom_victim = is_oom_victim(task->signal);

	forget_watched(task);
	last = bpf_map_lookup_elem(&ending, &key);
	if (!last && watch_mode != WATCH_ALL)
		return 0;
	if (last)
		bpf_map_update_elem(&exited, &key, last, BPF_ANY);
	else
		bpf_map_update_elem(&exited, &key, &none, BPF_ANY);
	r = bpf_map_lookup_elem(&exited, &key);
	if (r) {
		read_about_released(&r->about, task);
		r->faults = faults;
		if (oom_victim)
			r->flags |= MEM_OOM_VICTIM;
		if (!r->ended_ns)
			r->ended_ns = bpf_ktime_get_ns();
	} else {
		fold(last, &faults, oom_victim);
	}
	bpf_map_delete_elem(&ending, &key);
	return 0;
}
