/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The CPU part of a final record. */
#ifndef EBPFMETRICS_CPU_ENDED_H
#define EBPFMETRICS_CPU_ENDED_H

#include "common.h"

/* Counters of a process or of one of its tasks. */
struct cpu_totals_record {
	u64 sum_exec_ns;
	u64 charged_ns; /* with SchedSwitch */
	u64 user_ns;
	u64 system_ns;
	u64 voluntary_switches;
	u64 involuntary_switches;
	u64 run_queue_wait_ns;
	u64 migrations;
};

/*
 * The kernel sums up the times and switches of dead threads in signal_struct, but not their
 * waits and migrations: those are added here as threads exit. The rest is set when the last
 * thread exits, and again at the release.
 */
struct cpu_ended_record {
	struct cpu_totals_record totals;
};

#endif
