// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * CPU time charged at every context switch (SchedSwitch). The task that leaves a CPU is
 * charged for the time since it was switched in: the growth of the scheduler's own
 * sum_exec_runtime, which leaves out time stolen by a hypervisor and saves the 45 ns of a
 * clock. Without SchedSwitch nothing here is attached: the walk reads the scheduler's
 * counters.
 */
#include "filter.h"
#include "cpu/maps.h"

EBPFMETRICS_LICENSE;

static __always_inline void charge_overflow(u64 owner, u64 ns)
{
	u64 zero = 0, *charged;

	charged = bpf_map_lookup_elem(&cpu_overflow, &owner);
	if (!charged) {
		bpf_map_update_elem(&cpu_overflow, &owner, &zero, BPF_NOEXIST);
		charged = bpf_map_lookup_elem(&cpu_overflow, &owner);
	}
	if (charged)
		__sync_fetch_and_add(charged, ns);
	else
		count_cpu_loss(CPU_LOSS_SWITCH_TABLE_FULL);
}

/*
 * Takes a free slot. 5.10 has no compare-and-swap for BPF: the process that raises
 * `claims` to exactly one wins. If two raise it at once both lose, and both are counted
 * in `cpu_overflow`.
 */
static __always_inline bool claim(struct cpu_slot *slot, u64 owner)
{
	if (slot->owner)
		return false;
	__sync_fetch_and_add(&slot->claims, 1);
	if (*(volatile u64 *)&slot->claims != 1)
		return false;
	*(volatile u64 *)&slot->owner = owner;
	return true;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(cpu_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u32 cpu = bpf_get_smp_processor_id(), tid = prev->pid, tgid = prev->tgid, came_tid, index;
	struct cpu_current *current = bpf_map_lookup_elem(&cpu_current_tasks, &cpu);
	struct cpu_slot *slot;
	u64 came_with, signal, owner, ran;

	if (!current)
		return 0;
	came_with = current->sum_exec_ns;
	came_tid = current->tid;
	signal = current->signal;
	/* readers on other CPUs: the fields belong together while tid is set */
	*(volatile u32 *)&current->tid = 0;
	*(volatile u64 *)&current->sum_exec_ns = next->se.sum_exec_runtime;
	/* stored as a pointer, loaded as a number: a pointer cannot be computed with */
	*(struct signal_struct *volatile *)&current->signal = next->signal;
	*(volatile u32 *)&current->tid = next->pid;

	if (!tgid) /* idle */
		return 0;
	if (filter_mode != FILTER_ALL && !passes_filter(prev))
		return 0;
	if (came_tid != tid || !signal) {
		if (!signal && current->primed_tid == tid) {
			came_with = current->primed_sum_exec_ns;
		} else if (is_fair(prev) && has_sum_at_pick()) {
			/*
			 * Some machines hide a switch: the scheduler itself remembers. By helper,
			 * because the compiler would merge the load with that of a map above.
			 */
			bpf_core_read(&came_with, sizeof(came_with),
				      &prev->se.prev_sum_exec_runtime);
		} else {
			count_cpu_loss(CPU_LOSS_SWITCH_UNMATCHED);
			return 0;
		}
		signal = signal_of(prev);
	}
	ran = prev->se.sum_exec_runtime - came_with;
	owner = cpu_owner(signal, tgid);

	index = tgid & cpu_slot_mask;
	slot = bpf_map_lookup_elem(&cpu_slots, &index);
	if (slot && (slot->owner == owner || claim(slot, owner)))
		__sync_fetch_and_add(&slot->charged_ns, ran);
	else
		charge_overflow(owner, ran);
	return 0;
}
