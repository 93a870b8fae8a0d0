// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Memory per process, between two reads. What a process holds is in the kernel's own
 * counters, and the walk reads it. What only shows in between is followed by events: the
 * peak of the resident set whenever the kernel changes its page counts, and the address
 * space whenever the lock on it is released.
 */
#include "filter.h"
#include "mem/maps.h"

EBPFMETRICS_LICENSE;

/*
 * The address space that a CPU saw last, by its process and the number of its execs, and a
 * known peak of it: most events need no more than a look here. One writer each.
 */
struct mem_seen {
	u64 owner_start_ns;
	u64 execs;
	u64 epoch;
	u64 pages;
	/* of the sum of the filter: */
	u64 number; /* of the count */
	u64 cgroups; /* which decide whether it is in the filter */
	u64 counted; /* pages that it contributed when this CPU last looked */
};

/* The peak of a process outside the filter: out of reach. */
#define OUTSIDE (~0ULL >> 1)

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct mem_seen);
} mem_seen SEC(".maps");

/* A per-CPU variable of our own, both addresses of which are known. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} landmark SEC(".maps");

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

/*
 * Exec has returned all of the old address space and taken a new one, whose peaks begin
 * here.
 */
static __always_inline void enter_space(struct mem_tracked_record *t, struct mm_struct *mm,
					u64 pages, u64 earlier_pages)
{
	static const struct mem_peak_record none;

	if (mem_track_address_space) {
		count_change(t, t->virtual_pages, 0);
		count_change(t, 0, pages);
	}
	t->resident_set = none;
	t->virtual_space = none;
	t->earlier_pages = earlier_pages;
	*(struct mm_struct **)&t->space = mm;
	t->virtual_pages = pages;
}

static __always_inline u64 cgroups_of(struct task_struct *task)
{
	return filter_mode == FILTER_CGROUP ? (u64)task->cgroups : 0;
}

static __always_inline bool was_seen(struct mem_seen *last, struct task_struct *owner, u64 now)
{
	return last->owner_start_ns == owner->start_boottime && last->epoch == now &&
	       last->execs == owner->self_exec_id &&
	       (!mem_sum_on ||
		(last->number == mem_sum_number() && last->cgroups == cgroups_of(owner)));
}

/* Whether a resident set of so many pages changes neither a peak nor the sum of the filter. */
static __always_inline bool is_known(struct mem_seen *last, struct task_struct *owner, u64 now,
				     u64 pages)
{
	return was_seen(last, owner, now) && pages <= last->pages &&
	       (!mem_sum_on || pages == last->counted || last->pages == OUTSIDE);
}

static __always_inline void remember(struct mem_seen *last, struct task_struct *owner, u64 now,
				     u64 peak, u64 counted)
{
	last->owner_start_ns = owner->start_boottime;
	last->execs = owner->self_exec_id;
	last->epoch = now;
	last->pages = peak;
	if (mem_sum_on) {
		last->number = mem_sum_number();
		last->cgroups = cgroups_of(owner);
		last->counted = counted;
	}
}

static __always_inline int note_resident(struct mm_struct *mm, struct task_struct *owner,
					 struct mem_seen *last, u64 now, u64 pages, bool atomic)
{
	u64 start_ns = owner->group_leader->start_boottime;
	struct mem_tracked_record *t;
	u32 tgid = owner->tgid;

	if (!passes_filter(owner)) {
		/* no more work for this process; it may have been in the filter before */
		remember(last, owner, now, OUTSIDE, 0);
		t = mem_sum_on ? bpf_map_lookup_elem(&mem_tracked, &tgid) : 0;
		if (t && t->process_start_ns == start_ns)
			mem_count(t, 0, atomic);
		return 0;
	}
	t = mem_track(tgid, start_ns, mm, mm->total_vm, owner->signal->maxrss);
	if (!t)
		return 0;
	if (t->space != mem_number(mm))
		enter_space(t, mm, mm->total_vm, owner->signal->maxrss);
	mem_raise(&t->resident_set, now, pages);
	remember(last, owner, now, t->resident_set.pages, pages);
	if (mem_sum_on) {
		mem_count(t, mem_is_counted(owner) ? pages : 0, atomic);
		mem_raise_sum(now);
	}
	return 0;
}

/*
 * The kernel has changed a page count. Most changes bring nothing new: the counts of CPUs
 * (before 6.2: of threads) are added to the common ones every 32 to 64 pages only, and a
 * count below the known peak does not matter, except for the sum of the filter.
 */
static __always_inline int resident_changed(struct mm_struct *mm, int member, bool atomic)
{
	struct task_struct *owner = mm->owner;
	struct mem_seen *last;
	u64 pages, now;
	u32 zero = 0;

	if (member == MM_SWAPENTS || !owner)
		return 0;
	last = bpf_map_lookup_elem(&mem_seen, &zero);
	if (!last)
		return 0;
	pages = folded_resident_pages(mm);
	now = mem_current_epoch();
	if (is_known(last, owner, now, pages) || owner->mm != mm)
		return 0;
	return note_resident(mm, owner, last, now, pages, atomic);
}

SEC("tp_btf/rss_stat")
int BPF_PROG(mem_resident, struct mm_struct *mm, int member)
{
	return resident_changed(mm, member, true);
}

/* Before 6.2. The kernel may have no atomic exchange. */
SEC("tp_btf/rss_stat")
int BPF_PROG(mem_resident_plain, struct mm_struct *mm, int member)
{
	return resident_changed(mm, member, false);
}

/*
 * The same to the page, with what this CPU has not added yet. What the other CPUs have not
 * added is missing: some 30 pages each at most.
 */
SEC("tp_btf/rss_stat")
int BPF_PROG(mem_resident_exact, struct mm_struct *mm, int member)
{
	struct task_struct *owner = mm->owner;
	struct mem_seen *last;
	u64 pages, now;
	u32 zero = 0;

	if (member == MM_SWAPENTS || !owner)
		return 0;
	last = bpf_map_lookup_elem(&mem_seen, &zero);
	if (!last)
		return 0;
	now = mem_current_epoch();
	if (last->pages == OUTSIDE && was_seen(last, owner, now))
		return 0;
	pages = mem_resident_here(mm);
	if (is_known(last, owner, now, pages) || owner->mm != mm)
		return 0;
	return note_resident(mm, owner, last, now, pages, true);
}

/*
 * The lock on an address space is being released, by the task that changed it or by one of
 * many readers, of which several may find the same change at once.
 */
SEC("tp_btf/mmap_lock_released")
int BPF_PROG(mem_space, struct mm_struct *mm)
{
	struct task_struct *owner = mem_owner_of(mm);
	struct mem_tracked_record *t;
	u64 pages, start_ns;
	u32 tgid;

	if (!owner)
		return 0;
	tgid = owner->tgid;
	pages = mm->total_vm;
	t = bpf_map_lookup_elem(&mem_tracked, &tgid);
	if (t && t->space == mem_number(mm) && t->virtual_pages == pages)
		return 0;
	start_ns = owner->group_leader->start_boottime;
	if (!passes_filter(owner))
		return 0;
	if (!t || t->process_start_ns != start_ns) {
		t = mem_track(tgid, start_ns, mm, pages, owner->signal->maxrss);
		if (!t)
			return 0;
	}
	if (t->space != mem_number(mm))
		enter_space(t, mm, pages, owner->signal->maxrss);
	else
		count_change(t, __sync_lock_test_and_set(&t->virtual_pages, pages), pages);
	mem_raise(&t->virtual_space, mem_current_epoch(), pages);
	return 0;
}

/*
 * 5.10 has no such tracepoint: the system calls that change the address space replace it.
 * Its BPF has no atomic exchange either: threads that change it in the same instant may
 * count as one.
 */
static __always_inline int space_after_syscall(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct mem_tracked_record *t;
	u64 pages, before, start_ns, earlier_pages;
	u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!mm)
		return 0;
	pages = BPF_CORE_READ(mm, total_vm);
	start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	if (!passes_filter_as(task, tgid))
		return 0;
	earlier_pages = BPF_CORE_READ(task, signal, maxrss);
	t = mem_track(tgid, start_ns, mm, pages, earlier_pages);
	if (!t)
		return 0;
	before = t->virtual_pages;
	if (t->space != mem_number(mm)) {
		enter_space(t, mm, pages, earlier_pages);
	} else if (before != pages) {
		t->virtual_pages = pages;
		count_change(t, before, pages);
	}
	mem_raise(&t->virtual_space, mem_current_epoch(), pages);
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

/* Where each CPU's per-CPU area lies. Run by user space, attached to nothing. */
static long find_cpu_offset(u32 cpu, u64 *reference)
{
	void *here = bpf_map_lookup_percpu_elem(&landmark, &(u32){0}, cpu);
	u64 *offset = bpf_map_lookup_elem(&mem_cpu_offsets, &cpu);

	if (!here || !offset)
		return 0;
	/* through a map: a pointer becomes a number that can be computed with */
	*(void *volatile *)offset = here;
	*offset = *(volatile u64 *)offset - *reference;
	return 0;
}

SEC("raw_tp/mem_find_cpu_offsets")
int mem_find_cpu_offsets(void *ctx)
{
	u64 *slot, map, reference = 0;
	u32 zero = 0;

	slot = bpf_map_lookup_elem(&mem_cpu_offsets, &zero);
	if (!slot)
		return 0;
	*(void *volatile *)slot = &landmark;
	map = *(volatile u64 *)slot;
	*slot = 0;
	bpf_probe_read_kernel(&reference, sizeof(reference),
			      (void *)(map + bpf_core_field_offset(struct bpf_array, pptrs)));
	bpf_loop(mem_possible_cpus, find_cpu_offset, &reference, 0);
	return 0;
}
